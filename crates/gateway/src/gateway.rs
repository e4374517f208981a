//! The running gateway: start, reload, drain and stop. Enters: a loaded configuration, and operators' requests. Leaves:
//! listening sockets whose connections are served. Not here: what happens on a connection.

mod descriptors;
mod drain;
mod errors;
mod handover;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Admin};
use crate::config::Diagnostics;
use crate::config::tables::{Bind, Process};
use crate::edge::{Accepted, Acceptor};
use crate::maintenance;
use crate::net::Inherited;
use crate::observe::AccessLog;
use crate::outcome::{RAISE_OPEN_FILES, Reject};
use crate::relay::RelayThreads;
use crate::runtime::{Loaded, Runtime, SocketKey};
use crate::session::{self, Shared};
use crate::state::ProcessState;
use crate::status::{self, CertificateStatus};
use crate::util::causes::with_causes;
use crate::util::priority::yield_after;

use descriptors::{divide_descriptors, raise_descriptor_limit};
pub use drain::Successor;
pub use errors::{ReloadError, StartError};

/// The pause after an accept that failed for lack of file descriptors or memory, until other connections release some.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// The time between two attempts to bind the admin interface.
const ADMIN_RETRY: Duration = Duration::from_millis(500);

/// A running gateway. Dropping it closes the listening sockets; sessions continue until the process exits.
pub struct Gateway(Handle);

/// A handle to a running gateway, for reload, drain and status.
#[derive(Clone)]
pub struct Handle(Arc<Running>);

struct Running {
    path: PathBuf,
    shared: Arc<Shared>,
    /// The connections being served.
    tasks: TaskTracker,
    /// Cancelled when the gateway stops accepting connections.
    draining: CancellationToken,
    /// The listening sockets.
    sockets: Mutex<HashMap<SocketKey, Socket>>,
    /// Those by which connections go on, though they accept no more.
    closing: Mutex<Vec<(SocketKey, Arc<Acceptor>)>>,
    /// `None`: not configured, or its address is not free yet.
    admin: Arc<Mutex<Option<Admin>>>,
    /// The limit of open files; `None`: unknown.
    descriptor_limit: Option<u64>,
    /// The settings that only a restart changes.
    started: Started,
    /// Held during a reload, so that reloads run one at a time.
    reloading: tokio::sync::Mutex<()>,
}

struct Started {
    process: Process,
    admin: Option<Bind>,
}

struct Socket {
    address: Bind,
    acceptor: Arc<Acceptor>,
    accepting: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Gateway {
    /// Starts to serve with the configuration `runtime`. A reload reads it again from `path`. `inherited` sockets are used in place
    /// of new ones, if the configuration has their addresses.
    ///
    /// # Errors
    /// A socket or file cannot be opened. Nothing is started then.
    pub async fn start(
        path: &Path,
        runtime: Runtime,
        state: Arc<ProcessState>,
        mut inherited: Inherited,
    ) -> Result<Self, StartError> {
        let descriptor_limit = raise_descriptor_limit();
        let (tasks, draining) = (TaskTracker::new(), CancellationToken::new());
        let relays = RelayThreads::start(runtime.process.threads(), tasks.clone()).map_err(StartError::Threads)?;
        divide_descriptors(descriptor_limit, &runtime, &relays, &state);
        let access_log = open_access_log(&runtime)?;
        let bound = bind_new(&runtime, &HashMap::new(), &[], &mut inherited)
            // One of them may be what takes the address: `[::]:8883` of systemd also takes `0.0.0.0:8883`.
            .inspect_err(|_| warn_of_unused(&inherited))?;
        runtime.activate(None, &state.observer).await;
        let started = Started { process: runtime.process.clone(), admin: runtime.admin.clone() };
        state.observer.access_log.store(access_log);
        let shared = Arc::new(Shared { runtime: ArcSwap::from_pointee(runtime), state, relays: Arc::new(relays) });
        let admin = Arc::default();
        if let Some(bind) = &started.admin {
            start_admin(bind, &shared, &draining, &mut inherited, &admin)?;
        }
        warn_of_unused(&inherited);
        tokio::spawn(maintenance::run(Arc::downgrade(&shared)));
        Ok(Self(Handle(Arc::new(Running {
            path: path.to_owned(),
            sockets: Mutex::new(start_accepting(bound, &shared, &tasks)),
            closing: Mutex::default(),
            shared,
            tasks,
            draining,
            admin,
            descriptor_limit,
            started,
            reloading: tokio::sync::Mutex::new(()),
        }))))
    }

    /// A handle that can be cloned and used from other tasks.
    pub fn handle(&self) -> Handle {
        self.0.clone()
    }
}

impl Deref for Gateway {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.0
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let Running { draining, sockets, .. } = &*self.0.0;
        draining.cancel();
        sockets.lock().clear();
    }
}

