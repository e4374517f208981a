//! The keys of a TLS connection behind its handshake, one for each direction. Enters: the secrets of rustls' handshake; records
//! and plaintext with their numbers. Leaves: plaintext and records; the keys that follow a key update [RFC 8446, 7.2].
//!
//! The construction of records is that of rustls, with aws-lc's ciphers. rustls would derive later keys itself, but then keeps the
//! device's certificates, three secrets and room for those of QUIC for as long as the connection: 1.7 KB more than the keys here.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use parking_lot::Mutex;
use rustls::crypto::cipher::{
    self, AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, NONCE_LEN,
    OutboundChunks, OutboundPlainMessage, make_tls13_aad,
};
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, Error, KeyLog, PeerMisbehaved, ProtocolVersion,
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};
use zeroize::Zeroizing;

/// The length of a record's header [RFC 8446, 5.1].
pub(super) const HEADER: usize = 5;
/// The limit of plaintext in a record [RFC 8446, 5.1].
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// The names of the traffic secrets in key logs.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";
/// The length of the longest traffic secret: that of SHA-384.
const MAX_SECRET: usize = 48;
/// The length of the longest key: that of AES-256 and ChaCha20.
const MAX_KEY: usize = 32;

/// Records to be sent, one behind the other, in a buffer of the caller.
pub(super) struct Records<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl<'b> Records<'b> {
    pub(super) const fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Adds bytes that are records already.
    ///
    /// # Errors
    /// There is no room for them.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.add(bytes.len(), |place| {
            place.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// Adds a record of `len` bytes, which `write` makes.
    ///
    /// # Errors
    /// There is no room for it, or those of `write`. It is not added then.
    fn add(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> Result<(), Error>) -> Result<(), Error> {
        let end = self.len + len;
        write(self.buffer.get_mut(self.len..end).ok_or(Error::EncryptError)?)?;
        self.len = end;
        Ok(())
    }
}

/// A traffic secret, followed by zeros if the hash of its cipher suite is shorter.
type Secret = Zeroizing<[u8; MAX_SECRET]>;

fn no_secret() -> Secret {
    Zeroizing::new([0; MAX_SECRET])
}

/// The traffic secrets of one handshake of TLS 1.3, which rustls tells to nobody but its key log. TLS 1.2 has none.
#[derive(Default)]
pub(crate) struct TrafficSecrets(Mutex<LoggedSecrets>);

/// Both secrets, as far as they are known.
#[derive(Default)]
pub(super) struct LoggedSecrets {
    client: Option<Secret>,
    server: Option<Secret>,
}

impl TrafficSecrets {
    pub(super) fn take(&self) -> LoggedSecrets {
        std::mem::take(&mut self.0.lock())
    }
}

impl std::fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrafficSecrets")
    }
}

impl KeyLog for TrafficSecrets {
    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }

    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut kept = no_secret();
        let Some(place) = kept.get_mut(..secret.len()) else { return };
        place.copy_from_slice(secret);
        let mut secrets = self.0.lock();
        match label {
            CLIENT => secrets.client = Some(kept),
            SERVER => secrets.server = Some(kept),
            _ => {}
        }
    }
}

/// A record that was decrypted.
pub(super) struct Opened<'r, 'p> {
    pub(super) typ: ContentType,
    pub(super) payload: Payload<'r, 'p>,
}

