//! Remembers signatures of certificates that have been verified. Enters: a signature algorithm's key, message and signature.
//! Leaves: the algorithm's answer, the second time without its work.
//!
//! A fleet has one intermediate, and devices come back with the certificate that they had. Verifying an ECDSA signature again
//! costs 50 µs or more, of a handshake of 300. Whether a signature is valid never changes; what does change (validity,
//! revocation, the trust anchors) webpki and `pki` evaluate each time.
//!
//! - A signature is known by a keyed SHA-256 digest of everything that the algorithm sees. Only valid ones are remembered, so a stranger
//!   fills nothing: webpki verifies from the anchor down, and stops at the first signature that is wrong.
//! - Signatures that prove the possession of a key in the handshake do not come here: each is new.

use std::fmt;
use std::sync::LazyLock;

use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use crate::util::crypto::{keyed_digest, provider};
use crate::util::recent::{Key, Recent};

/// The limit of remembered signatures.
const MAX: usize = 100_000;

/// The provider's algorithms for signatures of certificates, which remember.
pub(super) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static VALID: LazyLock<Recent<()>> = LazyLock::new(|| Recent::new(MAX));
    static ALGORITHMS: LazyLock<Vec<Remembering<'static>>> = LazyLock::new(|| {
        let remember = |algorithm: &&'static dyn SignatureVerificationAlgorithm| Remembering {
            algorithm: *algorithm,
            valid: &VALID,
        };
        provider().signature_verification_algorithms.all.iter().map(remember).collect()
    });
    static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
        LazyLock::new(|| ALGORITHMS.iter().map(|algorithm| algorithm as _).collect());
    &ALL
}

/// An algorithm, and the signatures that it found valid.
struct Remembering<'r> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    valid: &'r Recent<()>,
}

impl fmt::Debug for Remembering<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remembering({:?})", self.algorithm)
    }
}

impl SignatureVerificationAlgorithm for Remembering<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = self.key(public_key, message, signature);
        if self.valid.get(&key).is_some() {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        self.valid.add(key, (), 1);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

impl Remembering<'_> {
    /// A digest of everything that decides.
    fn key(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Key {
        let (of_key, of_signature) = (self.public_key_alg_id(), self.signature_alg_id());
        keyed_digest(&[of_key.as_ref(), of_signature.as_ref(), public_key, message, signature])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::pki_types::alg_id;

    use super::*;

    /// Accepts signatures that equal their message, and counts.
    #[derive(Debug)]
    struct Equal(AtomicUsize);

    impl SignatureVerificationAlgorithm for Equal {
        fn verify_signature(&self, _: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if message == signature { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    #[test]
    fn what_is_valid_is_verified_once_and_nothing_else_is_remembered() {
        static EQUAL: Equal = Equal(AtomicUsize::new(0));
        let valid = Recent::new(1000);
        let algorithm = Remembering { algorithm: &EQUAL, valid: &valid };
        let verify = |key: &[u8], message: &[u8], signature: &[u8]| {
            let before = EQUAL.0.load(Ordering::Relaxed);
            let is_valid = algorithm.verify_signature(key, message, signature).is_ok();
            (is_valid, EQUAL.0.load(Ordering::Relaxed) - before)
        };
        assert_eq!(verify(b"key", b"abc", b"abc"), (true, 1));
        assert_eq!(verify(b"key", b"abc", b"abc"), (true, 0), "remembered");
        // Whatever differs is another signature, also if the bytes in a row are the same.
        assert_eq!(verify(b"kez", b"abc", b"abc"), (true, 1));
        assert_eq!(verify(b"ke", b"yabc", b"abc"), (false, 1));
        assert_eq!(verify(b"keya", b"bc", b"abc"), (false, 1));
        assert_eq!(verify(b"key", b"abca", b"bc"), (false, 1));
        for _ in 0..2 {
            assert_eq!(verify(b"key", b"abc", b"abd"), (false, 1), "an invalid one is verified each time");
        }
    }

    #[test]
    fn each_algorithm_of_the_provider_is_there() {
        let ids = |algorithm: &&dyn SignatureVerificationAlgorithm| {
            (algorithm.public_key_alg_id(), algorithm.signature_alg_id())
        };
        let (ours, theirs) = (algorithms(), provider().signature_verification_algorithms.all);
        assert!(ours.iter().map(ids).eq(theirs.iter().map(ids)));
    }
}
