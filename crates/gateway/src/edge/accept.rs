//! A connection before there is a session, as types: what was accepted, what has told the client's address, and what is
//! secured. Each owns only what is known by then, so that a preface (PROXY protocol) or another transport (WebSocket,
//! QUIC) is a step here and nothing that a session sees.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

use super::stream::Stream;
use super::tcp::{bind, tune};
use crate::peer::Peer;
use crate::tls::{Failed, Secured, ServerTls};

/// Where a listening socket is. Two listeners may hand it to each other over a reload, whatever they speak there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// An address and port; port 0 picks a free one.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Opens the socket.
    ///
    /// # Errors
    /// The address is in use, not of this machine, or not allowed.
    pub fn bind(&self) -> io::Result<TcpListener> {
        bind(self.address)
    }
}

/// An accepted connection. Nothing has been read from it.
#[derive(Debug)]
pub struct Accepted {
    socket: TcpStream,
    /// The address of the socket's other end.
    pub address: SocketAddr,
}

/// A connection whose client address is known.
#[derive(Debug)]
pub struct Arrived {
    socket: TcpStream,
    /// The client's address.
    pub address: SocketAddr,
}

impl Accepted {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// The connection is gone already, or descriptors ran out.
    pub async fn next(listener: &TcpListener) -> io::Result<Self> {
        let (socket, address) = listener.accept().await?;
        Ok(Self { socket, address })
    }

    /// Finds out the client's address: that of the socket's other end.
    pub fn arrive(self) -> Arrived {
        let Self { socket, address } = self;
        Arrived { socket, address }
    }
}

impl Arrived {
    /// Takes the handshake to its end, if TLS is spoken; `tls` is `None` where it is not.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn secure(self, tls: Option<&ServerTls>) -> Result<Secured, Failed> {
        let Self { socket, address } = self;
        // An error says that the connection is gone already, as the next step will notice.
        let _ = tune(&socket);
        match tls {
            Some(tls) => tls.accept(socket, address).await,
            None => {
                let (stream, peer) = (Stream::Tcp(socket), Peer::plain(address));
                Ok(Secured { stream, peer, evidence: None, device: None })
            }
        }
    }
}
