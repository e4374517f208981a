//! TLS towards devices and towards brokers. Enters: a connected stream and a deadline. Leaves: an encrypted stream and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

mod certificate;
mod client;
mod dn;
mod keys;
#[cfg(feature = "psk")]
mod psk;
mod raw_keys;
mod resumption;
mod server;
mod verifier;

pub use certificate::{AlternativeNames, Certificate, Name};
pub use client::ClientTls;
pub use resumption::Memory;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::model::ListenerTls;
#[cfg(feature = "psk")]
use crate::config::model::Ocsp;
use crate::config::{At, Document};
use crate::expr::TlsFacts;
use crate::net::{Stream, discard_until_closed};
use crate::outcome::{CloseReason, Reject};
use crate::registry::{DeviceGround, Entry, Fingerprint, Replica};
use crate::trust::{Credential, Key, Knowledge, Trust};
use server::CertificateTls;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS side of a listener, compiled.
#[derive(Debug)]
pub struct ServerTls {
    engine: Engine,
    handshake_timeout: Duration,
}

#[derive(Debug)]
enum Engine {
    /// rustls: the server has a certificate; devices have certificates, raw public keys, or nothing.
    Certificates(Box<CertificateTls>),
    /// OpenSSL: both have a key in common.
    #[cfg(feature = "psk")]
    Psk(psk::PskTls),
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// The encrypted stream.
    pub stream: Stream,
    /// The certificate that the device proved to own.
    pub certificate: Option<Certificate>,
    /// What of it is to be judged again for as long as the device is connected.
    pub credential: Option<Credential>,
    /// What expressions may know of the TLS session.
    pub facts: TlsFacts,
    /// The key without a certificate that the device has, to be judged again likewise.
    pub ground: Option<KeyGround>,
    /// The device of the registry whose key that is; whether it is let in, is not decided.
    pub device: Option<Arc<Entry>>,
}

/// A key without a certificate that a session stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyGround {
    /// A pre-shared key of a file: its identity, and what tells the key from others.
    Psk(Box<str>, u64),
    /// A raw public key of a file.
    RawKey(Fingerprint),
    /// A key of a device of the registry.
    Device(DeviceGround),
}

impl KeyGround {
    /// Its place in indexes of what may change.
    pub fn key(&self) -> Option<Key> {
        match self {
            KeyGround::Device(device) => Some(crate::registry::key(&device.id)),
            KeyGround::Psk(..) | KeyGround::RawKey(_) => None,
        }
    }
}

/// What is left of a handshake that failed: the device is still to learn of it.
#[expect(missing_debug_implementations, reason = "it is closed and nothing else")]
pub struct Unfinished(Rest);

enum Rest {
    Tcp(TcpStream),
    #[cfg(feature = "psk")]
    Psk(Box<portcullis_psk::PskStream<TcpStream>>),
}

impl Unfinished {
    /// Closes the connection in such a way that the alert arrives: with bytes unread, the kernel would send a reset that
    /// can overtake it.
    pub async fn close(self) {
        let mut rest = self.0;
        #[cfg_attr(
            not(feature = "psk"),
            expect(clippy::infallible_destructuring_match, reason = "with the feature there are two")
        )]
        let socket = match &mut rest {
            Rest::Tcp(socket) => socket,
            #[cfg(feature = "psk")]
            Rest::Psk(stream) => stream.get_mut(),
        };
        let _ = socket.shutdown().await;
        discard_until_closed(socket).await;
    }
}

/// What a listener's TLS takes over from the one before a reload, and shares with others.
#[derive(Clone, Debug)]
pub(crate) struct Context<'a> {
    /// The listener's name.
    pub(crate) listener: &'a str,
    pub(crate) knowledge: &'a Arc<Knowledge>,
    pub(crate) memory: Arc<Memory>,
    /// The device registry, if there is one and only one.
    pub(crate) registry: Option<&'a Arc<Replica>>,
}

