//! MQTT over WebSocket, between the request that upgrades the connection and Close.

use std::fmt::Write as _;
use std::time::Duration;

use portcullis_gateway::{ProcessState, Runtime};
use portcullis_testkit::{
    Broker, BrokerConnection, Client, Pki, TestGateway, advance, connack, connect, connect_as, connect_v5, eventually,
    password_file, publish, tls_config,
};
use tokio::net::TcpStream;

use crate::relay_threads::moved;
use crate::tokens::{Issuer, changed, jwks};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A listener for WebSocket without TLS, with these further lines.
fn ws(lines: &str) -> String {
    format!("{}{lines}\n", TestGateway::LISTENER.replace("\"tls\"", "\"ws\""))
}

async fn start(listener: &str, broker: &Broker) -> TestGateway {
    TestGateway::start(&format!("{listener}{}[access_log]\nformat = \"json\"\n", broker.upstream())).await
}

fn request(headers: &str) -> String {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: mqtt\r\n{headers}\r\n"
    )
}

/// A binary frame with this first byte, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    let len = match payload.len() {
        len @ 0..126 => vec![0x80 | u8::try_from(len).unwrap()],
        len => [&[0xFE][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
    };
    [&[first][..], &len, &mask, &masked.collect::<Vec<_>>()].concat()
}

/// A client whose connection is upgraded.
struct WsClient(Client);

impl WsClient {
    async fn upgrade(mut client: Client, headers: &str) -> Self {
        client.write(request(headers).as_bytes()).await;
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
        client.expect(answer.as_bytes()).await;
        Self(client)
    }

    async fn connect(gateway: &TestGateway, headers: &str) -> Self {
        Self::upgrade(Client::tcp(gateway.address()).await, headers).await
    }

    async fn send(&mut self, payload: &[u8]) {
        self.0.write(&frame(0x82, payload)).await;
    }

    /// Receives one frame with this payload.
    async fn expect(&mut self, payload: &[u8]) {
        let len = u8::try_from(payload.len()).unwrap();
        self.0.expect(&[&[0x82, len][..], payload].concat()).await;
    }

    /// Receives Close with this code, and the end of the connection.
    async fn expect_close(&mut self, code: u16) {
        self.0.expect(&[&[0x88, 2][..], &code.to_be_bytes()].concat()).await;
        assert!(self.0.read_to_end().await.is_empty());
    }

    async fn greet(&mut self, broker: &Broker, packet: &[u8]) -> BrokerConnection {
        self.send(packet).await;
        let mut connection = broker.accept().await;
        connection.expect(packet).await;
        let version = packet[8];
        connection.write(&connack(version)).await;
        self.expect(&connack(version)).await;
        connection
    }
}

/// What the gateway answers to a request, until it closes.
async fn answer(gateway: &TestGateway, request: &str) -> String {
    let mut client = Client::tcp(gateway.address()).await;
    client.write(request.as_bytes()).await;
    String::from_utf8(client.read_to_end().await).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_goes_on_on_a_thread_that_relays_and_counts_the_bytes_of_mqtt() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    for protocol in ["ws", "wss"] {
        let tls = if protocol == "wss" { pki.listener_tls() } else { String::new() };
        let listener = format!("{}{tls}", TestGateway::LISTENER.replace("\"tls\"", &format!("\"{protocol}\"")));
        let gateway = start(&listener, &broker).await;
        let socket = TcpStream::connect(gateway.address()).await.unwrap();
        let client = if protocol == "wss" {
            let mut config = tls_config(&pki, Some("thing001"), rustls::ALL_VERSIONS);
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Client::try_tls_over(socket, config, "localhost").await.unwrap()
        } else {
            Client::over(socket)
        };
        let mut client = WsClient::upgrade(client, "").await;
        let packet = connect("a");
        let mut connection = client.greet(&broker, &packet).await;
        moved(&gateway, 1).await;
        let message = publish(4, 0, "t", None, &[], &[7; 300]);
        // Cut over frames, with a ping between them, and two packets in one frame.
        let (first, second) = message.split_at(100);
        client.0.write(&[frame(0x02, first), frame(0x89, b"?"), frame(0x80, second)].concat()).await;
        connection.expect(&message).await;
        client.0.expect(b"\x8a\x01?").await;
        client.send(&[b"\xc0\x00", &message[..]].concat()).await;
        connection.expect(b"\xc0\x00").await;
        connection.expect(&message).await;
        connection.write(b"\xd0\x00").await;
        client.expect(b"\xd0\x00").await;
        client.send(b"\xe0\x00").await;
        client.0.write(&frame(0x88, &1000_u16.to_be_bytes())).await;
        connection.expect(b"\xe0\x00").await;
        assert!(connection.read_to_end().await.is_empty());
        drop(connection);
        client.expect_close(1000).await;
        let sent = packet.len() + 2 * message.len() + 4;
        assert_eq!(gateway.field(1, "bytes_received").await, sent.to_string());
        assert_eq!(gateway.field(1, "bytes_sent").await, (4 + 2).to_string());
        assert_eq!(gateway.field(1, "protocol").await, protocol.to_uppercase());
        assert_eq!(gateway.field(1, "reason").await, "ok");
        let subject = gateway.field(1, "cert_subject").await;
        assert_eq!(subject.contains("thing001"), protocol == "wss", "{subject}");
    }
}

