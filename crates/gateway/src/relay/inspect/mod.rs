//! The codec that looks at packets: topic rules, mountpoint, stamps, limits, and what the protocol forbids.
//!
//! Enters: the bytes of both directions, split anywhere. Leaves: the packets that may pass, changed where a rule says so, and
//! answers for those that may not. What passes unchanged is written from the pump's own buffer. A packet is decided on when
//! its head is complete: payloads are passed on as they arrive, unless a schema has to see them whole.
//!
//! `frames.rs` finds packets in the stream; `from_client.rs` and `from_broker.rs` decide about them. Not here: sockets, waiting
//! or the rules themselves, which are `policy`'s.

mod aliases;
mod connack;
mod frames;
mod from_broker;
mod from_client;
mod keep_alive;
mod out;
mod packet_ids;
mod reload;
mod requests;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod script;
mod subscriptions;
mod tally;
mod throttle;
mod will;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::{Connect, Disconnect, Error, FixedHeader, PacketType, Version};
use tokio::time::Instant;

use self::aliases::Aliases;
use self::keep_alive::KeepAlive;
use self::out::Out;
use self::packet_ids::PacketIds;
use self::subscriptions::{Comparison, Subscriptions};
use self::tally::Tally;
use self::throttle::{Exceeded, Throttle};
use self::will::WillFacts;
use super::codec::{Boundary, Codec, Direction, Ending, Injected, Stalled};
use crate::config::tables::Rate;
use crate::limits::Bucket;
use crate::observe::{Action, Limit, SessionInfo};
use crate::outcome::CloseReason;
use crate::policy::PacketRules;

/// The largest head that is collected, in bytes: topic and properties of a PUBLISH, or all of another packet.
const MAX_HEAD: usize = 256 << 10;
/// Answers that wait for the end of a packet in the other direction, in bytes. Over it, their receiver is not read.
const MAX_REPLIES: usize = 4 << 10;
/// How long a client waits for a broker that does not answer its requests, or stops within a packet. While it waits, it is
/// not read, and nobody would notice that it is gone.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// A client that sends a large payload is not silent, but one that sends a byte now and then is: so many bytes count as activity.
const PROGRESS: usize = 1 << 10;
/// How many patterns the SUBSCRIBE packets of a client may have looked at in a second: a few milliseconds' worth.
const WORK: Rate = Rate { amount: 200_000, per: Duration::from_secs(1), burst: 200_000 };
/// Looks at the packets of a session.
#[derive(Debug)]
pub(crate) struct Inspect {
    version: Version,
    rules: Arc<PacketRules>,
    info: Arc<SessionInfo>,
    client: Client,
    broker: Broker,
    to_broker: Flow,
    to_client: Flow,
    subscriptions: Subscriptions,
    throttle: Throttle,
    /// The largest packet that the client may send: what an MQTT 5 client was told.
    max_packet: usize,
    /// Bytes of the client that wait until it is no longer delayed, at most what was read once.
    held: Vec<u8>,
    /// Since when the client waits for the broker.
    waits_since: Option<Instant>,
    /// How much work SUBSCRIBE packets may make, in patterns that are looked at.
    work: Bucket,
    /// The will, which the broker publishes unless the client disconnects.
    will: Option<Box<WillFacts>>,
    /// The broker needs a PINGREQ, because the client waits.
    is_ping_due: bool,
    comparison: Option<Comparison>,
    keep_alive: KeepAlive,
    disconnected: Option<Direction>,
}

/// What CONNECT says about the client.
#[derive(Debug)]
struct Client {
    /// The largest packet that it accepts, in bytes.
    max_packet: usize,
    /// Its keep-alive interval in seconds.
    keep_alive: u16,
    /// Whether it ends with its connection, so that it cannot be prolonged by DISCONNECT.
    has_no_expiry: bool,
    /// The session expiry interval that the broker got, if it is not the client's own.
    lowered_expiry: Option<u32>,
    has_auth_method: bool,
}

/// What CONNACK says about the broker.
#[derive(Debug)]
struct Broker {
    has_answered: bool,
    max_packet: usize,
    max_qos: u8,
    has_retain: bool,
    max_alias: u16,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    position: Position,
    /// An incomplete head; with [`PayloadMode::Collect`] also the payload behind it.
    head: Vec<u8>,
    aliases: Aliases,
    tally: Tally,
    /// Messages of QoS 2 that the gateway acknowledges in the receiver's place.
    acknowledged: PacketIds,
    /// Bytes of payloads since they last counted as activity.
    progress: usize,
    /// The acknowledgement of a PUBLISH that is dropped, once its payload has arrived.
    ack: Option<PendingAck>,
    /// Answers for the receiver of this stream, which wait for its next packet boundary.
    replies: Vec<u8>,
    /// Whether the last packet was a PUBLISH of QoS 0 that was allowed, and passed as it is.
    is_passed_as_it_is: bool,
    /// Behind DISCONNECT.
    is_over: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Position {
    /// In front of a packet, or in its head.
    #[default]
    Head,
    /// In a payload of which this many bytes are still to arrive; never 0.
    Payload(u32, PayloadMode),
}

/// What becomes of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PayloadMode {
    Pass,
    Drop,
    /// It is decided on when it is complete.
    Collect,
}

