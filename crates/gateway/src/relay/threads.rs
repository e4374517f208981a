//! The threads that relay. Each has a scheduler of its own, which runs nothing but established sessions: a message never
//! waits behind handshakes, however many there are. Sessions begin and end on the threads that connect, whose priority is
//! lower (`util/priority.rs`).
//!
//! No more threads are in use than the messages need (`spread.rs`): a thread that finds several messages when it wakes moves
//! each at a lower cost than several threads that wake for one each. When this number changes, the sessions move that have
//! messages.
//!
//! Enters: an established session. Leaves: its end. Not here: what it does.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem::replace;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::spread::{self, Spread};
use crate::limits::PER_RELAY_THREAD;
use crate::util::priority::{Priority, yielding};

/// An established session.
pub(crate) trait Relayed: Send + 'static {
    /// Relays. Ready when the session begins to end.
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Lets the runtime of the caller wait for its sockets, in place of the one that did. `None`: the session has ended, the
    /// system has no resources left.
    fn attach(self: Box<Self>) -> Option<Box<Self>>;

    /// Ends it.
    fn end(self: Box<Self>) -> impl Future<Output = ()> + Send;
}

/// The threads that relay. They end when this is dropped, and the last of their sessions has begun to end.
#[derive(Debug)]
pub(crate) struct RelayThreads {
    /// One for each thread; one if there are none.
    homes: Vec<Arc<Home>>,
    next: AtomicUsize,
    pool: Arc<Pool>,
}

/// The thread of a session when all are in use. Each of its sessions refers to it, and is counted thereby.
#[derive(Debug)]
struct Home {
    index: usize,
    pool: Arc<Pool>,
}

/// The threads, and the scheduler of everything else.
#[derive(Debug)]
struct Pool {
    /// Runs connections before and after the relay.
    connecting: Handle,
    /// One for each thread. None: sessions stay where they began.
    relaying: Vec<Handle>,
    /// How often their number is halved: two, four, eight ... neighbours share the thread of the first.
    halvings: AtomicU32,
    /// Tests keep it as it is.
    is_fixed: AtomicBool,
    /// The connections, wherever they run.
    tasks: TaskTracker,
    /// Cancelled to end all threads, and what they still run.
    abort: CancellationToken,
    /// The threads.
    threads: TaskTracker,
}

thread_local! {
    /// Which of the threads that relay this is.
    static INDEX: Cell<usize> = const { Cell::new(0) };
    /// How often a session that ought to be elsewhere had something to do.
    static MISPLACED: Cell<u32> = const { Cell::new(0) };
}

/// How many times sessions that ought to be elsewhere have something to do until one of them moves. A move costs some 50 µs,
/// as much as ten messages, and those with one message a minute, or one at all, would never earn it back.
const MOVE_ONE_OF: u32 = 8;

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
        let halvings = AtomicU32::new(spread::max_halvings(count));
        let is_fixed = AtomicBool::new(false);
        let mut pool = Pool { connecting, relaying: Vec::new(), halvings, is_fixed, tasks, abort, threads };
        for index in 0..count {
            let runtime = pool.start_thread(index)?;
            pool.relaying.push(runtime);
        }
        let pool = Arc::new(pool);
        if let [first, _, ..] = &pool.relaying[..] {
            first.spawn(adapt(Arc::downgrade(&pool)));
        }
        let homes = (0..count.max(1)).map(|index| Arc::new(Home { index, pool: Arc::clone(&pool) })).collect();
        Ok(Self { homes, next: AtomicUsize::new(0), pool })
    }

    /// The number of descriptors that the threads have.
    pub(crate) fn descriptors(&self) -> u64 {
        self.pool.relaying.len() as u64 * PER_RELAY_THREAD
    }

    /// Relays an established session, and ends it where connections begin: when many end at once, the others go on.
    pub(crate) fn relay(&self, session: Box<impl Relayed>) {
        spawn(session, Arc::clone(self.with_fewest_sessions()));
    }

    fn with_fewest_sessions(&self) -> &Arc<Home> {
        // Of threads with as many, each has its turn: those that begin at the same time see the same numbers.
        let first = self.next.fetch_add(1, Ordering::Relaxed) % self.homes.len();
        let (before, from) = self.homes.split_at(first);
        from.iter().chain(before).min_by_key(|home| Arc::strong_count(home)).unwrap_or(&self.homes[first])
    }

    /// The number of sessions on the threads.
    #[cfg(feature = "test-util")]
    pub(crate) fn sessions(&self) -> usize {
        // Without threads, they are where they began.
        self.homes.iter().take(self.pool.relaying.len()).map(|home| Arc::strong_count(home) - 1).sum()
    }

    /// Lets all threads relay from now on, or one.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn use_all(&self, all: bool) {
        self.pool.is_fixed.store(true, Ordering::Relaxed);
        let halvings = if all { 0 } else { spread::max_halvings(self.pool.relaying.len()) };
        self.pool.halvings.store(halvings, Ordering::Relaxed);
    }

    /// Whether sessions run on the thread of this number.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn runs_sessions(&self, index: usize) -> bool {
        let others = usize::from(index == 0 && self.pool.relaying.len() > 1);
        self.pool.relaying[index].metrics().num_alive_tasks() > others
    }

    /// Ends the threads at once, and with them the sessions that they still have. Returns once they have ended. Connections on
    /// other threads stay.
    pub(crate) async fn abort(&self) {
        self.pool.abort.cancel();
        self.pool.threads.wait().await;
    }
}

