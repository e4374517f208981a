//! Connections that are not established yet, by client network. Enters: a client's address, and how full the gateway is. Leaves:
//! a permit, or none if one network holds too many of the connections that are left, and an error if it holds too many bytes.
//! Otherwise one client that opens connections and stays silent, or stops within a large CONNECT, could take all there is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::util::client_network::ClientNetwork;

/// A network may always have this many.
const MIN_SHARE: u32 = 32;
/// Bytes that a connection may hold without being counted: nearly all handshakes and CONNECTs need fewer.
const FREE_BYTES: usize = 16 << 10;
/// The limit of bytes that are counted, of all connections together.
const MAX_BYTES: usize = 128 << 20;
/// Of those, the limit for clients that were not connected lately: strangers leave some to the fleet.
const MAX_UNKNOWN_BYTES: usize = MAX_BYTES / 2;

/// Counts the connections between accept and the broker's CONNACK, or their rejection, and what they have sent.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Shares>);

#[derive(Debug, Default)]
struct Shares {
    by_network: HashMap<ClientNetwork, Share>,
    /// The sums of those of all networks.
    bytes: usize,
    unknown_bytes: usize,
}

#[derive(Debug, Default)]
struct Share {
    connections: u32,
    bytes: usize,
}

/// The permit of a connection that is not established yet.
#[derive(Debug)]
#[must_use = "dropping it releases the permit"]
pub(crate) struct PendingPermit {
    pending: Arc<Pending>,
    network: ClientNetwork,
    is_known: bool,
    /// The counted ones.
    bytes: usize,
}

/// How many connections are open, of how many that may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) taken: u32,
    pub(crate) max: u32,
}

/// The handshakes and CONNECTs of a client network have more bytes than half of those that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyBytes {
    /// What the connection needs.
    bytes: usize,
}

impl std::fmt::Display for TooManyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes for this one, beside others of the client's network", self.bytes)
    }
}

impl std::error::Error for TooManyBytes {}

impl Pending {
    /// Takes the permit of a connection from `address`; `None` if its network holds its share already. `is_known`: the client was
    /// connected lately. `fills`: of each limit that applies.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, is_known: bool, fills: [Fill; 2]) -> Option<PendingPermit> {
        let network = ClientNetwork::of(address);
        let mut shares = self.0.lock();
        let Share { connections, .. } = shares.by_network.entry(network).or_default();
        // At most half of what is free: alone, it gets a third, and each further network less, but some are left.
        let has_room = |fill: &Fill| *connections < (fill.max.saturating_sub(fill.taken) / 2).max(MIN_SHARE);
        if !fills.iter().all(has_room) {
            return None;
        }
        *connections += 1;
        Some(PendingPermit { pending: Arc::clone(self), network, is_known, bytes: 0 })
    }
}

impl Shares {
    /// What is free for a client.
    fn free(&self, is_known: bool) -> usize {
        let of_all = MAX_BYTES.saturating_sub(self.bytes);
        if is_known { of_all } else { of_all.min(MAX_UNKNOWN_BYTES.saturating_sub(self.unknown_bytes)) }
    }

    fn add(&mut self, bytes: usize, is_known: bool) {
        self.bytes += bytes;
        self.unknown_bytes += if is_known { 0 } else { bytes };
    }

    fn subtract(&mut self, bytes: usize, is_known: bool) {
        self.bytes -= bytes;
        self.unknown_bytes -= if is_known { 0 } else { bytes };
    }
}

impl PendingPermit {
    /// Whether the client was connected lately.
    pub(crate) const fn is_known(&self) -> bool {
        self.is_known
    }

