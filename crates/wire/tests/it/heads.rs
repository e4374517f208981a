//! Where the heads of packets end, and what the encoders write.

use std::num::NonZeroU16;

use portcullis_wire::{
    Ack, FixedHeader, Packet, PacketType, Properties, PropertiesBuf, Rule, Sender, Subscription, TopicFilter, Version,
    encode_with_id, head_len, put_filter,
};

use crate::packets::{ALL, V3, V5, Vector, accepted, refused};
use crate::raw::{block, field, packet, packet_with_id, varint};
use crate::stream::{self, read};

#[test]
fn every_prefix_is_told_how_long_the_head_is_or_to_wait() {
    for Vector { version, sender, what, bytes, .. } in accepted() {
        let read = read(&bytes, version, sender).unwrap().unwrap();
        let (header, head) = (read.header, read.head.len());
        for cut in 0..=bytes.len() {
            let known = head_len(&bytes[..cut], header, version);
            // The last byte of the head is that of the topic, of the packet identifier, or of the properties.
            let must_be_known = cut >= head || header.packet_type != PacketType::Publish;
            assert!(known == Ok(Some(head)) || known == Ok(None) && !must_be_known, "{what}: {cut}: {known:?}");
        }
    }
    for Vector { version, sender, what, bytes, .. } in refused() {
        assert_eq!(stream::check(&bytes, version, sender), 0, "{what}: the same error, whatever has arrived");
        for cut in 0..=bytes.len() {
            let Ok(Some(header)) = FixedHeader::decode(&bytes[..cut]) else { continue };
            if let Ok(Some(len)) = head_len(&bytes[..cut], header, version) {
                assert!(len <= header.packet_len(), "{what}: {len}");
            }
        }
    }
}

#[test]
fn a_payload_of_256_mib_needs_the_head_only() {
    let properties = block(b"\x26\0\x01k\0\x01v");
    for (version, properties) in [(Version::V31, &[][..]), (Version::V311, &[]), (Version::V5, &properties)] {
        let head = [b"\x32\xff\xff\xff\x7f\0\x03a/b\0\x0a", properties].concat();
        let read = read(&head, version, Sender::Client).unwrap().unwrap();
        assert_eq!((read.head, read.payload_len()), (&head[..], 268_435_455 + 5 - head.len()));
        assert_eq!(stream::encode(&read, version), head);
    }
}

#[test]
fn a_length_past_the_end_of_the_packet_is_refused_as_soon_as_it_is_known() {
    let packet_length = Rule::PacketLength;
    // The versions, the last bytes that leave it open, the byte that decides, the rule.
    for (versions, open, byte, rule) in [
        (ALL, &b"\x30"[..], 0x00, packet_length), // No room for the length of the topic.
        (ALL, b"\x30", 0x01, packet_length),      // Nor here.
        (ALL, b"\x30\x05\x00", 0x04, packet_length), // One byte too long.
        (ALL, b"\x30\x05\xff", 0xff, packet_length), // As long as a topic can be.
        (ALL, b"\x32\x05\x00", 0x02, packet_length), // One byte is left for the packet identifier.
        (V5, b"\x32\x06\x00", 0x02, packet_length), // None is left for the length of the properties.
        (V5, b"\x30\x06\x00\x01a", 0x03, packet_length), // One byte too long.
        (V5, b"\x30\x06\x00\x01a\xff", 0x7f, packet_length), // In two bytes.
        (V5, b"\x30\x04\x00\x01a", 0x80, packet_length), // The packet ends inside the length.
        (V5, b"\x30\x7f\x00\x01a\xff\xff\xff", 0xff, Rule::RemainingLength),
    ] {
        for version in versions {
            let known = |bytes: &[u8]| match FixedHeader::decode(bytes)? {
                Some(header) => head_len(bytes, header, *version),
                None => Ok(None),
            };
            assert_eq!(known(open), Ok(None), "{version:?} {open:02x?}");
            assert_eq!(known(&[open, &[byte]].concat()), Err(rule.into()), "{version:?} {open:02x?} {byte:02x}");
        }
    }
    // Where there is just enough room, it is accepted.
    let header = |bytes| FixedHeader::decode(bytes).unwrap().unwrap();
    for (bytes, version, len) in [
        (&b"\x30\x05\x00\x03"[..], Version::V311, 7),
        (b"\x32\x05\x00\x01", Version::V311, 7),
        (b"\x30\x06\x00\x01a\x02", Version::V5, 8),
    ] {
        assert_eq!(head_len(bytes, header(bytes), version), Ok(Some(len)), "{bytes:02x?}");
    }
}

#[test]
fn a_length_with_leading_zeros_is_written_without_them_before_mqtt_5() {
    for (padded, shortest) in [
        (&b"\x30\x84\x00\x00\x01ab"[..], &b"\x30\x04\x00\x01a"[..]),
        (b"\x40\x82\x80\x80\x00\x00\x0a", b"\x40\x02\x00\x0a"),
        (b"\x82\x86\x80\x00\x00\x0a\x00\x01a\x00", b"\x82\x06\x00\x0a\x00\x01a\x00"),
    ] {
        for version in V3 {
            let padded = read(padded, *version, Sender::Client).unwrap().unwrap();
            assert_eq!(stream::encode(&padded, *version), shortest);
        }
        assert_eq!(read(padded, Version::V5, Sender::Client), Err(Rule::RemainingLength.into()), "[MQTT-1.5.5-1]");
    }
}

