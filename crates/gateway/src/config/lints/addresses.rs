//! Whether `allow` and `deny` leave any address that may connect.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::{Bind, Listener};
use super::super::values::Origin;

/// Warns of a listener whose address rules reject everybody.
pub(super) fn run(listener: &Listener, diagnostics: &mut Diagnostics) {
    let networks = |list: &[Origin]| list.iter().filter_map(Origin::network).collect::<Vec<_>>();
    let (allow, deny) = (networks(&listener.allow), networks(&listener.deny));
    let rules: Vec<_> = (deny.iter().map(|net| (*net, false))).chain(allow.iter().map(|net| (*net, true))).collect();
    // A socket of IPv6 accepts no IPv4.
    let may_connect = |bind: &Bind| match bind {
        Bind::Ip(address) if address.is_ipv4() => admits(Ipv4Net::default().into(), &rules, listener.allow.is_empty()),
        Bind::Ip(_) => admits(Ipv6Net::default().into(), &rules, listener.allow.is_empty()),
        Bind::Unix(_) => Origin::unix_is_allowed(&listener.allow, &listener.deny),
    };
    if !listener.bind.iter().any(may_connect) {
        let complaint = Complaint::new("`allow` and `deny` leave no address that may connect to this listener");
        diagnostics
            .warning(&listener.table, complaint.hint("of two networks with the same address, the smaller one decides"));
    }
}

/// Whether an address of `net` may connect. The smallest network around an address decides; a denied one between equals.
fn admits(net: IpNet, rules: &[(IpNet, bool)], default: bool) -> bool {
    let around = rules.iter().filter(|(rule, _)| rule.contains(&net));
    let decides = around.max_by_key(|(rule, is_allowed)| (rule.prefix_len(), !is_allowed));
    let verdict = decides.map_or(default, |(_, is_allowed)| *is_allowed);
    let inside: Vec<_> = rules.iter().copied().filter(|(rule, _)| net.contains(rule) && *rule != net).collect();
    if inside.is_empty() {
        return verdict;
    }
    let halves = net.subnets(net.prefix_len() + 1).into_iter().flatten();
    halves.into_iter().any(|half| admits(half, &inside, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_network_decides() {
        for (allow, deny, admitted) in [
            (&[][..], &[][..], true),
            (&[], &["0.0.0.0/0"], false),
            (&[], &["0.0.0.0/1", "128.0.0.0/1"], false),
            (&[], &["0.0.0.0/1", "128.0.0.0/2"], true),
            (&["10.0.0.0/8"], &["10.0.0.0/7"], true),
            (&["10.0.0.0/8"], &["10.0.0.0/8"], false),
            (&["10.0.0.0/8"], &["10.0.0.0/9", "10.128.0.0/9"], false),
            (&["10.0.0.0/8", "10.0.0.7/32"], &["10.0.0.0/8"], true),
            (&["2001:db8::/32"], &[], false),
        ] {
            let rule = |is_allowed| move |text: &&str| (text.parse::<IpNet>().unwrap(), is_allowed);
            let rules: Vec<_> = deny.iter().map(rule(false)).chain(allow.iter().map(rule(true))).collect();
            assert_eq!(admits(Ipv4Net::default().into(), &rules, allow.is_empty()), admitted, "{allow:?} {deny:?}");
        }
    }
}
