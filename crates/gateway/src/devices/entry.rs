//! One device of the registry, and what a session that it proved rests on.

use std::fmt;
use std::sync::Arc;

use portcullis_registry::{Change, Device, State};
use serde_json::{Value as Json, json};
use zeroize::Zeroizing;

use crate::outcome::Reject;
use crate::peer::{Fingerprint, KeyFormat};
use crate::util::crypto::tag;

/// A pre-shared key.
pub(crate) type SecretKey = Zeroizing<Box<[u8]>>;

/// A device in compact form. It contains keys: do not log it.
pub(crate) struct Entry {
    /// Its ID.
    pub id: Arc<str>,
    state: State,
    pub(super) pins: Box<[Fingerprint]>,
    pub(super) psk: Option<(Box<str>, SecretKey)>,
    /// The hash of its password.
    pub password_hash: Option<Box<str>>,
    /// The attributes that expressions can use, as JSON.
    facts: Box<str>,
    /// Distinguishes `facts` from earlier values.
    pub(super) facts_tag: u64,
}

/// Evidence of a session: a device of the registry, as it was when the session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvidence {
    /// The ID of the device.
    pub id: Arc<str>,
    /// The credential that the device used.
    pub used: UsedCredential,
    pub(super) facts_tag: u64,
}

/// The credential with which a device of the registry authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsedCredential {
    /// A certificate or key that it is pinned to.
    Pin(Fingerprint),
    /// A key that it is pinned to, which alone counted in the handshake, and how the device presented it.
    Key(Fingerprint, KeyFormat),
    /// Its pre-shared key: the identity, and a tag of the key.
    Psk { identity: Box<str>, tag: u64 },
    /// Its password, identified by a tag of the hash.
    Password(u64),
    /// A credential that the listener's trust anchors or key files verified.
    Tls {
        /// Fingerprints of the presented certificate or key.
        keys: Box<[Fingerprint]>,
        /// Identity and tag of the used pre-shared key.
        psk: Option<(Box<str>, u64)>,
    },
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.id)
    }
}

impl Entry {
    /// The device after a change; `None`: the change removed it.
    pub(super) fn after(change: &Change) -> Option<Arc<Self>> {
        change.device.as_ref().map(|device| Arc::new(Self::new(device)))
    }

    fn new(device: &Device) -> Self {
        let facts = json!({ "id": device.id, "groups": device.groups, "attributes": device.attributes }).to_string();
        let pin = |pin: &String| Fingerprint::try_from(hex::decode(pin).ok()?).ok();
        Self {
            id: device.id.as_str().into(),
            state: device.state,
            pins: device.pins.iter().filter_map(pin).collect(),
            psk: device
                .psk
                .as_ref()
                .map(|psk| (psk.identity.as_str().into(), Zeroizing::new(psk.key.as_slice().into()))),
            password_hash: device.password_hash.as_ref().map(|hash| hash.0.as_str().into()),
            facts_tag: tag(facts.as_bytes()),
            facts: facts.into(),
        }
    }

    /// The attributes that expressions can use.
    pub(crate) fn facts(&self) -> Json {
        serde_json::from_str(&self.facts).unwrap_or_default()
    }

    /// The identity and the bytes of its pre-shared key.
    pub(crate) fn psk(&self) -> Option<(&str, &[u8])> {
        self.psk.as_ref().map(|(identity, key)| (&**identity, &***key))
    }

    /// Whether the device is pinned to this certificate or key.
    pub(crate) fn is_pinned_to(&self, fingerprint: &Fingerprint) -> bool {
        self.pins.contains(fingerprint)
    }

    /// Whether this credential still proves the device. A credential from outside the registry ([`UsedCredential::Tls`]) must
    /// match a pin if the device has pins, and the device's own key if it has the same PSK identity.
    pub(crate) fn is_proved_by(&self, used: &UsedCredential) -> bool {
        match used {
            UsedCredential::Pin(fingerprint) | UsedCredential::Key(fingerprint, _) => self.is_pinned_to(fingerprint),
            UsedCredential::Psk { identity, tag: of } => {
                self.psk().is_some_and(|(own, key)| own == &**identity && tag(key) == *of)
            }
            UsedCredential::Password(of) => self.password_hash.as_ref().is_some_and(|hash| tag(hash.as_bytes()) == *of),
            UsedCredential::Tls { keys, psk } => {
                let is_pinned = self.pins.is_empty() || keys.iter().any(|key| self.is_pinned_to(key));
                let is_own = match (self.psk(), psk) {
                    (Some((identity, key)), Some((used, of))) => identity != &**used || tag(key) == *of,
                    (None, _) | (_, None) => true,
                };
                is_pinned && is_own
            }
        }
    }

    /// The evidence for a session that used this credential.
    pub(crate) fn evidence(&self, used: UsedCredential) -> DeviceEvidence {
        DeviceEvidence { id: Arc::clone(&self.id), used, facts_tag: self.facts_tag }
    }

    /// Its state at a time in seconds since 1970.
    pub(super) fn state(&self, now: i64) -> State {
        self.state.at(now)
    }

    /// Checks that the device is admitted at a time in seconds since 1970.
    ///
    /// # Errors
    /// The device is disabled or banned.
    pub(crate) fn check_state(&self, now: i64) -> Result<(), Reject> {
        match self.state(now) {
            State::Enabled => Ok(()),
            State::Disabled => Err(Reject::DeviceDisabled),
            State::Banned(_) => Err(Reject::DeviceBanned),
        }
    }
}
