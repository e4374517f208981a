//! Reads a stream of packets, and checks what holds for every one. The fuzz target `packet` includes this file, so that it
//! finds nothing that the ordinary tests would not notice.

use portcullis_wire::{
    Ack, Disconnect, Error, FixedHeader, MAX_REMAINING_LENGTH, PINGREQ, Packet, PacketType, Properties, Publish,
    Sender, TopicFilter, Version, encode_with_id, head_len, put_filter, topic_levels,
};

/// A packet at the front of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Read<'a> {
    pub(crate) header: FixedHeader,
    /// All bytes but the payload of a PUBLISH.
    pub(crate) head: &'a [u8],
    pub(crate) packet: Packet<'a>,
}

impl Read<'_> {
    pub(crate) fn payload_len(&self) -> usize {
        self.header.packet_len() - self.head.len()
    }
}

/// Reads as a gateway does: the header is checked before the head is awaited. `None`: more bytes are needed.
pub(crate) fn read(bytes: &[u8], version: Version, sender: Sender) -> Result<Option<Read<'_>>, Error> {
    let Some(header) = FixedHeader::decode(bytes)? else { return Ok(None) };
    Packet::check_header(header, version, sender)?;
    let Some(len) = head_len(bytes, header, version)? else { return Ok(None) };
    assert!(len <= header.packet_len(), "the head ends behind the packet");
    let Some(head) = bytes.get(..len) else { return Ok(None) };
    Ok(Some(Read { header, head, packet: Packet::decode(head, header, version, sender)? }))
}

/// Encodes the head again. What the codec does not encode, because a gateway forwards it as it came, is copied.
pub(crate) fn encode(read: &Read<'_>, version: Version) -> Vec<u8> {
    let (mut out, mut payload) = (Vec::new(), Vec::new());
    let with_id = |packet_type, id, properties: &Properties<'_>, payload: &[u8], out: &mut Vec<u8>| {
        encode_with_id(packet_type, id, version, properties, payload, out);
    };
    match &read.packet {
        Packet::Publish(publish) => publish.encode_head(version, "", read.payload_len(), &mut out),
        Packet::Ack(ack) => Ack::encode(ack.packet_type, ack.packet_id, version, ack.code, &mut out),
        Packet::Subscribe(subscribe) => {
            subscribe.subscriptions().for_each(|subscription| subscription.encode("", &mut payload));
            with_id(PacketType::Subscribe, subscribe.packet_id, &subscribe.properties, &payload, &mut out);
        }
        Packet::Unsubscribe(unsubscribe) => {
            unsubscribe.filters().for_each(|filter| put_filter(filter, "", &mut payload));
            with_id(PacketType::Unsubscribe, unsubscribe.packet_id, &unsubscribe.properties, &payload, &mut out);
        }
        Packet::Suback(suback) => {
            with_id(PacketType::Suback, suback.packet_id, &suback.properties, suback.codes, &mut out);
        }
        Packet::Unsuback(suback) => {
            with_id(PacketType::Unsuback, suback.packet_id, &suback.properties, suback.codes, &mut out);
        }
        Packet::Disconnect(reasoned) if version == Version::V5 => reasoned.encode_disconnect(&mut out),
        Packet::Disconnect(_) => out.extend(Disconnect::NORMAL_V3),
        Packet::Pingreq => out.extend(PINGREQ),
        Packet::Pingresp | Packet::Auth(_) => out.extend(read.head),
    }
    out
}

/// The input of the fuzz target: a byte that selects version and sender, and a stream.
pub(crate) fn check_input(input: &[u8]) {
    let Some((&selector, stream)) = input.split_first() else { return };
    let version = match selector & 3 {
        0 => Version::V31,
        1 => Version::V311,
        _ => Version::V5,
    };
    check(stream, version, if selector & 4 == 0 { Sender::Client } else { Sender::Server });
}

/// Checks the packets of a stream, up to the first that is incomplete or refused. Returns how many were accepted.
pub(crate) fn check(stream: &[u8], version: Version, sender: Sender) -> usize {
    let (mut rest, mut packets) = (stream, 0);
    loop {
        let whole = read(rest, version, sender);
        // Bounded, so that the fuzzer stays fast.
        for cut in 0..rest.len().min(300) {
            let part = read(&rest[..cut], version, sender);
            assert!(part == Ok(None) || part == whole, "cut at {cut}: {part:?}, whole: {whole:?}");
            check_head_len(&rest[..cut], rest, version);
        }
        let Ok(Some(read)) = whole else { return packets };
        packets += 1;
        check_again(&read, version, sender);
        check_topics(&read, version, sender);
        let Some(behind) = rest.get(read.header.packet_len()..) else { return packets };
        rest = behind;
    }
}

/// What `head_len` says about a part stays true.
fn check_head_len(part: &[u8], whole: &[u8], version: Version) {
    let Ok(Some(header)) = FixedHeader::decode(part) else { return };
    match head_len(part, header, version) {
        Ok(None) => {}
        known => assert_eq!(known, head_len(whole, header, version), "known after {} bytes", part.len()),
    }
}

