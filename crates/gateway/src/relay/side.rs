//! One side of a session: its connection, and what it has not taken yet.
//!
//! Enters: bytes that the side is to get. Leaves: as many of them as it takes, in order; then the shutdown of the writing
//! half. Never here: memory while nothing waits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::codec::Boundary;
use crate::edge::Stream;

/// The client or the broker, as the pump knows it.
pub(super) struct Side {
    pub(super) stream: Stream,
    pub(super) input: Input,
    pub(super) output: Output,
    /// Bytes read from it and written to it since the last time they were taken.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// What it is to get and has not taken; without memory of its own while nothing waits.
    pending: Vec<u8>,
    /// How much of `pending` it has taken.
    written: usize,
    is_unflushed: bool,
}

/// What is still read from a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Everything.
    Open,
    /// Nothing until it has taken what the codec sent back to it: a sender that does not read is slowed down.
    AwaitsReply,
    /// Nothing: the codec ended the session because of what it sent.
    Refused,
    /// Nothing: it has ended.
    Ended,
}

/// What is still written to a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Everything.
    Open,
    /// The rest of the packet that is under way, then this DISCONNECT if there is one, then as `Ending`.
    UntilBoundary(Option<[u8; 4]>),
    /// What is pending; then the writing half is shut down.
    Ending,
    /// Nothing.
    Closed,
}

impl Output {
    /// Whether the side may be sent more than what is pending already.
    pub(super) const fn takes_more(self) -> bool {
        matches!(self, Output::Open | Output::UntilBoundary(_))
    }
}

impl Side {
    pub(super) const fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: Input::Open,
            output: Output::Open,
            received: 0,
            sent: 0,
            pending: Vec::new(),
            written: 0,
            is_unflushed: false,
        }
    }

    /// Writes `bytes` as far as the side takes them, and keeps the rest in front of what is pending. Everything that was
    /// to be written before them must have been written.
    ///
    /// # Errors
    /// The side takes nothing more.
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

    /// Puts `bytes` in front of what is pending.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.pending.splice(0..0, bytes.iter().copied());
    }

    /// Puts `bytes` behind what is pending.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        if self.pending.is_empty() { self.pending = bytes } else { self.pending.extend(bytes) }
    }

    /// Sends the codec's answer back to this side, unless it has been told that this is the end.
    pub(super) fn answer(&mut self, bytes: Vec<u8>) {
        if self.output.takes_more() {
            self.push(bytes);
            self.input = Input::AwaitsReply;
        }
    }

    /// Ready once the side has taken the codec's answer and may be read again. An error is not reported: reading will tell
    /// how a side has ended that takes nothing.
    pub(super) fn poll_reply_taken(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.poll_drain(cx)).is_ok() {
            let _ = ready!(self.poll_flush(cx));
        } else {
            self.discard();
        }
        self.input = Input::Open;
        Poll::Ready(())
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// The side takes nothing more.
    #[inline]
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pending.is_empty() { Poll::Ready(Ok(())) } else { self.poll_write_pending(cx) }
    }

    fn poll_write_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pending = std::mem::take(&mut self.pending);
        while let rest @ [_, ..] = &pending[self.written..] {
            match self.poll_write(cx, rest) {
                Poll::Ready(Ok(written)) => self.written += written,
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

    /// Flushes what was written.
    ///
    /// # Errors
    /// The side takes nothing more.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts the writing half down.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error says that the peer is gone: it does not have to be told that this is the end.
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.output = Output::Closed;
        Poll::Ready(())
    }

    /// Ends the output where `boundary` says, with `disconnect` if that is a packet boundary.
    pub(super) fn end_at(&mut self, boundary: Boundary, disconnect: Option<[u8; 4]>) {
        match boundary {
            Boundary::At(_) => self.end_with(disconnect),
            Boundary::Later => self.output = Output::UntilBoundary(disconnect),
            Boundary::Never => self.output = Output::Ending,
        }
    }

    /// Ends the output here, with `disconnect` if there is one.
    fn end_with(&mut self, disconnect: Option<[u8; 4]>) {
        self.pending.extend(disconnect.into_iter().flatten());
        self.output = Output::Ending;
    }

    /// Gives up writing: what is pending has nowhere to go.
    pub(super) fn abandon(&mut self) {
        self.discard();
        self.output = Output::Closed;
    }

    fn discard(&mut self) {
        (self.pending, self.written) = (Vec::new(), 0);
    }

    /// Bytes of memory held for what the side has not taken.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.pending.capacity()
    }
}
