//! Session resumption [RFC 8446, 2.2; RFC 5077; RFC 5246, F.1.4] that cannot bypass revocation: a ticket or stored session
//! carries the chain of its full handshake, which is evaluated again. If the chain would be rejected, the session is not
//! resumed, and a full handshake follows. Enters: session state from rustls. Leaves: tickets, and the state of sessions that
//! may be resumed.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use parking_lot::Mutex;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use zeroize::Zeroizing;

use super::handshake::{FullHandshake, Handshake};
use crate::pki::ChainVerifier;
use crate::util::clock::{CLOCK_SKEW, now};

/// How long one key encrypts new tickets, in seconds.
const EPOCH: i64 = 60 * 60;
/// The limit of stored sessions per listener, for clients without ticket support. With a device's chain, about 2 KiB each.
const MAX_STORED: usize = 8192;
/// The first byte of a ticket: the version of its format.
const VERSION: u8 = 3;
/// Version and epoch, authenticated but not encrypted.
const HEADER_LEN: usize = 9;
/// The length of the proof of most devices, in bytes.
const USUAL_PROOF: usize = 512;

/// The resumption settings and state of one listener.
#[derive(Debug)]
pub(super) struct Resumption {
    pub(super) store: Arc<ResumptionStore>,
    /// The keys shared with other gateways by `ticket_secret`. Without them, the store's random keys are used.
    pub(super) shared: Option<TicketKeys>,
    pub(super) trust: Option<Arc<ChainVerifier>>,
    /// Devices without a certificate are rejected.
    pub(super) needs_certificate: bool,
    /// In seconds, from the full handshake.
    pub(super) lifetime: i64,
    pub(super) gives_tickets: bool,
    pub(super) stores: bool,
}

/// The ticket keys and stored sessions of a listener. Survives reloads.
#[derive(Debug)]
pub(super) struct ResumptionStore {
    keys: TicketKeys,
    stored: Arc<ServerSessionMemoryCache>,
}

impl Default for ResumptionStore {
    fn default() -> Self {
        Self { keys: TicketKeys::random(), stored: ServerSessionMemoryCache::new(MAX_STORED) }
    }
}

impl Resumption {
    /// Writes between `before` and room for `after` bytes: the session state, the device's proof, and the length of the state.
    fn wrap(before: &[u8], session: &[u8], handshake: &Handshake, after: usize) -> Option<Vec<u8>> {
        let proof = postcard::to_extend(&handshake.full()?, Vec::with_capacity(USUAL_PROOF)).ok()?;
        let len = u16::try_from(session.len()).ok()?;
        // Does not grow, which would leave a copy of the state behind.
        let mut bytes = Vec::with_capacity(before.len() + session.len() + proof.len() + size_of_val(&len) + after);
        bytes.extend_from_slice(before);
        bytes.extend_from_slice(session);
        bytes.extend(proof);
        bytes.extend(len.to_be_bytes());
        Some(bytes)
    }

    /// Evaluates the proof, and returns the session state in the same memory. `None`: the session must not be resumed.
    fn unwrap(&self, mut wrapped: Zeroizing<Vec<u8>>, handshake: &Handshake) -> Option<Vec<u8>> {
        let (rest, len) = wrapped.split_last_chunk()?;
        let len = usize::from(u16::from_be_bytes(*len));
        let proof: FullHandshake = postcard::from_bytes(rest.get(len..)?).ok()?;
        let now = now();
        if !(-CLOCK_SKEW..=self.lifetime).contains(&now.saturating_sub(proof.at)) {
            return None;
        }
        match (&proof.chain, &self.trust) {
            (Some(chain), Some(trust)) if trust.knows_issuers_of(chain) => {
                trust.evaluate_provisionally(chain, now).ok()?;
            }
            (None, None) => {}
            (None, Some(_)) if !self.needs_certificate => {}
            (None | Some(_), Some(_)) | (Some(_), None) => return None,
        }
        handshake.resumed(proof);
        let mut session = std::mem::take(&mut *wrapped);
        session.truncate(len);
        Some(session)
    }

    fn keys(&self) -> &TicketKeys {
        self.shared.as_ref().unwrap_or(&self.store.keys)
    }

