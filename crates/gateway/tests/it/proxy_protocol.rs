//! The PROXY protocol, in front of listeners and towards brokers.

use std::net::SocketAddr;
use std::time::Duration;

use portcullis_gateway::Runtime;
use portcullis_testkit::{
    Broker, BrokerConnection, Client, Pki, TestGateway, advance, connack, connect, connect_as, password_file,
    tls_config,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LOCAL: &str = "from = [\"127.0.0.1\"]";

/// A plain listener with this `proxy_protocol`, and keys of its own.
fn plain(proxy: &str, keys: &str) -> String {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    format!("{listener}proxy_protocol = {{ {proxy} }}\n{keys}\n")
}

async fn start(listener: &str, broker: &Broker) -> TestGateway {
    TestGateway::start(&format!("{listener}{}[access_log]\nformat = \"json\"\n", broker.upstream())).await
}

/// Version 2, PROXY, with TLVs.
fn v2(from: [u8; 4], tlvs: &[&[u8]]) -> Vec<u8> {
    let tlvs = tlvs.concat();
    let len = u16::try_from(12 + tlvs.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x21, 0x11], &len, &from, &[198, 51, 100, 1], &[0x12, 0x67, 0x22, 0xB3], &tlvs].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// What HAProxy says of a certificate.
fn ssl(flags: u8, verify: u8, cn: &str) -> Vec<u8> {
    tlv(0x20, &[&[flags, 0, 0, 0, verify][..], &tlv(0x21, b"TLSv1.3"), &tlv(0x22, cn.as_bytes())].concat())
}

/// Sends this at once, and the client's CONNECT behind it. Returns what the gateway answers until it closes.
async fn rejected(gateway: &TestGateway, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::tcp(gateway.address()).await;
    let _ = client.try_write(&[bytes, &connect("a")].concat()).await;
    client.read_to_end().await
}

async fn session(gateway: &TestGateway, broker: &Broker, header: &[u8]) -> (Client, BrokerConnection) {
    let mut client = Client::tcp(gateway.address()).await;
    client.write(header).await;
    let connection = client.greet(broker, &connect("a")).await;
    (client, connection)
}

#[tokio::test]
async fn rules_limits_bans_and_logs_use_the_address_in_the_header() {
    let broker = Broker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let users = password_file(dir.path(), "users", &[("thing", "secret")]);
    let keys = "deny = [\"192.0.2.0/24\"]\nauthenticate = [\"users\"]\n[[listener.ban]]\non = [\"failure\"]\ncount = 2\n\
                [listener.limits]\nconnections_per_address = 1\n";
    let gateway = start(&format!("{}{users}", plain(LOCAL, keys)), &broker).await;
    let (denied, guilty, innocent) = ([192, 0, 2, 7], [203, 0, 113, 7], [203, 0, 113, 8]);

    assert!(rejected(&gateway, &v2(denied, &[])).await.is_empty());
    assert_eq!(gateway.field(1, "reason").await, "address_denied");
    assert_eq!(gateway.field(1, "remote_addr").await, "192.0.2.7");

    let packet = connect_as("a", "thing", b"secret");
    let mut client = Client::tcp(gateway.address()).await;
    // As they come: all in one segment.
    client.write(&[v2(innocent, &[&tlv(5, b"7F:1")]), packet.clone()].concat()).await;
    let mut connection = broker.accept().await;
    connection.expect(&packet).await;
    connection.write(&connack(4)).await;
    client.expect(&connack(4)).await;

    assert_eq!(rejected(&gateway, &v2(innocent, &[])).await, b"\x20\x02\x00\x03", "a second of one address");
    assert_eq!(gateway.field(2, "reason").await, "quota_exceeded");
    for lines in 3..6 {
        rejected(&gateway, &v2(guilty, &[])).await;
        assert_eq!(gateway.field(lines, "remote_addr").await, "203.0.113.7");
    }
    rejected(&gateway, &v2(guilty, &[])).await;
    assert_eq!(gateway.field(6, "reason").await, "banned");
    rejected(&gateway, &v2([203, 0, 113, 9], &[])).await;
    assert_eq!(gateway.field(7, "reason").await, "unknown_client", "nobody else is banned");

    client.write(b"\xe0\x00").await;
    connection.expect(b"\xe0\x00").await;
    drop((client, connection));
    assert_eq!(gateway.field(8, "remote_addr").await, "203.0.113.8");
    assert_eq!(gateway.field(8, "peer_addr").await, "127.0.0.1");
    assert_eq!(gateway.field(8, "proxy_id").await, "7F:1");
}

#[tokio::test]
async fn a_header_is_believed_from_the_balancer_alone() {
    let broker = Broker::start().await;
    let others = "from = [\"10.0.0.0/8\"]";
    for (proxy, header, reason) in [
        (others.to_owned(), v2([203, 0, 113, 7], &[]), "proxy_header_untrusted"),
        (others.to_owned(), Vec::new(), "proxy_header_untrusted"),
        (format!("{others}, required = false"), v2([203, 0, 113, 7], &[]), "proxy_header_untrusted"),
        (format!("{others}, required = false"), b"PROXY UNKNOWN\r\n".to_vec(), "proxy_header_untrusted"),
        (LOCAL.to_owned(), Vec::new(), "proxy_header_missing"),
        (format!("{LOCAL}, required = false"), Vec::new(), "proxy_header_missing"),
        (LOCAL.to_owned(), b"PROXY TCP4 203.0.113.7 198.51.100.1 1\r\n".to_vec(), "proxy_header_invalid"),
    ] {
        let gateway = start(&plain(&proxy, ""), &broker).await;
        assert!(rejected(&gateway, &header).await.is_empty());
        assert_eq!(gateway.field(1, "reason").await, reason, "{proxy}");
        assert_eq!(gateway.field(1, "remote_addr").await, "127.0.0.1");
    }
    assert!(broker.is_left_alone().await);
    // Clients that connect without a balancer.
    let gateway = start(&plain(&format!("{others}, required = false"), ""), &broker).await;
    drop(session(&gateway, &broker, b"").await);
    assert_eq!(gateway.field(1, "remote_addr").await, "127.0.0.1");
    // Without `proxy_protocol`, a header is no CONNECT.
    let gateway = start(&TestGateway::LISTENER.replace("\"tls\"", "\"tcp\""), &broker).await;
    rejected(&gateway, &v2([203, 0, 113, 7], &[])).await;
    assert_eq!(gateway.field(1, "reason").await, "not_connect");
}

#[tokio::test]
async fn local_is_the_balancer_itself() {
    let broker = Broker::start().await;
    let local = [SIGNATURE, &[0x20, 0, 0, 0]].concat();
    let gateway = start(&plain(LOCAL, "deny = [\"127.0.0.1\"]"), &broker).await;
    rejected(&gateway, &local).await;
    assert_eq!(gateway.field(1, "reason").await, "address_denied");
    let gateway = start(&plain(LOCAL, ""), &broker).await;
    drop(session(&gateway, &broker, &local).await);
    assert_eq!(gateway.field(1, "remote_addr").await, "127.0.0.1");
    assert_eq!(gateway.field(1, "peer_addr").await, "null", "it has named no client");
}

#[tokio::test]
async fn silent_balancers_have_a_deadline_and_count_as_connections() {
    let broker = Broker::start().await;
    let gateway = start(&plain(LOCAL, "max_connections = 1\nconnect_timeout = \"5s\""), &broker).await;
    for sent in [b"".as_slice(), b"PROXY TCP4 203.0.113.7 "] {
        let lines = if sent.is_empty() { 0 } else { 2 };
        let mut slow = Client::tcp(gateway.address()).await;
        slow.write(sent).await;
        // The only place is taken.
        while !Client::tcp(gateway.address()).await.read_to_end().await.is_empty() {}
        assert_eq!(gateway.field(lines + 1, "reason").await, "too_many_connections");
        advance(Duration::from_secs(6));
        slow.read_to_end().await;
        assert_eq!(gateway.field(lines + 2, "reason").await, "proxy_header_missing");
    }
}

#[tokio::test]
async fn tls_begins_behind_the_header() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    for proxy in [LOCAL, "from = [\"10.0.0.0/8\"], required = false"] {
        let listener = format!("{}proxy_protocol = {{ {proxy} }}\n{}", TestGateway::LISTENER, pki.listener_tls());
        let gateway = start(&listener, &broker).await;
        let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
        if proxy == LOCAL {
            socket.write_all(b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 8883\r\n").await.unwrap();
        }
        let config = tls_config(&pki, Some("thing001"), rustls::ALL_VERSIONS);
        let mut client = Client::try_tls_over(socket, config, "localhost").await.unwrap();
        let connection = client.greet(&broker, &connect("a")).await;
        drop((client, connection));
        let expected = if proxy == LOCAL { "203.0.113.7" } else { "127.0.0.1" };
        assert_eq!(gateway.field(1, "remote_addr").await, expected);
        assert!(gateway.field(1, "cert_subject").await.contains("thing001"));
    }
}

#[tokio::test]
async fn a_certificate_that_the_balancer_verified_identifies_the_client_where_it_may() {
    let broker = Broker::start().await;
    let keys = "[listener.admit]\nrequire = ['mqtt.client_id == proxy.ssl.cn', 'proxy.ssl.verified']\n\
                [listener.connect]\nusername = 'proxy.ssl.cn'";
    let gateway = start(&plain(&format!("{LOCAL}, certificate = true"), keys), &broker).await;
    let from = [203, 0, 113, 7];
    for (lines, header) in
        [v2(from, &[&ssl(7, 0, "b")]), v2(from, &[&ssl(7, 18, "a")]), v2(from, &[])].iter().enumerate()
    {
        assert_eq!(rejected(&gateway, header).await, b"\x20\x02\x00\x05");
        let reason = if lines == 0 { "identity_mismatch" } else { "expression_failed" };
        assert_eq!(gateway.field(lines + 1, "reason").await, reason);
    }
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&v2(from, &[&ssl(7, 0, "a")])).await;
    client.write(&connect("a")).await;
    broker.accept().await.expect(b"\x10\x10\x00\x04MQTT\x04\x82\x00\x3c\x00\x01a\x00\x01a").await;
    drop(client);
    assert_eq!(gateway.field(4, "proxy_cn").await, "a");
}

