//! TLS towards devices and towards brokers. Enters: a connected stream and a deadline. Leaves: an encrypted stream, and
//! who the peer proved to be, or the reason it did not. Never here: a decision that TLS itself does not make.

mod certificate;
mod client;
mod context;
mod handshake;
mod keys;
#[cfg(feature = "psk")]
mod psk;
mod raw_keys;
mod resumption;
mod secured;
mod server;
mod verifier;

pub use client::ClientTls;
pub(crate) use context::Context;
pub use context::ListenerState;
pub use secured::{Failed, Secured};
pub use server::ServerTls;
