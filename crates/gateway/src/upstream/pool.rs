//! An upstream: its configured servers, the endpoints that their names resolve to, and the state of each endpoint. Enters:
//! settings and DNS answers. Leaves: the endpoints to try for a session.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::balance::{Balancer, Choice};
use super::endpoint::{Endpoint, EndpointState, Resolved, Target};
use super::health::Check;
use crate::config::tables::{
    self, Balance, PassiveHealth, ProxyVersion, Rate, Server, ServerAddress as Address, Service,
};
use crate::config::{Complaint, Diagnostics, Reported};
use crate::expr::Expression;
use crate::observe::{Observer, RateLimit};
use crate::tls::ClientTls;
use crate::util::machine::Machine;

/// How long the first lookup of all names may take at start and reload. Later lookups run in the background.
const FIRST_RESOLUTION: Duration = Duration::from_secs(5);

/// A group of brokers, compiled.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(super) name: Arc<str>,
    pub(super) servers: Vec<Server>,
    pub(super) resolve_interval: Duration,
    drain_pace: u32,
    balance: Balance,
    /// `None`: the client ID that is sent to the broker.
    hash_key: Option<Expression>,
    pub(super) connect_timeout: Duration,
    pub(super) max_connect_rate: Option<Rate>,
    pub(super) check: Check,
    limits: PassiveHealth,
    /// Local addresses of connections; empty: the system chooses.
    pub(super) sources: Vec<IpAddr>,
    pub(super) proxy_protocol: Option<ProxyVersion>,
    pub(super) tls: Option<ClientTls>,
    endpoints: ArcSwap<Balancer>,
    /// The state of every address with a session or in `endpoints`, so that an address that leaves DNS and returns keeps its
    /// state.
    states: Mutex<HashMap<Arc<str>, Weak<EndpointState>>>,
    /// Names whose last lookup failed.
    unresolved: Mutex<HashSet<Arc<str>>>,
    is_retired: AtomicBool,
    /// Limits how often the gateway's own shortage is logged.
    pub(super) shortages: RateLimit,
    /// The same for its approach.
    pub(super) few_ports: RateLimit,
    /// How many local ports an address has for one server; `None`: unknown.
    pub(super) local_ports: Option<u64>,
}

impl Upstream {
    /// Reads the files of the settings. Nothing is resolved or connected. `machine`: where the gateway runs.
    ///
    /// # Errors
    /// A file cannot be used; the problem was reported.
    pub(crate) fn open(
        settings: tables::Upstream,
        machine: &Machine,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let tls = settings.tls.as_ref().map(|tls| ClientTls::open(tls, diagnostics)).transpose();
        let sources = open_sources(&settings, diagnostics);
        let (tls, sources) = (tls?, sources?);
        Ok(Self {
            servers: settings.servers,
            resolve_interval: settings.resolve_interval,
            drain_pace: settings.drain_pace,
            balance: settings.balance,
            hash_key: settings.hash_key.map(|key| key.value),
            connect_timeout: settings.connect_timeout,
            max_connect_rate: settings.max_connect_rate,
            check: Check::new(settings.health),
            limits: settings.passive,
            sources,
            proxy_protocol: settings.proxy_protocol,
            tls,
            endpoints: ArcSwap::default(),
            states: Mutex::default(),
            unresolved: Mutex::default(),
            is_retired: AtomicBool::new(false),
            shortages: RateLimit::default(),
            few_ports: RateLimit::default(),
            local_ports: machine.local_ports,
            name: settings.name.into(),
        })
    }

    /// The name in the configuration.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number of addresses and ports of its servers that take sessions, times the local addresses for each. `None`: names resolve to any number of them, the embedded
    /// broker and Unix sockets have none, and servers with `max_connections` have another limit.
    pub(crate) fn address_count(&self) -> Option<u64> {
        let address = |server: &Server| match &server.address {
            Address::Socket(address) if server.max_connections.is_none() => Some(*address),
            _ => None,
        };
        let active = self.servers.iter().filter(|server| server.service == Service::Active && !server.backup);
        let addresses: Option<HashSet<_>> = active.map(address).collect();
        addresses.map(|addresses| (addresses.len() * self.sources.len().max(1)) as u64).filter(|count| *count > 0)
    }

