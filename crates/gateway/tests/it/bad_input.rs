//! Hostile and faulty clients: each is rejected with its reason, and none affects another.

use std::time::Duration;

use portcullis_testkit::{
    Broker, Client, Pki, TestGateway, advance, connack, connect, connect_as, connect_v5, eventually, tls_config,
};

async fn plain(rest: &str) -> (TestGateway, Broker) {
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("protocol = \"tls\"", &format!("protocol = \"tcp\"\n{rest}"));
    (TestGateway::start(&format!("{listener}{}", broker.upstream())).await, broker)
}

/// Sends bytes to a plain listener. Returns the bytes that the client received, and the status and reason in the access log.
async fn answer(rest: &str, bytes: &[u8]) -> (Vec<u8>, String) {
    let (gateway, broker) = plain(rest).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(bytes).await;
    let answer = client.read_to_end().await;
    assert!(broker.is_left_alone().await);
    (answer, gateway.outcome().await)
}

#[tokio::test]
async fn each_kind_of_rubbish_has_its_reason() {
    let huge = b"\x10\xff\xff\xff\x7f\x00\x04MQTT\x04";
    let rows: &[(&str, &[u8], &[u8], &str)] = &[
        ("garbage", b"\xde\xad\xbe\xef\xde\xad\xbe\xef", b"", "400 not_connect"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", "400 not_connect"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", b"", "400 not_connect"),
        ("PUBLISH first", b"\x30\x04\x00\x01al", b"", "400 not_connect"),
        ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"", "400 tls_on_plain_port"),
        ("256 MiB", huge, b"", "400 connect_too_large"),
        ("length of five bytes", b"\x10\x80\x80\x80\x80\x01", b"", "400 malformed_connect"),
        ("3.1.1, reserved flag", b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x3c\x00\x01a", b"", "400 malformed_connect"),
        (
            "5, reserved flag",
            b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01a",
            b"\x20\x03\x00\x81\x00",
            "400 malformed_connect",
        ),
        (
            "level 6",
            b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x3c\x00\x01a",
            b"\x20\x03\x00\x84\x00",
            "400 unsupported_version",
        ),
        ("level 2", b"\x10\x0d\x00\x04MQTT\x02\x02\x00\x3c\x00\x01a", b"\x20\x02\x00\x01", "400 unsupported_version"),
        (
            "5, receive maximum 0",
            b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x01a",
            b"\x20\x03\x00\x82\x00",
            "400 protocol_error",
        ),
        ("U+0000", b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01\x00", b"", "400 malformed_connect"),
    ];
    for (what, bytes, expected, reason) in rows {
        let (found, outcome) = answer("", bytes).await;
        assert_eq!((found.as_slice(), outcome.as_str()), (*expected, *reason), "{what}");
    }
}

#[tokio::test]
async fn plain_bytes_on_a_tls_port() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let configuration = format!("{}{}{}", TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    for (bytes, reason) in [(connect("thing001"), "500 not_tls"), (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "500 not_tls")] {
        let gateway = TestGateway::start(&configuration).await;
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&bytes).await;
        client.read_to_end().await;
        assert_eq!(gateway.outcome().await, reason);
    }
    let gateway = TestGateway::start(&configuration).await;
    drop(Client::tcp(gateway.address()).await);
    assert_eq!(gateway.outcome().await, "500 handshake_closed");
}

#[tokio::test]
async fn half_a_packet_and_then_silence() {
    let (bytes, outcome) = answer("connect_timeout = \"200ms\"", &connect("thing001")[..9]).await;
    assert_eq!((bytes.as_slice(), outcome.as_str()), (&b""[..], "400 connect_timeout"));
    let (bytes, outcome) = answer("connect_timeout = \"200ms\"", b"").await;
    assert_eq!((bytes.as_slice(), outcome.as_str()), (&b""[..], "400 connect_timeout"));
}

