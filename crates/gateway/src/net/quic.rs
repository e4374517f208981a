//! QUIC [RFC 9000, 9001], by quinn. Enters: UDP sockets and TLS configurations. Leaves: connections, and of each the first
//! bidirectional stream of the client as a byte stream. Not here: MQTT, and who the client is.
//!
//! Without 0-RTT, whose data may be a copy of an earlier client's. Clients open one stream; more violate the limits that they are
//! told.

mod socket;
mod stream;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::{hkdf, hmac};
use parking_lot::Mutex;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    ConnectionError, EndpointConfig, IdleTimeout, Runtime as _, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCertUsingSni;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::task::AbortHandle;

use self::socket::{EndpointSecrets, OwnIds, SharedSocket};
pub(crate) use self::socket::{Mark, QuicPredecessor};
pub(super) use self::stream::QuicStream;
use super::inherited::{Handover, InheritedUdp};
use crate::config::tables::Quic;
use crate::util::crypto::provider;

/// What a client may send before it is read, and the gateway before it is acknowledged, in bytes.
const WINDOW: u32 = 64 << 10;
/// Connections that wait to be accepted: for each, the first packets are kept.
const MAX_INCOMING: usize = 4096;
const INCOMING_BUFFER: u64 = 8 << 10;
const INCOMING_BUFFERS: u64 = 16 << 20;
/// With so many handshakes of clients that have not proved to have their address, in progress or within a second, others have to
/// prove it first.
const MAX_UNVALIDATED: usize = 64;
const RECENT: Duration = Duration::from_secs(1);
/// The kernel's buffers for datagrams of all clients. Where the system allows less, it is less.
const SOCKET_BUFFER: usize = 4 << 20;

/// A UDP socket on which clients connect.
#[derive(Debug)]
pub(crate) struct QuicEndpoint {
    endpoint: quinn::Endpoint,
    socket: UdpSocket,
    shared: Arc<SharedSocket>,
    secrets: EndpointSecrets,
    config: ServerConfig,
    unvalidated: Arc<AtomicUsize>,
    /// Of clients whose address is not validated: since when they are counted, and how many have come.
    recent: Mutex<(Instant, usize)>,
    validates_all: AtomicBool,
    /// The task that refuses clients; `None`: they are accepted.
    refusing: Mutex<Option<AbortHandle>>,
}

/// Opens a UDP socket.
///
/// # Errors
/// The address is in use, does not belong to this machine, or is not permitted.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // As for TCP.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl QuicEndpoint {
    /// Serves on this socket. `validates_all`: each client has to prove its address before anything is counted for it.
    ///
    /// # Errors
    /// The system does not know an option, or has no resources left.
    pub(crate) fn new(socket: InheritedUdp, validates_all: bool) -> io::Result<Self> {
        let InheritedUdp { socket, predecessor } = socket;
        let options = SockRef::from(&socket);
        let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = options.set_send_buffer_size(SOCKET_BUFFER);
        let mut config = server_config();
        let secrets = EndpointSecrets::of(predecessor.as_ref())?;
        let tokens = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis quic tokens").extract(secrets.tokens());
        config.token_key(Arc::new(tokens));
        // Of this socket alone: another one, of this process or another gateway, that has the key would answer packets of live
        // connections with a valid reset, for anybody to use [RFC 9000, 21.11].
        let resets = hmac::Key::new(hmac::HMAC_SHA256, secrets.resets());
        let mut endpoint_config = EndpointConfig::new(Arc::new(resets));
        let before = predecessor.as_ref().map(|predecessor| predecessor.mark);
        endpoint_config.cid_generator(move || Box::new(OwnIds { before }));
        let runtime = Arc::new(TokioRuntime);
        let shared = Arc::new(SharedSocket::new(runtime.wrap_udp_socket(socket.try_clone()?)?, predecessor));
        let served = Arc::clone(&shared) as _;
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(endpoint_config, Some(config.clone()), served, runtime)?;
        let (unvalidated, validates_all) = (Arc::default(), AtomicBool::new(validates_all));
        let recent = Mutex::new((Instant::now(), 0));
        Ok(Self {
            endpoint,
            socket,
            shared,
            secrets,
            config,
            unvalidated,
            recent,
            validates_all,
            refusing: Mutex::default(),
        })
    }

    /// Serves, on an inherited socket: the process from which it was inherited has [left](Self::leave) it.
    pub(crate) fn serve(&self) {
        self.shared.serve();
    }

    /// Whether it passes on datagrams to another process that has not ended.
    pub(crate) fn passes_on(&self) -> bool {
        self.shared.passes_on()
    }

    /// Leaves the socket to the process to which it was [handed over](Self::hand_over). That one passes on what is for connections
    /// of this process.
    pub(crate) fn leave(&self) {
        self.shared.leave();
    }

    /// Sets whether each client has to prove its address before anything is counted for it.
    pub(crate) fn set_validates_all(&self, validates_all: bool) {
        self.validates_all.store(validates_all, Ordering::Relaxed);
    }

    /// Adds the socket to those for another process.
    ///
    /// # Errors
    /// The limit of open files is reached.
    pub(crate) fn hand_over(&self, handover: &mut Handover) -> io::Result<()> {
        handover.add_udp(self.socket.try_clone()?.into(), self.shared.offer(&self.secrets)?.into());
        Ok(())
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// The operating system does not know it.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether a client has to prove its address because of others that have not: as many are in progress, or have come within a
    /// second, which may all be one with false addresses.
    fn is_busy(&self) -> bool {
        let mut recent = self.recent.lock();
        if recent.0.elapsed() >= RECENT {
            *recent = (Instant::now(), 0);
        }
        let is_busy = self.unvalidated.load(Ordering::Relaxed) >= MAX_UNVALIDATED || recent.1 >= MAX_UNVALIDATED;
        recent.1 += usize::from(!is_busy);
        is_busy
    }

    /// Refuses whoever comes from now on. Connections go on.
    pub(crate) fn refuse_clients(&self) {
        let endpoint = self.endpoint.clone();
        let refusing = tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                incoming.refuse();
            }
        });
        self.stop_refusing(Some(refusing.abort_handle()));
    }

    /// Accepts clients again.
    pub(crate) fn accept_clients(&self) {
        self.stop_refusing(None);
    }

    fn stop_refusing(&self, next: Option<AbortHandle>) {
        if let Some(refusing) = std::mem::replace(&mut *self.refusing.lock(), next) {
            refusing.abort();
        }
    }

    /// Whether connections go on.
    pub(crate) fn has_connections(&self) -> bool {
        self.endpoint.open_connections() > 0
    }

    /// Waits until the clients of connections that are closed have been told.
    pub(crate) async fn closed(&self) {
        self.endpoint.wait_idle().await;
    }

    /// Waits for the next client. One that has to prove its address is sent a Retry, and comes again [RFC 9000, 8.1.2].
    ///
    /// # Errors
    /// The endpoint is closed.
    pub(crate) async fn accept(&self) -> io::Result<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await.ok_or(io::ErrorKind::NotConnected)?;
            let is_validated = incoming.remote_address_validated();
            if !is_validated && (self.validates_all.load(Ordering::Relaxed) || self.is_busy()) {
                // Fails for those that are validated only.
                let _ = incoming.retry();
                continue;
            }
            let unvalidated = (!is_validated).then(|| Unvalidated::count(&self.unvalidated));
            return Ok(Incoming {
                address: incoming.remote_address(),
                local: self.local_address().ok(),
                handshake: incoming,
                config: self.config.clone(),
                unvalidated,
            });
        }
    }
}

