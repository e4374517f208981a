//! The stages of a connection before MQTT, as types: accepted, client address known, secured. Each type holds only what is known
//! at its stage, so that a preface (PROXY protocol) or another transport (WebSocket, QUIC) becomes a step here.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, timeout, timeout_at};

use super::Upgrade;
use super::proxy_protocol::{ProxyProtocol, check_client};
use crate::config::tables::{Bind, Quic, Tcp};
use crate::limits::{Handshakes, PendingPermit};
use crate::net::{
    BoundUnix, Handover, Incoming, Inherited, QuicEndpoint, Socket, Stream, adopt, adopt_unix, bind, bind_udp,
    bind_unix, configure,
};
use crate::outcome::{Reject, note_detail};
use crate::peer::{Peer, PeerAddress, ProxyHeader};
use crate::tls::{Failed, Secured, SecuredClient, ServerTls};

/// The kind of a listening socket. Sockets of different kinds can have the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    /// A socket whose connections are streams: TCP, or a Unix socket.
    Stream,
    /// A UDP socket, whose connections are those of QUIC.
    Datagram,
}

/// Settings of a listening socket.
#[derive(Clone, Debug, Default)]
pub(crate) struct SocketSettings {
    /// Of TCP and Unix sockets.
    pub(crate) tcp: Tcp,
    /// Of UDP sockets: whether every client has to prove its address, because it is limited or banned by it.
    pub(crate) validates_addresses: bool,
}

/// What identifies a listening socket. At a reload, one listener may take the socket over from another, whether it uses TLS
/// or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The kind of socket.
    pub transport: Transport,
    /// Where it is bound.
    pub bind: Bind,
}

impl Endpoint {
    /// Opens the socket, if it is not an inherited one.
    ///
    /// # Errors
    /// The address is in use, does not belong to this machine, or is not permitted.
    pub(crate) fn bind(&self, settings: &SocketSettings, inherited: &mut Inherited) -> io::Result<Acceptor> {
        let SocketSettings { tcp: settings, validates_addresses } = settings;
        match (self.transport, &self.bind) {
            (Transport::Datagram, Bind::Ip(address)) => {
                let socket = inherited.take_udp(*address).map_or_else(|| bind_udp(*address).map(Into::into), Ok)?;
                QuicEndpoint::new(socket, *validates_addresses).map(Box::new).map(Acceptor::Quic)
            }
            // The configuration rejects it.
            (Transport::Datagram, Bind::Unix(_)) => Err(io::ErrorKind::Unsupported.into()),
            (Transport::Stream, Bind::Ip(address)) => {
                let listener = inherited.take_tcp(*address);
                listener.map_or_else(|| bind(*address, settings), |it| adopt(it, settings)).map(Acceptor::Tcp)
            }
            (Transport::Stream, Bind::Unix(unix)) => {
                let listener = inherited.take_unix(&unix.path);
                listener.map_or_else(|| bind_unix(unix, settings), |it| adopt_unix(it, unix)).map(Acceptor::Unix)
            }
        }
    }

