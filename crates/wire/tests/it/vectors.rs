//! Single packets, clause by clause of the specification.

use portcullis_wire::{Connect, Error, Limits, Rule, Version};

use crate::raw::{Raw, field, varint};

fn decode(bytes: &[u8]) -> Result<Option<(Connect<'_>, usize)>, Error> {
    Connect::decode(bytes, Limits::default())
}

fn accepted(raw: &Raw) -> (Raw, String) {
    let bytes = raw.bytes();
    let (connect, used) = decode(&bytes).unwrap_or_else(|error| panic!("{error}: {raw:?}")).unwrap();
    assert_eq!(used, bytes.len());
    let mut encoded = Vec::new();
    connect.encode(&mut encoded).unwrap();
    assert_eq!(encoded, bytes, "no field was assigned, so no byte may change");
    (raw.clone(), format!("{connect:?}"))
}

/// A row: the clause, what is wrong, the packet, the expected result.
type Vector = (&'static str, &'static str, Raw, Error);

fn refused(clause: &'static str, what: &'static str, raw: Raw, rule: Rule) -> Vector {
    (clause, what, raw, rule.into())
}

#[test]
fn illegal_packets_are_refused_for_the_right_reason() {
    let with_name = |name: &[u8], level| Raw { name: name.to_vec(), level, ..Raw::new(4) };
    let v5 = |properties: &[u8]| Raw::new(5).properties(properties);
    let will5 = |properties: &[u8]| {
        let mut payload = field(b"thing001");
        payload.extend(varint(properties.len()));
        payload.extend(properties);
        payload.extend(field(b"t"));
        payload.extend(field(b"gone"));
        Raw::new(5).flags(0x06).payload(&payload)
    };
    let vectors = [
        refused("MQTT-3.1.0-1", "PUBLISH first", Raw { first_byte: 0x30, ..Raw::new(4) }, Rule::FirstPacketNotConnect),
        refused("MQTT-3.1.0-1", "type 0 first", Raw { first_byte: 0x00, ..Raw::new(4) }, Rule::FirstPacketNotConnect),
        refused("MQTT-2.1.3-1", "header flags", Raw { first_byte: 0x11, ..Raw::new(4) }, Rule::FixedHeaderFlags),
        ("MQTT-3.1.2-1", "lower-case name", with_name(b"mqtt", 4), Error::Unsupported),
        ("MQTT-3.1.2-1", "empty name", with_name(b"", 4), Error::Unsupported),
        ("MQTT-3.1.2-1", "name with a tail", with_name(b"MQTTT", 4), Error::Unsupported),
        ("MQTT-3.1.2-2", "level 6", with_name(b"MQTT", 6), Error::Unsupported),
        ("MQTT-3.1.2-2", "MQTT with level 3", with_name(b"MQTT", 3), Error::Unsupported),
        ("MQTT-3.1.2-2", "MQIsdp with level 4", with_name(b"MQIsdp", 4), Error::Unsupported),
        ("MQTT-3.1.2-2", "a bridge's level 0x84", with_name(b"MQTT", 0x84), Error::Unsupported),
        refused("MQTT-3.1.2-3", "reserved flag", Raw::new(4).flags(0x03), Rule::ReservedConnectFlag),
        refused("MQTT-3.1.2-3", "reserved flag", Raw::new(5).flags(0x03), Rule::ReservedConnectFlag),
        refused("MQTT-3.1.2-11", "will QoS without will", Raw::new(4).flags(0x0a), Rule::WillFlagsWithoutWill),
        refused("MQTT-3.1.2-13", "will retain without will", Raw::new(5).flags(0x22), Rule::WillFlagsWithoutWill),
        refused("MQTT-3.1.2-12", "will QoS 3", Raw::new(4).flags(0x1e).fields(&[b"c", b"t", b"m"]), Rule::WillQos),
        refused("MQTT-3.1.2-12", "will QoS 3", Raw::new(3).flags(0x1e).fields(&[b"c", b"t", b"m"]), Rule::WillQos),
        refused(
            "MQTT-3.1.2-22 (3.1.1)",
            "password without username",
            Raw::new(4).flags(0x42).fields(&[b"c", b"p"]),
            Rule::PasswordWithoutUsername,
        ),
        refused(
            "MQTT 3.1, 3.1 \"Connect flags\"",
            "password without username",
            Raw::new(3).flags(0x42).fields(&[b"c", b"p"]),
            Rule::PasswordWithoutUsername,
        ),
        refused("MQTT-3.1.3-1", "no client ID at all", Raw::new(4).payload(b""), Rule::PacketLength),
        refused("MQTT-3.1.2-17", "username flag, no username", Raw::new(4).flags(0x82), Rule::PacketLength),
        refused("MQTT-3.1.2-16", "username without its flag", Raw::new(4).fields(&[b"c", b"u"]), Rule::TrailingBytes),
        refused("MQTT-3.1.2-9", "will flag, no will", Raw::new(4).flags(0x06), Rule::PacketLength),
        refused("MQTT-1.5.4", "string past the end", Raw::new(4).payload(b"\x00\x09thing001"), Rule::PacketLength),
        refused("MQTT-1.5.4-1", "truncated UTF-8", Raw::new(4).fields(&[b"a\xc3"]), Rule::Utf8),
        refused("MQTT-1.5.4-1", "overlong UTF-8", Raw::new(4).fields(&[b"\xc0\x80"]), Rule::Utf8),
        refused("MQTT-1.5.4-1", "surrogate U+D800", Raw::new(5).fields(&[b"\xed\xa0\x80"]), Rule::Utf8),
        refused("MQTT-1.5.4-1", "past U+10FFFF", Raw::new(5).fields(&[b"\xf4\x90\x80\x80"]), Rule::Utf8),
        refused("MQTT-1.5.4-1", "username", Raw::new(4).flags(0x82).fields(&[b"c", b"\xff"]), Rule::Utf8),
        refused("MQTT-1.5.4-2", "U+0000 in client ID", Raw::new(4).fields(&[b"a\0b"]), Rule::NullCharacter),
        refused("MQTT-1.5.4-2", "U+0000 in client ID", Raw::new(3).fields(&[b"a\0b"]), Rule::NullCharacter),
        refused("MQTT-1.5.4-2", "in username", Raw::new(5).flags(0x82).fields(&[b"c", b"\0"]), Rule::NullCharacter),
        refused("MQTT-4.7.1-1", "will topic", Raw::new(4).flags(0x06).fields(&[b"c", b"a/#", b""]), Rule::TopicName),
        refused("MQTT-4.7.1-1", "will topic", Raw::new(3).flags(0x06).fields(&[b"c", b"+/a", b""]), Rule::TopicName),
        refused("MQTT-4.7.3-1", "will topic", Raw::new(4).flags(0x06).fields(&[b"c", b"", b""]), Rule::TopicName),
        refused("MQTT-2.2.2.2", "unknown property 0x7f", v5(b"\x7f\x00"), Rule::PropertyUnknown),
        refused("MQTT-2.2.2.2", "will's property in CONNECT", v5(b"\x18\0\0\0\0"), Rule::PropertyUnknown),
        refused("MQTT-2.2.2.2", "CONNECT's in the will", will5(b"\x11\0\0\0\0"), Rule::PropertyUnknown),
        refused("MQTT-3.1.2.11.2", "session expiry twice", v5(b"\x11\0\0\0\0\x11\0\0\0\0"), Rule::PropertyTwice),
        refused("MQTT-3.1.2.11.3", "receive maximum 0", v5(b"\x21\0\0"), Rule::PropertyValue),
        refused("MQTT-3.1.2.11.4", "maximum packet size 0", v5(b"\x27\0\0\0\0"), Rule::PropertyValue),
        refused("MQTT-3.1.2.11.6", "response information 2", v5(b"\x19\x02"), Rule::PropertyValue),
        refused("MQTT-3.1.2.11.7", "problem information 2", v5(b"\x17\x02"), Rule::PropertyValue),
        refused("MQTT-3.1.2.11.10", "data, no method", v5(b"\x16\x00\x01x"), Rule::AuthDataWithoutMethod),
        refused("MQTT-3.1.3.2.3", "payload format 2", will5(b"\x01\x02"), Rule::PropertyValue),
        refused("MQTT-3.3.2-14", "response topic #", will5(b"\x08\x00\x01#"), Rule::TopicName),
        refused("MQTT-2.2.2.1", "property cut short", v5(b"\x11\0\0"), Rule::PacketLength),
        refused("MQTT-1.5.7", "pair without value", v5(b"\x26\x00\x01k"), Rule::PacketLength),
        refused("MQTT-1.5.4-2", "U+0000 in property", v5(b"\x26\x00\x01k\x00\x01\0"), Rule::NullCharacter),
        refused("MQTT-1.5.5-1", "long property length", Raw::new(5).properties_raw(b"\x80\x00"), Rule::RemainingLength),
        refused("MQTT-2.2.2", "no properties in MQTT 5", Raw::new(5).properties_raw(b""), Rule::PacketLength),
    ];
    for (clause, what, raw, error) in vectors {
        assert_eq!(decode(&raw.bytes()), Err(error), "[{clause}] {what}");
    }
}

