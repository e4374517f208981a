//! Single packets behind CONNECT, clause by clause of the specification.

use portcullis_wire::{Error, FixedHeader, Packet, Properties, Rule, Sender, Subscription, Version};

use crate::raw::{packet, packet_with_id};
use crate::stream::{self, Read, read};

const V31: &[Version] = &[Version::V31];
const V311: &[Version] = &[Version::V311];
pub(crate) const V3: &[Version] = &[Version::V31, Version::V311];
pub(crate) const V5: &[Version] = &[Version::V5];
const SINCE_311: &[Version] = &[Version::V311, Version::V5];
pub(crate) const ALL: &[Version] = &[Version::V31, Version::V311, Version::V5];
const CLIENT: &[Sender] = &[Sender::Client];
const SERVER: &[Sender] = &[Sender::Server];
const BOTH: &[Sender] = &[Sender::Client, Sender::Server];

/// A row of a table, for one version and one sender.
#[derive(Debug)]
pub(crate) struct Vector<T> {
    pub(crate) version: Version,
    pub(crate) sender: Sender,
    pub(crate) clause: &'static str,
    pub(crate) what: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: T,
}

/// The packet of a row: a first byte and a body; a first byte, `id`, which stands for the packet identifier 10, perhaps
/// properties, and a payload; or all bytes.
macro_rules! bytes {
    ($version:ident, $first:literal $body:literal) => {
        packet($first, $body)
    };
    ($version:ident, $first:literal id $payload:literal) => {
        packet_with_id($first, 10, $version, b"", $payload)
    };
    ($version:ident, $first:literal id $properties:literal $payload:literal) => {
        packet_with_id($first, 10, $version, $properties, $payload)
    };
    ($version:ident, whole $bytes:literal) => {
        $bytes.to_vec()
    };
}

/// Versions, senders, clause, description, packet, result.
macro_rules! table {
    ($result:ident: $($versions:ident $senders:ident $clause:literal $what:literal: [$($bytes:tt)+]
        => $expected:tt $(, written $written:tt)?;)*) => {
        [$(
            $versions.iter().flat_map(|&version| $senders.iter().map(move |&sender| Vector {
                version,
                sender,
                clause: $clause,
                what: $what,
                bytes: bytes!(version, $($bytes)+),
                expected: $result!(version, $expected $(, written $written)?),
            })).collect::<Vec<_>>(),
        )*]
        .into_iter().flatten().collect()
    };
}

macro_rules! refusal {
    ($version:ident, $rule:ident) => {
        Error::from(Rule::$rule)
    };
}

/// How the packet is described, and how it is written if not as it came.
macro_rules! reading {
    ($version:ident, $text:literal) => {
        ($text, None)
    };
    ($version:ident, $text:literal, written [$($bytes:tt)+]) => {
        ($text, Some(bytes!($version, $($bytes)+)))
    };
}

