//! CONNECT: decoded into a view of the client's bytes, changed by assignment, encoded again. What was not assigned is
//! written as it came.

use std::fmt;

use crate::frame::{FixedHeader, MAX_REMAINING_LENGTH, PacketType};
use crate::property::{Owner, Properties};
use crate::reader::{Reader, put_varint};
use crate::{Error, Rule};

/// The protocol version a client speaks, as the level in CONNECT says [MQTT-3.1.2.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1, protocol name `MQIsdp`.
    V31 = 3,
    /// MQTT 3.1.1.
    V311 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

impl Version {
    const fn protocol_name(self) -> &'static [u8] {
        match self {
            Version::V31 => b"\x00\x06MQIsdp",
            Version::V311 | Version::V5 => b"\x00\x04MQTT",
        }
    }
}

/// What a reader is willing to buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest CONNECT, fixed header included, in bytes.
    pub max_packet_len: usize,
}

impl Default for Limits {
    /// No limit but the protocol's.
    fn default() -> Self {
        Self { max_packet_len: usize::MAX }
    }
}

/// The message a broker publishes for a client that is lost [MQTT-3.1.2.5].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether the message is to be retained.
    pub retain: bool,
    /// MQTT 5 will properties; empty before.
    pub properties: Properties<'a>,
    /// Where it is published; a topic name without wildcards.
    pub topic: &'a str,
    /// The message itself.
    pub payload: &'a [u8],
}

/// A CONNECT packet [MQTT-3.1]. Its fields may be assigned anything; [`Connect::encode`] judges the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The protocol version; decides how everything else is written.
    pub version: Version,
    /// Clean start, called clean session before MQTT 5 [MQTT-3.1.2.4].
    pub clean_start: bool,
    /// Seconds; 0 turns it off [MQTT-3.1.2.10].
    pub keep_alive: u16,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
    /// May be empty: see [`Connect::check_client_id`].
    pub client_id: &'a str,
    /// The will, if there is one.
    pub will: Option<Will<'a>>,
    /// The user name, if there is one; may be empty.
    pub username: Option<&'a str>,
    /// The password, if there is one; may be empty. Never printed.
    pub password: Option<&'a [u8]>,
}

mod flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN_START: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_QOS: u8 = 0x18;
    pub(super) const WILL_QOS_SHIFT: u8 = 3;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USERNAME: u8 = 0x80;
}

