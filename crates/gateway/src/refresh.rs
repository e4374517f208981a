//! A value that comes from files or a URL and is kept good. What enters: how it is read or fetched, and which new value
//! may take the place of the last one. What leaves: the last good value, lock-free to read, and the word that whoever
//! depends on it must be evaluated again.
//!
//! What never happens here: a value is dropped because its origin fails; a reader waits for a file or a network; two
//! requests for one value are under way at once; an origin that fails is asked without back-off; the same problem is
//! logged twice in a row.

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

/// How often something is read or fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Never sooner than this after the last time.
    pub(crate) min: Duration,
    /// The back-off doubles with each failure, up to this.
    pub(crate) max_retry: Duration,
}

/// Files that could not be used are read again even if they have not changed: descriptors, or a token, may be there
/// again.
const FILE_PACE: Pace = Pace { min: Duration::from_secs(5), max_retry: Duration::from_secs(5) };

/// What came of the attempts to read or fetch a value.
#[derive(Debug, Default)]
struct Attempts {
    /// When the last one began, or ended; `None`: there was none.
    last: Option<Instant>,
    /// How long after that the next one is due.
    wait: Duration,
    /// How many failed in a row.
    failures: u32,
    /// Why the last one failed.
    problem: Option<String>,
}

impl Attempts {
    /// Whether it is time for the next one. `period`: how old a good value may get.
    fn is_due(&self, pace: Pace, period: Duration) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.wait.min(period).max(pace.min))
    }

    /// Notes how one ended: with a value that is good for some time, or with a problem; returns whether that is a new
    /// one. A value that is good for no time is fetched again with the same back-off: its origin is late.
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

/// Files, and whether they have changed since they were read.
#[derive(Debug)]
pub(crate) struct Watch {
    files: Vec<PathBuf>,
    state: Mutex<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    /// Of the files as they were when they were last read and used.
    good: Option<Stamps>,
    /// As they were when they were looked at last.
    seen: Stamps,
    /// As they were when they were last read.
    read: Stamps,
    attempts: Attempts,
}

impl Watch {
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self { files, state: Mutex::default() }
    }

    /// Reads the files with `read` unless they are what they were when that went well. `None`: they are, or the same
    /// problem was returned before.
    ///
    /// `at_once`: somebody says that they are ready. Else they are read once they have not changed between two calls: a
    /// bundle that is half written looks like a whole one.
    pub(crate) fn read_if_changed<T>(
        &self,
        at_once: bool,
        read: impl FnOnce() -> Result<T, Complaint>,
    ) -> Option<Result<T, Complaint>> {
        // Held while they are read: who asks at the same time is to see what came of it.
        let mut state = self.state.lock();
        // Taken before reading: what changes meanwhile will have others.
        let stamps = self.stamps();
        if state.good.as_ref() == Some(&stamps) {
            state.attempts = Attempts::default();
            return None;
        }
        let has_settled = std::mem::replace(&mut state.seen, stamps.clone()) == stamps;
        let is_due = state.read != stamps || state.attempts.is_due(FILE_PACE, Duration::MAX);
        let is_wanted = at_once || (has_settled && is_due);
        if !is_wanted {
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

    /// What is wrong with the files at present.
    pub(crate) fn problem(&self) -> Option<String> {
        self.state.lock().attempts.problem.clone()
    }

    fn stamps(&self) -> Stamps {
        self.files.iter().map(|file| Stamp::of(file)).collect()
    }
}

/// What files say, for as long as they are followed: of content that cannot be used, the last good one stays.
pub(crate) struct FromFiles<T> {
    /// What it is called in the log.
    what: &'static str,
    watch: Watch,
    read: Box<dyn Fn() -> Result<T, Complaint> + Send + Sync>,
    current: ArcSwap<T>,
}

impl<T> FromFiles<T> {
    /// Reads a file for the first time.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn open(
        what: &'static str,
        path: PathBuf,
        read: impl Fn(&Path) -> Result<T, Complaint> + Send + Sync + 'static,
    ) -> Result<Self, Complaint> {
        Self::open_all(what, vec![path.clone()], move || read(&path))
    }

    /// Reads, with `read`, these files for the first time.
    ///
    /// # Errors
    /// They cannot be used.
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

    /// What they say at present.
    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the files again if they have changed, and says in the log what came of it; whether they say something else
    /// now. `owner` is the listener or authenticator that they belong to.
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
                tracing::error!(owner, path, "{what}: the last good ones stay: {message}");
                false
            }
            None => false,
        }
    }
}

