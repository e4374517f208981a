//! One side of a session: its connection and the bytes that wait to be written to it.
//!
//! Enters: bytes for the side. Leaves: the bytes in order, as the side accepts them, then the shutdown of the writing half.
//! It holds no memory while no bytes wait.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::codec::Boundary;
use crate::net::Stream;

/// The client's or the broker's side of the pump.
pub(super) struct Side {
    pub(super) stream: Stream,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Bytes read from it and written to it since the counts were last taken.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Bytes to be written. Holds no memory while there are none.
    pending: Vec<u8>,
    /// How many bytes of `pending` are written. Many fewer than 4 GiB ever wait.
    written: u32,
    /// The packet with which the gateway ends the stream.
    last: Option<Box<LastPacket>>,
    is_unflushed: bool,
    /// How often what is read at once was halved.
    halvings: u8,
}

/// A packet. In a box, and not a slice in one: all sessions have room for the pointer, and few ever have a packet.
struct LastPacket(Vec<u8>);

/// The state of reading from a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Open.
    Open,
    /// Paused until it has accepted the codec's response: a sender that does not read is slowed down.
    AwaitsReply,
    /// Stopped: the codec closed the session because of its bytes.
    Stopped,
    /// The side has closed.
    Ended,
}

/// The state of writing to a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Open.
    Open,
    /// Writes the rest of the current packet, then the last one, if there is one; then continues as `Ending`.
    UntilBoundary,
    /// Writes the pending bytes, then shuts the writing half down.
    Ending,
    /// Shut down.
    Closed,
}

impl Output {
    /// Whether more bytes may be added to the pending ones.
    pub(super) const fn takes_more(self) -> bool {
        matches!(self, Output::Open | Output::UntilBoundary)
    }
}

/// How long a chunk should take at most.
const CHUNK_TIME: Duration = Duration::from_micros(300);
/// A quarter of a chunk is a TLS record.
const MAX_HALVINGS: u8 = 2;

impl Side {
    /// How many bytes to read at once, of so many.
    pub(super) const fn share_of(&self, chunk: usize) -> usize {
        chunk >> self.halvings
    }

    /// Adapts it to the time that the last chunk has taken. Returns whether that was long.
    pub(super) fn adapt(&mut self, took: Duration) -> bool {
        let is_long = took > CHUNK_TIME;
        if is_long {
            self.halvings = (self.halvings + 1).min(MAX_HALVINGS);
        } else if took < CHUNK_TIME / 4 {
            self.halvings = self.halvings.saturating_sub(1);
        }
        is_long
    }

    pub(super) const fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: Input::Open,
            output: Output::Open,
            received: 0,
            sent: 0,
            pending: Vec::new(),
            written: 0,
            last: None,
            is_unflushed: false,
            halvings: 0,
        }
    }

    /// As [`Stream::detect_vanished_broker`].
    pub(super) fn detect_vanished_broker(&self) {
        self.stream.detect_vanished_broker();
    }

    /// As [`Stream::set_close_code`].
    pub(super) fn set_close_code(&mut self, code: u16) {
        self.stream.set_close_code(code);
    }

    /// As [`Stream::attach`].
    pub(super) fn attach(self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.attach()?, ..self })
    }

    /// Writes `bytes` as far as the side accepts them, and keeps the rest before the pending bytes. All bytes that precede
    /// them must have been written.
    ///
    /// # Errors
    /// The side accepts no more bytes.
    pub(super) fn write(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Poll::Ready(written) = self.poll_write(cx, bytes) else {
                self.keep(bytes);
                break;
            };
            bytes = &bytes[written?..];
        }
        Ok(())
    }

    /// Puts `bytes` before the pending bytes.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.pending.splice(0..0, bytes.iter().copied());
    }

    /// Puts `bytes` after the pending bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Queues the codec's response to this side, unless its stream is being closed.
    pub(super) fn answer(&mut self, bytes: &[u8]) {
        if self.output.takes_more() {
            self.push(bytes);
            self.input = Input::AwaitsReply;
        }
    }

    /// Ready once the side has accepted the codec's response and may be read again. Write errors are not reported here: the
    /// next read reports how the side closed.
    pub(super) fn poll_reply_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.poll_write_all(cx)).is_ok() {
            let _ = ready!(self.poll_flush(cx));
        } else {
            self.discard();
        }
        self.input = Input::Open;
        Poll::Ready(())
    }

    /// Whether bytes wait to be written.
    pub(super) const fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes the pending bytes.
    ///
    /// # Errors
    /// The side accepts no more bytes.
    #[inline]
    pub(super) fn poll_write_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() { Poll::Ready(Ok(())) } else { self.poll_write_pending(cx) }
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pending = std::mem::take(&mut self.pending);
        while let rest @ [_, ..] = &pending[self.written as usize..] {
            match self.poll_write(cx, rest) {
                Poll::Ready(Ok(written)) => self.written += u32::try_from(written).unwrap_or(u32::MAX),
                other => {
                    self.pending = pending;
                    return other.map_ok(|_| ());
                }
            }
        }
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += written as u64;
        self.is_unflushed = true;
        Poll::Ready(Ok(written))
    }

    /// Flushes the written bytes.
    ///
    /// # Errors
    /// The side accepts no more bytes.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts the writing half down.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error means that the peer has already closed.
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.output = Output::Closed;
        Poll::Ready(())
    }

    /// Ends the stream at a packet boundary with this packet, if there is one. [`end_at`](Self::end_at) has to follow.
    pub(super) fn end_with(&mut self, last: Option<Vec<u8>>) {
        self.last = last.map(|packet| Box::new(LastPacket(packet)));
    }

    /// Ends the stream at `boundary`.
    pub(super) fn end_at(&mut self, boundary: Boundary) {
        self.output = match boundary {
            Boundary::At(_) => {
                self.pending.extend(self.last.take().into_iter().flat_map(|last| last.0));
                Output::Ending
            }
            Boundary::Later => Output::UntilBoundary,
            Boundary::Never => Output::Ending,
        };
    }

    /// Stops writing and drops the pending bytes.
    pub(super) fn abandon(&mut self) {
        self.discard();
        self.output = Output::Closed;
    }

    fn discard(&mut self) {
        (self.pending, self.written) = (Vec::new(), 0);
    }

    /// The bytes of memory held for pending bytes.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.pending.capacity()
    }
}
