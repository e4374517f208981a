//! `[[listener]]`.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{ByteSize, Location, OneOrMany, Origin, Setting, Timeout};
use super::ban::{BanRule, BanTable};
use super::bind::Bind;
use super::connect::{AdmitTable, Connect, ConnectTable};
use super::limits::{Limits, LimitsTable};
use super::proxy_protocol::{self, ProxyProtocol, ProxyProtocolTable};
use super::quic::{self, Quic, QuicTable};
use super::tcp::{self, Tcp, TcpTable};
use super::tls::{Tls, TlsMode, TlsTable, TlsVersion};
use super::topics::PublishTable;
use super::websocket::{self, WebSocket, WebSocketTable};
use super::{Named, Names, ban, check_known, compile, connect, limits, nonzero, tls, topics};
use crate::expr::{Expression, Template, Wanted};

/// MQTT itself sets no lower bound on the length of a CONNECT packet [MQTT-2.1.4].
const MAX_MAX_CONNECT_SIZE: usize = 1 << 20;
/// A server must accept client IDs of up to 23 bytes [MQTT-3.1.3-5].
const MIN_MAX_CLIENT_ID: usize = 23;
/// The longest string that MQTT has is one byte shorter [MQTT-1.5.4].
const MAX_MAX_TEXT: usize = 64 << 10;

/// An address on which clients connect, and what they must prove there.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Listener", extend("required" = ["name", "bind", "upstream"]))]
pub(in crate::config) struct ListenerTable {
    /// Name of the listener. Appears in logs and metrics; must be unique.
    name: Option<Setting<String>>,
    /// Address and port to listen on (`0.0.0.0:8883`), or a list of them. Port 0 picks a free port and logs it. `[::]`
    /// accepts IPv6 only: add `0.0.0.0` for IPv4. `unix:/run/portcullis/mqtt.sock` is a Unix socket; append
    /// `?mode=0660&owner=portcullis&group=mqtt` to say who may connect, which is by default the gateway's user and group.
    bind: Option<Setting<OneOrMany<String>>>,
    /// `tls` (MQTT over TLS) or `tcp` (MQTT in the clear); `wss` or `ws`: the same over WebSocket; `quic`: MQTT over QUIC, on UDP.
    protocol: Protocol,
    /// Name of the `[[upstream]]` that receives the sessions.
    upstream: Option<Setting<String>>,
    /// Load balancers in front of the listener that send the client's address: `{ from = ["10.0.0.0/8"] }`. Default: none, and
    /// a header of the PROXY protocol is an error of the client.
    proxy_protocol: Option<Setting<ProxyProtocolTable>>,
    /// Networks that may connect: `10.0.0.0/8`, one address, or `unix` for clients of Unix sockets. The most specific match of `allow` and `deny` decides;
    /// `deny` wins between equals. If `allow` is set, the gateway rejects addresses that match neither list. Default:
    /// every address may connect.
    allow: Vec<Origin>,
    /// Networks that may not connect.
    deny: Vec<Origin>,
    /// Time for the whole CONNECT packet to arrive, from the end of the TLS handshake (from accept with `protocol =
    /// "tcp"`). Over WebSocket, the request has as long before that.
    connect_timeout: Timeout,
    /// Largest CONNECT packet accepted, fixed header included; at most `1MiB`.
    max_connect_size: Setting<ByteSize>,
    /// Longest client ID accepted, in bytes of UTF-8; `23` to `64KiB`. Expressions see no longer one.
    max_client_id: Setting<ByteSize>,
    /// Longest user name accepted, in bytes of UTF-8; at most `64KiB`. Expressions see no longer one. Default: `1KiB`;
    /// `16KiB` if an authenticator of the listener reads tokens from the user name.
    max_username: Option<Setting<ByteSize>>,
    /// Maximum number of concurrent connections, handshakes included. The gateway closes further ones.
    max_connections: Setting<NonZeroU32>,
    /// Answer to a rejected CONNECT packet: `connack` (a CONNACK in the client's MQTT version) or `close` (none).
    on_reject: OnReject,
    /// How TCP connections are kept: `{ keepalive = "60s", user_timeout = "105s", backlog = 65535 }`, which are the defaults.
    tcp: Option<Setting<TcpTable>>,
    /// How QUIC connections are kept: `{ keepalive = "60s", idle_timeout = "105s" }`, which are the defaults. An error without
    /// `protocol = "quic"`.
    quic: Option<Setting<QuicTable>>,
    /// TLS towards clients. Required with `protocol = "tls"`, `wss` and `quic`, an error with `tcp` and `ws`.
    tls: Option<Setting<TlsTable>>,
    /// The request that upgrades a connection to WebSocket. An error with `protocol = "tls"` and `tcp`.
    websocket: Option<Setting<WebSocketTable>>,
    /// Names of `[[authenticator]]` tables, asked in order. The first that knows the client decides. The gateway
    /// rejects a client that none of them knows. Default: clients are not authenticated by CONNECT.
    authenticate: Vec<Setting<String>>,
    /// Rules that ban clients which connect, or fail, too often.
    ban: Vec<Setting<BanTable>>,
    /// Conditions that every client must meet.
    admit: AdmitTable,
    /// Fields of CONNECT that the gateway replaces before it forwards the packet.
    connect: ConnectTable,
    /// Name of the `[[topic_policy]]` that says what clients may publish and subscribe to. Default: everything is allowed.
    topics: Option<Setting<String>>,
    /// Prefix of all topics at the broker, which clients do not see: a topic space of its own for each tenant. `${...}` is an
    /// expression that yields one topic level: `tenants/${cert.subject.o}/`. Default: none.
    mountpoint: Option<Setting<String>>,
    /// What the gateway adds to messages of MQTT 5 clients.
    publish: PublishTable,
    /// Limits on what clients connect, send and subscribe to.
    limits: LimitsTable,
}