/// What files say may be secret.
impl<T> fmt::Debug for FromFiles<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FromFiles({:?})", self.watch.files)
    }
}

type Stamps = Vec<Option<Stamp>>;

/// What tells one content of a file from the next without reading it. Symbolic links are followed: swapping one, as
/// Kubernetes does, is a change. Asked for again and again rather than watched for: that works on every file system,
/// and for files that are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file as it is now; `None`: there is none that can be looked at.
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

/// How a value is fetched, and which one takes the place of the last.
pub(crate) trait Remote: Send + Sync + Sized + 'static {
    /// What is kept.
    type Value: Send + Sync + 'static;
    /// What the value is called in the log.
    const WHAT: &'static str;
    const PACE: Pace;

    /// Where the value comes from, for the log: without secrets.
    fn origin(&self) -> String;

    /// Makes one request, within a bounded time. `None`: the value that the validators belong to is still the newest.
    fn fetch(
        &self,
        validators: &Validators,
    ) -> impl Future<Output = Result<Option<(Self::Value, Validators)>, String>> + Send;

    /// What is to take the place of the last value. The error says why nothing does.
    fn accept(&self, new: Self::Value, _last: Option<&Self::Value>) -> Result<Self::Value, String> {
        Ok(new)
    }

    /// Called once readers see the new value, in the order of changes; returns whether whoever depends on the value must
    /// be evaluated again. May take its time.
    fn on_change(&self, _last: Option<&Self::Value>, _new: &Self::Value) -> bool {
        false
    }

    /// How long to be content with a value; zero: it is out of date.
    fn good_for(&self, value: &Self::Value) -> Duration;
}

/// The last good value of a remote.
pub(crate) struct Refreshed<R: Remote> {
    remote: R,
    current: ArcSwapOption<R::Value>,
    /// Held while a value takes the place of another.
    changing: Mutex<()>,
    has_changed: AtomicBool,
    /// Held by whoever fetches.
    flight: Arc<tokio::sync::Mutex<Validators>>,
    attempts: Mutex<Attempts>,
}

impl<R: Remote> Refreshed<R> {
    /// Without a value, so far.
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

    /// The last good value; `None`: there was none yet.
    pub(crate) fn load(&self) -> Guard<Option<Arc<R::Value>>> {
        self.current.load()
    }

