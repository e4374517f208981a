//! Limits how often the same kind of message is logged: in general, and by whom it is about.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::util::client_network::ClientNetwork;
use crate::util::clock::now;

/// Permits one message per second and counts the suppressed ones.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    last_second: AtomicI64,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// `Some` if the message may be logged, with the number of messages suppressed before it.
    pub(crate) fn permit(&self) -> Option<u64> {
        let second = now();
        if self.last_second.swap(second, Ordering::Relaxed) == second {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

/// The lines about all clients in a second.
const LINES: usize = 20;

/// Permits some messages per second about many clients. One network gets half of what is left at most, so that it cannot hide
/// what others do.
#[derive(Debug, Default)]
pub(crate) struct FairRateLimit {
    lines: Mutex<Lines>,
    suppressed: AtomicU64,
}

#[derive(Debug, Default)]
struct Lines {
    second: i64,
    /// Of the messages in this second: whom they are about.
    about: Vec<ClientNetwork>,
}

impl FairRateLimit {
    /// `Some` if a message about a client at this address may be logged, with the number of messages suppressed before it.
    pub(crate) fn permit(&self, address: IpAddr) -> Option<u64> {
        let (network, second) = (ClientNetwork::of(address), now());
        let mut lines = self.lines.lock();
        if lines.second != second {
            lines.second = second;
            lines.about.clear();
        }
        let left = LINES.saturating_sub(lines.about.len());
        let of_network = lines.about.iter().filter(|about| **about == network).count();
        if of_network >= left.div_ceil(2) {
            self.suppress();
            return None;
        }
        lines.about.push(network);
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }

    /// Counts a message that is not logged for another reason.
    pub(crate) fn suppress(&self) {
        self.suppressed.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_network_takes_all_lines_and_what_is_suppressed_is_counted() {
        let limit = FairRateLimit::default();
        let (noisy, quiet) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        // In however many seconds the test takes.
        let (mut logged, mut suppressed) = (0, 0);
        for _ in 0..1000 {
            if let Some(before) = limit.permit(noisy) {
                (logged, suppressed) = (logged + 1, suppressed + before);
            }
        }
        assert!((7..1000).contains(&logged), "{logged}");
        assert_eq!(logged + suppressed + limit.suppressed.load(Ordering::Relaxed), 1000);
        assert!(limit.permit(quiet).is_some(), "a third is left");
    }
}
