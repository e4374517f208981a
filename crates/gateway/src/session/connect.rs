//! CONNECT: read, decoded, authenticated, evaluated, rewritten, and presented to a broker. Input: a secured stream. Output:
//! a broker that has answered, or a rejection. No byte of the client reaches a broker before it is admitted, and what it
//! sends after CONNECT passes the relay's codec like everything after it.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use portcullis_wire::{Connect, FixedHeader, Limits, PacketType, Refusal, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Shared, count_failed_proof, evaluate, follow_rules};
use crate::auth::{self, Attempt, Principal};
use crate::devices::Entry;
use crate::edge::{PROXY_WITHOUT_KEY, is_proxy_header};
use crate::limits::PendingPermit;
use crate::net::{Stream, StreamError};
use crate::observe::Record;
use crate::outcome::{Outcome, Reject, note_detail};
use crate::peer::{AuthAttributes, Facts, HttpCredentials, Peer};
use crate::policy::{ConnectScratch, WillRejection};
use crate::relay::{DISCARD_WILL, Ending, SessionCodec};
use crate::runtime::{Listener, Runtime};
use crate::sessions::{ClientFacts, SeenConnect, SessionEvent, SessionGuard};
use crate::tls::{Secured, SecuredClient};
use crate::upstream::Dialed;
use crate::util::clock::now;

/// How long a broker may take to answer CONNECT. It may query an authentication service first.
const CONNACK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a broker may take to read that the will is discarded.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
/// The initial buffer for CONNECT, in bytes. Most are smaller.
const CONNECT_BUFFER: usize = 1024;
/// How long a client that exceeds a limit may take for CONNECT: it only has to be told.
pub(super) const OVER_LIMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A CONNECT that a broker has answered.
pub(super) struct Negotiated {
    pub(super) dialed: Dialed,
    /// What the broker has sent so far, from its first byte on.
    pub(super) answer: Vec<u8>,
    /// The code of the CONNACK, if that is what the broker sent first.
    pub(super) code: Option<u8>,
    pub(super) version: Version,
    /// The largest packet that the client accepts, in bytes.
    pub(super) max_packet_size: usize,
    /// What the relay goes on with: it has seen all that the client sent after CONNECT.
    pub(super) codec: SessionCodec,
}

/// A rejection, and how to tell the client.
pub(super) struct Rejected {
    pub(super) outcome: Outcome,
    /// The MQTT version to send it in, if that is known.
    pub(super) version: Option<Version>,
    /// The largest packet that the client accepts, in bytes.
    pub(super) max_packet_size: usize,
    /// What the client is told in CONNACK, if it is not what `outcome` says.
    pub(super) refusal: Option<Refusal>,
}

/// A client that is admitted.
struct Admitted<'b> {
    /// CONNECT as the broker receives it, and what the codec passes of the bytes behind it.
    packets: Cow<'b, [u8]>,
    /// Selects the broker.
    hash_key: Arc<String>,
    codec: SessionCodec,
    /// What its packet rules were evaluated by; `None`: its packets are not inspected.
    seen: Option<SeenConnect>,
}

/// Why an authenticated client is not admitted.
struct Rejection {
    outcome: Outcome,
    /// What it is told in CONNACK, if it is not what `outcome` says.
    refusal: Option<Refusal>,
}

impl From<Reject> for Rejection {
    fn from(reject: Reject) -> Self {
        Self { outcome: reject.into(), refusal: None }
    }
}

impl From<WillRejection> for Rejection {
    fn from(denied: WillRejection) -> Self {
        Self { outcome: Reject::TopicDenied.into(), refusal: Some(denied.refusal()) }
    }
}

/// Of packets that the client sent right after CONNECT.
impl From<Ending> for Rejection {
    fn from(ending: Ending) -> Self {
        ending.detail.iter().for_each(|detail| note_detail(detail));
        Self { outcome: ending.reason.into(), refusal: ending.disconnect.and_then(Refusal::of) }
    }
}

