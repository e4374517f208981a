//! Every key of the configuration file. The doc comments are the reference documentation: the JSON schema is generated
//! from them.

mod auth;

pub use auth::{
    Authenticator, AuthenticatorKind, Ban, BanEvent, BanKey, Identity, Password, Psk, PskFormat, RawKeys, Token,
    TokenAlgorithm, TokenField,
};

use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::value::{At, ByteSize, Cidr, OneOrMany, Period, Secret, Timeout};

/// A configuration file.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses on which clients connect. At least one is required.
    pub listener: Vec<At<Listener>>,
    /// Sources that authenticate clients by what CONNECT carries. Listeners refer to them by name.
    pub authenticator: Vec<At<Authenticator>>,
    /// Groups of brokers. Listeners refer to them by name.
    pub upstream: Vec<At<Upstream>>,
    /// The access log: one line for each connection. Default: off.
    pub access_log: Option<At<AccessLog>>,
    /// Settings of the process.
    pub runtime: Runtime,
    /// The key that signs tokens for brokers. Required if a `connect.password` is a table.
    pub identity: Option<At<Identity>>,
    /// The HTTP interface for operators. Default: off.
    pub admin: Option<Admin>,
}

/// An address on which clients connect, and what they must prove there.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listener {
    /// Name of the listener. Appears in logs and metrics; must be unique.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// Address and port to listen on (`0.0.0.0:8883`), or a list of them. Port 0 picks a free port and logs it. `[::]`
    /// accepts IPv6 only: add `0.0.0.0` for IPv4.
    #[schemars(required)]
    pub bind: Option<At<OneOrMany<String>>>,
    /// `tls` (MQTT over TLS) or `tcp` (MQTT in the clear). Default: `tls`.
    pub protocol: Protocol,
    /// Name of the `[[upstream]]` that receives the sessions.
    #[schemars(required)]
    pub upstream: Option<At<String>>,
    /// Networks that may connect: `10.0.0.0/8`, or one address. The most specific match of `allow` and `deny` decides;
    /// `deny` wins between equals. If `allow` is set, the gateway rejects addresses that match neither list. Default:
    /// every address may connect.
    pub allow: Vec<Cidr>,
    /// Networks that may not connect. Default: none.
    pub deny: Vec<Cidr>,
    /// Time for the whole CONNECT packet to arrive, from the end of the TLS handshake (from accept with `protocol =
    /// "tcp"`). Default: `10s`.
    pub connect_timeout: Option<Timeout>,
    /// Largest CONNECT packet accepted, fixed header included; at most `1MiB`. Default: `64KiB`.
    pub max_connect_size: Option<At<ByteSize>>,
    /// Connections of this listener at the same time, handshakes included. The gateway closes further ones. Default:
    /// `100000`.
    pub max_connections: Option<NonZeroU32>,
    /// Answer to a rejected CONNECT packet: `connack` (a CONNACK in the client's MQTT version) or `close` (none).
    /// Default: `connack`.
    pub on_reject: OnReject,
    /// TLS towards clients. Required with `protocol = "tls"`, an error with `tcp`.
    pub tls: Option<At<ListenerTls>>,
    /// Names of `[[authenticator]]` tables, asked in order. The first that knows the client decides. The gateway
    /// rejects a client that none of them knows. Default: clients are not authenticated by CONNECT.
    pub authenticate: Vec<At<String>>,
    /// Rules that ban clients which connect, or fail, too often. Default: none.
    pub ban: Vec<At<Ban>>,
    /// Conditions that every client must meet.
    pub admit: Admit,
    /// Fields of CONNECT that the gateway replaces before it forwards the packet.
    pub connect: Connect,
}

/// The transport below MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// MQTT over TLS.
    #[default]
    Tls,
    /// MQTT over TCP, in the clear.
    Tcp,
}

/// The answer to a rejected CONNECT packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// The gateway sends a CONNACK with a reason code in the client's MQTT version, then closes the connection.
    #[default]
    Connack,
    /// The gateway closes the connection without an answer.
    Close,
}

