//! `[[upstream]]`. `server.rs` has its servers.

mod server;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{IpAddress, Location, Period, Secret, Setting, Timeout};
use super::rates::{self, CountRate, Rate};
use super::tls::{PrivateKey, private_key};
use super::{Named, compile, nonzero};
use crate::expr::{Expression, Wanted};
use server::ServerTable;
pub use server::{Server, ServerAddress, Service};

/// Shortest time between two health checks of a server.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// A group of brokers that serve the same clients.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Upstream", extend("required" = ["name", "servers"]))]
pub(in crate::config) struct UpstreamTable {
    /// Name of the upstream. Appears in logs and metrics; must be unique.
    name: Option<Setting<String>>,
    /// Brokers: `host:port`, `unix:/run/mosquitto.sock`, or tables `{ address, weight, max_connections, backup, drain, down }`. Each address that a host name
    /// resolves to is a server. `embedded` is the built-in broker: in memory only, for tests.
    servers: Option<Setting<Vec<Setting<ServerTable>>>>,
    /// Time between two lookups of host names.
    resolve_interval: Timeout,
    /// Sessions that end in a second, on all servers with `drain` together.
    drain_pace: NonZeroU32,
    /// Load balancing: `hash` (consistent), `least_connections`, `random_two` or `round_robin`.
    balance: Setting<Balance>,
    /// CEL expression that returns the string to hash with `balance = "hash"`. It sees CONNECT as the broker receives
    /// it. Default: `mqtt.client_id`.
    hash_key: Option<Setting<String>>,
    /// Time for a connection to one server, TLS included. All attempts for one client take at most three times as long.
    connect_timeout: Timeout,
    /// CONNECTs to one server: `"1000/s"`, or `{ rate = "1000/s", burst = 2000 }`. Those over it wait for `connect_timeout` at
    /// most, so that a broker that returns is not run over by the fleet. Default: no limit.
    max_connect_rate: Option<Setting<CountRate>>,
    /// Active health checks.
    pub(in crate::config) health: HealthTable,
    /// Failed connections within `fail_timeout` after which a server counts as down; `0`: never.
    max_fails: u32,
    /// Window of `max_fails`, and how long a server counts as down afterwards.
    fail_timeout: Timeout,
    /// How long a recovered server takes to reach its full weight. No effect with `hash`.
    slow_start: Setting<Period>,
    /// Local addresses of connections to brokers, used evenly: one has some 28,000 ports for each address and port of a server.
    /// Default: the system chooses.
    source_addresses: Option<Setting<Vec<Setting<IpAddress>>>>,
    /// PROXY protocol towards the brokers, which have to expect it: `v1`, `v2`, or `v2-ssl`, which adds the client's TLS version,
    /// cipher suite, verified common name, or key. Health checks send LOCAL. Default: off.
    proxy_protocol: Option<Setting<ProxyVersion>>,
    /// TLS towards the brokers. The gateway always verifies the broker's certificate. Default: off.
    tls: Option<Setting<UpstreamTlsTable>>,
}

impl Default for UpstreamTable {
    fn default() -> Self {
        Self {
            name: None,
            servers: None,
            resolve_interval: Timeout(Duration::from_secs(30)),
            drain_pace: nonzero(100),
            balance: Setting::default_of(Balance::Hash),
            hash_key: None,
            connect_timeout: Timeout(Duration::from_secs(5)),
            max_connect_rate: None,
            health: HealthTable::default(),
            max_fails: 1,
            fail_timeout: Timeout(Duration::from_secs(10)),
            slow_start: Setting::default_of(Period(Duration::ZERO)),
            source_addresses: None,
            proxy_protocol: None,
            tls: None,
        }
    }
}

impl Named for UpstreamTable {
    fn name(&self) -> Option<&Setting<String>> {
        self.name.as_ref()
    }
}

/// How the gateway selects a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Ketama consistent hashing: a client keeps its broker while that is up.
    #[default]
    Hash,
    /// The server with the fewest connections for its weight.
    LeastConnections,
    /// The less loaded of two servers picked at random.
    RandomTwo,
    /// Each server in turn, by weight.
    RoundRobin,
}

