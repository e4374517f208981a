//! What the protocol forbids, answers, aliases.

use super::*;

#[tokio::test(start_paused = true)]
async fn aliases_are_followed_in_both_directions() {
    let alias = |id: u8| [0x23, 0, id];
    let connack = b"\x20\x06\x00\x00\x03\x22\x00\x0a";
    let open = |configuration| connected(configuration, CONNECT_V5, connack);
    // A denied packet sets an alias that the broker does not know.
    let mut script = open(POLICY);
    script.client(&publish(1, "up/dev-1/a", None, Some(&alias(1)), b"x"));
    assert_eq!(script.broker_got(), b"");
    script.client(&publish(0, "", None, Some(&alias(1)), b"x"));
    assert_eq!(script.broker_got(), publish(0, "up/dev-1/a", None, Some(&alias(1)), b"x"));
    let aliased = publish(0, "", None, Some(&alias(1)), b"x");
    script.client(&aliased);
    assert_eq!(script.broker_got(), aliased, "now it does");
    script.client(&publish(0, "up/secret/a", None, Some(&alias(2)), b"x"));
    script.client(&publish(0, "", None, Some(&alias(2)), b"x"));
    assert_eq!(script.broker_got(), b"", "a topic that is denied is denied by its alias, too");
    script.client(&publish(0, "", None, Some(&alias(3)), b"x"));
    ends(&script, CloseReason::ProtocolViolation, 0x82);
    let mut script = open(POLICY);
    script.client(&publish(0, "up/dev-1/a", None, Some(&alias(11)), b"x"));
    ends(&script, CloseReason::ProtocolViolation, 0x94);
    // With a mountpoint the broker's alias stands for the longer topic.
    let mut script = open("mountpoint = 'm/'\n");
    script
        .client(&[publish(0, "a", None, Some(&alias(1)), b"x"), publish(0, "", None, Some(&alias(1)), b"y")].concat());
    let expected =
        [publish(0, "m/a", None, Some(&alias(1)), b"x"), publish(0, "", None, Some(&alias(1)), b"y")].concat();
    assert_eq!(script.broker_got(), expected);
    script.broker(
        &[publish(0, "m/a", None, Some(&alias(1)), b"x"), publish(0, "", None, Some(&alias(1)), b"y")].concat(),
    );
    let expected = [publish(0, "a", None, Some(&alias(1)), b"x"), publish(0, "", None, Some(&alias(1)), b"y")].concat();
    assert_eq!(script.client_got(), expected);
    script.broker(
        &[publish(0, "other", None, Some(&alias(2)), b"x"), publish(0, "", None, Some(&alias(2)), b"y")].concat(),
    );
    assert_eq!(script.client_got(), b"", "an alias leads to no other topic space");
}

