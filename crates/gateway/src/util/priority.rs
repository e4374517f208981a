//! How much CPU time the threads of the gateway get when there is not enough for all: those that relay come first.

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
            // At the priority of a broker on the same machine, each packet from it would interrupt it: it could not write the next,
            // which go together otherwise. Lower ones gain nothing more.
            Self::Relay => 4,
            // A quarter of the weight of the relay: busy sessions cannot keep others out.
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

/// How long a thread that connects computes before it gives way.
const TURN: Duration = Duration::from_micros(100);

thread_local! {
    static TURN_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Polls a future whose thread connects clients, and gives way after each poll.
pub(crate) async fn giving_way<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        give_way();
        polled
    })
    .await
}

/// Lets threads that relay have the core, once the calling thread has had its turn. Their priority alone is not enough: a
/// thread that has waited for long may run until the next tick of the system, for up to 4 ms, whoever else wakes up.
pub(crate) fn give_way() {
    if TURN_BEGAN.get().is_none_or(|began| began.elapsed() >= TURN) {
        std::thread::yield_now();
        TURN_BEGAN.set(Some(Instant::now()));
    }
}
