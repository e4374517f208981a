//! The record of one session. Enters: facts, each set once when it becomes known. Leaves: them, for the access log and the
//! session index.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use portcullis_wire::Version;

use crate::peer::{Identity, Peer};

/// The transport of MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "self-explanatory names")]
pub enum Transport {
    Tcp,
    Tls,
}

impl Transport {
    /// The label in the access log.
    pub const fn label(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// The record of one session.
#[derive(Debug)]
pub struct SessionInfo {
    /// The name of the listener.
    pub listener: Arc<str>,
    /// The transport below MQTT.
    pub transport: Transport,
    /// When the connection was accepted.
    pub opened: Instant,
    /// The address of the socket's peer.
    socket: SocketAddr,
    address: OnceLock<SocketAddr>,
    tls: OnceLock<TlsInfo>,
    connect: OnceLock<ConnectInfo>,
    authenticator: OnceLock<Arc<str>>,
    upstream: OnceLock<UpstreamInfo>,
}

/// Set after the handshake.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// Set only if the format of the access log has fields for it.
    pub identity: Option<Box<IdentityInfo>>,
}

/// The client's identity from the handshake, as the access log writes it.
#[derive(Debug, Default)]
pub struct IdentityInfo {
    /// The subject of its certificate.
    pub cert_subject: Option<Box<str>>,
    /// The serial number of its certificate.
    pub cert_serial: Option<Box<str>>,
    /// The identity of its pre-shared key, or the name of its raw public key.
    pub key: Option<Box<str>>,
}

/// Set after CONNECT was decoded.
#[derive(Debug)]
pub struct ConnectInfo {
    /// As the client sent it.
    pub client_id: Box<str>,
    /// The MQTT version the client speaks.
    pub version: Version,
}

/// Set once a broker was chosen.
#[derive(Debug)]
pub struct UpstreamInfo {
    /// The broker's address, or its name in the configuration.
    pub server: Arc<str>,
    /// The time from accept to the broker's CONNACK.
    pub connected_after: OnceLock<Duration>,
}

impl SessionInfo {
    /// The record of a connection that was just accepted from the address `socket`.
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

    /// The client's address: the socket's peer, unless a preface named another.
    pub fn address(&self) -> SocketAddr {
        self.address.get().copied().unwrap_or(self.socket)
    }

    /// The client's TLS session; `None` before the end of the handshake and without TLS.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.get()
    }

    /// The client ID and version from CONNECT.
    pub fn connect(&self) -> Option<&ConnectInfo> {
        self.connect.get()
    }

    /// The client ID, as the client sent it.
    pub fn client_id(&self) -> Option<&str> {
        self.connect().map(|connect| &*connect.client_id)
    }

    /// The authenticator that authenticated the client.
    pub fn authenticator(&self) -> Option<&str> {
        self.authenticator.get().map(|name| &**name)
    }

    /// The broker.
    pub fn upstream(&self) -> Option<&UpstreamInfo> {
        self.upstream.get()
    }

    /// Sets the client's address from the preface.
    pub(crate) fn set_address(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// Sets the TLS session after the handshake. `with_identity`: also the identity, for access logs that write it.
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

    /// Sets the client ID and version after CONNECT was decoded.
    pub(crate) fn set_connect(&self, client_id: &str, version: Version) {
        let _ = self.connect.set(ConnectInfo { client_id: client_id.into(), version });
    }

    /// Sets the authenticator that authenticated the client.
    pub(crate) fn set_authenticator(&self, name: Arc<str>) {
        let _ = self.authenticator.set(name);
    }

    /// Sets the broker that was chosen.
    pub(crate) fn set_server(&self, server: Arc<str>) {
        let _ = self.upstream.set(UpstreamInfo { server, connected_after: OnceLock::new() });
    }

    /// Sets the time at which the broker answered CONNECT.
    pub(crate) fn set_connected(&self) {
        if let Some(upstream) = self.upstream.get() {
            let _ = upstream.connected_after.set(self.opened.elapsed());
        }
    }
}
