//! The configuration in use: an immutable snapshot that a reload replaces as a whole. Enters: a file, parsed to
//! [`Settings`]. Leaves: a [`Runtime`] whose files are read and whose sockets are not bound yet. Loading it is all that
//! `check` does, and the first step of `run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use portcullis_wire::Connect;

use crate::auth::Authenticator;
use crate::config::tables::{self, AccessLogFormat, Bind, OnReject, Process, Protocol, Quic};
use crate::config::{self, Demand, Diagnostics, Reported, Settings, UpstreamDemand};
use crate::devices::Replica;
use crate::edge::{Endpoint, ProxyProtocol, SocketSettings, Transport, Upgrade};
use crate::files::warn_if_expired;
use crate::limits::{
    ADMIN_CONNECTIONS, AddressRules, Bans, ConnectionLimits, Handshakes, PER_RELAY_THREAD, Permits, needed_descriptors,
    possible_connections,
};
use crate::observe::{Expiry, ListenerMetrics, Observer};
use crate::policy::{Admission, PacketPolicy, Rewriting, Signer, TopicPolicy};
use crate::state::ProcessState;
use crate::tls::{Context, ServerTls};
use crate::upstream::{self, Upstream};
use crate::util::clip::may_hold_token;
use crate::util::machine::Machine;

/// The default limit of a user name in bytes.
const DEFAULT_MAX_USERNAME: usize = 1 << 10;

/// A configuration in use.
#[derive(Debug)]
pub struct Runtime {
    /// In the order of the file.
    pub(crate) listeners: Vec<Arc<Listener>>,
    /// In the order of the file.
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// In the order of the file.
    pub(crate) authenticators: Vec<Arc<Authenticator>>,
    /// Signs the identity tokens that brokers receive.
    pub(crate) signer: Option<Arc<Signer>>,
    /// The path and format of the access log.
    pub(crate) access_log: Option<(PathBuf, AccessLogFormat)>,
    /// The address of the admin interface.
    pub(crate) admin: Option<Bind>,
    /// Settings of the process as a whole.
    pub process: Process,
    upstream_expiries: Vec<Expiry>,
}

/// A listener, compiled.
#[derive(Debug)]
pub struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) socket: SocketSettings,
    /// `None`: its clients do not use QUIC.
    pub(crate) quic: Option<Quic>,
    /// `None`: it does not speak the PROXY protocol.
    pub(crate) proxy: Option<ProxyProtocol>,
    pub(crate) addresses: AddressRules,
    pub(crate) connect_timeout: Duration,
    pub(crate) max_connect_size: usize,
    pub(crate) max_client_id: usize,
    pub(crate) max_username: usize,
    pub(crate) max_connections: config::Setting<u32>,
    /// Counts its connections, including those from before a reload.
    pub(crate) permits: Arc<Permits>,
    pub(crate) on_reject: OnReject,
    pub(crate) tls: Option<ServerTls>,
    /// `None`: its clients do not use WebSocket.
    pub(crate) upgrade: Option<Upgrade>,
    pub(crate) bans: Bans,
    /// In the order in which they run.
    pub(crate) authenticators: Vec<Arc<Authenticator>>,
    /// Whether expressions for admission or rewriting use the device's registry entry.
    pub(crate) uses_device: bool,
    pub(crate) admission: Admission,
    pub(crate) rewriting: Rewriting,
    pub(crate) packets: PacketPolicy,
    pub(crate) rates: ConnectionLimits,
    /// Those of all listeners.
    pub(crate) handshakes: Arc<Handshakes>,
    pub(crate) max_session_lifetime: Option<Duration>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) metrics: Arc<ListenerMetrics>,
}

impl Listener {
    /// The user name that logs may show: not one that may be a token.
    pub(crate) fn shown_username<'a>(&self, connect: &Connect<'a>) -> Option<&'a str> {
        let is_token = self.authenticators.iter().any(|authenticator| authenticator.max_username() > 0);
        connect.username.filter(|username| !is_token && !may_hold_token(username))
    }
}

/// Identifies a listening socket across reloads. By its address, so that a listener can be renamed, or an address moved to
/// another listener, without closing the socket. Port 0 has no address before it is bound: such sockets are identified by
/// the listener's name and the index of the address in it.
pub(crate) type SocketKey = (Endpoint, Option<(Arc<str>, usize)>);

/// A valid configuration and its warnings.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub runtime: Runtime,
    /// Warnings only.
    pub diagnostics: Diagnostics,
}

impl Runtime {
    /// Loads a configuration file: reads every file that it names and compiles every expression. Binds and connects nothing.
    ///
    /// # Errors
    /// All problems, at least one of which is an error.
    pub fn load(path: &Path, state: &ProcessState) -> Result<Loaded, Diagnostics> {
        let (settings, mut diagnostics) = config::load(path);
        let runtime = Self::open(settings, state, &mut diagnostics);
        if diagnostics.has_errors() {
            return Err(diagnostics);
        }
        runtime.compare_with(&state.machine, &mut diagnostics);
        Ok(Loaded { runtime, diagnostics })
    }

