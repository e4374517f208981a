//! What can be wrong with a URI, or with the key that it names.

use std::error::Error;
use std::fmt;

/// A PKCS#11 URI that cannot be used. It shows no PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriError(pub(crate) String);

impl UriError {
    /// What to do about it: a URI as it should be.
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
    /// The certificate's public key is of a kind that tokens are not asked to use.
    Unsupported(String),
    /// The token does not sign, for this reason.
    Token(String, String),
    /// The key is not the certificate's.
    OtherCertificate(String),
}

impl KeyError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Token(..) => Some("`pkcs11-tool --module ... --login --list-objects` says what the token has"),
            Self::Unsupported(_) | Self::OtherCertificate(_) => None,
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(uri) => {
                write!(f, "{uri}: the certificate's key is none that tokens are asked to use")
            }
            Self::Token(uri, error) => write!(f, "{uri}: the token does not sign: {error}"),
            Self::OtherCertificate(uri) => write!(f, "{uri} is not the key of the certificate"),
        }
    }
}

impl Error for KeyError {}