impl Default for ListenerTable {
    fn default() -> Self {
        Self {
            name: None,
            bind: None,
            protocol: Protocol::Tls,
            upstream: None,
            proxy_protocol: None,
            allow: Vec::new(),
            deny: Vec::new(),
            connect_timeout: Timeout(Duration::from_secs(10)),
            max_connect_size: Setting::default_of(ByteSize(64 << 10)),
            max_client_id: Setting::default_of(ByteSize(1 << 10)),
            max_username: None,
            max_connections: Setting::default_of(nonzero(100_000)),
            on_reject: OnReject::Connack,
            tcp: None,
            quic: None,
            tls: None,
            websocket: None,
            authenticate: Vec::new(),
            ban: Vec::new(),
            admit: AdmitTable::default(),
            connect: ConnectTable::default(),
            topics: None,
            mountpoint: None,
            publish: PublishTable::default(),
            limits: LimitsTable::default(),
        }
    }
}

impl Named for ListenerTable {
    fn name(&self) -> Option<&Setting<String>> {
        self.name.as_ref()
    }
}

/// What clients speak below MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// MQTT over TLS.
    Tls,
    /// MQTT over TCP, in the clear.
    Tcp,
    /// MQTT over WebSocket over TLS.
    Wss,
    /// MQTT over WebSocket, in the clear.
    Ws,
    /// MQTT over QUIC.
    Quic,
}

impl Protocol {
    /// The label in the access log.
    pub const fn label(self) -> &'static str {
        match self {
            Protocol::Tls => "TLS",
            Protocol::Tcp => "TCP",
            Protocol::Wss => "WSS",
            Protocol::Ws => "WS",
            Protocol::Quic => "QUIC",
        }
    }

    /// Whether clients use TLS.
    pub const fn uses_tls(self) -> bool {
        matches!(self, Protocol::Tls | Protocol::Wss | Protocol::Quic)
    }

    /// Whether clients use WebSocket.
    pub const fn is_websocket(self) -> bool {
        matches!(self, Protocol::Wss | Protocol::Ws)
    }

    /// The value in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Protocol::Tls => "tls",
            Protocol::Tcp => "tcp",
            Protocol::Wss => "wss",
            Protocol::Ws => "ws",
            Protocol::Quic => "quic",
        }
    }
}

/// The answer to a rejected CONNECT packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// The gateway sends a CONNACK with a reason code in the client's MQTT version, then closes the connection.
    Connack,
    /// The gateway closes the connection without an answer.
    Close,
}

