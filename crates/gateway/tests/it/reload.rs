//! Reloads: sessions stay connected, new connections follow the new configuration, an invalid file changes nothing.

use std::sync::Arc;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connack, connect, eventually, tls_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn sessions_stay_and_new_connections_follow_the_new_rules() {
    let (old, new) = (Broker::start().await, Broker::start().await);
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let gateway = TestGateway::start(&format!("{listener}{}", old.upstream())).await;
    let address = gateway.address();
    let mut before = Client::tcp(address).await;
    before.write(&connect("before")).await;
    let mut session = old.accept().await;
    session.expect(&connect("before")).await;
    session.write(&connack(4)).await;
    before.expect(&connack(4)).await;

    let admit = "[listener.admit]\nrequire = ['mqtt.client_id == \"after\"']\n";
    gateway.write(&format!("{listener}{admit}{}", new.upstream()));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(gateway.address(), address, "the socket is the same");
    let mut refused = Client::tcp(address).await;
    refused.write(&connect("before")).await;
    assert_eq!(refused.read_to_end().await, b"\x20\x02\x00\x05");
    let mut after = Client::tcp(address).await;
    after.write(&connect("after")).await;
    new.accept().await.expect(&connect("after")).await;

    before.write(b"\xc0\x00").await;
    session.expect(b"\xc0\x00").await;
    session.write(b"\xd0\x00").await;
    before.expect(b"\xd0\x00").await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let good = format!("{}{}{}", TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    let gateway = TestGateway::start(&good).await;
    let bad = [
        ("not TOML", "[[listener".to_owned()),
        ("an unknown key", good.replace("protocol", "protocoll")),
        ("a file that is not there", good.replace("root.pem", "gone.pem")),
        ("an expression", good.replace("[listener.tls]", "[listener.admit]\nrequire = ['cert.cn']\n[listener.tls]")),
        ("an address of another machine", good.replace("127.0.0.1:0\"\nup", "192.0.2.1:1\"\nup")),
        ("nothing", String::new()),
    ];
    for (what, configuration) in bad {
        gateway.write(&configuration);
        let error = gateway.gateway.reload().await.expect_err(what).to_string();
        assert!(error.contains("portcullis.toml") || error.contains("192.0.2.1"), "{what}: {error}");
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        client.write(&connect("thing001")).await;
        broker.accept().await.expect(&connect("thing001")).await;
    }
}

#[tokio::test]
async fn listeners_come_and_go() {
    let broker = Broker::start().await;
    let listener =
        |name: &str| TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"").replace("\"devices\"", &format!("{name:?}"));
    let gateway = TestGateway::start(&format!("{}{}", listener("a"), broker.upstream())).await;
    let a = gateway.address();
    gateway.write(&format!("{}{}{}", listener("a"), listener("b"), broker.upstream()));
    gateway.gateway.reload().await.unwrap();
    let addresses = gateway.gateway.addresses();
    assert_eq!((addresses.len(), addresses[0].1), (2, a));
    let b = addresses[1].1;
    gateway.write(&format!("{}{}", listener("b"), broker.upstream()));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(gateway.address(), b);
    portcullis_testkit::soon("the socket of a to close", async {
        while tokio::net::TcpStream::connect(a).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut client = Client::tcp(b).await;
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
}

#[tokio::test]
async fn server_certificates_and_address_rules_follow_a_reload() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let configuration = format!("{}{}{}", TestGateway::LISTENER, pki.listener_tls_without_ca(), broker.upstream());
    let gateway = TestGateway::start(&configuration).await;
    pki.server("other", &["other.example"]);
    gateway.write(&configuration.replace("issued/localhost", "issued/other"));
    gateway.gateway.reload().await.unwrap();
    let config = portcullis_testkit::tls_config(&pki, None, rustls::ALL_VERSIONS);
    Client::try_tls(gateway.address(), config.clone(), "other.example").await.unwrap();
    assert!(Client::try_tls(gateway.address(), config, "localhost").await.is_err());

    gateway.write(&configuration.replace("protocol", "deny = [\"127.0.0.0/8\"]\nprotocol"));
    gateway.gateway.reload().await.unwrap();
    let mut denied = Client::tcp(gateway.address()).await;
    assert!(denied.read_to_end().await.is_empty());
    // The end of a connection before may be logged later.
    let lines = gateway.lines(3).await;
    assert!(lines.iter().any(|line| line.ends_with("address_denied")), "{lines:?}");
}

#[tokio::test]
async fn a_listener_can_be_renamed_without_a_gap() {
    let broker = Broker::start().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"").replace(":0\"", &format!(":{port}\""));
    let gateway = TestGateway::start(&format!("{listener}{}", broker.upstream())).await;
    gateway.write(&format!("{}{}", listener.replace("\"devices\"", "\"things\""), broker.upstream()));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(gateway.gateway.addresses()[0].0.as_ref(), "things");
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("thing001")).await;
    broker.accept().await.expect(&connect("thing001")).await;
}

