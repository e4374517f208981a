//! The compiled configuration: one immutable snapshot that is swapped as a whole. Loading it is all of what `check`
//! does, and the beginning of what `run` does.

mod warnings;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{self, Authenticator};
use crate::bans::{self, Bans};
use crate::config::model::{self, AccessLogFormat, LogFormat, OnReject, Protocol};
use crate::config::{At, Document, Problems};
use crate::files;
use crate::identity::Signer;
use crate::kept::Kept;
use crate::net::AddressRules;
use crate::observe::{Expiry, ListenerMetrics, Observer};
use crate::policy::{Admission, Rewriting, Signing};
use crate::registry::Replica;
use crate::tls::{Context, Memory, ServerTls};
use crate::trust::Knowledge;
use crate::upstream::Upstream;
use warnings::{warn_of_open_door, warn_of_what_nobody_uses};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECT_SIZE: usize = 64 << 10;
/// What a CONNECT packet may have at most, of which MQTT itself sets no lower bound [MQTT-2.1.4].
const MAX_MAX_CONNECT_SIZE: usize = 1 << 20;
const MAX_CONNECTIONS: u32 = 100_000;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration, compiled.
#[derive(Debug)]
pub struct Runtime {
    /// In the order of the file.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the file.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What listeners ask who a client is, in the order of the file.
    pub authenticators: Vec<Arc<Authenticator>>,
    /// What signs identities towards brokers.
    pub signer: Option<Arc<Signer>>,
    /// Where access lines go, and what they look like.
    pub access_log: Option<(PathBuf, AccessLogFormat)>,
    /// Where operators ask.
    pub admin: Option<AdminBind>,
    /// The process as a whole.
    pub process: Process,
    upstream_expiries: Vec<Expiry>,
}

/// Where devices connect, compiled.
#[derive(Debug)]
pub struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) bind: Vec<SocketAddr>,
    pub(crate) addresses: AddressRules,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_connect_size: usize,
    pub(crate) max_connections: u32,
    pub(crate) on_reject: OnReject,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) bans: Bans,
    /// In the order in which they are asked.
    pub(crate) authenticators: Vec<Arc<Authenticator>>,
    /// What the registry says of a device decides who is let in, or what becomes of CONNECT.
    pub(crate) uses_device: bool,
    pub(crate) admission: Admission,
    pub(crate) rewriting: Rewriting,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<ListenerMetrics>,
}

/// Where the admin interface listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminBind {
    /// An address and port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Settings of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// `None`: the cores.
    pub worker_threads: Option<usize>,
    /// How long sessions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Directives of what is logged.
    pub log: String,
    /// What log lines look like.
    pub log_format: LogFormat,
}

/// What outlives reloads: what was seen and learned by way of one configuration is of use under the next.
#[derive(Debug, Default)]
pub struct Lasting {
    /// Counters, and the access log.
    pub observer: Arc<Observer>,
    pub(crate) knowledge: Arc<Knowledge>,
    pub(crate) sources: auth::Sources,
    bans: bans::Memories,
    /// By the listener's name.
    memories: Kept<String, Memory>,
}

impl Lasting {
    /// Nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn memory(&self, listener: &str) -> Arc<Memory> {
        self.memories.get_or_insert_with(listener.to_owned(), Memory::default)
    }
}

/// What tells one listening socket from another over reloads: its address, so that a listener may be renamed or an
/// address given to another without a gap. Sockets of port 0 have no address before they are bound: for them it is the
/// listener's name, and which of its addresses it is.
pub(crate) type SocketKey = (SocketAddr, Option<(Arc<str>, usize)>);

/// A configuration that can be used, and what there is to say of it all the same.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub runtime: Runtime,
    /// Warnings only.
    pub problems: Problems,
}

impl Runtime {
    /// Loads a file: opens every file it names, compiles every expression, binds and connects nothing.
    ///
    /// # Errors
    /// Every problem, of which at least one is an error.
    pub fn load(path: &Path, lasting: &Lasting) -> Result<Loaded, Problems> {
        Self::compile(Document::read(path), lasting)
    }

