//! Any transport as a byte stream.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::time::sleep;

use super::tcp::{Socket, acknowledge_at_once, detect_vanished_peer};
use super::tls_stream::TlsStream;

/// A connection to a client or a broker. An enum rather than a trait object, because the relay polls it twice per packet.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(Socket),
    FromDevice(Box<TlsStream<Socket>>),
    #[cfg(feature = "psk")]
    FromPskDevice(Box<portcullis_psk::PskStream<Socket>>),
    ToBroker(Box<tokio_rustls::client::TlsStream<Socket>>),
    /// The built-in broker.
    #[cfg(feature = "embedded-broker")]
    Memory(tokio::io::DuplexStream),
}

impl Stream {
    /// Waits until the peer has closed the connection, or its half of it. Bytes that it has sent before stay unread.
    pub(crate) async fn left(&self) {
        match self {
            Self::Tcp(socket) => left(socket).await,
            Self::FromDevice(stream) => left(stream.socket()).await,
            #[cfg(feature = "psk")]
            Self::FromPskDevice(stream) => left(stream.get_ref()).await,
            Self::ToBroker(stream) => left(stream.get_ref().0).await,
            #[cfg(feature = "embedded-broker")]
            Self::Memory(_) => std::future::pending().await,
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
        self.to_broker().inspect(|socket| acknowledge_at_once(socket));
    }

    /// Lets the kernel detect that a broker has vanished. Sockets of clients inherit this from their listener; for those to
    /// brokers it is set once the session lasts: until then, deadlines detect it, and it would cost four system calls.
    pub(crate) fn detect_vanished_broker(&self) {
        // The listening socket has the same options, so that only a connection that is lost already can be without.
        let _ = self.to_broker().map(|socket| detect_vanished_peer(&SockRef::from(socket)));
    }

    /// The socket of a connection to a broker; `None`: there is none.
    fn to_broker(&self) -> Option<&Socket> {
        if let Self::ToBroker(stream) = self {
            return Some(stream.get_ref().0);
        }
        if let Self::Tcp(socket) = self { Some(socket) } else { None }
    }

    /// Lets the runtime of the caller wait for the socket, in place of the one in which it was opened.
    ///
    /// # Errors
    /// The system has no resources left. The connection is closed then.
    pub(crate) fn attach(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(attach(socket)?),
            Self::FromDevice(stream) => Self::FromDevice(stream.try_map(attach)?),
            #[cfg(feature = "psk")]
            Self::FromPskDevice(mut stream) => {
                attach_duplicate(stream.get_mut());
                Self::FromPskDevice(stream)
            }
            Self::ToBroker(mut stream) => {
                attach_duplicate(stream.get_mut().0);
                Self::ToBroker(stream)
            }
            #[cfg(feature = "embedded-broker")]
            memory @ Self::Memory(_) => memory,
        })
    }
}

/// As [`Stream::left`].
pub(crate) async fn left(socket: &Socket) {
    while !socket.ready(Interest::READABLE).await.is_ok_and(tokio::io::Ready::is_read_closed) {
        // Bytes wait. What comes behind them shows only if one looks again.
        sleep(LOOK_AGAIN).await;
    }
}

fn attach(socket: Socket) -> io::Result<Socket> {
    Socket::from_std(socket.into_std()?)
}

/// The same for a socket that cannot be taken out of the stream around it. Without a descriptor to spare it stays where it is,
/// which only costs time.
fn attach_duplicate(socket: &mut Socket) {
    let duplicate = socket.as_fd().try_clone_to_owned();
    if let Ok(duplicate) = duplicate.and_then(|duplicate| Socket::from_std(duplicate.into())) {
        *socket = duplicate;
    }
}

macro_rules! each {
    ($this:expr, $stream:ident => $body:expr) => {
        match $this.get_mut() {
            Stream::Tcp($stream) => $body,
            Stream::FromDevice($stream) => $body,
            #[cfg(feature = "psk")]
            Stream::FromPskDevice($stream) => $body,
            Stream::ToBroker($stream) => $body,
            #[cfg(feature = "embedded-broker")]
            Stream::Memory($stream) => $body,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// How often it is looked for the end of a connection that has bytes to read.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
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
