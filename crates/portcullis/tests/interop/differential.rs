//! Differential tests of CONNECT: mosquitto and the gateway accept and reject the same packets, except for the listed and
//! explained differences.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use portcullis_wire::{Connect, Limits};

use crate::processes::Mosquitto;

/// Whether mosquitto responds to these bytes with a CONNACK that accepts.
fn is_accepted(broker: &Mosquitto, packet: &[u8]) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // These fail if the broker closes the connection early, which counts as a rejection.
    let _ = stream.write_all(packet);
    let _ = stream.shutdown(Shutdown::Write);
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    matches!(response.as_slice(), [0x20, _, _, 0, ..])
}

/// Whether mosquitto may reject the packet where the standard leaves the choice to the server.
fn may_be_rejected(connect: &Connect<'_>) -> bool {
    let has_controls = |text: &str| {
        text.chars().any(|c| c.is_control() || ('\u{fdd0}'..='\u{fdef}').contains(&c) || (c as u32) & 0xfffe == 0xfffe)
    };
    let texts = [Some(connect.client_id), connect.username, connect.will.map(|will| will.topic)];
    // [MQTT-1.5.4-2, MQTT-1.5.4.3]: control characters and non-characters may be refused.
    texts.into_iter().flatten().any(has_controls)
        // No authentication method is configured.
        || connect.properties.authentication_method().is_some()
        // [MQTT-3.1.3-8 (3.1.1)], which the gateway checks after rewriting.
        || connect.check_client_id().is_err()
}

/// Decodes the packet and sends it to mosquitto. Returns a description if the two disagree.
fn disagreement(broker: &Mosquitto, packet: &[u8]) -> Option<String> {
    let accepted = is_accepted(broker, packet);
    match Connect::decode(packet, Limits::default()) {
        Ok(Some((connect, _))) if !accepted && !may_be_rejected(&connect) => {
            Some(format!("mosquitto rejects {packet:02x?}: {connect:?}"))
        }
        Err(error) if accepted => Some(format!("mosquitto accepts {packet:02x?}: {error}")),
        // They agree, or the packet is incomplete.
        _ => None,
    }
}

#[test]
fn single_packets_by_clause() {
    let broker = Mosquitto::start();
    let v4 = |flags: u8, payload: &[u8]| {
        [&[0x10, 10 + u8::try_from(payload.len()).unwrap()], &b"\x00\x04MQTT\x04"[..], &[flags, 0, 60], payload]
            .concat()
    };
    let v5 = |flags: u8, rest: &[u8]| {
        [&[0x10, 10 + u8::try_from(rest.len()).unwrap()], &b"\x00\x04MQTT\x05"[..], &[flags, 0, 60], rest].concat()
    };
    let packets = [
        v4(2, b"\0\x01a"),
        v4(0, b"\0\x01a"),
        v4(2, b"\0\0"),
        v4(3, b"\0\x01a"),
        v4(0x0a, b"\0\x01a"),
        v4(0x22, b"\0\x01a"),
        v4(0x1e, b"\0\x01a\0\x01t\0\x01m"),
        v4(0x16, b"\0\x01a\0\x01t\0\x01m"),
        v4(0x06, b"\0\x01a\0\x01#\0\x01m"),
        v4(0x06, b"\0\x01a\0\0\0\x01m"),
        v4(0x42, b"\0\x01a\0\x01p"),
        v4(0xc2, b"\0\x01a\0\x01u\0\x01p"),
        v4(0x82, b"\0\x01a"),
        v4(2, b"\0\x01\0"),
        v4(2, b"\0\x02\xc0\x80"),
        v4(2, b"\0\x03\xed\xa0\x80"),
        v4(2, b"\0\x09a"),
        v5(2, b"\0\0\x01a"),
        v5(0, b"\0\0\0"),
        v5(0x42, b"\0\0\x01a\0\x01p"),
        v5(2, b"\x03\x21\0\0\0\x01a"),
        v5(2, b"\x05\x27\0\0\0\0\0\x01a"),
        v5(2, b"\x02\x19\x02\0\x01a"),
        v5(2, b"\x02\x17\x02\0\x01a"),
        v5(2, b"\x04\x17\x01\x17\x01\0\x01a"),
        v5(2, b"\x05\x18\0\0\0\x01\0\x01a"),
        v5(2, b"\x02\x7f\0\0\x01a"),
        v5(2, b"\x07\x26\0\x01k\0\x01v\0\x01a"),
        v5(6, b"\0\0\x01a\x05\x18\0\0\0\x01\0\x01t\0\x01m"),
        v5(6, b"\0\0\x01a\x05\x11\0\0\0\x01\0\x01t\0\x01m"),
        b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a".to_vec(),
        b"\x10\x0f\x00\x06MQIsdp\x04\x02\x00\x3c\x00\x01a".to_vec(),
        b"\x11\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a".to_vec(),
        b"\x10\x0d\x00\x04MQTX\x04\x02\x00\x3c\x00\x01a".to_vec(),
        b"\x10\x0d\x00\x04MQTT\x07\x02\x00\x3c\x00\x01a".to_vec(),
    ];
    assert!(
        is_accepted(&broker, &packets[0]) && !is_accepted(&broker, &packets[3]),
        "mosquitto accepts the valid packet and rejects the invalid one"
    );
    let disagreements: Vec<String> = packets.iter().filter_map(|packet| disagreement(&broker, packet)).collect();
    assert!(disagreements.is_empty(), "{disagreements:#?}");
}

#[test]
fn everything_that_fuzzing_has_found() {
    let broker = Mosquitto::start();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/connect");
    let mut disagreements = Vec::new();
    for entry in std::fs::read_dir(corpus).unwrap() {
        let packet = std::fs::read(entry.unwrap().path()).unwrap();
        disagreements.extend(disagreement(&broker, &packet));
    }
    assert!(disagreements.is_empty(), "{} disagreements: {disagreements:#?}", disagreements.len());
}