impl Raw {
    /// Replaces the property block, including its length.
    fn properties_raw(mut self, bytes: &[u8]) -> Self {
        self.properties = None;
        self.payload = [bytes, &self.payload].concat();
        self
    }
}

#[test]
fn legal_packets_are_accepted_and_written_as_they_came() {
    for level in [3, 4, 5] {
        accepted(&Raw::new(level));
        accepted(&Raw::new(level).flags(0xc2).fields(&[b"c", b"user", b"\x00\xffsecret"]));
        accepted(&Raw::new(level).flags(0x82).fields(&[b"c", b""]));
        accepted(&Raw::new(level).flags(0x00));
        accepted(&Raw::new(level).fields(&["gerät-東京-🛰".as_bytes()]));
        accepted(&Raw::new(level).fields(&[b"c\x01\x7f"]));
        for len in [23, 24, 255, 256, 300, 65_535] {
            accepted(&Raw::new(level).fields(&[&vec![b'x'; len]]));
            accepted(&Raw::new(level).flags(0xc2).fields(&[b"c", &vec![b'u'; len], &vec![b'p'; len]]));
        }
    }
    for qos in [0x00, 0x08, 0x10] {
        for retain in [0x00, 0x20] {
            accepted(&Raw::new(4).flags(0x06 | qos | retain).fields(&[b"c", b"a/b", b"gone"]));
            accepted(&Raw::new(3).flags(0xc6 | qos | retain).fields(&[b"c", b"a/b", b"", b"u", b"p"]));
        }
    }
}

