//! Keep-alive, of the client and towards the broker. Enters: when packets of the client come and are passed on. Leaves: when
//! the client has been silent for too long [MQTT-3.1.2-22], and when the broker has to be sent a PINGREQ in place of packets
//! that are withheld from it.

use std::time::Duration;

use tokio::time::Instant;

/// The keep-alive of one session.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// How long the client may be silent; `None`: the gateway leaves that to the broker.
    limit: Option<Duration>,
    last_packet: Instant,
    /// When to look again. It is not moved with each packet: that would cost more than looking once too often.
    alarm: Option<Instant>,
    /// The interval that the broker expects.
    interval: Duration,
    last_passed: Instant,
    /// The gateway's own PINGREQs that the broker has not answered.
    pings: u32,
}

impl KeepAlive {
    /// `interval`: of CONNECT as the broker gets it, in seconds. `is_enforced`: whether the gateway ends silent sessions.
    pub(super) fn new(interval: u16, is_enforced: bool, now: Instant) -> Self {
        let interval = Duration::from_secs(u64::from(interval));
        let mut alive = Self { limit: None, last_packet: now, alarm: None, interval, last_passed: now, pings: 0 };
        alive.enforce(is_enforced);
        alive
    }

    /// The broker wants another interval, or the limit has changed.
    pub(super) fn set(&mut self, interval: u16, is_enforced: bool) {
        self.interval = Duration::from_secs(u64::from(interval));
        self.enforce(is_enforced);
    }

    /// Whether the gateway ends silent sessions, from now on.
    pub(super) fn enforce(&mut self, is_enforced: bool) {
        self.limit = (is_enforced && !self.interval.is_zero()).then(|| self.interval * 3 / 2);
        self.alarm = self.limit.map(|limit| self.last_packet + limit);
    }

    /// A packet of the client is complete.
    pub(super) const fn packet(&mut self, now: Instant) {
        self.last_packet = now;
    }

    /// When to call [`KeepAlive::expire`].
    pub(super) const fn alarm(&self) -> Option<Instant> {
        self.alarm
    }

    /// Whether the client has been silent for too long.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let Some(limit) = self.limit else { return false };
        let ends = self.last_packet + limit;
        self.alarm = Some(ends);
        ends <= now
    }

    /// Bytes of the client are passed to the broker.
    pub(super) const fn passed(&mut self, now: Instant) {
        self.last_passed = now;
    }

    /// When the broker needs a PINGREQ in place of packets that are withheld from it, to know that the client is there.
    /// `None`: it expects none.
    pub(super) fn ping_at(&self) -> Option<Instant> {
        (!self.interval.is_zero()).then(|| self.last_passed + self.interval / 2)
    }

    /// A packet of the client is withheld, or waits. Returns whether the broker needs a PINGREQ now, which the caller sends.
    pub(super) fn take_ping(&mut self, now: Instant) -> bool {
        let is_due = self.ping_at().is_some_and(|at| at <= now);
        if is_due {
            self.last_passed = now;
            self.pings += 1;
        }
        is_due
    }

    /// Whether a PINGRESP of the broker answers a PINGREQ of the gateway's own. It answers no other one.
    pub(super) const fn consume_own_ping(&mut self) -> bool {
        match self.pings.checked_sub(1) {
            Some(left) => {
                self.pings = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_may_be_silent_for_one_and_a_half_times_the_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut alive = KeepAlive::new(10, true, start);
        assert_eq!(alive.alarm(), Some(at(15)));
        alive.packet(at(5));
        assert_eq!(alive.alarm(), Some(at(15)), "not moved by a packet");
        assert!(!alive.expire(at(15)));
        assert_eq!(alive.alarm(), Some(at(20)));
        assert!(alive.expire(at(20)));
        for (interval, is_enforced) in [(0, true), (10, false)] {
            let mut alive = KeepAlive::new(interval, is_enforced, start);
            assert!(alive.alarm().is_none() && !alive.expire(at(100_000)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_broker_is_sent_pings_in_place_of_what_is_withheld() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut alive = KeepAlive::new(10, false, start);
        assert!(!alive.take_ping(at(4)) && alive.take_ping(at(5)) && !alive.take_ping(at(7)));
        alive.passed(at(11));
        assert!(!alive.take_ping(at(15)) && alive.take_ping(at(16)));
        assert!(alive.consume_own_ping() && alive.consume_own_ping() && !alive.consume_own_ping());
        assert!(!KeepAlive::new(0, false, start).take_ping(at(1000)), "the broker expects none");
    }
}
