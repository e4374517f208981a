//! Properties of the codec over any sequence of packets, valid or not.

use proptest::prelude::*;

use super::script::check_session;

fn field(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(body.len()).unwrap()], body].concat()
}

fn topic() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["a", "b", "", "$x", "m", "+", "#", "g", "$share"]);
    prop::collection::vec(level, 0..4).prop_map(|levels| levels.join("/"))
}

/// User properties, an alias, a response topic, a property that is not allowed; valid and invalid ones.
fn properties() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        3 => (0_u8..4).prop_map(|alias| vec![0x23, 0, alias]),
        2 => Just([&[0x26][..], &field(b"by"), &field(b"x")].concat()),
        2 => topic().prop_map(|topic| [&[8][..], &field(topic.as_bytes())].concat()),
        1 => Just(vec![0x0b, 1]),
        1 => Just(vec![0x11, 0, 0, 0, 1]),
    ];
    prop::collection::vec(one, 0..3).prop_map(|list| list.concat())
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..20), Just(b"7".to_vec()), Just(b"  12.5e3".to_vec())]
}

fn one_packet(is_v5: bool) -> impl Strategy<Value = Vec<u8>> {
    let block = move |properties: Vec<u8>| {
        if is_v5 { [&[u8::try_from(properties.len()).unwrap()], &properties[..]].concat() } else { Vec::new() }
    };
    let publish = (0_u8..16, topic(), 0_u16..4, properties(), payload()).prop_map(
        move |(flags, topic, id, properties, payload)| {
            let id = if flags & 6 == 0 { vec![] } else { id.to_be_bytes().to_vec() };
            packet(0x30 | flags, &[field(topic.as_bytes()), id, block(properties), payload].concat())
        },
    );
    let filters = prop::collection::vec((topic(), 0_u8..4), 0..4);
    let subscribe = (any::<bool>(), 0_u16..4, filters).prop_map(move |(is_subscribe, id, filters)| {
        let filter = |(filter, qos): &(String, u8)| {
            let options = if is_subscribe { vec![*qos] } else { vec![] };
            [field(filter.as_bytes()), options].concat()
        };
        let payload: Vec<u8> = filters.iter().flat_map(filter).collect();
        packet(if is_subscribe { 0x82 } else { 0xa2 }, &[id.to_be_bytes().to_vec(), block(vec![]), payload].concat())
    });
    let ack = (4_u8..8, 0_u16..4, prop::option::of(any::<u8>())).prop_map(|(kind, id, code)| {
        let flags = if kind == 6 { 2 } else { 0 };
        packet(kind << 4 | flags, &[id.to_be_bytes().to_vec(), code.into_iter().collect()].concat())
    });
    let suback =
        (any::<bool>(), 0_u16..4, prop::collection::vec(any::<u8>(), 0..4)).prop_map(move |(is_suback, id, codes)| {
            packet(if is_suback { 0x90 } else { 0xb0 }, &[id.to_be_bytes().to_vec(), block(vec![]), codes].concat())
        });
    let small = prop::sample::select(vec![
        &b"\xc0\0"[..],
        b"\xd0\0",
        b"\xe0\0",
        b"\x20\x02\0\0",
        b"\x20\x06\0\0\x03\x22\0\x03",
    ]);
    let garbage = prop::collection::vec(any::<u8>(), 0..6);
    prop_oneof![8 => publish, 4 => subscribe, 3 => ack, 3 => suback, 3 => small.prop_map(<[u8]>::to_vec), 1 => garbage]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_sequence_in_any_pieces_ends_alike_and_what_is_denied_stays_away(
        selector in 0_u8..10,
        is_connected in prop::bool::weighted(0.9),
        packets in prop::collection::vec((any::<bool>(), one_packet(true), one_packet(false)), 0..14),
        reloads in prop::collection::vec(prop::option::weighted(0.1, any::<bool>()), 14),
        cuts in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let is_v5 = selector & 1 == 1;
        let mut input = vec![selector];
        let mut send = |to_broker: bool, bytes: &[u8], reload: Option<bool>| {
            let mut rest = bytes;
            // Within the packet before, if that is not complete.
            input.extend(reload.map(|is_wide| if is_wide { 0 } else { 0x80 }));
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, behind) = rest.split_at(rest.len().min(*cut));
                input.push(u8::try_from(chunk.len()).unwrap() | if to_broker { 0 } else { 0x80 });
                input.extend(chunk);
                rest = behind;
            }
        };
        if is_connected {
            send(false, if is_v5 { b"\x20\x06\0\0\x03\x22\0\x03" } else { b"\x20\x02\0\0" }, None);
        }
        for ((to_broker, of_v5, of_v3), reload) in packets.iter().zip(&reloads) {
            send(*to_broker, if is_v5 { of_v5 } else { of_v3 }, *reload);
        }
        check_session(&input);
    }
}
