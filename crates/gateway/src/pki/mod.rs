//! Verifies device certificates at the handshake and while the device is connected. Enters: a chain as the device presented
//! it, or one that was verified before. Leaves: `Ok` or a `ChainError`. Not here: a handshake or a session. Only
//! [`ChainVerifier::check_revocation`] and background fetches wait for a network.

mod anchors;
mod chain;
mod crl;
mod issuers;
mod ocsp;
mod revocation;
mod signature;
mod source;
mod statuses;
mod verifier;

pub use anchors::Anchors;
pub use chain::{ChainCertificate, IssuerId, Key, Serial, VerifiedChain};
pub use revocation::RevocationStore;
pub use source::CrlSummary;
pub use verifier::ChainVerifier;
