//! The phases of a connection, in order. Each passes the connection on or rejects it. [`Record`] logs the outcome on every
//! exit path.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::{Connack, Version};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::Shared;
use super::connect::{Answered, Refused, negotiate};
use super::index::Session;
use crate::config::tables::OnReject;
use crate::edge::{Accepted, Arrived, Stream, discard_until_closed};
use crate::limits::Permit;
use crate::observe::{Record, SessionInfo};
use crate::outcome::{CloseReason, Outcome, Reject};
use crate::relay::{Ends, relay};
use crate::runtime::Listener;
use crate::tls::Secured;
use crate::upstream::Lease;

/// How long the CONNACK for a rejected client may take to write. A client that does not read it is disconnected without.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub async fn serve(accepted: Accepted, listener: Arc<Listener>, shared: Arc<Shared>) {
    let info = SessionInfo::new(Arc::clone(&listener.name), listener.transport(), accepted.address);
    let session = shared.state.sessions.open(Arc::clone(&info));
    let observer = Arc::clone(&shared.state.observer);
    let mut record = Record::open(observer, Arc::clone(&listener.metrics), info);
    let arrived = accepted.arrive();
    record.info.set_address(arrived.address);
    // Held until the record is written, on every exit path.
    let _permit = match admit_address(&listener, arrived.address.ip()) {
        Ok(permit) => permit,
        Err(reject) => return record.finish(reject.into()),
    };
    // Boxed, so that the future of an established session does not include the size of the handshake.
    let established = tokio::select! {
        established = Box::pin(establish(arrived, &listener, &session, &shared, &mut record)) => established,
        // If the connection is already rejected, that is the outcome: only the CONNACK is still being sent.
        reason = session.ended() => Err(record.decided().unwrap_or(Outcome::Closed(reason))),
    };
    // Release the configuration: sessions outlive reloads.
    drop((listener, shared));
    let outcome = match established {
        Ok(Established { ends, refused, lease }) => {
            let reason = relay(ends, &mut record, &session).await;
            drop(lease);
            Outcome::Closed(if refused { CloseReason::UpstreamRefused } else { reason })
        }
        Err(outcome) => outcome,
    };
    record.finish(outcome);
}

/// A session whose CONNECT the broker has answered.
struct Established {
    ends: Ends,
    /// The broker rejected CONNECT.
    refused: bool,
    lease: Lease,
}

async fn establish(
    arrived: Arrived,
    listener: &Listener,
    session: &Session,
    shared: &Shared,
    record: &mut Record,
) -> Result<Established, Outcome> {
    let secured = secure(arrived, listener, session, record).await?;
    let mut client = secured.stream;
    let device = secured.device.as_deref();
    match negotiate(&mut client, &secured.peer, device, listener, session, shared, record).await {
        Ok(Answered { dialed, greeting, code, version }) => {
            record.info.set_connected();
            let may_send_disconnect = version == Version::V5 && code == Some(0);
            let ends = Ends { client, broker: dialed.stream, greeting, may_send_disconnect };
            Ok(Established { ends, refused: code.is_some_and(|code| code != 0), lease: dialed.lease })
        }
        Err(Refused { outcome: Outcome::Rejected(reject), version }) => {
            refuse(client, reject, version, listener, record).await;
            Err(reject.into())
        }
        Err(Refused { outcome, .. }) => Err(outcome),
    }
}

/// Applies the cheap checks before the cost of a TLS handshake.
fn admit_address(listener: &Listener, address: IpAddr) -> Result<Permit, Reject> {
    if !listener.addresses.allows(address) {
        return Err(Reject::AddressDenied);
    }
    if listener.bans.is_connect_refused(address) {
        return Err(Reject::Banned);
    }
    listener.permits.take(listener.max_connections).ok_or(Reject::TooManyConnections)
}

async fn secure(
    arrived: Arrived,
    listener: &Listener,
    session: &Session,
    record: &mut Record,
) -> Result<Secured, Reject> {
    let mut secured = match arrived.secure(listener.tls.as_ref()).await {
        Ok(secured) => secured,
        Err(failed) => {
            let reject = failed.reject;
            record.decide(reject);
            count_failure(reject, listener, record);
            failed.close().await;
            return Err(reject);
        }
    };
    if let Some(evidence) = secured.evidence.take() {
        session.proved(evidence);
    }
    record.secured(&secured.peer);
    Ok(secured)
}

/// Counts a failed proof for bans. Called before the client is answered: it may have further connections in flight.
fn count_failure(reject: Reject, listener: &Listener, record: &Record) {
    if reject.is_failed_proof() {
        listener.bans.failed(record.info.address().ip());
    }
}

/// Sends the client a CONNACK with the rejection in its own MQTT version, and closes the connection.
async fn refuse(
    mut client: Stream,
    reject: Reject,
    version: Option<Version>,
    listener: &Listener,
    record: &mut Record,
) {
    record.decide(reject);
    count_failure(reject, listener, record);
    let code = version.and_then(|version| Some((version, reject.refusal()?.code(version)?)));
    let send = async {
        if let (OnReject::Connack, Some((version, code))) = (listener.on_reject, code) {
            let mut packet = Vec::with_capacity(8);
            Connack::refusal(code).encode(version, &mut packet);
            client.write_all(&packet).await?;
            record.moved(0, packet.len() as u64);
        }
        client.shutdown().await
    };
    let sent: Result<std::io::Result<()>, _> = timeout(REFUSAL_TIMEOUT, send).await;
    if sent.is_ok() {
        discard_until_closed(&mut client).await;
    }
}

/// The size of the future that serves a connection, in bytes. An established session costs this much besides its sockets,
/// TLS state and record.
pub fn future_size() -> usize {
    fn of<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    of(serve)
}
