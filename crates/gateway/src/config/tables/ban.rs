//! `[[listener.ban]]`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Cidr, Location, Setting, Timeout};

/// Bans clients that connect, or fail, too often.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Ban", extend("required" = ["count"]))]
pub(super) struct BanTable {
    /// What identifies a client: `address` (of IPv6 the first 64 bits) or `client_id`.
    key: BanKey,
    /// Events that count, each separately: `connect`, `failure`. `failure` requires `key = "address"`. Default: both;
    /// with `client_id` only `connect`.
    on: Option<Setting<Vec<BanEvent>>>,
    /// Events allowed within `window`. One more starts the ban.
    count: Option<Setting<NonZeroU32>>,
    /// Period in which events are counted.
    window: Timeout,
    /// How long a ban lasts.
    duration: Timeout,
    /// Networks that are never banned.
    except: Vec<Cidr>,
}

impl Default for BanTable {
    fn default() -> Self {
        Self {
            key: BanKey::Address,
            on: None,
            count: None,
            window: Timeout(Duration::from_secs(60)),
            duration: Timeout(Duration::from_secs(5 * 60)),
            except: Vec::new(),
        }
    }
}

/// What identifies a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanKey {
    /// Its address, of IPv6 the first 64 bits. The gateway rejects a banned address before TLS.
    Address,
    /// Its client ID, once the client has authenticated.
    ClientId,
}

/// An event that counts towards a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanEvent {
    /// A connection.
    Connect,
    /// A connection that failed to authenticate or to meet `require`.
    Failure,
}

impl BanEvent {
    /// As the configuration has it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Failure => "failure",
        }
    }
}

/// When clients are banned.
#[derive(Clone, Debug)]
pub struct BanRule {
    /// Location of the table.
    pub(crate) table: Location,
    /// What identifies a client.
    pub key: BanKey,
    /// Whether connections count.
    pub connects: bool,
    /// Whether failures count.
    pub failures: bool,
    /// Events allowed within `window`. One more starts the ban.
    pub count: u32,
    /// Length of the sliding window.
    pub window: Duration,
    /// How long a ban lasts.
    pub duration: Duration,
    /// Networks that are never banned.
    pub except: Vec<Cidr>,
}

impl BanRule {
    /// Whether another rule bans the same clients for the same reason.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let of = |rule: &Self| (rule.key, rule.connects, rule.failures, rule.count, rule.window, rule.duration);
        of(self) == of(other) && self.except == other.except
    }
}

pub(super) fn validate(table: &Setting<BanTable>, document: &mut Document) -> Result<BanRule, Reported> {
    let hint = "a client is banned after more than this number of events within `window`";
    let count = document.require(table.count.as_ref(), table, "count", hint)?;
    let by_address = table.key == BanKey::Address;
    let counts = |event| table.on.as_ref().is_none_or(|on| on.value.contains(&event));
    if let Some(on) = table.on.as_ref().filter(|on| on.value.is_empty()) {
        return Err(document.error(on, "`on` is empty, so nothing would be counted"));
    }
    if let Some(on) = table.on.as_ref().filter(|on| !by_address && on.value.contains(&BanEvent::Failure)) {
        let message = "failures cannot be counted by client ID: any client could get any other one banned";
        return Err(document.error(on, Complaint::new(message).hint("key = \"address\"")));
    }
    Ok(BanRule {
        table: table.location.clone().unwrap_or_default(),
        key: table.key,
        connects: counts(BanEvent::Connect),
        failures: by_address && counts(BanEvent::Failure),
        count: count.value.get(),
        window: table.window.0,
        duration: table.duration.0,
        except: table.except.clone(),
    })
}
