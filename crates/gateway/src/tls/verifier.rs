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
use crate::outcome::{ChainError, Reject};
use crate::pki::{Anchors, ChainVerifier};
use crate::util::crypto::provider;

/// Certificates beside its own that a device may show, and octets of all of them.
const MAX_CHAIN: usize = 10;
const MAX_CHAIN_LEN: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct DeviceVerifier {
    trust: Arc<ChainVerifier>,
    /// Those that clients are told of.
    anchors: Arc<Anchors>,
    mandatory: bool,
    provider: Arc<CryptoProvider>,
    handshake: Arc<Handshake>,
}

impl DeviceVerifier {
    pub(super) fn new(
        trust: Arc<ChainVerifier>,
        anchors: Arc<Anchors>,
        mandatory: bool,
        handshake: Arc<Handshake>,
    ) -> Self {
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
            return Err(into_rustls(ChainError::TooLong).into());
        }
        let (chain, leaf) = self.trust.verify(end_entity, intermediates, now).map_err(into_rustls)?;
        let at = now.as_secs().cast_signed();
        self.trust.evaluate_for_now(&chain, at).map_err(into_rustls)?;
        self.handshake.verified(Proof { chain: Some(chain), at }, leaf);
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

/// The error to return to rustls. Its variant makes rustls send the fitting alert [RFC 8446, 6.2], and there is one for
/// each [`ChainError`], so that [`from_rustls`] gives it back.
fn into_rustls(error: ChainError) -> CertificateError {
    match error {
        ChainError::UnknownCa => CertificateError::UnknownIssuer,
        ChainError::Expired => CertificateError::Expired,
        ChainError::NotYetValid => CertificateError::NotValidYet,
        ChainError::Purpose => CertificateError::InvalidPurpose,
        ChainError::Malformed => CertificateError::BadEncoding,
        ChainError::BadSignature => CertificateError::BadSignature,
        ChainError::Revoked => CertificateError::Revoked,
        ChainError::CrlMissing => CertificateError::UnknownRevocationStatus,
        ChainError::CrlExpired => CertificateError::ExpiredRevocationList,
        // certificate_unknown, the alert for all that has none of its own.
        ChainError::TooLong | ChainError::Version | ChainError::Invalid | ChainError::OcspMissing => {
            CertificateError::Other(OtherError(Arc::new(error)))
        }
    }
}

/// The [`ChainError`] that [`into_rustls`] made this of. Errors that rustls finds itself, for instance in the signature,
/// are read the same way; those without a name of ours are [`ChainError::Invalid`].
fn from_rustls(error: &CertificateError) -> ChainError {
    if let CertificateError::Other(OtherError(inner)) = error {
        return inner.downcast_ref().copied().unwrap_or(ChainError::Invalid);
    }
    ChainError::ALL.iter().copied().find(|ours| into_rustls(*ours) == *error).unwrap_or(ChainError::Invalid)
}

/// The reason in the log for a handshake that failed.
pub(super) fn reject(error: &Error) -> Reject {
    match error {
        Error::NoCertificatesPresented => Reject::NoCertificate,
        Error::InvalidCertificate(error) => from_rustls(error).reject(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_errors_come_back_from_rustls_as_they_went() {
        for error in ChainError::ALL {
            let in_rustls = into_rustls(*error);
            assert_eq!(from_rustls(&in_rustls), *error);
            assert_eq!(reject(&Error::InvalidCertificate(in_rustls)), error.reject());
        }
    }

    #[test]
    fn each_chain_error_has_its_alert() {
        use rustls::AlertDescription as Alert;
        for error in ChainError::ALL {
            let expected = match error {
                ChainError::Malformed => Alert::BadCertificate,
                ChainError::Purpose => Alert::UnsupportedCertificate,
                ChainError::Revoked => Alert::CertificateRevoked,
                ChainError::Expired | ChainError::NotYetValid => Alert::CertificateExpired,
                ChainError::UnknownCa | ChainError::CrlMissing | ChainError::CrlExpired => Alert::UnknownCA,
                ChainError::BadSignature => Alert::DecryptError,
                ChainError::TooLong | ChainError::Version | ChainError::Invalid | ChainError::OcspMissing => {
                    Alert::CertificateUnknown
                }
            };
            assert_eq!(Alert::from(into_rustls(*error)), expected, "{error:?}");
        }
    }

    #[test]
    fn errors_of_rustls_own_are_an_invalid_certificate() {
        for error in [CertificateError::BadSignature, CertificateError::ApplicationVerificationFailure] {
            assert_eq!(reject(&Error::InvalidCertificate(error)), Reject::CertificateInvalid);
        }
    }
}
