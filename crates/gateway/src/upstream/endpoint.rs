//! One address of a broker: how many sessions it has, and whether it is up.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::health::Health;
use crate::config::tables::Server;
use crate::limits::{Permit, Permits};
use crate::observe::ServerMetrics;

/// An address of a server: its label, its host, and itself.
pub(super) type Resolved = (Arc<str>, Arc<str>, Option<SocketAddr>);

/// One address of a server.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// As logs and metrics say it: `address:port`.
    pub(super) label: Arc<str>,
    /// What its certificate has to be for.
    pub(super) host: Arc<str>,
    /// `None`: the embedded broker.
    pub(super) address: Option<SocketAddr>,
    pub(super) weight: u32,
    max_connections: u32,
    pub(super) backup: bool,
    pub(super) state: Arc<EndpointState>,
}

/// What is known of an endpoint; outlives reloads and new resolutions.
#[derive(Debug)]
pub(super) struct EndpointState {
    sessions: Arc<Permits>,
    pub(super) health: Health,
    pub(super) metrics: ServerMetrics,
}

/// One session's place on an endpoint; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    state: Arc<EndpointState>,
    _permit: Permit,
}

impl Lease {
    /// The broker failed the session before it began. Counted, but nothing against the broker's health: what it makes of
    /// a CONNECT is in the client's hand, and one client must not take a broker from all the others.
    pub fn unanswered(&self) {
        self.state.metrics.unanswered.inc();
    }
}

impl EndpointState {
    pub(super) fn new(metrics: ServerMetrics) -> Arc<Self> {
        Arc::new(Self { sessions: Arc::default(), health: Health::new(), metrics })
    }
}

impl Endpoint {
    /// An address that a configured server resolves to.
    pub(super) fn new(server: &Server, (label, host, address): Resolved, state: Arc<EndpointState>) -> Arc<Self> {
        Arc::new(Self {
            label,
            host,
            address,
            weight: server.weight,
            max_connections: server.max_connections.map_or(u32::MAX, NonZeroU32::get),
            backup: server.backup,
            state,
        })
    }

    /// Takes a place for one session; `None` if it has all it may have.
    pub(super) fn lease(&self) -> Option<Lease> {
        let permit = self.state.sessions.take(self.max_connections)?;
        Some(Lease { state: Arc::clone(&self.state), _permit: permit })
    }

    /// Sessions it has.
    pub(super) fn active(&self) -> u32 {
        self.state.sessions.taken()
    }

    #[cfg(test)]
    pub(super) fn for_test(address: &str, weight: u32, backup: bool) -> Arc<Self> {
        let address: SocketAddr = address.parse().unwrap();
        Arc::new(Self {
            label: address.to_string().into(),
            host: address.ip().to_string().into(),
            address: Some(address),
            weight,
            max_connections: u32::MAX,
            backup,
            state: EndpointState::new(crate::observe::Observer::new().metrics.server("test", &address.to_string())),
        })
    }
}
