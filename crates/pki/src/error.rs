//! The errors of the authority, and hints on how to resolve them.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why an operation of the authority failed.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// The file exists, and certificates and keys are never overwritten.
    Exists(PathBuf),
    /// The directory has no certificate authority.
    NoAuthority(PathBuf),
    /// The name cannot be certified, and why.
    Name(String, &'static str),
    /// A file has unexpected content.
    Content(PathBuf, String),
    /// No certificate has this common name or serial number.
    Unknown(String),
    /// The certificate is revoked, so its key cannot be certified again.
    KeyRevoked(String),
    /// The operation needs the key of the root, and the file does not exist.
    NoRootKey(PathBuf),
    /// Every matching certificate is already revoked.
    Revoked(String),
    /// A key, certificate or CRL cannot be generated.
    Make(rcgen::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File(path, _) => write!(f, "cannot access `{}`", path.display()),
            Error::Exists(path) => write!(f, "`{}` already exists", path.display()),
            Error::NoAuthority(path) => write!(f, "there is no certificate authority in `{}`", path.display()),
            Error::Name(name, why) => write!(f, "`{}` cannot be certified: {why}", name.escape_debug()),
            Error::Content(path, why) => write!(f, "{}: {why}", path.display()),
            Error::Unknown(name) => {
                write!(f, "no certificate has the common name or serial number `{}`", name.escape_debug())
            }
            Error::Revoked(name) => write!(f, "`{}` is already revoked", name.escape_debug()),
            Error::KeyRevoked(name) => {
                write!(f, "`{}` is revoked, so its key cannot be certified again", name.escape_debug())
            }
            Error::NoRootKey(path) => write!(f, "cannot revoke the intermediate: `{}` is missing", path.display()),
            Error::Make(_) => f.write_str("cannot generate a key, certificate or CRL"),
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
    /// What the operator can do about the error.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoAuthority(_) => Some("create one with `portcullis pki init`, or pass its directory with --dir"),
            Error::KeyRevoked(_) => Some("generate a new key with --new-key"),
            Error::NoRootKey(_) => {
                Some("the root signs the CRL that revokes the intermediate: restore root.key for this command")
            }
            Error::Unknown(_) => Some("`portcullis pki list` shows all certificates"),
            Error::Exists(_) => {
                Some("certificates and keys are never overwritten: choose another name or --dir, or move the file away")
            }
            _ => None,
        }
    }
}

pub(crate) fn file_error(path: &std::path::Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File(path, error)
}
