//! One handshake: what rustls' callbacks learn in its course, carried by the connection's own configuration.
//!
//! rustls asks for tickets and hands over certificates without saying in which handshake; so each connection gets a
//! configuration whose callbacks share one [`Handshake`].

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::peer::Certificate;
use crate::pki::VerifiedChain;
use crate::util::clock::now;

/// What is learned of a device in the course of a handshake.
#[derive(Debug, Default)]
pub(super) struct Handshake(Mutex<Learned>);

#[derive(Debug, Default)]
struct Learned {
    /// From the certificate it has just presented.
    verified: Option<Proof>,
    /// That certificate, parsed.
    leaf: Option<Certificate>,
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
    /// A certificate was verified: `leaf`.
    pub(super) fn verified(&self, proof: Proof, leaf: Certificate) {
        let mut learned = self.0.lock();
        (learned.verified, learned.leaf) = (Some(proof), Some(leaf));
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

    /// The chain that the finished handshake rests on; and the device's certificate, if it was parsed in this handshake,
    /// as it is in full ones.
    pub(super) fn take(&self, is_resumed: bool) -> (Option<VerifiedChain>, Option<Certificate>) {
        let mut learned = self.0.lock();
        let (proof, leaf) =
            if is_resumed { (learned.resumed.take(), None) } else { (learned.verified.take(), learned.leaf.take()) };
        (proof.and_then(|proof| proof.chain), leaf)
    }
}
