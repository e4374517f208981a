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

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::config::{Diagnostics, Reported, Setting, tables};
use crate::devices::{Registries, Replica};
use crate::evidence::{Authenticated, Evidence};
use crate::fetch::Fetcher;
use crate::outcome::{CloseReason, Reject};
use crate::peer::{AuthAttributes, Facts, Fingerprint, Psk};
use crate::refresh::Refreshed;
use crate::util::weak_map::WeakMap;

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
    /// What the session rests on for as long as it lasts.
    pub evidence: Option<Evidence>,
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
        self.facts.peer.address.ip()
    }

    /// An empty user name is none.
    fn username(self) -> Option<&'a str> {
        self.facts.mqtt.username.filter(|username| !username.is_empty())
    }

    /// Of what it proved to own in the handshake: certificate and key.
    fn fingerprints(self) -> Vec<Fingerprint> {
        self.facts.peer.fingerprints()
    }

    /// The pre-shared key it used.
    const fn psk(self) -> Option<&'a Psk> {
        self.facts.peer.psk()
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
    pub(crate) jwks: WeakMap<String, Refreshed<JwksUrl>>,
}

impl Authenticator {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// One cannot be used, which was reported.
    pub(crate) fn open(
        settings: tables::Authenticator,
        sources: &Sources,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let method = match settings.method {
            tables::Method::PasswordFile(file) => {
                Method::PasswordFile(Box::new(password_file::PasswordFile::open(&file, diagnostics)?))
            }
            tables::Method::Jwt(jwt) => Method::Jwt(Box::new(jwt::Tokens::open(&jwt, sources, diagnostics)?)),
            tables::Method::Http(service) => Method::Http(Box::new(http::Service::open(*service, diagnostics)?)),
            tables::Method::Registry(registry) => {
                Method::Registry(Box::new(registry::Devices::open(*registry, sources, diagnostics)?))
            }
        };
        Ok(Self { name: settings.name.into(), method })
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

    /// Whether what this authenticator verified still counts. `uses_device`: what the registry says of a device decides
    /// about it. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the session ends.
    pub(crate) fn evaluate(&self, what: &Authenticated, uses_device: bool, now: i64) -> Result<(), CloseReason> {
        let still = |is_same| if is_same { Ok(()) } else { Err(CloseReason::CredentialWithdrawn) };
        let not_after = |end: i64| if now < end { Ok(()) } else { Err(CloseReason::TokenExpired) };
        match (&self.method, what) {
            (Method::PasswordFile(file), Authenticated::Password { user, tag }) => still(file.has(user, *tag)),
            (Method::Jwt(tokens), Authenticated::Token { requirements, key, expires_at }) => {
                still(tokens.still_verify(*requirements, *key)).and_then(|()| not_after(*expires_at))
            }
            (Method::Http(service), Authenticated::Response { service: tag, expires_at }) => {
                still(service.tag() == *tag).and_then(|()| expires_at.map_or(Ok(()), not_after))
            }
            (Method::Registry(devices), Authenticated::Device(device)) => {
                devices.replica().evaluate(device, uses_device, now)
            }
            // The name is another kind's now.
            _ => Err(CloseReason::CredentialWithdrawn),
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

impl Principal {
    /// A client that the authenticator of this name knows, and what that verified.
    fn of(by: &Arc<str>, what: Authenticated) -> Self {
        let evidence = Some(Evidence::Authenticated { by: Arc::clone(by), what });
        Self { authenticator: Some(Arc::clone(by)), evidence, ..Self::default() }
    }

    /// What expressions may know of it.
    pub fn attributes(&self) -> AuthAttributes<'_> {
        AuthAttributes { jwt: self.jwt.as_ref(), device: self.device.as_ref(), http: self.http.as_ref() }
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

/// The client for a `ca`; `None`: the default one.
fn open_ca(ca: Option<&Setting<PathBuf>>, diagnostics: &mut Diagnostics) -> Result<Option<Fetcher>, Reported> {
    let open = |ca: &Setting<PathBuf>| Fetcher::with_anchors(ca).map_err(|complaint| diagnostics.error(ca, complaint));
    ca.map(open).transpose()
}
