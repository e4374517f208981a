//! Certificates of devices: whether a chain is accepted now and for as long as the device is connected. Enters: a chain as it
//! was presented, or one that was verified before. Leaves: a verdict. Never here: a handshake or a session; and nothing waits
//! for a network but [`ChainVerifier::check_revocation`] and what fetches in the background.

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
pub use source::CrlNote;
pub use verifier::ChainVerifier;
