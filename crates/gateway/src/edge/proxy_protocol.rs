//! Which peers of a listener speak the PROXY protocol. Enters: a socket and its peer. Leaves: the header of a load balancer,
//! or a rejection. From anybody else a header is never believed.

use tokio::time::{Instant, timeout_at};

use super::proxy_header;
use crate::config::tables;
use crate::limits::AddressRules;
use crate::net::Socket;
use crate::outcome::{Reject, note_detail};
use crate::peer::{PeerAddress, ProxyHeader};

/// The PROXY protocol on a listener, compiled.
#[derive(Debug)]
pub(crate) struct ProxyProtocol {
    balancers: AddressRules,
    required: bool,
    certificate: bool,
}

impl ProxyProtocol {
    /// Compiles the settings of a listener.
    pub(crate) fn new(settings: &tables::ProxyProtocol) -> Self {
        let tables::ProxyProtocol { from, required, certificate } = settings;
        Self { balancers: AddressRules::new(from, &[]), required: *required, certificate: *certificate }
    }

    /// Whether a peer may connect, with a header or without.
    pub(crate) fn admits(&self, peer: PeerAddress) -> bool {
        !self.required || self.trusts(peer)
    }

    /// Whether the headers of this peer are believed.
    pub(crate) fn trusts(&self, peer: PeerAddress) -> bool {
        self.balancers.allows(peer)
    }

    /// Reads the header that a load balancer has to send. Returns the client's address with it; `None`: the peer is a client, which
    /// may not send one: see [`check_client`].
    pub(super) async fn read_header(
        &self,
        socket: &mut Socket,
        peer: PeerAddress,
        deadline: Instant,
    ) -> Result<Option<(PeerAddress, ProxyHeader)>, Reject> {
        if !self.trusts(peer) {
            return if self.required { Err(Reject::ProxyHeaderUntrusted) } else { Ok(None) };
        }
        let read = timeout_at(deadline, proxy_header::read(socket, peer, self.certificate)).await;
        read.unwrap_or_else(|_| {
            note_detail("it did not arrive in time");
            Err(Reject::ProxyHeaderMissing)
        })
        .map(Some)
    }
}

/// Waits for the first byte of a client that is connected without a balancer, on a listener that speaks the PROXY protocol.
///
/// # Errors
/// The client sends a header.
pub(super) async fn check_client(socket: &Socket) -> Result<(), Reject> {
    let mut first = [0; 12];
    // A client that leaves is the concern of what follows.
    match socket.peek(&mut first).await {
        // Of a shorter piece, it is not known yet; what follows rejects it.
        Ok(len) if proxy_header::is_proxy_header(&first[..len]) => {
            note_detail("it sent a header, which only peers in `from` may");
            Err(Reject::ProxyHeaderUntrusted)
        }
        _ => Ok(()),
    }
}
