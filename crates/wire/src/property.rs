//! MQTT 5 property blocks [MQTT-2.2.2]: validated once, then carried as the received bytes.

use std::fmt;

use crate::reader::{Reader, put_field, put_varint, varint_len};
use crate::{Error, Rule};

/// A valid property block, without its length. For MQTT 3.x packets it is empty and not written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

/// The kinds of property blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Connect,
    Will,
    Connack,
    /// From a client: without subscription identifiers [MQTT-3.3.4-6].
    ClientPublish,
    ServerPublish,
    Subscribe,
    Unsubscribe,
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
    Acknowledgement,
    Disconnect,
    Auth,
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
            Owner::ClientPublish | Owner::ServerPublish => {
                matches!(id, 0x01 | 0x02 | 0x03 | 0x08 | 0x09 | 0x0b | 0x23 | 0x26)
            }
            Owner::Subscribe => matches!(id, 0x0b | 0x26),
            Owner::Unsubscribe => id == USER_PROPERTY,
            Owner::Acknowledgement => matches!(id, 0x1f | 0x26),
            Owner::Disconnect => matches!(id, 0x11 | 0x1c | 0x1f | 0x26),
            Owner::Auth => matches!(id, 0x15 | 0x16 | 0x1f | 0x26),
        }
    }

    /// Whether the property may occur more than once.
    fn may_repeat(self, id: usize) -> bool {
        id == USER_PROPERTY || id == SUBSCRIPTION_IDENTIFIER && self == Owner::ServerPublish
    }
}

const RESPONSE_TOPIC: usize = 0x08;
const SUBSCRIPTION_IDENTIFIER: usize = 0x0b;
const SESSION_EXPIRY_INTERVAL: usize = 0x11;
const SERVER_KEEP_ALIVE: usize = 0x13;
const AUTHENTICATION_METHOD: usize = 0x15;
const AUTHENTICATION_DATA: usize = 0x16;
const REASON_STRING: usize = 0x1f;
const RECEIVE_MAXIMUM: usize = 0x21;
const TOPIC_ALIAS_MAXIMUM: usize = 0x22;
const TOPIC_ALIAS: usize = 0x23;
const MAXIMUM_QOS: usize = 0x24;
const RETAIN_AVAILABLE: usize = 0x25;
const USER_PROPERTY: usize = 0x26;
const MAXIMUM_PACKET_SIZE: usize = 0x27;

/// Defines the getters of properties that occur once in a block.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $id:ident => $read:ident -> $type:ty;)+) => {
        impl<'a> Properties<'a> {
            $($(#[$doc])* pub fn $name(&self) -> Option<$type> { self.find($id)?.$read().ok() })+
        }
    };
}

getters! {
    /// The topic for responses to this message [MQTT-3.3.2.3.5].
    response_topic: RESPONSE_TOPIC => string -> &'a str;
    /// How long the broker keeps the session behind the end of the connection, in seconds; absent means 0
    /// [MQTT-3.1.2.11.2].
    session_expiry_interval: SESSION_EXPIRY_INTERVAL => u32 -> u32;
    /// The keep-alive interval in seconds that a server wants in place of the client's [MQTT-3.2.2.3.14].
    server_keep_alive: SERVER_KEEP_ALIVE => u16 -> u16;
    /// The method of the extended authentication exchange that the client requests, if any [MQTT-3.1.2.11.9].
    authentication_method: AUTHENTICATION_METHOD => string -> &'a str;
    /// How many messages of QoS 1 and 2 the sender accepts at once; absent means 65,535 [MQTT-3.1.2.11.3].
    receive_maximum: RECEIVE_MAXIMUM => u16 -> u16;
    /// The largest topic alias that the sender accepts; absent means 0 [MQTT-3.1.2.11.5].
    topic_alias_maximum: TOPIC_ALIAS_MAXIMUM => u16 -> u16;
    /// The number that stands for the topic name on this connection [MQTT-3.3.2.3.4].
    topic_alias: TOPIC_ALIAS => u16 -> u16;
    /// The highest QoS that a server accepts; absent means 2 [MQTT-3.2.2.3.4].
    maximum_qos: MAXIMUM_QOS => u8 -> u8;
    /// Whether a server retains messages, as 0 or 1; absent means 1 [MQTT-3.2.2.3.5].
    retain_available: RETAIN_AVAILABLE => u8 -> u8;
    /// The largest packet that the sender accepts, in bytes, if it has a limit [MQTT-3.1.2.11.4]. Larger ones must not be
    /// sent to it [MQTT-3.1.2-24].
    maximum_packet_size: MAXIMUM_PACKET_SIZE => u32 -> u32;
}

