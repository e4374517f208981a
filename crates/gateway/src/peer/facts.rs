//! The table of facts about a client: name, type, meaning and getter of each. Expressions, the HTTP authenticator, logs
//! and the reference in `docs/expressions.md` use it. The client's password is not among them.

use std::borrow::Cow;

use hex::encode as to_hex;
use portcullis_wire::{Connect, Properties};
use serde_json::Value as Json;

use super::{Certificate, Name, Peer};

/// What the gateway knows about a client at the time of its CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The peer of the connection, below MQTT.
    pub peer: &'a Peer,
    /// The listener's name.
    pub listener: &'a str,
    /// The CONNECT packet.
    pub mqtt: &'a Connect<'a>,
    /// The attributes from authenticators.
    pub attributes: AuthAttributes<'a>,
    /// Time of the evaluation in seconds since 1970.
    pub now: i64,
}

/// Attributes of a client from authenticators, each a JSON object.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthAttributes<'a> {
    /// The claims of its token.
    pub jwt: Option<&'a Json>,
    /// Its entry in the device registry.
    pub device: Option<&'a Json>,
    /// The attributes in the response of the authentication service.
    pub http: Option<&'a Json>,
    /// Name and kind of the authenticator that admitted the client.
    pub authenticator: Option<(&'a str, &'static str)>,
}

/// The type of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactType {
    /// True or false.
    Bool,
    /// A number.
    Int,
    /// Text.
    String,
    /// A time.
    Timestamp,
    /// A list of strings.
    List,
    /// A map from names to values.
    Map,
}

