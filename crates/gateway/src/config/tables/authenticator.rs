//! `[[authenticator]]`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use portcullis_registry::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Located, Location, OneOrMany, Period, Secret, Setting, Timeout};
use super::{Named, compile, nonzero, warn_of_literal_secret};
use crate::expr::{Expression, Wanted};
use crate::util::url::{host_of, is_url};

/// A source that authenticates clients by what CONNECT carries. `kind` decides which of the other keys apply.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Authenticator", extend("required" = ["name", "kind"]))]
pub(in crate::config) struct AuthenticatorTable {
    /// Name of the authenticator. Listeners refer to it in `authenticate`; it appears in logs and must be unique.
    name: Option<Setting<String>>,
    /// `password_file`, `jwt`, `http` or `registry`.
    kind: Option<Setting<Kind>>,
    /// `password_file`: file of `user:hash` lines, as `portcullis passwd` and `mosquitto_passwd` write them. Reloaded
    /// when it changes. Required.
    file: Option<Setting<PathBuf>>,
    /// `password_file`, `registry`, `http`: how long a verified password, or an `allow` response, is cached; `0s`
    /// disables the cache. Default: `60s`; for `http` `30s`.
    cache: Option<Setting<Period>>,
    /// `jwt`: the issuer's public keys (JWKS): a file, reloaded when it changes, or an `http` or `https` URL. Required.
    jwks: Option<Setting<String>>,
    /// `jwt`: what carries the token: `password` or `username` of CONNECT; `header` (`Authorization: Bearer`) or `cookie` of the
    /// request for WebSocket, if CONNECT has no password.
    field: Setting<TokenField>,
    /// `jwt`: name of the cookie. Required with `field = "cookie"`.
    cookie: Option<Setting<String>>,
    /// `jwt`: value that the `iss` claim must have. Default: not checked; `check` warns.
    issuer: Option<Setting<String>>,
    /// `jwt`: value that the `aud` claim must have or contain; of a list, one is enough. Default: not checked; `check`
    /// warns.
    audience: Option<Setting<OneOrMany<String>>>,
    /// `jwt`: type that the token's header must state in `typ`, such as `at+jwt` (RFC 9068), so that a token for another
    /// purpose is rejected. Default: not checked.
    typ: Option<Setting<String>>,
    /// `jwt`: accepted signature algorithms: `ES256`, `ES384`, `PS256`, `PS384`, `PS512`, `RS256`, `RS384`, `RS512`,
    /// `EdDSA`. Default: `ES256`, `ES384`, `PS256`, `RS256`, `EdDSA`.
    algorithms: Setting<Vec<TokenAlgorithm>>,
    /// `jwt`: how far the issuer's clock may be ahead, for `nbf`. `exp` has no leeway.
    leeway: Setting<Period>,
    /// `jwt`: longest time between two fetches of a JWKS URL.
    refresh: Setting<Timeout>,
    /// `http`: URL to which the gateway sends its request. Required.
    url: Option<Setting<String>>,
    /// `http`: headers of the request, as `{ Authorization = "Bearer ${FILE:token}" }`. Default: none.
    headers: Option<Setting<BTreeMap<String, Secret>>>,
    /// `http`, `jwt`: PEM bundle of trust anchors for `https`. Default: the system's.
    ca: Option<Setting<PathBuf>>,
    /// `http`: time for one response. It may queue equally long first.
    timeout: Setting<Timeout>,
    /// `http`: maximum number of concurrent requests.
    max_concurrency: Setting<NonZeroU32>,
    /// `http`: how long a `deny` or `ignore` response is cached; `0s` disables the cache.
    negative_cache: Setting<Period>,
    /// `http`: consecutive failures that open the circuit breaker. No single client can keep it open.
    break_after: Setting<NonZeroU32>,
    /// `http`: time between two probes of the service while the circuit breaker is open.
    break_time: Setting<Timeout>,
    /// `registry`: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`. Required.
    database: Option<Setting<Secret>>,
    /// `registry`: CEL expression that returns the device ID, over `cert`, `tls.psk_identity`, `tls.key_name` and
    /// `tls.key_fingerprint` only. Default: the device pinned to the presented key, else the one whose pre-shared key
    /// was used, else `mqtt.username`.
    device: Option<Setting<String>>,
    /// `registry`: devices kept in memory. The gateway rejects devices beyond them.
    max_devices: Setting<NonZeroU32>,
}

