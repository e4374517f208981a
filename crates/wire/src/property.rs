//! MQTT 5 property blocks [MQTT-2.2.2]: validated once, then carried as the received bytes.

use std::fmt;

use crate::reader::{Reader, put_varint, varint_len};
use crate::{Error, Rule};

/// A valid property block, without its length. For MQTT 3.x packets it is empty and not written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

/// The kinds of property blocks that can be decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Connect,
    Will,
    Connack,
}

impl Owner {
    /// Whether this block may contain the property [MQTT-2.2.2.2, table 2-4].
    fn allows(self, id: usize) -> bool {
        match self {
            Owner::Connect => matches!(id, 0x11 | 0x15 | 0x16 | 0x17 | 0x19 | 0x21 | 0x22 | 0x26 | 0x27),
            Owner::Will => matches!(id, 0x01 | 0x02 | 0x03 | 0x08 | 0x09 | 0x18 | 0x26),
            Owner::Connack => {
                matches!(id, 0x11 | 0x12 | 0x13 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f | 0x21 | 0x22 | 0x24..=0x2a)
            }
        }
    }
}

const AUTHENTICATION_METHOD: usize = 0x15;
const AUTHENTICATION_DATA: usize = 0x16;
const USER_PROPERTY: usize = 0x26;
const MAXIMUM_PACKET_SIZE: usize = 0x27;

impl<'a> Properties<'a> {
    /// Decodes a length and that many bytes of properties. `owner` must allow each property; only user properties may repeat.
    pub(crate) fn decode(reader: &mut Reader<'a>, owner: Owner) -> Result<Self, Error> {
        let len = reader.varint()?;
        let bytes = reader.take(len)?;
        let mut seen = 0_u64;
        let mut rest = Reader::new(bytes);
        while !rest.is_empty() {
            let id = rest.varint()?;
            if !owner.allows(id) {
                return Err(Rule::PropertyUnknown.into());
            }
            skip_value(id, &mut rest)?;
            if id != USER_PROPERTY {
                if seen & (1 << id) != 0 {
                    return Err(Rule::PropertyTwice.into());
                }
                seen |= 1 << id;
            }
        }
        if seen & (1 << AUTHENTICATION_DATA) != 0 && seen & (1 << AUTHENTICATION_METHOD) == 0 {
            return Err(Rule::AuthDataWithoutMethod.into());
        }
        Ok(Self { bytes })
    }

    /// The user properties in their order; a name may occur more than once [MQTT-3.1.2.11.8].
    pub fn user_properties(&self) -> UserProperties<'a> {
        UserProperties { rest: Reader::new(self.bytes) }
    }

    /// The method of the extended authentication exchange that the client requests, if any [MQTT-3.1.2.11.9].
    pub fn authentication_method(&self) -> Option<&'a str> {
        let mut rest = Reader::new(self.bytes);
        while !rest.is_empty() {
            match rest.varint().ok()? {
                AUTHENTICATION_METHOD => return rest.string().ok(),
                id => skip_value(id, &mut rest).ok()?,
            }
        }
        None
    }

    /// The largest packet that the sender accepts, in bytes, if it has a limit [MQTT-3.1.2.11.4]. Larger ones must not be
    /// sent to it [MQTT-3.1.2-24].
    pub fn maximum_packet_size(&self) -> Option<u32> {
        let mut rest = Reader::new(self.bytes);
        while !rest.is_empty() {
            match rest.varint().ok()? {
                MAXIMUM_PACKET_SIZE => return rest.u32().ok(),
                id => skip_value(id, &mut rest).ok()?,
            }
        }
        None
    }

    pub(crate) fn encoded_len(&self) -> usize {
        varint_len(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)) + self.bytes.len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX), out);
        out.extend_from_slice(self.bytes);
    }
}

/// Shows only the number of bytes: values may be secrets (authentication data).
impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Properties({} bytes)", self.bytes.len())
    }
}

/// Skips one value and validates its type and range [MQTT-2.2.2.2, MQTT-3.1.2.11, MQTT-3.1.3.2].
fn skip_value(id: usize, reader: &mut Reader<'_>) -> Result<(), Error> {
    let in_range = match id {
        // Flags and maximum QoS.
        0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => reader.u8()? <= 1,
        0x02 | 0x11 | 0x18 => reader.u32().map(|_| true)?,
        // Receive maximum and maximum packet size are never 0.
        0x21 => reader.u16()? != 0,
        0x27 => reader.u32()? != 0,
        0x13 | 0x22 => reader.u16().map(|_| true)?,
        // The response topic is a topic name [MQTT-3.3.2-14].
        0x08 => reader.topic_name().map(|_| true)?,
        0x03 | AUTHENTICATION_METHOD | 0x12 | 0x1a | 0x1c | 0x1f => reader.string().map(|_| true)?,
        0x09 | AUTHENTICATION_DATA => reader.binary().map(|_| true)?,
        USER_PROPERTY => reader.string().and_then(|_| reader.string()).map(|_| true)?,
        _ => return Err(Rule::PropertyUnknown.into()),
    };
    if in_range { Ok(()) } else { Err(Rule::PropertyValue.into()) }
}

/// Iterator over the user properties of a block, as pairs of name and value.
#[derive(Clone)]
pub struct UserProperties<'a> {
    rest: Reader<'a>,
}

impl<'a> Iterator for UserProperties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        // The block was validated when it was decoded, so no error can occur here.
        while !self.rest.is_empty() {
            match self.rest.varint().ok()? {
                USER_PROPERTY => return Some((self.rest.string().ok()?, self.rest.string().ok()?)),
                id => skip_value(id, &mut self.rest).ok()?,
            }
        }
        None
    }
}