/// The value of a fact.
#[derive(Clone, Debug)]
pub enum FactValue<'a> {
    /// True or false.
    Bool(bool),
    /// A number.
    Int(i64),
    /// Text.
    Text(Cow<'a, str>),
    /// Seconds since 1970.
    Time(i64),
    /// A list of strings.
    List(&'a [String]),
    /// User properties: each name has the list of its values.
    UserProperties(&'a Properties<'a>),
    /// A JSON value.
    Json(&'a Json),
}

/// One row of the table.
pub struct Fact {
    /// Its path in expressions.
    pub path: &'static str,
    /// The type of its values.
    pub kind: FactType,
    /// Whether it may be missing although its root exists.
    pub optional: bool,
    /// Whether TLS proves it, and does not only negotiate it.
    pub proved: bool,
    /// Its field in the request of the `http` authenticator: `field` or `object.field`. `None`: it is not sent.
    pub sent_as: Option<&'static str>,
    /// Its description in the reference.
    pub meaning: &'static str,
    get: for<'a> fn(&Facts<'a>) -> Option<FactValue<'a>>,
}

/// A top-level name.
pub struct Root {
    /// The name.
    pub name: &'static str,
    /// What a client has that has it.
    pub meaning: &'static str,
    /// Whether a client has it. `None`: every client does.
    presence: Option<fn(&Facts<'_>) -> bool>,
}

impl Root {
    /// Whether a client may lack it. An expression that uses it without `has()` then rejects the client.
    pub const fn is_optional(&self) -> bool {
        self.presence.is_some()
    }
}

/// The top-level names, in the order of the reference.
pub const ROOTS: &[Root] = &[
    Root { name: "cert", meaning: "certificate (`cert`)", presence: Some(|f| f.peer.certificate().is_some()) },
    Root {
        name: "jwt",
        meaning: "token that an authenticator verified (`jwt`)",
        presence: Some(|f| f.attributes.jwt.is_some()),
    },
    Root {
        name: "device",
        meaning: "entry in a device registry (`device`)",
        presence: Some(|f| f.attributes.device.is_some()),
    },
    Root {
        name: "http",
        meaning: "response of an authentication service (`http`)",
        presence: Some(|f| f.attributes.http.is_some()),
    },
    Root {
        name: "auth",
        meaning: "authenticator that knows it (`auth`)",
        presence: Some(|f| f.attributes.authenticator.is_some()),
    },
    Root { name: "tls", meaning: "`tls`", presence: None },
    Root {
        name: "proxy",
        meaning: "header of the PROXY protocol (`proxy`)",
        presence: Some(|f| f.peer.proxy.is_some()),
    },
    Root { name: "mqtt", meaning: "`mqtt`", presence: None },
    Root { name: "conn", meaning: "`conn`", presence: None },
    Root { name: "now", meaning: "`now`", presence: None },
];

/// Defines the table: `path: type flags [field] = meaning, getter;`. Flags: `optional` if the value may be missing, `proved`
/// if TLS proves it. Field: its name in the request of the `http` authenticator, if it is sent.
macro_rules! facts {
    ($($path:literal: $kind:ident $($flag:ident)* $([$sent:literal])? = $meaning:literal, $get:expr;)*) => {
        /// All facts, grouped by their roots.
        pub const FACTS: &[Fact] = &[$(Fact {
            path: $path,
            kind: FactType::$kind,
            optional: facts!(@has optional $($flag)*),
            proved: facts!(@has proved $($flag)*),
            sent_as: facts!(@sent $($sent)?),
            meaning: $meaning,
            get: $get,
        },)*];
    };
    (@sent) => { None };
    (@sent $sent:literal) => { Some($sent) };
    (@has optional optional $($rest:ident)*) => { true };
    (@has proved proved $($rest:ident)*) => { true };
    (@has $wanted:ident $other:ident $($rest:ident)*) => { facts!(@has $wanted $($rest)*) };
    (@has $wanted:ident) => { false };
}

facts! {
    "cert.subject.dn": String optional proved ["certificate.subject"] = "subject as NGINX's `$ssl_client_s_dn` (RFC 2253)", |f| text(subject(f)?.dn.as_deref());
    "cert.subject.cn": String optional proved ["certificate.common_name"] = "first common name of the subject", |f| text(subject(f)?.cn.as_deref());
    "cert.subject.o": String optional proved = "first organisation of the subject", |f| text(subject(f)?.o.as_deref());
    "cert.subject.ou": String optional proved = "first organisational unit of the subject", |f| text(subject(f)?.ou.as_deref());
    "cert.subject.c": String optional proved = "first country of the subject", |f| text(subject(f)?.c.as_deref());
    "cert.subject.l": String optional proved = "first locality of the subject", |f| text(subject(f)?.l.as_deref());
    "cert.subject.st": String optional proved = "first state or province of the subject", |f| text(subject(f)?.st.as_deref());
    "cert.issuer.dn": String optional proved ["certificate.issuer"] = "issuer, in the same format", |f| text(issuer(f)?.dn.as_deref());
    "cert.issuer.cn": String optional proved = "first common name of the issuer", |f| text(issuer(f)?.cn.as_deref());
    "cert.issuer.o": String optional proved = "first organisation of the issuer", |f| text(issuer(f)?.o.as_deref());
    "cert.issuer.ou": String optional proved = "first organisational unit of the issuer", |f| text(issuer(f)?.ou.as_deref());
    "cert.issuer.c": String optional proved = "first country of the issuer", |f| text(issuer(f)?.c.as_deref());
    "cert.issuer.l": String optional proved = "first locality of the issuer", |f| text(issuer(f)?.l.as_deref());
    "cert.issuer.st": String optional proved = "first state or province of the issuer", |f| text(issuer(f)?.st.as_deref());
    "cert.serial": String proved ["certificate.serial"] = "serial number, upper-case hex", |f| Some(borrowed(&cert(f)?.serial));
    "cert.fingerprint.sha256": String proved ["certificate.sha256"] = "of the certificate in DER, lower-case hex", |f| Some(owned(cert(f)?.sha256()));
    "cert.fingerprint.sha1": String proved = "SHA-1 of the certificate in DER, lower-case hex; for existing lists", |f| Some(owned(cert(f)?.sha1()));
    "cert.san.dns": List proved = "DNS names", |f| Some(FactValue::List(&cert(f)?.san.dns));
    "cert.san.uri": List proved = "URIs", |f| Some(FactValue::List(&cert(f)?.san.uri));
    "cert.san.email": List proved = "email addresses", |f| Some(FactValue::List(&cert(f)?.san.email));
    "cert.san.ip": List proved = "IP addresses", |f| Some(FactValue::List(&cert(f)?.san.ip));
    "cert.not_before": Timestamp proved = "start of validity", |f| Some(FactValue::Time(cert(f)?.not_before));
    "cert.not_after": Timestamp proved = "end of validity", |f| Some(FactValue::Time(cert(f)?.not_after));
    "jwt": Map = "claims of the token that a `jwt` authenticator verified", |f| f.attributes.jwt.map(FactValue::Json);
    "device.id": String = "ID in the device registry", |f| Some(FactValue::Json(f.attributes.device?.get("id")?));
    "device.groups": List = "groups in the device registry", |f| Some(FactValue::Json(f.attributes.device?.get("groups")?));
    "device.attributes": Map = "attributes in the device registry", |f| Some(FactValue::Json(f.attributes.device?.get("attributes")?));
    "http": Map = "attributes in the response of an `http` authenticator", |f| f.attributes.http.map(FactValue::Json);
    "auth.name": String = "name of the authenticator that knows the client", |f| Some(borrowed(f.attributes.authenticator?.0));
    "auth.kind": String = "its kind: `password_file`, `jwt`, `http` or `registry`", |f| Some(borrowed(f.attributes.authenticator?.1));
    "tls.version": String optional ["tls.version"] = "`TLSv1.2` or `TLSv1.3`", |f| Some(borrowed(f.peer.tls.as_ref()?.version));
    "tls.cipher": String optional = "cipher suite, by its standard name", |f| Some(borrowed(&f.peer.tls.as_ref()?.cipher));
    "tls.sni": String optional ["tls.sni"] = "server name that the client requested", |f| f.peer.tls.as_ref()?.sni.as_deref().map(borrowed);
    "tls.alpn": String optional = "application protocol", |f| f.peer.tls.as_ref()?.alpn.as_deref().map(borrowed);
    "tls.resumed": Bool optional = "whether the session was resumed", |f| Some(FactValue::Bool(f.peer.tls.as_ref()?.resumed));
    "tls.psk_identity": String optional proved ["tls.psk_identity"] = "identity of the pre-shared key", |f| Some(borrowed(&f.peer.psk()?.identity));
    "tls.key_name": String optional proved ["tls.key_name"] = "name of the raw public key in its file", |f| f.peer.raw_key()?.name.as_deref().map(borrowed);
    "tls.key_fingerprint": String optional proved ["tls.key_fingerprint"] = "SHA-256 of the raw public key, lower-case hex", |f| Some(owned(to_hex(f.peer.raw_key()?.fingerprint)));
    "proxy.ssl.verified": Bool optional proved = "whether the load balancer has verified a certificate of the client; only with `certificate = true` in `proxy_protocol`, and if the balancer terminates TLS", |f| Some(FactValue::Bool(f.peer.proxy.as_ref()?.ssl.as_ref()?.verified));
    "proxy.ssl.cn": String optional proved ["proxy.ssl_cn"] = "common name of that certificate; missing if it was not verified", |f| text(f.peer.proxy.as_ref()?.ssl.as_ref()?.cn.as_deref());
    "proxy.authority": String optional = "host name that the client requested from the load balancer", |f| text(f.peer.proxy.as_ref()?.authority.as_deref());
    "proxy.unique_id": String optional = "name of the connection at the load balancer", |f| text(f.peer.proxy.as_ref()?.unique_id.as_deref());
    "mqtt.client_id": String ["client_id"] = "client identifier", |f| Some(borrowed(f.mqtt.client_id));
    "mqtt.username": String optional ["username"] = "user name", |f| f.mqtt.username.map(borrowed);
    "mqtt.version": Int ["mqtt_version"] = "3, 4 (MQTT 3.1.1) or 5", |f| Some(FactValue::Int(i64::from(f.mqtt.version as u8)));
    "mqtt.keep_alive": Int = "keep-alive interval, seconds", |f| Some(FactValue::Int(i64::from(f.mqtt.keep_alive)));
    "mqtt.clean_start": Bool = "clean start (clean session before MQTT 5)", |f| Some(FactValue::Bool(f.mqtt.clean_start));
    "mqtt.user_properties": Map = "user properties of MQTT 5: each name has the list of its values", |f| Some(FactValue::UserProperties(&f.mqtt.properties));
    "mqtt.will.topic": String optional = "topic of the will", |f| f.mqtt.will.as_ref().map(|will| borrowed(will.topic));
    "conn.remote_addr": String ["remote_addr"] = "address of the client; `unix:` on a Unix socket", |f| Some(owned(f.peer.address.host()));
    "conn.remote_port": Int = "port of the client; 0 on a Unix socket", |f| Some(FactValue::Int(i64::from(f.peer.address.port())));
    "conn.peer_addr": String = "address of the peer of the socket: the load balancer's, behind one that speaks the PROXY protocol", |f| Some(owned(f.peer.socket.host()));
    "conn.path": String optional = "path of the request for WebSocket, without its query", |f| Some(borrowed(&f.peer.http.as_ref()?.path));
    "conn.origin": String optional = "origin of the page that a browser shows", |f| Some(borrowed(&f.peer.http.as_ref()?.origin.as_ref()?.text));
    "conn.headers": Map optional = "headers of the request for WebSocket that `headers` of [listener.websocket] names, by their names in lower case", |f| Some(FactValue::Json(&f.peer.http.as_ref()?.headers));
    "conn.listener": String ["listener"] = "name of the listener", |f| Some(borrowed(f.listener));
    "now": Timestamp = "the time of the evaluation", |f| Some(FactValue::Time(f.now));
}

impl Fact {
    /// Whether the client chooses its value: it is in what the client sends, and nothing proves it.
    pub fn is_chosen(&self) -> bool {
        root_of(self.path) == "mqtt"
            || ["tls.sni", "tls.alpn", "proxy.authority", "conn.path", "conn.origin", "conn.headers"]
                .contains(&self.path)
    }

    /// Its value for a client; `None`: the client lacks it.
    pub fn get<'a>(&self, facts: &Facts<'a>) -> Option<FactValue<'a>> {
        (self.get)(facts)
    }
}