/// The version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ProxyVersion {
    /// A line of text.
    #[serde(rename = "v1")]
    V1,
    /// Binary.
    #[serde(rename = "v2")]
    V2,
    /// Binary, with what the client proved in its handshake.
    #[serde(rename = "v2-ssl")]
    V2Ssl,
}

/// Active health checks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Health")]
pub(in crate::config) struct HealthTable {
    /// `mqtt` (sends a CONNECT of MQTT 3.1.1 and expects a CONNACK), `tcp` (opens a connection) or `off`.
    mode: HealthMode,
    /// Time from the end of one check to the next, at least `100ms`; varies by up to 10 %.
    interval: Timeout,
    /// Time for one check as a whole.
    timeout: Timeout,
    /// Consecutive failed checks that mark a server as down.
    fails: u32,
    /// Consecutive passed checks that mark it as up again.
    passes: u32,
    /// User name in the check's CONNECT. Default: none.
    username: Option<Setting<String>>,
    /// Password in the check's CONNECT; requires `username`. Default: none.
    pub(in crate::config) password: Option<Setting<Secret>>,
}

impl Default for HealthTable {
    fn default() -> Self {
        Self {
            mode: HealthMode::Mqtt,
            interval: Timeout(Duration::from_secs(5)),
            timeout: Timeout(Duration::from_secs(5)),
            fails: 1,
            passes: 1,
            username: None,
            password: None,
        }
    }
}

/// What a health check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthMode {
    /// Sends a CONNECT of MQTT 3.1.1 and expects a CONNACK.
    Mqtt,
    /// Opens a connection.
    Tcp,
    /// No active checks: only sessions' own connections tell whether a server is up.
    Off,
}

/// TLS towards brokers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "UpstreamTls")]
struct UpstreamTlsTable {
    /// PEM bundle of trust anchors for the brokers' certificates. Default: the system's.
    ca: Option<Setting<PathBuf>>,
    /// PEM file of the gateway's client certificate chain, leaf first. Default: none.
    certificate: Option<Setting<PathBuf>>,
    /// PEM file of its private key, or a PKCS#11 URI of a key in a token. Required with `certificate`.
    private_key: Option<Setting<String>>,
    /// Passphrase of an encrypted private key. Default: none.
    private_key_passphrase: Option<Setting<Secret>>,
    /// Name that the broker's certificate must be valid for. Default: the host of the server's address.
    server_name: Option<Setting<String>>,
}

/// A group of brokers.
#[derive(Debug)]
pub struct Upstream {
    /// Unique name.
    pub name: String,
    /// At least one.
    pub servers: Vec<Server>,
    /// Time between two lookups of host names.
    pub resolve_interval: Duration,
    /// Sessions that end in a second on servers with `drain`.
    pub drain_pace: u32,
    /// How a server is selected.
    pub balance: Balance,
    /// Yields the string to hash; `None`: the client ID that the broker receives.
    pub hash_key: Option<Setting<Expression>>,
    /// Time for a connection to one server, TLS included.
    pub connect_timeout: Duration,
    /// CONNECTs to one server; `None`: as many as come.
    pub max_connect_rate: Option<Rate>,
    /// Active health checks.
    pub health: Health,
    /// Passive health checks.
    pub passive: PassiveHealth,
    /// Local addresses of connections; empty: the system chooses.
    pub source_addresses: Vec<Setting<IpAddr>>,
    /// `None`: the brokers do not expect the PROXY protocol.
    pub proxy_protocol: Option<ProxyVersion>,
    /// `None`: MQTT in the clear.
    pub tls: Option<UpstreamTls>,
}

/// Active health checks.
#[derive(Clone, Debug)]
pub struct Health {
    /// What a check does.
    pub mode: HealthMode,
    /// Time from the end of one check to the next.
    pub interval: Duration,
    /// Time for one check as a whole.
    pub timeout: Duration,
    /// Consecutive failed checks after which a server counts as down.
    pub fails: u32,
    /// Consecutive passed checks after which it counts as up again.
    pub passes: u32,
    /// User name of the check's CONNECT.
    pub username: Option<String>,
    /// Password of the check's CONNECT.
    pub password: Option<Secret>,
}

