//! Judges a device's certificate chain: signatures up to a configured anchor, validity, purpose, depth.
//!
//! rustls' own verifier does this but for the depth, and gives errors that are coarser than the log wants; so webpki is
//! asked directly. Everything that proves something is webpki's and the provider's.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};

use super::handshake::{Handshake, Proof};
use crate::crypto::provider;
use crate::outcome::Reject;
use crate::trust::{Anchors, Distrust, Trust};

/// Certificates beside its own that a device may show, and octets of all of them.
const MAX_CHAIN: usize = 10;
const MAX_CHAIN_LEN: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct DeviceVerifier {
    trust: Arc<Trust>,
    /// Those that clients are told of.
    anchors: Arc<Anchors>,
    mandatory: bool,
    provider: Arc<CryptoProvider>,
    handshake: Arc<Handshake>,
}

impl DeviceVerifier {
    pub(super) fn new(trust: Arc<Trust>, anchors: Arc<Anchors>, mandatory: bool, handshake: Arc<Handshake>) -> Self {
        Self { trust, anchors, mandatory, provider: provider(), handshake }
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn offer_client_auth(&self) -> bool {
        // Called in full handshakes only.
        self.handshake.is_full();
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.anchors.subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // Certificates that are not on the path are kept, too, by whoever keeps the session.
        let len: usize = intermediates.iter().map(|certificate| certificate.len()).sum::<usize>() + end_entity.len();
        if len > MAX_CHAIN_LEN || intermediates.len() > MAX_CHAIN {
            return Err(alert(webpki::Error::MaximumPathDepthExceeded).into());
        }
        let credential = self.trust.verify(end_entity, intermediates, now).map_err(alert)?;
        let at = now.as_secs().cast_signed();
        self.trust.judge_for_now(&credential, at).map_err(distrusted)?;
        self.handshake.verified(Proof { credential: Some(credential), at });
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The error that makes rustls send the fitting alert [RFC 8446, 6.2] and lets [`reject`] find the reason again.
fn alert(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// Likewise, for a chain whose signatures are good.
fn distrusted(distrust: Distrust) -> CertificateError {
    match distrust {
        Distrust::UnknownCa => CertificateError::UnknownIssuer,
        Distrust::TooLong => alert(webpki::Error::MaximumPathDepthExceeded),
        Distrust::Expired => CertificateError::Expired,
        Distrust::NotYetValid => CertificateError::NotValidYet,
        Distrust::Revoked => CertificateError::Revoked,
        Distrust::CrlMissing | Distrust::OcspMissing => CertificateError::UnknownRevocationStatus,
        Distrust::CrlExpired => CertificateError::ExpiredRevocationList,
    }
}

/// The reason in the log for a handshake that failed.
pub(super) fn reject(error: &Error) -> Reject {
    match error {
        Error::NoCertificatesPresented => Reject::NoCertificate,
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reject::CertificateExpired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Reject::CertificateNotYetValid
            }
            CertificateError::UnknownIssuer => Reject::UnknownCa,
            CertificateError::Revoked => Reject::CertificateRevoked,
            CertificateError::UnknownRevocationStatus => Reject::CrlMissing,
            CertificateError::ExpiredRevocationList => Reject::CrlExpired,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Reject::CertificatePurpose
            }
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::UnsupportedCertVersion) => Reject::CertificateVersion,
                Some(webpki::Error::MaximumPathDepthExceeded | webpki::Error::PathLenConstraintViolated) => {
                    Reject::CertificateChainTooLong
                }
                _ => Reject::CertificateInvalid,
            },
            _ => Reject::CertificateInvalid,
        },
        Error::PeerIncompatible(error) => match error {
            rustls::PeerIncompatible::Tls12NotOffered
            | rustls::PeerIncompatible::Tls12NotOfferedOrEnabled
            | rustls::PeerIncompatible::Tls13RequiredForQuic
            | rustls::PeerIncompatible::SupportedVersionsExtensionRequired
            // The extension came with TLS 1.2 (RFC 5246, 7.4.1.4.1): without it, the client is older.
            | rustls::PeerIncompatible::SignatureAlgorithmsExtensionRequired => Reject::TlsVersion,
            // It has shown none of those that are known here.
            rustls::PeerIncompatible::IncorrectCertificateTypeExtension => Reject::UnknownKey,
            _ => Reject::TlsParameters,
        },
        Error::NoApplicationProtocol => Reject::TlsParameters,
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Reject::NotTls,
        Error::AlertReceived(alert) => match alert {
            rustls::AlertDescription::BadCertificate
            | rustls::AlertDescription::UnknownCA
            | rustls::AlertDescription::CertificateUnknown
            | rustls::AlertDescription::CertificateExpired
            | rustls::AlertDescription::CertificateRevoked
            | rustls::AlertDescription::UnsupportedCertificate => Reject::ServerCertificateRefused,
            rustls::AlertDescription::ProtocolVersion => Reject::TlsVersion,
            _ => Reject::HandshakeFailed,
        },
        _ => Reject::HandshakeFailed,
    }
}
