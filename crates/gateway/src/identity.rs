//! The gateway's own word on who a client is: short-lived tokens [RFC 7519] for brokers, signed by keys whose public halves
//! are told to whoever asks [RFC 7517]. A broker that wants one refuses who went around the gateway.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pkcs8::{ObjectIdentifier, PrivateKeyInfo};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value as Json};

use crate::clock::now;
use crate::config::{At, Complaint, Document, is_exposed, model};
use crate::files::{Follower, unreadable};

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Claims that the gateway sets itself.
pub(crate) const OWN_CLAIMS: &[&str] = &["iss", "aud", "iat", "nbf", "exp", "jti"];
/// For brokers whose clocks are behind, in seconds.
const CLOCK_SKEW: i64 = 30;

/// Signs tokens.
#[derive(Debug)]
pub struct Signer {
    issuer: String,
    /// The first signs; the others are only told.
    files: Vec<PathBuf>,
    follower: Follower,
    keys: ArcSwap<Keys>,
}

struct Keys {
    signing: EncodingKey,
    header: Header,
    public: JwkSet,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

impl Signer {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(table: &At<model::Identity>, document: &mut Document) -> Option<Self> {
        let Some(key) = &table.private_key else {
            let hint = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out identity.key";
            document.missing(&table.span, "private_key", hint);
            return None;
        };
        let Some(issuer) = table.issuer.as_ref().filter(|issuer| !issuer.is_empty()) else {
            document.missing(&table.span, "issuer", "the tokens' `iss`, as \"https://gateway.example.com\"");
            return None;
        };
        let files: Vec<PathBuf> =
            std::iter::once(key).chain(&table.other_keys).map(|at| document.resolve(at)).collect();
        if is_exposed(&files[0]) {
            let message = format!("everybody on this machine can read the private key {}", files[0].display());
            document.problems.warning(&key.span, message).hint(format!("chmod 600 {}", files[0].display()));
        }
        let follower = Follower::default();
        let mut complaint = None;
        let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let read = || {
            Keys::read(&files).map_err(|problem| {
                let message = problem.message.clone();
                complaint = Some(problem);
                message
            })
        };
        match follower.read_if_changed(&paths, true, read) {
            Some(Ok(keys)) => {
                let (issuer, keys) = (issuer.value.clone(), ArcSwap::from_pointee(keys));
                Some(Self { issuer, files, follower, keys })
            }
            _ => {
                let complaint = complaint.unwrap_or_else(|| Complaint::new("the key was not read"));
                document.problems.complain(&key.span, complaint);
                None
            }
        }
    }

    /// Makes a token of these claims.
    ///
    /// # Errors
    /// It cannot be signed.
    pub(crate) fn sign(
        &self,
        mut claims: Map<String, Json>,
        audience: Option<&str>,
        lifetime: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let (now, lifetime) = (now(), i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
        let mut id = [0; 16];
        // Without a random number it is as good a token, only not told from others.
        let _ = rand::fill(&mut id);
        claims.insert("iss".to_owned(), self.issuer.as_str().into());
        claims.extend(audience.map(|audience| ("aud".to_owned(), audience.into())));
        claims.insert("iat".to_owned(), now.into());
        claims.insert("nbf".to_owned(), (now - CLOCK_SKEW).into());
        claims.insert("exp".to_owned(), now.saturating_add(lifetime.max(1)).into());
        claims.insert("jti".to_owned(), hex::encode(id).into());
        let keys = self.keys.load();
        jsonwebtoken::encode(&keys.header, &claims, &keys.signing)
    }

    /// The public keys, as a JWKS.
    pub(crate) fn jwks(&self) -> String {
        // Strings and lists: nothing in it can fail to be JSON.
        serde_json::to_string(&self.keys.load().public).unwrap_or_default()
    }

    /// Reads the keys again if their files have changed, and says in the log what came of it.
    pub(crate) fn read_changed_files(&self) {
        let paths: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        let read = || Keys::read(&self.files).map_err(|complaint| complaint.message);
        match self.follower.read_if_changed(&paths, false, read) {
            Some(Ok(keys)) => {
                tracing::info!(key = keys.header.kid, "the key that signs identities is loaded");
                self.keys.store(Arc::new(keys));
            }
            Some(Err(problem)) => tracing::error!("the key that signs identities: the last good one stays: {problem}"),
            None => {}
        }
    }
}

impl Keys {
    fn read(files: &[PathBuf]) -> Result<Self, Complaint> {
        let keys: Vec<(EncodingKey, Algorithm, Jwk)> = files.iter().map(|file| read(file)).collect::<Result<_, _>>()?;
        let public = JwkSet { keys: keys.iter().map(|(_, _, jwk)| jwk.clone()).collect() };
        let (signing, algorithm, jwk) = keys.into_iter().next().ok_or_else(|| Complaint::new("there is no key"))?;
        let header = Header { kid: jwk.common.key_id, ..Header::new(algorithm) };
        Ok(Self { signing, header, public })
    }
}

fn read(path: &Path) -> Result<(EncodingKey, Algorithm, Jwk), Complaint> {
    let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| unreadable(path, &error))?;
    let complain = |what: &str| Complaint::new(format!("{}: {what}", path.display()));
    let info = PrivateKeyInfo::try_from(der.secret_pkcs8_der()).map_err(|_| complain("this is no PKCS#8 key"))?;
    let unknown = || complain("a key of P-256, P-384, Ed25519 or RSA is wanted");
    let (algorithm, key) = match info.algorithm.oid {
        EC => {
            let algorithm = match info.algorithm.parameters_oid() {
                Ok(P256) => Algorithm::ES256,
                Ok(P384) => Algorithm::ES384,
                _ => return Err(unknown()),
            };
            (algorithm, EncodingKey::from_ec_der(der.secret_pkcs8_der()))
        }
        ED25519 => (Algorithm::EdDSA, EncodingKey::from_ed_der(der.secret_pkcs8_der())),
        // Of this kind the key inside is wanted [RFC 8017, A.1.2].
        RSA => (Algorithm::RS256, EncodingKey::from_rsa_der(info.private_key)),
        _ => return Err(unknown()),
    };
    let mut jwk = Jwk::from_encoding_key(&key, algorithm).map_err(|_| complain("this key cannot be used"))?;
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    jwk.common.key_id = jwk.thumbprint(ThumbprintHash::SHA256).ok();
    // A key that reads well and cannot sign is better found now.
    jsonwebtoken::encode(&Header::new(algorithm), &Map::<String, Json>::new(), &key)
        .map_err(|_| complain("this key cannot sign"))?;
    Ok((key, algorithm, jwk))
}
