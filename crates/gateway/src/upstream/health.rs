//! The health of a broker, by the connects of sessions (passive) and by health checks (active). Enters: successes and
//! failures. Leaves: whether the broker is up.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock};
use portcullis_wire::{Connect, Properties, Version};
use rand::Rng;
use tokio::time::Instant;

use crate::config::tables::{self, HealthMode, PassiveHealth};

/// Active checks.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) settings: tables::Health,
    /// Unique to this gateway, so that the checks of two gateways do not disconnect each other. A suffix for the server is
    /// appended, because the servers may be one cluster. All fits the 23 bytes that every broker accepts [MQTT-3.1.3-5].
    client_id: String,
}

impl Check {
    pub(super) fn new(settings: tables::Health) -> Self {
        Self { settings, client_id: format!("portcullis-{:08x}", rand::rng().random::<u32>()) }
    }

    pub(super) fn is_off(&self) -> bool {
        self.settings.mode == HealthMode::Off
    }

    #[cfg(test)]
    pub(super) fn off() -> Self {
        let period = Duration::from_secs(5);
        Self::new(tables::Health {
            mode: HealthMode::Off,
            interval: period,
            timeout: period,
            fails: 1,
            passes: 1,
            username: None,
            password: None,
        })
    }

    pub(super) fn connect_packet(&self, server: &str) -> Result<Vec<u8>, portcullis_wire::Error> {
        let number = server.bytes().fold(0_u16, |number, byte| number.wrapping_mul(31).wrapping_add(byte.into()));
        let client_id = format!("{}{number:04x}", self.client_id);
        let connect = Connect {
            version: Version::V311,
            clean_start: true,
            keep_alive: 60,
            properties: Properties::default(),
            client_id: &client_id,
            will: None,
            username: self.settings.username.as_deref(),
            password: self.settings.password.as_ref().map(|password| password.expose().as_bytes()),
        };
        let mut packet = Vec::new();
        connect.encode(&mut packet)?;
        Ok(packet)
    }
}

/// The health of one endpoint. Read without a lock, because every session reads it.
#[derive(Debug)]
pub(super) struct Health {
    /// The result of active checks; true before the first one.
    checked_up: AtomicBool,
    /// Active checks are off: the result of one that is still in flight is ignored.
    is_unchecked: AtomicBool,
    /// Down until this time because of failed connects, in milliseconds; 0 if not.
    down_until: AtomicU64,
    /// The last recovery, in milliseconds; 0 if there was none.
    recovered_at: AtomicU64,
    limits: RwLock<PassiveHealth>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Failed connects since `since`.
    fails: u32,
    since: u64,
    /// Consecutive checks with the opposite result of `checked_up`.
    contrary: u32,
}

/// Milliseconds since the first call, starting at 1, so that 0 can stand for never.
fn milliseconds(at: Instant) -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = at.saturating_duration_since(*START).as_millis();
    u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
}

impl Health {
    pub(super) fn new() -> Self {
        let limits = PassiveHealth { max_fails: 1, fail_timeout: Duration::from_secs(10), slow_start: Duration::ZERO };
        Self {
            checked_up: AtomicBool::new(true),
            is_unchecked: AtomicBool::new(false),
            down_until: AtomicU64::new(0),
            recovered_at: AtomicU64::new(0),
            limits: RwLock::new(limits),
            counts: Mutex::default(),
        }
    }

    /// Applies the settings of a reload.
    pub(super) fn configure(&self, limits: PassiveHealth, checks_are_off: bool) {
        *self.limits.write() = limits;
        self.is_unchecked.store(checks_are_off, Ordering::Relaxed);
    }

    fn limits(&self) -> PassiveHealth {
        *self.limits.read()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock()
    }