    /// The file descriptors that health checks and lookups of names may need at once.
    pub(crate) const fn descriptors(&self) -> u64 {
        2 * self.servers.len() as u64
    }

    /// The expression whose value is hashed; `None` for the client ID.
    pub(crate) const fn hash_key(&self) -> Option<&Expression> {
        self.hash_key.as_ref()
    }

    /// Resolves all names for the first time. Endpoints that `previous` also has keep their state.
    pub(crate) async fn activate(&self, previous: Option<&Upstream>, observer: &Observer) {
        let known = previous.map(|previous| previous.endpoints.load_full());
        if let Some(previous) = previous {
            self.states().clone_from(&previous.states());
        }
        self.resolve(known.as_deref(), observer, FIRST_RESOLUTION).await;
        for endpoint in self.endpoints.load().all() {
            endpoint.set_connect_rate(self.max_connect_rate);
            let (upstream, server, sessions) = (self.name(), &*endpoint.label, endpoint.active());
            match endpoint.service {
                Service::Active => {}
                Service::Drain => tracing::info!(upstream, server, sessions, "server drains: its sessions end"),
                Service::Down => tracing::info!(upstream, server, sessions, "server takes no new sessions"),
            }
        }
    }

    /// Records that another configuration is in use: lookups and checks still in flight for this one no longer change the
    /// shared state.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether another configuration is in use.
    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// The current endpoints.
    pub(super) fn endpoints(&self) -> Arc<Balancer> {
        self.endpoints.load_full()
    }

    /// The endpoints to try for a session, best first.
    pub(super) fn candidates(&self, choice: Choice<'_>) -> Vec<Arc<Endpoint>> {
        self.endpoints.load().candidates(choice, Instant::now())
    }

    /// Whether at least one server is up.
    pub(crate) fn is_up(&self) -> bool {
        let now = Instant::now();
        self.endpoints.load().all().iter().any(|endpoint| endpoint.is_up(now))
    }

    /// The labels of the servers whose sessions end, and how many may end in a second.
    pub(crate) fn draining(&self) -> (Vec<Arc<str>>, u32) {
        let endpoints = self.endpoints.load();
        let draining = endpoints.all().iter().filter(|endpoint| endpoint.service == Service::Drain);
        (draining.map(|endpoint| Arc::clone(&endpoint.label)).collect(), self.drain_pace)
    }

    /// Updates the gauges of all endpoints.
    pub(crate) fn refresh_metrics(&self) {
        let now = Instant::now();
        for endpoint in self.endpoints.load().all() {
            let state = &endpoint.state;
            state.metrics.up.set(endpoint.is_up(now).into());
            state.metrics.active.set(endpoint.active().into());
            state.metrics.set_local_ports(&state.sources.counts());
        }
    }

    /// Resolves all names concurrently and updates the endpoints. Returns whether every name has an address.
    pub(super) async fn resolve(&self, known: Option<&Balancer>, observer: &Observer, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let lookups = self.servers.iter().map(|server| self.addresses(server, known, deadline));
        let resolved = futures_util::future::join_all(lookups).await;
        if self.is_retired() {
            return true;
        }
        let is_complete = resolved.iter().all(|addresses| !addresses.is_empty());
        let endpoints = self.endpoints_of(resolved, observer);
        // Keep the hash ring if the endpoints are the same: building one takes a few hundred hashes per server.
        let current = self.endpoints.load();
        if current.all().is_empty() || !current.is_of(&endpoints, self.balance) {
            self.endpoints.store(Arc::new(Balancer::new(self.balance, endpoints)));
        }
        is_complete
    }

