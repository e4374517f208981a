//! Connections that are not sessions yet, by client network. Enters: a client's address, and how full the gateway is. Leaves:
//! a permit, or none if one network holds too many of the connections that are left. Otherwise one client that opens
//! connections and stays silent could take them all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::ClientNetwork;

/// One network gets at most a quarter of the connections once half of them are taken.
const SHARE: u32 = 4;
/// A network may always have this many.
const MIN_SHARE: u32 = 32;

/// Counts the connections between accept and the broker's CONNACK.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<HashMap<ClientNetwork, u32>>);

/// The permit of a connection that is not a session yet.
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
        let has_room = |fill: &Fill| fill.taken <= fill.max / 2 || *count < (fill.max / SHARE).max(MIN_SHARE);
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
    fn one_network_gets_a_quarter_once_half_are_taken() {
        let pending = Arc::<Pending>::default();
        let roomy = Fill { taken: 0, max: u32::MAX };
        let fill = |taken| [roomy, Fill { taken, max: 1000 }];
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held: Vec<_> = (1..=500).map(|taken| pending.take(one, fill(taken)).unwrap()).collect();
        assert!(pending.take(one, fill(501)).is_none());
        assert!(pending.take(other, fill(501)).is_some());
        held.truncate(249);
        assert!(pending.take(one, fill(900)).is_some(), "the rest have become sessions");
        held.extend(pending.take(one, fill(900)));
        assert!(pending.take(one, fill(900)).is_none());
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
