//! TLS towards devices and towards brokers. Enters: a connected stream and a deadline. Leaves: an encrypted stream and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

mod certificate;
mod client;
mod dn;
mod keys;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod resumption;
mod server;
mod verifier;

pub use certificate::{AlternativeNames, Certificate, Name};
pub use client::ClientTls;
pub use resumption::Memory;
pub(crate) use server::Context;
pub use server::{Accepted, ServerTls};
