//! Private keys that stay in a token: a card, a module, a service that speaks PKCS#11. Enters: a URI [RFC 7512]. Leaves:
//! a key that signs handshakes, after it has shown that it is the certificate's.
//!
//! A token signs while its handshake waits. Where there are several threads, the others go on; but a token that takes more
//! than a few milliseconds is what limits how many devices come in.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use tokio::runtime::RuntimeFlavor;
use webpki::EndEntityCert;
use x509_cert::der::Encode;
use x509_cert::der::asn1::UintRef;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::config::Complaint;
use crate::crypto::provider;

const EXAMPLE: &str = "\"pkcs11:token=gateway;object=tls?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=pin\"";
/// Sessions with a token that are kept for the next handshake.
const MAX_IDLE_SESSIONS: usize = 16;
/// Signatures under way at once, each of which holds a thread.
const MAX_SIGNING: usize = 64;

/// A PKCS#11 URI.
#[derive(Clone)]
pub(super) struct TokenUri {
    module: PathBuf,
    token: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    pin: Option<AuthPin>,
    /// A hash of module, token and PIN.
    pin_id: [u8; 32],
}

impl fmt::Debug for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenUri({self})")
    }
}

/// Without the PIN.
impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, object) = (self.token.as_deref().unwrap_or("*"), self.object.as_deref().unwrap_or("*"));
        write!(f, "pkcs11:token={token};object={object}")
    }
}

/// By [`TokenUri::pin_id`]: each further attempt would bring a token nearer to being locked.
static WRONG_PINS: Mutex<BTreeSet<[u8; 32]>> = Mutex::new(BTreeSet::new());

impl TokenUri {
    /// Reads a URI; `resolve` makes relative paths absolute.
    pub(super) fn parse(text: &str, resolve: impl Fn(&Path) -> PathBuf) -> Result<Self, Complaint> {
        let wrong = |what: &str| Complaint::new(format!("the PKCS#11 URI {what}")).hint(EXAMPLE);
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let path = path.get("pkcs11:".len()..).unwrap_or_default().split(';').filter(|part| !part.is_empty());
        let query = query.split('&').filter(|part| !part.is_empty());
        let (mut token, mut object, mut id, mut module, mut pin) = (None, None, None, None, None);
        for attribute in path.chain(query) {
            let (name, value) = attribute.split_once('=').ok_or_else(|| wrong("has a part without `=`"))?;
            let bytes: Vec<u8> = percent_decode_str(value).collect();
            let text = || String::from_utf8(bytes.clone()).map_err(|_| wrong("has a value that is no text"));
            match name {
                "token" => token = Some(text()?),
                "object" => object = Some(text()?),
                "id" => id = Some(bytes),
                "type" if value == "private" => {}
                "module-path" => module = Some(PathBuf::from(text()?)),
                "pin-value" => pin = Some(text()?),
                "pin-source" => {
                    let source = text()?;
                    let file = resolve(Path::new(source.strip_prefix("file:").unwrap_or(&source)));
                    let read = std::fs::read_to_string(&file);
                    let read = read.map_err(|error| wrong(&format!("names {}: {error}", file.display())))?;
                    pin = Some(read.trim_end_matches(['\r', '\n']).to_owned());
                }
                other => return Err(wrong(&format!("has an attribute that is not known here: `{other}`"))),
            }
        }
        if object.is_none() && id.is_none() {
            return Err(wrong("names no key: `object` or `id` is wanted"));
        }
        let module = module.ok_or_else(|| wrong("names no module"))?;
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(format!("{module:?} {token:?} {pin:?}").as_bytes());
        let mut pin_id = [0; 32];
        pin_id.copy_from_slice(hash.finish().as_ref());
        Ok(Self { module, token, object, id, pin: pin.map(Into::into), pin_id })
    }
}

/// The key of this URI, which must be the one of the certificate.
pub(super) fn key(uri: &TokenUri, certificate: &CertificateDer<'_>) -> Result<Arc<dyn SigningKey>, Complaint> {
    let kind = Kind::of(certificate)
        .ok_or_else(|| Complaint::new(format!("{uri}: the certificate's key is none that tokens are asked to use")))?;
    let token = Arc::new(Token { uri: uri.clone(), idle: Mutex::default(), signing: AtomicUsize::new(0) });
    let key = TokenKey { token, kind };
    let scheme = kind.schemes()[0];
    let signature = key.signer(scheme).sign(PROBE).map_err(|error| {
        let problem = Complaint::new(format!("{uri}: {error}"));
        problem.hint("`pkcs11-tool --module ... --login --list-objects` says what the token has")
    })?;
    let leaf = EndEntityCert::try_from(certificate);
    let algorithms = provider().signature_verification_algorithms;
    let fitting = algorithms.mapping.iter().filter(|(mapped, _)| *mapped == scheme).flat_map(|(_, all)| *all);
    let is_its = leaf.is_ok_and(|leaf| {
        fitting.into_iter().any(|algorithm| leaf.verify_signature(*algorithm, PROBE, &signature).is_ok())
    });
    if is_its { Ok(Arc::new(key)) } else { Err(Complaint::new(format!("{uri} is not the key of the certificate"))) }
}