#[derive(Clone, Copy, Debug)]
struct PendingAck {
    packet_type: PacketType,
    packet_id: NonZeroU16,
    code: u8,
}

impl Inspect {
    /// The codec of a client. `received` is its CONNECT, `sent` the one that the broker gets.
    pub(crate) fn new(
        rules: Arc<PacketRules>,
        received: &Connect<'_>,
        sent: &Connect<'_>,
        info: Arc<SessionInfo>,
    ) -> Self {
        let now = Instant::now();
        let expiry = |connect: &Connect<'_>| connect.properties.session_expiry_interval();
        Self {
            version: received.version,
            client: Client {
                max_packet: received.properties.maximum_packet_size().map_or(usize::MAX, |size| size as usize),
                keep_alive: received.keep_alive,
                has_no_expiry: expiry(received).unwrap_or(0) == 0,
                lowered_expiry: expiry(sent).filter(|_| expiry(sent) != expiry(received)),
                has_auth_method: received.properties.authentication_method().is_some(),
            },
            broker: Broker::default(),
            to_broker: Flow::default(),
            to_client: Flow::default(),
            subscriptions: Subscriptions::default(),
            throttle: Throttle::new(now),
            max_packet: max_packet(&rules),
            held: Vec::new(),
            waits_since: None,
            work: Bucket::new(now),
            will: received.will.as_ref().map(|will| Box::new(WillFacts::of(will))),
            is_ping_due: false,
            comparison: None,
            keep_alive: KeepAlive::new(sent.keep_alive, rules.limits.max_keep_alive.is_some(), now),
            disconnected: None,
            rules,
            info,
        }
    }

    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToBroker => &mut self.to_broker,
            Direction::ToClient => &mut self.to_client,
        }
    }

    /// Takes bytes of the client, as fast as its rates allow; the rest is held.
    fn take_from_client(&mut self, chunk: &[u8], now: Instant, out: &mut Out<'_, '_>) -> Result<(), Ending> {
        let held = std::mem::take(&mut self.held);
        let mut joined = held;
        let (input, is_chunk) = if joined.is_empty() {
            (chunk, true)
        } else {
            joined.extend_from_slice(chunk);
            (&joined[..], false)
        };
        let may = self.throttle.admit_bytes(&self.rules.limits, input.len(), now).map_err(rate_exceeded)?;
        if may < input.len() {
            self.rules.count_exceeded(Limit::ByteRate, "", &self.info);
        }
        let used = self.run(Direction::ToBroker, &input[..may], is_chunk, now, out)?;
        self.throttle.took_bytes(&self.rules.limits, used, now);
        if used < input.len() {
            self.held = input[used..].to_vec();
        }
        Ok(())
    }

    /// When the broker needs a PINGREQ in place of packets of a client that is not read.
    fn ping_at(&self) -> Option<Instant> {
        let waits = self.throttle.paused_until().is_some() || self.must_wait();
        self.keep_alive.ping_at().filter(|_| waits && !self.is_ping_due && self.may_ping())
    }
}

impl Codec for Inspect {
    const INSPECTS: bool = true;