impl Default for AuthenticatorTable {
    fn default() -> Self {
        use TokenAlgorithm::{ES256, ES384, EdDSA, PS256, RS256};
        let seconds = Duration::from_secs;
        Self {
            name: None,
            kind: None,
            file: None,
            cache: None,
            jwks: None,
            field: Setting::default_of(TokenField::Password),
            cookie: None,
            issuer: None,
            audience: None,
            typ: None,
            algorithms: Setting::default_of(vec![ES256, ES384, PS256, RS256, EdDSA]),
            leeway: Setting::default_of(Period(seconds(30))),
            refresh: Setting::default_of(Timeout(seconds(15 * 60))),
            url: None,
            headers: None,
            ca: None,
            timeout: Setting::default_of(Timeout(seconds(5))),
            max_concurrency: Setting::default_of(nonzero(64)),
            negative_cache: Setting::default_of(Period(seconds(5))),
            break_after: Setting::default_of(nonzero(5)),
            break_time: Setting::default_of(Timeout(seconds(10))),
            database: None,
            device: None,
            max_devices: Setting::default_of(nonzero(1_000_000)),
        }
    }
}

impl AuthenticatorTable {
    pub(super) fn is_registry(&self) -> bool {
        self.kind.as_ref().is_some_and(|kind| kind.value == Kind::Registry)
    }

    /// How long a successful verification is cached; `default` is in seconds.
    fn cache_for(&self, default: u64) -> Duration {
        self.cache.as_ref().map_or(Duration::from_secs(default), |period| period.value.0)
    }

    /// Each key that does not apply to all kinds: its location, if it is set, and the kinds that it applies to.
    fn keys(&self) -> [(&'static str, Option<&Location>, &'static [Kind]); 22] {
        use Kind::{Http, Jwt, PasswordFile, Registry};
        fn set<T>(setting: Option<&Setting<T>>) -> Option<&Location> {
            setting.and_then(Located::location)
        }
        [
            ("file", set(self.file.as_ref()), &[PasswordFile]),
            ("cache", set(self.cache.as_ref()), &[PasswordFile, Http, Registry]),
            ("jwks", set(self.jwks.as_ref()), &[Jwt]),
            ("field", self.field.location(), &[Jwt]),
            ("cookie", set(self.cookie.as_ref()), &[Jwt]),
            ("issuer", set(self.issuer.as_ref()), &[Jwt]),
            ("audience", set(self.audience.as_ref()), &[Jwt]),
            ("typ", set(self.typ.as_ref()), &[Jwt]),
            ("algorithms", self.algorithms.location(), &[Jwt]),
            ("leeway", self.leeway.location(), &[Jwt]),
            ("refresh", self.refresh.location(), &[Jwt]),
            ("url", set(self.url.as_ref()), &[Http]),
            ("headers", set(self.headers.as_ref()), &[Http]),
            ("ca", set(self.ca.as_ref()), &[Http, Jwt]),
            ("timeout", self.timeout.location(), &[Http]),
            ("max_concurrency", self.max_concurrency.location(), &[Http]),
            ("negative_cache", self.negative_cache.location(), &[Http]),
            ("break_after", self.break_after.location(), &[Http]),
            ("break_time", self.break_time.location(), &[Http]),
            ("database", set(self.database.as_ref()), &[Registry]),
            ("device", set(self.device.as_ref()), &[Registry]),
            ("max_devices", self.max_devices.location(), &[Registry]),
        ]
    }
}

impl Named for AuthenticatorTable {
    fn name(&self) -> Option<&Setting<String>> {
        self.name.as_ref()
    }
}

/// The kind of an authenticator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AuthenticatorKind")]
enum Kind {
    /// A file of users and password hashes.
    PasswordFile,
    /// Tokens signed by an issuer (RFC 7519).
    Jwt,
    /// An HTTP service.
    Http,
    /// The device registry.
    Registry,
}

impl Kind {
    /// The value of `kind` in the file.
    const fn label(self) -> &'static str {
        match self {
            Self::PasswordFile => "password_file",
            Self::Jwt => "jwt",
            Self::Http => "http",
            Self::Registry => "registry",
        }
    }
}