#[test]
fn lengths_around_the_powers_of_128_are_written_in_the_fewest_bytes() {
    let write = |bytes: &[u8], version, sender| {
        let read = read(bytes, version, sender).unwrap().unwrap();
        assert_eq!(stream::encode(&read, version), read.head);
        assert_eq!(stream::check(bytes, version, sender), 1);
        (read.head.len(), read.payload_len())
    };
    for (version, properties) in [(Version::V311, &b""[..]), (Version::V5, b"\0")] {
        for topic_len in [1, 124, 125, 126, 255, 256, 16_380, 16_381, 16_382, 65_535] {
            let topic = "t".repeat(topic_len);
            let body = [&u16::try_from(topic_len).unwrap().to_be_bytes(), topic.as_bytes(), properties].concat();
            for payload_len in [0, 1, 2_097_151 - body.len(), 2_097_152 - body.len()] {
                let head = [&[0x31], &varint(body.len() + payload_len)[..], &body].concat();
                assert_eq!(write(&head, version, Sender::Server), (head.len(), payload_len));
            }
        }
    }
    for properties_len in [127, 128, 16_383, 16_384] {
        let value = "v".repeat(properties_len - b"\x26\0\x01k\0\0".len());
        let property = [b"\x26\0\x01k", &field(value.as_bytes())[..]].concat();
        assert_eq!(property.len(), properties_len);
        let bytes = packet_with_id(0xa2, 10, Version::V5, &property, b"\0\x01a");
        assert_eq!(write(&bytes, Version::V5, Sender::Client), (bytes.len(), 0));
    }
}

#[test]
fn mqtt_3_1_ignores_the_upper_bits_of_the_options() {
    // "The upper 6 bits of this byte are not used" (MQTT 3.1, section 3.8).
    let bytes = packet_with_id(0x82, 10, Version::V31, b"", b"\0\x01a\xfd");
    let Packet::Subscribe(subscribe) = read(&bytes, Version::V31, Sender::Client).unwrap().unwrap().packet else {
        panic!("another packet")
    };
    assert_eq!(subscribe.subscriptions().map(|one| one.qos()).collect::<Vec<_>>(), [1]);
    let bytes = packet_with_id(0x82, 10, Version::V31, b"", b"\0\x01a\xff");
    assert_eq!(read(&bytes, Version::V31, Sender::Client), Err(Rule::SubscriptionQos.into()));
}

#[test]
fn a_prefix_goes_in_front_of_the_filter_and_behind_the_share_name() {
    let id = NonZeroU16::new(10).unwrap();
    for (filter, expected) in [
        ("a/+", "t/a/+"),
        ("#", "t/#"),
        ("$SYS/#", "t/$SYS/#"),
        ("$share/g/a", "$share/g/t/a"),
        ("$share/g//a", "$share/g/t//a"),
        ("$share/g/g", "$share/g/t/g"),
        ("$share/g/$share/g/a", "$share/g/t/$share/g/a"),
        ("$share", "t/$share"),
    ] {
        let subscription = Subscription { filter: TopicFilter::new(filter).unwrap(), options: 0x29 };
        let (mut payload, mut out) = (Vec::new(), Vec::new());
        subscription.with_qos(0).encode("t/", &mut payload);
        encode_with_id(PacketType::Subscribe, id, Version::V5, &Properties::default(), &payload, &mut out);
        let field = [&[0, u8::try_from(expected.len()).unwrap()], expected.as_bytes()].concat();
        assert_eq!(out, packet_with_id(0x82, 10, Version::V5, b"", &[&field[..], &[0x28]].concat()), "{filter}");
        payload.clear();
        put_filter(subscription.filter, "t/", &mut payload);
        assert_eq!(payload, field, "{filter}");
    }
}

#[test]
fn properties_that_are_made_anew_are_written_in_mqtt_5_only() {
    let id = NonZeroU16::new(10).unwrap();
    let mut properties = PropertiesBuf::default();
    properties.push_user("k", "v");
    for version in ALL {
        let (mut suback, mut puback) = (Vec::new(), Vec::new());
        encode_with_id(PacketType::Suback, id, *version, &properties.as_properties(), b"\x80", &mut suback);
        assert_eq!(suback, packet_with_id(0x90, 10, *version, b"\x26\0\x01k\0\x01v", b"\x80"));
        Ack::encode(PacketType::Puback, id, *version, 0x87, &mut puback);
        let expected: &[u8] = if *version == Version::V5 { b"\0\x0a\x87" } else { b"\0\x0a" };
        assert_eq!(puback, packet(0x40, expected), "before MQTT 5 there is no code");
    }
}
