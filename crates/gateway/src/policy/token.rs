//! Short-lived tokens [RFC 7519] that tell a broker who the client is. Enters: claims. Leaves: a signed token, and the
//! public keys as a JWKS [RFC 7517]. A broker that requires a token rejects clients that bypass the gateway. Never
//! here: a private key leaves the process.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use pkcs8::{ObjectIdentifier, PrivateKeyInfo};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Map, Value as Json};

use crate::config::{Complaint, Diagnostics, Reported, tables, warn_if_exposed};
use crate::files::{KeyFile, read_private_key};
use crate::refresh::FromFiles;
use crate::util::clock::now;

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// How far `nbf` lies in the past, in seconds, for brokers whose clocks are slow.
const CLOCK_SKEW: i64 = 30;

/// Signs tokens.
#[derive(Debug)]
pub(crate) struct Signer {
    issuer: String,
    keys: FromFiles<Keys>,
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
    /// Reads the keys.
    ///
    /// # Errors
    /// A key cannot be used, which was reported.
    pub(crate) fn open(settings: &tables::Identity, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let key = &settings.keys[0];
        warn_if_exposed(key, key, "the private key", diagnostics);
        let files: Vec<PathBuf> = settings.keys.iter().map(|file| file.value.clone()).collect();
        let read = {
            let files = files.clone();
            move || Keys::read(&files)
        };
        let keys =
            FromFiles::open_all("identity keys", files, read).map_err(|complaint| diagnostics.error(key, complaint))?;
        Ok(Self { issuer: settings.issuer.clone(), keys })
    }

    /// Signs a token with these claims.
    ///
    /// # Errors
    /// Signing failed.
    pub(crate) fn sign(
        &self,
        mut claims: Map<String, Json>,
        audience: Option<&str>,
        lifetime: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let (now, lifetime) = (now(), i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
        let mut id = [0; 16];
        // `jti` only distinguishes tokens, so an error of the random number generator does no harm.
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
        // Serialization cannot fail: the JWKS contains only strings and lists.
        serde_json::to_string(&self.keys.load().public).unwrap_or_default()
    }

    /// Reads the keys again if their files have changed, and logs the result.
    pub(crate) fn read_changed_files(&self) {
        self.keys.read_if_changed("identity");
    }
}

impl Keys {
    /// The first key signs. The JWKS contains all public keys.
    fn read(files: &[PathBuf]) -> Result<Self, Complaint> {
        let keys: Vec<(EncodingKey, Algorithm, Jwk)> = files.iter().map(|file| read(file)).collect::<Result<_, _>>()?;
        let public = JwkSet { keys: keys.iter().map(|(_, _, jwk)| jwk.clone()).collect() };
        let (signing, algorithm, jwk) = keys.into_iter().next().ok_or_else(|| Complaint::new("no key"))?;
        let header = Header { kid: jwk.common.key_id, ..Header::new(algorithm) };
        Ok(Self { signing, header, public })
    }
}

fn read(path: &Path) -> Result<(EncodingKey, Algorithm, Jwk), Complaint> {
    let complain = |what: &str| Complaint::new(format!("{}: {what}", path.display()));
    let KeyFile::Plain(PrivateKeyDer::Pkcs8(der)) = read_private_key(path)? else {
        return Err(
            complain("not an unencrypted PKCS#8 key").hint("openssl pkcs8 -topk8 -nocrypt -in old.key -out new.key")
        );
    };
    let info = PrivateKeyInfo::try_from(der.secret_pkcs8_der()).map_err(|_| complain("not a PKCS#8 key"))?;
    let unknown = || complain("unsupported key type; expected P-256, P-384, Ed25519 or RSA");
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
        // For RSA the library expects the inner key, not PKCS#8 [RFC 8017, A.1.2].
        RSA => (Algorithm::RS256, EncodingKey::from_rsa_der(info.private_key)),
        _ => return Err(unknown()),
    };
    let mut jwk = Jwk::from_encoding_key(&key, algorithm).map_err(|_| complain("this key cannot be used"))?;
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    jwk.common.key_id = jwk.thumbprint(ThumbprintHash::SHA256).ok();
    // Sign once, so that a key that cannot sign is reported at load.
    jsonwebtoken::encode(&Header::new(algorithm), &Map::<String, Json>::new(), &key)
        .map_err(|_| complain("this key cannot sign"))?;
    Ok((key, algorithm, jwk))
}
