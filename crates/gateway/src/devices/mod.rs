//! The in-memory replica of a device registry. Enters: changes from the database. Leaves: devices, and the index keys
//! of sessions that must be evaluated again. Lookups never wait for the database, and an outage of any length does not
//! affect devices that the replica contains. `entry.rs` has a device, `follow.rs` keeps the replica up to date.

mod entry;
mod follow;

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use portcullis_registry::{Change, Head, State, Url};
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
    /// The sessions that must be evaluated again.
    changed: Mutex<Changed>,
    /// Whether the replica has been loaded once.
    complete: watch::Sender<bool>,
    is_followed: std::sync::Once,
    /// Whether it was logged that there are too many devices.
    is_full: AtomicBool,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<Arc<str>, Arc<Entry>>,
    by_pin: HashMap<Fingerprint, Arc<Entry>>,
    by_psk: HashMap<Box<str>, Arc<Entry>>,
    /// The state of the database up to which all changes are applied.
    head: Head,
    /// Time of the last response of the database; `None`: it has failed since.
    answered: Option<Instant>,
    /// Devices beyond the maximum: they are not admitted, but sessions from when they were continue. By the key of their ID.
    beyond: HashMap<Key, Beyond>,
    /// Password hashes of some devices, as decoys for unknown ones.
    samples: Vec<Box<str>>,
}

/// A device of which the replica has only the state.
#[derive(Clone, Copy)]
struct Beyond {
    state: State,
    /// Of its last change.
    revision: i64,
    /// Its credentials or facts may be others than when it was admitted.
    has_changed: bool,
}

/// Sessions to evaluate again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// Those with these index keys.
    Keys(Vec<Key>),
    /// All.
    All,
}

impl Replica {
    pub(crate) fn new(url: Url, max: usize) -> Self {
        Self {
            url,
            max,
            known: RwLock::default(),
            changed: Mutex::new(Changed::Keys(Vec::new())),
            complete: watch::Sender::new(false),
            is_followed: std::sync::Once::new(),
            is_full: AtomicBool::new(false),
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
        known.beyond.is_empty()
            && *self.complete.borrow()
            && known.answered.is_some_and(|answered| answered.elapsed() < CERTAIN_FOR)
    }

    /// Why the replica is not authoritative, for the log.
    pub(crate) fn uncertainty(&self) -> &'static str {
        let known = self.known();
        if !*self.complete.borrow() {
            "the registry has not been read yet: its database does not answer"
        } else if known.beyond.is_empty() {
            "the registry does not answer: what the gateway knows of it may be out of date"
        } else {
            "the registry has more devices than `max_devices`, and the device may be one of the rest"
        }
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
        let Some(device) = self.by_id(&evidence.id) else { return self.evaluate_without_entry(&evidence.id, now) };
        may_continue(device.state(now))?;
        if !device.is_proved_by(&evidence.used) {
            return Err(CloseReason::CredentialWithdrawn);
        }
        if uses_facts && device.facts_tag != evidence.facts_tag {
            return Err(CloseReason::DeviceChanged);
        }
        Ok(())
    }

    fn evaluate_without_entry(&self, id: &str, now: i64) -> Result<(), CloseReason> {
        match self.known().beyond.get(&key(id)) {
            Some(Beyond { state, has_changed, .. }) => {
                may_continue(state.at(now))?;
                if *has_changed { Err(CloseReason::DeviceChanged) } else { Ok(()) }
            }
            None if *self.complete.borrow() => Err(CloseReason::DeviceRemoved),
            None => Ok(()),
        }
    }

    /// Takes the sessions that must be evaluated again.
    pub(crate) fn take_changed(&self) -> Changed {
        std::mem::replace(&mut *self.changed.lock(), Changed::Keys(Vec::new()))
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// Applies changes and queues the sessions of the changed devices for evaluation.
    fn apply(&self, changes: &[Change]) {
        // Build entries before taking the lock, and apply them in chunks: handshakes wait for the lock.
        let entries: Vec<Option<Arc<Entry>>> = changes.iter().map(Entry::after).collect();
        for chunk in changes.iter().zip(entries).collect::<Vec<_>>().chunks(CHUNK) {
            let mut known = self.known.write();
            chunk.iter().for_each(|(change, entry)| known.apply(change, entry.clone(), self.max));
        }
        self.log_full();
        if let Changed::Keys(keys) = &mut *self.changed.lock() {
            keys.extend(changes.iter().map(|change| key(&change.id)));
        }
    }

    fn evaluate_all(&self) {
        *self.changed.lock() = Changed::All;
    }

    /// Logs, once, that there are more devices than the replica may contain.
    fn log_full(&self) {
        let beyond = self.known().beyond.len();
        if (beyond > 0) != self.is_full.swap(beyond > 0, Ordering::Relaxed) && beyond > 0 {
            tracing::error!(
                max_devices = self.max,
                beyond,
                "the device registry has more devices than `max_devices`; the rest are rejected"
            );
        }
    }

    /// Records that all changes up to this revision are applied. Some revisions have no change.
    fn reached(&self, head: Head) {
        let mut known = self.known.write();
        known.head = head;
    }

    fn answered(&self) {
        self.known.write().answered = Some(Instant::now());
        if self.complete.send_if_modified(|is_complete| !std::mem::replace(is_complete, true)) {
            // Sessions from before, under another registry, may be of devices that are not in this one.
            self.evaluate_all();
        }
    }
}

impl Known {
    /// Whether a device that did not fit would fit now.
    fn has_room(&self, max: usize) -> bool {
        !self.beyond.is_empty() && self.by_id.len() < max
    }

    /// Records that the devices that did not fit may be others than before.
    fn distrust_beyond(&mut self) {
        self.beyond.values_mut().for_each(|device| device.has_changed = true);
    }

    /// Records which of the devices that did not fit have changed since `before` was read.
    fn compare_beyond(&mut self, before: &Self) {
        for (key, device) in &mut self.beyond {
            let had_changed = before.beyond.get(key).is_some_and(|before| before.has_changed);
            device.has_changed |= had_changed || device.revision > before.head.revision;
        }
    }

    fn apply(&mut self, change: &Change, entry: Option<Arc<Entry>>, max: usize) {
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
        let id = key(&change.id);
        let was_beyond = self.beyond.remove(&id);
        let (Some(entry), Some(device)) = (entry, &change.device) else { return };
        if self.by_id.len() >= max {
            let revision = change.revision;
            // The same change may come twice.
            let has_changed = was_beyond.is_some_and(|was| was.has_changed || was.revision < revision);
            self.beyond.insert(id, Beyond { state: device.state, revision, has_changed });
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

/// Whether a session of a device in this state may continue.
const fn may_continue(state: State) -> Result<(), CloseReason> {
    match state {
        State::Enabled => Ok(()),
        State::Disabled => Err(CloseReason::DeviceDisabled),
        State::Banned(_) => Err(CloseReason::DeviceBanned),
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({:?}, {} devices)", self.url, self.len())
    }
}
