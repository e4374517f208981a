//! SIGUSR2: another process, perhaps of another binary, replaces this one. It starts with the listening sockets, so that no
//! connection is refused meanwhile, and says when it serves; until then, this one serves as before. The new process has this end of
//! the conversation as standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use portcullis_gateway::Handover;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long the new process may take to start. Configurations with large CRLs take minutes.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// The variable with the number of the process that is replaced.
const REPLACES: &str = "PORTCULLIS_REPLACES";
/// The byte that the new process writes once it serves, and the old one once it has left the sockets.
const READY: u8 = b'\n';
/// How long the old process may take to leave the sockets.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What this process was started as.
#[derive(Debug)]
pub(crate) struct Program {
    /// As typed: if it is a link, the link counts at the time of the replacement.
    name: OsString,
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Call it before the working directory changes.
    ///
    /// # Errors
    /// The process has no name, or no working directory.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = arguments.next().ok_or(ErrorKind::NotFound)?;
        let path = PathBuf::from(&name);
        // A name without a slash is looked up in PATH again.
        let path = if path.components().count() > 1 { std::path::absolute(path)? } else { path };
        Ok(Self { name, path, arguments: arguments.collect() })
    }

    /// What is started.
    pub(crate) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Starts it again, with these sockets. Call it on a thread with the priority that the new process is to have.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(&self, sockets: Handover) -> io::Result<Starting> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).args(&self.arguments).env(REPLACES, std::process::id().to_string());
        command.stdin(OwnedFd::from(theirs));
        sockets.pass_to(&mut command);
        let child = command.spawn()?;
        ours.set_nonblocking(true)?;
        let conversation = tokio::net::UnixStream::from_std(ours)?;
        Ok(Starting { child, conversation, deadline: Instant::now() + START_TIMEOUT })
    }
}

/// A process that starts.
#[derive(Debug)]
pub(crate) struct Starting {
    child: Child,
    conversation: tokio::net::UnixStream,
    deadline: Instant,
}

impl Starting {
    /// The number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it serves. Nothing is lost if the wait is interrupted.
    ///
    /// # Errors
    /// It does not, and has ended. Its own log has the reason.
    pub(crate) async fn serves(&mut self) -> Result<(), String> {
        match timeout_at(self.deadline, self.conversation.read_u8()).await {
            Ok(Ok(READY)) => Ok(()),
            Ok(_) => {
                // It has closed its end, and is about to end.
                for _ in 0..100 {
                    if let Ok(Some(status)) = self.child.try_wait() {
                        return Err(format!("it ended with {status}"));
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                self.stop();
                Err("it ended the conversation".to_owned())
            }
            Err(_) => {
                self.stop();
                Err(format!("it did not serve within {}", humantime::format_duration(START_TIMEOUT)))
            }
        }
    }

    /// Tells it that this process has left the sockets.
    pub(crate) fn tell_left(&mut self) {
        // A byte has room. If the process has ended, there is nobody to tell.
        let _ = self.conversation.try_write(&[READY]);
    }

    /// Lets it reload.
    pub(crate) fn reload(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            // Fails if it has ended, which it will be found to have.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::HUP);
        }
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that this one replaces.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Finds it by the environment. `None`: this process replaces none. Call it before anything reads standard input.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        let replaced = std::env::var(REPLACES).ok().and_then(|id| id.parse().ok());
        if replaced != Some(parent_id()) {
            return Ok(None);
        }
        let conversation = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Some(Self(conversation)))
    }

    /// Tells it that this process serves, and waits until it has left the sockets.
    pub(crate) async fn serve_in_its_place(self) {
        let conversation = async {
            self.0.set_nonblocking(true)?;
            let mut conversation = tokio::net::UnixStream::from_std(self.0)?;
            conversation.write_all(&[READY]).await?;
            conversation.read_u8().await
        };
        let left: Result<io::Result<u8>, _> = timeout(LEAVE_TIMEOUT, conversation).await;
        // An error means that it is gone, and has left them with that.
        if left.is_err() {
            tracing::warn!(
                "the process that this one replaces has not left the sockets: connections over QUIC may suffer"
            );
        }
    }
}
