//! The packets that a gateway sends itself: CONNACK, DISCONNECT and PINGREQ, encoded for each MQTT version.

use crate::frame::{FixedHeader, PacketType};
use crate::property::{Owner, Properties};
use crate::reader::{Reader, put_field, put_varint, varint_len};
use crate::{Error, Rule, Version};

/// PINGREQ [MQTT-3.12].
pub const PINGREQ: [u8; 2] = [(PacketType::Pingreq as u8) << 4, 0];

/// The property of DISCONNECT that names other servers [MQTT-2.2.2.2].
const SERVER_REFERENCE: u8 = 0x1c;

/// Why a CONNECT is refused, as far as the protocol can express it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The packet is malformed.
    Malformed,
    /// The packet is well-formed but violates the protocol.
    ProtocolError,
    /// The protocol version is not supported.
    UnsupportedVersion,
    /// The client identifier is not allowed.
    ClientId,
    /// The user name or password is wrong.
    BadCredentials,
    /// The client is not authorized.
    NotAuthorized,
    /// No broker can be reached.
    ServerUnavailable,
    /// The packet is larger than the gateway accepts.
    PacketTooLarge,
    /// A limit of the gateway is exceeded.
    QuotaExceeded,
    /// The will's topic is not accepted.
    TopicNameInvalid,
    /// The will's payload is not of the expected form.
    PayloadFormatInvalid,
    /// The will may not be retained.
    RetainNotSupported,
    /// The will's QoS is not accepted.
    QosNotSupported,
}

impl Refusal {
    /// What CONNACK can say in place of a DISCONNECT with this reason. `None`: nothing that fits.
    pub const fn of(reason: Disconnect) -> Option<Self> {
        Some(match reason {
            Disconnect::Malformed => Refusal::Malformed,
            Disconnect::NotAuthorized => Refusal::NotAuthorized,
            Disconnect::ServerShuttingDown => Refusal::ServerUnavailable,
            Disconnect::TopicNameInvalid => Refusal::TopicNameInvalid,
            Disconnect::PacketTooLarge => Refusal::PacketTooLarge,
            Disconnect::MessageRateTooHigh | Disconnect::QuotaExceeded => Refusal::QuotaExceeded,
            Disconnect::PayloadFormatInvalid => Refusal::PayloadFormatInvalid,
            Disconnect::RetainNotSupported => Refusal::RetainNotSupported,
            Disconnect::QosNotSupported => Refusal::QosNotSupported,
            Disconnect::ProtocolError
            | Disconnect::TopicFilterInvalid
            | Disconnect::ReceiveMaximumExceeded
            | Disconnect::TopicAliasInvalid => Refusal::ProtocolError,
            _ => return None,
        })
    }

    /// The CONNACK code in `version`: a reason code in MQTT 5 [MQTT-3.2.2.2], a return code before [MQTT-3.2.2.3 (3.1.1)].
    /// `None` where the version requires closing the connection without a CONNACK [MQTT-3.1.4-1 (3.1.1)].
    pub const fn code(self, version: Version) -> Option<u8> {
        Some(match (version, self) {
            (Version::V5, Refusal::Malformed) => 0x81,
            (Version::V5, Refusal::ProtocolError) => 0x82,
            (Version::V5, Refusal::UnsupportedVersion) => 0x84,
            (Version::V5, Refusal::ClientId) => 0x85,
            (Version::V5, Refusal::BadCredentials) => 0x86,
            (Version::V5, Refusal::NotAuthorized) => 0x87,
            (Version::V5, Refusal::ServerUnavailable) => 0x88,
            (Version::V5, Refusal::TopicNameInvalid) => 0x90,
            (Version::V5, Refusal::PacketTooLarge) => 0x95,
            (Version::V5, Refusal::QuotaExceeded) => 0x97,
            (Version::V5, Refusal::PayloadFormatInvalid) => 0x99,
            (Version::V5, Refusal::RetainNotSupported) => 0x9a,
            (Version::V5, Refusal::QosNotSupported) => 0x9b,
            (_, Refusal::Malformed | Refusal::ProtocolError | Refusal::PacketTooLarge) => return None,
            (_, Refusal::UnsupportedVersion) => 1,
            (_, Refusal::ClientId) => 2,
            (_, Refusal::ServerUnavailable | Refusal::QuotaExceeded) => 3,
            (_, Refusal::BadCredentials) => 4,
            // The others are about wills.
            (
                _,
                Refusal::NotAuthorized
                | Refusal::TopicNameInvalid
                | Refusal::PayloadFormatInvalid
                | Refusal::RetainNotSupported
                | Refusal::QosNotSupported,
            ) => 5,
        })
    }
}

