//! One address of a server: its sessions, health and metrics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::health::Health;
use super::sources::{SourcePermit, Sources};
use crate::config::tables::{Rate, Server, Service};
use crate::limits::{FairSlots, Paced, Permit, Permits, Tokens};
use crate::observe::ServerMetrics;
use crate::util::crypto::sha256;

/// The limit of sessions that wait for one server, a quarter of them of one network.
const MAX_WAITING: usize = 100_000;

/// An address of a server: label, host and target.
pub(super) type Resolved = (Arc<str>, Arc<str>, Target);

/// What a connection is opened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The embedded broker.
    Embedded,
    /// An IP address and port.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix(Arc<Path>),
}

impl Target {
    /// The address on the hash ring, which takes IP addresses only. Gateways with the same paths have the same ring.
    pub(super) fn on_ring(&self) -> SocketAddr {
        match self {
            // There is at most one.
            Self::Embedded => (Ipv4Addr::UNSPECIFIED, 0).into(),
            Self::Ip(address) => *address,
            Self::Unix(path) => {
                let digest = sha256(path.as_os_str().as_encoded_bytes());
                let (ip, _) = digest.split_first_chunk().expect("SHA-256 is longer than an address");
                // No server has a port 0.
                (Ipv6Addr::from_octets(*ip), 0).into()
            }
        }
    }
}

/// One address of a server.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The label in logs and metrics: `address:port`.
    pub(super) label: Arc<str>,
    /// The name that its certificate has to be valid for.
    pub(super) host: Arc<str>,
    pub(super) target: Target,
    pub(super) weight: u32,
    max_connections: u32,
    pub(super) backup: bool,
    pub(super) service: Service,
    pub(super) state: Arc<EndpointState>,
}

/// The state of an endpoint. Survives reloads and DNS changes.
#[derive(Debug)]
pub(super) struct EndpointState {
    sessions: Arc<Permits>,
    /// The sessions that wait for `max_connect_rate`.
    waiting: Paced,
    tokens: Tokens,
    pub(super) sources: Arc<Sources>,
    pub(super) health: Health,
    pub(super) metrics: ServerMetrics,
}

/// A session's permit on an endpoint, released when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    state: Arc<EndpointState>,
    _permit: Permit,
    /// Counts its connection from a local address.
    _source: Option<Box<SourcePermit>>,
}

impl Lease {
    /// Counts the session's connection from its local address.
    pub(super) fn from(self, source: Option<SourcePermit>) -> Self {
        Self { _source: source.map(Box::new), ..self }
    }

    /// Counts that the broker did not answer CONNECT. It does not affect the broker's health: a client could otherwise mark
    /// the broker as down for all others by sending a CONNECT that the broker does not answer.
    pub(crate) fn unanswered(&self) {
        self.state.metrics.unanswered.inc();
    }
}

impl EndpointState {
    pub(super) fn new(metrics: ServerMetrics) -> Arc<Self> {
        let waiting = Paced::new(FairSlots::new(1, MAX_WAITING));
        Arc::new(Self {
            sessions: Arc::default(),
            waiting,
            tokens: Tokens::default(),
            sources: Arc::default(),
            health: Health::new(),
            metrics,
        })
    }
}

impl Endpoint {
    /// An address that a configured server resolves to.
    pub(super) fn new(server: &Server, (label, host, target): Resolved, state: Arc<EndpointState>) -> Arc<Self> {
        Arc::new(Self {
            label,
            host,
            target,
            weight: server.weight,
            max_connections: server.max_connections.map_or(u32::MAX, NonZeroU32::get),
            backup: server.backup,
            service: server.service,
            state,
        })
    }

    /// Takes a permit for one session; `None` if the server has `max_connections`.
    pub(super) fn lease(&self) -> Option<Lease> {
        let permit = self.state.sessions.take(self.max_connections)?;
        Some(Lease { state: Arc::clone(&self.state), _permit: permit, _source: None })
    }

    /// Whether the server has `max_connections`.
    pub(super) fn is_full(&self) -> bool {
        self.active() >= self.max_connections
    }

    /// Waits until the server may be sent another CONNECT, or `deadline`. Returns whether it may.
    pub(super) async fn may_connect(&self, rate: Rate, address: IpAddr, deadline: Instant) -> bool {
        let EndpointState { waiting, tokens, .. } = &*self.state;
        waiting.wait(tokens, rate, address, deadline).await.is_ok()
    }

    /// Applies `max_connect_rate` to those that wait since before a reload, too; `None`: nobody waits any more.
    pub(super) fn set_connect_rate(&self, rate: Option<Rate>) {
        self.state.tokens.set_rate(rate);
    }

    /// Whether it may be given new sessions.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.service == Service::Active && self.state.health.is_up(now)
    }

    /// The number of sessions.
    pub(super) fn active(&self) -> u32 {
        self.state.sessions.taken()
    }

    #[cfg(test)]
    pub(super) fn for_test(address: &str, weight: u32, backup: bool) -> Arc<Self> {
        let address: SocketAddr = address.parse().unwrap();
        Arc::new(Self {
            label: address.to_string().into(),
            host: address.ip().to_string().into(),
            target: Target::Ip(address),
            weight,
            max_connections: u32::MAX,
            backup,
            service: Service::Active,
            state: EndpointState::new(crate::observe::Observer::new().metrics.server("test", &address.to_string())),
        })
    }
}