impl<'a> Connect<'a> {
    /// Decodes the CONNECT at the front of `bytes`: the packet and how many bytes it took. `Ok(None)`: it has not
    /// arrived whole. Bytes that can only become an error are refused as early as that is known, so that nobody has
    /// to wait, or to buffer, for a packet of a length or kind that will not be accepted.
    ///
    /// # Errors
    /// The first rule that the packet breaks; [`Error::TooLarge`] for a packet over the limit.
    pub fn decode(bytes: &'a [u8], limits: Limits) -> Result<Option<(Self, usize)>, Error> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if PacketType::of(first) != Some(PacketType::Connect) {
            return Err(Rule::FirstPacketNotConnect.into());
        }
        if first & 0x0f != 0 {
            return Err(Rule::FixedHeaderFlags.into());
        }
        let Some(header) = FixedHeader::decode(bytes)? else { return Ok(None) };
        if header.packet_len() > limits.max_packet_len {
            return Err(Error::TooLarge);
        }
        let arrived = bytes.get(header.len..).unwrap_or_default();
        let body = arrived.get(..header.remaining_length as usize);
        if !Version::is_possible(body.unwrap_or(arrived)) {
            return Err(Error::Unsupported);
        }
        let Some(body) = body else { return Ok(None) };
        let connect = Self::decode_body(&mut Reader::new(body))?;
        // Only MQTT 5 forbids a length with leading zeros.
        if connect.version == Version::V5 && !header.is_shortest() {
            return Err(Rule::RemainingLength.into());
        }
        Ok(Some((connect, header.packet_len())))
    }

    /// The version to answer a CONNECT in that is malformed, or of a version not spoken here: the one it claims, or the
    /// nearest to it [MQTT-3.1.2-2]. `None`: it does not say, or is no CONNECT.
    pub fn version_to_answer_in(bytes: &[u8]) -> Option<Version> {
        let header = FixedHeader::decode(bytes).ok()??;
        let mut reader = Reader::new(bytes.get(header.len..)?);
        if header.packet_type != PacketType::Connect {
            return None;
        }
        match (reader.binary().ok()?, reader.u8().ok()?) {
            (b"MQIsdp", _) => Some(Version::V31),
            // Bridges set the highest bit.
            (b"MQTT", level) => Some(if level & 0x7f < 5 { Version::V311 } else { Version::V5 }),
            _ => None,
        }
    }

    fn decode_body(reader: &mut Reader<'a>) -> Result<Self, Error> {
        let version = Version::decode(reader)?;
        let flags = reader.u8()?;
        check_flags(version, flags)?;
        let keep_alive = reader.u16()?;
        let properties = match version {
            Version::V5 => Properties::decode(reader, Owner::Connect)?,
            Version::V31 | Version::V311 => Properties::default(),
        };
        let client_id = reader.string()?;
        let will = (flags & flag::WILL != 0).then(|| Will::decode(reader, version, flags)).transpose()?;
        // MQTT 3.1 lets the remaining length overrule these two flags, for clients of the time before them
        // [MQTT 3.1, section 3.1, "Connect flags"].
        let is_there = |bit, reader: &Reader<'_>| flags & bit != 0 && (version != Version::V31 || !reader.is_empty());
        let username = is_there(flag::USERNAME, reader).then(|| reader.string()).transpose()?;
        let password = is_there(flag::PASSWORD, reader).then(|| reader.binary()).transpose()?;
        if !reader.is_empty() {
            return Err(Rule::TrailingBytes.into());
        }
        let clean_start = flags & flag::CLEAN_START != 0;
        Ok(Self { version, clean_start, keep_alive, properties, client_id, will, username, password })
    }

    /// Whether a broker may take this client identifier: MQTT 5 lets it be empty, 3.1.1 only for a clean session
    /// [MQTT-3.1.3-8], 3.1 never. Kept apart from decoding, since a gateway may set the identifier itself.
    ///
    /// # Errors
    /// [`Rule::ClientIdRequired`].
    pub fn check_client_id(&self) -> Result<(), Error> {
        let may_be_empty = match self.version {
            Version::V31 => false,
            Version::V311 => self.clean_start,
            Version::V5 => true,
        };
        if self.client_id.is_empty() && !may_be_empty {
            return Err(Rule::ClientIdRequired.into());
        }
        Ok(())
    }

    /// Appends the packet to `out`, flags and lengths computed anew.
    ///
    /// # Errors
    /// An assigned field cannot be written: a string with U+0000 or longer than 65,535 bytes, a password without a
    /// user name before MQTT 5, a packet larger than the protocol can express. Nothing was appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        for text in [Some(self.client_id), self.username].into_iter().flatten() {
            if text.contains('\0') {
                return Err(Rule::NullCharacter.into());
            }
        }
        if self.password.is_some() && self.username.is_none() && self.version != Version::V5 {
            return Err(Rule::PasswordWithoutUsername.into());
        }
        let fields = [Some(self.client_id.as_bytes()), self.username.map(str::as_bytes), self.password];
        let will_fields = self.will.iter().flat_map(|will| [will.topic.as_bytes(), will.payload]);
        let mut len = self.version.protocol_name().len() + 4;
        for field in fields.into_iter().flatten().chain(will_fields) {
            if field.len() > usize::from(u16::MAX) {
                return Err(Error::TooLarge);
            }
            len += 2 + field.len();
        }
        if self.version == Version::V5 {
            len += self.properties.encoded_len() + self.will.map_or(0, |will| will.properties.encoded_len());
        }
        let len = u32::try_from(len).ok().filter(|len| *len <= MAX_REMAINING_LENGTH).ok_or(Error::TooLarge)?;
        out.reserve(5 + len as usize);
        self.write(len, out);
        Ok(())
    }

    fn write(&self, remaining_length: u32, out: &mut Vec<u8>) {
        out.push((PacketType::Connect as u8) << 4);
        put_varint(remaining_length, out);
        out.extend_from_slice(self.version.protocol_name());
        out.extend_from_slice(&[self.version as u8, self.flags()]);
        out.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            self.properties.encode(out);
        }
        put_field(self.client_id.as_bytes(), out);
        if let Some(will) = self.will {
            if self.version == Version::V5 {
                will.properties.encode(out);
            }
            put_field(will.topic.as_bytes(), out);
            put_field(will.payload, out);
        }
        for field in [self.username.map(str::as_bytes), self.password].into_iter().flatten() {
            put_field(field, out);
        }
    }

    fn flags(&self) -> u8 {
        let will = self.will.map_or(0, |will| {
            flag::WILL | will.qos << flag::WILL_QOS_SHIFT | if will.retain { flag::WILL_RETAIN } else { 0 }
        });
        let set = |condition, bit| if condition { bit } else { 0 };
        will | set(self.clean_start, flag::CLEAN_START)
            | set(self.username.is_some(), flag::USERNAME)
            | set(self.password.is_some(), flag::PASSWORD)
    }
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive", &self.keep_alive)
            .field("properties", &self.properties)
            .field("client_id", &self.client_id)
            .field("will", &self.will.map(|will| will.topic))
            .field("username", &self.username)
            .field("password", &self.password.map(|_| "***"))
            .finish()
    }
}

