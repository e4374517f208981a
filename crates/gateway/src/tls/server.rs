//! TLS towards devices.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{NoServerSessionStorage, WantsServerCert};
use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Certificate;
use super::keys::ServerKeys;
use super::resumption::{HANDSHAKE, Handshake, Memory, Resumption, TicketKeys};
use super::verifier::{DeviceVerifier, reject};
use crate::config::model::{ClientAuth, ListenerTls, Ocsp, Resumption as Ways, TlsVersion};
use crate::config::{At, Document};
use crate::crypto::provider;
use crate::outcome::Reject;
use crate::trust::{Credential, Knowledge, Trust};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const SESSION_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The most a ticket may live [RFC 8446, 4.6.1].
const MAX_SESSION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Of a secret that keys are derived from, in bytes.
const MIN_TICKET_SECRET: usize = 32;

/// The TLS side of a listener, compiled.
#[derive(Debug)]
pub struct ServerTls {
    /// Built from the rest; another one when trust anchors change, whose names stand in it.
    config: ArcSwap<ServerConfig>,
    versions: Vec<&'static SupportedProtocolVersion>,
    keys: Arc<ServerKeys>,
    /// `None`: devices are not asked for certificates.
    trust: Option<Arc<Trust>>,
    needs_certificate: bool,
    alpn: Vec<Vec<u8>>,
    resumption: Option<Arc<Resumption>>,
    handshake_timeout: Duration,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// The encrypted stream.
    pub stream: Box<TlsStream<TcpStream>>,
    /// The certificate that the device proved to own.
    pub certificate: Option<Certificate>,
    /// What of it is to be judged again for as long as the device is connected.
    pub credential: Option<Credential>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// What a listener's TLS takes over from the one before a reload, and shares with others.
#[derive(Clone, Debug)]
pub(crate) struct Context<'a> {
    /// The listener's name.
    pub(crate) listener: &'a str,
    pub(crate) knowledge: &'a Arc<Knowledge>,
    pub(crate) memory: Arc<Memory>,
}

