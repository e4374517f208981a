//! The guard that records a connection on every exit path. Enters: byte counts and the outcome. Leaves: an access log line,
//! counters and a message in the gateway's log.

use std::sync::Arc;

use super::access_log::End;
use super::{ListenerMetrics, Observer, SessionInfo};
use crate::outcome::{Blame, CloseReason, Outcome, Stage};
use crate::peer::Peer;

/// The record of one connection. Dropping it writes the access log line and the counters, so that no exit path skips them,
/// a panic included.
#[derive(Debug)]
pub struct Record {
    observer: Arc<Observer>,
    listener: Arc<ListenerMetrics>,
    /// The facts about the connection.
    pub info: Arc<SessionInfo>,
    outcome: Option<Outcome>,
    decided: Option<Outcome>,
}

impl Record {
    /// Begins the record of a connection that was just accepted.
    pub fn open(observer: Arc<Observer>, listener: Arc<ListenerMetrics>, info: Arc<SessionInfo>) -> Box<Self> {
        listener.active.inc();
        Box::new(Self { observer, listener, info, outcome: None, decided: None })
    }

    /// Sets the outcome before the client is answered.
    pub fn decide(&mut self, outcome: Outcome) {
        self.decided = Some(outcome);
    }

    /// The outcome, if one was set.
    pub const fn decided(&self) -> Option<Outcome> {
        self.decided
    }

    /// Counts application bytes from and to the client.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        self.info.count_bytes(received, sent);
        // Most polls move bytes in one direction only: do not touch a contended atomic for zero bytes.
        if received > 0 {
            self.listener.received.inc_by(received);
        }
        if sent > 0 {
            self.listener.sent.inc_by(sent);
        }
    }

    /// Records the end of the handshake.
    pub fn secured(&self, peer: &Peer) {
        if let Some(tls) = &peer.tls {
            self.listener.count_handshake(tls.resumed, self.info.opened);
        }
        self.info.set_peer(peer);
    }

    /// Writes the record.
    #[expect(clippy::boxed_local, reason = "it is boxed for as long as the session lasts")]
    pub fn finish(mut self: Box<Self>, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// The name of the listener.
    pub fn listener(&self) -> &str {
        &self.info.listener
    }

    /// That there is no room for clients concerns the operator even if the access log has each of them.
    fn log_overload(&self, outcome: Outcome) {
        if let Outcome::Rejected(reject) = outcome
            && reject.is_overload()
            && self.observer.overload.count(reject)
        {
            let (reason, detail, hint) = (outcome.label(), self.info.detail(), outcome.hint());
            let (listener, remote) = (self.listener(), self.info.address());
            tracing::warn!(listener, reason, detail, %remote, hint, "clients are rejected");
        }
    }

    /// Without an access log, a rejection would leave no trace at the usual log level.
    fn log_rejection(&self, outcome: Outcome) {
        if !matches!(outcome, Outcome::Rejected(_)) || self.observer.access_log.load().is_some() {
            return;
        }
        if let Some(suppressed) = self.listener.rejections.permit() {
            let (remote, reason, detail, hint) =
                (self.info.address(), outcome.label(), self.info.detail(), outcome.hint());
            let (connection, client_id, identity) = (self.info.id, self.info.client_id(), self.info.identity());
            let (username, cert_subject) = (self.info.username(), identity.cert_subject);
            tracing::info!(
                connection, listener = self.listener(), reason, detail, %remote, client_id, username, cert_subject, hint,
                suppressed, "client rejected; [access_log] would list all"
            );
        }
    }

    /// Logs the outcome: `debug` if the client caused it, `warn` if a broker did, `error` if the gateway did.
    fn log(&self, outcome: Outcome) {
        let (listener, reason, remote) = (self.listener(), outcome.label(), self.info.address());
        let (connection, detail) = (self.info.id, self.info.detail());
        let (client_id, server) = (self.info.client_id(), self.info.upstream().map(|upstream| &*upstream.server));
        let hint = outcome.hint();
        match outcome.blame() {
            Blame::Gateway if outcome.label() == CloseReason::InternalError.label() => {
                tracing::error!(connection, listener, reason, %remote, client_id, server, "internal error ended a connection");
            }
            // What closed the connection may be the client's fault; and lack of room has lines of its own.
            Blame::Upstream
                if outcome.status() >= 500
                    && outcome != CloseReason::UpstreamClosed.into()
                    && !matches!(outcome, Outcome::Rejected(reject) if reject.is_overload()) =>
            {
                if let Some(suppressed) = self.listener.upstream_warnings.permit() {
                    tracing::warn!(
                        connection, listener, reason, detail, %remote, client_id, server, suppressed,
                        "broker could not serve a client"
                    );
                }
            }
            _ => {
                let (username, identity) = (self.info.username(), self.info.identity());
                let (cert_subject, authenticator) = (identity.cert_subject, self.info.authenticator());
                tracing::debug!(
                    connection, listener, reason, detail, %remote, client_id, username, cert_subject,
                    tls_identity = identity.key, authenticator, server, hint, "connection ended"
                );
                self.log_rejection(outcome);
            }
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Without an outcome, a panic or the shutdown of the runtime dropped the task. The session may have been about to end
        // for another reason.
        let outcome = self.outcome.unwrap_or_else(|| {
            if std::thread::panicking() {
                return Outcome::Closed(CloseReason::InternalError);
            }
            let ends = || Outcome::Closed(self.info.ends_because().unwrap_or(CloseReason::Drained));
            self.decided.unwrap_or_else(ends)
        });
        self.listener.active.dec();
        self.listener.count_end(outcome);
        if let (Outcome::Rejected(reject), Stage::Handshake) = (outcome, outcome.stage()) {
            self.listener.count_handshake_failure(reject);
        }
        self.log_overload(outcome);
        self.log(outcome);
        if let Some(log) = self.observer.access_log.load().as_ref() {
            log.write(&End { info: &self.info, outcome });
        }
    }
}