/// Reads CONNECT, admits the client, and presents it to a broker. `over_limit`: it exceeds a limit of its address, and is only
/// read to be told so. `pending` counts what it sends.
pub(super) async fn negotiate(
    secured: &mut Secured,
    over_limit: Option<Reject>,
    pending: &mut PendingPermit,
    accepted: &Arc<Listener>,
    session: &SessionGuard,
    shared: &Shared,
    record: &mut Record,
) -> Result<Negotiated, Rejected> {
    let listener = accepted;
    let Secured { stream, client: SecuredClient { peer, device, credentials, .. } } = secured;
    let mut buffer = Vec::with_capacity(CONNECT_BUFFER);
    let patience = if over_limit.is_some() { OVER_LIMIT_TIMEOUT } else { listener.connect_timeout };
    let read = timeout(patience, read_connect(stream, &mut buffer, pending, listener));
    // CRLs and OCSP responses about the certificate are fetched meanwhile.
    let (read, revocation) = tokio::join!(read, check_revocation(listener, session));
    record.count_bytes(buffer.len() as u64, 0);
    let (connect, used) = read
        .unwrap_or_else(|_| Err(if stream.is_open() { Reject::ConnectTimeout } else { Reject::QuicStreamMissing }))
        .and_then(|()| decode(&buffer, listener)?.ok_or(Reject::MalformedConnect))
        .map_err(|reject| Rejected {
            outcome: reject.into(),
            version: Connect::version_to_answer_in(&buffer),
            max_packet_size: usize::MAX,
            refusal: None,
        })?;
    let version = connect.version;
    let stand_in = stand_in(&connect, credentials.as_deref());
    let connect = stand_in.unwrap_or(connect);
    let max_packet_size = connect.properties.maximum_packet_size().map_or(usize::MAX, |size| size as usize);
    let rejected = |outcome: Outcome| Rejected { outcome, version: Some(version), max_packet_size, refusal: None };
    record.info.set_connect(connect.client_id, listener.shown_username(&connect), version);
    if let Some(reject) = over_limit {
        return Err(rejected(reject.into()));
    }
    check_lengths(&connect, listener).map_err(|reject| rejected(reject.into()))?;
    revocation.map_err(|reject| rejected(reject.into()))?;

    let attributes = AuthAttributes::default();
    let facts = Facts { peer, listener: &listener.name, mqtt: &connect, attributes, now: now() };
    let mut principal = identify(&facts, stream, credentials.as_deref(), device.as_deref(), listener, record)
        .await
        .map_err(|reject| rejected(reject.into()))?;
    session.authenticated(principal.evidence.take());
    let principal = Arc::<Principal>::from(principal);
    let (received, early) = buffer.split_at(used);
    let facts = Facts { attributes: principal.attributes(), ..facts };
    let (listener, Admitted { packets, hash_key, mut codec, .. }) = loop {
        // The rules of the moment: the configuration may have been replaced since the connection was accepted, and a change
        // may have swept the index before the evidence was there.
        let (runtime, listener) = current(accepted, session, shared).await.map_err(|reject| rejected(reject.into()))?;
        evaluate(session.entry().client_evidence(), &runtime, now()).map_err(|reason| rejected(reason.into()))?;
        let as_received = stand_in.is_none().then_some(received);
        let mut admitted = admit(&facts, &principal, as_received, early, &listener, record)
            .map_err(|Rejection { outcome, refusal }| Rejected { refusal, ..rejected(outcome) })?;
        let client = admitted.seen.take().map(|seen| ClientFacts::new(peer, seen, Arc::clone(&principal)));
        // A change after this finds the session in the index, and replaces its rules before the broker's first packet is
        // decided on.
        session.admitted(client, now());
        shared.state.sessions.limit_lifetime(session.entry(), listener.max_session_lifetime);
        if runtime.listener(&listener.name).is_none() {
            // It was removed while the client was connecting.
            follow_rules(session.entry(), &shared.state.sessions, &runtime);
        }
        // Compared last, so that nothing of an older configuration replaces what a change has set meanwhile. The will and what
        // came after CONNECT are decided on already, by rules that may have been replaced meanwhile.
        if Arc::ptr_eq(&shared.runtime.load(), &runtime) {
            break (listener, admitted);
        }
    };
    let listener = &*listener;
    if let Cow::Owned(rewritten) = &packets {
        hold(pending, buffer.capacity() + rewritten.capacity()).map_err(|reject| rejected(reject.into()))?;
    }

    let forwarded = forward((stream, peer), &hash_key, &packets, &mut codec, session, listener, record).await;
    let (dialed, answer, code) =
        forwarded.map_err(|Rejection { outcome, refusal }| Rejected { refusal, ..rejected(outcome) })?;
    Ok(Negotiated { dialed, answer, code, version, max_packet_size, codec })
}

