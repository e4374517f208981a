//! What a codec is: it decides what becomes of the bytes that the pump moves.
//!
//! Enters: each chunk, with its direction, split anywhere. Leaves: what the receiver is to get, what goes back to the
//! sender, or the reason for which the session ends. Never here: sockets, waiting, deadlines; the pump has them.
//!
//! A session has one codec for both directions, because packets of one direction answer those of the other. The pump is
//! generic over it: a codec that changes nothing costs nothing.

use crate::outcome::CloseReason;

/// Which way bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the broker.
    ToBroker,
    /// From the broker to the client.
    ToClient,
}

impl Direction {
    /// The other one.
    pub(super) const fn reverse(self) -> Self {
        match self {
            Direction::ToBroker => Direction::ToClient,
            Direction::ToClient => Direction::ToBroker,
        }
    }
}

/// Decides what becomes of the bytes of a session.
///
/// A codec keeps no buffer while both directions are at a packet boundary. It may withhold bytes that it cannot decide on
/// yet, such as half a packet header, and it bounds them.
pub(super) trait Codec {
    /// Takes the `chunk` that was read in `direction`. Returns the part of it that is written as it is, straight from the
    /// pump's buffer. What it leaves in `injected` is written too. A packet is
    ///
    /// - withheld by returning only what is in front of it, until its rest has come;
    /// - dropped or replaced by returning what is in front of it, and putting what comes instead and behind into
    ///   [`Injected::forward`];
    /// - answered in the receiver's place through [`Injected::reply`].
    ///
    /// # Errors
    /// The session ends for this reason, and nothing more is read in this direction. What is in `injected`, such as the
    /// packets in front of the one that ends the session, is still written as far as it is taken at once.
    fn take<'c>(
        &mut self,
        direction: Direction,
        chunk: &'c [u8],
        injected: &mut Injected,
    ) -> Result<&'c [u8], CloseReason>;

    /// Where the bytes to the client may end, if `chunk` is what comes next in that direction. An empty `chunk` asks
    /// whether they may end now.
    fn boundary(&self, chunk: &[u8]) -> Boundary;
}

/// What a codec adds to a stream. It allocates only for what it adds.
#[derive(Debug, Default)]
pub(super) struct Injected {
    /// Follows the part of the chunk that is passed.
    pub(super) forward: Vec<u8>,
    /// Goes to the sender of the chunk, behind everything the codec has passed to it. The codec adds to it only while
    /// that ends with a whole packet. Nothing more is read from the sender until it has taken this.
    pub(super) reply: Vec<u8>,
}

/// Where the bytes to the client may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// Behind this many bytes of the chunk: the last packet boundary in it.
    At(usize),
    /// Behind a later chunk: a packet is under way.
    Later,
    /// Nowhere: the broker does not speak MQTT.
    Never,
}