impl Handle {
    /// The bound IP addresses with their listener names, in the order of the configuration.
    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let (sockets, runtime) = (self.0.sockets.lock(), self.0.shared.runtime.load());
        let address = |(key, listener): (SocketKey, &Arc<crate::Listener>)| {
            Some((Arc::clone(&listener.name), sockets.get(&key)?.address.ip()?))
        };
        runtime.sockets().filter_map(address).collect()
    }

    /// The address of the admin interface, if it is on TCP.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.0.admin.lock().as_ref().and_then(|admin| admin.address.ip())
    }

    /// The levels of the gateway's own log, as the configuration sets them.
    pub fn log(&self) -> String {
        self.0.shared.runtime.load().process.log.clone()
    }

    /// The certificates in use and when they expire.
    pub fn certificate_status(&self) -> CertificateStatus {
        status::certificate_status(&self.0.shared)
    }

    /// Does the maintenance now that is otherwise done every second, and returns once it is done.
    #[cfg(feature = "test-util")]
    pub async fn run_maintenance(&self) {
        maintenance::run_once(Arc::clone(&self.0.shared)).await;
    }

    /// The number of sessions on the threads that relay.
    #[cfg(feature = "test-util")]
    pub fn relayed_sessions(&self) -> usize {
        self.0.shared.relays.sessions()
    }

    /// Lets all threads relay from now on, or one.
    #[cfg(feature = "test-util")]
    pub fn use_all_relay_threads(&self, all: bool) {
        self.0.shared.relays.use_all(all);
    }

    /// Whether sessions run on the thread that relays of this number, from 0 on.
    #[cfg(feature = "test-util")]
    pub fn relays_on(&self, thread: usize) -> bool {
        self.0.shared.relays.runs_sessions(thread)
    }

    /// The number of sessions, established or not.
    pub fn connections(&self) -> usize {
        self.0.tasks.len()
    }

    /// Reads the configuration again and serves new connections with it. Sessions stay connected if the new
    /// configuration accepts them. Returns the warnings.
    ///
    /// # Errors
    /// Why the configuration cannot be used. The old one stays in use then.
    pub async fn reload(&self) -> Result<Diagnostics, ReloadError> {
        let _one_at_a_time = self.0.reloading.lock().await;
        let result = self.replace().await;
        if result.is_err() {
            // The signal also means that the log was rotated.
            self.open_access_log_again();
        }
        // Also after a failed reload: it may have read new CRLs.
        let shared = Arc::clone(&self.0.shared);
        let swept = tokio::task::spawn_blocking(move || {
            let ended = maintenance::sweep(&shared);
            maintenance::follow_rules(&shared);
            ended
        })
        .await;
        tracing::debug!(sessions_ended = swept.unwrap_or(0), "sessions evaluated");
        self.0.shared.state.observer.metrics.count_reload(result.is_ok());
        result
    }

    /// Opens the access log again, after it was renamed. If that fails, lines still go to the renamed file.
    pub async fn reopen_access_log(&self) {
        // A reload may replace the path meanwhile.
        let _one_at_a_time = self.0.reloading.lock().await;
        if self.open_access_log_again() {
            tracing::info!("access log opened again");
        }
    }

    fn open_access_log_again(&self) -> bool {
        let opened = open_access_log(&self.0.shared.runtime.load());
        let opened = opened.map_err(|error| {
            tracing::error!("{}; lines still go to the file that was open", with_causes(&error));
        });
        opened.is_ok_and(|log| {
            self.replace_access_log(log);
            true
        })
    }

    fn replace_access_log(&self, log: Option<Arc<AccessLog>>) {
        let closed = self.0.shared.state.observer.access_log.swap(log);
        // Closing a log writes its waiting lines, which blocks.
        tokio::task::spawn_blocking(move || drop(closed));
    }

    /// The sockets that are closing, and that the configuration has again.
    fn take_closing(&self, runtime: &Runtime) -> Vec<(SocketKey, Arc<Acceptor>)> {
        let wanted: Vec<SocketKey> = runtime.sockets().map(|(key, _)| key).collect();
        self.0.closing.lock().extract_if(.., |(key, _)| wanted.contains(key)).collect()
    }

    async fn replace(&self) -> Result<Diagnostics, ReloadError> {
        let (path, state) = (self.0.path.clone(), Arc::clone(&self.0.shared.state));
        // Reads files and parses certificates, which would block an async worker thread.
        let loaded = tokio::task::spawn_blocking(move || Runtime::load(&path, &state)).await;
        let Loaded { runtime, diagnostics } = match loaded {
            Ok(result) => result.map_err(ReloadError::Configuration)?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        // Apply the new CRLs now: resolving names and fetching URLs may take a while.
        let shared = Arc::clone(&self.0.shared);
        let _ = tokio::task::spawn_blocking(move || maintenance::sweep(&shared)).await;
        let access_log = open_access_log(&runtime).map_err(ReloadError::Start)?;
        let mut reopened = self.take_closing(&runtime);
        let bound = bind_new(&runtime, &self.0.sockets.lock(), &reopened, &mut Inherited::default());
        let mut bound = match bound {
            Ok(bound) => bound,
            Err(error) => {
                self.0.closing.lock().append(&mut reopened);
                return Err(ReloadError::Start(error));
            }
        };
        for (key, acceptor) in reopened {
            if let Some((_, listener)) = runtime.sockets().find(|(other, _)| *other == key) {
                // It cannot fail: only sockets of QUIC go on after they have closed.
                let _ = acceptor.configure(&key.0.bind, &listener.socket);
            }
            acceptor.accept_clients();
            if let Ok(address) = acceptor.address(&key.0) {
                bound.push((key, address, acceptor));
            }
        }
        let previous = self.0.shared.runtime.load_full();
        runtime.activate(Some(&previous), &self.0.shared.state.observer).await;
        self.0.started.warn_of_changes(&runtime);
        divide_descriptors(self.0.descriptor_limit, &runtime, &self.0.shared.relays, &self.0.shared.state);
        let wanted: Vec<SocketKey> = runtime.sockets().map(|(key, _)| key).collect();
        // Stop accepting on removed sockets before their listeners are removed.
        let closed: Vec<(SocketKey, Socket)> =
            self.0.sockets.lock().extract_if(|key, _| !wanted.contains(key)).collect();
        for (key, mut socket) in closed {
            socket.accepting.abort();
            let _ = (&mut socket.accepting).await;
            socket.acceptor.refuse_clients();
            self.0.closing.lock().push((key, Arc::clone(&socket.acceptor)));
        }
        self.0.closing.lock().retain(|(_, acceptor)| acceptor.has_connections());
        self.0.shared.runtime.store(Arc::new(runtime));
        self.replace_access_log(access_log);
        self.0.sockets.lock().extend(start_accepting(bound, &self.0.shared, &self.0.tasks));
        tokio::spawn(maintenance::check_revocation_of_all(Arc::clone(&self.0.shared)));
        Ok(diagnostics)
    }
}

