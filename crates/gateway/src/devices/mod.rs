//! The in-memory replica of a device registry. Enters: changes from the database. Leaves: devices, and the index keys
//! of sessions that must be evaluated again. Lookups never wait for the database, and an outage of any length does not
//! affect devices that the replica contains. `entry.rs` has a device, `follow.rs` keeps the replica up to date.

mod entry;
mod follow;

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use portcullis_registry::{Change, State, Url};
use tokio::sync::watch;
use tokio::time::Instant;

#[cfg(feature = "psk")]
pub(crate) use entry::SecretKey;
pub(crate) use entry::{DeviceEvidence, Entry, UsedCredential};

use crate::outcome::CloseReason;
use crate::peer::Fingerprint;
use crate::pki::Key;
use crate::util::crypto::tag;
use crate::util::weak_map::WeakMap;

/// After this time without a response of the database, an unknown device may be a new one.
const CERTAIN_FOR: Duration = Duration::from_secs(15);

/// Number of changes applied under one lock.
const CHUNK: usize = 128;
/// Maximum number of password hashes kept as decoys.
const MAX_SAMPLES: usize = 64;

/// Registries in use, by URL and maximum number of devices.
pub(crate) type Registries = WeakMap<(Url, usize), Replica>;

/// The key of a device's sessions in the session index.
pub(crate) fn key(id: &str) -> Key {
    let mut hasher = DefaultHasher::new();
    ("device", id).hash(&mut hasher);
    hasher.finish()
}

/// The in-memory replica of a registry.
pub(crate) struct Replica {
    url: Url,
    max: usize,
    known: RwLock<Known>,
    /// Devices whose sessions must be evaluated again.
    changed: Mutex<Vec<Key>>,
    /// Whether the replica has been loaded once.
    complete: watch::Sender<bool>,
    is_followed: std::sync::Once,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<Arc<str>, Arc<Entry>>,
    by_pin: HashMap<Fingerprint, Arc<Entry>>,
    by_psk: HashMap<Box<str>, Arc<Entry>>,
    /// Revision of the last applied change.
    revision: i64,
    /// Time of the last response of the database; `None`: it has failed since.
    answered: Option<Instant>,
    /// Whether the registry has more devices than the replica may contain.
    is_full: bool,
    /// Password hashes of some devices, as decoys for unknown ones.
    samples: Vec<Box<str>>,
}

impl Replica {
    pub(crate) fn new(url: Url, max: usize) -> Self {
        Self {
            url,
            max,
            known: RwLock::default(),
            changed: Mutex::default(),
            complete: watch::Sender::new(false),
            is_followed: std::sync::Once::new(),
        }
    }

    /// The device with this ID.
    pub(crate) fn by_id(&self, id: &str) -> Option<Arc<Entry>> {
        self.known().by_id.get(id).cloned()
    }

    /// The device that is pinned to this certificate or key.
    pub(crate) fn by_pin(&self, fingerprint: &Fingerprint) -> Option<Arc<Entry>> {
        self.known().by_pin.get(fingerprint).cloned()
    }

    /// The device whose pre-shared key has this identity.
    pub(crate) fn by_psk(&self, identity: &str) -> Option<Arc<Entry>> {
        self.known().by_psk.get(identity).cloned()
    }

    /// Whether the replica is complete and recent, so that a device that it lacks is not in the registry.
    pub(crate) fn is_authoritative(&self) -> bool {
        let known = self.known();
        !known.is_full
            && *self.complete.borrow()
            && known.answered.is_some_and(|answered| answered.elapsed() < CERTAIN_FOR)
    }

    /// Number of devices in the replica.
    pub(crate) fn len(&self) -> usize {
        self.known().by_id.len()
    }

    /// The number of hashes to select decoys from.
    pub(crate) fn sample_hashes(&self) -> usize {
        self.known().samples.len()
    }

    /// A device's password hash as a decoy. The same name selects the same hash until the samples change.
    pub(crate) fn sample_hash(&self, name: &str) -> Option<Box<str>> {
        let known = self.known();
        let index = tag(name.as_bytes()) % (known.samples.len().max(1) as u64);
        known.samples.get(usize::try_from(index).unwrap_or(0)).cloned()
    }

