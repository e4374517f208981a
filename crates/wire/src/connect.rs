//! CONNECT: decoded into a view of the client's bytes, changed by assignment, encoded again. Fields that were not assigned
//! are written as received.

use std::fmt;

use crate::frame::{FixedHeader, MAX_REMAINING_LENGTH, PacketType};
use crate::property::{Owner, Properties};
use crate::reader::{Reader, put_field, put_varint};
use crate::{Error, Rule};

/// The protocol version of a client, from the name and level in CONNECT [MQTT-3.1.2.2].
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

/// The limits of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest CONNECT, fixed header included, in bytes.
    pub max_packet_len: usize,
}

impl Default for Limits {
    /// Only the protocol's own limit.
    fn default() -> Self {
        Self { max_packet_len: usize::MAX }
    }
}

/// The message that a broker publishes when the client's connection ends without a DISCONNECT [MQTT-3.1.2.5].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// The quality of service: 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker retains the message.
    pub retain: bool,
    /// MQTT 5 will properties; empty before.
    pub properties: Properties<'a>,
    /// The topic name, without wildcards.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
}

/// A CONNECT packet [MQTT-3.1]. Fields may be assigned any value; [`Connect::encode`] validates the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The protocol version; decides how everything else is written.
    pub version: Version,
    /// Clean start, called clean session before MQTT 5 [MQTT-3.1.2.4].
    pub clean_start: bool,
    /// The keep-alive interval in seconds; 0 turns it off [MQTT-3.1.2.10].
    pub keep_alive: u16,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
    /// The client identifier; may be empty: see [`Connect::check_client_id`].
    pub client_id: &'a str,
    /// The will, if there is one.
    pub will: Option<Will<'a>>,
    /// The user name, if there is one; may be empty.
    pub username: Option<&'a str>,
    /// The password, if there is one; may be empty. `Debug` masks it.
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
    /// Decodes the CONNECT at the front of `bytes`. Returns the packet and its length in bytes, or `Ok(None)` if it is
    /// incomplete. Invalid input is rejected with the first byte that proves it, so that the caller does not wait for, or
    /// buffer, a packet of a length or type that it will not accept.
    ///
    /// # Errors
    /// The first rule that the packet breaks; [`Error::TooLarge`] if it is larger than the limit.
    pub fn decode(bytes: &'a [u8], limits: Limits) -> Result<Option<(Self, usize)>, Error> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if PacketType::of(first) != Some(PacketType::Connect) {
            return Err(Rule::FirstPacketNotConnect.into());
        }
        let has_flags = first & 0x0f != 0;
        let Some(header) = FixedHeader::decode(bytes)? else { return Ok(None) };
        if header.packet_len() > limits.max_packet_len {
            return Err(Error::TooLarge);
        }
        let arrived = bytes.get(header.len..).unwrap_or_default();
        let body = arrived.get(..header.remaining_length as usize);
        // MQTT 3.1 does not use the flags of the fixed header [MQTT 3.1, section 3.1].
        if has_flags && !Version::V31.is_possible_at(body.unwrap_or(arrived)) {
            return Err(Rule::FixedHeaderFlags.into());
        }
        if !Version::is_possible(body.unwrap_or(arrived)) {
            return Err(Error::Unsupported);
        }
        let Some(body) = body else { return Ok(None) };
        let connect = Self::decode_body(&mut Reader::new(body))?;
        // Only MQTT 5 forbids a length that is encoded in more bytes than necessary.
        if connect.version == Version::V5 && !header.is_shortest() {
            return Err(Rule::RemainingLength.into());
        }
        Ok(Some((connect, header.packet_len())))
    }

    /// The version in which to answer a CONNECT that is malformed or of an unsupported version: the version it claims, or
    /// the nearest supported one [MQTT-3.1.2-2]. `None` if it is incomplete before the level, or not a CONNECT.
    pub fn version_to_answer_in(bytes: &[u8]) -> Option<Version> {
        let header = FixedHeader::decode(bytes).ok()??;
        let mut reader = Reader::new(bytes.get(header.len..)?);
        if header.packet_type != PacketType::Connect {
            return None;
        }
        match (reader.binary().ok()?, reader.u8().ok()?) {
            (b"MQIsdp", _) => Some(Version::V31),
            // mosquitto bridges set the highest bit of the level.
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
        // In MQTT 3.1 the remaining length takes precedence over these two flags, for clients that predate them
        // [MQTT 3.1, section 3.1, "Connect flags"].
        let has_field = |bit, reader: &Reader<'_>| flags & bit != 0 && (version != Version::V31 || !reader.is_empty());
        let username = has_field(flag::USERNAME, reader).then(|| reader.string()).transpose()?;
        let password = has_field(flag::PASSWORD, reader).then(|| reader.binary()).transpose()?;
        if !reader.is_empty() {
            return Err(Rule::TrailingBytes.into());
        }
        let clean_start = flags & flag::CLEAN_START != 0;
        Ok(Self { version, clean_start, keep_alive, properties, client_id, will, username, password })
    }

    /// Checks whether a broker can accept the client identifier: MQTT 5 allows an empty one, 3.1.1 only with a clean
    /// session [MQTT-3.1.3-8], 3.1 never. Decoding does not check it, since a gateway may set the identifier itself.
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

    /// Appends the packet to `out`, with recomputed flags and lengths.
    ///
    /// # Errors
    /// An assigned field cannot be encoded: a string that contains U+0000 or is longer than 65,535 bytes, a password
    /// without a user name before MQTT 5, or a packet larger than the protocol can express. `out` is unchanged then.
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
        put_field([self.client_id.as_bytes()], out);
        if let Some(will) = self.will {
            if self.version == Version::V5 {
                will.properties.encode(out);
            }
            put_field([will.topic.as_bytes()], out);
            put_field([will.payload], out);
        }
        for field in [self.username.map(str::as_bytes), self.password].into_iter().flatten() {
            put_field([field], out);
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

    /// Whether a body that begins with `start` can still be of a supported version.
    fn is_possible(start: &[u8]) -> bool {
        [Version::V31, Version::V311, Version::V5].into_iter().any(|version| version.is_possible_at(start))
    }

    /// Whether a body that begins with these bytes may be of this version.
    fn is_possible_at(self, start: &[u8]) -> bool {
        self.protocol_name().iter().chain([&(self as u8)]).zip(start).all(|(known, byte)| known == byte)
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

/// Validates the connect flags [MQTT-3.1.2.3]. MQTT 3.1 leaves the lowest bit unused, and ignores will QoS and will
/// retain without a will.
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
