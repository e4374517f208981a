//! Password files: lines of `user:hash`, the format of mosquitto. Blank lines and lines that begin with `#` are
//! ignored. Enters: a file, reloaded when it changes, and a client's user name and password. Leaves: whether they
//! match. Passwords are never logged, and the file is never written in place.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::password::{PasswordHash, Passwords};
use super::{Candidate, Decision, Principal};
use crate::config::{Complaint, Diagnostics, Reported, tables, warn_if_exposed};
use crate::evidence::Authenticated;
use crate::files::read_entries;
use crate::outcome::{Reject, note_detail};
use crate::refresh::FromFiles;

/// The users of a file.
#[derive(Debug)]
pub(super) struct PasswordFile {
    users: FromFiles<Users>,
    passwords: Passwords,
    /// Selects a user's hash as the decoy for an unknown user name.
    decoys: RandomState,
}

#[derive(Debug, Default)]
struct Users {
    by_name: HashMap<Box<str>, PasswordHash>,
    /// The same hashes, to select decoys from.
    hashes: Vec<PasswordHash>,
}

impl PasswordFile {
    /// Reads the file.
    pub(super) fn open(settings: &tables::PasswordFile, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let file = &settings.file;
        warn_if_exposed(file, file, "the password hashes in", diagnostics);
        let users = FromFiles::open("password file", file.value.clone(), Users::read)
            .map_err(|complaint| diagnostics.error(file, complaint))?;
        let cheap = users.load().hashes.iter().filter(|hash| hash.is_cheap()).count();
        if cheap > 0 {
            let (hashes, are) = if cheap == 1 { ("hash", "is") } else { ("hashes", "are") };
            let message = format!("{cheap} {hashes} in {} {are} fast to guess", file.display());
            let hint = "set these passwords again with `portcullis passwd`, or with `mosquitto_passwd -I 210000`";
            diagnostics.warning(file, Complaint::new(message).hint(hint));
        }
        Ok(Self { users, passwords: Passwords::new(settings.cache), decoys: RandomState::new() })
    }

    pub(super) async fn authenticate(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Decision {
        let Some(user) = candidate.username() else { return Decision::Ignore("no user name") };
        let Some(hash) = self.users.load().by_name.get(user).cloned() else { return Decision::Ignore("no such user") };
        let Some(password) = candidate.password() else {
            note_detail("the client sent no password");
            return Decision::Deny(Reject::BadCredentials);
        };
        match self.passwords.verify(&hash, password, candidate.waiting()).await {
            Ok(true) => {
                let what = Authenticated::Password { user: user.into(), tag: hash.tag() };
                Decision::Allow(Box::new(Principal::of(name, what)))
            }
            Ok(false) => Decision::Deny(Reject::BadCredentials),
            Err(reject) => Decision::Deny(reject),
        }
    }

    /// The number of hashes to select decoys from.
    pub(super) fn decoys(&self) -> usize {
        self.users.load().hashes.len()
    }

    /// Takes as long as the verification of a known user's wrong password. The same name always selects the same decoy.
    pub(super) async fn verify_decoy(&self, candidate: Candidate<'_>) -> Result<(), Reject> {
        let (Some(user), Some(password)) = (candidate.username(), candidate.password()) else { return Ok(()) };
        let hash = {
            let users = self.users.load();
            let index = self.decoys.hash_one(user) % (users.hashes.len().max(1) as u64);
            users.hashes.get(usize::try_from(index).unwrap_or(0)).cloned()
        };
        self.passwords.verify_decoy(hash.as_ref(), password, candidate.waiting()).await
    }

    /// Whether the user still has the hash with this tag.
    pub(super) fn has(&self, user: &str, tag: u64) -> bool {
        self.users.load().by_name.get(user).is_some_and(|hash| hash.tag() == tag)
    }

    /// Reads the file again if it has changed. Returns whether the sessions that rely on it must be evaluated again.
    pub(super) fn read_changed_file(&self, name: &str) -> bool {
        self.users.read_if_changed(name)
    }
}

impl Users {
    fn read(path: &Path) -> Result<Self, Complaint> {
        let mut users = Self::default();
        read_entries(path, |user, hash| {
            let hash = std::str::from_utf8(hash.trim_ascii_end()).map_err(|_| "the hash is not UTF-8")?;
            let hash = PasswordHash::parse(hash)?;
            users.hashes.push(hash.clone());
            match users.by_name.insert(user.into(), hash) {
                Some(_) => Err(format!("duplicate user `{}`", user.escape_debug())),
                None => Ok(()),
            }
        })?;
        Ok(users)
    }
}

/// Adds a user to a password file, or replaces its hash. Other lines stay unchanged. The file is replaced atomically; a
/// new file is readable by its owner only. Returns whether the user existed.
///
/// # Errors
/// The user name is invalid, the file cannot be read or written, or it has lines that no password file has.
pub fn set_password(path: &Path, user: &str, hash: &str) -> std::io::Result<bool> {
    check_user(user)?;
    // Replace the target of a symbolic link, not the link.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    // Lock the folder: of two concurrent changes, one would be lost.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::File::open(folder)?;
    folder.lock()?;
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    // Any file may be named by mistake, and a line of another kind would be a key or a certificate.
    let is_entry = |line: &str| line.split_once(':').is_some_and(|(_, hash)| hash.starts_with('$'));
    let is_other = |line: &&str| !(line.trim().is_empty() || line.starts_with('#') || is_entry(line));
    if old.lines().any(|line| is_other(&line)) {
        let what = "it is not a password file: not all of its lines are `user:hash`";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    let (mut text, mut found) = (String::new(), false);
    for line in old.lines() {
        if line.split_once(':').is_some_and(|(name, _)| name == user) {
            if !found {
                text += &format!("{user}:{hash}\n");
            }
            found = true;
        } else {
            text += line;
            text.push('\n');
        }
    }
    if !found {
        text += &format!("{user}:{hash}\n");
    }
    // Write a new file and rename it: a gateway must never read half a file.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        if let Ok(metadata) = std::fs::metadata(path) {
            file.set_permissions(metadata.permissions())?;
            // Keep the owner: otherwise the gateway might not be able to read the file, and would keep the old users.
            std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map(|()| found)
}

/// Checks that a user name can be written to a password file.
///
/// # Errors
/// The name is empty, begins with `#`, or contains `:` or a control character.
pub fn check_user(user: &str) -> std::io::Result<()> {
    if user.is_empty() || user.starts_with('#') || user.contains(':') || user.contains(char::is_control) {
        let what = "invalid user name: it must not be empty, begin with `#`, or contain `:` or control characters";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}
