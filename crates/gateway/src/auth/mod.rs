//! Who a client is by what its CONNECT carries: passwords, tokens, what a service or the device registry says. Enters: what
//! is known of a client. Leaves: a [`Principal`], or a refusal. Never here: what the principal may do.
//!
//! A listener's authenticators are asked in their order. The first that knows the client decides; one that cannot find out
//! whether it knows it refuses, for the next might let in whom this one has banned.

mod cache;
mod http;
mod jwks;
mod jwt;
mod password;
mod password_file;
mod registry;

pub(crate) use jwks::JwksUrl;
pub use password::PasswordHash;
pub use password_file::{check_user, set_password};
pub use registry::registries_of;

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::config::model::{self, AuthenticatorKind};
use crate::config::{At, Document};
use crate::expr::{Facts, Found, UsedPsk};
use crate::fetch::Fetcher;
use crate::kept::Kept;
use crate::outcome::{CloseReason, Reject};
use crate::refresh::Refreshed;
use crate::registry::{DeviceGround, Fingerprint, Registries, Replica};
use crate::tls::Certificate;
use crate::trust::Key;

/// Something that knows clients.
#[derive(Debug)]
pub struct Authenticator {
    /// Unique.
    pub name: Arc<str>,
    method: Method,
}

#[derive(Debug)]
enum Method {
    PasswordFile(Box<password_file::PasswordFile>),
    Jwt(Box<jwt::Tokens>),
    Http(Box<http::Service>),
    Registry(Box<registry::Devices>),
}

/// Who a client is, and what was found out about it.
#[derive(Debug, Default)]
pub struct Principal {
    /// The authenticator that knows it.
    pub authenticator: Option<Arc<str>>,
    /// The claims of its token.
    pub jwt: Option<Json>,
    /// Its entry in the device registry.
    pub device: Option<Json>,
    /// What the authentication service said of it.
    pub http: Option<Json>,
    /// The client identifier that the authentication service gives it.
    pub client_id: Option<String>,
    /// The user name that the authentication service gives it.
    pub username: Option<String>,
    /// What it stands on for as long as it is connected.
    pub standing: Option<Standing>,
}

/// What a session stands on beside TLS: what may be withdrawn, or expire, while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    authenticator: Arc<str>,
    ground: Ground,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ground {
    /// A user of a password file, and what tells its hash from others.
    User(Box<str>, u64),
    /// A token, by what it was verified with, and when it expires.
    Token(jwt::Verified, i64),
    /// An answer of a service: what tells its URL from others, and when it expires, if it does.
    Answer(u64, Option<i64>),
    /// A device of the registry.
    Device(DeviceGround),
}

/// What an authenticator says of a client.
enum Answer {
    Known(Box<Principal>),
    /// It knows it, and refuses it; or it has to know, and cannot.
    Refused(Reject),
    /// Somebody else may know it.
    Unknown,
}

/// A client that wants to be known.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    facts: &'a Facts<'a>,
}

impl<'a> Candidate<'a> {
    fn remote(self) -> IpAddr {
        self.facts.conn.remote.ip()
    }

    /// An empty user name is none.
    fn username(self) -> Option<&'a str> {
        self.facts.mqtt.username.filter(|username| !username.is_empty())
    }

    /// Of what it proved to own in the handshake: certificate and key.
    fn fingerprints(self) -> Vec<Fingerprint> {
        let raw_key = self.facts.tls.and_then(|tls| tls.raw_key.as_ref()).map(|key| key.fingerprint);
        let certificate = self.facts.certificate.map(Certificate::fingerprints);
        certificate.into_iter().flatten().chain(raw_key).collect()
    }

    /// The pre-shared key it used.
    fn psk(self) -> Option<&'a UsedPsk> {
        self.facts.tls?.psk.as_ref()
    }

    fn password(self) -> Option<&'a [u8]> {
        self.facts.mqtt.password
    }
}

/// What authenticators share, over reloads too.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) registries: Registries,
    /// By URL, and by the trust anchors that it is fetched by.
    pub(crate) jwks: Kept<String, Refreshed<JwksUrl>>,
}

