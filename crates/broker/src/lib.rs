//! A small in-memory MQTT broker for trials and tests. Takes connected streams; speaks MQTT 3.1, 3.1.1 and 5.
//!
//! It accepts messages with every QoS and delivers them with QoS 0 or 1. It keeps sessions, retained messages and wills,
//! in bounded tables: messages that do not fit are dropped and logged at the level `debug`. It does not authenticate
//! clients, stores nothing on disk and has no shared subscriptions.

mod connection;
mod hub;
mod packets;
mod topics;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use hub::Hub;

/// A broker. Clones share all state.
#[derive(Clone, Debug, Default)]
pub struct Broker {
    hub: Arc<Mutex<Hub>>,
}

impl Broker {
    /// Creates a broker without sessions or messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a client. Returns when its connection has ended and its will, which may be delayed, is published.
    ///
    /// # Errors
    /// The connection failed, or the client violated the protocol.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        connection::serve(&self.hub, stream).await
    }
}

#[cfg(test)]
mod tests;
