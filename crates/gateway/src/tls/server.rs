//! TLS towards devices.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::DnsName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WantsServerCert};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::files::{read_anchors, read_pair, warn_if_exposed};
use super::verifier::{DeviceVerifier, reject};
use super::{Certificate, provider};
use crate::config::model::{Certificates, ClientAuth, ListenerTls, TlsVersion};
use crate::config::{At, Document};
use crate::net::discard_until_closed;
use crate::outcome::Reject;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const VERIFY_DEPTH: u8 = 2;
/// What webpki follows at most.
const MAX_VERIFY_DEPTH: u8 = 6;

/// The TLS side of a listener, compiled.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    handshake_timeout: Duration,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// The encrypted stream.
    pub stream: Box<TlsStream<TcpStream>>,
    /// The certificate that the device proved to own.
    pub certificate: Option<Certificate>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

impl ServerTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(tls: &At<ListenerTls>, document: &mut Document) -> Option<Self> {
        let pairs = read_pairs(tls, document);
        let verifier = compile_verifier(tls, document);
        let versions = compile_versions(tls, document);
        let (pairs, verifier) = (pairs?, verifier?);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions.as_deref()?)
            .map_err(|error| document.problems.error(&tls.span, error.to_string()).severity)
            .ok()?;
        let asks_for_certificates = verifier.is_some();
        let builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert> = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(BySni::new(&pairs)));
        config.alpn_protocols = match &tls.alpn {
            Some(protocols) => protocols.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
            None => vec![b"mqtt".to_vec()],
        };
        if asks_for_certificates {
            // A resumed session would skip the certificate, and with it all that has happened to it since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let handshake_timeout = tls.handshake_timeout.map_or(HANDSHAKE_TIMEOUT, |period| period.0);
        Some(Self { config: Arc::new(config), handshake_timeout })
    }

    /// Takes the handshake with a device to its end, within its deadline.
    ///
    /// # Errors
    /// Why it failed. The device was sent the fitting alert.
    pub async fn accept(&self, socket: TcpStream) -> Result<Accepted, Reject> {
        let accept = TlsAcceptor::from(Arc::clone(&self.config)).accept(socket).into_fallible();
        let stream = match tokio::time::timeout(self.handshake_timeout, accept).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, mut socket))) => {
                // Closed with bytes unread, the kernel would send a reset that can overtake the alert.
                let reason = reason(&error);
                let _ = socket.shutdown().await;
                discard_until_closed(&mut socket).await;
                return Err(reason);
            }
            Err(_) => return Err(Reject::HandshakeTimeout),
        };
        let session = stream.get_ref().1;
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        // webpki has read it already; that x509-parser cannot is no reason to go on without an identity.
        let certificate = match leaf {
            Some(leaf) => Some(Certificate::from_der(leaf).ok_or(Reject::CertificateInvalid)?),
            None => None,
        };
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Accepted { stream: Box::new(stream), certificate, version, resumed })
    }
}

impl Accepted {
    /// What expressions may know of the TLS session.
    pub fn facts(&self) -> crate::expr::TlsFacts {
        let session = self.stream.get_ref().1;
        let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
        // rustls says TLS13_ where the standard (RFC 8446, B.4), and so NGINX and OpenSSL, say TLS_.
        let cipher = suite.strip_prefix("TLS13_").map_or_else(|| suite.into(), |rest| format!("TLS_{rest}").into());
        crate::expr::TlsFacts {
            version: self.version,
            cipher,
            sni: session.server_name().map(Into::into),
            alpn: session.alpn_protocol().and_then(|name| std::str::from_utf8(name).ok()).map(Into::into),
            resumed: self.resumed,
        }
    }
}

fn reason(error: &io::Error) -> Reject {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => {
            tracing::debug!(%error, "TLS handshake failed");
            reject(error)
        }
        None => Reject::HandshakeClosed,
    }
}

fn read_pairs(tls: &At<ListenerTls>, document: &mut Document) -> Option<Vec<Arc<CertifiedKey>>> {
    let Some(certificate) = &tls.certificate else {
        document.missing(&tls.span, "certificate", "a PEM file, the server's own first");
        return None;
    };
    let pairs = match (&certificate.value, &tls.private_key) {
        (Certificates::One(chain), Some(key)) => vec![(chain, key.value.clone())],
        (Certificates::One(_), None) => {
            document.missing(&tls.span, "private_key", "a PEM file, the key of the certificate");
            return None;
        }
        (Certificates::Many(_), Some(key)) => {
            let problem = document.problems.error(&key.span, "each certificate in the list has its own key");
            problem.hint("write `private_key` into the list's tables");
            return None;
        }
        (Certificates::Many(pairs), None) => {
            pairs.iter().map(|pair| (&pair.certificate, pair.private_key.clone())).collect()
        }
    };
    if pairs.is_empty() {
        document.problems.error(&certificate.span, "the list of certificates is empty");
        return None;
    }
    let mut read = Vec::new();
    let count = pairs.len();
    for (chain, key) in pairs {
        let (chain, key) = (document.resolve(chain), document.resolve(&key));
        warn_if_exposed(&key, &certificate.span, document);
        match read_pair(&chain, &key) {
            Ok(pair) => read.push(pair),
            Err(complaint) => document.problems.complain(&certificate.span, complaint),
        }
    }
    (read.len() == count).then_some(read)
}

