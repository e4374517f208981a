//! Differential tests: mosquitto and the gateway accept and reject the same packets, CONNECT and those behind it, except for the
//! listed and explained differences.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use portcullis_wire::{Connect, Error, FixedHeader, Limits, Packet, PacketType, Rule, Sender, Version, head_len};

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

/// Whether mosquitto goes on after these packets of a connected client: it answers the PINGREQ behind them.
fn goes_on(broker: &Mosquitto, version: Version, packets: &[u8]) -> bool {
    let connect: &[u8] = match version {
        Version::V31 => b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01a",
        Version::V311 => b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a",
        Version::V5 => b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a",
    };
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(connect).unwrap();
    let _ = stream.write_all(&[packets, b"\xc0\x00"].concat());
    let _ = stream.shutdown(Shutdown::Write);
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    response.ends_with(b"\xd0\x00")
}

/// What packets of a client are.
#[derive(Debug)]
enum Packets {
    Valid,
    Invalid(Error),
    /// One is incomplete, or ends the connection.
    Other,
}

fn judge(version: Version, mut stream: &[u8]) -> Packets {
    while !stream.is_empty() {
        let decoded = FixedHeader::decode(stream).and_then(|header| {
            let Some(header) = header else { return Ok(None) };
            Packet::check_header(header, version, Sender::Client)?;
            let Some(head) = head_len(stream, header, version)?.and_then(|len| stream.get(..len)) else {
                return Ok(None);
            };
            Packet::decode(head, header, version, Sender::Client)?;
            Ok(stream.get(header.packet_len()..).map(|rest| (header.packet_type, rest)))
        });
        match decoded {
            Ok(Some((PacketType::Disconnect | PacketType::Auth, _)) | None) => return Packets::Other,
            Ok(Some((_, rest))) => stream = rest,
            Err(error) => return Packets::Invalid(error),
        }
    }
    Packets::Valid
}

/// What mosquitto does not check, or checks otherwise, by the rule.
fn is_tolerated(version: Version, error: Error) -> bool {
    let Error::Malformed(rule) = error else { return false };
    match rule {
        // It answers an unknown PUBREC and ignores unknown acknowledgements, whatever their codes are.
        // [MQTT-3.8.3-4] is checked by newer versions only.
        Rule::ReasonCode | Rule::SharedNoLocal => true,
        // It ignores what MQTT 3.1 does not use.
        Rule::FixedHeaderFlags | Rule::SubscriptionOptions => version == Version::V31,
        _ => false,
    }
}

/// What a broker decides by more than the packet: an alias that nothing has set, and DUP of MQTT 3.1, which mosquitto refuses.
const MORE_TO_IT: [&str; 2] = ["publish-alias-only", "subscribe-again-mqtt31"];

#[test]
fn packets_behind_connect() {
    let broker = Mosquitto::start();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/packet");
    let (mut disagreements, mut compared) = (Vec::new(), [0, 0]);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        // The first byte selects version and sender, as in the fuzz target.
        let Some((selector, packets)) = input.split_first().filter(|(selector, _)| **selector & 4 == 0) else {
            continue;
        };
        let version = [Version::V31, Version::V311, Version::V5, Version::V5][usize::from(selector & 3)];
        let (name, ours) = (path.file_name().unwrap().to_owned(), judge(version, packets));
        if MORE_TO_IT.iter().any(|known| name == *known) {
            continue;
        }
        let is_accepted = goes_on(&broker, version, packets);
        match ours {
            Packets::Other => {}
            Packets::Valid if is_accepted => compared[0] += 1,
            Packets::Invalid(error) if !is_accepted || is_tolerated(version, error) => compared[1] += 1,
            ours => {
                let name = name.display();
                disagreements.push(format!("{name} {version:?}: mosquitto accepts: {is_accepted}, ours: {ours:?}"));
            }
        }
    }
    assert!(disagreements.is_empty(), "{disagreements:#?}");
    assert!(compared.iter().all(|count| *count >= 5), "{compared:?}");
}
