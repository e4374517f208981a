//! A file of users: lines of `user:hash`, as mosquitto has them. Blank lines and those that begin with `#` count for
//! nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::password::{PasswordHash, Passwords};
use super::{Answer, Candidate, Principal};
use crate::config::{Complaint, Diagnostics, Reported, tables, warn_if_exposed};
use crate::evidence::Authenticated;
use crate::files::read_entries;
use crate::outcome::Reject;
use crate::refresh::FromFiles;

/// The users of a file.
#[derive(Debug)]
pub(super) struct PasswordFile {
    users: FromFiles<Users>,
    passwords: Passwords,
    /// Chooses, for those whom nobody knows, somebody's hash to be measured by.
    decoys: RandomState,
}

#[derive(Debug, Default)]
struct Users {
    by_name: HashMap<Box<str>, PasswordHash>,
    /// In no order, to choose from.
    hashes: Vec<PasswordHash>,
}

impl PasswordFile {
    /// Reads the file.
    pub(super) fn open(settings: &tables::PasswordFile, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let file = &settings.file;
        warn_if_exposed(file, file, "the password hashes in", diagnostics);
        let users = FromFiles::open("password file", file.value.clone(), Users::read)
            .map_err(|complaint| diagnostics.error(file, complaint))?;
        Ok(Self { users, passwords: Passwords::new(settings.cache), decoys: RandomState::new() })
    }

    pub(super) async fn ask(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Answer {
        let Some(user) = candidate.username() else { return Answer::Unknown };
        let Some(hash) = self.users.load().by_name.get(user).cloned() else { return Answer::Unknown };
        let Some(password) = candidate.password() else { return Answer::Refused(Reject::BadCredentials) };
        match self.passwords.verify(&hash, password, candidate.remote()).await {
            Ok(true) => {
                let what = Authenticated::Password { user: user.into(), tag: hash.tag() };
                Answer::Known(Box::new(Principal::of(name, what)))
            }
            Ok(false) => Answer::Refused(Reject::BadCredentials),
            Err(reject) => Answer::Refused(reject),
        }
    }

    /// As long as a wrong password of somebody takes; for one name it is always the same somebody.
    pub(super) async fn pretend(&self, candidate: Candidate<'_>) -> Result<(), Reject> {
        let (Some(user), Some(password)) = (candidate.username(), candidate.password()) else { return Ok(()) };
        let hash = {
            let users = self.users.load();
            let place = self.decoys.hash_one(user) % (users.hashes.len().max(1) as u64);
            users.hashes.get(usize::try_from(place).unwrap_or(0)).cloned()
        };
        self.passwords.pretend(hash.as_ref(), password, candidate.remote()).await
    }

    /// Whether the user still has the hash that this tag is of.
    pub(super) fn has(&self, user: &str, tag: u64) -> bool {
        self.users.load().by_name.get(user).is_some_and(|hash| hash.tag() == tag)
    }

    /// Reads the file again if it has changed; whether those who stand on it are to be judged again.
    pub(super) fn read_changed_file(&self, name: &str) -> bool {
        self.users.read_if_changed(name)
    }
}

impl Users {
    fn read(path: &Path) -> Result<Self, Complaint> {
        let mut users = Self::default();
        read_entries(path, |user, hash| {
            let hash = std::str::from_utf8(hash.trim_ascii_end()).map_err(|_| "the hash is no UTF-8")?;
            let hash = PasswordHash::parse(hash)?;
            users.hashes.push(hash.clone());
            match users.by_name.insert(user.into(), hash) {
                Some(_) => Err(format!("the user `{}` is there twice", user.escape_debug())),
                None => Ok(()),
            }
        })?;
        Ok(users)
    }
}

/// Adds a user to a password file, or changes its hash; the other lines stay as they are. The file is replaced as a
/// whole, and made, readable by its owner only, if it is not there. Returns whether the user was there before.
///
/// # Errors
/// The user's name cannot stand in the file, or the file cannot be read or written.
pub fn set_password(path: &Path, user: &str, hash: &str) -> std::io::Result<bool> {
    check_user(user)?;
    // A link stays one, and what it names is changed.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    // One change at a time: two would each write what they have read.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = std::fs::File::open(folder)?;
    folder.lock()?;
    let old = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
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
    // Beside it, then into its place: a gateway that reads at the wrong moment would see half of it.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        if let Ok(metadata) = std::fs::metadata(path) {
            file.set_permissions(metadata.permissions())?;
            // Whose it was: else the gateway might not be able to read it, and go by the old one.
            std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| found)
}

/// Whether a user's name can stand in a password file.
///
/// # Errors
/// It cannot.
pub fn check_user(user: &str) -> std::io::Result<()> {
    if user.is_empty() || user.starts_with('#') || user.contains(':') || user.contains(char::is_control) {
        let what = "a user's name is not empty, does not begin with `#`, and has no `:` and no control characters";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}