    /// Whether the system picks the port.
    pub(crate) fn picks_port(&self) -> bool {
        self.bind.ip().is_some_and(|address| address.port() == 0)
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Acceptor {
    Tcp(TcpListener),
    Unix(BoundUnix),
    Quic(Box<QuicEndpoint>),
}

impl Acceptor {
    /// Where the socket of `endpoint` is bound: with the port that was picked for port 0.
    ///
    /// # Errors
    /// The operating system does not know it.
    pub(crate) fn address(&self, endpoint: &Endpoint) -> io::Result<Bind> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Bind::Ip),
            Self::Unix(_) => Ok(endpoint.bind.clone()),
            Self::Quic(socket) => socket.local_address().map(Bind::Ip),
        }
    }

    /// Applies other settings to the socket: for connections that come, or who may connect to a Unix socket.
    ///
    /// # Errors
    /// The gateway may not change the owner. Of kind `NotFound`: the file of a Unix socket is gone, or another has its place.
    pub(crate) fn configure(&self, bind: &Bind, settings: &SocketSettings) -> io::Result<()> {
        match (self, bind) {
            (Self::Tcp(listener), _) => configure(listener, &settings.tcp),
            (Self::Quic(endpoint), _) => {
                endpoint.set_validates_all(settings.validates_addresses);
                Ok(())
            }
            (Self::Unix(bound), Bind::Unix(unix)) => bound.configure(unix.access, &settings.tcp),
            (Self::Unix(_), Bind::Ip(_)) => Ok(()),
        }
    }

    /// Takes an inherited socket over: the file of a Unix socket is removed with it, and a UDP socket is read. The process from which
    /// it was inherited has [left](Self::leave) it.
    pub(crate) fn take_over(&self) {
        match self {
            Self::Tcp(_) => {}
            Self::Unix(bound) => {
                if let Err(error) = bound.file().take_over() {
                    tracing::error!(%error, "cannot set who may connect to an inherited Unix socket");
                }
            }
            Self::Quic(endpoint) => endpoint.serve(),
        }
    }

    /// Leaves the socket to the process to which it was [handed over](Self::hand_over).
    pub(crate) fn leave(&self) {
        match self {
            Self::Tcp(_) => {}
            Self::Unix(bound) => bound.file().leave(),
            Self::Quic(endpoint) => endpoint.leave(),
        }
    }

    /// Adds the socket to those for another process.
    ///
    /// # Errors
    /// The limit of open files is reached.
    pub(crate) fn hand_over(&self, handover: &mut Handover) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => handover.add(listener.as_fd().try_clone_to_owned()?, true),
            Self::Unix(bound) => handover.add(bound.listener().as_fd().try_clone_to_owned()?, bound.file().is_own()),
            Self::Quic(endpoint) => endpoint.hand_over(handover)?,
        }
        Ok(())
    }

    /// Whether it passes on datagrams to another process that has not ended.
    pub(crate) fn passes_on(&self) -> bool {
        matches!(self, Self::Quic(endpoint) if endpoint.passes_on())
    }

    /// Refuses whoever connects from now on. The connections of a UDP socket go on by it.
    pub(crate) fn refuse_clients(&self) {
        if let Self::Quic(endpoint) = self {
            endpoint.refuse_clients();
        }
    }

    /// Accepts clients again.
    pub(crate) fn accept_clients(&self) {
        if let Self::Quic(endpoint) = self {
            endpoint.accept_clients();
        }
    }

    /// Whether the connections of the socket go on by it, though it accepts no more.
    pub(crate) fn has_connections(&self) -> bool {
        matches!(self, Self::Quic(endpoint) if endpoint.has_connections())
    }

    /// Waits until all that has to be sent by this socket is sent.
    pub(crate) async fn closed(&self) {
        if let Self::Quic(endpoint) = self {
            endpoint.closed().await;
        }
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The connection is already closed, or the limit of open files is reached. `NotConnected`: the socket is closed, and nobody
    /// will connect.
    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                Ok(Accepted { connection: Connection::Socket(Socket::Tcp(socket)), peer: address.into() })
            }
            Self::Unix(bound) => {
                let socket = Socket::Unix(bound.accept().await?);
                Ok(Accepted { connection: Connection::Socket(socket), peer: PeerAddress::Unix })
            }
            Self::Quic(endpoint) => {
                let incoming = endpoint.accept().await?;
                let peer = incoming.address.into();
                Ok(Accepted { connection: Connection::Quic(Box::new(incoming)), peer })
            }
        }
    }
}

/// A connection below TLS.
#[derive(Debug)]
enum Connection {
    Socket(Socket),
    /// The client has begun the handshake of QUIC, which is not answered yet.
    Quic(Box<Incoming>),
}

/// An accepted connection. Nothing has been read from it.
#[derive(Debug)]
pub(crate) struct Accepted {
    connection: Connection,
    /// The address of the socket's peer.
    pub peer: PeerAddress,
}

/// A connection whose client address is known.
#[derive(Debug)]
pub(crate) struct Arrived {
    connection: Connection,
    /// The client's address.
    pub address: PeerAddress,
    /// The socket's peer.
    peer: PeerAddress,
    /// What a load balancer says of the client.
    proxy: Option<Box<ProxyHeader>>,
    /// Whether the client could send a header in a balancer's place.
    is_watched: bool,
}

impl Accepted {
    /// The connected socket, for what is not MQTT; `None`: there is none for this connection alone.
    pub(crate) fn into_socket(self) -> Option<Socket> {
        match self.connection {
            Connection::Socket(socket) => Some(socket),
            Connection::Quic(_) => None,
        }
    }

    /// Determines the client's address: what the load balancer's header says, where the listener speaks the PROXY protocol, or
    /// else the socket's peer.
    ///
    /// # Errors
    /// The peer may not connect, or sent no valid header until `deadline`.
    pub(crate) async fn arrive(self, proxy: Option<&ProxyProtocol>, deadline: Instant) -> Result<Arrived, Reject> {
        let Self { mut connection, peer } = self;
        let header = match (proxy, &mut connection) {
            (Some(proxy), Connection::Socket(socket)) => proxy.read_header(socket, peer, deadline).await?,
            _ => None,
        };
        Ok(match header {
            Some((address, header)) => {
                Arrived { connection, address, peer, proxy: Some(Box::new(header)), is_watched: false }
            }
            None => Arrived { connection, address: peer, peer, proxy: None, is_watched: proxy.is_some() },
        })
    }
}