/// `Some(None)`: devices are not asked for certificates.
#[expect(clippy::option_option, reason = "the outer one is for a mistake in the configuration")]
fn compile_verifier(tls: &At<ListenerTls>, document: &mut Document) -> Option<Option<Arc<DeviceVerifier>>> {
    let auth = match (&tls.client_auth, &tls.client_ca) {
        (Some(auth), _) => auth.value,
        (None, Some(_)) => ClientAuth::Required,
        (None, None) => ClientAuth::None,
    };
    let mut depth = VERIFY_DEPTH;
    if let Some(wanted) = &tls.verify_depth {
        depth = wanted.value;
        if depth > MAX_VERIFY_DEPTH {
            let message = format!("`verify_depth` is {MAX_VERIFY_DEPTH} at most");
            document.problems.error(&wanted.span, message);
        }
    }
    match (auth, &tls.client_ca) {
        (ClientAuth::None, None) => Some(None),
        (ClientAuth::None, Some(ca)) => {
            let problem = document.problems.error(&ca.span, "`client_ca` is set, but `client_auth = \"none\"`");
            problem.hint("take one of them out");
            None
        }
        (ClientAuth::Required | ClientAuth::Optional, None) => {
            let span = tls.client_auth.as_ref().map_or(&tls.span, |auth| &auth.span);
            document.problems.error(span, "`client_auth` needs `client_ca`");
            None
        }
        (ClientAuth::Required | ClientAuth::Optional, Some(ca)) => match read_anchors(&document.resolve(ca)) {
            Ok(anchors) => {
                let mandatory = auth == ClientAuth::Required;
                Some(Some(Arc::new(DeviceVerifier::new(anchors, depth, mandatory, provider()))))
            }
            Err(complaint) => {
                document.problems.complain(&ca.span, complaint);
                None
            }
        },
    }
}

fn compile_versions(tls: &At<ListenerTls>, document: &mut Document) -> Option<Vec<&'static SupportedProtocolVersion>> {
    let Some(versions) = &tls.versions else { return Some(rustls::ALL_VERSIONS.to_vec()) };
    if versions.is_empty() {
        document.problems.error(&versions.span, "`versions` is empty").hint("[\"1.2\", \"1.3\"]");
        return None;
    }
    let version = |version: &TlsVersion| match version {
        TlsVersion::V12 => &rustls::version::TLS12,
        TlsVersion::V13 => &rustls::version::TLS13,
    };
    Some(versions.iter().map(version).collect())
}

/// Chooses the certificate by the name the client asks for; the first is for all names that none has.
#[derive(Debug)]
struct BySni {
    first: Arc<CertifiedKey>,
    /// Lower-case names; `*.example.com` stands under `.example.com`.
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl BySni {
    fn new(pairs: &[Arc<CertifiedKey>]) -> Self {
        let mut names = HashMap::new();
        for pair in pairs {
            for name in dns_names(pair) {
                let name = name.to_ascii_lowercase();
                let name = name.strip_prefix('*').map(str::to_owned).unwrap_or(name);
                names.entry(name).or_insert_with(|| Arc::clone(pair));
            }
        }
        Self { first: Arc::clone(&pairs[0]), names }
    }

    fn find(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        // rustls lets no name through that is not a valid one.
        let name = DnsName::try_from(name).ok()?.to_lowercase_owned();
        let name = name.as_ref();
        let wildcard = || name.find('.').and_then(|dot| self.names.get(&name[dot..]));
        self.names.get(name).or_else(wildcard).cloned()
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(hello.server_name().and_then(|name| self.find(name)).unwrap_or_else(|| Arc::clone(&self.first)))
    }
}

fn dns_names(pair: &CertifiedKey) -> Vec<String> {
    pair.cert
        .first()
        .and_then(|der| Certificate::from_der(der))
        .map(|certificate| certificate.san.dns)
        .unwrap_or_default()
}
