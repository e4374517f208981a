//! Keeps the replica up to date. Enters: the database of the registry. Leaves: its changes, applied in the order of
//! their revisions. Not here: a lookup.

use std::sync::{Arc, Weak};
use std::time::Duration;

use portcullis_registry::{Head, Listening, PAGE, Registry};

use super::{Entry, Known, Replica};
use crate::util::causes::with_causes;

/// Interval at which the gateway polls the database for changes.
const PERIOD: Duration = Duration::from_secs(1);
/// Time for one response of the database.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a start waits for the replica to load before listeners accept connections without it.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

impl Replica {
    /// Starts to follow the database, once. Waits a bounded time until the replica is loaded.
    pub(crate) async fn prepare(self: &Arc<Self>) {
        self.is_followed.call_once(|| {
            tokio::spawn(follow(Arc::downgrade(self)));
        });
        let mut complete = self.complete.subscribe();
        let waited = tokio::time::timeout(LOAD_TIMEOUT, complete.wait_for(|is_complete| *is_complete)).await;
        if waited.is_err() {
            let database = self.url.shown();
            tracing::warn!(database, "device registry not loaded yet; devices are rejected until it is");
        }
    }

    /// Reads changes since the last revision. `anew`: replaces the whole replica.
    async fn pull(self: &Arc<Self>, registry: &Registry, anew: bool) -> Result<(), String> {
        let (known, has_room) = {
            let known = self.known();
            (known.head.clone(), known.has_room(self.max))
        };
        let head = query(registry.head()).await?;
        if anew || !continues(registry, &known, &head).await? {
            tracing::warn!(
                database = self.url.shown(),
                "the device registry was replaced or restored, or has changed too often since it was last read; \
                 reloading it"
            );
            return self.pull_anew(registry, head, true).await;
        }
        if has_room {
            // There is room again for devices that did not fit.
            return self.pull_anew(registry, head, false).await;
        }
        let mut since = known.revision;
        // All changes up to this revision are committed.
        while since < head.revision {
            let changes = query(registry.changes(since)).await?;
            let Some(last) = changes.last() else { break };
            since = last.revision;
            let this = Arc::clone(self);
            in_background(move || this.apply(&changes)).await?;
        }
        self.reached(head);
        self.answered();
        Ok(())
    }

    /// Replaces the whole replica. `is_other`: by that of another database, so that devices which do not fit cannot be
    /// compared with what they were.
    async fn pull_anew(self: &Arc<Self>, registry: &Registry, head: Head, is_other: bool) -> Result<(), String> {
        // What is committed while this reads is read again by the next pull.
        let (mut fresh, max, mut since) = (Known { head, ..Known::default() }, self.max, 0);
        loop {
            let changes = query(registry.changes(since)).await?;
            since = changes.last().map_or(since, |change| change.revision);
            let is_last = changes.len() < PAGE;
            fresh = in_background(move || {
                changes.iter().for_each(|change| fresh.apply(change, Entry::after(change), max));
                fresh
            })
            .await?;
            if is_last {
                break;
            }
        }
        let this = Arc::clone(self);
        in_background(move || {
            if is_other {
                fresh.distrust_beyond();
            } else {
                fresh.compare_beyond(&this.known());
            }
            let before = std::mem::replace(&mut *this.known.write(), fresh);
            this.evaluate_all();
            drop(before);
        })
        .await?;
        self.log_full();
        self.answered();
        Ok(())
    }
}

/// Whether the database has all changes up to `known`, so that the later ones are what is missing. `head` is its state.
async fn continues(registry: &Registry, known: &Head, head: &Head) -> Result<bool, String> {
    if head.revision < known.revision || known.identity.is_some() && known.identity != head.identity {
        return Ok(false);
    }
    // Otherwise it is a copy of the database that was changed separately, as after a restore.
    Ok(known.tag.is_none() || query(registry.tag(known.revision)).await? == known.tag)
}

/// Follows the database while the replica has an owner. Logs a problem once, and its end once.
async fn follow(replica: Weak<Replica>) {
    let (mut connection, mut logged) = (Connection::default(), None);
    loop {
        let Some(this) = replica.upgrade() else { return };
        match connection.pull(&this).await {
            Ok(()) => {
                if logged.take().is_some() {
                    tracing::info!(
                        database = this.url.shown(),
                        devices = this.len(),
                        "device registry available again"
                    );
                }
            }
            Err(problem) => {
                this.known.write().answered = None;
                if logged.as_ref() != Some(&problem) {
                    tracing::error!(
                        database = this.url.shown(),
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
    /// With what the file was when it was opened, for SQLite.
    registry: Option<(Registry, Option<FileVersion>)>,
    /// Receives notifications of changes.
    listening: Option<Listening>,
    /// Whether the replica was read from another database file.
    is_other: bool,
}

impl Connection {
    async fn pull(&mut self, replica: &Arc<Replica>) -> Result<(), String> {
        let file = replica.url.path().map(FileVersion::of).transpose();
        if let Some((registry, known)) = self.registry.take_if(|(_, known)| file.as_ref().ok() != Some(known)) {
            // Opened again whenever it was written: SQLite goes on reading from its cache if another database with as
            // many changes was copied over the open file.
            registry.close().await;
            // The file was renamed or replaced: the open one is not the file that others write to.
            self.is_other |=
                known.map(|known| known.inode) != file.as_ref().ok().copied().flatten().map(|file| file.inode);
        }
        let registry = match self.registry.take() {
            Some(connected) => &self.registry.insert(connected).0,
            None => {
                let file = file.map_err(|error| format!("the file cannot be opened: {error}"))?;
                let registry = Registry::connect_lazy(&replica.url).map_err(|error| with_causes(&error))?;
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
        Ok(response) => response.map_err(|error| with_causes(&error)),
        Err(_) => Err(format!("timed out after {} s", QUERY_TIMEOUT.as_secs())),
    }
}

/// What tells a file from one that replaces it, and from what it was before it was written.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileVersion {
    /// Device and inode.
    inode: (u64, u64),
    /// The time of the last change of content or attributes: unlike the time of modification, no program sets it.
    changed: (i64, i64),
}

impl FileVersion {
    fn of(path: &str) -> std::io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let file = std::fs::metadata(path)?;
        Ok(Self { inode: (file.dev(), file.ino()), changed: (file.ctime(), file.ctime_nsec()) })
    }
}

/// Runs work on a blocking thread, so that sessions are not delayed.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}