/// What can carry a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenField {
    /// The password.
    Password,
    /// The user name.
    Username,
    /// The `Authorization` header of the request for WebSocket.
    Header,
    /// A cookie of the request for WebSocket.
    Cookie,
}

/// A signature algorithm of RFC 7518, 3.1, or RFC 8037. Public keys only: a public key can never be used as an HMAC
/// secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum TokenAlgorithm {
    ES256,
    ES384,
    PS256,
    PS384,
    PS512,
    RS256,
    RS384,
    RS512,
    EdDSA,
}

/// Authenticates clients by what their CONNECT carries.
#[derive(Debug)]
pub struct Authenticator {
    /// Unique.
    pub name: String,
    /// Location of the table.
    pub(crate) table: Location,
    /// The method, with its settings.
    pub method: Method,
}

/// How clients are authenticated.
#[derive(Debug)]
pub enum Method {
    /// A file of users and password hashes.
    PasswordFile(PasswordFile),
    /// Tokens signed by an issuer.
    Jwt(Box<Jwt>),
    /// A service that the gateway asks over HTTP.
    Http(Box<HttpService>),
    /// The device registry.
    Registry(Box<Registry>),
}

impl Method {
    /// The value of `kind` in the file.
    pub(crate) const fn kind(&self) -> &'static str {
        let kind = match self {
            Self::PasswordFile(_) => Kind::PasswordFile,
            Self::Jwt(_) => Kind::Jwt,
            Self::Http(_) => Kind::Http,
            Self::Registry(_) => Kind::Registry,
        };
        kind.label()
    }
}

/// A file of users and password hashes.
#[derive(Debug)]
pub struct PasswordFile {
    /// Lines of `user:hash`.
    pub file: Setting<PathBuf>,
    /// How long a successful verification is cached.
    pub cache: Duration,
}

/// Tokens signed by an issuer.
#[derive(Debug)]
pub struct Jwt {
    /// The issuer's public keys.
    pub jwks: JwksOrigin,
    /// PEM bundle of trust anchors for `https`; `None`: those of the system.
    pub ca: Option<Setting<PathBuf>>,
    /// What carries the token.
    pub field: TokenField,
    /// The name of the cookie, if that carries it.
    pub cookie: Option<String>,
    /// The `iss` that a token must have; `None`: not checked.
    pub issuer: Option<String>,
    /// The values of which a token's `aud` must be or contain one; `None`: not checked.
    pub audience: Option<Vec<String>>,
    /// The `typ` that a token's header must have; `None`: not checked.
    pub typ: Option<String>,
    /// Accepted signature algorithms, at least one.
    pub algorithms: Vec<TokenAlgorithm>,
    /// How far the issuer's clock may be ahead, for `nbf`.
    pub leeway: Duration,
    /// Longest time between two fetches of a JWKS URL.
    pub refresh: Duration,
}

/// The source of a JWKS.
#[derive(Clone, Debug)]
pub enum JwksOrigin {
    /// A JWKS file.
    File(Setting<PathBuf>),
    /// An `http` or `https` URL.
    Url(String),
}

/// A service that the gateway asks over HTTP.
#[derive(Debug)]
pub struct HttpService {
    /// An `http` or `https` URL. It may contain a secret.
    pub url: Secret,
    /// Headers of each request.
    pub headers: HeaderMap,
    /// PEM bundle of trust anchors for `https`; `None`: those of the system.
    pub ca: Option<Setting<PathBuf>>,
    /// Time for one response.
    pub timeout: Duration,
    /// Maximum number of concurrent requests.
    pub max_concurrency: u32,
    /// How long an `allow` response is cached.
    pub cache: Duration,
    /// How long a `deny` or `ignore` response is cached.
    pub negative_cache: Duration,
    /// Consecutive failures that open the circuit breaker.
    pub break_after: u32,
    /// Time between two probes of the service while the circuit breaker is open.
    pub break_time: Duration,
}

/// The device registry.
#[derive(Debug)]
pub struct Registry {
    /// URL of the database.
    pub database: Setting<Url>,
    /// Yields the device ID from variables that TLS proves.
    pub device: Option<Expression>,
    /// How long a successful verification of a password is cached.
    pub cache: Duration,
    /// Devices kept in memory.
    pub max_devices: usize,
}