#[tokio::test]
async fn requests_that_are_no_upgrades_are_answered_and_logged() {
    let broker = Broker::start().await;
    let gateway = start(&ws("connect_timeout = \"5s\""), &broker).await;
    for (lines, (request, status, reason, detail)) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "404", "websocket_upgrade_failed", "nothing at this path"),
        ("GET /mqtt HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "426", "websocket_upgrade_failed", "MQTT over WebSocket"),
        (request("").replace("13", "12"), "426", "websocket_upgrade_failed", "version"),
        (request(&"a: b\r\n".repeat(100)), "400", "websocket_upgrade_failed", "too many headers"),
        (request(&format!("a: {}\r\n", "x".repeat(16 << 10))), "400", "websocket_upgrade_failed", "too large"),
        ("x\r\n\r\n".to_owned(), "400", "websocket_upgrade_failed", "not HTTP/1.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = answer(&gateway, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("\r\n\r\n"), "{answer}");
        assert_eq!(gateway.field(lines + 1, "reason").await, reason);
        assert!(gateway.field(lines + 1, "detail").await.contains(detail));
    }
    // MQTT without WebSocket, TLS, and clients that are silent or slow.
    assert!(gateway.refusal(&connect("a")).await.is_empty());
    assert!(gateway.field(7, "detail").await.contains("MQTT without WebSocket"));
    assert!(gateway.refusal(b"\x16\x03\x01\x02\x00\x01").await.is_empty());
    assert_eq!(gateway.field(8, "reason").await, "tls_on_plain_port");
    for (lines, sent) in [(9, b"".as_slice()), (10, b"GET /mqtt HTTP/1.1\r\n")] {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(sent).await;
        eventually("the connection", || (gateway.gateway.connections() == 1).then_some(())).await;
        advance(Duration::from_secs(6));
        client.read_to_end().await;
        assert!(gateway.field(lines, "detail").await.contains("within `connect_timeout`"));
    }
    assert!(broker.is_left_alone().await);
    // After the upgrade, CONNECT has its own time.
    let mut silent = WsClient::connect(&gateway, "").await;
    advance(Duration::from_secs(6));
    silent.expect_close(1008).await;
    assert_eq!(gateway.field(11, "reason").await, "connect_timeout");
}

#[tokio::test]
async fn violations_end_connections_and_sessions_with_their_code() {
    let broker = Broker::start().await;
    let gateway =
        start(&ws("max_connect_size = \"1KiB\"\n[listener.limits]\nmax_packet_size = \"2KiB\""), &broker).await;
    let mut client = WsClient::connect(&gateway, "").await;
    client.0.write(&frame(0x81, &connect("a"))).await;
    client.expect_close(1003).await;
    assert_eq!(gateway.field(1, "reason").await, "websocket_protocol");
    assert!(gateway.field(1, "detail").await.contains("a text frame"));

    let mut client = WsClient::connect(&gateway, "").await;
    client.send(&connect_v5(&"x".repeat(2000))).await;
    client.expect(b"\x20\x03\x00\x95\x00").await;
    client.expect_close(1009).await;

    let mut client = WsClient::connect(&gateway, "").await;
    let mut connection = client.greet(&broker, &connect("a")).await;
    client.0.write(b"\x82\x02\xc0\x00").await;
    client.expect_close(1002).await;
    assert!(connection.read_to_end().await.is_empty(), "nothing of the frame");
    assert_eq!(gateway.field(3, "reason").await, "websocket_protocol");
    assert!(gateway.field(3, "detail").await.contains("not masked"));

    let mut client = WsClient::connect(&gateway, "").await;
    client.send(&connect_v5("b")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect_v5("b")).await;
    connection.write(&connack(5)).await;
    // With the maximum packet size.
    client.expect(b"\x20\x08\x00\x00\x05\x27\x00\x00\x08\x00").await;
    client.send(&publish(5, 0, "t", None, &[], &[0; 3000])).await;
    client.expect(b"\xe0\x02\x95\x00").await;
    client.expect_close(1009).await;
}

