//! Values from files or URLs that are refreshed at run time. Enters: how to read or fetch a value, and which new value
//! may replace the last one. Leaves: the last good value, lock-free to read, and whether sessions that depend on it
//! must be evaluated again.
//!
//! Invariants: a value is never dropped because its origin fails; a reader never waits for a file or the network; at most
//! one request for a value is in flight; a failing origin is retried with back-off; a problem is logged once.

use std::fmt;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::config::Complaint;
use crate::fetch::Validators;

/// How often an origin is read or fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Shortest time between two attempts.
    pub(crate) min: Duration,
    /// Longest back-off. It doubles with each failure.
    pub(crate) max_retry: Duration,
}

/// Unusable files are read again even if they have not changed: the cause may have been a lack of file descriptors, or
/// an absent token.
const FILE_PACE: Pace = Pace { min: Duration::from_secs(5), max_retry: Duration::from_secs(5) };

/// The history of attempts to read or fetch a value.
#[derive(Debug, Default)]
struct Attempts {
    /// When the last attempt began or ended; `None`: none yet.
    last: Option<Instant>,
    /// How long after `last` the next attempt is due.
    wait: Duration,
    /// Failures in a row.
    failures: u32,
    /// The error of the last attempt, if it failed.
    problem: Option<String>,
}

impl Attempts {
    /// Whether the next attempt is due. `period`: the longest time between two attempts.
    fn is_due(&self, pace: Pace, period: Duration) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.wait.min(period).max(pace.min))
    }

    /// Records the end of an attempt: how long the value is valid, or an error. Returns whether the error is a new one.
    /// A value that is already out of date is retried with the same back-off as an error: its origin is late.
    fn end(&mut self, pace: Pace, result: Result<Duration, &str>) -> bool {
        self.last = Some(Instant::now());
        match result {
            Ok(good_for) if !good_for.is_zero() => (self.failures, self.wait) = (0, good_for),
            _ => {
                self.failures = self.failures.saturating_add(1);
                self.wait = (pace.min * (1 << self.failures.min(10))).min(pace.max_retry);
            }
        }
        let problem = result.err();
        let is_new = problem.is_some() && problem != self.problem.as_deref();
        self.problem = problem.map(str::to_owned);
        is_new
    }
}

/// Detects changes of files.
#[derive(Debug)]
pub(crate) struct Watch {
    files: Vec<PathBuf>,
    state: Mutex<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    /// Stamps of the files at the last successful read.
    good: Option<Stamps>,
    /// Stamps at the last check.
    seen: Stamps,
    /// Stamps at the last read, successful or not.
    read: Stamps,
    attempts: Attempts,
}

impl Watch {
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self { files, state: Mutex::default() }
    }

    /// Reads the files with `read` if they have changed since the last successful read. `None`: they have not, or the
    /// error was already returned.
    ///
    /// `at_once`: the caller knows that the files are complete. Otherwise they are read once they stay unchanged
    /// between two calls, because a half-written bundle looks like a complete one.
    pub(crate) fn read_if_changed<T>(
        &self,
        at_once: bool,
        read: impl FnOnce() -> Result<T, Complaint>,
    ) -> Option<Result<T, Complaint>> {
        // Held during the read, so that a concurrent caller sees its result.
        let mut state = self.state.lock();
        // Taken before the read: a change during the read results in other stamps.
        let stamps = self.stamps();
        if state.good.as_ref() == Some(&stamps) {
            state.attempts = Attempts::default();
            return None;
        }
        let is_stable = std::mem::replace(&mut state.seen, stamps.clone()) == stamps;
        let is_due = state.read != stamps || state.attempts.is_due(FILE_PACE, Duration::MAX);
        let should_read = at_once || (is_stable && is_due);
        if !should_read {
            return None;
        }
        state.read.clone_from(&stamps);
        let result = read();
        let problem = result.as_ref().err().map(|complaint| complaint.message.as_str());
        let is_new = state.attempts.end(FILE_PACE, problem.map_or(Ok(Duration::MAX), Err));
        if result.is_ok() {
            state.good = Some(stamps);
        }
        (is_new || result.is_ok()).then_some(result)
    }

    /// The error of the last attempt, if it failed.
    pub(crate) fn problem(&self) -> Option<String> {
        self.state.lock().attempts.problem.clone()
    }

    fn stamps(&self) -> Stamps {
        self.files.iter().map(|file| Stamp::of(file)).collect()
    }
}

