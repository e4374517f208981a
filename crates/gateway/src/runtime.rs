//! The running configuration: one immutable snapshot that is swapped as a whole. Enters: a file, by way of
//! [`Settings`]. Leaves: a [`Runtime`] whose files are read and whose sockets are not bound yet. Loading it is all of
//! what `check` does, and the beginning of what `run` does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::auth::Authenticator;
use crate::config::tables::{self, AccessLogFormat, AdminBind, OnReject, Process};
use crate::config::{self, Diagnostics, Reported, Settings};
use crate::devices::Replica;
use crate::edge::Endpoint;
use crate::files::warn_if_expired;
use crate::limits::{AddressRules, Bans, Permits};
use crate::observe::{Expiry, ListenerMetrics, Observer, Transport};
use crate::policy::Signer;
use crate::policy::{Admission, Rewriting};
use crate::state::ProcessState;
use crate::tls::{Context, ServerTls};
use crate::upstream::{self, Upstream};

/// A configuration in use.
#[derive(Debug)]
pub struct Runtime {
    /// In the order of the file.
    pub listeners: Vec<Arc<Listener>>,
    /// In the order of the file.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What authenticates clients, in the order of the file.
    pub authenticators: Vec<Arc<Authenticator>>,
    /// What signs identities towards brokers.
    pub signer: Option<Arc<Signer>>,
    /// Where access lines go, and what they look like.
    pub access_log: Option<(PathBuf, AccessLogFormat)>,
    /// Where the admin interface listens.
    pub admin: Option<AdminBind>,
    /// The process as a whole.
    pub process: Process,
    upstream_expiries: Vec<Expiry>,
}

/// Where devices connect.
#[derive(Debug)]
pub struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) addresses: AddressRules,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_connect_size: usize,
    pub(crate) max_connections: u32,
    /// Its connections, those of before a reload included.
    pub(crate) permits: Arc<Permits>,
    pub(crate) on_reject: OnReject,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) bans: Bans,
    /// In the order in which they are asked.
    pub(crate) authenticators: Vec<Arc<Authenticator>>,
    /// What the registry says of a device decides who is admitted, or how CONNECT is rewritten.
    pub(crate) uses_device: bool,
    pub(crate) admission: Admission,
    pub(crate) rewriting: Rewriting,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<ListenerMetrics>,
}

impl Listener {
    /// What is spoken below MQTT.
    pub(crate) const fn transport(&self) -> Transport {
        if self.tls.is_some() { Transport::Tls } else { Transport::Tcp }
    }
}

/// What tells one listening socket from another over reloads: its address, so that a listener may be renamed or an
/// address given to another without a gap. Sockets of port 0 have no address before they are bound: for them it is the
/// listener's name, and which of its addresses it is.
pub(crate) type SocketKey = (Endpoint, Option<(Arc<str>, usize)>);

/// A configuration that can be used, and the warnings about it.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub runtime: Runtime,
    /// Warnings only.
    pub diagnostics: Diagnostics,
}

impl Runtime {
    /// Loads a file: opens every file it names, compiles every expression, binds and connects nothing.
    ///
    /// # Errors
    /// Every problem, of which at least one is an error.
    pub fn load(path: &Path, state: &ProcessState) -> Result<Loaded, Diagnostics> {
        let (settings, mut diagnostics) = config::load(path);
        let runtime = Self::open(settings, state, &mut diagnostics);
        if diagnostics.has_errors() {
            return Err(diagnostics);
        }
        Ok(Loaded { runtime, diagnostics })
    }

    /// Opens what the settings name. If a file cannot be used, what needs it is left out, so that the others are reported
    /// too; the result is of use only without errors.
    fn open(settings: Settings, state: &ProcessState, diagnostics: &mut Diagnostics) -> Self {
        let Settings { listeners, authenticators, upstreams, access_log, process, identity, admin } = settings;
        let mut upstream_expiries = Vec::new();
        let mut opened = Vec::new();
        for upstream in upstreams {
            upstream_expiries.extend(expiries_of(&upstream, diagnostics));
            opened.extend(Upstream::open(upstream, diagnostics).ok().map(Arc::new));
        }
        let upstreams = opened;
        let signer = identity.and_then(|identity| Signer::open(&identity, diagnostics).ok()).map(Arc::new);
        let open = |settings| Authenticator::open(settings, &state.sources, diagnostics).ok().map(Arc::new);
        let authenticators: Vec<_> = authenticators.into_iter().filter_map(open).collect();
        let shared = Shared { upstreams: &upstreams, authenticators: &authenticators, signer: signer.as_ref(), state };
        let listeners =
            listeners.into_iter().filter_map(|listener| shared.open_listener(listener, diagnostics)).collect();
        Self {
            listeners,
            access_log: access_log.and_then(|log| check_access_log(log, diagnostics).ok()),
            admin: admin.map(|admin| admin.value),
            upstreams,
            authenticators,
            signer,
            process,
            upstream_expiries,
        }
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
            listener.endpoints.iter().enumerate().map(move |(position, endpoint)| {
                let unbound = (endpoint.address.port() == 0).then(|| (Arc::clone(&listener.name), position));
                ((*endpoint, unbound), listener)
            })
        })
    }

    /// Makes the snapshot ready to serve: names are resolved, health checks begin. What `previous` knew of brokers that
    /// are still configured is kept.
    pub(crate) async fn activate(&self, previous: Option<&Runtime>, observer: &Arc<Observer>) {
        let before = previous.map_or(&[][..], |previous| &previous.upstreams);
        let named = |all: &[Arc<Upstream>], name: &str| all.iter().position(|upstream| upstream.name() == name);
        let activations = self.upstreams.iter().map(|upstream| {
            let previous = named(before, upstream.name()).map(|position| &*before[position]);
            upstream.activate(previous, observer)
        });
        before.iter().for_each(|upstream| upstream.retire());
        self.listeners.iter().filter_map(|listener| listener.tls.as_ref()).for_each(ServerTls::mark_active);
        let trusts = self.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.trust());
        let prepared = join_all(trusts.map(|trust| trust.prepare()));
        let authenticators = join_all(self.authenticators.iter().map(|authenticator| authenticator.prepare()));
        tokio::join!(join_all(activations), prepared, authenticators);
        self.upstreams.iter().for_each(|it| upstream::start(it, observer));
    }

    /// When certificates expire: those in use, whatever their files contain by now.
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

