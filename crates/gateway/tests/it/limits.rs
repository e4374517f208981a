//! [listener.limits], and packets that are meant to harm: bounded memory and time, a reason in the log, others unharmed.

use std::time::{Duration, Instant};

use portcullis_testkit::{
    Broker, BrokerConnection, Client, TestGateway, advance, connack, connect, connect_v5, field, publish, suback,
    subscribe,
};

const POLICY: &str = "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\neffect = \"deny\"\npublish = [\"no/#\"]\n\
                      subscribe = [\"no/#\"]\n[[topic_policy.rule]]\npublish = [\"#\"]\nsubscribe = [\"#\"]\n";

async fn start(listener: &str, rest: &str) -> (TestGateway, Broker) {
    let broker = Broker::start().await;
    let first = TestGateway::LISTENER.replace("protocol = \"tls\"", &format!("protocol = \"tcp\"\n{listener}"));
    (TestGateway::start(&format!("{first}{rest}{}", broker.upstream())).await, broker)
}

/// A session, whose CONNACK the gateway may have changed.
async fn session(gateway: &TestGateway, broker: &Broker, version: u8, told: &[u8]) -> (Client, BrokerConnection) {
    let mut client = Client::tcp(gateway.address()).await;
    let packet = if version == 5 { connect_v5("dev-1") } else { connect("dev-1") };
    client.write(&packet).await;
    let mut connection = broker.accept().await;
    connection.read(packet.len()).await;
    connection.write(&connack(version)).await;
    client.expect(told).await;
    (client, connection)
}

async fn policed() -> (TestGateway, Broker, Client, BrokerConnection) {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let (client, connection) = session(&gateway, &broker, 5, &connack(5)).await;
    (gateway, broker, client, connection)
}

/// Another client is served as if nothing had happened.
async fn bystander(gateway: &TestGateway, broker: &Broker) {
    let begin = Instant::now();
    let (mut client, mut connection) = session(gateway, broker, 4, &connack(4)).await;
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let (gateway, broker) = start("", "[listener.limits]\nconnections_per_address = 2\n").await;
    let one = session(&gateway, &broker, 4, &connack(4)).await;
    let _two = session(&gateway, &broker, 4, &connack(4)).await;
    assert_eq!(gateway.refusal(&connect("dev-1")).await, b"\x20\x02\x00\x03");
    assert_eq!(gateway.refusal(&connect_v5("dev-1")).await, b"\x20\x03\x00\x97\x00");
    assert!(broker.is_left_alone().await);
    assert!(gateway.lines(2).await.iter().all(|line| line.contains(" 503 ") && line.ends_with(" quota_exceeded")));
    let mut elsewhere = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    elsewhere.write(&connect("dev-2")).await;
    broker.accept().await.expect(&connect("dev-2")).await;
    drop(one);
    gateway.session_at_last(&broker, &connect("dev-1")).await;
}

#[tokio::test]
async fn an_address_connects_no_faster_than_its_rate() {
    let limits = "[listener.limits]\nconnect_rate_per_address = { rate = \"1/s\", burst = 3 }\n";
    let (gateway, broker) = start("", limits).await;
    for _ in 0..3 {
        session(&gateway, &broker, 4, &connack(4)).await;
    }
    assert_eq!(gateway.refusal(&connect("dev-1")).await, b"\x20\x02\x00\x03");
    advance(Duration::from_secs(2));
    session(&gateway, &broker, 4, &connack(4)).await;
}

