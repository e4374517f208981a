//! The budget of file descriptors. Enters: the limit of open files, and what the gateway itself needs. Leaves: how many
//! connections of clients that allows, and a permit for each. Without the reserve, clients could take the descriptors that
//! connections to brokers, the admin interface, and files about revocation need.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::pending::Fill;
use super::permits::{Permit, Permits};

/// A session has a socket to the client and one to the broker.
const PER_CONNECTION: u64 = 2;
/// Descriptors of a relay thread: two of epoll (one is the driver's copy for registrations), its wake-up, signals.
pub(crate) const PER_RELAY_THREAD: u64 = 4;
/// Connections to the admin interface that may be open at once.
pub(crate) const ADMIN_CONNECTIONS: usize = 16;
/// Descriptors for logs, files, and fetches of CRLs, OCSP responses and keys.
const BASE_RESERVE: u64 = 96;

/// Counts the connections of all listeners.
#[derive(Debug)]
pub(crate) struct Descriptors {
    connections: Arc<Permits>,
    max: AtomicU32,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self { connections: Arc::default(), max: AtomicU32::new(u32::MAX) }
    }
}

impl Descriptors {
    /// Divides the limit of open files. `needs`: how many descriptors the configuration itself uses at most, for listening
    /// sockets, relay threads, health checks, authentication services, the registry and the admin interface. Returns how many
    /// connections remain, and whether that is another number than before. At most half of a small limit is reserved.
    pub(crate) fn divide(&self, limit: u64, needs: u64) -> (u32, bool) {
        let max = possible_connections(limit, needs);
        (max, self.max.swap(max, Ordering::Relaxed) != max)
    }

    /// How many of the connections that the descriptors allow are open.
    pub(crate) fn fill(&self) -> Fill {
        Fill { taken: self.connections.taken(), max: self.max.load(Ordering::Relaxed) }
    }

    /// Takes the permit of a connection; `None` if there are too few descriptors for another one.
    pub(crate) fn take(&self) -> Option<Permit> {
        self.connections.take(self.max.load(Ordering::Relaxed))
    }
}

/// How many connections a limit of open files leaves, as [`Descriptors::divide`] has it.
pub(crate) fn possible_connections(limit: u64, needs: u64) -> u32 {
    let reserve = (BASE_RESERVE + needs).min(limit / 2);
    u32::try_from((limit - reserve) / PER_CONNECTION).unwrap_or(u32::MAX)
}

/// The limit of open files that leaves this many connections.
pub(crate) const fn needed_descriptors(connections: u64, needs: u64) -> u64 {
    BASE_RESERVE + needs + connections * PER_CONNECTION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_is_not_reserved() {
        let descriptors = Descriptors::default();
        assert_eq!(descriptors.divide(1_048_576, 200), ((1_048_576 - 296) / 2, true));
        assert_eq!(descriptors.divide(80, 200), (20, true), "half of a small limit");
        let held: Vec<_> = (0..30).filter_map(|_| descriptors.take()).collect();
        assert_eq!(held.len(), 20);
        drop(held);
        assert!(descriptors.take().is_some());
        assert_eq!(descriptors.divide(80, 300), (20, false));
        assert_eq!(descriptors.divide(u64::MAX, 0), (u32::MAX, true));
    }

    #[test]
    fn what_is_needed_is_what_is_possible() {
        let needed = needed_descriptors(100_000, 200);
        assert_eq!((needed, possible_connections(needed, 200)), (200_296, 100_000));
        assert_eq!(possible_connections(needed - 1, 200), 99_999);
    }
}