#[test]
fn mqtt_5_in_full() {
    let properties = b"\x11\0\0\x0e\x10\x21\0\x0a\x27\0\x01\0\0\x22\0\x05\x19\x01\x17\0\x26\0\x01k\0\x01v\
                       \x26\0\x01k\0\x01w\x15\0\x05SCRAM\x16\0\x02\0\xff";
    let will_properties =
        b"\x18\0\0\0\x0a\x01\x01\x02\0\0\0\x3c\x03\0\x04text\x08\0\x01r\x09\0\x01\0\x26\0\x01a\0\x01b";
    let mut payload = field(b"thing001");
    payload.extend(varint(will_properties.len()));
    payload.extend(will_properties);
    payload.extend([field(b"a/b"), field(b"gone"), field(b"\xffp")].concat());
    let raw = Raw::new(5).flags(0x6e).properties(properties).payload(&payload);
    accepted(&raw);
    let bytes = raw.bytes();
    let connect = decode(&bytes).unwrap().unwrap().0;
    assert_eq!(connect.version, Version::V5);
    assert_eq!(connect.properties.user_properties().collect::<Vec<_>>(), [("k", "v"), ("k", "w")]);
    assert_eq!(connect.properties.authentication_method(), Some("SCRAM"));
    let will = connect.will.unwrap();
    assert_eq!((will.qos, will.retain, will.topic, will.payload), (1, true, "a/b", &b"gone"[..]));
    assert_eq!((connect.username, connect.password), (None, Some(&b"\xffp"[..])), "[MQTT-3.1.2-17] allowed in 5");
}

