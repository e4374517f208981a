//! The key schedule of TLS 1.3 for rustls [RFC 5869; RFC 8446, 7.1]: rustls' own HKDF over aws-lc's HMAC.
//!
//! The HKDF of aws-lc-rs, which rustls' provider uses, extracts a secret again for every key that is derived from it, and
//! prepares its HMAC key again. Without that, a resumed connect has a twelfth fewer instructions.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::{CipherSuite, SupportedCipherSuite, Tls13CipherSuite};

/// HMAC with one of aws-lc's hash functions.
struct AwsLcHmac(hmac::Algorithm);

/// A prepared key: every tag begins with a copy of its state.
struct AwsLcKey(hmac::Key);

static SHA256: HkdfUsingHmac<'static> = HkdfUsingHmac(&AwsLcHmac(hmac::HMAC_SHA256));
static SHA384: HkdfUsingHmac<'static> = HkdfUsingHmac(&AwsLcHmac(hmac::HMAC_SHA384));

/// rustls' cipher suite with the HKDF of this module; the same suite, if it is one of TLS 1.2.
pub(super) fn with_fast_hkdf(suite: &SupportedCipherSuite) -> SupportedCipherSuite {
    static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
        let suites = rustls::crypto::aws_lc_rs::DEFAULT_CIPHER_SUITES.iter().filter_map(SupportedCipherSuite::tls13);
        let replaced = suites.map(|suite| Tls13CipherSuite {
            hkdf_provider: match suite.common.suite {
                CipherSuite::TLS13_AES_256_GCM_SHA384 => &SHA384,
                CipherSuite::TLS13_AES_128_GCM_SHA256 | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => &SHA256,
                _ => suite.hkdf_provider,
            },
            common: rustls::crypto::CipherSuiteCommon { ..suite.common },
            ..*suite
        });
        replaced.collect()
    });
    let ours = SUITES.iter().find(|ours| ours.common.suite == suite.suite());
    ours.map_or(*suite, SupportedCipherSuite::Tls13)
}

impl Hmac for AwsLcHmac {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(AwsLcKey(hmac::Key::new(self.0, key)))
    }

    fn hash_output_len(&self) -> usize {
        self.0.digest_algorithm().output_len()
    }
}

impl Key for AwsLcKey {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().digest_algorithm().output_len()
    }
}
