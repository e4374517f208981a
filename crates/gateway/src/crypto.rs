//! The process's provider of cryptography.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Makes aws-lc-rs the process's provider of cryptography. To be called first: with two providers in the dependency
/// tree, rustls' builders panic unless one was chosen.
pub fn install_crypto_provider() {
    // An error says that a provider was installed before: this one, by an earlier call.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    install_crypto_provider();
    Arc::clone(CryptoProvider::get_default().expect("it was just installed"))
}
