//! The result of a handshake: a secured connection, or a failure whose connection still has to be closed.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use crate::devices::{Entry, Replica};
use crate::evidence::Evidence;
use crate::net::{Socket, Stream, TlsStream, discard_until_closed};
use crate::outcome::{Reject, note_detail};
use crate::peer::{HttpCredentials, Peer};

/// A finished handshake.
#[derive(Debug)]
pub(crate) struct Secured {
    /// The encrypted stream.
    pub stream: Stream,
    /// Who is at its other end.
    pub client: SecuredClient,
}

/// A client after its handshake.
#[derive(Debug)]
pub(crate) struct SecuredClient {
    /// The device at its other end.
    pub peer: Peer,
    /// What the device proved, which the session relies on; `None` if it proved nothing.
    pub evidence: Option<Evidence>,
    /// The registry entry whose key the device used. Whether the device may connect is not decided yet.
    pub device: Option<Arc<Entry>>,
    /// What it sent with the request for WebSocket, to authenticate itself.
    pub credentials: Option<Box<HttpCredentials>>,
}

/// A failed handshake. The alert has been sent.
pub(crate) struct Failed {
    /// Why it failed.
    pub reject: Reject,
    pub(super) connection: Option<FailedConnection>,
}

/// The connection of a failed handshake.
pub(super) enum FailedConnection {
    Tcp(Socket),
    /// The handshake was finished, but proved nothing that is accepted.
    Tls(Box<TlsStream<Socket>>),
    #[cfg(feature = "psk")]
    Psk(Box<portcullis_psk::PskStream<Socket>>),
    /// What follows the handshake has failed.
    Upgrade(Box<Stream>),
}

impl Failed {
    pub(crate) const fn without_connection(reject: Reject) -> Self {
        Self { reject, connection: None }
    }

    /// What follows the handshake has failed. The client has been told on this stream.
    pub(crate) fn after_handshake(reject: Reject, stream: Stream) -> Self {
        Self { reject, connection: Some(FailedConnection::Upgrade(Box::new(stream))) }
    }

    /// Closes the connection so that the alert arrives: with unread bytes, the kernel would send a reset, which can
    /// overtake the alert.
    pub(crate) async fn close(self) {
        let Some(mut connection) = self.connection else { return };
        if let FailedConnection::Tls(stream) = &mut connection {
            // With close_notify.
            let _ = stream.shutdown().await;
            return discard_until_closed(stream.socket_mut()).await;
        }
        if let FailedConnection::Upgrade(stream) = &mut connection {
            let _ = stream.shutdown().await;
            return discard_until_closed(stream).await;
        }
        let socket = match &mut connection {
            FailedConnection::Tcp(socket) => socket,
            FailedConnection::Tls(stream) => stream.socket_mut(),
            #[cfg(feature = "psk")]
            FailedConnection::Psk(stream) => stream.get_mut(),
            FailedConnection::Upgrade(_) => return,
        };
        let _ = socket.shutdown().await;
        discard_until_closed(socket).await;
    }
}

/// Returns [`Reject::RegistryUnavailable`] in place of `unknown` while the registry is out of reach, as it may have the
/// key. Only the log shows the difference: the client sees the same alert.
pub(super) fn or_registry_unavailable(reject: Reject, unknown: Reject, registry: Option<&Arc<Replica>>) -> Reject {
    match registry {
        Some(registry) if reject == unknown && !registry.is_authoritative() => {
            note_detail(registry.uncertainty());
            Reject::RegistryUnavailable
        }
        _ => reject,
    }
}