impl ServerTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(tls: &At<ListenerTls>, context: Context<'_>, document: &mut Document) -> Option<Self> {
        let handshake_timeout = tls.handshake_timeout.map_or(HANDSHAKE_TIMEOUT, |period| period.0);
        let engine = match &tls.psk {
            None => Engine::Certificates(Box::new(CertificateTls::compile(tls, context, document)?)),
            #[cfg(feature = "psk")]
            Some(psk) => {
                let is_alone = refuse_beside_psk(tls, document);
                let psk = psk::PskTls::compile(tls, psk, context.registry, document)?;
                Engine::Psk(is_alone.map(|()| psk)?)
            }
            #[cfg(not(feature = "psk"))]
            Some(psk) => {
                let message = "this gateway was built without pre-shared keys";
                let hint = "build it with --features psk (the system's OpenSSL) or --features psk-vendored";
                document.problems.error(&psk.span, message).hint(hint);
                return None;
            }
        };
        Some(Self { engine, handshake_timeout })
    }

    /// Takes the handshake with a device to its end, within its deadline.
    ///
    /// # Errors
    /// Why it failed. The device is sent the fitting alert; what is left of the connection is for the caller to close.
    pub async fn accept(&self, socket: TcpStream) -> Result<Accepted, (Reject, Option<Unfinished>)> {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.accept(socket, self.handshake_timeout).await,
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.accept(socket, self.handshake_timeout).await,
        }
    }

    /// Why a session that stands on a key without a certificate has to end; `None`: it has not. `facts_count`: what the
    /// registry says of a device has decided about it. `now` is in seconds since 1970.
    pub(crate) fn judge(&self, ground: &KeyGround, facts_count: bool, now: i64) -> Option<CloseReason> {
        if let KeyGround::Device(device) = ground {
            let Some(registry) = self.registry() else { return Some(CloseReason::CredentialWithdrawn) };
            return registry.judge(device, facts_count, now);
        }
        let has = match (&self.engine, ground) {
            (Engine::Certificates(certificates), KeyGround::RawKey(fingerprint)) => {
                certificates.raw_keys().is_some_and(|keys| keys.has_named(fingerprint))
            }
            #[cfg(feature = "psk")]
            (Engine::Psk(psk), KeyGround::Psk(identity, mark)) => psk.has(identity, *mark),
            _ => false,
        };
        (!has).then_some(CloseReason::CredentialWithdrawn)
    }

    /// The registry whose devices' keys are known here.
    fn registry(&self) -> Option<&Arc<Replica>> {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.raw_keys()?.registry(),
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.registry(),
        }
    }

    #[cfg_attr(not(feature = "psk"), expect(clippy::unnecessary_wraps, reason = "with the feature there is another"))]
    fn certificates(&self) -> Option<&CertificateTls> {
        match &self.engine {
            Engine::Certificates(certificates) => Some(certificates),
            #[cfg(feature = "psk")]
            Engine::Psk(_) => None,
        }
    }

    /// Notes that it is served by: what comes later has to be better than nothing.
    pub(crate) fn is_served_by(&self) {
        self.certificates().into_iter().for_each(CertificateTls::is_served_by);
    }

    /// What devices' certificates are judged by; `None`: they are not asked for.
    pub fn trust(&self) -> Option<&Arc<Trust>> {
        self.certificates()?.trust()
    }

    /// Role, subject and end of each of the server's certificates and of the trust anchors, in seconds since 1970.
    pub(crate) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        self.certificates().map(CertificateTls::expiries).unwrap_or_default()
    }

    /// Whether OCSP answers about the server's certificates are to be fetched; those out of date are taken away.
    pub(crate) fn check_staples(&self) -> bool {
        self.certificates().is_some_and(CertificateTls::check_staples)
    }

    /// Fetches OCSP answers about the server's certificates, for handshakes to bring along.
    pub(crate) async fn fetch_staples(&self, knowledge: &Knowledge) {
        if let Some(certificates) = self.certificates() {
            certificates.fetch_staples(knowledge).await;
        }
    }

    /// Reads certificates, keys and trust anchors again whose files have changed; says in the log what came of it. Of
    /// what cannot be used, the last good one stays. Returns whether sessions are to be judged again.
    pub(crate) fn read_changed_files(&self, listener: &str) -> bool {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.read_changed_files(listener),
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.read_changed_file(listener),
        }
    }
}