#[test]
fn rewriting_touches_the_assigned_fields_only() {
    // The will of a 3.1.1 CONNECT and the order of the payload [MQTT-3.1.3-1] survive; flags and length are computed.
    let raw = Raw::new(4).flags(0x2e).fields(&[b"old", b"a/b", b"gone"]);
    let bytes = raw.bytes();
    let mut connect = decode(&bytes).unwrap().unwrap().0;
    let long = "n".repeat(300);
    (connect.client_id, connect.username, connect.password) = (&long, Some("CN=thing001"), Some(b"pw".as_slice()));
    let mut encoded = Vec::new();
    connect.encode(&mut encoded).unwrap();
    let expected = Raw::new(4).flags(0xee).fields(&[long.as_bytes(), b"a/b", b"gone", b"CN=thing001", b"pw"]).bytes();
    assert_eq!(encoded, expected);
    (connect.username, connect.password) = (None, None);
    encoded.clear();
    connect.encode(&mut encoded).unwrap();
    assert_eq!(encoded, Raw::new(4).flags(0x2e).fields(&[long.as_bytes(), b"a/b", b"gone"]).bytes());
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing_behind() {
    let bytes = Raw::new(4).bytes();
    let connect = decode(&bytes).unwrap().unwrap().0;
    let too_long = "x".repeat(65_536);
    let refused = |connect: Connect<'_>| {
        let mut out = vec![7];
        let error = connect.encode(&mut out).unwrap_err();
        assert_eq!(out, [7]);
        error
    };
    assert_eq!(refused(Connect { client_id: "a\0b", ..connect }), Rule::NullCharacter.into());
    assert_eq!(refused(Connect { username: Some("\0"), ..connect }), Rule::NullCharacter.into());
    assert_eq!(refused(Connect { username: Some(&too_long), ..connect }), Error::TooLarge);
    assert_eq!(refused(Connect { password: Some(b"p".as_slice()), ..connect }), Rule::PasswordWithoutUsername.into());
    assert!(
        Connect { version: Version::V5, password: Some(b"p".as_slice()), ..connect }.encode(&mut Vec::new()).is_ok()
    );
}

#[test]
fn an_empty_client_id_is_judged_by_version() {
    for (level, flags, is_legal) in [(3, 2, false), (4, 2, true), (4, 0, false), (5, 2, true), (5, 0, true)] {
        let bytes = Raw::new(level).flags(flags).fields(&[b""]).bytes();
        let connect = decode(&bytes).unwrap().unwrap().0;
        let expected = if is_legal { Ok(()) } else { Err(Rule::ClientIdRequired.into()) };
        assert_eq!(connect.check_client_id(), expected, "[MQTT-3.1.3-8] level {level}, flags {flags:#x}");
    }
}

#[test]
fn mqtt_3_1_has_its_own_rules() {
    // "Remaining length takes precedence over the user name flag" (MQTT 3.1, section 3.1).
    let bytes = Raw::new(3).flags(0xc2).bytes();
    let connect = decode(&bytes).unwrap().unwrap().0;
    assert_eq!((connect.username, connect.password), (None, None));
    // Unused bits, and the will's bits without a will, are ignored, and encoded as 0.
    let bytes = Raw::new(3).flags(0x3b).bytes();
    let mut encoded = Vec::new();
    decode(&bytes).unwrap().unwrap().0.encode(&mut encoded).unwrap();
    assert_eq!(encoded, Raw::new(3).flags(0x02).bytes());
}

#[test]
fn a_length_with_leading_zeros_is_forbidden_in_mqtt_5_only() {
    for (level, expected) in [(4, Ok(())), (5, Err(Error::Malformed(Rule::RemainingLength)))] {
        let bytes = Raw::new(level).bytes();
        let (length, body) = (bytes[1], &bytes[2..]);
        let padded = [&[0x10, length | 0x80, 0x80, 0x00], body].concat();
        assert_eq!(decode(&padded).map(|_| ()), expected, "[MQTT-1.5.5-1] level {level}");
    }
}

