//! TLS with devices and brokers. Enters: a connected socket and a deadline. Leaves: an encrypted stream and the peer's
//! verified identity, or the reason the handshake failed. Not here: admission rules or anything of MQTT.

mod certificate;
mod client;
mod client_hello;
mod context;
mod handshake;
mod identify;
mod keys;
#[cfg(feature = "psk")]
mod psk;
mod quic;
mod raw_keys;
mod resumption;
mod secured;
mod server;
mod server_chain;
mod server_handshake;
mod verifier;

pub(crate) use client::ClientTls;
pub(crate) use context::Context;
pub(crate) use context::ListenerState;
pub(crate) use secured::{Failed, Secured, SecuredClient};
pub(crate) use server::ServerTls;

/// Finds the ticket in what a client sends first: it is a part of that.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_client_hello(bytes: &[u8]) {
    if let Some(ticket) = client_hello::ticket(bytes) {
        assert!(!ticket.is_empty() && bytes.as_ptr_range().contains(&ticket.as_ptr()));
    }
}

/// Decrypts a ticket, and reads the content of one.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_ticket(bytes: &[u8]) {
    resumption::fuzz(bytes);
}
