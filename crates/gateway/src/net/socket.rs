//! An accepted or connected socket below TLS: TCP, or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;

use super::tcp;
use crate::config::tables::Tcp;

/// How often it is looked for the end of a connection that has bytes to read.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A connected socket. TLS and sessions name only this type. An enum, as the relay polls it twice per packet.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Waits until bytes can be read, or the peer has closed its half.
    ///
    /// # Errors
    /// The runtime is shutting down.
    #[cfg(feature = "psk")]
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(socket) => socket.ready(interest).await,
            Self::Unix(socket) => socket.ready(interest).await,
        }
    }

    /// Waits until the peer has closed the connection, or its half of it. Bytes that it has sent before stay unread.
    pub(crate) async fn left(&self) {
        while !self.ready(Interest::READABLE).await.is_ok_and(Ready::is_read_closed) {
            // Bytes wait. What comes behind them shows only if one looks again.
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits for bytes, and copies them into `buffer` without taking them from the socket. Returns their number, 0 at the end.
    ///
    /// # Errors
    /// The connection failed.
    pub(crate) async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let peek = |fd: BorrowedFd<'_>, buffer: &mut [u8]| Ok(rustix::net::recv(fd, buffer, RecvFlags::PEEK)?.1);
        match self {
            Self::Tcp(socket) => socket.async_io(Interest::READABLE, || peek(socket.as_fd(), buffer)).await,
            Self::Unix(socket) => socket.async_io(Interest::READABLE, || peek(socket.as_fd(), buffer)).await,
        }
    }

    /// The address of this end; `None` for a Unix socket, or if the system does not know it.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Acknowledges at once what was received, and what comes next. Call it where the gateway has nothing to send: a peer whose Nagle
    /// algorithm holds a packet back until the one before is acknowledged would wait for the delayed acknowledgement, 40 ms. So do
    /// clients with CONNECT after the handshake, and brokers with a message after CONNACK.
    pub(crate) fn acknowledge_at_once(&self) {
        if let Self::Tcp(socket) = self {
            tcp::acknowledge_at_once(socket);
        }
    }

    /// Lets the kernel end the connection to a peer that has vanished.
    pub(super) fn detect_vanished_peer(&self) {
        if let Self::Tcp(socket) = self {
            // The listening socket has the same options, so that only a connection that is lost already can be without.
            let _ = tcp::detect_vanished_peer(&SockRef::from(socket), &Tcp::default());
        }
    }

    /// Lets the runtime of the caller wait for the socket, in place of the one in which it was opened.
    ///
    /// # Errors
    /// The system has no resources left. The connection is closed then.
    pub(super) fn attach(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(TcpStream::from_std(socket.into_std()?)?),
            Self::Unix(socket) => Self::Unix(UnixStream::from_std(socket.into_std()?)?),
        })
    }

    /// The same for a socket that cannot be taken out of the stream around it. Without a descriptor to spare it stays where it is,
    /// which only costs time.
    pub(super) fn attach_duplicate(&mut self) {
        let Ok(duplicate) = self.as_fd().try_clone_to_owned() else { return };
        let attached = match self {
            Self::Tcp(_) => TcpStream::from_std(duplicate.into()).map(Self::Tcp),
            Self::Unix(_) => UnixStream::from_std(duplicate.into()).map(Self::Unix),
        };
        if let Ok(attached) = attached {
            *self = attached;
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

macro_rules! each {
    ($this:expr, $socket:ident => $body:expr) => {
        match $this.get_mut() {
            Socket::Tcp($socket) => $body,
            Socket::Unix($socket) => $body,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
