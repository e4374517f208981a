//! The codec by itself: packets in, packets out.

use std::time::Duration;

use super::script::Script;
use super::*;

const CONNECT_V5: &[u8] = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05dev-1";
const CONNECT_V3: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-1";
const CONNACK_V5: &[u8] = b"\x20\x03\x00\x00\x00";
const CONNACK_V3: &[u8] = b"\x20\x02\x00\x00";

const OPEN: &str = "[listener.limits]\nmax_topic_levels = 100\n";
const POLICY: &str = r#"
topics = "p"
[[topic_policy]]
name = "p"
[[topic_policy.rule]]
effect = "deny"
publish = ["up/secret/#"]
subscribe = ["down/secret/#"]
[[topic_policy.rule]]
publish = ["up/${mqtt.client_id}/#", "up/secret/#"]
subscribe = ["down/#"]
max_qos = 1
retain = false
max_payload = "8"
"#;

fn v5(configuration: &str) -> Script {
    connected(configuration, CONNECT_V5, CONNACK_V5)
}

fn v3(configuration: &str) -> Script {
    connected(configuration, CONNECT_V3, CONNACK_V3)
}

fn connected(configuration: &str, connect: &[u8], connack: &[u8]) -> Script {
    let mut script = Script::new(configuration, connect);
    script.broker(connack);
    script.broker_got();
    assert_eq!(script.client_got(), connack);
    script
}

/// PUBLISH with these flags in the first byte. In MQTT 5 `properties` are there, without their length.
fn publish(flags: u8, topic: &str, id: Option<u16>, properties: Option<&[u8]>, payload: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    body.extend(id.iter().flat_map(|id| id.to_be_bytes()));
    if let Some(properties) = properties {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    body.extend(payload);
    packet(0x30 | flags, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut len = body.len();
    loop {
        let digit = u8::try_from(len % 128).unwrap();
        len /= 128;
        packet.push(if len == 0 { digit } else { digit | 0x80 });
        if len == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn subscribe(first: u8, id: u16, properties: Option<&[u8]>, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if let Some(properties) = properties {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    for (filter, options) in filters {
        body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
        body.extend(filter.as_bytes());
        if first == 0x82 {
            body.push(*options);
        }
    }
    packet(first, &body)
}

#[track_caller]
fn ends(script: &Script, reason: CloseReason, code: u8) {
    let ending = script.ending.as_ref().expect("the session goes on");
    assert_eq!((ending.reason, ending.disconnect.map(Disconnect::code)), (reason, Some(code)), "{ending:?}");
}

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
async fn the_limits_of_the_broker_are_enforced() {
    let connack = b"\x20\x0c\x00\x00\x09\x24\x01\x25\x00\x27\x00\x00\x00\x20";
    let open = || connected(OPEN, CONNECT_V5, connack);
    for (flags, payload, code) in [(4, &b""[..], 0x9b), (1, b"", 0x9a)] {
        let mut script = open();
        script.client(&publish(flags, "a", (flags > 1).then_some(1), Some(b""), payload));
        ends(&script, CloseReason::ProtocolViolation, code);
    }
    let mut script = open();
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 26]));
    assert_eq!(script.ending, None);
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 27]));
    ends(&script, CloseReason::PacketTooLarge, 0x95);
}

#[tokio::test(start_paused = true)]
async fn limits_of_the_gateway_are_told_in_connack() {
    const LIMITS: &str =
        "[listener.limits]\nmax_packet_size = \"1KiB\"\nmax_keep_alive = \"30s\"\nmax_session_expiry = \"1h\"\n";
    let connect = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\xff\xff\x00\x05dev-1";
    let mut script = Script::new(LIMITS, connect);
    assert_eq!(script.broker_got(), b"\x10\x17\x00\x04MQTT\x05\x02\x00\x1e\x05\x11\x00\x00\x0e\x10\x00\x05dev-1");
    script.broker(b"\x20\x09\x00\x00\x06\x22\x01\x00\x21\x00\x05");
    let told = [
        &b"\x20\x16\x00\x00\x13\x21\x00\x05"[..],
        b"\x13\x00\x1e",
        b"\x27\x00\x00\x04\x00",
        b"\x22\x00\x0a",
        b"\x11\x00\x00\x0e\x10",
    ];
    assert_eq!(script.client_got(), told.concat());
    script.client(b"\xe0\x07\x00\x05\x11\x00\x01\x00\x00");
    assert_eq!(script.broker_got(), b"\xe0\x07\x00\x05\x11\x00\x00\x0e\x10", "DISCONNECT cannot raise it");
    // What the broker says itself is kept if it is lower.
    let mut script = Script::new(LIMITS, CONNECT_V5);
    script.broker(b"\x20\x0b\x00\x00\x08\x13\x00\x14\x27\x00\x00\x00\xff");
    assert_eq!(script.client_got(), b"\x20\x0b\x00\x00\x08\x13\x00\x14\x27\x00\x00\x00\xff");
    // Before MQTT 5 nobody can be told.
    let mut script = Script::new(LIMITS, CONNECT_V3);
    assert_eq!(script.broker_got(), CONNECT_V3);
    script.broker(CONNACK_V3);
    assert_eq!(script.client_got(), CONNACK_V3);
}

