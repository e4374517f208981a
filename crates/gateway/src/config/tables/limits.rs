//! `[listener.limits]`.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::explain::HINT;
use super::super::values::{ByteSize, Setting, Timeout};

/// MQTT counts keep-alive intervals in seconds, in 16 bits [MQTT-3.1.2.10].
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(u16::MAX as u64);
/// A client that may send nothing larger can still subscribe and publish.
const MIN_PACKET_SIZE: usize = 64;

/// Limits on what clients connect, send and subscribe to. Each is off unless it is set.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Limits")]
pub(super) struct LimitsTable {
    /// Maximum number of concurrent connections of one address; of IPv6, of the first 64 bits. Further ones are closed
    /// before TLS, on plain listeners with CONNACK 0x97 (before MQTT 5: 3).
    connections_per_address: Option<NonZeroU32>,
    /// New connections of the listener: `"500/s"`, or `{ rate = "500/s", burst = 1000 }`. Those over it wait. They are closed
    /// if they wait longer than `handshake_timeout`, or if as many wait already as can be served in that time.
    connect_rate: Option<Setting<CountRate>>,
    /// New connections of one address. Those over it are closed as by `connections_per_address`.
    connect_rate_per_address: Option<Setting<CountRate>>,
    /// Messages (PUBLISH) of one client: `"100/s"`, or `{ rate = "100/s", burst = 200 }`. The short form has a burst of one
    /// second's worth.
    message_rate: Option<Setting<CountRate>>,
    /// Bytes of one client: `"1MiB/s"`, or `{ rate = "1MiB/s", burst = "4MiB" }`.
    byte_rate: Option<Setting<ByteRate>>,
    /// What happens over `message_rate` and `byte_rate`: `delay` (the gateway reads from the client no faster) or
    /// `disconnect` (DISCONNECT 0x96). Default: `delay`.
    on_exceed: Option<Setting<OnExceed>>,
    /// Largest packet that clients may send, in bytes, fixed header included; MQTT 5 clients are told. Larger ones end the
    /// session with DISCONNECT 0x95.
    max_packet_size: Option<Setting<ByteSize>>,
    /// Maximum number of subscriptions of one session. Further ones are answered with 0x97 (before MQTT 5: 0x80).
    max_subscriptions: Option<NonZeroU32>,
    /// Maximum number of levels of topic names and filters. More are denied with 0x90, in SUBACK 0x8F (0x80).
    max_topic_levels: Option<NonZeroU32>,
    /// Longest keep-alive interval: lowered in CONNECT, and MQTT 5 clients are told, also those that turned it off. The gateway
    /// ends sessions that are silent for one and a half times the interval. Before MQTT 5, the client's own value counts.
    max_keep_alive: Option<Setting<Timeout>>,
    /// Longest session expiry interval of MQTT 5: lowered in CONNECT and DISCONNECT, and clients are told.
    max_session_expiry: Option<Setting<Timeout>>,
    /// Longest time that a session stays connected. Then it ends with DISCONNECT 0xA0.
    max_session_lifetime: Option<Timeout>,
}

/// What happens to a client that sends too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExceed {
    /// The gateway reads from it no faster.
    #[default]
    Delay,
    /// The session ends.
    Disconnect,
}

/// A rate of events, such as 600 in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The number of events in `per`.
    pub amount: u64,
    /// The period.
    pub per: Duration,
    /// The number of events that may come at once.
    pub burst: u64,
}

/// A rate of connections or messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountRate(pub(super) Rate);

/// A rate of bytes.
#[derive(Clone, Copy, Debug)]
struct ByteRate(Rate);

/// `[listener.limits]`, validated.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Those of connections.
    pub connections: ConnectionLimits,
    /// Those of packets after CONNECT.
    pub packets: PacketLimits,
    /// How long a session stays connected; `None`: as long as it lasts.
    pub max_session_lifetime: Option<Duration>,
}

/// Limits of connections. `None`: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionLimits {
    /// Concurrent connections of one address.
    pub per_address: Option<u32>,
    /// New connections of the listener.
    pub rate: Option<Rate>,
    /// New connections of one address.
    pub rate_per_address: Option<Rate>,
}

