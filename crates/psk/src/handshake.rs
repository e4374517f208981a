//! One handshake: supplies OpenSSL with the key, and finds out why a handshake failed.

use std::io;
use std::sync::{Arc, LazyLock};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::rand::rand_bytes;
use openssl::ssl::{Ssl, SslRef};
use parking_lot::Mutex;

use crate::{PskLookup, Reason};

/// The length of the random key that an unknown identity gets, in bytes.
const RANDOM_KEY: usize = 32;

/// The index under which OpenSSL's callback finds its handshake.
pub(crate) static HANDSHAKE: LazyLock<Index<Ssl, Arc<dyn KeySource>>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("OpenSSL has room for one more index"));

/// A handshake, independent of the type of its lookup: an OpenSSL index has one type and is never freed, so there is one
/// index for all.
pub(crate) trait KeySource: Send + Sync {
    /// Writes the key of an identity to `key`. Returns its length, or 0 if the identity is unknown.
    fn write_key(&self, identity: Option<&[u8]>, key: &mut [u8]) -> usize;
}

/// The result of a lookup; `None` if the identity is unknown.
pub(crate) type LookedUp<Owner> = Option<(Box<str>, Owner)>;

/// The state of one handshake.
pub(crate) struct Handshake<Lookup: PskLookup> {
    lookup: Arc<Lookup>,
    looked_up: Mutex<Option<LookedUp<Lookup::Owner>>>,
}

impl<Lookup: PskLookup> Handshake<Lookup> {
    pub(crate) fn new(lookup: Arc<Lookup>) -> Self {
        Self { lookup, looked_up: Mutex::new(None) }
    }

    /// Takes the result of the lookup; `None` if there was no lookup.
    pub(crate) fn take(&self) -> Option<LookedUp<Lookup::Owner>> {
        self.looked_up.lock().take()
    }
}

impl<Lookup: PskLookup> KeySource for Handshake<Lookup> {
    fn write_key(&self, identity: Option<&[u8]>, key: &mut [u8]) -> usize {
        let identity = identity.and_then(|identity| std::str::from_utf8(identity).ok());
        let found = identity.and_then(|identity| Some((identity, self.lookup.look_up(identity)?)));
        let (len, looked_up) = match found {
            Some((identity, psk)) if psk.key.len() <= key.len() => {
                key[..psk.key.len()].copy_from_slice(&psk.key);
                (psk.key.len(), Some((identity.into(), psk.owner)))
            }
            _ => (0, None),
        };
        *self.looked_up.lock() = Some(looked_up);
        len
    }
}

/// OpenSSL's callback: supplies the key of an identity.
pub(crate) fn supply_key(ssl: &SslRef, identity: Option<&[u8]>, key: &mut [u8]) -> Result<usize, ErrorStack> {
    match ssl.ex_data(*HANDSHAKE).map_or(0, |handshake| handshake.write_key(identity, key)) {
        0 => {
            // A random key, because OpenSSL sends different alerts for a missing and for a wrong key.
            let len = RANDOM_KEY.min(key.len());
            rand_bytes(&mut key[..len])?;
            Ok(len)
        }
        len => Ok(len),
    }
}

/// Why a handshake failed.
pub(crate) fn reason<Owner>(error: &openssl::ssl::Error, looked_up: Option<&LookedUp<Owner>>) -> Reason {
    // Of `HelloLimit`.
    if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::InvalidData) {
        return Reason::Other;
    }
    let Some(stack) = error.ssl_error() else { return Reason::Closed };
    let text = stack.errors().first().and_then(openssl::error::Error::reason).unwrap_or_default();
    match text {
        "unsupported protocol" | "version too low" => Reason::Version,
        "wrong version number" | "http request" | "https proxy request" | "packet length too long" => Reason::NotTls,
        "no shared cipher" | "no application protocol" | "no suitable key share" | "no suitable groups" => {
            Reason::Parameters
        }
        // After a successful lookup only a wrong key can make the handshake fail.
        _ => match looked_up {
            Some(None) => Reason::UnknownIdentity,
            Some(Some(_)) => Reason::WrongKey,
            None => Reason::Other,
        },
    }
}
