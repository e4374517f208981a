//! MQTT over QUIC: the same identities, rules and reasons as over TLS, on the first stream of the client.

use std::fmt::Write as _;
use std::time::Duration;

use portcullis_gateway::Successor;
use portcullis_testkit::{
    Broker, Client, Pki, QuicClient, TestGateway, UdpPath, advance, connack, connect, connect_v5, eventually, publish,
    soon, tls_config,
};
use quinn::{ConnectionError, VarInt};
use rustls::ClientConfig;
use rustls::version::TLS13;

use crate::relay_threads::moved;

const HOME: [u8; 4] = [127, 0, 0, 1];

fn quic(lines: &str) -> String {
    format!("{}{lines}\n", TestGateway::LISTENER.replace("\"tls\"", "\"quic\""))
}

async fn start(lines: &str, rest: &str, pki: &Pki, broker: &Broker) -> TestGateway {
    TestGateway::start(&configuration(lines, rest, pki, broker)).await
}

fn configuration(lines: &str, rest: &str, pki: &Pki, broker: &Broker) -> String {
    format!("{}{}{rest}{}[access_log]\nformat = \"json\"\n", quic(lines), pki.listener_tls(), broker.upstream())
}

fn mqtt(pki: &Pki, device: Option<&str>) -> ClientConfig {
    let mut config = tls_config(pki, device, &[&TLS13]);
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    config
}

async fn client(gateway: &TestGateway, pki: &Pki) -> QuicClient {
    QuicClient::connect(HOME, gateway.address(), mqtt(pki, Some("thing001"))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_goes_on_on_a_thread_that_relays_and_ends_as_over_tls() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let rules = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn', 'tls.version == \"TLSv1.3\"', 'tls.alpn == \"mqtt\"', 'tls.sni == \"localhost\"']\n";
    let gateway = start("", rules, &pki, &broker).await;
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    let packet = connect("thing001");
    let mut connection = stream.greet(&broker, &packet).await;
    moved(&gateway, 1).await;
    // More than the windows have room for, both ways.
    let message = publish(4, 0, "t", None, &[], &vec![7; 1 << 20]);
    tokio::join!(stream.write(&message), connection.expect(&message));
    let echo = async {
        connection.write(&message).await;
        connection
    };
    let ((), mut connection) = tokio::join!(stream.expect(&message), echo);
    // It says goodbye, and closes the connection at once: nothing that it has sent before is lost.
    stream.write(b"\xe0\x00").await;
    soon("the acknowledgement of DISCONNECT", connection.expect(b"\xe0\x00")).await;
    device.connection.close(VarInt::from_u32(0), b"");
    assert!(connection.read_to_end().await.is_empty());
    drop(connection);
    assert_eq!(gateway.field(1, "reason").await, "ok");
    assert_eq!(gateway.field(1, "protocol").await, "QUIC");
    assert_eq!(gateway.field(1, "bytes_received").await, (packet.len() + message.len() + 2).to_string());
    assert_eq!(gateway.field(1, "bytes_sent").await, (4 + message.len()).to_string());
    assert!(gateway.field(1, "cert_subject").await.contains("thing001"));
    assert_eq!(gateway.field(1, "tls_version").await, "TLSv1.3");
}

#[tokio::test]
async fn what_a_client_has_sent_before_it_closes_reaches_the_broker() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("", "", &pki, &broker).await;
    for _ in 0..20 {
        let device = client(&gateway, &pki).await;
        let mut stream = device.open().await;
        let mut connection = stream.greet(&broker, &connect("thing001")).await;
        let message = publish(4, 0, "t", None, &[], &vec![7; 30_000]);
        stream.write(&[&message[..], b"\xe0\x00"].concat()).await;
        // Its library has sent all of it, in one flight with the end of the stream.
        stream.shutdown().await;
        connection.expect(&message).await;
        connection.expect(b"\xe0\x00").await;
    }
}

