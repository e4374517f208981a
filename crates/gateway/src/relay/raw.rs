//! Moves bytes both ways as they come. Enters: two connected streams. Leaves: who ended it and how much went through.
//!
//! A session holds no buffer while it is idle. Bytes are read into a buffer of the thread, and written from it at once;
//! only what the other side does not take is kept, one chunk at most, and nothing more is read until it is gone: a slow
//! reader slows its writer down. The stream from broker to client is followed packet by packet: when the gateway ends a
//! session it does so between packets, in MQTT 5 with a DISCONNECT that says why.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use portcullis_wire::{Disconnect, Scanner};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::edge::{Stream, discard_until_closed};
use crate::observe::Record;
use crate::outcome::CloseReason;
use crate::session::index::Session;

/// Read at once: as much as one TLS record holds.
const CHUNK: usize = 16 << 10;
/// For the other side to end too, after one side has.
const HALF_CLOSE: Duration = Duration::from_secs(10);
/// For a goodbye to find a packet boundary and be written.
const GOODBYE: Duration = Duration::from_secs(2);

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
    /// What the broker has said already, from its first byte on.
    pub greeting: Vec<u8>,
    /// Whether the gateway may end the session with a DISCONNECT of its own: in MQTT 5, once the broker has accepted
    /// the client [MQTT-3.14.0-1].
    pub may_say_goodbye: bool,
}

/// Moves bytes until both sides have ended, one is lost, or the session has to end. They are counted as they go, so
/// that even a session that is cut off has a true record.
pub async fn relay(ends: Ends, record: &mut Record, session: &Session) -> CloseReason {
    let mut relay = Relay::new(ends);
    let reason = poll_fn(|cx| {
        if !relay.is_stopping
            && let Poll::Ready(reason) = session.poll_end(cx)
        {
            relay.stop(reason);
        }
        let poll = relay.poll(cx);
        record.moved(std::mem::take(&mut relay.up.read), std::mem::take(&mut relay.down.sent));
        poll
    })
    .await;
    if relay.down.is_closed() && !relay.up.has_source_ended {
        // The client has been told why this is the end; a reset for what it still sends could overtake that.
        // In a box: its buffer is not for every idle session to carry.
        Box::pin(discard_until_closed(&mut relay.client)).await;
    }
    reason
}

#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
struct Relay {
    client: Stream,
    broker: Stream,
    up: Flow,
    down: Flow,
    may_say_goodbye: bool,
    /// The first thing that happened: what comes after is its consequence.
    reason: Option<CloseReason>,
    is_stopping: bool,
    /// The broker takes nothing more; it may still have something to say.
    is_broker_deaf: bool,
    /// Which direction has its turn first: a flood in one is not to starve the other.
    is_downs_turn: bool,
    /// Set once one side has ended.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Relay {
    fn new(ends: Ends) -> Self {
        let mut down = Flow { scanner: Some(Scanner::new()), ..Flow::default() };
        down.take(&ends.greeting);
        Self {
            client: ends.client,
            broker: ends.broker,
            up: Flow::default(),
            down,
            may_say_goodbye: ends.may_say_goodbye,
            reason: None,
            is_stopping: false,
            is_broker_deaf: false,
            is_downs_turn: false,
            deadline: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        // First: a flood would leave it no turn.
        let is_late = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        self.is_downs_turn = !self.is_downs_turn;
        for is_down in [self.is_downs_turn, !self.is_downs_turn] {
            if let Some(lost) = if is_down { self.poll_down(cx) } else { self.poll_up(cx) } {
                return Poll::Ready(self.because(lost));
            }
        }
        if self.up.has_ended() && !self.is_broker_deaf {
            self.because(CloseReason::Ok);
        }
        if self.down.has_ended() {
            self.because(CloseReason::UpstreamClosed);
        }
        if self.reason.is_none() && !self.is_broker_deaf {
            return Poll::Pending;
        }
        let reason = self.reason.unwrap_or(CloseReason::UpstreamLost);
        let is_over =
            if self.is_stopping { self.down.is_closed() } else { self.up.is_closed() && self.down.is_closed() };
        if is_over {
            return Poll::Ready(reason);
        }
        let too_late = match reason {
            CloseReason::Ok | CloseReason::UpstreamClosed => CloseReason::HalfCloseTimeout,
            reason => reason,
        };
        if is_late {
            return Poll::Ready(too_late);
        }
        let limit = if self.is_stopping { GOODBYE } else { HALF_CLOSE };
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.is_stopping && (self.up.read > 0 || self.down.sent > 0) {
            // What is still coming over the half that is open may come.
            deadline.as_mut().reset(Instant::now() + limit);
        }
        // Only being polled makes it wake this task.
        deadline.as_mut().poll(cx).map(|()| too_late)
    }

    /// `Some`: the session is over at once.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Option<CloseReason> {
        match self.up.poll(cx, &mut self.client, &mut self.broker) {
            Poll::Ready(Err(Broken::Reading)) => Some(CloseReason::ClientLost),
            Poll::Ready(Err(Broken::Writing)) => {
                // What a broker says before it hangs up, why for instance, is still to reach the client.
                self.is_broker_deaf = true;
                self.up.abandon();
                None
            }
            _ => None,
        }
    }

