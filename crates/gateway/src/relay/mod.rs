//! The relay: bytes between a client and its broker, once the broker has answered CONNECT.
//!
//! Enters: two connected streams. Leaves: the close reason, and the byte counts in the record. It has two independent
//! parts:
//!
//! - the pump ([`pump`]) moves bytes: back-pressure, half-close, deadlines, the DISCONNECT at the end;
//! - a codec ([`codec`]) decides what to do with them. [`opaque`] passes all of them unchanged.
//!
//! Never here: a buffer while the session is idle, or the decision whether the client may stay connected, which comes from
//! the session index.

mod codec;
mod opaque;
mod pump;
mod side;

use std::future::poll_fn;
use std::task::Poll;

pub use pump::Ends;

use crate::observe::Record;
use crate::outcome::CloseReason;
use crate::session::index::Session;

/// Moves bytes until both sides have closed, one is lost, or the session has to close. Returns the close reason.
///
/// Bytes are counted in `record` as they move, so that the record of an aborted session is correct, too.
pub async fn relay(ends: Ends, record: &mut Record, session: &Session) -> CloseReason {
    let mut pump = pump::Pump::new(ends, opaque::Opaque::new());
    let reason = poll_fn(|cx| {
        if !pump.is_stopping()
            && let Poll::Ready(reason) = session.poll_end(cx)
        {
            pump.stop(reason);
        }
        let poll = pump.poll(cx);
        let (received, sent) = pump.take_counts();
        record.moved(received, sent);
        poll
    })
    .await;
    // Boxed, so that the future of an idle session does not include the buffer that this needs.
    Box::pin(pump.close()).await;
    reason
}
