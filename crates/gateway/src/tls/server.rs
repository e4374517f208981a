//! TLS towards devices.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{Acceptor, CertificateType, NoServerSessionStorage, WantsServerCert};
use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::keys::ServerKeys;
use super::raw_keys::{BareServerKeys, KeyVerifier, KnownKeys, Owner};
use super::resumption::{HANDSHAKE, Handshake, Resumption, TicketKeys};
use super::verifier::{DeviceVerifier, reject};
use super::{Accepted, Certificate, Context, KeyGround, Rest, Unfinished, perhaps_unavailable};
use crate::config::model::{ClientAuth, ListenerTls, Ocsp, Resumption as Ways, TlsVersion};
use crate::config::{At, Document};
use crate::crypto::{provider, sha256};
use crate::expr::{RawKey, TlsFacts};
use crate::net::Stream;
use crate::outcome::Reject;
use crate::registry::Used;
use crate::trust::{Knowledge, Trust};

const SESSION_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The most a ticket may live [RFC 8446, 4.6.1].
const MAX_SESSION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Of a secret that keys are derived from, in bytes.
const MIN_TICKET_SECRET: usize = 32;

/// The TLS side of a listener whose server has a certificate, compiled.
#[derive(Debug)]
pub(super) struct CertificateTls {
    /// Built from the rest; others when trust anchors change, whose names stand in them.
    configs: ArcSwap<Configs>,
    parts: Parts,
}

/// What configurations are built from.
#[derive(Debug)]
struct Parts {
    versions: Vec<&'static SupportedProtocolVersion>,
    keys: Arc<ServerKeys>,
    /// `None`: devices are not asked for certificates.
    trust: Option<Arc<Trust>>,
    needs_certificate: bool,
    alpn: Vec<Vec<u8>>,
    resumption: Option<Arc<Resumption>>,
    raw_keys: Option<Arc<KnownKeys>>,
}

/// One for each way in which the two sides show their keys: rustls has configurations that are all certificates or all
/// raw keys.
#[derive(Debug)]
struct Configs {
    /// Devices with certificates, or without.
    plain: Arc<ServerConfig>,
    /// Likewise, and the server shows its bare key.
    bare_server: Option<Arc<ServerConfig>>,
    /// Devices with raw keys.
    raw: Option<Arc<ServerConfig>>,
    /// Likewise, and the server shows its bare key.
    raw_bare_server: Option<Arc<ServerConfig>>,
}