/// TLS towards clients.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTls {
    /// PEM file of the server's certificate chain, leaf first. Or a list of tables `{ certificate, private_key,
    /// private_key_passphrase }`, of which SNI selects one; the first serves unknown names and clients without SNI.
    /// Reloaded when it changes. Not with `psk`.
    #[schemars(required)]
    pub certificate: Option<At<Certificates>>,
    /// PEM file of the private key, or a PKCS#11 URI (`pkcs11:...`) of a key in a token. The file is reloaded when it
    /// changes. Required with one `certificate`; a list has its own keys.
    pub private_key: Option<At<String>>,
    /// Passphrase of an encrypted private key. Default: none.
    pub private_key_passphrase: Option<At<Secret>>,
    /// Whether clients present a certificate: `required`, `optional` (one that is presented must be valid) or `none`.
    /// Default: `required` if `client_ca` is set, else `none`.
    pub client_auth: Option<At<ClientAuth>>,
    /// PEM bundle of trust anchors for client certificates. Reloaded when it changes. Default: the gateway requests no
    /// client certificate.
    pub client_ca: Option<At<PathBuf>>,
    /// Number of intermediate certificates that a client's certificate chain may have, 0 to 6. Default: `2`.
    pub verify_depth: Option<At<u8>>,
    /// Certificate revocation lists (CRLs): PEM or DER files, `http` or `https` URLs. If there is one, every
    /// certificate of a chain needs a CRL of its issuer. Default: CRLs are not checked.
    pub crl: Vec<At<String>>,
    /// Whether the gateway also fetches CRLs from the distribution points that certificates name. Default: `false`.
    pub crl_distribution_points: bool,
    /// What happens to a client whose CRL is missing or out of date: `refuse` or `allow`. Default: `refuse`.
    pub crl_missing: Option<At<OnFailure>>,
    /// Longest time between two fetches of a CRL, and between two OCSP requests about a connected client. Default:
    /// `15m`.
    pub revocation_refresh: Option<Timeout>,
    /// Certificates that the gateway checks by OCSP: `off`, `leaf` (the client's own) or `chain` (with the
    /// intermediates). Default: `off`.
    pub ocsp: Ocsp,
    /// URL of the OCSP responder. Default: the URL that the certificate names.
    pub ocsp_responder: Option<At<String>>,
    /// What happens to a client for which no OCSP responder answers: `refuse` or `allow`. Default: `refuse`.
    pub ocsp_failure: Option<At<OnFailure>>,
    /// How long a client waits, after its handshake, for OCSP responses and for CRLs of distribution points; and how
    /// long a start or reload waits for CRLs from URLs. Default: `5s`.
    pub ocsp_timeout: Option<Timeout>,
    /// Whether the handshake carries an OCSP response about the server's own certificate. Default: `false`.
    pub ocsp_stapling: bool,
    /// How clients resume TLS sessions: `tickets`, `cache` (the gateway keeps the session), `both` or `off`. Default:
    /// `both`.
    pub resumption: Option<At<Resumption>>,
    /// How long after its full handshake a session may be resumed; at most `7d`. Default: `1h`.
    pub session_lifetime: Option<At<Timeout>>,
    /// Secret from which session ticket keys are derived, at least 32 characters. Gateways with the same secret accept
    /// each other's tickets on listeners of the same name. Default: random keys.
    pub ticket_secret: Option<At<Secret>>,
    /// Pre-shared keys in place of certificates. Default: none.
    pub psk: Option<At<Psk>>,
    /// Raw public keys (RFC 7250) of clients without certificates. Default: none.
    pub raw_keys: Option<At<RawKeys>>,
    /// TLS versions offered: `1.2`, `1.3`, or both. Default: both.
    pub versions: Option<At<Vec<TlsVersion>>>,
    /// Time for the TLS handshake, from accept. Default: `10s`.
    pub handshake_timeout: Option<Timeout>,
    /// Application protocols offered by ALPN. A client that offers none is served; a client that offers only others is
    /// rejected. Default: `["mqtt"]`.
    pub alpn: Option<Vec<String>>,
}

/// One certificate file, or a list of certificates with their keys, selected by SNI.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Certificates {
    /// PEM file of the only certificate chain.
    One(PathBuf),
    /// Certificates to select from by SNI.
    Many(Vec<CertificatePair>),
}