/// CONNACK [MQTT-3.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connack<'a> {
    /// Whether the broker has resumed a session of this client [MQTT-3.2.2.1.1].
    pub session_present: bool,
    /// The return code or reason code; 0 means success in every version.
    pub code: u8,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
}

impl<'a> Connack<'a> {
    /// Creates a CONNACK that refuses the connection with this code.
    pub fn refusal(code: u8) -> Self {
        Self { session_present: false, code, properties: Properties::default() }
    }

    /// Decodes the CONNACK at the front of `bytes`. Returns the packet and its length in bytes, or `Ok(None)` if it is
    /// incomplete.
    ///
    /// # Errors
    /// The first packet is not a CONNACK, is malformed, or is larger than `max_packet_len` bytes.
    pub fn decode(bytes: &'a [u8], version: Version, max_packet_len: usize) -> Result<Option<(Self, usize)>, Error> {
        let Some(header) = FixedHeader::decode(bytes)? else { return Ok(None) };
        if header.packet_type != PacketType::Connack || header.flags != 0 {
            return Err(Rule::FixedHeaderFlags.into());
        }
        if header.packet_len() > max_packet_len {
            return Err(Error::TooLarge);
        }
        let Some(body) = bytes.get(header.len..header.packet_len()) else { return Ok(None) };
        let mut reader = Reader::new(body);
        let acknowledge = reader.u8()?;
        // MQTT 3.1 reserves the whole byte without prescribing its value.
        if acknowledge & 0xfe != 0 && version != Version::V31 {
            return Err(Rule::AcknowledgeFlags.into());
        }
        let code = reader.u8()?;
        if version != Version::V5 && code > 5 {
            return Err(Rule::ReasonCode.into());
        }
        let properties = match version {
            Version::V5 => Properties::decode(&mut reader, Owner::Connack)?,
            Version::V31 | Version::V311 => Properties::default(),
        };
        if !reader.is_empty() {
            return Err(Rule::TrailingBytes.into());
        }
        Ok(Some((Self { session_present: acknowledge & 1 != 0, code, properties }, header.packet_len())))
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let properties = if version == Version::V5 { self.properties.encoded_len() } else { 0 };
        out.push((PacketType::Connack as u8) << 4);
        crate::reader::put_varint(u32::try_from(2 + properties).unwrap_or(u32::MAX), out);
        out.extend_from_slice(&[u8::from(self.session_present), self.code]);
        if version == Version::V5 {
            self.properties.encode(out);
        }
    }
}

/// The reason of a DISCONNECT [MQTT-3.14.2.1]; a server may send one only in MQTT 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Disconnect {
    /// Normal disconnection; the broker does not publish the will.
    Normal = 0x00,
    /// A packet cannot be decoded.
    Malformed = 0x81,
    /// A packet violates the protocol.
    ProtocolError = 0x82,
    /// The packet is valid, but the receiver cannot process it.
    ImplementationSpecific = 0x83,
    /// The client is no longer authorized, or not for what it does.
    NotAuthorized = 0x87,
    /// The server is shutting down.
    ServerShuttingDown = 0x8b,
    /// The client was silent for one and a half times its keep-alive interval.
    KeepAliveTimeout = 0x8d,
    /// A topic filter is not valid.
    TopicFilterInvalid = 0x8f,
    /// A topic name is not valid, or not accepted.
    TopicNameInvalid = 0x90,
    /// More messages of QoS 1 and 2 at once than the receiver accepts.
    ReceiveMaximumExceeded = 0x93,
    /// A topic alias above the receiver's maximum.
    TopicAliasInvalid = 0x94,
    /// A packet above the receiver's maximum.
    PacketTooLarge = 0x95,
    /// The client sends too much.
    MessageRateTooHigh = 0x96,
    /// A limit of the receiver is exceeded.
    QuotaExceeded = 0x97,
    /// An operator ended the session.
    AdministrativeAction = 0x98,
    /// The payload is not of the expected form.
    PayloadFormatInvalid = 0x99,
    /// Retained messages are not accepted.
    RetainNotSupported = 0x9a,
    /// The QoS is not accepted.
    QosNotSupported = 0x9b,
    /// The client should use another server, for now.
    UseAnotherServer = 0x9c,
    /// The client should use another server, for good.
    ServerMoved = 0x9d,
    /// The client's authorization has expired.
    MaximumConnectTime = 0xa0,
}

