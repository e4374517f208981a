//! The TLS side of a listener, by whichever engine. Enters: a connected stream and a deadline. Leaves: an encrypted stream, and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::certificate::CertificateTls;
use super::context::Context;
#[cfg(feature = "psk")]
use super::psk;
use super::secured::{Failed, Secured};
use crate::config::tables::{Tls, TlsMode};
use crate::config::{Diagnostics, Reported};
use crate::devices::Replica;
use crate::evidence::Evidence;
use crate::outcome::{CloseReason, Reject};
use crate::pki::ChainVerifier;

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
                let complaint = crate::config::Complaint::new("this binary was built without pre-shared keys");
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
    pub(crate) fn mark_active(&self) {
        self.certificates().into_iter().for_each(CertificateTls::mark_active);
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
