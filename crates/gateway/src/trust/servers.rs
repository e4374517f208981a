//! Verifies servers that the gateway connects to: brokers, authentication services, sources of keys and CRLs.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{TrustAnchors, allows_key_encipherment, may_sign_certificates, may_sign_handshakes};
use crate::outcome::describe_webpki;
use crate::util::crypto::provider;

/// A verifier with its anchors.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    anchors: TrustAnchors,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    pub(crate) fn new(anchors: TrustAnchors) -> Arc<Self> {
        Arc::new(Self { anchors, provider: provider() })
    }

    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = EndEntityCert::try_from(leaf).map_err(|error| describe(error, name))?;
        let path = self.anchors.verify(&parsed, rest, rest.len(), KeyUsage::server_auth(), now);
        let path = path.map_err(|error| describe(error, name))?;
        parsed.verify_is_valid_for_subject_name(name).map_err(|error| describe(error, name))?;
        let allows = |der: &[u8], allows: fn(&X509Certificate<'_>) -> bool| {
            X509Certificate::from_der(der).is_ok_and(|(_, certificate)| allows(&certificate))
        };
        let purpose = || Err(CertificateError::InvalidPurpose.into());
        if !allows(leaf, |it| may_sign_handshakes(it) || allows_key_encipherment(it)) {
            return purpose();
        }
        if !path.intermediate_certificates().all(|authority| allows(&authority.der(), may_sign_certificates)) {
            return purpose();
        }
        Ok(())
    }
}

/// webpki's reason in rustls' terms, which select the alert and the text in the log.
fn describe(error: webpki::Error, name: &ServerName<'_>) -> Error {
    let error = match error {
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        webpki::Error::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        webpki::Error::CertNotValidForName(context) => {
            CertificateError::NotValidForNameContext { expected: name.to_owned(), presented: context.presented }
        }
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        error => return Error::General(format!("the server's certificate: {}", describe_webpki(&error))),
    };
    error.into()
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, rest, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
