//! The pump moves bytes between a client and its broker.
//!
//! Enters: two connected streams, a codec, and at some time the word that the session has to end. Leaves: what the codec
//! makes of the bytes, the numbers of bytes, and why it is over.
//!
//! - **Back-pressure.** Bytes are read into a buffer of the thread and written from it at once. Only what the receiver does
//!   not take is kept, a chunk and what the codec adds to it at most, and nothing more is read until it is gone: a slow
//!   reader slows its writer down, and an idle session holds no buffer.
//! - **Half-close.** When one side has ended, the other is told, and has [`HALF_CLOSE`] from its last byte on to end too.
//! - **The end between packets.** When the gateway ends a session, the packet that is under way to the client is completed.
//!   An MQTT 5 client is then sent a DISCONNECT that says why. [`STOP`] bounds all of it.
//!
//! Never here: a look at the bytes, which are the codec's; a decision whether the session may go on; the access log.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use portcullis_wire::Disconnect;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::codec::{Boundary, Codec, Direction, Injected};
use super::side::{Input, Output, Side};
use crate::edge::{Stream, discard_until_closed};
use crate::outcome::CloseReason;

/// Read at once: as much as one TLS record holds.
const CHUNK: usize = 16 << 10;
/// For the other side to end too, after one side has.
const HALF_CLOSE: Duration = Duration::from_secs(10);
/// For the packet under way and the DISCONNECT to be written, when the gateway ends the session.
const STOP: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// What a relay begins with.
#[derive(Debug)]
pub struct Ends {
    /// The connection to the client.
    pub client: Stream,
    /// The connection to the broker.
    pub broker: Stream,
    /// What the broker has sent already, from its first byte on.
    pub broker_first: Vec<u8>,
    /// Whether the gateway may end the session with a DISCONNECT of its own: in MQTT 5, once the broker has accepted
    /// the client [MQTT-3.14.0-1].
    pub may_send_disconnect: bool,
}

/// Moves the bytes of one session.
pub(super) struct Pump<C> {
    client: Side,
    broker: Side,
    codec: C,
    may_send_disconnect: bool,
    /// The first thing that happened: what comes after is its consequence.
    reason: Option<CloseReason>,
    is_stopping: bool,
    /// The broker takes nothing more; it may still have something to say.
    is_broker_lost: bool,
    /// Which direction has its turn first: a flood in one does not starve the other.
    first: Direction,
    /// Set once one side has ended.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// What interrupts a direction.
enum Interrupt {
    /// The sender was lost.
    Reading,
    /// The receiver was lost.
    Writing,
    /// The codec ends the session.
    Codec(CloseReason),
}

impl<C: Codec> Pump<C> {
    /// Begins with what the broker has sent already, and then with `replies` of the codec to what the client sent before.
    pub(super) fn new(ends: Ends, codec: C, replies: Vec<u8>) -> Self {
        let mut pump = Self {
            client: Side::new(ends.client),
            broker: Side::new(ends.broker),
            codec,
            may_send_disconnect: ends.may_send_disconnect,
            reason: None,
            is_stopping: false,
            is_broker_lost: false,
            first: Direction::ToBroker,
            deadline: None,
        };
        let (broker, client) = (&mut pump.broker, &mut pump.client);
        match pass(&mut pump.codec, Direction::ToClient, &ends.broker_first, broker, client) {
            Ok(passed) => client.keep(passed),
            Err(reason) => pump.refuse(Direction::ToClient, reason),
        }
        if !replies.is_empty() {
            pump.client.answer(replies);
        }
        pump
    }

    /// Moves what can be moved. Ready with the reason when the session is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        // First: a flood would leave it no turn.
        let is_late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        self.first = self.first.reverse();
        for direction in [self.first, self.first.reverse()] {
            if let Some(lost) = self.poll_direction(cx, direction) {
                return Poll::Ready(self.end_because(lost));
            }
        }
        if !self.broker.output.takes_more() && !self.is_broker_lost {
            self.end_because(CloseReason::Ok);
        }
        if !self.client.output.takes_more() {
            self.end_because(CloseReason::UpstreamClosed);
        }
        if self.reason.is_none() && !self.is_broker_lost {
            return Poll::Pending;
        }
        self.poll_over(cx, is_late)
    }

    /// Waits for the rest of a session of which a part has ended, as long as its deadline allows.
    fn poll_over(&mut self, cx: &mut Context<'_>, is_late: bool) -> Poll<CloseReason> {
        let reason = self.reason.unwrap_or(CloseReason::UpstreamLost);
        let is_client_closed = self.client.output == Output::Closed;
        if is_client_closed && (self.is_stopping || self.broker.output == Output::Closed) {
            return Poll::Ready(reason);
        }
        let too_late = match reason {
            CloseReason::Ok | CloseReason::UpstreamClosed => CloseReason::HalfCloseTimeout,
            reason => reason,
        };
        if is_late {
            return Poll::Ready(too_late);
        }
        let limit = if self.is_stopping { STOP } else { HALF_CLOSE };
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.is_stopping && (self.client.received > 0 || self.client.sent > 0) {
            // What is still coming over the half that is open may come.
            deadline.as_mut().reset(Instant::now() + limit);
        }
        // Only being polled makes it wake this task.
        deadline.as_mut().poll(cx).map(|()| too_late)
    }

