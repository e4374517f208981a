//! A token bucket: so many events in so much time, and a burst of them at once. Enters: events and the time. Leaves: whether
//! they are within the rate, or when they will be. Measured by tokio's clock, like everything that expires; 24 bytes.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::tables::Rate;

/// A token bucket, full at first. Instead of tokens it keeps the time at which it is full again (GCRA), so that it needs no
/// refilling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// How many tokens there are, at most the burst.
    pub(crate) fn available(&self, rate: Rate, now: Instant) -> u64 {
        let missing = self.full_at.saturating_duration_since(now);
        // Rounded up: what is not whole yet is missing.
        let missing = (missing.as_nanos() * u128::from(rate.amount)).div_ceil(rate.per.as_nanos().max(1));
        rate.burst.saturating_sub(u64::try_from(missing).unwrap_or(u64::MAX))
    }

    /// Takes tokens, of which there have to be so many.
    pub(crate) fn take(&mut self, rate: Rate, tokens: u64, now: Instant) {
        self.full_at = self.full_at.max(now) + time_for(rate, tokens);
    }

    /// Limits what is missing to a burst and what comes in `debt`. More was taken at another rate, before a reload: a raised
    /// rate must count at once.
    pub(crate) fn limit_debt(&mut self, rate: Rate, debt: Duration, now: Instant) {
        self.full_at = self.full_at.min(now + time_for(rate, rate.burst) + debt);
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn try_take(&mut self, rate: Rate, now: Instant) -> bool {
        self.limit_debt(rate, Duration::ZERO, now);
        let has_one = self.available(rate, now) >= 1;
        if has_one {
            self.take(rate, 1, now);
        }
        has_one
    }

    /// When there will be so many tokens, at most the burst.
    pub(crate) fn ready_at(&self, rate: Rate, tokens: u64) -> Instant {
        let surplus = rate.burst.saturating_sub(tokens);
        // What would be before the beginning of time is now.
        self.full_at.checked_sub(time_for(rate, surplus)).unwrap_or(self.full_at)
    }

    /// Whether it is full, so that it can be forgotten.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

/// The time in which so many tokens come.
fn time_for(rate: Rate, tokens: u64) -> Duration {
    let nanos = (rate.per.as_nanos() * u128::from(tokens)).div_ceil(u128::from(rate.amount.max(1)));
    // A hundred years, so that sums with a time do not overflow.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).min(3_153_600_000 * 1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { amount: 10, per: Duration::from_secs(1), burst: 20 };

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let (start, mut taken) = (Instant::now(), 0);
        let mut bucket = Bucket::new(start);
        for tenth in 0..=100_u32 {
            while bucket.try_take(RATE, start + Duration::from_millis(100) * tenth) {
                taken += 1;
            }
        }
        assert_eq!(taken, 20 + 100);
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_when_there_will_be_enough() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        assert_eq!(bucket.available(RATE, now), 20);
        bucket.take(RATE, 20, now);
        assert_eq!(bucket.available(RATE, now), 0);
        for tokens in 1..=20 {
            let ready = bucket.ready_at(RATE, tokens);
            assert_eq!(ready - now, Duration::from_millis(100) * u32::try_from(tokens).unwrap());
            assert_eq!(bucket.available(RATE, ready), tokens);
            assert_eq!(bucket.available(RATE, ready - Duration::from_nanos(1)), tokens - 1);
        }
        assert!(bucket.is_full(now + Duration::from_secs(2)) && !bucket.is_full(now + Duration::from_millis(1999)));
        // It never holds more than the burst.
        assert_eq!(bucket.available(RATE, now + Duration::from_secs(3600)), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_raised_rate_counts_at_once() {
        let slow = Rate { amount: 1, per: Duration::from_secs(60), burst: 60 };
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        bucket.take(slow, 60, now);
        assert!(!bucket.try_take(RATE, now), "the burst is used up");
        assert!(bucket.try_take(RATE, now + Duration::from_millis(100)), "an hour is missing at the old rate");
    }

    #[tokio::test(start_paused = true)]
    async fn rates_that_do_not_divide_are_kept_in_the_long_run() {
        let rate = Rate { amount: 7, per: Duration::from_secs(60), burst: 1 };
        let (start, mut taken) = (Instant::now(), 0);
        let mut bucket = Bucket::new(start);
        for second in 0..36_000 {
            taken += u64::from(bucket.try_take(rate, start + Duration::from_secs(second)));
        }
        // Each is late by less than a second.
        assert!((4000..=4200).contains(&taken), "{taken}");
    }
}