pub(super) fn validate(
    table: &Setting<AuthenticatorTable>,
    document: &mut Document,
) -> Result<Authenticator, Reported> {
    let hint = "password_file, jwt, http or registry";
    let kind = document.require(table.kind.as_ref(), table, "kind", hint)?.value;
    reject_misplaced(table, kind, document);
    let method = match kind {
        Kind::PasswordFile => validate_password_file(table, document).map(Method::PasswordFile),
        Kind::Jwt => validate_jwt(table, document).map(|jwt| Method::Jwt(Box::new(jwt))),
        Kind::Http => validate_http(table, document).map(|http| Method::Http(Box::new(http))),
        Kind::Registry => validate_registry(table, document).map(|registry| Method::Registry(Box::new(registry))),
    };
    // `names` has reported a missing name.
    let name = table.name.as_ref().map(|name| name.value.clone()).unwrap_or_default();
    Ok(Authenticator { name, table: table.location.clone().unwrap_or_default(), method: method? })
}

/// Reports keys that do not apply to this kind.
fn reject_misplaced(table: &AuthenticatorTable, kind: Kind, document: &mut Document) {
    for (key, location, kinds) in table.keys() {
        let Some(location) = location.filter(|_| !kinds.contains(&kind)) else { continue };
        let of: Vec<&str> = kinds.iter().map(|kind| kind.label()).collect();
        // A header or a URL may contain a secret.
        let complaint = Complaint::new(format!("`{key}` has no effect with `kind = \"{}\"`", kind.label())).hide_line();
        document.error(location, complaint.hint(format!("`{key}` applies only to {}", of.join(" and "))));
    }
}

fn validate_password_file(
    table: &Setting<AuthenticatorTable>,
    document: &mut Document,
) -> Result<PasswordFile, Reported> {
    let file = document.require(table.file.as_ref(), table, "file", "create one with `portcullis passwd FILE USER`")?;
    Ok(PasswordFile { file: file.map(|file| document.resolve(file)), cache: table.cache_for(60) })
}

fn validate_cookie(table: &Setting<AuthenticatorTable>, document: &mut Document) -> Result<Option<String>, Reported> {
    let is_used = table.field.value == TokenField::Cookie;
    if let Some(cookie) = table.cookie.as_ref().filter(|_| !is_used) {
        document.error(cookie, Complaint::new("`cookie` requires `field = \"cookie\"`"));
    }
    if !is_used {
        return Ok(None);
    }
    document
        .require(table.cookie.as_ref(), table, "cookie", "cookie = \"session\"")
        .map(|name| Some(name.value.clone()))
}

fn validate_jwt(table: &Setting<AuthenticatorTable>, document: &mut Document) -> Result<Jwt, Reported> {
    let hint = "a file of the issuer's public keys, or an `https` URL";
    let origin = document.require(table.jwks.as_ref(), table, "jwks", hint)?;
    let jwks = if is_url(origin) {
        if origin.starts_with("http://") && !document.is_substituted(origin) {
            let complaint = Complaint::new("keys fetched over plain HTTP can be replaced in transit").hide_line();
            document.warning(origin, complaint.hint("https://"));
        }
        JwksOrigin::Url(origin.value.clone())
    } else {
        JwksOrigin::File(origin.map(|path| document.resolve(Path::new(path))))
    };
    let mut algorithms = table.algorithms.value.clone();
    if document.is_unread("algorithms", table) {
        // The error was reported; the default lets validation of the table continue.
        algorithms = AuthenticatorTable::default().algorithms.value;
    } else if algorithms.is_empty() {
        return Err(document.error(&table.algorithms, "`algorithms` is empty, so no token would be accepted"));
    }
    if table.issuer.is_none() {
        let message = "`iss` is not checked: tokens of any issuer are accepted if one of these keys signed them";
        document.warning(table, Complaint::new(message).hint("issuer = \"https://issuer.example.com\""));
    }
    if table.audience.is_none() {
        let complaint = Complaint::new("`aud` is not checked: tokens for other services are accepted");
        document.warning(table, complaint.hint("audience = \"mqtt\""));
    }
    Ok(Jwt {
        jwks,
        ca: resolve_ca(table, document),
        field: table.field.value,
        cookie: validate_cookie(table, document)?,
        issuer: table.issuer.as_ref().map(|issuer| issuer.value.clone()),
        audience: table.audience.as_ref().map(|audience| audience.value.0.clone()),
        typ: table.typ.as_ref().map(|typ| typ.value.clone()),
        algorithms,
        leeway: table.leeway.value.0,
        refresh: table.refresh.value.0,
    })
}

