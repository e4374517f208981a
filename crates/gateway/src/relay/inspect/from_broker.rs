//! Packets of the broker. Enters: each, once its head is complete. Leaves: it, perhaps changed, for the client; or an answer
//! to the broker, if the client may not receive it.

use std::cell::RefCell;
use std::num::NonZeroU16;

use portcullis_wire::{
    Ack, Disconnect, FixedHeader, Packet, PacketType, Properties, PropertiesBuf, PropertyId, Publish, PublishStart,
    Reasoned, Rule, Sender, Suback, Version, encode_with_id,
};
use tokio::time::Instant;

use super::aliases::{NoTopic, Resolved};
use super::out::{Out, Piece};
use super::subscriptions::WrongNumberOfCodes;
use super::{Direction, Ending, Inspect, PayloadMode, PendingAck, too_large, violation};
use crate::observe::Action;
use crate::outcome::CloseReason;

const TO_CLIENT: Direction = Direction::ToClient;

thread_local! {
    static SCRATCH: RefCell<PropertiesBuf> = RefCell::default();
}

impl Inspect {
    /// Decides about a packet of the broker.
    pub(super) fn packet_from_broker(
        &mut self,
        header: FixedHeader,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        if header.packet_type == PacketType::Connack {
            return self.connack(header, head, now, out);
        }
        let (version, malformed) = (self.version, |error| violation(TO_CLIENT, Some(header), error));
        if header.packet_type == PacketType::Publish && self.broker.has_answered {
            // What the broker passes on is another client's fault: it must not end this session.
            return match Publish::decode(head.bytes, header, version, Sender::Server) {
                Ok(publish) => self.deliver(&publish, header, head, now, out),
                Err(error) => {
                    if PublishStart::read(head.bytes, header).is_none_or(|start| start.has_topic) {
                        // It may set an alias. A later delivery by that alias would be judged, and delivered, by the topic
                        // that the alias stood for before.
                        self.to_client.aliases.forget();
                    }
                    self.withhold_malformed(header, head, &error.to_string(), now, out)
                }
            };
        }
        let packet = Packet::decode(head.bytes, header, version, Sender::Server).map_err(malformed)?;
        // Before CONNACK there are only AUTH and DISCONNECT.
        if !self.broker.has_answered && !matches!(packet, Packet::Auth(_) | Packet::Disconnect(_)) {
            return Err(violation(TO_CLIENT, Some(header), Rule::WrongSender));
        }
        match packet {
            Packet::Ack(ack) => self.acknowledged(&ack, head, out),
            Packet::Suback(suback) => return self.answered(header, &suback, head, out),
            Packet::Unsuback(unsuback) => return self.answered(header, &unsuback, head, out),
            Packet::Auth(_) if header.packet_len() > self.client.max_packet => {
                return Err(too_large(header, self.client.max_packet));
            }
            Packet::Pingresp if self.keep_alive.consume_own_ping() => {}
            Packet::Disconnect(disconnect) => {
                self.disconnected.get_or_insert(TO_CLIENT);
                self.to_client.is_over = true;
                if header.packet_len() <= self.client.max_packet {
                    out.pass(head);
                } else if self.client.max_packet >= Disconnect::PACKET_LEN {
                    // What is only informative is left out [MQTT-3.14.2-3].
                    Reasoned { properties: Properties::default(), ..disconnect }.encode_disconnect(out.write());
                }
            }
            _ => out.pass(head),
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        publish: &Publish<'_>,
        header: FixedHeader,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let payload_len = header.packet_len() - head.bytes.len();
        let alias = publish.properties.topic_alias();
        let Resolved { topic, is_known } = match self.to_client.aliases.follow(publish.topic, alias) {
            Ok(resolved) => resolved,
            // Perhaps a message that was too large set it.
            Err(NoTopic::NotSet) => {
                return self.withhold_malformed(header, head, "a topic alias that nothing has set", now, out);
            }
            Err(NoTopic::AboveMaximum) => {
                return self.withhold_malformed(header, head, "the topic alias is above the maximum", now, out);
            }
        };
        // Outside of the client's topic space there is nothing for it.
        let own = topic.strip_prefix(&*self.rules.mountpoint).filter(|topic| !topic.is_empty());
        // With the mountpoint in front, the broker's wildcards match what begins with `$`, too [MQTT-4.7.2-1].
        let is_own = |topic: &&str| {
            !topic.starts_with('$') || self.rules.mountpoint.is_empty() || self.subscriptions.names(topic)
        };
        let own = own.filter(is_own);
        let mut is_shadowed = false;
        let is_allowed = own.is_some_and(|topic| match &self.rules.topics {
            None => true,
            Some(topics) => {
                let decision = topics.receive(topic);
                if decision.result.is_ok() {
                    self.to_client.tally.allowed(topics, Action::Deliver, decision.rule);
                    return true;
                }
                topics.count(Action::Deliver, decision, topic, &self.info);
                is_shadowed = true;
                topics.is_shadow()
            }
        });
        let Some(topic) = own.filter(|_| is_allowed) else {
            return self.withhold_delivery(publish.qos, publish.packet_id, payload_len, now, out);
        };
        let mountpoint = &*self.rules.mountpoint;
        let has_mountpoint = !mountpoint.is_empty();
        let response_topic = publish.properties.response_topic().filter(|_| has_mountpoint);
        if has_mountpoint && (!publish.topic.is_empty() || response_topic.is_some()) || !is_known {
            let topic = if publish.topic.is_empty() && is_known { "" } else { topic };
            let is_written = SCRATCH.with_borrow_mut(|scratch| {
                let properties = match response_topic {
                    Some(response) => own_response_topic(mountpoint, &publish.properties, response, scratch),
                    None => publish.properties,
                };
                let publish = Publish { topic, properties, ..*publish };
                out.write_head(&publish, "", payload_len, self.version, self.client.max_packet)
            });
            if !is_written {
                // As if it had been sent [MQTT-3.1.2-25].
                return self.withhold_delivery(publish.qos, publish.packet_id, payload_len, now, out);
            }
        } else if header.packet_len() > self.client.max_packet {
            // With a mountpoint, the broker was told a larger maximum.
            return self.withhold_delivery(publish.qos, publish.packet_id, payload_len, now, out);
        } else {
            out.pass(head);
            self.to_client.is_passed_as_it_is = publish.qos == 0 && alias.is_none() && !is_shadowed;
        }
        if let Some(alias) = alias {
            self.to_client.aliases.mark_known(alias);
        }
        if let (2, Some(id)) = (publish.qos, publish.packet_id) {
            self.to_client.acknowledged.remove(id);
        }
        self.begin_payload(TO_CLIENT, payload_len, PayloadMode::Pass, now, out)
    }

    /// The client does not get a message that cannot be judged. `head`: all of its head, or what precedes the properties.
    pub(super) fn withhold_malformed(
        &mut self,
        header: FixedHeader,
        head: Piece<'_>,
        why: &str,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        tracing::debug!(connection = self.info.id, why, "a delivery is withheld: it is malformed, or too large");
        match PublishStart::read(head.bytes, header) {
            Some(PublishStart { qos, packet_id, .. }) if qos == 0 || packet_id.is_some() => {
                self.withhold_delivery(qos, packet_id, header.packet_len() - head.bytes.len(), now, out)
            }
            // It cannot be acknowledged [MQTT-2.2.1-3].
            _ => Err(violation(TO_CLIENT, Some(header), Rule::PacketIdZero)),
        }
    }

    /// The client does not get a message. The broker gets the acknowledgement, so that it does not wait for one.
    fn withhold_delivery(
        &mut self,
        qos: u8,
        packet_id: Option<NonZeroU16>,
        payload_len: usize,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        self.to_client.ack = packet_id.map(|packet_id| {
            let packet_type = if qos == 1 { PacketType::Puback } else { PacketType::Pubrec };
            PendingAck { packet_type, packet_id, code: 0 }
        });
        if qos == 2 {
            packet_id.into_iter().for_each(|id| self.to_client.acknowledged.insert(id));
        }
        self.begin_payload(TO_CLIENT, payload_len, PayloadMode::Drop, now, out)
    }

    fn acknowledged(&mut self, ack: &Ack<'_>, head: Piece<'_>, out: &mut Out<'_, '_>) {
        if ack.packet_type == PacketType::Pubrel && self.to_client.acknowledged.remove(ack.packet_id) {
            let mut packet = Vec::with_capacity(4);
            Ack::encode(PacketType::Pubcomp, ack.packet_id, self.version, 0, &mut packet);
            return self.reply_to_sender(TO_CLIENT, &packet, out);
        }
        if head.bytes.len() <= self.client.max_packet {
            return out.pass(head);
        }
        // What is only informative is left out [MQTT-3.4.2-2]. The rest is no larger than CONNACK was.
        Ack::encode(ack.packet_type, ack.packet_id, self.version, ack.code, out.write());
    }

    /// SUBACK or UNSUBACK: the codes are put together with those of the gateway.
    fn answered(
        &mut self,
        header: FixedHeader,
        answer: &Suback<'_>,
        head: Piece<'_>,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let (packet_type, mut codes) = (header.packet_type, Vec::new());
        let is_unsuback = packet_type == PacketType::Unsuback;
        let has_codes = !is_unsuback || self.version == Version::V5;
        let of_broker = has_codes.then_some(answer.codes);
        let differs = self.subscriptions.answered(answer.packet_id, is_unsuback, of_broker, &mut codes);
        let differs = differs.map_err(|WrongNumberOfCodes { filters }| {
            let detail = format!("{packet_type:?}: {} codes for {filters} filters", answer.codes.len());
            Ending { detail: Some(detail.into()), ..CloseReason::UpstreamViolation.into() }
        })?;
        let fits = header.packet_len() <= self.client.max_packet;
        if fits && (!differs || !has_codes) {
            out.pass(head);
            return Ok(());
        }
        let start = out.write().len();
        encode_with_id(packet_type, answer.packet_id, self.version, &answer.properties, &codes, out.write());
        if out.write().len() - start > self.client.max_packet {
            // A packet that the client does not accept is not sent [MQTT-3.1.2-24]; without what is only informative it may
            // be small enough.
            out.write().truncate(start);
            let none = Properties::default();
            encode_with_id(packet_type, answer.packet_id, self.version, &none, &codes, out.write());
            if out.write().len() - start > self.client.max_packet {
                out.write().truncate(start);
            }
        }
        Ok(())
    }
}

/// The properties with the response topic as the client names it; without it, if it is outside of its topic space.
fn own_response_topic<'a>(
    mountpoint: &str,
    properties: &Properties<'a>,
    response: &str,
    scratch: &'a mut PropertiesBuf,
) -> Properties<'a> {
    scratch.copy_without(properties, &[PropertyId::ResponseTopic]);
    if let Some(own) = response.strip_prefix(mountpoint).filter(|own| !own.is_empty()) {
        scratch.push_response_topic("", own);
    }
    scratch.as_properties()
}
