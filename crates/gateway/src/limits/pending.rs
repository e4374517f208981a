//! Connections that are not established yet, by client network. Enters: a client's address, and how full the gateway is. Leaves:
//! a permit, or none if one network holds too many of the connections that are left. Otherwise one client that opens
//! connections and stays silent could take them all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::util::client_network::ClientNetwork;

/// A network may always have this many.
const MIN_SHARE: u32 = 32;

/// Counts the connections between accept and the broker's CONNACK, or their rejection.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<HashMap<ClientNetwork, u32>>);

/// The permit of a connection that is not established yet.
#[derive(Debug)]
#[must_use = "dropping it releases the permit"]
pub(crate) struct PendingPermit {
    pending: Arc<Pending>,
    network: ClientNetwork,
}

/// How many connections are open, of how many that may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) taken: u32,
    pub(crate) max: u32,
}

impl Pending {
    /// Takes the permit of a connection from `address`; `None` if its network holds its share already. `fills`: of each limit
    /// that applies.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, fills: [Fill; 2]) -> Option<PendingPermit> {
        let network = ClientNetwork::of(address);
        let mut counts = self.0.lock();
        let count = counts.entry(network).or_default();
        // At most half of what is free: alone, it gets a third, and each further network less, but some are left.
        let has_room = |fill: &Fill| *count < (fill.max.saturating_sub(fill.taken) / 2).max(MIN_SHARE);
        if !fills.iter().all(has_room) {
            return None;
        }
        *count += 1;
        Some(PendingPermit { pending: Arc::clone(self), network })
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.pending.0.lock().entry(self.network) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_gets_half_of_what_is_free() {
        let pending = Arc::<Pending>::default();
        let roomy = Fill { taken: 0, max: u32::MAX };
        let (mut held, max) = (Vec::new(), 1000);
        let mut shares = Vec::new();
        for host in 1..=4 {
            let before = held.len();
            for _ in 0..max {
                let taken = u32::try_from(held.len()).unwrap();
                held.extend(pending.take(IpAddr::from([192, 0, 2, host]), [roomy, Fill { taken, max }]));
            }
            shares.push(held.len() - before);
        }
        assert_eq!(shares, [333, 222, 148, 99], "and some are left for a fifth");
        drop(held);
        assert!(pending.0.lock().is_empty());
    }

    #[test]
    fn small_limits_are_left_alone() {
        let pending = Arc::<Pending>::default();
        let fill = |taken| [Fill { taken, max: 10 }; 2];
        let held: Vec<_> = (1..=10).map(|taken| pending.take(IpAddr::from([192, 0, 2, 1]), fill(taken))).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
