//! TLS on a listener, by rustls (certificates, raw public keys) or OpenSSL (pre-shared keys). Enters: a connected socket.
//! Leaves: an encrypted stream and the device's verified identity, or the reason the handshake failed. Not here: admission
//! rules or anything of MQTT.

use std::sync::Arc;
use std::time::Duration;

use super::certificate::CertificateTls;
use super::context::Context;
#[cfg(feature = "psk")]
use super::psk;
use super::secured::{Failed, Secured};
use crate::config::tables::{Quic, Tls, TlsMode};
use crate::config::{Diagnostics, Reported};
use crate::devices::{Replica, UsedCredential};
use crate::evidence::Evidence;
use crate::limits::{PendingPermit, Turn};
use crate::net::{Incoming, Socket};
use crate::outcome::CloseReason;
use crate::peer::PeerAddress;
use crate::pki::ChainVerifier;

/// The TLS side of a listener.
#[derive(Debug)]
pub(crate) struct ServerTls {
    engine: Engine,
    handshake_timeout: Duration,
}

#[derive(Debug)]
enum Engine {
    /// rustls. The server has a certificate; devices have certificates, raw public keys, or neither.
    Certificates(Box<CertificateTls>),
    /// OpenSSL. Server and device share a key.
    #[cfg(feature = "psk")]
    Psk(psk::PskTls),
}

impl ServerTls {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// A file cannot be used; the problem was reported.
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

    /// Performs the handshake with a device, when it is its turn. `pending` counts what it sends, and says whether it comes
    /// first.
    /// The caller sets the deadline, [`ServerTls::handshake_timeout`].
    ///
    /// # Errors
    /// Why it failed, and the connection, if it still has to be closed.
    pub(crate) async fn accept(
        &self,
        socket: Socket,
        address: PeerAddress,
        turn: &mut Turn,
        pending: &mut PendingPermit,
    ) -> Result<Secured, Failed> {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.accept(socket, address, turn, pending).await,
            // What OpenSSL needs does not depend on what the client sends.
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.accept(socket, address, turn, pending.is_known()).await,
        }
    }

    /// As [`accept`](Self::accept), over QUIC.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn accept_quic(
        &self,
        incoming: Incoming,
        settings: &Quic,
        address: PeerAddress,
        turn: &mut Turn,
        pending: &PendingPermit,
    ) -> Result<Secured, Failed> {
        match &self.engine {
            Engine::Certificates(tls) => tls.accept_quic(incoming, settings, address, turn, pending).await,
            // The configuration rejects it.
            #[cfg(feature = "psk")]
            Engine::Psk(_) => Err(Failed::without_connection(crate::outcome::Reject::HandshakeFailed)),
        }
    }

    /// Time from accept to the end of the handshake.
    pub(crate) const fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    /// Evaluates what a device proved in its handshake by the current configuration, CRLs and registry. `evidence` is
    /// `None` if the device proved nothing. `uses_device`: expressions of the listener use the device's registry entry.
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the session has to be closed.
    pub(crate) fn evaluate(&self, evidence: Option<&Evidence>, uses_device: bool, now: i64) -> Result<(), CloseReason> {
        let still = |has_it| if has_it { Ok(()) } else { Err(CloseReason::CredentialWithdrawn) };
        if let Some(Evidence::DeviceKey(device)) = evidence {
            let registry = self.registry().filter(|_| self.accepts(&device.used));
            return registry.ok_or(CloseReason::CredentialWithdrawn)?.evaluate(device, uses_device, now);
        }
        match (&self.engine, evidence) {
            (Engine::Certificates(tls), Some(Evidence::Chain(chain))) => {
                let trust = tls.trust().ok_or(CloseReason::CaRemoved)?;
                trust.evaluate(chain, now).map_or_else(|error| error.close_reason().map_or(Ok(()), Err), Ok)
            }
            #[cfg(feature = "psk")]
            (Engine::Psk(_), Some(Evidence::Chain(_))) => Err(CloseReason::CaRemoved),
            (Engine::Certificates(tls), Some(Evidence::RawKey { fingerprint, name, format })) => {
                still(tls.accepts(*format) && tls.raw_keys().is_some_and(|keys| keys.is_named(fingerprint, name)))
            }
            (Engine::Certificates(tls), None) => still(!tls.requires_proof()),
            #[cfg(feature = "psk")]
            (Engine::Psk(psk), Some(Evidence::Psk { identity, tag })) => still(psk.has(identity, *tag)),
            _ => Err(CloseReason::CredentialWithdrawn),
        }
    }

    /// Whether handshakes use credentials of this kind.
    fn accepts(&self, used: &UsedCredential) -> bool {
        match &self.engine {
            Engine::Certificates(tls) => matches!(used, UsedCredential::Key(_, format) if tls.accepts(*format)),
            #[cfg(feature = "psk")]
            Engine::Psk(_) => matches!(used, UsedCredential::Psk { .. }),
        }
    }

    /// The registry whose device keys the listener accepts.
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

    /// Records that the listener serves connections. From then on, expired certificates no longer replace the current
    /// ones.
    pub(crate) fn set_in_use(&self) {
        self.certificates().into_iter().for_each(CertificateTls::set_in_use);
    }

    /// The verifier of device certificates; `None` if the listener requests none.
    pub(crate) fn trust(&self) -> Option<&Arc<ChainVerifier>> {
        self.certificates()?.trust()
    }

    /// Role, subject and notAfter of the server's certificates and the trust anchors, in seconds since 1970.
    pub(crate) fn expiries(&self) -> Vec<(&'static str, String, i64)> {
        self.certificates().map(CertificateTls::expiries).unwrap_or_default()
    }

    /// Starts to fetch OCSP responses for stapling in the background, and stops stapling those that expire.
    pub(crate) fn refresh_staples(&self) {
        self.certificates().into_iter().for_each(CertificateTls::refresh_staples);
    }

    /// Reads certificates, keys and trust anchors whose files have changed, and logs the result. If a file cannot be used,
    /// its last good content stays in use. Returns whether sessions have to be evaluated again.
    pub(crate) fn read_changed_files(&self, listener: &str) -> bool {
        match &self.engine {
            Engine::Certificates(certificates) => certificates.read_changed_files(listener),
            #[cfg(feature = "psk")]
            Engine::Psk(psk) => psk.read_changed_file(listener),
        }
    }
}
