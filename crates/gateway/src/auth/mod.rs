//! Authenticates clients by their CONNECT: passwords, tokens, an HTTP service, the device registry. Enters: the facts
//! about a client. Leaves: a [`Principal`], or a rejection. Not here: what the principal may do.
//!
//! The gateway asks a listener's authenticators in order. The first that knows the client decides. An authenticator
//! that cannot tell whether it knows the client rejects it: the next one might admit a client that this one has banned.

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
use tokio::time::{Instant, timeout_at};

use crate::config::{Diagnostics, Reported, Setting, tables};
use crate::devices::{Registries, Replica};
use crate::evidence::{Authenticated, Evidence};
use crate::fetch::Fetcher;
use crate::limits::{FairSlots, Slot};
use crate::net::Stream;
use crate::observe::Metrics;
use crate::outcome::{CloseReason, Reject, note_authenticator, note_detail};
use crate::peer::{AuthAttributes, Facts, Fingerprint, HttpCredentials, Psk};
use crate::refresh::Refreshed;
use crate::util::crypto::tag;
use crate::util::weak_map::WeakMap;

/// What the connections to a registry's database need, with their temporary files.
const DATABASE_DESCRIPTORS: u64 = 16;

/// One `[[authenticator]]`.
#[derive(Debug)]
pub(crate) struct Authenticator {
    /// Unique name.
    pub name: Arc<str>,
    /// The value of `kind` in its table.
    kind: &'static str,
    method: Method,
}

#[derive(Debug)]
enum Method {
    PasswordFile(Box<password_file::PasswordFile>),
    Jwt(Box<jwt::Tokens>),
    Http(Box<http::Service>),
    Registry(Box<registry::Devices>),
}

/// An authenticated client and its attributes.
#[derive(Debug, Default)]
pub(crate) struct Principal {
    /// Name and kind of the authenticator that authenticated it.
    pub authenticator: Option<(Arc<str>, &'static str)>,
    /// The claims of its token.
    pub jwt: Option<Json>,
    /// Its entry in the device registry.
    pub device: Option<Json>,
    /// The attributes from the authentication service.
    pub http: Option<Json>,
    /// The client ID that the authentication service assigns.
    pub client_id: Option<String>,
    /// The user name that the authentication service assigns.
    pub username: Option<String>,
    /// The evidence that the session relies on while it lasts.
    pub evidence: Option<Evidence>,
}

/// The decision of an authenticator about a client.
enum Decision {
    Allow(Box<Principal>),
    /// The authenticator knows the client and rejects it, or cannot tell whether it knows it.
    Deny(Reject),
    /// The authenticator does not know the client, for this reason: the next one decides.
    Ignore(&'static str),
}

/// A client to authenticate.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    facts: &'a Facts<'a>,
    attempt: Attempt<'a>,
}

/// The connection on which a client tries to authenticate.
#[derive(Clone, Copy)]
pub(crate) struct Attempt<'a> {
    /// Shows whether the client is still there when it is its turn.
    pub connection: &'a Stream,
    /// What came with the request for WebSocket.
    pub credentials: Option<&'a HttpCredentials>,
    /// Counts a failed proof, once. Called as soon as it is known to be one: a client may have further guesses in flight, and not
    /// wait for what becomes of them.
    pub failed: &'a (dyn Fn() + Sync),
}

/// Who waits for a slot.
#[derive(Clone, Copy)]
struct Waiting<'a> {
    address: IpAddr,
    attempt: Attempt<'a>,
}

impl Waiting<'_> {
    /// Waits for one of the slots that clients share. A client that has left takes none: nothing is computed or requested for it.
    ///
    /// # Errors
    /// [`Reject::ClientLeft`], or [`Reject::AuthenticationBusy`]: too many clients wait, or this one has waited until the deadline.
    async fn for_slot(self, slots: &FairSlots, deadline: Instant) -> Result<Slot, Reject> {
        let turn = timeout_at(deadline, slots.take(self.address));
        let slot = self.attempt.connection.unless_left(turn).await.ok_or(Reject::ClientLeft)?;
        slot.ok().flatten().ok_or(Reject::AuthenticationBusy)
    }
}

impl<'a> Candidate<'a> {
    fn waiting(self) -> Waiting<'a> {
        Waiting { address: self.remote(), attempt: self.attempt }
    }

    fn remote(self) -> IpAddr {
        self.facts.peer.address.share()
    }

    /// The user name of CONNECT; `None` if it is empty.
    fn username(self) -> Option<&'a str> {
        self.facts.mqtt.username.filter(|username| !username.is_empty())
    }

    /// Fingerprints of the certificate and key that the client proved to own in the handshake.
    fn fingerprints(self) -> Vec<Fingerprint> {
        self.facts.peer.fingerprints()
    }

    /// The pre-shared key that the client used in the handshake.
    const fn psk(self) -> Option<&'a Psk> {
        self.facts.peer.psk()
    }

    fn password(self) -> Option<&'a [u8]> {
        self.facts.mqtt.password
    }

    /// The credentials of the request for WebSocket, which count if CONNECT has no password of its own.
    fn of_request(self) -> Option<&'a HttpCredentials> {
        self.attempt.credentials.filter(|_| self.password().is_none())
    }
}

