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

fn packet(first_byte: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first_byte];
    let mut length = body.len();
    loop {
        let digit = u8::try_from(length % 128).unwrap();
        length /= 128;
        out.push(if length == 0 { digit } else { digit | 0x80 });
        if length == 0 {
            break;
        }
    }
    out.extend(body);
    out
}