impl ServerTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(tls: &At<ListenerTls>, context: Context<'_>, document: &mut Document) -> Option<Self> {
        let keys = ServerKeys::compile(tls, &context.memory, document);
        let trust = compile_trust(tls, context.knowledge, document);
        let versions = compile_versions(tls, document);
        let resumption = compile_resumption(tls, context, document);
        let (keys, versions, (trust, needs_certificate)) = (Arc::new(keys?), versions?, trust?);
        let resumption = resumption?
            .map(|resumption| Arc::new(Resumption { trust: trust.clone(), needs_certificate, ..resumption }));
        let alpn = match &tls.alpn {
            Some(protocols) => protocols.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
            None => vec![b"mqtt".to_vec()],
        };
        let config = build(&versions, &keys, trust.as_ref(), needs_certificate, &alpn, resumption.as_ref());
        let handshake_timeout = tls.handshake_timeout.map_or(HANDSHAKE_TIMEOUT, |period| period.0);
        Some(Self {
            config: ArcSwap::new(config),
            versions,
            keys,
            trust,
            needs_certificate,
            alpn,
            resumption,
            handshake_timeout,
        })
    }

    /// Notes that it is served by: what comes later has to be better than nothing.
    pub(crate) fn is_served_by(&self) {
        self.keys.is_served_by();
    }

    /// What devices' certificates are judged by; `None`: they are not asked for.
    pub fn trust(&self) -> Option<&Arc<Trust>> {
        self.trust.as_ref()
    }

    /// Role, subject and end of each of the server's certificates and of the trust anchors, in seconds since 1970.
    pub(crate) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        let mut all: Vec<_> = self.keys.expiries().into_iter().map(|(name, end)| ("server", name, end)).collect();
        let anchors = self.trust.as_ref().map(|trust| trust.anchors());
        let anchors = anchors.iter().flat_map(|anchors| anchors.expiries());
        all.extend(anchors.map(|(name, end)| ("client_ca", name.clone(), *end)));
        all
    }

    /// Whether OCSP answers about the server's certificates are to be fetched; those out of date are taken away.
    pub(crate) fn check_staples(&self) -> bool {
        self.keys.check_staples()
    }

    /// Fetches OCSP answers about the server's certificates, for handshakes to bring along.
    pub(crate) async fn fetch_staples(&self, knowledge: &Knowledge) {
        self.keys.fetch_staples(knowledge).await;
    }

    /// Reads certificates, keys and trust anchors again whose files have changed; says in the log what came of it. Of
    /// what cannot be used, the last good one stays. Returns whether trust anchors are others now.
    pub(crate) fn read_changed_files(&self, listener: &str) -> bool {
        self.keys.read_if_changed(listener);
        let Some(trust) = &self.trust else { return false };
        match trust.read_if_changed() {
            Ok(true) => {
                tracing::info!(listener, "client_ca loaded");
                self.config.store(build(
                    &self.versions,
                    &self.keys,
                    self.trust.as_ref(),
                    self.needs_certificate,
                    &self.alpn,
                    self.resumption.as_ref(),
                ));
                true
            }
            Ok(false) => false,
            Err(problem) => {
                tracing::error!(listener, "client_ca: the last good one stays: {problem}");
                false
            }
        }
    }

    /// Takes the handshake with a device to its end, within its deadline.
    ///
    /// # Errors
    /// Why it failed. The device is sent the fitting alert; what is left of the socket is for the caller to close, in such
    /// a way that the alert arrives.
    pub async fn accept(&self, socket: TcpStream) -> Result<Accepted, (Reject, Option<TcpStream>)> {
        let accept = TlsAcceptor::from(self.config.load_full()).accept(socket).into_fallible();
        let accept = HANDSHAKE.scope(Handshake::default(), async {
            let accepted = accept.await;
            (accepted, HANDSHAKE.with(Handshake::take))
        });
        let (stream, handshake) = match tokio::time::timeout(self.handshake_timeout, accept).await {
            Ok((Ok(stream), handshake)) => (stream, handshake),
            Ok((Err((error, socket)), _)) => return Err((reason(&error), Some(socket))),
            Err(_) => return Err((Reject::HandshakeTimeout, None)),
        };
        let session = stream.get_ref().1;
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let proof = if resumed { handshake.resumed.take() } else { handshake.verified.take() };
        let credential = proof.and_then(|proof| proof.credential);
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let is_same = match (leaf, &credential) {
            (Some(leaf), Some(credential)) => credential.is_of(leaf),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            // Whatever the way to this was: nobody would judge the certificate again.
            return Err((Reject::CertificateInvalid, None));
        }
        // webpki has read it already; that x509-parser cannot is no reason to go on without an identity.
        let certificate = match leaf {
            Some(leaf) => Some(Certificate::from_der(leaf).ok_or((Reject::CertificateInvalid, None))?),
            None => None,
        };
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        Ok(Accepted { stream: Box::new(stream), certificate, credential, version, resumed })
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

fn build(
    versions: &[&'static SupportedProtocolVersion],
    keys: &Arc<ServerKeys>,
    trust: Option<&Arc<Trust>>,
    needs_certificate: bool,
    alpn: &[Vec<u8>],
    resumption: Option<&Arc<Resumption>>,
) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("aws-lc-rs speaks TLS 1.2 and 1.3");
    let builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert> = match trust {
        Some(trust) => {
            builder.with_client_cert_verifier(Arc::new(DeviceVerifier::new(Arc::clone(trust), needs_certificate)))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::clone(keys) as _);
    config.alpn_protocols = alpn.to_vec();
    // All suites offered are good; that the server chooses is what auditors' tools ask for.
    config.ignore_client_order = true;
    // One is enough for a device, which has one connection; each carries the device's chain.
    config.send_tls13_tickets = 1;
    match resumption {
        Some(resumption) => {
            config.ticketer = Arc::clone(resumption) as _;
            config.session_storage = Arc::clone(resumption) as _;
        }
        None => {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
    }
    Arc::new(config)
}

/// What devices' certificates are judged by, if they are asked for, and whether they must have one. The outer `None`:
/// something is wrong.
fn compile_trust(
    tls: &At<ListenerTls>,
    knowledge: &Arc<Knowledge>,
    document: &mut Document,
) -> Option<(Option<Arc<Trust>>, bool)> {
    let auth = match (&tls.client_auth, &tls.client_ca) {
        (Some(auth), _) => auth.value,
        (None, Some(_)) => ClientAuth::Required,
        (None, None) => ClientAuth::None,
    };
    if tls.client_ca.is_none() && (!tls.crl.is_empty() || tls.crl_distribution_points || tls.ocsp != Ocsp::Off) {
        let span = tls.crl.first().map_or(&tls.span, |crl| &crl.span);
        let message =
            "`crl`, `crl_distribution_points` and `ocsp` are about certificates of `client_ca`, which is not set";
        document.problems.error(span, message);
    }
    match (auth, &tls.client_ca) {
        (ClientAuth::None, None) => Some((None, false)),
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
        (ClientAuth::Required | ClientAuth::Optional, Some(ca)) => {
            let trust = Trust::compile(tls, ca, knowledge, document)?;
            Some((Some(Arc::new(trust)), auth == ClientAuth::Required))
        }
    }
}

/// `Some(None)`: nothing is resumed.
#[expect(clippy::option_option, reason = "the outer one is for a mistake in the configuration")]
fn compile_resumption(
    tls: &At<ListenerTls>,
    context: Context<'_>,
    document: &mut Document,
) -> Option<Option<Resumption>> {
    let lifetime = tls.session_lifetime.as_ref().map_or(SESSION_LIFETIME, |at| at.value.0);
    if let Some(at) = tls.session_lifetime.as_ref().filter(|_| lifetime > MAX_SESSION_LIFETIME) {
        document.problems.error(&at.span, "`session_lifetime` is 7d at most");
        return None;
    }
    let ways = tls.resumption.as_ref().map_or(Ways::Both, |at| at.value);
    let gives_tickets = matches!(ways, Ways::Tickets | Ways::Both);
    let mut shared = None;
    if let Some(secret) = &tls.ticket_secret {
        if secret.expose().len() < MIN_TICKET_SECRET {
            let message = format!("`ticket_secret` has fewer than {MIN_TICKET_SECRET} characters");
            document.problems.error(&secret.span, message).hide_line().hint("openssl rand -hex 32");
            return None;
        }
        if !gives_tickets {
            let message = "`ticket_secret` without effect: `resumption` gives no tickets";
            document.problems.error(&secret.span, message).hide_line();
            return None;
        }
        if !document.is_substituted(&secret.span) {
            let problem = document.problems.warning(&secret.span, "a secret in the configuration file itself");
            problem.hide_line().hint("ticket_secret = \"${FILE:ticket.secret}\"");
        }
        shared = Some(TicketKeys::shared(secret.expose(), context.listener));
    }
    Some((ways != Ways::Off).then_some(Resumption {
        memory: context.memory,
        shared,
        trust: None,
        needs_certificate: false,
        lifetime: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
        gives_tickets,
        stores: matches!(ways, Ways::Cache | Ways::Both),
    }))
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
