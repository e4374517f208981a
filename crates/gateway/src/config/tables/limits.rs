//! `[listener.limits]`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::values::{ByteSize, Setting, Timeout};
use super::rates::{self, ByteRate, CountRate, Rate};

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

impl ConnectionLimits {
    /// Whether anything is counted for addresses.
    pub const fn limits_addresses(&self) -> bool {
        self.per_address.is_some() || self.rate_per_address.is_some()
    }
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
    let mut count = |rate: &Option<Setting<CountRate>>| rates::validate(rate.as_ref(), document);
    let connections = ConnectionLimits {
        per_address: table.connections_per_address.map(NonZeroU32::get),
        rate: count(&table.connect_rate),
        rate_per_address: count(&table.connect_rate_per_address),
    };
    let packets = PacketLimits {
        message_rate: count(&table.message_rate),
        byte_rate: rates::validate(table.byte_rate.as_ref(), document),
        on_exceed: table.on_exceed.as_ref().map(|it| it.value).unwrap_or_default(),
        max_packet_size: table.max_packet_size.as_ref().map(|size| u32::try_from(size.value.0).unwrap_or(u32::MAX)),
        max_subscriptions: table.max_subscriptions.map(NonZeroU32::get),
        max_topic_levels: table.max_topic_levels.map(NonZeroU32::get),
        max_keep_alive: seconds(&table.max_keep_alive).map(|seconds| u16::try_from(seconds).unwrap_or(u16::MAX)),
        max_session_expiry: seconds(&table.max_session_expiry).map(|it| u32::try_from(it).unwrap_or(u32::MAX - 1)),
    };
    Limits { connections, packets, max_session_lifetime: table.max_session_lifetime.map(|period| period.0) }
}
