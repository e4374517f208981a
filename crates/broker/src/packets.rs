//! Reads and writes packets on a stream. The broker handles MQTT 5 packets only; those of MQTT 3 clients are translated.

use std::io;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::BytesMut;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{self, PublishAck, PublishAck2, SubscribeAckReason, SubscriptionOptions};
use rmqtt_codec::version::{ProtocolVersion, VersionCodec};
use rmqtt_codec::{MqttCodec, MqttPacket, v3};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::codec::{Decoder, Encoder};

use crate::hub::MAX_PACKET;

/// How long a client may take to accept a packet. A connection is closed after that, so that it does not hold its place.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The step in which the read buffer grows, in bytes. Stored messages hold slices of it.
pub(crate) const READ_BUFFER: usize = 4096;

/// Reads a client's packets.
pub(crate) struct Reader<R> {
    stream: R,
    buffer: BytesMut,
    codec: MqttCodec,
}

/// Writes packets to a client.
pub(crate) struct Writer<W> {
    stream: W,
    buffer: BytesMut,
    codec: MqttCodec,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(READ_BUFFER), codec: MqttCodec::Version(VersionCodec) }
    }

    /// Reads the first packet, which must be a CONNECT. Returns it and its version; `None` at the end of the stream.
    pub(crate) async fn connect(&mut self) -> io::Result<Option<(ProtocolVersion, Box<v5::Connect>)>> {
        let Some(MqttPacket::Version(version)) = self.next().await? else { return Ok(None) };
        self.codec = codec(version, 0);
        match self.next().await? {
            Some(MqttPacket::V3(v3::Packet::Connect(connect))) => {
                Ok(Some((version, Box::new(connect_from_v3(*connect)))))
            }
            Some(MqttPacket::V5(v5::Packet::Connect(connect))) => Ok(Some((version, connect))),
            _ => Ok(None),
        }
    }

    /// Reads the next packet; `None` at the end of the stream. Cancel safe: dropping the future loses no bytes.
    pub(crate) async fn packet(&mut self) -> io::Result<Option<v5::Packet>> {
        match self.next().await? {
            Some(MqttPacket::V3(packet)) => from_v3(packet).map(Some).ok_or_else(|| invalid("clients do not send it")),
            Some(MqttPacket::V5(packet)) => Ok(Some(packet)),
            Some(MqttPacket::Version(_)) | None => Ok(None),
        }
    }

    async fn next(&mut self) -> io::Result<Option<MqttPacket>> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.buffer).map_err(invalid)? {
                return Ok(Some(packet));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// `max_packet` is the largest packet that the client accepts, in bytes; 0 means no limit.
    pub(crate) fn new(stream: W, version: ProtocolVersion, max_packet: u32) -> Self {
        Self { stream, buffer: BytesMut::new(), codec: codec(version, max_packet) }
    }

    /// Sends a packet. Returns `false` if the client cannot receive it: it is too large, or does not exist in its version.
    pub(crate) async fn send(&mut self, packet: impl Into<v5::Packet>) -> io::Result<bool> {
        let packet = match &self.codec {
            MqttCodec::V5(_) => Some(MqttPacket::V5(packet.into())),
            _ => to_v3(packet.into()).map(MqttPacket::V3),
        };
        self.buffer.clear();
        match packet.map(|packet| self.codec.encode(packet, &mut self.buffer)) {
            Some(Ok(())) => timeout(WRITE_TIMEOUT, self.stream.write_all(&self.buffer)).await?.map(|()| true),
            _ => Ok(false),
        }
    }

    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

fn codec(version: ProtocolVersion, max_out: u32) -> MqttCodec {
    match version {
        ProtocolVersion::MQTT3 => MqttCodec::V3(v3::Codec::new(MAX_PACKET)),
        ProtocolVersion::MQTT5 => {
            let mut codec = v5::Codec::new(MAX_PACKET, 0);
            codec.set_max_outbound_size(max_out);
            MqttCodec::V5(codec)
        }
    }
}

fn invalid(error: impl std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}"))
}

