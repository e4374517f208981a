//! The device registry as an authenticator: which device a client is, whether it is let in, and with what it has proved
//! that it is that one.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis_registry::Url;

use super::password::{PasswordHash, Passwords};
use super::{Answer, Candidate, Ground, Principal, Sources, Standing};
use crate::clock::now;
use crate::config::{At, Document, Problems, Secret, is_exposed, model};
use crate::crypto::mark;
use crate::expr::{Expression, Wanted};
use crate::outcome::Reject;
use crate::registry::{Entry, Replica, Used};

const CACHE: Duration = Duration::from_secs(60);
const MAX_DEVICES: usize = 1_000_000;

/// The devices of a registry.
#[derive(Debug)]
pub(super) struct Devices {
    replica: Arc<Replica>,
    /// Says, from what TLS proved, which device it is.
    device: Option<Expression>,
    passwords: Passwords,
}

/// Where the registries are that a configuration file names.
///
/// # Errors
/// All that is wrong with the file.
pub fn registries_of(path: &Path) -> Result<Vec<Url>, Problems> {
    let mut document = Document::read(path);
    let tables = std::mem::take(&mut document.config).authenticator;
    let databases = tables.iter().filter_map(|table| table.database.as_ref());
    let urls: Vec<Url> = databases.filter_map(|database| parse(database, &mut document)).collect();
    if document.problems.has_errors() { Err(document.problems) } else { Ok(urls) }
}

/// Whether there is an SQLite database that can be read.
fn is_sqlite(path: &Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *b"SQLite format 3\0"
}

/// A relative path counts from the configuration's folder.
fn parse(database: &At<Secret>, document: &mut Document) -> Option<Url> {
    let resolve = |path: &str| document.resolve(Path::new(path)).display().to_string();
    match Url::parse(database.expose(), resolve) {
        Ok(url) => Some(url),
        Err(problem) => {
            document.problems.error(&database.span, problem).hide_line();
            None
        }
    }
}

impl Devices {
    pub(super) fn compile(
        table: &At<model::Authenticator>,
        sources: &Sources,
        document: &mut Document,
    ) -> Option<Self> {
        let Some(database) = &table.database else {
            document.missing(&table.span, "database", "sqlite:devices.db, or postgres://USER:PASSWORD@HOST/DATABASE");
            return None;
        };
        let device = match &table.device {
            Some(source) => {
                let expression = crate::expr::compile(Some(source), Wanted::String, document);
                if expression.as_ref().is_some_and(|expression| !expression.is_about_proofs()) {
                    let message = "`device` has to be of what TLS proves, for whatever else a client could make up";
                    let hint = "cert, tls.psk_identity, tls.key_name, tls.key_fingerprint";
                    document.problems.error(&source.span, message).hint(hint);
                    None
                } else {
                    expression.map(Some)
                }
            }
            None => Some(None),
        };
        let url = parse(database, document)?;
        if let Some(path) = url.path() {
            if !is_sqlite(Path::new(path)) {
                let message = format!("there is no registry at {path}, or none that can be read");
                let hint = format!("portcullis device add DEVICE --database sqlite:{path}");
                document.problems.error(&database.span, message).hint(hint);
                return None;
            }
            if is_exposed(Path::new(path)) {
                let message = format!("everybody on this machine can read the keys in {path}");
                document.problems.warning(&database.span, message).hint(format!("chmod 600 {path}"));
            }
        } else if !document.is_substituted(&database.span) && database.expose().contains('@') {
            let problem =
                document.problems.warning(&database.span, "perhaps a secret in the configuration file itself");
            problem.hide_line().hint("database = \"${FILE:database.url}\"");
        }
        if url.is_unverified() {
            let message = "devices' keys go over a connection whose other end is not verified";
            document.problems.warning(&database.span, message).hide_line().hint("?sslmode=verify-full&sslrootcert=...");
        }
        let max = table.max_devices.as_ref().map_or(MAX_DEVICES, |at| NonZeroU32::get(at.value) as usize);
        let replica = sources.registries.get_or_insert_with((url.clone(), max), || Replica::new(url, max));
        let period = table.cache.as_ref().map_or(CACHE, |period| period.value.0);
        Some(Self { replica, device: device?, passwords: Passwords::new(period) })
    }

