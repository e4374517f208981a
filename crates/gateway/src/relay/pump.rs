//! The pump moves bytes between a client and its broker.
//!
//! Enters: two connected streams, a codec, and later a close reason. Leaves: the bytes that the codec passes, their counts,
//! and the close reason.
//!
//! - **Back-pressure.** Bytes are read into a per-thread buffer and written from it at once. Only bytes that the receiver
//!   does not accept are kept, at most a chunk and the codec's additions to it, and nothing more is read until they are
//!   written. A slow reader thus slows its writer down, and an idle session holds no buffer.
//! - **Half-close.** When one side closes, the other side's writing half is shut down. It then has [`HALF_CLOSE`] after its
//!   last byte to close, too.
//! - **Closing between packets.** When the gateway closes a session, the current packet to the client is completed first. An
//!   MQTT 5 client then receives a DISCONNECT with the reason. [`STOP`] bounds the whole procedure.
//!
//! Not here: the content of the bytes, which belongs to the codec; the decision whether the session may continue; the
//! access log.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{self, Duration};

use portcullis_wire::Disconnect;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::codec::{Boundary, Codec, DISCARD_WILL, Direction, Ending, Injected, Stalled};
use super::side::{Input, Output, Side};
use crate::net::{Stream, discard_until_closed};
use crate::outcome::{CloseReason, Outcome};
use crate::policy::PacketRules;

/// How much is read at once: four TLS records, so that a flood costs few system calls.
const CHUNK: usize = 64 << 10;
/// A byte more, so that the last of four records is decrypted in the read buffer, too: its type follows it [RFC 8446, 5.2].
const TYPE: usize = 1;
/// How many of them one direction moves before other sessions have their turn; fewer and smaller ones if they take long
/// ([`Side::adapt`]), as a thousand PINGREQs do that are inspected.
const MAX_CHUNKS: usize = 2;
/// How long the other side may stay silent after one side has closed.
const HALF_CLOSE: Duration = Duration::from_secs(10);
/// How long the current packet and the DISCONNECT may take to write when the gateway closes the session.
const STOP: Duration = Duration::from_secs(2);
/// What a thread keeps of the memory for injected bytes.
const MAX_KEPT: usize = 4 * CHUNK;

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers { read: vec![0; CHUNK + TYPE].into(), injected: Injected::default() });
}

/// The buffers of a thread, which every session uses while it is polled.
struct Buffers {
    read: Box<[u8]>,
    injected: Injected,
}

/// The two connections of a session, once the broker has answered CONNECT.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The connection to the client.
    pub client: Stream,
    /// The connection to the broker.
    pub broker: Stream,
    /// The bytes that the broker has sent so far.
    pub broker_first: Vec<u8>,
    /// The most bytes that a DISCONNECT of the gateway's may have. 0 before MQTT 5, and unless the broker has accepted the client
    /// [MQTT-3.14.0-1].
    pub max_disconnect: u32,
}

/// Moves the bytes of one session.
pub(super) struct Pump<C> {
    client: Side,
    broker: Side,
    codec: C,
    /// What the broker has sent before the pump began. The codec sees it once the rules of the moment are known.
    broker_first: Vec<u8>,
    max_disconnect: u32,
    /// The first close reason. Later ones are consequences of it.
    reason: Option<CloseReason>,
    /// What happened, if the codec closed the session.
    detail: Option<Box<str>>,
    is_stopping: bool,
    /// The close reason, once a connection is lost: there is nothing to close in order.
    over: Option<CloseReason>,
    /// The broker accepts no more bytes, but may still send some.
    is_broker_lost: bool,
    /// The direction that is polled first. It alternates, so that a flood in one does not starve the other.
    first: Direction,
    /// Set once one side has closed.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Set if the codec has to be woken.
    alarm: Option<Pin<Box<Sleep>>>,
}

/// How far the pump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Until the session begins to end. It closes nothing.
    Ending,
    /// Until both connections are closed.
    AllClosed,
}

/// What interrupts a direction.
enum Interrupt {
    /// The sender was lost.
    Reading,
    /// The receiver was lost.
    Writing,
    /// The codec closes the session.
    Codec(Ending),
}

impl<C: Codec> Pump<C> {
    pub(super) fn new(ends: Ends, codec: C) -> Self {
        Self {
            client: Side::new(ends.client),
            broker: Side::new(ends.broker),
            codec,
            broker_first: ends.broker_first,
            max_disconnect: ends.max_disconnect,
            reason: None,
            detail: None,
            is_stopping: false,
            over: None,
            is_broker_lost: false,
            first: Direction::ToBroker,
            deadline: None,
            alarm: None,
        }
    }

