//! Why a gateway does not start, or keeps its configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::config::Diagnostics;
use crate::config::tables::Bind;
use crate::util::causes::with_causes;

/// Why a gateway did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Bind(Bind, io::Error),
    /// The admin interface cannot listen.
    Admin(Bind, io::Error),
    /// The access log cannot be opened.
    AccessLog(PathBuf, io::Error),
    /// The threads of `worker_threads` cannot be started.
    Threads(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind(address, _) => write!(f, "cannot listen on {address}"),
            StartError::Admin(address, _) => write!(f, "cannot listen on {address} for the admin interface"),
            StartError::AccessLog(path, _) => write!(f, "cannot open the access log {}", path.display()),
            StartError::Threads(_) => write!(f, "cannot start the threads of `worker_threads`"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Bind(_, error)
            | StartError::Admin(_, error)
            | StartError::AccessLog(_, error)
            | StartError::Threads(error) => Some(error),
        }
    }
}

/// Why a reload changed nothing.
#[derive(Debug)]
pub enum ReloadError {
    /// The configuration cannot be used.
    Configuration(Diagnostics),
    /// A socket or file that the configuration names cannot be opened.
    Start(StartError),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadError::Configuration(problems) => problems.fmt(f),
            ReloadError::Start(error) => f.write_str(&with_causes(error)),
        }
    }
}

impl std::error::Error for ReloadError {}