/// A value from files that is reloaded when they change. If the new content is invalid, the last good value stays.
pub(crate) struct FromFiles<T> {
    /// Its name in logs.
    what: &'static str,
    watch: Watch,
    read: Box<dyn Fn() -> Result<T, Complaint> + Send + Sync>,
    current: ArcSwap<T>,
}

impl<T> FromFiles<T> {
    /// Reads a file for the first time.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn open(
        what: &'static str,
        path: PathBuf,
        read: impl Fn(&Path) -> Result<T, Complaint> + Send + Sync + 'static,
    ) -> Result<Self, Complaint> {
        Self::open_all(what, vec![path.clone()], move || read(&path))
    }

    /// Reads several files with `read` for the first time.
    ///
    /// # Errors
    /// The files cannot be used.
    pub(crate) fn open_all(
        what: &'static str,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Complaint> + Send + Sync + 'static,
    ) -> Result<Self, Complaint> {
        let watch = Watch::new(files);
        let stamps = watch.stamps();
        let current = ArcSwap::from_pointee(read()?);
        watch.state.lock().good = Some(stamps);
        Ok(Self { what, watch, read: Box::new(read), current })
    }

    /// The last good value.
    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the files again if they have changed, and logs the result. Returns whether the value was replaced. `owner`
    /// is the listener or authenticator that the files belong to.
    pub(crate) fn read_if_changed(&self, owner: &str) -> bool {
        let (what, path) = (self.what, self.watch.files.first().map(|path| path.display()));
        let path = path.map(tracing::field::display);
        match self.watch.read_if_changed(false, &self.read) {
            Some(Ok(content)) => {
                self.current.store(Arc::new(content));
                tracing::info!(owner, path, "{what} loaded");
                true
            }
            Some(Err(Complaint { message, .. })) => {
                tracing::error!(owner, path, "{what}: reload failed, keeping the last good version: {message}");
                false
            }
            None => false,
        }
    }
}

/// Shows only paths: the value may be secret.
impl<T> fmt::Debug for FromFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FromFiles({:?})", self.watch.files)
    }
}

type Stamps = Vec<Option<Stamp>>;

/// Metadata that detects a change of a file without reading it. Follows symbolic links: swapping one, as Kubernetes
/// does, is a change. Polled rather than watched: polling works on every file system, and for files that do not exist
/// yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The current stamp of a file; `None`: the file does not exist or is not accessible.
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// Fetches a value, and decides whether it may replace the last one.
pub(crate) trait Remote: Send + Sync + Sized + 'static {
    /// The type of the value.
    type Value: Send + Sync + 'static;
    /// The name of the value in logs.
    const WHAT: &'static str;
    const PACE: Pace;

    /// The origin of the value for logs, without secrets.
    fn origin(&self) -> String;

    /// Makes one request, within a bounded time. `None`: the value has not changed since the validators were issued.
    fn fetch(
        &self,
        validators: &Validators,
    ) -> impl Future<Output = Result<Option<(Self::Value, Validators)>, String>> + Send;

    /// The value that replaces the last one, or the reason why none does.
    fn accept(&self, new: Self::Value, _last: Option<&Self::Value>) -> Result<Self::Value, String> {
        Ok(new)
    }

    /// Called after readers see the new value, in the order of changes. Returns whether sessions that depend on the
    /// value must be evaluated again. May block.
    fn on_change(&self, _last: Option<&Self::Value>, _new: &Self::Value) -> bool {
        false
    }

    /// How long a value is valid; zero: it is out of date.
    fn good_for(&self, value: &Self::Value) -> Duration;
}

/// The last good value of a remote.
pub(crate) struct Refreshed<R: Remote> {
    remote: R,
    current: ArcSwapOption<R::Value>,
    /// Held while a value is replaced.
    changing: Mutex<()>,
    has_changed: AtomicBool,
    /// Held during a fetch.
    flight: Arc<tokio::sync::Mutex<Validators>>,
    attempts: Mutex<Attempts>,
}

