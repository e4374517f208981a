//! Generates every kind of valid packet behind CONNECT, without the code under test.

use portcullis_wire::{Sender, Version};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::Union;

use crate::raw::{block, field, packet, packet_with_id};

/// A valid packet.
#[derive(Clone, Debug)]
pub(crate) struct Legal {
    pub(crate) version: Version,
    pub(crate) sender: Sender,
    pub(crate) bytes: Vec<u8>,
    /// How many bytes of it are payload of a PUBLISH.
    pub(crate) payload_len: usize,
    /// How the code under test encodes its head.
    pub(crate) written: Vec<u8>,
}

impl Legal {
    /// A packet that is written as it came.
    fn new(version: Version, sender: Sender, bytes: Vec<u8>) -> Self {
        Self { version, sender, written: bytes.clone(), bytes, payload_len: 0 }
    }

    fn written(self, written: Vec<u8>) -> Self {
        Self { written, ..self }
    }
}

fn text(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<char>().prop_filter("U+0000 is refused", |c| *c != '\0'), 0..max)
        .prop_map(|text| field(String::from_iter(text).as_bytes()))
}

fn topic() -> impl Strategy<Value = String> {
    prop_oneof!["[$a-zA-Z0-9/äß ]{1,30}", "[a-z]{120,135}", "\\PC{1,10}".prop_map(|text| text.replace(['+', '#'], "-"))]
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![Just("+".to_owned()), "[$a-zäß ]{0,4}"];
    (select(vec!["", "", "$share/g/", "$share/group-ä/"]), prop::collection::vec(level, 1..5), any::<bool>()).prop_map(
        |(share, mut levels, has_hash)| {
            if has_hash {
                levels.push("#".to_owned());
            }
            let filter = levels.join("/");
            format!("{share}{}", if filter.is_empty() { "/" } else { &filter })
        },
    )
}

fn id() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..=5, 1_u16..]
}

fn property(id: u8, value: impl Strategy<Value = Vec<u8>> + 'static) -> BoxedStrategy<Vec<u8>> {
    value.prop_map(move |value| [&[id], &value[..]].concat()).boxed()
}

/// Some of these properties, each once, and user properties, in any order.
fn block_of(once: Vec<BoxedStrategy<Vec<u8>>>) -> impl Strategy<Value = Vec<u8>> {
    let len = once.len();
    let once = subsequence(once, 0..=len).prop_flat_map(|chosen| chosen);
    let user = (text(6), text(6)).prop_map(|(name, value)| [&[0x26], &name[..], &value].concat());
    (once, prop::collection::vec(user, 0..3))
        .prop_map(|(once, user)| [once, user].concat())
        .prop_shuffle()
        .prop_map(|all| all.concat())
}

fn reason() -> BoxedStrategy<Vec<u8>> {
    property(0x1f, text(10))
}

fn publish(version: Version, sender: Sender) -> impl Strategy<Value = Legal> {
    let number = |from: u32| (from..).prop_map(|number| number.to_be_bytes().to_vec());
    let mut once = vec![
        property(0x01, (0_u8..=1).prop_map(|flag| vec![flag])),
        // The other codec refuses 0, which the standard allows.
        property(0x02, number(1)),
        property(0x03, text(10)),
        property(0x08, topic().prop_map(|topic| field(topic.as_bytes()))),
        property(0x09, prop::collection::vec(any::<u8>(), 0..10).prop_map(|data| field(&data))),
    ];
    if sender == Sender::Server {
        // More than one of them is allowed, too.
        once.push(property(0x0b, Just(vec![0x01])));
        once.push(property(0x0b, Just(b"\xff\xff\xff\x7f".to_vec())));
    }
    let alias = prop::option::of((1_u16.., any::<bool>()));
    let flags = (0_u8..3, any::<bool>(), any::<bool>());
    (flags, topic(), alias, id(), block_of(once), prop::collection::vec(any::<u8>(), 0..200)).prop_map(
        move |((qos, dup, retain), topic, alias, id, mut properties, payload)| {
            let dup = dup && (qos > 0 || version == Version::V31);
            let mut body = field(topic.as_bytes());
            if let (Version::V5, Some((alias, is_alone))) = (version, alias) {
                properties.extend([&[0x23], &alias.to_be_bytes()[..]].concat());
                if is_alone {
                    body = field(b"");
                }
            }
            if qos > 0 {
                body.extend(id.to_be_bytes());
            }
            if version == Version::V5 {
                body.extend(block(&properties));
            }
            body.extend(&payload);
            let bytes = packet(0x30 | u8::from(dup) << 3 | qos << 1 | u8::from(retain), &body);
            let written = bytes[..bytes.len() - payload.len()].to_vec();
            Legal { payload_len: payload.len(), ..Legal::new(version, sender, bytes).written(written) }
        },
    )
}

