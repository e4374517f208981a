//! Verifies passwords against hashes. Enters: a hash and a password. Leaves: whether they match. Password hashes are
//! slow by design, so verification runs on a bounded number of low-priority threads behind a bounded, fair queue. It
//! never runs on a thread that relays sessions.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argon2::password_hash::rand_core::OsRng;
use argon2::password_hash::{PasswordHash as Phc, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::pbkdf2;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::Waiting;
use super::cache::{Cache, CacheKey};
use crate::limits::{FairSlots, Slot};
use crate::outcome::Reject;
use crate::util::client_network::ClientNetwork;
use crate::util::crypto::{keyed_digest, tag};
use crate::util::priority::Priority;
use crate::util::recent::Recent;

/// Maximum length of the queue, of which one network gets a quarter. A verification takes 20 to 100 ms.
const MAX_WAITING: usize = 256;
/// How many wrong passwords of one client network are compared with one that was verified.
const MAX_WRONG: u8 = 10;
/// The limit of counts of wrong passwords, for each authenticator: 3 MB.
const MAX_COUNTS: usize = 32_768;
/// How long a client waits for its verification.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

// Maximum cost of a hash: one wrong line in a file must not block all clients.
const MAX_ARGON2_MEMORY_KIB: u32 = 256 << 10;
const MAX_ARGON2_PASSES: u32 = 32;
const MAX_ARGON2_LANES: u32 = 16;
const MAX_BCRYPT_COST: u32 = 16;
/// In bytes.
const MAX_BCRYPT_PASSWORD: usize = 72;
const MAX_PBKDF2_ITERATIONS: u32 = 10_000_000;
// `check` warns below these. mosquitto_passwd makes 101 iterations by default.
const MIN_BCRYPT_COST: u32 = 10;
const MIN_PBKDF2_ITERATIONS: u32 = 21_000;

/// Memory in KiB, passes and lanes of new hashes: OWASP's recommendation of 2023.
const ARGON2: (u32, u32, u32) = (19 << 10, 2, 1);

/// A hash with the same cost as new hashes. No password matches it.
const DECOY_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGtub3dzIGl0$VGhpcyBpcyBubyBoYXNoIG9mIGFueSBwYXNzd29yZC4";

/// The hash of a password. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    text: Box<str>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Argon2,
    Bcrypt,
    /// In mosquitto's format: `$7$iterations$salt$hash`.
    Pbkdf2,
}

impl PasswordHash {
    /// Parses an Argon2 hash in PHC format, a bcrypt hash, or PBKDF2-SHA512 as `mosquitto_passwd` writes it.
    ///
    /// # Errors
    /// The format is unknown or malformed, or the hash is too weak or too costly. The error does not quote the hash.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = if text.starts_with("$argon2") {
            check_argon2(text)?;
            Kind::Argon2
        } else if ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| text.starts_with(prefix)) {
            check_bcrypt(text)?;
            Kind::Bcrypt
        } else if text.starts_with("$7$") {
            Pbkdf2::parse(text).ok_or("not a PBKDF2 hash as `mosquitto_passwd` writes it")?;
            Kind::Pbkdf2
        } else if text.starts_with("$6$") {
            return Err("a single-round SHA-512 hash (mosquitto before 2.0) is too weak".to_owned());
        } else {
            return Err("unknown hash format; expected Argon2, bcrypt, or mosquitto's PBKDF2".to_owned());
        };
        Ok(Self { text: text.into(), kind })
    }

    /// Hashes a password with Argon2id. Takes about 30 ms.
    ///
    /// # Errors
    /// Hashing failed.
    pub fn make(password: &[u8]) -> Result<String, String> {
        let (memory, passes, lanes) = ARGON2;
        let params = Params::new(memory, passes, lanes, None).map_err(|error| error.to_string())?;
        let salt = SaltString::generate(&mut OsRng);
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        hasher.hash_password(password, &salt).map(|hash| hash.to_string()).map_err(|error| error.to_string())
    }

    /// Whether an attacker who has the hash can test many passwords a second: PBKDF2 with fewer iterations than OWASP's
    /// recommendation divided by ten, or bcrypt with a cost below 10.
    pub(super) fn is_cheap(&self) -> bool {
        match self.kind {
            Kind::Argon2 => false,
            Kind::Bcrypt => {
                self.text.parse::<bcrypt::HashParts>().is_ok_and(|parts| parts.get_cost() < MIN_BCRYPT_COST)
            }
            Kind::Pbkdf2 => Pbkdf2::parse(&self.text).is_some_and(|hash| hash.iterations.get() < MIN_PBKDF2_ITERATIONS),
        }
    }

    /// Distinguishes the hash from others, to detect a change.
    pub(super) fn tag(&self) -> u64 {
        tag(self.text.as_bytes())
    }

    fn is_of(&self, password: &[u8]) -> bool {
        match self.kind {
            Kind::Argon2 => {
                Phc::new(&self.text).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
            }
            // bcrypt ignores bytes after the 72nd, so a longer password would match by its beginning alone.
            Kind::Bcrypt => {
                password.len() <= MAX_BCRYPT_PASSWORD && bcrypt::verify(password, &self.text).unwrap_or(false)
            }
            // HMAC pads short keys with zeros, so a password with trailing zero bytes would match without them
            // [RFC 2104, 2].
            Kind::Pbkdf2 => Pbkdf2::parse(&self.text).is_some_and(|hash| {
                !password.ends_with(&[0])
                    && pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA512, hash.iterations, &hash.salt, password, &hash.hash)
                        .is_ok()
            }),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(***)")
    }
}