    /// Whether whoever depends on the value must be evaluated again, for what has changed since this was asked last.
    pub(crate) fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Ordering::AcqRel)
    }

    /// Puts a value in the place of the last one.
    ///
    /// # Errors
    /// It is not accepted; nothing was replaced.
    pub(crate) fn replace(&self, new: R::Value) -> Result<(), String> {
        let mut result = Ok(());
        self.change(|last| self.remote.accept(new, last).map_err(|problem| result = Err(problem)).ok());
        result
    }

    /// Puts what `change` makes of the last value, if it makes something of it, in its place.
    pub(crate) fn change(&self, change: impl FnOnce(Option<&R::Value>) -> Option<R::Value>) {
        let _changing = self.changing.lock();
        let last = self.current.load_full();
        let Some(new) = change(last.as_deref()).map(Arc::new) else { return };
        self.current.store(Some(Arc::clone(&new)));
        if self.remote.on_change(last.as_deref(), &new) {
            self.has_changed.store(true, Ordering::Release);
        }
    }

    /// Begins to fetch, in the background, if the value is older than `period` or than it may be, or if it is time to
    /// retry; not if somebody is fetching already.
    pub(crate) fn fetch_if_due(self: &Arc<Self>, period: Duration) {
        if let Ok(flight) = Arc::clone(&self.flight).try_lock_owned()
            && self.is_due(period)
        {
            tokio::spawn(Arc::clone(self).fetch_now(flight));
        }
    }

    /// Waits until nobody is fetching, and fetches if that is due by then, as [`Refreshed::fetch_if_due`] has it. The
    /// caller may stop waiting: the request goes on, for others.
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
        // Of an attempt that panics, nothing else is left.
        self.attempts.lock().last = Some(Instant::now());
        let result = match self.remote.fetch(&flight).await {
            Ok(Some((value, validators))) => {
                let this = Arc::clone(&self);
                // Millions of entries may be compared: not on a thread that moves bytes.
                let replaced = tokio::task::spawn_blocking(move || this.replace(value)).await;
                let replaced = replaced.unwrap_or_else(|error| Err(error.to_string()));
                replaced.map(|()| {
                    *flight = validators;
                    tracing::info!(origin = self.remote.origin(), "{} fetched", R::WHAT);
                })
            }
            Ok(None) => {
                if self.attempts.lock().problem.is_some() {
                    tracing::info!(origin = self.remote.origin(), "{} can be fetched again: it is the same", R::WHAT);
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
            tracing::warn!(origin = self.remote.origin(), "{}: the last good one stays: {problem}", R::WHAT);
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

    /// What was logged on this thread since.
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
        // Once to see that it has changed, once to see that it has not again.
        let read = |result: Result<u8, &str>| {
            let first = look(false, result);
            if first.is_some() { first } else { look(false, result) }
        };
        assert_eq!(look(true, Err("not there")), Some(Err("not there".to_owned())));
        assert_eq!(read(Ok(1)), None, "not at once");
        assert_eq!(watch.problem().as_deref(), Some("not there"));
        std::fs::write(&path, "a").unwrap();
        assert_eq!(read(Err("not there")), None, "said already");
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
        assert_eq!((look(), look(), **number.load()), (true, false, 123), "a change is told once");
        write("bad");
        assert_eq!((look(), look(), look(), **number.load()), (false, false, false, 123));
        assert_eq!(log.count("numbers: the last good ones stay"), 1);
        std::fs::remove_file(&path).unwrap();
        assert_eq!((look(), look(), **number.load()), (false, false, 123));
        write("4");
        assert_eq!((look(), look(), **number.load()), (false, true, 4));
        assert_eq!(log.count("numbers loaded"), 2);
    }

    /// Answers as it was told to, once somebody has let it.
    struct Scripted {
        answers: Mutex<VecDeque<Result<Option<u32>, &'static str>>>,
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
            let answer = self.answers.lock().pop_front().unwrap_or(Err("nobody answers"));
            answer.map(|number| number.map(|number| (number, Validators::default()))).map_err(str::to_owned)
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

    fn scripted(gate: usize, answers: &[Result<Option<u32>, &'static str>]) -> Arc<Refreshed<Scripted>> {
        Arc::new(Refreshed::new(Scripted {
            answers: Mutex::new(answers.iter().copied().collect()),
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
        assert_eq!(log.count("number: the last good one stays: nobody answers"), 1);
        // Back-off does not wait longer than the period in which somebody wants it to be asked for.
        advance(Duration::from_secs(10)).await;
        *number.remote.answers.lock() = [Ok(Some(0)), Ok(Some(3))].into();
        number.fetched(Duration::from_secs(10)).await;
        assert_eq!((number.value(), log.count("stays: older")), (Some(1), 1));
        advance(Duration::from_secs(10)).await;
        number.fetched(Duration::from_secs(10)).await;
        assert_eq!((number.value(), log.count("number fetched")), (Some(3), 2));
        *number.remote.answers.lock() = [Err("down"), Ok(None), Ok(None)].into();
        for (stays, again) in [(1, 0), (1, 1), (1, 1)] {
            advance(LONG).await;
            number.fetched(LONG).await;
            assert_eq!((log.count("stays: down"), log.count("fetched again")), (stays, again));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_once() {
        let number = scripted(100, &[Ok(Some(1)), Ok(Some(1)), Ok(None), Err("down"), Ok(Some(2))]);
        let mut told = Vec::new();
        for _ in 0..5 {
            advance(LONG).await;
            number.fetched(LONG).await;
            told.push((number.take_changed(), number.take_changed()));
        }
        assert_eq!(told, [(true, false), (false, false), (false, false), (false, false), (true, false)]);
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
        assert_eq!((number.requests(), number.value()), (1, Some(1)), "who waited has what the first one got");
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
        let answer = async |answer: &str| {
            let (mut socket, _) = server.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n");
            let end = if answer.contains("200") { "Content-Length: 2\r\n\r\nok" } else { "\r\n" };
            socket.write_all((answer + end).as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        };
        let fetch = async |text| tokio::join!(page.fetched(Duration::ZERO), answer(text)).1;
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
