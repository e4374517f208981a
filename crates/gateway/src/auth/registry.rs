//! The device registry as an authenticator: which device a client is, whether it is let in, and with what it has proved
//! that it is that one.

use std::path::Path;
use std::sync::Arc;

use super::password::{PasswordHash, Passwords};
use super::{Answer, Candidate, Principal, Sources};
use crate::config::{Complaint, Diagnostics, Reported, tables, warn_if_exposed};
use crate::devices::{Entry, Replica, Used};
use crate::evidence::Authenticated;
use crate::expr::Expression;
use crate::outcome::Reject;
use crate::util::clock::now;
use crate::util::crypto::tag;

/// The devices of a registry.
#[derive(Debug)]
pub(super) struct Devices {
    replica: Arc<Replica>,
    /// Says, from what TLS proved, which device it is.
    device: Option<Expression>,
    passwords: Passwords,
}

/// Whether there is an SQLite database that can be read.
fn is_sqlite(path: &Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *b"SQLite format 3\0"
}

impl Devices {
    /// Looks whether the database is there; shares its replica with others that use the same.
    pub(super) fn open(
        settings: tables::Registry,
        sources: &Sources,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let tables::Registry { database, device, cache, max_devices } = settings;
        if let Some(path) = database.path() {
            if !is_sqlite(Path::new(path)) {
                let complaint = Complaint::new(format!("there is no registry at {path}, or none that can be read"));
                let hint = format!("portcullis device add DEVICE --database sqlite:{path}");
                return Err(diagnostics.error(&database, complaint.hint(hint)));
            }
            warn_if_exposed(&database, Path::new(path), "the keys in", diagnostics);
        }
        let key = (database.value.clone(), max_devices);
        let replica = sources.registries.get_or_insert_with(key, || Replica::new(database.value, max_devices));
        Ok(Self { replica, device, passwords: Passwords::new(cache) })
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
        let what = Authenticated::Device(Box::new(entry.evidence(used)));
        Answer::Known(Box::new(Principal { device: Some(entry.facts()), ..Principal::of(name, what) }))
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
            && entry.is_proved_by(&Used::Psk(psk.tag))
        {
            return Ok(Used::Psk(psk.tag));
        }
        if self.device.is_some() {
            // TLS says which one it is.
            let psk = candidate.psk().map(|psk| (psk.identity.clone(), psk.tag));
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
            Ok(Used::Password(tag(hash.as_bytes())))
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
