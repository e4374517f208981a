//! The public keys of an issuer of tokens [RFC 7517], from a file or a URL: kept, followed, and the last good ones stay.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

use crate::config::Complaint;
use crate::fetch::{Fetcher, Validators};
use crate::refresh::{FromFiles, Pace, Refreshed, Remote};
use crate::util::crypto::tag;
use crate::util::url::host_of;

/// Keys of an issuer at most.
const MAX_KEYS: usize = 64;
/// For keys to be fetched at the start, and for a key that is not known yet.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure, or for a key that is not known, a URL is fetched again no sooner.
const RETRY: Duration = Duration::from_secs(10);

/// The keys of an issuer.
#[derive(Debug)]
pub(super) enum Jwks {
    File(FromFiles<Vec<Key>>),
    Url(Arc<Refreshed<JwksUrl>>),
}

/// Where the keys of an issuer are fetched from.
pub(crate) struct JwksUrl {
    /// There may be a secret in it.
    pub(super) url: String,
    pub(super) fetcher: Fetcher,
}

impl Remote for JwksUrl {
    type Value = Vec<Key>;
    const WHAT: &'static str = "keys of tokens";
    const PACE: Pace = Pace { min: RETRY, max_retry: RETRY };

    fn origin(&self) -> String {
        host_of(&self.url)
    }

    async fn fetch(&self, validators: &Validators) -> Result<Option<(Vec<Key>, Validators)>, String> {
        let Some((bytes, new)) = self.fetcher.get_keys(&self.url, validators).await? else { return Ok(None) };
        Ok(Some((parse(&bytes)?, new)))
    }

    fn on_change(&self, last: Option<&Vec<Key>>, new: &Vec<Key>) -> bool {
        last.is_none_or(|last| !last.iter().map(|key| key.tag).eq(new.iter().map(|key| key.tag)))
    }

    fn good_for(&self, _: &Vec<Key>) -> Duration {
        // Its authenticators say how often they want to ask.
        Duration::MAX
    }
}

/// A key that tokens are verified with.
pub(crate) struct Key {
    id: Option<String>,
    /// Those it may be used with.
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
    /// Tells it from others.
    tag: u64,
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
        Ok(Self::File(FromFiles::open("keys of tokens", path, read_file)?))
    }

    fn keys(&self) -> Option<Arc<Vec<Key>>> {
        match self {
            Self::File(keys) => Some(Arc::clone(&keys.load())),
            Self::Url(keys) => Option::clone(&keys.load()),
        }
    }

    /// Whether this key is among them. `None`: there are no keys yet.
    pub(super) fn has(&self, tag: u64) -> Option<bool> {
        self.keys().map(|keys| keys.iter().any(|key| key.tag == tag))
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
        Some(fitting.map(|key| (key.public.clone(), key.tag)).collect())
    }

    /// Reads the file again if it has changed; whether there are others than when this was asked last.
    pub(super) fn read_changed_keys(&self, authenticator: &str) -> bool {
        match self {
            Self::File(keys) => keys.read_if_changed(authenticator),
            Self::Url(keys) => keys.take_changed(),
        }
    }

    /// Begins to fetch them in the background, if they are older than `refresh`.
    pub(super) fn fetch_if_due(&self, refresh: Duration) {
        if let Self::Url(keys) = self {
            keys.fetch_if_due(refresh);
        }
    }

    /// Fetches them if they are older than `period`, and were not asked for a moment ago; waits for whoever is fetching.
    pub(super) async fn fetched(&self, period: Duration) {
        if let Self::Url(keys) = self {
            // What takes longer than this client waits is of use to the next.
            let _ = tokio::time::timeout(FETCH_TIMEOUT, keys.fetched(period)).await;
        }
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
    let tag = tag(jwk.thumbprint(ThumbprintHash::SHA256).ok()?.as_bytes());
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, public, tag })
}
