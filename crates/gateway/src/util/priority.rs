//! How much CPU time the threads of the gateway get when there is not enough for all: those that relay come first.

/// What a thread does. Threads that relay have the priority of the process.
#[derive(Clone, Copy, Debug)]
pub enum Priority {
    /// All of a connection but the relay: handshakes, authentication, brokers, the end; and files, maintenance, admin.
    Connecting,
    /// Guessing passwords costs the guesser nothing.
    Passwords,
}

impl Priority {
    /// Gives the calling thread this priority. A failure leaves it as it is.
    pub fn apply(self) {
        let nice = match self {
            // A third of the weight of the relay: sessions come first, and cannot starve those that connect.
            Self::Connecting => 5,
            Self::Passwords => 15,
        };
        // On Linux, this applies to the calling thread only. On other systems it would be the process.
        if cfg!(target_os = "linux") {
            let _ = rustix::process::setpriority_process(None, nice);
        }
    }
}
