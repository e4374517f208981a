//! TLS on a listener with a server certificate, by rustls. Enters: a connected socket. Leaves: an encrypted stream, and
//! the certificate chain or raw public key of the device. Not here: deadlines; the caller sets them.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::crypto::CryptoProvider;
use rustls::server::{CertificateType, ClientHello, NoServerSessionStorage, ResolvesServerCert, WantsServerCert};
use rustls::{ProtocolVersion, ServerConfig, SupportedProtocolVersion};

use super::client_hello;
use super::context::{Context, ListenerState};
use super::handshake::{Handshake, HandshakeKeys};
use super::identify::Finished;
use super::keys::ServerKeys;
use super::raw_keys::{KeyVerifier, KnownKeys, RawServerKeys};
use super::resumption::{HandshakeResumption, Resumption, TicketKeys};
use super::secured::{Failed, FailedConnection, Secured};
use super::server_handshake::{Completed, Failure, ServerHandshake};
use super::verifier::{DeviceVerifier, NoCertificates, note_error, reject};
use crate::config::tables::{self, CipherPreference, Tls, TlsVersion};
use crate::config::{Diagnostics, Reported};
use crate::limits::{PendingPermit, TooManyBytes, TooManyHandshakes, Turn};
use crate::net::{Socket, Stream};
use crate::outcome::{Reject, note_detail};
use crate::peer::{KeyFormat, PeerAddress};
use crate::pki::{Anchors, ChainVerifier};
use crate::util::clock::WallClock;
use crate::util::crypto::{provider, provider_preferring_aes128};

/// What carries the messages of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    Tcp,
    /// After the handshake, nobody sees the TLS connection: its callbacks note what has to be known of it.
    Quic,
}

/// TLS settings of a listener with a server certificate, compiled.
#[derive(Debug)]
pub(super) struct CertificateTls {
    /// With the cipher suites in the listener's order of preference.
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    keys: Arc<ServerKeys>,
    /// `None`: the listener requests no client certificates.
    trust: Option<Arc<ChainVerifier>>,
    /// The trust anchors whose names are sent to devices.
    anchors: ArcSwapOption<Anchors>,
    needs_certificate: bool,
    alpn: Vec<Vec<u8>>,
    resumption: Option<Arc<Resumption>>,
    raw_keys: Option<Arc<KnownKeys>>,
    /// Keeps the state alive, so that the configuration after a reload finds it.
    _state: Arc<ListenerState>,
}

impl CertificateTls {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// A file cannot be used; the problem was reported.
    pub(super) fn open(
        settings: &Tls,
        tls: &tables::CertificateTls,
        context: Context<'_>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let raw_keys = tls.raw_keys.as_ref().map(|keys| KnownKeys::open(keys, context.registry, diagnostics));
        let keys = ServerKeys::open(tls, &context.state.keys, context.revocation, diagnostics);
        let trust =
            tls.client.as_ref().map(|client| ChainVerifier::open(client, context.revocation, diagnostics)).transpose();
        let (raw_keys, keys, trust) = (raw_keys.transpose()?.map(Arc::new), Arc::new(keys?), trust?.map(Arc::new));
        let needs_certificate = tls.client.as_ref().is_some_and(|client| client.required);
        let version = |version: &TlsVersion| match version {
            TlsVersion::V12 => &rustls::version::TLS12,
            TlsVersion::V13 => &rustls::version::TLS13,
        };
        let tables::Resumption { tickets, cache, lifetime, ticket_secret } = &tls.resumption;
        let shared = ticket_secret.as_ref().map(|secret| TicketKeys::shared(secret.expose(), context.listener));
        let resumption = (*tickets || *cache).then(|| {
            Arc::new(Resumption {
                store: Arc::clone(&context.state.resumption),
                shared,
                trust: trust.clone(),
                needs_certificate,
                lifetime: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
                gives_tickets: *tickets,
                stores: *cache,
            })
        });
        Ok(Self {
            provider: match tls.cipher_preference {
                CipherPreference::Aes256 => provider(),
                CipherPreference::Aes128 => provider_preferring_aes128(),
            },
            versions: settings.versions.iter().map(version).collect(),
            keys,
            anchors: ArcSwapOption::new(trust.as_ref().map(|trust| trust.anchors())),
            trust,
            needs_certificate,
            alpn: settings.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
            resumption,
            raw_keys,
            _state: context.state,
        })
    }

    /// Whether every device has to authenticate itself in the handshake.
    pub(super) const fn requires_proof(&self) -> bool {
        self.needs_certificate || (self.trust.is_none() && self.raw_keys.is_some())
    }

    /// Whether a key counts by itself in this form.
    pub(super) fn accepts(&self, format: KeyFormat) -> bool {
        match format {
            KeyFormat::Raw => self.raw_keys.is_some(),
            KeyFormat::Certificate => self.accepts_keys_in_certificates(),
        }
    }

