//! Packets of the client. Enters: each, once its head is complete. Leaves: it, perhaps changed, for the broker; or an answer
//! to the client; or why the session closes.

use std::cell::RefCell;

use portcullis_wire::{
    Ack, Disconnect, Error, FixedHeader, Packet, PacketType, PropertiesBuf, PropertyId, Publish, Reasoned, Rule,
    Sender, Version,
};
use tokio::time::Instant;

use super::aliases::{NoTopic, Resolved};
use super::out::{Out, Piece};
use super::{Direction, Ending, Inspect, PayloadMode, PendingAck, violation};
use crate::observe::{Action, Limit};
use crate::outcome::CloseReason;
use crate::policy::{Denial, Message};
use crate::relay::codec::Codec as _;
use crate::util::clip::clip;

const TO_BROKER: Direction = Direction::ToBroker;

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
                let mut packet = Vec::with_capacity(4);
                Ack::encode(PacketType::Pubcomp, ack.packet_id, version, 0, &mut packet);
                self.reply_to_sender(TO_BROKER, &packet, out);
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
        self.keep_alive.packet(now);
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
        if alias.is_some_and(|alias| alias > self.broker.max_alias) {
            return Err(violation(TO_BROKER, Some(header), Rule::TopicAlias));
        }
        let Resolved { topic, is_known } =
            self.to_broker.aliases.follow(publish.topic, alias).map_err(|error| match error {
                NoTopic::NotSet => violation(TO_BROKER, Some(header), Rule::TopicAliasUnknown),
                NoTopic::AboveMaximum => violation(TO_BROKER, Some(header), Rule::TopicAlias),
            })?;
        let response_topic = publish.properties.response_topic();
        let message = Message { topic, qos: publish.qos, retain: publish.retain, payload_len, response_topic };
        let (mut denied, mut is_allowed) = (None, true);
        if let Err((limit, topic)) = self.rules.check_topics(topic, response_topic) {
            self.rules.count_exceeded(limit, topic, &self.info);
            let detail = || format!("`{}`: {}", clip(topic), Denial::TopicName.label());
            denied = Some((Denial::TopicName, self.rules.if_denial_ends(detail)));
        } else if let Some(topics) = &self.rules.topics {
            let (mut decision, schema) = topics.publish(&message);
            if let Some(schema) = schema {
                match payload {
                    None if payload_len > 0 => {
                        // It grows with what arrives, not with what is announced.
                        let mut collected = Vec::with_capacity(head.bytes.len() * 2);
                        collected.extend_from_slice(head.bytes);
                        self.to_broker.head = collected;
                        return self.begin_payload(TO_BROKER, payload_len, PayloadMode::Collect, now, out);
                    }
                    payload if schema.accepts(payload.unwrap_or_default()) => {}
                    _ => decision.result = Err(Denial::Schema),
                }
            }
            match decision.result {
                Ok(()) => self.to_broker.tally.allowed(topics, Action::Publish, decision.rule),
                Err(denial) => {
                    is_allowed = false;
                    let subject = message.subject(denial);
                    topics.count(Action::Publish, decision, subject, &self.info);
                    if !topics.is_shadow() {
                        denied = Some((denial, self.rules.if_denial_ends(|| topics.explain(decision, subject))));
                    }
                }
            }
        }
        if let Some((denial, ending)) = denied {
            return self.deny(publish, denial, ending, (payload_len, payload), now, out);
        }
        let prefix = &*self.rules.mountpoint;
        let is_renamed = !prefix.is_empty() && (!publish.topic.is_empty() || response_topic.is_some());
        let is_stamped = self.version == Version::V5 && !self.rules.stamps.is_empty();
        if is_renamed || is_stamped || !is_known {
            // The broker needs the topic, unless it knows the alias.
            let (prefix, topic) = if publish.topic.is_empty() && is_known { ("", "") } else { (prefix, topic) };
            let is_written = SCRATCH.with_borrow_mut(|scratch| {
                let properties = self.rules.stamp(&publish.properties, scratch);
                let publish = Publish { topic, properties, ..*publish };
                out.write_head(&publish, prefix, payload_len, self.version, self.broker.max_packet)
            });
            if !is_written {
                // The client cannot know what the gateway adds.
                self.rules.count_exceeded(Limit::PacketSize, topic, &self.info);
                let denial = Denial::PacketSize;
                let ending = self.rules.if_denial_ends(|| format!("`{}`: {}", clip(topic), denial.label()));
                return self.deny(publish, denial, ending, (payload_len, payload), now, out);
            }
        } else {
            out.pass(head);
            // A payload that was looked at says nothing about the next one.
            let is_decided_by_head = is_allowed && payload.is_none();
            self.to_broker.is_passed_as_it_is = publish.qos == 0 && alias.is_none() && is_decided_by_head;
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
            return self.end_payload(TO_BROKER, PayloadMode::Pass, now, out);
        }
        self.begin_payload(TO_BROKER, payload_len, PayloadMode::Pass, now, out)
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

    /// Denies a PUBLISH. `ending`: if that ends the session, what happened. `payload`: its length, and itself if it was
    /// collected.
    fn deny(
        &mut self,
        publish: &Publish<'_>,
        denial: Denial,
        ending: Option<String>,
        (payload_len, payload): (usize, Option<&[u8]>),
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        if let Some(detail) = ending {
            return Err(Ending::new(CloseReason::TopicDenied, denial.disconnect(), format!("publish to {detail}")));
        }
        // The broker may hold a message of QoS 2 that is sent again: from before a reload, or from an earlier connection. It has
        // to get PUBREL, or it would take the next message of this identifier for this one [MQTT-4.3.3-10].
        let is_perhaps_held = publish.dup && publish.qos == 2;
        let has_code = self.version == Version::V5 && !is_perhaps_held;
        let code = if has_code { denial.ack_code() } else { 0 };
        self.to_broker.ack = publish.packet_id.map(|packet_id| {
            let packet_type = if publish.qos == 1 { PacketType::Puback } else { PacketType::Pubrec };
            PendingAck { packet_type, packet_id, code }
        });
        if publish.qos == 2 && code == 0 && !is_perhaps_held {
            // Without a code the exchange goes on to its end; a code ends it [MQTT-4.3.3-4].
            publish.packet_id.into_iter().for_each(|id| self.to_broker.acknowledged.insert(id));
        }
        self.ping(now, out);
        let left = if payload.is_some() { 0 } else { payload_len };
        self.begin_payload(TO_BROKER, left, PayloadMode::Drop, now, out)
    }

    /// Whether the broker may be sent a PINGREQ: it has accepted the client.
    pub(super) fn may_ping(&self) -> bool {
        self.broker.has_answered && self.is_between_packets_to_broker()
    }

    /// A packet is withheld from the broker, which would think after a while that the client is gone.
    pub(super) fn ping(&mut self, now: Instant, out: &mut Out<'_, '_>) {
        if self.may_ping() && self.keep_alive.take_ping(now) {
            out.write().extend_from_slice(&portcullis_wire::PINGREQ);
        }
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
                properties.copy_without(&disconnect.properties, &[PropertyId::SessionExpiryInterval]);
                properties.push_session_expiry_interval(max);
                Reasoned { code: disconnect.code, properties: properties.as_properties() }
                    .encode_disconnect(out.write());
            }
        }
        Ok(())
    }
}
