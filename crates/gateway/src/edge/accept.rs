//! The stages of a connection before the session, as types: accepted, client address known, secured. Each type holds only
//! what is known at its stage, so that a preface (PROXY protocol) or another transport (WebSocket, QUIC) becomes a step here
//! and stays invisible to sessions.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::limits::{Handshakes, PendingPermit};
use crate::net::{Socket, Stream, bind, left};
use crate::outcome::Reject;
use crate::peer::Peer;
use crate::tls::{Failed, Secured, SecuredClient, ServerTls};

/// The kind of a listening socket. Sockets of different kinds can have the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// A TCP socket.
    Tcp,
}

/// What identifies a listening socket. At a reload, one listener may take the socket over from another, whether it uses TLS
/// or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The kind of socket.
    pub transport: Transport,
    /// An address and port; port 0 picks a free one.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Opens the socket.
    ///
    /// # Errors
    /// The address is in use, does not belong to this machine, or is not permitted.
    pub(crate) fn bind(&self) -> io::Result<Acceptor> {
        match self.transport {
            Transport::Tcp => bind(self.address).map(Acceptor),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Acceptor(TcpListener);

impl Acceptor {
    /// The bound address.
    ///
    /// # Errors
    /// The operating system does not know it.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The connection is already closed, or the limit of open files is reached.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        let (socket, address) = self.0.accept().await?;
        Ok(Accepted { socket, address })
    }
}

/// An accepted connection. Nothing has been read from it.
#[derive(Debug)]
pub(crate) struct Accepted {
    socket: Socket,
    /// The address of the socket's peer.
    pub address: SocketAddr,
}

/// A connection whose client address is known.
#[derive(Debug)]
pub(crate) struct Arrived {
    socket: Socket,
    /// The client's address.
    pub address: SocketAddr,
}

impl Accepted {
    /// Determines the client's address, which is the socket's peer.
    pub(crate) fn arrive(self) -> Arrived {
        let Self { socket, address } = self;
        Arrived { socket, address }
    }
}

impl Arrived {
    /// As [`Stream::left`].
    pub(crate) async fn left(&self) {
        left(&self.socket).await;
    }

    /// Performs the TLS handshake within its deadline, when it is its turn among `handshakes`. `pending` counts what the
    /// client sends. `tls` is `None` on listeners without TLS. A layer above TLS (WebSocket)
    /// belongs here, within the deadline, and wraps the stream.
    ///
    /// # Errors
    /// The handshake failed.
    pub(crate) async fn secure(
        self,
        tls: Option<&ServerTls>,
        handshakes: &Arc<Handshakes>,
        pending: &mut PendingPermit,
    ) -> Result<Secured, Failed> {
        let Self { socket, address } = self;
        match tls {
            Some(tls) => {
                let deadline = Instant::now() + tls.handshake_timeout();
                let mut turn = Arc::clone(handshakes).turn(address.ip(), deadline);
                let handshake = tls.accept(socket, address, &mut turn, pending);
                let timeout = |_| Err(Failed::without_connection(Reject::HandshakeTimeout));
                tokio::time::timeout_at(deadline, handshake).await.unwrap_or_else(timeout)
            }
            None => {
                let (stream, peer) = (Stream::Tcp(socket), Peer::plain(address));
                Ok(Secured { stream, client: SecuredClient { peer, evidence: None, device: None } })
            }
        }
    }
}
