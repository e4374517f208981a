//! The in-memory replica of a device registry. Enters: changes from the database. Leaves: devices, and the index keys
//! of sessions that must be evaluated again. Lookups never wait for the database, and an outage of any length does not
//! affect devices that the replica contains.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use portcullis_registry::{Change, Device, Listening, PAGE, Registry, State, Url};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::outcome::{CloseReason, Reject};
use crate::peer::Fingerprint;
use crate::pki::Key;
use crate::util::crypto::tag;
use crate::util::weak_map::WeakMap;

/// Interval at which the gateway polls the database for changes.
const PERIOD: Duration = Duration::from_secs(1);
/// Time for one response of the database.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a start waits for the replica to load before listeners accept connections without it.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// After this time without a response of the database, an unknown device may be a new one.
const CERTAIN_FOR: Duration = Duration::from_secs(15);

/// Number of changes applied under one lock.
const CHUNK: usize = 128;
/// Maximum number of password hashes kept as decoys.
const MAX_SAMPLES: usize = 64;

/// Registries in use, by URL and maximum number of devices.
pub(crate) type Registries = WeakMap<(Url, usize), Replica>;

/// A pre-shared key.
pub type SecretKey = Zeroizing<Box<[u8]>>;

/// The key of a device's sessions in the session index.
pub(crate) fn key(id: &str) -> Key {
    let mut hasher = DefaultHasher::new();
    ("device", id).hash(&mut hasher);
    hasher.finish()
}

/// The in-memory replica of a registry.
pub struct Replica {
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

/// A device in compact form. It contains keys: do not log it.
pub struct Entry {
    /// Its ID.
    pub id: Arc<str>,
    state: State,
    pins: Box<[Fingerprint]>,
    psk: Option<(Box<str>, SecretKey)>,
    /// The hash of its password.
    pub password_hash: Option<Box<str>>,
    /// The attributes that expressions can use, as JSON.
    facts: Box<str>,
    /// Distinguishes `facts` from earlier values.
    facts_tag: u64,
}

/// Evidence of a session: a device of the registry, as it was when the session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvidence {
    /// The ID of the device.
    pub id: Arc<str>,
    /// The credential that the device used.
    pub used: Used,
    facts_tag: u64,
}

