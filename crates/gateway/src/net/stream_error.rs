//! What a client did on its transport, where the loss of the connection does not say it all.

use std::fmt;
use std::io;

use super::websocket::Violation;

/// Why a stream has failed, carried by an [`io::Error`].
#[derive(Debug)]
pub(crate) enum StreamError {
    /// A frame violates the protocol of WebSocket.
    WebSocket(Violation),
    /// The client violates the protocol of QUIC, or a limit that it was told; and how.
    Quic(Box<str>),
    /// Nothing has arrived on a QUIC connection for `idle_timeout`.
    QuicIdle,
}

impl StreamError {
    /// What an error of a stream says of its client; `None`: the connection is lost.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WebSocket(violation) => violation.fmt(f),
            Self::Quic(violation) => f.write_str(violation),
            Self::QuicIdle => f.write_str("nothing has arrived for `idle_timeout`"),
        }
    }
}

impl std::error::Error for StreamError {}
