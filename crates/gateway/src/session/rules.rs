//! The rules of packets of live sessions follow a reload. Enters: a session that was admitted, and the configuration in use.
//! Leaves: other rules for it, or its end. Not here: whether the client may be connected at all, which `evaluate.rs` decides.

use std::sync::Arc;

use crate::outcome::CloseReason;
use crate::runtime::Runtime;
use crate::sessions::SessionEntry;
use crate::util::clock::now;

/// Evaluates the rules of a session's packets again. A session whose listener was removed keeps its own.
pub(crate) fn follow_rules(session: &SessionEntry, runtime: &Runtime) {
    let Some(listener) = runtime.listener(&session.info.listener) else { return };
    // One that is not admitted yet will be by the configuration of that moment.
    if !session.is_admitted() {
        return;
    }
    let Some(client) = session.client() else {
        // What it subscribes to may not be known, nor who it is.
        if listener.packets.binds_sessions() {
            session.end(CloseReason::SessionPolicyChanged);
        } else {
            session.set_rules(Arc::new(listener.packets.for_anybody()));
        }
        return;
    };
    match client.evaluate(&session.info, now(), |facts| listener.packets.for_client(facts)) {
        Some(Ok(rules)) => session.set_rules(rules.unwrap_or_default()),
        // It would be rejected now.
        Some(Err(_)) | None => {
            session.end(CloseReason::SessionPolicyChanged);
        }
    }
}