impl Authenticator {
    /// Compiles a table; says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(
        table: &At<model::Authenticator>,
        sources: &Sources,
        document: &mut Document,
    ) -> Option<Self> {
        let Some(kind) = &table.kind else {
            document.missing(&table.span, "kind", "password_file, jwt, http or registry");
            return None;
        };
        let is_misplaced = misplaced(table, kind.value, document);
        let method = match kind.value {
            AuthenticatorKind::PasswordFile => {
                password_file::PasswordFile::compile(table, document).map(|it| Method::PasswordFile(Box::new(it)))
            }
            AuthenticatorKind::Jwt => {
                jwt::Tokens::compile(table, sources, document).map(|it| Method::Jwt(Box::new(it)))
            }
            AuthenticatorKind::Http => http::Service::compile(table, document).map(|it| Method::Http(Box::new(it))),
            AuthenticatorKind::Registry => {
                registry::Devices::compile(table, sources, document).map(|it| Method::Registry(Box::new(it)))
            }
        };
        let name = table.name.as_ref()?.as_str().into();
        method.filter(|_| !is_misplaced).map(|method| Self { name, method })
    }

    /// Its registry, if it is one.
    pub(crate) fn registry(&self) -> Option<&Arc<Replica>> {
        match &self.method {
            Method::Registry(devices) => Some(devices.replica()),
            _ => None,
        }
    }

    /// Fetches what it needs, for the first time; takes a bounded time.
    pub(crate) async fn prepare(&self) {
        match &self.method {
            Method::Jwt(tokens) => tokens.prepare().await,
            Method::Registry(devices) => devices.replica().prepare().await,
            Method::PasswordFile(_) | Method::Http(_) => {}
        }
    }

    /// Begins, in the background, to fetch what is due.
    pub(crate) fn fetch_due(&self) {
        if let Method::Jwt(tokens) = &self.method {
            tokens.fetch_due();
        }
    }

    /// Reads files again that have changed; whether those who stand on them are to be judged again.
    pub(crate) fn read_changed_files(&self) -> bool {
        match &self.method {
            Method::PasswordFile(file) => file.read_changed_file(&self.name),
            Method::Jwt(tokens) => tokens.read_changed_keys(&self.name),
            Method::Http(_) | Method::Registry(_) => false,
        }
    }

    /// Why a session that stands on this authenticator has to end; `None`: it has not. `facts_count`: what the registry
    /// says of a device has decided about it. `now` is in seconds since 1970.
    pub(crate) fn judge(&self, standing: &Standing, facts_count: bool, now: i64) -> Option<CloseReason> {
        match (&self.method, &standing.ground) {
            (Method::PasswordFile(file), Ground::User(user, mark)) => file.judge(user, *mark),
            (Method::Jwt(tokens), Ground::Token(verified, until)) => tokens.judge(verified, *until, now),
            (Method::Http(service), Ground::Answer(url, until)) => service.judge(*url, *until),
            (Method::Registry(devices), Ground::Device(ground)) => devices.replica().judge(ground, facts_count, now),
            // The name is another kind's now.
            _ => Some(CloseReason::CredentialWithdrawn),
        }
    }

    async fn ask(&self, candidate: Candidate<'_>) -> Answer {
        let answer = match &self.method {
            Method::PasswordFile(file) => file.ask(candidate, &self.name).await,
            Method::Jwt(tokens) => tokens.ask(candidate, &self.name).await,
            Method::Http(service) => service.ask(candidate, &self.name).await,
            Method::Registry(devices) => devices.ask(candidate, &self.name).await,
        };
        if let Answer::Refused(reject) = &answer {
            tracing::debug!(authenticator = &*self.name, reason = reject.label(), "refused");
        }
        answer
    }

    /// Takes the time that a wrong password takes, if it verifies passwords; whether it does.
    async fn pretend(&self, candidate: Candidate<'_>) -> Result<bool, Reject> {
        match &self.method {
            Method::PasswordFile(file) => file.pretend(candidate).await.map(|()| true),
            Method::Registry(devices) => devices.pretend(candidate).await.map(|()| true),
            Method::Jwt(_) | Method::Http(_) => Ok(false),
        }
    }
}

impl Standing {
    /// The authenticator it is by.
    pub fn authenticator(&self) -> &str {
        &self.authenticator
    }

    /// The last second of its time, counted from 1970: at `exp` it is over [RFC 7519, 4.1.4].
    pub fn until(&self) -> Option<i64> {
        match self.ground {
            Ground::Token(_, until) => Some(until - 1),
            Ground::Answer(_, until) => until.map(|until| until.saturating_sub(1)),
            Ground::User(..) | Ground::Device(_) => None,
        }
    }