/// A listener, validated.
#[derive(Debug)]
pub struct Listener {
    /// Unique. Empty if the table has no name, which was reported.
    pub name: String,
    /// Location of the table.
    pub(crate) table: Location,
    /// What clients speak below MQTT.
    pub protocol: Protocol,
    /// Addresses to listen on.
    pub bind: Vec<Bind>,
    /// The name of an upstream.
    pub upstream: String,
    /// `None`: the PROXY protocol is not spoken.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Networks that may connect.
    pub allow: Vec<Origin>,
    /// Networks that may not connect.
    pub deny: Vec<Origin>,
    /// Time from the end of the handshake to the last byte of CONNECT.
    pub connect_timeout: Duration,
    /// Largest CONNECT packet in bytes, fixed header included.
    pub max_connect_size: usize,
    /// Longest client ID in bytes.
    pub max_client_id: usize,
    /// Longest user name in bytes; `None`: the default, which depends on the authenticators.
    pub max_username: Option<usize>,
    /// Maximum number of concurrent connections.
    pub max_connections: Setting<u32>,
    /// The answer to a rejected CONNECT.
    pub on_reject: OnReject,
    /// How TCP connections are kept.
    pub tcp: Tcp,
    /// `None`: the listener does not speak QUIC.
    pub quic: Option<Quic>,
    /// `None`: MQTT in the clear.
    pub tls: Option<Tls>,
    /// `None`: without WebSocket.
    pub websocket: Option<WebSocket>,
    /// Names of authenticators in the order in which the gateway asks them.
    pub authenticate: Vec<String>,
    /// When clients are banned.
    pub bans: Vec<BanRule>,
    /// Expressions that must all be true.
    pub require: Vec<Setting<Expression>>,
    /// How CONNECT is rewritten.
    pub connect: Connect,
    /// The name of a topic policy.
    pub topics: Option<String>,
    /// The prefix of all topics at the broker.
    pub mountpoint: Option<Setting<Template>>,
    /// User properties that are added to messages.
    pub stamps: Vec<(String, Setting<Expression>)>,
    /// Limits on what clients connect, send and subscribe to.
    pub limits: Limits,
}

/// The addresses of listeners.
#[derive(Debug, Default)]
pub(super) struct Bound {
    streams: HashSet<Bind>,
    datagrams: HashSet<Bind>,
}

impl Bound {
    /// Whether a listener has this address for TCP, or this Unix socket.
    pub(super) fn has_stream(&self, address: &Bind) -> bool {
        self.streams.iter().any(|other| other.overlaps(address))
    }
}

/// `bound`: the addresses of the listeners before this one.
pub(super) fn validate(
    table: &Setting<ListenerTable>,
    names: &Names,
    bound: &mut Bound,
    document: &mut Document,
) -> Listener {
    // `names` has reported a missing name.
    let name = table.name.as_ref().map(|name| name.value.clone()).unwrap_or_default();
    let bind = validate_bind(table, bound, document).unwrap_or_default();
    let upstream = document.require(table.upstream.as_ref(), table, "upstream", "the name of an [[upstream]]");
    let upstream =
        upstream.and_then(|upstream| check_known("upstream", upstream, &names.upstreams, document).map(|()| upstream));
    let proxy = table.proxy_protocol.as_ref().and_then(|table| proxy_protocol::validate(table, document).ok());
    let tls = validate_tls(table, names, document);
    let connect = connect::validate(&table.connect, names, document);
    let required = table.admit.require.iter().map(|source| compile(Some(source), Wanted::Bool, document));
    let required: Vec<_> = required.collect();
    let bans: Vec<_> = table.ban.iter().filter_map(|rule| ban::validate(rule, document).ok()).collect();
    if table.max_connect_size.value.0 > MAX_MAX_CONNECT_SIZE {
        document.error(&table.max_connect_size, "`max_connect_size` must be at most 1MiB");
    }
    if !(MIN_MAX_CLIENT_ID..=MAX_MAX_TEXT).contains(&table.max_client_id.value.0) {
        document.error(&table.max_client_id, "`max_client_id` must be between 23 bytes and 64KiB");
    }
    if let Some(size) = table.max_username.as_ref().filter(|size| size.value.0 > MAX_MAX_TEXT) {
        document.error(size, "`max_username` must be at most 64KiB");
    }
    warn_of_repeated_bans(&bans, document);
    let is_known = |name: &&Setting<String>| check_known("topic_policy", name, &names.topic_policies, document).is_ok();
    let policy = table.topics.as_ref().filter(is_known);
    let mountpoint = table.mountpoint.as_ref().map(|source| topics::validate_mountpoint(source, document));
    Listener {
        name,
        table: table.location.clone().unwrap_or_default(),
        protocol: table.protocol,
        bind,
        upstream: upstream.map(|upstream| upstream.value.clone()).unwrap_or_default(),
        proxy_protocol: proxy,
        allow: table.allow.clone(),
        deny: table.deny.clone(),
        connect_timeout: table.connect_timeout.0,
        max_connect_size: table.max_connect_size.value.0,
        max_client_id: table.max_client_id.value.0,
        max_username: table.max_username.as_ref().map(|size| size.value.0),
        max_connections: table.max_connections.map(|number| number.get()),
        on_reject: table.on_reject,
        tcp: table.tcp.as_ref().map_or_else(Tcp::default, |tcp| tcp::validate(tcp, document)),
        quic: validate_quic(table, tls.as_ref().ok().and_then(Option::as_ref), document),
        tls: tls.ok().flatten(),
        websocket: validate_websocket(table, document),
        authenticate: validate_authenticate(table, names, document),
        bans,
        require: required.into_iter().filter_map(Result::ok).flatten().collect(),
        connect: connect.unwrap_or_default(),
        topics: policy.map(|name| name.value.clone()),
        mountpoint: mountpoint.and_then(Result::ok),
        stamps: topics::validate_publish(&table.publish, document),
        limits: limits::validate(&table.limits, document),
    }
}