    fn endpoints_of(&self, resolved: Vec<Vec<Resolved>>, observer: &Observer) -> Vec<Arc<Endpoint>> {
        let mut states = self.states();
        states.retain(|_, state| state.strong_count() > 0);
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for (server, addresses) in self.servers.iter().zip(resolved) {
            for resolved in addresses {
                let label = &resolved.0;
                // Two names may resolve to the same address.
                if endpoints.iter().any(|endpoint| endpoint.label == *label) {
                    continue;
                }
                let state = states.get(label).and_then(Weak::upgrade);
                let state = state.unwrap_or_else(|| EndpointState::new(observer.metrics.server(&self.name, label)));
                states.insert(Arc::clone(label), Arc::downgrade(&state));
                state.health.configure(self.limits, self.check.is_off());
                endpoints.push(Endpoint::new(server, resolved, state));
            }
        }
        endpoints
    }

    fn states(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<EndpointState>>> {
        self.states.lock()
    }

    /// The addresses of a server. A name that cannot be resolved keeps its previous addresses.
    async fn addresses(&self, server: &Server, known: Option<&Balancer>, deadline: Instant) -> Vec<Resolved> {
        let (name, port) = match &server.address {
            Address::Embedded => return vec![("embedded".into(), "embedded".into(), Target::Embedded)],
            Address::Socket(address) => {
                return vec![(address.to_string().into(), address.ip().to_string().into(), Target::Ip(*address))];
            }
            Address::Unix(path) => {
                let label: Arc<str> = format!("unix:{}", path.display()).into();
                return vec![(Arc::clone(&label), label, Target::Unix(Arc::clone(path)))];
            }
            Address::Name(name, port) => (name, *port),
        };
        let lookup = tokio::time::timeout_at(deadline, tokio::net::lookup_host((&**name, port)));
        let found = lookup.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.log_lookup(name, found.as_ref().err());
        let found: Vec<SocketAddr> = found.map_or_else(|_| Vec::new(), Iterator::collect);
        if found.is_empty() {
            let of_name = |endpoint: &&Arc<Endpoint>| {
                endpoint.host == *name && matches!(endpoint.target, Target::Ip(address) if address.port() == port)
            };
            let known = known.iter().flat_map(|known| known.all()).filter(of_name);
            return known.map(|known| (Arc::clone(&known.label), Arc::clone(name), known.target.clone())).collect();
        }
        found.into_iter().map(|address| (address.to_string().into(), Arc::clone(name), Target::Ip(address))).collect()
    }

    /// Logs that a name can no longer be resolved, or that it can again: once, since lookups are repeated every second.
    fn log_lookup(&self, name: &Arc<str>, error: Option<&io::Error>) {
        let mut unresolved = self.unresolved.lock();
        match error {
            Some(error) if unresolved.insert(Arc::clone(name)) => {
                tracing::warn!(upstream = &*self.name, name = &**name, %error, "cannot resolve broker name");
            }
            None if unresolved.remove(name) => {
                tracing::info!(upstream = &*self.name, name = &**name, "broker name resolved");
            }
            _ => {}
        }
    }
}

/// The local addresses of connections, which have to be addresses of this machine.
fn open_sources(settings: &tables::Upstream, diagnostics: &mut Diagnostics) -> Result<Vec<IpAddr>, Reported> {
    let mut opened = Ok(Vec::new());
    for source in &settings.source_addresses {
        match UdpSocket::bind((source.value, 0)) {
            Ok(_) => {
                if let Ok(addresses) = &mut opened {
                    addresses.push(source.value);
                }
            }
            Err(error) => {
                let complaint = Complaint::new(format!("cannot use `{}` as a local address: {error}", source.value));
                opened =
                    Err(diagnostics.error(source, complaint.hint("`ip address` lists the addresses of this machine")));
            }
        }
    }
    let lacks = |address: &SocketAddr| {
        !settings.source_addresses.is_empty()
            && !settings.source_addresses.iter().any(|source| source.value.is_ipv4() == address.is_ipv4())
    };
    let servers = settings.servers.iter().filter_map(|server| match &server.address {
        Address::Socket(address) => Some(address),
        _ => None,
    });
    if let (Some(server), Some(first)) = (servers.copied().find(|it| lacks(it)), settings.source_addresses.first()) {
        let family = if server.is_ipv4() { "IPv4" } else { "IPv6" };
        let complaint = Complaint::new(format!("no source address is of {family}, as the server {server} is"));
        return Err(diagnostics.error(first, complaint));
    }
    opened
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn upstream(servers: &str) -> Upstream {
        let text = format!("[[upstream]]\nname = \"brokers\"\nservers = {servers}\n");
        let (settings, mut diagnostics) = crate::config::parse(Path::new("p.toml"), &text);
        let settings = settings.upstreams.into_iter().next().unwrap();
        Upstream::open(settings, &Machine::default(), &mut diagnostics).unwrap()
    }

    /// Sets the endpoints as if the only server's name had resolved to these addresses.
    fn resolved(addresses: &[&str]) -> Vec<Vec<Resolved>> {
        let resolved =
            |address: &&str| ((*address).into(), "broker.invalid".into(), Target::Ip(address.parse().unwrap()));
        vec![addresses.iter().map(resolved).collect()]
    }

    fn take(upstream: &Upstream, addresses: &[&str], observer: &Observer) {
        let endpoints = upstream.endpoints_of(resolved(addresses), observer);
        upstream.endpoints.store(Arc::new(Balancer::new(upstream.balance, endpoints)));
    }

    fn labels(upstream: &Upstream) -> Vec<Arc<str>> {
        upstream.endpoints().all().iter().map(|endpoint| Arc::clone(&endpoint.label)).collect()
    }

    #[test]
    fn a_new_answer_changes_the_servers_and_an_address_that_returns_is_remembered() {
        let (upstream, observer) = (upstream("[\"broker.invalid:1883\"]"), Observer::new());
        take(&upstream, &["192.0.2.1:1883", "192.0.2.2:1883"], &observer);
        let lease = upstream.endpoints().all()[0].lease().unwrap();
        take(&upstream, &["192.0.2.2:1883", "192.0.2.3:1883"], &observer);
        assert_eq!(labels(&upstream), ["192.0.2.2:1883".into(), "192.0.2.3:1883".into()]);
        assert!(observer.metrics.render().contains("server=\"192.0.2.1:1883\""), "a session is still on it");
        take(&upstream, &["192.0.2.1:1883"], &observer);
        assert_eq!(upstream.endpoints().all()[0].active(), 1, "its session is still counted");
        assert!(!observer.metrics.render().contains("server=\"192.0.2.3:1883\""), "no session uses it any more");
        drop(lease);
        assert_eq!(upstream.endpoints().all()[0].active(), 0);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_keeps_its_addresses_and_its_port() {
        let servers = "[\"broker.invalid:1883\", { address = \"broker.invalid:1884\", backup = true }]";
        let (upstream, observer) = (upstream(servers), Observer::new());
        let known = [resolved(&["192.0.2.1:1883"]), resolved(&["192.0.2.1:1884"])].concat();
        let endpoints = upstream.endpoints_of(known, &observer);
        upstream.endpoints.store(Arc::new(Balancer::new(upstream.balance, endpoints)));
        let known = upstream.endpoints();
        upstream.resolve(Some(&known), &observer, Duration::from_millis(500)).await;
        assert_eq!(labels(&upstream), ["192.0.2.1:1883".into(), "192.0.2.1:1884".into()]);
        let endpoints = upstream.endpoints();
        assert_eq!(endpoints.all().iter().map(|endpoint| endpoint.backup).collect::<Vec<_>>(), [false, true]);
    }

    #[tokio::test]
    async fn a_retired_upstream_changes_nothing_any_more() {
        let (upstream, observer) = (upstream("[\"127.0.0.1:1883\"]"), Observer::new());
        upstream.retire();
        upstream.resolve(None, &observer, Duration::from_millis(500)).await;
        assert!(labels(&upstream).is_empty());
    }
}
