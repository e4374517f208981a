//! The devices of a registry as the gateway knows them: all of them, in memory, following the database. So devices are
//! found without waiting for it, and those that are known are served through an outage of any length. Enters: changes.
//! Leaves: devices, and whose sessions are to be evaluated again.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use portcullis_registry::{Change, Device, Listening, PAGE, Registry, State, Url};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::outcome::{CloseReason, Reject};
use crate::peer::Fingerprint;
use crate::pki::Key;
use crate::util::crypto::tag;
use crate::util::weak_map::WeakMap;

/// How often the database is asked whether something has changed.
const PERIOD: Duration = Duration::from_secs(1);
/// For one answer of the database.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the gateway waits for a registry before it serves without.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without an answer, a device that is not known may be a new one.
const CERTAIN_FOR: Duration = Duration::from_secs(15);

/// Changes that are taken over under one lock.
const CHUNK: usize = 128;
/// Password hashes that others are measured by.
const MAX_SAMPLES: usize = 64;

/// Registries that are in use, by where they are and how many devices are kept.
pub(crate) type Registries = WeakMap<(Url, usize), Replica>;

/// A pre-shared key.
pub type SecretKey = Zeroizing<Box<[u8]>>;

/// The place in indexes of a device's sessions.
pub(crate) fn key(id: &str) -> Key {
    let mut hasher = DefaultHasher::new();
    ("device", id).hash(&mut hasher);
    hasher.finish()
}

/// A registry as it is known.
pub struct Replica {
    url: Url,
    max: usize,
    known: RwLock<Known>,
    /// Whose sessions are to be evaluated again.
    changed: Mutex<Vec<Key>>,
    /// Whether all has been read once.
    complete: watch::Sender<bool>,
    is_followed: std::sync::Once,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<Arc<str>, Arc<Entry>>,
    by_pin: HashMap<Fingerprint, Arc<Entry>>,
    by_psk: HashMap<Box<str>, Arc<Entry>>,
    /// The last change that is in it.
    revision: i64,
    /// When the database answered last; `None`: it has failed to since.
    answered: Option<Instant>,
    /// There are more devices than are kept.
    is_full: bool,
    /// Some devices' password hashes, for others to be measured by.
    samples: Vec<Box<str>>,
}

/// A device, in little space. Not to be printed: its keys are in it.
pub struct Entry {
    /// Its ID.
    pub id: Arc<str>,
    state: State,
    pins: Box<[Fingerprint]>,
    psk: Option<(Box<str>, SecretKey)>,
    /// The hash of its password.
    pub password_hash: Option<Box<str>>,
    /// What expressions may know of it, as JSON.
    facts: Box<str>,
    /// Tells it from what they knew before.
    facts_tag: u64,
}

/// A device of the registry that a session rests on, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceEvidence {
    /// Which one.
    pub id: Arc<str>,
    /// With what it has proved to be that.
    pub used: Used,
    facts_tag: u64,
}

