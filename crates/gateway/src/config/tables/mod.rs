//! One file for each table of the configuration. `Model` declares keys, types, defaults and the reference
//! documentation, from which the JSON schema and `docs/configuration.md` are generated. [`Settings`] is what the other
//! modules use.
//!
//! A table with an error still yields settings where possible, so that the rest of the file is validated too.

mod authenticator;
mod ban;
mod bind;
mod connect;
mod identity;
mod limits;
mod listener;
mod process;
mod proxy_protocol;
mod quic;
mod rates;
mod tcp;
mod tls;
mod topics;
mod upstream;
mod websocket;

pub(super) use authenticator::registry_urls;
pub use authenticator::{Authenticator, HttpService, JwksOrigin, Jwt, Method, PasswordFile, Registry};
pub use authenticator::{TokenAlgorithm, TokenField};
pub use ban::{BanEvent, BanKey, BanRule};
pub use bind::{Bind, SocketAccess, UnixBind};
pub use connect::{Connect, Password, Token};
pub use identity::{Identity, OWN_CLAIMS};
pub use limits::{ConnectionLimits, Limits, OnExceed, PacketLimits};
pub use listener::{Listener, OnReject, Protocol};
pub use process::{AccessLog, AccessLogFormat, DrainNotice, LogFormat, Process};
pub use proxy_protocol::ProxyProtocol;
pub use quic::Quic;
pub use rates::Rate;
pub use tcp::Tcp;
pub use tls::{
    CertificateFiles, CertificateTls, CipherPreference, ClientCertificates, Crl, CrlOrigin, Ocsp, OcspScope, OnFailure,
    PrivateKey, Psk, PskFormat, RawKeys, Resumption, Tls, TlsMode, TlsVersion,
};
pub(crate) use topics::MAX_PATTERN_LEVELS;
pub use topics::{Effect, OnDeny, PolicyMode, TopicPolicy, TopicRule};
pub use upstream::{
    Balance, Health, HealthMode, PassiveHealth, ProxyVersion, Server, ServerAddress, Service, Upstream, UpstreamTls,
};

pub use websocket::WebSocket;

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;

use super::diagnostics::{Complaint, Reported};
use super::document::Document;
use super::values::{Located, Setting};
use crate::expr::{Expression, Wanted};
use crate::util::suggest::suggest;

/// A configuration file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Config")]
pub(super) struct Model {
    /// Addresses on which clients connect. At least one is required.
    pub(super) listener: Vec<Setting<listener::ListenerTable>>,
    /// Sources that authenticate clients by what CONNECT carries. Listeners refer to them by name.
    pub(super) authenticator: Vec<Setting<authenticator::AuthenticatorTable>>,
    /// Groups of brokers. Listeners refer to them by name.
    pub(super) upstream: Vec<Setting<upstream::UpstreamTable>>,
    /// What clients may publish and subscribe to. Listeners refer to them by name.
    pub(super) topic_policy: Vec<Setting<topics::TopicPolicyTable>>,
    /// The access log: one line for each connection. Default: off.
    pub(super) access_log: Option<Setting<process::AccessLogTable>>,
    /// Settings of the process.
    pub(super) runtime: process::RuntimeTable,
    /// The key that signs tokens for brokers. Required if a `connect.password` is a table.
    pub(super) identity: Option<Setting<identity::IdentityTable>>,
    /// The HTTP interface for operators. Default: off.
    pub(super) admin: Option<process::AdminTable>,
}

/// A valid configuration: every default filled in, every path resolved, every reference to a name checked.
#[derive(Debug, Default)]
pub struct Settings {
    /// In the order of the file.
    pub listeners: Vec<Listener>,
    /// In the order of the file.
    pub authenticators: Vec<Authenticator>,
    /// In the order of the file.
    pub upstreams: Vec<Upstream>,
    /// In the order of the file.
    pub topic_policies: Vec<TopicPolicy>,
    /// `None`: no access log.
    pub access_log: Option<AccessLog>,
    /// Settings of the process.
    pub process: Process,
    /// The key that signs tokens for brokers.
    pub identity: Option<Identity>,
    /// `None`: no admin interface.
    pub admin: Option<Setting<Bind>>,
}

const EXAMPLE: &str =
    "add one, for example: [[listener]] name = \"devices\" bind = \"0.0.0.0:8883\" upstream = \"brokers\"";