/// When failed connections of sessions make a server count as down.
#[derive(Clone, Copy, Debug)]
pub struct PassiveHealth {
    /// Failures within `fail_timeout`; 0: never.
    pub max_fails: u32,
    /// Window of `max_fails`, and how long a server counts as down afterwards.
    pub fail_timeout: Duration,
    /// How long a recovered server takes to reach its full weight.
    pub slow_start: Duration,
}

/// TLS towards brokers.
#[derive(Debug)]
pub struct UpstreamTls {
    /// Location of the table.
    pub(crate) table: Location,
    /// PEM bundle of trust anchors; `None`: the system's.
    pub ca: Option<Setting<PathBuf>>,
    /// The gateway's client certificate chain and its private key.
    pub certificate: Option<(Setting<PathBuf>, Setting<PrivateKey>)>,
    /// Name that the broker's certificate must be valid for; `None`: the host of the server's address.
    pub server_name: Option<Setting<String>>,
}

pub(super) fn validate(table: &Setting<UpstreamTable>, document: &mut Document) -> Result<Upstream, Reported> {
    let balance = table.balance.value;
    if balance == Balance::Hash {
        if table.slow_start.is_set() {
            let message = "`slow_start` has no effect with `balance = \"hash\"`: each key maps to one server";
            document.warning(&table.slow_start, message);
        }
    } else if let Some(key) = &table.hash_key {
        let complaint = Complaint::new("`hash_key` requires `balance = \"hash\"`");
        document.error(key, complaint.hint("remove it, or set `balance = \"hash\"`"));
    }
    if let (Some(password), None) = (&table.health.password, &table.health.username) {
        document.error(password, "`password` requires `username`: MQTT 3.1.1 allows no password alone");
    }
    validate_credentials(&table.health, document);
    let tls = table.tls.as_ref().map(|tls| validate_tls(tls, document)).transpose();
    let servers = validate_servers(table, document);
    let hash_key = compile(table.hash_key.as_ref(), Wanted::String, document);
    let max_connect_rate = rates::validate(table.max_connect_rate.as_ref(), document);
    Ok(Upstream {
        // `names` has reported a missing name.
        name: table.name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
        servers: servers?,
        resolve_interval: table.resolve_interval.0,
        drain_pace: table.drain_pace.get(),
        balance,
        hash_key: hash_key?,
        connect_timeout: table.connect_timeout.0,
        max_connect_rate,
        health: Health {
            mode: table.health.mode,
            interval: table.health.interval.0.max(MIN_INTERVAL),
            timeout: table.health.timeout.0,
            fails: table.health.fails.max(1),
            passes: table.health.passes.max(1),
            username: table.health.username.as_ref().map(|username| username.value.clone()),
            password: table.health.password.as_ref().map(|password| password.value.clone()),
        },
        passive: PassiveHealth {
            max_fails: table.max_fails,
            fail_timeout: table.fail_timeout.0,
            slow_start: table.slow_start.value.0,
        },
        source_addresses: validate_sources(table, document),
        proxy_protocol: table.proxy_protocol.as_ref().map(|version| version.value),
        tls: tls?,
    })
}

/// Checks that the check's CONNECT can carry its user name and password.
fn validate_credentials(health: &HealthTable, document: &mut Document) {
    const MAX_LEN: usize = u16::MAX as usize;
    let too_long = |len: usize| format!("longer than MQTT allows: {len} bytes, at most {MAX_LEN}");
    if let Some(username) = health.username.as_ref().filter(|username| username.len() > MAX_LEN) {
        document.error(username, too_long(username.len()));
    }
    // [MQTT-1.5.3-2]
    if let Some(username) = health.username.as_ref().filter(|username| username.contains('\0')) {
        document.error(username, "a user name must not contain U+0000");
    }
    if let Some(password) = health.password.as_ref().filter(|password| password.expose().len() > MAX_LEN) {
        document.error(password, too_long(password.expose().len()));
    }
}

