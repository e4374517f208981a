//! What is known of a client at CONNECT, kept for as long as its session: a reload evaluates the rules of its packets again.

use std::sync::Arc;

use portcullis_wire::{Connect, Limits, Will};

use crate::auth::Principal;
use crate::observe::SessionInfo;
use crate::peer::{Facts, Peer};

/// What is known of a client.
#[derive(Debug)]
pub(crate) struct ClientFacts {
    peer: Peer,
    connect: SeenConnect,
    principal: Arc<Principal>,
}

/// CONNECT as rules see it, encoded: with the client ID and user name that the broker gets, without the password, the payload of
/// the will, and what packet rules change.
#[derive(Debug)]
pub(crate) struct SeenConnect(Box<[u8]>);

impl SeenConnect {
    /// Copies a CONNECT. `None`: it cannot be encoded.
    pub(crate) fn of(connect: &Connect<'_>) -> Option<Self> {
        let will = connect.will.map(|will| Will { payload: b"", ..will });
        let mut encoded = Vec::new();
        Connect { password: None, will, ..*connect }.encode(&mut encoded).ok()?;
        Some(Self(encoded.into()))
    }
}

impl ClientFacts {
    pub(crate) fn new(peer: &Peer, connect: SeenConnect, principal: Arc<Principal>) -> Self {
        Self { peer: peer.clone(), connect, principal }
    }

    /// Calls `evaluate` with the facts. `now` is in seconds since 1970. `None`: CONNECT cannot be decoded.
    pub(crate) fn evaluate<T>(
        &self,
        info: &SessionInfo,
        now: i64,
        evaluate: impl FnOnce(&Facts<'_>) -> T,
    ) -> Option<T> {
        let (connect, _) = Connect::decode(&self.connect.0, Limits::default()).ok()??;
        let attributes = self.principal.attributes();
        let moved = info.moved().map(|address| Peer { address, ..self.peer.clone() });
        let peer = moved.as_ref().unwrap_or(&self.peer);
        let facts = Facts { peer, listener: &info.listener, mqtt: &connect, attributes, now };
        Some(evaluate(&facts))
    }
}