#[tokio::test]
async fn credentials_of_the_request_stand_in_for_those_of_connect() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().unwrap());
    let users = password_file(dir.path(), "users", &[("thing", "secret")]);
    let listener = ws("authenticate = [\"users\"]\n[listener.admit]\nrequire = ['mqtt.username == \"thing\"']");
    let gateway = start(&format!("{listener}{users}"), &broker).await;
    // thing:secret
    let mut client = WsClient::connect(&gateway, "Authorization: Basic dGhpbmc6c2VjcmV0\r\n").await;
    client.send(&connect("a")).await;
    broker.accept().await.expect(&connect_as("a", "thing", b"secret")).await;
    // thing:wrong
    let mut client = WsClient::connect(&gateway, "Authorization: Basic dGhpbmc6d3Jvbmc=\r\n").await;
    client.send(&connect("a")).await;
    client.expect(b"\x20\x02\x00\x04").await;
    client.expect_close(1008).await;
    // Those of CONNECT come first.
    let mut client = WsClient::connect(&gateway, "Authorization: Basic dGhpbmc6c2VjcmV0\r\n").await;
    client.send(&connect_as("a", "thing", b"wrong")).await;
    client.expect(b"\x20\x02\x00\x04").await;
}

#[tokio::test]
async fn tokens_come_in_a_header_or_a_cookie() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().unwrap());
    let issuer = Issuer::new("k");
    let (file, token) = (dir.path().join("jwks.json"), issuer.sign(&changed(&serde_json::json!({}))));
    std::fs::write(&file, jwks(&[&issuer])).unwrap();
    for (field, header) in [
        ("field = \"header\"", "Authorization: Bearer "),
        ("field = \"cookie\"\ncookie = \"sid\"", "Cookie: x=y; sid="),
    ] {
        let listener = ws("authenticate = [\"tokens\"]\n[listener.connect]\nclient_id = 'jwt.sub'");
        let table = format!("[[authenticator]]\nname = \"tokens\"\nkind = \"jwt\"\njwks = {file:?}\n{field}\n");
        let gateway = start(&format!("{listener}{table}"), &broker).await;
        let mut client = WsClient::connect(&gateway, &format!("{header}{token}\r\n")).await;
        client.send(&connect("a")).await;
        broker.accept().await.expect(&connect("thing001")).await;
        let mut client = WsClient::connect(&gateway, "").await;
        client.send(&connect("a")).await;
        client.expect(b"\x20\x02\x00\x04").await;
        let mut client = WsClient::connect(&gateway, &format!("{header}{token}\r\n")).await;
        client.send(&connect_as("a", "thing", b"other")).await;
        client.expect(b"\x20\x02\x00\x04").await;
        if field.contains("cookie") {
            let foreign = request("Origin: https://evil.example.com\r\n");
            assert!(answer(&gateway, &foreign).await.starts_with("HTTP/1.1 403 "));
            WsClient::connect(&gateway, "Origin: http://localhost\r\n").await;
        }
    }
}

