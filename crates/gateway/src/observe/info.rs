//! What is known of one session: written once as it is learned, read by the access log, the session index and whoever
//! lists sessions.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use portcullis_wire::Version;

use crate::peer::{Identity, Peer};

/// The transport of MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Transport {
    Tcp,
    Tls,
}

impl Transport {
    /// As the access log writes it.
    pub const fn label(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// What is known of one session.
#[derive(Debug)]
pub struct SessionInfo {
    /// The name of the listener.
    pub listener: Arc<str>,
    /// What is spoken below MQTT.
    pub transport: Transport,
    /// When the connection was accepted.
    pub opened: Instant,
    /// The address of the socket's other end.
    socket: SocketAddr,
    address: OnceLock<SocketAddr>,
    tls: OnceLock<TlsInfo>,
    connect: OnceLock<ConnectInfo>,
    authenticator: OnceLock<Arc<str>>,
    upstream: OnceLock<UpstreamInfo>,
}

/// What is known after the handshake.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// Kept only where the access log has fields for it.
    pub identity: Option<Box<IdentityInfo>>,
}

/// What a client proved in the handshake, as the access log writes it.
#[derive(Debug, Default)]
pub struct IdentityInfo {
    /// The subject of its certificate.
    pub cert_subject: Option<Box<str>>,
    /// The serial number of its certificate.
    pub cert_serial: Option<Box<str>>,
    /// The identity of its pre-shared key, or the name of its raw public key.
    pub key: Option<Box<str>>,
}

/// What is known after CONNECT.
#[derive(Debug)]
pub struct ConnectInfo {
    /// As the client sent it.
    pub client_id: Box<str>,
    /// The MQTT version the client speaks.
    pub version: Version,
}

/// What is known once a broker was chosen.
#[derive(Debug)]
pub struct UpstreamInfo {
    /// The broker, as the configuration writes it, or its address.
    pub server: Arc<str>,
    /// From accept to the broker's CONNACK.
    pub connected_after: OnceLock<Duration>,
}

impl SessionInfo {
    /// Of a connection that was just accepted from `socket`.
    pub fn new(listener: Arc<str>, transport: Transport, socket: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            listener,
            transport,
            opened: Instant::now(),
            socket,
            address: OnceLock::new(),
            tls: OnceLock::new(),
            connect: OnceLock::new(),
            authenticator: OnceLock::new(),
            upstream: OnceLock::new(),
        })
    }

    /// The client's address: that of the socket, until the preface has told another.
    pub fn address(&self) -> SocketAddr {
        self.address.get().copied().unwrap_or(self.socket)
    }

    /// TLS towards the client; `None` before the handshake's end, or in the clear.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.get()
    }

    /// What CONNECT said.
    pub fn connect(&self) -> Option<&ConnectInfo> {
        self.connect.get()
    }

    /// The client ID, as the client sent it.
    pub fn client_id(&self) -> Option<&str> {
        self.connect().map(|connect| &*connect.client_id)
    }

    /// The authenticator that knew the client.
    pub fn authenticator(&self) -> Option<&str> {
        self.authenticator.get().map(|name| &**name)
    }

    /// The broker.
    pub fn upstream(&self) -> Option<&UpstreamInfo> {
        self.upstream.get()
    }

    /// The preface has told the client's address.
    pub(crate) fn set_address(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// The handshake has ended; `with_identity` keeps what the access log writes of it.
    pub(crate) fn set_peer(&self, peer: &Peer, with_identity: bool) {
        let Some(tls) = &peer.tls else { return };
        let identity = match &peer.identity {
            Identity::None => IdentityInfo::default(),
            Identity::Certificate(certificate) => IdentityInfo {
                cert_subject: certificate.subject.dn.as_deref().filter(|_| with_identity).map(Into::into),
                cert_serial: with_identity.then(|| certificate.serial.as_str().into()),
                key: None,
            },
            Identity::RawKey(key) => IdentityInfo { key: key.name.clone(), ..IdentityInfo::default() },
            Identity::Psk(psk) => IdentityInfo { key: Some(psk.identity.clone()), ..IdentityInfo::default() },
        };
        let identity = with_identity.then(|| Box::new(identity));
        let _ = self.tls.set(TlsInfo { version: tls.version, resumed: tls.resumed, identity });
    }

    /// CONNECT was decoded.
    pub(crate) fn set_connect(&self, client_id: &str, version: Version) {
        let _ = self.connect.set(ConnectInfo { client_id: client_id.into(), version });
    }

    /// An authenticator knew the client.
    pub(crate) fn set_authenticator(&self, name: Arc<str>) {
        let _ = self.authenticator.set(name);
    }

    /// A broker was chosen.
    pub(crate) fn set_server(&self, server: Arc<str>) {
        let _ = self.upstream.set(UpstreamInfo { server, connected_after: OnceLock::new() });
    }

    /// The broker has answered CONNECT.
    pub(crate) fn set_connected(&self) {
        if let Some(upstream) = self.upstream.get() {
            let _ = upstream.connected_after.set(self.opened.elapsed());
        }
    }
}