impl<'a> Properties<'a> {
    /// Decodes a length and that many bytes of properties. `owner` must allow each property; few may repeat.
    #[inline]
    pub(crate) fn decode(reader: &mut Reader<'a>, owner: Owner) -> Result<Self, Error> {
        let len = reader.varint()?;
        let bytes = reader.take(len)?;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        Self::validate(bytes, owner)
    }

    fn validate(bytes: &'a [u8], owner: Owner) -> Result<Self, Error> {
        let mut seen = 0_u64;
        let mut rest = Reader::new(bytes);
        while !rest.is_empty() {
            let id = rest.varint()?;
            if id == SUBSCRIPTION_IDENTIFIER && owner == Owner::ClientPublish {
                return Err(Rule::SubscriptionIdFromClient.into());
            }
            if !owner.allows(id) {
                return Err(Rule::PropertyUnknown.into());
            }
            skip_value(id, &mut rest)?;
            if !owner.may_repeat(id) {
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

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The properties in their order.
    pub fn iter(&self) -> PropertyIter<'a> {
        PropertyIter { rest: Reader::new(self.bytes) }
    }

    /// The user properties in their order; a name may occur more than once [MQTT-3.1.2.11.8].
    pub fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone {
        self.iter().filter_map(|property| property.user())
    }

    #[inline]
    fn find(&self, id: usize) -> Option<Reader<'a>> {
        self.iter().find(|property| property.id == id).map(|property| Reader::new(property.value))
    }

    pub(crate) fn encoded_len(&self) -> usize {
        varint_len(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)) + self.bytes.len()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX), out);
        out.extend_from_slice(self.bytes);
    }
}

/// One property of a block.
#[derive(Clone, Copy)]
pub struct Property<'a> {
    id: usize,
    /// The identifier and the value.
    bytes: &'a [u8],
    value: &'a [u8],
}

impl<'a> Property<'a> {
    /// The name and value of a user property.
    pub fn user(&self) -> Option<(&'a str, &'a str)> {
        let mut value = Reader::new(self.value);
        // The block was validated when it was decoded, so no error can occur here.
        (self.id == USER_PROPERTY).then(|| Some((value.string().ok()?, value.string().ok()?)))?
    }
}

impl<'a> IntoIterator for &Properties<'a> {
    type Item = Property<'a>;
    type IntoIter = PropertyIter<'a>;

    fn into_iter(self) -> PropertyIter<'a> {
        self.iter()
    }
}

/// Iterator over the properties of a block.
#[derive(Clone)]
pub struct PropertyIter<'a> {
    rest: Reader<'a>,
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let whole = self.rest;
        let id = self.rest.varint().ok()?;
        let value = self.rest;
        skip_value(id, &mut self.rest).ok()?;
        Some(Property { id, bytes: whole.before(self.rest), value: value.before(self.rest) })
    }
}

/// The properties of CONNECT and CONNACK that both sides of a gateway may have different values of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// In seconds; only in CONNACK.
    pub server_keep_alive: Option<u16>,
    /// In bytes.
    pub maximum_packet_size: Option<u32>,
    /// The highest alias that the sender of the packet accepts.
    pub topic_alias_maximum: Option<u16>,
    /// In seconds.
    pub session_expiry_interval: Option<u32>,
}

impl Terms {
    /// Those of a CONNECT or CONNACK.
    pub fn of(properties: &Properties<'_>) -> Self {
        Self {
            server_keep_alive: properties.server_keep_alive(),
            maximum_packet_size: properties.maximum_packet_size(),
            topic_alias_maximum: properties.topic_alias_maximum(),
            session_expiry_interval: properties.session_expiry_interval(),
        }
    }
}

/// A property block that is changed, or made anew. Keep one and [`clear`](PropertiesBuf::clear) it: then it allocates
/// nothing.
#[derive(Clone, Default)]
pub struct PropertiesBuf {
    bytes: Vec<u8>,
}

impl PropertiesBuf {
    /// Removes all properties, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds a property of another block.
    pub fn push(&mut self, property: Property<'_>) {
        self.bytes.extend_from_slice(property.bytes);
    }