#[test]
fn limits_and_garbage_are_answered_before_the_packet_is_whole() {
    let limits = Limits { max_packet_len: 64 };
    assert_eq!(Connect::decode(b"\x10\xff\xff\xff\x7f", limits), Err(Error::TooLarge), "256 MiB");
    assert_eq!(Connect::decode(b"\x10\x3f", limits), Err(Error::TooLarge), "65 bytes");
    assert_eq!(Connect::decode(b"\x10\x3e", limits), Ok(None), "64 bytes");
    // The first byte of a TLS record decodes as CONNECT with reserved flags.
    assert_eq!(Connect::decode(b"\x16\x03\x01\x02", limits), Err(Rule::FixedHeaderFlags.into()), "TLS");
    assert_eq!(Connect::decode(b"GET /", limits), Err(Rule::FirstPacketNotConnect.into()), "HTTP");
    assert_eq!(Connect::decode(b"\x10\x20\x00\x04HTTP", limits), Err(Error::Unsupported));
    let empty_with_tail = Connect::decode(b"\x10\x00\xa5", limits);
    assert_eq!(empty_with_tail, Err(Rule::PacketLength.into()), "bytes after a packet do not affect it");
    assert_eq!(Connect::decode(b"\x10\xff\xff\xff\xff", limits), Err(Rule::RemainingLength.into()));
}

#[test]
fn mqtt_3_1_does_not_use_the_flags_of_the_fixed_header() {
    for flags in 1..16 {
        let packet = |level| Raw { first_byte: 0x10 | flags, ..Raw::new(level) }.bytes();
        let bytes = packet(3);
        let (connect, used) = decode(&bytes).unwrap().unwrap();
        assert_eq!((connect.version, used), (Version::V31, bytes.len()));
        // What the gateway writes itself has none.
        let mut encoded = Vec::new();
        connect.encode(&mut encoded).unwrap();
        assert_eq!(encoded, Raw::new(3).bytes());
        for level in [4, 5] {
            assert_eq!(decode(&packet(level)), Err(Rule::FixedHeaderFlags.into()), "level {level}");
        }
        // As soon as it is known that the packet is not of MQTT 3.1.
        assert_eq!(decode(&bytes[..2]), Ok(None));
        assert_eq!(decode(&packet(4)[..4]), Err(Rule::FixedHeaderFlags.into()));
    }
}

#[test]
fn the_largest_packet_that_a_client_accepts() {
    let size = |properties: &[u8]| {
        let bytes = Raw::new(5).properties(properties).bytes();
        let (connect, _) = decode(&bytes).unwrap().unwrap();
        connect.properties.maximum_packet_size()
    };
    assert_eq!(size(b""), None);
    assert_eq!(size(b"\x27\x00\x00\x00\x02"), Some(2));
    assert_eq!(size(b"\x26\x00\x01a\x00\x01b\x27\x00\x01\x00\x00\x21\x00\x05"), Some(65_536));
}

#[test]
fn the_password_is_not_in_the_debug_text() {
    let (_, text) = accepted(&Raw::new(4).flags(0xc2).fields(&[b"c", b"user", b"hunter2"]));
    assert!(text.contains("user") && !text.contains("hunter2") && !text.contains("104, 117"), "{text}");
}

#[test]
fn a_malformed_or_unsupported_packet_is_answered_in_the_nearest_version() {
    let bytes = Raw::new(5).flags(0x03).bytes();
    assert_eq!(Connect::version_to_answer_in(&bytes), Some(Version::V5));
    assert_eq!(Connect::version_to_answer_in(&bytes[..6]), None);
    assert_eq!(Connect::version_to_answer_in(b"\x30\x09\x00\x04MQTT\x05"), None);
    for (level, version) in [(3, Version::V311), (6, Version::V5), (0x84, Version::V311), (0x85, Version::V5)] {
        let bytes = Raw { name: b"MQTT".to_vec(), level, ..Raw::new(4) }.bytes();
        assert_eq!(Connect::version_to_answer_in(&bytes), Some(version), "[MQTT-3.1.2-2] level {level}");
    }
}
