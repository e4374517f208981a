//! Properties that hold for every CONNECT, and a differential test against an independent codec.

use bytes::BytesMut;
use portcullis_wire::{Connect, Limits, Version};
use proptest::prelude::*;
use rmqtt_codec::{MqttCodec, MqttPacket, v3, v5};
use tokio_util::codec::Decoder;

use crate::raw::{Raw, field, varint};

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>().prop_filter("U+0000 is refused", |c| *c != '\0'), 0..max)
        .prop_map(String::from_iter)
}

fn topic() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/äß]{1,30}"
}

fn user_properties() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((text(6), text(6)), 0..3).prop_map(|pairs| {
        pairs.iter().flat_map(|(k, v)| [vec![0x26], field(k.as_bytes()), field(v.as_bytes())].concat()).collect()
    })
}

/// Generates every kind of valid CONNECT, encoded without the code under test.
fn legal() -> impl Strategy<Value = Vec<u8>> {
    let will = prop::option::of((0_u8..3, any::<bool>(), topic(), prop::collection::vec(any::<u8>(), 0..40)));
    let credentials = (prop::option::of(text(20)), prop::option::of(prop::collection::vec(any::<u8>(), 0..20)));
    (3_u8..=5, any::<bool>(), any::<u16>(), text(40), will, credentials, user_properties(), user_properties()).prop_map(
        |(level, clean, keep_alive, client_id, will, (username, password), properties, will_properties)| {
            let mut flags = if clean { 2 } else { 0 };
            let mut payload = field(client_id.as_bytes());
            if let Some((qos, retain, topic, message)) = will {
                flags |= 4 | qos << 3 | u8::from(retain) << 5;
                if level == 5 {
                    payload.extend(varint(will_properties.len()));
                    payload.extend(will_properties);
                }
                payload.extend([field(topic.as_bytes()), field(&message)].concat());
            }
            if let Some(username) = &username {
                flags |= 0x80;
                payload.extend(field(username.as_bytes()));
            }
            if let Some(password) = password.filter(|_| level == 5 || username.is_some()) {
                flags |= 0x40;
                payload.extend(field(&password));
            }
            let raw = Raw { keep_alive, ..Raw::new(level) }.flags(flags).payload(&payload);
            if level == 5 { raw.properties(&properties).bytes() } else { raw.bytes() }
        },
    )
}

proptest! {
    #[test]
    fn decoding_and_encoding_is_the_identity_whatever_follows(bytes in legal(), behind in any::<Vec<u8>>()) {
        let stream = [&bytes[..], &behind].concat();
        let (connect, used) = Connect::decode(&stream, Limits::default()).unwrap().unwrap();
        prop_assert_eq!(used, bytes.len());
        let mut encoded = Vec::new();
        connect.encode(&mut encoded).unwrap();
        prop_assert_eq!(encoded, bytes);
    }

    #[test]
    fn every_prefix_asks_for_more(bytes in legal()) {
        for cut in 0..bytes.len() {
            prop_assert_eq!(Connect::decode(&bytes[..cut], Limits::default()), Ok(None));
        }
    }

    #[test]
    fn a_verdict_on_a_prefix_is_the_verdict_on_the_whole(bytes in legal(), at in any::<prop::sample::Index>(), to: u8) {
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        bytes[at] = to;
        let whole = Connect::decode(&bytes, Limits::default());
        for cut in 0..bytes.len() {
            match Connect::decode(&bytes[..cut], Limits::default()) {
                Ok(None) => {}
                result => prop_assert_eq!(&result, &whole, "cut at {}", cut),
            }
        }
    }

    #[test]
    fn garbage_never_panics_and_what_is_accepted_can_be_written(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        level in 3_u8..=5,
        is_dressed: bool,
    ) {
        if is_dressed {
            bytes = Raw::new(level).payload(&bytes).bytes();
        }
        if let Ok(Some((connect, _))) = Connect::decode(&bytes, Limits::default()) {
            let mut encoded = Vec::new();
            connect.encode(&mut encoded).unwrap();
            prop_assert_eq!(Connect::decode(&encoded, Limits::default()), Ok(Some((connect, encoded.len()))));
        }
    }

    #[test]
    fn another_codec_reads_the_same_fields(bytes in legal()) {
        let connect = Connect::decode(&bytes, Limits::default()).unwrap().unwrap().0;
        // Limits of the other codec: it rejects empty client identifiers even where they are valid, and those longer than
        // 23 bytes in MQTT 3.1, which brokers accept.
        if connect.client_id.is_empty() || connect.client_id.len() > 23 {
            return Ok(());
        }
        let mut source = BytesMut::from(&bytes[..]);
        let (client_id, keep_alive, clean, username, password, will) = if connect.version == Version::V5 {
            let Some(MqttPacket::V5(v5::Packet::Connect(other))) = decode_other(
                MqttCodec::V5(v5::Codec::new(1 << 20, 1 << 20)), &mut source) else { panic!("not read: {connect:?}") };
            let will = other.last_will.map(|will| (will.topic.to_string(), will.message.to_vec(), will.retain));
            (other.client_id, other.keep_alive, other.clean_start, other.username, other.password, will)
        } else {
            let Some(MqttPacket::V3(v3::Packet::Connect(other))) = decode_other(
                MqttCodec::V3(v3::Codec::new(1 << 20)), &mut source) else { panic!("not read: {connect:?}") };
            let will = other.last_will.map(|will| (will.topic.to_string(), will.message.to_vec(), will.retain));
            (other.client_id, other.keep_alive, other.clean_session, other.username, other.password, will)
        };
        prop_assert_eq!(&client_id[..], connect.client_id);
        prop_assert_eq!((keep_alive, clean), (connect.keep_alive, connect.clean_start));
        prop_assert_eq!(username.as_deref(), connect.username);
        prop_assert_eq!(password.as_deref(), connect.password);
        let ours = connect.will.map(|will| (will.topic.to_owned(), will.payload.to_vec(), will.retain));
        prop_assert_eq!(will, ours);
    }
}

fn decode_other(mut codec: MqttCodec, source: &mut BytesMut) -> Option<MqttPacket> {
    codec.decode(source).unwrap().map(|(packet, _)| packet)
}
