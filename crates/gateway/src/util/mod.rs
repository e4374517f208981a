//! Helpers for all modules: the clock, the cryptography provider, text, and a map of shared values.

pub(crate) mod causes;
pub(crate) mod client_network;
pub(crate) mod clip;
pub(crate) mod clock;
pub mod crypto;
pub(crate) mod descriptors;
pub(crate) mod file;
mod hkdf;
pub(crate) mod invisible;
pub(crate) mod machine;
pub(crate) mod pem;
pub(crate) mod priority;
pub(crate) mod recent;
pub(crate) mod suggest;
pub(crate) mod url;
pub(crate) mod weak_map;