/// State that authenticators share, also across reloads.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) registries: Registries,
    /// JWKS by URL and by the trust anchors used to fetch it.
    pub(crate) jwks: WeakMap<String, Refreshed<JwksUrl>>,
}

impl Authenticator {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// A file cannot be used, which was reported.
    pub(crate) fn open(
        settings: tables::Authenticator,
        sources: &Sources,
        metrics: &Metrics,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let kind = settings.method.kind();
        let method = match settings.method {
            tables::Method::PasswordFile(file) => {
                Method::PasswordFile(Box::new(password_file::PasswordFile::open(&file, diagnostics)?))
            }
            tables::Method::Jwt(jwt) => Method::Jwt(Box::new(jwt::Tokens::open(&jwt, sources, diagnostics)?)),
            tables::Method::Http(service) => {
                Method::Http(Box::new(http::Service::open(&settings.name, *service, metrics, diagnostics)?))
            }
            tables::Method::Registry(registry) => {
                Method::Registry(Box::new(registry::Devices::open(*registry, sources, diagnostics)?))
            }
        };
        Ok(Self { name: settings.name.into(), kind, method })
    }

    /// The replica of the device registry, if this authenticator is one.
    pub(crate) fn registry(&self) -> Option<&Arc<Replica>> {
        match &self.method {
            Method::Registry(devices) => Some(devices.replica()),
            _ => None,
        }
    }

    /// The length of the longest user name that this authenticator has a use for, in bytes; 0 if it sets no limit.
    pub(crate) fn max_username(&self) -> usize {
        match &self.method {
            Method::Jwt(tokens) => tokens.max_username(),
            Method::PasswordFile(_) | Method::Http(_) | Method::Registry(_) => 0,
        }
    }

    /// The name of the cookie that it reads.
    pub(crate) fn cookie(&self) -> Option<&str> {
        match &self.method {
            Method::Jwt(tokens) => tokens.cookie(),
            Method::PasswordFile(_) | Method::Http(_) | Method::Registry(_) => None,
        }
    }

    /// The file descriptors that it may need at once.
    pub(crate) fn descriptors(&self) -> u64 {
        match &self.method {
            Method::Http(service) => service.descriptors(),
            Method::Registry(_) => DATABASE_DESCRIPTORS,
            // Files and fetches are in the general reserve.
            Method::PasswordFile(_) | Method::Jwt(_) => 0,
        }
    }

    /// Fetches keys or devices for the first time. Takes a bounded time.
    pub(crate) async fn prepare(&self) {
        match &self.method {
            Method::Jwt(tokens) => tokens.prepare().await,
            Method::Registry(devices) => devices.replica().prepare().await,
            Method::Http(service) => service.prepare(),
            Method::PasswordFile(_) => {}
        }
    }

    /// Starts fetches that are due, in the background.
    pub(crate) fn fetch_due(&self) {
        if let Method::Jwt(tokens) = &self.method {
            tokens.fetch_due();
        }
    }

    /// Reads changed files again. Returns whether the sessions that rely on them must be evaluated again.
    pub(crate) fn read_changed_files(&self) -> bool {
        match &self.method {
            Method::PasswordFile(file) => file.read_changed_file(&self.name),
            Method::Jwt(tokens) => tokens.read_changed_keys(&self.name),
            Method::Http(_) | Method::Registry(_) => false,
        }
    }

    /// Checks whether evidence of this authenticator is still sufficient. `uses_device`: expressions of the listener
    /// use attributes of the device. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// The reason to end the session.
    pub(crate) fn evaluate(&self, what: &Authenticated, uses_device: bool, now: i64) -> Result<(), CloseReason> {
        let still = |is_same| if is_same { Ok(()) } else { Err(CloseReason::CredentialWithdrawn) };
        let not_after = |end: i64| if now < end { Ok(()) } else { Err(CloseReason::TokenExpired) };
        match (&self.method, what) {
            (Method::PasswordFile(file), Authenticated::Password { user, tag }) => still(file.has(user, *tag)),
            (Method::Jwt(tokens), Authenticated::Token { algorithm, requirements, key, expires_at }) => {
                still(tokens.still_verify(*algorithm, *requirements, *key)).and_then(|()| not_after(*expires_at))
            }
            (Method::Http(service), Authenticated::Response { service: tag, expires_at }) => {
                still(service.tag() == *tag).and_then(|()| expires_at.map_or(Ok(()), not_after))
            }
            (Method::Registry(devices), Authenticated::Device { device, finder }) => {
                still(devices.finds_by(*finder)).and_then(|()| devices.replica().evaluate(device, uses_device, now))
            }
            // A reload gave this name to an authenticator of another kind.
            (Method::PasswordFile(_) | Method::Jwt(_) | Method::Http(_) | Method::Registry(_), _) => {
                Err(CloseReason::CredentialWithdrawn)
            }
        }
    }