#[tokio::test]
async fn certificates_decide_as_over_tls() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("", "", &pki, &broker).await;
    // In TLS 1.3, the client learns that its certificate is rejected after its own handshake.
    let ended = async |config: ClientConfig| match QuicClient::connect(HOME, gateway.address(), config).await {
        Ok(client) => soon("the end", client.connection.closed()).await,
        Err(error) => error,
    };
    let other = Pki::named("other");
    let mut foreign = mqtt(&pki, None);
    foreign.client_auth_cert_resolver = tls_config(&other, Some("thing001"), &[&TLS13]).client_auth_cert_resolver;
    let without_alpn = tls_config(&pki, Some("thing001"), &[&TLS13]);
    let mut wrong_alpn = mqtt(&pki, Some("thing001"));
    wrong_alpn.alpn_protocols = vec![b"h3".to_vec()];
    let cases = [
        (mqtt(&pki, None), "no_certificate", 0x174),
        (foreign, "unknown_ca", 0x130),
        (without_alpn, "tls_parameters", 0x178),
        (wrong_alpn, "tls_parameters", 0x178),
    ];
    for (number, (config, reason, code)) in (1..).zip(cases) {
        let error = ended(config).await;
        let ConnectionError::ConnectionClosed(close) = &error else { panic!("{error:?}") };
        assert_eq!((gateway.field(number, "reason").await.as_str(), u64::from(close.error_code)), (reason, code));
        assert_eq!(gateway.field(number, "stage").await, "handshake");
    }
    assert!(gateway.lines(4).await[1].contains("thing001"), "whose certificate it is");
    // A client that does not trust the gateway.
    let error = ended(mqtt(&other, None)).await;
    assert!(matches!(error, ConnectionError::TransportError(_)), "{error:?}");
    assert_eq!(gateway.field(5, "reason").await, "server_certificate_refused");
}

#[tokio::test]
async fn sessions_are_resumed_and_revoked_certificates_are_not() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    pki.device("thing001");
    let tables =
        format!("{}{}{}[access_log]\nformat = \"json\"\n", quic(""), pki.listener_tls_with_crl(), broker.upstream());
    let gateway = TestGateway::start(&tables).await;
    let config = QuicClient::config(mqtt(&pki, Some("thing001")));
    for resumed in ["false", "true"] {
        let number = if resumed == "true" { 2 } else { 1 };
        let device = QuicClient::connect_with(HOME, gateway.address(), config.clone()).await.unwrap();
        let mut stream = device.open().await;
        let mut connection = stream.greet(&broker, &connect("a")).await;
        stream.write(b"\xe0\x00").await;
        stream.shutdown().await;
        connection.expect(b"\xe0\x00").await;
        drop((stream, device, connection));
        assert_eq!(gateway.field(number, "tls_resumed").await, resumed);
    }
    let device = QuicClient::connect_with(HOME, gateway.address(), config.clone()).await.unwrap();
    let mut stream = device.open().await;
    let _connection = stream.greet(&broker, &connect("a")).await;
    pki.revoke("thing001");
    gateway.gateway.run_maintenance().await;
    soon("the end", device.connection.closed()).await;
    assert_eq!(gateway.field(3, "reason").await, "session_revoked");
    let device = QuicClient::connect_with(HOME, gateway.address(), config).await;
    if let Ok(device) = device {
        soon("the end", device.connection.closed()).await;
    }
    assert_eq!(gateway.field(4, "reason").await, "certificate_revoked");
}

#[tokio::test]
async fn the_cipher_suite_in_the_log_is_the_one_in_use() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("", "[listener.connect]\nusername = 'tls.cipher'\n", &pki, &broker).await;
    pki.device("thing001");
    for wanted in ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"] {
        portcullis_gateway::crypto::install_crypto_provider();
        let mut provider =
            rustls::crypto::CryptoProvider::clone(rustls::crypto::CryptoProvider::get_default().unwrap());
        let name = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
        let all = provider.cipher_suites.clone();
        provider.cipher_suites.retain(|suite| name(suite) == wanted);
        let mut config = mqtt(&pki, Some("thing001"));
        let builder = ClientConfig::builder_with_provider(provider.into()).with_protocol_versions(&[&TLS13]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::pem::PemObject::from_pem_file(pki.root()).unwrap()).unwrap();
        let resolver = config.client_auth_cert_resolver.clone();
        config = builder.with_root_certificates(roots).with_client_cert_resolver(resolver);
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        // The first packets of QUIC have a suite of their own.
        let initial = all.iter().find_map(|suite| match suite.tls13() {
            Some(suite) if suite.common.suite == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256 => suite.quic_suite(),
            _ => None,
        });
        let tls = quinn::crypto::rustls::QuicClientConfig::with_initial(config.into(), initial.unwrap()).unwrap();
        let config = quinn::ClientConfig::new(std::sync::Arc::new(tls));
        let device = QuicClient::connect_with(HOME, gateway.address(), config).await.unwrap();
        let mut stream = device.open().await;
        stream.write(&connect("a")).await;
        let mut connection = broker.accept().await;
        let mut sent = connection.read(14).await;
        assert_eq!(sent[8], 4);
        sent = connection.read(usize::from(sent[1]) + 2 - 14).await;
        assert!(String::from_utf8_lossy(&sent).contains(wanted), "{wanted}: {}", String::from_utf8_lossy(&sent));
    }
}

