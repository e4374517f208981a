//! Where sessions run, and what keeps the threads.

use std::task::ready;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::*;

/// A session that waits for messages, and tells where it runs when it gets one.
struct Session {
    messages: UnboundedReceiver<()>,
    seen: UnboundedSender<&'static str>,
}

/// What a test has of it. The session ends when it is dropped.
struct Peer {
    send: UnboundedSender<()>,
    seen: UnboundedReceiver<&'static str>,
}

impl Relayed for Session {
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if ready!(self.messages.poll_recv(cx)).is_none() {
            return Poll::Ready(());
        }
        self.seen.send(place()).unwrap();
        // One message each time: the next one may be there already.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn attach(self: Box<Self>) -> Option<Box<Self>> {
        Some(self)
    }

    async fn end(self: Box<Self>) {
        self.seen.send(if place() == "connecting" { "ended where connections begin" } else { "ended" }).unwrap();
    }
}

/// The name of the thread that calls it.
fn place() -> &'static str {
    match std::thread::current().name() {
        Some("relay") => ["first", "second"][INDEX.get()],
        _ => "connecting",
    }
}

impl Peer {
    fn open(threads: &RelayThreads) -> Self {
        let ((send, messages), (tell, seen)) = (unbounded_channel(), unbounded_channel());
        threads.relay(Box::new(Session { messages, seen: tell }));
        Self { send, seen }
    }

    async fn place(&mut self) -> &'static str {
        self.send.send(()).unwrap();
        self.seen.recv().await.unwrap()
    }

    /// Ends the session. Returns where it ended.
    async fn end(self) -> &'static str {
        let Self { send, mut seen } = self;
        drop(send);
        seen.recv().await.unwrap()
    }
}

fn start(count: usize) -> RelayThreads {
    RelayThreads::start(count, TaskTracker::new()).unwrap()
}

/// Where sessions are that have many messages, once they have moved.
async fn places(peers: &mut [Peer]) -> Vec<&'static str> {
    let mut places = Vec::new();
    for peer in peers {
        // One of others may move in its place.
        for _ in 0..8 * MOVE_ONE_OF {
            peer.place().await;
        }
        places.push(peer.place().await);
    }
    places.sort_unstable();
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_share_a_thread_until_more_are_in_use_and_end_where_connections_begin() {
    let threads = start(2);
    let mut peers: Vec<_> = (0..4).map(|_| Peer::open(&threads)).collect();
    assert_eq!(places(&mut peers).await, ["first"; 4]);
    threads.use_all(true);
    assert_eq!(places(&mut peers).await, ["first", "first", "second", "second"]);
    assert!(threads.runs_sessions(1));
    threads.use_all(false);
    assert_eq!(places(&mut peers).await, ["first"; 4]);
    while threads.runs_sessions(1) {
        yield_now().await;
    }
    for peer in peers {
        assert_eq!(peer.end().await, "ended where connections begin");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_with_few_messages_stay_where_they_are_and_end_there() {
    let threads = start(2);
    threads.use_all(true);
    let mut peers: Vec<_> = (0..2 * MOVE_ONE_OF).map(|_| Peer::open(&threads)).collect();
    let before = places(&mut peers).await;
    threads.use_all(false);
    let mut moved = 0;
    for peer in &mut peers {
        let was = peer.place().await;
        moved += usize::from(was != peer.place().await);
    }
    assert_eq!(before[MOVE_ONE_OF as usize..], ["second"; MOVE_ONE_OF as usize]);
    assert!(moved <= 2, "{moved} of eight");
    for peer in peers {
        assert_eq!(peer.end().await, "ended where connections begin");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_goes_where_fewest_are() {
    let threads = start(2);
    threads.use_all(true);
    let mut peers: Vec<_> = (0..8).map(|_| Peer::open(&threads)).collect();
    assert_eq!(places(&mut peers).await, [["first"; 4], ["second"; 4]].concat());
    // All on one thread end, then as many begin.
    let mut kept = Vec::new();
    for mut peer in peers {
        if peer.place().await == "second" {
            kept.push(peer);
        } else {
            peer.end().await;
        }
    }
    while threads.runs_sessions(0) {
        yield_now().await;
    }
    kept.extend((0..4).map(|_| Peer::open(&threads)));
    assert_eq!(places(&mut kept).await, [["first"; 4], ["second"; 4]].concat());
}

#[tokio::test]
async fn sessions_stay_with_the_caller_if_there_are_no_threads() {
    let threads = start(2);
    let mut peer = Peer::open(&threads);
    assert_eq!(peer.place().await, "connecting");
    assert_eq!(peer.end().await, "ended where connections begin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn threads_run_until_the_last_session_has_ended() {
    let threads = start(2);
    let mut peer = Peer::open(&threads);
    assert_eq!(peer.place().await, "first");
    let running = threads.pool.threads.clone();
    drop(threads);
    assert_eq!(peer.place().await, "first");
    assert_eq!(running.len(), 2);
    peer.end().await;
    running.wait().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_still_runs_is_dropped_at_the_end() {
    let threads = start(1);
    let mut peer = Peer::open(&threads);
    assert_eq!(peer.place().await, "first");
    threads.abort().await;
    assert_eq!(peer.seen.recv().await, None);
    // Nothing begins any more.
    assert_eq!(Peer::open(&threads).seen.recv().await, None);
}

/// Tokio's task is one allocation of 128 bytes then, and one of 256 otherwise.
#[tokio::test]
async fn the_task_of_a_session_is_small() {
    let home = Arc::clone(&start(0).homes[0]);
    let ((_, messages), (seen, _)) = (unbounded_channel(), unbounded_channel());
    assert!(size_of_val(&relay(Box::new(Session { messages, seen }), home)) <= 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_busy_thread_gets_help() {
    /// Always has something to do.
    struct Flood(Option<oneshot::Sender<()>>);

    impl Relayed for Flood {
        fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
            if let Some(seen) = self.0.take_if(|_| place() == "second") {
                seen.send(()).unwrap();
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }

        fn attach(self: Box<Self>) -> Option<Box<Self>> {
            Some(self)
        }

        async fn end(self: Box<Self>) {}
    }

    let threads = start(2);
    let (floods, seen): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
    floods.into_iter().for_each(|flood| threads.relay(Box::new(Flood(Some(flood)))));
    let mut seen = seen.into_iter();
    let (one, other) = (seen.next().unwrap(), seen.next().unwrap());
    tokio::select! {
        moved = one => moved.unwrap(),
        moved = other => moved.unwrap(),
    }
    assert_eq!(threads.pool.halvings.load(Ordering::Relaxed), 0);
    threads.abort().await;
}