impl Disconnect {
    /// The packet of MQTT 3.1 and 3.1.1, which only clients send and which carries no reason.
    pub const NORMAL_V3: [u8; 2] = [(PacketType::Disconnect as u8) << 4, 0];

    /// The length of the packet of MQTT 5, in bytes.
    pub const PACKET_LEN: usize = 4;

    /// The packet of MQTT 5: the reason code and an empty property block.
    pub const fn packet(self) -> [u8; Self::PACKET_LEN] {
        [(PacketType::Disconnect as u8) << 4, 2, self as u8, 0]
    }

    /// The packet of MQTT 5 with a Server Reference, of at most 65,535 bytes: the servers that the client should use
    /// [MQTT-3.14.2.2.5].
    pub fn packet_with_reference(self, reference: &str) -> Vec<u8> {
        let properties = u32::try_from(reference.len() + 3).unwrap_or(u32::MAX);
        let mut packet = vec![(PacketType::Disconnect as u8) << 4];
        let len = u32::try_from(1 + varint_len(properties)).unwrap_or(u32::MAX);
        put_varint(len.saturating_add(properties), &mut packet);
        packet.push(self as u8);
        put_varint(properties, &mut packet);
        packet.push(SERVER_REFERENCE);
        put_field([reference.as_bytes()], &mut packet);
        packet
    }

    /// The reason code.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connack_survives_the_way_there_and_back() {
        for version in [Version::V31, Version::V311, Version::V5] {
            let mut bytes = Vec::new();
            Connack::refusal(5).encode(version, &mut bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Connack::decode(&bytes[..cut], version, 64), Ok(None));
            }
            assert_eq!(Connack::decode(&bytes, version, 64), Ok(Some((Connack::refusal(5), bytes.len()))));
        }
    }

    #[test]
    fn connack_that_is_none_is_refused() {
        let refused = |bytes: &[u8], version| Connack::decode(bytes, version, 64).unwrap_err();
        assert_eq!(refused(b"\x20\x02\x02\x00", Version::V311), Rule::AcknowledgeFlags.into());
        assert_eq!(refused(b"\x20\x02\x00\x06", Version::V311), Rule::ReasonCode.into());
        assert_eq!(refused(b"\x21\x02\x00\x00", Version::V311), Rule::FixedHeaderFlags.into());
        assert_eq!(refused(b"\x30\x02\x00\x00", Version::V5), Rule::FixedHeaderFlags.into());
        assert_eq!(refused(b"\x20\x7f", Version::V5), Error::TooLarge);
        assert_eq!(refused(b"\x20\x03\x00\x00\x00", Version::V311), Rule::TrailingBytes.into());
    }

    #[test]
    fn disconnect_names_the_other_servers() {
        let packet = Disconnect::ServerMoved.packet_with_reference("b:8883");
        assert_eq!(packet, b"\xe0\x0b\x9d\x09\x1c\x00\x06b:8883");
        let long = Disconnect::UseAnotherServer.packet_with_reference(&"x".repeat(200));
        assert_eq!(&long[..8], b"\xe0\xce\x01\x9c\xcb\x01\x1c\x00");
        assert_eq!(long.len(), 3 + 0xce);
    }

    #[test]
    fn malformed_connect_gets_an_answer_in_mqtt_5_only() {
        assert_eq!(Refusal::Malformed.code(Version::V311), None, "[MQTT-3.1.4-1 (3.1.1)]");
        assert_eq!(Refusal::Malformed.code(Version::V5), Some(0x81));
        assert_eq!(Refusal::UnsupportedVersion.code(Version::V31), Some(1));
    }
}
