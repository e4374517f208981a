//! The key schedule of TLS 1.3 for rustls [RFC 5869; RFC 8446, 7.1]: HKDF over aws-lc's HMAC.
//!
//! The HKDF of aws-lc-rs, which rustls' provider uses, extracts a secret again for every key that is derived from it, and
//! prepares its HMAC key again. Without that, a resumed connect has a twelfth fewer instructions. rustls' own HKDF over HMAC
//! would not do that either, but leaves copies of secrets in memory; here, each is wiped.

use std::cell::RefCell;
use std::sync::LazyLock;

use aws_lc_rs::hmac;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{CipherSuite, SupportedCipherSuite, Tls13CipherSuite};
use zeroize::Zeroizing;

/// HKDF with one of aws-lc's hash functions.
struct AwsLcHkdf(hmac::Algorithm);

/// A secret as a prepared HMAC key: every tag begins with a copy of its state. Always one, in a vector for [`ROOM`].
struct Expander(Vec<hmac::Key>);

/// Room for label and transcript hash of every key of TLS. Neither is a secret, so it is not wiped.
const SHORT: usize = 128;
/// The keys for which a thread keeps room, 1.2 KB each: those of four handshakes.
const MAX_ROOM: usize = 48;

thread_local! {
    /// Room for keys, empty: a handshake takes and returns it a dozen times, and of this size the allocator is slow.
    static ROOM: RefCell<Vec<Vec<hmac::Key>>> = const { RefCell::new(Vec::new()) };
}

static SHA256: AwsLcHkdf = AwsLcHkdf(hmac::HMAC_SHA256);
static SHA384: AwsLcHkdf = AwsLcHkdf(hmac::HMAC_SHA384);

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

impl Hkdf for AwsLcHkdf {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract_from_secret(salt, &[0; OkmBlock::MAX_LEN][..self.0.tag_len()])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        // HMAC pads its key with zeros, so no salt is the same as one of zeros.
        let salt = hmac::Key::new(self.0, salt.unwrap_or_default());
        let mut extracted = block();
        Box::new(Expander::new(hmac::Key::new(self.0, sign(&salt, secret, &mut *extracted))))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Expander::new(hmac::Key::new(self.0, okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        Tag::new(sign(&hmac::Key::new(self.0, key.as_ref()), message, &mut *block()))
    }
}

impl Expander {
    fn new(key: hmac::Key) -> Self {
        let mut room = ROOM.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(1));
        room.push(key);
        Self(room)
    }

    fn key(&self) -> &hmac::Key {
        self.0.first().expect("there is always one")
    }
}

impl Drop for Expander {
    fn drop(&mut self) {
        // Wipes the key.
        self.0.clear();
        let room = std::mem::take(&mut self.0);
        // Fails while the thread ends.
        let _ = ROOM.try_with(|rooms| {
            let mut rooms = rooms.borrow_mut();
            if rooms.len() < MAX_ROOM {
                rooms.push(room);
            }
        });
    }
}

impl HkdfExpander for Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        if output.len() > usize::from(u8::MAX) * self.hash_len() {
            return Err(OutputLengthError);
        }
        let info_len = info.iter().map(|part| part.len()).sum::<usize>();
        if output.len() <= self.hash_len() && info_len < SHORT {
            let mut message = [0; SHORT];
            let mut len = 0;
            for part in info {
                message[len..][..part.len()].copy_from_slice(part);
                len += part.len();
            }
            message[len] = 1;
            let message = &message[..=len];
            if output.len() == self.hash_len() {
                sign(self.key(), message, output);
            } else {
                output.copy_from_slice(&sign(self.key(), message, &mut *block())[..output.len()]);
            }
            return Ok(());
        }
        let mut last = block();
        // Large enough not to grow, which would leave a copy behind.
        let mut message = Zeroizing::new(Vec::with_capacity(self.hash_len() + info_len + 1));
        for (number, chunk) in (1..=u8::MAX).zip(output.chunks_mut(self.hash_len())) {
            info.iter().for_each(|part| message.extend_from_slice(part));
            message.push(number);
            let term = sign(self.key(), &message, &mut *last);
            chunk.copy_from_slice(&term[..chunk.len()]);
            message.clear();
            message.extend_from_slice(term);
        }
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        let mut output = block();
        let output = &mut output[..self.hash_len()];
        self.expand_slice(info, output).expect("a block is no longer than 255 of them");
        OkmBlock::new(output)
    }

    fn hash_len(&self) -> usize {
        self.key().algorithm().tag_len()
    }
}