fn check_argon2(text: &str) -> Result<(), String> {
    let wrong = |_| "not a valid Argon2 hash".to_owned();
    let hash = Phc::new(text).map_err(wrong)?;
    Algorithm::try_from(hash.algorithm).map_err(wrong)?;
    // Before the library reads them: it multiplies them without a check. All of them, since the last of one name counts.
    let costs_more = hash.params.iter().any(|(name, value)| {
        let max = match name.as_str() {
            "m" => MAX_ARGON2_MEMORY_KIB,
            "t" => MAX_ARGON2_PASSES,
            "p" => MAX_ARGON2_LANES,
            _ => return false,
        };
        value.decimal().is_ok_and(|value| value > max)
    });
    if costs_more {
        let max = format!("{} MiB, {MAX_ARGON2_PASSES} passes, {MAX_ARGON2_LANES} lanes", MAX_ARGON2_MEMORY_KIB >> 10);
        return Err(format!("the Argon2 hash costs more than the maximum of {max}"));
    }
    Params::try_from(&hash).map_err(wrong)?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err("not a valid Argon2 hash".to_owned());
    }
    Ok(())
}

fn check_bcrypt(text: &str) -> Result<(), String> {
    let cost = text.parse::<bcrypt::HashParts>().map_err(|_| "not a valid bcrypt hash".to_owned())?.get_cost();
    if cost > MAX_BCRYPT_COST {
        return Err(format!("the bcrypt cost {cost} exceeds the maximum of {MAX_BCRYPT_COST}"));
    }
    Ok(())
}

struct Pbkdf2 {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

impl Pbkdf2 {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.strip_prefix("$7$")?.split('$');
        let iterations: NonZeroU32 = fields.next()?.parse().ok()?;
        let salt = STANDARD.decode(fields.next()?).ok()?;
        let hash = STANDARD.decode(fields.next()?).ok()?;
        let is_valid = fields.next().is_none() && hash.len() == 64 && iterations.get() <= MAX_PBKDF2_ITERATIONS;
        is_valid.then_some(Self { iterations, salt, hash })
    }
}

/// The password that a hash was verified with.
#[derive(Clone, Copy)]
struct Verified {
    password: CacheKey,
    /// Distinguishes it from later verifications, with which counting begins anew.
    number: u64,
}

/// Verifies passwords and caches successful verifications.
#[derive(Debug)]
pub(super) struct Passwords {
    /// By hash: its salt makes it unique to the user.
    verified: Cache<Verified>,
    /// How many wrong passwords a client network has tried since a verification. By network, so that nobody makes others wait.
    wrong: Recent<u8>,
    /// Counts verifications.
    verifications: AtomicU64,
    /// How long a successful verification is cached.
    period: Duration,
}

impl Passwords {
    pub(super) fn new(period: Duration) -> Self {
        Self {
            verified: Cache::new(|_| 0),
            wrong: Recent::new(MAX_COUNTS),
            verifications: AtomicU64::default(),
            period,
        }
    }