#[tokio::test(start_paused = true)]
async fn a_withheld_delivery_may_have_set_any_alias() {
    let alias = b"\x23\x00\x01".to_vec();
    let user_property = [b"\x26\x00\x01a\xff\xff".to_vec(), vec![b'x'; 65_535]].concat();
    let too_large = [alias.clone(), user_property.repeat(5)].concat();
    let malformed = [alias.clone(), b"\x26\x00\x01a\x00\x01\x00".to_vec()].concat();
    for withheld in [too_large, malformed] {
        let mut script = v5("mountpoint = 'm/'\n");
        let first = publish(0, "m/a", None, Some(&alias), b"x");
        let aliased = publish(0, "", None, Some(&alias), b"x");
        script.broker(&first);
        assert_eq!(script.client_got(), publish(0, "a", None, Some(&alias), b"x"));
        script.broker(&[publish(0, "other", None, Some(&withheld), b"x"), aliased.clone()].concat());
        assert_eq!(script.client_got(), b"", "the alias may stand for the other topic now");
        script.broker(&[first, aliased.clone()].concat());
        assert_eq!(script.client_got(), [publish(0, "a", None, Some(&alias), b"x"), aliased].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_may_not_send_ends_its_session() {
    let with_props = |properties: &[u8]| publish(0, "up/dev-1/a", None, Some(properties), b"x");
    let violations: Vec<(&str, Vec<u8>, u8)> = vec![
        ("CONNACK", CONNACK_V5.to_vec(), 0x82),
        ("a second CONNECT", CONNECT_V5.to_vec(), 0x82),
        ("SUBACK", b"\x90\x04\x00\x01\x00\x00".to_vec(), 0x82),
        ("PINGRESP", b"\xd0\x00".to_vec(), 0x82),
        ("type 0", b"\x00\x00".to_vec(), 0x81),
        ("flags of SUBSCRIBE", subscribe(0x80, 1, Some(b""), &[("down/a", 0)]), 0x81),
        ("flags of PINGREQ", b"\xc1\x00".to_vec(), 0x81),
        ("QoS 3", publish(6, "up/dev-1/a", Some(1), Some(b""), b""), 0x81),
        ("packet identifier 0", publish(2, "up/dev-1/a", Some(0), Some(b""), b""), 0x82),
        ("a wildcard in a topic name", publish(0, "up/dev-1/#", None, Some(b""), b""), 0x90),
        ("UTF-8", b"\x30\x04\x00\x01\xff\x00".to_vec(), 0x81),
        ("U+0000", b"\x30\x04\x00\x01\x00\x00".to_vec(), 0x81),
        ("a subscription identifier", with_props(b"\x0b\x01"), 0x82),
        ("alias 0", with_props(b"\x23\x00\x00"), 0x94),
        ("an alias above the maximum", with_props(b"\x23\x00\x01"), 0x94),
        ("no topic and no alias", publish(0, "", None, Some(b""), b""), 0x82),
        ("a property twice", with_props(b"\x01\x00\x01\x00"), 0x82),
        ("a property of CONNECT", with_props(b"\x11\x00\x00\x00\x00"), 0x81),
        ("a filter", subscribe(0x82, 1, Some(b""), &[("down/#/a", 0)]), 0x8f),
        ("QoS 3 in SUBSCRIBE", subscribe(0x82, 1, Some(b""), &[("down/a", 3)]), 0x82),
        ("SUBSCRIBE without a filter", subscribe(0x82, 1, Some(b""), &[]), 0x82),
        ("AUTH without a method in CONNECT", b"\xf0\x06\x18\x04\x15\x00\x01a".to_vec(), 0x82),
        ("DISCONNECT that prolongs a session", b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01".to_vec(), 0x82),
        ("a remaining length of five bytes", b"\x30\xff\xff\xff\xff\x01".to_vec(), 0x81),
        ("a field that goes past the end", b"\x30\x03\x00\x05a".to_vec(), 0x81),
    ];
    for (what, bytes, code) in violations {
        let mut script = v5(POLICY);
        script.client(&[&b"\xc0\x00"[..], &bytes, b"\xc0\x00"].concat());
        assert_eq!(script.broker_got(), b"\xc0\x00", "{what}");
        let ending = script.ending.clone().unwrap_or_else(|| panic!("{what}: the session goes on"));
        assert_eq!(
            (ending.reason, ending.disconnect.map(Disconnect::code)),
            (CloseReason::ProtocolViolation, Some(code)),
            "{what}: {ending:?}"
        );
        assert!(ending.detail.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_broker_is_told_that_a_client_is_there_whose_packets_are_withheld() {
    let mut script = v3(POLICY);
    let denied = publish(0, "up/other", None, None, b"x");
    tokio::time::advance(Duration::from_secs(31)).await;
    script.client(&denied);
    assert_eq!(script.broker_got(), b"\xc0\x00");
    script.client(b"\xc0\x00").broker(b"\xd0\x00\xd0\x00");
    assert_eq!((script.broker_got(), script.client_got()), (b"\xc0\x00".to_vec(), b"\xd0\x00".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn answers_wait_for_the_end_of_a_packet() {
    let mut script = v3(POLICY);
    let delivery = publish(0, "down/a", None, None, b"123456");
    script.broker(&delivery[..12]);
    script.client(&publish(2, "up/other", Some(5), None, b"x"));
    assert_eq!(script.client_got(), delivery[..12], "not in the middle of a payload");
    script.broker(&delivery[12..]);
    assert_eq!(script.client_got(), [&delivery[12..], b"\x40\x02\x00\x05"].concat());
    // Nor do answers to the broker, which moreover are bounded.
    let message = publish(0, "up/dev-1/a", None, None, b"12345678");
    script.client(&message[..14]);
    script.broker_got();
    let denied = publish(2, "down/secret/a", Some(5), None, b"x");
    let mut sent = 0;
    while script.codec.may_read(Direction::ToClient) {
        script.broker(&denied);
        sent += 1;
    }
    assert!((1000..1100).contains(&sent), "{sent}");
    assert_eq!(script.broker_got(), b"");
    script.client(&message[14..]);
    assert_eq!(script.broker_got(), [&message[14..], &b"\x40\x02\x00\x05".repeat(sent)].concat());
    assert!(script.codec.may_read(Direction::ToClient));
}

#[tokio::test(start_paused = true)]
async fn answers_wait_for_connack() {
    let mut script = Script::new(POLICY, CONNECT_V3);
    script.broker_got();
    let denied = publish(2, "up/other", Some(5), None, b"x");
    script.client(&[&b"\xc0\x00"[..], &denied].concat());
    assert_eq!((script.broker_got(), script.client_got()), (b"\xc0\x00".to_vec(), vec![]));
    script.broker(&[CONNACK_V3, b"\xd0\x00"].concat());
    assert_eq!(script.client_got(), [CONNACK_V3, b"\x40\x02\x00\x05\xd0\x00"].concat());
    let mut script = Script::new(POLICY, CONNECT_V3);
    script.client(&denied).broker(b"\x20\x02\x00\x05");
    assert_eq!(script.client_got(), b"\x20\x02\x00\x05", "a client that the broker rejects gets nothing else");
}

#[tokio::test(start_paused = true)]
async fn what_other_clients_publish_ends_no_session() {
    let long = [&[0x26, 0, 1, b'k', 0xff, 0xff][..], &"v".repeat(0xffff).into_bytes()].concat().repeat(5);
    let too_large = |flags: u8, id: Option<u16>| {
        let id = id.map_or(vec![], |id| id.to_be_bytes().to_vec());
        let len = u32::try_from(long.len()).unwrap();
        let varint = [len & 0x7f | 0x80, len >> 7 & 0x7f | 0x80, len >> 14].map(|digit| u8::try_from(digit).unwrap());
        packet(0x30 | flags, &[b"\x00\x06down/a", &id[..], &varint, &long, b"payload"].concat())
    };
    let malformed = [
        publish(2, "down/a", Some(5), Some(b"\x08\x00\x03a/#"), b"x"),
        publish(2, "down/a", Some(5), Some(b"\x01\x02"), b"x"),
        publish(2, "down/+", Some(5), Some(b""), b"x"),
        packet(0x32, b"\x00\x01\xff\x00\x05\x00x"),
        publish(2, "", Some(5), Some(b"\x23\x00\x03"), b"x"),
        publish(2, "down/a", Some(5), Some(b"\x23\x00\x0b"), b"x"),
        too_large(2, Some(5)),
    ];
    let good = publish(0, "down/a", None, Some(b""), b"x");
    for bad in malformed {
        for pieces in [1, 7, usize::MAX] {
            let mut script = v5(POLICY);
            for piece in [&bad[..], &good].concat().chunks(pieces.min(4096)) {
                script.broker(piece);
            }
            assert_eq!((script.client_got(), &script.ending), (good.clone(), &None), "{:02x?}", &bad[..12]);
            assert_eq!(script.broker_got(), b"\x40\x02\x00\x05");
            if pieces == 1 && bad.len() > 1000 {
                break;
            }
        }
    }
    let mut script = v5(POLICY);
    script.broker(&[too_large(0, None), too_large(4, Some(6))].concat()).broker(b"\x62\x02\x00\x06");
    assert_eq!((script.client_got(), script.broker_got()), (vec![], b"\x50\x02\x00\x06\x70\x02\x00\x06".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_disconnect() {
    let mut script = v5(POLICY);
    script.broker(b"\xe0\x02\x8b\x00").client(&publish(2, "up/other", Some(1), Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\xe0\x02\x8b\x00");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_in_connack_that_the_broker_violates_the_protocol() {
    for (connect, told) in [(CONNECT_V3, &b"\x20\x02\x00\x03"[..]), (CONNECT_V5, b"\x20\x03\x00\x88\x00")] {
        for bad in [&b"\x20\x03\x02\x00\x00"[..], b"\x30\x03\x00\x01a", b"\xd0\x00"] {
            let mut script = Script::new(OPEN, connect);
            script.broker(bad);
            assert_eq!(script.client_got(), told, "{bad:02x?}");
            let ending = script.ending.as_ref().unwrap();
            assert_eq!((ending.reason, ending.disconnect), (CloseReason::UpstreamViolation, None));
        }
        // One answer is enough.
        let mut script = Script::new(OPEN, connect);
        let refused = if connect == CONNECT_V5 { &b"\x20\x03\x00\x87\x00"[..] } else { b"\x20\x02\x00\x05" };
        script.broker(refused).broker(b"\x30\x03\x00\x01a");
        assert_eq!((script.client_got(), &script.ending), (refused.to_vec(), &None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_broker_may_hold_gets_its_pubrel() {
    let wide = POLICY.replace("max_qos = 1", "max_qos = 2");
    for (mut script, properties) in [(v3(&wide), None), (v5(&wide), Some(&b""[..]))] {
        let first = publish(4, "up/dev-1/a", Some(8), properties, b"x");
        let again = publish(0xc, "up/dev-1/a", Some(8), properties, b"x");
        script.client(&first).broker(b"\x50\x02\x00\x08");
        script.reload(&wide.replace("up/${mqtt.client_id}/#", "up/other/#"));
        drop((script.client_got(), script.broker_got()));
        script.client(&again);
        assert_eq!((script.client_got(), script.broker_got()), (b"\x50\x02\x00\x08".to_vec(), vec![]));
        script.client(b"\x62\x02\x00\x08").broker(b"\x70\x02\x00\x08");
        assert_eq!(
            (script.client_got(), script.broker_got()),
            (b"\x70\x02\x00\x08".to_vec(), b"\x62\x02\x00\x08".to_vec())
        );
    }
}
