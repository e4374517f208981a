//! Bytes in both directions: complete, in order, with back-pressure, and DISCONNECT only between packets.

use std::time::Duration;

use portcullis_gateway::Successor;
use portcullis_testkit::{Broker, BrokerConnection, Client, TestGateway, advance, connack, connect, connect_v5, soon};

async fn gateway(broker: &Broker) -> TestGateway {
    TestGateway::plain(&format!("{}\n[runtime]\ndrain_timeout = \"300ms\"\n", broker.upstream())).await
}

async fn session(version: u8) -> (TestGateway, Client, BrokerConnection) {
    let broker = Broker::start().await;
    let gateway = gateway(&broker).await;
    let (client, connection) = session_on(&gateway, &broker, version).await;
    (gateway, client, connection)
}

async fn session_on(gateway: &TestGateway, broker: &Broker, version: u8) -> (Client, BrokerConnection) {
    let mut client = Client::tcp(gateway.address()).await;
    let packet = if version == 5 { connect_v5("thing001") } else { connect("thing001") };
    client.write(&packet).await;
    let mut connection = broker.accept().await;
    connection.expect(&packet).await;
    connection.write(&connack(version)).await;
    client.expect(&connack(version)).await;
    (client, connection)
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_arrive_whole_in_both_directions_at_once() {
    // Deliberately not MQTT: the gateway does not parse the bytes after CONNECT.
    let (gateway, mut client, mut connection) = session(4).await;
    let (up, down) = (noise(5_000_001), noise(3_000_003));
    let (sent_up, sent_down) = (up.clone(), down.clone());
    let client = tokio::spawn(async move {
        client.write(&sent_up[..2_000_000]).await;
        client.expect(&down[..1_000_000]).await;
        client.write(&sent_up[2_000_000..]).await;
        client.expect(&down[1_000_000..]).await;
        client.shutdown().await;
    });
    let broker = tokio::spawn(async move {
        connection.write(&sent_down[..1_000_000]).await;
        connection.expect(&up[..4_000_000]).await;
        connection.write(&sent_down[1_000_000..]).await;
        connection.expect(&up[4_000_000..]).await;
        assert!(connection.read_to_end().await.is_empty());
    });
    client.await.unwrap();
    broker.await.unwrap();
    let line = gateway.lines(1).await.remove(0);
    let bytes = format!(" {} {} ", 5_000_001 + connect("thing001").len(), 3_000_003 + 4);
    assert!(line.contains(&bytes), "{line}");
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer() {
    let (_gateway, mut client, mut connection) = session(4).await;
    let flood = noise(64 << 10);
    let mut written = 0;
    // Bounded by the sockets' buffers and one chunk, far below this.
    while let Ok(()) = tokio::time::timeout(Duration::from_millis(500), client.write(&flood)).await {
        written += flood.len();
        assert!(written < 64 << 20, "the gateway keeps reading although the receiver does not");
    }
    // The other direction is not blocked.
    connection.write(b"\xd0\x00").await;
    client.expect(b"\xd0\x00").await;
}

#[tokio::test]
async fn a_half_closed_side_still_gets_what_is_on_its_way() {
    let (gateway, mut client, mut connection) = session(4).await;
    client.write(b"\xe0\x00").await;
    client.shutdown().await;
    assert_eq!(connection.read_to_end().await, b"\xe0\x00");
    connection.write(b"\x30\x04\x00\x01al").await;
    drop(connection);
    assert_eq!(client.read_to_end().await, b"\x30\x04\x00\x01al");
    assert_eq!(gateway.outcome().await, "200 ok");
}

#[tokio::test]
async fn what_is_sent_is_what_is_counted() {
    let (gateway, mut client, mut connection) = session(5).await;
    connection.write(b"\xd0\x00").await;
    client.expect(b"\xd0\x00").await;
    let (gateway, drained) = (std::sync::Arc::new(gateway), connect_v5("thing001").len());
    let draining = std::sync::Arc::clone(&gateway);
    let drain = tokio::spawn(async move { draining.gateway.drain(Successor::Others).await });
    client.expect(b"\xe0\x02\x8b\x00").await;
    client.shutdown().await;
    soon("the drain", drain).await.unwrap();
    // CONNACK, PINGRESP, DISCONNECT.
    let line = gateway.lines(1).await.remove(0);
    assert!(line.contains(&format!(" {drained} {} ", 5 + 2 + 4)) && line.ends_with(" drained"), "{line}");
}

#[tokio::test]
async fn a_half_that_does_not_stop_sending_is_ended_all_the_same() {
    for (last, outcome) in [(&b""[..], "200 half_close_timeout"), (b"\xe0\x00", "200 ok")] {
        let (gateway, mut client, mut connection) = session(4).await;
        client.write(last).await;
        client.shutdown().await;
        assert_eq!(connection.read_to_end().await, last);
        for _ in 0..9 {
            advance(Duration::from_secs(6));
            connection.write(b"\xd0\x00").await;
            client.expect(b"\xd0\x00").await;
        }
        advance(Duration::from_secs(7));
        assert!(client.read_to_end().await.is_empty());
        assert_eq!(gateway.outcome().await, outcome);
    }
}

#[tokio::test]
async fn a_drain_without_time_ends_all_at_once() {
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&format!("{}\n[runtime]\ndrain_timeout = \"0s\"\n", broker.upstream())).await;
    let (mut client, _connection) = session_on(&gateway, &broker, 5).await;
    let client = tokio::spawn(async move {
        client.expect(b"\xe0\x02\x8b\x00").await;
        client.shutdown().await;
    });
    soon("the drain", gateway.gateway.drain(Successor::Others)).await;
    client.await.unwrap();
    assert_eq!(gateway.outcome().await, "200 drained");
}

#[tokio::test]
async fn a_half_that_stays_open_has_its_time_and_no_more() {
    let (gateway, mut client, mut connection) = session(4).await;
    client.shutdown().await;
    assert!(connection.read_to_end().await.is_empty());
    // The broker says nothing and does not close. What it says in time still arrives, and buys it as much time again.
    advance(Duration::from_secs(6));
    connection.write(b"\xd0\x00").await;
    client.expect(b"\xd0\x00").await;
    advance(Duration::from_secs(6));
    connection.write(b"\xd0\x00").await;
    client.expect(b"\xd0\x00").await;
    advance(Duration::from_secs(10));
    let line = gateway.lines(1).await.remove(0);
    assert!(line.ends_with(" half_close_timeout"), "{line}");
}

#[tokio::test]
async fn a_broker_that_closes_closes_the_client() {
    let (gateway, mut client, connection) = session(4).await;
    drop(connection);
    assert!(client.read_to_end().await.is_empty());
    drop(client);
    assert_eq!(gateway.outcome().await, "502 upstream_closed");
}

#[tokio::test]
async fn behind_a_disconnect_the_client_has_ended_the_session_whoever_closes() {
    for version in [4, 5] {
        // The broker closes first; the client closes with a reset; the client never closes.
        for end in ["broker", "reset", "nobody"] {
            let (gateway, mut client, mut connection) = session(version).await;
            // In two parts, behind another packet.
            client.write(b"\xc0\x00\xe0").await;
            connection.expect(b"\xc0\x00\xe0").await;
            client.write(b"\x00").await;
            connection.expect(b"\x00").await;
            match end {
                "reset" => {
                    // Unread bytes cause a reset.
                    connection.write(&[0xd0, 0].repeat(100)).await;
                    drop((client, connection));
                }
                _ => {
                    drop(connection);
                    if end == "broker" {
                        client.read_to_end().await;
                        drop(client);
                    } else {
                        client.read_to_end().await;
                        advance(Duration::from_secs(11));
                    }
                }
            }
            assert_eq!(gateway.outcome().await, "200 ok", "{version} {end}");
        }
    }
}

#[tokio::test]
async fn a_broker_that_sends_disconnect_has_ended_the_session() {
    let (gateway, mut client, mut connection) = session(5).await;
    connection.write(b"\xe0\x01\x8e").await;
    drop(connection);
    client.expect(b"\xe0\x01\x8e").await;
    drop(client);
    assert_eq!(gateway.outcome().await, "200 upstream_disconnected");
}

#[tokio::test]
async fn a_drained_mqtt_5_client_is_told_so_between_packets_only() {
    let broker = Broker::start().await;
    let gateway = gateway(&broker).await;
    let (mut client, mut connection) = session_on(&gateway, &broker, 5).await;
    let (mut other, _other) = session_on(&gateway, &broker, 5).await;
    // A PUBLISH of which the end is still to come when the gateway's time is up.
    connection.write(b"\x30\x0a\x00\x01a\x00he").await;
    client.expect(b"\x30\x0a\x00\x01a\x00he").await;
    let drained = tokio::spawn(async move {
        gateway.gateway.drain(Successor::Others).await;
        gateway
    });
    // One after another. This one is between two packets.
    other.expect(b"\xe0\x02\x8b\x00").await;
    drop(other);
    connection.write(b"llo!\xd0\x00").await;
    // The rest of the packet, the bytes received with it, then DISCONNECT "server shutting down".
    client.expect(b"llo!\xd0\x00\xe0\x02\x8b\x00").await;
    assert!(client.read_to_end().await.is_empty());
    let gateway = soon("the drain", drained).await.unwrap();
    for line in gateway.lines(2).await {
        assert!(line.contains(" 200 ") && line.ends_with(" drained"), "{line}");
    }
}

#[tokio::test]
async fn what_a_broker_says_before_it_hangs_up_reaches_the_client() {
    let (gateway, mut client, mut connection) = session(5).await;
    // During an upload, the broker sends a reason and closes with unread bytes, which causes a reset.
    let flood = vec![0; 256 << 10];
    while let Ok(()) = tokio::time::timeout(Duration::from_millis(300), client.write(&flood)).await {}
    connection.write(b"\xe0\x02\x95\x00").await;
    drop(connection);
    client.expect(b"\xe0\x02\x95\x00").await;
    drop(client);
    let outcome = gateway.outcome().await;
    assert_eq!(outcome, "200 upstream_disconnected");
}

#[tokio::test]
async fn no_goodbye_before_the_broker_has_accepted() {
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&format!("{}\n[runtime]\ndrain_timeout = \"100ms\"\n", broker.upstream())).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect_v5("thing001")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect_v5("thing001")).await;
    // AUTH "continue authentication": CONNACK follows later, and no DISCONNECT may precede it [MQTT-3.14.0-1].
    let auth = b"\xf0\x09\x18\x07\x15\x00\x04SCRA";
    connection.write(auth).await;
    client.expect(auth).await;
    soon("the drain", gateway.gateway.drain(Successor::Others)).await;
    assert!(client.read_to_end().await.is_empty());
}

