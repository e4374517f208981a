//! The MQTT security gateway as a library: everything between an accepted socket and a closed session.
//!
//! [`Runtime::load`] turns a configuration file into an immutable snapshot, or says all that is wrong with it.
//! [`Gateway::start`] serves by it, [`Gateway::reload`] swaps it, [`Gateway::drain`] ends. The path of one connection
//! is [`session`], readable from top to bottom.

mod admin;
pub mod auth;
pub mod bans;
mod clock;
pub mod config;
pub mod crypto;
pub mod expr;
mod fetch;
pub mod files;
pub mod identity;
mod kept;
pub mod net;
pub mod observe;
pub mod outcome;
pub mod policy;
mod refresh;
pub mod registry;
pub mod relay;
mod runtime;
mod server;
pub mod session;
pub mod sessions;
pub mod tls;
pub mod trust;
mod upkeep;
pub mod upstream;

pub use runtime::{AdminBind, Lasting, Listener, Loaded, Process, Runtime};
pub use server::{Gateway, ReloadError, StartError};
pub use upkeep::CertificateStatus;