    /// `Some`: the session is over at once.
    fn poll_direction(&mut self, cx: &mut Context<'_>, direction: Direction) -> Option<CloseReason> {
        let (from, to) = match direction {
            Direction::ToBroker => (&mut self.client, &mut self.broker),
            Direction::ToClient => (&mut self.broker, &mut self.client),
        };
        let Poll::Ready(Err(interrupt)) = poll_direction(cx, &mut self.codec, direction, from, to) else { return None };
        match (interrupt, direction) {
            (Interrupt::Reading, Direction::ToBroker) | (Interrupt::Writing, Direction::ToClient) => {
                Some(CloseReason::ClientLost)
            }
            (Interrupt::Reading, Direction::ToClient) => Some(CloseReason::UpstreamLost),
            (Interrupt::Writing, Direction::ToBroker) => {
                // What a broker says before it hangs up, why for instance, is still to reach the client.
                self.is_broker_lost = true;
                self.broker.abandon();
                None
            }
            (Interrupt::Codec(reason), direction) => {
                self.refuse(direction, reason);
                // The other direction may have had its turn, and has something to write now.
                cx.waker().wake_by_ref();
                None
            }
        }
    }

    /// Ends the session because of what was sent in `direction`.
    fn refuse(&mut self, direction: Direction, reason: CloseReason) {
        let from = if direction == Direction::ToBroker { &mut self.client } else { &mut self.broker };
        from.input = Input::Refused;
        if !self.is_stopping {
            self.stop(reason);
        }
    }

    /// Ends the session from the gateway's side: at the next packet boundary to the client, in MQTT 5 with a DISCONNECT.
    pub(super) fn stop(&mut self, reason: CloseReason) {
        self.is_stopping = true;
        self.end_because(reason);
        self.deadline = None;
        if self.client.output == Output::Open {
            let disconnect = reason.disconnect().filter(|_| self.may_send_disconnect).map(Disconnect::packet);
            self.client.end_at(self.codec.boundary(&[]), disconnect);
        }
    }

    /// Whether [`stop`](Self::stop) was called, or the codec ended the session.
    pub(super) const fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn end_because(&mut self, reason: CloseReason) -> CloseReason {
        *self.reason.get_or_insert(reason)
    }

    /// Bytes from and to the client since this was last called.
    pub(super) const fn take_counts(&mut self) -> (u64, u64) {
        let counts = (self.client.received, self.client.sent);
        (self.client.received, self.client.sent) = (0, 0);
        counts
    }

    /// Lets a client that was told why the session is over read that: a reset for what it still sends could overtake it.
    pub(super) async fn close(&mut self) {
        if self.client.output == Output::Closed && self.client.input != Input::Ended {
            // In a box: an idle session does not carry the buffer that this needs.
            Box::pin(discard_until_closed(&mut self.client.stream)).await;
        }
    }
}

/// Moves what can be moved in one direction. Ready without an error once nothing more is written.
fn poll_direction<C: Codec>(
    cx: &mut Context<'_>,
    codec: &mut C,
    direction: Direction,
    from: &mut Side,
    to: &mut Side,
) -> Poll<Result<(), Interrupt>> {
    loop {
        let may_read = match from.input {
            Input::Open => true,
            Input::AwaitsReply => from.poll_reply_taken(cx).is_ready(),
            Input::Refused | Input::Ended => false,
        };
        ready!(to.poll_drain(cx)).map_err(|_| Interrupt::Writing)?;
        match to.output {
            Output::Closed => return Poll::Ready(Ok(())),
            Output::Ending => ready!(to.poll_shutdown(cx)),
            Output::Open | Output::UntilBoundary(_) => {
                if !may_read || poll_chunk(cx, codec, direction, from, to)?.is_pending() {
                    // The sender has nothing now: what was written is not to wait for more.
                    ready!(to.poll_flush(cx)).map_err(|_| Interrupt::Writing)?;
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Reads once, and writes what the codec passes as far as the receiver takes it.
fn poll_chunk<C: Codec>(
    cx: &mut Context<'_>,
    codec: &mut C,
    direction: Direction,
    from: &mut Side,
    to: &mut Side,
) -> Poll<Result<(), Interrupt>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        match ready!(Pin::new(&mut from.stream).poll_read(cx, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => {
                from.received += buffer.filled().len() as u64;
                match pass(codec, direction, buffer.filled(), from, to) {
                    Ok(passed) => to.write(cx, passed).map_err(|_| Interrupt::Writing)?,
                    Err(reason) => {
                        // The session may be over before this direction has another turn.
                        let _ = to.poll_drain(cx);
                        return Poll::Ready(Err(Interrupt::Codec(reason)));
                    }
                }
            }
            // A client that closes without TLS' close_notify has ended all the same: MQTT frames itself.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Err(Interrupt::Reading));
            }
            Ok(()) | Err(_) => (from.input, to.output) = (Input::Ended, Output::Ending),
        }
        Poll::Ready(Ok(()))
    })
}

/// Lets the codec take a chunk. Returns the part that is to be written in front of what is pending for the receiver.
fn pass<'c, C: Codec>(
    codec: &mut C,
    direction: Direction,
    mut chunk: &'c [u8],
    from: &mut Side,
    to: &mut Side,
) -> Result<&'c [u8], CloseReason> {
    let mut end = None;
    if let Output::UntilBoundary(disconnect) = to.output {
        let boundary = codec.boundary(chunk);
        if let Boundary::At(offset) = boundary {
            chunk = &chunk[..offset];
        }
        end = Some((boundary, disconnect));
    }
    let mut injected = Injected::default();
    let passed = codec.take(direction, chunk, &mut injected);
    if !injected.forward.is_empty() {
        to.push(injected.forward);
    }
    if !injected.reply.is_empty() {
        from.answer(injected.reply);
    }
    if let Some((boundary, disconnect)) = end {
        to.end_at(boundary, disconnect);
    }
    passed
}

#[cfg(test)]
mod tests;
