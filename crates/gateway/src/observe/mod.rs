//! What operators see: one record for each connection, turned into an access line and counters when the connection
//! ends, and the gauges in between.

mod access_log;
mod info;
mod metrics;
mod record;

pub use access_log::{AccessLog, Format};
pub use info::{ConnectInfo, IdentityInfo, SessionInfo, TlsInfo, Transport, UpstreamInfo};
pub use metrics::{Expiry, ListenerMetrics, Metrics, ServerMetrics};
pub use record::Record;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tracing_appender::non_blocking::ErrorCounter;

/// The process's one set of instruments. Outlives reloads, so that a session of weeks writes its line to the log of
/// the day it ends.
#[derive(Debug, Default)]
pub struct Observer {
    /// Counters and gauges.
    pub metrics: Metrics,
    /// Where access lines go at present.
    pub access_log: ArcSwapOption<AccessLog>,
    /// Counts the lines of the gateway's own log that were dropped, once somebody has started that log.
    pub log_dropped: OnceLock<ErrorCounter>,
}

impl Observer {
    /// An observer without an access log.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}
