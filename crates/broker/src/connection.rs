//! One connection, from CONNECT to its end.

use std::io;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use parking_lot::Mutex;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{
    Connect, ConnectAck, ConnectAckReason, Disconnect, DisconnectReasonCode, Packet, PublishAck2Reason, SubscribeAck,
    UnsubscribeAck, UnsubscribeAckReason,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::hub::{Attached, Hub, MAX_FILTERS, MAX_KEPT, MAX_PACKET, MAX_UNACKNOWLEDGED, Next};
use crate::packets::{Reader, Writer, puback, pubcomp, will_message};
use crate::topics::is_topic;

/// How long a client may take to send CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The read deadline of a client without keep-alive: practically none.
const NO_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a connection ended.
enum End {
    /// The client closed it.
    Lost,
    /// The broker closes it, and sends the reason to an MQTT 5 client.
    Closed(DisconnectReasonCode),
    /// The client sent DISCONNECT, which may still request the will and may change the session expiry, in seconds.
    Disconnected { with_will: bool, expiry: Option<u32> },
}

struct Connection<'a, S> {
    hub: &'a Mutex<Hub>,
    attached: Attached,
    reader: Reader<ReadHalf<S>>,
    writer: Writer<WriteHalf<S>>,
    /// How many unacknowledged messages the client accepts (Receive Maximum).
    receive_max: u16,
}

pub(crate) async fn serve<S>(hub: &Mutex<Hub>, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, write) = tokio::io::split(stream);
    let mut reader = Reader::new(read);
    let Some((version, mut connect)) = timeout(CONNECT_TIMEOUT, reader.connect()).await?? else { return Ok(()) };
    let mut writer = Writer::new(write, version, connect.max_packet_size.map_or(0, NonZeroU32::get));
    let attached = match reject(&connect) {
        None => hub.lock().attach(&connect).ok_or(ConnectAckReason::ServerBusy),
        Some(reason) => Err(reason),
    };
    let attached = match attached {
        Ok(attached) => attached,
        Err(reason_code) => {
            writer.send(Packet::from(ConnectAck { reason_code, ..ConnectAck::default() })).await?;
            return writer.close().await;
        }
    };
    let will = connect.last_will.take();
    let receive_max = connect.receive_max.map_or(MAX_UNACKNOWLEDGED, |max| max.get().min(MAX_UNACKNOWLEDGED));
    let mut connection = Connection { hub, attached: attached.clone(), reader, writer, receive_max };
    let end = connection.run(&connect).await;
    let (has_will, expiry) = match &end {
        Ok(End::Disconnected { with_will, expiry }) => (*with_will, *expiry),
        Ok(End::Lost | End::Closed(_)) | Err(_) => (true, None),
    };
    let kept = kept(expiry.unwrap_or(connect.session_expiry_interval_secs));
    hub.lock().detach(&attached, kept);
    let closed = match end {
        Ok(end) => connection.close(end).await,
        Err(error) => Err(error),
    };
    // Close the stream before waiting for the will's delay.
    drop(connection);
    if let Some(will) = will.filter(|_| has_will) {
        let delay = Duration::from_secs(will.will_delay_interval_sec.unwrap_or(0).into()).min(kept);
        publish_will(hub, &attached, will_message(will), delay).await;
    }
    closed
}

/// Publishes the will after its delay, unless a client connects to the session before [MQTT-3.1.3.2.2 (5)].
async fn publish_will(hub: &Mutex<Hub>, attached: &Attached, will: Publish, delay: Duration) {
    let size = if delay.is_zero() { None } else { hub.lock().delay(&will) };
    let Some(size) = size else {
        // No delay, or no room to wait.
        return hub.lock().publish(&attached.client_id, will);
    };
    let deadline = Instant::now() + delay;
    // Woken by queued messages, too.
    while hub.lock().is_gone(attached) && timeout_at(deadline, attached.wake.notified()).await.is_ok() {}
    hub.lock().publish_delayed(attached, will, size);
}

/// Why the CONNECT itself is rejected, if it is.
fn reject(connect: &Connect) -> Option<ConnectAckReason> {
    if connect.auth_method.is_some() {
        return Some(ConnectAckReason::BadAuthenticationMethod);
    }
    let is_wrong = connect.last_will.as_ref().is_some_and(|will| !is_topic(&will.topic));
    is_wrong.then_some(ConnectAckReason::TopicNameInvalid)
}

