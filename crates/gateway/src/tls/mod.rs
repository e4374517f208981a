//! TLS towards devices and towards brokers. Enters: a connected stream and a deadline. Leaves: an encrypted stream, and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

mod client;
mod handshake;
mod keys;
#[cfg(feature = "psk")]
mod psk;
mod raw_keys;
mod resumption;
mod server;
mod verifier;

pub use client::ClientTls;
pub use resumption::ResumptionStore;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::config::tables::{Tls, TlsMode};
use crate::config::{Diagnostics, Reported};
use crate::devices::{Entry, Replica};
use crate::edge::{Stream, discard_until_closed};
use crate::evidence::Evidence;
use crate::outcome::{CloseReason, Reject};
use crate::peer::Peer;
use crate::pki::{ChainVerifier, RevocationStore};
use server::CertificateTls;

/// The TLS side of a listener.
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
pub struct Secured {
    /// The encrypted stream.
    pub stream: Stream,
    /// Who is at its other end.
    pub peer: Peer,
    /// What the session rests on from now on; `None`: the device proved nothing.
    pub evidence: Option<Evidence>,
    /// The device of the registry whose key was used; whether it may connect is not decided.
    pub device: Option<Arc<Entry>>,
}

/// A handshake that failed. The device was sent the alert.
#[expect(missing_debug_implementations, reason = "it is closed and nothing else")]
pub struct Failed {
    /// Why.
    pub reject: Reject,
    rest: Option<Rest>,
}

/// What is left of the connection.
enum Rest {
    Tcp(TcpStream),
    #[cfg(feature = "psk")]
    Psk(Box<portcullis_psk::PskStream<TcpStream>>),
}

impl Failed {
    const fn without_connection(reject: Reject) -> Self {
        Self { reject, rest: None }
    }

    /// Closes the connection in such a way that the alert arrives: with bytes unread, the kernel would send a reset that
    /// can overtake it.
    pub async fn close(self) {
        let Some(mut rest) = self.rest else { return };
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
    pub(crate) revocation: &'a Arc<RevocationStore>,
    pub(crate) resumption_store: Arc<ResumptionStore>,
    /// The device registry, if there is one.
    pub(crate) registry: Option<&'a Arc<Replica>>,
}

impl ServerTls {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// One cannot be used, which was reported.
    pub(crate) fn open(settings: &Tls, context: Context<'_>, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let engine = match &settings.mode {
            TlsMode::Certificate(tls) => {
                Engine::Certificates(Box::new(CertificateTls::open(settings, tls, context, diagnostics)?))
            }
            #[cfg(feature = "psk")]
            TlsMode::Psk(psk) => Engine::Psk(psk::PskTls::open(settings, psk, context.registry, diagnostics)?),
            #[cfg(not(feature = "psk"))]
            TlsMode::Psk(psk) => {
                let complaint = crate::config::Complaint::new("this gateway was built without pre-shared keys");
                return Err(diagnostics.error(
                    psk,
                    complaint.hint("build it with --features psk (the system's OpenSSL) or --features psk-vendored"),
                ));
            }
        };
        Ok(Self { engine, handshake_timeout: settings.handshake_timeout })
    }

    /// Takes the handshake with a device to its end, within its deadline.
    ///
    /// # Errors
    /// Why it failed, and what is left of the connection.
    pub async fn accept(&self, socket: TcpStream, address: SocketAddr) -> Result<Secured, Failed> {
        let handshake = async {
            match &self.engine {
                Engine::Certificates(certificates) => certificates.accept(socket, address).await,
                #[cfg(feature = "psk")]
                Engine::Psk(psk) => psk.accept(socket, address).await,
            }
        };
        let timeout = |_| Err(Failed::without_connection(Reject::HandshakeTimeout));
        tokio::time::timeout(self.handshake_timeout, handshake).await.unwrap_or_else(timeout)
    }

    /// Whether a device that proved this in its handshake would be accepted now; `None`: that it proved nothing.
    /// `uses_device`: what the registry says of a device decides about it. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the session ends.
    pub(crate) fn evaluate(&self, evidence: Option<&Evidence>, uses_device: bool, now: i64) -> Result<(), CloseReason> {
        let still = |has_it| if has_it { Ok(()) } else { Err(CloseReason::CredentialWithdrawn) };
        if let Some(Evidence::DeviceKey(device)) = evidence {
            let registry = self.registry().ok_or(CloseReason::CredentialWithdrawn)?;
            return registry.evaluate(device, uses_device, now);
        }
        match (&self.engine, evidence) {
            (Engine::Certificates(tls), Some(Evidence::Chain(chain))) => {
                let trust = tls.trust().ok_or(CloseReason::CaRemoved)?;
                trust.evaluate(chain, now).map_or_else(|error| error.close_reason().map_or(Ok(()), Err), Ok)
            }
            (_, Some(Evidence::Chain(_))) => Err(CloseReason::CaRemoved),
            (Engine::Certificates(tls), Some(Evidence::RawKey(fingerprint))) => {
                still(tls.raw_keys().is_some_and(|keys| keys.has_named(fingerprint)))
            }
            (Engine::Certificates(tls), None) => still(!tls.requires_proof()),
            #[cfg(feature = "psk")]
            (Engine::Psk(psk), Some(Evidence::Psk { identity, tag })) => still(psk.has(identity, *tag)),
            _ => Err(CloseReason::CredentialWithdrawn),
        }
    }

    /// The registry whose devices' keys are accepted here.
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

    /// Marks the listener as serving: certificates that replace the current ones must be valid.
    pub(crate) fn is_served_by(&self) {
        self.certificates().into_iter().for_each(CertificateTls::is_served_by);
    }

    /// What verifies devices' certificates; `None`: they are not asked for.
    pub fn trust(&self) -> Option<&Arc<ChainVerifier>> {
        self.certificates()?.trust()
    }

    /// Role, subject and end of each of the server's certificates and of the trust anchors, in seconds since 1970.
    pub(crate) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        self.certificates().map(CertificateTls::expiries).unwrap_or_default()
    }

    /// Fetches OCSP responses for the server's certificates in the background, to be stapled to handshakes; removes
    /// expired ones.
    pub(crate) fn refresh_staples(&self) {
        self.certificates().into_iter().for_each(CertificateTls::refresh_staples);
    }

    /// Reads certificates, keys and trust anchors whose files have changed, and logs the result. If a file cannot be used,
    /// the last good content stays. Returns whether sessions have to be evaluated again.
    pub(crate) fn read_changed_files(&self, listener: &str) -> bool {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.read_changed_files(listener),
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.read_changed_file(listener),
        }
    }
}

/// A key that no file lists may be one of the registry, if that is out of reach: then this is the reason in the log. From
/// outside it looks the same.
fn perhaps_unavailable(reject: Reject, unknown: Reject, registry: Option<&Arc<Replica>>) -> Reject {
    let is_uncertain = reject == unknown && registry.is_some_and(|registry| !registry.is_certain());
    if is_uncertain { Reject::RegistryUnavailable } else { reject }
}