    /// Its place in indexes of what may change.
    pub fn key(&self) -> Option<Key> {
        match &self.ground {
            Ground::Device(device) => Some(crate::registry::key(&device.id)),
            Ground::User(..) | Ground::Token(..) | Ground::Answer(..) => None,
        }
    }
}

impl Principal {
    /// What expressions may know of it.
    pub fn found(&self) -> Found<'_> {
        Found { jwt: self.jwt.as_ref(), device: self.device.as_ref(), http: self.http.as_ref() }
    }
}

/// Asks a listener's authenticators who a client is. `Ok(None)`: there are none, so nobody is asked for anything.
///
/// # Errors
/// Why the client is refused.
pub(crate) async fn authenticate(
    authenticators: &[Arc<Authenticator>],
    facts: &Facts<'_>,
) -> Result<Option<Box<Principal>>, Reject> {
    if authenticators.is_empty() {
        return Ok(None);
    }
    let candidate = Candidate { facts };
    for authenticator in authenticators {
        match authenticator.ask(candidate).await {
            Answer::Known(principal) => return Ok(Some(principal)),
            Answer::Refused(reject) => return Err(reject),
            Answer::Unknown => {}
        }
    }
    // Whom nobody knows is to wait as long as one whose password is wrong.
    for authenticator in authenticators {
        if authenticator.pretend(candidate).await? {
            break;
        }
    }
    Err(Reject::UnknownClient)
}

/// Says which keys of a table are another kind's; whether there are any.
fn misplaced(table: &At<model::Authenticator>, kind: AuthenticatorKind, document: &mut Document) -> bool {
    use AuthenticatorKind::{Http, Jwt, PasswordFile, Registry};
    type Span<'a> = Option<&'a std::ops::Range<usize>>;
    fn span<T>(at: Option<&At<T>>) -> Span<'_> {
        at.map(|at| &at.span)
    }
    let keys: &[(&str, Span<'_>, &[AuthenticatorKind])] = &[
        ("file", span(table.file.as_ref()), &[PasswordFile]),
        ("cache", span(table.cache.as_ref()), &[PasswordFile, Http, Registry]),
        ("jwks", span(table.jwks.as_ref()), &[Jwt]),
        ("field", span(table.field.as_ref()), &[Jwt]),
        ("issuer", span(table.issuer.as_ref()), &[Jwt]),
        ("audience", span(table.audience.as_ref()), &[Jwt]),
        ("algorithms", span(table.algorithms.as_ref()), &[Jwt]),
        ("leeway", span(table.leeway.as_ref()), &[Jwt]),
        ("refresh", span(table.refresh.as_ref()), &[Jwt]),
        ("url", span(table.url.as_ref()), &[Http]),
        ("headers", span(table.headers.as_ref()), &[Http]),
        ("ca", span(table.ca.as_ref()), &[Http, Jwt]),
        ("timeout", span(table.timeout.as_ref()), &[Http]),
        ("max_concurrency", span(table.max_concurrency.as_ref()), &[Http]),
        ("negative_cache", span(table.negative_cache.as_ref()), &[Http]),
        ("break_after", span(table.break_after.as_ref()), &[Http]),
        ("break_time", span(table.break_time.as_ref()), &[Http]),
        ("database", span(table.database.as_ref()), &[Registry]),
        ("device", span(table.device.as_ref()), &[Registry]),
        ("max_devices", span(table.max_devices.as_ref()), &[Registry]),
    ];
    let mut found = false;
    for (key, span, kinds) in keys {
        let Some(span) = span.filter(|_| !kinds.contains(&kind)) else { continue };
        let of: Vec<&str> = kinds.iter().map(|kind| kind.label()).collect();
        let message = format!("`{key}` without effect: `kind` is {}", kind.label());
        // A header or a URL may have a secret in it.
        document.problems.error(span, message).hide_line().hint(format!("`{key}` is for {}", of.join(" and ")));
        found = true;
    }
    found
}

/// The client for a table's `ca`, if it has one. The outer `None`: it cannot be used.
#[expect(clippy::option_option, reason = "the outer one is for a mistake in the configuration")]
fn compile_ca(table: &At<model::Authenticator>, document: &mut Document) -> Option<Option<Fetcher>> {
    let Some(ca) = &table.ca else { return Some(None) };
    match Fetcher::with_anchors(&document.resolve(ca)) {
        Ok(fetcher) => Some(Some(fetcher)),
        Err(complaint) => {
            document.problems.complain(&ca.span, complaint);
            None
        }
    }
}
