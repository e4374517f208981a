//! What can go wrong.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// What can go wrong.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A file is there already; nothing is written over.
    Exists(PathBuf),
    /// There is no authority in this folder.
    NoAuthority(PathBuf),
    /// A name that cannot be certified.
    Name(String, &'static str),
    /// What a file contains is not what it should be.
    Content(PathBuf, String),
    /// There is no certificate of this name or number.
    Unknown(String),
    /// The certificate is revoked, and with it its key.
    KeyRevoked(String),
    /// What has to be signed needs the root's key, which is not here.
    NoRootKey(PathBuf),
    /// The certificate is revoked already.
    Revoked(String),
    /// A key or certificate cannot be made.
    Make(rcgen::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File(path, _) => write!(f, "cannot read or write {}", path.display()),
            Error::Exists(path) => write!(f, "{} is there already", path.display()),
            Error::NoAuthority(path) => write!(f, "there is no certificate authority in {}", path.display()),
            Error::Name(name, why) => write!(f, "`{}` cannot be certified: {why}", name.escape_debug()),
            Error::Content(path, why) => write!(f, "{}: {why}", path.display()),
            Error::Unknown(name) => {
                write!(f, "no certificate named or numbered `{}` was issued here", name.escape_debug())
            }
            Error::Revoked(name) => write!(f, "`{}` is revoked already", name.escape_debug()),
            Error::KeyRevoked(name) => write!(f, "`{}` is revoked, and with it its key", name.escape_debug()),
            Error::NoRootKey(path) => write!(f, "{} is not there", path.display()),
            Error::Make(_) => f.write_str("cannot make a key or certificate"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File(_, error) => Some(error),
            Error::Make(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Error::Make(error)
    }
}

impl Error {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoAuthority(_) => Some("make one with `portcullis pki init`"),
            Error::KeyRevoked(_) => Some("give it another one with --new-key"),
            Error::NoRootKey(_) => {
                Some("the root's CRL says that the intermediate is revoked: put the key back for a moment")
            }
            Error::Unknown(_) => Some("`portcullis pki list` says what there is"),
            Error::Exists(_) => Some("nothing is ever written over: choose another name, or move the file away"),
            _ => None,
        }
    }
}

pub(crate) fn file_error(path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File(path, error)
}
