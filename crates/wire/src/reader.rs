//! Reads fields from the front of a packet's body, and never past its end.

use crate::{Error, Rule};

#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Rule::PacketLength)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Rule::PacketLength)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable byte integer [MQTT-1.5.5]. More bytes than necessary are malformed, as MQTT 5 requires.
    pub(crate) fn varint(&mut self) -> Result<usize, Error> {
        let (value, len) = varint(self.rest)?.ok_or(Rule::PacketLength)?;
        if len != varint_len(value) {
            return Err(Rule::RemainingLength.into());
        }
        self.take(len)?;
        Ok(value as usize)
    }

    /// Binary data with a two-byte length [MQTT-1.5.6].
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// UTF-8 encoded string [MQTT-1.5.4].
    pub(crate) fn string(&mut self) -> Result<&'a str, Error> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Rule::Utf8)?;
        if text.contains('\0') {
            return Err(Rule::NullCharacter.into());
        }
        Ok(text)
    }

    /// A topic name: a string without wildcards [MQTT-4.7.1-1] and with at least one character [MQTT-4.7.3-1].
    pub(crate) fn topic_name(&mut self) -> Result<&'a str, Error> {
        let topic = self.string()?;
        if topic.is_empty() || topic.contains(['+', '#']) {
            return Err(Rule::TopicName.into());
        }
        Ok(topic)
    }
}

/// Decodes the variable byte integer at the front of `bytes`. Returns the value and its length in bytes, or `None` if it is
/// incomplete.
pub(crate) fn varint(bytes: &[u8]) -> Result<Option<(u32, usize)>, Error> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Rule::RemainingLength.into()) } else { Ok(None) }
}

/// The encoded length of `value` as a variable byte integer, in bytes.
pub(crate) const fn varint_len(value: u32) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Appends `value` as a variable byte integer. The caller ensures that it fits in four bytes.
pub(crate) fn put_varint(mut value: u32, out: &mut Vec<u8>) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}