#[tokio::test]
async fn a_balancer_that_is_no_longer_trusted_loses_its_sessions() {
    let broker = Broker::start().await;
    let gateway = start(&plain(LOCAL, ""), &broker).await;
    let (mut client, _connection) = session(&gateway, &broker, &v2([203, 0, 113, 7], &[])).await;
    let rest = format!("{}[access_log]\nformat = \"json\"\n", broker.upstream());
    gateway.write(&format!("{}{rest}", plain("from = [\"127.0.0.0/8\"]", "")));
    gateway.gateway.reload().await.unwrap();
    let (_other, _connection) = session(&gateway, &broker, &v2([203, 0, 113, 8], &[])).await;
    gateway.write(&format!("{}{rest}", plain("from = [\"10.0.0.0/8\"]", "")));
    gateway.gateway.reload().await.unwrap();
    client.read_to_end().await;
    assert_eq!(gateway.field(2, "reason").await, "session_balancer_untrusted");
}

#[tokio::test]
async fn clients_that_are_connected_directly_end_where_a_header_is_required_now() {
    let broker = Broker::start().await;
    let others = "from = [\"10.0.0.0/8\"]";
    let gateway = start(&plain(&format!("{others}, required = false"), ""), &broker).await;
    let (mut client, _connection) = session(&gateway, &broker, b"").await;
    let rest = format!("{}[access_log]\nformat = \"json\"\n", broker.upstream());
    gateway.write(&format!("{}{rest}", plain(others, "")));
    gateway.gateway.reload().await.unwrap();
    client.read_to_end().await;
    assert_eq!(gateway.field(1, "reason").await, "session_balancer_untrusted");
}

