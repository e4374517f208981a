//! Over how many threads sessions are spread.
//!
//! Enters: for how long the busiest thread was busy. Leaves: how many are to be in use.

use std::time::Duration;

use tokio::time::Instant;

/// How often the threads are looked at.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// A thread that is busy for a greater part of this time has too many sessions. Time counts in which it could run but had no
/// core: more threads get more of the cores.
const CROWDED: f64 = 0.5;
/// Below this, a thread could do the work of two.
const QUIET: f64 = 0.2;
/// For so long, since each change moves the sessions that have messages, which costs some 50 µs each.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// Decides how many threads to use.
pub(super) struct Spread {
    /// Since when no thread was busier than [`QUIET`].
    quiet_since: Instant,
}

impl Spread {
    pub(super) const fn new(now: Instant) -> Self {
        Self { quiet_since: now }
    }

    /// How many of `len` threads to use from `now` on, where `in_use` were, the busiest for `share` of the time.
    pub(super) fn next(&mut self, in_use: usize, len: usize, share: f64, now: Instant) -> usize {
        if share > QUIET || in_use == 1 {
            self.quiet_since = now;
        }
        if share > CROWDED {
            (in_use * 2).min(len)
        } else if now - self.quiet_since >= QUIET_FOR {
            self.quiet_since = now;
            in_use.div_ceil(2)
        } else {
            in_use
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of threads in use of `len`, where the busiest of them was so busy in each of these seconds.
    fn counts(len: usize, mut in_use: usize, shares: &[f64]) -> Vec<usize> {
        let begin = Instant::now();
        let mut spread = Spread::new(begin);
        let seconds = (1..).map(|second| begin + Duration::from_secs(second));
        let next = |(share, now): (&f64, Instant)| {
            in_use = spread.next(in_use, len, *share, now);
            in_use
        };
        shares.iter().zip(seconds).map(next).collect()
    }

    #[test]
    fn twice_as_many_help_a_crowded_thread_until_all_do() {
        assert_eq!(counts(6, 1, &[0.5, 0.51, 0.9, 1.0, 1.0]), [1, 2, 4, 6, 6]);
        assert_eq!(counts(1, 1, &[1.0]), [1]);
    }

    #[test]
    fn half_as_many_are_enough_after_a_quiet_minute() {
        let quiet = counts(6, 6, &[0.2; 200]);
        assert_eq!([quiet[58], quiet[59], quiet[118], quiet[119], quiet[179], quiet[199]], [6, 3, 3, 2, 1, 1]);
    }

    #[test]
    fn a_thread_that_is_not_quiet_keeps_all_in_use() {
        let mut shares = [0.1; 120];
        (shares[0], shares[59], shares[118]) = (0.21, 0.3, 0.45);
        assert_eq!(counts(4, 4, &shares), [4; 120]);
    }
}