/// Where the payload of a record is.
#[derive(Clone, Copy)]
pub(super) enum Payload<'r, 'p> {
    /// Within the record.
    InPlace(&'r [u8]),
    /// At the beginning of the place for it.
    Placed(&'p [u8]),
}

impl Payload<'_, '_> {
    #[expect(clippy::match_same_arms, reason = "together, both would have to live equally long")]
    pub(super) const fn as_slice(&self) -> &[u8] {
        match self {
            Self::InPlace(payload) => payload,
            Self::Placed(payload) => payload,
        }
    }
}

/// Decrypts what the client sends.
pub(super) enum Opener {
    Tls13(TrafficKey),
    Tls12(Box<dyn MessageDecrypter>),
}

/// Encrypts what the client is sent.
pub(super) enum Sealer {
    Tls13(TrafficKey),
    Tls12(Box<dyn MessageEncrypter>),
}

impl Opener {
    /// # Errors
    /// As [`Sealer::new`].
    pub(super) fn new(
        suite: SupportedCipherSuite,
        keys: ConnectionTrafficSecrets,
        secrets: &mut LoggedSecrets,
    ) -> Result<Self, Error> {
        let (key, iv) = parts(keys)?;
        Ok(match suite {
            SupportedCipherSuite::Tls13(suite) => {
                let secret = secrets.client.take().ok_or_else(unknown)?;
                Self::Tls13(TrafficKey::new(suite, key.as_ref(), iv, secret)?)
            }
            SupportedCipherSuite::Tls12(suite) => Self::Tls12(suite.aead_alg.decrypter(key, fixed_iv(suite, &iv).0)),
        })
    }

    /// Decrypts the record with this number: into `place` if that has room for it, else in place.
    ///
    /// # Errors
    /// It was not made with the key, or is malformed.
    pub(super) fn open<'r, 'p>(
        &mut self,
        record: InboundOpaqueMessage<'r>,
        number: u64,
        place: &'p mut [u8],
    ) -> Result<Opened<'r, 'p>, Error> {
        let plain = match self {
            Self::Tls13(key) => match record.payload.len().checked_sub(key.tag_len()) {
                Some(len) if len <= place.len() => return key.open_into(&mut place[..len], &record, number),
                _ => key.open(record, number)?,
            },
            Self::Tls12(decrypter) => decrypter.decrypt(record, number)?,
        };
        Ok(Opened { typ: plain.typ, payload: Payload::InPlace(plain.payload) })
    }

    /// Replaces the key by the next one, whose first record has the number 0.
    ///
    /// # Errors
    /// There is none: TLS 1.2.
    pub(super) fn update(&mut self, suite: SupportedCipherSuite) -> Result<(), Error> {
        match (self, suite) {
            (Self::Tls13(key), SupportedCipherSuite::Tls13(suite)) => key.update(suite),
            _ => Err(Error::DecryptError),
        }
    }
}

impl Sealer {
    /// `sent`: how many records were sent with this key.
    ///
    /// # Errors
    /// Cipher suite, keys and secrets do not belong together, which must not happen.
    pub(super) fn new(
        suite: SupportedCipherSuite,
        keys: ConnectionTrafficSecrets,
        secrets: &mut LoggedSecrets,
        sent: u64,
    ) -> Result<Self, Error> {
        let (key, iv) = parts(keys)?;
        Ok(match suite {
            SupportedCipherSuite::Tls13(suite) => {
                let secret = secrets.server.take().ok_or_else(unknown)?;
                Self::Tls13(TrafficKey::new(suite, key.as_ref(), iv, secret)?)
            }
            SupportedCipherSuite::Tls12(suite) => {
                let (fixed, explicit) = fixed_iv(suite, &iv);
                let mut encrypter = suite.aead_alg.encrypter(key, fixed, explicit);
                if sent > 0 {
                    // aws-lc takes the first nonce that it sees as that of record 0, and insists on increasing ones. The
                    // result is discarded, so no nonce is used twice.
                    encrypter.encrypt(plain(ContentType::ApplicationData, &[]), 0)?;
                }
                Self::Tls12(encrypter)
            }
        })
    }

    /// Encrypts the record with this number, which no other has.
    ///
    /// # Errors
    /// There is no room for it, or the cipher does not encrypt: neither must happen.
    pub(super) fn seal(
        &mut self,
        content: ContentType,
        payload: &[u8],
        number: u64,
        records: &mut Records<'_>,
    ) -> Result<(), Error> {
        match self {
            Self::Tls13(key) => key.seal(content, payload, number, records),
            Self::Tls12(encrypter) => records.push(&encrypter.encrypt(plain(content, payload), number)?.encode()),
        }
    }

    /// As [`Opener::update`].
    pub(super) fn update(&mut self, suite: SupportedCipherSuite) -> Result<(), Error> {
        match (self, suite) {
            (Self::Tls13(key), SupportedCipherSuite::Tls13(suite)) => key.update(suite),
            _ => Err(Error::EncryptError),
        }
    }
}

/// A key of TLS 1.3, and what the next one is derived from.
pub(super) struct TrafficKey {
    key: LessSafeKey,
    iv: Iv,
    secret: Secret,
}

impl TrafficKey {
    fn new(suite: &Tls13CipherSuite, key: &[u8], iv: Iv, secret: Secret) -> Result<Self, Error> {
        let key = UnboundKey::new(algorithm(suite)?, key).map_err(|_| unknown())?;
        Ok(Self { key: LessSafeKey::new(key), iv, secret })
    }

    /// [RFC 8446, 5.2]
    fn open<'b>(&self, mut record: InboundOpaqueMessage<'b>, number: u64) -> Result<InboundPlainMessage<'b>, Error> {
        let header = Aad::from(make_tls13_aad(record.payload.len()));
        let plain = self.key.open_in_place(self.nonce(number), header, &mut record.payload);
        let len = plain.map_err(|_| Error::DecryptError)?.len();
        record.payload.truncate(len);
        record.into_tls13_unpadded_message()
    }