#[tokio::test]
async fn connections_over_the_rate_of_a_listener_wait() {
    let (gateway, broker) = start("", "[listener.limits]\nconnect_rate = { rate = \"10/s\", burst = 1 }\n").await;
    let begin = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("dev-1")).await;
        clients.push(client);
    }
    for _ in 0..6 {
        broker.accept().await.expect(&connect("dev-1")).await;
    }
    assert!(begin.elapsed() >= Duration::from_millis(490), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_session_ends_after_its_lifetime() {
    for (rest, need_packets) in [("", false), ("max_topic_levels = 9\n", true)] {
        let limits = format!("[listener.limits]\nmax_session_lifetime = \"1h\"\n{rest}");
        let (gateway, broker) = start("", &limits).await;
        let (mut client, mut connection) = session(&gateway, &broker, 5, &connack(5)).await;
        advance(Duration::from_secs(3500));
        gateway.gateway.run_maintenance().await;
        client.write(b"\xc0\x00").await;
        connection.expect(b"\xc0\x00").await;
        advance(Duration::from_secs(110));
        gateway.gateway.run_maintenance().await;
        assert_eq!(client.read_to_end().await, b"\xe0\x02\xa0\x00", "{need_packets}");
        assert_eq!(gateway.outcome().await, "200 session_lifetime");
    }
}

#[tokio::test]
async fn a_lifetime_that_is_set_or_removed_reaches_live_sessions() {
    let (gateway, broker) = start("", "").await;
    let (mut client, mut connection) = session(&gateway, &broker, 5, &connack(5)).await;
    let first = TestGateway::LISTENER.replace("protocol = \"tls\"", "protocol = \"tcp\"");
    let limited = |lifetime: &str| {
        format!("{first}[listener.limits]\nmax_session_lifetime = \"{lifetime}\"\n{}", broker.upstream())
    };
    advance(Duration::from_secs(1800));
    // The time since it connected counts.
    for (configuration, is_over) in
        [(limited("20m"), true), (limited("1h"), false), (format!("{first}{}", broker.upstream()), false)]
            .into_iter()
            .rev()
    {
        gateway.write(&configuration);
        gateway.gateway.reload().await.unwrap();
        gateway.gateway.run_maintenance().await;
        if is_over {
            assert_eq!(client.read_to_end().await, b"\xe0\x02\xa0\x00");
        } else {
            client.write(b"\xc0\x00").await;
            connection.expect(b"\xc0\x00").await;
        }
    }
    assert_eq!(gateway.outcome().await, "200 session_lifetime");
}

#[tokio::test]
async fn a_silent_client_is_disconnected_and_an_active_one_is_not() {
    let (gateway, broker) = start("", "[listener.limits]\nmax_keep_alive = \"20s\"\n").await;
    let told = b"\x20\x06\x00\x00\x03\x13\x00\x14";
    let (mut silent, mut silent_at_broker) = session(&gateway, &broker, 5, told).await;
    let (mut active, mut active_at_broker) = session(&gateway, &broker, 5, told).await;
    for _ in 0..2 {
        advance(Duration::from_secs(14));
        active.write(b"\xc0\x00").await;
        active_at_broker.expect(b"\xc0\x00").await;
    }
    // Bytes that complete no packet do not count: one byte a second keeps nobody connected.
    silent.write(b"\x30\xff\xff\xff\x7f\x00\x01a").await;
    advance(Duration::from_secs(3));
    assert_eq!(silent.read_to_end().await, b"\xe0\x02\x8d\x00");
    silent_at_broker.read_to_end().await;
    assert_eq!(gateway.outcome().await, "200 keep_alive_timeout");
    active.write(b"\xc0\x00").await;
    active_at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_client_that_sends_too_fast_is_slowed_down() {
    let json = "[access_log]\nformat = \"json\"\n";
    let (gateway, broker) = start("", &format!("[listener.limits]\nmessage_rate = \"20/s\"\n{json}")).await;
    let (mut client, mut connection) = session(&gateway, &broker, 4, &connack(4)).await;
    let message = publish(4, 0, "a", None, b"", b"x");
    let begin = Instant::now();
    client.write(&[message.repeat(30), b"\xc0\x00".to_vec()].concat()).await;
    connection.expect(&message.repeat(20)).await;
    connection.expect(&[message.repeat(10), b"\xc0\x00".to_vec()].concat()).await;
    assert!(begin.elapsed() >= Duration::from_millis(490), "{:?}", begin.elapsed());
    // What waits is delivered although the client closes.
    client.write(&[message.repeat(25), b"\xe0\x00".to_vec()].concat()).await;
    client.shutdown().await;
    connection.expect(&[message.repeat(25), b"\xe0\x00".to_vec()].concat()).await;
    drop(connection);
    let line: serde_json::Value = serde_json::from_str(&gateway.lines(1).await[0]).unwrap();
    assert!((1..=45).contains(&line["delayed"].as_u64().unwrap()) && line["denied"] == 0, "{line}");
    let limits = "[listener.limits]\nbyte_rate = \"1KiB/s\"\non_exceed = \"disconnect\"\n";
    let (gateway, broker) = start("", limits).await;
    let (mut client, mut connection) = session(&gateway, &broker, 5, &connack(5)).await;
    client.write(&publish(5, 0, "a", None, b"", &[b'x'; 2000])).await;
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x96\x00");
    assert!(connection.read_to_end().await.len() <= 1024);
    assert_eq!(gateway.outcome().await, "503 quota_exceeded");
}

#[tokio::test]
async fn packets_that_announce_too_much_are_refused_at_once() {
    let limits = "[listener.limits]\nmax_packet_size = \"1KiB\"\n";
    let (gateway, broker) = start("", limits).await;
    let told = b"\x20\x08\x00\x00\x05\x27\x00\x00\x04\x00";
    let (mut client, mut connection) = session(&gateway, &broker, 5, told).await;
    client.write(b"\x30\xff\xff\xff\x7f").await;
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x95\x00");
    assert!(connection.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "400 packet_too_large");
    // Of any other packet than PUBLISH, and of topic and properties, so much is never collected.
    for bytes in [&b"\x82\xff\xff\xff\x7f"[..], b"\x30\xff\xff\xff\x7f\x00\x01a\xff\xff\x7f"] {
        let (gateway, broker, mut client, mut connection) = policed().await;
        client.write(bytes).await;
        assert_eq!(client.read_to_end().await, b"\xe0\x02\x95\x00");
        assert!(connection.read_to_end().await.is_empty());
        assert_eq!(gateway.outcome().await, "400 packet_too_large");
        bystander(&gateway, &broker).await;
    }
}

#[tokio::test]
async fn ten_thousand_filters_are_answered_in_their_places() {
    let (gateway, broker, mut client, mut connection) = policed().await;
    let names: Vec<String> =
        (0..10_000).map(|number| format!("{}/{number}", if number % 2 == 0 { "a" } else { "no" })).collect();
    let filters: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 0)).collect();
    let allowed: Vec<(&str, u8)> = filters.iter().copied().step_by(2).collect();
    client.write(&subscribe(5, 1, &filters)).await;
    connection.expect(&subscribe(5, 1, &allowed)).await;
    connection.write(&suback(5, 1, &vec![0; allowed.len()])).await;
    client.expect(&suback(5, 1, &[0, 0x87].repeat(5000))).await;
    bystander(&gateway, &broker).await;
}

