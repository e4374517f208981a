//! The public keys of an issuer of tokens [RFC 7517], from a file or a URL: kept, followed, and the last good ones stay.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use crate::config::Complaint;
use crate::crypto::mark;
use crate::fetch::{Fetched, Fetcher, Validators};
use crate::files::Content;
use crate::url::host_of;

/// Keys of an issuer at most.
const MAX_KEYS: usize = 64;
/// After a failure, or for a key that is not known, a URL is fetched again no sooner.
const RETRY: Duration = Duration::from_secs(10);

/// The keys of an issuer.
#[derive(Debug)]
pub(crate) struct Jwks {
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    File(Content<Vec<Key>>),
    Url(Box<Remote>),
}

struct Remote {
    url: String,
    fetcher: Fetcher,
    /// Held while it is being fetched.
    turn: tokio::sync::Mutex<Validators>,
    /// `None`: there are none yet.
    keys: ArcSwapOption<Vec<Key>>,
    /// When it was asked for last.
    asked: Mutex<Option<Instant>>,
    /// Others have come that nobody has looked at yet.
    are_others: AtomicBool,
    /// The last time, they could not be had.
    has_failed: AtomicBool,
}

/// The URL may have a secret in it.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", host_of(&self.url))
    }
}

/// A key that tokens are verified with.
pub(super) struct Key {
    id: Option<String>,
    /// Those it may be used with.
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
    /// Tells it from others.
    mark: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.id)
    }
}

impl Jwks {
    /// Those of a file, which is read at once.
    ///
    /// # Errors
    /// It cannot be read, or has no key that can be used.
    pub(super) fn file(path: PathBuf) -> Result<Self, Complaint> {
        Ok(Self { origin: Origin::File(Content::open(path, "keys of tokens", read_file)?) })
    }

    /// Those of a URL, to be fetched.
    pub(super) fn url(url: String, fetcher: Fetcher) -> Self {
        let remote = Remote {
            url,
            fetcher,
            turn: tokio::sync::Mutex::default(),
            keys: ArcSwapOption::empty(),
            asked: Mutex::default(),
            are_others: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        Self { origin: Origin::Url(Box::new(remote)) }
    }

    fn keys(&self) -> Option<Arc<Vec<Key>>> {
        match &self.origin {
            Origin::File(keys) => Some(Arc::clone(&keys.load())),
            Origin::Url(remote) => remote.keys.load_full(),
        }
    }

    /// Whether this key is among them. `None`: there are no keys yet.
    pub(super) fn has(&self, mark: u64) -> Option<bool> {
        self.keys().map(|keys| keys.iter().any(|key| key.mark == mark))
    }

    /// Keys that a token with this key ID and algorithm may be signed with. `None`: there are no keys yet.
    ///
    /// A key without an ID may be meant by any token, one with an ID by those that name it.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Vec<(DecodingKey, u64)>> {
        let keys = self.keys();
        let may_be = |key: &&Key| match (key.id.as_deref(), id) {
            (Some(known), Some(id)) => known == id,
            (None, _) | (_, None) => true,
        };
        let fitting = keys.as_ref()?.iter().filter(may_be).filter(|key| key.algorithms.contains(&algorithm));
        Some(fitting.map(|key| (key.public.clone(), key.mark)).collect())
    }

    /// Reads the file again if it has changed; whether there are others than when this was asked last.
    pub(super) fn read_changed_keys(&self, authenticator: &str) -> bool {
        match &self.origin {
            Origin::File(keys) => keys.read_if_changed(authenticator),
            Origin::Url(remote) => remote.are_others.swap(false, Ordering::Relaxed),
        }
    }

    /// Whether somebody is fetching them.
    pub(super) fn is_being_fetched(&self) -> bool {
        matches!(&self.origin, Origin::Url(remote) if remote.turn.try_lock().is_err())
    }

    /// Waits until nobody is fetching them.
    pub(super) async fn fetched(&self) {
        if let Origin::Url(remote) = &self.origin {
            drop(remote.turn.lock().await);
        }
    }

    /// Whether it is a URL that was asked for longer ago than `refresh`, or that is to be tried again.
    pub(super) fn is_due(&self, refresh: Duration) -> bool {
        let Origin::Url(remote) = &self.origin else { return false };
        let period =
            if remote.keys.load().is_some() && !remote.has_failed.load(Ordering::Relaxed) { refresh } else { RETRY };
        remote.was_asked_within(period.max(RETRY)).is_none()
    }

    /// Fetches them, unless they were asked for a moment ago; says in the log what came of it.
    pub(super) async fn fetch(&self) {
        let Origin::Url(remote) = &self.origin else { return };
        let mut validators = remote.turn.lock().await;
        if remote.was_asked_within(RETRY).is_some() {
            return;
        }
        remote.asked_now();
        let keys = match remote.fetcher.get_keys(&remote.url, &validators).await {
            Ok(Fetched::New(bytes, new)) => parse(&bytes).inspect(|_| *validators = new),
            Ok(Fetched::NotModified) => {
                remote.has_failed.store(false, Ordering::Relaxed);
                remote.asked_now();
                return;
            }
            Err(problem) => Err(problem),
        };
        // However long it took: those who waited for it do not ask again.
        remote.asked_now();
        remote.has_failed.store(keys.is_err(), Ordering::Relaxed);
        let host = host_of(&remote.url);
        match keys {
            Ok(keys) => {
                tracing::info!(host, keys = keys.len(), "keys of tokens fetched");
                let marks = |keys: &[Key]| keys.iter().map(|key| key.mark).collect::<Vec<u64>>();
                let new = marks(&keys);
                let before = remote.keys.swap(Some(Arc::new(keys)));
                if before.is_none_or(|before| marks(&before) != new) {
                    remote.are_others.store(true, Ordering::Relaxed);
                }
            }
            Err(problem) => tracing::error!(host, "keys of tokens cannot be fetched: {problem}"),
        }
    }
}

impl Remote {
    fn asked_now(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn was_asked_within(&self, period: Duration) -> Option<Instant> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.filter(|asked| asked.elapsed() < period)
    }
}

fn read_file(path: &Path) -> Result<Vec<Key>, Complaint> {
    let complain = |what: String| Complaint::new(format!("{}: {what}", path.display()));
    parse(&std::fs::read(path).map_err(|error| complain(error.to_string()))?).map_err(complain)
}

/// Keys that cannot be used here are passed over, as RFC 7517, 5 wants it: secret ones above all, which would let
/// whoever can verify a token make one.
fn parse(bytes: &[u8]) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(bytes).map_err(|_| "this is no JWKS: `{ \"keys\": [...] }`".to_owned())?;
    let keys: Vec<Key> = set.keys.into_iter().take(MAX_KEYS).filter_map(key).collect();
    if keys.is_empty() { Err("there is no public key for signatures in it".to_owned()) } else { Ok(keys) }
}

fn key(value: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let by_type = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => {
            use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
            vec![PS256, PS384, PS512, RS256, RS384, RS512]
        }
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        None => by_type,
        Some(named) => {
            let named = Algorithm::try_from(named).ok()?;
            by_type.into_iter().filter(|algorithm| *algorithm == named).collect()
        }
    };
    let public = DecodingKey::from_jwk(&jwk).ok()?;
    // Of the key itself [RFC 7638]: what else is said of it may change without it.
    let mark = mark(jwk.thumbprint(ThumbprintHash::SHA256).ok()?.as_bytes());
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, public, mark })
}