fn check_again(before: &Read<'_>, version: Version, sender: Sender) {
    let encoded = encode(before, version);
    let again = read(&encoded, version, sender).expect("what was accepted is accepted again").expect("it is whole");
    let expected = match before.packet {
        // The codec encodes acknowledgements without properties.
        Packet::Ack(ack) => Packet::Ack(Ack { properties: Properties::default(), ..ack }),
        packet => packet,
    };
    match (again.packet, expected) {
        // MQTT 3.1 ignores bits of the options; they are not encoded again.
        (Packet::Subscribe(again), Packet::Subscribe(before)) => {
            assert!(again.subscriptions().eq(before.subscriptions()));
            assert_eq!((again.packet_id, again.properties), (before.packet_id, before.properties));
        }
        (again, expected) => assert_eq!(again, expected),
    }
    assert_eq!((again.head, again.payload_len()), (&encoded[..], before.payload_len()));
    assert_eq!(encode(&again, version), encoded, "encoding again changes nothing");
    if let Packet::Publish(publish) = before.packet {
        assert_eq!(publish.packet_len(version, "", before.payload_len()), again.header.packet_len());
        check_prefix(&publish, before.payload_len(), version, sender);
    }
    let _ = format!("{before:?}");
}

/// A prefix goes in front of the topic, and changes nothing else.
fn check_prefix(publish: &Publish<'_>, payload_len: usize, version: Version, sender: Sender) {
    const PREFIX: &str = "tenant/";
    let len = publish.packet_len(version, PREFIX, payload_len);
    if publish.topic.len() + PREFIX.len() > 65_535 || len > MAX_REMAINING_LENGTH as usize {
        return;
    }
    let mut encoded = Vec::new();
    publish.encode_head(version, PREFIX, payload_len, &mut encoded);
    let again = read(&encoded, version, sender).expect("it is still valid").expect("it is whole");
    assert_eq!(again.header.packet_len(), len);
    let topic = format!("{PREFIX}{}", publish.topic);
    assert_eq!(again.packet, Packet::Publish(Publish { topic: &topic, ..*publish }));
}

fn check_topics(read: &Read<'_>, version: Version, sender: Sender) {
    let mut filters: Vec<TopicFilter<'_>> = match &read.packet {
        Packet::Publish(publish) => TopicFilter::new(publish.topic).into_iter().collect(),
        Packet::Subscribe(subscribe) => subscribe.subscriptions().map(|one| one.filter).collect(),
        Packet::Unsubscribe(unsubscribe) => unsubscribe.filters().collect(),
        _ => return,
    };
    // Bounded: each is compared with each, and with each again.
    filters.retain(|filter| filter.as_str().len() <= 256);
    filters.truncate(8);
    for one in &filters {
        check_filter(*one, version, sender);
        for other in &filters {
            assert_eq!(one.overlaps(*other), other.overlaps(*one), "{one:?} {other:?}");
            assert!(!one.covers(*other) || one.overlaps(*other), "{one:?} covers {other:?}, but does not overlap it");
            for topic in examples(*other, one.as_str().len()) {
                assert!(other.matches(&topic), "{other:?} {topic}");
                assert!(!one.covers(*other) || one.matches(&topic), "{one:?} covers {other:?}, but not {topic}");
                assert!(!one.matches(&topic) || one.overlaps(*other), "both {one:?} and {other:?} match {topic}");
            }
            for third in &filters {
                let is_chain = one.covers(*other) && other.covers(*third);
                assert!(!is_chain || one.covers(*third), "{one:?} covers {other:?}, which covers {third:?}");
            }
        }
    }
}

fn check_filter(filter: TopicFilter<'_>, version: Version, sender: Sender) {
    assert!(filter.covers(filter) && filter.overlaps(filter), "{filter:?}");
    assert_eq!(topic_levels(filter.as_str()), filter.levels().count());
    if let Some((name, shared)) = filter.shared() {
        assert_eq!(format!("$share/{name}/{}", shared.as_str()), filter.as_str());
        assert_eq!(TopicFilter::new(shared.as_str()), Ok(shared));
    }
    // With a prefix it is still a filter, and the prefix is part of what the broker matches.
    let mut payload = Vec::new();
    put_filter(filter, "tenant/", &mut payload);
    let mut encoded = Vec::new();
    let id = std::num::NonZeroU16::MIN;
    encode_with_id(PacketType::Unsubscribe, id, version, &Properties::default(), &payload, &mut encoded);
    if sender == Sender::Client {
        let again = read(&encoded, version, sender).expect("it is still valid").expect("it is whole");
        let Packet::Unsubscribe(again) = again.packet else { panic!("another packet: {again:?}") };
        let prefixed = again.filters().next().expect("it has one filter");
        let matched = prefixed.shared().map_or(prefixed, |(_, shared)| shared);
        let own = filter.shared().map_or(filter, |(_, shared)| shared);
        assert_eq!(matched.as_str(), format!("tenant/{}", own.as_str()));
        assert_eq!(again.filters().count(), 1);
    }
}

/// Topic names that the filter matches. Wildcards stand for names that no filter of at most `len` bytes contains.
fn examples(filter: TopicFilter<'_>, len: usize) -> Vec<String> {
    let name = "x".repeat(len + 1);
    let start: Vec<_> = filter.levels().map(|level| if level == "+" { &name[..] } else { level }).collect();
    let Some((&"#", parents)) = start.split_last() else { return vec![start.join("/")] };
    let mut examples = vec![[parents, &[&name[..]]].concat().join("/"), [parents, &[&name[..], ""]].concat().join("/")];
    // The parent level, if that is a topic name.
    examples.extend(Some(parents.join("/")).filter(|parent| !parent.is_empty()));
    examples
}
