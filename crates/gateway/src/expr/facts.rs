//! The names an expression may use, and their values for one client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cel::objects::{Key, Map, Value};
use cel::{Context, Env};
use chrono::{DateTime, FixedOffset, Utc};
use portcullis_wire::Connect;
use serde_json::Value as Json;

use crate::registry::Fingerprint;
use crate::tls::{Certificate, Name};

/// A type as far as it is known at load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Type {
    Bool,
    Int,
    String,
    Timestamp,
    List,
    Map,
    /// Fields by name.
    Struct(&'static [(&'static str, Type)]),
    /// Found out when it is evaluated.
    Unknown,
}

impl Type {
    /// Whether a value of this type may be one of `other`.
    pub(super) fn fits(self, other: Type) -> bool {
        self == Type::Unknown || other == Type::Unknown || self == other
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Type::Bool => "a boolean",
            Type::Int => "a number",
            Type::String => "a string",
            Type::Timestamp => "a timestamp",
            Type::List => "a list",
            Type::Map => "a map",
            Type::Struct(_) => "a group of fields",
            Type::Unknown => "something",
        }
    }
}

const NAME: Type = Type::Struct(&[
    ("dn", Type::String),
    ("cn", Type::String),
    ("o", Type::String),
    ("ou", Type::String),
    ("c", Type::String),
    ("l", Type::String),
    ("st", Type::String),
]);

const CERT: Type = Type::Struct(&[
    ("subject", NAME),
    ("issuer", NAME),
    ("serial", Type::String),
    ("fingerprint", Type::Struct(&[("sha256", Type::String), ("sha1", Type::String)])),
    ("san", Type::Struct(&[("dns", Type::List), ("uri", Type::List), ("email", Type::List), ("ip", Type::List)])),
    ("not_before", Type::Timestamp),
    ("not_after", Type::Timestamp),
]);

const TLS: Type = Type::Struct(&[
    ("version", Type::String),
    ("cipher", Type::String),
    ("sni", Type::String),
    ("alpn", Type::String),
    ("resumed", Type::Bool),
    ("psk_identity", Type::String),
    ("key_name", Type::String),
    ("key_fingerprint", Type::String),
]);

const MQTT: Type = Type::Struct(&[
    ("client_id", Type::String),
    ("username", Type::String),
    ("version", Type::Int),
    ("keep_alive", Type::Int),
    ("clean_start", Type::Bool),
    ("will", Type::Struct(&[("topic", Type::String)])),
    ("user_properties", Type::Map),
]);

const CONN: Type =
    Type::Struct(&[("remote_addr", Type::String), ("remote_port", Type::Int), ("listener", Type::String)]);

const DEVICE: Type = Type::Struct(&[("id", Type::String), ("groups", Type::List), ("attributes", Type::Map)]);

/// The top-level names.
pub(super) const NAMES: &[(&str, Type)] = &[
    ("cert", CERT),
    ("jwt", Type::Map),
    ("device", DEVICE),
    ("http", Type::Map),
    ("tls", TLS),
    ("mqtt", MQTT),
    ("conn", CONN),
    ("now", Type::Timestamp),
];

/// How many of [`NAMES`], from the first, a client may have nothing for.
pub(super) const OPTIONAL: usize = 4;

/// A set of positions in [`NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Roots(u8);

impl Roots {
    pub(super) fn insert(&mut self, position: usize) {
        self.0 |= 1 << position;
    }

    pub(super) const fn contains(self, position: usize) -> bool {
        self.0 & 1 << position != 0
    }

    /// Those of this set that are in the other, too.
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of this set that are not in the other.
    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What TLS proved or agreed on.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite by the standard's name, as `TLS_AES_256_GCM_SHA384`.
    pub cipher: Box<str>,
    /// The name the client asked for.
    pub sni: Option<Box<str>>,
    /// The application protocol agreed on.
    pub alpn: Option<Box<str>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The pre-shared key that was used.
    pub psk: Option<UsedPsk>,
    /// The raw public key it proved to own.
    pub raw_key: Option<RawKey>,
}

