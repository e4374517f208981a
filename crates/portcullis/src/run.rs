//! `portcullis run`: the process around the gateway. Starts the threads, maps signals to reload, replacement and drain, and shuts
//! down.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use portcullis_gateway::config::tables::{Bind, LogFormat};
use portcullis_gateway::{
    Gateway, Inherited, Loaded, Machine, Priority, ProcessState, Runtime, StartError, Successor, grow_descriptor_table,
};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging::Logging;
use crate::replace::{Predecessor, Program, Starting};
use crate::report::{Failure, print_problems};

/// How long the process waits for its tasks to be dropped when it ends.
const SHUTDOWN: Duration = Duration::from_secs(1);

pub(crate) fn run(path: &Path) -> Result<(), Failure> {
    let early = EarlySignals::new()?;
    let (program, predecessor) = (Program::of_this_process()?, Predecessor::find()?);
    let inherited = Inherited::from_environment(predecessor.is_some()).map_err(|error| {
        Failure::hint(error, "LISTEN_FDS is set by systemd's socket units, or by whatever started this process")
    })?;
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
    let start = Start { path, inherited, predecessor, program, reload: early.hangup() };
    let result = tokio.block_on(serve(start, runtime, state, &logging));
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

/// How the process was started.
struct Start<'a> {
    path: &'a Path,
    inherited: Inherited,
    /// The process that this one replaces.
    predecessor: Option<Predecessor>,
    program: Program,
    /// Whether to reload at once.
    reload: bool,
}

async fn serve(start: Start<'_>, runtime: Runtime, state: Arc<ProcessState>, logging: &Logging) -> Result<(), Failure> {
    let Start { path, inherited, predecessor, program, reload } = start;
    let mut signals = Signals::new()?;
    let gateway = Gateway::start(path, runtime, state, inherited).await.map_err(start_failure)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
    match predecessor {
        // It tells systemd, which does not know this process yet.
        Some(predecessor) => {
            predecessor.serve_in_its_place().await;
            gateway.take_sockets_over();
        }
        None => notify(&[NotifyState::Ready]),
    }
    if reload {
        self::reload(&gateway, logging).await;
    }
    let successor = serve_until_drain(&gateway, &program, &mut signals, logging).await;
    tracing::info!(connections = gateway.connections(), "draining");
    let mut drained = pin!(gateway.drain(successor));
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
            Action::Replace => tracing::warn!("SIGUSR2 has no effect: this gateway drains"),
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

/// Serves until the gateway has to drain. Returns who serves then.
async fn serve_until_drain(
    gateway: &Gateway,
    program: &Program,
    signals: &mut Signals,
    logging: &Logging,
) -> Successor {
    let mut starting: Option<Starting> = None;
    // A signal while another process starts: that one may have read the configuration before.
    let mut reload_later = false;
    loop {
        let action = tokio::select! {
            action = signals.next() => action,
            result = async { match &mut starting {
                Some(process) => process.serves().await,
                None => std::future::pending().await,
            }} => {
                let Some(mut process) = starting.take() else { continue };
                let pid = process.id();
                match result {
                    Ok(()) => {
                        tracing::info!(pid, "another process serves in place of this one");
                        gateway.leave_sockets();
                        process.tell_left();
                        if reload_later {
                            process.reload();
                        }
                        notify(&[NotifyState::MainPid(pid)]);
                        return Successor::Process;
                    }
                    Err(why) => {
                        tracing::error!(pid, program = %program.path(), "the new process does not serve, this one goes on: {why}");
                        if std::mem::take(&mut reload_later) {
                            reload(gateway, logging).await;
                        }
                    }
                }
                continue;
            }
        };
        match action {
            Action::Reload if starting.is_some() => {
                tracing::info!("SIGHUP is for the process that serves once the new one has started");
                reload_later = true;
                gateway.reopen_access_log().await;
            }
            Action::Reload => reload(gateway, logging).await,
            Action::ReopenLog => gateway.reopen_access_log().await,
            Action::Replace if gateway.passes_datagrams_on() => {
                tracing::warn!(
                    "SIGUSR2 has no effect: the process before this one still has sessions over QUIC, which would be lost; wait until it has ended, or end it"
                );
            }
            Action::Replace if starting.is_some() => {
                tracing::warn!("SIGUSR2 has no effect: another process starts already");
            }
            Action::Replace => {
                // Here, and not on another thread: the process gets the priority of this one.
                match gateway.hand_over().and_then(|sockets| program.start(sockets)) {
                    Ok(process) => {
                        tracing::info!(pid = process.id(), "starting another process in place of this one");
                        starting = Some(process);
                    }
                    Err(error) => {
                        let (program, hint) =
                            (program.path(), "install the program where this process was started from");
                        tracing::error!(%program, %error, hint, "cannot start another process, this one goes on");
                    }
                }
            }
            Action::Drain => {
                if let Some(mut process) = starting {
                    process.stop();
                }
                notify(&[NotifyState::Stopping]);
                return Successor::Others;
            }
        }
    }
}

async fn reload(gateway: &Gateway, logging: &Logging) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
    match gateway.reload().await {
        Ok(problems) => {
            logging.set_levels(&gateway.log());
            problems.lines().for_each(|line| tracing::warn!("{line}"));
            tracing::info!(warnings = problems.list().len(), "reloaded");
        }
        Err(error) => tracing::error!("reload failed, the current configuration stays active: {error}"),
    }
    notify(&[NotifyState::Ready]);
}

/// Tells systemd, if it has started the service with `Type=notify` or `notify-reload`.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
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
            io::ErrorKind::AddrInUse => {
                Some("another process listens on this address; `ss -ltnp` shows which, for QUIC `ss -lunp`")
            }
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
    /// As in NGINX.
    Replace,
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
        tokio::select! {
            _ = self.hangup.recv() => Action::Reload,
            _ = self.user1.recv() => Action::ReopenLog,
            _ = self.user2.recv() => Action::Replace,
            _ = self.quit.recv() => Action::Drain,
            _ = self.terminate.recv() => Action::Drain,
            _ = self.interrupt.recv() => Action::Drain,
        }
    }
}