    /// Whether a password matches a hash.
    ///
    /// # Errors
    /// [`Reject::ClientLeft`]; [`Reject::AuthenticationBusy`]: the queue is full, or the verification takes too long.
    pub(super) async fn verify(
        &self,
        hash: &PasswordHash,
        password: &[u8],
        client: Waiting<'_>,
    ) -> Result<bool, Reject> {
        let (key, password_key) = (CacheKey::of(&[hash.text.as_bytes()]), CacheKey::of(&[password]));
        let known = self.verified.get(key).await;
        if let Some(verified) = known {
            let by_network = digest_of_network(verified.number, ClientNetwork::of(client.address));
            let wrong = self.wrong.get(&by_network).unwrap_or(0);
            if verified.password != password_key {
                // It waits like any other, but a right guess would not: that must not be a way to try many.
                (client.attempt.failed)();
                self.wrong.add(by_network, wrong.saturating_add(1), 1);
            } else if wrong < MAX_WRONG {
                return Ok(true);
            }
        }
        let is_right = verify_on_thread(hash.clone(), password, client).await?;
        if is_right && known.is_none() {
            let number = self.verifications.fetch_add(1, Ordering::Relaxed);
            self.verified.insert(key, Verified { password: password_key, number }, self.period).await;
        }
        Ok(is_right)
    }

    /// Verifies against a decoy and ignores the result, so that an unknown user takes as long as a known one. Without
    /// `hash`, uses a built-in hash.
    ///
    /// # Errors
    /// As [`Passwords::verify`].
    pub(super) async fn verify_decoy(
        &self,
        hash: Option<&PasswordHash>,
        password: &[u8],
        client: Waiting<'_>,
    ) -> Result<(), Reject> {
        static DECOY: LazyLock<Option<PasswordHash>> = LazyLock::new(|| PasswordHash::parse(DECOY_HASH).ok());
        match hash.or(DECOY.as_ref()) {
            Some(hash) => verify_on_thread(hash.clone(), password, client).await.map(drop),
            None => Ok(()),
        }
    }
}

fn digest_of_network(verification: u64, network: ClientNetwork) -> [u8; 32] {
    let network = match network {
        ClientNetwork::V4(octets) => octets.to_vec(),
        ClientNetwork::V6(segments) => segments.iter().flat_map(|segment| segment.to_be_bytes()).collect(),
    };
    keyed_digest(&[&verification.to_be_bytes(), &network])
}

struct Job {
    hash: PasswordHash,
    password: Zeroizing<Vec<u8>>,
    result: oneshot::Sender<bool>,
    /// Held until the job is done, also if its client has disconnected: it occupies a thread.
    slot: Slot,
}

/// The threads that verify passwords.
struct Threads {
    /// One for each thread, so that jobs never wait in the channel.
    slots: FairSlots,
    jobs: Sender<Job>,
}

async fn verify_on_thread(hash: PasswordHash, password: &[u8], client: Waiting<'_>) -> Result<bool, Reject> {
    static THREADS: LazyLock<Threads> = LazyLock::new(Threads::start);
    let (password, deadline) = (Zeroizing::new(password.to_vec()), Instant::now() + QUEUE_TIMEOUT);
    let slot = client.for_slot(&THREADS.slots, deadline).await?;
    let (result, verified) = oneshot::channel();
    THREADS.jobs.send(Job { hash, password, result, slot }).map_err(|_| Reject::AuthenticationBusy)?;
    let verified = timeout_at(deadline, verified).await;
    verified.ok().and_then(Result::ok).ok_or(Reject::AuthenticationBusy)
}