    /// Checks whether a session of a device may continue. `uses_facts`: expressions of the listener use attributes of
    /// the device. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// The reason to end the session.
    pub(crate) fn evaluate(&self, evidence: &DeviceEvidence, uses_facts: bool, now: i64) -> Result<(), CloseReason> {
        let Some(device) = self.by_id(&evidence.id) else {
            // The replica may be incomplete, or full.
            let is_removed = *self.complete.borrow() && !self.known().is_full;
            return if is_removed { Err(CloseReason::DeviceRemoved) } else { Ok(()) };
        };
        match device.state(now) {
            State::Enabled => {}
            State::Disabled => return Err(CloseReason::DeviceDisabled),
            State::Banned(_) => return Err(CloseReason::DeviceBanned),
        }
        if !device.is_proved_by(&evidence.used) {
            return Err(CloseReason::CredentialWithdrawn);
        }
        if uses_facts && device.facts_tag != evidence.facts_tag {
            return Err(CloseReason::DeviceChanged);
        }
        Ok(())
    }

    /// Takes the index keys of sessions that must be evaluated again.
    pub(crate) fn take_changed(&self) -> Vec<Key> {
        std::mem::take(&mut *self.changed.lock())
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// Applies changes and queues the sessions of the changed devices for evaluation.
    fn apply(&self, changes: &[Change]) {
        // Build entries before taking the lock, and apply them in chunks: handshakes wait for the lock.
        let entries: Vec<Option<Arc<Entry>>> = changes.iter().map(Entry::after).collect();
        let mut was_full = self.known().is_full;
        for chunk in changes.iter().zip(entries).collect::<Vec<_>>().chunks(CHUNK) {
            let mut known = self.known.write();
            chunk.iter().for_each(|(change, entry)| known.apply(change, entry.clone(), self.max));
            let is_full = known.is_full;
            drop(known);
            if is_full && !std::mem::replace(&mut was_full, is_full) {
                tracing::error!(
                    max_devices = self.max,
                    "the device registry has more devices than `max_devices`; the rest are rejected"
                );
            }
        }
        self.evaluate_again(changes.iter().map(|change| key(&change.id)));
    }

    fn evaluate_again(&self, keys: impl Iterator<Item = Key>) {
        self.changed.lock().extend(keys);
    }

    /// Records that all changes up to this revision are applied. Some revisions have no change.
    fn reached(&self, revision: i64) {
        let mut known = self.known.write();
        known.revision = known.revision.max(revision);
    }

    fn answered(&self) {
        self.known.write().answered = Some(Instant::now());
        self.complete.send_if_modified(|is_complete| !std::mem::replace(is_complete, true));
    }
}

impl Known {
    fn apply(&mut self, change: &Change, entry: Option<Arc<Entry>>, max: usize) {
        self.revision = self.revision.max(change.revision);
        if let Some(old) = self.by_id.remove(&*change.id) {
            // Another device may own its pins and its identity by now.
            for pin in &old.pins {
                if self.by_pin.get(pin).is_some_and(|entry| entry.id == old.id) {
                    self.by_pin.remove(pin);
                }
            }
            if let Some((identity, _)) = &old.psk
                && self.by_psk.get(identity).is_some_and(|entry| entry.id == old.id)
            {
                self.by_psk.remove(identity);
            }
        }
        let Some(entry) = entry else { return };
        if self.by_id.len() >= max {
            self.is_full = true;
            return;
        }
        for pin in &entry.pins {
            self.by_pin.insert(*pin, Arc::clone(&entry));
        }
        if let Some((identity, _)) = &entry.psk {
            self.by_psk.insert(identity.clone(), Arc::clone(&entry));
        }
        if self.samples.len() < MAX_SAMPLES {
            self.samples.extend(entry.password_hash.clone());
        }
        self.by_id.insert(Arc::clone(&entry.id), entry);
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({:?}, {} devices)", self.url, self.len())
    }
}