    /// How many bytes are counted.
    #[cfg(test)]
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets how many bytes the connection holds because of what its client has sent.
    ///
    /// # Errors
    /// They are too many, beside those of other connections of its network. The number stays as it was.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), TooManyBytes> {
        let (counted, before) = (bytes.saturating_sub(FREE_BYTES), self.bytes);
        // Most connections never get any further.
        if counted == before {
            return Ok(());
        }
        let mut shares = self.pending.0.lock();
        let free = shares.free(self.is_known);
        let Some(share) = shares.by_network.get_mut(&self.network) else { return Ok(()) };
        let of_network = share.bytes - before + counted;
        // Without a minimum for each network, unlike connections: the sum is a limit, however many networks there are.
        if counted > before && of_network > free / 2 {
            return Err(TooManyBytes { bytes });
        }
        share.bytes = of_network;
        shares.subtract(before, self.is_known);
        shares.add(counted, self.is_known);
        self.bytes = counted;
        Ok(())
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        let mut shares = self.pending.0.lock();
        shares.subtract(self.bytes, self.is_known);
        if let Entry::Occupied(mut share) = shares.by_network.entry(self.network) {
            share.get_mut().connections -= 1;
            share.get_mut().bytes -= self.bytes;
            if share.get().connections == 0 {
                share.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOMY: Fill = Fill { taken: 0, max: u32::MAX };

    #[test]
    fn a_network_gets_half_of_what_is_free() {
        let pending = Arc::<Pending>::default();
        let (mut held, max) = (Vec::new(), 1000);
        let mut shares = Vec::new();
        for host in 1..=4 {
            let before = held.len();
            for _ in 0..max {
                let taken = u32::try_from(held.len()).unwrap();
                held.extend(pending.take(IpAddr::from([192, 0, 2, host]), false, [ROOMY, Fill { taken, max }]));
            }
            shares.push(held.len() - before);
        }
        assert_eq!(shares, [333, 222, 148, 99], "and some are left for a fifth");
        drop(held);
        assert!(pending.0.lock().by_network.is_empty());
    }

    #[test]
    fn small_limits_are_left_alone() {
        let pending = Arc::<Pending>::default();
        let fill = |taken| [Fill { taken, max: 10 }; 2];
        let held: Vec<_> =
            (1..=10).map(|taken| pending.take(IpAddr::from([192, 0, 2, 1]), false, fill(taken))).collect();
        assert!(held.iter().all(Option::is_some));
    }

    #[test]
    fn all_networks_together_hold_a_limited_number_of_bytes() {
        const LARGE: usize = 64 << 10;
        const COUNTED: usize = LARGE - FREE_BYTES;
        let pending = Arc::<Pending>::default();
        let permit = |network: u16, is_known| {
            let [high, low] = network.to_be_bytes();
            pending.take(IpAddr::from([10, high, low, 1]), is_known, [ROOMY; 2]).unwrap()
        };
        let mut held = Vec::new();
        let mut fill = |networks: std::ops::Range<u16>, is_known| {
            let mut shares = Vec::new();
            for network in networks {
                let before = held.len();
                loop {
                    let mut permit = permit(network, is_known);
                    if permit.hold(LARGE).is_err() {
                        break;
                    }
                    held.push(permit);
                }
                shares.push(held.len() - before);
            }
            shares
        };
        let unknown = fill(0..1000, false);
        assert_eq!(unknown[0], MAX_UNKNOWN_BYTES / 3 / COUNTED, "a third for one that is alone");
        assert!(unknown[1] > unknown[0] / 2 && unknown[999] == 0, "{unknown:?}");
        // Those that are known have the other half, beside what strangers leave.
        let known = fill(2000..3000, true);
        assert_eq!(known[0], (MAX_BYTES - unknown.iter().sum::<usize>() * COUNTED) / 3 / COUNTED);
        let counted = held.len() * COUNTED;
        assert!(counted <= MAX_BYTES && pending.0.lock().bytes == counted, "{known:?}");
        // What usual clients need is not counted, and a connection that needs less than before gives back.
        let mut usual = permit(5000, false);
        assert!(usual.hold(FREE_BYTES).is_ok() && usual.hold(MAX_BYTES).is_err());
        held[0].hold(FREE_BYTES).unwrap();
        assert_eq!(pending.0.lock().bytes, counted - COUNTED);
        drop(held);
        assert!(usual.hold(LARGE).is_ok() && pending.0.lock().bytes == COUNTED);
        drop(usual);
        let shares = pending.0.lock();
        assert!(shares.by_network.is_empty() && (shares.bytes, shares.unknown_bytes) == (0, 0));
    }
}
