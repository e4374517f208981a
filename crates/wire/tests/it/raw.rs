//! Builds packets byte by byte, without the code under test, so that invalid ones can be built, too.

use portcullis_wire::Version;

/// The parts of a CONNECT; tests change public fields to break it.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) first_byte: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) level: u8,
    pub(crate) flags: u8,
    pub(crate) keep_alive: u16,
    /// The MQTT 5 properties without their length.
    pub(crate) properties: Option<Vec<u8>>,
    pub(crate) payload: Vec<u8>,
}

impl Raw {
    pub(crate) fn new(level: u8) -> Self {
        Self {
            first_byte: 0x10,
            name: if level == 3 { b"MQIsdp".to_vec() } else { b"MQTT".to_vec() },
            level,
            flags: 2,
            keep_alive: 60,
            properties: (level == 5).then(Vec::new),
            payload: field(b"thing001"),
        }
    }

    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn properties(mut self, properties: &[u8]) -> Self {
        self.properties = Some(properties.to_vec());
        self
    }

    /// Replaces the payload with these fields, each preceded by its length.
    pub(crate) fn fields(mut self, fields: &[&[u8]]) -> Self {
        self.payload = fields.iter().flat_map(|bytes| field(bytes)).collect();
        self
    }

    /// Replaces the payload.
    pub(crate) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut body = field(&self.name);
        body.extend([self.level, self.flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if let Some(properties) = &self.properties {
            body.extend(varint(properties.len()));
            body.extend(properties);
        }
        body.extend(&self.payload);
        packet(self.first_byte, &body)
    }
}

/// A packet with this body.
pub(crate) fn packet(first_byte: u8, body: &[u8]) -> Vec<u8> {
    [&[first_byte], &varint(body.len())[..], body].concat()
}

/// A packet of a packet identifier, properties, which are left out before MQTT 5, and a payload.
pub(crate) fn packet_with_id(first_byte: u8, id: u16, version: Version, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let properties = if version == Version::V5 { block(properties) } else { Vec::new() };
    packet(first_byte, &[&id.to_be_bytes(), &properties[..], payload].concat())
}

/// Encodes MQTT 5 properties with their length in front.
pub(crate) fn block(properties: &[u8]) -> Vec<u8> {
    [&varint(properties.len()), properties].concat()
}

/// Encodes bytes with a two-byte length in front.
pub(crate) fn field(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// Encodes a variable byte integer by division, as the specification's pseudo code does.
pub(crate) fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let digit = u8::try_from(value % 128).unwrap();
        value /= 128;
        if value == 0 {
            out.push(digit);
            return out;
        }
        out.push(digit + 128);
    }
}