    fn seal(&self, session: &[u8], handshake: &Handshake) -> Option<Vec<u8>> {
        let epoch = now() / EPOCH;
        let key = self.keys().get(epoch, epoch, self.lifetime)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut header = [VERSION; HEADER_LEN];
        header[1..].copy_from_slice(&epoch.to_be_bytes());
        let mut before = [0; HEADER_LEN + NONCE_LEN];
        before[..HEADER_LEN].copy_from_slice(&header);
        before[HEADER_LEN..].copy_from_slice(&nonce);
        let mut ticket = Self::wrap(&before, session, handshake, AES_256_GCM.tag_len())?;
        let plain = &mut ticket[before.len()..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(header), plain).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn unseal(&self, ticket: &[u8], handshake: &Handshake) -> Option<Vec<u8>> {
        self.unwrap(self.open(ticket)?, handshake)
    }

    /// Whether a gateway with the same keys has issued this ticket. Whether its session may be resumed is not decided.
    pub(super) fn has_issued(&self, ticket: &[u8]) -> bool {
        self.gives_tickets && self.open(ticket).is_some()
    }

    fn open(&self, ticket: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (header, rest) = ticket.split_at_checked(HEADER_LEN)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let (version, epoch) = header.split_first()?;
        if *version != VERSION {
            return None;
        }
        let key = self.keys().get(i64::from_be_bytes(epoch.try_into().ok()?), now() / EPOCH, self.lifetime)?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.open_in_place(nonce, Aad::from(header), &mut sealed).ok()?.len();
        sealed.truncate(len);
        Some(sealed)
    }
}

/// The resumption callbacks of one handshake.
#[derive(Debug)]
pub(super) struct HandshakeResumption {
    pub(super) resumption: Arc<Resumption>,
    pub(super) handshake: Arc<Handshake>,
}

impl ProducesTickets for HandshakeResumption {
    fn enabled(&self) -> bool {
        self.resumption.gives_tickets
    }

    fn lifetime(&self) -> u32 {
        self.resumption.lifetime.try_into().unwrap_or(0)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.resumption.seal(plain, &self.handshake)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.resumption.unseal(cipher, &self.handshake)
    }
}

impl StoresServerSessions for HandshakeResumption {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let wrapped = Resumption::wrap(&[], &value, &self.handshake, 0);
        wrapped.is_some_and(|wrapped| self.resumption.store.stored.put(key, wrapped))
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumption.unwrap(self.resumption.store.stored.get(key)?.into(), &self.handshake)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.resumption.unwrap(self.resumption.store.stored.take(key)?.into(), &self.handshake)
    }

    fn can_cache(&self) -> bool {
        self.resumption.stores
    }
}

/// The keys that encrypt tickets, one for each epoch of [`EPOCH`] seconds.
pub(super) struct TicketKeys {
    /// The secret and listener name that keys are derived from. Without it, keys are random.
    secret: Option<(hkdf::Prk, Arc<str>)>,
    known: ArcSwap<HashMap<i64, Arc<LessSafeKey>>>,
    /// Held while a key is generated, so that each epoch gets one key.
    making: Mutex<()>,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKeys(***)")
    }
}

impl TicketKeys {
    fn random() -> Self {
        Self { secret: None, known: ArcSwap::default(), making: Mutex::new(()) }
    }

    /// Keys derived from `secret` for this listener name: gateways with the same secret accept each other's tickets.
    pub(super) fn shared(secret: &str, listener: &str) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"portcullis session tickets");
        Self { secret: Some((salt.extract(secret.as_bytes()), listener.into())), ..Self::random() }
    }

    /// The key of an epoch whose tickets may be valid now. A random key is generated only during its epoch, and dropped
    /// when its last ticket has expired.
    fn get(&self, epoch: i64, current: i64, lifetime: i64) -> Option<Arc<LessSafeKey>> {
        let oldest = current - lifetime / EPOCH - 1;
        // The clock of another gateway may be ahead.
        let newest = if self.secret.is_some() { current + 1 } else { current };
        if !(oldest..=newest).contains(&epoch) {
            return None;
        }
        if let Some(key) = self.known.load().get(&epoch) {
            return Some(Arc::clone(key));
        }
        let _making = self.making.lock();
        let known = self.known.load_full();
        if let Some(key) = known.get(&epoch) {
            return Some(Arc::clone(key));
        }
        let mut bytes = Zeroizing::new([0; 32]);
        match &self.secret {
            Some((secret, listener)) => {
                let info = [b"listener ", listener.as_bytes(), &epoch.to_be_bytes()];
                secret.expand(&info, hkdf::HKDF_SHA256).ok()?.fill(&mut *bytes).ok()?;
            }
            None if epoch == current => rand::fill(&mut *bytes).ok()?,
            None => return None,
        }
        let key = Arc::new(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*bytes).ok()?));
        let mut known = HashMap::clone(&known);
        known.retain(|epoch, _| *epoch >= oldest);
        known.insert(epoch, Arc::clone(&key));
        self.known.store(Arc::new(known));
        Some(key)
    }
}