impl CertificateTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(super) fn compile(tls: &At<ListenerTls>, context: Context<'_>, document: &mut Document) -> Option<Self> {
        let raw_keys = match &tls.raw_keys {
            Some(table) => Some(Arc::new(KnownKeys::compile(table, context.registry, document)?)),
            None => None,
        };
        let keys = ServerKeys::compile(tls, &context.memory, context.knowledge, document);
        if let (Some(ca), Some(registry)) =
            (&tls.client_ca, tls.raw_keys.as_ref().and_then(|keys| keys.registry.as_ref()))
            && registry.value
        {
            let message = "a device that is pinned to its certificate's key may show that key without the certificate";
            let problem = document.problems.warning(&ca.span, message);
            problem.hint(
                "expiry and revocation do not count then; pin certificates by `--fingerprint`, or use two listeners",
            );
        }
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
        if raw_keys.is_some() && !versions.contains(&&rustls::version::TLS13) {
            let span = tls.versions.as_ref().map_or(&tls.span, |at| &at.span);
            document.problems.error(span, "raw public keys need TLS 1.3");
            return None;
        }
        let parts = Parts { versions, keys, trust, needs_certificate, alpn, resumption, raw_keys };
        Some(Self { configs: ArcSwap::from_pointee(parts.build()), parts })
    }

    pub(super) const fn raw_keys(&self) -> Option<&Arc<KnownKeys>> {
        self.parts.raw_keys.as_ref()
    }

    /// Notes that it is served by: what comes later has to be better than nothing.
    pub(super) fn is_served_by(&self) {
        self.parts.keys.is_served_by();
    }

    /// What devices' certificates are judged by; `None`: they are not asked for.
    pub(super) fn trust(&self) -> Option<&Arc<Trust>> {
        self.parts.trust.as_ref()
    }

    /// Role, subject and end of each of the server's certificates and of the trust anchors, in seconds since 1970.
    pub(super) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        let mut all: Vec<_> = self.parts.keys.expiries().into_iter().map(|(name, end)| ("server", name, end)).collect();
        let anchors = self.parts.trust.as_ref().map(|trust| trust.anchors());
        let anchors = anchors.iter().flat_map(|anchors| anchors.expiries());
        all.extend(anchors.map(|(name, end)| ("client_ca", name.clone(), *end)));
        all
    }

    /// Fetches OCSP answers about the server's certificates in the background, for handshakes to bring along, and takes
    /// away those out of date.
    pub(super) fn refresh_staples(&self) {
        self.parts.keys.refresh_staples();
    }

    /// Reads certificates, keys and trust anchors again whose files have changed; says in the log what came of it. Of
    /// what cannot be used, the last good one stays. Returns whether sessions are to be judged again.
    pub(super) fn read_changed_files(&self, listener: &str) -> bool {
        self.parts.keys.read_if_changed(listener);
        let are_others = self.parts.raw_keys.as_ref().is_some_and(|keys| keys.read_changed_file(listener));
        self.read_changed_anchors(listener) || are_others
    }

    fn read_changed_anchors(&self, listener: &str) -> bool {
        let Some(trust) = &self.parts.trust else { return false };
        let are_others = trust.read_if_changed(listener);
        if are_others {
            self.configs.store(Arc::new(self.parts.build()));
        }
        are_others
    }

    /// Takes the handshake with a device to its end, within its deadline.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        deadline: Duration,
    ) -> Result<Accepted, (Reject, Option<Unfinished>)> {
        let accept = HANDSHAKE.scope(Handshake::default(), async {
            let accepted = match &self.parts.raw_keys {
                None => {
                    let accept = TlsAcceptor::from(Arc::clone(&self.configs.load().plain)).accept(socket);
                    accept.into_fallible().await.map_err(|(error, socket)| (error, Some(socket)))
                }
                Some(_) => self.choose_and_accept(socket).await,
            };
            (accepted, HANDSHAKE.with(Handshake::take))
        });
        let (stream, handshake) = match tokio::time::timeout(deadline, accept).await {
            Ok((Ok(stream), handshake)) => (stream, handshake),
            Ok((Err((error, socket)), _)) => {
                return Err((reason(&error), socket.map(|socket| Unfinished(Rest::Tcp(socket)))));
            }
            Err(_) => return Err((Reject::HandshakeTimeout, None)),
        };
        let session = stream.get_ref().1;
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let mut facts = facts(session, resumed);
        if handshake.is_raw.get() {
            let (Some(keys), Some(key)) = (&self.parts.raw_keys, leaf) else { return Err((Reject::UnknownKey, None)) };
            let fingerprint = sha256(key);
            // Only now that it has proved to own the key: else whoever has seen one could ask whether it is known.
            let unknown = || perhaps_unavailable(Reject::UnknownKey, Reject::UnknownKey, keys.registry());
            let (ground, device, name) = match keys.owner(&fingerprint).ok_or_else(|| (unknown(), None))? {
                Owner::Named(name) => (KeyGround::RawKey(fingerprint), None, Some(name)),
                Owner::Device(entry) => (KeyGround::Device(entry.ground(Used::Pin(fingerprint))), Some(entry), None),
            };
            facts.raw_key = Some(RawKey { fingerprint, name });
            let stream = Stream::FromDevice(Box::new(stream));
            return Ok(Accepted { stream, certificate: None, credential: None, facts, ground: Some(ground), device });
        }
        let proof = if resumed { handshake.resumed.take() } else { handshake.verified.take() };
        let credential = proof.and_then(|proof| proof.credential);
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
        let stream = Stream::FromDevice(Box::new(stream));
        Ok(Accepted { stream, certificate, credential, facts, ground: None, device: None })
    }

    /// Looks into the ClientHello for how the device wants to show its key, and to see the server's [RFC 7250, 3].
    async fn choose_and_accept(
        &self,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (io::Error, Option<TcpStream>)> {
        let acceptor = LazyConfigAcceptor::new(Acceptor::default(), socket);
        tokio::pin!(acceptor);
        let start = match acceptor.as_mut().await {
            Ok(start) => start,
            Err(error) => {
                return Err((error, acceptor.take_io()));
            }
        };
        let hello = start.client_hello();
        let offers_raw = hello.client_cert_types().is_some_and(|types| types.contains(&CertificateType::RawPublicKey));
        let wants_bare =
            hello.server_cert_types().is_some_and(|types| types.first() == Some(&CertificateType::RawPublicKey));
        let configs = self.configs.load_full();
        // Where there is no other way, a device is told that its own is none.
        let is_raw = offers_raw || self.parts.trust.is_none();
        let config = match (is_raw, wants_bare) {
            (false, false) => Some(&configs.plain),
            (false, true) => configs.bare_server.as_ref(),
            (true, false) => configs.raw.as_ref(),
            (true, true) => configs.raw_bare_server.as_ref(),
        };
        HANDSHAKE.with(|handshake| handshake.is_raw.set(is_raw));
        let config = Arc::clone(config.unwrap_or(&configs.plain));
        start.into_stream(config).into_fallible().await.map_err(|(error, socket)| (error, Some(socket)))
    }
}