fn warn_of_unused(inherited: &Inherited) {
    for address in inherited.unused() {
        tracing::warn!(
            %address,
            hint = "`bind` has to be the same address, and `protocol = \"quic\"` is for UDP; `ListenStream=8883` of systemd is `[::]:8883`",
            "an inherited socket is closed: no listener binds its address"
        );
    }
}

/// Starts the admin interface. If another process has its address, perhaps a gateway that drains, it starts once that
/// has ended: listeners serve clients meanwhile.
fn start_admin(
    bind: &Bind,
    shared: &Arc<Shared>,
    draining: &CancellationToken,
    inherited: &mut Inherited,
    admin: &Arc<Mutex<Option<Admin>>>,
) -> Result<(), StartError> {
    let error = match admin::serve(bind, Arc::clone(shared), draining.clone(), inherited) {
        Ok(started) => {
            *admin.lock() = Some(started);
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        Err(error) => return Err(StartError::Admin(bind.clone(), error)),
    };
    tracing::warn!(
        address = %bind,
        %error,
        "the admin interface waits for its address: another process has it, perhaps a gateway that drains"
    );
    let (bind, shared, draining, admin) = (bind.clone(), Arc::downgrade(shared), draining.clone(), Arc::clone(admin));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ADMIN_RETRY).await;
            let Some(shared) = shared.upgrade().filter(|_| !draining.is_cancelled()) else { return };
            if let Ok(started) = admin::serve(&bind, shared, draining.clone(), &mut Inherited::default()) {
                *admin.lock() = Some(started);
                return;
            }
        }
    });
    Ok(())
}

fn open_access_log(runtime: &Runtime) -> Result<Option<Arc<AccessLog>>, StartError> {
    let Some((path, format)) = &runtime.access_log else { return Ok(None) };
    let opened = AccessLog::open(path, *format).map_err(|error| StartError::AccessLog(path.clone(), error))?;
    Ok(Some(Arc::new(opened)))
}

