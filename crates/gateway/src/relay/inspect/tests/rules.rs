//! Topic rules, mountpoints, stamps.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_allowed_passes_byte_for_byte() {
    let packets = [
        publish(0, "up/dev-1/a", None, Some(b""), b"x"),
        publish(2, "up/dev-1/a", Some(1), Some(b"\x26\x00\x01a\x00\x01b"), b"x"),
        b"\xc0\x00".to_vec(),
        subscribe(0x82, 2, Some(b"\x0b\x05"), &[("down/a", 1), ("down/x/+", 0x2c)]),
        subscribe(0xa2, 3, Some(b""), &[("down/a", 0)]),
        b"\x62\x02\x00\x01".to_vec(),
        b"\x40\x02\x00\x07".to_vec(),
        b"\xe0\x00".to_vec(),
    ];
    for configuration in [POLICY, OPEN] {
        let mut script = v5(configuration);
        script.client(&packets.concat());
        assert_eq!((script.broker_got(), script.client_got(), &script.ending), (packets.concat(), vec![], &None));
        assert_eq!(script.codec.disconnected(), Some(Direction::ToBroker));
        script.client(b"\xc0\x00");
        assert_eq!(script.broker_got(), b"", "behind DISCONNECT nothing counts");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_publish_is_acknowledged_and_not_delivered() {
    let denied = |qos: u8, id| publish(qos << 1, "up/other", id, None, b"secret");
    let mut script = v3(POLICY);
    script.client(&[denied(0, None), denied(1, Some(5)), denied(2, Some(6)), b"\xc0\x00".to_vec()].concat());
    assert_eq!(script.broker_got(), b"\xc0\x00");
    assert_eq!(script.client_got(), b"\x40\x02\x00\x05\x50\x02\x00\x06");
    // The exchange of QoS 2 goes on with the gateway; another one with the broker.
    script.client(&[&denied(2, Some(6))[..], b"\x62\x02\x00\x06", b"\x62\x02\x00\x09"].concat());
    assert_eq!(script.client_got(), b"\x50\x02\x00\x06\x70\x02\x00\x06");
    assert_eq!(script.broker_got(), b"\x62\x02\x00\x09");
    script.client(b"\x62\x02\x00\x06");
    assert_eq!(script.broker_got(), b"\x62\x02\x00\x06", "of which the gateway knows nothing any more");
    // An identifier is used again although the exchange was not over.
    let mut script = v3(&POLICY.replace("max_qos = 1", "max_qos = 2"));
    let allowed = publish(4, "up/dev-1/a", Some(6), None, b"x");
    script.client(&[&denied(2, Some(6))[..], &allowed, b"\x62\x02\x00\x06"].concat());
    assert_eq!(script.broker_got(), [&allowed[..], b"\x62\x02\x00\x06"].concat());

    let denied = |qos: u8, id| publish(qos << 1, "up/other", id, Some(b""), b"secret");
    let mut script = v5(POLICY);
    script.client(&[denied(0, None), denied(1, Some(5)), denied(2, Some(6))].concat());
    assert_eq!(script.broker_got(), b"");
    assert_eq!(script.client_got(), b"\x40\x03\x00\x05\x87\x50\x03\x00\x06\x87");
    assert_eq!(script.ending, None);
}

#[tokio::test(start_paused = true)]
async fn the_conditions_of_the_rule_that_matches_decide() {
    for (flags, topic, payload) in [
        (4, "up/dev-1/a", &b"x"[..]),
        (1, "up/dev-1/a", b"x"),
        (0, "up/dev-1/a", b"123456789"),
        (0, "up/secret/a", b"x"),
        (0, "up/dev-2/a", b"x"),
        (0, "UP/dev-1/a", b"x"),
        (0, "up//dev-1", b"x"),
    ] {
        let id = (flags & 6 != 0).then_some(3);
        let mut script = v5(POLICY);
        script.client(&publish(flags, topic, id, Some(b""), payload));
        assert_eq!(script.broker_got(), b"", "{topic} {flags}");
        let ends_it = POLICY.replace("name = \"p\"", "name = \"p\"\non_deny = \"disconnect\"");
        let mut script = v5(&ends_it);
        script.client(&[&b"\xc0\x00"[..], &publish(flags, topic, id, Some(b""), payload), b"\xc0\x00"].concat());
        assert_eq!(script.broker_got(), b"\xc0\x00", "nothing behind the packet is processed");
        let code = match (flags, payload.len()) {
            (4, _) => 0x9b,
            (1, _) => 0x9a,
            (_, 9) => 0x95,
            _ => 0x87,
        };
        ends(&script, CloseReason::TopicDenied, code);
        let detail = script.ending.as_ref().and_then(|ending| ending.detail.as_deref()).unwrap();
        assert!(
            detail.contains(topic) && detail.contains("rule") && detail.contains("of topic policy `p`"),
            "{detail}"
        );
        let mut script = v5(&POLICY.replace("name = \"p\"", "name = \"p\"\nmode = \"shadow\""));
        let packet = publish(flags, topic, id, Some(b""), payload);
        script.client(&packet);
        assert_eq!(script.broker_got(), packet, "in shadow mode everything passes");
    }
    let mut script = v5(POLICY);
    let packet = publish(2, "up/dev-1", Some(1), Some(b""), b"12345678");
    script.client(&packet);
    assert_eq!(script.broker_got(), packet, "`#` includes the parent level");
}

#[tokio::test(start_paused = true)]
async fn a_partly_denied_subscribe_goes_on_without_the_denied_filters() {
    let filters = [("down/a", 2), ("up/#", 1), ("down/secret/x", 0), ("$share/g/down/b", 1), ("down/#", 0), ("#", 0)];
    for (mut script, properties, denied) in [(v3(POLICY), None, 0x80), (v5(POLICY), Some(&b"\x0b\x05"[..]), 0x87)] {
        script.client(&subscribe(0x82, 9, properties, &filters));
        // A filter that overlaps an earlier rule that denies is denied as a whole; the QoS is lowered.
        assert_eq!(script.broker_got(), subscribe(0x82, 9, properties, &[("down/a", 1), ("$share/g/down/b", 1)]));
        assert_eq!(script.client_got(), b"");
        let no_properties = if properties.is_some() { &b"\x00"[..] } else { b"" };
        let suback = |codes: &[u8]| packet(0x90, &[&b"\x00\x09"[..], no_properties, codes].concat());
        script.broker(&suback(&[1, 0x80]));
        assert_eq!(script.client_got(), suback(&[1, denied, denied, 0x80, denied, denied]));
        assert_eq!(script.codec.subscriptions.filters("").collect::<Vec<_>>(), ["down/a"]);
        script.client(&subscribe(0x82, 9, properties, &[("other", 0)]));
        assert_eq!((script.broker_got(), script.client_got()), (vec![], suback(&[denied])), "answered by the gateway");
    }
}

#[tokio::test(start_paused = true)]
async fn deliveries_are_judged_and_acknowledged_in_the_clients_place() {
    for (mut script, properties) in [(v3(POLICY), None), (v5(POLICY), Some(&b""[..]))] {
        let allowed = publish(2, "down/a", Some(1), properties, b"x");
        let denied = |qos: u8, id| publish(qos << 1, "down/secret/a", id, properties, b"x");
        script.broker(&[denied(0, None), allowed.clone(), denied(1, Some(2)), denied(2, Some(3))].concat());
        assert_eq!(script.client_got(), allowed);
        assert_eq!(script.broker_got(), b"\x40\x02\x00\x02\x50\x02\x00\x03");
        script.broker(b"\x62\x02\x00\x03\x62\x02\x00\x04");
        assert_eq!(
            (script.broker_got(), script.client_got()),
            (b"\x70\x02\x00\x03".to_vec(), b"\x62\x02\x00\x04".to_vec())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_mountpoint_is_in_front_of_everything_and_unseen() {
    const MOUNTED: &str = "mountpoint = 'm/${mqtt.client_id}/'\n";
    let connect = |topic: &[u8]| {
        packet(0x10, &[b"\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x05dev-1\x00", topic, b"\x00\x02by"].concat())
    };
    let mut script = Script::new(MOUNTED, &connect(b"\x00\x04gone"));
    assert_eq!(script.broker_got(), connect(b"\x00\x0cm/dev-1/gone"));
    script.broker(CONNACK_V5);
    script.client_got();
    let response = |topic: &str| [&[8, 0, u8::try_from(topic.len()).unwrap()], topic.as_bytes()].concat();
    script.client(&publish(3, "a/b", Some(1), Some(&response("r")), b"payload"));
    assert_eq!(script.broker_got(), publish(3, "m/dev-1/a/b", Some(1), Some(&response("m/dev-1/r")), b"payload"));
    script.client(&subscribe(0x82, 2, Some(b"\x0b\x05"), &[("#", 2), ("$share/g/+/x", 1), ("$SYS/#", 0)]));
    assert_eq!(
        script.broker_got(),
        subscribe(0x82, 2, Some(b"\x0b\x05"), &[("m/dev-1/#", 2), ("$share/g/m/dev-1/+/x", 1), ("m/dev-1/$SYS/#", 0)])
    );
    script.broker(b"\x90\x06\x00\x02\x00\x02\x01\x00");
    assert_eq!(script.client_got(), b"\x90\x06\x00\x02\x00\x02\x01\x00");
    script.client(&subscribe(0xa2, 3, Some(b""), &[("#", 0), ("$share/g/+/x", 0)]));
    assert_eq!(script.broker_got(), subscribe(0xa2, 3, Some(b""), &[("m/dev-1/#", 0), ("$share/g/m/dev-1/+/x", 0)]));
    script.broker(&publish(0, "m/dev-1/a/b", None, Some(&response("m/dev-1/r")), b"payload"));
    assert_eq!(script.client_got(), publish(0, "a/b", None, Some(&response("r")), b"payload"));
    // Of other tenants there is nothing, not even a name.
    script.broker(&publish(0, "m/dev-1/a/b", None, Some(&response("m/dev-2/r")), b"payload"));
    assert_eq!(script.client_got(), publish(0, "a/b", None, Some(b""), b"payload"));
    for topic in ["m/dev-2/a", "m/dev-1", "m/dev-1/", "m", "other"] {
        script.broker(&publish(2, topic, Some(7), Some(b""), b"x"));
        assert_eq!((script.client_got(), script.broker_got()), (vec![], b"\x40\x02\x00\x07".to_vec()), "{topic}");
    }
    assert_eq!(script.ending, None);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_grows_too_long_is_denied() {
    let mut script = v5("mountpoint = 'm/'\n");
    let longest = "x".repeat(65_533);
    script.client(&publish(2, &longest, Some(1), Some(b""), b""));
    assert_eq!(script.broker_got(), publish(2, &format!("m/{longest}"), Some(1), Some(b""), b""));
    script.client(&publish(2, &(longest.clone() + "x"), Some(2), Some(b""), b""));
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x40\x03\x00\x02\x90".to_vec()));
    script.client(&subscribe(0x82, 3, Some(b""), &[(&(longest + "x"), 0), ("a", 0)]));
    assert_eq!(script.broker_got(), subscribe(0x82, 3, Some(b""), &[("m/a", 0)]));
    script.broker(b"\x90\x04\x00\x03\x00\x00");
    assert_eq!(script.client_got(), b"\x90\x05\x00\x03\x00\x8f\x00");
}

#[tokio::test(start_paused = true)]
async fn stamps_replace_what_the_client_says_of_itself() {
    const STAMPED: &str = "[listener.publish]\nuser_properties = { by = 'mqtt.client_id' }\n";
    let user = |name: &str, value: &str| {
        let field = |text: &str| [&[0, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [&[0x26][..], &field(name), &field(value)].concat()
    };
    let mut script = v5(STAMPED);
    let sent =
        [user("by", "admin"), b"\x01\x01".to_vec(), user("a", "b"), user("by", "root"), user("By", "c")].concat();
    script.client(&publish(0, "t", None, Some(&sent), b"x"));
    let stamped = [b"\x01\x01".to_vec(), user("a", "b"), user("By", "c"), user("by", "dev-1")].concat();
    assert_eq!(script.broker_got(), publish(0, "t", None, Some(&stamped), b"x"));
    script.client(&publish(0, "t", None, Some(b""), b"x"));
    assert_eq!(script.broker_got(), publish(0, "t", None, Some(&user("by", "dev-1")), b"x"));
    // To the client nothing is added; before MQTT 5 there are no properties.
    let packet = publish(0, "t", None, Some(b""), b"x");
    script.broker(&packet);
    assert_eq!(script.client_got(), packet);
    let packet = publish(0, "t", None, None, b"x");
    let mut script = v3(STAMPED);
    script.client(&packet);
    assert_eq!(script.broker_got(), packet);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_takes_a_right_away_ends_sessions_that_use_it() {
    let narrower = POLICY.replace("\"down/#\"", "\"down/a/#\"");
    let mut script = v5(POLICY);
    script.client(&subscribe(0x82, 1, Some(b""), &[("down/a/b", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.reload(&narrower);
    assert_eq!(script.ending, None);
    script.client(&subscribe(0x82, 2, Some(b""), &[("down/b", 0)]));
    assert_eq!(script.client_got(), b"\x90\x04\x00\x01\x00\x00\x90\x04\x00\x02\x00\x87");
    script.broker(&publish(0, "down/b", None, Some(b""), b"x"));
    assert_eq!(script.client_got(), b"", "not delivered any more");
    let mut script = v5(POLICY);
    script.client(&subscribe(0x82, 1, Some(b""), &[("down/b", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.reload(&narrower);
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
    let mut script = v5("mountpoint = 'm/'\n");
    script.reload("mountpoint = 'n/'\n");
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
}

#[tokio::test(start_paused = true)]
async fn a_reload_that_takes_the_right_of_a_will_away_discards_it() {
    let connect = packet(0x10, b"\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x05dev-1\x00\x00\x0aup/dev-1/w\x00\x02by");
    let narrower = POLICY.replace("up/${mqtt.client_id}/#", "up/${mqtt.client_id}/a/#");
    let open = || connected(POLICY, &connect, CONNACK_V5);
    let mut script = open();
    script.reload(POLICY);
    assert_eq!(script.ending, None);
    script.reload(&narrower.replace("name = \"p\"", "name = \"p\"\nmode = \"shadow\""));
    assert_eq!(script.ending, None, "shadow mode ends nobody");
    script.reload(&narrower);
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
    assert!(script.codec.is_between_packets_to_broker());
    // Within a packet, DISCONNECT would be a part of it.
    let mut script = open();
    script.client(&publish(0, "up/dev-1/a", None, Some(b""), b"12345678")[..18]);
    script.reload(&narrower);
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
    assert!(!script.codec.is_between_packets_to_broker());
    // Also by what only its payload shows, or a limit.
    for rest in [
        POLICY.replace(
            "max_qos = 1",
            &format!("schema = {:?}", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/number.schema.json")),
        ),
        format!("{}[listener.limits]\nmax_topic_levels = 2\n", POLICY.split_once('\n').unwrap().0)
            + POLICY.split_once("\"p\"").unwrap().1,
    ] {
        let mut script = open();
        script.reload(&rest);
        ends(&script, CloseReason::SessionPolicyChanged, 0x87);
    }
}

#[tokio::test(start_paused = true)]
async fn what_grows_too_large_for_the_broker_is_denied_and_ends_nothing() {
    // Maximum Packet Size 40, ten aliases.
    let connack = packet(0x20, b"\x00\x00\x08\x27\x00\x00\x00\x28\x22\x00\x0a");
    let mut script = Script::new("mountpoint = 'tenants/a/'\n", CONNECT_V5);
    script.broker(&connack);
    drop((script.client_got(), script.broker_got()));
    let large = publish(2, "a", Some(1), Some(b""), &[b'x'; 24]);
    assert!(large.len() < 40);
    script.client(&large);
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x40\x03\x00\x01\x97".to_vec()));
    script.client(b"\xc0\x00");
    assert_eq!((script.broker_got(), &script.ending), (b"\xc0\x00".to_vec(), &None));
}

#[tokio::test(start_paused = true)]
async fn topics_of_the_broker_are_nobodys() {
    // With a mountpoint in front, the broker's wildcards match them.
    let mut script = v5("mountpoint = 'm/'\n");
    script.client(&subscribe(0x82, 1, Some(b""), &[("#", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.client_got();
    let packet = publish(0, "m/$SYS/a", None, Some(b""), b"x");
    script.broker(&packet);
    assert_eq!(script.client_got(), b"");
    script.client(&subscribe(0x82, 1, Some(b""), &[("$SYS/+", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.client_got();
    script.broker(&packet);
    assert_eq!(script.client_got(), publish(0, "$SYS/a", None, Some(b""), b"x"));
    // They may stand for others: only a rule allows them.
    let mut script = v3(
        "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\nno_match = \"allow\"\n[[topic_policy.rule]]\neffect = \"deny\"\n\
                         publish = [\"secret/#\"]\nsubscribe = [\"secret/#\"]\n",
    );
    script.client(&publish(2, "$delayed/1/secret/a", Some(1), None, b"x"));
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x40\x02\x00\x01".to_vec()));
    let filters = ["$share/g/secret/a", "$share/+/secret/a", "$share//secret/a", "$share/g", "$exclusive/secret/a"]
        .map(|filter| (filter, 0));
    script.client(&subscribe(0x82, 1, None, &filters));
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x90\x07\x00\x01\x80\x80\x80\x80\x80".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn messages_alike_are_decided_on_alike_and_others_are_not() {
    // A payload of 8 bytes at most, in one read and in pieces.
    let message = |topic: &str, payload: &[u8]| publish(0, topic, None, Some(b""), payload);
    let (own, other) = ("up/dev-1/a", "up/dev-2/a");
    let packets = [
        message(own, b"1234"),
        message(own, b"12345678"),
        message(own, b"123456789"),
        message(own, b"1"),
        message(other, b"1"),
        message(own, b""),
        publish(1, own, None, Some(b""), b"x"),
        publish(0, own, None, Some(b"\x01\x01"), b"x"),
        message("up/dev-1/b", b"x"),
        message("up/dev-1/b", b"xyz"),
    ];
    let allowed: Vec<u8> = packets
        .iter()
        .enumerate()
        .filter(|(index, _)| ![2, 4, 6].contains(index))
        .flat_map(|(_, it)| it.clone())
        .collect();
    for pieces in [1, 7, 40, usize::MAX] {
        let mut script = v5(POLICY);
        for piece in packets.concat().chunks(pieces.min(1000)) {
            script.client(piece);
        }
        assert_eq!((script.broker_got(), &script.ending), (allowed.clone(), &None), "{pieces}");
    }
    let rate = format!(
        "{}[listener.limits]\nmessage_rate = {{ rate = \"1/h\", burst = 3 }}\n",
        POLICY.split_once('\n').unwrap().0
    ) + POLICY.split_once("\"p\"").unwrap().1;
    let mut script = v5(&rate);
    script.client(&message(own, b"x").repeat(10));
    assert_eq!(script.broker_got(), message(own, b"x").repeat(3));
    // The other way, too.
    let mut script = v5(POLICY);
    let (allowed, denied) = (message("down/a", b"x"), message("down/secret/a", b"x"));
    script.broker(&[allowed.repeat(3), denied.repeat(3), allowed.clone()].concat());
    assert_eq!(script.client_got(), allowed.repeat(4));
}