impl Drop for QuicEndpoint {
    fn drop(&mut self) {
        self.stop_refusing(None);
    }
}

/// A handshake of a client whose address is not validated.
#[derive(Debug)]
struct Unvalidated(Arc<AtomicUsize>);

impl Unvalidated {
    fn count(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(of))
    }
}

impl Drop for Unvalidated {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all connections of an endpoint have in common. Each has a TLS configuration of its own, in place of this one, which has no
/// certificate.
fn server_config() -> ServerConfig {
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs speaks TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
    let tls = QuicServerConfig::try_from(tls).expect("aws-lc-rs has AES-128-GCM");
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    config
}

fn transport(settings: &Quic) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let milliseconds = u32::try_from(settings.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .send_window(WINDOW.into())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(settings.keepalive)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(milliseconds))));
    transport
}

/// A client that begins a handshake. Dropped, it is refused.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The client's address.
    pub(crate) address: SocketAddr,
    local: Option<SocketAddr>,
    handshake: quinn::Incoming,
    config: ServerConfig,
    unvalidated: Option<Unvalidated>,
}

impl Incoming {
    /// Computes the first part of the handshake: the signature of the server, as a rule.
    ///
    /// # Errors
    /// The handshake failed already.
    pub(crate) fn begin(self, tls: rustls::ServerConfig, settings: &Quic) -> Result<Connecting, ConnectionError> {
        let Self { local, handshake, mut config, unvalidated, .. } = self;
        config.crypto = Arc::new(QuicServerConfig::try_from(tls).expect("aws-lc-rs has AES-128-GCM"));
        config.transport_config(Arc::new(transport(settings)));
        Ok(Connecting { handshake: handshake.accept_with(Arc::new(config))?, local, unvalidated })
    }
}

/// A handshake in progress.
#[derive(Debug)]
pub(crate) struct Connecting {
    handshake: quinn::Connecting,
    local: Option<SocketAddr>,
    unvalidated: Option<Unvalidated>,
}

impl Connecting {
    /// Waits until it is complete.
    ///
    /// # Errors
    /// It failed.
    pub(crate) async fn complete(self) -> Result<Connected, ConnectionError> {
        let Self { handshake, local, unvalidated: _unvalidated } = self;
        let connection = handshake.await?;
        let certificates = connection.peer_identity().and_then(|it| it.downcast().ok()).map(|it| *it);
        let data = connection.handshake_data().and_then(|it| it.downcast::<HandshakeData>().ok());
        let alpn = data.and_then(|data| data.protocol);
        Ok(Connected { certificates, alpn, stream: QuicStream::new(connection, local) })
    }
}

/// A complete handshake.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Those that the client has presented.
    pub(crate) certificates: Option<Vec<CertificateDer<'static>>>,
    /// The protocol that was negotiated.
    pub(crate) alpn: Option<Vec<u8>>,
    /// The client's stream.
    pub(crate) stream: QuicStream,
}

/// Where the client of a connection is.
#[derive(Clone, Debug)]
pub(crate) struct QuicPath(quinn::Connection);

impl QuicPath {
    /// The address that the client's packets come from now: it may migrate [RFC 9000, 9]. A new one is not validated at first, and
    /// may be anybody's.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// How many answers to questions about a path have come [RFC 9000, 8.2].
    pub(crate) fn answers(&self) -> u64 {
        self.0.stats().frame_rx.path_response
    }
}