/// Clauses without a version are those of MQTT 5.0.
pub(crate) fn refused() -> Vec<Vector<Error>> {
    table! { refusal:
        // The fixed header.
        ALL BOTH "MQTT-2.1.2" "packet type 0": [whole b"\0\0"] => PacketTypeReserved;
        V3 BOTH "MQTT-2.2.1 (3.1.1)" "AUTH": [0xf0 b"\x18\0"] => PacketTypeReserved;
        ALL CLIENT "MQTT-3.1.0-2" "second CONNECT": [0x10 b"\0\x04MQTT\x04\x02\0\x3c\0\0"] => SecondConnect;
        ALL SERVER "MQTT-2.1.2" "CONNECT": [0x10 b"\0\x04MQTT\x04\x02\0\x3c\0\0"] => WrongSender;
        ALL CLIENT "MQTT-2.1.2" "CONNACK": [0x20 b"\0\0\0"] => WrongSender;
        ALL SERVER "MQTT-3.2.0-2" "second CONNACK": [0x20 b"\0\0\0"] => WrongSender;
        ALL SERVER "MQTT-2.1.2" "SUBSCRIBE": [0x82 id b"\0\x01a\0"] => WrongSender;
        ALL SERVER "MQTT-2.1.2" "UNSUBSCRIBE": [0xa2 id b"\0\x01a"] => WrongSender;
        ALL SERVER "MQTT-2.1.2" "PINGREQ": [0xc0 b""] => WrongSender;
        V3 SERVER "MQTT-3.14 (3.1.1)" "DISCONNECT": [0xe0 b""] => WrongSender;
        ALL CLIENT "MQTT-2.1.2" "SUBACK": [0x90 id b"\0"] => WrongSender;
        ALL CLIENT "MQTT-2.1.2" "UNSUBACK": [0xb0 id b"\0"] => WrongSender;
        ALL CLIENT "MQTT-2.1.2" "PINGRESP": [0xd0 b""] => WrongSender;
        SINCE_311 BOTH "MQTT-2.1.3-1" "RETAIN in PUBACK": [0x41 b"\0\x0a"] => FixedHeaderFlags;
        SINCE_311 BOTH "MQTT-2.1.3-1" "QoS 1 in PUBREC": [0x52 b"\0\x0a"] => FixedHeaderFlags;
        SINCE_311 BOTH "MQTT-2.1.3-1" "DUP in PUBCOMP": [0x78 b"\0\x0a"] => FixedHeaderFlags;
        ALL BOTH "MQTT-3.6.1-1" "QoS 0 in PUBREL": [0x60 b"\0\x0a"] => FixedHeaderFlags;
        ALL BOTH "MQTT-3.6.1-1" "QoS 2 in PUBREL": [0x64 b"\0\x0a"] => FixedHeaderFlags;
        SINCE_311 BOTH "MQTT-3.6.1-1" "DUP in PUBREL": [0x6a b"\0\x0a"] => FixedHeaderFlags;
        ALL CLIENT "MQTT-3.8.1-1" "QoS 0 in SUBSCRIBE": [0x80 id b"\0\x01a\0"] => FixedHeaderFlags;
        SINCE_311 CLIENT "MQTT-3.8.1-1" "DUP in SUBSCRIBE": [0x8a id b"\0\x01a\0"] => FixedHeaderFlags;
        ALL CLIENT "MQTT-3.10.1-1" "QoS 0 in UNSUBSCRIBE": [0xa0 id b"\0\x01a"] => FixedHeaderFlags;
        SINCE_311 CLIENT "MQTT-3.10.1-1" "DUP in UNSUBSCRIBE": [0xaa id b"\0\x01a"] => FixedHeaderFlags;
        SINCE_311 SERVER "MQTT-2.1.3-1" "RETAIN in SUBACK": [0x91 id b"\0"] => FixedHeaderFlags;
        SINCE_311 SERVER "MQTT-2.1.3-1" "RETAIN in UNSUBACK": [0xb1 id b""] => FixedHeaderFlags;
        SINCE_311 CLIENT "MQTT-2.1.3-1" "RETAIN in PINGREQ": [0xc1 b""] => FixedHeaderFlags;
        SINCE_311 SERVER "MQTT-2.1.3-1" "RETAIN in PINGRESP": [0xd1 b""] => FixedHeaderFlags;
        SINCE_311 CLIENT "MQTT-3.14.1-1" "RETAIN in DISCONNECT": [0xe1 b""] => FixedHeaderFlags;
        V5 BOTH "MQTT-3.15.1-1" "RETAIN in AUTH": [0xf1 b"\x18\x04\x15\0\x01m"] => FixedHeaderFlags;
        ALL BOTH "MQTT-3.3.1-4" "QoS 3": [0x36 b"\0\x01a\0\x0a\0"] => PublishQos;
        SINCE_311 BOTH "MQTT-3.3.1-2" "DUP at QoS 0": [0x38 b"\0\x01a\0"] => DupAtQos0;
        ALL BOTH "MQTT-1.5.5" "length of five bytes": [whole b"\x30\xff\xff\xff\xff\x01"] => RemainingLength;
        V5 CLIENT "MQTT-1.5.5-1" "length with leading zeros": [whole b"\xc0\x80\x00"] => RemainingLength;
        V5 BOTH "MQTT-1.5.5-1" "PUBLISH, padded": [whole b"\x30\x84\x80\x00\0\x01a\0"] => RemainingLength;

        // PUBLISH.
        ALL BOTH "MQTT-3.3.2-1" "no topic": [0x30 b""] => PacketLength;
        ALL BOTH "MQTT-1.5.4" "half of the topic's length": [0x30 b"\0"] => PacketLength;
        ALL BOTH "MQTT-1.5.4" "topic past the end": [0x30 b"\0\x05a\0\0\0"] => PacketLength;
        ALL BOTH "MQTT-2.2.1" "no packet identifier": [0x32 b"\0\x01a"] => PacketLength;
        ALL BOTH "MQTT-2.2.1" "half a packet identifier": [0x34 b"\0\x01a\0"] => PacketLength;
        ALL BOTH "MQTT-2.2.1-3" "packet identifier 0 at QoS 1": [0x32 b"\0\x01a\0\0\0"] => PacketIdZero;
        ALL BOTH "MQTT-2.2.1-3" "packet identifier 0 at QoS 2": [0x34 b"\0\x01a\0\0\0"] => PacketIdZero;
        ALL BOTH "MQTT-1.5.4-1" "topic is not UTF-8": [0x30 b"\0\x01\xff\0"] => Utf8;
        ALL BOTH "MQTT-1.5.4-1" "surrogate U+D800": [0x30 b"\0\x03\xed\xa0\x80\0"] => Utf8;
        ALL BOTH "MQTT-1.5.4-1" "overlong U+0000": [0x30 b"\0\x02\xc0\x80\0"] => Utf8;
        ALL BOTH "MQTT-1.5.4-2" "U+0000 in topic": [0x30 b"\0\x03a\0b\0"] => NullCharacter;
        ALL BOTH "MQTT-3.3.2-2" "topic #": [0x30 b"\0\x01#\0"] => TopicName;
        ALL BOTH "MQTT-3.3.2-2" "topic a/+": [0x30 b"\0\x03a/+\0"] => TopicName;
        ALL BOTH "MQTT-3.3.2-2" "wildcard inside a level": [0x30 b"\0\x03a+b\0"] => TopicName;
        V3 BOTH "MQTT-4.7.3-1" "empty topic": [0x30 b"\0\0"] => TopicName;
        V5 BOTH "MQTT-3.3.2.1" "neither topic nor alias": [0x30 b"\0\0\0"] => TopicAliasUnknown;
        V5 BOTH "MQTT-3.3.2-8" "topic alias 0": [0x30 b"\0\x01a\x03\x23\0\0"] => TopicAlias;
        V5 BOTH "MQTT-3.3.2.3.1" "no property length": [0x30 b"\0\x01a"] => PacketLength;
        V5 BOTH "MQTT-3.3.2.3.1" "properties past the end": [0x30 b"\0\x01a\x05\x01\x01"] => PacketLength;
        V5 BOTH "MQTT-1.5.5" "property length cut off": [0x30 b"\0\x01a\x80"] => PacketLength;
        V5 BOTH "MQTT-1.5.5" "property length of five bytes": [0x30 b"\0\x01a\xff\xff\xff\xff\x7f"] => RemainingLength;
        V5 BOTH "MQTT-1.5.5-1" "property length, padded": [0x30 b"\0\x01a\x80\0"] => RemainingLength;
        V5 BOTH "MQTT-1.5.5-1" "property identifier, padded": [0x30 b"\0\x01a\x03\x81\0\x01"] => RemainingLength;
        V5 BOTH "MQTT-2.2.2.1" "property cut off": [0x30 b"\0\x01a\x03\x02\0\0"] => PacketLength;
        V5 BOTH "MQTT-2.2.2.2" "unknown property 0x7f": [0x30 b"\0\x01a\x02\x7f\0"] => PropertyUnknown;
        V5 BOTH "MQTT-2.2.2.2" "CONNECT's property": [0x30 b"\0\x01a\x05\x11\0\0\0\0"] => PropertyUnknown;
        V5 BOTH "MQTT-3.3.2.3.2" "payload format 2": [0x30 b"\0\x01a\x02\x01\x02"] => PropertyValue;
        V5 BOTH "MQTT-3.3.2.3.2" "payload format twice": [0x30 b"\0\x01a\x04\x01\0\x01\0"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2.3.3" "expiry twice": [0x30 b"\0\x01a\x0a\x02\0\0\0\x01\x02\0\0\0\x01"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2.3.4" "topic alias twice": [0x30 b"\0\x01a\x06\x23\0\x01\x23\0\x01"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2.3.5" "response topic twice": [0x30 b"\0\x01a\x08\x08\0\x01r\x08\0\x01r"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2.3.6" "correlation data twice": [0x30 b"\0\x01a\x06\x09\0\0\x09\0\0"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2.3.9" "content type twice": [0x30 b"\0\x01a\x06\x03\0\0\x03\0\0"] => PropertyTwice;
        V5 BOTH "MQTT-3.3.2-14" "response topic #": [0x30 b"\0\x01a\x04\x08\0\x01#"] => TopicName;
        V5 BOTH "MQTT-4.7.3-1" "empty response topic": [0x30 b"\0\x01a\x03\x08\0\0"] => TopicName;
        V5 BOTH "MQTT-3.3.2-13" "response topic not UTF-8": [0x30 b"\0\x01a\x04\x08\0\x01\xff"] => Utf8;
        V5 BOTH "MQTT-1.5.4-2" "U+0000 in content type": [0x30 b"\0\x01a\x04\x03\0\x01\0"] => NullCharacter;
        V5 BOTH "MQTT-1.5.7" "user property without value": [0x30 b"\0\x01a\x04\x26\0\x01k"] => PacketLength;
        V5 CLIENT "MQTT-3.3.4-6" "subscription identifier": [0x30 b"\0\x01a\x02\x0b\x01"] => SubscriptionIdFromClient;
        V5 SERVER "MQTT-3.3.2.3.8" "subscription identifier 0": [0x30 b"\0\x01a\x02\x0b\0"] => PropertyValue;

        // PUBACK, PUBREC, PUBREL and PUBCOMP.
        ALL BOTH "MQTT-3.4.2" "no packet identifier": [0x40 b""] => PacketLength;
        ALL BOTH "MQTT-3.5.2" "half a packet identifier": [0x50 b"\0"] => PacketLength;
        ALL BOTH "MQTT-2.2.1-5" "PUBACK 0": [0x40 b"\0\0"] => PacketIdZero;
        ALL BOTH "MQTT-2.2.1-5" "PUBREC 0": [0x50 b"\0\0"] => PacketIdZero;
        ALL BOTH "MQTT-2.2.1-5" "PUBREL 0": [0x62 b"\0\0"] => PacketIdZero;
        ALL BOTH "MQTT-2.2.1-5" "PUBCOMP 0": [0x70 b"\0\0"] => PacketIdZero;
        V3 BOTH "MQTT-3.4.2 (3.1.1)" "reason code before MQTT 5": [0x40 b"\0\x0a\0"] => TrailingBytes;
        V5 BOTH "MQTT-3.4.3" "PUBACK with payload": [0x40 b"\0\x0a\0\0\0"] => TrailingBytes;
        V5 BOTH "MQTT-3.4.2.2.1" "properties past the end": [0x40 b"\0\x0a\0\x05"] => PacketLength;
        V5 BOTH "MQTT-3.4.2.2.2" "reason twice": [0x40 b"\0\x0a\0\x08\x1f\0\x01r\x1f\0\x01r"] => PropertyTwice;
        V5 BOTH "MQTT-1.5.4-1" "reason not UTF-8": [0x50 b"\0\x0a\0\x04\x1f\0\x01\xff"] => Utf8;
        V5 BOTH "MQTT-2.2.2.2" "PUBLISH's property in PUBREL": [0x62 b"\0\x0a\0\x02\x01\0"] => PropertyUnknown;
        V5 CLIENT "MQTT-3.4.2-1" "PUBREL's code in PUBACK": [0x40 b"\0\x0a\x92"] => ReasonCode;
        V5 CLIENT "MQTT-3.5.2-1" "code 1 in PUBREC": [0x50 b"\0\x0a\x01"] => ReasonCode;
        V5 CLIENT "MQTT-3.6.2-1" "PUBACK's code in PUBREL": [0x62 b"\0\x0a\x10"] => ReasonCode;
        V5 CLIENT "MQTT-3.7.2-1" "code 0x80 in PUBCOMP": [0x70 b"\0\x0a\x80"] => ReasonCode;

        // SUBSCRIBE.
        ALL CLIENT "MQTT-3.8.3-2" "no filter": [0x82 id b""] => NoFilters;
        V3 CLIENT "MQTT-2.2.1-3" "packet identifier 0": [0x82 b"\0\0\0\x01a\0"] => PacketIdZero;
        V5 CLIENT "MQTT-2.2.1-3" "packet identifier 0": [0x82 b"\0\0\0\0\x01a\0"] => PacketIdZero;
        ALL CLIENT "MQTT-3.8.2" "no packet identifier": [0x82 b""] => PacketLength;
        ALL CLIENT "MQTT-3.8.3-2" "filter without options": [0x82 id b"\0\x01a"] => PacketLength;
        ALL CLIENT "MQTT-3.8.3-2" "second filter without options": [0x82 id b"\0\x01a\0\0\x01b"] => PacketLength;
        ALL CLIENT "MQTT-1.5.4" "filter past the end": [0x82 id b"\0\x09a\0"] => PacketLength;
        ALL CLIENT "MQTT-3.8.3-1" "filter is not UTF-8": [0x82 id b"\0\x01\xff\0"] => Utf8;
        ALL CLIENT "MQTT-4.7.3-2" "U+0000 in filter": [0x82 id b"\0\x01\0\0"] => NullCharacter;
        ALL CLIENT "MQTT-4.7.3-1" "empty filter": [0x82 id b"\0\0\0"] => TopicFilter;
        ALL CLIENT "MQTT-4.7.1-1" "# behind a name": [0x82 id b"\0\x02a#\0"] => TopicFilter;
        ALL CLIENT "MQTT-4.7.1-1" "# before the last level": [0x82 id b"\0\x05a/#/b\0"] => TopicFilter;
        ALL CLIENT "MQTT-4.7.1-2" "+ before a name": [0x82 id b"\0\x02+a\0"] => TopicFilter;
        ALL CLIENT "MQTT-4.7.1-1" "second filter": [0x82 id b"\0\x01a\0\0\x02##\0"] => TopicFilter;
        V311 CLIENT "MQTT-3-8.3-4 (3.1.1)" "options 0x04": [0x82 id b"\0\x01a\x04"] => SubscriptionOptions;
        V311 CLIENT "MQTT-3-8.3-4 (3.1.1)" "options 0x81": [0x82 id b"\0\x01a\x81"] => SubscriptionOptions;
        V5 CLIENT "MQTT-3.8.3-5" "options 0x40": [0x82 id b"\0\x01a\x40"] => SubscriptionOptions;
        V5 CLIENT "MQTT-3.8.3-5" "options 0x80": [0x82 id b"\0\x01a\x80"] => SubscriptionOptions;
        ALL CLIENT "MQTT-3.8.3.1" "QoS 3": [0x82 id b"\0\x01a\x03"] => SubscriptionQos;
        V5 CLIENT "MQTT-3.8.3.1" "retain handling 3": [0x82 id b"\0\x01a\x31"] => SubscriptionQos;
        V5 CLIENT "MQTT-3.8.3-4" "No Local, shared": [0x82 id b"\0\x0a$share/g/a\x04"] => SharedNoLocal;
        V5 CLIENT "MQTT-4.8.2-1" "no filter behind the name": [0x82 id b"\0\x08$share/g\0"] => SharedSubscription;
        V5 CLIENT "MQTT-4.8.2-1" "empty share name": [0x82 id b"\0\x09$share//a\0"] => SharedSubscription;
        V5 CLIENT "MQTT-4.8.2-2" "wildcard as share name": [0x82 id b"\0\x0a$share/+/a\0"] => SharedSubscription;
        V5 CLIENT "MQTT-4.8.2-2" "# as share name": [0x82 id b"\0\x08$share/#\0"] => SharedSubscription;
        V5 CLIENT "MQTT-4.8.2-2" "empty filter, shared": [0x82 id b"\0\x09$share/g/\0"] => SharedSubscription;
        V5 CLIENT "MQTT-4.7.1-1" "# behind a name, shared": [0x82 id b"\0\x0b$share/g/a#\0"] => TopicFilter;
        V5 CLIENT "MQTT-3.8.2.1.1" "no property length": [0x82 b"\0\x0a"] => PacketLength;
        V5 CLIENT "MQTT-3.8.2.1.2" "identifier 0": [0x82 id b"\x0b\0" b"\0\x01a\0"] => PropertyValue;
        V5 CLIENT "MQTT-3.8.2.1.2" "identifier twice": [0x82 id b"\x0b\x01\x0b\x02" b"\0\x01a\0"] => PropertyTwice;
        V5 CLIENT "MQTT-1.5.5-1" "identifier, padded": [0x82 id b"\x0b\x81\0" b"\0\x01a\0"] => RemainingLength;
        V5 CLIENT "MQTT-2.2.2.2" "reason string": [0x82 id b"\x1f\0\x01r" b"\0\x01a\0"] => PropertyUnknown;

        // UNSUBSCRIBE.
        ALL CLIENT "MQTT-3.10.3-2" "no filter": [0xa2 id b""] => NothingToUnsubscribe;
        V3 CLIENT "MQTT-2.2.1-3" "packet identifier 0": [0xa2 b"\0\0\0\x01a"] => PacketIdZero;
        V5 CLIENT "MQTT-2.2.1-3" "packet identifier 0": [0xa2 b"\0\0\0\0\x01a"] => PacketIdZero;
        ALL CLIENT "MQTT-1.5.4" "filter past the end": [0xa2 id b"\0\x02a"] => PacketLength;
        ALL CLIENT "MQTT-1.5.4" "half a length": [0xa2 id b"\0\x01a\0"] => PacketLength;
        ALL CLIENT "MQTT-3.10.3-1" "filter is not UTF-8": [0xa2 id b"\0\x01\xff"] => Utf8;
        ALL CLIENT "MQTT-4.7.3-2" "U+0000 in filter": [0xa2 id b"\0\x01\0"] => NullCharacter;
        ALL CLIENT "MQTT-4.7.1-2" "+ behind a name": [0xa2 id b"\0\x02a+"] => TopicFilter;
        V5 CLIENT "MQTT-4.8.2-1" "empty share name": [0xa2 id b"\0\x09$share//a"] => SharedSubscription;
        V5 CLIENT "MQTT-2.2.2.2" "subscription identifier": [0xa2 id b"\x0b\x01" b"\0\x01a"] => PropertyUnknown;

        // SUBACK and UNSUBACK.
        ALL SERVER "MQTT-3.9.3-1" "no code": [0x90 id b""] => PacketLength;
        V5 SERVER "MQTT-3.11.3-1" "no code": [0xb0 id b""] => PacketLength;
        V5 SERVER "MQTT-3.11.2.1.1" "no property length": [0xb0 b"\0\x0a"] => PacketLength;
        ALL SERVER "MQTT-3.9.2" "no packet identifier": [0x90 b""] => PacketLength;
        ALL SERVER "MQTT-2.2.1-6" "SUBACK 0": [0x90 b"\0\0\0\0"] => PacketIdZero;
        ALL SERVER "MQTT-2.2.1-6" "UNSUBACK 0": [0xb0 b"\0\0\0\0"] => PacketIdZero;
        V3 SERVER "MQTT-3.11.3 (3.1.1)" "code before MQTT 5": [0xb0 b"\0\x0a\0"] => TrailingBytes;
        V5 SERVER "MQTT-2.2.2.2" "subscription identifier": [0x90 id b"\x0b\x01" b"\0"] => PropertyUnknown;
        V5 SERVER "MQTT-3.9.2.1.2" "reason twice": [0x90 id b"\x1f\0\0\x1f\0\0" b"\0"] => PropertyTwice;

        // PINGREQ, PINGRESP, DISCONNECT and AUTH.
        ALL CLIENT "MQTT-3.12.3" "PINGREQ with payload": [0xc0 b"\0"] => TrailingBytes;
        ALL SERVER "MQTT-3.13.3" "PINGRESP with payload": [0xd0 b"\0"] => TrailingBytes;
        V3 CLIENT "MQTT-3.14.2 (3.1.1)" "code before MQTT 5": [0xe0 b"\0"] => TrailingBytes;
        V5 BOTH "MQTT-3.14.3" "DISCONNECT with payload": [0xe0 b"\0\0\0"] => TrailingBytes;
        V5 BOTH "MQTT-3.14.2.2.1" "properties past the end": [0xe0 b"\0\x05"] => PacketLength;
        V5 CLIENT "MQTT-3.14.2.2.2" "expiry twice": [0xe0 b"\0\x0a\x11\0\0\0\0\x11\0\0\0\0"] => PropertyTwice;
        V5 SERVER "MQTT-3.14.2-2" "session expiry interval": [0xe0 b"\0\x05\x11\0\0\0\0"] => SessionExpiry;
        V5 BOTH "MQTT-2.2.2.2" "authentication method": [0xe0 b"\0\x04\x15\0\x01m"] => PropertyUnknown;
        V5 CLIENT "MQTT-3.14.2-1" "server's code 0x87": [0xe0 b"\x87"] => ReasonCode;
        V5 CLIENT "MQTT-3.14.2-1" "server's code 0xa0": [0xe0 b"\xa0\0"] => ReasonCode;
        V5 CLIENT "MQTT-3.15.2-1" "success, left out": [0xf0 b""] => ReasonCode;
        V5 CLIENT "MQTT-3.15.2-1" "success": [0xf0 b"\0\x04\x15\0\x01m"] => ReasonCode;
        V5 CLIENT "MQTT-3.15.2-1" "code 1": [0xf0 b"\x01\x04\x15\0\x01m"] => ReasonCode;
        V5 BOTH "MQTT-3.15.2.2.2" "no method": [0xf0 b"\x18\0"] => AuthMethodMissing;
        V5 BOTH "MQTT-3.15.2.2.2" "no properties": [0xf0 b"\x18"] => AuthMethodMissing;
        V5 BOTH "MQTT-3.15.2.2.3" "data without method": [0xf0 b"\x18\x04\x16\0\x01x"] => AuthDataWithoutMethod;
        V5 BOTH "MQTT-3.15.2.2.2" "method twice": [0xf0 b"\x18\x08\x15\0\x01m\x15\0\x01m"] => PropertyTwice;
        V5 BOTH "MQTT-2.2.2.2" "session expiry interval": [0xf0 b"\x18\x05\x11\0\0\0\0"] => PropertyUnknown;
        V5 BOTH "MQTT-3.15.3" "AUTH with payload": [0xf0 b"\x18\x04\x15\0\x01m\0"] => TrailingBytes;
        V5 BOTH "MQTT-3.15.2.2.1" "properties past the end": [0xf0 b"\x18\x05\x15\0\x01m"] => PacketLength;
    }
}

/// How a row's packet is described and, if it is not written as it came, how it is written.
pub(crate) type Reading = (&'static str, Option<Vec<u8>>);

pub(crate) fn accepted() -> Vec<Vector<Reading>> {
    table! { reading:
        V3 BOTH "MQTT-3.3" "no payload": [0x30 b"\0\x03a/b"] => "a/b qos 0 payload 0";
        V3 BOTH "MQTT-3.3.1-5" "RETAIN": [0x31 b"\0\x03a/bhi"] => "a/b qos 0 retain payload 2";
        V3 BOTH "MQTT-3.3.1.2" "QoS 1": [0x32 b"\0\x03a/b\0\x0ahi"] => "a/b qos 1 id 10 payload 2";
        V3 BOTH "MQTT-3.3.1.1" "all flags": [0x3d b"\0\x03a/b\xff\xffhi"] => "a/b qos 2 dup retain id 65535 payload 2";
        V3 BOTH "MQTT-3.3" "payload that looks like properties": [0x30 b"\0\x01a\x05\x01"] => "a qos 0 payload 2";
        V31 BOTH "MQTT 3.1, 2.1" "DUP at QoS 0": [0x38 b"\0\x01a"] => "a qos 0 dup payload 0";
        V3 BOTH "MQTT-4.7.3" "topic /": [0x30 b"\0\x01/"] => "/ qos 0 payload 0";
        V3 BOTH "MQTT-4.7.3" "space as topic": [0x30 b"\0\x01 "] => "  qos 0 payload 0";
        V3 BOTH "MQTT-4.7.2" "$SYS": [0x30 b"\0\x06$SYS/x"] => "$SYS/x qos 0 payload 0";
        V3 BOTH "MQTT-1.5.4-3" "U+FEFF is kept": [0x30 b"\0\x04\xef\xbb\xbfa"] => "\u{feff}a qos 0 payload 0";
        V5 BOTH "MQTT-3.3" "no properties": [0x30 b"\0\x03a/b\0"] => "a/b qos 0 payload 0";
        V5 BOTH "MQTT-3.3.1.1" "all flags": [0x3d b"\0\x03a/b\xff\xff\0hi"] => "a/b qos 2 dup retain id 65535 payload 2";
        V5 BOTH "MQTT-3.3.2.3.4" "topic and alias": [0x30 b"\0\x01a\x03\x23\0\x05"] => "a qos 0 payload 0 {alias 5, 1 in all}";
        V5 BOTH "MQTT-3.3.2.3.4" "alias only": [0x32 b"\0\0\0\x0a\x03\x23\xff\xffhi"] => " qos 1 id 10 payload 2 {alias 65535, 1 in all}";
        V5 BOTH "MQTT-3.3.2.3" "every property": [0x30 b"\0\x01a\x27\x01\x01\x02\0\0\0\0\x03\0\x04text\x08\0\x01r\x09\0\x02\0\xff\
              \x23\0\x05\x26\0\x01k\0\x01v\x26\0\x01k\0\0hi"]
            => "a qos 0 payload 2 {alias 5, response r, user k=v, user k=, 8 in all}";
        V5 SERVER "MQTT-3.3.4-3" "subscription identifiers": [0x30 b"\0\x01a\x07\x0b\x01\x0b\xff\xff\xff\x7f"] => "a qos 0 payload 0 {2 in all}";

        ALL BOTH "MQTT-3.4" "PUBACK": [0x40 b"\0\x0a"] => "Puback 10 0x00";
        ALL BOTH "MQTT-3.5" "PUBREC": [0x50 b"\xff\xff"] => "Pubrec 65535 0x00";
        ALL BOTH "MQTT-3.6" "PUBREL": [0x62 b"\0\x0a"] => "Pubrel 10 0x00";
        ALL BOTH "MQTT-3.7" "PUBCOMP": [0x70 b"\0\x0a"] => "Pubcomp 10 0x00";
        V31 BOTH "MQTT 3.1, 3.6" "PUBREL again": [0x6a b"\0\x0a"] => "Pubrel 10 0x00", written [0x62 b"\0\x0a"];
        V5 BOTH "MQTT-3.4.2.1" "code only": [0x40 b"\0\x0a\x87"] => "Puback 10 0x87";
        V5 BOTH "MQTT-3.6.2.1" "code only": [0x62 b"\0\x0a\x92"] => "Pubrel 10 0x92";
        V5 BOTH "MQTT-3.4.2.1" "success in full": [0x40 b"\0\x0a\0\0"] => "Puback 10 0x00", written [0x40 b"\0\x0a"];
        V5 BOTH "MQTT-3.5.2.2" "properties": [0x50 b"\0\x0a\x10\x0b\x1f\0\x01r\x26\0\x01k\0\x01v"]
            => "Pubrec 10 0x10 {user k=v, 2 in all}", written [0x50 b"\0\x0a\x10"];

        ALL CLIENT "MQTT-3.8" "two filters": [0x82 id b"\0\x03a/+\x01\0\x01#\x02"] => "Subscribe 10: a/+ 0x01, # 0x02";
        V31 CLIENT "MQTT 3.1, 3.8" "again": [0x8a id b"\0\x01a\0"] => "Subscribe 10: a 0x00", written [0x82 id b"\0\x01a\0"];
        V3 CLIENT "MQTT-4.7.2" "no shared subscription": [0x82 id b"\0\x09$share//a\0"] => "Subscribe 10: $share//a 0x00";
        V5 CLIENT "MQTT-3.8.3.1" "all options": [0x82 id b"\0\x01a\x2e"] => "Subscribe 10: a 0x2e";
        V5 CLIENT "MQTT-4.8.2" "shared": [0x82 id b"\0\x0a$share/g/a\x29"] => "Subscribe 10: $share/g/a 0x29";
        V5 CLIENT "MQTT-4.8.2" "No Local, not shared": [0x82 id b"\0\x06$share\x04"] => "Subscribe 10: $share 0x04";
        V5 CLIENT "MQTT-3.8.2.1" "properties": [0x82 id b"\x0b\xff\xff\xff\x7f\x26\0\x01k\0\x01v" b"\0\x01a\0"]
            => "Subscribe 10: a 0x00 {user k=v, 2 in all}";
        ALL CLIENT "MQTT-3.10" "two filters": [0xa2 id b"\0\x01a\0\x02+/"] => "Unsubscribe 10: a, +/";
        V31 CLIENT "MQTT 3.1, 3.10" "again": [0xaa id b"\0\x01a"] => "Unsubscribe 10: a", written [0xa2 id b"\0\x01a"];
        V5 CLIENT "MQTT-3.10.2.1" "user property": [0xa2 id b"\x26\0\x01k\0\x01v" b"\0\x01a"] => "Unsubscribe 10: a {user k=v, 1 in all}";
        ALL SERVER "MQTT-3.9" "a code for each filter": [0x90 id b"\0\x01\x02\x80"] => "Suback 10: [00, 01, 02, 80]";
        V5 SERVER "MQTT-3.9.2.1" "reason": [0x90 id b"\x1f\0\x01r" b"\x87"] => "Suback 10: [87] {1 in all}";
        V3 SERVER "MQTT-3.11 (3.1.1)" "without code": [0xb0 b"\0\x0a"] => "Unsuback 10: []";
        V5 SERVER "MQTT-3.11" "codes": [0xb0 id b"\0\x11"] => "Unsuback 10: [00, 11]";

        ALL CLIENT "MQTT-3.12" "PINGREQ": [0xc0 b""] => "Pingreq";
        ALL SERVER "MQTT-3.13" "PINGRESP": [0xd0 b""] => "Pingresp";
        V3 CLIENT "MQTT-3.14 (3.1.1)" "DISCONNECT": [0xe0 b""] => "Disconnect 0x00";
        V5 BOTH "MQTT-3.14.2.1" "left out": [0xe0 b""] => "Disconnect 0x00", written [0xe0 b"\0\0"];
        V5 BOTH "MQTT-3.14.2.1" "code only": [0xe0 b"\x81"] => "Disconnect 0x81", written [0xe0 b"\x81\0"];
        V5 CLIENT "MQTT-3.14.2.2.2" "expiry": [0xe0 b"\x04\x05\x11\0\0\0\x0a"] => "Disconnect 0x04 {expiry 10, 1 in all}";
        V5 SERVER "MQTT-3.14.2.2.5" "server reference": [0xe0 b"\x9c\x04\x1c\0\x01s"] => "Disconnect 0x9c {1 in all}";
        V5 BOTH "MQTT-3.15" "data": [0xf0 b"\x18\x09\x15\0\x01m\x16\0\x02\0\xff"] => "Auth 0x18 {method m, 2 in all}";
        V5 CLIENT "MQTT-3.15" "again": [0xf0 b"\x19\x04\x15\0\x01m"] => "Auth 0x19 {method m, 1 in all}";
        V5 SERVER "MQTT-3.15.2.1" "success, left out": [0xf0 b""] => "Auth 0x00";
    }
}

fn describe(read: &Read<'_>) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let (text, properties) = match read.packet {
        Packet::Publish(publish) => {
            let flag = |is_set, name| if is_set { name } else { "" };
            let id = publish.packet_id.map(|id| format!(" id {id}")).unwrap_or_default();
            let flags = [flag(publish.dup, " dup"), flag(publish.retain, " retain")].concat();
            let text = format!("{} qos {}{flags}{id} payload {}", publish.topic, publish.qos, read.payload_len());
            (text, publish.properties)
        }
        Packet::Ack(ack) => (format!("{:?} {} {:#04x}", ack.packet_type, ack.packet_id, ack.code), ack.properties),
        Packet::Subscribe(subscribe) => {
            let one = |one: Subscription<'_>| format!("{} {:#04x}", one.filter.as_str(), one.options);
            let filters = list(subscribe.subscriptions().map(one).collect());
            (format!("Subscribe {}: {filters}", subscribe.packet_id), subscribe.properties)
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters = list(unsubscribe.filters().map(|filter| filter.as_str().to_owned()).collect());
            (format!("Unsubscribe {}: {filters}", unsubscribe.packet_id), unsubscribe.properties)
        }
        Packet::Suback(suback) => (format!("Suback {}: {:02x?}", suback.packet_id, suback.codes), suback.properties),
        Packet::Unsuback(suback) => {
            (format!("Unsuback {}: {:02x?}", suback.packet_id, suback.codes), suback.properties)
        }
        Packet::Pingreq | Packet::Pingresp => (format!("{:?}", read.packet), Properties::default()),
        Packet::Disconnect(reasoned) => (format!("Disconnect {:#04x}", reasoned.code), reasoned.properties),
        Packet::Auth(reasoned) => (format!("Auth {:#04x}", reasoned.code), reasoned.properties),
    };
    if properties.is_empty() {
        return text;
    }
    let mut known = Vec::new();
    known.extend(properties.topic_alias().map(|alias| format!("alias {alias}")));
    known.extend(properties.response_topic().map(|topic| format!("response {topic}")));
    known.extend(properties.session_expiry_interval().map(|seconds| format!("expiry {seconds}")));
    known.extend(properties.authentication_method().map(|method| format!("method {method}")));
    known.extend(properties.user_properties().map(|(name, value)| format!("user {name}={value}")));
    known.push(format!("{} in all", properties.iter().count()));
    format!("{text} {{{}}}", list(known))
}

#[test]
fn illegal_packets_are_refused_for_the_right_reason() {
    for Vector { version, sender, clause, what, bytes, expected } in refused() {
        let result = read(&bytes, version, sender);
        assert_eq!(result, Err(expected), "[{clause}] {what}, {version:?}, {sender:?}: {bytes:02x?}");
        // Bytes behind the packet change nothing.
        let header = FixedHeader::decode(&bytes);
        if header.is_ok_and(|header| header.is_some_and(|header| header.packet_len() == bytes.len())) {
            for behind in [0x00, 0xff] {
                let stream = [&bytes[..], &[behind; 16]].concat();
                let result = read(&stream, version, sender);
                assert_eq!(result, Err(expected), "[{clause}] {what}, followed by {behind:#x}");
            }
        }
    }
}

#[test]
fn legal_packets_are_accepted_and_written_as_they_came() {
    for Vector { version, sender, clause, what, bytes, expected: (text, written) } in accepted() {
        let row = format!("[{clause}] {what}, {version:?}, {sender:?}: {bytes:02x?}");
        let read = read(&bytes, version, sender).unwrap_or_else(|error| panic!("{row}: {error}")).unwrap();
        assert_eq!(describe(&read), text, "{row}");
        assert_eq!(stream::encode(&read, version), written.as_deref().unwrap_or(read.head), "{row}");
        assert_eq!(stream::check(&bytes, version, sender), 1, "{row}");
    }
}

#[test]
fn every_rule_of_these_packets_has_a_vector() {
    // The other rules are those of CONNECT and CONNACK, and one that needs to know what CONNECT has requested.
    let elsewhere = [
        Rule::FirstPacketNotConnect,
        Rule::ReservedConnectFlag,
        Rule::WillFlagsWithoutWill,
        Rule::WillQos,
        Rule::PasswordWithoutUsername,
        Rule::ClientIdRequired,
        Rule::AuthWithoutMethod,
        Rule::AcknowledgeFlags,
    ];
    let refused = refused();
    for rule in Rule::ALL {
        let has_vector = refused.iter().any(|vector| vector.expected == Error::from(*rule));
        assert_ne!(has_vector, elsewhere.contains(rule), "{rule:?}");
    }
}

#[test]
fn every_reason_code_is_judged_by_packet_and_sender() {
    let publish = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    let disconnect = [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
    // The first byte, what is in front of the code, what is behind it, the codes that a client may send.
    for (first, front, behind, known) in [
        (0x40, &b"\0\x0a"[..], &b""[..], &publish[..]), // Section 3.4.2.1.
        (0x50, b"\0\x0a", b"", &publish),               // Section 3.5.2.1.
        (0x62, b"\0\x0a", b"", &[0x00, 0x92]),          // Section 3.6.2.1.
        (0x70, b"\0\x0a", b"", &[0x00, 0x92]),          // Section 3.7.2.1.
        (0xe0, b"", b"", &disconnect),                  // Section 3.14.2.1.
        (0xf0, b"", b"\x04\x15\0\x01m", &[0x18, 0x19]), // Section 3.15.2.1.
    ] {
        for code in 0..=u8::MAX {
            let bytes = packet(first, &[front, &[code], behind].concat());
            let result = read(&bytes, Version::V5, Sender::Client);
            if known.contains(&code) {
                assert!(result.is_ok(), "[MQTT-2.4] {first:#x} {code:#x}: {result:?}");
            } else {
                assert_eq!(result, Err(Rule::ReasonCode.into()), "[MQTT-2.4] {first:#x} {code:#x}");
            }
            // A gateway decides nothing by the codes of a server.
            assert!(read(&bytes, Version::V5, Sender::Server).is_ok(), "{first:#x} {code:#x}");
        }
    }
}