fn validate_http(table: &Setting<AuthenticatorTable>, document: &mut Document) -> Result<HttpService, Reported> {
    let hint = "where the gateway sends the JSON document about a client";
    let url = document.require(table.url.as_ref(), table, "url", hint)?;
    if !is_url(url) {
        return Err(document.error(url, Complaint::new("not an `http` or `https` URL").hide_line()));
    }
    let host = host_of(url);
    let is_local =
        host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if url.starts_with("http://") && !is_local {
        let complaint = Complaint::new("the gateway sends passwords to this service over plain HTTP").hide_line();
        document.warning(url, complaint.hint("https://"));
    }
    let mut headers = HeaderMap::new();
    if let Some(table) = &table.headers {
        for (name, value) in &table.value {
            let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) else {
                let message = format!("invalid header `{}`", name.escape_debug());
                return Err(document.error(table, Complaint::new(message).hide_line()));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    Ok(HttpService {
        url: Secret::new(url),
        headers,
        ca: resolve_ca(table, document),
        timeout: table.timeout.value.0,
        max_concurrency: table.max_concurrency.value.get(),
        cache: table.cache_for(30),
        negative_cache: table.negative_cache.value.0,
        break_after: table.break_after.value.get(),
        break_time: table.break_time.value.0,
    })
}

fn validate_registry(table: &Setting<AuthenticatorTable>, document: &mut Document) -> Result<Registry, Reported> {
    let hint = "sqlite:devices.db, or postgres://USER:PASSWORD@HOST/DATABASE";
    let database = document.require(table.database.as_ref(), table, "database", hint)?;
    let device = validate_device(table, document);
    let url = parse_url(database, document)?;
    if url.path().is_none() && database.expose().contains('@') {
        let message = "the configuration file may contain a password in plain text";
        warn_of_literal_secret(database, message, "database = \"${FILE:database.url}\"", document);
    }
    if url.is_unverified() {
        let complaint =
            Complaint::new("device keys are read over a connection that does not verify the database server");
        document.warning(database, complaint.hide_line().hint("?sslmode=verify-full&sslrootcert=..."));
    }
    Ok(Registry {
        database: database.map(|_| url),
        device: device?,
        cache: table.cache_for(60),
        max_devices: table.max_devices.value.get() as usize,
    })
}

fn validate_device(table: &AuthenticatorTable, document: &mut Document) -> Result<Option<Expression>, Reported> {
    let device = compile(table.device.as_ref(), Wanted::String, document)?;
    match (&device, &table.device) {
        (Some(expression), Some(source)) if !expression.value.is_about_proofs() => {
            let complaint =
                Complaint::new("`device` must use only variables that TLS proves; a client can forge all others");
            let hint = "cert, tls.psk_identity, tls.key_name, tls.key_fingerprint";
            Err(document.error(source, complaint.hint(hint)))
        }
        _ => Ok(device.map(|device| device.value)),
    }
}

/// The URLs of the registries that these tables name. Other errors in the tables do not matter.
pub(in crate::config) fn registry_urls(tables: &[Setting<AuthenticatorTable>], document: &mut Document) -> Vec<Url> {
    let databases = tables.iter().filter_map(|table| table.database.as_ref());
    databases.filter_map(|database| parse_url(database, document).ok()).collect()
}

fn parse_url(database: &Setting<Secret>, document: &mut Document) -> Result<Url, Reported> {
    let resolve = |path: &str| document.resolve(Path::new(path)).display().to_string();
    Url::parse(database.expose(), resolve)
        .map_err(|problem| document.error(database, Complaint::new(problem).hide_line()))
}

fn resolve_ca(table: &AuthenticatorTable, document: &Document) -> Option<Setting<PathBuf>> {
    table.ca.as_ref().map(|ca| ca.map(|ca| document.resolve(ca)))
}