/// Validates all tables; reports every error.
pub(super) fn validate(model: &Model, document: &mut Document) -> Settings {
    // If the file could not be read, the missing listener is a consequence.
    if model.listener.is_empty() && !document.diagnostics.has_errors() {
        let complaint = Complaint::new("no [[listener]] is defined").hint(EXAMPLE);
        document.diagnostics.file_error(complaint);
    }
    names(&model.listener, "listener", document);
    let names = Names {
        upstreams: names(&model.upstream, "upstream", document),
        authenticators: names(&model.authenticator, "authenticator", document),
        topic_policies: names(&model.topic_policy, "topic_policy", document),
        registries: model.authenticator.iter().filter(|table| table.is_registry()).count(),
        has_identity: model.identity.is_some(),
    };
    let mut bound = listener::Bound::default();
    let mut settings = Settings {
        upstreams: model.upstream.iter().filter_map(|table| upstream::validate(table, document).ok()).collect(),
        identity: model.identity.as_ref().and_then(|table| identity::validate(table, document).ok()),
        authenticators: model
            .authenticator
            .iter()
            .filter_map(|table| authenticator::validate(table, document).ok())
            .collect(),
        listeners: model.listener.iter().map(|table| listener::validate(table, &names, &mut bound, document)).collect(),
        topic_policies: model.topic_policy.iter().map(|table| topics::validate(table, document)).collect(),
        process: process::validate_runtime(&model.runtime, document),
        admin: model.admin.as_ref().and_then(|table| process::validate_admin(table, document).ok()),
        access_log: model.access_log.as_ref().and_then(|table| process::validate_access_log(table, document).ok()),
    };
    let is_taken = |admin: &Setting<Bind>| bound.has_stream(&admin.value);
    if let Some(admin) = settings.admin.take_if(|admin| is_taken(admin)) {
        document.error(&admin, "a listener is bound to this address");
    }
    settings
}

/// The names that listeners refer to.
struct Names {
    upstreams: Vec<String>,
    authenticators: Vec<String>,
    topic_policies: Vec<String>,
    /// Number of authenticators of the kind `registry`.
    registries: usize,
    has_identity: bool,
}

/// A table with a `name`.
trait Named {
    fn name(&self) -> Option<&Setting<String>>;
}

/// The names of the tables of one kind. Reports missing, empty and duplicate names.
fn names<T: Named>(tables: &[Setting<T>], kind: &str, document: &mut Document) -> Vec<String> {
    let mut seen: Vec<&Setting<String>> = Vec::new();
    for table in tables {
        let Ok(name) = document.require(table.value.name(), table, "name", "it appears in logs and metrics") else {
            continue;
        };
        if name.is_empty() {
            document.error(name, "`name` is empty");
        } else if let Some(first) = seen.iter().find(|first| first.value == name.value) {
            let hint = format!("the first one is in line {}", document.diagnostics.line_of(*first));
            document.error(name, Complaint::new(format!("duplicate {kind} name `{}`", name.value)).hint(hint));
        } else {
            seen.push(name);
        }
    }
    seen.into_iter().map(|name| name.value.clone()).collect()
}

/// Reports a reference to a name that no table of this kind has, and suggests a similar one.
fn check_known(kind: &str, name: &Setting<String>, known: &[String], document: &mut Document) -> Result<(), Reported> {
    if known.contains(&name.value) {
        return Ok(());
    }
    let hint = match suggest(name, known.iter().map(String::as_str)) {
        Some(suggestion) => format!("did you mean `{suggestion}`?"),
        // Those of the file could not be read.
        None if known.is_empty() && document.is_unread(kind, &Setting::default_of(())) => {
            return Err(document.diagnostics.already_reported());
        }
        None if known.is_empty() => format!("no {kind} is defined"),
        None => format!("defined: {}", known.join(", ")),
    };
    Err(document.error(name, Complaint::new(format!("unknown {kind} `{}`", name.value)).hint(hint)))
}

/// Compiles an expression, if the file sets one. Rejects substitutions: the inserted text would be code, and logs and
/// errors show the code.
fn compile(
    source: Option<&Setting<String>>,
    wanted: Wanted,
    document: &mut Document,
) -> Result<Option<Setting<Expression>>, Reported> {
    let Some(source) = source else { return Ok(None) };
    if document.is_substituted(source) {
        let complaint = Complaint::new("substitution is not supported in expressions");
        let hint = "`${ENV:...}` and `${FILE:...}` work only in values that are not expressions";
        return Err(document.error(source, complaint.hint(hint)));
    }
    let compiled = Expression::compile(source, wanted);
    compiled.map(|expression| Some(source.map(|_| expression))).map_err(|errors| {
        for error in errors {
            let mut complaint = Complaint::new(error.message);
            complaint.hint = error.hint;
            document.diagnostics.error_within(source, error.span, complaint);
        }
        document.diagnostics.already_reported()
    })
}

/// Warns of a secret in plain text, that is, without a substitution.
fn warn_of_literal_secret(secret: &impl Located, message: &str, hint: &str, document: &mut Document) {
    if !document.is_substituted(secret) {
        document.warning(secret, Complaint::new(message).hide_line().hint(hint));
    }
}

const fn nonzero(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}
