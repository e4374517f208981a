//! The path of one connection, from the accepted socket to the closed session. Each step either hands on or refuses;
//! the record writes down what happened on every way out.

mod evaluate;
pub mod index;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use portcullis_wire::{Connack, Connect, FixedHeader, Limits, PacketType, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

pub use evaluate::{Claim, evaluate};
use index::{Session, Sessions};

use crate::auth::{self, Principal};
use crate::clock::now;
use crate::config::tables::OnReject;
use crate::limits::Permit;
use crate::net::{self, Stream};
use crate::observe::{Observer, Record, Transport};
use crate::outcome::{CloseReason, Outcome, Reject};
use crate::peer::{AuthAttributes, Facts, Peer};
use crate::registry::Entry;
use crate::relay::{Ends, relay};
use crate::runtime::{Listener, Runtime};
use crate::tls::Secured;
use crate::upstream::{Dialed, Lease};

/// For a broker to answer CONNECT: it may ask an authentication service first.
const CONNACK_TIMEOUT: Duration = Duration::from_secs(30);
/// For a refusal to be written; a client that does not read it goes without.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The first read of a CONNECT; most are smaller.
const CONNECT_BUFFER: usize = 1024;

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// What is served by at present.
    pub runtime: ArcSwap<Runtime>,
    /// What is seen goes there.
    pub observer: Arc<Observer>,
    /// Those that are connected.
    pub sessions: Arc<Sessions>,
}

/// Serves a connection to its end.
pub async fn serve(socket: TcpStream, remote: SocketAddr, listener: Arc<Listener>, shared: Arc<Shared>) {
    let transport = if listener.tls.is_some() { Transport::Tls } else { Transport::Tcp };
    let session = shared.sessions.open(Arc::clone(&listener.name), remote.ip());
    let observer = Arc::clone(&shared.observer);
    let mut record = Record::open(observer, Arc::clone(&listener.metrics), transport, remote);
    // Given back once the record is written, by whatever way this ends.
    let _permit = match admit_address(&listener, remote.ip()) {
        Ok(permit) => permit,
        Err(reject) => return record.finish(reject.into()),
    };
    // In a box of its own, so that an established session does not carry the size of the handshake around.
    let established = tokio::select! {
        established = Box::pin(establish(socket, &listener, &session, &shared, &mut record)) => established,
        // One that is refused already is only being told.
        reason = session.ended() => Err(record.decided().unwrap_or(Outcome::Closed(reason))),
    };
    // What a session of weeks does not need: a configuration that may be replaced long before it ends.
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
    /// The broker's answer was a refusal.
    refused: bool,
    lease: Lease,
}

async fn establish(
    socket: TcpStream,
    listener: &Listener,
    session: &Session,
    shared: &Shared,
    record: &mut Record,
) -> Result<Established, Outcome> {
    // Gone already: the next step will say so.
    let _ = net::tune(&socket);
    let secured = secure(socket, listener, session, record).await?;
    let mut client = secured.stream;
    let device = secured.device.as_deref();
    match negotiate(&mut client, &secured.peer, device, listener, session, shared, record).await {
        Ok(Agreed { dialed, greeting, code, version }) => {
            record.connected();
            let may_say_goodbye = version == Version::V5 && code == Some(0);
            let ends = Ends { client, broker: dialed.stream, greeting, may_say_goodbye };
            Ok(Established { ends, refused: code.is_some_and(|code| code != 0), lease: dialed.lease })
        }
        Err(Refused { outcome: Outcome::Rejected(reject), version }) => {
            refuse(client, reject, version, listener, record).await;
            Err(reject.into())
        }
        Err(Refused { outcome, .. }) => Err(outcome),
    }
}

