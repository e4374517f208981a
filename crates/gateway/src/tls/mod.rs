//! TLS towards devices and towards brokers. Enters: a connected stream and a deadline. Leaves: an encrypted stream and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

mod certificate;
mod client;
mod dn;
mod files;
mod server;
mod verifier;

pub use certificate::{AlternativeNames, Certificate, Name};
pub use client::ClientTls;
pub use files::{expiry, read_chain};
pub use server::{Accepted, ServerTls};

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
