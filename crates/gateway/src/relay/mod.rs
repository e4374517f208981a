//! The relay: bytes between a client and its broker, once the broker has answered CONNECT.
//!
//! Enters: two connected streams. Leaves: the close reason, and the byte counts in the record. It has two independent
//! parts:
//!
//! - the pump (`pump.rs`) moves bytes: back-pressure, half-close, deadlines, the DISCONNECT at the end;
//! - a codec (`codec.rs`) decides what to do with them. `opaque.rs` passes all of them unchanged.
//!
//! Not here: the decision whether the client may stay connected, which the caller reports. An idle session holds no
//! buffer.

mod codec;
mod opaque;
mod pump;
mod side;

use std::future::poll_fn;
use std::task::{Context, Poll};

use codec::{Codec, Direction, Injected};
use opaque::Opaque;
pub(crate) use pump::Ends;

use crate::observe::Record;
use crate::outcome::CloseReason;

/// What becomes of a session's bytes, from the first one behind CONNECT on. Made at admission, where it is known what the
/// client may do.
#[derive(Debug, Default)]
pub(crate) struct SessionCodec {
    codec: Opaque,
    /// For the client, behind the broker's CONNACK.
    replies: Vec<u8>,
}

impl SessionCodec {
    /// Takes what the client has sent behind CONNECT, and appends to `packets` what the broker is to get of it.
    ///
    /// # Errors
    /// The session ends for this reason.
    pub(crate) fn take_early(&mut self, bytes: &[u8], packets: &mut Vec<u8>) -> Result<(), CloseReason> {
        take_early(&mut self.codec, bytes, packets, &mut self.replies)
    }
}

fn take_early(
    codec: &mut impl Codec,
    bytes: &[u8],
    packets: &mut Vec<u8>,
    replies: &mut Vec<u8>,
) -> Result<(), CloseReason> {
    let mut injected = Injected::default();
    packets.extend_from_slice(codec.take(Direction::ToBroker, bytes, &mut injected)?);
    packets.extend(injected.forward);
    replies.extend(injected.reply);
    Ok(())
}

/// Moves bytes until both sides have closed, one is lost, or the session has to close. Returns the close reason.
///
/// Bytes are counted in `record` as they move, so that the record of an aborted session is correct, too.
///
/// `poll_end` is ready with the reason once the session has to close.
pub(crate) async fn relay(
    ends: Ends,
    codec: SessionCodec,
    record: &Record,
    mut poll_end: impl FnMut(&Context<'_>) -> Poll<CloseReason>,
) -> CloseReason {
    let mut pump = pump::Pump::new(ends, codec.codec, codec.replies);
    let reason = poll_fn(|cx| {
        if !pump.is_stopping()
            && let Poll::Ready(reason) = poll_end(cx)
        {
            pump.stop(reason);
        }
        let poll = pump.poll(cx);
        let (received, sent) = pump.take_counts();
        record.count_bytes(received, sent);
        poll
    })
    .await;
    pump.close().await;
    reason
}
