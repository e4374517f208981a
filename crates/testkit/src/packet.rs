//! Packets built byte by byte, without the code under test.

/// An MQTT 3.1.1 CONNECT with a clean session and only a client ID.
pub fn connect(client_id: &str) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x04\x02\x00\x3c".to_vec();
    body.extend(u16::try_from(client_id.len()).unwrap().to_be_bytes());
    body.extend(client_id.as_bytes());
    packet(0x10, &body)
}

/// An MQTT 5 CONNECT with a clean start and only a client ID.
pub fn connect_v5(client_id: &str) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x05\x02\x00\x3c\x00".to_vec();
    body.extend(u16::try_from(client_id.len()).unwrap().to_be_bytes());
    body.extend(client_id.as_bytes());
    packet(0x10, &body)
}

/// An MQTT 3.1.1 CONNECT with a user name and a password.
pub fn connect_as(client_id: &str, username: &str, password: &[u8]) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x04\xc2\x00\x3c".to_vec();
    for field in [client_id.as_bytes(), username.as_bytes(), password] {
        body.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
        body.extend(field);
    }
    packet(0x10, &body)
}

/// A CONNACK that accepts, in MQTT 5 if `version` is 5, otherwise in MQTT 3.
pub fn connack(version: u8) -> Vec<u8> {
    if version == 5 { b"\x20\x03\x00\x00\x00".to_vec() } else { b"\x20\x02\x00\x00".to_vec() }
}

/// A PUBLISH with these flags in the first byte. In MQTT 5 (`version` 5) with these properties, without their length.
pub fn publish(version: u8, flags: u8, topic: &str, id: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = field(topic.as_bytes());
    body.extend(id.iter().flat_map(|id| id.to_be_bytes()));
    if version == 5 {
        body.extend(varint(properties.len()));
        body.extend(properties);
    }
    body.extend(payload);
    packet(0x30 | flags, &body)
}

/// A SUBSCRIBE to these filters, each with its options.
pub fn subscribe(version: u8, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    for (filter, options) in filters {
        body.extend(field(filter.as_bytes()));
        body.push(*options);
    }
    packet(0x82, &body)
}

/// A SUBACK with these codes.
pub fn suback(version: u8, id: u16, codes: &[u8]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    body.extend(codes);
    packet(0x90, &body)
}

/// Bytes with a two-byte length in front.
pub fn field(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A packet with this first byte.
pub fn packet(first_byte: u8, body: &[u8]) -> Vec<u8> {
    [&[first_byte][..], &varint(body.len()), body].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let digit = u8::try_from(value % 128).unwrap();
        value /= 128;
        out.push(if value == 0 { digit } else { digit | 0x80 });
        if value == 0 {
            return out;
        }
    }
}
