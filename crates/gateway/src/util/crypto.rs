//! The process's provider of cryptography.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::{digest, hmac, rand};
use rustls::crypto::CryptoProvider;
use zeroize::Zeroizing;

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

/// SHA-256.
pub(crate) fn sha256(octets: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, octets).as_ref());
    out
}

/// A keyed digest that this process alone can make: for what is to be recognised, but never to be found out.
pub(crate) fn keyed_digest(fields: &[&[u8]]) -> [u8; 32] {
    static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
        hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new()).expect("the system has random numbers")
    });
    let mut context = hmac::Context::with_key(&KEY);
    for field in fields {
        // Where one ends and the next begins counts, too.
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// What tells a secret from another, for this process only.
pub(crate) fn tag(secret: &[u8]) -> u64 {
    keyed_digest(&[secret]).first_chunk().map_or(0, |octets| u64::from_be_bytes(*octets))
}

/// A new key of 32 random octets.
pub fn random_key() -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; 32]);
    rand::fill(&mut key).expect("the system has random numbers");
    key
}