    /// As [`Stream::detect_vanished_broker`].
    pub(super) fn detect_vanished_broker(&self) {
        self.broker.detect_vanished_broker();
    }

    /// As [`Stream::attach`], for both sides.
    pub(super) fn attach(self) -> io::Result<Self> {
        Ok(Self { client: self.client.attach()?, broker: self.broker.attach()?, alarm: None, ..self })
    }

    /// Drops the timers, which the runtime keeps in which they were first polled. The next poll sets them again.
    pub(super) fn reset_timers(&mut self) {
        (self.alarm, self.deadline) = (None, None);
    }

    /// Begins with what the broker has sent already.
    fn begin(&mut self) {
        let first = std::mem::take(&mut self.broker_first);
        if first.is_empty() {
            return;
        }
        let (broker, client, mut injected) = (&mut self.broker, &mut self.client, Injected::default());
        match pass(&mut self.codec, Direction::ToClient, &first, broker, client, &mut injected) {
            Ok(passed) => client.keep(passed),
            Err(ending) => self.close_because(Direction::ToClient, ending),
        }
    }

    /// Applies other rules, also to what the broker has sent already if the pump has not been polled.
    pub(super) fn set_rules(&mut self, rules: Arc<PacketRules>) {
        if let Err(ending) = self.codec.set_rules(rules) {
            if !self.broker_first.is_empty() {
                // A DISCONNECT may only follow CONNACK [MQTT-3.14.0-1], which may have deliveries behind it.
                (self.broker_first, self.max_disconnect) = (Vec::new(), 0);
            }
            self.stop(ending);
        }
    }

    /// What happened, if the codec closed the session.
    pub(super) fn take_detail(&mut self) -> Option<Box<str>> {
        self.detail.take()
    }