/// How long a session outlives its connection, for a session expiry in seconds.
fn kept(expiry: u32) -> Duration {
    Duration::from_secs(expiry.into()).min(MAX_KEPT)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(&mut self, connect: &Connect) -> io::Result<End> {
        let is_assigned = connect.client_id.is_empty();
        let ack = ConnectAck {
            session_present: self.attached.is_present,
            session_expiry_interval_secs: u32::try_from(kept(connect.session_expiry_interval_secs).as_secs()).ok(),
            receive_max: NonZeroU16::new(MAX_UNACKNOWLEDGED).unwrap_or(NonZeroU16::MIN),
            max_packet_size: Some(MAX_PACKET),
            assigned_client_id: is_assigned.then(|| (&*self.attached.client_id).into()),
            shared_subscription_available: false,
            ..ConnectAck::default()
        };
        self.writer.send(ack).await?;
        let idle_timeout = match connect.keep_alive {
            0 => NO_KEEP_ALIVE,
            // One and a half times the keep-alive [MQTT-3.1.2-24].
            seconds => Duration::from_secs(seconds.into()) * 3 / 2,
        };
        let wake = self.attached.wake.clone();
        let mut deadline = Instant::now() + idle_timeout;
        loop {
            if self.deliver().await? == Next::TakenOver {
                return Ok(End::Closed(DisconnectReasonCode::SessionTakenOver));
            }
            tokio::select! {
                packet = timeout_at(deadline, self.reader.packet()) => {
                    let packet = match packet {
                        Ok(Ok(Some(packet))) => packet,
                        Ok(Ok(None)) => return Ok(End::Lost),
                        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                            tracing::debug!(%error, "received a malformed packet");
                            return Ok(End::Closed(DisconnectReasonCode::MalformedPacket));
                        }
                        Ok(Err(error)) => return Err(error),
                        Err(_) => return Ok(End::Closed(DisconnectReasonCode::KeepAliveTimeout)),
                    };
                    deadline = Instant::now() + idle_timeout;
                    if let Some(end) = self.handle(packet).await? {
                        return Ok(end);
                    }
                }
                () = wake.notified() => {}
            }
        }
    }

    /// Sends queued messages, up to the client's Receive Maximum.
    async fn deliver(&mut self) -> io::Result<Next> {
        loop {
            let next = self.hub.lock().next(&self.attached, self.receive_max);
            let Next::Deliver(publish) = next else { return Ok(next) };
            let packet_id = publish.packet_id;
            if !self.writer.send(Packet::Publish(publish)).await?
                && let Some(packet_id) = packet_id
            {
                // A message that the client cannot receive counts as delivered [MQTT-3.1.2-25 (5)].
                self.hub.lock().acknowledge(&self.attached, packet_id);
            }
        }
    }

    /// Handles a packet and sends its response.
    async fn handle(&mut self, packet: Packet) -> io::Result<Option<End>> {
        let response = match packet {
            Packet::Publish(publish) => match self.publish(*publish) {
                Ok(Some(response)) => response,
                Ok(None) => return Ok(None),
                Err(reason) => return Ok(Some(End::Closed(reason))),
            },
            Packet::PublishAck(ack) => {
                self.hub.lock().acknowledge(&self.attached, ack.packet_id);
                return Ok(None);
            }
            Packet::PublishRelease(release) => {
                let is_known = self.hub.lock().release(&self.attached, release.packet_id);
                let reason = if is_known { PublishAck2Reason::Success } else { PublishAck2Reason::PacketIdNotFound };
                Packet::PublishComplete(pubcomp(release.packet_id, reason))
            }
            Packet::Subscribe(subscribe) => {
                if subscribe.topic_filters.len() > MAX_FILTERS {
                    return Ok(Some(End::Closed(DisconnectReasonCode::QuotaExceeded)));
                }
                let mut status = Vec::with_capacity(subscribe.topic_filters.len());
                for (filter, options) in &subscribe.topic_filters {
                    status.push(self.hub.lock().subscribe(&self.attached, filter, *options, subscribe.id));
                    // Each filter is compared with all retained messages: others have their turn in between.
                    tokio::task::yield_now().await;
                }
                let packet_id = subscribe.packet_id;
                SubscribeAck { packet_id, properties: Vec::new(), reason_string: None, status }.into()
            }
            Packet::Unsubscribe(unsubscribe) => {
                use UnsubscribeAckReason::{NoSubscriptionExisted, Success};
                if unsubscribe.topic_filters.len() > MAX_FILTERS {
                    return Ok(Some(End::Closed(DisconnectReasonCode::QuotaExceeded)));
                }
                let mut hub = self.hub.lock();
                let filters = unsubscribe.topic_filters.iter();
                let existed = filters.map(|filter| hub.unsubscribe(&self.attached, filter));
                let status = existed.map(|existed| if existed { Success } else { NoSubscriptionExisted }).collect();
                let packet_id = unsubscribe.packet_id;
                UnsubscribeAck { packet_id, properties: Vec::new(), reason_string: None, status }.into()
            }
            Packet::PingRequest => Packet::PingResponse,
            Packet::Disconnect(disconnect) => {
                let with_will = disconnect.reason_code != DisconnectReasonCode::NormalDisconnection;
                return Ok(Some(End::Disconnected { with_will, expiry: disconnect.session_expiry_interval_secs }));
            }
            _ => return Ok(Some(End::Closed(DisconnectReasonCode::ProtocolError))),
        };
        self.writer.send(response).await?;
        Ok(None)
    }

    /// Publishes a message. Returns its acknowledgement, if its QoS has one.
    fn publish(&mut self, publish: Publish) -> Result<Option<Packet>, DisconnectReasonCode> {
        // An empty topic requires a topic alias, and CONNACK announces that the broker supports none.
        if !is_topic(&publish.topic) {
            return Err(DisconnectReasonCode::TopicNameInvalid);
        }
        let mut hub = self.hub.lock();
        let Some(packet_id) = publish.packet_id else {
            hub.publish(&self.attached.client_id, publish);
            return Ok(None);
        };
        if publish.qos == QoS::ExactlyOnce {
            // Until its release, a packet with the same identifier is a duplicate.
            if hub.hold(&self.attached, packet_id).ok_or(DisconnectReasonCode::ReceiveMaximumExceeded)? {
                hub.publish(&self.attached.client_id, publish);
            }
            return Ok(Some(Packet::PublishReceived(puback(packet_id))));
        }
        hub.publish(&self.attached.client_id, publish);
        Ok(Some(Packet::PublishAck(puback(packet_id))))
    }

    async fn close(&mut self, end: End) -> io::Result<()> {
        if let End::Closed(reason_code) = end {
            self.writer.send(Packet::from(Disconnect { reason_code, ..Disconnect::default() })).await?;
        }
        self.writer.close().await
    }
}
