//! Every key a configuration file may have. The documentation comments are the reference: the JSON schema is made
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

/// A whole configuration file.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where devices connect.
    pub listener: Vec<At<Listener>>,
    /// What knows clients by their passwords or tokens.
    pub authenticator: Vec<At<Authenticator>>,
    /// Groups of brokers.
    pub upstream: Vec<At<Upstream>>,
    /// One line for each connection. Off if absent.
    pub access_log: Option<At<AccessLog>>,
    /// The process as a whole.
    pub runtime: Runtime,
    /// How identities are signed towards brokers; for `connect.password`.
    pub identity: Option<At<Identity>>,
    /// HTTP for operators. Off if absent.
    pub admin: Option<Admin>,
}

/// An address on which devices connect, and what is asked of them there.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listener {
    /// Unique; appears in logs and metrics.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// `address:port`, or a list of them. Port 0 picks a free one and logs it.
    #[schemars(required)]
    pub bind: Option<At<OneOrMany<String>>>,
    /// What is spoken below MQTT. Default: tls.
    pub protocol: Protocol,
    /// Name of the upstream it forwards to.
    #[schemars(required)]
    pub upstream: Option<At<String>>,
    /// Networks that may connect. The most specific match of `allow` and `deny` wins. If only `allow` is given, all
    /// others are denied.
    pub allow: Vec<Cidr>,
    /// Networks that may not connect.
    pub deny: Vec<Cidr>,
    /// From the end of the handshake to the last byte of CONNECT. Default: 10s.
    pub connect_timeout: Option<Timeout>,
    /// Largest CONNECT packet accepted. Default: 64KiB.
    pub max_connect_size: Option<At<ByteSize>>,
    /// Connections of this listener at once. Default: 100000.
    pub max_connections: Option<NonZeroU32>,
    /// What a refused CONNECT gets. Default: connack.
    pub on_reject: OnReject,
    /// TLS towards devices. Required by protocol tls.
    pub tls: Option<At<ListenerTls>>,
    /// Names of authenticators, in order: the first that knows a client decides, and one that none knows is refused.
    pub authenticate: Vec<At<String>>,
    /// Who is refused for a while.
    pub ban: Vec<At<Ban>>,
    /// Who is let in.
    pub admit: Admit,
    /// What CONNECT is rewritten to.
    pub connect: Connect,
}

/// What is spoken below MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// MQTT over TLS.
    #[default]
    Tls,
    /// MQTT over TCP, in the clear.
    Tcp,
}

/// What a refused CONNECT gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// A CONNACK with the reason, in the client's own MQTT version.
    #[default]
    Connack,
    /// Nothing: the connection is closed.
    Close,
}

