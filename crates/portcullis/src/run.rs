//! `portcullis run`: the process around the gateway. Starts the threads, maps signals to reload and drain, and shuts down.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use portcullis_gateway::config::tables::{Bind, LogFormat};
use portcullis_gateway::{
    Gateway, Loaded, Machine, Priority, ProcessState, Runtime, StartError, grow_descriptor_table,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging::Logging;
use crate::report::{Failure, print_problems};

/// How long the process waits for its tasks to be dropped when it ends.
const SHUTDOWN: Duration = Duration::from_secs(1);

pub(crate) fn run(path: &Path) -> Result<(), Failure> {
    let early = EarlySignals::new()?;
    let state = ProcessState::on(Machine::of_this_process());
    let observer = Arc::clone(&state.observer);
    let Loaded { runtime, diagnostics } =
        Runtime::load(path, &state).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    // Before the process starts threads. A failure costs speed only; the gateway reports the limit that it then has.
    let _ = grow_descriptor_table(runtime.needed_descriptors());
    let is_json = runtime.process.log_format == LogFormat::Json;
    if !is_json {
        print_problems(&diagnostics);
    }
    let logging = crate::logging::start(&runtime.process, &observer)?;
    if is_json {
        // What collects JSON does not understand anything else.
        diagnostics.lines().for_each(|line| tracing::warn!("{line}"));
    }
    let tokio = tokio_runtime(runtime.process.threads())?;
    let result = tokio.block_on(serve(path, runtime, state, &logging, early.hangup()));
    // The drain is over. Dropping the remaining tasks still writes their access log lines.
    tokio.shutdown_timeout(SHUTDOWN);
    observer.access_log.store(None);
    result
}

/// Builds the runtime that connects clients, with this number of threads; as many relay.
pub(crate) fn tokio_runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).on_thread_start(|| Priority::Connecting.apply()).enable_all().build()
}

/// `reload`: whether to reload at once.
async fn serve(
    path: &Path,
    runtime: Runtime,
    state: Arc<ProcessState>,
    logging: &Logging,
    mut reload: bool,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let gateway = Gateway::start(path, runtime, state).await.map_err(start_failure)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    loop {
        let action = if std::mem::take(&mut reload) { Action::Reload } else { signals.next().await };
        match action {
            Action::Reload => match gateway.reload().await {
                Ok(problems) => {
                    logging.set_levels(&gateway.log());
                    problems.lines().for_each(|line| tracing::warn!("{line}"));
                    tracing::info!(warnings = problems.list().len(), "reloaded");
                }
                Err(error) => tracing::error!("reload failed, the current configuration stays active: {error}"),
            },
            Action::ReopenLog => gateway.reopen_access_log().await,
            Action::Drain => break,
        }
    }
    tracing::info!(connections = gateway.connections(), "draining");
    let mut drained = pin!(gateway.drain());
    loop {
        let action = tokio::select! {
            () = &mut drained => break,
            action = signals.next() => action,
        };
        match action {
            Action::ReopenLog => gateway.reopen_access_log().await,
            Action::Reload => {
                tracing::warn!("SIGHUP opens the access log only: a gateway that drains takes no other configuration");
                gateway.reopen_access_log().await;
            }
            Action::Drain => {
                tracing::warn!(connections = gateway.connections(), "stopping at once");
                gateway.stop().await;
                return Ok(());
            }
        }
    }
    tracing::info!("drained");
    Ok(())
}

/// Adds a hint to the reason why the gateway does not start.
pub(crate) fn start_failure(error: StartError) -> Failure {
    let hint = match &error {
        StartError::Bind(Bind::Unix(_), cause) | StartError::Admin(Bind::Unix(_), cause) => match cause.kind() {
            io::ErrorKind::AddrInUse => {
                Some("another process, or another listener, uses this socket; `ss -lxp` shows which")
            }
            io::ErrorKind::NotFound => {
                Some("create the folder; in a systemd service, `RuntimeDirectory=portcullis` makes /run/portcullis")
            }
            io::ErrorKind::PermissionDenied => Some(
                "the folder has to be writable for the gateway's user; `owner` and `group` need root, or a group that this user has",
            ),
            _ => None,
        },
        StartError::Bind(_, cause) | StartError::Admin(_, cause) => match cause.kind() {
            io::ErrorKind::AddrInUse => Some("another process listens on this address; `ss -ltnp` shows which"),
            io::ErrorKind::PermissionDenied => Some("ports below 1024 need the capability CAP_NET_BIND_SERVICE"),
            io::ErrorKind::AddrNotAvailable => {
                Some("this machine does not have this address; `ip address` lists those it has")
            }
            _ => None,
        },
        StartError::AccessLog(..) => None,
        StartError::Threads(_) => Some("check the limits of open files (`ulimit -n`) and of processes (`ulimit -u`)"),
    };
    Failure::Error(error.into(), hint.map(str::to_owned))
}

#[derive(PartialEq, Eq)]
enum Action {
    Reload,
    /// As in NGINX, for logrotate.
    ReopenLog,
    Drain,
}

/// Signals while the configuration is loaded, which may take long: those that would not end a gateway must not end one that
/// starts. SIGTERM, SIGINT and SIGQUIT do.
struct EarlySignals {
    tokio: tokio::runtime::Runtime,
    hangup: Signal,
}

impl EarlySignals {
    fn new() -> io::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let hangup = {
            let _context = tokio.enter();
            // Nobody receives these; what counts is that their default action is replaced.
            let _ = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
            signal(SignalKind::hangup())?
        };
        Ok(Self { tokio, hangup })
    }

    /// Whether there was a SIGHUP: the configuration may have changed after it was read.
    fn hangup(mut self) -> bool {
        let received = async { tokio::time::timeout(Duration::from_millis(1), self.hangup.recv()).await.is_ok() };
        self.tokio.block_on(received)
    }
}

struct Signals {
    hangup: Signal,
    user1: Signal,
    user2: Signal,
    quit: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Action {
        loop {
            return tokio::select! {
                _ = self.hangup.recv() => Action::Reload,
                _ = self.user1.recv() => Action::ReopenLog,
                _ = self.quit.recv() => Action::Drain,
                _ = self.terminate.recv() => Action::Drain,
                _ = self.interrupt.recv() => Action::Drain,
                // In NGINX, it replaces the program. Its default action would end all sessions.
                _ = self.user2.recv() => {
                    tracing::warn!("SIGUSR2 has no effect: to replace the program, start the new one, then stop this one");
                    continue;
                }
            };
        }
    }
}
