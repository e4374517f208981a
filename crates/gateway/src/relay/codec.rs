//! The codec trait: a codec decides what to do with the bytes that the pump moves.
//!
//! Enters: each chunk with its direction, split anywhere. Leaves: the bytes for the receiver, bytes back to the sender, or
//! the close reason. Not here: sockets, waiting or deadlines, which belong to the pump.
//!
//! A session has one codec for both directions, because packets of one direction respond to those of the other. The pump is
//! generic over the codec, so that one that changes nothing costs nothing.

use std::io;
use std::sync::Arc;

use portcullis_wire::{Disconnect, PacketType};
use tokio::time::Instant;

use crate::config::tables::DrainNotice;
use crate::net::StreamError;
use crate::outcome::CloseReason;
use crate::policy::PacketRules;

/// A DISCONNECT of the client, in every version: the broker discards the will [MQTT-3.14.4-3].
pub(crate) const DISCARD_WILL: [u8; 2] = [(PacketType::Disconnect as u8) << 4, 0];

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the broker.
    ToBroker,
    /// From the broker to the client.
    ToClient,
}

impl Direction {
    /// The opposite direction.
    pub(super) const fn reverse(self) -> Self {
        match self {
            Direction::ToBroker => Direction::ToClient,
            Direction::ToClient => Direction::ToBroker,
        }
    }
}

/// Decides what to do with the bytes of a session.
///
/// A codec keeps no buffer while both directions are at a packet boundary. It may hold back a bounded number of bytes that it
/// cannot decide on yet, such as half a packet header, and may delay the client.
pub(super) trait Codec {
    /// Whether the time that it takes depends on what clients send: on the number of packets, and on what rules say.
    const INSPECTS: bool;

    /// Takes the `chunk` that was read in `direction`. Returns the part of it that is written unchanged, directly from the
    /// pump's buffer. The bytes that it adds to `injected` are written as well. A packet is
    ///
    /// - held back by returning only the bytes before it, until the rest of it arrives;
    /// - dropped or replaced by returning the bytes before it, and adding the replacement and the following bytes to
    ///   [`Injected::forward`];
    /// - answered on behalf of the receiver through [`Injected::reply`].
    ///
    /// # Errors
    /// The session closes for this reason, and nothing more is read in this direction. The bytes in `injected`, which are
    /// packets before the offending one, are still written if the receiver accepts them at once.
    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending>;

    /// Which side has sent DISCONNECT first, by the direction of the packet: it is the one that ended the session, whoever
    /// closes the connection first [MQTT-3.14.4].
    fn disconnected(&self) -> Option<Direction>;

    /// Whether a packet of the gateway's own may be added to the stream to the broker: it waits for no rest of a packet, and has
    /// got no DISCONNECT.
    fn is_between_packets_to_broker(&self) -> bool;

    /// Where the stream to the client may end, if `chunk` comes next in that direction. With an empty `chunk`: whether it
    /// may end now.
    fn boundary(&self, chunk: &[u8]) -> Boundary;

    /// Applies other rules from now on.
    ///
    /// # Errors
    /// The session closes, because they cannot be applied to it.
    fn set_rules(&mut self, rules: Arc<PacketRules>) -> Result<(), Ending>;

    /// Whether bytes may be read in this direction now.
    fn may_read(&self, _direction: Direction) -> bool {
        true
    }

    /// Whether the codec has something to do in this direction without further bytes: call [`take`](Self::take) with an empty
    /// chunk, even if nothing may be read.
    fn has_work(&self, _direction: Direction) -> bool {
        false
    }

    /// When to call [`wake`](Self::wake) next.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Tells the codec the time, and who takes no more bytes: whoever sends to them is not read meanwhile.
    ///
    /// # Errors
    /// The session closes for this reason.
    fn wake(&mut self, _now: Instant, _stalled: Stalled) -> Result<(), Ending> {
        Ok(())
    }
}

/// Who takes no more bytes at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stalled {
    pub(super) client: bool,
    pub(super) broker: bool,
}

/// Why a codec closes the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The reason in the log.
    pub(crate) reason: CloseReason,
    /// The reason for the client; by default, that of `reason`.
    pub(crate) disconnect: Option<Disconnect>,
    /// The servers that the client should use.
    pub(crate) reference: Option<Arc<str>>,
    /// What happened, for the log. Never a secret.
    pub(crate) detail: Option<Box<str>>,
}

impl Ending {
    /// For what a client did below MQTT; `None`: the error is that of a lost connection.
    pub(super) fn of_stream_error(error: &io::Error) -> Option<Self> {
        let error = StreamError::of(error)?;
        let reason = match error {
            StreamError::WebSocket(_) => CloseReason::WebSocketProtocol,
            StreamError::Quic(_) => CloseReason::QuicProtocol,
            StreamError::QuicIdle => CloseReason::QuicIdleTimeout,
        };
        let detail = Some(error.to_string().into());
        Some(Self { reason, disconnect: None, reference: None, detail })
    }
}

impl From<CloseReason> for Ending {
    fn from(reason: CloseReason) -> Self {
        Self { reason, disconnect: reason.disconnect(), reference: None, detail: None }
    }
}

impl Ending {
    /// The gateway drains, and tells clients what the configuration says.
    pub(super) fn drained(notice: &DrainNotice) -> Self {
        let DrainNotice { disconnect, reference } = notice;
        Self { disconnect: Some(*disconnect), reference: reference.clone(), ..CloseReason::Drained.into() }
    }

    /// With what happened.
    pub(super) fn new(reason: CloseReason, disconnect: Disconnect, detail: impl Into<Box<str>>) -> Self {
        Self { reason, disconnect: Some(disconnect), reference: None, detail: Some(detail.into()) }
    }
}

/// The bytes that a codec adds to a stream.
#[derive(Debug, Default)]
pub(super) struct Injected {
    /// Written after the part of the chunk that is passed on.
    pub(super) forward: Vec<u8>,
    /// Written back to the sender of the chunk, after everything the codec has passed to it. The codec may add to it only at
    /// a packet boundary of that stream. The sender is not read again until it has accepted these bytes.
    pub(super) reply: Vec<u8>,
}

/// Where the stream to the client may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// After this many bytes of the chunk, the last packet boundary in it.
    At(usize),
    /// In a later chunk: a packet is incomplete.
    Later,
    /// Nowhere: the broker's bytes are not MQTT.
    Never,
}

impl<C: Codec> Codec for Box<C> {
    const INSPECTS: bool = C::INSPECTS;

    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending> {
        (**self).take(direction, chunk, injected)
    }

    fn disconnected(&self) -> Option<Direction> {
        (**self).disconnected()
    }

    fn is_between_packets_to_broker(&self) -> bool {
        (**self).is_between_packets_to_broker()
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        (**self).boundary(chunk)
    }

    fn set_rules(&mut self, rules: Arc<PacketRules>) -> Result<(), Ending> {
        (**self).set_rules(rules)
    }

    fn may_read(&self, direction: Direction) -> bool {
        (**self).may_read(direction)
    }

    fn has_work(&self, direction: Direction) -> bool {
        (**self).has_work(direction)
    }

    fn wake_at(&self) -> Option<Instant> {
        (**self).wake_at()
    }

    fn wake(&mut self, now: Instant, stalled: Stalled) -> Result<(), Ending> {
        (**self).wake(now, stalled)
    }
}