/// What listeners refer to.
struct Shared<'a> {
    upstreams: &'a [Arc<Upstream>],
    authenticators: &'a [Arc<Authenticator>],
    signer: Option<&'a Arc<Signer>>,
    state: &'a ProcessState,
}

impl Shared<'_> {
    fn open_listener(&self, settings: tables::Listener, diagnostics: &mut Diagnostics) -> Option<Arc<Listener>> {
        let name = settings.name.as_str();
        let context = Context {
            listener: name,
            revocation: &self.state.revocation,
            state: self.state.listener(name),
            registry: self.registry(),
        };
        let tls = settings.tls.as_ref().map(|tls| ServerTls::open(tls, context, diagnostics)).transpose().ok()?;
        let authenticators = settings.authenticate.iter().filter_map(|name| {
            let named = self.authenticators.iter().find(|authenticator| *authenticator.name == **name);
            named.cloned()
        });
        let admission = Admission::new(settings.require);
        let rewriting = Rewriting::new(settings.connect, self.signer);
        Some(Arc::new(Listener {
            endpoints: settings.bind.into_iter().map(|address| Endpoint { address }).collect(),
            addresses: AddressRules::new(&settings.allow, &settings.deny),
            connect_timeout: settings.connect_timeout,
            max_connect_size: settings.max_connect_size,
            max_connections: settings.max_connections,
            permits: self.state.permits.get_or_insert_with(name.to_owned(), Permits::default),
            on_reject: settings.on_reject,
            tls,
            bans: Bans::new(&settings.bans, name, &self.state.bans),
            authenticators: authenticators.collect(),
            uses_device: admission.uses("device") || rewriting.uses("device"),
            admission,
            rewriting,
            upstream: self.upstreams.iter().find(|upstream| upstream.name() == settings.upstream).cloned()?,
            metrics: self.state.observer.metrics.listener(name),
            name: name.into(),
        }))
    }

    /// The device registry; a configuration that uses keys of devices has only one.
    fn registry(&self) -> Option<&Arc<Replica>> {
        self.authenticators.iter().find_map(|authenticator| authenticator.registry())
    }
}

/// When the certificates of an upstream expire; warns of those that have.
fn expiries_of(upstream: &tables::Upstream, diagnostics: &mut Diagnostics) -> Vec<Expiry> {
    let Some(tls) = &upstream.tls else { return Vec::new() };
    let certificate = tls.certificate.as_ref().map(|(chain, _)| ("upstream", chain));
    let files = certificate.into_iter().chain(tls.ca.as_ref().map(|ca| ("upstream_ca", ca)));
    let expiry = |(role, file): (_, &config::Setting<PathBuf>)| {
        let not_after = warn_if_expired(file, file, diagnostics)?;
        Some(Expiry { owner: upstream.name.clone(), role, subject: file.value.display().to_string(), not_after })
    };
    files.filter_map(expiry).collect()
}

fn check_access_log(
    log: tables::AccessLog,
    diagnostics: &mut Diagnostics,
) -> Result<(PathBuf, AccessLogFormat), Reported> {
    let (path, format) = (log.path, log.format);
    if path.value == Path::new("-") {
        return Ok((path.value, format));
    }
    if path.exists() {
        if let Err(error) = std::fs::OpenOptions::new().append(true).open(&path.value) {
            return Err(diagnostics.error(&path, format!("cannot write to {}: {error}", path.display())));
        }
    } else if !path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir()) {
        return Err(diagnostics.error(&path, format!("the directory of {} does not exist", path.display())));
    }
    Ok((path.value, format))
}
