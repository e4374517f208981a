//! The rules of live sessions follow a reload. Enters: a session that was admitted, and the configuration in use. Leaves:
//! other rules for its packets and another lifetime, or its end. Not here: whether the client may be connected at all, which
//! `evaluate.rs` decides.

use super::evaluate::listener_of;
use crate::outcome::{CloseReason, note_detail, traced_now};
use crate::runtime::Runtime;
use crate::sessions::{SessionEntry, Sessions, Subject};
use crate::util::clock::now;

/// Evaluates the rules of a session again.
pub(crate) fn follow_rules(session: &SessionEntry, sessions: &Sessions, runtime: &Runtime) {
    let now = now();
    let subject = session.subject();
    let is_inspected = matches!(subject, Subject::Inspected(_));
    // Nobody would admit it: its evidence ends it.
    let Some(listener) = listener_of(session.client_evidence(), is_inspected, runtime, now) else { return };
    sessions.limit_lifetime(session, listener.max_session_lifetime);
    let evaluate = || match subject {
        // It will be admitted by the configuration of that moment.
        Subject::NotAdmitted => false,
        Subject::NotInspected => {
            let is_over = listener.packets.binds_sessions();
            if is_over {
                note_detail("the packets of the session were not inspected before");
            }
            is_over
        }
        Subject::Inspected(client) => {
            match client.evaluate(&session.info, now, |facts| listener.packets.for_client(facts)) {
                Some(Ok(rules)) => {
                    session.set_rules(rules.unwrap_or_default());
                    false
                }
                // It would be rejected now.
                Some(Err(_)) | None => true,
            }
        }
    };
    let (is_over, trace) = traced_now(evaluate);
    if is_over {
        session.info.set_trace(trace);
        session.end(CloseReason::SessionPolicyChanged);
    }
}