    async fn authenticate(&self, candidate: Candidate<'_>) -> Decision {
        let decision = match &self.method {
            Method::PasswordFile(file) => file.authenticate(candidate, &self.name).await,
            Method::Jwt(tokens) => tokens.authenticate(candidate, &self.name).await,
            // In a box, or each connection would have room for a request, which takes more than all the rest.
            Method::Http(service) => Box::pin(service.authenticate(candidate, &self.name)).await,
            Method::Registry(devices) => devices.authenticate(candidate, &self.name).await,
        };
        if let Decision::Deny(_) = &decision {
            note_authenticator(&self.name);
        }
        decision
    }

    /// The number of hashes to select decoys from; `None` if this authenticator verifies no passwords.
    fn decoys(&self) -> Option<usize> {
        match &self.method {
            Method::PasswordFile(file) => Some(file.decoys()),
            Method::Registry(devices) => Some(devices.decoys()),
            Method::Jwt(_) | Method::Http(_) => None,
        }
    }

    /// Takes as long as the verification of a wrong password.
    async fn verify_decoy(&self, candidate: Candidate<'_>) -> Result<(), Reject> {
        match &self.method {
            Method::PasswordFile(file) => file.verify_decoy(candidate).await,
            Method::Registry(devices) => devices.verify_decoy(candidate).await,
            Method::Jwt(_) | Method::Http(_) => Ok(()),
        }
    }
}

impl Principal {
    /// A client that the authenticator `by` has authenticated.
    fn of(by: &Arc<str>, what: Authenticated) -> Self {
        let evidence = Some(Evidence::Authenticated { by: Arc::clone(by), what });
        Self { evidence, ..Self::default() }
    }

    /// The attributes that expressions can use.
    pub(crate) fn attributes(&self) -> AuthAttributes<'_> {
        AuthAttributes {
            jwt: self.jwt.as_ref(),
            device: self.device.as_ref(),
            http: self.http.as_ref(),
            authenticator: self.authenticator.as_ref().map(|(name, kind)| (&**name, *kind)),
        }
    }
}

/// Authenticates a client with the authenticators of its listener. `Ok(None)`: the listener has none.
///
/// # Errors
/// The reason to reject the client.
pub(crate) async fn authenticate(
    authenticators: &[Arc<Authenticator>],
    facts: &Facts<'_>,
    attempt: Attempt<'_>,
) -> Result<Option<Box<Principal>>, Reject> {
    if authenticators.is_empty() {
        return Ok(None);
    }
    let candidate = Candidate { facts, attempt };
    let mut ignored = Vec::with_capacity(authenticators.len());
    for authenticator in authenticators {
        match authenticator.authenticate(candidate).await {
            Decision::Allow(mut principal) => {
                principal.authenticator = Some((Arc::clone(&authenticator.name), authenticator.kind));
                return Ok(Some(principal));
            }
            Decision::Deny(reject) => return Err(reject),
            Decision::Ignore(why) => ignored.push(format!("{}: {why}", authenticator.name)),
        }
    }
    // An unknown client waits as long as one with a wrong password, so that the time does not reveal user names.
    if let Some(authenticator) = select_decoy(authenticators, candidate.username().unwrap_or_default()) {
        authenticator.verify_decoy(candidate).await?;
    }
    note_detail(&ignored.join("; "));
    Err(Reject::UnknownClient)
}

/// Selects the authenticator that a user would be known to: by the number of users of each, because their hashes may take
/// different times. The same name always selects the same one.
fn select_decoy<'a>(authenticators: &'a [Arc<Authenticator>], username: &str) -> Option<&'a Authenticator> {
    let counts = || authenticators.iter().filter_map(|it| Some((&**it, it.decoys()?)));
    let all = counts().map(|(_, count)| count as u64).sum::<u64>();
    let mut index = tag(username.as_bytes()) % all.max(1);
    let selected = counts().find(|(_, count)| {
        let is_here = index < *count as u64;
        index = index.saturating_sub(*count as u64);
        is_here
    });
    selected.or_else(|| counts().next()).map(|(authenticator, _)| authenticator)
}

/// Opens the HTTP client for a `ca`; `None`: the setting is absent.
fn open_ca(ca: Option<&Setting<PathBuf>>, diagnostics: &mut Diagnostics) -> Result<Option<Fetcher>, Reported> {
    let open = |ca: &Setting<PathBuf>| Fetcher::with_anchors(ca).map_err(|complaint| diagnostics.error(ca, complaint));
    ca.map(open).transpose()
}

/// Reads a JWKS, and a token.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_token(bytes: &[u8]) {
    jwks::fuzz(bytes);
    jwt::fuzz(bytes);
}

/// Reads the response of an authentication service.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_response(bytes: &[u8]) {
    http::fuzz(bytes);
}

/// Reads the hash of a password.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_password_hash(bytes: &[u8]) {
    let _ = std::str::from_utf8(bytes).map(PasswordHash::parse);
}
