//! The relay: bytes between a client and its broker, once the broker has answered CONNECT.
//!
//! Enters: two connected streams. Leaves: the close reason, and the byte counts in the record. It has two independent
//! parts:
//!
//! - the pump (`pump.rs`) moves bytes: back-pressure, half-close, deadlines, the DISCONNECT at the end;
//! - a codec (`codec.rs`) decides what to do with them. `opaque.rs` passes all of them unchanged; `inspect/` looks at
//!   packets, where a listener has rules or limits for them.
//!
//! It has two parts in time as well: [`Relay::poll_run`] until the session begins to end, [`Relay::end`] from then on. The first
//! has threads of its own (`threads.rs`).
//!
//! Not here: the decision whether the client may stay connected, which the caller reports. An idle session holds no
//! buffer.

mod codec;
mod inspect;
mod opaque;
mod pump;
mod side;
mod spread;
mod threads;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use portcullis_wire::Connect;
use tokio::time::timeout;

use codec::{Codec, Direction, Injected};
pub(crate) use codec::{DISCARD_WILL, Ending};
use inspect::Inspect;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use inspect::script::check_session as fuzz_session;
use opaque::Opaque;
pub(crate) use pump::Ends;
use pump::{Pump, Until};
pub(crate) use threads::{RelayThreads, Relayed};

use crate::observe::{Record, SessionInfo};
use crate::outcome::CloseReason;
use crate::policy::PacketRules;
use crate::sessions::SessionEvent;

/// How long the other side may go on sending once one has closed: it does so on the threads that connect.
const LONGEST_END: Duration = Duration::from_secs(60);

/// What becomes of a session's bytes, from the first one after CONNECT on. Made at admission, where it is known what the
/// client may do.
#[derive(Debug)]
pub(crate) enum SessionCodec {
    /// Packets are not looked at.
    Opaque(Opaque),
    /// They are.
    Inspect(Box<Inspect>),
}

impl Default for SessionCodec {
    fn default() -> Self {
        Self::Opaque(Opaque::default())
    }
}

impl SessionCodec {
    /// The codec of a client whose packets are looked at. `received` is its CONNECT, `sent` the one that the broker gets.
    pub(crate) fn inspect(
        rules: Arc<PacketRules>,
        received: &Connect<'_>,
        sent: &Connect<'_>,
        info: Arc<SessionInfo>,
    ) -> Self {
        Self::Inspect(Box::new(Inspect::new(rules, received, sent, info)))
    }

    /// Takes what the client has sent after CONNECT, and appends to `packets` what the broker is to get of it.
    ///
    /// # Errors
    /// The session ends for this reason.
    pub(crate) fn take_early(&mut self, bytes: &[u8], packets: &mut Vec<u8>) -> Result<(), Ending> {
        match self {
            Self::Opaque(codec) => take_early(codec, bytes, packets),
            Self::Inspect(codec) => take_early(&mut **codec, bytes, packets),
        }
    }

    /// Applies other rules from now on.
    ///
    /// # Errors
    /// The session ends for this reason.
    pub(crate) fn set_rules(&mut self, rules: Arc<PacketRules>) -> Result<(), Ending> {
        match self {
            Self::Opaque(codec) => codec.set_rules(rules),
            Self::Inspect(codec) => codec.set_rules(rules),
        }
    }

    /// Whether the broker can be sent [`DISCARD_WILL`], once it has got CONNECT and what
    /// [`take_early`](Self::take_early) appended.
    pub(crate) fn is_between_packets_to_broker(&self) -> bool {
        match self {
            Self::Opaque(codec) => codec.is_between_packets_to_broker(),
            Self::Inspect(codec) => codec.is_between_packets_to_broker(),
        }
    }
}

/// Answers of the codec wait in it until the broker has answered CONNECT.
fn take_early(codec: &mut impl Codec, bytes: &[u8], packets: &mut Vec<u8>) -> Result<(), Ending> {
    let mut injected = Injected::default();
    packets.extend_from_slice(codec.take(Direction::ToBroker, bytes, &mut injected)?);
    packets.extend(injected.forward);
    Ok(())
}

