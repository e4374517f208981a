//! `quic` of `[[listener]]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::values::{Period, Setting, Timeout};

const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How QUIC connections of clients are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Quic")]
pub(super) struct QuicTable {
    /// Silence after which the gateway asks whether the client is still there, which keeps the client's address known to NATs and
    /// firewalls; `0s`: never. Less than `idle_timeout`.
    keepalive: Setting<Period>,
    /// Time without a packet from the client after which the connection ends; at most `24h`. A client may demand less.
    idle_timeout: Setting<Timeout>,
}

impl Default for QuicTable {
    fn default() -> Self {
        let Quic { keepalive, idle_timeout } = Quic::default();
        Self {
            keepalive: Setting::default_of(Period(keepalive.unwrap_or_default())),
            idle_timeout: Setting::default_of(Timeout(idle_timeout)),
        }
    }
}

/// How QUIC connections of clients are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quic {
    /// Silence after which the gateway asks; `None`: never.
    pub keepalive: Option<Duration>,
    /// Time without a packet after which the connection ends.
    pub idle_timeout: Duration,
}

impl Default for Quic {
    fn default() -> Self {
        // As with TCP, a client that has vanished is detected after 105 s.
        Self { keepalive: Some(Duration::from_secs(60)), idle_timeout: Duration::from_secs(105) }
    }
}

pub(super) fn validate(table: &QuicTable, document: &mut Document) -> Quic {
    let (keepalive, idle_timeout) = (table.keepalive.value.0, table.idle_timeout.value.0);
    if idle_timeout > MAX_TIMEOUT {
        document.error(&table.idle_timeout, "`idle_timeout` must be at most 24h");
    }
    if keepalive >= idle_timeout {
        let complaint = Complaint::new("`keepalive` must be less than `idle_timeout`");
        document.error(&table.keepalive, complaint.hint("about half of it; \"0s\" turns it off"));
    }
    Quic { keepalive: Some(keepalive).filter(|keepalive| !keepalive.is_zero()), idle_timeout }
}
