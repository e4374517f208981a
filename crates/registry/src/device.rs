//! A device as the registry stores it, and the limits on its fields.

use std::fmt;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The device ID, unique in the registry.
    pub id: String,
    /// Whether the device may connect.
    pub state: State,
    /// The names of the groups it belongs to.
    pub groups: Vec<String>,
    /// Free-form attributes, for expressions.
    pub attributes: Map<String, Value>,
    /// SHA-256 fingerprints of certificates or of public keys (SubjectPublicKeyInfo), in lower-case hex.
    pub pins: Vec<String>,
    /// The pre-shared key.
    pub psk: Option<Psk>,
    /// The hash of the password.
    pub password_hash: Option<Hash>,
}

/// Whether a device may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It may connect.
    Enabled,
    /// It may not connect until an operator enables it.
    Disabled,
    /// It may not connect before this time, in seconds since 1970.
    Banned(i64),
}

impl State {
    /// Returns the state at a time in seconds since 1970: a ban that has expired counts as enabled.
    #[must_use]
    pub const fn at(self, now: i64) -> Self {
        match self {
            State::Banned(until) if until <= now => State::Enabled,
            state => state,
        }
    }
}

/// A pre-shared key and its identity.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk {
    /// The PSK identity, unique in the registry.
    pub identity: String,
    /// The key, in bytes.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Psk({})", self.identity)
    }
}

/// A password hash, in one of the formats of password files. `Debug` masks it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(pub String);

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(***)")
    }
}

/// The longest device ID, group name or attribute name, in bytes.
const MAX_NAME_LEN: usize = 256;
/// The largest attributes, encoded as JSON, in bytes.
const MAX_ATTRIBUTES_LEN: usize = 8192;
/// The largest number of groups, and of pins.
const MAX_LIST: usize = 64;
/// The deepest nesting of arrays and objects: the JSON parser rejects much deeper values when it reads them back.
const MAX_DEPTH: usize = 16;
/// The length of a pre-shared key, in bytes. An eavesdropper can brute-force a shorter key from a recorded handshake; OpenSSL
/// rejects a longer one.
const PSK_LEN: std::ops::RangeInclusive<usize> = 16..=256;
/// The longest PSK identity, in bytes: OpenSSL rejects a longer one.
const MAX_PSK_IDENTITY_LEN: usize = 256;

impl Device {
    /// Creates an enabled device without credentials.
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

    /// Checks that every field is within its limits.
    ///
    /// # Errors
    /// Describes the first field that is not.
    pub fn validate(&self) -> Result<(), String> {
        let is_name = |name: &str| !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.contains(char::is_control);
        if !is_name(&self.id) {
            return Err(format!("the ID must have 1 to {MAX_NAME_LEN} bytes and no control characters"));
        }
        if let Some(group) = self.groups.iter().find(|group| !is_name(group)) {
            return Err(format!(
                "`{}` is not a valid group name: expected 1 to {MAX_NAME_LEN} bytes without control characters",
                group.escape_debug()
            ));
        }
        if let Some((name, _)) = self.attributes.iter().find(|(name, _)| !is_name(name)) {
            return Err(format!(
                "`{}` is not a valid attribute name: expected 1 to {MAX_NAME_LEN} bytes without control characters",
                name.escape_debug()
            ));
        }
        if self.groups.len() > MAX_LIST || self.pins.len() > MAX_LIST {
            return Err(format!("a device can have at most {MAX_LIST} groups and {MAX_LIST} pins"));
        }
        if serde_json::to_string(&self.attributes).is_ok_and(|text| text.len() > MAX_ATTRIBUTES_LEN) {
            return Err(format!("attributes can have at most {MAX_ATTRIBUTES_LEN} bytes as JSON"));
        }
        if self.attributes.values().any(|value| depth(value) > MAX_DEPTH) {
            return Err(format!("attributes can be nested at most {MAX_DEPTH} levels deep"));
        }
        if let Some(pin) = self.pins.iter().find(|pin| !is_fingerprint(pin)) {
            return Err(format!(
                "`{}` is not a SHA-256 fingerprint: expected 64 hexadecimal digits",
                pin.escape_debug()
            ));
        }
        if let Some(psk) = &self.psk {
            let identity = &psk.identity;
            if identity.is_empty() || identity.len() > MAX_PSK_IDENTITY_LEN || identity.contains(char::is_control) {
                return Err(format!(
                    "the PSK identity must have 1 to {MAX_PSK_IDENTITY_LEN} bytes and no control characters"
                ));
            }
            if !PSK_LEN.contains(&psk.key.len()) {
                let (least, most) = (PSK_LEN.start(), PSK_LEN.end());
                return Err(format!("the pre-shared key must have {least} to {most} bytes, but has {}", psk.key.len()));
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

pub(crate) fn is_fingerprint(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