    /// Opens the files that the settings name. Parts whose files cannot be used are left out, so that all problems are
    /// reported; the result must be used only if there are no errors.
    fn open(settings: Settings, state: &ProcessState, diagnostics: &mut Diagnostics) -> Self {
        let Settings { listeners, authenticators, upstreams, topic_policies, access_log, process, identity, admin } =
            settings;
        let mut upstream_expiries = Vec::new();
        let mut opened = Vec::new();
        for upstream in upstreams {
            upstream_expiries.extend(expiries_of(&upstream, diagnostics));
            opened.extend(Upstream::open(upstream, &state.machine, diagnostics).ok().map(Arc::new));
        }
        let upstreams = opened;
        let signer = identity.and_then(|identity| Signer::open(&identity, diagnostics).ok()).map(Arc::new);
        let open = |settings| {
            Authenticator::open(settings, &state.sources, &state.observer.metrics, diagnostics).ok().map(Arc::new)
        };
        let authenticators: Vec<_> = authenticators.into_iter().filter_map(open).collect();
        let open = |policy| TopicPolicy::open(policy, diagnostics).ok().map(Arc::new);
        let topics: Vec<_> = topic_policies.into_iter().filter_map(open).collect();
        let parts = Parts {
            upstreams: &upstreams,
            authenticators: &authenticators,
            topics: &topics,
            signer: signer.as_ref(),
            handshakes: &open_handshakes(&process, state),
            state,
        };
        let listeners =
            listeners.into_iter().filter_map(|listener| parts.open_listener(listener, diagnostics)).collect();
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

    /// The sockets of the configuration, with their listeners.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (SocketKey, &Arc<Listener>)> {
        self.listeners.iter().flat_map(|listener| {
            listener.endpoints.iter().enumerate().map(move |(position, endpoint)| {
                let unbound = endpoint.picks_port().then(|| (Arc::clone(&listener.name), position));
                ((endpoint.clone(), unbound), listener)
            })
        })
    }

    /// Prepares the configuration to serve: resolves names, fetches CRLs and keys, starts health checks. Servers that
    /// `previous` also has keep their state.
    pub(crate) async fn activate(&self, previous: Option<&Runtime>, observer: &Arc<Observer>) {
        let before = previous.map_or(&[][..], |previous| &previous.upstreams);
        let named = |all: &[Arc<Upstream>], name: &str| all.iter().position(|upstream| upstream.name() == name);
        let activations = self.upstreams.iter().map(|upstream| {
            let previous = named(before, upstream.name()).map(|position| &*before[position]);
            upstream.activate(previous, observer)
        });
        before.iter().for_each(|upstream| upstream.retire());
        self.listeners.iter().for_each(|listener| listener.rates.set_in_use());
        self.listeners.iter().filter_map(|listener| listener.tls.as_ref()).for_each(ServerTls::set_in_use);
        let trusts = self.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.trust());
        let prepared = join_all(trusts.map(|trust| trust.prepare()));
        let authenticators = join_all(self.authenticators.iter().map(|authenticator| authenticator.prepare()));
        tokio::join!(join_all(activations), prepared, authenticators);
        self.upstreams.iter().for_each(|it| upstream::start(it, observer));
    }

    /// The file descriptors that the configuration itself may need at once, apart from connections of clients.
    pub(crate) fn descriptors(&self) -> u64 {
        let upstreams: u64 = self.upstreams.iter().map(|upstream| upstream.descriptors()).sum();
        let authenticators: u64 = self.authenticators.iter().map(|authenticator| authenticator.descriptors()).sum();
        upstreams + authenticators + self.sockets().count() as u64 + ADMIN_CONNECTIONS as u64
    }

    /// The sum of the listeners' `max_connections`.
    pub(crate) fn max_connections(&self) -> u64 {
        self.listeners.iter().map(|listener| u64::from(listener.max_connections.value)).sum()
    }

    /// Whether [`compare_with`](Self::compare_with) says so if there are too few descriptors.
    pub(crate) fn sets_max_connections(&self) -> bool {
        self.listeners.iter().any(|listener| listener.max_connections.is_set())
    }

    /// The file descriptors that the gateway needs to serve `max_connections` of all listeners.
    pub fn needed_descriptors(&self) -> u64 {
        needed_descriptors(self.max_connections(), self.needs())
    }

    /// The descriptors that connections of clients cannot have.
    fn needs(&self) -> u64 {
        self.descriptors() + self.process.threads() as u64 * PER_RELAY_THREAD
    }

    /// Warns of settings that demand more than the machine has.
    fn compare_with(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        let demand = Demand {
            process: &self.process,
            connections: self.listeners.iter().map(|listener| &listener.max_connections).collect(),
            descriptors: self.needed_descriptors(),
            possible: possible_connections(machine.descriptors.unwrap_or(u64::MAX), self.needs()),
            upstreams: self.upstreams.iter().filter_map(|upstream| self.demand_of(upstream)).collect(),
        };
        demand.compare(machine, diagnostics);
    }

    /// `None`: the number of the upstream's addresses is unknown.
    fn demand_of<'a>(&'a self, upstream: &'a Arc<Upstream>) -> Option<UpstreamDemand<'a>> {
        let users = self.listeners.iter().filter(|listener| Arc::ptr_eq(&listener.upstream, upstream));
        let connections = users.map(|listener| &listener.max_connections).collect();
        Some(UpstreamDemand { name: upstream.name(), addresses: upstream.address_count()?, connections })
    }

    /// The expiry times of the certificates in use, which may be older than their files.
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

