//! The path of one connection, from the accepted socket to the closed session. [`serve`] lists its phases. Enters: an
//! accepted connection, its listener and the current configuration. Leaves: a closed connection and one access log line.
//! Not here: how TLS, expressions or brokers work.

mod connect;
mod evaluate;
mod rules;
mod serve;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub(crate) use evaluate::evaluate;
pub(crate) use rules::follow_rules;
pub(crate) use serve::{reject, serve};

use crate::observe::SessionInfo;
use crate::relay::RelayThreads;
use crate::runtime::{Listener, Runtime};
use crate::state::ProcessState;

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The configuration in use.
    pub runtime: ArcSwap<Runtime>,
    /// What survives reloads.
    pub state: Arc<ProcessState>,
    /// Where established sessions go on.
    pub relays: Arc<RelayThreads>,
}

/// Counts a failed proof for bans, once for each connection.
fn count_failed_proof(listener: &Listener, info: &SessionInfo) {
    if info.fails_first() {
        listener.bans.failed(info.counted_address());
    }
}
