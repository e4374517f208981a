//! `quic` of `[[listener]]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::values::{Period, Setting, Timeout};

const MIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// How QUIC connections of clients are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Quic")]
pub(super) struct QuicTable {
    /// Silence after which the gateway asks whether the client is still there, which keeps the client's address known to NATs and
    /// firewalls; `0s`: never. Less than `idle_timeout`. Default: `60s`, or half of `idle_timeout`.
    keepalive: Option<Setting<Period>>,
    /// Time without a packet from the client after which the connection ends; `1s` to `24h`. A client may demand less.
    idle_timeout: Setting<Timeout>,
}

impl Default for QuicTable {
    fn default() -> Self {
        Self { keepalive: None, idle_timeout: Setting::default_of(Timeout(Quic::default().idle_timeout)) }
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
    let idle_timeout = table.idle_timeout.value.0;
    if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&idle_timeout) {
        document.error(&table.idle_timeout, "`idle_timeout` must be between 1s and 24h");
    }
    let default = Quic::default().keepalive.map(|keepalive| keepalive.min(idle_timeout / 2));
    let Some(setting) = &table.keepalive else { return Quic { keepalive: default, idle_timeout } };
    let keepalive = setting.value.0;
    if keepalive >= idle_timeout {
        let complaint = Complaint::new("`keepalive` must be less than `idle_timeout`");
        document.error(setting, complaint.hint("about half of it; \"0s\" turns it off"));
    }
    Quic { keepalive: Some(keepalive).filter(|keepalive| !keepalive.is_zero()), idle_timeout }
}
