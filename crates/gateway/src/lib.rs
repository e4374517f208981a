//! The MQTT security gateway as a library: everything between an accepted socket and a closed session.
//!
//! [`Runtime::load`] compiles a configuration file to an immutable snapshot, or reports all of its problems.
//! [`Gateway::start`] serves it, [`Handle::reload`] replaces it, [`Handle::drain`] stops. The path of one connection is in
//! [`session`], from top to bottom.

mod admin;
pub mod auth;
pub mod config;
pub mod devices;
pub mod edge;
pub mod evidence;
pub mod expr;
mod fetch;
pub mod files;
mod gateway;
pub mod limits;
mod maintenance;
pub mod net;
pub mod observe;
pub mod outcome;
pub mod peer;
pub mod pki;
pub mod policy;
mod refresh;
pub mod relay;
mod runtime;
pub mod session;
pub mod sessions;
mod state;
pub mod tls;
pub mod upstream;
mod util;

pub use config::tables::{AdminBind, Process};
pub use gateway::{Gateway, Handle, ReloadError, StartError};
pub use maintenance::CertificateStatus;
pub use runtime::{Listener, Loaded, Runtime};
pub use state::ProcessState;
pub use util::crypto;