/// Binds the sockets that are not bound yet, either all or none. Those that are get the settings of the configuration.
fn bind_new(
    runtime: &Runtime,
    bound: &HashMap<SocketKey, Socket>,
    reopened: &[(SocketKey, Arc<Acceptor>)],
    inherited: &mut Inherited,
) -> Result<Vec<(SocketKey, Bind, Arc<Acceptor>)>, StartError> {
    let (known, mut new): (Vec<_>, Vec<_>) = runtime.sockets().partition(|(key, _)| bound.contains_key(key));
    new.retain(|(key, _)| !reopened.iter().any(|(other, _)| other == key));
    // Those that take any port take what the others leave of the inherited ones.
    new.sort_by_key(|(key, _)| key.0.picks_port());
    let opened = new.into_iter().map(|(key, listener)| {
        let socket = key.0.bind(&listener.socket, inherited).and_then(|socket| Ok((socket.address(&key.0)?, socket)));
        let (address, socket) = socket.map_err(|error| StartError::Bind(key.0.bind.clone(), error))?;
        Ok((key, address, Arc::new(socket)))
    });
    let opened = opened.collect::<Result<_, _>>()?;
    for (key, listener) in known {
        let Some(socket) = bound.get(&key) else { continue };
        match socket.acceptor.configure(&key.0.bind, &listener.socket) {
            // The gateway still accepts on it, and nobody can connect by this path.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::error!(address = %key.0.bind, %error, "the file of a Unix socket was removed: restart the gateway to open it again");
            }
            set => set.map_err(|error| StartError::Bind(key.0.bind.clone(), error))?,
        }
    }
    Ok(opened)
}

fn start_accepting(
    bound: Vec<(SocketKey, Bind, Arc<Acceptor>)>,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
) -> HashMap<SocketKey, Socket> {
    let start = |(key, address, acceptor): (SocketKey, Bind, Arc<Acceptor>)| {
        let runtime = shared.runtime.load();
        let listener = runtime.sockets().find(|(other, _)| *other == key).map(|(_, listener)| &*listener.name);
        tracing::info!(listener, %address, "listening");
        let accepting = tokio::spawn(accept(Arc::clone(&acceptor), key.clone(), Arc::clone(shared), tasks.clone()));
        (key, Socket { address, acceptor, accepting })
    };
    bound.into_iter().map(start).collect()
}

/// Accepts on one socket until aborted.
async fn accept(socket: Arc<Acceptor>, key: SocketKey, shared: Arc<Shared>, tasks: TaskTracker) {
    let mut is_short = false;
    loop {
        match socket.accept().await {
            Ok(accepted) => {
                is_short = false;
                yield_after(|| begin_session(accepted, &key, &shared, &tasks));
            }
            // The client closed the connection before it was accepted.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            // The endpoint of QUIC has failed, and said why.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                tracing::error!(address = %key.0.bind, "the socket is closed: restart the gateway to open it again");
                return;
            }
            Err(error) => {
                if !is_short {
                    tracing::error!(address = %key.0.bind, %error, "cannot accept connections; check the limit of open files (`ulimit -n`) and free memory");
                    is_short = true;
                }
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Serves a connection of this socket, if there are descriptors for it.
fn begin_session(accepted: Accepted, key: &SocketKey, shared: &Arc<Shared>, tasks: &TaskTracker) {
    let runtime = shared.runtime.load();
    let Some((_, listener)) = runtime.sockets().find(|(other, _)| other == key) else { return };
    match shared.state.descriptors.take() {
        Some(permit) => {
            drop(tasks.spawn(session::serve(accepted, permit, Arc::clone(listener), Arc::clone(shared))));
        }
        None => {
            if let Some(suppressed) = shared.state.too_few_descriptors.permit() {
                tracing::error!(
                    suppressed,
                    "connections rejected: the limit of open files allows no more; {RAISE_OPEN_FILES}"
                );
            }
            session::reject(accepted, Reject::TooFewDescriptors, listener, shared);
        }
    }
}

impl Started {
    fn warn_of_changes(&self, next: &Runtime) {
        let (old, new) = (&self.process, &next.process);
        let threads = |process: &Process| process.worker_threads.as_ref().map(|threads| threads.value);
        let changed = [
            ("worker_threads", threads(old) != threads(new)),
            ("log_format", old.log_format != new.log_format),
            ("admin.bind", self.admin != next.admin),
        ];
        for (key, _) in changed.into_iter().filter(|(_, changed)| *changed) {
            tracing::warn!(key, "changed setting takes effect after a restart");
        }
    }
}