/// A listener with pre-shared keys has nothing else: beside a certificate, TLS 1.3 may leave the key out.
#[cfg(feature = "psk")]
fn refuse_beside_psk(tls: &At<ListenerTls>, document: &mut Document) -> Option<()> {
    let before = document.problems.list().len();
    let others = [
        ("certificate", tls.certificate.as_ref().map(|at| &at.span)),
        ("private_key", tls.private_key.as_ref().map(|at| &at.span)),
        ("client_auth", tls.client_auth.as_ref().map(|at| &at.span)),
        ("client_ca", tls.client_ca.as_ref().map(|at| &at.span)),
        ("crl", tls.crl.first().map(|at| &at.span)),
        ("raw_keys", tls.raw_keys.as_ref().map(|at| &at.span)),
        ("resumption", tls.resumption.as_ref().map(|at| &at.span)),
        ("session_lifetime", tls.session_lifetime.as_ref().map(|at| &at.span)),
        ("ticket_secret", tls.ticket_secret.as_ref().map(|at| &at.span)),
        ("private_key_passphrase", tls.private_key_passphrase.as_ref().map(|at| &at.span)),
        ("verify_depth", tls.verify_depth.as_ref().map(|at| &at.span)),
        ("crl_missing", tls.crl_missing.as_ref().map(|at| &at.span)),
        ("ocsp_responder", tls.ocsp_responder.as_ref().map(|at| &at.span)),
        ("ocsp_failure", tls.ocsp_failure.as_ref().map(|at| &at.span)),
    ];
    if tls.ocsp != Ocsp::Off || tls.ocsp_stapling || tls.crl_distribution_points {
        let message = "`ocsp`, `ocsp_stapling` and `crl_distribution_points` cannot stand beside `psk`";
        document.problems.error(&tls.span, message).hint("there are no certificates");
    }
    for (key, span) in others {
        let Some(span) = span else { continue };
        let message = format!("`{key}` cannot stand beside `psk`");
        let problem = document.problems.error(span, message).hide_line();
        problem.hint("pre-shared keys need a listener of their own, without certificates; nothing is resumed there");
    }
    (document.problems.list().len() == before).then_some(())
}

/// What is unknown may be known to the registry, if that cannot be asked: then that is the reason in the log. From outside
/// it looks the same.
fn perhaps_unavailable(reject: Reject, unknown: Reject, registry: Option<&Arc<Replica>>) -> Reject {
    let is_uncertain = reject == unknown && registry.is_some_and(|registry| !registry.is_certain());
    if is_uncertain { Reject::RegistryUnavailable } else { reject }
}

/// What `registry = true` means. The outer `None`: there is none, or there are several.
#[expect(clippy::option_option, reason = "the outer one is for a mistake in the configuration")]
fn compile_registry(
    wanted: Option<&At<bool>>,
    registry: Option<&Arc<Replica>>,
    document: &mut Document,
) -> Option<Option<Arc<Replica>>> {
    match (wanted.filter(|wanted| wanted.value), registry) {
        (None, _) => Some(None),
        (Some(_), Some(registry)) => Some(Some(Arc::clone(registry))),
        (Some(wanted), None) => {
            let message = "`registry = true` needs one [[authenticator]] of `kind = \"registry\"`, and only one";
            document.problems.error(&wanted.span, message);
            None
        }
    }
}
