//! CONNACK: what the broker limits from now on, and what the client is told of the gateway's limits.

use portcullis_wire::{Connack, Disconnect, FixedHeader, Properties, PropertiesBuf, Refusal, Terms, Version};
use tokio::time::Instant;

use super::out::{Out, Piece};
use super::{Broker, Direction, Ending, Inspect, max_packet, violation};
use crate::outcome::CloseReason;
use crate::policy::MAX_TOPIC_ALIASES;

const TO_CLIENT: Direction = Direction::ToClient;

impl Inspect {
    /// The length of a CONNACK without properties.
    const SMALLEST: usize = 5;

    /// Takes CONNACK, and lowers the limits in it to the gateway's.
    pub(super) fn connack(
        &mut self,
        header: FixedHeader,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        let decoded = Connack::decode(head.bytes, self.version, usize::MAX);
        let decoded = decoded.map_err(|error| violation(TO_CLIENT, Some(header), error))?;
        let Some((connack, _)) = decoded else { return Ok(()) };
        if connack.code != 0 {
            // The broker closes the connection, and the client gets no other answer.
            self.to_client.replies = Vec::new();
            self.to_client.is_over = true;
            if header.packet_len() <= self.client.max_packet {
                out.pass(head);
            } else if Self::SMALLEST <= self.client.max_packet {
                // What is only informative is left out [MQTT-3.2.2-19].
                Connack { properties: Properties::default(), ..connack }.encode(self.version, out.write());
            }
            return Ok(());
        }
        let fits = header.packet_len() <= self.client.max_packet;
        if self.version != Version::V5 {
            out.pass(head);
        } else if let Some(told) = self.adjusted(&connack).or_else(|| (!fits).then(|| copy_of(&connack.properties))) {
            let mut packet = Vec::new();
            Connack { properties: told.as_properties(), ..connack }.encode(self.version, &mut packet);
            if packet.len() > self.client.max_packet {
                let mut short = PropertiesBuf::default();
                let told = told.as_properties();
                told.iter().filter(|property| !property.is_informative()).for_each(|property| short.push(property));
                packet.clear();
                Connack { properties: short.as_properties(), ..connack }.encode(self.version, &mut packet);
            }
            if packet.len() > self.client.max_packet {
                // A client that cannot be told what applies cannot be served [MQTT-3.1.2-24].
                let detail = format!("Connack: {} bytes, more than the client accepts", packet.len());
                return Err(Ending::new(CloseReason::PacketTooLarge, Disconnect::PacketTooLarge, detail));
            }
            out.write().extend_from_slice(&packet);
        } else {
            out.pass(head);
        }
        self.accepted(&connack.properties, now);
        self.flush_replies(TO_CLIENT, out);
        Ok(())
    }

    /// The broker has accepted the client, which is told so.
    fn accepted(&mut self, properties: &Properties<'_>, now: Instant) {
        self.max_packet = max_packet(&self.rules);
        // A client need not send anything before it has CONNACK: its keep-alive counts from here.
        self.keep_alive.packet(now);
        self.broker = Broker {
            has_answered: true,
            max_packet: properties.maximum_packet_size().map_or(usize::MAX, |size| size as usize),
            max_qos: properties.maximum_qos().unwrap_or(2),
            has_retain: properties.retain_available() != Some(0),
            max_alias: properties.topic_alias_maximum().unwrap_or(0).min(MAX_TOPIC_ALIASES),
        };
    }

    /// The session ends because of what the broker has sent. If that is CONNACK, or is in its place, the client gets a CONNACK,
    /// since no DISCONNECT may precede it [MQTT-3.14.0-1].
    pub(super) fn refuse(&self, ending: Ending, out: &mut Out<'_, '_>) -> Ending {
        if self.broker.has_answered {
            return ending;
        }
        let refusal = match ending.disconnect {
            Some(Disconnect::PacketTooLarge) => Refusal::PacketTooLarge,
            _ => Refusal::ServerUnavailable,
        };
        let mut packet = Vec::with_capacity(8);
        if let Some(code) = refusal.code(self.version) {
            Connack::refusal(code).encode(self.version, &mut packet);
        }
        if packet.len() <= self.client.max_packet {
            out.write().extend_from_slice(&packet);
        }
        Ending { disconnect: None, ..ending }
    }

    /// The properties of CONNACK for the client; `None`: as they are. Sets the keep-alive that applies.
    fn adjusted(&mut self, connack: &Connack<'_>) -> Option<PropertiesBuf> {
        let (limits, properties) = (&self.rules.limits, &connack.properties);
        let wanted = properties.server_keep_alive().unwrap_or(self.client.keep_alive);
        let keep_alive = self.rules.keep_alive(wanted);
        self.keep_alive.set(keep_alive, limits.max_keep_alive.is_some());
        let of_broker = Terms::of(properties);
        // What the gateway adds to a packet counts for the broker, but not for the client.
        let max_packet = of_broker.maximum_packet_size.map(|size| size.saturating_sub(self.growth()).max(1));
        let max_expiry = limits.max_session_expiry.unwrap_or(u32::MAX);
        let expiry = of_broker.session_expiry_interval.map(|seconds| seconds.min(max_expiry));
        let terms = Terms {
            server_keep_alive: if keep_alive == wanted { of_broker.server_keep_alive } else { Some(keep_alive) },
            maximum_packet_size: max_packet.into_iter().chain(limits.max_packet_size).min(),
            topic_alias_maximum: of_broker.topic_alias_maximum.map(|maximum| maximum.min(MAX_TOPIC_ALIASES)),
            session_expiry_interval: expiry.or(self.client.lowered_expiry),
        };
        if terms == of_broker {
            return None;
        }
        let mut rewritten = PropertiesBuf::default();
        rewritten.copy_with(properties, terms);
        Some(rewritten)
    }

    /// The most that the gateway adds to a PUBLISH, in bytes.
    fn growth(&self) -> u32 {
        // Each property has an identifier and two lengths; lengths in front of the whole may grow, too.
        let stamps: usize = self.rules.stamps.iter().map(|(name, value)| name.len() + value.len() + 5).sum();
        let mountpoint = self.rules.mountpoint.len() * 2;
        match stamps + mountpoint {
            0 => 0,
            growth => u32::try_from(growth + 6).unwrap_or(u32::MAX),
        }
    }
}

fn copy_of(properties: &Properties<'_>) -> PropertiesBuf {
    let mut copy = PropertiesBuf::default();
    copy.copy_without(properties, &[]);
    copy
}
