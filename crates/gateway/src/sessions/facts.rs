//! What is known of a client at CONNECT, kept for as long as its session: a reload evaluates the rules of its packets again.

use portcullis_wire::{Connect, Limits, Will};

use crate::auth::Principal;
use crate::observe::SessionInfo;
use crate::peer::{Facts, Peer};

/// What is known of a client. Without its password, and without the payload of its will.
#[derive(Debug)]
pub(crate) struct ClientFacts {
    peer: Peer,
    /// CONNECT as the client sent it.
    connect: Vec<u8>,
    principal: Box<Principal>,
}

impl ClientFacts {
    /// Copies what expressions can use. `None`: CONNECT cannot be encoded again.
    pub(crate) fn new(peer: &Peer, connect: &Connect<'_>, principal: Box<Principal>) -> Option<Self> {
        let will = connect.will.map(|will| Will { payload: b"", ..will });
        let mut encoded = Vec::new();
        Connect { password: None, will, ..*connect }.encode(&mut encoded).ok()?;
        encoded.shrink_to_fit();
        Some(Self { peer: peer.clone(), connect: encoded, principal })
    }

    /// Calls `evaluate` with the facts. `now` is in seconds since 1970. `None`: CONNECT cannot be decoded.
    pub(crate) fn evaluate<T>(
        &self,
        info: &SessionInfo,
        now: i64,
        evaluate: impl FnOnce(&Facts<'_>) -> T,
    ) -> Option<T> {
        let (connect, _) = Connect::decode(&self.connect, Limits::default()).ok()??;
        let attributes = self.principal.attributes();
        let facts = Facts { peer: &self.peer, listener: &info.listener, mqtt: &connect, attributes, now };
        Some(evaluate(&facts))
    }
}