/// TLS towards devices.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerTls {
    /// PEM file of the server's chain, leaf first; or a list of tables of `certificate` and `private_key`, of which
    /// SNI chooses one, the first being for clients without SNI.
    #[schemars(required)]
    pub certificate: Option<At<Certificates>>,
    /// PEM file of the private key; or a PKCS#11 URI of a key in a token.
    pub private_key: Option<At<String>>,
    /// What the private key is encrypted with, if it is.
    pub private_key_passphrase: Option<At<Secret>>,
    /// Whether a device has to show a certificate. Default: required if `client_ca` is set, else none.
    pub client_auth: Option<At<ClientAuth>>,
    /// PEM bundle of trust anchors for devices.
    pub client_ca: Option<At<PathBuf>>,
    /// How many intermediates a device's chain may have. Default: 2.
    pub verify_depth: Option<At<u8>>,
    /// Certificate revocation lists: PEM or DER files, or `http` and `https` URLs. If there is one, each authority in a
    /// device's chain needs one.
    pub crl: Vec<At<String>>,
    /// Whether CRLs are fetched from where certificates say they are, too. Default: false.
    pub crl_distribution_points: bool,
    /// What becomes of a device whose CRL is missing or out of date. Default: refuse.
    pub crl_missing: Option<At<OnFailure>>,
    /// How often CRLs are fetched again at least, and OCSP responders asked again about connected devices. Default: 15m.
    pub revocation_refresh: Option<Timeout>,
    /// Which certificates OCSP responders are asked about. Default: off.
    pub ocsp: Ocsp,
    /// URL of the responder. Default: the one that the certificate names.
    pub ocsp_responder: Option<At<String>>,
    /// What becomes of a device for which no responder answers, or not in time. Default: refuse.
    pub ocsp_failure: Option<At<OnFailure>>,
    /// How long a device waits, after its handshake, for responders and for CRLs that only its certificate names.
    /// Default: 5s.
    pub ocsp_timeout: Option<Timeout>,
    /// Whether the handshake brings an OCSP answer about the server's certificate along. Default: false.
    pub ocsp_stapling: bool,
    /// How sessions are resumed. Default: both.
    pub resumption: Option<At<Resumption>>,
    /// How long after its full handshake a session may be resumed; 7d at most. Default: 1h.
    pub session_lifetime: Option<At<Timeout>>,
    /// Makes tickets that listeners of the same name on other gateways with the same secret take, too; at least 32
    /// characters.
    pub ticket_secret: Option<At<Secret>>,
    /// Pre-shared keys in place of certificates.
    pub psk: Option<At<Psk>>,
    /// Keys without certificates.
    pub raw_keys: Option<At<RawKeys>>,
    /// TLS versions offered. Default: both.
    pub versions: Option<At<Vec<TlsVersion>>>,
    /// From accept to the end of the handshake. Default: 10s.
    pub handshake_timeout: Option<Timeout>,
    /// Application protocols offered; a client that offers none is served. Default: mqtt.
    pub alpn: Option<Vec<String>>,
}

/// One certificate file, or several pairs to choose from by SNI.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub enum Certificates {
    /// The chain of the only certificate.
    One(PathBuf),
    /// Several.
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

/// A certificate and its key.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificatePair {
    /// PEM file of the chain, leaf first.
    pub certificate: PathBuf,
    /// PEM file of the private key; or a PKCS#11 URI of a key in a token.
    pub private_key: String,
    /// What the private key is encrypted with, if it is.
    pub private_key_passphrase: Option<Secret>,
}

/// Whether a device has to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Without a valid one the handshake fails.
    Required,
    /// One that is shown must be valid.
    Optional,
    /// None is asked for.
    None,
}

/// What becomes of a device about which nobody can say whether it is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is refused.
    Refuse,
    /// It is let in.
    Allow,
}

/// Which certificates OCSP responders are asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ocsp {
    /// None.
    #[default]
    Off,
    /// The device's own.
    Leaf,
    /// The device's own and those of the intermediates.
    Chain,
}

/// How sessions are resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resumption {
    /// The client keeps the session's state, sealed.
    Tickets,
    /// The gateway keeps it.
    Cache,
    /// Tickets for clients that take them, else the cache.
    Both,
    /// Each handshake is a full one.
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

/// Who is let in.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admit {
    /// CEL expressions that must all be true.
    pub require: Vec<At<String>>,
}

/// What CONNECT is rewritten to: CEL expressions that yield a string.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connect {
    /// Replaces the client identifier.
    pub client_id: Option<At<String>>,
    /// Replaces the user name.
    pub username: Option<At<String>>,
    /// Replaces the password: a CEL string, or a table of what a signed token is made of.
    pub password: Option<At<Password>>,
}

