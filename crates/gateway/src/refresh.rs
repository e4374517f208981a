//! Values from files or URLs that are refreshed at run time. Enters: how to read or fetch a value, and which new value
//! may replace the last one. Leaves: the last good value, lock-free to read, and whether sessions that depend on it
//! must be evaluated again.
//!
//! Never here: a value is dropped because its origin fails; a reader waits for a file or the network; two requests for
//! one value are in flight; a failing origin is retried without back-off; the same problem is logged twice in a row.

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
mod tests {
    use std::collections::VecDeque;
    use std::io::Write;
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;
    use tokio::time::advance;

    use super::*;
    use crate::fetch::Fetcher;

    /// Captures the log of this thread.
    struct Log(Arc<Mutex<Vec<u8>>>, #[expect(dead_code, reason = "kept")] tracing::subscriber::DefaultGuard);

    impl Log {
        fn begin() -> Self {
            struct Writer(Arc<Mutex<Vec<u8>>>);
            impl Write for Writer {
                fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                    Write::write(&mut *self.0.lock(), bytes)
                }
                fn flush(&mut self) -> std::io::Result<()> {
                    Ok(())
                }
            }
            let bytes = Arc::<Mutex<Vec<u8>>>::default();
            let writer = Arc::clone(&bytes);
            let subscriber = tracing_subscriber::fmt().with_writer(move || Writer(Arc::clone(&writer)));
            Self(bytes, tracing::subscriber::set_default(subscriber.finish()))
        }

        fn count(&self, text: &str) -> usize {
            String::from_utf8_lossy(&self.0.lock()).matches(text).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_cannot_be_used_are_read_again_and_the_problem_is_returned_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let watch = Watch::new(vec![path.clone()]);
        let look = |at_once, result: Result<u8, &str>| {
            let read = watch.read_if_changed(at_once, || result.map_err(Complaint::new));
            read.map(|read| read.map_err(|complaint| complaint.message))
        };
        // The first call sees the change, the second that the file is stable.
        let read = |result: Result<u8, &str>| {
            let first = look(false, result);
            if first.is_some() { first } else { look(false, result) }
        };
        assert_eq!(look(true, Err("not there")), Some(Err("not there".to_owned())));
        assert_eq!(read(Ok(1)), None, "not at once");
        assert_eq!(watch.problem().as_deref(), Some("not there"));
        std::fs::write(&path, "a").unwrap();
        assert_eq!(read(Err("not there")), None, "already returned");
        std::fs::write(&path, "ab").unwrap();
        assert_eq!(look(false, Ok(2)), None, "it may be half written");
        assert_eq!(read(Ok(2)), Some(Ok(2)));
        assert_eq!((read(Ok(3)), watch.problem()), (None, None));
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read(Err("bad")), Some(Err("bad".to_owned())));
        assert_eq!(read(Ok(4)), None, "not at once");
        advance(FILE_PACE.max_retry).await;
        assert_eq!(read(Ok(4)), Some(Ok(4)), "later, though nothing has changed");
    }

