//! The access log and metrics. Enters: one record per connection. Leaves: an access log line and counters when the
//! connection ends, and gauges while it is open.

mod access_log;
mod decisions;
mod escape;
mod exceeded;
mod info;
mod line_queue;
mod metrics;
mod overload;
mod rate_limit;
mod record;

pub use access_log::{AccessLog, Format};
pub(crate) use decisions::Failure;
pub use decisions::{Action, Decisions};
pub use exceeded::{ExceededLimits, Limit};
pub use info::{ConnectInfo, IdentityInfo, SessionInfo, ShownIdentity, TlsInfo, UpstreamInfo};
pub use line_queue::{LineQueue, LineWriter, LostLines};
pub(crate) use metrics::ServiceMetrics;
pub use metrics::{Expiry, ListenerMetrics, Metrics, ServerMetrics};
pub(crate) use overload::Overload;
pub(crate) use rate_limit::RateLimit;
pub use record::Record;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

/// The metrics and access log of the process. Survives reloads, so that a long session writes its line to the access log
/// that is configured when it ends.
#[derive(Debug, Default)]
pub struct Observer {
    /// Counters and gauges.
    pub metrics: Metrics,
    /// The access log in use.
    pub access_log: ArcSwapOption<AccessLog>,
    /// What clients are rejected for because there is no room for them.
    pub(crate) overload: Overload,
    /// Counts the dropped lines of the gateway's own log; set when that log starts.
    pub log_dropped: OnceLock<LostLines>,
}

impl Observer {
    /// An observer without an access log.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}
