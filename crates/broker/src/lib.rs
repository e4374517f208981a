//! A small MQTT broker in memory, for trying out and for tests. Takes connected streams; speaks MQTT 3.1, 3.1.1 and 5.
//!
//! It accepts messages with every QoS and delivers them with QoS 0 or 1. It keeps sessions, retained messages and wills,
//! in bounded tables: what does not fit is dropped, and the log says so at the level `debug`. It authenticates nobody,
//! stores nothing on disk and has no shared subscriptions.

mod connection;
mod hub;
mod packets;
mod topics;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use hub::Hub;

/// A broker. Clones are the same broker.
#[derive(Clone, Debug, Default)]
pub struct Broker {
    hub: Arc<Mutex<Hub>>,
}

impl Broker {
    /// A broker without sessions and messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves a client until its connection has ended, and until its will, which may be delayed, is published.
    ///
    /// # Errors
    /// The connection broke, or the client did not follow the protocol.
    pub async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        connection::serve(&self.hub, stream).await
    }
}

#[cfg(test)]
mod tests;