fn warn_of_repeated_bans(bans: &[BanRule], document: &mut Document) {
    for (index, rule) in bans.iter().enumerate() {
        if bans[..index].iter().any(|earlier| earlier.is_same(rule)) {
            document.warning(&rule.table, "this rule repeats an earlier one, and has no effect");
        }
    }
}

fn validate_bind(
    table: &Setting<ListenerTable>,
    bound: &mut Bound,
    document: &mut Document,
) -> Result<Vec<Bind>, Reported> {
    // UDP and TCP have ports of their own.
    let bound = if table.protocol == Protocol::Quic { &mut bound.datagrams } else { &mut bound.streams };
    let bind = document.require(table.bind.as_ref(), table, "bind", "bind = \"0.0.0.0:8883\"")?;
    let mut addresses = Vec::new();
    for text in &bind.value.0 {
        match Bind::parse(text, document) {
            Ok(address) => match bound.iter().find(|other| other.overlaps(&address)) {
                Some(other) => {
                    let message = format!("`{address}` is already bound by a listener");
                    let is_wider = address.ip().is_some_and(|address| address.ip().is_unspecified());
                    let hint =
                        if is_wider { format!("it includes `{other}`") } else { format!("`{other}` includes it") };
                    let complaint = Complaint::new(message);
                    let complaint = if *other == address { complaint } else { complaint.hint(hint) };
                    document.diagnostics.error_in_list(bind, text, complaint);
                }
                None => {
                    if matches!(&address, Bind::Unix(unix) if unix.access.mode & 0o002 != 0) {
                        let message = format!("every program on this machine may connect to `{address}`");
                        document.warning(bind, Complaint::new(message).hint("mode=0660 is for an owner and a group"));
                    }
                    bound.insert(address.clone());
                    addresses.push(address);
                }
            },
            Err(complaint) => {
                document.diagnostics.error_in_list(bind, text, complaint);
            }
        }
    }
    if bind.value.0.is_empty() {
        return Err(document.error(bind, "`bind` is empty"));
    }
    Ok(addresses)
}

fn validate_tls(
    table: &Setting<ListenerTable>,
    names: &Names,
    document: &mut Document,
) -> Result<Option<Tls>, Reported> {
    let protocol = if table.protocol.is_websocket() { "http/1.1" } else { "mqtt" };
    match (table.protocol.uses_tls(), &table.tls) {
        (true, Some(tls)) => tls::validate(tls, protocol, names.registries, document).map(Some),
        (true, None) if document.is_unread("tls", table) => Err(document.diagnostics.already_reported()),
        (true, None) => {
            let (secure, plain) = match table.protocol {
                Protocol::Wss => ("wss", "ws"),
                Protocol::Quic => ("QUIC", "tcp"),
                _ => ("TLS", "tcp"),
            };
            let complaint = Complaint::new(format!("a {secure} listener requires [listener.tls]"));
            let hint = format!("add it, or set `protocol = \"{plain}\"` for MQTT without TLS");
            Err(document.error(table, complaint.hint(hint)))
        }
        (false, None) => Ok(None),
        (false, Some(tls)) => {
            let name = table.protocol.name();
            let complaint = Complaint::new(format!("[listener.tls] has no effect with `protocol = \"{name}\"`"));
            let secure = if table.protocol == Protocol::Ws {
                "`protocol = \"wss\"`"
            } else {
                "`protocol = \"tls\"`, the default"
            };
            Err(document.error(tls, complaint.hint(format!("for TLS, set {secure}; otherwise remove the table"))))
        }
    }
}

