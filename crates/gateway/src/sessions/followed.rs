//! Where a client over QUIC is, which may change. Enters: what its connection says each second. Leaves: another address, once that is
//! likely to be the client's.

use crate::net::QuicPath;
use crate::peer::PeerAddress;

/// A client that may migrate.
#[derive(Debug)]
pub(super) struct Followed {
    path: QuicPath,
    /// Where it is, as far as it has proved that.
    address: PeerAddress,
    /// The number of its answers about paths when it was last seen there.
    answers: u64,
    /// Where its packets come from now, and how often in a row that was seen.
    new: Option<(PeerAddress, u8)>,
}

/// How often in a row an address has to be seen. If a client is not there, quinn goes back to the path before within three seconds, as
/// a rule.
const SEEN: u8 = 4;

impl Followed {
    pub(super) fn new(path: QuicPath) -> Self {
        let (address, answers) = (path.address().into(), path.answers());
        Self { path, address, answers, new: None }
    }

    /// Another address than before, once it was seen [`SEEN`] times in a row and the client has answered a question about its path:
    /// until then, it may be that of somebody who only copies the client's packets, or to whom the client does not listen.
    pub(super) fn look(&mut self) -> Option<PeerAddress> {
        let (address, answers) = (self.path.address().into(), self.path.answers());
        if address == self.address {
            (self.answers, self.new) = (answers, None);
            return None;
        }
        let seen = self.new.filter(|(new, _)| *new == address).map_or(0, |(_, seen)| seen).saturating_add(1);
        self.new = Some((address, seen));
        if seen < SEEN || answers <= self.answers {
            return None;
        }
        (self.address, self.answers, self.new) = (address, answers, None);
        Some(address)
    }
}