    fn take<'c>(&mut self, direction: Direction, chunk: &'c [u8], injected: &mut Injected) -> Result<&'c [u8], Ending> {
        let now = Instant::now();
        let mut out = Out::new(chunk, injected);
        if direction == Direction::ToBroker && std::mem::take(&mut self.is_ping_due) {
            self.ping(now, &mut out);
        }
        let taken = match direction {
            Direction::ToBroker if chunk.is_empty() && !self.may_read(direction) => Ok(()),
            Direction::ToBroker => self.take_from_client(chunk, now, &mut out),
            Direction::ToClient => self.run(direction, chunk, true, now, &mut out).map(drop),
        };
        if direction == Direction::ToBroker && out.has_any() {
            self.keep_alive.passed(now);
        }
        self.waits_since = if self.must_wait() { self.waits_since.or(Some(now)) } else { None };
        if let Some(topics) = &self.rules.topics {
            let (flow, action) = match direction {
                Direction::ToBroker => (&mut self.to_broker, Action::Publish),
                Direction::ToClient => (&mut self.to_client, Action::Deliver),
            };
            flow.tally.flush(topics, action);
        }
        match taken {
            Ok(()) => Ok(out.passed()),
            Err(ending) => {
                let ending = if direction == Direction::ToClient { self.refuse(ending, &mut out) } else { ending };
                out.inject_all();
                Err(ending)
            }
        }
    }

    fn disconnected(&self) -> Option<Direction> {
        self.disconnected
    }

    fn set_rules(&mut self, rules: Arc<PacketRules>) -> Result<(), Ending> {
        self.follow(rules, Instant::now())
    }

    fn is_between_packets_to_broker(&self) -> bool {
        let is_within_packet = matches!(self.to_broker.position, Position::Payload(_, PayloadMode::Pass));
        !is_within_packet && !self.to_broker.is_over
    }

    fn boundary(&self, chunk: &[u8]) -> Boundary {
        match self.to_client.position {
            Position::Payload(left, PayloadMode::Pass) if left as usize <= chunk.len() => Boundary::At(left as usize),
            Position::Payload(_, PayloadMode::Pass) => Boundary::Later,
            _ => Boundary::At(0),
        }
    }

    fn may_read(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToBroker => self.throttle.paused_until().is_none() && !self.must_wait(),
            Direction::ToClient => self.to_broker.replies.len() <= MAX_REPLIES,
        }
    }

    fn has_work(&self, direction: Direction) -> bool {
        direction == Direction::ToBroker && (self.is_ping_due || !self.held.is_empty() && self.may_read(direction))
    }

    fn wake_at(&self) -> Option<Instant> {
        let compare = self.comparison.as_ref().map(|comparison| comparison.at);
        let waits = self.waits_since.map(|since| since + MAX_WAIT);
        let times = [self.throttle.paused_until(), self.keep_alive.alarm(), waits, compare, self.ping_at()];
        times.into_iter().flatten().min()
    }

    fn wake(&mut self, now: Instant, stalled: Stalled) -> Result<(), Ending> {
        self.compare_subscriptions(now)?;
        self.is_ping_due |= self.ping_at().is_some_and(|at| at <= now);
        let paused_until = self.throttle.paused_until();
        // A client that is not read, or waits for CONNACK, is not silent.
        if stalled.broker || paused_until.is_some() || self.must_wait() || !self.broker.has_answered {
            self.keep_alive.packet(now);
        }
        if paused_until.is_some_and(|until| until <= now) {
            self.throttle.resume();
        }
        if self.waits_since.is_some_and(|since| now >= since + MAX_WAIT) {
            let (reason, detail) = if self.subscriptions.is_full() {
                (CloseReason::UpstreamViolation, "the broker does not answer SUBSCRIBE and UNSUBSCRIBE packets")
            } else if stalled.client {
                (CloseReason::QuotaExceeded, "the client does not read what it is sent, and waits for answers")
            } else {
                (CloseReason::UpstreamViolation, "the broker does not complete a packet")
            };
            return Err(Ending { detail: Some(detail.into()), ..reason.into() });
        }
        if self.keep_alive.expire(now) {
            return Err(CloseReason::KeepAliveTimeout.into());
        }
        Ok(())
    }
}

impl Default for Broker {
    /// What applies until CONNACK says more. Aliases have to wait for it [MQTT-3.3.2-9].
    fn default() -> Self {
        Self { has_answered: false, max_packet: usize::MAX, max_qos: 2, has_retain: true, max_alias: 0 }
    }
}

fn max_packet(rules: &PacketRules) -> usize {
    rules.limits.max_packet_size.map_or(usize::MAX, |max| max as usize)
}

/// The end of a session whose client or broker violates the protocol. `header`: of the packet, if there is one.
fn violation(direction: Direction, header: Option<FixedHeader>, error: impl Into<Error>) -> Ending {
    let error = error.into();
    let detail = match header {
        Some(header) => format!("{:?}: {error}", header.packet_type),
        None => error.to_string(),
    };
    if direction == Direction::ToClient {
        return Ending { detail: Some(detail.into()), ..CloseReason::UpstreamViolation.into() };
    }
    let disconnect = match error {
        Error::Malformed(rule) => rule.disconnect(),
        Error::TooLarge => Disconnect::PacketTooLarge,
        Error::Unsupported => Disconnect::ProtocolError,
    };
    Ending::new(CloseReason::ProtocolViolation, disconnect, detail)
}

fn rate_exceeded(Exceeded { limit, rate }: Exceeded) -> Ending {
    let Rate { amount, per, burst } = rate;
    let detail = format!("{limit}: {amount} in {} s, burst {burst}", per.as_secs());
    Ending::new(CloseReason::QuotaExceeded, Disconnect::MessageRateTooHigh, detail)
}

/// `max`: what would be allowed, in bytes.
fn too_large(header: FixedHeader, max: usize) -> Ending {
    let detail = format!("{:?}: {} bytes, {max} are allowed", header.packet_type, header.packet_len());
    Ending::new(CloseReason::PacketTooLarge, Disconnect::PacketTooLarge, detail)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
