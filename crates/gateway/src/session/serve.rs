//! The phases of a connection, in order. Each passes the connection on or rejects it. [`Record`] logs the outcome on every
//! exit path.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use portcullis_wire::{Connack, Version};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use super::connect::{Negotiated, OVER_LIMIT_TIMEOUT, Rejected, negotiate};
use super::{Shared, count_failed_proof};
use crate::config::tables::OnReject;
use crate::edge::{Accepted, Arrived, Secure};
use crate::limits::{AddressPermit, Fill, PendingPermit, Permit};
use crate::net::{Stream, discard_until_closed};
use crate::observe::{Record, SessionInfo};
use crate::outcome::{CloseReason, Outcome, Reject, Trace, note_detail, noted, traced};
use crate::peer::PeerAddress;
use crate::relay::{Ends, Relay, RelayThreads, Relayed};
use crate::runtime::Listener;
use crate::sessions::SessionGuard;
use crate::tls::{Secured, ServerTls};
use crate::upstream::Lease;
use crate::util::priority::yielding;

/// How long the CONNACK for a rejected client may take to write. A client that does not read it is disconnected without.
const REJECT_TIMEOUT: Duration = Duration::from_secs(1);
/// When a session goes on on a thread that relays. The move costs a fifth of a handshake, which is not for clients that
/// connect, publish and leave.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// While clients wait for their handshakes, a session without messages does not take their time until then.
const SETTLED_AT_LAST: Duration = Duration::from_secs(10);

/// Closes a connection for which the gateway has no descriptors to spare.
pub(crate) fn reject(accepted: Accepted, reject: Reject, listener: &Listener, shared: &Shared) {
    let info = info_of(&accepted, listener, shared);
    drop(accepted);
    Record::open(Arc::clone(&shared.state.observer), Arc::clone(&listener.metrics), info).finish(reject.into());
}

fn info_of(accepted: &Accepted, listener: &Listener, shared: &Shared) -> Arc<SessionInfo> {
    let id = shared.state.sessions.next_id();
    SessionInfo::new(id, Arc::clone(&listener.name), listener.protocol, accepted.peer)
}

/// Serves a connection until its session has lasted [`SETTLED_AFTER`] or longer, and then goes on elsewhere. `descriptors` is
/// what it may use.
pub(crate) fn serve(
    accepted: Accepted,
    descriptors: Permit,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    let handshakes = Arc::clone(&listener.handshakes);
    // In a box of its own, so that an established session does not carry the size of what precedes it around.
    let opening = Box::pin(open(accepted, descriptors, listener, shared));
    async move {
        let Some((mut session, threads)) = yielding(opening).await else { return };
        let begin = Instant::now();
        loop {
            let counts = session.record.info.bytes();
            // Until it moves, its messages must not keep connects and relay threads waiting.
            if timeout(SETTLED_AFTER, yielding(poll_fn(|cx| session.poll_run(cx)))).await.is_ok() {
                return yielding(Box::pin(session.end())).await;
            }
            let may_wait = session.record.info.bytes() == counts && begin.elapsed() < SETTLED_AT_LAST;
            if !(may_wait && handshakes.is_busy()) {
                session.relay.detect_vanished_broker();
                return threads.relay(session);
            }
        }
    }
}

/// Establishes the session of a connection, and returns it with the threads for it. `None`: it was rejected.
async fn open(
    accepted: Accepted,
    descriptors: Permit,
    listener: Arc<Listener>,
    shared: Arc<Shared>,
) -> Option<(Box<Session>, Arc<RelayThreads>)> {
    let info = info_of(&accepted, &listener, &shared);
    let guard = shared.state.sessions.open(Arc::clone(&info));
    let mut record = Record::open(Arc::clone(&shared.state.observer), Arc::clone(&listener.metrics), info);
    // Again in a box: each future that wraps it would have its size twice.
    let establishing = Box::pin(establish(accepted, &listener, &guard, &shared, &mut record));
    let span = tracing::debug_span!("serve", connection = guard.entry().info.id);
    let established = tokio::select! {
        // What the session ends for may have to be told to the broker first.
        biased;
        (established, trace) = traced(establishing).instrument(span) => {
            if established.is_err() {
                record.info.set_trace(trace);
            }
            established
        }
        // If the connection was rejected already, that is the outcome: the client is only being told.
        reason = guard.ended() => Err(record.decided().unwrap_or(Outcome::Closed(reason))),
    };
    match established {
        Ok(Established { relay, is_rejected, permits, lease }) => {
            let resources = (lease, permits, descriptors);
            // Without the configuration: sessions outlive reloads.
            Some((Box::new(Session { relay, guard, record, is_rejected, resources }), Arc::clone(&shared.relays)))
        }
        Err(outcome) => {
            record.finish(outcome);
            None
        }
    }
}

