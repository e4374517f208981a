//! Private keys that stay in a token: a smart card, an HSM, a service that speaks PKCS#11. Takes a URI [RFC 7512] and the
//! certificate; returns a key that signs handshakes, after it has proved to be the certificate's.
//!
//! A token signs while its handshake waits. On a runtime with several threads the others go on, but a token that takes
//! more than a few milliseconds limits how many devices can connect in a second.

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

/// Opens the key that a URI names. It signs once, and the signature is verified with the certificate's public key by
/// `provider`'s algorithms.
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
    let fitting = algorithms.iter().filter(|(mapped, _)| *mapped == scheme).flat_map(|(_, all)| *all);
    let is_its = leaf.is_ok_and(|leaf| {
        fitting.into_iter().any(|algorithm| leaf.verify_signature(*algorithm, PROBE, &signature).is_ok())
    });
    if is_its { Ok(Arc::new(key)) } else { Err(KeyError::OtherCertificate(uri.to_string())) }
}

/// Signed once, to see whose key it is.
const PROBE: &[u8] = b"portcullis: is this the key of the certificate?";

/// What a key can do.
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

    /// The best first.
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
        let signed = self.token.sign(self.scheme, message);
        signed.map_err(|error| {
            tracing::error!(key = %self.token.uri(), %error, "the token does not sign");
            rustls::Error::General(format!("the token does not sign: {error}"))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