#[tokio::test]
async fn a_session_that_is_cut_off_on_its_way_has_its_line_too() {
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&broker.upstream()).await;
    let _silent = Client::tcp(gateway.address()).await;
    portcullis_testkit::eventually("the connection", || (gateway.gateway.connections() == 1).then_some(())).await;
    gateway.gateway.stop().await;
    assert_eq!(gateway.outcome().await, "200 drained");
}

#[tokio::test]
async fn a_drained_mqtt_3_client_is_closed() {
    let (gateway, mut client, _connection) = session(4).await;
    soon("the drain", gateway.gateway.drain(Successor::Others)).await;
    assert!(client.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "200 drained");
}

#[tokio::test]
async fn sessions_that_end_by_themselves_end_the_drain() {
    let (gateway, mut client, connection) = session(4).await;
    let begin = std::time::Instant::now();
    client.shutdown().await;
    drop(connection);
    gateway.gateway.drain(Successor::Others).await;
    assert!(begin.elapsed() < Duration::from_millis(290), "not the whole drain_timeout");
    assert_eq!(gateway.outcome().await, "200 ok");
}

#[tokio::test]
async fn a_broker_s_refusal_reaches_the_client_as_it_came() {
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&broker.upstream()).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect_v5("thing001")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect_v5("thing001")).await;
    // With a reason string.
    let refusal = b"\x20\x0a\x00\x86\x07\x1f\x00\x04nope";
    connection.write(refusal).await;
    drop(connection);
    assert_eq!(client.read_to_end().await, refusal);
    drop(client);
    assert_eq!(gateway.outcome().await, "403 upstream_refused");
}
