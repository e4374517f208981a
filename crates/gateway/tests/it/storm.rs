//! Many clients at once: handshakes that wait, memory that runs out, brokers that return. Those who are connected notice
//! nothing.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connack, connect, eventually, field, packet, tls_config};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

/// A client that sends its ClientHello and no more.
async fn stop_after_hello(gateway: &TestGateway, pki: &Pki, from: [u8; 4]) -> Client {
    let config = tls_config(pki, None, rustls::ALL_VERSIONS);
    let name = ServerName::try_from("localhost").unwrap();
    let (mut connection, mut hello) = (ClientConnection::new(Arc::new(config), name).unwrap(), Vec::new());
    connection.write_tls(&mut hello).unwrap();
    let mut client = Client::tcp_from(from, gateway.address()).await;
    client.write(&hello).await;
    client
}

#[tokio::test]
async fn clients_that_stop_in_the_handshake_hold_up_nobody() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let runtime = "[runtime]\nmax_handshakes = 1\nhandshake_queue = 1\n";
    let listener = format!("{}{}", TestGateway::LISTENER, pki.listener_tls());
    let gateway = TestGateway::start(&format!("{listener}{}{runtime}", broker.upstream())).await;
    let mut stopped = Vec::new();
    for n in 0..20 {
        stopped.push(stop_after_hello(&gateway, &pki, [127, 0, 1, n]).await);
    }
    // One that has answered is served, however many have not.
    let mut client = Client::tls(gateway.address(), &pki, "dev-1").await;
    client.greet(&broker, &connect("dev-1")).await;
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

async fn is_admitted(gateway: &TestGateway, broker: &Broker) -> bool {
    let mut client = Client::tcp(gateway.address()).await;
    let _ = client.try_write(&connect("dev-2")).await;
    tokio::select! {
        mut connection = broker.accept() => {
            connection.expect(&connect("dev-2")).await;
            connection.write(&connack(4)).await;
            client.expect(&connack(4)).await;
            true
        }
        _ = client.try_read(1) => false,
    }
}

#[tokio::test]
async fn above_the_memory_limit_new_connections_are_rejected_and_sessions_stay() {
    const BLOCK: usize = 600 << 20;
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let limit = resident() + BLOCK / 2;
    let runtime = format!("[runtime]\nmemory_limit = \"{limit}\"\n");
    let gateway = TestGateway::start(&format!("{listener}{}{runtime}", broker.upstream())).await;
    let (mut client, mut connection) = gateway.session(&broker, &connect("dev-1")).await;
    let block = vec![1_u8; BLOCK];
    // The guard looks ten times a second.
    let mut admitted = 0;
    while is_admitted(&gateway, &broker).await {
        admitted += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = gateway.lines(admitted + 1).await.pop().unwrap();
    assert!(last.contains(" 503 ") && last.ends_with(" memory_limit"), "{last}");
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    assert_eq!(block[BLOCK - 1], 1);
    drop(block);
    let again = gateway.session_at_last(&broker, &connect("dev-2")).await;
    drop(again);
}

#[tokio::test]
async fn a_server_gets_no_more_connects_than_its_rate() {
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let upstream = broker.upstream() + "max_connect_rate = { rate = \"2/s\", burst = 2 }\nconnect_timeout = \"1s\"\n";
    let gateway = TestGateway::start(&format!("{listener}{upstream}")).await;
    let mut clients = Vec::new();
    for n in 0..8 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect(&format!("dev-{n}"))).await;
        clients.push(client);
    }
    // The burst at once, and two in a second.
    let mut served = Vec::new();
    for _ in 0..4 {
        let mut connection = broker.accept().await;
        connection.read(connect("dev-1").len()).await;
        connection.write(&connack(4)).await;
        served.push(connection);
    }
    let mut rejected = 0;
    for client in &mut clients {
        // Server unavailable, before MQTT 5.
        let answer = client.try_read(4).await.unwrap();
        rejected += usize::from(answer == b"\x20\x02\x00\x03");
    }
    assert_eq!(rejected, 4);
    assert!(gateway.lines(4).await.iter().all(|line| line.ends_with(" upstream_full")));
}