/// Room for the output of any hash function.
fn block() -> Zeroizing<[u8; OkmBlock::MAX_LEN]> {
    Zeroizing::new([0; OkmBlock::MAX_LEN])
}

/// HMAC of `message`, in the first bytes of `out`. A tag of aws-lc-rs would not be wiped.
fn sign<'a>(key: &hmac::Key, message: &[u8], out: &'a mut [u8]) -> &'a [u8] {
    hmac::sign_to_buffer(key, message, out).expect("the buffer has room")
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hkdf;

    use super::*;

    fn expand(hkdf: &AwsLcHkdf, salt: Option<&[u8]>, secret: &[u8], info: &[&[u8]], len: usize) -> Vec<u8> {
        let mut output = vec![0; len];
        hkdf.extract_from_secret(salt, secret).expand_slice(info, &mut output).unwrap();
        output
    }

    #[test]
    fn the_vectors_of_rfc_5869() {
        let range = |range: std::ops::RangeInclusive<u8>| range.collect::<Vec<u8>>();
        for (secret, salt, info, output) in [
            (
                vec![0x0b; 22],
                range(0..=0x0c),
                range(0xf0..=0xf9),
                "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            ),
            (
                range(0..=0x4f),
                range(0x60..=0xaf),
                range(0xb0..=0xff),
                "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f\
                 09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
            ),
            (
                vec![0x0b; 22],
                vec![],
                vec![],
                "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            ),
        ] {
            let (first, second) = info.split_at(info.len() / 3);
            let expanded = expand(&SHA256, Some(&salt), &secret, &[first, second], output.len() / 2);
            assert_eq!(hex::encode(expanded), output);
        }
    }

    /// The length of what aws-lc-rs' HKDF is to expand.
    struct Len(usize);

    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn the_same_as_the_hkdf_of_aws_lc() {
        for (ours, theirs, hash_len) in [(&SHA256, hkdf::HKDF_SHA256, 32), (&SHA384, hkdf::HKDF_SHA384, 48)] {
            for salt in [None, Some(&b""[..]), Some(b"salt"), Some(&[7; 300])] {
                for secret in [&b""[..], &[0; OkmBlock::MAX_LEN][..hash_len], b"secret", &[9; 300]] {
                    let prk = hkdf::Salt::new(theirs, salt.unwrap_or_default()).extract(secret);
                    for len in [1, hash_len - 1, hash_len, hash_len + 1, 1000, 255 * hash_len] {
                        let info = [&b"some"[..], b"", b"thing"];
                        let mut expected = vec![0; len];
                        prk.expand(&info, Len(len)).unwrap().fill(&mut expected).unwrap();
                        assert_eq!(expand(ours, salt, secret, &info, len), expected, "{salt:?} {secret:?} {len}");
                        if len == hash_len {
                            let block = ours.extract_from_secret(salt, secret).expand_block(&info);
                            assert_eq!(block.as_ref(), expected);
                            // A secret that was expanded is the key of the next step.
                            let prk = hkdf::Prk::new_less_safe(theirs, &expected);
                            prk.expand(&info, Len(len)).unwrap().fill(&mut expected).unwrap();
                            assert_eq!(ours.expander_for_okm(&block).expand_block(&info).as_ref(), expected);
                            let tag = hmac::sign(&hmac::Key::new(ours.0, block.as_ref()), b"message");
                            assert_eq!(ours.hmac_sign(&block, b"message").as_ref(), tag.as_ref());
                        }
                    }
                }
            }
            let zeros = expand(ours, None, &[0; OkmBlock::MAX_LEN][..hash_len], &[], hash_len);
            assert_eq!(ours.extract_from_zero_ikm(None).expand_block(&[]).as_ref(), zeros);
            let too_much = &mut vec![0; 255 * hash_len + 1];
            assert!(ours.extract_from_zero_ikm(None).expand_slice(&[], too_much).is_err());
        }
    }
}
