//! `tcp` of `[[listener]]`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::values::{Period, Setting, Timeout};
use super::nonzero;

/// The longest time of the kernel for the first probe: `MAX_TCP_KEEPIDLE` [tcp(7)].
const MAX_KEEPALIVE: Duration = Duration::from_secs(32_767);
/// What the kernel takes in milliseconds in a signed number [tcp(7), TCP_USER_TIMEOUT].
const MAX_USER_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);
const MAX_BACKLOG: u32 = 65_535;

/// How TCP connections of clients are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Tcp")]
pub(super) struct TcpTable {
    /// Silence after which the kernel asks whether the client is still there; `0s`: never. Behind NATs and firewalls, less than
    /// their idle timeout.
    keepalive: Setting<Period>,
    /// Time after which a connection ends whose client acknowledges neither bytes nor those questions.
    user_timeout: Setting<Timeout>,
    /// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    backlog: Setting<NonZeroU32>,
}

impl Default for TcpTable {
    fn default() -> Self {
        let Tcp { keepalive, user_timeout, backlog } = Tcp::default();
        Self {
            keepalive: Setting::default_of(Period(keepalive.unwrap_or_default())),
            user_timeout: Setting::default_of(Timeout(user_timeout)),
            backlog: Setting::default_of(nonzero(backlog)),
        }
    }
}

/// How TCP connections of clients are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Silence after which the kernel probes; `None`: never.
    pub keepalive: Option<Duration>,
    /// Time after which a connection ends whose client acknowledges nothing.
    pub user_timeout: Duration,
    /// Connections that wait to be accepted.
    pub backlog: u32,
}

impl Default for Tcp {
    fn default() -> Self {
        // A client that has vanished is detected after a minute of silence and 45 s of probes.
        let (keepalive, user_timeout) = (Some(Duration::from_secs(60)), Duration::from_secs(105));
        Self { keepalive, user_timeout, backlog: MAX_BACKLOG }
    }
}

pub(super) fn validate(table: &TcpTable, document: &mut Document) -> Tcp {
    let keepalive = table.keepalive.value.0;
    if !keepalive.is_zero() && !(Duration::from_secs(1)..=MAX_KEEPALIVE).contains(&keepalive) {
        let complaint = Complaint::new("`keepalive` must be between \"1s\" and \"32767s\"");
        document.error(&table.keepalive, complaint.hint("\"0s\" turns it off"));
    }
    if table.user_timeout.value.0 > MAX_USER_TIMEOUT {
        document.error(&table.user_timeout, "`user_timeout` must be at most 24 days");
    }
    if table.backlog.get() > MAX_BACKLOG {
        document.error(&table.backlog, format!("`backlog` must be at most {MAX_BACKLOG}"));
    }
    Tcp {
        keepalive: Some(keepalive).filter(|keepalive| !keepalive.is_zero()),
        user_timeout: table.user_timeout.value.0,
        backlog: table.backlog.get(),
    }
}