    /// As [`open`](Self::open), but not in place: `plain` is as long as what is encrypted.
    fn open_into<'r, 'p>(
        &self,
        plain: &'p mut [u8],
        record: &InboundOpaqueMessage<'_>,
        number: u64,
    ) -> Result<Opened<'r, 'p>, Error> {
        let header = Aad::from(make_tls13_aad(record.payload.len()));
        let (encrypted, tag) = record.payload.split_at(plain.len());
        let opened = self.key.open_separate_gather(self.nonce(number), header, encrypted, tag, plain);
        opened.map_err(|_| Error::DecryptError)?;
        // The type, and zeros for padding behind it, which count for the limit.
        if plain.len() > MAX_PLAINTEXT + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        let end = plain.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(Error::PeerMisbehaved(PeerMisbehaved::IllegalTlsInnerPlaintext))?;
        Ok(Opened { typ: ContentType::from(plain[end]), payload: Payload::Placed(&plain[..end]) })
    }

    /// [RFC 8446, 5.2]
    fn seal(&self, content: ContentType, payload: &[u8], number: u64, records: &mut Records<'_>) -> Result<(), Error> {
        let protected = payload.len() + 1 + self.tag_len();
        let header = make_tls13_aad(protected);
        records.add(HEADER + protected, |record| {
            let (start, rest) = record.split_at_mut(HEADER);
            start.copy_from_slice(&header);
            let (encrypted, end) = rest.split_at_mut(payload.len());
            let (nonce, header) = (self.nonce(number), Aad::from(header));
            let sealed = self.key.seal_out_of_place_scatter(nonce, header, payload, encrypted, &[content.into()], end);
            sealed.map_err(|_| Error::EncryptError)
        })
    }

    fn tag_len(&self) -> usize {
        self.key.algorithm().tag_len()
    }

    fn nonce(&self, number: u64) -> Nonce {
        Nonce::assume_unique_for_key(cipher::Nonce::new(&self.iv, number).0)
    }

    /// [RFC 8446, 7.2, 7.3]
    fn update(&mut self, suite: &Tls13CipherSuite) -> Result<(), Error> {
        let expander = |secret: &Secret| {
            let len = suite.common.hash_provider.output_len();
            suite.hkdf_provider.expander_for_okm(&OkmBlock::new(&secret[..len]))
        };
        let mut secret = no_secret();
        let current = expander(&self.secret);
        expand_label(&*current, "traffic upd", &mut secret[..current.hash_len()])?;
        let next = expander(&secret);
        let mut key = Zeroizing::new([0; MAX_KEY]);
        let key = &mut key[..suite.aead_alg.key_len()];
        expand_label(&*next, "key", key)?;
        let mut iv = [0; NONCE_LEN];
        expand_label(&*next, "iv", &mut iv)?;
        *self = Self::new(suite, key, iv.into(), secret)?;
        Ok(())
    }
}

/// HKDF-Expand-Label without a context [RFC 8446, 7.1].
fn expand_label(expander: &dyn HkdfExpander, label: &str, output: &mut [u8]) -> Result<(), Error> {
    const PREFIX: &str = "tls13 ";
    let (Ok(len), Ok(label_len)) = (u16::try_from(output.len()), u8::try_from(PREFIX.len() + label.len())) else {
        return Err(unknown());
    };
    let info = [&len.to_be_bytes()[..], &[label_len], PREFIX.as_bytes(), label.as_bytes(), &[0]];
    expander.expand_slice(&info, output).map_err(|_| unknown())
}

fn algorithm(suite: &Tls13CipherSuite) -> Result<&'static Algorithm, Error> {
    match suite.common.suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Ok(&AES_128_GCM),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Ok(&AES_256_GCM),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Ok(&CHACHA20_POLY1305),
        _ => Err(unknown()),
    }
}

/// The part of the IV that the handshake gives, and the one that each record contains [RFC 5288, 3].
fn fixed_iv<'a>(suite: &Tls12CipherSuite, iv: &'a Iv) -> (&'a [u8], &'a [u8]) {
    let iv = iv.as_ref();
    iv.split_at(suite.aead_alg.key_block_shape().fixed_iv_len.min(iv.len()))
}

fn parts(keys: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    match keys {
        Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(unknown()),
    }
}

const fn plain(typ: ContentType, payload: &[u8]) -> OutboundPlainMessage<'_> {
    OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload: OutboundChunks::Single(payload) }
}

fn unknown() -> Error {
    Error::General("the secrets of another cipher suite".into())
}
