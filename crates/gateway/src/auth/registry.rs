//! The device registry as an authenticator. Enters: a client. Leaves: which device it is, whether the device is
//! admitted, and which credential proved it. It never queries the database: lookups use the replica in memory.

use std::path::Path;
use std::sync::Arc;

use super::password::{PasswordHash, Passwords};
use super::{Candidate, Decision, Principal, Sources};
use crate::config::{Complaint, Diagnostics, Reported, tables, warn_if_exposed};
use crate::devices::{Entry, Replica, UsedCredential};
use crate::evidence::Authenticated;
use crate::expr::Expression;
use crate::outcome::{Reject, note_detail};
use crate::util::clock::now;
use crate::util::crypto::tag;

/// The devices of a registry.
#[derive(Debug)]
pub(super) struct Devices {
    replica: Arc<Replica>,
    /// Returns the device ID from variables that TLS proves.
    device: Option<Expression>,
    /// Distinguishes this way to find devices from others.
    finder: u64,
    passwords: Passwords,
}

/// Checks that a file is an SQLite database. The registry in it is read later.
fn check_sqlite(path: &str) -> Result<(), Complaint> {
    use std::io::Read as _;
    let create = || format!("create one with `portcullis device add DEVICE --database sqlite:{path}`");
    let read = || {
        let mut head = [0; 16];
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        std::fs::File::open(path)?.read_exact(&mut head).map(|()| head)
    };
    match read() {
        Ok(head) if head == *b"SQLite format 3\0" => Ok(()),
        Ok(_) => Err(Complaint::new(format!("`{path}` is not an SQLite database"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Complaint::new(format!("there is no registry at `{path}`")).hint(create()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Complaint::new(format!("`{path}` is not an SQLite database")).hint(create()))
        }
        Err(error) => Err(Complaint::new(format!("the registry `{path}` cannot be read: {error}"))),
    }
}

impl Devices {
    /// Checks that an SQLite database exists. Shares the replica with other authenticators that use the same database.
    pub(super) fn open(
        settings: tables::Registry,
        sources: &Sources,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let tables::Registry { database, device, cache, max_devices } = settings;
        if let Some(path) = database.path() {
            if let Err(complaint) = check_sqlite(path) {
                return Err(diagnostics.error(&database, complaint));
            }
            warn_if_exposed(&database, Path::new(path), "the keys in", diagnostics);
        }
        let key = (database.value.clone(), max_devices);
        let replica = sources.registries.get_or_insert_with(key, || Replica::new(database.value, max_devices));
        let finder = device.as_ref().map_or(0, |device| tag(device.to_string().as_bytes()));
        Ok(Self { replica, device, finder, passwords: Passwords::new(cache) })
    }

    pub(super) const fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Whether a device that was found in the way `finder` would still be found in that way.
    pub(super) const fn finds_by(&self, finder: u64) -> bool {
        self.finder == finder
    }

    pub(super) async fn authenticate(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Decision {
        let entry = match self.find(candidate) {
            Some(entry) => entry,
            None if self.replica.is_authoritative() => {
                return Decision::Ignore(if self.device.is_some() {
                    "`device` names no device"
                } else {
                    "no such device"
                });
            }
            None => {
                note_detail(self.replica.uncertainty());
                let verified = self.verify_decoy(candidate).await;
                return Decision::Deny(verified.err().unwrap_or(Reject::RegistryUnavailable));
            }
        };
        // Verify the credential first: only the owner of the device may learn that it is banned.
        let used = match self.prove(&entry, candidate).await {
            Ok(used) => used,
            // What the gateway knows may be out of date, and an unknown device gets this answer, too.
            Err(Reject::BadCredentials | Reject::PinMismatch) if !self.replica.is_authoritative() => {
                note_detail(self.replica.uncertainty());
                return Decision::Deny(Reject::CredentialUnconfirmed);
            }
            Err(reject) => return Decision::Deny(reject),
        };
        if let Err(reject) = entry.check_state(now()) {
            return Decision::Deny(reject);
        }
        let what = Authenticated::Device { device: Box::new(entry.evidence(used)), finder: self.finder };
        Decision::Allow(Box::new(Principal { device: Some(entry.facts()), ..Principal::of(name, what) }))
    }

    /// The device that the client is, or claims to be.
    fn find(&self, candidate: Candidate<'_>) -> Option<Arc<Entry>> {
        if let Some(device) = &self.device {
            // Without a value, it identifies no device: the client is not one of the registry.
            return device.text(candidate.facts).ok().and_then(|id| self.replica.by_id(&id));
        }
        let pinned = candidate.fingerprints().iter().find_map(|fingerprint| self.replica.by_pin(fingerprint));
        let by_psk = || candidate.psk().and_then(|psk| self.replica.by_psk(&psk.identity));
        let by_username = || candidate.username().and_then(|username| self.replica.by_id(username));
        pinned.or_else(by_psk).or_else(by_username)
    }

    /// The credential with which the client proved that it is this device.
    async fn prove(&self, entry: &Entry, candidate: Candidate<'_>) -> Result<UsedCredential, Reject> {
        let fingerprints = candidate.fingerprints();
        if let Some(fingerprint) = fingerprints.iter().find(|fingerprint| entry.is_pinned_to(fingerprint)) {
            return Ok(UsedCredential::Pin(*fingerprint));
        }
        if let Some(psk) = candidate.psk() {
            let used = UsedCredential::Psk { identity: psk.identity.clone(), tag: psk.tag };
            if entry.is_proved_by(&used) {
                return Ok(used);
            }
        }
        if self.device.is_some() {
            // `device` identified the device by TLS alone: no password is needed.
            let psk = candidate.psk().map(|psk| (psk.identity.clone(), psk.tag));
            let used = UsedCredential::Tls { keys: fingerprints.into(), psk };
            return if entry.is_proved_by(&used) { Ok(used) } else { Err(Reject::PinMismatch) };
        }
        let Some(password) = candidate.password() else {
            note_detail("the client sent no password, and the device is not pinned to its certificate or key");
            return Err(Reject::BadCredentials);
        };
        let Some(hash) = &entry.password_hash else {
            self.verify_decoy(candidate).await?;
            return Err(Reject::BadCredentials);
        };
        let parsed = PasswordHash::parse(hash).map_err(|_| Reject::BadCredentials)?;
        if self.passwords.verify(&parsed, password, candidate.waiting()).await? {
            Ok(UsedCredential::Password(tag(hash.as_bytes())))
        } else {
            Err(Reject::BadCredentials)
        }
    }

    /// The number of hashes to select decoys from.
    pub(super) fn decoys(&self) -> usize {
        self.replica.sample_hashes()
    }

    /// Takes as long as the verification of a known device's wrong password.
    pub(super) async fn verify_decoy(&self, candidate: Candidate<'_>) -> Result<(), Reject> {
        let (Some(name), Some(password)) = (candidate.username(), candidate.password()) else { return Ok(()) };
        let sample = self.replica.sample_hash(name).and_then(|hash| PasswordHash::parse(&hash).ok());
        self.passwords.verify_decoy(sample.as_ref(), password, candidate.waiting()).await
    }
}
