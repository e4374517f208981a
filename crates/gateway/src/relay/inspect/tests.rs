//! The codec by itself: packets in, packets out.

mod limits;
mod protocol;
mod rules;

use super::script::Script;
use super::*;

const CONNECT_V5: &[u8] = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05dev-1";
const CONNECT_V3: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-1";
const CONNACK_V5: &[u8] = b"\x20\x03\x00\x00\x00";
const CONNACK_V3: &[u8] = b"\x20\x02\x00\x00";

const BROKER_STALLED: Stalled = Stalled { client: false, broker: true };
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
        body.extend(varint(properties.len()));
        body.extend(properties);
    }
    body.extend(payload);
    packet(0x30 | flags, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first], &varint(body.len())[..], body].concat()
}

/// A Variable Byte Integer [MQTT 5, 1.5.5].
fn varint(mut value: usize) -> Vec<u8> {
    let mut digits = Vec::new();
    loop {
        let digit = u8::try_from(value % 128).unwrap();
        value /= 128;
        digits.push(if value == 0 { digit } else { digit | 0x80 });
        if value == 0 {
            return digits;
        }
    }
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

fn v5_with(configuration: &str, told: &[u8]) -> Script {
    let mut script = Script::new(configuration, CONNECT_V5);
    script.broker(CONNACK_V5);
    assert_eq!(script.client_got(), told);
    script
}
