//! The peer of a connection, below MQTT, as plain data: its address, the parameters that TLS negotiated, and its proved
//! identity. Nothing here verifies anything: the code that creates a [`Peer`] has verified it.

mod address;
mod certificate;
mod dn;
mod facts;
mod http;
mod proxy;

pub use address::PeerAddress;
pub use certificate::{AlternativeNames, Certificate, Name};
pub(crate) use dn::text_of;
pub use facts::{AuthAttributes, FACTS, Fact, FactType, FactValue, Facts, ROOTS, Root, root_of};
pub(crate) use http::normalise_origin;
pub use http::{HttpCredentials, HttpRequest, PageOrigin};
pub use proxy::{ProxyHeader, ProxySsl};

/// SHA-256 of a certificate or of a public key.
pub type Fingerprint = [u8; 32];

/// How a public key is presented in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFormat {
    /// As a raw public key [RFC 7250].
    Raw,
    /// In a certificate. Where the key counts by itself, nothing else in the certificate does.
    Certificate,
}

/// The peer of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: PeerAddress,
    /// The address of the socket's peer: the balancer or proxy that named the client's, if there is one.
    pub socket: PeerAddress,
    /// The TLS session; `None`: MQTT without TLS.
    pub tls: Option<TlsSession>,
    /// The identity that it proved.
    pub identity: Identity,
    /// What a load balancer says of it; `None`: it is connected without one that speaks the PROXY protocol.
    pub proxy: Option<Box<ProxyHeader>>,
    /// The request with which it has upgraded to WebSocket.
    pub http: Option<Box<HttpRequest>>,
}

/// Parameters of a TLS session.
#[derive(Clone, Debug)]
pub struct TlsSession {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by its standard name, as `TLS_AES_256_GCM_SHA384`.
    pub cipher: Box<str>,
    /// The server name that the client requested (SNI).
    pub sni: Option<Box<str>>,
    /// The negotiated application protocol (ALPN).
    pub alpn: Option<Box<str>>,
    /// Whether the handshake resumed an earlier session.
    pub resumed: bool,
}

/// The identity that a peer proved in the handshake.
#[derive(Clone, Debug, Default)]
pub enum Identity {
    /// None.
    #[default]
    None,
    /// The peer owns the private key of this certificate, whose chain was verified.
    Certificate(std::sync::Arc<Certificate>),
    /// The peer owns this key, which a file or the registry lists [RFC 7250].
    RawKey(RawKey),
    /// The peer and the gateway share this key.
    Psk(Psk),
}

/// A raw public key.
#[derive(Clone, Debug)]
pub struct RawKey {
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fingerprint: Fingerprint,
    /// Its name in the file of keys.
    pub name: Option<Box<str>>,
}

/// A pre-shared key.
#[derive(Clone, Debug)]
pub struct Psk {
    /// Its identity.
    pub identity: Box<str>,
    /// Distinguishes the key from others, within this process.
    pub tag: u64,
}

impl Peer {
    /// A client that is connected directly.
    pub const fn new(address: PeerAddress, tls: Option<TlsSession>, identity: Identity) -> Self {
        Self { address, socket: address, tls, identity, proxy: None, http: None }
    }

    /// A peer without TLS and without an identity.
    pub const fn plain(address: PeerAddress) -> Self {
        Self::new(address, None, Identity::None)
    }

    /// The certificate that it proved to own.
    pub fn certificate(&self) -> Option<&Certificate> {
        match &self.identity {
            Identity::Certificate(certificate) => Some(certificate),
            _ => None,
        }
    }

    /// The raw public key that it proved to own.
    pub const fn raw_key(&self) -> Option<&RawKey> {
        match &self.identity {
            Identity::RawKey(key) => Some(key),
            _ => None,
        }
    }

    /// The pre-shared key that it used.
    pub const fn psk(&self) -> Option<&Psk> {
        match &self.identity {
            Identity::Psk(psk) => Some(psk),
            _ => None,
        }
    }

    /// Fingerprints of the certificate and the key that it proved to own.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        match &self.identity {
            Identity::Certificate(certificate) => certificate.fingerprints().to_vec(),
            Identity::RawKey(key) => vec![key.fingerprint],
            Identity::None | Identity::Psk(_) => Vec::new(),
        }
    }
}