    /// Moves bytes in both directions as far as possible. Ready with the close reason, which may still change before the
    /// connections are closed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<CloseReason> {
        self.begin();
        self.poll_sides(cx, until).map(|reason| self.behind_disconnect(reason))
    }

    /// The close reason of a session that ends for `reason`: behind DISCONNECT, it does not matter who closed the connection, or
    /// how.
    pub(super) fn behind_disconnect(&self, reason: CloseReason) -> CloseReason {
        let is_of_connection = matches!(
            reason,
            CloseReason::UpstreamClosed
                | CloseReason::UpstreamLost
                | CloseReason::ClientLost
                | CloseReason::HalfCloseTimeout
        );
        match self.codec.disconnected() {
            Some(Direction::ToBroker) if is_of_connection => CloseReason::Ok,
            Some(Direction::ToClient) if is_of_connection => CloseReason::UpstreamDisconnected,
            _ => reason,
        }
    }

    fn poll_sides(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<CloseReason> {
        if let Some(reason) = self.over {
            return Poll::Ready(reason);
        }
        // Polled first: a flood of bytes must not starve the deadline.
        let is_late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        self.poll_alarm(cx);
        self.first = self.first.reverse();
        let waits_for = self.waits_for();
        for direction in [self.first, self.first.reverse()] {
            if let Some(lost) = self.poll_direction(cx, direction, until) {
                let reason = self.end_because(lost);
                self.over = Some(reason);
                return Poll::Ready(reason);
            }
        }
        if waits_for != self.waits_for() {
            // One direction waited for the other, or the codec has to be woken at another time.
            cx.waker().wake_by_ref();
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
        match until {
            Until::Ending => Poll::Ready(self.reason.unwrap_or(CloseReason::UpstreamLost)),
            Until::AllClosed => self.poll_over(cx, is_late),
        }
    }

    /// What the codec waits for: which directions are not read, and until when.
    fn waits_for(&self) -> (bool, bool, Option<Instant>) {
        let may_read = |direction| self.codec.may_read(direction);
        (may_read(Direction::ToBroker), may_read(Direction::ToClient), self.codec.wake_at())
    }

    /// Wakes the codec, if it is time.
    fn poll_alarm(&mut self, cx: &mut Context<'_>) {
        while let Some(at) = self.codec.wake_at().filter(|_| !self.is_stopping) {
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if alarm.deadline() != at {
                alarm.as_mut().reset(at);
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return;
            }
            let stalled = Stalled { client: self.client.has_pending(), broker: self.broker.has_pending() };
            if let Err(ending) = self.codec.wake(Instant::now(), stalled) {
                self.close_because(Direction::ToBroker, ending);
            }
        }
    }

    /// Ready when a session that has begun to close is over: all is written, or the deadline has passed.
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
            // The open half is still active: restart its deadline.
            deadline.as_mut().reset(Instant::now() + limit);
        }
        // Poll it again after the reset, to register the waker.
        deadline.as_mut().poll(cx).map(|()| too_late)
    }

    /// Moves bytes in one direction. `Some`: the session is over at once.
    fn poll_direction(&mut self, cx: &mut Context<'_>, direction: Direction, until: Until) -> Option<CloseReason> {
        let (from, to) = match direction {
            Direction::ToBroker => (&mut self.client, &mut self.broker),
            Direction::ToClient => (&mut self.broker, &mut self.client),
        };
        let polled = poll_direction(cx, &mut self.codec, direction, from, to, until);
        let Poll::Ready(Err(interrupt)) = polled else { return None };
        match (interrupt, direction) {
            (Interrupt::Reading, Direction::ToBroker) | (Interrupt::Writing, Direction::ToClient) => {
                Some(CloseReason::ClientLost)
            }
            (Interrupt::Reading, Direction::ToClient) => Some(CloseReason::UpstreamLost),
            (Interrupt::Writing, Direction::ToBroker) => {
                // The bytes that the broker sent before it closed, for instance a reason, still have to reach the client.
                self.is_broker_lost = true;
                self.broker.abandon();
                None
            }
            (Interrupt::Codec(ending), direction) => {
                self.close_because(direction, ending);
                // The other direction may already have been polled, and now has bytes to write.
                cx.waker().wake_by_ref();
                None
            }
        }
    }

    /// Closes the session because of the bytes received in `direction`.
    fn close_because(&mut self, direction: Direction, ending: Ending) {
        let from = if direction == Direction::ToBroker { &mut self.client } else { &mut self.broker };
        from.input = Input::Stopped;
        if !self.is_stopping {
            self.stop(ending);
        }
    }

    /// Closes the session on behalf of the gateway, at the next packet boundary to the client; in MQTT 5 with a DISCONNECT.
    pub(super) fn stop(&mut self, ending: impl Into<Ending>) {
        self.begin();
        let Ending { reason, disconnect, reference, detail } = ending.into();
        self.is_stopping = true;
        if self.end_because(reason) == reason {
            self.detail = detail;
        }
        self.deadline = None;
        if reason.stops_client() && self.client.input != Input::Ended {
            // It may take until `STOP` until a client that does not read is disconnected.
            self.client.input = Input::Stopped;
        }
        if reason.discards_will() && self.broker.output == Output::Open && self.codec.is_between_packets_to_broker() {
            self.broker.push(&DISCARD_WILL);
        }
        self.client.set_close_code(Outcome::Closed(reason).websocket_code());
        if self.client.output == Output::Open {
            // Nothing follows a DISCONNECT, of either side [MQTT-3.14.4-1].
            let disconnect = disconnect.filter(|_| self.codec.disconnected().is_none());
            self.client.end_with(disconnect.and_then(|it| packet_of(it, reference.as_deref(), self.max_disconnect)));
            self.client.end_at(self.codec.boundary(&[]));
        }
    }

    /// Whether [`stop`](Self::stop) was called, or the codec closed the session.
    pub(super) const fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn end_because(&mut self, reason: CloseReason) -> CloseReason {
        *self.reason.get_or_insert(reason)
    }

    /// The bytes from and to the client since the last call.
    pub(super) const fn take_counts(&mut self) -> (u64, u64) {
        let counts = (self.client.received, self.client.sent);
        (self.client.received, self.client.sent) = (0, 0);
        counts
    }

    /// Closes the client's connection so that it can read the DISCONNECT: a reset caused by unread bytes could overtake it.
    pub(super) async fn close(&mut self) {
        if self.client.output == Output::Closed && self.client.input != Input::Ended {
            // In a box: an idle session does not carry the buffer that this needs.
            Box::pin(discard_until_closed(&mut self.client.stream)).await;
        }
    }
}

/// A DISCONNECT of at most so many bytes; without the reference if that is too long.
fn packet_of(disconnect: Disconnect, reference: Option<&str>, max: u32) -> Option<Vec<u8>> {
    let max = max as usize;
    let long = reference.map(|reference| disconnect.packet_with_reference(reference));
    long.filter(|packet| packet.len() <= max)
        .or_else(|| (Disconnect::PACKET_LEN <= max).then(|| disconnect.packet().into()))
}

