//! The threads that relay. Each has a scheduler of its own, which runs nothing but established sessions: a message never
//! waits behind handshakes, however many there are. Sessions begin and end on the threads that connect, whose priority is
//! lower (`util/priority.rs`).
//!
//! Enters: the future of an established session. Leaves: its end. Not here: what it does.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The descriptors of one thread: epoll, its wake-up, signals.
const DESCRIPTORS: u64 = 4;

/// The threads that relay, and the scheduler of everything else. The threads run until all connections are closed, after
/// `tasks` is closed.
#[derive(Debug)]
pub(crate) struct RelayThreads {
    /// Runs connections before and after the relay.
    connecting: Handle,
    /// One for each thread. None: sessions stay where they began.
    relaying: Box<[Handle]>,
    next: AtomicUsize,
    /// The connections, wherever they run.
    tasks: TaskTracker,
    /// Cancelled to end all threads, and what they still run.
    abort: CancellationToken,
    /// The threads.
    threads: TaskTracker,
}

impl RelayThreads {
    /// Starts `count` threads for the connections that `tasks` tracks. Call it in the runtime that connects. If that has
    /// only the thread of the caller, as in tests, whose clock is that runtime's, sessions stay there.
    ///
    /// # Errors
    /// The system does not allow so many threads or descriptors.
    pub(crate) fn start(count: usize, tasks: TaskTracker) -> io::Result<Self> {
        let connecting = Handle::current();
        let count = if connecting.runtime_flavor() == RuntimeFlavor::CurrentThread { 0 } else { count };
        let (abort, threads) = (CancellationToken::new(), TaskTracker::new());
        threads.close();
        let start = |_| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let (tasks, abort, running) = (tasks.clone(), abort.clone(), threads.token());
            let run = move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = tasks.wait() => {}
                        () = abort.cancelled() => {}
                    }
                });
                // What still runs is dropped, and writes its access line.
                drop(runtime);
                drop(running);
            };
            std::thread::Builder::new().name("relay".to_owned()).spawn(run)?;
            Ok(handle)
        };
        let relaying = (0..count).map(start).collect::<io::Result<_>>();
        if relaying.is_err() {
            abort.cancel();
        }
        Ok(Self { connecting, relaying: relaying?, next: AtomicUsize::new(0), tasks, abort, threads })
    }

    /// The number of descriptors that `count` threads have.
    pub(crate) const fn descriptors(count: usize) -> u64 {
        count as u64 * DESCRIPTORS
    }

    /// Runs what a connection does before the relay.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        drop(self.tasks.spawn_on(connection, &self.connecting));
    }

    /// Runs an established session on the next of the threads.
    pub(crate) fn spawn_relay(&self, session: impl Future<Output = ()> + Send + 'static) {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let runtime = match self.relaying.len() {
            0 => &self.connecting,
            count => &self.relaying[next % count],
        };
        drop(self.tasks.spawn_on(session, runtime));
    }

    /// The number of sessions on the threads.
    #[cfg(feature = "test-util")]
    pub(crate) fn sessions(&self) -> usize {
        self.relaying.iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum()
    }

    /// Ends the threads at once, and with them the sessions that they still have. Returns once they have ended.
    pub(crate) async fn abort(&self) {
        self.abort.cancel();
        self.threads.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::thread;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn sessions_are_spread_over_the_threads_and_end_where_they_began() {
        let threads = Arc::new(RelayThreads::start(2, TaskTracker::new()).unwrap());
        let (seen, mut ids) = mpsc::unbounded_channel();
        for _ in 0..4 {
            let (again, seen) = (Arc::clone(&threads), seen.clone());
            threads.spawn_relay(async move {
                let relayed = thread::current().id();
                again.spawn(async move { seen.send((relayed, thread::current().id())).unwrap() });
            });
        }
        let mut relayed = Vec::new();
        for _ in 0..4 {
            let (on, ended) = ids.recv().await.unwrap();
            assert_ne!(on, ended);
            relayed.push(on);
        }
        relayed.sort_by_key(|id| format!("{id:?}"));
        assert!(relayed[0] == relayed[1] && relayed[1] != relayed[2] && relayed[2] == relayed[3], "{relayed:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn threads_run_until_the_last_connection_has_ended() {
        let tasks = TaskTracker::new();
        let threads = RelayThreads::start(2, tasks.clone()).unwrap();
        let (release, released) = oneshot::channel::<()>();
        threads.spawn_relay(async move { drop(released.await) });
        tasks.close();
        let running = threads.threads.clone();
        drop(threads);
        assert_eq!(running.len(), 2);
        release.send(()).unwrap();
        running.wait().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_still_runs_is_dropped_at_the_end() {
        let threads = RelayThreads::start(1, TaskTracker::new()).unwrap();
        let (guard, dropped) = oneshot::channel::<()>();
        threads.spawn_relay(async move {
            let _guard = guard;
            pending::<()>().await;
        });
        threads.abort().await;
        assert!(dropped.await.is_err());
    }
}