/// A pre-shared key that was used.
#[derive(Clone, Debug)]
pub struct UsedPsk {
    /// Its identity.
    pub identity: Box<str>,
    /// Tells the key from others; for this process only.
    pub mark: u64,
}

/// A raw public key [RFC 7250].
#[derive(Clone, Debug)]
pub struct RawKey {
    /// Of its SubjectPublicKeyInfo.
    pub fingerprint: Fingerprint,
    /// What the file of keys calls it.
    pub name: Option<Box<str>>,
}

/// Where the connection came from and to.
#[derive(Clone, Copy, Debug)]
pub struct ConnFacts<'a> {
    /// The client's address.
    pub remote: SocketAddr,
    /// The listener's name.
    pub listener: &'a str,
}

/// What is known of a client when its CONNECT has arrived. Never its password.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The certificate it proved to own.
    pub certificate: Option<&'a Certificate>,
    /// TLS, if it is spoken.
    pub tls: Option<&'a TlsFacts>,
    /// The CONNECT packet, as the client sent it.
    pub mqtt: &'a Connect<'a>,
    /// The connection.
    pub conn: ConnFacts<'a>,
    /// What authenticators found out.
    pub found: Found<'a>,
}

/// What authenticators found out about a client, each as a JSON object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found<'a> {
    /// The claims of its token.
    pub jwt: Option<&'a Json>,
    /// Its entry in the device registry.
    pub device: Option<&'a Json>,
    /// What the authentication service said of it.
    pub http: Option<&'a Json>,
}

impl Facts<'_> {
    /// Those of the optional names that there is nothing for.
    pub(super) fn missing(&self) -> Roots {
        let Found { jwt, device, http } = self.found;
        let mut missing = Roots::default();
        let there = [self.certificate.is_some(), jwt.is_some(), device.is_some(), http.is_some()];
        let absent = there.into_iter().enumerate().filter(|(_, is_there)| !is_there);
        absent.for_each(|(position, _)| missing.insert(position));
        missing
    }

    /// The values of the names in `roots`. What is not there (a certificate, a user name) is a field that is missing,
    /// so that looking at it is an error and asking for it with `has()` is false.
    pub(super) fn context(&self, env: Arc<Env>, roots: Roots) -> Context<'static, 'static> {
        let mut context = Context::with_env(env);
        for (position, (name, _)) in NAMES.iter().enumerate() {
            if roots.contains(position) {
                context.add_variable_from_value(*name, self.value(name));
            }
        }
        context
    }

    fn value(&self, name: &str) -> Value {
        match name {
            "cert" => self.certificate.map_or_else(Fields::default, certificate).into(),
            "jwt" => self.found.jwt.map_or_else(|| Fields::default().into(), json),
            "device" => self.found.device.map_or_else(|| Fields::default().into(), json),
            "http" => self.found.http.map_or_else(|| Fields::default().into(), json),
            "tls" => self.tls.map_or_else(Fields::default, tls).into(),
            "mqtt" => mqtt(self.mqtt).into(),
            "conn" => Fields::default()
                .text("remote_addr", &self.conn.remote.ip().to_canonical().to_string())
                .set("remote_port", i64::from(self.conn.remote.port()).into())
                .text("listener", self.conn.listener)
                .into(),
            _ => Value::Timestamp(Utc::now().fixed_offset()),
        }
    }
}

fn certificate(certificate: &Certificate) -> Fields {
    let list = |values: &[String]| Value::List(Arc::new(values.iter().map(|value| text(value)).collect()));
    let san = &certificate.san;
    Fields::default()
        .set("subject", name(&certificate.subject))
        .set("issuer", name(&certificate.issuer))
        .text("serial", &certificate.serial)
        .set(
            "fingerprint",
            Fields::default().text("sha256", &certificate.sha256()).text("sha1", &certificate.sha1()).into(),
        )
        .set(
            "san",
            Fields::default()
                .set("dns", list(&san.dns))
                .set("uri", list(&san.uri))
                .set("email", list(&san.email))
                .set("ip", list(&san.ip))
                .into(),
        )
        .time("not_before", certificate.not_before)
        .time("not_after", certificate.not_after)
}