/// Limits of what one client sends after CONNECT. `None`: no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketLimits {
    /// PUBLISH packets.
    pub message_rate: Option<Rate>,
    /// Bytes.
    pub byte_rate: Option<Rate>,
    /// What happens to a client over one of the two.
    pub on_exceed: OnExceed,
    /// The largest packet, in bytes, fixed header included.
    pub max_packet_size: Option<u32>,
    /// The number of subscriptions of a session.
    pub max_subscriptions: Option<u32>,
    /// The number of levels of topic names and filters.
    pub max_topic_levels: Option<u32>,
    /// The longest keep-alive interval, in seconds.
    pub max_keep_alive: Option<u16>,
    /// The longest session expiry interval, in seconds.
    pub max_session_expiry: Option<u32>,
}

impl PacketLimits {
    /// Whether there is one, so that the gateway has to look at packets.
    pub const fn is_any(&self) -> bool {
        self.message_rate.is_some()
            || self.byte_rate.is_some()
            || self.max_packet_size.is_some()
            || self.max_subscriptions.is_some()
            || self.max_topic_levels.is_some()
            || self.max_keep_alive.is_some()
            || self.max_session_expiry.is_some()
    }
}

pub(super) fn validate(table: &LimitsTable, document: &mut Document) -> Limits {
    if let Some(size) = table.max_packet_size.as_ref().filter(|size| size.value.0 < MIN_PACKET_SIZE) {
        document.error(size, format!("`max_packet_size` must be at least {MIN_PACKET_SIZE} bytes"));
    }
    for (key, period, max) in [
        ("max_keep_alive", &table.max_keep_alive, MAX_KEEP_ALIVE),
        ("max_session_expiry", &table.max_session_expiry, Duration::from_secs(u64::from(u32::MAX) - 1)),
    ] {
        let Some(period) = period else { continue };
        if period.value.0.subsec_nanos() > 0 || period.value.0.is_zero() {
            document
                .error(period, Complaint::new(format!("`{key}` must be whole seconds, at least \"1s\", as in MQTT")));
        } else if period.value.0 > max {
            let longest = humantime::format_duration(max);
            let complaint = Complaint::new(format!("`{key}` must be at most \"{longest}\", the longest of MQTT"));
            document.error(period, complaint.hint("without a limit, leave the key out"));
        }
    }
    if let Some(on_exceed) = &table.on_exceed
        && table.message_rate.is_none()
        && table.byte_rate.is_none()
        && !["message_rate", "byte_rate"].iter().any(|key| document.is_unread(key, on_exceed))
    {
        let message = "`on_exceed` has no effect without `message_rate` or `byte_rate`";
        document.warning(on_exceed, Complaint::new(message).hint("message_rate = \"100/s\""));
    }
    let seconds = |period: &Option<Setting<Timeout>>| period.as_ref().map(|period| period.value.0.as_secs());
    let count = |rate: &Option<Setting<CountRate>>| rate.as_ref().map(|rate| rate.value.0);
    let connections = ConnectionLimits {
        per_address: table.connections_per_address.map(NonZeroU32::get),
        rate: count(&table.connect_rate),
        rate_per_address: count(&table.connect_rate_per_address),
    };
    let packets = PacketLimits {
        message_rate: count(&table.message_rate),
        byte_rate: table.byte_rate.as_ref().map(|rate| rate.value.0),
        on_exceed: table.on_exceed.as_ref().map(|it| it.value).unwrap_or_default(),
        max_packet_size: table.max_packet_size.as_ref().map(|size| u32::try_from(size.value.0).unwrap_or(u32::MAX)),
        max_subscriptions: table.max_subscriptions.map(NonZeroU32::get),
        max_topic_levels: table.max_topic_levels.map(NonZeroU32::get),
        max_keep_alive: seconds(&table.max_keep_alive).map(|seconds| u16::try_from(seconds).unwrap_or(u16::MAX)),
        max_session_expiry: seconds(&table.max_session_expiry).map(|it| u32::try_from(it).unwrap_or(u32::MAX - 1)),
    };
    Limits { connections, packets, max_session_lifetime: table.max_session_lifetime.map(|period| period.0) }
}

