//! Packets of the client. Enters: each, once its head is complete. Leaves: it, perhaps changed, for the broker; or an answer
//! to the client; or why the session closes.

use std::cell::RefCell;

use portcullis_wire::{
    Disconnect, Error, FixedHeader, MAX_REMAINING_LENGTH, Packet, PacketType, PropertiesBuf, PropertyId, Publish,
    Reasoned, Rule, Sender, Subscribe, TopicFilter, Unsubscribe, Version, encode_with_id, put_filter,
};
use tokio::time::Instant;

use super::out::{Out, Piece};
use super::subscriptions::Request;
use super::{Answer, Direction, Ending, Fate, Inspect, Position, WORK, violation};
use crate::config::tables::OnDeny;
use crate::observe::{Action, Limit};
use crate::outcome::CloseReason;
use crate::policy::{Decision, Denial, MAX_TOPIC_LEN, Message, TopicRules};
use crate::util::clip::clip;

const TO_BROKER: Direction = Direction::ToBroker;
/// How many patterns may be looked at for one SUBSCRIBE at least. What exceeds it is denied.
const MIN_WORK: u64 = WORK.burst / 10;

thread_local! {
    static SCRATCH: RefCell<PropertiesBuf> = RefCell::default();
}

impl Inspect {
    /// Decides about a packet of the client. `payload`: that of a PUBLISH, if it was collected.
    pub(super) fn packet_from_client(
        &mut self,
        header: FixedHeader,
        head: Piece<'_>,
        payload: Option<&[u8]>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let (version, malformed) = (self.version, |error| violation(TO_BROKER, Some(header), error));
        if header.packet_type == PacketType::Publish {
            let publish = Publish::decode(head.bytes, header, version, Sender::Client).map_err(malformed)?;
            return self.publish(&publish, header, head, payload, now, out);
        }
        match Packet::decode(head.bytes, header, version, Sender::Client).map_err(malformed)? {
            Packet::Ack(ack)
                if ack.packet_type == PacketType::Pubrel && self.to_broker.acknowledged.remove(ack.packet_id) =>
            {
                self.withhold(PacketType::Pubcomp, ack.packet_id, out);
                self.ping(now, out);
            }
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe, head, now, out)?,
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe, head, now, out)?,
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect, header, head, out)?,
            Packet::Auth(_) if !self.client.has_auth_method => {
                return Err(violation(TO_BROKER, Some(header), Rule::AuthWithoutMethod));
            }
            _ => out.pass(head),
        }
        self.alive.packet(now);
        Ok(())
    }

    /// The payload of a PUBLISH is complete, and is decided on with its head.
    pub(super) fn collected(&mut self, now: Instant, out: &mut Out<'_, '_>) -> Result<(), Ending> {
        let packet = std::mem::take(&mut self.to_broker.head);
        let Some((header, len)) = self.measure(TO_BROKER, &packet)? else { return Ok(()) };
        let (head, payload) = packet.split_at(len.min(packet.len()));
        self.packet_from_client(header, Piece { bytes: head, at: None }, Some(payload), now, out)
    }

    fn publish(
        &mut self,
        publish: &Publish<'_>,
        header: FixedHeader,
        head: Piece<'_>,
        payload: Option<&[u8]>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        self.check_broker_limits(publish, header)?;
        let payload_len = header.packet_len() - head.bytes.len();
        let alias = publish.properties.topic_alias();
        if let Some(alias) = alias {
            self.set_alias(alias, publish.topic, header)?;
        }
        let (topic, is_alias_known) = match alias.filter(|_| publish.topic.is_empty()) {
            None => (publish.topic, true),
            Some(alias) => match self.to_broker.aliases.get(alias) {
                Some(aliased) => aliased,
                None => return Err(violation(TO_BROKER, Some(header), Rule::TopicAliasUnknown)),
            },
        };
        let response_topic = publish.properties.response_topic();
        let message = Message { topic, qos: publish.qos, retain: publish.retain, payload_len, response_topic };
        let mut denial = None;
        let exceeded =
            std::iter::once(topic).chain(response_topic).find_map(|topic| self.rules.check_topic(topic).err());
        if let Some(limit) = exceeded {
            self.rules.count_exceeded(limit, topic, &self.info);
            denial = Some(Denial::TopicName);
        } else if let Some(topics) = &self.rules.topics {
            let (mut decision, schema) = topics.publish(&message);
            if let Some(schema) = schema {
                match payload {
                    None if payload_len > 0 => {
                        // It grows with what arrives, not with what is announced.
                        let mut collected = Vec::with_capacity(head.bytes.len() * 2);
                        collected.extend_from_slice(head.bytes);
                        self.to_broker.head = collected;
                        return self.begin_payload(TO_BROKER, payload_len, Fate::Collect, now, out);
                    }
                    payload if schema.accepts(payload.unwrap_or_default()) => {}
                    _ => decision.result = Err(Denial::Schema),
                }
            }
            match decision.result {
                Ok(()) => self.to_broker.tally.allowed(topics, Action::Publish, decision.rule),
                Err(_) => topics.count(Action::Publish, decision, topic, &self.info),
            }
            denial = decision.result.err().filter(|_| !topics.is_shadow());
        }
        if let Some(denial) = denial {
            let topic = clip(topic).into_owned();
            return self.deny(publish, denial, &topic, (payload_len, payload), now, out);
        }
        let prefix = &*self.rules.mountpoint;
        let is_renamed = !prefix.is_empty() && (!publish.topic.is_empty() || response_topic.is_some());
        let is_stamped = self.version == Version::V5 && !self.rules.stamps.is_empty();
        if is_renamed || is_stamped || !is_alias_known {
            // The broker needs the topic, unless it knows the alias.
            let (prefix, topic) = if publish.topic.is_empty() && is_alias_known { ("", "") } else { (prefix, topic) };
            let (version, max) = (self.version, self.broker.max_packet.min(MAX_REMAINING_LENGTH as usize));
            let is_written = SCRATCH.with_borrow_mut(|scratch| {
                let properties = self.rules.stamp(&publish.properties, scratch);
                let publish = Publish { topic, properties, ..*publish };
                let fits = publish.packet_len(version, prefix, payload_len) <= max;
                if fits {
                    publish.encode_head(version, prefix, payload_len, out.write());
                }
                fits
            });
            if !is_written {
                // The client cannot know what the gateway adds.
                self.rules.count_exceeded(Limit::PacketSize, topic, &self.info);
                let topic = clip(topic).into_owned();
                return self.deny(publish, Denial::PacketSize, &topic, (payload_len, payload), now, out);
            }
        } else {
            out.pass(head);
        }
        if let Some(alias) = alias {
            self.to_broker.aliases.mark_known(alias);
        }
        if let (2, Some(id)) = (publish.qos, publish.packet_id) {
            // The broker takes part in this exchange, whatever became of an earlier one.
            self.to_broker.acknowledged.remove(id);
        }
        if let Some(payload) = payload {
            out.write().extend_from_slice(payload);
            return self.end_payload(TO_BROKER, Fate::Pass, now, out);
        }
        self.begin_payload(TO_BROKER, payload_len, Fate::Pass, now, out)
    }

    /// What CONNACK limits [MQTT-3.2.2.3]. Not the receive maximum: brokers announce one and accept more, and popular clients do not
    /// look at it.
    fn check_broker_limits(&self, publish: &Publish<'_>, header: FixedHeader) -> Result<(), Ending> {
        let broken = |disconnect, what: &str| {
            let detail = format!("{:?}: {what}", header.packet_type);
            Err(Ending::new(CloseReason::ProtocolViolation, disconnect, detail))
        };
        if publish.qos > self.broker.max_qos {
            return broken(Disconnect::QosNotSupported, "QoS above the broker's maximum [MQTT-3.2.2-11]");
        }
        if publish.retain && !self.broker.has_retain {
            return broken(
                Disconnect::RetainNotSupported,
                "retained, although the broker retains none [MQTT-3.2.2-14]",
            );
        }
        Ok(())
    }

    fn set_alias(&mut self, alias: u16, topic: &str, header: FixedHeader) -> Result<(), Ending> {
        if alias > self.broker.max_alias {
            return Err(violation(TO_BROKER, Some(header), Rule::TopicAlias));
        }
        if !topic.is_empty() {
            self.to_broker.aliases.set(alias, topic);
        }
        Ok(())
    }

    /// Denies a PUBLISH. `payload`: its length, and itself if it was collected.
    fn deny(
        &mut self,
        publish: &Publish<'_>,
        denial: Denial,
        topic: &str,
        (payload_len, payload): (usize, Option<&[u8]>),
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        // A policy that is not enforced ends no session, also not for a limit.
        let enforced = self.rules.topics.as_ref().filter(|topics| !topics.is_shadow());
        let on_deny = enforced.map_or(OnDeny::Ack, TopicRules::on_deny);
        if on_deny == OnDeny::Disconnect {
            let detail = format!("publish to `{topic}`: {}", denial.label());
            return Err(Ending::new(CloseReason::TopicDenied, denial.disconnect(), detail));
        }
        let code = if self.version == Version::V5 { denial.ack_code() } else { 0 };
        self.to_broker.answer = publish.packet_id.map(|packet_id| {
            let packet_type = if publish.qos == 1 { PacketType::Puback } else { PacketType::Pubrec };
            Answer { packet_type, packet_id, code }
        });
        if publish.qos == 2 && code == 0 {
            // Without a code the exchange goes on to its end; a code ends it [MQTT-4.3.3-4].
            publish.packet_id.into_iter().for_each(|id| self.to_broker.acknowledged.insert(id));
        }
        self.ping(now, out);
        let left = if payload.is_some() { 0 } else { payload_len };
        self.begin_payload(TO_BROKER, left, Fate::Drop, now, out)
    }

    /// Whether a PINGREQ may be sent to the broker: it has accepted the client, and waits for no rest of a packet.
    pub(super) fn may_ping(&self) -> bool {
        self.broker.has_answered && !matches!(self.to_broker.position, Position::Payload(_, Fate::Pass))
    }

    /// A packet is withheld from the broker, which would think after a while that the client is gone.
    pub(super) fn ping(&mut self, now: Instant, out: &mut Out<'_, '_>) {
        if self.may_ping() && self.alive.take_ping(now) {
            out.write().extend_from_slice(&portcullis_wire::PINGREQ);
        }
    }

    fn withhold(&mut self, answer: PacketType, packet_id: std::num::NonZeroU16, out: &mut Out<'_, '_>) {
        let mut packet = Vec::with_capacity(4);
        portcullis_wire::Ack::encode(answer, packet_id, self.version, 0, &mut packet);
        self.reply(TO_BROKER, &packet, out);
    }

    fn subscribe(
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
            match self.decide_filter(wanted.filter, &mut budget) {
                Ok(max_qos) => {
                    let granted = wanted.with_qos(wanted.qos().min(max_qos));
                    is_changed |= granted != wanted;
                    self.subscriptions.ask_to_add(wanted.filter.as_str(), &mut request);
                    granted.encode(&self.rules.mountpoint, &mut payload);
                }
                Err(code) => {
                    is_changed = true;
                    request.answer(if self.version == Version::V5 { code.code() } else { 0x80 });
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
        self.forward_request(
            (PacketType::Subscribe, PacketType::Suback),
            packet_id,
            properties,
            request,
            &payload,
            now,
            out,
        )
    }

    /// Whether a filter may be subscribed to, and at which QoS; otherwise the code for SUBACK.
    fn decide_filter(&self, wanted: TopicFilter<'_>, budget: &mut u32) -> Result<u8, Disconnect> {
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
        if !has_room && !self.subscriptions.holds(wanted.as_str()) {
            self.rules.count_exceeded(Limit::Subscriptions, wanted.as_str(), &self.info);
            return Err(Disconnect::QuotaExceeded);
        }
        Ok(granted)
    }

    fn unsubscribe(
        &mut self,
        unsubscribe: &Unsubscribe<'_>,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let (mut request, mut payload) = (Request::new(true), Vec::new());
        for filter in unsubscribe.filters() {
            if self.rules.mountpoint.len() + filter.as_str().len() > MAX_TOPIC_LEN {
                request.answer(Disconnect::TopicFilterInvalid.code());
                continue;
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
        let types = (PacketType::Unsubscribe, PacketType::Unsuback);
        self.forward_request(types, packet_id, properties, request, &payload, now, out)
    }

    /// Forwards the filters of a request that the broker is asked about, or answers it if there are none.
    #[expect(clippy::too_many_arguments, reason = "the parts of one packet")]
    fn forward_request(
        &mut self,
        (request_type, answer_type): (PacketType, PacketType),
        packet_id: std::num::NonZeroU16,
        properties: &portcullis_wire::Properties<'_>,
        request: Request,
        payload: &[u8],
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        if request.is_answered() {
            let has_codes = answer_type == PacketType::Suback || self.version == Version::V5;
            let codes = if has_codes { request.codes() } else { &[] };
            let mut packet = Vec::new();
            let none = portcullis_wire::Properties::default();
            encode_with_id(answer_type, packet_id, self.version, &none, codes, &mut packet);
            self.reply(TO_BROKER, &packet, out);
            self.ping(now, out);
            return Ok(());
        }
        let start = out.write().len();
        encode_with_id(request_type, packet_id, self.version, properties, payload, out.write());
        let len = out.write().len() - start;
        if len > self.broker.max_packet || len > MAX_REMAINING_LENGTH as usize {
            out.write().truncate(start);
            if request_type == PacketType::Subscribe {
                // The client could not know: it was told a maximum for messages.
                let code = if self.version == Version::V5 { Disconnect::QuotaExceeded.code() } else { 0x80 };
                let refused = self.subscriptions.withdraw(request, code);
                return self.forward_request(
                    (request_type, answer_type),
                    packet_id,
                    properties,
                    refused,
                    &[],
                    now,
                    out,
                );
            }
            let detail = format!("{request_type:?}: {len} bytes, with the mountpoint");
            return Err(Ending::new(CloseReason::PacketTooLarge, Disconnect::PacketTooLarge, detail));
        }
        self.subscriptions.wait_for(packet_id, request);
        Ok(())
    }

    fn disconnect(
        &mut self,
        disconnect: &Reasoned<'_>,
        header: FixedHeader,
        head: Piece<'_>,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let expiry = disconnect.properties.session_expiry_interval();
        if self.client.has_no_expiry && expiry.is_some_and(|expiry| expiry > 0) {
            return Err(violation(TO_BROKER, Some(header), Error::from(Rule::SessionExpiry)));
        }
        self.disconnected.get_or_insert(TO_BROKER);
        self.to_broker.is_over = true;
        match expiry.zip(self.rules.limits.max_session_expiry).filter(|(wanted, max)| wanted > max) {
            None => out.pass(head),
            Some((_, max)) => {
                let mut properties = PropertiesBuf::default();
                properties.extend(&disconnect.properties, |property| property.is(PropertyId::SessionExpiryInterval));
                properties.push_session_expiry_interval(max);
                Reasoned { code: disconnect.code, properties: properties.as_properties() }
                    .encode_disconnect(out.write());
            }
        }
        Ok(())
    }
}

/// Decides about a subscription that a session holds, by the work that its SUBSCRIBE could have had. Returns the number of
/// patterns that were looked at, too.
pub(super) fn decide_subscription(topics: &TopicRules, filter: &str) -> (Decision, u32) {
    let filter = TopicFilter::new(filter).map(|filter| filter.shared().map_or(filter, |(_, shared)| shared));
    let Ok(filter) = filter else { return (Decision { rule: None, result: Err(Denial::Topic) }, 1) };
    let max = u32::try_from(WORK.burst).unwrap_or(u32::MAX);
    let mut budget = max;
    let (decision, _) = topics.subscribe(filter, &mut budget);
    (decision, max - budget)
}