/// Signed once, to see whose key it is.
const PROBE: &[u8] = b"portcullis: is this the key of the certificate?";

/// What a key can do.
#[derive(Clone, Copy, Debug)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Kind {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let spki = certificate.public_key();
        match spki.parsed() {
            Ok(PublicKey::RSA(_)) => Some(Kind::Rsa),
            Ok(PublicKey::EC(point)) => match point.key_size() {
                256 => Some(Kind::P256),
                384 => Some(Kind::P384),
                _ => None,
            },
            _ => (spki.algorithm.algorithm.to_id_string() == "1.3.101.112").then_some(Kind::Ed25519),
        }
    }

    /// The best first.
    const fn schemes(self) -> &'static [SignatureScheme] {
        match self {
            Kind::P256 => &[SignatureScheme::ECDSA_NISTP256_SHA256],
            Kind::P384 => &[SignatureScheme::ECDSA_NISTP384_SHA384],
            Kind::Ed25519 => &[SignatureScheme::ED25519],
            Kind::Rsa => &[
                SignatureScheme::RSA_PSS_SHA256,
                SignatureScheme::RSA_PSS_SHA384,
                SignatureScheme::RSA_PSS_SHA512,
                SignatureScheme::RSA_PKCS1_SHA256,
                SignatureScheme::RSA_PKCS1_SHA384,
                SignatureScheme::RSA_PKCS1_SHA512,
            ],
        }
    }
}

/// A key in a token.
#[derive(Debug)]
struct TokenKey {
    token: Arc<Token>,
    kind: Kind,
}

impl TokenKey {
    fn signer(&self, scheme: SignatureScheme) -> TokenSigner {
        TokenSigner { token: Arc::clone(&self.token), scheme }
    }
}