/// Problems of a configuration.
fn problems(configuration: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, configuration).unwrap();
    match Runtime::load(&path, &portcullis_gateway::ProcessState::new()) {
        Ok(loaded) => loaded.diagnostics.render(false),
        Err(problems) => problems.render(false),
    }
}

#[test]
fn mistakes_are_explained() {
    let upstream = "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1\"]\n";
    for (proxy, keys, expected) in [
        ("", "", "`from` is missing"),
        ("from = []", "", "`from` is empty"),
        ("from = [\"0.0.0.0/0\"]", "", "whoever connects from here chooses the address"),
        ("from = [\"all\"]", "", "`all` is no network"),
        (LOCAL, "[listener.admit]\nrequire = ['mqtt.client_id == proxy.ssl.cn']", "`certificate = true`"),
        ("from = [\"127.0.0.1\"], certificate = true", "", "proxy.ssl.verified"),
        (
            "from = [\"127.0.0.1\"], certificate = true",
            "[listener.admit]\nrequire = ['proxy.ssl.verified']",
            "require = ['mqtt.client_id == proxy.ssl.cn']",
        ),
    ] {
        let found = problems(&format!("{}{upstream}", plain(proxy, keys)));
        assert!(found.contains(expected), "{proxy}: {found}");
    }
    let without = format!(
        "{}[listener.admit]\nrequire = ['has(proxy.ssl.cn)']\n{upstream}",
        TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"")
    );
    assert!(problems(&without).contains("`proxy_protocol`"), "{}", problems(&without));
    let bound = "[listener.admit]\nrequire = ['mqtt.client_id == proxy.ssl.cn']";
    let found = problems(&format!("{}{upstream}", plain("from = [\"127.0.0.1\"], certificate = true", bound)));
    assert!(!found.contains("warning"), "{found}");
}