/// A group of brokers that serve the same clients.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Unique; appears in logs and metrics.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// `"host:port"`, or tables; `"embedded"` is the built-in broker.
    #[schemars(required)]
    pub servers: Option<At<Vec<At<Server>>>>,
    /// How often names are resolved again. Default: 30s.
    pub resolve_interval: Option<Timeout>,
    /// How a server is chosen. Default: hash.
    pub balance: Option<At<Balance>>,
    /// CEL string that `balance = "hash"` hashes. Default: mqtt.client_id.
    pub hash_key: Option<At<String>>,
    /// For each server tried. Default: 5s.
    pub connect_timeout: Option<Timeout>,
    /// Active health checks.
    pub health: Health,
    /// Failures within `fail_timeout` after which a server counts as down; 0 never. Default: 1.
    pub max_fails: Option<u32>,
    /// The window of `max_fails`, and how long a server then counts as down. Default: 10s.
    pub fail_timeout: Option<Timeout>,
    /// How long a server that recovered takes to reach its full weight. Default: 0s.
    pub slow_start: Option<At<Period>>,
    /// Encrypts towards the brokers; verification is always on.
    pub tls: Option<At<UpstreamTls>>,
}

/// One broker.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(with = "ServerForm")]
pub struct Server {
    /// `host:port`, or `embedded`.
    pub address: String,
    /// Share of the sessions relative to other servers.
    pub weight: u32,
    /// Sessions at once; none: no limit.
    pub max_connections: Option<NonZeroU32>,
    /// Used only when no other server is up.
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
    address: String,
    #[serde(default = "one")]
    weight: u32,
    max_connections: Option<NonZeroU32>,
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

/// How a server is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Ketama, consistent: a client keeps its broker while the broker is there.
    #[default]
    Hash,
    /// The fewest connections for its weight.
    LeastConnections,
    /// The better of two picked at random.
    RandomTwo,
    /// One after the other.
    RoundRobin,
}

/// Active health checks.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Default: mqtt.
    pub mode: HealthMode,
    /// From the end of one check to the next. Default: 5s.
    pub interval: Option<Timeout>,
    /// For one check as a whole. Default: 5s.
    pub timeout: Option<Timeout>,
    /// Failed checks in a row that take a server down. Default: 1.
    pub fails: Option<u32>,
    /// Passed checks in a row that take it up again. Default: 1.
    pub passes: Option<u32>,
    /// User name of the check's CONNECT.
    pub username: Option<String>,
    /// Password of the check's CONNECT.
    pub password: Option<At<Secret>>,
}

/// What a health check does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthMode {
    /// Sends a CONNECT (3.1.1) and wants a CONNACK.
    #[default]
    Mqtt,
    /// Opens a connection.
    Tcp,
    /// Nothing; servers are judged by the sessions' own connects.
    Off,
}

/// TLS towards brokers.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamTls {
    /// PEM bundle of trust anchors. Default: those of the system.
    pub ca: Option<At<PathBuf>>,
    /// PEM file of the gateway's own chain, leaf first.
    pub certificate: Option<At<PathBuf>>,
    /// PEM file of its private key; or a PKCS#11 URI of a key in a token.
    pub private_key: Option<At<String>>,
    /// What the private key is encrypted with, if it is.
    pub private_key_passphrase: Option<At<Secret>>,
    /// The name the broker's certificate must have. Default: the host in its address.
    pub server_name: Option<At<String>>,
}

/// One line for each connection, when it ends.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// A file that is appended to; `-` is standard output.
    #[schemars(required)]
    pub path: Option<At<PathBuf>>,
    /// Default: combined.
    pub format: AccessLogFormat,
}

/// What an access line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// Columns, as NGINX writes them.
    #[default]
    Combined,
    /// One JSON object a line.
    Json,
}

/// The process as a whole.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Threads that move bytes. Default: the cores.
    pub worker_threads: Option<At<usize>>,
    /// How long sessions may go on after SIGTERM. Default: 30s.
    pub drain_timeout: Option<Period>,
    /// What is logged: error, warn, info, debug, trace, or directives by target. Default: info.
    pub log: Option<At<String>>,
    /// Default: text.
    pub log_format: LogFormat,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// HTTP for operators: `/livez`, `/readyz`, `/metrics`.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// `address:port`, or `unix:PATH`.
    pub bind: At<String>,
}