    /// Whether a self-signed certificate stands for its key.
    fn accepts_keys_in_certificates(&self) -> bool {
        self.raw_keys.as_ref().is_some_and(|keys| keys.in_certificates())
    }

    pub(super) const fn raw_keys(&self) -> Option<&Arc<KnownKeys>> {
        self.raw_keys.as_ref()
    }

    /// Records that the listener serves connections. From then on, expired certificates no longer replace the current
    /// ones.
    pub(super) fn set_in_use(&self) {
        self.keys.set_in_use();
    }

    /// The verifier of device certificates; `None` if the listener requests none.
    pub(super) fn trust(&self) -> Option<&Arc<ChainVerifier>> {
        self.trust.as_ref()
    }

    /// Role, subject and notAfter of the server's certificates and the trust anchors, in seconds since 1970.
    pub(super) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        let mut all: Vec<_> = self.keys.expiries().into_iter().map(|(name, end)| ("server", name, end)).collect();
        let anchors = self.trust.as_ref().map(|trust| trust.anchors());
        let anchors = anchors.iter().flat_map(|anchors| anchors.expiries());
        all.extend(anchors.map(|(name, end)| ("client_ca", name.clone(), *end)));
        all
    }

    /// Starts to fetch OCSP responses for stapling in the background, and stops stapling those that expire.
    pub(super) fn refresh_staples(&self) {
        self.keys.refresh_staples();
    }

    /// Reads certificates, keys and trust anchors whose files have changed, and logs the result. If a file cannot be used,
    /// its last good content stays in use. Returns whether sessions have to be evaluated again.
    pub(super) fn read_changed_files(&self, listener: &str) -> bool {
        self.keys.read_if_changed(listener);
        let raw_keys_changed = self.raw_keys.as_ref().is_some_and(|keys| keys.read_changed_file(listener));
        self.read_changed_anchors(listener) || raw_keys_changed
    }

    fn read_changed_anchors(&self, listener: &str) -> bool {
        let Some(trust) = &self.trust else { return false };
        let have_changed = trust.read_if_changed(listener);
        if have_changed {
            self.anchors.store(Some(trust.anchors()));
        }
        have_changed
    }

    /// Performs the handshake with a device. The caller sets the deadline.
    pub(super) async fn accept(
        &self,
        socket: Socket,
        address: PeerAddress,
        turn: &mut Turn,
        pending: &mut PendingPermit,
    ) -> Result<Secured, Failed> {
        let handshake = Arc::new(Handshake::default());
        let is_known = pending.is_known();
        let start = ServerHandshake::new(socket, pending);
        let (completed, device_key) = self.complete(start, &handshake, turn, is_known).await.map_err(|failure| {
            let reject = match reason(&failure.error) {
                // Where only keys count, a certificate is just one way to present one.
                Reject::NoCertificate if self.trust.is_none() => Reject::UnknownKey,
                reject => reject,
            };
            Failed { reject, connection: Some(FailedConnection::Tcp(failure.socket)) }
        })?;
        let session = completed.state();
        if session.protocol_version() == Some(ProtocolVersion::TLSv1_3) && self.resumption.is_none() {
            // No ticket carries the acknowledgement.
            completed.socket().acknowledge_at_once();
        }
        let finished = Finished::of(session, handshake.sni(), address);
        let identified = match device_key {
            KeyFormat::Raw => finished.by_raw_key(self.raw_keys.as_deref()),
            KeyFormat::Certificate if handshake.is_key() => finished.by_key_of_certificate(self.raw_keys.as_deref()),
            KeyFormat::Certificate => finished.by_certificate(&handshake),
        };
        // Fails only if rustls keeps the secrets to itself, which must not happen.
        let stream = completed.into_stream().map_err(|_| Failed::without_connection(Reject::HandshakeFailed))?;
        match identified {
            Ok(client) => Ok(Secured { stream: Stream::FromDevice(Box::new(stream)), client }),
            Err(reject) => Err(Failed { reject, connection: Some(FailedConnection::Tls(Box::new(stream))) }),
        }
    }

    /// Where the listener accepts raw keys, reads from the ClientHello which certificate types the device offers for itself and
    /// accepts from the server [RFC 7250, 3]. Completes the handshake with a configuration for them.
    async fn complete(
        &self,
        start: ServerHandshake<'_, Socket>,
        handshake: &Arc<Handshake>,
        turn: &mut Turn,
        is_known: bool,
    ) -> Result<(Completed<Socket>, KeyFormat), Failure<Socket>> {
        let (start, device_key, server_key) = match &self.raw_keys {
            None => (start, KeyFormat::Certificate, KeyFormat::Certificate),
            Some(_) => {
                let (start, (device_key, server_key)) = start.peek(|hello| self.choose_formats(hello)).await?;
                (start, device_key, server_key)
            }
        };
        let config = self.config(device_key, server_key, handshake, Carrier::Tcp);
        let resumes = |received: &[u8]| {
            let (resumption, ticket) = (self.resumption.as_ref(), client_hello::ticket(received));
            resumption.zip(ticket).is_some_and(|(resumption, ticket)| resumption.has_issued(ticket))
        };
        Ok((start.complete(config, turn, |received| is_known || resumes(received)).await?, device_key))
    }

    /// The formats of the device's key and of the server's.
    fn choose_formats(&self, hello: &ClientHello<'_>) -> (KeyFormat, KeyFormat) {
        let offers_raw = hello.client_cert_types().is_some_and(|types| types.contains(&CertificateType::RawPublicKey));
        let wants_raw =
            hello.server_cert_types().is_some_and(|types| types.first() == Some(&CertificateType::RawPublicKey));
        // Where only raw keys are accepted, rustls rejects a device with a certificate with the alert for its type.
        let is_raw = offers_raw || (self.trust.is_none() && !self.accepts_keys_in_certificates());
        let format = |is_raw| if is_raw { KeyFormat::Raw } else { KeyFormat::Certificate };
        (format(is_raw), format(wants_raw))
    }

    /// The rustls configuration of one connection. One per connection, because a rustls configuration is either for
    /// certificates or for raw keys, and because its callbacks do not identify the handshake they belong to.
    pub(super) fn config(
        &self,
        device_key: KeyFormat,
        server_key: KeyFormat,
        handshake: &Arc<Handshake>,
        carrier: Carrier,
    ) -> ServerConfig {
        let versions: &[_] = match (device_key, carrier) {
            (KeyFormat::Certificate, Carrier::Tcp) => &self.versions,
            (KeyFormat::Raw, _) | (_, Carrier::Quic) => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::new(WallClock))
            .with_protocol_versions(versions)
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3");
        let accepts_keys = self.accepts_keys_in_certificates();
        let builder = match device_key {
            KeyFormat::Raw => builder.with_client_cert_verifier(Arc::new(KeyVerifier::new())),
            KeyFormat::Certificate if self.trust.is_some() || accepts_keys => {
                let trust = self.trust.clone();
                let sends_names = trust.as_ref().is_some_and(|trust| trust.sends_names());
                let anchors = self.anchors.load_full().filter(|_| sends_names);
                let handshake = Arc::clone(handshake);
                let verifier = DeviceVerifier::new(trust, accepts_keys, anchors, self.requires_proof(), handshake);
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
            KeyFormat::Certificate if carrier == Carrier::Quic => {
                builder.with_client_cert_verifier(Arc::new(NoCertificates(Arc::clone(handshake))))
            }
            KeyFormat::Certificate => builder.with_no_client_auth(),
        };
        // Sessions with raw keys are not resumed: the key may have been removed, and their full handshake is cheap.
        let resumption = self.resumption.as_ref().filter(|_| device_key == KeyFormat::Certificate);
        let resumption = resumption.map(|resumption| {
            let (resumption, handshake) = (Arc::clone(resumption), Arc::clone(handshake));
            Arc::new(HandshakeResumption { resumption, handshake })
        });
        self.finish(builder, server_key, resumption, handshake, carrier)
    }

    fn finish(
        &self,
        builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert>,
        server_key: KeyFormat,
        resumption: Option<Arc<HandshakeResumption>>,
        handshake: &Arc<Handshake>,
        carrier: Carrier,
    ) -> ServerConfig {
        let keys: Arc<dyn ResolvesServerCert> = match server_key {
            KeyFormat::Raw => Arc::new(RawServerKeys(Arc::clone(&self.keys))),
            KeyFormat::Certificate => Arc::clone(&self.keys) as _,
        };
        let keys = HandshakeKeys {
            keys,
            handshake: Arc::clone(handshake),
            suites: (carrier == Carrier::Quic).then(|| Arc::clone(&self.provider)),
        };
        let mut config = builder.with_cert_resolver(Arc::new(keys));
        config.alpn_protocols.clone_from(&self.alpn);
        // All suites offered are secure. Auditing tools expect the server's preference to win.
        config.ignore_client_order = true;
        // One ticket is enough for a device with one connection, and each ticket carries the device's chain.
        config.send_tls13_tickets = 1;
        match resumption {
            Some(resumption) => {
                config.ticketer = Arc::clone(&resumption) as _;
                config.session_storage = resumption;
            }
            None => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        config
    }
}

fn reason(error: &io::Error) -> Reject {
    let Some(inner) = error.get_ref() else { return Reject::HandshakeClosed };
    match inner.downcast_ref::<rustls::Error>() {
        Some(error) => {
            note_error(error);
            reject(error)
        }
        None if inner.is::<TooManyHandshakes>() => {
            note_detail(&inner.to_string());
            Reject::TooManyHandshakes
        }
        None if inner.is::<TooManyBytes>() => {
            note_detail(&inner.to_string());
            Reject::TooManyPendingBytes
        }
        None => Reject::HandshakeClosed,
    }
}
