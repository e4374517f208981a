//! MQTT over WebSocket, behind the upgrade [RFC 6455]. Enters: a stream of frames. Leaves: the bytes of MQTT, cut over frames in
//! any way [MQTT-6.0.0-2]. No extensions. An idle stream holds no buffers: payloads are unmasked where the caller has its own
//! buffer, and what is written waits here only if the peer does not take it.

mod frames;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

pub(super) use self::frames::Violation;
use self::frames::{Event, Frames};
use super::stream_error::StreamError;

/// The most bytes of a frame that is sent: with its header, a TLS record.
const MAX_PAYLOAD: usize = (16 << 10) - 4;
/// Frames without a payload, and pieces of them, are read so often at most before others have their turn.
const MAX_READS: usize = 32;
/// With so many bytes outgoing, a peer reads too slowly for each ping to be answered.
const MAX_PONGS: usize = 1 << 10;
/// The status code of a connection that ends in order [RFC 6455, 7.4.1].
const NORMAL: u16 = 1000;

thread_local! {
    /// Where a frame is put together.
    static FRAME: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(MAX_PAYLOAD + 4));
}

/// The server's end of a WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    stream: S,
    frames: Frames,
    /// What the peer has not taken yet, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// The payload of the last ping that is not answered: one pong may answer several [RFC 6455, 5.5.3].
    pong: Option<Box<[u8]>>,
    /// Why the gateway closes the connection.
    close_code: Option<u16>,
    is_close_sent: bool,
    input: Input,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    /// The peer has sent Close.
    Closed,
    /// The peer has violated the protocol: what it still sends is dropped, so that it can read the reason.
    Failed,
}

impl<S> WebSocket<S> {
    /// A WebSocket whose upgrade is complete.
    pub(crate) const fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::new(),
            outgoing: Vec::new(),
            sent: 0,
            pong: None,
            close_code: None,
            is_close_sent: false,
            input: Input::Open,
        }
    }

    /// The stream below.
    pub(crate) const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The same over another stream.
    ///
    /// # Errors
    /// As `map`.
    pub(crate) fn try_map<T, E>(self, map: impl FnOnce(S) -> Result<T, E>) -> Result<WebSocket<T>, E> {
        let Self { stream, frames, outgoing, sent, pong, close_code, is_close_sent, input } = self;
        Ok(WebSocket { stream: map(stream)?, frames, outgoing, sent, pong, close_code, is_close_sent, input })
    }

    /// Sets the status code of Close [RFC 6455, 7.4]. The first one counts.
    pub(crate) fn set_close_code(&mut self, code: u16) {
        self.close_code.get_or_insert(code);
    }

    fn queue_close(&mut self, code: Option<u16>) {
        if !self.is_close_sent {
            self.is_close_sent = true;
            self.append_pong();
            let payload = code.map(u16::to_be_bytes);
            append_frame(
                OpCode::Control(Control::Close),
                payload.as_ref().map_or(&[][..], |code| code),
                &mut self.outgoing,
            );
        }
    }

    fn answer_ping(&mut self, payload: Box<[u8]>) {
        if self.is_close_sent {
            return;
        }
        self.pong = Some(payload);
        if self.outgoing.len() - self.sent < MAX_PONGS {
            self.append_pong();
        }
    }

    fn append_pong(&mut self) {
        if let Some(payload) = self.pong.take() {
            append_frame(OpCode::Control(Control::Pong), &payload, &mut self.outgoing);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Writes what is outgoing.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            while let rest @ [_, ..] = &self.outgoing[self.sent..] {
                match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.sent += written,
                }
            }
            (self.outgoing, self.sent) = (Vec::new(), 0);
            self.append_pong();
        }
        Poll::Ready(Ok(()))
    }

    /// Answers of frames that were read go out without a caller that writes. An error shows with the next read.
    fn poll_answer(&mut self, cx: &mut Context<'_>) {
        if self.outgoing.is_empty() {
            return;
        }
        if matches!(self.poll_drain(cx), Poll::Ready(Ok(()))) {
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
    }

    /// Reads once, and takes the payloads out of the frames. Returns the number of their bytes in `buf`; `None`: the connection has
    /// ended.
    fn poll_frames(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<Option<usize>>> {
        let mut received = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut received))?;
        let received = received.filled_mut();
        if received.is_empty() {
            return Poll::Ready(Ok(None));
        }
        if self.input == Input::Failed {
            return Poll::Ready(Ok(Some(0)));
        }
        let (mut read, mut kept) = (0, 0);
        while read < received.len() && self.input == Input::Open {
            let event = self.frames.take(received, &mut read, &mut kept).inspect_err(|violation| {
                self.input = Input::Failed;
                self.close_code.get_or_insert(violation.code);
            });
            match event
                .map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, StreamError::WebSocket(violation)))?
            {
                Event::Read => {}
                Event::Ping(payload) => self.answer_ping(payload),
                Event::Close(code) => {
                    self.input = Input::Closed;
                    // With the code that it has sent [RFC 6455, 5.5.1].
                    self.queue_close(code);
                }
            }
        }
        Poll::Ready(Ok(Some(kept)))
    }
}

/// Appends a frame with a whole message.
fn append_frame(opcode: OpCode, payload: &[u8], to: &mut Vec<u8>) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    // Writing to a Vec cannot fail.
    let _ = header.format(payload.len() as u64, to);
    to.extend_from_slice(payload);
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_answer(cx);
        for _ in 0..MAX_READS {
            if this.input == Input::Closed || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let read = ready!(this.poll_frames(cx, buf.initialize_unfilled()))?;
            this.poll_answer(cx);
            match read {
                // An end without Close is a normal one: MQTT frames its packets.
                None => return Poll::Ready(Ok(())),
                Some(0) => {}
                Some(payload) => {
                    buf.advance(payload);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        if this.is_close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let payload = &bytes[..bytes.len().min(MAX_PAYLOAD)];
        FRAME.with_borrow_mut(|frame| {
            frame.clear();
            append_frame(OpCode::Data(Data::Binary), payload, frame);
            match ready!(Pin::new(&mut this.stream).poll_write(cx, frame))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                // The frame has begun, so that it has to be whole.
                written => this.outgoing.extend_from_slice(&frame[written..]),
            }
            Poll::Ready(Ok(payload.len()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.queue_close(Some(this.close_code.unwrap_or(NORMAL)));
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::frames::fuzz as fuzz_websocket;

#[cfg(test)]
mod tests;