#[tokio::test]
async fn a_client_has_one_stream() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("connect_timeout = \"1s\"", "", &pki, &broker).await;
    // None.
    let device = client(&gateway, &pki).await;
    soon("the end", device.connection.closed()).await;
    assert_eq!(gateway.field(1, "reason").await, "quic_stream_missing");
    // One that has nothing on it.
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    stream.write(b"\x10").await;
    soon("the end", device.connection.closed()).await;
    assert_eq!(gateway.field(2, "reason").await, "connect_timeout");
    // A second one, of either kind, is not for it to open.
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    let mut connection = stream.greet(&broker, &connect("a")).await;
    let waits = Duration::from_millis(200);
    assert!(tokio::time::timeout(waits, device.connection.open_bi()).await.is_err());
    assert!(tokio::time::timeout(waits, device.connection.open_uni()).await.is_err());
    assert!(device.connection.max_datagram_size().is_none(), "no datagrams");
    // Reset, it is lost: the broker publishes the will.
    device.connection.close(VarInt::from_u32(7), b"");
    assert!(connection.read_to_end().await.is_empty());
    drop(connection);
    assert_eq!(gateway.field(3, "reason").await, "ok");
}

#[tokio::test]
async fn address_rules_apply_again_when_a_client_migrates() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let policy = "[listener.publish]\nuser_properties = { from = 'conn.remote_addr' }\n";
    let gateway = start("deny = [\"127.0.0.3\"]", policy, &pki, &broker).await;
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    let packet = connect_v5("a");
    stream.write(&packet).await;
    let mut connection = broker.accept().await;
    connection.expect(&packet).await;
    connection.write(&connack(5)).await;
    let mut answer = Vec::new();
    while answer.len() < 5 {
        answer.extend(stream.try_read(64).await.unwrap());
    }
    device.migrate([127, 0, 0, 2]);
    let message = publish(5, 0, "t", None, &[], b"x");
    let mut sent_from = String::new();
    let begin = std::time::Instant::now();
    while sent_from != "127.0.0.2" {
        stream.write(&message).await;
        let head = connection.read(2).await;
        let body = connection.read(usize::from(head[1])).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        sent_from = text.split("from").nth(1).unwrap()[2..].trim_end_matches('x').to_owned();
        assert!(sent_from == "127.0.0.1" || sent_from == "127.0.0.2", "{sent_from}");
        assert!(begin.elapsed() < Duration::from_secs(10));
        gateway.gateway.run_maintenance().await;
    }
    device.migrate([127, 0, 0, 3]);
    let end = soon("the end", async {
        loop {
            let _ = stream.try_write(&message).await;
            gateway.gateway.run_maintenance().await;
            if tokio::time::timeout(Duration::from_millis(20), device.connection.closed()).await.is_ok() {
                break;
            }
        }
    });
    end.await;
    assert_eq!(gateway.field(1, "reason").await, "session_address_denied");
    assert_eq!(gateway.field(1, "remote_addr").await, "127.0.0.3");
}

#[tokio::test]
async fn a_client_that_vanishes_is_found_out() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("quic = { keepalive = \"1s\", idle_timeout = \"3s\" }", "", &pki, &broker).await;
    let path = UdpPath::to(gateway.address()).await;
    let device = QuicClient::connect(HOME, path.address, mqtt(&pki, Some("thing001"))).await.unwrap();
    let mut stream = device.open().await;
    let mut connection = stream.greet(&broker, &connect("a")).await;
    // As long as it is there, its silence does not matter.
    for _ in 0..5 {
        let received = || device.connection.stats().udp_rx.datagrams;
        let before = received();
        advance(Duration::from_secs(1));
        eventually("a question of the gateway's", || (received() > before).then_some(())).await;
    }
    stream.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    path.cut();
    soon("the end", async {
        loop {
            advance(Duration::from_secs(1));
            if tokio::time::timeout(Duration::from_millis(50), connection.read_to_end()).await.is_ok() {
                break;
            }
        }
    })
    .await;
    drop(connection);
    assert_eq!(gateway.field(1, "reason").await, "quic_idle_timeout");
}

#[tokio::test]
async fn a_handshake_that_does_not_go_on_ends_in_time() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let listener = format!("{}{}handshake_timeout = \"1s\"\n", quic(""), pki.listener_tls());
    let gateway =
        TestGateway::start(&format!("{listener}{}[access_log]\nformat = \"json\"\n", broker.upstream())).await;
    // The first datagrams of a client that then vanishes.
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = QuicClient::config(mqtt(&pki, Some("thing001")));
    let connecting = tokio::spawn(QuicClient::connect_with(HOME, socket.local_addr().unwrap(), config));
    let mut datagram = [0; 2048];
    for _ in 0..2 {
        let (len, _) = soon("a datagram", socket.recv_from(&mut datagram)).await.unwrap();
        socket.send_to(&datagram[..len], gateway.address()).await.unwrap();
    }
    assert_eq!(gateway.field(1, "reason").await, "handshake_timeout");
    connecting.abort();
}