impl<'de> Deserialize<'de> for Certificates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(path) => Ok(Self::One(path.into())),
            list => match Vec::deserialize(list) {
                Ok(pairs) => Ok(Self::Many(pairs)),
                Err(error) => Err(D::Error::custom(error.message())),
            },
        }
    }
}

/// A certificate and its private key.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    /// PEM file of the certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM file of the private key, or a PKCS#11 URI of a key in a token.
    pub private_key: String,
    /// Passphrase of an encrypted private key. Default: none.
    pub private_key_passphrase: Option<Secret>,
}

/// Whether clients present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// The handshake fails without a valid certificate.
    Required,
    /// A client may leave the certificate out. One that is presented must be valid.
    Optional,
    /// The gateway requests no certificate.
    None,
}

/// What happens to a client whose revocation status is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The gateway rejects it (fails closed).
    Refuse,
    /// The gateway accepts it.
    Allow,
}

/// Certificates that the gateway checks by OCSP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ocsp {
    /// None.
    #[default]
    Off,
    /// The client's own certificate.
    Leaf,
    /// The client's own certificate and the intermediates.
    Chain,
}

/// How clients resume TLS sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resumption {
    /// The client keeps the session state in a session ticket, encrypted by the gateway.
    Tickets,
    /// The gateway keeps the session state.
    Cache,
    /// Session tickets for clients that support them, the cache for others.
    Both,
    /// Every handshake is a full one.
    Off,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V13,
}

/// Conditions that every client must meet.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admit {
    /// CEL expressions that yield a boolean. The gateway rejects a client for which one is not true. Default: none.
    pub require: Vec<At<String>>,
}

/// Fields of CONNECT that the gateway replaces. Every expression sees the packet as the client sent it.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connect {
    /// CEL expression that yields the new client ID. Default: the client's own.
    pub client_id: Option<At<String>>,
    /// CEL expression that yields the new user name. Default: the client's own.
    pub username: Option<At<String>>,
    /// CEL expression that yields the new password, or a table of a token that the gateway signs. Default: the client's
    /// own.
    pub password: Option<At<Password>>,
}

/// A group of brokers that serve the same clients.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Name of the upstream. Appears in logs and metrics; must be unique.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// Brokers: `host:port`, or tables `{ address, weight, max_connections, backup }`. Each address that a host name
    /// resolves to is a server. `embedded` is the built-in broker: in memory only, for tests.
    #[schemars(required)]
    pub servers: Option<At<Vec<At<Server>>>>,
    /// Time between two lookups of host names. Default: `30s`.
    pub resolve_interval: Option<Timeout>,
    /// Load balancing: `hash` (consistent), `least_connections`, `random_two` or `round_robin`. Default: `hash`.
    pub balance: Option<At<Balance>>,
    /// CEL expression that yields the string to hash with `balance = "hash"`. It sees CONNECT as the broker receives
    /// it. Default: `mqtt.client_id`.
    pub hash_key: Option<At<String>>,
    /// Time for a connection to one server, TLS included. All attempts for one client take at most three times as long.
    /// Default: `5s`.
    pub connect_timeout: Option<Timeout>,
    /// Active health checks.
    pub health: Health,
    /// Failed connections within `fail_timeout` after which a server counts as down; `0`: never. Default: `1`.
    pub max_fails: Option<u32>,
    /// Window of `max_fails`, and how long a server counts as down afterwards. Default: `10s`.
    pub fail_timeout: Option<Timeout>,
    /// How long a recovered server takes to reach its full weight. No effect with `hash`. Default: `0s`.
    pub slow_start: Option<At<Period>>,
    /// TLS towards the brokers. The gateway always verifies the broker's certificate. Default: off.
    pub tls: Option<At<UpstreamTls>>,
}

/// One broker.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(with = "ServerForm")]
pub struct Server {
    /// `host:port`, or `embedded`.
    pub address: String,
    /// Share of the sessions relative to other servers, 1 to 1000. Default: `1`.
    pub weight: u32,
    /// Sessions at the same time. Default: no limit.
    pub max_connections: Option<NonZeroU32>,
    /// Whether the server is used only while no other server is up. Default: `false`.
    pub backup: bool,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "tells the schema what is read by hand, for the sake of the messages")]
