//! What a registry knows of a device.

use std::fmt;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Unique.
    pub id: String,
    /// Whether it is let in.
    pub state: State,
    /// Names of groups it belongs to.
    pub groups: Vec<String>,
    /// What else is known of it.
    pub attributes: Map<String, Value>,
    /// SHA-256 of certificates, or of public keys (SubjectPublicKeyInfo), in lower-case hex.
    pub pins: Vec<String>,
    /// Its pre-shared key.
    pub psk: Option<Psk>,
    /// The hash of its password.
    pub password_hash: Option<Hash>,
}

/// Whether a device is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is.
    Enabled,
    /// It is not, until somebody enables it.
    Disabled,
    /// It is not, until then, in seconds since 1970.
    Banned(i64),
}

impl State {
    /// The state at a time, in seconds since 1970: a ban ends by itself.
    #[must_use]
    pub const fn at(self, now: i64) -> Self {
        match self {
            State::Banned(until) if until <= now => State::Enabled,
            state => state,
        }
    }
}

/// A pre-shared key and the identity it is known by.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk {
    /// Unique in the registry.
    pub identity: String,
    /// The key's octets.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Psk({})", self.identity)
    }
}

/// A password's hash, in one of the forms that password files have. Not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(pub String);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(***)")
    }
}

/// Of an identifier, a group or the name of an attribute, in bytes.
const MAX_NAME_LEN: usize = 256;
/// Of attributes as JSON, and of groups and pins in number.
const MAX_ATTRIBUTES_LEN: usize = 8192;
const MAX_LIST: usize = 64;
/// Of arrays and objects in each other: what is deeper could not be read again.
const MAX_DEPTH: usize = 16;
/// Of a pre-shared key, in octets: fewer can be guessed from a handshake that somebody overheard; more, OpenSSL refuses.
const PSK_LEN: std::ops::RangeInclusive<usize> = 16..=256;
/// Of its identity: more, OpenSSL refuses.
const MAX_PSK_IDENTITY_LEN: usize = 256;

impl Device {
    /// An enabled device that has nothing to prove itself with yet.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            state: State::Enabled,
            groups: Vec::new(),
            attributes: Map::new(),
            pins: Vec::new(),
            psk: None,
            password_hash: None,
        }
    }

    /// Whether it can be kept.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn validate(&self) -> Result<(), String> {
        let is_name = |name: &str| !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.contains(char::is_control);
        if !is_name(&self.id) {
            return Err(format!("the ID must have 1 to {MAX_NAME_LEN} bytes and no control characters"));
        }
        if let Some(group) = self.groups.iter().find(|group| !is_name(group)) {
            return Err(format!("`{}` cannot be a group's name", group.escape_debug()));
        }
        if let Some((name, _)) = self.attributes.iter().find(|(name, _)| !is_name(name)) {
            return Err(format!("`{}` cannot be an attribute's name", name.escape_debug()));
        }
        if self.groups.len() > MAX_LIST || self.pins.len() > MAX_LIST {
            return Err(format!("a device has at most {MAX_LIST} groups and pins"));
        }
        if serde_json::to_string(&self.attributes).is_ok_and(|text| text.len() > MAX_ATTRIBUTES_LEN) {
            return Err(format!("attributes have at most {MAX_ATTRIBUTES_LEN} bytes as JSON"));
        }
        if self.attributes.values().any(|value| depth(value) > MAX_DEPTH) {
            return Err(format!("attributes are nested {MAX_DEPTH} deep at most"));
        }
        if let Some(pin) = self.pins.iter().find(|pin| !is_fingerprint(pin)) {
            return Err(format!("`{}` is no SHA-256 in lower-case hex", pin.escape_debug()));
        }
        if let Some(psk) = &self.psk {
            let identity = &psk.identity;
            if identity.is_empty() || identity.len() > MAX_PSK_IDENTITY_LEN || identity.contains(char::is_control) {
                return Err(format!("the identity of a pre-shared key has 1 to {MAX_PSK_IDENTITY_LEN} bytes"));
            }
            if !PSK_LEN.contains(&psk.key.len()) {
                let (least, most) = (PSK_LEN.start(), PSK_LEN.end());
                return Err(format!("a pre-shared key has {least} to {most} octets, this one {}", psk.key.len()));
            }
        }
        Ok(())
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn is_fingerprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