fn connect_from_v3(connect: v3::Connect) -> v5::Connect {
    let will = |will: v3::LastWill| v5::LastWill {
        qos: will.qos,
        retain: will.retain,
        topic: will.topic,
        message: will.message,
        will_delay_interval_sec: None,
        correlation_data: None,
        message_expiry_interval: None,
        content_type: None,
        user_properties: Vec::new(),
        is_utf8_payload: None,
        response_topic: None,
    };
    v5::Connect {
        clean_start: connect.clean_session,
        keep_alive: connect.keep_alive,
        // In MQTT 3 one flag means both: the session is new, and it ends with the connection.
        session_expiry_interval_secs: if connect.clean_session { 0 } else { u32::MAX },
        last_will: connect.last_will.map(will),
        client_id: connect.client_id,
        ..v5::Connect::default()
    }
}

fn from_v3(packet: v3::Packet) -> Option<v5::Packet> {
    use v5::Packet;
    Some(match packet {
        v3::Packet::Publish(publish) => Packet::Publish(publish),
        v3::Packet::PublishAck { packet_id } => Packet::PublishAck(puback(packet_id)),
        v3::Packet::PublishRelease { packet_id } => {
            Packet::PublishRelease(pubcomp(packet_id, v5::PublishAck2Reason::Success))
        }
        v3::Packet::Subscribe { packet_id, topic_filters } => {
            let options = |qos| SubscriptionOptions { qos, ..SubscriptionOptions::default() };
            let topic_filters = topic_filters.into_iter().map(|(filter, qos)| (filter, options(qos))).collect();
            v5::Subscribe { packet_id, id: None, user_properties: Vec::new(), topic_filters }.into()
        }
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            v5::Unsubscribe { packet_id, user_properties: Vec::new(), topic_filters }.into()
        }
        v3::Packet::PingRequest => Packet::PingRequest,
        v3::Packet::Disconnect => v5::Disconnect::default().into(),
        _ => return None,
    })
}

fn to_v3(packet: v5::Packet) -> Option<v3::Packet> {
    use v3::{ConnectAckReason, Packet, SubscribeReturnCode};
    Some(match packet {
        v5::Packet::ConnectAck(ack) => Packet::ConnectAck(v3::ConnectAck {
            return_code: match ack.reason_code {
                v5::ConnectAckReason::Success => ConnectAckReason::ConnectionAccepted,
                _ => ConnectAckReason::ServiceUnavailable,
            },
            session_present: ack.session_present,
        }),
        v5::Packet::Publish(publish) => Packet::Publish(publish),
        v5::Packet::PublishAck(ack) => Packet::PublishAck { packet_id: ack.packet_id },
        v5::Packet::PublishReceived(ack) => Packet::PublishReceived { packet_id: ack.packet_id },
        v5::Packet::PublishComplete(ack) => Packet::PublishComplete { packet_id: ack.packet_id },
        v5::Packet::SubscribeAck(ack) => {
            let code = |reason: &SubscribeAckReason| match reason {
                SubscribeAckReason::GrantedQos0 => SubscribeReturnCode::Success(QoS::AtMostOnce),
                SubscribeAckReason::GrantedQos1 => SubscribeReturnCode::Success(QoS::AtLeastOnce),
                _ => SubscribeReturnCode::Failure,
            };
            Packet::SubscribeAck { packet_id: ack.packet_id, status: ack.status.iter().map(code).collect() }
        }
        v5::Packet::UnsubscribeAck(ack) => Packet::UnsubscribeAck { packet_id: ack.packet_id },
        v5::Packet::PingResponse => Packet::PingResponse,
        _ => return None,
    })
}

/// A PUBACK or PUBREC that accepts a message.
pub(crate) fn puback(packet_id: NonZeroU16) -> PublishAck {
    let reason_code = v5::PublishAckReason::Success;
    PublishAck { packet_id, reason_code, properties: Vec::new(), reason_string: None }
}

/// A PUBREL or PUBCOMP with this reason.
pub(crate) fn pubcomp(packet_id: NonZeroU16, reason_code: v5::PublishAck2Reason) -> PublishAck2 {
    PublishAck2 { packet_id, reason_code, properties: Vec::new(), reason_string: None }
}

/// The message that a will publishes.
pub(crate) fn will_message(will: v5::LastWill) -> Publish {
    Publish {
        dup: false,
        retain: will.retain,
        qos: will.qos,
        topic: will.topic,
        packet_id: None,
        payload: will.message,
        properties: Some(v5::PublishProperties {
            correlation_data: will.correlation_data,
            message_expiry_interval: will.message_expiry_interval,
            content_type: will.content_type,
            user_properties: will.user_properties,
            is_utf8_payload: will.is_utf8_payload.unwrap_or(false),
            response_topic: will.response_topic,
            ..v5::PublishProperties::default()
        }),
    }
}