#[tokio::test]
async fn where_addresses_are_limited_clients_prove_theirs_first() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let limit = "[listener.limits]\nconnections_per_address = 1\n";
    let gateway = start("", limit, &pki, &broker).await;
    // Somebody sends first datagrams with the address of another: nothing is counted for that, and no line is logged.
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = QuicClient::config(mqtt(&pki, Some("thing001")));
    let connecting = tokio::spawn(QuicClient::connect_with(HOME, socket.local_addr().unwrap(), config));
    let mut datagram = [0; 2048];
    let (len, _) = soon("a datagram", socket.recv_from(&mut datagram)).await.unwrap();
    for _ in 0..3 {
        socket.send_to(&datagram[..len], gateway.address()).await.unwrap();
        // Retry: a long header of type 3 [RFC 9000, 17.2.5].
        let (_, _) = soon("an answer", socket.recv_from(&mut datagram)).await.unwrap();
        if datagram[0] & 0xf0 == 0xf0 {
            break;
        }
    }
    assert_eq!(datagram[0] & 0xf0, 0xf0, "a Retry");
    connecting.abort();
    // Who does is served.
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    let _connection = stream.greet(&broker, &connect("a")).await;
    let second = QuicClient::connect(HOME, gateway.address(), mqtt(&pki, Some("thing001"))).await;
    if let Ok(second) = second {
        soon("the end", second.connection.closed()).await;
    }
    assert_eq!(gateway.field(1, "reason").await, "quota_exceeded");
}

#[tokio::test]
async fn udp_and_tcp_share_a_port_and_a_drain_tells_clients() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let bind = format!("bind = \"127.0.0.1:{port}\"");
    let mut configuration = String::new();
    for (name, protocol) in [("devices", "quic"), ("tcp", "tls")] {
        let listener = TestGateway::LISTENER.replace("\"devices\"", &format!("{name:?}"));
        let listener = listener.replace("\"tls\"", &format!("{protocol:?}")).replace("bind = \"127.0.0.1:0\"", &bind);
        write!(configuration, "{listener}{}", pki.listener_tls()).unwrap();
    }
    let gateway =
        TestGateway::start(&format!("{configuration}{}[access_log]\nformat = \"json\"\n", broker.upstream())).await;
    let mut over_tls = Client::tls(gateway.address(), &pki, "thing002").await;
    let _other = over_tls.greet(&broker, &connect("b")).await;
    let device = client(&gateway, &pki).await;
    let mut stream = device.open().await;
    let packet = connect_v5("a");
    stream.write(&packet).await;
    let mut connection = broker.accept().await;
    connection.expect(&packet).await;
    connection.write(&connack(5)).await;
    stream.expect(&connack(5)).await;
    gateway.gateway.drain(Successor::Others).await;
    stream.expect(b"\xe0\x02\x8b\x00").await;
    soon("the end", device.connection.closed()).await;
    assert!(matches!(device.connection.close_reason(), Some(ConnectionError::ApplicationClosed(_))));
}

#[tokio::test]
async fn clients_that_leave_before_they_open_a_stream_are_to_blame() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let gateway = start("", "", &pki, &broker).await;
    for number in 1..=5 {
        let device = client(&gateway, &pki).await;
        // Until the gateway waits for the stream.
        eventually("the handshake", || (gateway.gateway.connections() == 1).then_some(())).await;
        device.connection.close(VarInt::from_u32(number), b"");
        let number = number as usize;
        assert_eq!(gateway.field(number, "reason").await, "closed_before_connect");
        assert_eq!(gateway.field(number, "blame").await, "client");
    }
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn a_listener_that_a_reload_removes_and_adds_again_serves_with_its_sessions() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let quic = configuration("", "", &pki, &broker).replace("127.0.0.1:0", &port.to_string());
    let gateway = TestGateway::start(&quic).await;
    let connect_device = || QuicClient::connect(HOME, port, mqtt(&pki, Some("thing001")));
    let device = connect_device().await.unwrap();
    let mut stream = device.open().await;
    let mut connection = stream.greet(&broker, &connect("a")).await;
    gateway.write(&quic.replace("\"quic\"", "\"tls\""));
    gateway.gateway.reload().await.unwrap();
    assert!(connect_device().await.is_err(), "new clients are refused, and not left alone");
    stream.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    gateway.write(&quic);
    gateway.gateway.reload().await.unwrap();
    let second = connect_device().await.unwrap();
    let mut other = second.open().await;
    let _other = other.greet(&broker, &connect("b")).await;
    stream.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
}
