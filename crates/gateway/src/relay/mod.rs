//! The relay: bytes between a client and its broker, once the broker has answered CONNECT.
//!
//! Enters: two connected streams. Leaves: why the session ended, and the record's byte counts. Two parts that know nothing
//! of each other's work:
//!
//! - the pump ([`pump`]) moves bytes: back-pressure, half-close, deadlines, the DISCONNECT at the end;
//! - a codec ([`codec`]) decides what becomes of them. [`opaque`] passes all of them as they are.
//!
//! Never here: a buffer while the session is idle, a decision whether the client may stay (the session index tells).

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

/// Moves bytes until both sides have ended, one is lost, or the session has to end. Returns why it ended.
///
/// Bytes are counted in `record` as they move, so that a session that is cut off has a true record too.
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
    pump.close().await;
    reason
}