#[tokio::test]
async fn clients_that_have_left_take_no_turn_and_reach_no_broker() {
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    for (limits, upstream, reason) in [
        ("", "max_connect_rate = { rate = \"2/s\", burst = 1 }\nconnect_timeout = \"20s\"\n", " client_left"),
        ("[listener.limits]\nconnect_rate = { rate = \"2/s\", burst = 1 }\n", "", " closed_before_connect"),
    ] {
        let gateway = TestGateway::start(&format!("{listener}{limits}{}{upstream}", broker.upstream())).await;
        let _first = gateway.session(&broker, &connect("dev-1")).await;
        for _ in 0..20 {
            let mut client = Client::tcp(gateway.address()).await;
            client.write(&connect("dev-2")).await;
            // Some with bytes behind CONNECT, which hide the end from who reads only a little.
            client.write(b"\xc0\x00").await;
            drop(client);
        }
        let begin = std::time::Instant::now();
        // The next that a broker sees. Those before it would have taken ten seconds.
        let _last = gateway.session(&broker, &connect("dev-3")).await;
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let lines = gateway.lines(20).await;
        assert!(lines.iter().all(|line| line.ends_with(reason)), "{lines:?}");
    }
}

#[tokio::test]
async fn a_reload_changes_the_rate_for_clients_that_wait_already() {
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let limits = |rate: &str| format!("[listener.limits]\nconnect_rate = {{ rate = \"{rate}\", burst = 1 }}\n");
    let upstream =
        |rate: &str| format!("max_connect_rate = {{ rate = \"{rate}\", burst = 1 }}\nconnect_timeout = \"20s\"\n");
    let file = |limits: &str, upstream: &str| format!("{listener}{limits}{}{upstream}", broker.upstream());
    for (before, after) in [
        (file("", &upstream("1/h")), file("", &upstream("1000/s"))),
        (file("", &upstream("1/h")), file("", "")),
        (file(&limits("1/h"), ""), file(&limits("1000/s"), "")),
        (file(&limits("1/h"), ""), file("", "")),
    ] {
        let gateway = TestGateway::start(&before).await;
        let _first = gateway.session(&broker, &connect("dev-1")).await;
        let mut waiting = Client::tcp(gateway.address()).await;
        waiting.write(&connect("dev-2")).await;
        gateway.write(&after);
        gateway.gateway.reload().await.unwrap();
        let mut connection = tokio::time::timeout(Duration::from_secs(5), broker.accept()).await.unwrap();
        connection.read(connect("dev-2").len()).await;
    }
}

#[tokio::test]
async fn nobody_waits_for_the_turn_of_a_server_that_is_full() {
    let brokers = [Broker::start().await, Broker::start().await];
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let servers =
        brokers.each_ref().map(|broker| format!("{{ address = \"{}\", max_connections = 1 }}", broker.address()));
    let upstream = format!(
        "[[upstream]]\nname = \"brokers\"\nservers = [{}]\nhealth = {{ mode = \"off\" }}\n\
         max_connect_rate = {{ rate = \"1/h\", burst = 1 }}\nconnect_timeout = \"60s\"\n",
        servers.join(", ")
    );
    let gateway = TestGateway::start(&format!("{listener}{upstream}")).await;
    // All have the same client ID, so that the same server comes first.
    let mut clients = Vec::new();
    for n in 0..3 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect("dev-1")).await;
        if n < 2 {
            // Whichever server it is: its only place, and its only turn in an hour.
            let mut connection = tokio::select! {
                connection = brokers[0].accept() => connection,
                connection = brokers[1].accept() => connection,
            };
            connection.read(connect("dev-1").len()).await;
            connection.write(&connack(4)).await;
            clients.push((client, connection));
        } else {
            assert_eq!(client.try_read(4).await.unwrap(), b"\x20\x02\x00\x03");
        }
    }
}

#[tokio::test]
async fn unfinished_connects_of_one_network_leave_room_to_others_and_to_usual_clients() {
    // With a will: other fields have limits of their own.
    let large = |id: &str| {
        let mut body = connect(id).split_off(2);
        body[7] |= 0x04;
        body.extend(field(b"w"));
        body.extend(field(&vec![7; 60_000]));
        packet(0x10, &body)
    };
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!("{listener}{}", broker.upstream())).await;
    let (whole, mut held) = (large("dev-1"), Vec::new());
    // A third of 128 MiB is for one network that is alone. The share of connections is larger here.
    for _ in 0..900 {
        let mut client = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
        let _ = client.try_write(&whole[..whole.len() - 1]).await;
        held.push(client);
    }
    let log = gateway.path().with_file_name("access.log");
    let rejected = eventually("rejections", || fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n'))).await;
    assert!(rejected.lines().all(|line| line.ends_with(" too_many_pending_bytes")), "{rejected}");
    // Usual clients of that network, and large ones of others, are served.
    for (from, packet) in [([127, 0, 0, 2], connect("dev-2")), ([127, 0, 0, 3], large("dev-3"))] {
        let mut client = Client::tcp_from(from, gateway.address()).await;
        client.greet(&broker, &packet).await;
    }
    // Those that have gone hold nothing.
    drop(held);
    gateway.lines(902).await;
    let mut client = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    client.greet(&broker, &large("dev-4")).await;
}