/// What costs nothing is judged before any cryptography is paid for.
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
    socket: TcpStream,
    listener: &Listener,
    session: &Session,
    record: &mut Record,
) -> Result<Secured, Reject> {
    let Some(tls) = &listener.tls else {
        let (stream, peer) = (Stream::Tcp(socket), Peer::plain(record.remote));
        return Ok(Secured { stream, peer, evidence: None, device: None });
    };
    let mut secured = match tls.accept(socket, record.remote).await {
        Ok(secured) => secured,
        Err(failed) => {
            let reject = failed.reject;
            record.decide(reject);
            note_failure(reject, listener, record);
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

/// What came of CONNECT.
struct Agreed {
    dialed: Dialed,
    greeting: Vec<u8>,
    /// Of the CONNACK, if that is what the broker said first.
    code: Option<u8>,
    version: Version,
}

/// A refusal, and the version to say it in, if it is known.
struct Refused {
    outcome: Outcome,
    version: Option<Version>,
}

async fn negotiate(
    client: &mut Stream,
    peer: &Peer,
    device: Option<&Entry>,
    listener: &Listener,
    session: &Session,
    shared: &Shared,
    record: &mut Record,
) -> Result<Agreed, Refused> {
    let mut buffer = Vec::with_capacity(CONNECT_BUFFER);
    let read = timeout(listener.connect_timeout, read_connect(client, &mut buffer, listener));
    // What authorities say of the certificate is asked for meanwhile.
    let (result, settled) = tokio::join!(read, settle(listener, session));
    let result = result.unwrap_or(Err(Reject::ConnectTimeout));
    record.moved(buffer.len() as u64, 0);
    let claimed = Connect::version_to_answer_in(&buffer);
    let (connect, used) = result
        .and_then(|()| decode(&buffer, listener)?.ok_or(Reject::MalformedConnect))
        .map_err(|reject| Refused { outcome: reject.into(), version: claimed })?;
    record.client_id = Some(connect.client_id.into());
    record.mqtt_version = Some(connect.version);
    let refused = |reject: Reject| Refused { outcome: reject.into(), version: Some(connect.version) };
    settled.map_err(refused)?;

    let attributes = AuthAttributes::default();
    let facts = Facts { peer, listener: &listener.name, mqtt: &connect, attributes, now: now() };
    let mut principal = identify(&facts, device, listener, record).await.map_err(refused)?;
    session.authenticated(principal.evidence.take());
    // A change since the handshake may have swept the index before the evidence was there.
    evaluate(session.live().claim(), &shared.runtime.load(), now())
        .map_err(|reason| Refused { outcome: Outcome::Closed(reason), version: Some(connect.version) })?;
    let facts = Facts { attributes: principal.attributes(), ..facts };
    listener.admission.check(&facts).map_err(refused)?;
    let replacements = listener.rewriting.evaluate(&facts).map_err(refused)?;
    let replacements = replacements.or_else(principal.client_id.clone(), principal.username.clone());
    let rewritten = replacements.apply(&connect);
    rewritten.check_client_id().map_err(|error| refused(error.into()))?;
    if listener.bans.is_client_refused(record.remote.ip(), rewritten.client_id) {
        return Err(refused(Reject::Banned));
    }
    let key = match listener.upstream.hash_key() {
        Some(key) => key.text(&Facts { mqtt: &rewritten, ..facts }).map_err(refused)?,
        None => Arc::new(rewritten.client_id.to_owned()),
    };
    let packet = if replacements.is_empty() {
        buffer.as_slice().into()
    } else {
        let mut packet = Vec::with_capacity(buffer.len() + 128);
        rewritten.encode(&mut packet).map_err(|_| refused(Reject::RewriteFailed))?;
        packet.extend_from_slice(&buffer[used..]);
        std::borrow::Cow::Owned(packet)
    };

    let mut dialed = listener.upstream.dial(key.as_bytes()).await.map_err(refused)?;
    record.server = Some(Arc::clone(&dialed.server));
    let (greeting, code) = match present(&mut dialed.stream, &packet).await {
        Ok(answer) => answer,
        Err(reject) => {
            dialed.lease.unanswered();
            return Err(refused(reject));
        }
    };
    Ok(Agreed { dialed, greeting, code, version: connect.version })
}

/// Finds out who the client is: by the registry, if its handshake was by a key of that, and by the authenticators.
async fn identify(
    facts: &Facts<'_>,
    device: Option<&Entry>,
    listener: &Listener,
    record: &mut Record,
) -> Result<Box<Principal>, Reject> {
    // It may have failed elsewhere since it was let in.
    if listener.bans.is_banned(record.remote.ip()) {
        return Err(Reject::Banned);
    }
    if let Some(device) = device {
        device.may_enter(now())?;
    }
    let mut principal = auth::authenticate(&listener.authenticators, facts).await?.unwrap_or_default();
    if principal.device.is_none() {
        principal.device = device.map(Entry::facts);
    }
    record.authenticator.clone_from(&principal.authenticator);
    Ok(principal)
}

async fn settle(listener: &Listener, session: &Session) -> Result<(), Reject> {
    match (session.live().chain(), listener.tls.as_ref().and_then(|tls| tls.trust())) {
        (Some(chain), Some(trust)) => Ok(trust.settle(chain).await?),
        _ => Ok(()),
    }
}

/// Reads until CONNECT is whole; what the client has sent behind it stays in the buffer.
async fn read_connect(client: &mut Stream, buffer: &mut Vec<u8>, listener: &Listener) -> Result<(), Reject> {
    loop {
        match client.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(Reject::ClosedBeforeConnect),
            Ok(_) => {}
        }
        if listener.tls.is_none() && matches!(buffer.as_slice(), [0x16, 3, ..]) {
            // A TLS record of the type handshake (RFC 8446, 5.1), which MQTT would call a CONNECT with wrong flags.
            return Err(Reject::TlsOnPlainPort);
        }
        if listener.tls.is_none() && *buffer == [0x16] {
            // One byte does not say which of the two it is.
            continue;
        }
        if decode(buffer, listener)?.is_some() {
            return Ok(());
        }
    }
}

fn decode<'b>(buffer: &'b [u8], listener: &Listener) -> Result<Option<(Connect<'b>, usize)>, Reject> {
    Ok(Connect::decode(buffer, Limits { max_packet_len: listener.max_connect_size })?)
}

/// Sends CONNECT, and what came behind it, to the broker; waits for the beginning of its answer. Returns all it said so
/// far, and the code if that is a CONNACK; with MQTT 5's extended authentication it is an AUTH packet, which is the
/// client's to judge.
async fn present(broker: &mut Stream, packet: &[u8]) -> Result<(Vec<u8>, Option<u8>), Reject> {
    let deadline = Instant::now() + CONNACK_TIMEOUT;
    let send = async {
        broker.write_all(packet).await?;
        broker.flush().await
    };
    match timeout_at(deadline, send).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(Reject::UpstreamClosed),
        Err(_) => return Err(Reject::UpstreamTimeout),
    }
    let mut answer = Vec::with_capacity(64);
    loop {
        match timeout_at(deadline, broker.read_buf(&mut answer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return Err(Reject::UpstreamClosed),
            Err(_) => return Err(Reject::UpstreamTimeout),
        }
        let Some(header) = FixedHeader::decode(&answer).map_err(|_| Reject::UpstreamProtocol)? else { continue };
        match header.packet_type {
            // Flags first, then the code [MQTT-3.2.2].
            PacketType::Connack if header.remaining_length >= 2 => {
                if let Some(code) = answer.get(header.len + 1).copied() {
                    return Ok((answer, Some(code)));
                }
            }
            PacketType::Auth => return Ok((answer, None)),
            // MQTT 5 lets a server say why it goes before it has said anything else.
            PacketType::Disconnect => return Ok((answer, Some(0x80))),
            _ => return Err(Reject::UpstreamProtocol),
        }
    }
}

/// Before the client is told: it may have others on the way.
fn note_failure(reject: Reject, listener: &Listener, record: &Record) {
    if reject.is_failed_proof() {
        listener.bans.failed(record.remote.ip());
    }
}

/// Tells a client that it is refused, in its own MQTT version, and closes.
async fn refuse(
    mut client: Stream,
    reject: Reject,
    version: Option<Version>,
    listener: &Listener,
    record: &mut Record,
) {
    record.decide(reject);
    note_failure(reject, listener, record);
    let code = version.and_then(|version| Some((version, reject.refusal()?.code(version)?)));
    let say = async {
        if let (OnReject::Connack, Some((version, code))) = (listener.on_reject, code) {
            let mut packet = Vec::with_capacity(8);
            Connack::refusal(code).encode(version, &mut packet);
            client.write_all(&packet).await?;
            record.moved(0, packet.len() as u64);
        }
        client.shutdown().await
    };
    let said: Result<std::io::Result<()>, _> = timeout(REFUSAL_TIMEOUT, say).await;
    if said.is_ok() {
        net::discard_until_closed(&mut client).await;
    }
}

/// The size of the future that serves a connection, in bytes: what an established session costs besides its sockets,
/// its TLS state and its record.
pub fn future_size() -> usize {
    fn of<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }
    of(serve)
}
