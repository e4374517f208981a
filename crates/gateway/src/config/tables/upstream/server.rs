//! A server of an upstream: one broker.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::config::diagnostics::{Complaint, Reported};
use crate::config::document::Document;
use crate::config::tables::bind::parse_unix_path;
use crate::config::values::Setting;

/// A higher weight would fill a hash ring with a million points for one server.
const MAX_WEIGHT: u32 = 1000;
const HINT: &str = "write \"host:port\", for example \"10.0.0.113:1883\", or \"unix:/run/mosquitto.sock\"";

/// One broker.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Server")]
pub(super) enum ServerTable {
    /// `host:port`, `unix:PATH`, or `embedded`.
    Address(String),
    /// With more settings.
    Table(ServerOptions),
}

/// One broker with its settings.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["address"]))]
pub(super) struct ServerOptions {
    /// `host:port`, `unix:PATH`, or `embedded`.
    address: Option<String>,
    /// Share of the sessions relative to other servers, 1 to 1000.
    #[serde(default = "default_weight")]
    weight: u32,
    /// Maximum number of concurrent sessions. Default: no limit.
    max_connections: Option<NonZeroU32>,
    /// Used only when no other server is up.
    #[serde(default)]
    backup: bool,
    /// Takes no new sessions, and its sessions end at `drain_pace`: clients that connect again reach other servers.
    #[serde(default)]
    drain: bool,
    /// Takes no new sessions; its sessions stay until they end.
    #[serde(default)]
    down: bool,
}

impl ServerTable {
    /// Whether it is a Unix socket, or the embedded broker.
    pub(super) fn is_without_ip(&self) -> bool {
        let address = match self {
            Self::Address(address) => address,
            Self::Table(options) => options.address.as_deref().unwrap_or_default(),
        };
        address == "embedded" || address.starts_with("unix:")
    }
}

const fn default_weight() -> u32 {
    1
}

/// Implemented by hand for its errors: those of serde's untagged enums name neither the key nor its location.
impl<'de> Deserialize<'de> for ServerTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ServerVisitor)
    }
}

struct ServerVisitor;

impl<'de> Visitor<'de> for ServerVisitor {
    type Value = ServerTable;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("`host:port` or a table")
    }

    fn visit_str<E: serde::de::Error>(self, address: &str) -> Result<ServerTable, E> {
        Ok(ServerTable::Address(address.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ServerTable, A::Error> {
        ServerOptions::deserialize(MapAccessDeserializer::new(map)).map(ServerTable::Table)
    }
}

/// One broker.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address of the broker.
    pub address: ServerAddress,
    /// Share of the sessions relative to other servers.
    pub weight: u32,
    /// Maximum number of concurrent sessions; `None`: no limit.
    pub max_connections: Option<NonZeroU32>,
    /// Used only when no other server is up.
    pub backup: bool,
    /// Whether it takes sessions.
    pub service: Service,
}

/// Whether a server takes sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// It does.
    Active,
    /// It takes no new ones, and those that it has are ended step by step.
    Drain,
    /// It takes no new ones, and keeps those that it has.
    Down,
}

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// The embedded broker, in this process.
    Embedded,
    /// An address and port.
    Socket(SocketAddr),
    /// A Unix socket.
    Unix(Arc<Path>),
    /// A host name and port.
    Name(Arc<str>, u16),
}

/// Reports every error, and warns of the embedded broker.
pub(super) fn validate(server: &Setting<ServerTable>, document: &mut Document) -> Result<Server, Reported> {
    let validated = match &server.value {
        ServerTable::Address(address) => validate_address(address, server, document).map(|address| Server {
            address,
            weight: default_weight(),
            max_connections: None,
            backup: false,
            service: Service::Active,
        }),
        ServerTable::Table(options) => {
            let address = document.require(options.address.as_ref(), server, "address", HINT);
            let address = address.and_then(|address| validate_address(address, server, document));
            let service = match (options.drain, options.down) {
                (true, true) => {
                    let message = "a server has either `drain` or `down`: with `down`, its sessions stay";
                    Err(document.error(server, message))
                }
                (true, false) => Ok(Service::Drain),
                (false, true) => Ok(Service::Down),
                (false, false) => Ok(Service::Active),
            };
            if !(1..=MAX_WEIGHT).contains(&options.weight) {
                return Err(document.error(server, format!("`weight` must be between 1 and {MAX_WEIGHT}")));
            }
            let ServerOptions { weight, max_connections, backup, .. } = *options;
            Ok(Server { address: address?, weight, max_connections, backup, service: service? })
        }
    }?;
    if matches!(validated.address, ServerAddress::Embedded) {
        let message = "the embedded broker keeps all data in memory and does not authenticate clients";
        document.warning(server, Complaint::new(message).hint("use it only for tests and trials"));
    }
    Ok(validated)
}

fn validate_address(
    address: &str,
    server: &Setting<ServerTable>,
    document: &mut Document,
) -> Result<ServerAddress, Reported> {
    if let Some(path) = address.strip_prefix("unix:") {
        let path = parse_unix_path(path, document).map_err(|complaint| document.error(server, complaint))?;
        return Ok(ServerAddress::Unix(path));
    }
    parse_address(address).map_err(|message| document.error(server, Complaint::new(message).hint(HINT)))
}

fn parse_address(text: &str) -> Result<ServerAddress, String> {
    if text == "embedded" {
        return if cfg!(feature = "embedded-broker") {
            Ok(ServerAddress::Embedded)
        } else {
            Err("this binary was built without the feature `embedded-broker`".to_owned())
        };
    }
    if let Ok(address) = text.parse() {
        return Ok(ServerAddress::Socket(address));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` has no port"))?;
    let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    if port == 0 || host.is_empty() || host.contains([':', '/', ' ']) {
        return Err(format!("`{text}` is not an address"));
    }
    Ok(ServerAddress::Name(host.into(), port))
}
