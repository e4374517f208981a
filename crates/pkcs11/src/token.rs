//! Sessions with a token: opens them, signs, and keeps idle ones for the next handshakes.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::digest;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use parking_lot::Mutex;
use rustls::SignatureScheme;
use tokio::runtime::RuntimeFlavor;
use x509_cert::der::Encode;
use x509_cert::der::asn1::UintRef;

use crate::TokenUri;

/// The largest number of idle sessions per token.
const MAX_IDLE_SESSIONS: usize = 16;
/// The largest number of concurrent signatures per token. Each one blocks a thread.
const MAX_SIGNING: usize = 64;

/// PINs that a token has rejected, by [`TokenUri::pin_id`]. They are not tried again: further attempts could lock the token.
static WRONG_PINS: Mutex<BTreeSet<[u8; 32]>> = Mutex::new(BTreeSet::new());

/// The token of a key, and its idle sessions.
#[derive(Debug)]
pub(crate) struct Token {
    uri: TokenUri,
    idle: Mutex<Vec<(Session, ObjectHandle)>>,
    /// Signatures in progress.
    signing: AtomicUsize,
}

/// A signature in progress. Dropping it ends it, also when the module panics.
struct Signing<'a> {
    counter: &'a AtomicUsize,
    /// Signatures that were in progress when this one began.
    others: usize,
}

impl<'a> Signing<'a> {
    fn begin(counter: &'a AtomicUsize) -> Self {
        Self { counter, others: counter.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Signing<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Token {
    pub(crate) fn new(uri: TokenUri) -> Self {
        Self { uri, idle: Mutex::default(), signing: AtomicUsize::new(0) }
    }

    pub(crate) fn uri(&self) -> &TokenUri {
        &self.uri
    }

    /// Signs. Blocks the thread; on a multi-threaded runtime its other tasks move to another thread.
    pub(crate) fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, String> {
        let signing = Signing::begin(&self.signing);
        if signing.others >= MAX_SIGNING {
            return Err(
                "too many signatures are in progress: the token is too slow for the rate of handshakes".to_owned()
            );
        }
        let runtime = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match runtime {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.sign_now(scheme, message)),
            _ => self.sign_now(scheme, message),
        }
    }

    fn sign_now(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, String> {
        let idle = self.idle.lock().pop();
        // An idle session is invalid after its token was removed and inserted again.
        if let Some((session, key)) = idle
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
            SignatureScheme::RSA_PSS_SHA256 => {
                let params = pss(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, 32);
                session.sign(&Mechanism::Sha256RsaPkcsPss(params), key, message)?
            }
            // The signer offers no other scheme.
            _ => return Err(TokenError::NotSupported),
        };
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE_SESSIONS {
            idle.push((session, key));
        }
        Ok(signature)
    }

    fn open(&self) -> Result<(Session, ObjectHandle), String> {
        let uri = &self.uri;
        let module = module(&uri.module)?;
        let text = |error: TokenError| error.to_string();
        let slots = module.get_slots_with_token().map_err(text)?;
        let is_wanted = |slot: &cryptoki::slot::Slot| {
            let label = module.get_token_info(*slot).map(|info| info.label().to_owned());
            label.is_ok_and(|label| uri.token.as_ref().is_none_or(|wanted| *wanted == label.trim_end()))
        };
        let slot = slots.into_iter().find(is_wanted).ok_or("no slot has this token")?;
        let session = module.open_ro_session(slot).map_err(text)?;
        if let Some(pin) = &uri.pin {
            if WRONG_PINS.lock().contains(&uri.pin_id) {
                return Err(
                    "the token rejected this PIN before; correct it, or restart the gateway to try it again".to_owned()
                );
            }
            match session.login(UserType::User, Some(pin)) {
                Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
                Err(error @ TokenError::Pkcs11(RvError::PinIncorrect | RvError::PinLocked, _)) => {
                    WRONG_PINS.lock().insert(uri.pin_id);
                    return Err(text(error));
                }
                Err(error) => return Err(text(error)),
            }
        }
        let mut wanted = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
        wanted.extend(uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        wanted.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
        match session.find_objects(&wanted).map_err(text)?.as_slice() {
            [key] => Ok((session, *key)),
            [] => Err("the token has no such key, or shows it only after login with a PIN".to_owned()),
            _ => Err("several keys match: add `id` to the URI".to_owned()),
        }
    }
}

/// Returns the loaded module of this path. A process may initialize a module only once.
fn module(path: &Path) -> Result<Pkcs11, String> {
    static MODULES: Mutex<Option<HashMap<PathBuf, Pkcs11>>> = Mutex::new(None);
    let mut modules = MODULES.lock();
    let modules = modules.get_or_insert_default();
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let text = |error: TokenError| format!("cannot load the module `{}`: {error}", path.display());
    let module = Pkcs11::new(path).map_err(text)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(text(error)),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

/// Encodes a raw ECDSA signature, two numbers of equal length, as the DER sequence that TLS requires [RFC 8446, 4.2.3; RFC 3279, 2.2.3].
fn der_of_ecdsa(raw: &[u8]) -> Vec<u8> {
    let (r, s) = raw.split_at(raw.len() / 2);
    let number = |bytes| UintRef::new(bytes).and_then(|number| number.to_der()).unwrap_or_default();
    let content = [number(r), number(s)].concat();
    // Two numbers of at most 48 octets, so the length fits in one octet.
    let mut der = vec![0x30, u8::try_from(content.len()).unwrap_or(0)];
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ecdsa_signature_becomes_a_der_sequence() {
        let mut raw = [0; 64];
        // `r` has leading zeros, `s` its highest bit set: DER drops the former and puts a zero before the latter.
        raw[31] = 1;
        raw[32] = 0x80;
        let der = der_of_ecdsa(&raw);
        assert_eq!(der[..7], [0x30, 38, 2, 1, 1, 2, 33]);
        assert_eq!((der.len(), &der[7..9]), (40, &[0, 0x80][..]));
    }
}
