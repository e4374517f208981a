//! What is known of one connection, and the guard that writes it down however the connection ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_wire::Version;

use super::access_log::Format;
use super::{ListenerMetrics, Observer};
use crate::outcome::{Blame, CloseReason, Outcome, Reject, Stage};
use crate::peer::{Identity, Peer};

/// What a client speaks below MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Transport {
    Tcp,
    Tls,
}

impl Transport {
    /// As the access log says it.
    pub const fn label(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// What the access log says of TLS.
#[derive(Clone, Copy, Debug)]
pub struct TlsNote {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// What is known of one connection. Dropped, it writes one access line and the counters, so that no way out, a panic
/// included, leaves none.
#[derive(Debug)]
pub struct Record {
    observer: Arc<Observer>,
    listener: Arc<ListenerMetrics>,
    pub(crate) transport: Transport,
    pub(crate) remote: SocketAddr,
    pub(crate) opened: Instant,
    /// Application bytes from the client.
    pub received: u64,
    /// Application bytes to the client.
    pub sent: u64,
    /// The broker, as the configuration or its address says it.
    pub server: Option<Arc<str>>,
    /// As the client sent it.
    pub client_id: Option<Box<str>>,
    /// The MQTT version the client speaks.
    pub mqtt_version: Option<Version>,
    /// TLS towards the client.
    pub tls: Option<TlsNote>,
    /// The client certificate's subject; kept only where the log has a place for it.
    pub cert_subject: Option<Box<str>>,
    /// Its serial number, likewise.
    pub cert_serial: Option<Box<str>>,
    /// The identity of its pre-shared key, or what its raw public key is called, likewise.
    pub tls_identity: Option<Box<str>>,
    /// The authenticator that knew it.
    pub authenticator: Option<Arc<str>>,
    /// From accept to the broker's CONNACK.
    pub connected_after: Option<Duration>,
    outcome: Option<Outcome>,
    decided: Option<Outcome>,
}

impl Record {
    /// Begins the record of a connection that was just accepted.
    pub fn open(
        observer: Arc<Observer>,
        listener: Arc<ListenerMetrics>,
        transport: Transport,
        remote: SocketAddr,
    ) -> Box<Self> {
        listener.active.inc();
        Box::new(Self {
            observer,
            listener,
            transport,
            remote,
            opened: Instant::now(),
            received: 0,
            sent: 0,
            server: None,
            client_id: None,
            mqtt_version: None,
            tls: None,
            cert_subject: None,
            cert_serial: None,
            tls_identity: None,
            authenticator: None,
            connected_after: None,
            outcome: None,
            decided: None,
        })
    }

    /// Notes that the connection is refused, before the client is told.
    pub fn decide(&mut self, reject: Reject) {
        self.decided = Some(reject.into());
    }

    /// How it was decided to end, if it was.
    pub const fn decided(&self) -> Option<Outcome> {
        self.decided
    }

    /// Counts application bytes from and to the client.
    pub fn moved(&mut self, received: u64, sent: u64) {
        self.received += received;
        self.sent += sent;
        // Most polls of a session move bytes one way only; an atomic that others use too is not touched for nothing.
        if received > 0 {
            self.listener.received.inc_by(received);
        }
        if sent > 0 {
            self.listener.sent.inc_by(sent);
        }
    }

    /// The handshake has ended.
    pub fn secured(&mut self, peer: &Peer) {
        let Some(tls) = &peer.tls else { return };
        self.listener.count_handshake(tls.resumed, self.opened);
        self.tls = Some(TlsNote { version: tls.version, resumed: tls.resumed });
        // Kept only where the log has a field for it.
        if !self.observer.access_log.load().as_ref().is_some_and(|log| log.format() == Format::Json) {
            return;
        }
        match &peer.identity {
            Identity::None => {}
            Identity::Certificate(certificate) => {
                self.cert_subject = certificate.subject.dn.as_deref().map(Into::into);
                self.cert_serial = Some(certificate.serial.as_str().into());
            }
            Identity::RawKey(key) => self.tls_identity.clone_from(&key.name),
            Identity::Psk(psk) => self.tls_identity = Some(psk.identity.clone()),
        }
    }

    /// The broker has answered CONNECT.
    pub fn connected(&mut self) {
        self.connected_after = Some(self.opened.elapsed());
    }

    /// Ends the record: writes it down.
    pub fn finish(mut self: Box<Self>, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// The name of the listener.
    pub fn listener(&self) -> &str {
        &self.listener.name
    }

    /// Says what happened, as loud as it concerns the operator: a client's doing is for debugging, a broker's a
    /// warning, the gateway's own an error.
    fn log(&self, outcome: Outcome) {
        let (listener, reason, remote) = (self.listener(), outcome.label(), self.remote);
        let (client_id, server) = (self.client_id.as_deref(), self.server.as_deref());
        let hint = outcome.hint();
        match outcome.blame() {
            Blame::Gateway if outcome.label() == CloseReason::InternalError.label() => {
                tracing::error!(listener, reason, %remote, client_id, server, "connection ended by a fault of the gateway");
            }
            Blame::Upstream if outcome.status() >= 500 => {
                if let Some(suppressed) = self.listener.upstream_warnings.permit() {
                    tracing::warn!(listener, reason, %remote, client_id, server, suppressed, "broker failed a client");
                }
            }
            _ => tracing::debug!(listener, reason, %remote, client_id, server, hint, "connection ended"),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // No outcome: the task was dropped in mid-air, by a panic or by the end of the runtime.
        let outcome = self.outcome.unwrap_or(if std::thread::panicking() {
            Outcome::Closed(CloseReason::InternalError)
        } else {
            Outcome::Closed(CloseReason::Drained)
        });
        self.listener.active.dec();
        self.listener.count_end(outcome);
        if let (Outcome::Rejected(reject), Stage::Handshake) = (outcome, outcome.stage()) {
            self.listener.count_handshake_failure(reject);
        }
        self.log(outcome);
        if let Some(log) = self.observer.access_log.load().as_ref() {
            log.write(self, outcome);
        }
    }
}
