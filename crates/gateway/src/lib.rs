//! The MQTT security gateway as a library: everything between an accepted socket and a closed session.
//!
//! [`Runtime::load`] compiles a configuration file to an immutable snapshot, or reports all of its problems.
//! [`Gateway::start`] serves it, [`Handle::reload`] replaces it, [`Handle::drain`] stops. The path of one connection is
//! in `session`, from top to bottom.

mod admin;
mod auth;
pub mod config;
mod devices;
mod edge;
pub mod evidence;
mod expr;
mod fetch;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gateway;
mod limits;
mod maintenance;
mod net;
pub mod observe;
pub mod outcome;
pub mod peer;
pub mod pki;
mod policy;
mod refresh;
mod relay;
mod runtime;
mod session;
pub mod sessions;
mod state;
mod status;
mod tls;
mod trust;
mod upstream;
mod util;

pub use auth::{PasswordHash, check_user, set_password};
pub use config::tables::{Bind, Process};
pub use files::read_chain;
pub use gateway::{Gateway, Handle, ReloadError, StartError, Successor};
pub use net::{Handover, Inherited};
pub use runtime::{Listener, Loaded, Runtime};
pub use state::ProcessState;
pub use status::CertificateStatus;
pub use util::crypto;
pub use util::descriptors::grow_descriptor_table;
pub use util::machine::Machine;
pub use util::priority::Priority;
