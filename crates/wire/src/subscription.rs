//! SUBSCRIBE and UNSUBSCRIBE, and the answers to them.

use std::num::NonZeroU16;

use crate::frame::PacketType;
use crate::property::{Owner, Properties};
use crate::reader::{Reader, put_field, put_varint};
use crate::topic::TopicFilter;
use crate::{Error, Rule, Version};

/// SUBSCRIBE [MQTT-3.8].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The packet identifier, which SUBACK repeats.
    pub packet_id: NonZeroU16,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
    /// Valid filters, each with its options.
    payload: Reader<'a>,
    version: Version,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription<'a> {
    /// The filter.
    pub filter: TopicFilter<'a>,
    /// The subscription options [MQTT-3.8.3.1]; before MQTT 5 only the QoS.
    pub options: u8,
}

/// UNSUBSCRIBE [MQTT-3.10].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// The packet identifier, which UNSUBACK repeats.
    pub packet_id: NonZeroU16,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
    /// Valid filters.
    payload: Reader<'a>,
}

/// SUBACK [MQTT-3.9] or UNSUBACK [MQTT-3.11].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suback<'a> {
    /// The packet identifier of the request.
    pub packet_id: NonZeroU16,
    /// MQTT 5 properties; empty before.
    pub properties: Properties<'a>,
    /// One code for each filter. An UNSUBACK before MQTT 5 has none.
    pub codes: &'a [u8],
}

mod option {
    pub(super) const QOS: u8 = 0x03;
    pub(super) const NO_LOCAL: u8 = 0x04;
    pub(super) const RETAIN_HANDLING: u8 = 0x30;
    pub(super) const RESERVED: u8 = 0xc0;
}

impl<'a> Subscribe<'a> {
    pub(crate) fn decode(reader: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let packet_id = reader.packet_id()?;
        let properties = properties(reader, version, Owner::Subscribe)?;
        let payload = *reader;
        if reader.is_empty() {
            return Err(Rule::NoFilters.into());
        }
        while !reader.is_empty() {
            let filter = filter(reader, version)?;
            check_options(filter, reader.u8()?, version)?;
        }
        Ok(Self { packet_id, properties, payload, version })
    }

    /// The filters in their order.
    pub fn subscriptions(&self) -> impl Iterator<Item = Subscription<'a>> + Clone {
        let mut rest = self.payload;
        // MQTT 3.1 does not use the upper bits.
        let used = if self.version == Version::V31 { option::QOS } else { u8::MAX };
        // The payload was validated when it was decoded, so no error can occur here.
        std::iter::from_fn(move || {
            let filter = TopicFilter::new(rest.string().ok()?).ok()?;
            Some(Subscription { filter, options: rest.u8().ok()? & used })
        })
    }
}

impl Subscription<'_> {
    /// The highest QoS that the client wants.
    pub const fn qos(&self) -> u8 {
        self.options & option::QOS
    }

    /// The same options with another QoS.
    #[must_use]
    pub const fn with_qos(self, qos: u8) -> Self {
        Self { options: self.options & !option::QOS | qos & option::QOS, ..self }
    }

    /// Appends the filter with `prefix` in front, and its options, to the payload of a SUBSCRIBE. A shared subscription's
    /// prefix is that of the filter behind its share name. The caller checks that the result has at most 65,535 bytes.
    pub fn encode(&self, prefix: &str, payload: &mut Vec<u8>) {
        put_filter(self.filter, prefix, payload);
        payload.push(self.options);
    }
}

impl<'a> Unsubscribe<'a> {
    pub(crate) fn decode(reader: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let packet_id = reader.packet_id()?;
        let properties = properties(reader, version, Owner::Unsubscribe)?;
        let payload = *reader;
        if reader.is_empty() {
            return Err(Rule::NothingToUnsubscribe.into());
        }
        while !reader.is_empty() {
            filter(reader, version)?;
        }
        Ok(Self { packet_id, properties, payload })
    }