/// The codes that either side may send.
fn ack(version: Version, sender: Sender) -> impl Strategy<Value = Legal> {
    let publish = vec![0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    let kind =
        prop_oneof![(select(vec![0x40, 0x50]), select(publish)), (select(vec![0x62, 0x70]), select(vec![0x00, 0x92])),];
    (kind, id(), prop::option::of(prop::option::of(block_of(vec![reason()]))), any::<bool>()).prop_map(
        move |((first, code), id, form, is_again)| {
            let id = id.to_be_bytes();
            // Only MQTT 3.1 marks a PUBREL that is sent again.
            let dup = if is_again && first == 0x62 && version == Version::V31 { 0x08 } else { 0 };
            let (mut body, mut written) = (id.to_vec(), id.to_vec());
            if let (Version::V5, Some(properties)) = (version, form) {
                body.push(code);
                body.extend(properties.iter().flat_map(|properties| block(properties)));
                written.extend(Some(code).filter(|code| *code != 0));
            }
            Legal::new(version, sender, packet(first | dup, &body)).written(packet(first, &written))
        },
    )
}

fn subscribe(version: Version) -> impl Strategy<Value = Legal> {
    let options = (0_u8..3, any::<bool>(), any::<bool>(), 0_u8..3);
    let one = (filter(), options).prop_map(move |(filter, (qos, no_local, as_published, handling))| {
        let no_local = no_local && !filter.starts_with("$share/");
        let upper = u8::from(no_local) << 2 | u8::from(as_published) << 3 | handling << 4;
        let options = if version == Version::V5 { qos | upper } else { qos };
        [&field(filter.as_bytes())[..], &[options]].concat()
    });
    let identifier = property(0x0b, select(vec![vec![0x01], vec![0x80, 0x01], b"\xff\xff\xff\x7f".to_vec()]));
    with_id(0x82, version, Sender::Client, block_of(vec![identifier]), prop::collection::vec(one, 1..5))
}

fn unsubscribe(version: Version) -> impl Strategy<Value = Legal> {
    let one = filter().prop_map(|filter| field(filter.as_bytes()));
    with_id(0xa2, version, Sender::Client, block_of(Vec::new()), prop::collection::vec(one, 1..5))
}

fn suback(version: Version) -> impl Strategy<Value = Legal> {
    let codes = match version {
        Version::V5 => vec![0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2],
        Version::V311 => vec![0x00, 0x01, 0x02, 0x80],
        Version::V31 => vec![0x00, 0x01, 0x02],
    };
    let codes = prop::collection::vec(select(codes).prop_map(|code| vec![code]), 1..10);
    with_id(0x90, version, Sender::Server, block_of(vec![reason()]), codes)
}

fn unsuback(version: Version) -> impl Strategy<Value = Legal> {
    let codes = select(vec![0x00, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]).prop_map(|code| vec![code]);
    let len = if version == Version::V5 { 1..10 } else { 0..1 };
    with_id(0xb0, version, Sender::Server, block_of(vec![reason()]), prop::collection::vec(codes, len))
}

fn with_id(
    first: u8,
    version: Version,
    sender: Sender,
    properties: impl Strategy<Value = Vec<u8>>,
    payload: impl Strategy<Value = Vec<Vec<u8>>>,
) -> impl Strategy<Value = Legal> {
    (id(), properties, payload, any::<bool>()).prop_map(move |(id, properties, payload, is_again)| {
        // Only MQTT 3.1 marks a request that is sent again.
        let dup = if is_again && first & 2 != 0 && version == Version::V31 { 0x08 } else { 0 };
        let bytes = |first| packet_with_id(first, id, version, &properties, &payload.concat());
        Legal::new(version, sender, bytes(first | dup)).written(bytes(first))
    })
}

fn disconnect(version: Version, sender: Sender) -> BoxedStrategy<Legal> {
    if version != Version::V5 {
        return Just(Legal::new(version, sender, packet(0xe0, b""))).boxed();
    }
    let both = [0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
    let (codes, property) = match sender {
        Sender::Client => {
            let expiry = any::<u32>().prop_map(|seconds| seconds.to_be_bytes().to_vec());
            ([&both[..], &[0x00, 0x04]].concat(), property(0x11, expiry))
        }
        Sender::Server => {
            let own = [0x87, 0x89, 0x8b, 0x8d, 0x8e, 0x8f, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2];
            ([&both[..], &own].concat(), property(0x1c, text(10)))
        }
    };
    let form = prop::option::of(prop::option::of(block_of(vec![reason(), property])));
    (select(codes), form)
        .prop_map(move |(code, form)| {
            let (code, form) = (form.as_ref().map(|_| code), form.flatten());
            let properties = block(form.as_deref().unwrap_or_default());
            let body: Vec<u8> = code.into_iter().chain(form.iter().flat_map(|form| block(form))).collect();
            let written = [&[code.unwrap_or(0)], &properties[..]].concat();
            Legal::new(version, sender, packet(0xe0, &body)).written(packet(0xe0, &written))
        })
        .boxed()
}

fn auth(sender: Sender) -> impl Strategy<Value = Legal> {
    let code = select(if sender == Sender::Client { vec![0x18, 0x19] } else { vec![0x00, 0x18] });
    let data = property(0x16, text(10));
    (code, text(10), block_of(vec![data, reason()])).prop_map(move |(code, method, others)| {
        let properties = block(&[&[0x15], &method[..], &others].concat());
        Legal::new(Version::V5, sender, packet(0xf0, &[&[code], &properties[..]].concat()))
    })
}

pub(crate) fn version_and_sender() -> impl Strategy<Value = (Version, Sender)> {
    (select(vec![Version::V31, Version::V311, Version::V5]), select(vec![Sender::Client, Sender::Server]))
}

pub(crate) fn legal_of(version: Version, sender: Sender) -> impl Strategy<Value = Legal> {
    let mut kinds = vec![publish(version, sender).boxed(), ack(version, sender).boxed()];
    match sender {
        Sender::Client => {
            kinds.extend([subscribe(version).boxed(), unsubscribe(version).boxed()]);
            kinds.push(Just(Legal::new(version, sender, b"\xc0\x00".to_vec())).boxed());
        }
        Sender::Server => {
            kinds.extend([suback(version).boxed(), unsuback(version).boxed()]);
            kinds.push(Just(Legal::new(version, sender, b"\xd0\x00".to_vec())).boxed());
        }
    }
    if sender == Sender::Client || version == Version::V5 {
        kinds.push(disconnect(version, sender));
    }
    if version == Version::V5 {
        kinds.push(auth(sender).boxed());
    }
    Union::new(kinds)
}

/// Generates every kind of valid packet behind CONNECT and CONNACK.
pub(crate) fn legal() -> impl Strategy<Value = Legal> {
    version_and_sender().prop_flat_map(|(version, sender)| legal_of(version, sender))
}
