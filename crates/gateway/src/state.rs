//! What survives a reload: what was seen and learned under one configuration is of use under the next.

use std::sync::Arc;

use crate::auth;
use crate::limits::Memories;
use crate::observe::Observer;
use crate::pki::RevocationStore;
use crate::session::index::Sessions;
use crate::tls::ResumptionStore;
use crate::util::weak_map::WeakMap;

/// The state of the process, shared by all configurations.
#[derive(Debug, Default)]
pub struct ProcessState {
    /// Counters, and the access log.
    pub observer: Arc<Observer>,
    /// Who is connected.
    pub sessions: Arc<Sessions>,
    pub(crate) revocation: Arc<RevocationStore>,
    pub(crate) sources: auth::Sources,
    pub(crate) bans: Memories,
    /// By the listener's name.
    resumption_stores: WeakMap<String, ResumptionStore>,
}

impl ProcessState {
    /// Of a process that has just started.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a listener's clients may resume.
    pub(crate) fn resumption_store(&self, listener: &str) -> Arc<ResumptionStore> {
        self.resumption_stores.get_or_insert_with(listener.to_owned(), ResumptionStore::default)
    }
}
