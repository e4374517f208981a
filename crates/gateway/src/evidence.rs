//! The evidence that a session relies on: what the client proved, and what authenticators know about it. Evidence may
//! expire, change or be withdrawn while the client is connected. Plain data without secrets;
//! `session::evaluate` decides whether it is still sufficient.

use std::sync::Arc;

use crate::config::tables::TokenAlgorithm;
use crate::devices::DeviceEvidence;
use crate::peer::{Fingerprint, KeyFormat};
use crate::pki::{Key, VerifiedChain};

/// Evidence of a client's identity. A session has at most one from TLS and one from an authenticator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A verified certificate chain.
    Chain(VerifiedChain),
    /// A public key that a file lists.
    RawKey {
        /// The key.
        fingerprint: Fingerprint,
        /// Its name in the file.
        name: Box<str>,
        /// How the device presented it.
        format: KeyFormat,
    },
    /// A pre-shared key that a file lists.
    Psk {
        /// Its identity.
        identity: Box<str>,
        /// Distinguishes the key from others of this identity.
        tag: u64,
    },
    /// A key of a device of the registry, used in the handshake.
    DeviceKey(Box<DeviceEvidence>),
    /// What an authenticator verified.
    Authenticated {
        /// The authenticator's name.
        by: Arc<str>,
        /// What it verified.
        what: Authenticated,
    },
}

/// What an authenticator verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authenticated {
    /// The password of a user of a password file.
    Password {
        /// The user.
        user: Box<str>,
        /// Distinguishes the user's hash from others.
        tag: u64,
    },
    /// A token.
    Token {
        /// The algorithm of its signature.
        algorithm: TokenAlgorithm,
        /// Distinguishes the requirements on tokens from those of another configuration.
        requirements: u64,
        /// Distinguishes the key that verified it from others.
        key: u64,
        /// Its `exp` in seconds since 1970: the token is invalid from then on [RFC 7519, 4.1.4].
        expires_at: i64,
    },
    /// The response of an authentication service.
    Response {
        /// Distinguishes the service's URL from others.
        service: u64,
        /// Expiry in seconds since 1970; `None`: it does not expire.
        expires_at: Option<i64>,
    },
    /// A device of the registry.
    Device {
        /// The device, and how it proved that it is the device.
        device: Box<DeviceEvidence>,
        /// Distinguishes how the authenticator found the device from other ways to find it.
        finder: u64,
    },
}

impl Evidence {
    /// Its keys in the session index. A change under one of them means that the session must be evaluated. Different
    /// changes may share a key: the index selects candidates, evaluation decides.
    pub fn index_keys(&self) -> Vec<Key> {
        match self {
            Evidence::Chain(chain) => chain.certificates().iter().map(crate::pki::ChainCertificate::key).collect(),
            Evidence::DeviceKey(device) => vec![crate::devices::key(&device.id)],
            // Not indexed: when such a file changes, all sessions are evaluated.
            Evidence::RawKey { .. } | Evidence::Psk { .. } => Vec::new(),
            Evidence::Authenticated { what, .. } => match what {
                Authenticated::Device { device, .. } => vec![crate::devices::key(&device.id)],
                Authenticated::Password { .. } | Authenticated::Token { .. } | Authenticated::Response { .. } => {
                    Vec::new()
                }
            },
        }
    }

    /// The last second in which it is valid, since 1970; `None`: it does not expire.
    pub fn expires(&self) -> Option<i64> {
        match self {
            Evidence::Chain(chain) => Some(chain.not_after()),
            Evidence::Authenticated { what, .. } => match what {
                Authenticated::Token { expires_at, .. } => Some(expires_at.saturating_sub(1)),
                Authenticated::Response { expires_at, .. } => expires_at.map(|expires_at| expires_at.saturating_sub(1)),
                Authenticated::Password { .. } | Authenticated::Device { .. } => None,
            },
            Evidence::RawKey { .. } | Evidence::Psk { .. } | Evidence::DeviceKey(_) => None,
        }
    }

    /// The certificate chain, if it is one.
    pub const fn chain(&self) -> Option<&VerifiedChain> {
        match self {
            Evidence::Chain(chain) => Some(chain),
            _ => None,
        }
    }
}