    fn compile(mut document: Document, lasting: &Lasting) -> Result<Loaded, Problems> {
        // What could not be read at all has been said; what depends on it would only be noise.
        let was_read = !document.problems.has_errors();
        let config = std::mem::take(&mut document.config);
        let mut expiries = Expiries(Vec::new());
        let names = |table: &str| table.to_owned();
        check_names(config.upstream.iter().map(|at| (&at.span, at.name.as_ref())), &names("upstream"), &mut document);
        let tables = config.authenticator.iter().map(|at| (&at.span, at.name.as_ref()));
        check_names(tables, &names("authenticator"), &mut document);
        check_names(config.listener.iter().map(|at| (&at.span, at.name.as_ref())), &names("listener"), &mut document);
        let upstreams: Vec<Arc<Upstream>> = config
            .upstream
            .iter()
            .filter_map(|upstream| {
                expiries.of_upstream(upstream, &mut document);
                Upstream::compile(upstream, &mut document).map(Arc::new)
            })
            .collect();
        if config.listener.is_empty() && was_read {
            document.problems.file_error("there is no [[listener]], so nothing to do").hint(EXAMPLE);
        }
        let known: Vec<&str> =
            config.upstream.iter().filter_map(|upstream| upstream.name.as_ref()).map(|name| name.as_str()).collect();
        let identity = config.identity.as_ref();
        let signing: Option<Signing> = identity.map(|identity| Signer::compile(identity, &mut document).map(Arc::new));
        let tables = config.authenticator.iter();
        let authenticators: Vec<Arc<Authenticator>> = tables
            .filter_map(|table| Authenticator::compile(table, &lasting.sources, &mut document).map(Arc::new))
            .collect();
        let mut listeners = Vec::new();
        let mut bound = HashSet::new();
        let context =
            ListenerContext { config: &config, authenticators: &authenticators, signing: signing.as_ref(), lasting };
        for listener in &config.listener {
            Expiries::of_listener(listener, &mut document);
            let upstream = find_upstream(listener, &upstreams, &known, &mut document);
            listeners.extend(compile_listener(listener, upstream, &mut bound, &context, &mut document).map(Arc::new));
        }
        warn_of_what_nobody_uses(&config, &mut document);
        let process = compile_process(&config.runtime, &mut document);
        let admin = config.admin.as_ref().and_then(|admin| compile_admin(admin, &mut document));
        let access_log = config.access_log.as_ref().and_then(|log| compile_access_log(log, &mut document));
        if document.problems.has_errors() {
            return Err(document.problems);
        }
        let runtime = Self {
            listeners,
            upstreams,
            authenticators,
            signer: signing.flatten(),
            access_log,
            admin,
            process,
            upstream_expiries: expiries.0,
        };
        Ok(Loaded { runtime, problems: document.problems })
    }

    /// The listener of this name.
    pub(crate) fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| *listener.name == *name)
    }

    /// The authenticator of this name.
    pub(crate) fn authenticator(&self, name: &str) -> Option<&Arc<Authenticator>> {
        self.authenticators.iter().find(|authenticator| *authenticator.name == *name)
    }

    /// The sockets it wants, and the listener of each.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (SocketKey, &Arc<Listener>)> {
        self.listeners.iter().flat_map(|listener| {
            listener.bind.iter().enumerate().map(move |(position, address)| {
                let unbound = (address.port() == 0).then(|| (Arc::clone(&listener.name), position));
                ((*address, unbound), listener)
            })
        })
    }

    /// Makes the snapshot ready to serve: names are resolved, health checks begin. What `previous` knew of brokers that
    /// are still configured is taken over.
    pub(crate) async fn activate(&self, previous: Option<&Runtime>, observer: &Arc<Observer>) {
        let before = previous.map_or(&[][..], |previous| &previous.upstreams);
        let named = |all: &[Arc<Upstream>], name: &str| all.iter().position(|upstream| upstream.name() == name);
        let activations = self.upstreams.iter().map(|upstream| {
            let previous = named(before, upstream.name()).map(|position| &*before[position]);
            upstream.activate(previous, observer)
        });
        before.iter().for_each(|upstream| upstream.retire());
        self.listeners.iter().filter_map(|listener| listener.tls.as_ref()).for_each(ServerTls::is_served_by);
        let trusts = self.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.trust());
        let prepared = futures_util::future::join_all(trusts.map(|trust| trust.prepare()));
        let authenticators = self.authenticators.iter().map(|authenticator| authenticator.prepare());
        let authenticators = futures_util::future::join_all(authenticators);
        tokio::join!(futures_util::future::join_all(activations), prepared, authenticators);
        self.upstreams.iter().for_each(|upstream| upstream.start(observer));
    }

    /// When certificates expire: those in use, whatever their files say by now.
    pub(crate) fn expiries(&self) -> Vec<Expiry> {
        let listeners = self.listeners.iter().filter_map(|listener| Some((&listener.name, listener.tls.as_ref()?)));
        let expiry = |owner: &Arc<str>, (role, subject, not_after)| Expiry {
            owner: owner.to_string(),
            role,
            subject,
            not_after,
        };
        let of_listeners = listeners.flat_map(|(name, tls)| tls.expiries().into_iter().map(move |it| expiry(name, it)));
        of_listeners.chain(self.upstream_expiries.iter().cloned()).collect()
    }
}