    /// `Some`: the session is over at once.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Option<CloseReason> {
        match self.down.poll(cx, &mut self.broker, &mut self.client) {
            Poll::Ready(Err(Broken::Reading)) => Some(CloseReason::UpstreamLost),
            Poll::Ready(Err(Broken::Writing)) => Some(CloseReason::ClientLost),
            _ => None,
        }
    }

    fn because(&mut self, reason: CloseReason) -> CloseReason {
        *self.reason.get_or_insert(reason)
    }

    /// Ends the session from the gateway's side: MQTT 5 has a packet for it, before there is only the end itself.
    fn stop(&mut self, reason: CloseReason) {
        self.is_stopping = true;
        self.because(reason);
        self.deadline = None;
        self.down.end_with(reason.goodbye().filter(|_| self.may_say_goodbye).map(Disconnect::packet));
    }
}

/// The side that broke a flow.
#[derive(Clone, Copy)]
enum Broken {
    Reading,
    Writing,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// Read and not written yet; without memory of its own while nothing waits.
    pending: Vec<u8>,
    written: usize,
    state: State,
    is_unflushed: bool,
    /// Nothing is left to be read.
    has_source_ended: bool,
    /// Bytes read, and bytes written, since they were last asked for.
    read: u64,
    sent: u64,
    /// Follows the packets, where the gateway may have to end between them.
    scanner: Option<Scanner>,
    goodbye: Option<[u8; 4]>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// What belongs to the packet that is under way is still moved.
    AtBoundary,
    /// Nothing more is read; what is pending is written, then the writing side is shut down.
    Ending,
    Closed,
}

impl Flow {
    /// Moves what can be moved. Ready with an error if a side broke, ready without when it is closed.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broken>> {
        loop {
            ready!(self.poll_write_pending(cx, to))?;
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Ending => {
                    // A peer that is gone already has nothing against being told that this is the end.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.state = State::Closed;
                }
                State::Open | State::AtBoundary => {
                    if self.poll_move(cx, from, to)?.is_pending() {
                        // The reader has nothing now: what was written is not to wait for more.
                        if self.is_unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Broken::Writing)?;
                            self.is_unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Reads once, and writes what was read as far as the other side takes it.
    fn poll_move(&mut self, cx: &mut Context<'_>, from: &mut Stream, to: &mut Stream) -> Poll<Result<(), Broken>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            match ready!(Pin::new(from).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => self.end_of_source(),
                Ok(()) => {
                    let chunk = self.pass(buffer.filled());
                    let written = match Pin::new(to).poll_write(cx, chunk) {
                        Poll::Ready(Ok(written)) => written,
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Writing)),
                        Poll::Pending => 0,
                    };
                    self.is_unflushed = true;
                    self.sent += written as u64;
                    let rest = &chunk[written..];
                    if !rest.is_empty() {
                        // In front of a goodbye that `pass` may have left there.
                        self.pending.splice(0..0, rest.iter().copied());
                    }
                }
                // A client that closes without TLS' close_notify has ended all the same: MQTT frames itself.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.end_of_source(),
                Err(_) => return Poll::Ready(Err(Broken::Reading)),
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<Result<(), Broken>> {
        while self.written < self.pending.len() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]));
            match written {
                Ok(written @ 1..) => {
                    self.written += written;
                    self.sent += written as u64;
                }
                _ => return Poll::Ready(Err(Broken::Writing)),
            }
            self.is_unflushed = true;
        }
        if !self.pending.is_empty() {
            (self.pending, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Counts and follows what was read; returns the part that is to be written. With a goodbye waiting and a boundary
    /// in the chunk, that is the part before the boundary, and the goodbye is put behind it.
    fn pass<'c>(&mut self, chunk: &'c [u8]) -> &'c [u8] {
        self.read += chunk.len() as u64;
        let Some(scanner) = &mut self.scanner else { return chunk };
        match (scanner.scan(chunk, |_| ()), self.state) {
            (Ok(Some(boundary)), State::AtBoundary) => {
                self.end_now();
                &chunk[..boundary]
            }
            (Ok(_), _) => chunk,
            (Err(_), _) => {
                // No MQTT: there will be no boundary to end at.
                self.scanner = None;
                if self.state == State::AtBoundary {
                    self.state = State::Ending;
                }
                chunk
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        let chunk = self.pass(chunk);
        self.pending.splice(0..0, chunk.iter().copied());
    }

    /// Ends the flow at the next packet boundary, with a goodbye if there is one; at once if packets are not followed.
    fn end_with(&mut self, goodbye: Option<[u8; 4]>) {
        if self.state != State::Open {
            return;
        }
        match &self.scanner {
            Some(scanner) => {
                self.goodbye = goodbye;
                if scanner.at_boundary() { self.end_now() } else { self.state = State::AtBoundary }
            }
            None => self.state = State::Ending,
        }
    }

    fn end_now(&mut self) {
        self.pending.extend(self.goodbye.take().into_iter().flatten());
        self.state = State::Ending;
    }

    fn end_of_source(&mut self) {
        (self.has_source_ended, self.state) = (true, State::Ending);
    }

    /// Gives up: what is pending has nowhere to go.
    fn abandon(&mut self) {
        (self.pending, self.written, self.state) = (Vec::new(), 0, State::Closed);
    }

    fn has_ended(&self) -> bool {
        !matches!(self.state, State::Open | State::AtBoundary)
    }

    fn is_closed(&self) -> bool {
        self.state == State::Closed
    }
}