fn validate_websocket(table: &Setting<ListenerTable>, document: &mut Document) -> Option<WebSocket> {
    if table.protocol.is_websocket() {
        return Some(match &table.websocket {
            Some(websocket) => websocket::validate(websocket, document),
            None => websocket::validate(&WebSocketTable::default(), document),
        });
    }
    let websocket = table.websocket.as_ref()?;
    let name = table.protocol.name();
    let complaint = Complaint::new(format!("[listener.websocket] has no effect with `protocol = \"{name}\"`"));
    document.error(websocket, complaint.hint("for WebSocket, set `protocol = \"wss\"` or \"ws\""));
    None
}

/// `None`: the listener does not speak QUIC.
fn validate_quic(table: &ListenerTable, tls: Option<&Tls>, document: &mut Document) -> Option<Quic> {
    if table.protocol != Protocol::Quic {
        if let Some(quic) = &table.quic {
            let message = format!("`quic` has no effect with `protocol = \"{}\"`", table.protocol.name());
            document.error(quic, Complaint::new(message).hint("for MQTT over QUIC, set `protocol = \"quic\"`"));
        }
        return None;
    }
    if let Some(tcp) = &table.tcp {
        let complaint = Complaint::new("`tcp` has no effect with `protocol = \"quic\"`");
        document.error(tcp, complaint.hint("`quic = { keepalive = \"60s\", idle_timeout = \"105s\" }`"));
    }
    if let Some(proxy) = &table.proxy_protocol {
        let complaint = Complaint::new("`proxy_protocol` has no effect with `protocol = \"quic\"`");
        document.error(proxy, complaint.hint("load balancers pass UDP on with the client's address, or not at all"));
    }
    let is_unix = |text: &&String| text.starts_with("unix:");
    if let Some(bind) = &table.bind
        && let Some(unix) = bind.value.0.iter().find(is_unix)
    {
        let complaint = Complaint::new("QUIC has no Unix sockets");
        document.diagnostics.error_in_list(
            bind,
            unix,
            complaint.hint("use a listener with `protocol = \"tcp\"` for it"),
        );
    }
    if let (Some(tls), Some(place)) = (tls, &table.tls) {
        let complaint = match &tls.mode {
            TlsMode::Psk(_) => Some(Complaint::new("pre-shared keys are not supported over QUIC")),
            TlsMode::Certificate(certificates) if certificates.raw_keys.is_some() => {
                Some(Complaint::new("raw public keys are not supported over QUIC"))
            }
            TlsMode::Certificate(_) => None,
        };
        if let Some(complaint) = complaint {
            document.error(place, complaint.hint("use certificates, or authenticators that read CONNECT"));
        } else if !tls.versions.contains(&TlsVersion::V13) {
            document.error(place, Complaint::new("QUIC requires TLS 1.3").hint("leave `versions` out"));
        } else if tls.alpn.is_empty() {
            document.error(place, Complaint::new("QUIC requires ALPN").hint("leave `alpn` out: it is [\"mqtt\"] then"));
        }
    }
    Some(table.quic.as_ref().map_or_else(Quic::default, |quic| quic::validate(quic, document)))
}

fn validate_authenticate(table: &ListenerTable, names: &Names, document: &mut Document) -> Vec<String> {
    let mut authenticators: Vec<String> = Vec::new();
    for name in &table.authenticate {
        if check_known("authenticator", name, &names.authenticators, document).is_err() {
            continue;
        }
        if authenticators.contains(&name.value) {
            document.error(name, format!("duplicate authenticator `{}`", name.value));
        } else {
            authenticators.push(name.value.clone());
        }
    }
    authenticators
}