impl<R: Remote> Refreshed<R> {
    /// Creates a remote without a value.
    pub(crate) fn new(remote: R) -> Self {
        Self {
            remote,
            current: ArcSwapOption::empty(),
            changing: Mutex::default(),
            has_changed: AtomicBool::new(false),
            flight: Arc::default(),
            attempts: Mutex::default(),
        }
    }

    pub(crate) const fn remote(&self) -> &R {
        &self.remote
    }

    /// The last good value; `None`: none yet.
    pub(crate) fn load(&self) -> Guard<Option<Arc<R::Value>>> {
        self.current.load()
    }

    /// Whether sessions that depend on the value must be evaluated again. Resets the flag.
    pub(crate) fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Ordering::AcqRel)
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// The new value is not accepted. The last one stays.
    pub(crate) fn replace(&self, new: R::Value) -> Result<(), String> {
        let mut result = Ok(());
        self.change(|last| self.remote.accept(new, last).map_err(|problem| result = Err(problem)).ok());
        result
    }

    /// Replaces the value with the result of `change`, if there is one.
    pub(crate) fn change(&self, change: impl FnOnce(Option<&R::Value>) -> Option<R::Value>) {
        let _changing = self.changing.lock();
        let last = self.current.load_full();
        let Some(new) = change(last.as_deref()).map(Arc::new) else { return };
        self.current.store(Some(Arc::clone(&new)));
        if self.remote.on_change(last.as_deref(), &new) {
            self.has_changed.store(true, Ordering::Release);
        }
    }

    /// Starts a fetch in the background if the value is older than `period` or no longer valid, or if a retry is due.
    /// Does nothing while another fetch is in flight.
    pub(crate) fn fetch_if_due(self: &Arc<Self>, period: Duration) {
        if let Ok(flight) = Arc::clone(&self.flight).try_lock_owned()
            && self.is_due(period)
        {
            tokio::spawn(Arc::clone(self).fetch_now(flight));
        }
    }

    /// Waits for a fetch in flight, then fetches if that is still due, as in [`Refreshed::fetch_if_due`]. The caller
    /// may stop waiting: the request continues for others.
    pub(crate) async fn fetched(self: &Arc<Self>, period: Duration) {
        let flight = Arc::clone(&self.flight).lock_owned().await;
        if self.is_due(period) {
            let _ = tokio::spawn(Arc::clone(self).fetch_now(flight)).await;
        }
    }

    fn is_due(&self, period: Duration) -> bool {
        self.attempts.lock().is_due(R::PACE, period)
    }

    async fn fetch_now(self: Arc<Self>, mut flight: OwnedMutexGuard<Validators>) {
        // Recorded first, so that back-off applies even if the fetch panics.
        self.attempts.lock().last = Some(Instant::now());
        let result = match self.remote.fetch(&flight).await {
            Ok(Some((value, validators))) => {
                let this = Arc::clone(&self);
                // `on_change` may compare millions of entries, so it must not block a runtime thread.
                let replaced = tokio::task::spawn_blocking(move || this.replace(value)).await;
                let replaced = replaced.unwrap_or_else(|error| Err(error.to_string()));
                replaced.map(|()| {
                    *flight = validators;
                    tracing::info!(origin = self.remote.origin(), "{} fetched", R::WHAT);
                })
            }
            Ok(None) => {
                if self.attempts.lock().problem.is_some() {
                    tracing::info!(origin = self.remote.origin(), "{} fetched again: unchanged", R::WHAT);
                }
                Ok(())
            }
            Err(problem) => Err(problem),
        };
        let good_for = self.load().as_ref().map_or(Duration::ZERO, |value| self.remote.good_for(value));
        let result = result.map(|()| good_for);
        if self.attempts.lock().end(R::PACE, result.as_ref().copied().map_err(String::as_str))
            && let Err(problem) = result
        {
            tracing::warn!(
                origin = self.remote.origin(),
                "{}: fetch failed, keeping any earlier version: {problem}",
                R::WHAT
            );
        }
    }
}

impl<R: Remote> fmt::Debug for Refreshed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refreshed({})", self.remote.origin())
    }
}

#[cfg(test)]
mod tests;
