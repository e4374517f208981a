//! Values from files and from a server that fails, answers late, or has nothing new.

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
