//! In-memory clients of the broker, with a paused clock.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::BytesMut;
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{
    DisconnectReasonCode, LastWill, PublishProperties, RetainHandling, SubscribeAckReason, SubscriptionOptions,
    UnsubscribeAckReason,
};
use rmqtt_codec::{MqttCodec, MqttPacket, v3, v5};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, timeout};
use tokio_util::codec::{Decoder, Encoder};

use super::*;

const ONE: NonZeroU16 = NonZeroU16::MIN;

struct Client {
    stream: DuplexStream,
    buffer: BytesMut,
    codec: MqttCodec,
}

impl Client {
    async fn start(broker: &Broker, codec: MqttCodec, connect: MqttPacket) -> Self {
        let (stream, far) = tokio::io::duplex(64 << 10);
        let broker = broker.clone();
        tokio::spawn(async move { broker.serve(far).await });
        let mut client = Self { stream, buffer: BytesMut::new(), codec };
        client.send(connect).await;
        client
    }

    /// Connects with MQTT 3.1.1; returns whether a session was present.
    async fn v3(broker: &Broker, client_id: &str, clean_session: bool) -> (Self, bool) {
        let connect = v3::Connect { clean_session, client_id: client_id.into(), ..v3::Connect::default() };
        let mut client = Self::start(broker, MqttCodec::V3(v3::Codec::new(0)), MqttPacket::V3(connect.into())).await;
        match client.receive().await {
            Some(MqttPacket::V3(v3::Packet::ConnectAck(ack))) => (client, ack.session_present),
            other => panic!("{other:?}"),
        }
    }