/// The handshakes of all listeners, within the limits of the settings.
fn open_handshakes(process: &Process, state: &ProcessState) -> Arc<Handshakes> {
    let Process { max_handshakes, handshake_queue, .. } = *process;
    state
        .handshakes
        .get_or_insert_with((max_handshakes, handshake_queue), || Handshakes::new(max_handshakes, handshake_queue))
}

/// The parts that listeners refer to.
struct Parts<'a> {
    upstreams: &'a [Arc<Upstream>],
    authenticators: &'a [Arc<Authenticator>],
    topics: &'a [Arc<TopicPolicy>],
    signer: Option<&'a Arc<Signer>>,
    handshakes: &'a Arc<Handshakes>,
    state: &'a ProcessState,
}

impl Parts<'_> {
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
        let authenticators: Vec<_> = authenticators.collect();
        let max_username =
            authenticators.iter().map(|it| it.max_username()).fold(DEFAULT_MAX_USERNAME, std::cmp::Ord::max);
        let cookies = authenticators.iter().filter_map(|it| it.cookie().map(str::to_owned)).collect();
        let uses_certificates = tls.as_ref().is_some_and(|tls| tls.trust().is_some());
        let upgrade = settings.websocket.map(|settings| Upgrade::new(settings, uses_certificates, cookies));
        let patience = tls.as_ref().map_or(settings.connect_timeout, ServerTls::handshake_timeout);
        let admission = Admission::new(settings.require);
        let rewriting = Rewriting::new(settings.connect, self.signer);
        let policy = settings.topics.and_then(|name| self.topics.iter().find(|policy| *policy.name() == *name));
        let transport = if settings.protocol == Protocol::Quic { Transport::Datagram } else { Transport::Stream };
        let metrics = &self.state.observer.metrics;
        let topics = policy
            .map(|policy| (Arc::clone(policy), Arc::new(metrics.topic_decisions(name, policy.name(), policy.rules()))));
        let stamps = settings.stamps.into_iter().map(|(name, expression)| (name, expression.value)).collect();
        let mountpoint = settings.mountpoint.map(|it| it.value);
        let packets =
            PacketPolicy::new(topics, mountpoint, stamps, settings.limits.packets, metrics.exceeded_limits(name));
        Some(Arc::new(Listener {
            protocol: settings.protocol,
            endpoints: settings.bind.into_iter().map(|bind| Endpoint { transport, bind }).collect(),
            socket: SocketSettings {
                tcp: settings.tcp,
                validates_addresses: !settings.bans.is_empty() || settings.limits.connections.limits_addresses(),
            },
            quic: settings.quic,
            proxy: settings.proxy_protocol.as_ref().map(ProxyProtocol::new),
            addresses: AddressRules::new(&settings.allow, &settings.deny),
            connect_timeout: settings.connect_timeout,
            max_connect_size: settings.max_connect_size,
            max_client_id: settings.max_client_id,
            max_username: settings.max_username.unwrap_or(max_username),
            max_connections: settings.max_connections,
            permits: self.state.permits.get_or_insert_with(name.to_owned(), Permits::default),
            on_reject: settings.on_reject,
            tls,
            upgrade,
            bans: Bans::new(&settings.bans, name, &self.state.bans),
            authenticators,
            uses_device: admission.uses("device") || rewriting.uses("device") || packets.uses("device"),
            admission,
            rewriting,
            handshakes: Arc::clone(self.handshakes),
            rates: ConnectionLimits::new(settings.limits.connections, patience, name, &self.state.connections),
            max_session_lifetime: settings.limits.max_session_lifetime,
            packets,
            upstream: self.upstreams.iter().find(|upstream| upstream.name() == settings.upstream).cloned()?,
            metrics: self.state.observer.metrics.listener(name),
            name: name.into(),
        }))
    }

    /// The device registry. A configuration that uses device keys has at most one.
    fn registry(&self) -> Option<&Arc<Replica>> {
        self.authenticators.iter().find_map(|authenticator| authenticator.registry())
    }
}

/// The expiry times of an upstream's certificates. Warns of expired ones.
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