/// Moves bytes in one direction as far as possible. Ready without an error once the direction is closed.
fn poll_direction<C: Codec>(
    cx: &mut Context<'_>,
    codec: &mut C,
    direction: Direction,
    from: &mut Side,
    to: &mut Side,
    until: Until,
) -> Poll<Result<(), Interrupt>> {
    for _ in 0..MAX_CHUNKS {
        let begin = C::INSPECTS.then(time::Instant::now);
        let is_open = match from.input {
            Input::Open => true,
            Input::AwaitsReply => from.poll_reply_taken(cx).is_ready(),
            Input::Stopped | Input::Ended => false,
        };
        let may_move = is_open && (codec.may_read(direction) || codec.has_work(direction));
        ready!(to.poll_write_all(cx)).map_err(|_| Interrupt::Writing)?;
        match to.output {
            Output::Closed => return Poll::Ready(Ok(())),
            Output::Ending if until == Until::Ending => return Poll::Ready(Ok(())),
            Output::Ending => ready!(to.poll_shutdown(cx)),
            Output::Open | Output::UntilBoundary => {
                if !may_move || poll_chunk(cx, codec, direction, from, to)?.is_pending() {
                    // The sender has no bytes now: flush what was written.
                    ready!(to.poll_flush(cx)).map_err(|_| Interrupt::Writing)?;
                    return Poll::Pending;
                }
                if begin.is_some_and(|begin| from.adapt(begin.elapsed())) {
                    break;
                }
            }
        }
    }
    // The others of the thread have their turn first, also those that the runtime has yet to find: while a task wakes itself,
    // tokio does not look at sockets for 61 polls.
    let _ = pin!(yield_now()).poll(cx);
    Poll::Pending
}

/// Reads once, and writes the bytes that the codec passes, as far as the receiver accepts them.
fn poll_chunk<C: Codec>(
    cx: &mut Context<'_>,
    codec: &mut C,
    direction: Direction,
    from: &mut Side,
    to: &mut Side,
) -> Poll<Result<(), Interrupt>> {
    BUFFERS.with_borrow_mut(|Buffers { read, injected }| {
        let len = match direction {
            Direction::ToBroker => from.share_of(CHUNK) + TYPE,
            // The byte more would be a record of its own.
            Direction::ToClient => from.share_of(CHUNK),
        };
        let mut buffer = ReadBuf::new(&mut read[..len]);
        let has_work = codec.has_work(direction);
        let read = if has_work { Ok(()) } else { ready!(Pin::new(&mut from.stream).poll_read(cx, &mut buffer)) };
        match read {
            Ok(()) if !buffer.filled().is_empty() || has_work => {
                from.received += buffer.filled().len() as u64;
                let passed = pass(codec, direction, buffer.filled(), from, to, injected);
                let written = passed.map(|passed| to.write(cx, passed));
                injected.reset();
                match written {
                    Ok(written) => written.map_err(|_| Interrupt::Writing)?,
                    Err(ending) => {
                        // The session may be over before this direction has another turn.
                        let _ = to.poll_write_all(cx);
                        return Poll::Ready(Err(Interrupt::Codec(ending)));
                    }
                }
            }
            // A close without TLS close_notify is a normal end: MQTT frames its packets, so truncation is detectable.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Err(Ending::of_stream_error(&error).map_or(Interrupt::Reading, Interrupt::Codec)));
            }
            Ok(()) | Err(_) => (from.input, to.output) = (Input::Ended, Output::Ending),
        }
        Poll::Ready(Ok(()))
    })
}

/// Passes a chunk to the codec. Returns what to write before the pending bytes of the receiver.
fn pass<'c, C: Codec>(
    codec: &mut C,
    direction: Direction,
    mut chunk: &'c [u8],
    from: &mut Side,
    to: &mut Side,
    injected: &'c mut Injected,
) -> Result<&'c [u8], Ending> {
    let mut end = None;
    if to.output == Output::UntilBoundary {
        let boundary = codec.boundary(chunk);
        if let Boundary::At(offset) = boundary {
            chunk = &chunk[..offset];
        }
        end = Some(boundary);
    }
    let passed = codec.take(direction, chunk, injected);
    if !injected.reply.is_empty() {
        from.answer(&injected.reply);
    }
    if let Some(boundary) = end {
        to.end_at(boundary);
    }
    match passed {
        Ok(passed) if injected.forward.is_empty() => Ok(passed),
        Ok(passed) => {
            // One write for both.
            injected.forward.splice(0..0, passed.iter().copied());
            Ok(&injected.forward)
        }
        Err(ending) => {
            to.keep(&injected.forward);
            Err(ending)
        }
    }
}

impl Injected {
    /// Forgets the bytes. The memory for them is kept, unless it is large.
    fn reset(&mut self) {
        for bytes in [&mut self.forward, &mut self.reply] {
            bytes.clear();
            bytes.shrink_to(MAX_KEPT);
        }
    }
}

#[cfg(test)]
mod fairness;
#[cfg(test)]
mod tests;