/// CONNECT with the user name and password of the request for WebSocket, if it has none of its own; `None`: it stays as it is.
fn stand_in<'a>(connect: &Connect<'a>, credentials: Option<&'a HttpCredentials>) -> Option<Connect<'a>> {
    let (username, password) = credentials?.basic.as_ref()?;
    let is_bare = connect.username.is_none() && connect.password.is_none();
    is_bare.then(|| Connect { username: Some(username), password: Some(password), ..*connect })
}

/// The snapshot in use, and the listener in it. Revocation data that it requires, and the one before did not, is fetched
/// first. `accepted`: the listener when the connection was accepted, which continues to serve it if it was removed.
async fn current(
    accepted: &Arc<Listener>,
    session: &SessionGuard,
    shared: &Shared,
) -> Result<(Arc<Runtime>, Arc<Listener>), Reject> {
    let mut checked = Arc::clone(accepted);
    loop {
        let runtime = shared.runtime.load_full();
        let listener = runtime.listener(&accepted.name).map_or_else(|| Arc::clone(accepted), Arc::clone);
        if Arc::ptr_eq(&listener, &checked) {
            return Ok((runtime, listener));
        }
        check_revocation(&listener, session).await?;
        checked = listener;
    }
}

/// Applies the listener's rules to a client whose evidence is sufficient, and rewrites its CONNECT. `received` is CONNECT as
/// it came, if it has not changed since, `early` what the client has sent behind it.
fn admit<'b>(
    facts: &Facts<'_>,
    principal: &Principal,
    received: Option<&'b [u8]>,
    early: &[u8],
    listener: &Listener,
    record: &Record,
) -> Result<Admitted<'b>, Rejection> {
    listener.admission.check(facts)?;
    let replacements = listener.rewriting.evaluate(facts)?;
    let replacements = replacements.or_else(principal.client_id.clone(), principal.username.clone());
    let rewritten = replacements.apply(facts.mqtt);
    rewritten.check_client_id().map_err(Reject::from)?;
    if listener.bans.rejects_client(record.info.counted_address(), rewritten.client_id) {
        return Err(Reject::Banned.into());
    }
    // What is decided behind admission is decided by the client ID and user name that the broker sees.
    let by_broker = Facts { mqtt: &rewritten, ..*facts };
    let hash_key = match listener.upstream.hash_key() {
        Some(key) => key.text(&by_broker)?,
        None => Arc::new(rewritten.client_id.to_owned()),
    };
    let rules = listener.packets.for_client(&by_broker)?;
    let seen = rules.as_ref().and_then(|_| SeenConnect::of(&rewritten));
    let mut scratch = ConnectScratch::default();
    let sent = match &rules {
        Some(rules) => rules.apply(&rewritten, &mut scratch, &record.info).map_err(Rejection::from)?,
        None => rewritten,
    };
    let mut packets = match received.filter(|_| replacements.is_empty() && sent == rewritten) {
        Some(received) => Cow::Borrowed(received),
        None => {
            let mut packet = Vec::with_capacity(received.map_or(0, <[u8]>::len) + early.len() + 256);
            sent.encode(&mut packet).map_err(|_| Reject::RewriteFailed)?;
            Cow::Owned(packet)
        }
    };
    let mut codec = match rules {
        Some(rules) => SessionCodec::inspect(rules, facts.mqtt, &sent, Arc::clone(&record.info)),
        None => SessionCodec::default(),
    };
    if !early.is_empty() {
        codec.take_early(early, packets.to_mut())?;
    }
    Ok(Admitted { packets, hash_key, codec, seen })
}

