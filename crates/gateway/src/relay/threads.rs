//! The threads that relay. Each has a scheduler of its own, which runs nothing but established sessions: a message never
//! waits behind handshakes, however many there are. Sessions begin and end on the threads that connect, whose priority is
//! lower (`util/priority.rs`).
//!
//! Enters: the future of an established session. Leaves: its end. Not here: what it does.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits::PER_RELAY_THREAD;
use crate::util::priority::Priority;

/// The threads that relay, and the scheduler of everything else. The threads end when this is dropped, which each of their
/// sessions keeps from happening.
#[derive(Debug)]
pub(crate) struct RelayThreads {
    /// Runs connections before and after the relay.
    connecting: Handle,
    /// One for each thread. None: sessions stay where they began.
    relaying: Vec<Handle>,
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
        // Dropped on errors, which ends the threads that were started.
        let mut this = Self { connecting, relaying: Vec::new(), next: AtomicUsize::new(0), tasks, abort, threads };
        for _ in 0..count {
            this.relaying.push(this.start_thread()?);
        }
        Ok(this)
    }

    fn start_thread(&self) -> io::Result<Handle> {
        let (send, started) = mpsc::sync_channel(1);
        let (abort, running) = (self.abort.clone(), self.threads.token());
        let run = move || {
            Priority::Relay.apply();
            // Here, since a runtime cannot be dropped where the gateway starts.
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(send.send(Err(error))),
            };
            let _ = send.send(Ok(runtime.handle().clone()));
            runtime.block_on(abort.cancelled());
            // What still runs is dropped, and writes its access line.
            drop(runtime);
            drop(running);
        };
        std::thread::Builder::new().name("relay".to_owned()).spawn(run)?;
        started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// The number of descriptors that the threads have.
    pub(crate) fn descriptors(&self) -> u64 {
        self.relaying.len() as u64 * PER_RELAY_THREAD
    }

    /// Runs the end of a session where connections begin.
    pub(crate) fn spawn_end(&self, connection: impl Future<Output = ()> + Send + 'static) {
        drop(self.tasks.spawn_on(connection, &self.connecting));
    }

    /// Runs an established session, which `begin` returns, on the thread with the fewest. `begin` is called on the caller's thread, but
    /// within that thread's runtime, so that sockets register there.
    pub(crate) fn spawn_relay<F>(&self, begin: impl FnOnce() -> Option<F>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.abort.is_cancelled() {
            // Its end is that of what the threads still have.
            return;
        }
        let runtime = self.with_fewest_sessions().unwrap_or(&self.connecting);
        let entered = runtime.enter();
        let session = begin();
        drop(entered);
        session.into_iter().for_each(|session| drop(self.tasks.spawn_on(session, runtime)));
    }

    fn with_fewest_sessions(&self) -> Option<&Handle> {
        // Of threads with as many, each has its turn: those that begin at the same time see the same numbers.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.relaying.len().max(1);
        let (before, from) = self.relaying.split_at(first);
        from.iter().chain(before).min_by_key(|runtime| runtime.metrics().num_alive_tasks())
    }

    /// The number of sessions on the threads.
    #[cfg(feature = "test-util")]
    pub(crate) fn sessions(&self) -> usize {
        self.relaying.iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum()
    }

    /// Ends the threads at once, and with them the sessions that they still have. Returns once they have ended. Connections on
    /// other threads stay.
    pub(crate) async fn abort(&self) {
        self.abort.cancel();
        self.threads.wait().await;
    }
}

impl Drop for RelayThreads {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::thread;

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn sessions_are_spread_over_the_threads_and_end_where_they_began() {
        let threads = Arc::new(RelayThreads::start(2, TaskTracker::new()).unwrap());
        let (seen, mut ids) = unbounded_channel();
        // None ends before all have begun, which would leave its place to another.
        let begun = CancellationToken::new();
        for _ in 0..4 {
            let (again, seen, begun) = (Arc::clone(&threads), seen.clone(), begun.clone());
            threads.spawn_relay(|| {
                Some(async move {
                    begun.cancelled().await;
                    let relayed = thread::current().id();
                    again.spawn_end(async move { seen.send((relayed, thread::current().id())).unwrap() });
                })
            });
        }
        begun.cancel();
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
    async fn a_session_goes_where_fewest_are() {
        let threads = RelayThreads::start(2, TaskTracker::new()).unwrap();
        let sessions =
            || threads.relaying.iter().map(|runtime| runtime.metrics().num_alive_tasks()).collect::<Vec<_>>();
        let mut ends = Vec::new();
        for _ in 0..8 {
            let (end, ended) = oneshot::channel::<()>();
            threads.spawn_relay(|| Some(async move { drop(ended.await) }));
            ends.push(end);
        }
        assert_eq!(sessions(), [4, 4]);
        // All on one thread end, then as many begin.
        let mut is_first = false;
        ends.retain(|_| {
            is_first = !is_first;
            !is_first
        });
        while sessions() != [0, 4] {
            tokio::task::yield_now().await;
        }
        for _ in 0..4 {
            threads.spawn_relay(|| Some(pending()));
        }
        assert_eq!(sessions(), [4, 4]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn threads_run_until_the_last_session_has_ended() {
        let threads = Arc::new(RelayThreads::start(2, TaskTracker::new()).unwrap());
        let (release, released) = oneshot::channel::<()>();
        let kept = Arc::clone(&threads);
        threads.spawn_relay(|| {
            Some(async move {
                let _kept = kept;
                let _ = released.await;
            })
        });
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
        threads.spawn_relay(|| {
            Some(async move {
                let _guard = guard;
                pending::<()>().await;
            })
        });
        threads.abort().await;
        assert!(dropped.await.is_err());
    }
}