    /// Whether the endpoint is up.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        (self.checked_up.load(Ordering::Relaxed) || self.is_unchecked.load(Ordering::Relaxed))
            && self.down_until.load(Ordering::Relaxed) <= milliseconds(now)
    }

    /// Counts a failed connect.
    pub(super) fn failed(&self, now: Instant) {
        let (limits, now) = (self.limits(), milliseconds(now));
        let window = u64::try_from(limits.fail_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut counts = self.counts();
        if counts.fails == 0 || now.saturating_sub(counts.since) > window {
            (counts.fails, counts.since) = (0, now);
        }
        counts.fails += 1;
        if limits.max_fails != 0 && counts.fails >= limits.max_fails {
            self.down_until.store(now.saturating_add(window), Ordering::Relaxed);
            counts.fails = 0;
        }
    }

    /// Counts a successful connect.
    pub(super) fn succeeded(&self, now: Instant) {
        if self.down_until.load(Ordering::Relaxed) != 0 {
            self.down_until.store(0, Ordering::Relaxed);
            self.recovered_at.store(milliseconds(now), Ordering::Relaxed);
        }
    }

    /// Counts the result of an active check. `Some` if it changes whether the endpoint is up.
    pub(super) fn checked(&self, passed: bool, check: &Check, now: Instant) -> Option<bool> {
        let mut counts = self.counts();
        if self.checked_up.load(Ordering::Relaxed) == passed {
            counts.contrary = 0;
            return None;
        }
        counts.contrary += 1;
        if counts.contrary < if passed { check.settings.passes } else { check.settings.fails } {
            return None;
        }
        counts.contrary = 0;
        self.checked_up.store(passed, Ordering::Relaxed);
        if passed {
            self.down_until.store(0, Ordering::Relaxed);
            self.recovered_at.store(milliseconds(now), Ordering::Relaxed);
        }
        Some(passed)
    }

    /// The share of its weight in use: grows to 1 during `slow_start` after a recovery.
    pub(super) fn slow_start_factor(&self, now: Instant) -> f64 {
        let (slow_start, recovered) =
            (self.limits().slow_start.as_secs_f64(), self.recovered_at.load(Ordering::Relaxed));
        if slow_start == 0.0 || recovered == 0 {
            return 1.0;
        }
        let since = milliseconds(now).saturating_sub(recovered) as f64 / 1000.0;
        (since / slow_start).clamp(0.02, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_within_the_window_take_a_server_down_for_as_long() {
        let health = Health::new();
        let limits =
            PassiveHealth { max_fails: 2, fail_timeout: Duration::from_secs(10), slow_start: Duration::from_secs(20) };
        health.configure(limits, false);
        let advance = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        advance(1).await;
        health.failed(Instant::now());
        advance(11).await;
        health.failed(Instant::now());
        assert!(health.is_up(Instant::now()), "the first is out of the window");
        health.failed(Instant::now());
        assert!(!health.is_up(Instant::now()));
        advance(11).await;
        assert!(health.is_up(Instant::now()), "it may try again");
        assert!((health.slow_start_factor(Instant::now()) - 1.0).abs() < f64::EPSILON);
        health.succeeded(Instant::now());
        assert!(health.slow_start_factor(Instant::now()) < 0.1, "and begins slowly");
        advance(10).await;
        assert!((health.slow_start_factor(Instant::now()) - 0.5).abs() < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_begins_with_the_first_failure() {
        let health = Health::new();
        health.configure(PassiveHealth { max_fails: 2, ..health.limits() }, false);
        for seconds in [3, 8] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            health.failed(Instant::now());
        }
        assert!(!health.is_up(Instant::now()), "8 s apart, wherever the clock began");
    }

    #[test]
    fn a_check_that_comes_back_after_checks_were_turned_off_has_no_say() {
        let health = Health::new();
        health.configure(health.limits(), true);
        health.checked(false, &Check::off(), Instant::now());
        assert!(health.is_up(Instant::now()));
    }

    #[test]
    fn checks_in_a_row_decide() {
        let mut check = Check::off();
        (check.settings.fails, check.settings.passes) = (2, 3);
        let health = Health::new();
        let seen = |passed| health.checked(passed, &check, Instant::now());
        assert_eq!([seen(false), seen(true), seen(false), seen(false)], [None, None, None, Some(false)]);
        assert_eq!([seen(true), seen(true), seen(true), seen(true)], [None, None, Some(true), None]);
    }
}