    #[test]
    fn a_file_that_is_half_written_is_not_read_and_of_a_bad_one_the_last_good_value_stays() {
        let log = Log::begin();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let open = || {
            FromFiles::open("numbers", path.clone(), |path| {
                let text = std::fs::read_to_string(path).map_err(|error| Complaint::new(error.to_string()))?;
                text.parse::<u32>().map_err(|error| Complaint::new(error.to_string()))
            })
        };
        write("x");
        assert!(open().is_err());
        write("1");
        let number = open().unwrap();
        let look = || number.read_if_changed("me");
        assert_eq!((look(), look(), **number.load()), (false, false, 1), "it has not changed");
        for half in ["12", "123"] {
            write(half);
            assert_eq!((look(), **number.load()), (false, 1), "it may be half written");
        }
        assert_eq!((look(), look(), **number.load()), (true, false, 123), "a change is reported once");
        write("bad");
        assert_eq!((look(), look(), look(), **number.load()), (false, false, false, 123));
        assert_eq!(log.count("numbers: reload failed, keeping the last good version"), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!((look(), look(), **number.load()), (false, false, 123));
        write("4");
        assert_eq!((look(), look(), **number.load()), (false, true, 4));
        assert_eq!(log.count("numbers loaded"), 2);
    }

    /// Returns scripted results, each once the gate has a permit.
    struct Scripted {
        results: Mutex<VecDeque<Result<Option<u32>, &'static str>>>,
        requests: AtomicUsize,
        gate: Semaphore,
    }

    impl Remote for Scripted {
        type Value = u32;
        const WHAT: &'static str = "number";
        const PACE: Pace = Pace { min: Duration::from_secs(2), max_retry: Duration::from_secs(60) };

        fn origin(&self) -> String {
            "here".to_owned()
        }

        async fn fetch(&self, _: &Validators) -> Result<Option<(u32, Validators)>, String> {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.gate.acquire().await.unwrap().forget();
            let result = self.results.lock().pop_front().unwrap_or(Err("no response"));
            result.map(|number| number.map(|number| (number, Validators::default()))).map_err(str::to_owned)
        }

        /// Numbers never fall.
        fn accept(&self, new: u32, last: Option<&u32>) -> Result<u32, String> {
            if last.is_some_and(|last| new < *last) { Err("older".to_owned()) } else { Ok(new) }
        }

        fn on_change(&self, last: Option<&u32>, new: &u32) -> bool {
            last != Some(new)
        }

        fn good_for(&self, number: &u32) -> Duration {
            Duration::from_secs(u64::from(*number) * 100)
        }
    }

    fn scripted(gate: usize, results: &[Result<Option<u32>, &'static str>]) -> Arc<Refreshed<Scripted>> {
        Arc::new(Refreshed::new(Scripted {
            results: Mutex::new(results.iter().copied().collect()),
            requests: AtomicUsize::new(0),
            gate: Semaphore::new(gate),
        }))
    }

    impl Refreshed<Scripted> {
        fn requests(&self) -> usize {
            self.remote.requests.load(Ordering::Relaxed)
        }

        fn value(&self) -> Option<u32> {
            self.load().as_deref().copied()
        }
    }

    const LONG: Duration = Duration::from_secs(1000);

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_retried_with_back_off_and_the_last_good_value_stays() {
        let log = Log::begin();
        let number = scripted(100, &[Ok(Some(1))]);
        number.fetched(LONG).await;
        assert_eq!((number.value(), number.requests()), (Some(1), 1));
        advance(Duration::from_secs(99)).await;
        number.fetched(LONG).await;
        assert_eq!(number.requests(), 1, "it is good for 100 seconds");
        advance(Duration::from_secs(1)).await;
        number.fetched(LONG).await;
        assert_eq!((number.requests(), number.value()), (2, Some(1)));
        for (failures, wait) in [4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            advance(Duration::from_secs(wait - 1)).await;
            number.fetched(LONG).await;
            assert_eq!((number.requests(), number.value()), (2 + failures, Some(1)), "{wait}");
            advance(Duration::from_secs(1)).await;
            number.fetched(LONG).await;
            assert_eq!(number.requests(), 3 + failures, "{wait}");
        }
        assert_eq!(log.count("number: fetch failed, keeping any earlier version: no response"), 1);
        // Back-off never exceeds the caller's period.
        advance(Duration::from_secs(10)).await;
        *number.remote.results.lock() = [Ok(Some(0)), Ok(Some(3))].into();
        number.fetched(Duration::from_secs(10)).await;
        assert_eq!((number.value(), log.count("version: older")), (Some(1), 1));
        advance(Duration::from_secs(10)).await;
        number.fetched(Duration::from_secs(10)).await;
        assert_eq!((number.value(), log.count("number fetched")), (Some(3), 2));
        *number.remote.results.lock() = [Err("down"), Ok(None), Ok(None)].into();
        for (kept, again) in [(1, 0), (1, 1), (1, 1)] {
            advance(LONG).await;
            number.fetched(LONG).await;
            assert_eq!((log.count("version: down"), log.count("fetched again")), (kept, again));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once() {
        let number = scripted(100, &[Ok(Some(1)), Ok(Some(1)), Ok(None), Err("down"), Ok(Some(2))]);
        let mut reported = Vec::new();
        for _ in 0..5 {
            advance(LONG).await;
            number.fetched(LONG).await;
            reported.push((number.take_changed(), number.take_changed()));
        }
        assert_eq!(reported, [(true, false), (false, false), (false, false), (false, false), (true, false)]);
        number.change(|last| last.map(|last| last + 1));
        assert_eq!((number.value(), number.take_changed()), (Some(3), true));
        number.change(|_| None);
        assert_eq!((number.value(), number.take_changed()), (Some(3), false));
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_is_under_way_and_goes_on_when_nobody_waits() {
        let number = scripted(0, &[Ok(Some(1)), Ok(Some(2))]);
        let patience = Duration::from_secs(1);
        assert!(tokio::time::timeout(patience, number.fetched(LONG)).await.is_err());
        number.fetch_if_due(LONG);
        let waiting = tokio::spawn({
            let number = Arc::clone(&number);
            async move { number.fetched(LONG).await }
        });
        assert!(tokio::time::timeout(patience, number.fetched(LONG)).await.is_err());
        assert_eq!((number.requests(), number.value()), (1, None));
        number.remote.gate.add_permits(2);
        waiting.await.unwrap();
        assert_eq!((number.requests(), number.value()), (1, Some(1)), "waiting callers share the result of the first");
    }

    struct Page(String, Fetcher);

    impl Remote for Page {
        type Value = Vec<u8>;
        const WHAT: &'static str = "page";
        const PACE: Pace = Pace { min: Duration::ZERO, max_retry: Duration::ZERO };

        fn origin(&self) -> String {
            self.0.clone()
        }

        async fn fetch(&self, validators: &Validators) -> Result<Option<(Vec<u8>, Validators)>, String> {
            Ok(self.1.get_keys(&self.0, validators).await?.map(|(bytes, new)| (bytes.to_vec(), new)))
        }

        fn on_change(&self, _: Option<&Vec<u8>>, _: &Vec<u8>) -> bool {
            true
        }

        fn good_for(&self, _: &Vec<u8>) -> Duration {
            Duration::MAX
        }
    }

    #[tokio::test]
    async fn validators_are_sent_and_what_is_not_modified_stays() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let page = Page(format!("http://{}/", server.local_addr().unwrap()), Fetcher::default());
        let page = Arc::new(Refreshed::new(page));
        let respond = async |head: &str| {
            let (mut socket, _) = server.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n");
            let end = if head.contains("200") { "Content-Length: 2\r\n\r\nok" } else { "\r\n" };
            socket.write_all((head + end).as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        };
        let fetch = async |text| tokio::join!(page.fetched(Duration::ZERO), respond(text)).1;
        let dates = "Date: Sun, 22 Nov 2026 04:57:32 GMT\r\nLast-Modified: Sun, 22 Nov 2026 04:57:30 GMT";
        let ok = format!("200 OK\r\nETag: \"one\"\r\n{dates}");
        let first = fetch(&ok).await;
        assert!(!first.contains("if-"), "{first}");
        assert_eq!((page.load().as_deref().unwrap().as_slice(), page.take_changed()), (&b"ok"[..], true));
        for text in ["304 Not Modified", "500 Internal Server Error"] {
            let conditional = fetch(text).await;
            assert!(conditional.contains("if-none-match: \"one\""), "{conditional}");
            assert!(conditional.contains("if-modified-since: sun, 22 nov 2026 04:57:30 gmt"), "{conditional}");
            assert_eq!((page.load().as_deref().unwrap().as_slice(), page.take_changed()), (&b"ok"[..], false));
        }
    }
}
