//! The first bidirectional stream of a client's connection, as a byte stream.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use quinn::{ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::QuicPath;
use crate::net::stream_error::StreamError;

type Accepting = Pin<Box<dyn Future<Output = Result<(SendStream, RecvStream), ConnectionError>> + Send + Sync>>;

/// The first stream that the client opens. The connection is closed with it.
pub(crate) struct QuicStream {
    connection: quinn::Connection,
    local: Option<SocketAddr>,
    state: StreamState,
}

enum StreamState {
    /// The client has not opened it.
    Accepting(Accepting),
    Open(SendStream, RecvStream),
    /// All was sent, and waits to be acknowledged: closing the connection would discard it.
    Finishing(Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>, RecvStream),
    Finished(RecvStream),
    /// The connection has ended without it.
    Missing,
}

impl std::fmt::Debug for QuicStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("QuicStream").field(&self.connection).finish()
    }
}

impl QuicStream {
    pub(super) fn new(connection: quinn::Connection, local: Option<SocketAddr>) -> Self {
        let accepting = connection.clone();
        let accepting = Box::pin(async move { accepting.accept_bi().await });
        Self { connection, local, state: StreamState::Accepting(accepting) }
    }

    /// Where the client is.
    pub(crate) fn path(&self) -> QuicPath {
        QuicPath(self.connection.clone())
    }

    /// Waits until the connection is closed.
    pub(crate) async fn left(&self) {
        self.connection.closed().await;
    }

    /// The address of this end.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        let mut local = self.local?;
        if let Some(ip) = self.connection.local_ip() {
            local.set_ip(ip);
        }
        Some(local)
    }

    /// Whether the client has opened its stream.
    pub(crate) const fn is_open(&self) -> bool {
        !matches!(self.state, StreamState::Accepting(_))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let StreamState::Accepting(accepting) = &mut self.state {
            let accepted = ready!(accepting.as_mut().poll(cx));
            self.state = match accepted {
                Ok((send, receive)) => StreamState::Open(send, receive),
                Err(error) => {
                    self.state = StreamState::Missing;
                    return Poll::Ready(Err(lost(&error)));
                }
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match ready!(this.poll_open(cx)) {
            // It has closed the connection in order, without a stream.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
            opened => opened?,
        }
        let receive = match &mut this.state {
            StreamState::Open(_, receive) | StreamState::Finishing(_, receive) | StreamState::Finished(receive) => {
                receive
            }
            StreamState::Accepting(_) | StreamState::Missing => return Poll::Ready(Ok(())),
        };
        let read = match ready!(receive.poll_read_buf(cx, buf)) {
            Err(ReadError::ConnectionLost(error)) => Err(lost(&error)),
            Err(error) => Err(io::Error::new(io::ErrorKind::ConnectionReset, error)),
            Ok(()) => Ok(()),
        };
        Poll::Ready(read)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_open(cx))?;
        let StreamState::Open(send, _) = &mut this.state else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let written = match ready!(Pin::new(send).poll_write(cx, bytes)) {
            // As with TCP, what is sent to a client that has closed is lost without a word: its end shows when it is read.
            Err(WriteError::ConnectionLost(error)) => match lost(&error) {
                error if error.kind() == io::ErrorKind::UnexpectedEof => Ok(bytes.len()),
                error => Err(error),
            },
            Err(error) => Err(io::Error::new(io::ErrorKind::BrokenPipe, error)),
            Ok(written) => Ok(written),
        };
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ready once the client has acknowledged all bytes.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            this.state = match std::mem::replace(&mut this.state, StreamState::Missing) {
                // The stream is the client's to open: there is nothing to end.
                state @ (StreamState::Accepting(_) | StreamState::Missing) => {
                    this.state = state;
                    return Poll::Ready(Ok(()));
                }
                StreamState::Open(mut send, receive) => {
                    // Fails if the client has stopped it, which the next step tells.
                    let _ = send.finish();
                    StreamState::Finishing(Box::pin(send.stopped()), receive)
                }
                StreamState::Finishing(mut stopped, receive) => match stopped.as_mut().poll(cx) {
                    Poll::Ready(_) => StreamState::Finished(receive),
                    Poll::Pending => {
                        this.state = StreamState::Finishing(stopped, receive);
                        return Poll::Pending;
                    }
                },
                StreamState::Finished(receive) => {
                    this.state = StreamState::Finished(receive);
                    return Poll::Ready(Ok(()));
                }
            };
        }
    }
}

/// What the end of a connection means for its stream.
fn lost(error: &ConnectionError) -> io::Error {
    match error {
        // As with TLS, whoever closes the connection has said all: MQTT frames its packets.
        ConnectionError::ApplicationClosed(_) | ConnectionError::LocallyClosed => io::ErrorKind::UnexpectedEof.into(),
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == 0 => {
            io::ErrorKind::UnexpectedEof.into()
        }
        ConnectionError::TimedOut => io::Error::new(io::ErrorKind::TimedOut, StreamError::QuicIdle),
        ConnectionError::TransportError(error) => {
            io::Error::new(io::ErrorKind::InvalidData, StreamError::Quic(error.to_string().into()))
        }
        _ => io::Error::new(io::ErrorKind::ConnectionReset, error.to_string()),
    }
}