#[tokio::test(start_paused = true)]
async fn the_gateways_own_packets_are_no_larger_than_the_client_accepts() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"30s\"\n";
    let connect =
        |max: u8| [&b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00"[..], &[max], b"\x00\x05dev-1"].concat();
    let mut script = Script::new(LIMITS, &connect(8));
    // A reason string is left out first.
    script.broker(b"\x20\x09\x00\x00\x06\x1f\x00\x03all");
    assert_eq!(script.client_got(), b"\x20\x06\x00\x00\x03\x13\x00\x1e");
    let mut script = Script::new(LIMITS, &connect(7));
    script.broker(CONNACK_V5);
    ends(&script, CloseReason::PacketTooLarge, 0x95);
    // Acknowledgements lose their code, and then the exchange goes on.
    let mut script = connected(POLICY, &connect(5), CONNACK_V5);
    script.client(&publish(4, "up/other", Some(1), Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\x50\x03\x00\x01\x87");
    let mut script = connected(POLICY, &connect(4), b"\x20\x03\x00\x00\x00");
    script.client(&publish(4, "up/other", Some(1), Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\x50\x02\x00\x01");
    script.client(b"\x62\x02\x00\x01");
    assert_eq!((script.client_got(), script.broker_got()), (b"\x70\x02\x00\x01".to_vec(), vec![]));
    // What does not fit at all is not sent.
    script.client(&subscribe(0x82, 1, Some(b""), &[("other", 0)]));
    assert_eq!(script.client_got(), b"");
}

#[tokio::test(start_paused = true)]
async fn packets_and_subscriptions_are_limited() {
    const LIMITS: &str = "[listener.limits]\nmax_packet_size = \"100\"\nmax_topic_levels = 3\nmax_subscriptions = 2\n";
    let mut script = v5_with(LIMITS, b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x64");
    script.broker_got();
    script.client(&publish(2, "a/b/c/d", Some(1), Some(b""), b"x"));
    assert_eq!((script.broker_got(), script.client_got()), (vec![], b"\x40\x03\x00\x01\x90".to_vec()));
    let filters = [("a", 0), ("a/b/c/d", 0), ("$share/g/a/b/c", 0), ("a", 0), ("c", 0)];
    script.client(&subscribe(0x82, 1, Some(b""), &filters));
    assert_eq!(script.broker_got(), subscribe(0x82, 1, Some(b""), &[("a", 0), ("$share/g/a/b/c", 0), ("a", 0)]));
    script.broker(b"\x90\x06\x00\x01\x00\x00\x00\x00");
    assert_eq!(script.client_got(), b"\x90\x08\x00\x01\x00\x00\x8f\x00\x00\x97");
    script.client(&subscribe(0xa2, 2, Some(b""), &[("a", 0)]));
    script.client(&subscribe(0x82, 3, Some(b""), &[("c", 0)]));
    assert!(script.broker_got().ends_with(&subscribe(0x82, 3, Some(b""), &[("c", 0)])), "there is room again");
    script.client(b"\x30\x63");
    ends(&script, CloseReason::PacketTooLarge, 0x95);
    assert_eq!(script.broker_got(), b"", "nothing of the packet");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_fast_is_delayed_or_disconnected() {
    let limits = |rate: &str| format!("[listener.limits]\n{rate}\n");
    let message = publish(0, "a", None, Some(b""), b"");
    let mut script = v5(&limits("message_rate = \"10/s\""));
    script.client(&[message.repeat(25), b"\xc0\x00".to_vec()].concat());
    assert_eq!(script.broker_got(), message.repeat(10));
    let mut ticks = 0;
    while !script.codec.held.is_empty() {
        assert!(!script.codec.may_read(Direction::ToBroker) && !script.codec.has_held(Direction::ToBroker));
        let at = script.codec.wake_at().unwrap();
        tokio::time::advance(at - Instant::now()).await;
        script.codec.wake(Instant::now(), true).unwrap();
        assert!(script.codec.has_held(Direction::ToBroker));
        script.client(b"");
        ticks += 1;
    }
    assert_eq!(ticks, 15, "one every tenth of a second");
    assert_eq!(script.broker_got(), [message.repeat(15), b"\xc0\x00".to_vec()].concat());
    let mut script = v5(&limits("message_rate = { rate = \"10/s\", burst = 2 }\non_exceed = \"disconnect\""));
    script.client(&message.repeat(3));
    assert_eq!(script.broker_got(), message.repeat(2));
    ends(&script, CloseReason::QuotaExceeded, 0x96);
    // Bytes are counted whatever they are.
    let mut script = v5(&limits("byte_rate = \"100/s\""));
    let large = publish(0, "a", None, Some(b""), &[b'x'; 244]);
    script.client(&large);
    assert_eq!(script.broker_got(), large[..100]);
    let start = Instant::now();
    while !script.codec.held.is_empty() {
        let at = script.codec.wake_at().unwrap();
        tokio::time::advance(at - Instant::now()).await;
        script.codec.wake(Instant::now(), true).unwrap();
        script.client(b"");
    }
    assert_eq!(script.broker_got(), large[100..]);
    assert!((1400..1600).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_for_too_long_is_disconnected() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"20s\"\n";
    for (version, after) in [(5, 30), (4, 90)] {
        let mut script = if version == 5 { v5_with(LIMITS, b"\x20\x06\x00\x00\x03\x13\x00\x14") } else { v3(LIMITS) };
        tokio::time::advance(Duration::from_secs(after - 1)).await;
        script.codec.wake(Instant::now(), true).unwrap();
        // The first byte of a packet is no packet.
        script.client(b"\xc0\x00\xc0");
        tokio::time::advance(Duration::from_secs(after - 1)).await;
        script.codec.wake(Instant::now(), true).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let ending = script.codec.wake(Instant::now(), true).unwrap_err();
        let expected = (CloseReason::KeepAliveTimeout, Some(Disconnect::KeepAliveTimeout));
        assert_eq!((ending.reason, ending.disconnect), expected);
    }
}

fn v5_with(configuration: &str, told: &[u8]) -> Script {
    let mut script = Script::new(configuration, CONNECT_V5);
    script.broker(CONNACK_V5);
    assert_eq!(script.client_got(), told);
    script
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
async fn a_reload_that_takes_a_right_away_ends_sessions_that_use_it() {
    let narrower = POLICY.replace("\"down/#\"", "\"down/a/#\"");
    let mut script = v5(POLICY);
    script.client(&subscribe(0x82, 1, Some(b""), &[("down/a/b", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.reload(&narrower);
    assert_eq!(script.ending, None);
    script.client(&subscribe(0x82, 2, Some(b""), &[("down/b", 0)]));
    script.client_got();
    script.broker(&publish(0, "down/b", None, Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\x90\x04\x00\x02\x00\x87".to_vec().split_off(6), "not delivered any more");
    let mut script = v5(POLICY);
    script.client(&subscribe(0x82, 1, Some(b""), &[("down/b", 0)])).broker(b"\x90\x04\x00\x01\x00\x00");
    script.reload(&narrower);
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
    let mut script = v5("mountpoint = 'm/'\n");
    script.reload("mountpoint = 'n/'\n");
    ends(&script, CloseReason::SessionPolicyChanged, 0x87);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_grows_without_end_is_too_large() {
    let mut script = v5(OPEN);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\xff\xff\x7f");
    ends(&script, CloseReason::PacketTooLarge, 0x95);
    // A large payload is no problem: it is not collected.
    let mut script = v5(OPEN);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\x00");
    for _ in 0..100 {
        script.client(&[b'x'; 16 << 10]);
    }
    assert_eq!((script.broker_got().len(), &script.ending), (9 + (100 << 14), &None));
    assert_eq!(script.codec.to_broker.head.capacity(), 0);
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
async fn a_client_waits_for_a_broker_that_does_not_answer_and_not_for_ever() {
    let mut script = v3(POLICY);
    let long = "x".repeat(60_000);
    let request = |id: u16| subscribe(0x82, id, None, &[(&format!("down/{id}{long}"), 0)]);
    for id in 1..=9 {
        script.client(&request(id));
    }
    assert!(!script.codec.may_read(Direction::ToBroker));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(script.codec.wake(Instant::now(), true), Ok(()));
    let mut answered = v3(POLICY);
    for id in 1..=9 {
        answered.client(&request(id));
    }
    for id in 1..=5 {
        answered.broker(&[0x90, 3, 0, id, 0]);
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(script.codec.wake(Instant::now(), true).unwrap_err().reason, CloseReason::QuotaExceeded);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(answered.codec.wake(Instant::now(), true), Ok(()));
    // An identifier that is used twice costs nothing for ever.
    let mut script = v3(POLICY);
    for _ in 0..1000 {
        let unsubscribe = subscribe(0xa2, 1, None, &[(&"y".repeat(1000), 0)]);
        script.client(&[subscribe(0x82, 1, None, &[("down/a", 0)]), unsubscribe].concat());
        script.broker(b"\x90\x03\x00\x01\x00\xb0\x02\x00\x01");
    }
    assert!(script.codec.may_read(Direction::ToBroker));
}

#[tokio::test(start_paused = true)]
async fn keep_alive_counts_what_moves() {
    const LIMITS: &str = "[listener.limits]\nmax_keep_alive = \"20s\"\n";
    let told = b"\x20\x06\x00\x00\x03\x13\x00\x14";
    // A large payload that arrives slowly.
    let mut script = v5_with(LIMITS, told);
    script.client(b"\x30\xff\xff\xff\x7f\x00\x01a\x00");
    for _ in 0..4 {
        tokio::time::advance(Duration::from_secs(20)).await;
        script.client(&[b'x'; 1024]);
        assert_eq!(script.codec.wake(Instant::now(), true), Ok(()));
    }
    // A byte a second is none.
    for _ in 0..30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        script.client(b"x");
    }
    assert!(script.codec.wake(Instant::now(), true).is_err());
    // A client that is not read, because the broker takes nothing.
    let mut script = v5_with(LIMITS, told);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(script.codec.wake(Instant::now(), false), Ok(()));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(script.codec.wake(Instant::now(), true), Ok(()));
    // A reload: the client keeps the interval that it was told.
    script.reload("[listener.limits]\nmax_keep_alive = \"2s\"\nmax_packet_size = \"64\"\n");
    tokio::time::advance(Duration::from_secs(20)).await;
    script.client(&publish(0, "a", None, Some(b""), &[b'x'; 100]));
    assert_eq!((script.codec.wake(Instant::now(), true), &script.ending), (Ok(()), &None));
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
async fn a_request_that_grows_too_large_is_answered() {
    let mut script = Script::new("mountpoint = 'a-long-mountpoint-indeed/'\n", CONNECT_V5);
    script.broker(b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\xff");
    assert_eq!(script.client_got(), b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\xc7");
    script.broker_got();
    let filters: Vec<String> = (10..30).map(|number| format!("f{number}")).collect();
    let filters: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
    script.client(&subscribe(0x82, 1, Some(b""), &filters));
    assert_eq!(script.broker_got(), b"");
    assert_eq!(script.client_got(), [&b"\x90\x17\x00\x01\x00"[..], &[0x97; 20]].concat());
    assert_eq!(script.codec.subscriptions.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_a_disconnect() {
    let mut script = v5(POLICY);
    script.broker(b"\xe0\x02\x8b\x00").client(&publish(2, "up/other", Some(1), Some(b""), b"x"));
    assert_eq!(script.client_got(), b"\xe0\x02\x8b\x00");
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_much_work_are_delayed() {
    let rules: String =
        (0..1000).map(|rule| format!("[[topic_policy.rule]]\nsubscribe = [\"{rule}/#\"]\nmax_qos = 1\n")).collect();
    let policy =
        format!("topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n{rules}[[topic_policy.rule]]\nsubscribe = [\"#\"]\n");
    let mut script = v3(&policy);
    let request = subscribe(0x82, 1, None, &[("#", 0), ("#", 0)]);
    script.client(&request.repeat(1000));
    let passed = script.broker_got().len() / request.len();
    assert!((40..150).contains(&passed), "{passed} of a thousand");
    assert!(!script.codec.may_read(Direction::ToBroker) && script.codec.wake_at().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_largest_packet_of_a_client_is_counted_without_the_mountpoint() {
    let connect = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x14\x00\x05dev-1";
    let mut script = Script::new("mountpoint = 'mount/'\n", connect);
    let told = b"\x10\x17\x00\x04MQTT\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x28\x00\x05dev-1";
    assert_eq!(script.broker_got(), told);
    script.broker(CONNACK_V5);
    script.client_got();
    let fits = publish(2, "a", Some(1), Some(b""), &[b'x'; 12]);
    assert_eq!(fits.len(), 20);
    script.broker(&publish(2, "mount/a", Some(1), Some(b""), &[b'x'; 12]));
    assert_eq!(script.client_got(), fits);
    script.broker(&publish(2, "mount/a", Some(1), Some(b""), &[b'x'; 13]));
    assert_eq!((script.client_got(), script.broker_got()), (vec![], b"\x40\x02\x00\x01".to_vec()), "[MQTT-3.1.2-25]");
}
