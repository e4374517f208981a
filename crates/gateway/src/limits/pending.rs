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
const FREE_BYTES: usize = 8 << 10;
/// The limit of bytes that are counted, of all connections together.
const MAX_BYTES: usize = 128 << 20;

/// Counts the connections between accept and the broker's CONNACK, or their rejection, and what they have sent.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Shares>);

#[derive(Debug, Default)]
struct Shares {
    by_network: HashMap<ClientNetwork, Share>,
    /// The sum of those of all networks.
    bytes: usize,
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
pub(crate) struct TooManyBytes;

impl std::fmt::Display for TooManyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("unfinished handshakes and CONNECTs of the client's network hold too many bytes")
    }
}

impl std::error::Error for TooManyBytes {}

impl Pending {
    /// Takes the permit of a connection from `address`; `None` if its network holds its share already. `fills`: of each limit
    /// that applies.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, fills: [Fill; 2]) -> Option<PendingPermit> {
        let network = ClientNetwork::of(address);
        let mut shares = self.0.lock();
        let Share { connections, .. } = shares.by_network.entry(network).or_default();
        // At most half of what is free: alone, it gets a third, and each further network less, but some are left.
        let has_room = |fill: &Fill| *connections < (fill.max.saturating_sub(fill.taken) / 2).max(MIN_SHARE);
        if !fills.iter().all(has_room) {
            return None;
        }
        *connections += 1;
        Some(PendingPermit { pending: Arc::clone(self), network, bytes: 0 })
    }
}

impl PendingPermit {
    /// Sets how many bytes of its client the connection holds.
    ///
    /// # Errors
    /// They are too many, beside those of other connections of its network. The number stays as it was.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), TooManyBytes> {
        let (bytes, before) = (bytes.saturating_sub(FREE_BYTES), self.bytes);
        // Most connections never get any further.
        if bytes == before {
            return Ok(());
        }
        let Shares { by_network, bytes: of_all } = &mut *self.pending.0.lock();
        let Some(share) = by_network.get_mut(&self.network) else { return Ok(()) };
        let (of_others, of_network) = (*of_all - before, share.bytes - before + bytes);
        // Without a minimum for each network, unlike connections: the sum is a limit, however many networks there are.
        if bytes > before && of_network > MAX_BYTES.saturating_sub(*of_all) / 2 {
            return Err(TooManyBytes);
        }
        (self.bytes, share.bytes, *of_all) = (bytes, of_network, of_others + bytes);
        Ok(())
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        let Shares { by_network, bytes } = &mut *self.pending.0.lock();
        *bytes -= self.bytes;
        if let Entry::Occupied(mut share) = by_network.entry(self.network) {
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
                held.extend(pending.take(IpAddr::from([192, 0, 2, host]), [ROOMY, Fill { taken, max }]));
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
        let held: Vec<_> = (1..=10).map(|taken| pending.take(IpAddr::from([192, 0, 2, 1]), fill(taken))).collect();
        assert!(held.iter().all(Option::is_some));
    }

    #[test]
    fn all_networks_together_hold_a_limited_number_of_bytes() {
        const LARGE: usize = 64 << 10;
        let pending = Arc::<Pending>::default();
        let permit = |network: u16| {
            let [high, low] = network.to_be_bytes();
            pending.take(IpAddr::from([10, high, low, 1]), [ROOMY; 2]).unwrap()
        };
        let mut held = Vec::new();
        let mut shares = Vec::new();
        for network in 0..1000 {
            let before = held.len();
            loop {
                let mut permit = permit(network);
                if permit.hold(LARGE).is_err() {
                    break;
                }
                held.push(permit);
            }
            shares.push(held.len() - before);
        }
        let counted = held.len() * (LARGE - FREE_BYTES);
        assert_eq!(shares[0], MAX_BYTES / 3 / (LARGE - FREE_BYTES), "a third for one that is alone");
        assert!(shares[1] > shares[0] / 2 && counted <= MAX_BYTES && pending.0.lock().bytes == counted, "{shares:?}");
        // What usual clients need is not counted, and a connection that needs less than before gives back.
        let mut usual = permit(5000);
        assert_eq!((usual.hold(FREE_BYTES), usual.hold(MAX_BYTES)), (Ok(()), Err(TooManyBytes)));
        held[0].hold(FREE_BYTES).unwrap();
        assert_eq!(pending.0.lock().bytes, counted - (LARGE - FREE_BYTES));
        drop(held);
        assert_eq!((usual.hold(LARGE), pending.0.lock().bytes), (Ok(()), LARGE - FREE_BYTES));
        drop(usual);
        let shares = pending.0.lock();
        assert!(shares.by_network.is_empty() && shares.bytes == 0);
    }
}
