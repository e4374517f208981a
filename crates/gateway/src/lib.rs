//! The MQTT security gateway as a library: everything between an accepted socket and a closed session.
//!
//! [`Runtime::load`] turns a configuration file into an immutable snapshot, or says all that is wrong with it.
//! [`Gateway::start`] serves by it, [`Gateway::reload`] swaps it, [`Gateway::drain`] ends. The path of one connection
//! is [`session`], readable from top to bottom.

mod admin;
pub mod auth;
mod clock;
pub mod config;
pub mod crypto;
pub mod evidence;
pub mod expr;
mod fetch;
pub mod files;
pub mod identity;
mod kept;
pub mod limits;
pub mod net;
pub mod observe;
pub mod outcome;
pub mod peer;
pub mod policy;
mod refresh;
pub mod registry;
pub mod relay;
mod runtime;
mod server;
pub mod session;
mod suggest;
pub mod tls;
pub mod trust;
mod upkeep;
pub mod upstream;
mod url;

pub use config::tables::{AdminBind, Process};
pub use runtime::{Lasting, Listener, Loaded, Runtime};
pub use server::{Gateway, ReloadError, StartError};
pub use upkeep::CertificateStatus;