const EXAMPLE: &str = "begin with: [[listener]] name = \"devices\" bind = \"0.0.0.0:8883\" upstream = \"brokers\"";

fn check_names<'a>(
    tables: impl Iterator<Item = (&'a std::ops::Range<usize>, Option<&'a At<String>>)>,
    table: &str,
    document: &mut Document,
) {
    let mut seen = HashSet::new();
    for (span, name) in tables {
        match name {
            None => {
                document.missing(span, "name", "it appears in logs and metrics");
            }
            Some(name) if name.is_empty() => {
                document.problems.error(&name.span, "`name` is empty");
            }
            Some(name) if !seen.insert(name.as_str()) => {
                document.problems.error(&name.span, format!("there is a {table} named `{}` already", name.value));
            }
            Some(_) => {}
        }
    }
}

/// What listeners refer to.
struct ListenerContext<'a> {
    config: &'a model::Config,
    authenticators: &'a [Arc<Authenticator>],
    signing: Option<&'a Signing>,
    lasting: &'a Lasting,
}

impl ListenerContext<'_> {
    /// The device registry, if there is one and only one.
    fn registry(&self) -> Option<&Arc<Replica>> {
        let mut registries = self.authenticators.iter().filter_map(|authenticator| authenticator.registry());
        registries.next().filter(|_| registries.next().is_none())
    }
}

/// The authenticators that a listener names.
fn find_authenticators(
    listener: &At<model::Listener>,
    context: &ListenerContext<'_>,
    document: &mut Document,
) -> Vec<Arc<Authenticator>> {
    let known: Vec<&str> =
        context.config.authenticator.iter().filter_map(|table| Some(table.name.as_ref()?.as_str())).collect();
    let mut found: Vec<Arc<Authenticator>> = Vec::new();
    for name in &listener.authenticate {
        if !known.contains(&name.as_str()) {
            unknown_name("authenticator", name, &known, document);
        }
        if found.iter().any(|other| *other.name == *name.value) {
            document.problems.error(&name.span, format!("`{}` is asked already", name.value));
            continue;
        }
        let named = context.authenticators.iter().find(|authenticator| *authenticator.name == *name.value);
        found.extend(named.cloned());
    }
    found
}

/// Says that there is no table of a name, and which may have been meant.
fn unknown_name(table: &str, name: &At<String>, known: &[&str], document: &mut Document) {
    let suggestion = crate::config::suggest(name, known.iter().copied());
    let problem = document.problems.error(&name.span, format!("there is no {table} named `{}`", name.value));
    problem.hint(match suggestion {
        Some(suggestion) => format!("did you mean `{suggestion}`?"),
        None => format!("known are: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") }),
    });
}

fn find_upstream(
    listener: &At<model::Listener>,
    upstreams: &[Arc<Upstream>],
    known: &[&str],
    document: &mut Document,
) -> Option<Arc<Upstream>> {
    let Some(name) = &listener.upstream else {
        document.missing(&listener.span, "upstream", "the name of an [[upstream]]");
        return None;
    };
    if !known.contains(&name.as_str()) {
        unknown_name("upstream", name, known, document);
    }
    upstreams.iter().find(|upstream| upstream.name() == name.as_str()).cloned()
}