fn validate_sources(table: &Setting<UpstreamTable>, document: &mut Document) -> Vec<Setting<IpAddr>> {
    let Some(sources) = &table.source_addresses else { return Vec::new() };
    if sources.is_empty() && !document.is_unread("source_addresses", table) {
        document.error(sources, Complaint::new("`source_addresses` is empty").hint("leave it out: the system chooses"));
    }
    let has_ip = |server: &Setting<ServerTable>| !server.value.is_without_ip();
    if table.servers.as_ref().is_some_and(|servers| !servers.iter().any(has_ip)) {
        let complaint = Complaint::new("`source_addresses` has no effect: no server has an IP address");
        document.error(sources, complaint.hint("leave it out"));
    }
    let mut distinct: Vec<Setting<IpAddr>> = Vec::new();
    for source in &sources.value {
        if source.value.0.is_unspecified() || source.value.0.is_multicast() {
            let complaint = Complaint::new(format!("`{}` is no address of this machine", source.value.0));
            document
                .error(source, complaint.hint("addresses of the machine's interfaces: [\"10.0.0.5\", \"10.0.0.6\"]"));
        } else if distinct.iter().any(|other| other.value == source.value.0) {
            document.error(source, format!("`{}` is there twice", source.value.0));
        } else {
            distinct.push(source.map(|source| source.0));
        }
    }
    distinct
}

fn validate_servers(table: &Setting<UpstreamTable>, document: &mut Document) -> Result<Vec<Server>, Reported> {
    let servers = document.require(table.servers.as_ref(), table, "servers", "servers = [\"10.0.0.113:1883\"]")?;
    if servers.is_empty() {
        return Err(document.error(servers, "`servers` is empty"));
    }
    let mut validated = Ok(Vec::new());
    for server in &servers.value {
        let server = server::validate(server, document);
        if let (Ok(server), Some(tls)) = (&server, &table.tls)
            && server.address == ServerAddress::Embedded
        {
            document.error(tls, "the embedded broker runs inside the gateway and does not support TLS");
        }
        if let (Ok(server), Some(version)) = (&server, &table.proxy_protocol)
            && server.address == ServerAddress::Embedded
        {
            document.error(version, "the embedded broker does not expect the PROXY protocol");
        }
        if let (Ok(server), Some(tls)) = (&server, &table.tls)
            && matches!(server.address, ServerAddress::Unix(_))
            && tls.server_name.is_none()
        {
            let complaint = Complaint::new("TLS to a Unix socket requires `server_name`");
            document.error(tls, complaint.hint("a path is no name that a certificate can have"));
        }
        match (server, &mut validated) {
            (Ok(server), Ok(validated)) => validated.push(server),
            (Ok(_), Err(_)) => {}
            (Err(reported), _) => validated = Err(reported),
        }
    }
    if validated.as_ref().is_ok_and(|servers| servers.iter().all(|server| server.service != Service::Active)) {
        document.warning(servers, "no server takes new sessions: all have `drain` or `down`");
    }
    validated
}

fn validate_tls(table: &Setting<UpstreamTlsTable>, document: &mut Document) -> Result<UpstreamTls, Reported> {
    let certificate = match (&table.certificate, &table.private_key) {
        (None, None) => None,
        (Some(chain), Some(key)) => {
            let passphrase = table.private_key_passphrase.as_ref().map(|passphrase| &passphrase.value);
            let key = private_key(key, passphrase, document);
            Some((chain.map(|chain| document.resolve(chain)), key))
        }
        (Some(chain), None) => return Err(document.error(chain, "`certificate` requires `private_key`")),
        (None, Some(key)) => return Err(document.error(key, "`private_key` requires `certificate`")),
    };
    Ok(UpstreamTls {
        table: table.location.clone().unwrap_or_default(),
        ca: table.ca.as_ref().map(|ca| ca.map(|ca| document.resolve(ca))),
        certificate,
        server_name: table.server_name.clone(),
    })
}