    /// Adds the properties of another block, except those that `is_left_out`.
    pub fn extend(&mut self, properties: &Properties<'_>, is_left_out: impl Fn(&Property<'_>) -> bool) {
        properties.iter().filter(|property| !is_left_out(property)).for_each(|property| self.push(property));
    }

    /// Becomes a copy of another block without some properties, which the caller adds again with other values.
    pub fn copy_without(&mut self, properties: &Properties<'_>, ids: &[PropertyId]) {
        self.clear();
        self.extend(properties, |property| ids.iter().any(|id| property.is(*id)));
    }

    /// Becomes a copy of another block with other terms.
    pub fn copy_with(&mut self, properties: &Properties<'_>, terms: Terms) {
        let Terms { server_keep_alive, maximum_packet_size, topic_alias_maximum, session_expiry_interval } = terms;
        let replaced = [
            PropertyId::ServerKeepAlive,
            PropertyId::MaximumPacketSize,
            PropertyId::TopicAliasMaximum,
            PropertyId::SessionExpiryInterval,
        ];
        self.copy_without(properties, &replaced);
        server_keep_alive.into_iter().for_each(|seconds| self.push_server_keep_alive(seconds));
        maximum_packet_size.into_iter().for_each(|size| self.push_maximum_packet_size(size));
        topic_alias_maximum.into_iter().for_each(|maximum| self.push_topic_alias_maximum(maximum));
        session_expiry_interval.into_iter().for_each(|seconds| self.push_session_expiry_interval(seconds));
    }

    /// Adds a user property. The caller checks that name and value have at most 65,535 bytes.
    pub fn push_user(&mut self, name: &str, value: &str) {
        self.push_id(USER_PROPERTY);
        put_field([name.as_bytes()], &mut self.bytes);
        put_field([value.as_bytes()], &mut self.bytes);
    }

    /// Adds a response topic of at most 65,535 bytes, given in two parts.
    pub fn push_response_topic(&mut self, prefix: &str, topic: &str) {
        self.push_id(RESPONSE_TOPIC);
        put_field([prefix.as_bytes(), topic.as_bytes()], &mut self.bytes);
    }

    /// Adds a session expiry interval in seconds.
    pub fn push_session_expiry_interval(&mut self, seconds: u32) {
        self.push_id(SESSION_EXPIRY_INTERVAL);
        self.bytes.extend_from_slice(&seconds.to_be_bytes());
    }

    /// Adds a server keep-alive in seconds.
    fn push_server_keep_alive(&mut self, seconds: u16) {
        self.push_id(SERVER_KEEP_ALIVE);
        self.bytes.extend_from_slice(&seconds.to_be_bytes());
    }

    /// Adds a topic alias maximum.
    fn push_topic_alias_maximum(&mut self, maximum: u16) {
        self.push_id(TOPIC_ALIAS_MAXIMUM);
        self.bytes.extend_from_slice(&maximum.to_be_bytes());
    }

    /// Adds a maximum packet size in bytes.
    fn push_maximum_packet_size(&mut self, size: u32) {
        self.push_id(MAXIMUM_PACKET_SIZE);
        self.bytes.extend_from_slice(&size.to_be_bytes());
    }

    /// The block.
    pub fn as_properties(&self) -> Properties<'_> {
        Properties { bytes: &self.bytes }
    }

    fn push_id(&mut self, id: usize) {
        // All identifiers are below 128, so that one byte is enough.
        self.bytes.push(u8::try_from(id).unwrap_or(0));
    }
}

impl Property<'_> {
    /// Whether it is only informative: a sender leaves out reason string and user properties of a packet that would exceed
    /// the receiver's maximum [MQTT-3.2.2-19, MQTT-3.2.2-20].
    pub fn is_informative(&self) -> bool {
        matches!(self.id, REASON_STRING | USER_PROPERTY)
    }

    /// Whether it is this one.
    pub fn is(&self, id: PropertyId) -> bool {
        self.id == id as usize
    }
}

/// Properties that a gateway changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum PropertyId {
    ResponseTopic = RESPONSE_TOPIC,
    SessionExpiryInterval = SESSION_EXPIRY_INTERVAL,
    ServerKeepAlive = SERVER_KEEP_ALIVE,
    TopicAliasMaximum = TOPIC_ALIAS_MAXIMUM,
    MaximumPacketSize = MAXIMUM_PACKET_SIZE,
}

/// As [`Properties`].
impl fmt::Debug for PropertiesBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_properties().fmt(f)
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
        TOPIC_ALIAS if reader.u16()? == 0 => return Err(Rule::TopicAlias.into()),
        TOPIC_ALIAS => true,
        SUBSCRIPTION_IDENTIFIER => reader.varint()? != 0,
        // The response topic is a topic name [MQTT-3.3.2-14].
        0x08 => reader.topic_name().map(|_| true)?,
        0x03 | AUTHENTICATION_METHOD | 0x12 | 0x1a | 0x1c | 0x1f => reader.string().map(|_| true)?,
        0x09 | AUTHENTICATION_DATA => reader.binary().map(|_| true)?,
        USER_PROPERTY => reader.string().and_then(|_| reader.string()).map(|_| true)?,
        _ => return Err(Rule::PropertyUnknown.into()),
    };
    if in_range { Ok(()) } else { Err(Rule::PropertyValue.into()) }
}