/// Parses an amount: a number, or a number of bytes.
type Amount = fn(&str) -> Option<u64>;

fn count(text: &str) -> Option<u64> {
    text.replace('_', "").parse().ok()
}

fn bytes(text: &str) -> Option<u64> {
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

/// `example`: the notation of such a rate, for errors.
fn parse(value: toml::Value, amount: Amount, example: &str) -> Result<Rate, String> {
    let (text, burst) = match value {
        toml::Value::String(text) => (text, None),
        toml::Value::Table(mut table) => {
            let rate = table.remove("rate");
            let burst = table.remove("burst");
            if let Some(other) = table.keys().next() {
                return Err(format!("unknown key `{other}`: a rate has `rate` and `burst`"));
            }
            let Some(toml::Value::String(text)) = rate else {
                return Err(format!("`rate` is missing: {{ rate = \"{example}\", burst = ... }}"));
            };
            let burst = burst.ok_or_else(|| format!("`burst` is missing: without it, write \"{text}\" alone"))?;
            let burst = match burst {
                toml::Value::Integer(number) => u64::try_from(number).ok(),
                toml::Value::String(text) => amount(&text),
                _ => None,
            };
            (text, Some(burst.filter(|burst| *burst > 0).ok_or("`burst` must be a number greater than 0")?))
        }
        _ => return Err(format!("expected a rate{HINT}write \"{example}\"")),
    };
    let not_a_rate =
        || format!("`{text}` is not a rate{HINT}write \"{example}\"; `/s`, `/m` and `/h`: per second, minute and hour");
    let (number, unit) = text.split_once('/').ok_or_else(not_a_rate)?;
    let per = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => return Err(not_a_rate()),
    };
    let number = amount(number.trim()).ok_or_else(not_a_rate)?;
    if number == 0 {
        return Err(format!("`{text}`: a rate is greater than 0{HINT}for no limit, leave the key out"));
    }
    Ok(Rate { amount: number, per: Duration::from_secs(per), burst: burst.unwrap_or((number / per).max(1)) })
}

macro_rules! rate {
    ($type:ident, $amount:expr, $example:literal, $description:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse(toml::Value::deserialize(deserializer)?, $amount, $example).map(Self).map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["string", "object"], "description": $description })
            }
        }
    };
}

rate!(CountRate, count, "100/s", "a rate: \"100/s\", \"10/m\", or { rate = \"100/s\", burst = 200 }");
rate!(ByteRate, bytes, "1MiB/s", "a rate: \"64KiB/s\", \"1MiB/s\", or { rate = \"1MiB/s\", burst = \"4MiB\" }");

#[cfg(test)]
mod tests {
    use super::*;

    fn count_rate(value: &str) -> Result<Rate, String> {
        let table: toml::Table = format!("r = {value}").parse().unwrap();
        parse(table["r"].clone(), count, "100/s")
    }

    #[test]
    fn a_rate_has_an_amount_a_unit_and_perhaps_a_burst() {
        let rate = |amount, per, burst| Ok(Rate { amount, per: Duration::from_secs(per), burst });
        assert_eq!(count_rate("\"100/s\""), rate(100, 1, 100));
        assert_eq!(count_rate("\"5/m\""), rate(5, 60, 1));
        assert_eq!(count_rate("\"600/m\""), rate(600, 60, 10));
        assert_eq!(count_rate("{ rate = \"100/s\", burst = 200 }"), rate(100, 1, 200));
        assert_eq!(parse("1MiB/s".into(), bytes, "1MiB/s"), rate(1 << 20, 1, 1 << 20));
        for wrong in [
            "\"100\"",
            "\"0/s\"",
            "\"x/s\"",
            "\"100/d\"",
            "100",
            "{ rate = \"1/s\" }",
            "{ burst = 1 }",
            "{ rate = \"1/s\", burst = 0 }",
            "\"-1/s\"",
        ] {
            assert!(count_rate(wrong).is_err(), "{wrong}");
        }
    }
}
