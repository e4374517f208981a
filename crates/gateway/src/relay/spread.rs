//! Over how many threads sessions are spread.
//!
//! Enters: for how long the busiest thread was busy. Leaves: how often the number of threads is halved.

use std::time::Duration;

use tokio::time::Instant;

/// How often the threads are looked at.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// A thread that is busy for a greater part of this time has too many sessions. Time counts in which it could run but had no
/// core: more threads get more of the cores. What the system needs to find the sockets that are ready does not count.
const CROWDED: f64 = 0.5;
/// So often in a row: in the first time after a change, it is also busy with the sessions that move.
const CROWDED_FOR: u32 = 3;
/// Below this, a thread could do the work of two.
const QUIET: f64 = 0.2;
/// For so long, since each change moves the sessions that have messages.
const QUIET_FOR: Duration = Duration::from_secs(60);

/// Decides how many threads to use.
pub(super) struct Spread {
    /// How often in a row a thread was busier than [`CROWDED`].
    crowded: u32,
    /// Since when no thread was busier than [`QUIET`].
    quiet_since: Instant,
}

impl Spread {
    pub(super) const fn new(now: Instant) -> Self {
        Self { crowded: 0, quiet_since: now }
    }

    /// How often to halve the number of threads from `now` on, at most `max` times, where it was halved so often and the busiest
    /// was busy for `share` of the time.
    pub(super) fn next(&mut self, halvings: u32, max: u32, share: f64, now: Instant) -> u32 {
        self.crowded = if share > CROWDED { self.crowded + 1 } else { 0 };
        if share > QUIET {
            self.quiet_since = now;
        }
        let next = if self.crowded >= CROWDED_FOR {
            halvings.saturating_sub(1)
        } else if now - self.quiet_since >= QUIET_FOR {
            (halvings + 1).min(max)
        } else {
            return halvings;
        };
        *self = Self::new(now);
        next
    }
}

/// How often the number of threads can be halved: until one does all.
pub(super) const fn max_halvings(threads: usize) -> u32 {
    usize::BITS - threads.saturating_sub(1).leading_zeros()
}

/// How many of the threads are in use.
pub(super) const fn in_use(threads: usize, halvings: u32) -> usize {
    threads.div_ceil(1 << halvings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of threads in use of `len`, where the busiest of them was so busy in each of these seconds.
    fn counts(len: usize, mut halvings: u32, shares: &[f64]) -> Vec<usize> {
        let begin = Instant::now();
        let mut spread = Spread::new(begin);
        let seconds = (1..).map(|second| begin + Duration::from_secs(second));
        let next = |(share, now): (&f64, Instant)| {
            halvings = spread.next(halvings, max_halvings(len), *share, now);
            in_use(len, halvings)
        };
        shares.iter().zip(seconds).map(next).collect()
    }

    #[test]
    fn the_number_of_threads_is_halved_until_one_is_left() {
        let numbers = |len| (0..=max_halvings(len)).map(|halvings| in_use(len, halvings)).collect::<Vec<_>>();
        assert_eq!(numbers(1), [1]);
        assert_eq!(numbers(2), [2, 1]);
        assert_eq!(numbers(3), [3, 2, 1]);
        assert_eq!(numbers(6), [6, 3, 2, 1]);
        assert_eq!(numbers(8), [8, 4, 2, 1]);
        assert_eq!(numbers(1024).len(), 11);
    }

    #[test]
    fn twice_as_many_help_a_thread_that_stays_crowded_until_all_do() {
        assert_eq!(counts(6, 3, &[0.51; 14]), [1, 1, 2, 2, 2, 3, 3, 3, 6, 6, 6, 6, 6, 6]);
        assert_eq!(counts(6, 3, &[1.0, 1.0, 0.5, 1.0, 1.0, 0.5]), [1; 6]);
        assert_eq!(counts(1, 0, &[1.0; 9]), [1; 9]);
    }

    #[test]
    fn half_as_many_are_enough_after_a_quiet_minute() {
        let quiet = counts(6, 0, &[0.2; 300]);
        let at = |second: usize| quiet[second - 1];
        assert_eq!([at(59), at(60), at(119), at(120), at(179), at(180), at(300)], [6, 3, 3, 2, 2, 1, 1]);
    }

    #[test]
    fn a_thread_that_is_not_quiet_keeps_all_in_use() {
        let mut shares = [0.1; 120];
        (shares[0], shares[59], shares[118]) = (0.21, 0.3, 0.45);
        assert_eq!(counts(4, 0, &shares), [4; 120]);
    }
}