    async fn v5(broker: &Broker, connect: v5::Connect) -> (Self, v5::ConnectAck) {
        let mut client = Self::start(broker, MqttCodec::V5(v5::Codec::new(0, 0)), MqttPacket::V5(connect.into())).await;
        match client.receive().await {
            Some(MqttPacket::V5(v5::Packet::ConnectAck(ack))) => (client, *ack),
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, packet: MqttPacket) {
        self.buffer.clear();
        let mut out = BytesMut::new();
        self.codec.encode(packet, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    /// Reads the next packet; `None` at the end of the stream.
    async fn receive(&mut self) -> Option<MqttPacket> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.buffer).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn send_3(&mut self, packet: v3::Packet) -> v3::Packet {
        self.send(MqttPacket::V3(packet)).await;
        self.receive_3().await
    }

    async fn receive_3(&mut self) -> v3::Packet {
        match self.receive().await {
            Some(MqttPacket::V3(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    async fn send_5(&mut self, packet: impl Into<v5::Packet>) -> v5::Packet {
        self.send(MqttPacket::V5(packet.into())).await;
        self.receive_5().await
    }

    async fn receive_5(&mut self) -> v5::Packet {
        match self.receive().await {
            Some(MqttPacket::V5(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    async fn message(&mut self) -> Publish {
        match self.receive().await {
            Some(MqttPacket::V3(v3::Packet::Publish(publish)) | MqttPacket::V5(v5::Packet::Publish(publish))) => {
                *publish
            }
            other => panic!("{other:?}"),
        }
    }

    async fn subscribe_3(&mut self, filter: &str, qos: QoS) {
        let packet = v3::Packet::Subscribe { packet_id: ONE, topic_filters: vec![(filter.into(), qos)] };
        let granted = v3::SubscribeReturnCode::Success(qos.less_value(QoS::AtLeastOnce));
        assert_eq!(self.send_3(packet).await, v3::Packet::SubscribeAck { packet_id: ONE, status: vec![granted] });
    }

    async fn subscribe_5(&mut self, filter: &str, id: Option<u32>, options: SubscriptionOptions) -> SubscribeAckReason {
        let packet = v5::Subscribe {
            packet_id: ONE,
            id: id.and_then(NonZeroU32::new),
            user_properties: Vec::new(),
            topic_filters: vec![(filter.into(), options)],
        };
        match self.send_5(packet).await {
            v5::Packet::SubscribeAck(ack) => ack.status[0],
            other => panic!("{other:?}"),
        }
    }

    /// Asserts that no packet is on its way: the next one to arrive is the response to a new request.
    async fn is_silent(&mut self) {
        match &self.codec {
            MqttCodec::V5(_) => assert_eq!(self.send_5(v5::Packet::PingRequest).await, v5::Packet::PingResponse),
            _ => assert_eq!(self.send_3(v3::Packet::PingRequest).await, v3::Packet::PingResponse),
        }
    }
}

fn connect_5(client_id: &str) -> v5::Connect {
    v5::Connect { clean_start: true, client_id: client_id.into(), ..v5::Connect::default() }
}

fn publish(topic: &str, qos: QoS, payload: &'static str) -> Publish {
    let packet_id = (qos != QoS::AtMostOnce).then_some(ONE);
    let payload = payload.as_bytes().into();
    Publish { dup: false, retain: false, qos, topic: topic.into(), packet_id, payload, properties: None }
}

fn qos_1() -> SubscriptionOptions {
    SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn every_qos_goes_in_and_none_above_1_comes_out() {
    let broker = Broker::new();
    let (mut three, _) = Client::v3(&broker, "three", true).await;
    let (mut five, _) = Client::v5(&broker, connect_5("five")).await;
    three.subscribe_3("a/+", QoS::ExactlyOnce).await;
    five.send(MqttPacket::V5(publish("a/0", QoS::AtMostOnce, "zero").into())).await;
    let ack = five.send_5(publish("a/1", QoS::AtLeastOnce, "one")).await;
    assert!(matches!(ack, v5::Packet::PublishAck(ack) if ack.packet_id == ONE));
    for _ in 0..2 {
        // The second packet is a duplicate, since the first has not been released.
        let received = five.send_5(publish("a/2", QoS::ExactlyOnce, "two")).await;
        assert!(matches!(received, v5::Packet::PublishReceived(ack) if ack.packet_id == ONE));
    }
    for reason_code in [v5::PublishAck2Reason::Success, v5::PublishAck2Reason::PacketIdNotFound] {
        let ack =
            |reason_code| v5::PublishAck2 { packet_id: ONE, reason_code, properties: Vec::new(), reason_string: None };
        let complete = five.send_5(v5::Packet::PublishRelease(ack(v5::PublishAck2Reason::Success))).await;
        assert_eq!(complete, v5::Packet::PublishComplete(ack(reason_code)));
    }
    let expected =
        [("a/0", QoS::AtMostOnce, "zero"), ("a/1", QoS::AtLeastOnce, "one"), ("a/2", QoS::AtLeastOnce, "two")];
    for (topic, qos, payload) in expected {
        let message = three.message().await;
        assert_eq!((&*message.topic, message.qos, &*message.payload), (topic, qos, payload.as_bytes()));
        assert_eq!(message.packet_id.is_some(), qos == QoS::AtLeastOnce);
    }
    three.is_silent().await;
    let packet = v3::Packet::Unsubscribe { packet_id: ONE, topic_filters: vec!["a/+".into()] };
    assert_eq!(three.send_3(packet).await, v3::Packet::UnsubscribeAck { packet_id: ONE });
    five.send_5(publish("a/1", QoS::AtLeastOnce, "one")).await;
    three.is_silent().await;
}

#[tokio::test(start_paused = true)]
async fn retained_messages_await_subscribers_until_an_empty_one() {
    let broker = Broker::new();
    let (mut client, _) = Client::v3(&broker, "a", true).await;
    let retain =
        |payload| v3::Packet::Publish(Box::new(Publish { retain: true, ..publish("t/1", QoS::AtLeastOnce, payload) }));
    client.send_3(retain("old")).await;
    client.send_3(retain("new")).await;
    client.subscribe_3("t/#", QoS::AtMostOnce).await;
    let message = client.message().await;
    assert_eq!((message.retain, message.qos, &*message.payload), (true, QoS::AtMostOnce, &b"new"[..]));
    client.send_3(retain("")).await;
    let live = client.message().await;
    assert_eq!((live.retain, &*live.payload), (false, &b""[..]));
    let (mut late, _) = Client::v3(&broker, "b", true).await;
    late.subscribe_3("t/#", QoS::AtMostOnce).await;
    late.is_silent().await;
}

#[tokio::test(start_paused = true)]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let broker = Broker::new();
    let (mut observer, _) = Client::v5(&broker, connect_5("observer")).await;
    observer.subscribe_5("gone", None, qos_1()).await;
    let with_will = |delay, expiry| v5::Connect {
        session_expiry_interval_secs: expiry,
        last_will: Some(LastWill {
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: "gone".into(),
            message: "x".into(),
            will_delay_interval_sec: Some(delay),
            correlation_data: None,
            message_expiry_interval: None,
            content_type: None,
            user_properties: Vec::new(),
            is_utf8_payload: None,
            response_topic: None,
        }),
        ..connect_5("device")
    };
    let (mut device, _) = Client::v5(&broker, with_will(0, 0)).await;
    device.send(MqttPacket::V5(v5::Disconnect::default().into())).await;
    assert!(device.receive().await.is_none());
    observer.is_silent().await;
    drop(Client::v5(&broker, with_will(0, 0)).await);
    assert_eq!(&*observer.message().await.payload, b"x");
    // A delayed will waits, and is discarded if the client reconnects before.
    drop(Client::v5(&broker, with_will(30, 60)).await);
    let before = Instant::now();
    observer.message().await;
    assert_eq!(before.elapsed().as_secs(), 30);
    let stored = broker.hub.lock().bytes();
    drop(Client::v5(&broker, with_will(30, 60)).await);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let _back = Client::v5(&broker, v5::Connect { clean_start: false, ..connect_5("device") }).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    observer.is_silent().await;
    assert_eq!(broker.hub.lock().bytes(), stored, "wills that do not wait any more are not counted");
}

#[tokio::test(start_paused = true)]
async fn a_client_has_one_will_waiting_however_often_it_comes() {
    let broker = Broker::new();
    let connect = || v5::Connect {
        clean_start: false,
        session_expiry_interval_secs: 3600,
        last_will: Some(LastWill {
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "gone".into(),
            message: vec![0; 60_000].into(),
            will_delay_interval_sec: Some(3600),
            correlation_data: None,
            message_expiry_interval: None,
            content_type: None,
            user_properties: Vec::new(),
            is_utf8_payload: None,
            response_topic: None,
        }),
        ..connect_5("device")
    };
    for _ in 0..20 {
        drop(Client::v5(&broker, connect()).await);
    }
    let counted = async {
        while !(60_000..120_000).contains(&broker.hub.lock().bytes()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(5), counted).await.expect("one will is counted, and no other");
}

#[tokio::test(start_paused = true)]
async fn one_packet_does_a_bounded_amount_of_work() {
    let broker = Broker::new();
    let (mut client, _) = Client::v5(&broker, connect_5("device")).await;
    let subscribe = v5::Subscribe {
        packet_id: ONE,
        id: None,
        user_properties: Vec::new(),
        topic_filters: vec![("#".into(), qos_1()); 257],
    };
    let answer = client.send_5(subscribe).await;
    let reason = DisconnectReasonCode::QuotaExceeded;
    assert!(matches!(&answer, v5::Packet::Disconnect(packet) if packet.reason_code == reason), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn properties_of_stored_messages_are_counted() {
    let broker = Broker::new();
    let (mut client, _) = Client::v5(&broker, connect_5("device")).await;
    let properties = PublishProperties {
        user_properties: vec![("".into(), "".into()); 1000],
        correlation_data: Some(vec![0; 5000].into()),
        ..PublishProperties::default()
    };
    let message = Publish { retain: true, properties: Some(properties), ..publish("t", QoS::AtLeastOnce, "x") };
    client.send_5(message).await;
    assert!(broker.hub.lock().bytes() > 1000 * 64 + 5000);
    client.send_5(Publish { retain: true, ..publish("t", QoS::AtLeastOnce, "") }).await;
    assert_eq!(broker.hub.lock().bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn sessions_without_a_client_make_room_for_clients() {
    let broker = Broker::new();
    for number in 0..4100 {
        let connect = v5::Connect { session_expiry_interval_secs: 3600, ..connect_5(&number.to_string()) };
        let (mut client, _) = Client::v5(&broker, connect).await;
        client.send(MqttPacket::V5(v5::Disconnect::default().into())).await;
        assert!(client.receive().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_outlives_its_connection_and_loses_nothing() {
    let broker = Broker::new();
    let (mut client, is_present) = Client::v3(&broker, "device", false).await;
    assert!(!is_present);
    client.subscribe_3("t", QoS::AtLeastOnce).await;
    let (mut other, _) = Client::v3(&broker, "other", true).await;
    let mut say =
        async |payload| other.send_3(v3::Packet::Publish(Box::new(publish("t", QoS::AtLeastOnce, payload)))).await;
    say("seen").await;
    let seen = client.message().await;
    drop(client);
    say("missed").await;
    let (mut client, is_present) = Client::v3(&broker, "device", false).await;
    assert!(is_present);
    let again = client.message().await;
    assert_eq!(again, Publish { dup: true, ..seen });
    let missed = client.message().await;
    assert_eq!((missed.dup, &*missed.payload), (false, &b"missed"[..]));
    for packet_id in [again.packet_id, missed.packet_id] {
        client.send(MqttPacket::V3(v3::Packet::PublishAck { packet_id: packet_id.unwrap() })).await;
    }
    client.is_silent().await;
    drop(client);
    let (mut client, is_present) = Client::v3(&broker, "device", false).await;
    assert!(is_present);
    client.is_silent().await;
    drop(client);
    assert!(!Client::v3(&broker, "device", true).await.1, "a clean session");
}

#[tokio::test(start_paused = true)]
async fn only_so_much_is_on_its_way_and_only_so_much_is_queued() {
    let broker = Broker::new();
    let (mut slow, ack) = Client::v5(&broker, connect_5("slow").receive_max(1)).await;
    assert_eq!((ack.shared_subscription_available, ack.max_packet_size), (false, Some(hub::MAX_PACKET)));
    slow.subscribe_5("t", None, qos_1()).await;
    let (mut fast, _) = Client::v5(&broker, connect_5("fast")).await;
    for _ in 0..1100 {
        fast.send_5(publish("t", QoS::AtLeastOnce, "x")).await;
    }
    let mut received = 0;
    while let Ok(message) = timeout(Duration::from_secs(1), slow.message()).await {
        received += 1;
        slow.is_silent().await;
        let ack = v5::PublishAck {
            packet_id: message.packet_id.unwrap(),
            reason_code: v5::PublishAckReason::Success,
            properties: Vec::new(),
            reason_string: None,
        };
        slow.send(MqttPacket::V5(v5::Packet::PublishAck(ack))).await;
    }
    assert_eq!(received, 1001, "one in flight and a thousand queued");
    assert_eq!(broker.hub.lock().bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_comes_twice_stays_once() {
    let broker = Broker::new();
    let (mut first, _) = Client::v5(&broker, connect_5("same")).await;
    let (mut second, _) = Client::v5(&broker, connect_5("same")).await;
    match first.receive_5().await {
        v5::Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, DisconnectReasonCode::SessionTakenOver);
        }
        other => panic!("{other:?}"),
    }
    assert!(first.receive().await.is_none());
    second.is_silent().await;
    let (_, ack) = Client::v5(&broker, connect_5("")).await;
    assert!(ack.assigned_client_id.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_closed_after_half_as_long_again() {
    let broker = Broker::new();
    let (mut client, _) = Client::v5(&broker, v5::Connect { keep_alive: 10, ..connect_5("a") }).await;
    let begin = Instant::now();
    assert!(matches!(client.receive_5().await, v5::Packet::Disconnect(_)));
    assert_eq!(begin.elapsed().as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn options_and_properties_of_mqtt_5() {
    let broker = Broker::new();
    let (mut a, _) = Client::v5(&broker, connect_5("a")).await;
    for (filter, reason) in [
        ("$share/g/t", SubscribeAckReason::SharedSubscriptionNotSupported),
        ("t/#/x", SubscribeAckReason::TopicFilterInvalid),
    ] {
        assert_eq!(a.subscribe_5(filter, None, qos_1()).await, reason);
    }
    let own = SubscriptionOptions { no_local: true, ..qos_1() };
    a.subscribe_5("t/+", Some(7), own).await;
    let properties = PublishProperties {
        message_expiry_interval: NonZeroU32::new(60),
        user_properties: vec![("k".into(), "v".into())],
        response_topic: Some("r".into()),
        ..PublishProperties::default()
    };
    let sent = Publish { retain: true, properties: Some(properties), ..publish("t/1", QoS::AtLeastOnce, "x") };
    a.send_5(sent.clone()).await;
    a.is_silent().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (mut b, _) = Client::v5(&broker, connect_5("b")).await;
    b.subscribe_5("t/#", Some(8), SubscriptionOptions { retain_as_published: true, ..qos_1() }).await;
    let retained = b.message().await.properties.unwrap();
    assert_eq!(retained.message_expiry_interval.map(NonZeroU32::get), Some(40));
    assert_eq!(retained.subscription_ids, [NonZeroU32::new(8).unwrap()]);
    assert_eq!((retained.user_properties.len(), retained.response_topic.as_deref()), (1, Some("r")));
    let again = SubscriptionOptions { retain_handling: RetainHandling::AtSubscribeNew, ..qos_1() };
    b.subscribe_5("t/#", None, again).await;
    b.is_silent().await;
    b.send_5(publish("t/2", QoS::AtLeastOnce, "y")).await;
    assert_eq!(a.message().await.properties.unwrap().subscription_ids, [NonZeroU32::new(7).unwrap()]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (mut late, _) = Client::v5(&broker, connect_5("late")).await;
    late.subscribe_5("t/1", None, qos_1()).await;
    late.is_silent().await;
    let unsubscribe =
        v5::Unsubscribe { packet_id: ONE, user_properties: Vec::new(), topic_filters: vec!["t/1".into(), "u".into()] };
    match late.send_5(unsubscribe).await {
        v5::Packet::UnsubscribeAck(ack) => {
            assert_eq!(ack.status, [UnsubscribeAckReason::Success, UnsubscribeAckReason::NoSubscriptionExisted]);
        }
        other => panic!("{other:?}"),
    }
    match late.send_5(publish("a/+", QoS::AtLeastOnce, "x")).await {
        v5::Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, DisconnectReasonCode::TopicNameInvalid);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_mqtt_ends_the_connection() {
    let broker = Broker::new();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x10\x0c\x00\x04MQTT\x09\x02\x00\x3c\x00\x00", b"\xe0\x00"] {
        let (mut near, far) = tokio::io::duplex(64);
        near.write_all(bytes).await.unwrap();
        assert!(broker.serve(far).await.is_err(), "{bytes:?}");
    }
}