/// Relays a session on the thread that it has now.
fn spawn<S: Relayed>(session: Box<S>, home: Arc<Home>) {
    if home.pool.abort.is_cancelled() {
        // Its end is that of what the threads still have.
        return;
    }
    let runtime = home.pool.relaying.get(home.thread()).unwrap_or(&home.pool.connecting).clone();
    let entered = runtime.enter();
    let session = session.attach();
    drop(entered);
    if let Some(session) = session {
        let tasks = home.pool.tasks.clone();
        drop(tasks.spawn_on(relay(session, home), &runtime));
    }
}

/// Relays a session until it begins to end, or moves to another thread.
fn relay<S: Relayed>(session: Box<S>, home: Arc<Home>) -> impl Future<Output = ()> + Send {
    // As small as can be: an async block would keep room for what it waits for, in each idle session.
    let mut session = Some((session, home));
    poll_fn(move |cx| {
        let Some((running, home)) = &mut session else { return Poll::Ready(()) };
        let is_over = running.poll_run(cx).is_ready();
        if !is_over && !home.is_to_move() {
            return Poll::Pending;
        }
        match session.take() {
            Some((session, home)) if !is_over => spawn(session, home),
            Some((session, home)) => {
                let (tasks, connecting) = (home.pool.tasks.clone(), home.pool.connecting.clone());
                drop(home);
                drop(tasks.spawn_on(yielding(session.end()), &connecting));
            }
            None => {}
        }
        Poll::Ready(())
    })
}

/// Adapts the number of threads in use until there are none.
async fn adapt(pool: Weak<Pool>) {
    let mut ticks = interval(spread::INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begin = Instant::now();
    let mut spread = Spread::new(begin);
    let mut seen = (begin, Vec::new());
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let Some(pool) = pool.upgrade() else { return };
        let busy = pool.busy();
        let (at, before) = replace(&mut seen, (now, busy.clone()));
        let busiest = busy.iter().zip(&before).map(|(busy, before)| busy.saturating_sub(*before)).max();
        let Some(busiest) = busiest.filter(|_| now > at && !pool.is_fixed.load(Ordering::Relaxed)) else { continue };
        let share = busiest.div_duration_f64(now - at);
        let (len, halvings) = (pool.relaying.len(), pool.halvings.load(Ordering::Relaxed));
        let next = spread.next(halvings, spread::max_halvings(len), share, now);
        if next != halvings {
            debug!(threads = spread::in_use(len, next), busiest = share, "spread sessions over threads");
            pool.halvings.store(next, Ordering::Relaxed);
        }
    }
}

impl Home {
    /// The thread for its sessions.
    #[inline]
    fn thread(&self) -> usize {
        self.index >> self.pool.halvings.load(Ordering::Relaxed)
    }

    /// Whether a session that had something to do moves.
    #[inline]
    fn is_to_move(&self) -> bool {
        self.thread() != INDEX.get() && {
            MISPLACED.set(MISPLACED.get().wrapping_add(1));
            MISPLACED.get().is_multiple_of(MOVE_ONE_OF)
        }
    }
}

impl Pool {
    /// For how long each thread was busy since it started.
    fn busy(&self) -> Vec<Duration> {
        self.relaying.iter().map(|runtime| runtime.metrics().worker_total_busy_duration(0)).collect()
    }

    fn start_thread(&self, index: usize) -> io::Result<Handle> {
        let (send, started) = mpsc::sync_channel(1);
        let (abort, running) = (self.abort.clone(), self.threads.token());
        let run = move || {
            INDEX.set(index);
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
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

#[cfg(test)]
mod tests;