    /// The filters in their order.
    pub fn filters(&self) -> impl Iterator<Item = TopicFilter<'a>> + Clone {
        let mut rest = self.payload;
        std::iter::from_fn(move || TopicFilter::new(rest.string().ok()?).ok())
    }
}

impl<'a> Suback<'a> {
    pub(crate) fn decode(reader: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let packet_id = reader.packet_id()?;
        let properties = properties(reader, version, Owner::Acknowledgement)?;
        let codes = reader.rest();
        if codes.is_empty() {
            return Err(Rule::PacketLength.into());
        }
        reader.take(codes.len())?;
        Ok(Self { packet_id, properties, codes })
    }

    pub(crate) fn decode_unsuback(reader: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        match version {
            Version::V5 => Self::decode(reader, version),
            // Without a payload [MQTT-3.11 (3.1.1)].
            _ => Ok(Self { packet_id: reader.packet_id()?, properties: Properties::default(), codes: &[] }),
        }
    }
}

/// Appends a packet that consists of a packet identifier, properties and a payload: SUBSCRIBE, SUBACK, UNSUBSCRIBE or
/// UNSUBACK. The caller checks that it is no larger than the protocol can express.
pub fn encode_with_id(
    packet_type: PacketType,
    packet_id: NonZeroU16,
    version: Version,
    properties: &Properties<'_>,
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let flags = if matches!(packet_type, PacketType::Subscribe | PacketType::Unsubscribe) { 2 } else { 0 };
    let properties_len = if version == Version::V5 { properties.encoded_len() } else { 0 };
    out.push((packet_type as u8) << 4 | flags);
    put_varint(u32::try_from(2 + properties_len + payload.len()).unwrap_or(u32::MAX), out);
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    if version == Version::V5 {
        properties.encode(out);
    }
    out.extend_from_slice(payload);
}

/// Appends a filter with `prefix` in front to the payload of a SUBSCRIBE or UNSUBSCRIBE; of a shared subscription, the
/// prefix goes behind the share name.
pub fn put_filter(filter: TopicFilter<'_>, prefix: &str, payload: &mut Vec<u8>) {
    match filter.shared() {
        Some((_, shared)) => {
            let name = filter.as_str().strip_suffix(shared.as_str()).unwrap_or_default();
            put_field([name.as_bytes(), prefix.as_bytes(), shared.as_str().as_bytes()], payload);
        }
        None => put_field([prefix.as_bytes(), filter.as_str().as_bytes()], payload),
    }
}

fn properties<'a>(reader: &mut Reader<'a>, version: Version, owner: Owner) -> Result<Properties<'a>, Error> {
    if version == Version::V5 { Properties::decode(reader, owner) } else { Ok(Properties::default()) }
}

fn filter<'a>(reader: &mut Reader<'a>, version: Version) -> Result<TopicFilter<'a>, Error> {
    let filter = TopicFilter::new(reader.string()?)?;
    // Before MQTT 5, the standard knows no shared subscriptions.
    if version == Version::V5 && filter.is_shared() && filter.shared().is_none() {
        return Err(Rule::SharedSubscription.into());
    }
    Ok(filter)
}

fn check_options(filter: TopicFilter<'_>, options: u8, version: Version) -> Result<(), Error> {
    let reserved = if version == Version::V5 { option::RESERVED } else { !option::QOS };
    // MQTT 3.1 does not use the upper bits.
    if options & reserved != 0 && version != Version::V31 {
        return Err(Rule::SubscriptionOptions.into());
    }
    if options & option::QOS == option::QOS {
        return Err(Rule::SubscriptionQos.into());
    }
    if version == Version::V5 {
        if options & option::RETAIN_HANDLING == option::RETAIN_HANDLING {
            return Err(Rule::SubscriptionQos.into());
        }
        if options & option::NO_LOCAL != 0 && filter.shared().is_some() {
            return Err(Rule::SharedNoLocal.into());
        }
    }
    Ok(())
}