/// With what a device of the registry has proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Used {
    /// A certificate or key that it is pinned to.
    Pin(Fingerprint),
    /// Its pre-shared key; the tag tells it from others.
    Psk(u64),
    /// Its password; likewise.
    Password(u64),
    /// Something that others vouch for.
    Tls {
        /// Of the certificate or key that it has shown.
        keys: Box<[Fingerprint]>,
        /// Identity and tag of the pre-shared key that it has used.
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

    /// What expressions may know of it.
    pub fn facts(&self) -> Json {
        serde_json::from_str(&self.facts).unwrap_or_default()
    }

    /// The identity and the octets of its pre-shared key.
    pub fn psk(&self) -> Option<(&str, &[u8])> {
        self.psk.as_ref().map(|(identity, key)| (&**identity, &***key))
    }

    /// Whether it is pinned to this certificate or key.
    pub fn is_pinned_to(&self, fingerprint: &Fingerprint) -> bool {
        self.pins.contains(fingerprint)
    }

    /// Whether this still proves that it is this device. Of what others vouch for, it must be one of its pins if it has
    /// any, and not another key than its own of the same identity.
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

    /// The evidence of a session that this was used for.
    pub fn evidence(&self, used: Used) -> DeviceEvidence {
        DeviceEvidence { id: Arc::clone(&self.id), used, facts_tag: self.facts_tag }
    }

    /// Whether it is let in at a time, in seconds since 1970.
    ///
    /// # Errors
    /// Why not.
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

    /// Begins to follow the database, if nobody does yet; waits a bounded time until all has been read.
    pub(crate) async fn prepare(self: &Arc<Self>) {
        self.is_followed.call_once(|| {
            tokio::spawn(follow(Arc::downgrade(self)));
        });
        let mut complete = self.complete.subscribe();
        let waited = tokio::time::timeout(PATIENCE, complete.wait_for(|is_complete| *is_complete)).await;
        if waited.is_err() {
            tracing::warn!("the device registry has not been read yet; devices are refused until it has");
        }
    }

    /// The device of this ID.
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

    /// Whether a device that is not found is not in the registry, as of a few seconds ago.
    pub fn is_certain(&self) -> bool {
        let known = self.known();
        !known.is_full
            && *self.complete.borrow()
            && known.answered.is_some_and(|answered| answered.elapsed() < CERTAIN_FOR)
    }

    /// How many devices are known.
    pub fn len(&self) -> usize {
        self.known().by_id.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some device's password hash; for one name it is always the same, as long as there are no others.
    pub(crate) fn sample_hash(&self, name: &str) -> Option<Box<str>> {
        let known = self.known();
        let place = tag(name.as_bytes()) % (known.samples.len().max(1) as u64);
        known.samples.get(usize::try_from(place).unwrap_or(0)).cloned()
    }

    /// Whether a session that rests on a device may continue. `uses_facts`: what is known of the device decides about it.
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why it ends.
    pub(crate) fn evaluate(&self, evidence: &DeviceEvidence, uses_facts: bool, now: i64) -> Result<(), CloseReason> {
        let Some(device) = self.by_id(&evidence.id) else {
            // It may be among those that have not been read yet, or are not kept.
            let is_known_to_be_gone = *self.complete.borrow() && !self.known().is_full;
            return if is_known_to_be_gone { Err(CloseReason::DeviceRemoved) } else { Ok(()) };
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

    /// Whose sessions are to be evaluated again; told once.
    pub(crate) fn take_changed(&self) -> Vec<Key> {
        std::mem::take(&mut *self.changed.lock())
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read()
    }

    /// Takes over changes; those whom they concern are to be evaluated again.
    fn apply(&self, changes: &[Change]) {
        // Before the lock is taken, and not all at once under it: handshakes wait for it.
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
                    "the registry has more devices than are kept; others are refused"
                );
            }
        }
        self.evaluate_again(changes.iter().map(|change| key(&change.id)));
    }

    fn evaluate_again(&self, keys: impl Iterator<Item = Key>) {
        self.changed.lock().extend(keys);
    }

    /// Reads what has changed; or all there is, in place of what is known.
    async fn pull(self: &Arc<Self>, registry: &Registry, anew: bool) -> Result<(), String> {
        let (known, has_room) = {
            let known = self.known();
            (known.revision, known.is_full && known.by_id.len() < self.max)
        };
        let revision = answer(registry.revision()).await?;
        if anew || revision < known {
            tracing::warn!("another device registry is in the place of the one that was there; it is read anew");
            return self.pull_anew(registry).await;
        }
        if has_room {
            // For some of those that were left out.
            return self.pull_anew(registry).await;
        }
        let mut since = known;
        // Whatever has a number up to this one is there to be seen.
        while since < revision {
            let changes = answer(registry.changes(since)).await?;
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
            let changes = answer(registry.changes(fresh.revision)).await?;
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

    /// All changes up to this number are known; some numbers are nobody's.
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

/// Not on a thread that moves bytes.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

impl Known {
    fn apply(&mut self, change: &Change, entry: Option<Arc<Entry>>, max: usize) {
        self.revision = self.revision.max(change.revision);
        if let Some(old) = self.by_id.remove(&*change.id) {
            // Its pins and its identity may be another's by now.
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

/// Follows the database for as long as somebody has the replica. Says once what is wrong, and once that nothing
/// is any more.
async fn follow(replica: Weak<Replica>) {
    let (mut connection, mut said) = (Connection::default(), None);
    loop {
        let Some(this) = replica.upgrade() else { return };
        match connection.pull(&this).await {
            Ok(()) => {
                if said.take().is_some() {
                    tracing::info!(devices = this.len(), "the device registry answers again");
                }
            }
            Err(problem) => {
                this.known.write().answered = None;
                if said.as_ref() != Some(&problem) {
                    tracing::error!(devices = this.len(), "the device registry: {problem}; what is known stays");
                    said = Some(problem);
                }
            }
        }
        drop(this);
        connection.wait().await;
    }
}

/// The database as it is followed.
#[derive(Default)]
struct Connection {
    /// With the file that it was opened of, if it is one.
    registry: Option<(Registry, Option<(u64, u64)>)>,
    /// Says at once that something has changed.
    listening: Option<Listening>,
    /// What is known is of another database.
    is_other: bool,
}

impl Connection {
    async fn pull(&mut self, replica: &Arc<Replica>) -> Result<(), String> {
        let file = replica.url.path().map(inode).transpose();
        // Renamed or restored: the one that is open is not what others write to.
        if let Some((registry, _)) = self.registry.take_if(|(_, known)| file.as_ref().ok() != Some(known)) {
            registry.close().await;
            self.is_other = true;
        }
        let registry = match self.registry.take() {
            Some(connected) => &self.registry.insert(connected).0,
            None => {
                let file = file.map_err(|error| format!("its file cannot be opened: {error}"))?;
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
            // Without, changes are seen a second later.
            let listening = answer(registry.listen()).await;
            self.listening = listening.unwrap_or_else(|problem| {
                tracing::debug!("the device registry says nothing by itself: {problem}");
                None
            });
        }
        Ok(())
    }

    /// Until something may have changed.
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

/// Waits for an answer of the database, but not for ever.
async fn answer<T>(asked: impl Future<Output = Result<T, portcullis_registry::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| explain(&error)),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// What tells a file from another that is in its place.
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