fn name(name: &Name) -> Value {
    Fields::default()
        .maybe("dn", name.dn.as_deref())
        .maybe("cn", name.cn.as_deref())
        .maybe("o", name.o.as_deref())
        .maybe("ou", name.ou.as_deref())
        .maybe("c", name.c.as_deref())
        .maybe("l", name.l.as_deref())
        .maybe("st", name.st.as_deref())
        .into()
}

fn tls(tls: &TlsFacts) -> Fields {
    Fields::default()
        .text("version", tls.version)
        .text("cipher", &tls.cipher)
        .maybe("sni", tls.sni.as_deref())
        .maybe("alpn", tls.alpn.as_deref())
        .set("resumed", tls.resumed.into())
        .maybe("psk_identity", tls.psk.as_ref().map(|psk| &*psk.identity))
        .maybe("key_name", tls.raw_key.as_ref().and_then(|key| key.name.as_deref()))
        .maybe("key_fingerprint", tls.raw_key.as_ref().map(|key| hex::encode(key.fingerprint)).as_deref())
}

fn mqtt(connect: &Connect<'_>) -> Fields {
    // A name may come more than once, and which one counts is not ours to choose: each name has the list of its values.
    let mut properties: HashMap<Key, Vec<Value>> = HashMap::new();
    for (name, value) in connect.properties.user_properties() {
        properties.entry(name.to_owned().into()).or_default().push(text(value));
    }
    let properties = properties.into_iter().map(|(name, values)| (name, Value::List(Arc::new(values)))).collect();
    let fields = Fields::default()
        .text("client_id", connect.client_id)
        .maybe("username", connect.username)
        .set("version", i64::from(connect.version as u8).into())
        .set("keep_alive", i64::from(connect.keep_alive).into())
        .set("clean_start", connect.clean_start.into())
        .set("user_properties", Value::Map(Map { map: Arc::new(properties) }));
    match connect.will {
        Some(will) => fields.set("will", Fields::default().text("topic", will.topic).into()),
        None => fields,
    }
}

/// A JSON document as a value. Its depth is bounded by the parser's.
fn json(document: &Json) -> Value {
    match document {
        Json::Null => Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(value) => text(value),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(json).collect())),
        Json::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone().into(), json(value)));
            Value::Map(Map { map: Arc::new(fields.collect()) })
        }
    }
}

/// A value as JSON; `None`: it has none.
pub(super) fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::UInt(value) => (*value).into(),
        Value::Float(value) => serde_json::Number::from_f64(*value)?.into(),
        Value::String(value) => value.as_str().into(),
        Value::Timestamp(time) => time.timestamp().into(),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(map) => {
            let entry = |(key, value): (&Key, &Value)| match key {
                Key::String(name) => Some((name.to_string(), to_json(value)?)),
                _ => None,
            };
            Json::Object(map.map.iter().map(entry).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

/// A map from field names to values, built field by field.
#[derive(Default)]
struct Fields(HashMap<Key, Value>);

impl Fields {
    fn set(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned().into(), value);
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        self.set(name, text(value))
    }

    fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// Seconds since 1970; a date that the calendar has not is missing.
    fn time(self, name: &str, seconds: i64) -> Self {
        let time: Option<DateTime<FixedOffset>> = DateTime::from_timestamp(seconds, 0).map(|time| time.fixed_offset());
        match time {
            Some(time) => self.set(name, Value::Timestamp(time)),
            None => self,
        }
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Self {
        Value::Map(Map { map: Arc::new(fields.0) })
    }
}
