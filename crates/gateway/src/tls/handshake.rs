//! The state of one handshake. Enters: the chains that rustls' callbacks verify or resume. Leaves: the chain that the
//! finished handshake rests on.
//!
//! rustls' callbacks for tickets and certificates do not identify the handshake they belong to. Therefore each connection
//! gets its own configuration, whose callbacks share one [`Handshake`].

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SupportedCipherSuite};
use serde::{Deserialize, Serialize};

use crate::peer::Certificate;
use crate::pki::VerifiedChain;
use crate::util::clock::now;

/// What the callbacks have learned about the device.
#[derive(Debug, Default)]
pub(super) struct Handshake(Mutex<HandshakeState>);

#[derive(Debug, Default)]
struct HandshakeState {
    /// From the certificate presented in this handshake.
    verified: Option<FullHandshake>,
    /// That certificate, parsed.
    leaf: Option<Arc<Certificate>>,
    /// From the session that the device wants to resume.
    resumed: Option<FullHandshake>,
    /// The device presented a certificate that stands for its key alone.
    is_key: bool,
    /// The name of the server that the device has requested.
    sni: Option<Box<str>>,
    /// The cipher suite, where rustls tells it to nobody else.
    suite: Option<CipherSuite>,
    /// Why the certificate was rejected that the device presented.
    failure: Option<(rustls::Error, CertificateDer<'static>)>,
}

/// What a device proved in a full handshake, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FullHandshake {
    /// `None` if it presented no certificate.
    pub(super) chain: Option<VerifiedChain>,
    /// The time of the full handshake, in seconds since 1970. Resumption does not renew it.
    pub(super) at: i64,
}

impl Handshake {
    /// Records the chain that was verified in this handshake, and its parsed end-entity certificate.
    pub(super) fn verified(&self, full: FullHandshake, leaf: Arc<Certificate>) {
        let mut state = self.0.lock();
        (state.verified, state.leaf) = (Some(full), Some(leaf));
    }

    /// Records the chain of the session being resumed.
    pub(super) fn resumed(&self, full: FullHandshake) {
        self.0.lock().resumed = Some(full);
    }

    /// Records that the handshake is a full one: rustls did not resume the session it looked up.
    pub(super) fn set_full(&self) {
        self.0.lock().resumed = None;
    }

    /// Records that the device presented a certificate that stands for its key alone.
    pub(super) fn set_key(&self) {
        self.0.lock().is_key = true;
    }

    /// Whether the device presented a certificate that stands for its key alone.
    pub(super) fn is_key(&self) -> bool {
        self.0.lock().is_key
    }

    /// The name of the server that the device has requested.
    pub(super) fn sni(&self) -> Option<Box<str>> {
        self.0.lock().sni.clone()
    }

    /// The cipher suite, as [`HandshakeKeys`] has noted it.
    pub(super) fn suite(&self) -> Option<CipherSuite> {
        self.0.lock().suite
    }

    /// Records that the certificate that the device presented is rejected: whoever waits for the end of the handshake may do so
    /// elsewhere.
    pub(super) fn failed(&self, error: &rustls::Error, certificate: &CertificateDer<'_>) {
        self.0.lock().failure = Some((error.clone(), certificate.clone().into_owned()));
    }

    /// Why the certificate was rejected, and the certificate.
    pub(super) fn take_failure(&self) -> Option<(rustls::Error, CertificateDer<'static>)> {
        self.0.lock().failure.take()
    }

    /// Whether the session was resumed, once the handshake is complete.
    pub(super) fn is_resumed(&self) -> bool {
        self.0.lock().resumed.is_some()
    }

    /// What the ticket of this session has to contain. `None`: sessions with keys are not resumed, because the key may
    /// have been removed.
    pub(super) fn full(&self) -> Option<FullHandshake> {
        let state = self.0.lock();
        let full = state.verified.clone().or_else(|| state.resumed.clone());
        (!state.is_key).then(|| full.unwrap_or_else(|| FullHandshake { chain: None, at: now() }))
    }

    /// The chain that the finished handshake rests on; and the device's certificate, if it was parsed in this handshake,
    /// as it is in full ones.
    pub(super) fn take(&self, is_resumed: bool) -> (Option<VerifiedChain>, Option<Arc<Certificate>>) {
        let mut state = self.0.lock();
        let (full, leaf) =
            if is_resumed { (state.resumed.take(), None) } else { (state.verified.take(), state.leaf.take()) };
        (full.and_then(|full| full.chain), leaf)
    }
}

/// The server's keys for one handshake, which notes the name that the device requests: rustls tells it to nobody else.
#[derive(Debug)]
pub(super) struct HandshakeKeys {
    pub(super) keys: Arc<dyn ResolvesServerCert>,
    pub(super) handshake: Arc<Handshake>,
    /// Those of the gateway, in its order of preference, if the one that is chosen has to be noted.
    pub(super) suites: Option<Arc<CryptoProvider>>,
}

impl ResolvesServerCert for HandshakeKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut state = self.handshake.0.lock();
        state.sni = hello.server_name().map(Into::into);
        if let Some(provider) = &self.suites {
            // As rustls chooses with `ignore_client_order`. Of TLS 1.3, which is all that QUIC has.
            let is_tls13 = |suite: &&SupportedCipherSuite| matches!(suite, SupportedCipherSuite::Tls13(_));
            let suites = provider.cipher_suites.iter().filter(is_tls13).map(SupportedCipherSuite::suite);
            state.suite = suites.into_iter().find(|suite| hello.cipher_suites().contains(suite));
        }
        drop(state);
        self.keys.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.keys.only_raw_public_keys()
    }
}
