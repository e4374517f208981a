//! The JWKS of a token issuer [RFC 7517], from a file or a URL. Enters: a path or URL. Leaves: public keys by key ID
//! and algorithm. A set of keys is never dropped because its origin fails, and a secret key is never
//! accepted.

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
use crate::util::file::{MAX_PEM_LEN, read};
use crate::util::url::host_of;

/// Maximum number of keys in a JWKS.
const MAX_KEYS: usize = 64;
/// How long a start, or a client whose token names an unknown key, waits for a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Shortest time between two fetches of a URL, after a failure or for an unknown key.
const RETRY: Duration = Duration::from_secs(10);

/// The JWKS of an issuer.
#[derive(Debug)]
pub(super) enum Jwks {
    File(FromFiles<Vec<Key>>),
    Url(Arc<Refreshed<JwksUrl>>),
}

/// A JWKS URL.
pub(crate) struct JwksUrl {
    /// It may contain a secret: do not log it.
    pub(super) url: String,
    pub(super) fetcher: Fetcher,
}

impl Remote for JwksUrl {
    type Value = Vec<Key>;
    const WHAT: &'static str = "JWKS";
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
        // Each authenticator passes its own `refresh`.
        Duration::MAX
    }
}

/// A public key that verifies tokens.
pub(crate) struct Key {
    id: Option<String>,
    /// The algorithms that the key may be used with.
    algorithms: Vec<Algorithm>,
    public: DecodingKey,
    /// Distinguishes the key from others.
    tag: u64,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.id)
    }
}

impl Jwks {
    /// Reads a JWKS file.
    ///
    /// # Errors
    /// The file cannot be read, or contains no usable key.
    pub(super) fn file(path: PathBuf) -> Result<Self, Complaint> {
        Ok(Self::File(FromFiles::open("JWKS", path, read_file)?))
    }

    fn keys(&self) -> Option<Arc<Vec<Key>>> {
        match self {
            Self::File(keys) => Some(Arc::clone(&keys.load())),
            Self::Url(keys) => Option::clone(&keys.load()),
        }
    }

    /// Whether the JWKS contains this key. `None`: it has not been fetched yet.
    pub(super) fn has(&self, tag: u64) -> Option<bool> {
        self.keys().map(|keys| keys.iter().any(|key| key.tag == tag))
    }

    /// The keys that may verify a token with this key ID and algorithm. `None`: the JWKS has not been fetched yet.
    ///
    /// A key without an ID matches every token, a token without a key ID matches every key.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Vec<(DecodingKey, u64)>> {
        let keys = self.keys();
        let matches_id = |key: &&Key| match (key.id.as_deref(), id) {
            (Some(known), Some(id)) => known == id,
            (None, _) | (_, None) => true,
        };
        let matching = keys.as_ref()?.iter().filter(matches_id).filter(|key| key.algorithms.contains(&algorithm));
        Some(matching.map(|key| (key.public.clone(), key.tag)).collect())
    }

    /// Reads the file again if it has changed. Returns whether the keys have changed since the last call.
    pub(super) fn read_changed_keys(&self, authenticator: &str) -> bool {
        match self {
            Self::File(keys) => keys.read_if_changed(authenticator),
            Self::Url(keys) => keys.take_changed(),
        }
    }

    /// Starts a fetch in the background if the keys are older than `refresh`.
    pub(super) fn fetch_if_due(&self, refresh: Duration) {
        if let Self::Url(keys) = self {
            keys.fetch_if_due(refresh);
        }
    }

    /// Fetches the keys if they are older than `period` and the last fetch was not just now. Waits for a fetch that is
    /// already in flight.
    pub(super) async fn fetched(&self, period: Duration) {
        if let Self::Url(keys) = self {
            // A fetch that takes longer goes on, for the next client.
            let _ = tokio::time::timeout(FETCH_TIMEOUT, keys.fetched(period)).await;
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<Key>, Complaint> {
    let complain = |what: String| Complaint::new(format!("{}: {what}", path.display()));
    parse(&read(path, MAX_PEM_LEN).map_err(|error| complain(error.to_string()))?).map_err(complain)
}

/// Parses a JWKS. Ignores keys that cannot be used [RFC 7517, 5], above all secret keys: with one, every party that can
/// verify tokens could also forge them.
fn parse(bytes: &[u8]) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set =
        serde_json::from_slice(bytes).map_err(|_| "not a JWKS: expected `{ \"keys\": [...] }`".to_owned())?;
    let keys: Vec<Key> = set.keys.into_iter().take(MAX_KEYS).filter_map(key).collect();
    if keys.is_empty() { Err("the JWKS contains no usable public key for signatures".to_owned()) } else { Ok(keys) }
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
    // The thumbprint covers the key alone [RFC 7638]: its metadata may change without a new key.
    let tag = tag(jwk.thumbprint(ThumbprintHash::SHA256).ok()?.as_bytes());
    (!algorithms.is_empty()).then_some(Key { id: jwk.common.key_id, algorithms, public, tag })
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(keys) = parse(bytes) {
        assert!((1..=MAX_KEYS).contains(&keys.len()));
        assert!(
            keys.iter().all(|key| !key.algorithms.iter().any(|algorithm| format!("{algorithm:?}").starts_with("HS")))
        );
    }
}