async fn brokers_header(broker: &Broker, len: usize) -> (BrokerConnection, Vec<u8>) {
    let mut connection = broker.accept().await;
    let header = connection.read(len).await;
    (connection, header)
}

#[tokio::test]
async fn brokers_get_the_address_of_the_client_before_its_first_byte() {
    let broker = Broker::start().await;
    for version in ["v1", "v2", "v2-ssl"] {
        let upstream = format!("{}proxy_protocol = \"{version}\"\n", broker.upstream());
        let gateway = TestGateway::plain(&upstream).await;
        let socket = TcpStream::connect(gateway.address()).await.unwrap();
        let (from, listening) = (socket.local_addr().unwrap(), gateway.address());
        let mut client = Client::over(socket);
        client.write(&connect("a")).await;
        let expected = if version == "v1" {
            format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), listening.port()).into_bytes()
        } else {
            let ports = [from.port().to_be_bytes(), listening.port().to_be_bytes()].concat();
            [SIGNATURE, &[0x21, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1], &ports].concat()
        };
        let (mut connection, header) = brokers_header(&broker, expected.len()).await;
        assert_eq!(header, expected);
        connection.expect(&connect("a")).await;
        connection.write(&connack(4)).await;
        client.expect(&connack(4)).await;
    }
}

#[tokio::test]
async fn a_balancers_client_has_its_own_address_at_the_broker_and_no_certificate_of_the_balancer() {
    let broker = Broker::start().await;
    let upstream = format!("{}proxy_protocol = \"v2-ssl\"\n", broker.upstream());
    let listener = plain(&format!("{LOCAL}, certificate = true"), "[listener.admit]\nrequire = ['proxy.ssl.verified']");
    let gateway = TestGateway::start(&format!("{listener}{upstream}")).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&v2([203, 0, 113, 7], &[&ssl(7, 0, "a")])).await;
    client.write(&connect("a")).await;
    let (_, header) = brokers_header(&broker, 28).await;
    assert_eq!(header[12..20], [0x21, 0x11, 0, 12, 203, 0, 113, 7]);
}

#[tokio::test]
async fn the_common_name_is_sent_before_tls_to_the_broker() {
    let (broker, pki) = (Broker::start().await, Pki::new());
    let upstream = format!("{}proxy_protocol = \"v2-ssl\"\n[upstream.tls]\nca = {:?}\n", broker.upstream(), pki.root());
    let gateway = TestGateway::start(&format!("{}{}{upstream}", TestGateway::LISTENER, pki.listener_tls())).await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    client.write(&connect("a")).await;
    let (mut connection, fixed) = brokers_header(&broker, 16).await;
    assert_eq!(fixed[..14], [SIGNATURE, &[0x21, 0x11]].concat());
    let rest = connection.read(usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))).await;
    // The addresses, then the SSL TLV: a certificate in this connection, verified.
    assert_eq!((rest[12], &rest[15..20]), (0x20, &[7, 0, 0, 0, 0][..]));
    let cn = tlv(0x22, b"thing001");
    assert!(rest.windows(cn.len()).any(|window| window == cn), "{}", rest.escape_ascii());
    assert_eq!(connection.read(1).await, [22], "then comes ClientHello");
}

#[tokio::test]
async fn health_checks_are_the_gateways_own() {
    for (version, expected) in [("v1", b"PROXY UNKNOWN\r\n".to_vec()), ("v2", [SIGNATURE, &[0x20, 0, 0, 0]].concat())] {
        let broker = Broker::start().await;
        let address: SocketAddr = broker.address();
        let upstream =
            format!("[[upstream]]\nname = \"brokers\"\nservers = [\"{address}\"]\nproxy_protocol = \"{version}\"\n");
        let _gateway = TestGateway::plain(&upstream).await;
        let (mut connection, header) = brokers_header(&broker, expected.len()).await;
        assert_eq!(header, expected);
        assert_eq!(connection.read(1).await, [0x10]);
    }
}