#[tokio::test]
async fn the_longest_and_deepest_topics_are_judged_like_others() {
    let (gateway, broker, mut client, mut connection) = policed().await;
    let deepest = "a/".repeat(32_000);
    let longest = "x".repeat(65_535);
    for topic in [&deepest, &longest] {
        let message = publish(5, 0, topic, None, b"", b"");
        client.write(&message).await;
        connection.expect(&message).await;
        client.write(&publish(5, 2, &format!("no/{}", &topic[..60_000]), Some(1), b"", b"")).await;
        client.expect(b"\x40\x03\x00\x01\x87").await;
        client.write(&subscribe(5, 1, &[(topic, 0)])).await;
        connection.expect(&subscribe(5, 1, &[(topic, 0)])).await;
    }
    bystander(&gateway, &broker).await;
}

#[tokio::test]
async fn aliases_are_bounded_in_number_and_bytes() {
    let (gateway, broker) = start("topics = \"p\"", POLICY).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect_v5("dev-1")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect_v5("dev-1")).await;
    connection.write(b"\x20\x06\x00\x00\x03\x22\xff\xff").await;
    client.expect(b"\x20\x06\x00\x00\x03\x22\x00\x0a").await;
    let alias = |number: u16| [&[0x23][..], &number.to_be_bytes()].concat();
    let long = "x".repeat(65_000);
    for number in 1..=10 {
        let message = publish(5, 0, &long, None, &alias(number), b"");
        client.write(&message).await;
        connection.expect(&message).await;
    }
    client.write(&publish(5, 0, &long, None, &alias(11), b"")).await;
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x94\x00");
    assert_eq!(gateway.outcome().await, "400 protocol_violation");
    bystander(&gateway, &broker).await;
}

#[tokio::test]
async fn a_hundred_thousand_user_properties_are_too_many() {
    let (gateway, broker, mut client, mut connection) = policed().await;
    let properties = [&[0x26][..], &field(b""), &field(b"")].concat().repeat(100_000);
    let message = publish(5, 0, "a", None, &properties, b"");
    let _ = client.try_write(&message).await;
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x95\x00");
    assert!(connection.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "400 packet_too_large");
    // So many as fit pass, stamped or not.
    let (gateway, broker_2) = start("", "[listener.publish]\nuser_properties = { by = 'mqtt.client_id' }\n").await;
    let (mut client, mut connection) = session(&gateway, &broker_2, 5, &connack(5)).await;
    let properties = [&[0x26][..], &field(b"a"), &field(b"b")].concat().repeat(30_000);
    client.write(&publish(5, 0, "a", None, &properties, b"")).await;
    let stamped = [&properties[..], &[0x26], &field(b"by"), &field(b"dev-1")].concat();
    connection.expect(&publish(5, 0, "a", None, &stamped, b"")).await;
    bystander(&gateway, &broker_2).await;
    drop(broker);
}

#[tokio::test]
async fn a_flood_of_denied_packets_slows_down_only_its_sender() {
    let (gateway, broker, mut client, _connection) = policed().await;
    let flood = publish(5, 2, "no/a", Some(1), b"", b"x").repeat(10_000);
    let mut written = 0;
    // The client does not read its answers: it is not read either.
    while tokio::time::timeout(Duration::from_secs(1), client.write(&flood)).await.is_ok() {
        written += flood.len();
        assert!(written < 64 << 20, "nobody reads, and it still goes on");
    }
    bystander(&gateway, &broker).await;
}

#[tokio::test]
async fn requests_that_a_broker_does_not_answer_are_bounded() {
    let (gateway, broker, mut client, mut connection) = policed().await;
    let request = |number: u16| subscribe(5, number, &[(&format!("{number:02}{}", "x".repeat(30_000)), 0)]);
    let len = request(1).len();
    let mut sent = 0;
    while sent < 40 && tokio::time::timeout(Duration::from_millis(300), client.write(&request(sent + 1))).await.is_ok()
    {
        sent += 1;
    }
    // It reads what it gets, but does not answer.
    let mut got = 0_u16;
    while let Ok(read) = tokio::time::timeout(Duration::from_millis(300), connection.read(len)).await {
        got += u16::from(!read.is_empty());
    }
    assert!(got < sent.min(20), "{got} of {sent} requests reached the broker");
    for number in 1..=got {
        connection.write(&suback(5, number, &[0])).await;
    }
    // Now the others do.
    connection.read(len).await;
    bystander(&gateway, &broker).await;
}