/// The bytes of one session, from CONNACK to the end.
pub(crate) struct Relay(AnyPump);

enum AnyPump {
    /// Packets are not looked at.
    Opaque(Pump<Opaque>),
    /// They are.
    Inspect(Pump<Box<Inspect>>),
}

macro_rules! each {
    ($this:expr, $pump:ident => $body:expr) => {
        match $this {
            AnyPump::Opaque($pump) => $body,
            AnyPump::Inspect($pump) => $body,
        }
    };
}

impl Relay {
    pub(crate) fn new(ends: Ends, codec: SessionCodec) -> Self {
        Self(match codec {
            SessionCodec::Opaque(codec) => AnyPump::Opaque(Pump::new(ends, codec)),
            SessionCodec::Inspect(codec) => AnyPump::Inspect(Pump::new(ends, codec)),
        })
    }

    /// As [`Stream::detect_vanished_broker`](crate::net::Stream::detect_vanished_broker).
    pub(crate) fn detect_vanished_broker(&self) {
        each!(&self.0, pump => pump.detect_vanished_broker());
    }

    /// Lets the runtime of the caller wait for the sockets, in place of the one in which they were opened.
    ///
    /// # Errors
    /// The system has no resources left.
    pub(crate) fn attach(self) -> io::Result<Self> {
        Ok(Self(match self.0 {
            AnyPump::Opaque(pump) => AnyPump::Opaque(pump.attach()?),
            AnyPump::Inspect(pump) => AnyPump::Inspect(pump.attach()?),
        }))
    }

    /// Moves bytes as far as possible. Ready when the session begins to end: a side has closed or is lost, or the gateway closes
    /// the session.
    ///
    /// Bytes are counted in `record` as they move, so that the record of an aborted session is correct, too.
    ///
    /// `poll_event` is ready with what happens to the session from outside.
    pub(crate) fn poll_run(
        &mut self,
        cx: &mut Context<'_>,
        record: &Record,
        poll_event: impl FnMut(&Context<'_>) -> Poll<SessionEvent>,
    ) -> Poll<()> {
        each!(&mut self.0, pump => poll(pump, cx, Until::Ending, record, poll_event).map(drop))
    }

    /// Ends the session: moves what is still on its way, closes both connections. Returns why it ended, and what happened.
    pub(crate) async fn end(
        &mut self,
        record: &Record,
        mut poll_event: impl FnMut(&Context<'_>) -> Poll<SessionEvent>,
    ) -> (CloseReason, Option<Box<str>>) {
        each!(&mut self.0, pump => {
            pump.reset_timers();
            let closed = poll_fn(|cx| poll(pump, cx, Until::AllClosed, record, &mut poll_event));
            let reason = timeout(LONGEST_END, closed).await;
            let reason = reason.unwrap_or_else(|_| pump.behind_disconnect(CloseReason::HalfCloseTimeout));
            pump.close().await;
            (reason, pump.take_detail())
        })
    }
}

/// Moves bytes as far as possible. Ready so far, with the reason why the session ends.
fn poll<C: Codec>(
    pump: &mut Pump<C>,
    cx: &mut Context<'_>,
    until: Until,
    record: &Record,
    mut poll_event: impl FnMut(&Context<'_>) -> Poll<SessionEvent>,
) -> Poll<CloseReason> {
    while !pump.is_stopping()
        && let Poll::Ready(event) = poll_event(cx)
    {
        match event {
            SessionEvent::End(reason) => pump.stop(reason),
            SessionEvent::Drain(notice) => pump.stop(Ending::drained(&notice)),
            SessionEvent::Rules(rules) => pump.set_rules(rules),
        }
    }
    let poll = pump.poll(cx, until);
    let (received, sent) = pump.take_counts();
    record.count_bytes(received, sent);
    poll
}
