//! How much CPU time the threads of the gateway get when there is not enough for all: those that relay come first.

use rustix::process::{getpid, getpriority_process, setpriority_process};

/// What a thread does.
#[derive(Clone, Copy, Debug)]
pub enum Priority {
    /// Established sessions. The priority of the process.
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
            Self::Relay => 0,
            // A tenth of the weight of the relay: with a third of it, a message still waits several milliseconds in a storm. It is
            // enough that busy sessions cannot keep others out.
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
