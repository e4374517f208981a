//! Who is at the other end of a finished handshake of rustls, whatever carried it. Enters: the state of the TLS connection.
//! Leaves: the peer and its evidence, or a rejection. Not here: streams.

use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, CommonState, HandshakeKind, ProtocolVersion};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::handshake::Handshake;
use super::raw_keys::{KnownKeys, Owner};
use super::secured::{SecuredClient, or_registry_unavailable};
use crate::devices::UsedCredential;
use crate::evidence::Evidence;
use crate::outcome::{Reject, note_certificate, note_detail, note_key};
use crate::peer::{Certificate, Identity, KeyFormat, Peer, PeerAddress, RawKey, TlsSession};
use crate::pki::parse_verified;
use crate::util::crypto::sha256;

/// A finished handshake.
pub(super) struct Finished<'a> {
    /// Those that the device presented, or its raw public key in place of them.
    pub(super) certificates: Option<&'a [CertificateDer<'a>]>,
    pub(super) resumed: bool,
    pub(super) version: &'static str,
    pub(super) suite: Option<CipherSuite>,
    pub(super) alpn: Option<&'a [u8]>,
    /// The name that the client requested.
    pub(super) sni: Option<Box<str>>,
    pub(super) address: PeerAddress,
}

impl<'a> Finished<'a> {
    /// Of a TLS connection over TCP.
    pub(super) fn of(session: &'a CommonState, sni: Option<Box<str>>, address: PeerAddress) -> Self {
        Self {
            certificates: session.peer_certificates(),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            suite: session.negotiated_cipher_suite().map(|suite| suite.suite()),
            alpn: session.alpn_protocol(),
            sni,
            address,
        }
    }

    /// Identifies a device by its certificate; one without a certificate has no identity.
    pub(super) fn by_certificate(&self, handshake: &Handshake) -> Result<SecuredClient, Reject> {
        let leaf = self.certificates.and_then(|chain| chain.first());
        let (chain, parsed) = handshake.take(self.resumed);
        let is_same = match (leaf, &chain) {
            (Some(leaf), Some(chain)) => chain.is_of(leaf),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            // Must not happen. Without the chain of this certificate, its revocation could not be evaluated later.
            return Err(Reject::CertificateInvalid);
        }
        let identity = match leaf {
            None => Identity::None,
            // webpki has parsed the leaf. If x509-parser cannot, reject the device rather than admit it without an
            // identity.
            Some(leaf) => {
                let certificate = parsed.or_else(|| parse_verified(leaf)).ok_or(Reject::CertificateInvalid)?;
                Identity::Certificate(certificate)
            }
        };
        Ok(SecuredClient {
            peer: self.peer(identity, self.resumed),
            evidence: chain.map(Evidence::Chain),
            device: None,
            credentials: None,
        })
    }

    /// Identifies a device by its raw public key. `keys`: those that the listener accepts.
    pub(super) fn by_raw_key(&self, keys: Option<&KnownKeys>) -> Result<SecuredClient, Reject> {
        let key = self.certificates.and_then(|chain| chain.first());
        self.by_key(key.ok_or(Reject::UnknownKey)?, KeyFormat::Raw, keys)
    }

    /// Identifies a device by the public key in its certificate. Nothing else in that certificate counts: the device may
    /// have written it.
    pub(super) fn by_key_of_certificate(&self, keys: Option<&KnownKeys>) -> Result<SecuredClient, Reject> {
        let leaf = self.certificates.and_then(|chain| chain.first()).ok_or(Reject::UnknownKey)?;
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| Reject::CertificateInvalid)?;
        self.by_key(certificate.public_key().raw, KeyFormat::Certificate, keys).inspect_err(|_| {
            if let Some(certificate) = Certificate::of(leaf, &certificate) {
                note_certificate(certificate.subject.dn.as_deref(), &certificate.serial);
            }
        })
    }

    /// `key` is a SubjectPublicKeyInfo in DER.
    fn by_key(&self, key: &[u8], format: KeyFormat, keys: Option<&KnownKeys>) -> Result<SecuredClient, Reject> {
        let keys = keys.ok_or(Reject::UnknownKey)?;
        let fingerprint = sha256(key);
        // Looked up only after the device has proved to own the key: otherwise anyone who has seen a public key could
        // probe whether it is known.
        let unknown = || {
            note_key(&hex::encode(fingerprint));
            note_detail("neither the key file nor a device of the registry has the key with this fingerprint");
            or_registry_unavailable(Reject::UnknownKey, Reject::UnknownKey, keys.registry())
        };
        let (evidence, device, name) = match keys.owner(&fingerprint).ok_or_else(unknown)? {
            Owner::Named(name) => (Evidence::RawKey { fingerprint, name: name.clone(), format }, None, Some(name)),
            Owner::Device(entry) => (
                Evidence::DeviceKey(Box::new(entry.evidence(UsedCredential::Key(fingerprint, format)))),
                Some(entry),
                None,
            ),
        };
        let identity = Identity::RawKey(RawKey { fingerprint, name });
        Ok(SecuredClient { peer: self.peer(identity, false), evidence: Some(evidence), device, credentials: None })
    }

    fn peer(&self, identity: Identity, resumed: bool) -> Peer {
        let suite = self.suite.as_ref().and_then(CipherSuite::as_str).unwrap_or_default();
        let tls = TlsSession {
            version: self.version,
            // rustls writes TLS13_ where the standard (RFC 8446, B.4), NGINX and OpenSSL write TLS_.
            cipher: suite.strip_prefix("TLS13_").map_or_else(|| suite.into(), |rest| format!("TLS_{rest}").into()),
            sni: self.sni.clone(),
            alpn: self.alpn.and_then(|name| std::str::from_utf8(name).ok()).map(Into::into),
            resumed,
        };
        Peer::new(self.address, Some(tls), identity)
    }
}
