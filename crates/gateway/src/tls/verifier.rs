//! Connects rustls to [`ChainVerifier`]. Enters: the certificates that a device presented, and rustls' errors. Leaves:
//! rustls' verdict and alert, and the reason in the log.
//!
//! rustls' own verifier lacks a depth limit, and its errors are coarser than the reasons in the log. Therefore webpki is
//! called directly; all cryptography stays in webpki and the provider.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, InvalidMessage, OtherError,
    PeerIncompatible, PeerMisbehaved, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::handshake::{FullHandshake, Handshake};
use crate::outcome::{ChainError, Reject, note_certificate, note_detail};
use crate::peer::Certificate;
use crate::pki::{Anchors, ChainVerifier};
use crate::util::crypto::provider;

/// The limits of certificates that a device may present besides its own, and of bytes in total.
const MAX_CHAIN: usize = 10;
const MAX_CHAIN_LEN: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct DeviceVerifier {
    /// `None`: no authority is trusted, and every certificate stands for its key alone.
    trust: Option<Arc<ChainVerifier>>,
    /// Whether a self-signed certificate stands for its key alone.
    accepts_keys: bool,
    /// The anchors whose names are sent to devices; `None`: no names are sent.
    anchors: Option<Arc<Anchors>>,
    mandatory: bool,
    provider: Arc<CryptoProvider>,
    handshake: Arc<Handshake>,
}

impl DeviceVerifier {
    pub(super) fn new(
        trust: Option<Arc<ChainVerifier>>,
        accepts_keys: bool,
        anchors: Option<Arc<Anchors>>,
        mandatory: bool,
        handshake: Arc<Handshake>,
    ) -> Self {
        Self { trust, accepts_keys, anchors, mandatory, provider: provider(), handshake }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // rustls keeps all presented certificates with the session, also those that are not on the path.
        let len: usize = intermediates.iter().map(|certificate| certificate.len()).sum::<usize>() + end_entity.len();
        if len > MAX_CHAIN_LEN || intermediates.len() > MAX_CHAIN {
            return Err(into_rustls(ChainError::TooLong).into());
        }
        let trust = self.trust.as_ref().filter(|_| !self.accepts_keys || !is_self_issued(end_entity));
        let Some(trust) = trust else {
            if !self.accepts_keys {
                return Err(into_rustls(ChainError::UnknownCa).into());
            }
            // Whether the key is known is found out once the device has proved to own it.
            self.handshake.set_key();
            return Ok(ClientCertVerified::assertion());
        };
        let (chain, leaf) = trust.verify(end_entity, intermediates, now).map_err(into_rustls)?;
        let at = now.as_secs().cast_signed();
        trust.evaluate_provisionally(&chain, at).map_err(into_rustls)?;
        self.handshake.verified(FullHandshake { chain: Some(chain), at }, leaf);
        Ok(ClientCertVerified::assertion())
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn offer_client_auth(&self) -> bool {
        // rustls calls this in full handshakes only.
        self.handshake.set_full();
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.anchors.as_ref().map_or(&[], |anchors| anchors.subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now).inspect_err(|error| {
            note_presented(end_entity);
            self.handshake.failed(error, end_entity);
        })
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

/// Asks for no certificate, and notes that the handshake is a full one.
#[derive(Debug)]
pub(super) struct NoCertificates(pub(super) Arc<Handshake>);

impl ClientCertVerifier for NoCertificates {
    fn offer_client_auth(&self) -> bool {
        // As above.
        self.0.set_full();
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Err(Error::UnsupportedNameType)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::UnsupportedNameType)
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::UnsupportedNameType)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Vec::new()
    }
}

/// Notes whose certificate it is, for the log: it may be rejected.
pub(super) fn note_presented(certificate: &CertificateDer<'_>) {
    if let Some(certificate) = Certificate::from_der(certificate) {
        note_certificate(certificate.subject.dn.as_deref(), &certificate.serial);
    }
}

/// Notes rustls' error for the log, unless the reason says it all.
pub(super) fn note_error(error: &Error) {
    match error {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {}
        Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension) => note_detail(
            "the client has no raw public key; `certificates = true` of [listener.tls.raw_keys] accepts self-signed \
             certificates in place of it",
        ),
        Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired) => {
            note_detail("the client has no TLS 1.2");
        }
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NoCipherSuitesInCommon) => {
            note_detail("the client offers no ECDHE with AES-GCM or ChaCha20-Poly1305 on a curve that the gateway has");
        }
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => {
            note_detail("the server name that the client requests is no host name");
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            note_detail("the first bytes are not TLS: perhaps MQTT without TLS, or HTTP");
        }
        Error::NoApplicationProtocol => note_detail("the client offers other protocols than `alpn`"),
        Error::AlertReceived(AlertDescription::UnknownCA) => note_detail(
            "the client does not know who issued the server's certificate: it needs the root, and `certificate` the \
             intermediates",
        ),
        Error::AlertReceived(alert) => note_detail(&format!("the client ended the handshake: {alert:?}")),
        error => note_detail(&error.to_string()),
    }
}

fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, certificate)| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

/// Converts an error for rustls. The variant selects the alert that rustls sends [RFC 8446, 6.2]. The mapping is
/// one-to-one, so that [`from_rustls`] can reverse it.
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
        // Sent as certificate_unknown, the alert for all other errors.
        ChainError::TooLong
        | ChainError::Version
        | ChainError::NotACa
        | ChainError::Name
        | ChainError::Invalid
        | ChainError::OcspMissing => CertificateError::Other(OtherError(Arc::new(error))),
    }
}

/// Reverses [`into_rustls`]. Errors of rustls itself, for instance about the signature, are converted the same way; those
/// without a counterpart become [`ChainError::Invalid`].
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
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // The extension came with TLS 1.2 (RFC 5246, 7.4.1.4.1): without it, the client is older.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Reject::TlsVersion,
            // The device presented no raw public key.
            PeerIncompatible::IncorrectCertificateTypeExtension => Reject::UnknownKey,
            _ => Reject::TlsParameters,
        },
        Error::NoApplicationProtocol => Reject::TlsParameters,
        Error::PeerMisbehaved(rustls::PeerMisbehaved::ServerNameMustContainOneHostName)
        | Error::InvalidMessage(rustls::InvalidMessage::InvalidServerName) => Reject::InvalidServerName,
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
    fn chain_errors_survive_the_round_trip_through_rustls() {
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
                ChainError::TooLong
                | ChainError::Version
                | ChainError::NotACa
                | ChainError::Name
                | ChainError::Invalid
                | ChainError::OcspMissing => Alert::CertificateUnknown,
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