/// A session that is established. In a box, which moves between threads.
struct Session {
    relay: Relay,
    guard: SessionGuard,
    record: Box<Record>,
    /// The broker rejected it.
    is_rejected: bool,
    resources: (Lease, (Permit, AddressPermit), Permit),
}

impl Relayed for Session {
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { relay, guard, record, .. } = self;
        relay.poll_run(cx, record, |cx| guard.poll_event(cx))
    }

    fn attach(mut self: Box<Self>) -> Option<Box<Self>> {
        let Self { relay, guard, record, is_rejected, resources } = *self;
        match relay.attach() {
            Ok(relay) => {
                *self = Self { relay, guard, record, is_rejected, resources };
                Some(self)
            }
            Err(error) => {
                drop((guard, resources));
                record.info.set_trace(Trace { detail: Some(error.to_string().into()), ..Trace::default() });
                // In the last moments of a stop, there may be no other thread any more.
                let reason = record.info.ends_because().unwrap_or(CloseReason::InternalError);
                record.finish(Outcome::Closed(reason));
                None
            }
        }
    }

    async fn end(mut self: Box<Self>) {
        let Self { relay, guard, record, .. } = &mut *self;
        let (reason, detail) = relay.end(record, |cx| guard.poll_event(cx)).await;
        let Self { relay, guard: _guard, record, is_rejected, resources: (lease, ..) } = *self;
        // Whoever reads the line finds the connections closed and the server's slot free.
        drop((relay, lease));
        if detail.is_some() {
            record.info.set_trace(Trace { detail, ..Trace::default() });
        }
        record.finish(Outcome::Closed(if is_rejected { CloseReason::UpstreamRefused } else { reason }));
    }
}

/// A session whose CONNECT the broker has answered.
struct Established {
    relay: Relay,
    /// The broker rejected it.
    is_rejected: bool,
    permits: (Permit, AddressPermit),
    lease: Lease,
}

async fn establish(
    accepted: Accepted,
    listener: &Arc<Listener>,
    session: &SessionGuard,
    shared: &Shared,
    record: &mut Record,
) -> Result<Established, Outcome> {
    let Admission { arrived, permit, of_address, mut pending } = arrive(accepted, listener, shared, record).await?;
    let is_proxy = is_proxy(&arrived, listener);
    let (mut of_address, mut over_limit) = match of_address {
        Ok(permit) => (Some(permit), None),
        Err(limit) => {
            note_detail(limit);
            // Before TLS there is no way to tell the client, and the handshake would cost what the limit is to save.
            if listener.tls.is_some() {
                return Err(Reject::QuotaExceeded.into());
            }
            (None, Some(Reject::QuotaExceeded))
        }
    };
    // Who exceeds a limit of its own takes no turn of others.
    if over_limit.is_none() {
        wait_for_rate(&arrived, listener).await?;
    }
    let connect_timeout = if over_limit.is_some() { OVER_LIMIT_TIMEOUT } else { listener.connect_timeout };
    let mut secured = secure(arrived, connect_timeout, &mut pending, listener, session, record).await?;
    if is_proxy {
        let address = secured.client.peer.address;
        match listener.rates.take(address) {
            Ok(permit) => of_address = Some(permit),
            Err(limit) => {
                note_detail(limit);
                over_limit = Some(Reject::QuotaExceeded);
            }
        }
        // From here on, its connection is one of its own network, and not of the proxy's.
        match pend(address, listener, shared) {
            Some(permit) => pending = permit,
            None => {
                // It must not take the place of another one meanwhile.
                drop(pending);
                return Err(tell_too_many(secured.stream, listener, record).await);
            }
        }
    }
    match negotiate(&mut secured, over_limit, &mut pending, listener, session, shared, record).await {
        Ok(Negotiated { dialed, answer, code, version, max_packet_size, codec }) => {
            record.info.set_connected();
            if let (Some(0), Some(ip)) = (code, record.info.counted_address().ip()) {
                shared.state.recent_clients.add(ip);
            }
            let ends = Ends {
                client: secured.stream,
                broker: dialed.stream,
                broker_first: answer,
                max_disconnect: if version == Version::V5 && code == Some(0) {
                    u32::try_from(max_packet_size).unwrap_or(u32::MAX)
                } else {
                    0
                },
            };
            Ok(Established {
                relay: Relay::new(ends, codec),
                is_rejected: code.is_some_and(|code| code != 0),
                permits: (permit, of_address.unwrap_or_default()),
                lease: dialed.lease,
            })
        }
        Err(rejected) => {
            let outcome = rejected.outcome;
            send_reject(secured.stream, rejected, listener, record).await;
            Err(outcome)
        }
    }
}

