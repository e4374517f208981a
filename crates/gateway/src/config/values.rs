//! The types of single values in a configuration file.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::{Deref, Range};
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use zeroize::Zeroizing;

/// A position in the configuration file. Only `config` can read it: other modules pass it on to
/// [`Diagnostics`](super::Diagnostics).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location(pub(super) Range<usize>);

/// A value of the configuration file with its location, to report problems that appear only when the value is used.
#[derive(Clone, Debug, Default)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// `None`: the value is a default.
    pub(super) location: Option<Location>,
}

impl<T> Setting<T> {
    /// A value that the file does not set.
    pub(super) const fn default_of(value: T) -> Self {
        Self { value, location: None }
    }

    /// Whether the file sets it.
    pub(crate) const fn is_set(&self) -> bool {
        self.location.is_some()
    }

    /// Another value made from this one, with the same location.
    pub(super) fn map<U>(&self, map: impl FnOnce(&T) -> U) -> Setting<U> {
        Setting { value: map(&self.value), location: self.location.clone() }
    }
}

/// An item that a problem can be reported at.
pub trait Located {
    /// `None`: the file as a whole.
    fn location(&self) -> Option<&Location>;
}

impl Located for Location {
    fn location(&self) -> Option<&Location> {
        Some(self)
    }
}

impl<T> Located for Setting<T> {
    fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }
}

impl<T> Deref for Setting<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { location: Some(Location(spanned.span())), value: spanned.into_inner() })
    }
}

/// Serializes the value alone, so that the JSON schema can show it as a default.
impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for Setting<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let items = match toml::Value::deserialize(deserializer)? {
            toml::Value::Array(items) => items,
            one => vec![one],
        };
        items
            .into_iter()
            .map(|item| T::deserialize(item).map_err(|error| D::Error::custom(error.message())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany_{}", T::schema_name()).into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one }] })
    }
}

/// Implements `Deserialize` and `JsonSchema` for a type that the file writes as a string.
macro_rules! string_value {
    ($type:ty, $name:literal, $description:literal, $parse:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'_, str>::deserialize(deserializer)?;
                ($parse)(&*text).map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

/// A duration, written `"5s"`, `"10m"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

string_value!(Period, "Period", "a duration: \"0s\", \"250ms\", \"5s\", \"10m\", \"1h 30m\"", |text: &str| {
    parse_period(text).map(Period)
});

/// A duration of at least 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(pub Duration);

string_value!(Timeout, "Timeout", "a duration greater than 0: \"250ms\", \"5s\", \"10m\"", |text: &str| {
    let period = parse_period(text)?;
    if period < Duration::from_millis(1) { Err("must be at least \"1ms\"".to_owned()) } else { Ok(Timeout(period)) }
});

/// Implements `Serialize` in the notation of the file.
macro_rules! serialize_as_text {
    ($type:ty, $format:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&($format)(self))
            }
        }
    };
}

serialize_as_text!(Period, |period: &Period| humantime::format_duration(period.0));
serialize_as_text!(Timeout, |timeout: &Timeout| humantime::format_duration(timeout.0));
serialize_as_text!(Cidr, |net: &Cidr| net.0);
serialize_as_text!(ByteSize, |size: &ByteSize| match size.0 {
    size if size % (1 << 20) == 0 => format!("{}MiB", size >> 20),
    size if size % (1 << 10) == 0 => format!("{}KiB", size >> 10),
    size => size.to_string(),
});

/// Far longer than any deadline, and short enough that sums with the current time do not overflow.
const MAX_PERIOD: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

fn parse_period(text: &str) -> Result<Duration, String> {
    if text.trim_end().ends_with('M') {
        return Err(format!("`{text}` is in months: write \"m\" for minutes, or count in days"));
    }
    let period = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a duration like \"500ms\", \"5s\", \"10m\", \"12h\" or \"7d\""))?;
    if period > MAX_PERIOD { Err("must be at most ten years".to_owned()) } else { Ok(period) }
}

/// A number of bytes, written `"64KiB"`, `"1MiB"`, `"4096"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub usize);

