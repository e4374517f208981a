//! Certificates from PEM files, and whether a file is still what it was.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::config::{Complaint, Diagnostics, Located};

/// The certificates of a PEM file, in its order; at least one.
///
/// # Errors
/// The file cannot be read, or has none.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| unreadable(path, &error))?;
    if chain.is_empty() {
        let complaint = Complaint::new(format!("{} contains no certificate", path.display()));
        return Err(complaint.hint("a PEM file with `-----BEGIN CERTIFICATE-----` is wanted"));
    }
    Ok(chain)
}

/// The trust anchors of a PEM bundle.
///
/// # Errors
/// The file cannot be read, or has something that is no trust anchor.
pub fn read_anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, Complaint> {
    let anchor = |certificate: &CertificateDer<'_>| webpki::anchor_from_trusted_cert(certificate).map(|a| a.to_owned());
    let anchors: Result<Vec<_>, _> = read_chain(path)?.iter().map(anchor).collect();
    anchors.map_err(|error| Complaint::new(format!("{}: not a trust anchor: {error}", path.display())))
}

/// When the first certificate of a PEM file expires, in seconds since 1970.
///
/// # Errors
/// The file cannot be read, or has no certificate that can be.
pub fn expiry(path: &Path) -> Result<i64, Complaint> {
    let not_after = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
    };
    let complaint = || Complaint::new(format!("{} contains something that is no certificate", path.display()));
    let expiries: Option<Vec<i64>> = read_chain(path)?.iter().map(not_after).collect();
    expiries.and_then(|all| all.into_iter().min()).ok_or_else(complaint)
}

/// When the first certificate of a PEM file expires, in seconds since 1970; warns if it has. `None`: whoever uses the
/// file reports what is wrong with it.
pub(crate) fn warn_if_expired(at: &impl Located, path: &Path, diagnostics: &mut Diagnostics) -> Option<i64> {
    let expires = expiry(path).ok()?;
    if expires <= crate::clock::now() {
        let when = chrono::DateTime::from_timestamp(expires, 0).map(|when| when.to_rfc3339()).unwrap_or_default();
        diagnostics.warning(at, format!("a certificate in {} expired at {when}", path.display()));
    }
    Some(expires)
}

/// Says that a PEM file cannot be read.
pub(crate) fn unreadable(path: &Path, error: &pem::Error) -> Complaint {
    match error {
        pem::Error::Io(error) => Complaint::new(format!("{} cannot be read: {error}", path.display())),
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no PEM", path.display())),
        error => Complaint::new(format!("{} is no PEM: {error}", path.display())),
    }
}

/// Of a file of credentials: a million of them are about 120 MB.
const MAX_ENTRIES_LEN: u64 = 256 << 20;

/// Reads a file of credentials: lines of `name:value`, in which blank lines and those that begin with `#` count for
/// nothing. Hands each to `take`, which says in a few words what is wrong with it.
///
/// # Errors
/// The file cannot be read, or a line of it cannot be used; its number is told, never its value.
pub(crate) fn read_entries(
    path: &Path,
    mut take: impl FnMut(&str, &[u8]) -> Result<(), String>,
) -> Result<(), Complaint> {
    let unreadable = |error: std::io::Error| Complaint::new(format!("{} cannot be read: {error}", path.display()));
    let mut bytes = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_ENTRIES_LEN + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_ENTRIES_LEN {
        return Err(Complaint::new(format!("{} is larger than {} MiB", path.display(), MAX_ENTRIES_LEN >> 20)));
    }
    for (place, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let complain = |what: &str| Complaint::new(format!("{}, line {}: {what}", path.display(), place + 1));
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| complain("there is no `:` in it"))?;
        let name = std::str::from_utf8(&line[..colon]).map_err(|_| complain("the name is no UTF-8"))?;
        if name.is_empty() {
            return Err(complain("the name is empty"));
        }
        take(name, &line[colon + 1..]).map_err(|what| complain(&what))?;
    }
    Ok(())
}

/// Follows files: reads them again when they change, and what could not be read a little later.
#[derive(Debug, Default)]
pub(crate) struct Follower(Mutex<Followed>);

#[derive(Debug, Default)]
struct Followed {
    /// Of the files as they were read last, well.
    good: Option<Vec<Option<Stamp>>>,
    /// As they were when they were looked at last.
    seen: Vec<Option<Stamp>>,
    /// What went wrong since, when, and with which files.
    bad: Option<(Vec<Option<Stamp>>, Instant, String)>,
}