impl Version {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let name = reader.binary()?;
        match (name, reader.u8()?) {
            (b"MQIsdp", 3) => Ok(Version::V31),
            (b"MQTT", 4) => Ok(Version::V311),
            (b"MQTT", 5) => Ok(Version::V5),
            _ => Err(Error::Unsupported),
        }
    }

    /// Whether a body that begins with `start` may still turn out to be of a known version.
    fn is_possible(start: &[u8]) -> bool {
        [Version::V31, Version::V311, Version::V5].into_iter().any(|version| {
            version.protocol_name().iter().chain([&(version as u8)]).zip(start).all(|(known, byte)| known == byte)
        })
    }
}

impl<'a> Will<'a> {
    fn decode(reader: &mut Reader<'a>, version: Version, flags: u8) -> Result<Self, Error> {
        Ok(Self {
            qos: (flags & flag::WILL_QOS) >> flag::WILL_QOS_SHIFT,
            retain: flags & flag::WILL_RETAIN != 0,
            properties: match version {
                Version::V5 => Properties::decode(reader, Owner::Will)?,
                Version::V31 | Version::V311 => Properties::default(),
            },
            topic: reader.topic_name()?,
            payload: reader.binary()?,
        })
    }
}

/// Judges the connect flags [MQTT-3.1.2.3]. MQTT 3.1 calls the lowest bit unused, and disregards will QoS and will
/// retain where there is no will.
fn check_flags(version: Version, flags: u8) -> Result<(), Error> {
    let will = flags & flag::WILL != 0;
    if will && flags & flag::WILL_QOS == flag::WILL_QOS {
        return Err(Rule::WillQos.into());
    }
    if version != Version::V31 {
        if flags & flag::RESERVED != 0 {
            return Err(Rule::ReservedConnectFlag.into());
        }
        if !will && flags & (flag::WILL_QOS | flag::WILL_RETAIN) != 0 {
            return Err(Rule::WillFlagsWithoutWill.into());
        }
    }
    if flags & flag::PASSWORD != 0 && flags & flag::USERNAME == 0 && version != Version::V5 {
        return Err(Rule::PasswordWithoutUsername.into());
    }
    Ok(())
}

fn put_field(field: &[u8], out: &mut Vec<u8>) {
    // `encode` has measured every field before the first is written.
    out.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(field);
}
