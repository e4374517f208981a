//! Private keys that stay in a PKCS#11 token: a smart card, an HSM or a key service. Takes a URI [RFC 7512] and the
//! certificate; returns a key that signs handshakes, after verifying that it belongs to the certificate.
//!
//! A handshake waits while its token signs. On a multi-threaded runtime other tasks continue, but a token that takes more
//! than a few milliseconds per signature limits how many devices can connect per second.

mod error;
mod token;
mod uri;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

pub use error::{KeyError, UriError};
use token::Token;
pub use uri::TokenUri;

/// Opens the key that a URI names. Signs once and verifies the signature with the certificate's public key, using the
/// algorithms of `provider`.
///
/// # Errors
/// The kind of key is not supported, the token cannot sign, or the key does not belong to the certificate.
pub fn signing_key(
    uri: &TokenUri,
    certificate: &CertificateDer<'_>,
    provider: &CryptoProvider,
) -> Result<Arc<dyn SigningKey>, KeyError> {
    let kind = Kind::of(certificate).ok_or_else(|| KeyError::Unsupported(uri.to_string()))?;
    let key = TokenKey { token: Arc::new(Token::new(uri.clone())), kind };
    let scheme = kind.schemes()[0];
    let signature = key.token.sign(scheme, PROBE).map_err(|error| KeyError::Token(uri.to_string(), error))?;
    let leaf = EndEntityCert::try_from(certificate);
    let algorithms = provider.signature_verification_algorithms.mapping;
    let supported = algorithms.iter().filter(|(mapped, _)| *mapped == scheme).flat_map(|(_, all)| *all);
    let is_match = leaf.is_ok_and(|leaf| {
        supported.into_iter().any(|algorithm| leaf.verify_signature(*algorithm, PROBE, &signature).is_ok())
    });
    if is_match { Ok(Arc::new(key)) } else { Err(KeyError::OtherCertificate(uri.to_string())) }
}

/// The message that is signed to verify that the key belongs to the certificate.
const PROBE: &[u8] = b"portcullis: is this the key of the certificate?";

/// The kind of a key, which decides its signature schemes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Kind {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let spki = certificate.public_key();
        match spki.parsed() {
            Ok(PublicKey::RSA(_)) => Some(Kind::Rsa),
            Ok(PublicKey::EC(point)) => match point.key_size() {
                256 => Some(Kind::P256),
                384 => Some(Kind::P384),
                _ => None,
            },
            _ => (spki.algorithm.algorithm.to_id_string() == "1.3.101.112").then_some(Kind::Ed25519),
        }
    }

    /// The signature schemes, in order of preference.
    const fn schemes(self) -> &'static [SignatureScheme] {
        match self {
            Kind::P256 => &[SignatureScheme::ECDSA_NISTP256_SHA256],
            Kind::P384 => &[SignatureScheme::ECDSA_NISTP384_SHA384],
            Kind::Ed25519 => &[SignatureScheme::ED25519],
            Kind::Rsa => &[
                SignatureScheme::RSA_PSS_SHA256,
                SignatureScheme::RSA_PSS_SHA384,
                SignatureScheme::RSA_PSS_SHA512,
                SignatureScheme::RSA_PKCS1_SHA256,
                SignatureScheme::RSA_PKCS1_SHA384,
                SignatureScheme::RSA_PKCS1_SHA512,
            ],
        }
    }
}

/// A key in a token.
#[derive(Debug)]
struct TokenKey {
    token: Arc<Token>,
    kind: Kind,
}

impl SigningKey for TokenKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.kind.schemes().iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(TokenSigner { token: Arc::clone(&self.token), scheme: *scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.kind {
            Kind::P256 | Kind::P384 => SignatureAlgorithm::ECDSA,
            Kind::Ed25519 => SignatureAlgorithm::ED25519,
            Kind::Rsa => SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct TokenSigner {
    token: Arc<Token>,
    scheme: SignatureScheme,
}

impl Signer for TokenSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature = self.token.sign(self.scheme, message);
        signature.map_err(|error| {
            tracing::error!(key = %self.token.uri(), %error, "PKCS#11 token failed to sign");
            rustls::Error::General(format!("the PKCS#11 token failed to sign: {error}"))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