/// What cannot be read is tried again after so long even if it has not changed: descriptors, or a token, may be there
/// again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl Follower {
    /// Reads a file for the first time, as the configuration is loaded; what is wrong with it is said there.
    pub(crate) fn read_first<T>(
        &self,
        file: &Path,
        read: impl FnOnce() -> Result<T, Complaint>,
    ) -> Result<T, Complaint> {
        let mut result = None;
        let _ = self.read_if_changed(&[file], true, || {
            let read = read();
            let problem = read.as_ref().err().map(|complaint| complaint.message.clone());
            result = Some(read);
            problem.map_or(Ok(()), Err)
        });
        result.unwrap_or_else(|| Err(Complaint::new(format!("{} was not read", file.display()))))
    }

    /// Reads the files with `read` unless they are what they were when that went well. `None`: they are, or what is wrong
    /// with them has been said.
    ///
    /// `at_once`: somebody says that they are ready. Else they are read once they have not changed for a while: a bundle
    /// that is half written looks like a whole one.
    pub(crate) fn read_if_changed<T>(
        &self,
        files: &[&Path],
        at_once: bool,
        read: impl FnOnce() -> Result<T, String>,
    ) -> Option<Result<T, String>> {
        // Held while they are read: who asks at the same time is to see what came of it.
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before reading: what changes meanwhile will have others.
        let stamps: Vec<Option<Stamp>> = files.iter().map(|file| Stamp::of(file)).collect();
        if followed.good.as_ref() == Some(&stamps) {
            followed.bad = None;
            return None;
        }
        if std::mem::replace(&mut followed.seen, stamps.clone()) != stamps && !at_once {
            return None;
        }
        let is_bad_still = |(bad, at, _): &(Vec<_>, Instant, String)| *bad == stamps && at.elapsed() < TRY_AGAIN;
        if !at_once && followed.bad.as_ref().is_some_and(is_bad_still) {
            return None;
        }
        match read() {
            Ok(value) => {
                *followed = Followed { good: Some(stamps.clone()), seen: stamps, bad: None };
                Some(Ok(value))
            }
            Err(error) => {
                let is_said = followed.bad.as_ref().is_some_and(|(_, _, said)| *said == error);
                followed.bad = Some((stamps, Instant::now(), error.clone()));
                (!is_said).then_some(Err(error))
            }
        }
    }

    /// What is wrong with the files at present.
    pub(crate) fn problem(&self) -> Option<String> {
        let followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followed.bad.as_ref().map(|(_, _, error)| error.clone())
    }
}

/// What a file says, for as long as it is followed: of a content that cannot be used, the last good one stays.
pub(crate) struct Content<T> {
    path: PathBuf,
    /// What it is called in the log.
    what: &'static str,
    read: fn(&Path) -> Result<T, Complaint>,
    follower: Follower,
    current: ArcSwap<T>,
}

impl<T> Content<T> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// It cannot be used.
    pub(crate) fn open(
        path: PathBuf,
        what: &'static str,
        read: fn(&Path) -> Result<T, Complaint>,
    ) -> Result<Self, Complaint> {
        let follower = Follower::default();
        let current = follower.read_first(&path, || read(&path))?;
        Ok(Self { current: ArcSwap::from_pointee(current), path, what, read, follower })
    }

    /// What it says at present.
    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the file again if it has changed, and says in the log what came of it; whether it says something else now.
    /// `owner` is the listener or authenticator that it belongs to.
    pub(crate) fn read_if_changed(&self, owner: &str) -> bool {
        let (what, path) = (self.what, self.path.display());
        let read = || (self.read)(&self.path).map_err(|complaint| complaint.message);
        match self.follower.read_if_changed(&[&self.path], false, read) {
            Some(Ok(content)) => {
                tracing::info!(owner, %path, "{what} loaded");
                self.current.store(Arc::new(content));
                true
            }
            Some(Err(problem)) => {
                tracing::error!(owner, %path, "{what}: the last good ones stay: {problem}");
                false
            }
            None => false,
        }
    }
}

/// What a file says may be secret.
impl<T> fmt::Debug for Content<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({})", self.path.display())
    }
}

/// What tells one content of a file from the next without reading it. Symbolic links are followed: swapping one, as
/// Kubernetes does, is a change. Asked for again and again rather than watched for: that works on every file system,
/// and for files that are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file as it is now; `None`: there is none that can be looked at.
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_and_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let follower = Follower::default();
        let look = |at_once, result: Result<u8, &str>| {
            follower.read_if_changed(&[&path], at_once, || result.map_err(str::to_owned))
        };
        // Once to see that it has changed, once to see that it has not again.
        let read = |result: Result<u8, &str>| {
            let first = look(false, result);
            if first.is_some() { first } else { look(false, result) }
        };
        assert_eq!(look(true, Err("not there")), Some(Err("not there".to_owned())));
        assert_eq!(read(Ok(1)), None, "not at once");
        assert_eq!(follower.problem().as_deref(), Some("not there"));
        std::fs::write(&path, "a").unwrap();
        assert_eq!(read(Err("not there")), None, "said already");
        std::fs::write(&path, "ab").unwrap();
        assert_eq!(look(false, Ok(2)), None, "it may be half written");
        assert_eq!(read(Ok(2)), Some(Ok(2)));
        assert_eq!((read(Ok(3)), follower.problem()), (None, None));
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(read(Err("bad")), Some(Err("bad".to_owned())));
        follower.0.lock().unwrap().bad.as_mut().unwrap().1 = Instant::now().checked_sub(TRY_AGAIN).unwrap();
        assert_eq!(read(Ok(4)), Some(Ok(4)), "later, though nothing has changed");
    }
}