impl Parts {
    fn build(&self) -> Configs {
        let certificates = |bare| {
            let builder = self.builder();
            let builder = match &self.trust {
                Some(trust) => {
                    let verifier = DeviceVerifier::new(Arc::clone(trust), self.needs_certificate);
                    builder.with_client_cert_verifier(Arc::new(verifier))
                }
                None => builder.with_no_client_auth(),
            };
            self.finish(builder, bare, self.resumption.as_ref())
        };
        let raw = |bare| {
            let builder = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("aws-lc-rs speaks TLS 1.3");
            let builder = builder.with_client_cert_verifier(Arc::new(KeyVerifier::new()));
            // Not resumed: who had the key then may not have it now, and the handshake is a cheap one.
            self.finish(builder, bare, None)
        };
        let raw_keys = self.raw_keys.as_ref();
        Configs {
            plain: certificates(false),
            bare_server: raw_keys.map(|_| certificates(true)),
            raw: raw_keys.map(|_| raw(false)),
            raw_bare_server: raw_keys.map(|_| raw(true)),
        }
    }

    fn builder(&self) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
    }

    fn finish(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert>,
        bare: bool,
        resumption: Option<&Arc<Resumption>>,
    ) -> Arc<ServerConfig> {
        let mut config = if bare {
            builder.with_cert_resolver(Arc::new(BareServerKeys(Arc::clone(&self.keys))))
        } else {
            builder.with_cert_resolver(Arc::clone(&self.keys) as _)
        };
        config.alpn_protocols.clone_from(&self.alpn);
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
}

/// What expressions may know of the TLS session.
fn facts(session: &rustls::ServerConnection, resumed: bool) -> TlsFacts {
    let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default();
    TlsFacts {
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        },
        // rustls says TLS13_ where the standard (RFC 8446, B.4), and so NGINX and OpenSSL, say TLS_.
        cipher: suite.strip_prefix("TLS13_").map_or_else(|| suite.into(), |rest| format!("TLS_{rest}").into()),
        sni: session.server_name().map(Into::into),
        alpn: session.alpn_protocol().and_then(|name| std::str::from_utf8(name).ok()).map(Into::into),
        resumed,
        psk: None,
        raw_key: None,
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

pub(super) fn compile_versions(
    tls: &At<ListenerTls>,
    document: &mut Document,
) -> Option<Vec<&'static SupportedProtocolVersion>> {
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