fn compile_listener(
    listener: &At<model::Listener>,
    upstream: Option<Arc<Upstream>>,
    bound: &mut HashSet<SocketAddr>,
    context: &ListenerContext<'_>,
    document: &mut Document,
) -> Option<Listener> {
    let bind = compile_bind(listener, bound, document);
    let tls = compile_tls(listener, context, document);
    let authenticators = find_authenticators(listener, context, document);
    let admission = Admission::compile(&listener.admit, document);
    let rewriting = Rewriting::compile(&listener.connect, context.signing, document);
    let label = listener.name.as_ref().map_or("", |name| name.as_str());
    let bans = Bans::compile(&listener.ban, label, &context.lasting.bans, document);
    let max_connect_size = listener.max_connect_size.as_ref().map_or(MAX_CONNECT_SIZE, |size| size.value.0);
    if let Some(size) = listener.max_connect_size.as_ref().filter(|size| size.value.0 > MAX_MAX_CONNECT_SIZE) {
        document.problems.error(&size.span, "`max_connect_size` is 1MiB at most");
    }
    warn_of_open_door(listener, &admission, context.config, document);
    let name = listener.name.as_ref()?.as_str();
    Some(Listener {
        name: name.into(),
        bind: bind?,
        addresses: AddressRules::new(&listener.allow, &listener.deny),
        connect_timeout: listener.connect_timeout.map_or(CONNECT_TIMEOUT, |period| period.0),
        max_connect_size,
        max_connections: listener.max_connections.map_or(MAX_CONNECTIONS, NonZeroU32::get),
        on_reject: listener.on_reject,
        tls: tls?,
        bans,
        authenticators,
        uses_device: admission.uses("device") || rewriting.uses("device"),
        admission,
        rewriting,
        upstream: upstream?,
        metrics: context.lasting.observer.metrics.listener(name),
    })
}

fn compile_bind(
    listener: &At<model::Listener>,
    bound: &mut HashSet<SocketAddr>,
    document: &mut Document,
) -> Option<Vec<SocketAddr>> {
    let Some(bind) = &listener.bind else {
        document.missing(&listener.span, "bind", "bind = \"0.0.0.0:8883\"");
        return None;
    };
    let mut addresses = Vec::new();
    for text in &bind.value.0 {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 && !bound.insert(address) => {
                document.problems.error(&bind.span, format!("`{address}` is bound by a listener already"));
            }
            Ok(address) => addresses.push(address),
            Err(_) => {
                let problem = document.problems.error(&bind.span, format!("`{text}` is no address and port"));
                problem.hint("as \"0.0.0.0:8883\" or \"[::]:8883\"");
            }
        }
    }
    if bind.value.0.is_empty() {
        document.problems.error(&bind.span, "`bind` is empty");
    }
    (addresses.len() == bind.value.0.len()).then_some(addresses)
}

/// `Some(None)`: the listener speaks no TLS.
#[expect(clippy::option_option, reason = "the outer one is for a mistake in the configuration")]
fn compile_tls(
    listener: &At<model::Listener>,
    context: &ListenerContext<'_>,
    document: &mut Document,
) -> Option<Option<ServerTls>> {
    match (listener.protocol, &listener.tls) {
        (Protocol::Tls, Some(tls)) => {
            let name = listener.name.as_ref().map_or("", |name| name.as_str());
            let (knowledge, memory) = (&context.lasting.knowledge, context.lasting.memory(name));
            let context = Context { listener: name, knowledge, memory, registry: context.registry() };
            ServerTls::compile(tls, context, document).map(Some)
        }
        (Protocol::Tls, None) => {
            let problem = document.problems.error(&listener.span, "a listener that speaks TLS needs [listener.tls]");
            problem.hint("or `protocol = \"tcp\"` for MQTT in the clear");
            None
        }
        (Protocol::Tcp, None) => Some(None),
        (Protocol::Tcp, Some(tls)) => {
            document.problems.error(&tls.span, "[listener.tls] without effect: `protocol = \"tcp\"`");
            None
        }
    }
}

fn compile_process(runtime: &model::Runtime, document: &mut Document) -> Process {
    if let Some(threads) = runtime.worker_threads.as_ref().filter(|threads| !(1..=1024).contains(&threads.value)) {
        document.problems.error(&threads.span, "`worker_threads` is from 1 to 1024");
    }
    let log = runtime.log.as_ref().map_or("info", |log| log.as_str()).to_owned();
    if let Some(at) = &runtime.log
        && !is_log_filter(&log)
    {
        let problem = document.problems.error(&at.span, format!("`{log}` is no log level"));
        problem.hint("error, warn, info, debug or trace; also by target: \"info,portcullis_gateway::session=debug\"");
    }
    Process {
        worker_threads: runtime.worker_threads.as_ref().map(|threads| threads.value),
        drain_timeout: runtime.drain_timeout.map_or(DRAIN_TIMEOUT, |period| period.0),
        log,
        log_format: runtime.log_format,
    }
}

