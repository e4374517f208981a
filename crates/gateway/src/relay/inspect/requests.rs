//! SUBSCRIBE and UNSUBSCRIBE. Enters: each, once it is complete. Leaves: the filters that the broker is asked about, and what
//! the client is told about the others; SUBACK and UNSUBACK put the two together again, in `from_broker.rs`.

use std::num::NonZeroU16;

use portcullis_wire::{
    Disconnect, MAX_REMAINING_LENGTH, PacketType, Properties, Subscribe, TopicFilter, Unsubscribe, Version,
    encode_with_id, put_filter,
};
use tokio::time::Instant;

use super::out::{Out, Piece};
use super::subscriptions::Request;
use super::{Direction, Ending, Inspect, WORK};
use crate::observe::{Action, Limit};
use crate::outcome::CloseReason;
use crate::policy::MAX_TOPIC_LEN;

const TO_BROKER: Direction = Direction::ToBroker;
/// How many patterns may be looked at for one SUBSCRIBE at least. What exceeds it is denied.
const MIN_WORK: u64 = WORK.burst / 10;

/// A SUBSCRIBE or UNSUBSCRIBE as the broker gets it.
struct Rewritten<'a> {
    packet_type: PacketType,
    packet_id: NonZeroU16,
    properties: &'a Properties<'a>,
    /// The filters.
    payload: &'a [u8],
}

impl Inspect {
    pub(super) fn subscribe(
        &mut self,
        subscribe: &Subscribe<'_>,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let (mut request, mut payload) = (Request::new(false), Vec::new());
        let may_do = self.work.available(WORK, now).max(MIN_WORK);
        let mut budget = u32::try_from(may_do).unwrap_or(u32::MAX);
        let mut is_changed = !self.rules.mountpoint.is_empty();
        for wanted in subscribe.subscriptions() {
            match self.decide_filter(wanted.filter, &request, &mut budget) {
                Ok(max_qos) => {
                    let granted = wanted.with_qos(wanted.qos().min(max_qos));
                    is_changed |= granted != wanted;
                    self.subscriptions.ask_to_add(wanted.filter.as_str(), &mut request);
                    granted.encode(&self.rules.mountpoint, &mut payload);
                }
                Err(code) => {
                    is_changed = true;
                    request.decide(if self.version == Version::V5 { code.code() } else { 0x80 });
                }
            }
        }
        self.work.take(WORK, may_do - u64::from(budget), now);
        if !is_changed {
            self.subscriptions.wait_for(subscribe.packet_id, request);
            out.pass(head);
            return Ok(());
        }
        let (packet_id, properties) = (subscribe.packet_id, &subscribe.properties);
        let rewritten = Rewritten { packet_type: PacketType::Subscribe, packet_id, properties, payload: &payload };
        self.forward_request(&rewritten, request, now, out)
    }

    /// Whether a filter may be subscribed to, and at which QoS; otherwise the code for SUBACK.
    fn decide_filter(&self, wanted: TopicFilter<'_>, request: &Request, budget: &mut u32) -> Result<u8, Disconnect> {
        let (limits, filter) = (&self.rules.limits, wanted.shared().map_or(wanted, |(_, filter)| filter));
        // Brokers do not agree on what it is.
        if wanted.is_shared() && wanted.shared().is_none() {
            return Err(Disconnect::TopicFilterInvalid);
        }
        let is_too_long = self.rules.mountpoint.len() + wanted.as_str().len() > MAX_TOPIC_LEN;
        let exceeded = if is_too_long { Err(Limit::TopicLength) } else { self.rules.check_topic(filter.as_str()) };
        if let Err(limit) = exceeded {
            self.rules.count_exceeded(limit, wanted.as_str(), &self.info);
            return Err(Disconnect::TopicFilterInvalid);
        }
        let mut granted = 2;
        if let Some(topics) = &self.rules.topics {
            let (decision, max_qos) = topics.subscribe(filter, budget);
            topics.count(Action::Subscribe, decision, wanted.as_str(), &self.info);
            if !topics.is_shadow() {
                if let Err(denial) = decision.result {
                    return Err(denial.disconnect());
                }
                granted = max_qos;
            }
        }
        let max_held = limits.max_subscriptions.map_or(usize::MAX, |max| max as usize);
        let has_room = self.subscriptions.len() < max_held && self.subscriptions.has_room_for(wanted.as_str());
        if !request.has_room_for(wanted.as_str()) || !has_room && !self.subscriptions.holds(wanted.as_str()) {
            self.rules.count_exceeded(Limit::Subscriptions, wanted.as_str(), &self.info);
            return Err(Disconnect::QuotaExceeded);
        }
        Ok(granted)
    }