#[tokio::test]
async fn a_lower_max_connections_drops_nobody_and_admits_no_more() {
    let broker = Broker::start().await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let allow = |max: u32| format!("{listener}max_connections = {max}\n{}", broker.upstream());
    let gateway = TestGateway::start(&allow(3)).await;
    let (mut sessions, mut connections) = (Vec::new(), Vec::new());
    for id in ["a", "b", "c"] {
        let (client, connection) = gateway.session(&broker, &connect(id)).await;
        sessions.push(client);
        connections.push(connection);
    }
    gateway.write(&allow(2));
    gateway.gateway.reload().await.unwrap();
    for (client, connection) in sessions.iter_mut().zip(&mut connections) {
        client.write(b"\xc0\x00").await;
        connection.expect(b"\xc0\x00").await;
    }
    // The two sessions from before the reload reach the new maximum.
    for (open, lines) in [(3, 1), (2, 3)] {
        let mut refused = Client::tcp(gateway.address()).await;
        assert!(refused.read_to_end().await.is_empty(), "{open} are open");
        assert!(gateway.lines(lines).await[lines - 1].ends_with("too_many_connections"));
        // Both ends close, so that the gateway does not wait for the other half.
        sessions.pop();
        connections.pop();
        eventually("a session to end", || (gateway.gateway.connections() == open - 1).then_some(())).await;
    }
    let _let_in = gateway.session(&broker, &connect("d")).await;

    // A listener that is removed and added again still counts its earlier sessions.
    gateway.write(&format!("{}{}", listener.replace("\"devices\"", "\"others\""), broker.upstream()));
    gateway.gateway.reload().await.unwrap();
    gateway.write(&allow(2));
    gateway.gateway.reload().await.unwrap();
    assert!(Client::tcp(gateway.address()).await.read_to_end().await.is_empty());
    gateway.write(&allow(3));
    gateway.gateway.reload().await.unwrap();
    let _let_in = gateway.session(&broker, &connect("e")).await;
}

/// A client whose connection was accepted before a reload, and that begins its handshake after it.
async fn handshake_after_reload(
    gateway: &TestGateway,
    pki: &Pki,
    device: Option<&str>,
    configuration: &str,
) -> TlsClient {
    let socket = TcpStream::connect(gateway.address()).await.unwrap();
    eventually("the connection", || (gateway.gateway.connections() == 1).then_some(())).await;
    gateway.write(configuration);
    gateway.gateway.reload().await.unwrap();
    let connector = TlsConnector::from(Arc::new(tls_config(pki, device, rustls::ALL_VERSIONS)));
    let mut client = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
    client.write_all(&connect("thing001")).await.unwrap();
    client
}

type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

#[tokio::test]
async fn a_reload_ends_no_handshake_in_progress() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let configuration = format!("{}{}{}", TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    let gateway = TestGateway::start(&configuration).await;
    let mut client = handshake_after_reload(&gateway, &pki, Some("thing001"), &configuration).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect("thing001")).await;
    connection.write(&connack(4)).await;
    let mut answer = [0; 4];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *connack(4));
}

#[tokio::test]
async fn rules_are_those_of_the_moment_of_admission() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let (listener, tls, upstream) = (TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    let gateway = TestGateway::start(&format!("{listener}{tls}{upstream}")).await;
    let stricter = format!("{listener}{tls}[listener.admit]\nrequire = ['mqtt.client_id == \"other\"']\n{upstream}");
    let mut client = handshake_after_reload(&gateway, &pki, Some("thing001"), &stricter).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x20\x02\x00\x05");
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn a_listener_that_was_renamed_admits_nobody_whom_its_successor_would_not() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let (listener, upstream) = (TestGateway::LISTENER, broker.upstream());
    let optional = format!("{listener}{}client_auth = \"optional\"\n{upstream}", pki.listener_tls());
    let gateway = TestGateway::start(&optional).await;
    let renamed = format!("{}{}{upstream}", listener.replace("devices", "renamed"), pki.listener_tls());
    let mut client = handshake_after_reload(&gateway, &pki, None, &renamed).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"\x20\x02\x00\x05");
    assert_eq!(gateway.outcome().await, "403 session_credential_withdrawn");
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn crls_that_a_reload_adds_are_required_of_those_who_are_not_admitted_yet() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let (listener, upstream) = (TestGateway::LISTENER, broker.upstream());
    pki.device("thing001");
    pki.crls_until(-10);
    let gateway = TestGateway::start(&format!("{listener}{}{upstream}", pki.listener_tls())).await;
    let with_crls = format!("{listener}{}{upstream}", pki.listener_tls_with_crl());
    let mut client = handshake_after_reload(&gateway, &pki, Some("thing001"), &with_crls).await;
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert_eq!(answer, b"\x20\x02\x00\x05");
    assert_eq!(gateway.outcome().await, "500 crl_expired");
    assert!(broker.is_left_alone().await);
}

/// Keep-alive and user timeout of a client's connection at the gateway, in milliseconds, as `ss` shows them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn settings_of_tcp_apply_to_connections_that_come_after_a_reload() {
    let broker = Broker::start().await;
    let configuration =
        |tcp: &str| format!("{}{tcp}\n{}", TestGateway::LISTENER.replace("\"tls\"", "\"tcp\""), broker.upstream());
    let gateway = TestGateway::start(&configuration("tcp = { keepalive = \"7s\" }")).await;
    let timer = async |client: &tokio::net::TcpStream| {
        let port = client.local_addr().unwrap().port();
        let own = gateway.address().port();
        let mut ss = tokio::process::Command::new("ss");
        let filter = format!("( sport = :{own} and dport = :{port} )");
        let output = ss.args(["-tnoH", &filter]).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    assert!(timer(&before).await.contains("timer:(keepalive,"), "{}", timer(&before).await);
    gateway.write(&configuration("tcp = { keepalive = \"0s\" }"));
    gateway.gateway.reload().await.unwrap();
    let after = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    assert!(!timer(&after).await.contains("timer:"), "{}", timer(&after).await);
}
