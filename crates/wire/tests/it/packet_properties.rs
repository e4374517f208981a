//! Properties that hold for every packet behind CONNECT, and a differential test against an independent codec.

use bytes::BytesMut;
use portcullis_wire::{Packet, PacketType, Properties, Sender, Version};
use proptest::prelude::*;
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Decoder;

use crate::legal::{legal, legal_of, version_and_sender};
use crate::raw::packet;
use crate::stream::{Read, check, encode, read};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decoding_and_encoding_is_the_identity_whatever_follows(legal in legal(), behind in any::<Vec<u8>>()) {
        let stream = [&legal.bytes[..], &behind].concat();
        let read = read(&stream, legal.version, legal.sender).unwrap().unwrap();
        prop_assert_eq!(read.header.packet_len(), legal.bytes.len());
        prop_assert_eq!(read.payload_len(), legal.payload_len);
        prop_assert_eq!(encode(&read, legal.version), legal.written);
    }

    #[test]
    fn every_prefix_asks_for_more_until_the_head_is_there(legal in legal()) {
        let whole = read(&legal.bytes, legal.version, legal.sender);
        prop_assert!(whole.is_ok());
        let head = legal.bytes.len() - legal.payload_len;
        for cut in 0..legal.bytes.len() {
            let expected = if cut < head { &Ok(None) } else { &whole };
            prop_assert_eq!(&read(&legal.bytes[..cut], legal.version, legal.sender), expected, "cut at {}", cut);
        }
    }

    #[test]
    fn packets_behind_each_other_are_read_one_by_one(
        (version, sender, packets) in version_and_sender().prop_flat_map(|(version, sender)| {
            (Just(version), Just(sender), prop::collection::vec(legal_of(version, sender), 0..5))
        })
    ) {
        let stream: Vec<u8> = packets.iter().flat_map(|legal| legal.bytes.clone()).collect();
        prop_assert_eq!(check(&stream, version, sender), packets.len());
    }

    #[test]
    fn a_changed_byte_never_panics_and_what_is_accepted_can_be_written(
        legal in legal(), at in any::<prop::sample::Index>(), to: u8
    ) {
        let mut bytes = legal.bytes;
        let at = at.index(bytes.len());
        bytes[at] = to;
        for version in [Version::V31, Version::V311, Version::V5] {
            check(&bytes, version, Sender::Client);
            check(&bytes, version, Sender::Server);
        }
    }

    #[test]
    fn garbage_never_panics_and_what_is_accepted_can_be_written(
        (version, sender) in version_and_sender(),
        first: u8,
        mut bytes in prop::collection::vec(prop_oneof![0_u8..8, any::<u8>()], 0..60),
        is_dressed: bool,
    ) {
        if is_dressed {
            bytes = packet(first, &bytes);
        }
        check(&bytes, version, sender);
    }

    #[test]
    fn another_codec_reads_the_same_fields(legal in legal()) {
        let read = read(&legal.bytes, legal.version, legal.sender).unwrap().unwrap();
        // A limit of the other codec: it knows no packets that MQTT 3.1 sends again.
        let is_publish = read.header.packet_type == PacketType::Publish;
        if legal.version == Version::V31 && !is_publish && read.header.flags & 0x08 != 0 {
            return Ok(());
        }
        let mut source = BytesMut::from(&legal.bytes[..]);
        let other = if legal.version == Version::V5 {
            Fields::of_v5(v5::Codec::new(1 << 20, 1 << 20).decode(&mut source).unwrap().unwrap().0)
        } else {
            Fields::of_v3(v3::Codec::new(1 << 20).decode(&mut source).unwrap().unwrap().0)
        };
        prop_assert_eq!(Fields::of(&read), other);
    }
}