impl Facts<'_> {
    /// Whether a root exists for this client.
    pub fn has_root(&self, root: &Root) -> bool {
        root.presence.is_none_or(|is_present| is_present(self))
    }
}

/// The top-level name of a path.
pub fn root_of(path: &str) -> &str {
    path.split_once('.').map_or(path, |(root, _)| root)
}

fn cert<'a>(facts: &Facts<'a>) -> Option<&'a Certificate> {
    facts.peer.certificate()
}

fn subject<'a>(facts: &Facts<'a>) -> Option<&'a Name> {
    cert(facts).map(|certificate| &certificate.subject)
}

fn issuer<'a>(facts: &Facts<'a>) -> Option<&'a Name> {
    cert(facts).map(|certificate| &certificate.issuer)
}

fn text(text: Option<&str>) -> Option<FactValue<'_>> {
    text.map(borrowed)
}

fn borrowed(text: &str) -> FactValue<'_> {
    FactValue::Text(Cow::Borrowed(text))
}

const fn owned<'a>(text: String) -> FactValue<'a> {
    FactValue::Text(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_has_a_root_and_no_path_is_doubled_or_a_group() {
        for (index, fact) in FACTS.iter().enumerate() {
            assert!(ROOTS.iter().any(|root| root.name == root_of(fact.path)), "{}", fact.path);
            let is_plain = matches!(fact.kind, FactType::String | FactType::Int);
            assert!(fact.sent_as.is_none() || is_plain, "{}: the request has text and numbers only", fact.path);
            let group = format!("{}.", fact.path);
            let others = FACTS.iter().enumerate().filter(|(other, _)| *other != index);
            assert!(
                others.into_iter().all(|(_, it)| it.path != fact.path && !it.path.starts_with(&group)),
                "{}",
                fact.path
            );
        }
    }

    #[test]
    fn a_client_that_proved_nothing_has_no_optional_root() {
        let peer = Peer::plain(([192, 0, 2, 1], 5).into());
        let connect = Connect {
            version: portcullis_wire::Version::V5,
            clean_start: true,
            keep_alive: 60,
            properties: Properties::default(),
            client_id: "a",
            will: None,
            username: None,
            password: Some(b"secret"),
        };
        let facts = Facts { peer: &peer, listener: "l", mqtt: &connect, attributes: AuthAttributes::default(), now: 7 };
        for fact in FACTS {
            let root = ROOTS.iter().find(|root| root.name == root_of(fact.path)).unwrap();
            assert_eq!(facts.has_root(root), !root.is_optional());
            let value = fact.get(&facts);
            assert_eq!(value.is_some(), !root.is_optional() && !fact.optional, "{}", fact.path);
            assert!(!format!("{value:?}").contains("secret"), "{}", fact.path);
        }
    }
}