/// Connects to a broker and presents the client to it. Returns the connection, what the broker has sent, and the code if
/// that is a CONNACK.
async fn forward(
    (client, peer): (&Stream, &Peer),
    hash_key: &str,
    packets: &[u8],
    codec: &mut SessionCodec,
    session: &SessionGuard,
    listener: &Listener,
    record: &Record,
) -> Result<(Dialed, Vec<u8>, Option<u8>), Rejection> {
    let mut dialed = listener.upstream.dial(hash_key.as_bytes(), client, peer).await?;
    record.info.set_server(Arc::clone(&dialed.upstream), Arc::clone(&dialed.server));
    let mut has_sent = false;
    let answered = while_allowed(send_connect(&mut dialed.stream, packets, &mut has_sent), codec, session).await;
    match answered {
        Ok(Ok((answer, code))) => Ok((dialed, answer, code)),
        Ok(Err(reject)) => {
            dialed.lease.unanswered();
            Err(reject.into())
        }
        Err(ending) => {
            if has_sent && codec.is_between_packets_to_broker() {
                let discard = async {
                    dialed.stream.write_all(&DISCARD_WILL).await?;
                    dialed.stream.flush().await
                };
                // A broker that does not read it has not read CONNECT either.
                let _: Result<std::io::Result<()>, _> = timeout(DISCARD_TIMEOUT, discard).await;
            }
            Err(ending.into())
        }
    }
}

/// Waits for `future` as long as the rules of the moment allow the session: they are replaced while the broker has not
/// answered, too.
async fn while_allowed<T>(
    future: impl Future<Output = T>,
    codec: &mut SessionCodec,
    session: &SessionGuard,
) -> Result<T, Ending> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        while let Poll::Ready(event) = session.poll_event(cx) {
            match event {
                SessionEvent::Rules(rules) => codec.set_rules(rules)?,
                SessionEvent::End(reason) if reason.discards_will() => return Poll::Ready(Err(reason.into())),
                // For any other reason, `serve` drops this future.
                SessionEvent::End(_) | SessionEvent::Drain(_) => break,
            }
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// Identifies the client by its registry entry, if it used a registry key in the handshake, and by the authenticators.
async fn identify(
    facts: &Facts<'_>,
    client: &Stream,
    credentials: Option<&HttpCredentials>,
    device: Option<&Entry>,
    listener: &Listener,
    record: &mut Record,
) -> Result<Box<Principal>, Reject> {
    // The address may have been banned since this connection was accepted.
    if listener.bans.is_banned(record.info.counted_address()) {
        return Err(Reject::Banned);
    }
    if let Some(device) = device {
        device.check_state(now())?;
    }
    let failed = || count_failed_proof(listener, &record.info);
    let attempt = Attempt { connection: client, credentials, failed: &failed };
    let authenticated = auth::authenticate(&listener.authenticators, facts, attempt).await;
    // Nor does a banned address learn the result of attempts that were in progress when the ban began: one of many
    // concurrent guesses may be right.
    if listener.bans.is_banned(record.info.counted_address()) {
        return Err(Reject::Banned);
    }
    let mut principal = authenticated?.unwrap_or_default();
    if principal.device.is_none() {
        principal.device = device.map(Entry::facts);
    }
    if let Some((name, _)) = &principal.authenticator {
        record.info.set_authenticator(Arc::clone(name));
    }
    Ok(principal)
}

async fn check_revocation(listener: &Listener, session: &SessionGuard) -> Result<(), Reject> {
    match (session.entry().chain(), listener.tls.as_ref().and_then(|tls| tls.trust())) {
        (Some(chain), Some(trust)) => Ok(trust.check_revocation(chain).await?),
        _ => Ok(()),
    }
}

/// Reads until CONNECT is complete. Bytes after it stay in the buffer.
async fn read_connect(
    client: &mut Stream,
    buffer: &mut Vec<u8>,
    pending: &mut PendingPermit,
    listener: &Listener,
) -> Result<(), Reject> {
    loop {
        match client.read_buf(buffer).await {
            Err(error) => return Err(reject_of(&error)),
            Ok(0) => return Err(Reject::ClosedBeforeConnect),
            Ok(_) => {}
        }
        if listener.tls.is_none() && matches!(buffer.as_slice(), [0x16, 3, ..]) {
            // A TLS handshake record (RFC 8446, 5.1). Read as MQTT, it would be a CONNECT with invalid flags.
            return Err(Reject::TlsOnPlainPort);
        }
        hold(pending, buffer.capacity())?;
        if decode(buffer, listener).inspect_err(|_| note_other_protocol(buffer))?.is_some() {
            return Ok(());
        }
    }
}

/// Why there is no CONNECT of a client whose stream has failed.
fn reject_of(error: &std::io::Error) -> Reject {
    let Some(error) = StreamError::of(error) else { return Reject::ClosedBeforeConnect };
    note_detail(&error.to_string());
    match error {
        StreamError::WebSocket(_) => Reject::WebSocketProtocol,
        StreamError::Quic(_) => Reject::QuicProtocol,
        StreamError::QuicIdle => Reject::ClosedBeforeConnect,
    }
}

/// Notes what the client speaks in place of MQTT, if that is known.
fn note_other_protocol(bytes: &[u8]) {
    if is_proxy_header(bytes) {
        note_detail(PROXY_WITHOUT_KEY);
    } else if [b"GET ".as_slice(), b"POST ", b"HEAD "].iter().any(|method| bytes.starts_with(method)) {
        note_detail("the client speaks HTTP; for WebSocket, set `protocol = \"ws\"` or \"wss\"");
    }
}

/// Counts what the connection holds.
fn hold(pending: &mut PendingPermit, bytes: usize) -> Result<(), Reject> {
    pending.hold(bytes).map_err(|error| {
        note_detail(&error.to_string());
        Reject::TooManyPendingBytes
    })
}

fn decode<'b>(buffer: &'b [u8], listener: &Listener) -> Result<Option<(Connect<'b>, usize)>, Reject> {
    Ok(Connect::decode(buffer, Limits { max_packet_len: listener.max_connect_size })?)
}

