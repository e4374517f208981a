//! Local addresses of connections to brokers. Enters: the addresses of the configuration. Leaves: for each connection the one
//! with the fewest, and how many each has: a local address has a limited number of ports for each address and port of a server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections to one server, by local address.
#[derive(Debug, Default)]
pub(super) struct Sources(Mutex<BTreeMap<IpAddr, u32>>);

/// A connection from a local address, counted until it is dropped.
#[derive(Debug)]
pub(super) struct SourcePermit {
    sources: Arc<Sources>,
    /// The local address.
    pub(super) address: IpAddr,
}

impl Sources {
    /// Counts a connection from the address with the fewest; of those with equally many, the first. `None`: there are none.
    pub(super) fn take<'a>(self: &Arc<Self>, among: impl Iterator<Item = &'a IpAddr>) -> Option<SourcePermit> {
        let mut counts = self.0.lock();
        let address = *among.min_by_key(|address| counts.get(*address).copied().unwrap_or_default())?;
        *counts.entry(address).or_default() += 1;
        Some(SourcePermit { sources: Arc::clone(self), address })
    }

    /// The number of connections from each address that has some.
    pub(super) fn counts(&self) -> BTreeMap<IpAddr, u32> {
        self.0.lock().clone()
    }
}

impl SourcePermit {
    /// The number of connections from its address.
    pub(super) fn count(&self) -> u32 {
        self.sources.0.lock().get(&self.address).copied().unwrap_or_default()
    }
}

impl Drop for SourcePermit {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_with_the_fewest_connections_is_next() {
        let addresses: Vec<IpAddr> = (1..4).map(|host| IpAddr::from([127, 0, 0, host])).collect();
        let sources = Arc::new(Sources::default());
        let mut held: Vec<_> = (0..6).map(|_| sources.take(addresses.iter()).unwrap()).collect();
        assert_eq!(sources.counts().values().copied().collect::<Vec<_>>(), [2, 2, 2]);
        held.retain(|permit| permit.address != addresses[1]);
        assert_eq!(sources.take(addresses.iter()).unwrap().address, addresses[1]);
        drop(held);
        assert!(sources.counts().is_empty());
        assert!(sources.take([].iter()).is_none());
    }
}