/// Decrypts a ticket, and reads the content of one as if it had been encrypted.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let resumption = Resumption {
        store: Arc::default(),
        shared: Some(TicketKeys::shared("a secret for the fuzzer", "devices")),
        trust: None,
        needs_certificate: false,
        lifetime: i64::MAX / 4,
        gives_tickets: true,
        stores: true,
    };
    let handshake = Handshake::default();
    let _ = resumption.unseal(bytes, &handshake);
    if let Some(session) = resumption.unwrap(bytes.to_vec().into(), &handshake) {
        let sealed = resumption.seal(&session, &handshake).expect("what was read can be written");
        assert_eq!(resumption.unseal(&sealed, &handshake), Some(session));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resumption(secret: Option<&str>, listener: &str) -> Resumption {
        Resumption {
            store: Arc::default(),
            shared: secret.map(|secret| TicketKeys::shared(secret, listener)),
            trust: None,
            needs_certificate: false,
            lifetime: 3600,
            gives_tickets: true,
            stores: true,
        }
    }

    #[test]
    fn a_ticket_is_accepted_only_where_it_is_valid() {
        const SECRET: &str = "0123456789abcdef0123456789abcdef";
        let one = resumption(Some(SECRET), "a");
        let ticket = one.seal(b"state", &Handshake::default()).unwrap();
        assert!(!ticket.windows(5).any(|window| window == b"state"));
        let take = |resumption: &Resumption| resumption.unseal(&ticket, &Handshake::default());
        assert_eq!(take(&one).as_deref(), Some(&b"state"[..]));
        assert_eq!(take(&resumption(Some(SECRET), "a")).as_deref(), Some(&b"state"[..]), "the other gateway");
        assert_eq!(take(&resumption(Some(SECRET), "b")), None, "another listener");
        assert_eq!(take(&resumption(Some(&SECRET.to_uppercase()), "a")), None, "another secret");
        assert_eq!(take(&resumption(None, "a")), None, "random keys");
    }

    #[test]
    fn a_ticket_that_was_changed_is_none() {
        let resumption = resumption(None, "a");
        let ticket = resumption.seal(b"state", &Handshake::default()).unwrap();
        let unseal = |ticket: &[u8]| resumption.unseal(ticket, &Handshake::default());
        for position in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[position] ^= 1;
            assert_eq!(unseal(&changed), None, "{position}");
            assert_eq!(unseal(&ticket[..position]), None, "{position}");
        }
        assert_eq!(unseal(&[ticket, vec![0]].concat()), None);
    }

    #[test]
    fn what_is_no_wrapped_session_is_none() {
        let resumption = Resumption { lifetime: i64::MAX / 4, ..resumption(None, "a") };
        let unwrap = |bytes: &[u8]| resumption.unwrap(bytes.to_vec().into(), &Handshake::default());
        let wrapped = Resumption::wrap(&[], b"state", &Handshake::default(), 0).unwrap();
        assert_eq!(unwrap(&wrapped).as_deref(), Some(&b"state"[..]));
        for len in 0..wrapped.len() {
            assert_eq!(unwrap(&wrapped[..len]), None, "{len} bytes");
        }
        let (rest, _) = wrapped.split_last_chunk::<2>().unwrap();
        let proof = rest.len() - b"state".len();
        for len in [b"state".len() + 1, rest.len(), rest.len() + 1, rest.len() + 2, 0xffff] {
            let len = u16::try_from(len).unwrap().to_be_bytes();
            assert_eq!(unwrap(&[rest, &len].concat()), None, "{len:?}, with a proof of {proof} bytes");
        }
        // The fuzzer begins with what is read.
        let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/ticket/none");
        assert_eq!(unwrap(&std::fs::read(seed).unwrap()).as_deref(), Some(&b"session"[..]));
    }

    #[test]
    fn keys_come_and_go() {
        let keys = TicketKeys::random();
        let lifetime = 2 * EPOCH;
        assert!(keys.get(100, 100, lifetime).is_some());
        assert!(keys.get(100, 103, lifetime).is_some(), "its tickets may still be valid");
        assert!(keys.get(100, 104, lifetime).is_none());
        assert!(keys.get(101, 103, lifetime).is_none(), "a random key is generated only in its epoch");
        assert!(keys.get(i64::MAX, 103, lifetime).is_none() && keys.get(i64::MIN, 103, lifetime).is_none());
        keys.get(110, 110, lifetime).unwrap();
        assert_eq!(keys.known.load().len(), 1, "expired keys are dropped");
        let shared = TicketKeys::shared("0123456789abcdef0123456789abcdef", "a");
        assert!(shared.get(101, 100, lifetime).is_some(), "another gateway's clock is ahead");
        assert!(shared.get(102, 100, lifetime).is_none());
    }

    #[test]
    fn what_was_proved_long_ago_is_not_resumed() {
        let resumption = resumption(None, "a");
        for (age, is_resumed) in [(0, true), (3500, true), (3700, false), (-100, true), (-1000, false)] {
            let proof = FullHandshake { chain: None, at: now() - age };
            let handshake = Handshake::default();
            handshake.resumed(proof);
            let ticket = resumption.seal(b"state", &handshake).unwrap();
            assert_eq!(resumption.unseal(&ticket, &Handshake::default()).is_some(), is_resumed, "{age}");
        }
    }
}