impl Threads {
    /// Starts one thread for every two cores. The other cores stay free for sessions, whatever the load of guesses.
    fn start() -> Self {
        let (jobs, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
        for _ in 0..threads {
            let jobs = Arc::clone(&receiver);
            let spawned = std::thread::Builder::new().name("passwords".to_owned()).spawn(move || work(&jobs));
            if let Err(error) = spawned {
                tracing::error!(%error, "cannot start a thread to verify passwords");
            }
        }
        Self { slots: FairSlots::new(threads, MAX_WAITING), jobs }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    Priority::Passwords.apply();
    loop {
        let job = jobs.lock().recv();
        let Ok(Job { hash, password, result, slot }) = job else { return };
        let _ = result.send(hash.is_of(&password));
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::auth::Attempt;
    use crate::net::Stream;

    /// Made by `mosquitto_passwd` 2.0 and by Python's `bcrypt`, of the password "secret".
    const MOSQUITTO: &str = "$7$101$8v9XaRHTxtxJiZlB$Aelps7ZUh6AHFFsC0OhW4tE7tQmATz/uJRZ+fwjgFPWiHO3j3xv9zyNE+4XaUZHyWlj+IYamc2Tk4/IWIu2gEQ==";
    const BCRYPT: &str = "$2b$06$BeE94iAHrckHIok5AFD59ObUWIVoMdY0lem5cXoPuARkUnvd6xOte";

    #[test]
    fn each_kind_of_hash_is_verified() {
        let ours = PasswordHash::make(b"secret").unwrap();
        assert!(ours.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{ours}");
        for text in [MOSQUITTO, BCRYPT, &ours] {
            let hash = PasswordHash::parse(text).unwrap();
            assert!(hash.is_of(b"secret"), "{text}");
            for wrong in [&b""[..], b"Secret", b"secret ", b"secret\0", b"\xff"] {
                assert!(!hash.is_of(wrong), "{text} {wrong:?}");
            }
            assert!(!format!("{hash:?}").contains(&text[4..]));
        }
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_is_refused() {
        for wrong in [
            "",
            "secret",
            "$6$salt$hash",
            "$7$",
            "$7$0$c2FsdA==$aGFzaA==",
            "$7$101$c2FsdA==$aGFzaA==",
            "$argon2id$",
            "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ",
            "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b5dWRWJTmaaJObG",
            "$argon2id$v=19$m=50,p=2,t=2,p=389194561$c29tZXNhbHQ$RdescudvJCsgt3ub+b5dWRWJTmaaJObG",
            "$argon2id$v=19$m=19456,t=2,p=1,m=4194304$c29tZXNhbHQ$RdescudvJCsgt3ub+b5dWRWJTmaaJObG",
            "$2y$31$......................0123456789012345678901234567890",
            "$2y$10$short",
        ] {
            assert!(PasswordHash::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_was_verified_is_remembered_for_a_while_and_a_few_wrong_passwords() {
        let hash = PasswordHash::parse(&PasswordHash::make(b"secret").unwrap()).unwrap();
        let other = PasswordHash::parse(&PasswordHash::make(b"secret").unwrap()).unwrap();
        let passwords = Passwords::new(Duration::from_secs(60));
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        let broker = TcpListener::bind((address, 0)).await.unwrap();
        let connection =
            Stream::Plain(crate::net::Socket::Tcp(TcpStream::connect(broker.local_addr().unwrap()).await.unwrap()));
        let failures = std::sync::atomic::AtomicU8::new(0);
        let failed = || {
            failures.fetch_add(1, Ordering::Relaxed);
        };
        let client =
            Waiting { address, attempt: Attempt { connection: &connection, credentials: None, failed: &failed } };
        let is_known =
            async |hash: &PasswordHash| passwords.verified.get(CacheKey::of(&[hash.text.as_bytes()])).await.is_some();
        assert!(!passwords.verify(&hash, b"wrong", client).await.unwrap());
        assert!(!is_known(&hash).await);
        assert!(passwords.verify(&hash, b"secret", client).await.unwrap());
        assert!(is_known(&hash).await && !is_known(&other).await);
        assert_eq!(failures.load(Ordering::Relaxed), 0, "whoever rejects the client counts the first");
        let is_answered_at_once = async |client| {
            let mut verifying = std::pin::pin!(passwords.verify(&hash, b"secret", client));
            poll_fn(|cx| Poll::Ready(verifying.as_mut().poll(cx).is_ready())).await
        };
        // What is known to be wrong counts at once, and is not tried without end.
        for n in 1..=MAX_WRONG {
            assert!(is_answered_at_once(client).await);
            assert!(!passwords.verify(&hash, &[n], client).await.unwrap());
            assert_eq!(failures.load(Ordering::Relaxed), n);
        }
        assert!(!is_answered_at_once(client).await);
        assert!(passwords.verify(&hash, b"secret", client).await.unwrap());
        assert!(!is_answered_at_once(client).await, "what was verified again is no new start");
        assert!(is_answered_at_once(Waiting { address: [127, 0, 0, 2].into(), ..client }).await);
    }
}
