//! Limits how often the same kind of message is logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Permits so many messages per second, by default one, and counts the suppressed ones.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: u64,
    /// The second of the last message, and the number of messages in it.
    second: AtomicU64,
    used: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::per_second(1)
    }
}

impl RateLimit {
    /// Permits so many messages per second.
    pub(crate) const fn per_second(per_second: u64) -> Self {
        let [second, used, suppressed] = [const { AtomicU64::new(0) }; 3];
        Self { per_second, second, used, suppressed }
    }

    /// `Some` if the message may be logged, with the number of messages suppressed before it.
    pub(crate) fn permit(&self) -> Option<u64> {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.used.store(0, Ordering::Relaxed);
        }
        if self.used.fetch_add(1, Ordering::Relaxed) >= self.per_second {
            self.suppress();
            return None;
        }
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
    fn so_many_a_second_and_the_rest_is_counted() {
        // More than a second's worth, in however many seconds the test takes.
        let limit = RateLimit::per_second(3);
        let (mut logged, mut suppressed) = (0, 0);
        for _ in 0..1000 {
            if let Some(before) = limit.permit() {
                (logged, suppressed) = (logged + 1, suppressed + before);
            }
        }
        assert!((3..1000).contains(&logged), "{logged}");
        assert_eq!(logged + suppressed + limit.suppressed.into_inner(), 1000);
    }
}
