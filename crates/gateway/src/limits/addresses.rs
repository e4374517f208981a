//! Address rules: `allow` and `deny`. Enters: a client's address. Leaves: whether it may connect.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use crate::config::Origin;
use crate::peer::PeerAddress;

/// `allow` and `deny` of a listener. The most specific network that contains the address decides; `deny` wins if both are
/// equally specific. An address without a match may connect only if `allow` is empty.
#[derive(Clone, Debug)]
pub(crate) struct AddressRules {
    /// Most specific first; `deny` first at equal length.
    rules: Vec<(IpNet, bool)>,
    /// For an IP address without a match.
    default: bool,
    /// For Unix sockets.
    unix: bool,
}

impl AddressRules {
    /// Compiles the two lists.
    pub(crate) fn new(allow: &[Origin], deny: &[Origin]) -> Self {
        let rule = |allowed| move |origin: &Origin| origin.network().map(|net| (net, allowed));
        let mut rules: Vec<_> =
            deny.iter().filter_map(rule(false)).chain(allow.iter().filter_map(rule(true))).collect();
        // The sort is stable: `deny` stays first at equal length.
        rules.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
        Self { rules, default: allow.is_empty(), unix: Origin::unix_is_allowed(allow, deny) }
    }

    /// Whether a client at this address may connect.
    pub(crate) fn allows(&self, address: PeerAddress) -> bool {
        let Some(ip) = address.ip() else { return self.unix };
        let rule = self.rules.iter().find(|(net, _)| net.contains(&ip));
        rule.map_or(self.default, |(_, allowed)| *allowed)
    }
}

/// The addresses of one host. In IPv6 the first 64 bits, because a host can use every address of its /64
/// [RFC 4291, 2.5.4].
pub(crate) fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(list: &[&str]) -> Vec<Origin> {
        list.iter().map(|text| Origin::parse(text).unwrap()).collect()
    }

    fn allows(rules: &AddressRules, address: &str) -> bool {
        rules.allows((address.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn the_most_specific_network_decides() {
        let rules =
            AddressRules::new(&origins(&["10.0.0.0/8", "10.1.1.1/32"]), &origins(&["10.1.0.0/16", "10.0.0.0/8"]));
        let allows = |address: &str| allows(&rules, address);
        assert!(!allows("10.2.0.1"), "at equal length deny wins");
        assert!(!allows("10.1.2.3"));
        assert!(allows("10.1.1.1"));
        assert!(!allows("192.0.2.1"), "`allow` is not empty and has no match");
    }

    #[test]
    fn nothing_listed_is_everyone_and_deny_alone_is_everyone_else() {
        assert!(allows(&AddressRules::new(&[], &[]), "192.0.2.1"));
        let rules = AddressRules::new(&[], &origins(&["192.0.2.0/24"]));
        assert!(!allows(&rules, "192.0.2.1"));
        assert!(allows(&rules, "198.51.100.1"));
    }

    #[test]
    fn an_ipv4_mapped_address_is_evaluated_as_ipv4() {
        let rules = AddressRules::new(&[], &origins(&["10.0.0.0/8"]));
        assert!(!allows(&rules, "::ffff:10.0.0.1"));
        let rules = AddressRules::new(&[], &origins(&["::ffff:10.0.0.0/104"]));
        assert!(!allows(&rules, "10.0.0.1"));
    }

    #[test]
    fn unix_sockets_are_allowed_unless_others_are_named_or_they_are_denied() {
        for (allow, deny, allowed) in [
            (&[][..], &[][..], true),
            (&["10.0.0.0/8"], &[], false),
            (&["10.0.0.0/8", "unix"], &[], true),
            (&["unix"], &["unix"], false),
            (&[], &["unix"], false),
            (&[], &["0.0.0.0/0", "::/0"], true),
        ] {
            let rules = AddressRules::new(&origins(allow), &origins(deny));
            assert_eq!(rules.allows(PeerAddress::Unix), allowed, "{allow:?} {deny:?}");
        }
    }

    #[test]
    fn a_host_has_64_bits_of_addresses() {
        let network = |text: &str| host_of(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
