//! CONNECT: read, decoded, authenticated, evaluated, rewritten, and sent to a broker. Enters: a secured stream. Leaves: the
//! connection to a broker that has answered, or a rejection. No byte of the client reaches a broker before every check has
//! passed.

use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::{Connect, FixedHeader, Limits, PacketType, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::index::Session;
use super::{Shared, evaluate};
use crate::auth::{self, Principal};
use crate::devices::Entry;
use crate::edge::Stream;
use crate::observe::Record;
use crate::outcome::{Outcome, Reject};
use crate::peer::{AuthAttributes, Facts, Peer};
use crate::runtime::Listener;
use crate::upstream::Dialed;
use crate::util::clock::now;

/// How long a broker may take to answer CONNECT. It may query an authentication service first.
const CONNACK_TIMEOUT: Duration = Duration::from_secs(30);
/// The initial buffer for CONNECT, in bytes. Most are smaller.
const CONNECT_BUFFER: usize = 1024;

/// A connection whose CONNECT the broker has answered.
pub(super) struct Answered {
    pub(super) dialed: Dialed,
    pub(super) greeting: Vec<u8>,
    /// The code of the CONNACK; `None` if the broker's first packet is AUTH.
    pub(super) code: Option<u8>,
    pub(super) version: Version,
}

/// A rejection, and the client's protocol version, if it is known.
pub(super) struct Refused {
    pub(super) outcome: Outcome,
    pub(super) version: Option<Version>,
}

pub(super) async fn negotiate(
    client: &mut Stream,
    peer: &Peer,
    device: Option<&Entry>,
    listener: &Listener,
    session: &Session,
    shared: &Shared,
    record: &mut Record,
) -> Result<Answered, Refused> {
    let mut buffer = Vec::with_capacity(CONNECT_BUFFER);
    let read = timeout(listener.connect_timeout, read_connect(client, &mut buffer, listener));
    // Fetch CRLs and OCSP responses while CONNECT is read.
    let (result, revocation) = tokio::join!(read, check_revocation(listener, session));
    let result = result.unwrap_or(Err(Reject::ConnectTimeout));
    record.moved(buffer.len() as u64, 0);
    let claimed = Connect::version_to_answer_in(&buffer);
    let (connect, used) = result
        .and_then(|()| decode(&buffer, listener)?.ok_or(Reject::MalformedConnect))
        .map_err(|reject| Refused { outcome: reject.into(), version: claimed })?;
    record.info.set_connect(connect.client_id, connect.version);
    let refused = |reject: Reject| Refused { outcome: reject.into(), version: Some(connect.version) };
    revocation.map_err(refused)?;

    let attributes = AuthAttributes::default();
    let facts = Facts { peer, listener: &listener.name, mqtt: &connect, attributes, now: now() };
    let mut principal = identify(&facts, device, listener, record).await.map_err(refused)?;
    session.authenticated(principal.evidence.take());
    // A change since the handshake may have swept the index before the evidence was indexed.
    evaluate(session.live().claim(), &shared.runtime.load(), now())
        .map_err(|reason| Refused { outcome: Outcome::Closed(reason), version: Some(connect.version) })?;
    let facts = Facts { attributes: principal.attributes(), ..facts };
    listener.admission.check(&facts).map_err(refused)?;
    let replacements = listener.rewriting.evaluate(&facts).map_err(refused)?;
    let replacements = replacements.or_else(principal.client_id.clone(), principal.username.clone());
    let rewritten = replacements.apply(&connect);
    rewritten.check_client_id().map_err(|error| refused(error.into()))?;
    if listener.bans.is_client_refused(record.info.address().ip(), rewritten.client_id) {
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
    record.info.set_server(Arc::clone(&dialed.server));
    let (greeting, code) = match send_connect(&mut dialed.stream, &packet).await {
        Ok(answer) => answer,
        Err(reject) => {
            dialed.lease.unanswered();
            return Err(refused(reject));
        }
    };
    Ok(Answered { dialed, greeting, code, version: connect.version })
}

/// Identifies the client by its registry entry, if it used a registry key in the handshake, and by the authenticators.
async fn identify(
    facts: &Facts<'_>,
    device: Option<&Entry>,
    listener: &Listener,
    record: &mut Record,
) -> Result<Box<Principal>, Reject> {
    // The address may have been banned since this connection was accepted.
    if listener.bans.is_banned(record.info.address().ip()) {
        return Err(Reject::Banned);
    }
    if let Some(device) = device {
        device.may_enter(now())?;
    }
    let mut principal = auth::authenticate(&listener.authenticators, facts).await?.unwrap_or_default();
    if principal.device.is_none() {
        principal.device = device.map(Entry::facts);
    }
    principal.authenticator.iter().cloned().for_each(|name| record.info.set_authenticator(name));
    Ok(principal)
}

async fn check_revocation(listener: &Listener, session: &Session) -> Result<(), Reject> {
    match (session.live().chain(), listener.tls.as_ref().and_then(|tls| tls.trust())) {
        (Some(chain), Some(trust)) => Ok(trust.check_revocation(chain).await?),
        _ => Ok(()),
    }
}

/// Reads until CONNECT is complete. Bytes after it stay in the buffer.
async fn read_connect(client: &mut Stream, buffer: &mut Vec<u8>, listener: &Listener) -> Result<(), Reject> {
    loop {
        match client.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(Reject::ClosedBeforeConnect),
            Ok(_) => {}
        }
        if listener.tls.is_none() && matches!(buffer.as_slice(), [0x16, 3, ..]) {
            // A TLS handshake record (RFC 8446, 5.1). Read as MQTT, it would be a CONNECT with invalid flags.
            return Err(Reject::TlsOnPlainPort);
        }
        if listener.tls.is_none() && *buffer == [0x16] {
            // One byte is not enough to tell the two apart.
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

/// Sends CONNECT and the bytes after it to the broker, and waits for the start of the broker's first packet. Returns the
/// bytes received so far, and the code of a CONNACK. With MQTT 5's enhanced authentication, the first packet is AUTH, which
/// the client has to answer.
async fn send_connect(broker: &mut Stream, packet: &[u8]) -> Result<(Vec<u8>, Option<u8>), Reject> {
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
            // The code follows the flags [MQTT-3.2.2].
            PacketType::Connack if header.remaining_length >= 2 => {
                if let Some(code) = answer.get(header.len + 1).copied() {
                    return Ok((answer, Some(code)));
                }
            }
            PacketType::Auth => return Ok((answer, None)),
            // MQTT 5 allows a server to send DISCONNECT with a reason before CONNACK.
            PacketType::Disconnect => return Ok((answer, Some(0x80))),
            _ => return Err(Reject::UpstreamProtocol),
        }
    }
}
