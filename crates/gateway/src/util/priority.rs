//! How much CPU time the threads of the gateway get when there is not enough for all: relay threads come before those that connect
//! clients and verify passwords. The main thread and those that write logs have the priority of the process.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, Instant};

use rustix::process::{getpid, getpriority_process, setpriority_process};

/// What a thread does.
#[derive(Clone, Copy, Debug)]
pub enum Priority {
    /// Established sessions.
    Relay,
    /// All else of a connection: handshakes, authentication, brokers, the end; and files, maintenance, admin.
    Connecting,
    /// Guessing passwords costs the guesser nothing.
    Passwords,
}

/// The highest value of `nice`: the lowest priority.
const MAX_NICE: i32 = 19;

impl Priority {
    /// Gives the calling thread this priority, whatever that of the thread that started it. A failure leaves it as it is.
    pub fn apply(self) {
        let below = match self {
            // At 0 or 2 above a broker on the same machine, each packet from the broker preempts it, so that it cannot write several
            // which the gateway would then read together.
            Self::Relay => 4,
            // A quarter of the weight of the relay, less what yielding costs: busy sessions cannot keep others out.
            Self::Connecting => 10,
            Self::Passwords => 15,
        };
        // On Linux, these are of the main thread and of the calling one. Elsewhere both would be of the process.
        if cfg!(target_os = "linux")
            && let Ok(process) = getpriority_process(Some(getpid()))
        {
            let _ = setpriority_process(None, (process + below).min(MAX_NICE));
        }
    }
}

/// How long a thread that connects computes before it yields. For each time, the system takes a whole slice from what it owes the
/// thread: with a fifth of this, floods of messages leave connects a fiftieth of the CPU time, in place of a tenth.
const YIELD_AFTER: Duration = Duration::from_micros(500);

thread_local! {
    /// How long the thread has computed since it yielded.
    static COMPUTED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Polls a future on a thread that connects clients, and yields between polls.
pub(crate) async fn yielding<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| yield_after(|| future.as_mut().poll(cx))).await
}

/// Does a piece of the work of connects. Once the pieces have taken [`YIELD_AFTER`], lets threads that relay have the core. Their
/// priority alone is not enough: a thread that has waited for long may run until the next tick of the system, for up to 4 ms,
/// whoever else wakes up.
pub(crate) fn yield_after<T>(work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    let computed = COMPUTED.get() + begin.elapsed();
    let is_over = computed >= YIELD_AFTER;
    COMPUTED.set(if is_over { Duration::ZERO } else { computed });
    if is_over {
        std::thread::yield_now();
    }
    result
}