/// Rejects what no expression and no authenticator is to see.
fn check_lengths(connect: &Connect<'_>, listener: &Listener) -> Result<(), Reject> {
    if connect.client_id.len() > listener.max_client_id {
        return Err(Reject::ClientIdTooLong);
    }
    if connect.username.is_some_and(|username| username.len() > listener.max_username) {
        return Err(Reject::UsernameTooLong);
    }
    Ok(())
}

/// Sends CONNECT and the bytes after it to the broker, and waits for the start of the broker's first packet. Returns the
/// bytes received so far, and the code of a CONNACK. With MQTT 5's enhanced authentication, the first packet is AUTH, which
/// the client has to answer.
async fn send_connect(
    broker: &mut Stream,
    packet: &[u8],
    has_sent: &mut bool,
) -> Result<(Vec<u8>, Option<u8>), Reject> {
    let deadline = Instant::now() + CONNACK_TIMEOUT;
    let send = async {
        broker.write_all(packet).await?;
        broker.flush().await
    };
    match timeout_at(deadline, send).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(Reject::UpstreamClosed),
        Err(_) => return Err(no_answer()),
    }
    *has_sent = true;
    broker.acknowledge_at_once();
    let mut answer = Vec::with_capacity(64);
    loop {
        match timeout_at(deadline, broker.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return Err(Reject::UpstreamClosed),
            Err(_) => return Err(no_answer()),
        }
        let Some(header) = FixedHeader::decode(&answer).map_err(|_| Reject::UpstreamProtocol)? else { continue };
        match header.packet_type {
            // The code follows the flags [MQTT-3.2.2].
            PacketType::Connack if header.remaining_length >= 2 => {
                if let Some(code) = answer.get(header.len + 1).copied() {
                    return Ok((answer, Some(code)));
                }
            }
            PacketType::Auth => return Ok((answer, None)),
            // No server may send it before CONNACK [MQTT-3.14.0-1], but its reason is better than none.
            PacketType::Disconnect => return Ok((answer, Some(0x80))),
            _ => return Err(Reject::UpstreamProtocol),
        }
    }
}

fn no_answer() -> Reject {
    note_detail(&format!("no answer to CONNECT within {} s, which no key sets", CONNACK_TIMEOUT.as_secs()));
    Reject::UpstreamTimeout
}