impl Arrived {
    /// What a load balancer says of the client.
    pub(crate) fn proxy(&self) -> Option<&ProxyHeader> {
        self.proxy.as_deref()
    }

    /// As [`Stream::left`].
    pub(crate) async fn left(&self) {
        match &self.connection {
            Connection::Socket(socket) => socket.left().await,
            // It cannot tell before it is answered.
            Connection::Quic(_) => std::future::pending().await,
        }
    }

    /// Performs the TLS handshake within its deadline, when it is its turn, and then the upgrade to WebSocket within another.
    /// `pending` counts what the client sends.
    ///
    /// # Errors
    /// The handshake or the upgrade failed.
    pub(crate) async fn secure(self, with: Secure<'_>, pending: &mut PendingPermit) -> Result<Secured, Failed> {
        let Self { connection, address, peer, proxy, is_watched } = self;
        let mut secured = match (with.tls, connection) {
            (Some(tls), Connection::Quic(incoming)) => {
                let deadline = Instant::now() + tls.handshake_timeout();
                let mut turn = Arc::clone(with.handshakes).turn(address.share(), deadline);
                let settings = with.quic.unwrap_or_default();
                let handshake = tls.accept_quic(*incoming, &settings, address, &mut turn, pending);
                let late = |_| Err(Failed::without_connection(Reject::HandshakeTimeout));
                timeout_at(deadline, handshake).await.unwrap_or_else(late)?
            }
            // The configuration rejects QUIC without TLS.
            (None, Connection::Quic(_)) => return Err(Failed::without_connection(Reject::HandshakeFailed)),
            (Some(tls), Connection::Socket(socket)) => {
                let deadline = Instant::now() + tls.handshake_timeout();
                let mut turn = Arc::clone(with.handshakes).turn(address.share(), deadline);
                let handshake = async {
                    if is_watched {
                        check_client(&socket).await.map_err(Failed::without_connection)?;
                    }
                    tls.accept(socket, address, &mut turn, pending).await
                };
                let late = |_| Err(Failed::without_connection(Reject::HandshakeTimeout));
                timeout_at(deadline, handshake).await.unwrap_or_else(late)?
            }
            (None, Connection::Socket(socket)) => {
                if is_watched {
                    let checked = timeout(with.connect_timeout, check_client(&socket)).await;
                    checked.unwrap_or(Err(Reject::ConnectTimeout)).map_err(Failed::without_connection)?;
                }
                let (stream, peer) = (Stream::Plain(socket), Peer::plain(address));
                Secured { stream, client: SecuredClient { peer, evidence: None, device: None, credentials: None } }
            }
        };
        (secured.client.peer.socket, secured.client.peer.proxy) = (peer, proxy);
        match with.upgrade {
            None => Ok(secured),
            Some(upgrade) => with.upgrade(secured, upgrade).await,
        }
    }
}

/// How connections of a listener are secured.
pub(crate) struct Secure<'a> {
    /// `None`: without TLS.
    pub tls: Option<&'a ServerTls>,
    /// `None`: without WebSocket.
    pub upgrade: Option<&'a Upgrade>,
    /// How connections of QUIC are kept.
    pub quic: Option<Quic>,
    /// For the request of WebSocket.
    pub connect_timeout: Duration,
    /// Those of all listeners.
    pub handshakes: &'a Arc<Handshakes>,
    /// Decides about the address that an HTTP proxy has named.
    pub admit: &'a (dyn Fn(PeerAddress) -> Result<(), Reject> + Sync),
}

impl Secure<'_> {
    async fn upgrade(&self, secured: Secured, upgrade: &Upgrade) -> Result<Secured, Failed> {
        let Secured { mut stream, mut client } = secured;
        let upgrading = upgrade.accept(&mut stream, client.peer.address, self.admit);
        let upgraded = timeout(self.connect_timeout, upgrading).await.unwrap_or_else(|_| {
            note_detail("no whole request arrived within `connect_timeout`");
            Err(Reject::WebSocketUpgradeFailed)
        });
        match upgraded {
            Ok(upgraded) => {
                client.peer.address = upgraded.address;
                client.peer.http = Some(Box::new(upgraded.request));
                client.credentials = Some(Box::new(upgraded.credentials));
                Ok(Secured { stream: stream.upgraded(), client })
            }
            Err(reject) => Err(Failed::after_handshake(reject, stream)),
        }
    }
}
