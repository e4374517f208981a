//! The cryptography provider of the process, and keyed digests.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::{digest, hmac, rand};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use zeroize::Zeroizing;

use super::hkdf::with_fast_hkdf;

/// Installs aws-lc-rs as the cryptography provider of the process. Call it before any use of rustls: with two providers
/// in the dependency tree, rustls' builders panic unless one is installed.
pub fn install_crypto_provider() {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = provider.cipher_suites.iter().map(with_fast_hkdf).collect();
    // An error means that an earlier call has installed the provider.
    let _ = provider.install_default();
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    if CryptoProvider::get_default().is_none() {
        install_crypto_provider();
    }
    Arc::clone(CryptoProvider::get_default().expect("it was just installed"))
}

/// The same provider with the AES-128 cipher suites in front. A server chooses the first one that the client offers.
pub(crate) fn provider_preferring_aes128() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = CryptoProvider::clone(&provider());
        // The sort is stable, so the others keep their order.
        provider.cipher_suites.sort_by_key(|suite| !is_aes128(suite.suite()));
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

const fn is_aes128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// HMAC-SHA-256 of several fields under a random key of this process: it recognizes a secret without storing it, and
/// cannot be searched for offline.
pub(crate) fn keyed_digest(fields: &[&[u8]]) -> [u8; 32] {
    static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
        hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new()).expect("the system has random numbers")
    });
    let mut context = hmac::Context::with_key(&KEY);
    for field in fields {
        // The length separates the fields, so that ("ab", "c") and ("a", "bc") differ.
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Distinguishes a secret from others, within this process.
pub(crate) fn tag(secret: &[u8]) -> u64 {
    keyed_digest(&[secret]).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// A new random key of 32 bytes.
pub fn random_key() -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; 32]);
    rand::fill(&mut key).expect("the system has random numbers");
    key
}