/// Closes a connection whose network has too many that are not established.
async fn tell_too_many(client: Stream, listener: &Listener, record: &mut Record) -> Outcome {
    let outcome = Outcome::Rejected(Reject::TooManyPending);
    let rejected = Rejected { outcome, version: None, max_packet_size: usize::MAX, refusal: None };
    send_reject(client, rejected, listener, record).await;
    outcome
}

/// A connection that may be served.
struct Admission {
    arrived: Arrived,
    permit: Permit,
    /// Or the name of the limit that its address exceeds.
    of_address: Result<AddressPermit, &'static str>,
    pending: PendingPermit,
}

/// Finds out the client's address and applies what is known by it: what costs nothing is decided before any cryptography is
/// paid for.
async fn arrive(
    accepted: Accepted,
    listener: &Listener,
    shared: &Shared,
    record: &Record,
) -> Result<Admission, Reject> {
    let take_permit = || listener.permits.take(listener.max_connections.value).ok_or(Reject::TooManyConnections);
    // A connection that waits for its header is one already.
    let waits = listener.proxy.as_ref().is_some_and(|proxy| proxy.trusts(accepted.peer));
    let permit = waits.then(take_permit).transpose()?;
    let patience = listener.tls.as_ref().map_or(listener.connect_timeout, ServerTls::handshake_timeout);
    let arrived = accepted.arrive(listener.proxy.as_ref(), Instant::now() + patience).await?;
    let address = arrived.address;
    arrived.proxy().inspect(|header| record.info.set_proxy(address, header));
    let is_proxy = is_proxy(&arrived, listener);
    if !is_proxy {
        admit_address(address, listener, &record.info)?;
    }
    let permit = permit.map_or_else(take_permit, Ok)?;
    let pending = pend(address, listener, shared);
    let of_address = if is_proxy { Ok(AddressPermit::default()) } else { listener.rates.take(address) };
    let pending = pending.ok_or(Reject::TooManyPending)?;
    // Above the limit it accepts few, which are not for those that are rejected anyway.
    let memory = &shared.state.memory;
    let is_known = is_known(address, shared);
    let has_memory = if of_address.is_ok() { memory.accepts(address.share(), is_known) } else { !memory.is_over() };
    if !has_memory {
        return Err(Reject::MemoryLimit);
    }
    Ok(Admission { arrived, permit, of_address, pending })
}

/// Counts a connection of this address that is not established yet. `None`: its network has too many.
fn pend(address: PeerAddress, listener: &Listener, shared: &Shared) -> Option<PendingPermit> {
    let of_listener = Fill { taken: listener.permits.taken(), max: listener.max_connections.value };
    let fills = [of_listener, shared.state.descriptors.fill()];
    shared.state.pending.take(address.share(), is_known(address, shared), fills)
}

/// Whether a client of this address had a session lately.
fn is_known(address: PeerAddress, shared: &Shared) -> bool {
    address.ip().is_some_and(|ip| shared.state.recent_clients.has(ip))
}

