//! Verifies device certificates at the handshake and while the device is connected. Enters: a chain as the device presented
//! it, or one that was verified before. Leaves: `Ok` or a `ChainError`. Not here: a handshake or a session. Only
//! [`ChainVerifier::check_revocation`] and background fetches wait for a network.

mod anchors;
mod chain;
mod crl;
mod issuers;
mod ocsp;
mod parsed;
mod revocation;
mod signature;
mod source;
mod statuses;
mod verifier;

pub use anchors::Anchors;
pub use chain::{ChainCertificate, IssuerId, Key, Serial, VerifiedChain};
pub(crate) use parsed::parse_verified;
pub use revocation::RevocationStore;
pub use source::CrlSummary;
pub use verifier::ChainVerifier;

/// Reads a CRL.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_crl(bytes: &[u8]) {
    let _ = crl::Crl::read(bytes, 16).map(|crls| format!("{crls:?}"));
}

/// Reads an OCSP response, also one without a valid signature.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_ocsp(bytes: &[u8]) {
    ocsp::fuzz(bytes);
}
