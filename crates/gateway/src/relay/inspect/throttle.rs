//! `message_rate` and `byte_rate` of one session. Enters: messages and bytes of the client. Leaves: whether they are within
//! the rates, or when the client is read again.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::tables::{OnExceed, PacketLimits, Rate};
use crate::limits::Bucket;

/// The rates of one session.
#[derive(Debug)]
pub(super) struct Throttle {
    messages: Bucket,
    bytes: Bucket,
    paused_until: Option<Instant>,
}

/// A rate is exceeded, and the policy is to disconnect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exceeded {
    /// Its key.
    pub(super) limit: &'static str,
    pub(super) rate: Rate,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self { messages: Bucket::new(now), bytes: Bucket::new(now), paused_until: None }
    }

    /// When the client is read again; `None`: it is not delayed.
    pub(super) const fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The client is read again.
    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// How many of these bytes of the client may be taken now. The rest has to wait, and the client with it.
    ///
    /// # Errors
    /// There are too many, and the client is disconnected.
    pub(super) fn admit_bytes(
        &mut self,
        limits: &PacketLimits,
        wanted: usize,
        now: Instant,
    ) -> Result<usize, Exceeded> {
        let Some(rate) = limits.byte_rate else { return Ok(wanted) };
        self.bytes.limit_debt(rate, Duration::ZERO, now);
        let may = usize::try_from(self.bytes.available(rate, now)).unwrap_or(usize::MAX).min(wanted);
        if may < wanted {
            if limits.on_exceed == OnExceed::Disconnect {
                return Err(Exceeded { limit: "byte_rate", rate });
            }
            // Some together, so that a slow rate does not wake the gateway for each byte.
            let some = (rate.burst / 4).clamp(1, (wanted - may) as u64);
            let mut after = self.bytes;
            after.take(rate, may as u64, now);
            self.pause(after, rate, some);
        }
        Ok(may)
    }

    /// So many of them were taken.
    pub(super) fn took_bytes(&mut self, limits: &PacketLimits, taken: usize, now: Instant) {
        if let Some(rate) = limits.byte_rate {
            self.bytes.take(rate, taken as u64, now);
        }
    }

    /// Whether a message of the client may be taken now. Otherwise it has to wait, and the client with it.
    ///
    /// # Errors
    /// There are too many, and the client is disconnected.
    pub(super) fn take_message(&mut self, limits: &PacketLimits, now: Instant) -> Result<bool, Exceeded> {
        let Some(rate) = limits.message_rate else { return Ok(true) };
        let is_taken = self.messages.try_take(rate, now);
        if !is_taken {
            if limits.on_exceed == OnExceed::Disconnect {
                return Err(Exceeded { limit: "message_rate", rate });
            }
            self.pause(self.messages, rate, 1);
        }
        Ok(is_taken)
    }

    fn pause(&mut self, bucket: Bucket, rate: Rate, tokens: u64) {
        self.pause_until(bucket.ready_at(rate, tokens));
    }

    /// The client is not read before this time.
    pub(super) fn pause_until(&mut self, ready: Instant) {
        self.paused_until = Some(self.paused_until.map_or(ready, |until| until.max(ready)));
    }
}
