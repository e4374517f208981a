//! The packets after CONNECT and CONNACK, decoded into views of the received bytes.
//!
//! Decoding has two steps, so that a payload is never collected and no byte is read twice: [`head_len`] says how many bytes
//! have to arrive first, [`Packet::decode`] reads them. The head of a PUBLISH ends where its payload begins; other packets
//! are all head.

use std::num::NonZeroU16;

use crate::frame::{FixedHeader, PacketType};
use crate::property::{Owner, Properties};
use crate::reader::{Reader, put_field, put_varint, varint, varint_len};
use crate::subscription::{Suback, Subscribe, Unsubscribe};
use crate::{Error, Rule, Version};

/// Who has sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The client.
    Client,
    /// The broker. Its reason codes are not checked: nothing is decided by them, and a receiver can do nothing about them.
    Server,
}

/// A packet after CONNECT and CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A message, without its payload.
    Publish(Publish<'a>),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Ack(Ack<'a>),
    /// SUBSCRIBE.
    Subscribe(Subscribe<'a>),
    /// SUBACK.
    Suback(Suback<'a>),
    /// UNSUBSCRIBE.
    Unsubscribe(Unsubscribe<'a>),
    /// UNSUBACK.
    Unsuback(Suback<'a>),
    /// PINGREQ.
    Pingreq,
    /// PINGRESP.
    Pingresp,
    /// DISCONNECT.
    Disconnect(Reasoned<'a>),
    /// AUTH.
    Auth(Reasoned<'a>),
}

/// PUBLISH [MQTT-3.3], without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Whether it may have been sent before.
    pub dup: bool,
    /// The quality of service: 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker retains the message; to a client: whether it was retained.
    pub retain: bool,
    /// The topic name; empty if a topic alias stands for it.
    pub topic: &'a str,
    /// The packet identifier, from QoS 1 on.
    pub packet_id: Option<NonZeroU16>,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
}

/// PUBACK [MQTT-3.4], PUBREC [MQTT-3.5], PUBREL [MQTT-3.6] or PUBCOMP [MQTT-3.7].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Which of them.
    pub packet_type: PacketType,
    /// The packet identifier of the PUBLISH.
    pub packet_id: NonZeroU16,
    /// The reason code; 0 before MQTT 5.
    pub code: u8,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
}

/// DISCONNECT [MQTT-3.14] or AUTH [MQTT-3.15].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reasoned<'a> {
    /// The reason code; 0 before MQTT 5.
    pub code: u8,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
}

/// How many bytes of the packet have to arrive before it can be decoded, fixed header included: all but the payload of a
/// PUBLISH. `None`: that is not known yet. Takes the same few steps whatever the packet's size, so that it may be asked
/// whenever bytes arrive.
///
/// # Errors
/// The packet is malformed: its head would be longer than the packet.
#[inline]
pub fn head_len(bytes: &[u8], header: FixedHeader, version: Version) -> Result<Option<usize>, Error> {
    if header.packet_type != PacketType::Publish {
        return Ok(Some(header.packet_len()));
    }
    let within = |len: usize| if len <= header.packet_len() { Ok(len) } else { Err(Error::from(Rule::PacketLength)) };
    let topic = within(header.len + 2)?;
    let Some([high, low]) = bytes.get(header.len..topic) else { return Ok(None) };
    let packet_id = if header.flags & flag::QOS == 0 { 0 } else { 2 };
    let end = within(topic + usize::from(u16::from_be_bytes([*high, *low])) + packet_id)?;
    if version != Version::V5 {
        return Ok(Some(end));
    }
    within(end + 1)?;
    let arrived = bytes.get(..header.packet_len()).unwrap_or(bytes);
    match arrived.get(end..).map(varint).transpose()?.flatten() {
        Some((len, len_bytes)) => within(end + len_bytes + len as usize).map(Some),
        None if arrived.len() == header.packet_len() => Err(Rule::PacketLength.into()),
        None => Ok(None),
    }
}

/// What precedes the properties of a PUBLISH. It is enough to acknowledge a packet that is malformed behind it, or too large:
/// the topic is not validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishStart {
    /// Its length in bytes, fixed header included.
    pub len: usize,
    /// Whether there is a topic, and not an alias in its place.
    pub has_topic: bool,
    /// 0 to 2.
    pub qos: u8,
    /// The packet identifier; `None`: QoS 0, or the identifier is 0.
    pub packet_id: Option<NonZeroU16>,
}

impl PublishStart {
    /// Reads the start of a PUBLISH. `None`: not all of it has arrived.
    pub fn read(bytes: &[u8], header: FixedHeader) -> Option<Self> {
        let qos = (header.flags & flag::QOS) >> flag::QOS_SHIFT;
        let [high, low] = bytes.get(header.len..header.len + 2)? else { return None };
        let topic_len = usize::from(u16::from_be_bytes([*high, *low]));
        let topic_end = header.len + 2 + topic_len;
        if qos == 0 {
            return Some(Self { len: topic_end, has_topic: topic_len > 0, qos, packet_id: None });
        }
        let [high, low] = bytes.get(topic_end..topic_end + 2)? else { return None };
        let packet_id = NonZeroU16::new(u16::from_be_bytes([*high, *low]));
        Some(Self { len: topic_end + 2, has_topic: topic_len > 0, qos, packet_id })
    }
}

mod flag {
    pub(super) const RETAIN: u8 = 0x01;
    pub(super) const QOS: u8 = 0x06;
    pub(super) const QOS_SHIFT: u8 = 1;
    pub(super) const DUP: u8 = 0x08;
}

impl<'a> Packet<'a> {
    /// Checks what the fixed header shows: whether the sender may send the packet at all, and its flags.
    ///
    /// # Errors
    /// The first rule that it breaks.
    #[inline]
    pub fn check_header(header: FixedHeader, version: Version, sender: Sender) -> Result<(), Error> {
        use PacketType as T;
        let is_by = match header.packet_type {
            T::Connect => {
                return Err(if sender == Sender::Client { Rule::SecondConnect } else { Rule::WrongSender }.into());
            }
            T::Connack => None,
            T::Subscribe | T::Unsubscribe | T::Pingreq => Some(Sender::Client),
            T::Suback | T::Unsuback | T::Pingresp => Some(Sender::Server),
            // Before MQTT 5, only clients disconnect.
            T::Disconnect if version != Version::V5 => Some(Sender::Client),
            T::Auth if version != Version::V5 => return Err(Rule::PacketTypeReserved.into()),
            _ => Some(sender),
        };
        if is_by != Some(sender) {
            return Err(Rule::WrongSender.into());
        }
        let are_valid = match (header.packet_type, header.flags) {
            (T::Publish, flags) => {
                let qos = flags & flag::QOS;
                if qos == flag::QOS {
                    return Err(Rule::PublishQos.into());
                }
                // MQTT 3.1 does not forbid it.
                if qos == 0 && flags & flag::DUP != 0 && version != Version::V31 {
                    return Err(Rule::DupAtQos0.into());
                }
                true
            }
            (T::Pubrel | T::Subscribe | T::Unsubscribe, flags) => {
                // MQTT 3.1 sends these packets again, with DUP.
                flags == 2 || version == Version::V31 && flags == 2 | flag::DUP
            }
            (_, flags) => flags == 0,
        };
        if !are_valid {
            return Err(Rule::FixedHeaderFlags.into());
        }
        // Only MQTT 5 forbids a length that is encoded in more bytes than necessary.
        if version == Version::V5 && !header.is_shortest() {
            return Err(Rule::RemainingLength.into());
        }
        Ok(())
    }

    /// Decodes a packet whose header was checked. `head`: its first [`head_len`] bytes.
    ///
    /// # Errors
    /// The first rule that the packet breaks.
    pub fn decode(head: &'a [u8], header: FixedHeader, version: Version, sender: Sender) -> Result<Self, Error> {
        let mut reader = Reader::new(head.get(header.len..).unwrap_or_default());
        let reader = &mut reader;
        let packet = match header.packet_type {
            PacketType::Publish => Packet::Publish(Publish::read(reader, header.flags, version, sender)?),
            PacketType::Puback | PacketType::Pubrec | PacketType::Pubrel | PacketType::Pubcomp => {
                Packet::Ack(Ack::decode(reader, header.packet_type, version, sender)?)
            }
            PacketType::Subscribe => Packet::Subscribe(Subscribe::decode(reader, version)?),
            PacketType::Suback => Packet::Suback(Suback::decode(reader, version)?),
            PacketType::Unsubscribe => Packet::Unsubscribe(Unsubscribe::decode(reader, version)?),
            PacketType::Unsuback => Packet::Unsuback(Suback::decode_unsuback(reader, version)?),
            PacketType::Pingreq => Packet::Pingreq,
            PacketType::Pingresp => Packet::Pingresp,
            PacketType::Disconnect => Packet::Disconnect(Reasoned::decode_disconnect(reader, version, sender)?),
            PacketType::Auth => Packet::Auth(Reasoned::decode_auth(reader, sender)?),
            PacketType::Connect | PacketType::Connack => return Err(Rule::WrongSender.into()),
        };
        if reader.is_empty() { Ok(packet) } else { Err(Rule::TrailingBytes.into()) }
    }
}

impl<'a> Publish<'a> {
    /// As [`Packet::decode`] of a PUBLISH, without a detour: of all packets, there are most of these.
    ///
    /// # Errors
    /// The first rule that the packet breaks.
    #[inline]
    pub fn decode(head: &'a [u8], header: FixedHeader, version: Version, sender: Sender) -> Result<Self, Error> {
        let mut reader = Reader::new(head.get(header.len..).unwrap_or_default());
        let publish = Self::read(&mut reader, header.flags, version, sender)?;
        if reader.is_empty() { Ok(publish) } else { Err(Rule::TrailingBytes.into()) }
    }

    #[inline]
    fn read(reader: &mut Reader<'a>, flags: u8, version: Version, sender: Sender) -> Result<Self, Error> {
        let qos = (flags & flag::QOS) >> flag::QOS_SHIFT;
        // An empty topic name is one for which an alias stands, in MQTT 5.
        let is_aliased = version == Version::V5 && reader.starts_with_empty_field();
        let topic = if is_aliased { reader.string()? } else { reader.topic_name()? };
        let packet_id = if qos == 0 { None } else { Some(reader.packet_id()?) };
        let properties = match (version, sender) {
            (Version::V5, Sender::Client) => Properties::decode(reader, Owner::ClientPublish)?,
            (Version::V5, Sender::Server) => Properties::decode(reader, Owner::ServerPublish)?,
            _ => Properties::default(),
        };
        if topic.is_empty() && properties.topic_alias().is_none() {
            return Err(Rule::TopicAliasUnknown.into());
        }
        Ok(Self { dup: flags & flag::DUP != 0, qos, retain: flags & flag::RETAIN != 0, topic, packet_id, properties })
    }

    /// The length of the packet with a payload of `payload_len` bytes and `prefix` in front of the topic.
    pub fn packet_len(&self, version: Version, prefix: &str, payload_len: usize) -> usize {
        let body = self.body_len(version, prefix, payload_len);
        1 + varint_len(u32::try_from(body).unwrap_or(u32::MAX)) + body
    }

    /// Appends the head of the packet to `out`, with `prefix` in front of the topic. Before that, the caller checks that the
    /// topic has at most 65,535 bytes, and the packet no more than the protocol can express.
    pub fn encode_head(&self, version: Version, prefix: &str, payload_len: usize, out: &mut Vec<u8>) {
        let dup = if self.dup { flag::DUP } else { 0 };
        out.push((PacketType::Publish as u8) << 4 | dup | self.qos << flag::QOS_SHIFT | u8::from(self.retain));
        put_varint(u32::try_from(self.body_len(version, prefix, payload_len)).unwrap_or(u32::MAX), out);
        put_field([prefix.as_bytes(), self.topic.as_bytes()], out);
        if let Some(packet_id) = self.packet_id {
            out.extend_from_slice(&packet_id.get().to_be_bytes());
        }
        if version == Version::V5 {
            self.properties.encode(out);
        }
    }

    fn body_len(&self, version: Version, prefix: &str, payload_len: usize) -> usize {
        let packet_id = if self.packet_id.is_some() { 2 } else { 0 };
        let properties = if version == Version::V5 { self.properties.encoded_len() } else { 0 };
        2 + prefix.len() + self.topic.len() + packet_id + properties + payload_len
    }
}

impl<'a> Ack<'a> {
    fn decode(
        reader: &mut Reader<'a>,
        packet_type: PacketType,
        version: Version,
        sender: Sender,
    ) -> Result<Self, Error> {
        let packet_id = reader.packet_id()?;
        let (code, properties) = code_and_properties(reader, version, Owner::Acknowledgement)?;
        let is_known = match packet_type {
            PacketType::Puback | PacketType::Pubrec => {
                matches!(code, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            _ => matches!(code, 0x00 | 0x92),
        };
        if !is_known && sender == Sender::Client {
            return Err(Rule::ReasonCode.into());
        }
        Ok(Self { packet_type, packet_id, code, properties })
    }

    /// The packet with this code, without properties: 4 bytes, in MQTT 5 with another code than 0 5 bytes.
    pub fn encode(packet_type: PacketType, packet_id: NonZeroU16, version: Version, code: u8, out: &mut Vec<u8>) {
        let flags = if packet_type == PacketType::Pubrel { 2 } else { 0 };
        let has_code = version == Version::V5 && code != 0;
        out.extend_from_slice(&[(packet_type as u8) << 4 | flags, if has_code { 3 } else { 2 }]);
        out.extend_from_slice(&packet_id.get().to_be_bytes());
        if has_code {
            out.push(code);
        }
    }
}

impl<'a> Reasoned<'a> {
    fn decode_disconnect(reader: &mut Reader<'a>, version: Version, sender: Sender) -> Result<Self, Error> {
        if reader.is_empty() {
            return Ok(Self { code: 0, properties: Properties::default() });
        }
        let (code, properties) = code_and_properties(reader, version, Owner::Disconnect)?;
        let is_known = matches!(code, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99);
        if !is_known && sender == Sender::Client {
            return Err(Rule::ReasonCode.into());
        }
        // Only a client may change how long its session is kept [MQTT-3.14.2-2].
        if sender == Sender::Server && properties.session_expiry_interval().is_some() {
            return Err(Rule::SessionExpiry.into());
        }
        Ok(Self { code, properties })
    }

    fn decode_auth(reader: &mut Reader<'a>, sender: Sender) -> Result<Self, Error> {
        if reader.is_empty() {
            // The code is 0, which only servers send [MQTT-3.15.2-1].
            return match sender {
                Sender::Client => Err(Rule::ReasonCode.into()),
                Sender::Server => Ok(Self { code: 0, properties: Properties::default() }),
            };
        }
        let (code, properties) = code_and_properties(reader, Version::V5, Owner::Auth)?;
        if properties.authentication_method().is_none() {
            return Err(Rule::AuthMethodMissing.into());
        }
        if !matches!(code, 0x18 | 0x19) && sender == Sender::Client {
            return Err(Rule::ReasonCode.into());
        }
        Ok(Self { code, properties })
    }

    /// Appends a DISCONNECT of MQTT 5 to `out`.
    pub fn encode_disconnect(&self, out: &mut Vec<u8>) {
        out.push((PacketType::Disconnect as u8) << 4);
        put_varint(u32::try_from(1 + self.properties.encoded_len()).unwrap_or(u32::MAX), out);
        out.push(self.code);
        self.properties.encode(out);
    }
}

/// In MQTT 5 a reason code and properties, both of which may be left out at the end [MQTT-3.4.2.1].
fn code_and_properties<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    owner: Owner,
) -> Result<(u8, Properties<'a>), Error> {
    if version != Version::V5 || reader.is_empty() {
        return Ok((0, Properties::default()));
    }
    let code = reader.u8()?;
    let properties = if reader.is_empty() { Properties::default() } else { Properties::decode(reader, owner)? };
    Ok((code, properties))
}