/// What both codecs tell about a packet. A packet without some field has its default.
#[derive(Debug, Default, PartialEq)]
struct Fields {
    name: &'static str,
    id: Option<u16>,
    codes: Vec<u8>,
    dup: bool,
    retain: bool,
    payload_len: usize,
    /// The topic of a PUBLISH with its QoS, or filters with their options.
    topics: Vec<(String, u8)>,
    alias: Option<u16>,
    response_topic: Option<String>,
    expiry: Option<u32>,
    method: Option<String>,
    user: Vec<(String, String)>,
}

impl Fields {
    fn new(name: &'static str, id: u16) -> Self {
        Self { name, id: Some(id).filter(|id| *id != 0), ..Self::default() }
    }

    fn of(read: &Read<'_>) -> Self {
        let with = |name, id, properties: Properties<'_>| Self {
            alias: properties.topic_alias(),
            response_topic: properties.response_topic().map(str::to_owned),
            expiry: properties.session_expiry_interval(),
            method: properties.authentication_method().map(str::to_owned),
            user: properties.user_properties().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            ..Self::new(name, id)
        };
        match read.packet {
            Packet::Publish(publish) => Self {
                dup: publish.dup,
                retain: publish.retain,
                payload_len: read.payload_len(),
                topics: vec![(publish.topic.to_owned(), publish.qos)],
                ..with("publish", publish.packet_id.map_or(0, Into::into), publish.properties)
            },
            Packet::Ack(ack) => {
                let name = match ack.packet_type {
                    PacketType::Puback => "puback",
                    PacketType::Pubrec => "pubrec",
                    PacketType::Pubrel => "pubrel",
                    _ => "pubcomp",
                };
                Self { codes: vec![ack.code], ..with(name, ack.packet_id.get(), ack.properties) }
            }
            Packet::Subscribe(subscribe) => Self {
                topics: subscribe.subscriptions().map(|one| (one.filter.as_str().to_owned(), one.options)).collect(),
                ..with("subscribe", subscribe.packet_id.get(), subscribe.properties)
            },
            Packet::Unsubscribe(unsubscribe) => Self {
                topics: unsubscribe.filters().map(|filter| (filter.as_str().to_owned(), 0)).collect(),
                ..with("unsubscribe", unsubscribe.packet_id.get(), unsubscribe.properties)
            },
            Packet::Suback(suback) => {
                Self { codes: suback.codes.to_vec(), ..with("suback", suback.packet_id.get(), suback.properties) }
            }
            Packet::Unsuback(suback) => {
                Self { codes: suback.codes.to_vec(), ..with("unsuback", suback.packet_id.get(), suback.properties) }
            }
            Packet::Pingreq => Self::new("pingreq", 0),
            Packet::Pingresp => Self::new("pingresp", 0),
            Packet::Disconnect(reasoned) => {
                Self { codes: vec![reasoned.code], ..with("disconnect", 0, reasoned.properties) }
            }
            Packet::Auth(reasoned) => Self { codes: vec![reasoned.code], ..with("auth", 0, reasoned.properties) },
        }
    }

    /// Of MQTT 3.1 and 3.1.1.
    fn of_v3(packet: v3::Packet) -> Self {
        use v3::{Packet as P, SubscribeReturnCode as Code};
        let ack = |name, id: std::num::NonZeroU16| Self { codes: vec![0], ..Self::new(name, id.get()) };
        match packet {
            P::Publish(publish) => Self::of_publish(*publish),
            P::PublishAck { packet_id } => ack("puback", packet_id),
            P::PublishReceived { packet_id } => ack("pubrec", packet_id),
            P::PublishRelease { packet_id } => ack("pubrel", packet_id),
            P::PublishComplete { packet_id } => ack("pubcomp", packet_id),
            P::Subscribe { packet_id, topic_filters } => Self {
                topics: topic_filters.iter().map(|(filter, qos)| (filter.to_string(), qos.value())).collect(),
                ..Self::new("subscribe", packet_id.get())
            },
            P::SubscribeAck { packet_id, status } => {
                let code = |status: &Code| if let Code::Success(qos) = status { qos.value() } else { 0x80 };
                Self { codes: status.iter().map(code).collect(), ..Self::new("suback", packet_id.get()) }
            }
            P::Unsubscribe { packet_id, topic_filters } => Self {
                topics: topic_filters.iter().map(|filter| (filter.to_string(), 0)).collect(),
                ..Self::new("unsubscribe", packet_id.get())
            },
            P::UnsubscribeAck { packet_id } => Self::new("unsuback", packet_id.get()),
            P::PingRequest => Self::new("pingreq", 0),
            P::PingResponse => Self::new("pingresp", 0),
            P::Disconnect => Self { codes: vec![0], ..Self::new("disconnect", 0) },
            P::Connect(_) | P::ConnectAck(_) => panic!("another packet: {packet:?}"),
        }
    }

    fn of_v5(packet: v5::Packet) -> Self {
        use v5::Packet as P;
        let with = |name, id, user: v5::UserProperties| Self {
            user: user.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            ..Self::new(name, id)
        };
        let ack = |name, ack: v5::PublishAck| Self {
            codes: vec![ack.reason_code.into()],
            ..with(name, ack.packet_id.get(), ack.properties)
        };
        let ack2 = |name, ack: v5::PublishAck2| Self {
            codes: vec![ack.reason_code.into()],
            ..with(name, ack.packet_id.get(), ack.properties)
        };
        let options = |options: &v5::SubscriptionOptions| {
            options.qos.value()
                | u8::from(options.no_local) << 2
                | u8::from(options.retain_as_published) << 3
                | u8::from(options.retain_handling) << 4
        };
        match packet {
            P::Publish(publish) => Self::of_publish(*publish),
            P::PublishAck(packet) => ack("puback", packet),
            P::PublishReceived(packet) => ack("pubrec", packet),
            P::PublishRelease(packet) => ack2("pubrel", packet),
            P::PublishComplete(packet) => ack2("pubcomp", packet),
            P::Subscribe(packet) => Self {
                topics: packet.topic_filters.iter().map(|(filter, one)| (filter.to_string(), options(one))).collect(),
                ..with("subscribe", packet.packet_id.get(), packet.user_properties)
            },
            P::SubscribeAck(packet) => Self {
                codes: packet.status.into_iter().map(u8::from).collect(),
                ..with("suback", packet.packet_id.get(), packet.properties)
            },
            P::Unsubscribe(packet) => Self {
                topics: packet.topic_filters.iter().map(|filter| (filter.to_string(), 0)).collect(),
                ..with("unsubscribe", packet.packet_id.get(), packet.user_properties)
            },
            P::UnsubscribeAck(packet) => Self {
                codes: packet.status.into_iter().map(u8::from).collect(),
                ..with("unsuback", packet.packet_id.get(), packet.properties)
            },
            P::PingRequest => Self::new("pingreq", 0),
            P::PingResponse => Self::new("pingresp", 0),
            P::Disconnect(packet) => Self {
                codes: vec![packet.reason_code.into()],
                expiry: packet.session_expiry_interval_secs,
                ..with("disconnect", 0, packet.user_properties)
            },
            P::Auth(packet) => Self {
                codes: vec![packet.reason_code.into()],
                method: packet.auth_method.map(|method| method.to_string()),
                ..with("auth", 0, packet.user_properties)
            },
            P::Connect(_) | P::ConnectAck(_) => panic!("another packet: {packet:?}"),
        }
    }

    fn of_publish(publish: rmqtt_codec::types::Publish) -> Self {
        let properties = publish.properties.unwrap_or_default();
        Self {
            dup: publish.dup,
            retain: publish.retain,
            payload_len: publish.payload.len(),
            topics: vec![(publish.topic.to_string(), publish.qos.value())],
            alias: properties.topic_alias.map(Into::into),
            response_topic: properties.response_topic.map(|topic| topic.to_string()),
            user: properties
                .user_properties
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            ..Self::new("publish", publish.packet_id.map_or(0, Into::into))
        }
    }
}
