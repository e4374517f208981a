//! How a handshake ends.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::devices::{Entry, Replica};
use crate::edge::{Stream, discard_until_closed};
use crate::evidence::Evidence;
use crate::outcome::Reject;
use crate::peer::Peer;

/// A finished handshake.
#[derive(Debug)]
pub struct Secured {
    /// The encrypted stream.
    pub stream: Stream,
    /// Who is at its other end.
    pub peer: Peer,
    /// What the session rests on from now on; `None`: the device proved nothing.
    pub evidence: Option<Evidence>,
    /// The device of the registry whose key was used; whether it may connect is not decided.
    pub device: Option<Arc<Entry>>,
}

/// A handshake that failed. The device was sent the alert.
#[expect(missing_debug_implementations, reason = "it is closed and nothing else")]
pub struct Failed {
    /// Why.
    pub reject: Reject,
    pub(super) rest: Option<Rest>,
}

/// What is left of the connection.
pub(super) enum Rest {
    Tcp(TcpStream),
    #[cfg(feature = "psk")]
    Psk(Box<portcullis_psk::PskStream<TcpStream>>),
}

impl Failed {
    pub(super) const fn without_connection(reject: Reject) -> Self {
        Self { reject, rest: None }
    }

    /// Closes the connection in such a way that the alert arrives: with bytes unread, the kernel would send a reset that
    /// can overtake it.
    pub async fn close(self) {
        let Some(mut rest) = self.rest else { return };
        #[cfg_attr(
            not(feature = "psk"),
            expect(clippy::infallible_destructuring_match, reason = "with the feature there are two")
        )]
        let socket = match &mut rest {
            Rest::Tcp(socket) => socket,
            #[cfg(feature = "psk")]
            Rest::Psk(stream) => stream.get_mut(),
        };
        let _ = socket.shutdown().await;
        discard_until_closed(socket).await;
    }
}

/// A key that no file lists may be one of the registry, if that is out of reach: then this is the reason in the log. From
/// outside it looks the same.
pub(super) fn perhaps_unavailable(reject: Reject, unknown: Reject, registry: Option<&Arc<Replica>>) -> Reject {
    let is_uncertain = reject == unknown && registry.is_some_and(|registry| !registry.is_certain());
    if is_uncertain { Reject::RegistryUnavailable } else { reject }
}
