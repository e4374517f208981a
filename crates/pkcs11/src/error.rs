//! Errors of URIs and of the keys that they name. No error shows a PIN.

use std::error::Error;
use std::fmt;

/// Why a PKCS#11 URI is not valid. Shows no PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError(pub(crate) String);

impl UriError {
    /// An example of a valid URI.
    pub fn hint(&self) -> &'static str {
        "\"pkcs11:token=gateway;object=tls?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=pin\""
    }
}

impl fmt::Display for UriError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the PKCS#11 URI {}", self.0)
    }
}

impl Error for UriError {}

/// Why the key that a URI names cannot be used. The URI is shown without its PIN.
#[derive(Clone, Debug)]
pub enum KeyError {
    /// The certificate's public key is of an unsupported kind.
    Unsupported(String),
    /// The token cannot sign, for this reason.
    Token(String, String),
    /// The key does not belong to the certificate.
    OtherCertificate(String),
}

impl KeyError {
    /// What the operator can do about the error.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Token(..) => Some("`pkcs11-tool --module ... --login --list-objects` lists the keys of the token"),
            Self::Unsupported(_) | Self::OtherCertificate(_) => None,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(uri) => {
                write!(f, "{uri}: the certificate's key is not supported in tokens: use P-256, P-384, Ed25519 or RSA")
            }
            Self::Token(uri, error) => write!(f, "{uri}: the token cannot sign: {error}"),
            Self::OtherCertificate(uri) => write!(f, "{uri}: the key does not belong to the certificate"),
        }
    }
}

impl Error for KeyError {}