impl SigningKey for TokenKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.kind.schemes().iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(self.signer(*scheme)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.kind {
            Kind::P256 | Kind::P384 => SignatureAlgorithm::ECDSA,
            Kind::Ed25519 => SignatureAlgorithm::ED25519,
            Kind::Rsa => SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct TokenSigner {
    token: Arc<Token>,
    scheme: SignatureScheme,
}

impl Signer for TokenSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signed = self.token.sign(self.scheme, message);
        signed.map_err(|error| {
            tracing::error!(key = %self.token.uri, %error, "the token does not sign");
            rustls::Error::General(format!("the token does not sign: {error}"))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// A key's token, and sessions with it.
#[derive(Debug)]
struct Token {
    uri: TokenUri,
    idle: Mutex<Vec<(Session, ObjectHandle)>>,
    /// Signatures under way.
    signing: AtomicUsize,
}

impl Token {
    /// Signs; what else its thread had to do, another one does meanwhile.
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, String> {
        if self.signing.fetch_add(1, Ordering::Relaxed) >= MAX_SIGNING {
            self.signing.fetch_sub(1, Ordering::Relaxed);
            return Err("the token is too slow for the handshakes that come".to_owned());
        }
        let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
        let result = match runtime {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.sign_now(scheme, message)),
            _ => self.sign_now(scheme, message),
        };
        self.signing.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn sign_now(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, String> {
        let kept = lock(&self.idle).pop();
        // A session that was kept may be of a token that was taken out, and put in again.
        if let Some((session, key)) = kept
            && let Ok(signature) = self.sign_with(session, key, scheme, message)
        {
            return Ok(signature);
        }
        let (session, key) = self.open()?;
        self.sign_with(session, key, scheme, message).map_err(|error| error.to_string())
    }

    fn sign_with(
        &self,
        session: Session,
        key: ObjectHandle,
        scheme: SignatureScheme,
        message: &[u8],
    ) -> Result<Vec<u8>, TokenError> {
        let sha = |algorithm| digest::digest(algorithm, message);
        let pss = |hash_alg, mgf, len: u64| PkcsPssParams { hash_alg, mgf, s_len: len.into() };
        let signature = match scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => {
                der_of_ecdsa(&session.sign(&Mechanism::Ecdsa, key, sha(&digest::SHA256).as_ref())?)
            }
            SignatureScheme::ECDSA_NISTP384_SHA384 => {
                der_of_ecdsa(&session.sign(&Mechanism::Ecdsa, key, sha(&digest::SHA384).as_ref())?)
            }
            SignatureScheme::ED25519 => {
                let params = EddsaParams::new(EddsaSignatureScheme::Pure);
                session.sign(&Mechanism::Eddsa(params), key, message)?
            }
            SignatureScheme::RSA_PKCS1_SHA256 => session.sign(&Mechanism::Sha256RsaPkcs, key, message)?,
            SignatureScheme::RSA_PKCS1_SHA384 => session.sign(&Mechanism::Sha384RsaPkcs, key, message)?,
            SignatureScheme::RSA_PKCS1_SHA512 => session.sign(&Mechanism::Sha512RsaPkcs, key, message)?,
            SignatureScheme::RSA_PSS_SHA384 => {
                let params = pss(MechanismType::SHA384, PkcsMgfType::MGF1_SHA384, 48);
                session.sign(&Mechanism::Sha384RsaPkcsPss(params), key, message)?
            }
            SignatureScheme::RSA_PSS_SHA512 => {
                let params = pss(MechanismType::SHA512, PkcsMgfType::MGF1_SHA512, 64);
                session.sign(&Mechanism::Sha512RsaPkcsPss(params), key, message)?
            }
            _ => {
                let params = pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32);
                session.sign(&Mechanism::Sha256RsaPkcsPss(params), key, message)?
            }
        };
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE_SESSIONS {
            idle.push((session, key));
        }
        Ok(signature)
    }

    fn open(&self) -> Result<(Session, ObjectHandle), String> {
        let uri = &self.uri;
        let module = module(&uri.module)?;
        let say = |error: TokenError| error.to_string();
        let slots = module.get_slots_with_token().map_err(say)?;
        let is_wanted = |slot: &cryptoki::slot::Slot| {
            let label = module.get_token_info(*slot).map(|info| info.label().to_owned());
            label.is_ok_and(|label| uri.token.as_ref().is_none_or(|wanted| *wanted == label.trim_end()))
        };
        let slot = slots.into_iter().find(is_wanted).ok_or("there is no such token")?;
        let session = module.open_ro_session(slot).map_err(say)?;
        if let Some(pin) = &uri.pin {
            if lock(&WRONG_PINS).contains(&uri.pin_id) {
                return Err("its PIN was wrong, and is not tried again by this process".to_owned());
            }
            match session.login(UserType::User, Some(pin)) {
                Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(error @ TokenError::Pkcs11(RvError::PinIncorrect | RvError::PinLocked, _)) => {
                    lock(&WRONG_PINS).insert(uri.pin_id);
                    return Err(say(error));
                }
                Err(error) => return Err(say(error)),
            }
        }
        let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        wanted.extend(uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        wanted.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        match session.find_objects(&wanted).map_err(say)?.as_slice() {
            [key] => Ok((session, *key)),
            [] => Err("there is no such key, or not without a PIN".to_owned()),
            _ => Err("there are several such keys: name its `id`".to_owned()),
        }
    }
}

/// The module of this path, which a process may start only once.
fn module(path: &Path) -> Result<Pkcs11, String> {
    static MODULES: Mutex<Option<HashMap<PathBuf, Pkcs11>>> = Mutex::new(None);
    let mut modules = lock(&MODULES);
    let modules = modules.get_or_insert_default();
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let say = |error: TokenError| format!("{} cannot be used: {error}", path.display());
    let module = Pkcs11::new(path).map_err(say)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(say(error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// Two numbers of equal length one behind the other, as TLS wants them [RFC 8446, 4.2.3; RFC 3279, 2.2.3].
fn der_of_ecdsa(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let number = |bytes| UintRef::new(bytes).and_then(|number| number.to_der()).unwrap_or_default();
    let content = [number(r), number(s)].concat();
    // Two numbers of 48 octets at most, so that the length takes one octet.
    let mut der = vec![0x30, u8::try_from(content.len()).unwrap_or(0)];
    der.extend(content);
    der
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TokenUri, String> {
        TokenUri::parse(text, ToOwned::to_owned).map_err(|complaint| complaint.message)
    }

    #[test]
    fn a_uri_says_what_is_meant_and_never_shows_its_pin() {
        let uri = parse("pkcs11:token=a%20b;object=k;id=%01%ff?module-path=/m.so&pin-value=hunter2").unwrap();
        assert_eq!((uri.token.as_deref(), uri.id.as_deref()), (Some("a b"), Some(&[1, 255][..])));
        assert!(!format!("{uri:?}{uri}").contains("hunter2"));
        for (wrong, why) in [
            ("pkcs11:token=t?module-path=/m.so", "names no key"),
            ("pkcs11:object=k", "names no module"),
            ("pkcs11:objekt=k?module-path=/m.so", "`objekt`"),
            ("pkcs11:object?module-path=/m.so", "without `=`"),
            ("pkcs11:object=k?module-path=/m.so&pin-source=/surely/not/there", "/surely/not/there"),
        ] {
            let message = parse(wrong).unwrap_err();
            assert!(message.contains(why), "{wrong}: {message}");
        }
    }
}