    pub(super) const fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    pub(super) async fn ask(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Answer {
        let entry = match self.find(candidate) {
            Ok(Some(entry)) => entry,
            Ok(None) if self.replica.is_certain() => return Answer::Unknown,
            Ok(None) => {
                let pretended = self.pretend(candidate).await;
                return Answer::Refused(pretended.err().unwrap_or(Reject::RegistryUnavailable));
            }
            Err(reject) => return Answer::Refused(reject),
        };
        // First what it proves: only its owner is to learn that it is banned.
        let used = match self.prove(&entry, candidate).await {
            Ok(used) => used,
            Err(reject) => return Answer::Refused(reject),
        };
        if let Err(reject) = entry.may_enter(now()) {
            return Answer::Refused(reject);
        }
        let standing = Standing { authenticator: Arc::clone(name), ground: Ground::Device(entry.ground(used)) };
        Answer::Known(Box::new(Principal {
            authenticator: Some(Arc::clone(name)),
            device: Some(entry.facts()),
            standing: Some(standing),
            ..Principal::default()
        }))
    }

    /// Which device the client is, or says it is.
    fn find(&self, candidate: Candidate<'_>) -> Result<Option<Arc<Entry>>, Reject> {
        if let Some(device) = &self.device {
            return Ok(self.replica.by_id(&device.text(candidate.facts)?));
        }
        let pinned = candidate.fingerprints().iter().find_map(|fingerprint| self.replica.by_pin(fingerprint));
        let by_psk = || candidate.psk().and_then(|psk| self.replica.by_psk(&psk.identity));
        let by_username = || candidate.username().and_then(|username| self.replica.by_id(username));
        Ok(pinned.or_else(by_psk).or_else(by_username))
    }

    /// With what the client has proved that it is this device.
    async fn prove(&self, entry: &Entry, candidate: Candidate<'_>) -> Result<Used, Reject> {
        let fingerprints = candidate.fingerprints();
        if let Some(fingerprint) = fingerprints.iter().find(|fingerprint| entry.is_pinned_to(fingerprint)) {
            return Ok(Used::Pin(*fingerprint));
        }
        if let Some(psk) = candidate.psk()
            && entry.psk().is_some_and(|(identity, _)| *identity == *psk.identity)
            && entry.is_proved_by(&Used::Psk(psk.mark))
        {
            return Ok(Used::Psk(psk.mark));
        }
        if self.device.is_some() {
            // TLS says which one it is.
            let psk = candidate.psk().map(|psk| (psk.identity.clone(), psk.mark));
            let used = Used::Tls { keys: fingerprints.into(), psk };
            return if entry.is_proved_by(&used) { Ok(used) } else { Err(Reject::PinMismatch) };
        }
        let Some(password) = candidate.password() else { return Err(Reject::BadCredentials) };
        let Some(hash) = &entry.password_hash else {
            self.pretend(candidate).await?;
            return Err(Reject::BadCredentials);
        };
        let parsed = PasswordHash::parse(hash).map_err(|_| Reject::BadCredentials)?;
        if self.passwords.verify(&parsed, password, candidate.remote()).await? {
            Ok(Used::Password(mark(hash.as_bytes())))
        } else {
            Err(Reject::BadCredentials)
        }
    }

    /// As long as a wrong password of somebody takes.
    pub(super) async fn pretend(&self, candidate: Candidate<'_>) -> Result<(), Reject> {
        let (Some(name), Some(password)) = (candidate.username(), candidate.password()) else { return Ok(()) };
        let sample = self.replica.sample_hash(name).and_then(|hash| PasswordHash::parse(&hash).ok());
        self.passwords.pretend(sample.as_ref(), password, candidate.remote()).await
    }
}
