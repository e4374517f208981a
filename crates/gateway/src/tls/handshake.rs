//! The state of one handshake. Enters: the chains that rustls' callbacks verify or resume. Leaves: the chain that the
//! finished handshake rests on.
//!
//! rustls' callbacks for tickets and certificates do not identify the handshake they belong to. Therefore each connection
//! gets its own configuration, whose callbacks share one [`Handshake`].

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::pki::VerifiedChain;
use crate::util::clock::now;

/// What the callbacks have learned about the device.
#[derive(Debug, Default)]
pub(super) struct Handshake(Mutex<Learned>);

#[derive(Debug, Default)]
struct Learned {
    /// From the certificate presented in this handshake.
    verified: Option<Proof>,
    /// From the session that the device wants to resume.
    resumed: Option<Proof>,
}

/// What a device proved in a full handshake, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// `None` if it presented no certificate.
    pub(super) chain: Option<VerifiedChain>,
    /// The time of the full handshake, in seconds since 1970. Resumption does not renew it.
    pub(super) at: i64,
}

impl Handshake {
    /// Records the chain that was verified in this handshake.
    pub(super) fn verified(&self, proof: Proof) {
        self.0.lock().verified = Some(proof);
    }

    /// Records the chain of the session being resumed.
    pub(super) fn resumed(&self, proof: Proof) {
        self.0.lock().resumed = Some(proof);
    }

    /// Records that the handshake is a full one: rustls did not resume the session it looked up.
    pub(super) fn set_full(&self) {
        self.0.lock().resumed = None;
    }

    /// What the ticket of this session has to contain.
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