#[tokio::test]
async fn half_a_packet_and_then_the_end() {
    let (gateway, broker) = plain("").await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")[..9]).await;
    client.shutdown().await;
    client.read_to_end().await;
    assert_eq!(gateway.outcome().await, "400 closed_before_connect");
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn one_byte_a_time_is_fine_until_the_time_is_up() {
    let (gateway, broker) = plain("connect_timeout = \"1s\"").await;
    let mut patient = Client::tcp(gateway.address()).await;
    for byte in connect("thing001") {
        patient.write(&[byte]).await;
    }
    broker.accept().await.expect(&connect("thing001")).await;
    let mut slow = Client::tcp(gateway.address()).await;
    let drip = async {
        for byte in connect("thing002") {
            let _ = slow.try_write(&[byte]).await;
            advance(Duration::from_millis(200));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    drip.await;
    assert!(broker.is_left_alone().await);
    drop(patient);
    let lines = gateway.lines(2).await;
    assert!(lines.iter().any(|line| line.contains(" TCP 400 ") && line.ends_with(" 0 - - connect_timeout")));
}

#[tokio::test]
async fn max_connect_size_counts_the_whole_packet() {
    let exact = connect(&"x".repeat(100));
    let rest = format!("max_connect_size = \"{}\"", exact.len());
    let (gateway, broker) = plain(&rest).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&exact).await;
    broker.accept().await.expect(&exact).await;
    let (bytes, outcome) = answer(&rest, &connect(&"x".repeat(101))).await;
    assert_eq!((bytes.as_slice(), outcome.as_str()), (&b""[..], "400 connect_too_large"));
}

#[tokio::test]
async fn client_ids_and_user_names_have_limits_of_their_own() {
    const ID: &[u8] = b"\x20\x02\x00\x02";
    const ID_V5: &[u8] = b"\x20\x03\x00\x85\x00";
    const NAME: &[u8] = b"\x20\x02\x00\x04";
    let longer = "max_client_id = \"2KiB\"\nmax_username = \"30\"";
    let rows: &[(&str, Vec<u8>, &[u8], &str)] = &[
        ("", connect(&"x".repeat(1025)), ID, "400 client_id_too_long"),
        ("", connect_v5(&"x".repeat(1025)), ID_V5, "400 client_id_too_long"),
        ("", connect(&"ä".repeat(513)), ID, "400 client_id_too_long"),
        ("", connect_as("a", &"x".repeat(1025), b""), NAME, "400 username_too_long"),
        (longer, connect(&"x".repeat(2049)), ID, "400 client_id_too_long"),
        (longer, connect_as("a", &"x".repeat(31), b""), NAME, "400 username_too_long"),
    ];
    for (rest, packet, expected, reason) in rows {
        let (found, outcome) = answer(rest, packet).await;
        assert_eq!((found.as_slice(), outcome.as_str()), (*expected, *reason), "{rest}");
    }
    for (rest, packet) in [
        ("", connect(&"x".repeat(1024))),
        ("", connect_as("a", &"x".repeat(1024), b"")),
        (longer, connect(&"x".repeat(2048))),
        (longer, connect_as("a", &"x".repeat(30), b"")),
    ] {
        let (gateway, broker) = plain(rest).await;
        gateway.session(&broker, &packet).await;
    }
}

#[tokio::test]
async fn the_access_log_cuts_what_clients_choose() {
    let (gateway, broker) = plain("max_client_id = \"64KiB\"").await;
    let (client, connection) = gateway.session(&broker, &connect(&"x".repeat(32_700))).await;
    drop((client, connection));
    let line = gateway.lines(1).await.remove(0);
    let cut = "x".repeat(256) + "...[32700\\x20bytes]";
    assert_eq!(line.split(' ').nth(8), Some(cut.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_that_say_nothing_harm_nobody() {
    let (gateway, broker) = plain("connect_timeout = \"3s\"").await;
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(Client::tcp(gateway.address()).await);
    }
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect("thing001")).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;
    let lines = gateway.lines(1000).await;
    assert!(lines.iter().all(|line| line.ends_with("TCP 400 0 0 - - connect_timeout")));
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn max_connections_refuses_the_next() {
    let (gateway, broker) = plain("max_connections = 1").await;
    let mut first = Client::tcp(gateway.address()).await;
    first.write(&connect("thing001")).await;
    let _connection = broker.accept().await;
    let mut second = Client::tcp(gateway.address()).await;
    assert!(second.read_to_end().await.is_empty());
    assert_eq!(gateway.outcome().await, "503 too_many_connections");
}

#[tokio::test]
async fn every_way_out_makes_room_for_the_next() {
    let broker = Broker::start().await;
    let pki = Pki::new();
    let listener = format!("{}max_connections = 1\n", TestGateway::LISTENER);
    let admit = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
    let gateway = TestGateway::start(&format!("{listener}{}{admit}{}", pki.listener_tls(), broker.upstream())).await;
    let gone = || eventually("it to be gone", || (gateway.gateway.connections() == 0).then_some(()));
    // No handshake at all, no TLS, no certificate, no CONNECT, no MQTT, a wrong name: each with the only permit.
    drop(Client::tcp(gateway.address()).await);
    gateway.lines(1).await;
    gone().await;
    let mut plain = Client::tcp(gateway.address()).await;
    plain.write(&connect("thing001")).await;
    plain.read_to_end().await;
    gone().await;
    let anonymous = tls_config(&pki, None, &[&rustls::version::TLS12]);
    assert!(Client::try_tls(gateway.address(), anonymous, "localhost").await.is_err());
    gone().await;
    drop(Client::tls(gateway.address(), &pki, "thing001").await);
    gone().await;
    for packet in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), connect("thing002")] {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&packet).await;
        client.read_to_end().await;
        drop(client);
        gone().await;
    }
    let lines = gateway.lines(6).await;
    assert!(!lines.iter().any(|line| line.ends_with("too_many_connections")), "{lines:#?}");
    // A session that ends, and the next.
    for _ in 0..2 {
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.greet(&broker, &connect("thing001")).await;
        assert!(gateway.refusal(b"").await.is_empty(), "the only one is taken");
        drop(client);
        gone().await;
    }
    let lines = gateway.lines(10).await;
    assert_eq!(lines.iter().filter(|line| line.ends_with("too_many_connections")).count(), 2, "{lines:#?}");
}

#[tokio::test]
async fn a_client_cannot_forge_a_line() {
    let (gateway, broker) = plain("").await;
    let mut client = Client::tcp(gateway.address()).await;
    let forged = "x\n127.0.0.1 [22/Nov/2026:00:00:00 +0000] TLS 200 1 1 - admin ok";
    client.write(&connect(forged)).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect(forged)).await;
    drop((client, connection));
    let line = gateway.lines(1).await.remove(0);
    assert!(line.contains("x\\x0A127.0.0.1\\x20[22/Nov/2026"), "{line}");
}