/// Whether the peer is an HTTP proxy: the address of the client comes with its request, and what is known by it is applied then.
fn is_proxy(arrived: &Arrived, listener: &Listener) -> bool {
    listener.upgrade.as_ref().is_some_and(|upgrade| upgrade.trusts(arrived.address))
}

/// Records the client's address, and rejects it if the rules or a ban do.
fn admit_address(address: PeerAddress, listener: &Listener, info: &SessionInfo) -> Result<(), Reject> {
    info.set_address(address);
    if !listener.addresses.allows(address) {
        return Err(Reject::AddressDenied);
    }
    if listener.bans.rejects_connect(address) {
        return Err(Reject::Banned);
    }
    Ok(())
}

/// Waits until `connect_rate` allows the connection. A client that leaves meanwhile takes nobody's turn.
async fn wait_for_rate(arrived: &Arrived, listener: &Listener) -> Result<(), Reject> {
    tokio::select! {
        biased;
        waited = listener.rates.wait(arrived.address.share()) => waited.map_err(|limit| {
            note_detail(limit);
            Reject::QuotaExceeded
        }),
        () = arrived.left() => {
            Err(if listener.tls.is_some() { Reject::HandshakeClosed } else { Reject::ClosedBeforeConnect })
        }
    }
}

async fn secure(
    arrived: Arrived,
    connect_timeout: Duration,
    pending: &mut PendingPermit,
    listener: &Listener,
    session: &SessionGuard,
    record: &mut Record,
) -> Result<Secured, Reject> {
    let (is_proxy, info) = (is_proxy(&arrived, listener), Arc::clone(&record.info));
    let admit = |address| if is_proxy { admit_address(address, listener, &info) } else { Ok(()) };
    let with = Secure {
        tls: listener.tls.as_ref(),
        upgrade: listener.upgrade.as_ref(),
        quic: listener.quic,
        connect_timeout,
        handshakes: &listener.handshakes,
        admit: &admit,
    };
    let mut secured = match arrived.secure(with, pending).await {
        Ok(secured) => secured,
        Err(failed) => {
            let reject = failed.reject;
            record.decide(reject.into());
            count_failure(reject, listener, record);
            failed.close().await;
            return Err(reject);
        }
    };
    let origin = secured.client.peer.http.as_ref().and_then(|request| request.origin.clone());
    origin.into_iter().for_each(|origin| record.info.set_origin(origin));
    if let Some(path) = secured.stream.path() {
        session.follow(path);
    }
    session.proved(secured.client.evidence.take());
    record.secured(&secured.client.peer);
    Ok(secured)
}

/// Counts a failed proof for bans. Called before the client is answered: it may have further connections in flight.
fn count_failure(reject: Reject, listener: &Listener, record: &Record) {
    if reject.is_failed_proof() {
        count_failed_proof(listener, &record.info);
    }
}

/// Sends the client a CONNACK with the rejection in its own MQTT version, and closes the connection.
async fn send_reject(mut client: Stream, rejected: Rejected, listener: &Listener, record: &mut Record) {
    let Rejected { outcome, version, max_packet_size, refusal } = rejected;
    record.decide(outcome);
    client.set_close_code(outcome.websocket_code());
    // The client may be told for longer than the gateway runs.
    record.info.set_trace(noted());
    if let Outcome::Rejected(reject) = outcome {
        count_failure(reject, listener, record);
    }
    // Not every version can say why a will is denied.
    let code_in =
        |version| refusal.and_then(|refusal| refusal.code(version)).or_else(|| outcome.connack()?.code(version));
    let code = version.and_then(|version| Some((version, code_in(version)?)));
    let send = async {
        if let (OnReject::Connack, Some((version, code))) = (listener.on_reject, code) {
            let mut packet = Vec::with_capacity(8);
            Connack::refusal(code).encode(version, &mut packet);
            // A client must not be sent more than it accepts [MQTT-3.1.2-24].
            if packet.len() <= max_packet_size {
                client.write_all(&packet).await?;
                record.count_bytes(0, packet.len() as u64);
            }
        }
        client.shutdown().await
    };
    let in_time: Result<std::io::Result<()>, _> = timeout(REJECT_TIMEOUT, send).await;
    if in_time.is_ok() {
        discard_until_closed(&mut client).await;
    }
}

#[cfg(test)]
mod tests;