/// The credential with which a device of the registry authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Used {
    /// A certificate or key that it is pinned to.
    Pin(Fingerprint),
    /// Its pre-shared key, identified by a tag.
    Psk(u64),
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
    pub fn facts(&self) -> Json {
        serde_json::from_str(&self.facts).unwrap_or_default()
    }

    /// The identity and the bytes of its pre-shared key.
    pub fn psk(&self) -> Option<(&str, &[u8])> {
        self.psk.as_ref().map(|(identity, key)| (&**identity, &***key))
    }

    /// Whether the device is pinned to this certificate or key.
    pub fn is_pinned_to(&self, fingerprint: &Fingerprint) -> bool {
        self.pins.contains(fingerprint)
    }

    /// Whether this credential still proves the device. A credential from outside the registry ([`Used::Tls`]) must
    /// match a pin if the device has pins, and the device's own key if it has the same PSK identity.
    pub fn is_proved_by(&self, used: &Used) -> bool {
        match used {
            Used::Pin(fingerprint) => self.is_pinned_to(fingerprint),
            Used::Psk(of) => self.psk().is_some_and(|(_, key)| tag(key) == *of),
            Used::Password(of) => self.password_hash.as_ref().is_some_and(|hash| tag(hash.as_bytes()) == *of),
            Used::Tls { keys, psk } => {
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
    pub fn evidence(&self, used: Used) -> DeviceEvidence {
        DeviceEvidence { id: Arc::clone(&self.id), used, facts_tag: self.facts_tag }
    }

    /// Checks that the device is admitted at a time in seconds since 1970.
    ///
    /// # Errors
    /// The device is disabled or banned.
    pub fn may_enter(&self, now: i64) -> Result<(), Reject> {
        match self.state.at(now) {
            State::Enabled => Ok(()),
            State::Disabled => Err(Reject::DeviceDisabled),
            State::Banned(_) => Err(Reject::DeviceBanned),
        }
    }
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

    /// Starts to follow the database, once. Waits a bounded time until the replica is loaded.
    pub(crate) async fn prepare(self: &Arc<Self>) {
        self.is_followed.call_once(|| {
            tokio::spawn(follow(Arc::downgrade(self)));
        });
        let mut complete = self.complete.subscribe();
        let waited = tokio::time::timeout(LOAD_TIMEOUT, complete.wait_for(|is_complete| *is_complete)).await;
        if waited.is_err() {
            tracing::warn!("device registry not loaded yet; devices are rejected until it is");
        }
    }

    /// The device with this ID.
    pub fn by_id(&self, id: &str) -> Option<Arc<Entry>> {
        self.known().by_id.get(id).cloned()
    }

    /// The device that is pinned to this certificate or key.
    pub fn by_pin(&self, fingerprint: &Fingerprint) -> Option<Arc<Entry>> {
        self.known().by_pin.get(fingerprint).cloned()
    }

    /// The device whose pre-shared key has this identity.
    pub fn by_psk(&self, identity: &str) -> Option<Arc<Entry>> {
        self.known().by_psk.get(identity).cloned()
    }

    /// Whether the replica is complete and recent, so that a device that it lacks is not in the registry.
    pub fn is_certain(&self) -> bool {
        let known = self.known();
        !known.is_full
            && *self.complete.borrow()
            && known.answered.is_some_and(|answered| answered.elapsed() < CERTAIN_FOR)
    }

    /// Number of devices in the replica.
    pub fn len(&self) -> usize {
        self.known().by_id.len()
    }

    /// Whether the replica contains no device.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        match device.may_enter(now) {
            Ok(()) => {}
            Err(Reject::DeviceBanned) => return Err(CloseReason::DeviceBanned),
            Err(_) => return Err(CloseReason::DeviceDisabled),
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
        let entries: Vec<Option<Arc<Entry>>> = changes.iter().map(entry).collect();
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

    /// Reads changes since the last revision. `anew`: replaces the whole replica.
    async fn pull(self: &Arc<Self>, registry: &Registry, anew: bool) -> Result<(), String> {
        let (known, has_room) = {
            let known = self.known();
            (known.revision, known.is_full && known.by_id.len() < self.max)
        };
        let revision = query(registry.revision()).await?;
        if anew || revision < known {
            tracing::warn!("the device registry was replaced by another one; reloading it");
            return self.pull_anew(registry).await;
        }
        if has_room {
            // There is room again for devices that did not fit.
            return self.pull_anew(registry).await;
        }
        let mut since = known;
        // All changes up to this revision are committed.
        while since < revision {
            let changes = query(registry.changes(since)).await?;
            let Some(last) = changes.last() else { break };
            since = last.revision;
            let this = Arc::clone(self);
            in_background(move || this.apply(&changes)).await?;
        }
        self.reached(revision);
        self.answered();
        Ok(())
    }

    async fn pull_anew(self: &Arc<Self>, registry: &Registry) -> Result<(), String> {
        let (mut fresh, max) = (Known::default(), self.max);
        loop {
            let changes = query(registry.changes(fresh.revision)).await?;
            let is_last = changes.len() < PAGE;
            fresh = in_background(move || {
                changes.iter().for_each(|change| fresh.apply(change, entry(change), max));
                fresh
            })
            .await?;
            if is_last {
                break;
            }
        }
        let this = Arc::clone(self);
        in_background(move || {
            let new: Vec<Key> = fresh.by_id.keys().map(|id| key(id)).collect();
            let before = std::mem::replace(&mut *this.known.write(), fresh);
            this.evaluate_again(before.by_id.keys().map(|id| key(id)).chain(new));
        })
        .await?;
        self.answered();
        Ok(())
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

fn entry(change: &Change) -> Option<Arc<Entry>> {
    change.device.as_ref().map(|device| Arc::new(Entry::new(device)))
}

/// Runs work on a blocking thread, so that sessions are not delayed.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
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

/// Follows the database while the replica has an owner. Logs a problem once, and its end once.
async fn follow(replica: Weak<Replica>) {
    let (mut connection, mut logged) = (Connection::default(), None);
    loop {
        let Some(this) = replica.upgrade() else { return };
        match connection.pull(&this).await {
            Ok(()) => {
                if logged.take().is_some() {
                    tracing::info!(devices = this.len(), "device registry available again");
                }
            }
            Err(problem) => {
                this.known.write().answered = None;
                if logged.as_ref() != Some(&problem) {
                    tracing::error!(
                        devices = this.len(),
                        "device registry unavailable, serving known devices: {problem}"
                    );
                    logged = Some(problem);
                }
            }
        }
        drop(this);
        connection.wait().await;
    }
}

/// The connection to the database.
#[derive(Default)]
struct Connection {
    /// With device and inode of the file, for SQLite.
    registry: Option<(Registry, Option<(u64, u64)>)>,
    /// Receives notifications of changes.
    listening: Option<Listening>,
    /// Whether the replica was read from another database file.
    is_other: bool,
}

impl Connection {
    async fn pull(&mut self, replica: &Arc<Replica>) -> Result<(), String> {
        let file = replica.url.path().map(inode).transpose();
        // The file was renamed or restored: the open one is not the file that others write to.
        if let Some((registry, _)) = self.registry.take_if(|(_, known)| file.as_ref().ok() != Some(known)) {
            registry.close().await;
            self.is_other = true;
        }
        let registry = match self.registry.take() {
            Some(connected) => &self.registry.insert(connected).0,
            None => {
                let file = file.map_err(|error| format!("the file cannot be opened: {error}"))?;
                let registry = Registry::connect_lazy(&replica.url).map_err(|error| explain(&error))?;
                &self.registry.insert((registry, file)).0
            }
        };
        let result = replica.pull(registry, self.is_other).await;
        if result.is_err() {
            self.listening = None;
            return result;
        }
        self.is_other = false;
        if self.listening.is_none() {
            // Without notifications, polling sees changes after up to a second.
            let listening = query(registry.listen()).await;
            self.listening = listening.unwrap_or_else(|problem| {
                tracing::debug!("no change notifications from the device registry: {problem}");
                None
            });
        }
        Ok(())
    }

    /// Waits until something may have changed.
    async fn wait(&mut self) {
        if let Some(listening) = &mut self.listening {
            match tokio::time::timeout(PERIOD, listening.changed()).await {
                Ok(Ok(())) | Err(_) => return,
                Ok(Err(_)) => self.listening = None,
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Waits for a response of the database, with a timeout.
async fn query<T>(query: impl Future<Output = Result<T, portcullis_registry::Error>>) -> Result<T, String> {
    match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(response) => response.map_err(|error| explain(&error)),
        Err(_) => Err("timed out".to_owned()),
    }
}

/// Device and inode, which detect that another file has replaced a file.
fn inode(path: &str) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn explain(error: &portcullis_registry::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
