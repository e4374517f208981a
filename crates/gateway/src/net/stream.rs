//! Any transport as a byte stream.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::quic::{QuicPath, QuicStream};
use super::socket::Socket;
use super::tls_stream::TlsStream;
use super::websocket::WebSocket;

/// A connection to a client or a broker. An enum rather than a trait object, because the relay polls it twice per packet.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(Socket),
    FromDevice(Box<TlsStream<Socket>>),
    #[cfg(feature = "psk")]
    FromPskDevice(Box<portcullis_psk::PskStream<Socket>>),
    ToBroker(Box<tokio_rustls::client::TlsStream<Socket>>),
    /// A client's, over UDP.
    Quic(Box<QuicStream>),
    /// Over one of the others.
    WebSocket(Box<WebSocket<Stream>>),
    /// The built-in broker.
    #[cfg(feature = "embedded-broker")]
    Memory(tokio::io::DuplexStream),
}

impl Stream {
    /// As [`Socket::left`].
    pub(crate) async fn left(&self) {
        match (self.socket(), self) {
            (Some(socket), _) => socket.left().await,
            (None, Self::Quic(stream)) => stream.left().await,
            (None, _) => std::future::pending().await,
        }
    }

    /// Whether the client can have sent bytes: over QUIC, it has to open a stream first.
    pub(crate) const fn is_open(&self) -> bool {
        match self {
            Self::Quic(stream) => stream.is_open(),
            _ => true,
        }
    }

    /// Where a client is whose address may change; `None`: it cannot.
    pub(crate) fn path(&self) -> Option<QuicPath> {
        match self {
            Self::Quic(stream) => Some(stream.path()),
            _ => None,
        }
    }

    /// Waits for a turn of this client. `None`: it has [left](Self::left) meanwhile.
    pub(crate) async fn unless_left<T>(&self, turn: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            turn = turn => Some(turn),
            () = self.left() => None,
        }
    }

    /// Ends the delay of acknowledgements that [`connect`](super::connect) may begin. Call it once the broker has been sent CONNECT.
    pub(crate) fn acknowledge_at_once(&self) {
        self.socket().inspect(|socket| socket.acknowledge_at_once());
    }

    /// Lets the kernel detect that a broker has vanished. Sockets of clients inherit this from their listener; for those to
    /// brokers it is set once the session lasts: until then, deadlines detect it, and it would cost four system calls.
    pub(crate) fn detect_vanished_broker(&self) {
        self.socket().inspect(|socket| socket.detect_vanished_peer());
    }

    /// The same stream with frames of WebSocket in it.
    pub(crate) fn upgraded(self) -> Self {
        Self::WebSocket(Box::new(WebSocket::new(self)))
    }

    /// Sets the status code that a client of WebSocket gets when the connection is shut down. The first one counts.
    pub(crate) fn set_close_code(&mut self, code: u16) {
        if let Self::WebSocket(stream) = self {
            stream.set_close_code(code);
        }
    }

    /// The address of this end; `None`: it is no IP address.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Quic(stream) => stream.local_address(),
            _ => self.socket()?.local_address(),
        }
    }

    /// The socket below all layers; `None`: the stream is in memory.
    fn socket(&self) -> Option<&Socket> {
        Some(match self {
            Self::Plain(socket) => socket,
            Self::FromDevice(stream) => stream.socket(),
            #[cfg(feature = "psk")]
            Self::FromPskDevice(stream) => stream.get_ref(),
            Self::ToBroker(stream) => stream.get_ref().0,
            Self::WebSocket(stream) => return stream.get_ref().socket(),
            Self::Quic(_) => return None,
            #[cfg(feature = "embedded-broker")]
            Self::Memory(_) => return None,
        })
    }

    /// Lets the runtime of the caller wait for the socket, in place of the one in which it was opened.
    ///
    /// # Errors
    /// The system has no resources left. The connection is closed then.
    pub(crate) fn attach(self) -> io::Result<Self> {
        Ok(match self {
            Self::Plain(socket) => Self::Plain(socket.attach()?),
            Self::FromDevice(stream) => Self::FromDevice(stream.try_map(Socket::attach)?),
            #[cfg(feature = "psk")]
            Self::FromPskDevice(mut stream) => {
                stream.get_mut().attach_duplicate();
                Self::FromPskDevice(stream)
            }
            Self::ToBroker(mut stream) => {
                stream.get_mut().0.attach_duplicate();
                Self::ToBroker(stream)
            }
            Self::WebSocket(stream) => Self::WebSocket(Box::new(stream.try_map(Self::attach)?)),
            // Its socket is the endpoint's, which stays where it is.
            quic @ Self::Quic(_) => quic,
            #[cfg(feature = "embedded-broker")]
            memory @ Self::Memory(_) => memory,
        })
    }
}

/// What most streams are, or a function for the others, which is not inlined: a WebSocket is over another stream, and a function
/// that may call itself would be inlined nowhere.
macro_rules! each {
    ($this:expr, $stream:ident => $body:expr, $others:expr) => {
        match $this.get_mut() {
            Stream::Plain($stream) => $body,
            Stream::FromDevice($stream) => $body,
            $stream => $others,
        }
    };
}

macro_rules! each_other {
    ($this:expr, $stream:ident => $body:expr) => {
        match $this {
            // Not reached.
            Stream::Plain($stream) => $body,
            Stream::FromDevice($stream) => $body,
            #[cfg(feature = "psk")]
            Stream::FromPskDevice($stream) => $body,
            Stream::ToBroker($stream) => $body,
            Stream::WebSocket($stream) => $body,
            Stream::Quic($stream) => $body,
            #[cfg(feature = "embedded-broker")]
            Stream::Memory($stream) => $body,
        }
    };
}

#[inline(never)]
fn poll_read_other(stream: &mut Stream, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
    each_other!(stream, stream => Pin::new(stream).poll_read(cx, buf))
}

#[inline(never)]
fn poll_write_other(stream: &mut Stream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    each_other!(stream, stream => Pin::new(stream).poll_write(cx, bytes))
}

#[inline(never)]
fn poll_flush_other(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    each_other!(stream, stream => Pin::new(stream).poll_flush(cx))
}

#[inline(never)]
fn poll_shutdown_other(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    each_other!(stream, stream => Pin::new(stream).poll_shutdown(cx))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf), poll_read_other(stream, cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes), poll_write_other(stream, cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx), poll_flush_other(stream, cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx), poll_shutdown_other(stream, cx))
    }
}

/// The limits of bytes and time for data that a peer still sends after the end of the connection.
const DISCARD_AT_MOST: usize = 64 << 10;
const DISCARD_FOR: Duration = Duration::from_millis(500);

/// Reads and discards what a peer still sends, until it closes; bounded in bytes and time. If a socket is closed with
/// unread bytes, the kernel sends a reset, which can overtake the last bytes written: an alert or a CONNACK.
pub(crate) async fn discard_until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    let discard = async {
        let (mut buffer, mut left) = ([0; 512], DISCARD_AT_MOST);
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(read @ 1..) => left = left.saturating_sub(read),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_FOR, discard).await;
}
