//! One handshake: what rustls' callbacks learn in its course, carried by the connection's own configuration.
//!
//! rustls asks for tickets and hands over certificates without saying in which handshake; so each connection gets a
//! configuration whose callbacks share one [`Handshake`].

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::pki::VerifiedChain;
use crate::util::clock::now;

/// What is learned of a device in the course of a handshake.
#[derive(Debug, Default)]
pub(super) struct Handshake(Mutex<Learned>);

#[derive(Debug, Default)]
struct Learned {
    /// From the certificate it has just presented.
    verified: Option<Proof>,
    /// From the session it wants to resume.
    resumed: Option<Proof>,
}

/// What a device proved, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// `None`: it presented no certificate.
    pub(super) chain: Option<VerifiedChain>,
    /// The time of the full handshake, in seconds since 1970: resumption does not make it younger.
    pub(super) at: i64,
}

impl Handshake {
    /// A certificate was verified.
    pub(super) fn verified(&self, proof: Proof) {
        self.0.lock().verified = Some(proof);
    }

    /// A session is resumed.
    pub(super) fn resumed(&self, proof: Proof) {
        self.0.lock().resumed = Some(proof);
    }

    /// The handshake is a full one: a session that was to be resumed will not be.
    pub(super) fn is_full(&self) {
        self.0.lock().resumed = None;
    }

    /// What the session's ticket has to carry.
    pub(super) fn proof(&self) -> Proof {
        let learned = self.0.lock();
        let proof = learned.verified.clone().or_else(|| learned.resumed.clone());
        proof.unwrap_or_else(|| Proof { chain: None, at: now() })
    }

    /// The chain that the finished handshake rests on.
    pub(super) fn take_chain(&self, is_resumed: bool) -> Option<VerifiedChain> {
        let mut learned = self.0.lock();
        let proof = if is_resumed { learned.resumed.take() } else { learned.verified.take() };
        proof.and_then(|proof| proof.chain)
    }
}
