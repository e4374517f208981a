//! The wall clock. In tests it follows the clock of the tokio runtime, so that a test that advances that clock moves
//! both, for its own runtime only. Whatever expires, is retried or is counted within a window therefore uses tokio's
//! [`Instant`](tokio::time::Instant).
//!
//! Without the feature `test-util` this is the system's clock, and nothing in the process can move it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Tolerated difference from the clocks of other machines, in seconds.
pub(crate) const CLOCK_SKEW: i64 = 300;

/// Seconds since 1970; 0 before.
pub(crate) fn now() -> i64 {
    since_epoch().as_secs().cast_signed()
}

/// A time in seconds since 1970, as RFC 3339 writes it.
pub(crate) fn rfc3339(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0).map(|time| time.to_rfc3339()).unwrap_or_default()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + advanced()
}

/// How far the runtime's clock was advanced. Outside of a runtime, not at all.
#[cfg(feature = "test-util")]
fn advanced() -> Duration {
    tokio::time::Instant::now().into_std().saturating_duration_since(std::time::Instant::now())
}

#[cfg(not(feature = "test-util"))]
const fn advanced() -> Duration {
    Duration::ZERO
}

/// The same time for rustls, which verifies certificates at it.
#[derive(Debug)]
pub(crate) struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(since_epoch()))
    }
}

#[cfg(all(test, feature = "test-util"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_test_advances_the_time_of_its_own_runtime() {
        let (before, has_passed) = (now(), |now: i64, before: i64| (3600..3630).contains(&(now - before)));
        let start = tokio::time::Instant::now();
        portcullis_testkit::advance(Duration::from_secs(3600));
        assert!(has_passed(now(), before));
        assert!(has_passed(i64::try_from(start.elapsed().as_secs()).unwrap(), 0));
        assert!(has_passed(WallClock.current_time().unwrap().as_secs().cast_signed(), before));
        let on_blocking_thread = tokio::task::spawn_blocking(now).await.unwrap();
        assert!(has_passed(on_blocking_thread, before), "on the runtime's other threads, too");
        let elsewhere = std::thread::spawn(now).join().unwrap();
        assert!(elsewhere - before < 30, "other runtimes have their own time");
    }
}
