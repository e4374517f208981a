//! The few MQTT 3.1.1 packets of the load. Enters: client IDs, topics, sizes. Leaves: bytes.

pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];
pub(crate) const PINGRESP: [u8; 2] = [0xd0, 0];
/// Accepted, no session present.
pub(crate) const CONNACK: [u8; 4] = [0x20, 2, 0, 0];
/// The topic of all messages.
pub(crate) const TOPIC: &str = "a/b/cd";

/// CONNECT of a clean session without keep-alive.
pub(crate) fn connect(client_id: &str) -> Vec<u8> {
    const CLEAN_SESSION: u8 = 2;
    let body = [&b"\x00\x04MQTT\x04"[..], &[CLEAN_SESSION, 0, 0], &string(client_id)].concat();
    packet(0x10, &body)
}

/// PUBLISH of QoS 0 with a payload of this many bytes.
pub(crate) fn publish(topic: &str, payload: usize) -> Vec<u8> {
    let mut body = string(topic);
    body.resize(body.len() + payload, b'x');
    packet(0x30, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    // The remaining length: 7 bits a byte, the lowest first.
    loop {
        let [.., digit] = (rest % 128).to_be_bytes();
        rest /= 128;
        packet.push(if rest > 0 { digit | 128 } else { digit });
        if rest == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn string(text: &str) -> Vec<u8> {
    let [.., high, low] = text.len().to_be_bytes();
    [&[high, low], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_in_the_standard() {
        assert_eq!(connect("thing001"), b"\x10\x14\x00\x04MQTT\x04\x02\x00\x00\x00\x08thing001");
        assert_eq!(publish("a", 2), b"\x30\x05\x00\x01axx");
        assert_eq!(publish("a", 200)[..6], *b"\x30\xcb\x01\x00\x01a");
    }
}