string_value!(ByteSize, "ByteSize", "a size: \"512\", \"64KiB\", \"1MiB\"", |text: &str| {
    let size = text.parse::<bytesize::ByteSize>().ok().and_then(|size| usize::try_from(size.as_u64()).ok());
    size.map(ByteSize).ok_or_else(|| {
        if text.trim_end().ends_with('%') {
            return format!("`{text}` is a part of a size that the gateway does not know: write a size like \"2GiB\"");
        }
        format!("`{text}` is not a size like \"64KiB\", \"1MiB\" or \"2GiB\"")
    })
});

/// A network, written `"10.0.0.0/8"` or `"2001:db8::/32"`; a single address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr(pub IpNet);

string_value!(Cidr, "Cidr", "a network: \"10.0.0.0/8\", \"2001:db8::/32\", or one address", |text: &str| {
    Cidr::parse(text).ok_or_else(|| match text.to_ascii_lowercase().as_str() {
        // As NGINX and HAProxy write it.
        "all" | "any" | "*" => format!("`{text}` is no network: all are \"0.0.0.0/0\" and \"::/0\""),
        _ => format!("`{text}` is neither a network like \"10.0.0.0/8\" nor an address"),
    })
});

impl Cidr {
    /// Whether it has only addresses of this machine.
    fn is_loopback(&self) -> bool {
        self.0.network().is_loopback() && self.0.broadcast().is_loopback()
    }

    /// Parses a network or an address. Converts an IPv4-mapped network (`::ffff:10.0.0.0/104`) to IPv4, as client addresses
    /// are.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
        Some(Self(match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match IpAddr::V6(v6.network()).to_canonical() {
                IpAddr::V4(v4) => ipnet::Ipv4Net::new_assert(v4, v6.prefix_len() - 96).into(),
                IpAddr::V6(_) => net,
            },
            _ => net,
        }))
    }
}

/// An IP address without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IpAddress(pub(super) IpAddr);

string_value!(IpAddress, "IpAddress", "an IP address: \"10.0.0.5\", \"2001:db8::5\"", |text: &str| {
    text.parse()
        .map(IpAddress)
        .map_err(|_| format!("`{text}` is not an IP address; it has no port and is no host name"))
});

/// Where connections come from: a network, or `"unix"` for Unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// IP addresses.
    Network(Cidr),
    /// Processes on this machine that connect by a Unix socket.
    Unix,
}

string_value!(
    Origin,
    "Origin",
    "a network: \"10.0.0.0/8\", \"2001:db8::/32\", one address, or \"unix\"",
    |text: &str| {
        Origin::parse(text).ok_or_else(|| match text.to_ascii_lowercase().as_str() {
            // As NGINX and HAProxy write it.
            "all" | "any" | "*" => format!("`{text}` is no network: all are \"0.0.0.0/0\" and \"::/0\""),
            "unix:" => format!("`{text}` is not a network: write \"unix\" for Unix sockets"),
            _ => format!("`{text}` is neither a network like \"10.0.0.0/8\" nor an address"),
        })
    }
);

serialize_as_text!(Origin, |origin: &Origin| match origin {
    Origin::Network(net) => net.0.to_string(),
    Origin::Unix => "unix".to_owned(),
});

impl Origin {
    /// Parses a network, an address, or `unix`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "unix" { Some(Self::Unix) } else { Cidr::parse(text).map(Self::Network) }
    }

    /// Whether clients of Unix sockets may connect, by `allow` and `deny` of a listener.
    pub(crate) fn unix_is_allowed(allow: &[Self], deny: &[Self]) -> bool {
        !deny.contains(&Self::Unix) && (allow.is_empty() || allow.contains(&Self::Unix))
    }

    /// Whether it has only clients of this machine.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Network(net) => net.is_loopback(),
            Self::Unix => true,
        }
    }

    /// Its addresses; `None` for Unix sockets.
    pub(crate) const fn network(&self) -> Option<IpNet> {
        match self {
            Self::Network(net) => Some(net.0),
            Self::Unix => None,
        }
    }
}

/// Text that is never printed and is wiped from memory after use.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Copies `text`.
    pub(super) fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The text itself. Do not log it or store a copy.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

string_value!(Secret, "Secret", "a secret; best written ${ENV:NAME} or ${FILE:path}", |text: &str| {
    Ok::<_, std::convert::Infallible>(Secret::new(text))
});