#[tokio::test]
async fn a_trusted_proxy_names_the_client_for_all_rules() {
    let broker = Broker::start().await;
    let keys = "deny = [\"203.0.113.66\"]\n[listener.websocket]\ntrusted_proxies = [\"127.0.0.1\"]\nheaders = [\"X-Tenant\"]\n\
                [[listener.ban]]\non = [\"failure\"]\ncount = 1\n[listener.limits]\nconnections_per_address = 1\n\
                [listener.admit]\nrequire = ['conn.headers[\"x-tenant\"] == \"acme\"', 'conn.path == \"/mqtt\"']";
    let gateway = start(&ws(keys), &broker).await;
    let headers = |address: &str, tenant: &str| {
        let mut headers = String::new();
        let _ = write!(headers, "X-Forwarded-For: 10.0.0.1, {address}\r\nX-Tenant: {tenant}\r\n");
        headers
    };
    let denied = answer(&gateway, &request(&headers("203.0.113.66", "acme"))).await;
    assert!(denied.starts_with("HTTP/1.1 403 "), "{denied}");
    assert_eq!(gateway.field(1, "reason").await, "address_denied");
    assert_eq!(gateway.field(1, "remote_addr").await, "203.0.113.66");
    assert_eq!(gateway.field(1, "peer_addr").await, "127.0.0.1");

    let mut client = WsClient::connect(&gateway, &headers("203.0.113.7", "acme")).await;
    let _session = client.greet(&broker, &connect("a")).await;
    let mut second = WsClient::connect(&gateway, &headers("203.0.113.7", "acme")).await;
    second.send(&connect("b")).await;
    second.expect(b"\x20\x02\x00\x03").await;
    second.expect_close(1008).await;
    assert_eq!(gateway.field(2, "reason").await, "quota_exceeded");

    for lines in 3..5 {
        let mut guilty = WsClient::connect(&gateway, &headers("203.0.113.8", "other")).await;
        guilty.send(&connect("c")).await;
        guilty.expect(b"\x20\x02\x00\x05").await;
        guilty.expect_close(1008).await;
        assert_eq!(gateway.field(lines, "reason").await, "identity_mismatch");
    }
    assert!(answer(&gateway, &request(&headers("203.0.113.8", "acme"))).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(gateway.field(5, "reason").await, "banned");
    let mut innocent = WsClient::connect(&gateway, &headers("203.0.113.9", "acme")).await;
    let _other = innocent.greet(&broker, &connect("d")).await;

    // The proxy is no longer trusted: its sessions end.
    let rest = format!("{}[access_log]\nformat = \"json\"\n", broker.upstream());
    gateway.write(&format!("{}{rest}", ws(&keys.replace("\"127.0.0.1\"", "\"10.0.0.1\""))));
    gateway.gateway.reload().await.unwrap();
    innocent.expect_close(1008).await;
    client.expect_close(1008).await;
    assert_eq!(gateway.field(7, "reason").await, "session_balancer_untrusted");
}

#[tokio::test]
async fn a_proxy_behind_a_balancer_is_trusted_by_its_own_list() {
    let broker = Broker::start().await;
    let listener = |proxies: &str| {
        ws(&format!(
            "proxy_protocol = {{ from = [\"127.0.0.1\"] }}\n[listener.websocket]\ntrusted_proxies = [\"{proxies}\"]"
        ))
    };
    let gateway = start(&listener("10.0.0.1"), &broker).await;
    let mut socket = Client::tcp(gateway.address()).await;
    socket.write(b"PROXY TCP4 10.0.0.1 198.51.100.1 4711 8883\r\n").await;
    let mut client = WsClient::upgrade(socket, "X-Forwarded-For: 203.0.113.7\r\n").await;
    let _session = client.greet(&broker, &connect("a")).await;
    // What fails before the request has come is the proxy's.
    let mut failing = Client::tcp(gateway.address()).await;
    failing.write(b"PROXY TCP4 10.0.0.1 198.51.100.1 4711 8883\r\nx\r\n\r\n").await;
    failing.read_to_end().await;
    assert_eq!(gateway.field(1, "remote_addr").await, "10.0.0.1");
    assert_eq!(gateway.field(1, "peer_addr").await, "127.0.0.1");
    let rest = format!("{}[access_log]\nformat = \"json\"\n", broker.upstream());
    gateway.write(&format!("{}{rest}", listener("127.0.0.1")));
    gateway.gateway.reload().await.unwrap();
    client.expect_close(1008).await;
    assert_eq!(gateway.field(2, "reason").await, "session_balancer_untrusted");
    assert_eq!(gateway.field(2, "remote_addr").await, "203.0.113.7");
}

#[tokio::test]
async fn pages_of_an_origin_that_a_reload_removes_end() {
    let broker = Broker::start().await;
    let listener = |origin: &str| ws(&format!("[listener.websocket]\norigins = [\"https://{origin}.example.com\"]"));
    let gateway = start(&listener("app"), &broker).await;
    let mut page = WsClient::connect(&gateway, "Origin: https://app.example.com\r\n").await;
    let _session = page.greet(&broker, &connect("a")).await;
    let mut program = WsClient::connect(&gateway, "").await;
    let mut connection = program.greet(&broker, &connect("b")).await;
    let mut pending = WsClient::connect(&gateway, "Origin: https://app.example.com\r\n").await;
    let rest = format!("{}[access_log]\nformat = \"json\"\n", broker.upstream());
    gateway.write(&format!("{}{rest}", listener("new")));
    gateway.gateway.reload().await.unwrap();
    page.expect_close(1008).await;
    let _ = pending.0.try_write(&frame(0x82, &connect("c"))).await;
    pending.0.read_to_end().await;
    for line in gateway.lines(2).await {
        assert!(line.contains("session_origin_denied"), "{line}");
    }
    program.send(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    // A browser adds what it remembers of basic authentication to the requests of any page.
    let gateway = start(&ws(""), &broker).await;
    let basic = "Authorization: Basic dGhpbmc6c2VjcmV0\r\n";
    let foreign = request(&format!("Origin: https://evil.example.com\r\n{basic}"));
    assert!(answer(&gateway, &foreign).await.starts_with("HTTP/1.1 403 "));
    WsClient::connect(&gateway, &format!("Origin: http://localhost\r\n{basic}")).await;
    // So does a reload that removes `origins` altogether.
    let gateway = start(&listener("app"), &broker).await;
    let origin = "Origin: https://app.example.com\r\n";
    let mut with_basic = WsClient::connect(&gateway, &format!("{origin}{basic}")).await;
    let _session = with_basic.greet(&broker, &connect_as("a", "thing", b"secret")).await;
    let mut without = WsClient::connect(&gateway, origin).await;
    let mut connection = without.greet(&broker, &connect("b")).await;
    gateway.write(&format!("{}{rest}", ws("")));
    gateway.gateway.reload().await.unwrap();
    with_basic.expect_close(1008).await;
    assert_eq!(gateway.field(1, "reason").await, "session_origin_denied");
    without.send(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn silent_clients_of_a_proxy_leave_room_for_its_others() {
    let broker = Broker::start().await;
    let gateway =
        start(&ws("max_connections = 150\n[listener.websocket]\ntrusted_proxies = [\"127.0.0.1\"]"), &broker).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(WsClient::connect(&gateway, "X-Forwarded-For: 203.0.113.7\r\n").await);
    }
    let mut other = WsClient::connect(&gateway, "X-Forwarded-For: 203.0.113.8\r\n").await;
    let _session = other.greet(&broker, &connect("a")).await;
    // Those that are too many are given up sooner.
    advance(Duration::from_secs(2));
    let mut closed = 0;
    for client in &mut silent {
        let end = tokio::time::timeout(Duration::from_millis(20), client.0.read_to_end()).await;
        closed += usize::from(end.is_ok());
    }
    assert!((20..70).contains(&closed), "{closed}");
    for line in gateway.lines(closed).await {
        assert!(line.contains("too_many_pending") && line.contains("203.0.113.7"), "{line}");
    }
}

#[test]
fn mistakes_are_explained() {
    let problems = |listener: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let upstream = "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1\"]\n";
        std::fs::write(&path, format!("{listener}{upstream}")).unwrap();
        match Runtime::load(&path, &ProcessState::new()) {
            Ok(loaded) => loaded.diagnostics.render(false),
            Err(problems) => problems.render(false),
        }
    };
    let tcp = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    for (listener, expected) in [
        (
            format!("{tcp}[listener.websocket]\npath = \"/mqtt\"\n"),
            "[listener.websocket] has no effect with `protocol = \"tcp\"`",
        ),
        (tcp.replace("\"tcp\"", "\"wss\""), "a wss listener requires [listener.tls]"),
        (ws("[listener.tls]\ncertificate = \"x\""), "[listener.tls] has no effect with `protocol = \"ws\"`"),
        (ws("[listener.websocket]\npath = \"mqtt\""), "`mqtt` is not the path of a request"),
        (ws("[listener.websocket]\norigins = [\"*\"]"), "`*` is not an origin"),
        (ws("[listener.websocket]\norigins = [\"https://a.example.com/app\"]"), "is not an origin"),
        (ws("[listener.websocket]\nheaders = [\"Authorization\"]"), "carries credentials"),
        (ws("[listener.websocket]\nheaders = [\"a b\"]"), "is not the name of a header"),
        (ws("[listener.websocket]\ntrusted_proxies = [\"0.0.0.0/0\"]"), "every client chooses the address"),
        (ws("[listener.websocket]\norigin = [\"https://a\"]"), "did you mean `origins`?"),
        (format!("{tcp}[listener.admit]\nrequire = ['conn.path == \"/mqtt\"']\n"), "`protocol = \"ws\"` or \"wss\""),
    ] {
        let found = problems(&listener);
        assert!(found.contains(expected), "{listener}: {found}");
    }
}
