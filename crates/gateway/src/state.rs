//! The state that survives reloads: counters, sessions, revocation data and bans.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::auth;
use crate::limits::{
    AllConnectionCounts, BanCounters, Descriptors, Handshakes, MemoryGuard, Pending, Permits, RecentClients,
};
use crate::observe::{Observer, RateLimit};
use crate::pki::RevocationStore;
use crate::sessions::Sessions;
use crate::tls::ListenerState;
use crate::util::machine::Machine;
use crate::util::weak_map::WeakMap;

/// The state of the process, shared by all configurations.
#[derive(Debug, Default)]
pub struct ProcessState {
    /// Metrics and the access log.
    pub observer: Arc<Observer>,
    /// What the process may have; unknown: settings are not compared with it.
    pub(crate) machine: Machine,
    /// The live sessions.
    pub sessions: Arc<Sessions>,
    pub(crate) revocation: Arc<RevocationStore>,
    pub(crate) sources: auth::Sources,
    pub(crate) bans: BanCounters,
    pub(crate) connections: AllConnectionCounts,
    pub(crate) descriptors: Descriptors,
    pub(crate) pending: Arc<Pending>,
    /// By their limits: sessions of an older configuration keep theirs.
    pub(crate) handshakes: WeakMap<(usize, usize), Handshakes>,
    pub(crate) recent_clients: RecentClients,
    pub(crate) memory: MemoryGuard,
    /// Limits how often it is logged that there are too few.
    pub(crate) too_few_descriptors: RateLimit,
    /// By the listener's name.
    pub(crate) permits: WeakMap<String, Permits>,
    /// The number of trust anchors that had expired when sessions were last evaluated.
    pub(crate) expired_anchors: AtomicUsize,
    /// By the listener's name.
    listeners: WeakMap<String, ListenerState>,
}

impl ProcessState {
    /// The state of a process that has just started, of whose machine nothing is known.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The state of a process that has just started, on `machine`: configurations are compared with what it has.
    pub fn on(machine: Machine) -> Arc<Self> {
        Arc::new(Self { machine, ..Self::default() })
    }

    /// The TLS state of the listener of this name.
    pub(crate) fn listener(&self, name: &str) -> Arc<ListenerState> {
        self.listeners.get_or_insert_with(name.to_owned(), ListenerState::default)
    }
}