enum ServerForm {
    Address(String),
    Table(ServerTable),
}

#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServerTable {
    /// `host:port`, or `embedded`.
    address: String,
    /// Share of the sessions relative to other servers, 1 to 1000. Default: `1`.
    #[serde(default = "one")]
    weight: u32,
    /// Sessions at the same time. Default: no limit.
    max_connections: Option<NonZeroU32>,
    /// Whether the server is used only while no other server is up. Default: `false`.
    #[serde(default)]
    backup: bool,
}

const fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(address) => Ok(Self { address, weight: 1, max_connections: None, backup: false }),
            table => {
                let ServerTable { address, weight, max_connections, backup } =
                    ServerTable::deserialize(table).map_err(|error| D::Error::custom(error.message()))?;
                Ok(Self { address, weight, max_connections, backup })
            }
        }
    }
}

/// How the gateway selects a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
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

/// Active health checks.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// `mqtt` (sends a CONNECT of MQTT 3.1.1 and expects a CONNACK), `tcp` (opens a connection) or `off`. Default:
    /// `mqtt`.
    pub mode: HealthMode,
    /// Time from the end of one check to the next, at least `100ms`; varies by up to 10 %. Default: `5s`.
    pub interval: Option<Timeout>,
    /// Time for one check as a whole. Default: `5s`.
    pub timeout: Option<Timeout>,
    /// Failed checks in a row that mark a server as down. Default: `1`.
    pub fails: Option<u32>,
    /// Passed checks in a row that mark it as up again. Default: `1`.
    pub passes: Option<u32>,
    /// User name in the check's CONNECT. Default: none.
    pub username: Option<String>,
    /// Password in the check's CONNECT; requires `username`. Default: none.
    pub password: Option<At<Secret>>,
}

/// What a health check does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthMode {
    /// Sends a CONNECT of MQTT 3.1.1 and expects a CONNACK.
    #[default]
    Mqtt,
    /// Opens a connection.
    Tcp,
    /// No active checks: only sessions' own connections tell whether a server is up.
    Off,
}

/// TLS towards brokers.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM bundle of trust anchors for the brokers' certificates. Default: the system's.
    pub ca: Option<At<PathBuf>>,
    /// PEM file of the gateway's client certificate chain, leaf first. Default: none.
    pub certificate: Option<At<PathBuf>>,
    /// PEM file of its private key, or a PKCS#11 URI of a key in a token. Required with `certificate`.
    pub private_key: Option<At<String>>,
    /// Passphrase of an encrypted private key. Default: none.
    pub private_key_passphrase: Option<At<Secret>>,
    /// Name that the broker's certificate must be valid for. Default: the host of the server's address.
    pub server_name: Option<At<String>>,
}

/// The access log: one line for each connection, when it ends.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// File to append to; `-` is standard output. A reload opens it again.
    #[schemars(required)]
    pub path: Option<At<PathBuf>>,
    /// `combined` (columns, as NGINX writes them) or `json` (one object a line). Default: `combined`.
    pub format: AccessLogFormat,
}

/// The format of an access log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// Columns, as NGINX writes them.
    #[default]
    Combined,
    /// One JSON object a line.
    Json,
}

/// Settings of the process.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Threads that serve connections, 1 to 1024. Takes effect after a restart. Default: the number of cores.
    pub worker_threads: Option<At<usize>>,
    /// How long open sessions may continue after SIGTERM. Default: `30s`.
    pub drain_timeout: Option<Period>,
    /// Log level: `error`, `warn`, `info`, `debug`, `trace`, also by module (`info,portcullis_gateway=debug`). Takes
    /// effect after a restart. Default: `info`.
    pub log: Option<At<String>>,
    /// `text` or `json` (one object a line), on standard error. Takes effect after a restart. Default: `text`.
    pub log_format: LogFormat,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The HTTP interface for operators: `/livez`, `/readyz`, `/metrics`, `/jwks.json`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// `address:port`, or `unix:PATH`. The interface has no authentication: use the loopback address or a Unix socket.
    /// Takes effect after a restart.
    pub bind: At<String>,
}
