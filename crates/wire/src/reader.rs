//! Reads fields from the front of a packet's body, and never past its end.

use std::fmt;
use std::num::NonZeroU16;

use crate::topic::check_topic_name;
use crate::{Error, Rule};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({} bytes)", self.rest.len())
    }
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Rule::PacketLength)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The bytes that are not read.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The bytes between this position and a later one.
    pub(crate) fn before(&self, later: Reader<'a>) -> &'a [u8] {
        self.rest.get(..self.rest.len() - later.rest.len().min(self.rest.len())).unwrap_or_default()
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Rule::PacketLength)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable byte integer [MQTT-1.5.5]. More bytes than necessary are malformed, as MQTT 5 requires.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<usize, Error> {
        let (value, len) = varint(self.rest)?.ok_or(Rule::PacketLength)?;
        if len != varint_len(value) {
            return Err(Rule::RemainingLength.into());
        }
        self.take(len)?;
        Ok(value as usize)
    }

    /// Binary data with a two-byte length [MQTT-1.5.6].
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// UTF-8 encoded string [MQTT-1.5.4].
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, Error> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Rule::Utf8)?;
        if text.contains('\0') {
            return Err(Rule::NullCharacter.into());
        }
        Ok(text)
    }

    /// A topic name: a string without wildcards [MQTT-3.3.2-2] and with at least one character [MQTT-4.7.3-1].
    #[inline]
    pub(crate) fn topic_name(&mut self) -> Result<&'a str, Error> {
        let topic = std::str::from_utf8(self.binary()?).map_err(|_| Rule::Utf8)?;
        check_topic_name(topic)?;
        Ok(topic)
    }

    /// Whether the next field has the length 0.
    #[inline]
    pub(crate) fn starts_with_empty_field(&self) -> bool {
        self.rest.starts_with(&[0, 0])
    }

    /// A packet identifier, which is never 0 [MQTT-2.2.1-3].
    #[inline]
    pub(crate) fn packet_id(&mut self) -> Result<NonZeroU16, Error> {
        NonZeroU16::new(self.u16()?).ok_or_else(|| Rule::PacketIdZero.into())
    }
}

/// Decodes the variable byte integer at the front of `bytes`. Returns the value and its length in bytes, or `None` if it is
/// incomplete.
#[inline]
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

/// Appends a field with a two-byte length, given in parts. The caller ensures that it has at most 65,535 bytes.
pub(crate) fn put_field<const N: usize>(parts: [&[u8]; N], out: &mut Vec<u8>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    parts.into_iter().for_each(|part| out.extend_from_slice(part));
}