    pub(super) fn unsubscribe(
        &mut self,
        unsubscribe: &Unsubscribe<'_>,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let (mut request, mut payload) = (Request::new(true), Vec::new());
        for filter in unsubscribe.filters() {
            if self.rules.mountpoint.len() + filter.as_str().len() > MAX_TOPIC_LEN {
                request.decide(Disconnect::TopicFilterInvalid.code());
                continue;
            }
            if !request.has_room_for(filter.as_str()) {
                let detail = "Unsubscribe: more filters than fit into 1 MiB";
                return Err(Ending::new(CloseReason::QuotaExceeded, Disconnect::QuotaExceeded, detail));
            }
            self.subscriptions.ask_to_remove(filter.as_str(), &mut request);
            put_filter(filter, &self.rules.mountpoint, &mut payload);
        }
        if self.rules.mountpoint.is_empty() {
            self.subscriptions.wait_for(unsubscribe.packet_id, request);
            out.pass(head);
            return Ok(());
        }
        let (packet_id, properties) = (unsubscribe.packet_id, &unsubscribe.properties);
        let rewritten = Rewritten { packet_type: PacketType::Unsubscribe, packet_id, properties, payload: &payload };
        self.forward_request(&rewritten, request, now, out)
    }

    /// Forwards the filters of a request that the broker is asked about, or answers it if there are none.
    fn forward_request(
        &mut self,
        rewritten: &Rewritten<'_>,
        request: Request,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let Rewritten { packet_type, packet_id, properties, payload } = *rewritten;
        if request.is_decided() {
            self.answer_request(packet_type, packet_id, &request, now, out);
            return Ok(());
        }
        let start = out.write().len();
        encode_with_id(packet_type, packet_id, self.version, properties, payload, out.write());
        let len = out.write().len() - start;
        if len <= self.broker.max_packet && len <= MAX_REMAINING_LENGTH as usize {
            self.subscriptions.wait_for(packet_id, request);
            return Ok(());
        }
        out.write().truncate(start);
        if packet_type == PacketType::Subscribe {
            // The client could not know: it was told a maximum for messages.
            let code = if self.version == Version::V5 { Disconnect::QuotaExceeded.code() } else { 0x80 };
            let refused = self.subscriptions.withdraw(request, code);
            self.answer_request(packet_type, packet_id, &refused, now, out);
            return Ok(());
        }
        let detail = format!("{packet_type:?}: {len} bytes, with the mountpoint");
        Err(Ending::new(CloseReason::PacketTooLarge, Disconnect::PacketTooLarge, detail))
    }

    /// Answers a request of which the broker gets nothing.
    fn answer_request(
        &mut self,
        packet_type: PacketType,
        packet_id: NonZeroU16,
        request: &Request,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) {
        let (answer, codes) = match packet_type {
            PacketType::Subscribe => (PacketType::Suback, request.codes()),
            // Before MQTT 5 without codes.
            _ if self.version == Version::V5 => (PacketType::Unsuback, request.codes()),
            _ => (PacketType::Unsuback, &[][..]),
        };
        let mut packet = Vec::new();
        encode_with_id(answer, packet_id, self.version, &Properties::default(), codes, &mut packet);
        self.reply_to_sender(TO_BROKER, &packet, out);
        self.ping(now, out);
    }
}