/// Levels, alone or for a target. A word that is no level would be taken for a target.
fn is_log_filter(text: &str) -> bool {
    let is_level = |level: &str| level.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    text.split(',').all(|directive| is_level(directive.split_once('=').map_or(directive, |(_, level)| level)))
}

fn compile_admin(admin: &model::Admin, document: &mut Document) -> Option<AdminBind> {
    if let Some(path) = admin.bind.strip_prefix("unix:") {
        return Some(AdminBind::Unix(document.resolve(Path::new(path))));
    }
    match admin.bind.parse::<SocketAddr>() {
        Ok(address) => {
            if !address.ip().is_loopback() {
                let message = "the admin interface asks nobody for a password, and this address is not the loopback";
                document.problems.warning(&admin.bind.span, message).hint("bind = \"127.0.0.1:9080\"");
            }
            Some(AdminBind::Tcp(address))
        }
        Err(_) => {
            let message = format!("`{}` is no address and port", admin.bind.value);
            document
                .problems
                .error(&admin.bind.span, message)
                .hint("as \"127.0.0.1:9080\" or \"unix:/run/admin.sock\"");
            None
        }
    }
}

fn compile_access_log(log: &At<model::AccessLog>, document: &mut Document) -> Option<(PathBuf, AccessLogFormat)> {
    let Some(path) = &log.path else {
        document.missing(&log.span, "path", "a file, or \"-\" for standard output");
        return None;
    };
    if path.value == Path::new("-") {
        return Some((path.value.clone(), log.format));
    }
    let file = document.resolve(path);
    if file.exists() {
        if let Err(error) = std::fs::OpenOptions::new().append(true).open(&file) {
            document.problems.error(&path.span, format!("{} cannot be written: {error}", file.display()));
        }
    } else if !file.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir()) {
        document.problems.error(&path.span, format!("the folder of {} is not there", file.display()));
    }
    Some((file, log.format))
}

/// Those of upstreams, kept; of all, those that have expired are warned of.
struct Expiries(Vec<Expiry>);

impl Expiries {
    fn of_listener(listener: &At<model::Listener>, document: &mut Document) {
        let Some(tls) = &listener.tls else { return };
        if let Some(certificate) = &tls.certificate {
            let paths: Vec<&Path> = match &certificate.value {
                model::Certificates::One(path) => vec![path],
                model::Certificates::Many(pairs) => pairs.iter().map(|pair| pair.certificate.as_path()).collect(),
            };
            for path in paths {
                expiry(path, &certificate.span, document);
            }
        }
        if let Some(ca) = &tls.client_ca {
            expiry(ca, &ca.span, document);
        }
    }

    fn of_upstream(&mut self, upstream: &At<model::Upstream>, document: &mut Document) {
        let (Some(tls), Some(name)) = (&upstream.tls, &upstream.name) else { return };
        for (role, file) in [("upstream", &tls.certificate), ("upstream_ca", &tls.ca)] {
            let not_after = file.as_ref().and_then(|file| expiry(file, &file.span, document));
            let subject = file.as_ref().map(|file| file.value.display().to_string()).unwrap_or_default();
            self.0.extend(not_after.map(|not_after| Expiry { owner: name.value.clone(), role, subject, not_after }));
        }
    }
}

/// When the first certificate of a file expires; warns if it has.
fn expiry(path: &Path, span: &std::ops::Range<usize>, document: &mut Document) -> Option<i64> {
    // Whoever uses the file says what is wrong with it.
    let expires = files::expiry(&document.resolve(path)).ok()?;
    if expires <= chrono::Utc::now().timestamp() {
        let when = chrono::DateTime::from_timestamp(expires, 0).map(|when| when.to_rfc3339()).unwrap_or_default();
        document.problems.warning(span, format!("a certificate in {} expired at {when}", path.display()));
    }
    Some(expires)
}
