//! What the JSON access log says beside the reason.

use std::fs;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, connect, connect_as, tls_config};

/// A gateway with these tables and a JSON log.
async fn gateway(tables: &str) -> TestGateway {
    TestGateway::start(&format!("{}{tables}[access_log]\nformat = \"json\"\n", TestGateway::LISTENER)).await
}

/// Connects, and returns reason and detail of the `line`th line.
async fn rejected(gateway: &TestGateway, pki: &Pki, device: &str, packet: &[u8], line: usize) -> (String, String) {
    let config = tls_config(pki, Some(device), rustls::ALL_VERSIONS);
    if let Ok(mut client) = Client::try_tls(gateway.address(), config, "localhost").await {
        let _ = client.try_write(packet).await;
        client.read_to_end().await;
    }
    (gateway.field(line, "reason").await, gateway.field(line, "detail").await)
}

#[tokio::test]
async fn of_certificates_it_says_which_and_why() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    pki.device("thing001");
    let gateway = gateway(&format!("{}{}", pki.listener_tls_with_crl(), broker.upstream())).await;
    pki.revoke("thing001");
    gateway.gateway.run_maintenance().await;
    let (reason, detail) = rejected(&gateway, &pki, "thing001", &connect("thing001"), 1).await;
    assert_eq!(reason, "certificate_revoked");
    let serial = gateway.field(1, "cert_serial").await;
    assert!(detail.contains(&format!("lists its certificate, serial number {serial}")), "{detail}");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "thing002");
    pki.device("thing002");
    fs::write(pki.chain("thing002"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(pki.key("thing002"), key.serialize_pem()).unwrap();
    let (reason, detail) = rejected(&gateway, &pki, "thing002", &connect("thing002"), 2).await;
    assert_eq!(reason, "unknown_ca");
    assert!(detail.starts_with("it is self-signed"), "{detail}");
    params.not_before = rcgen::date_time_ymd(2100, 1, 1);
    params.not_after = rcgen::date_time_ymd(2101, 1, 1);
    fs::write(pki.chain("thing002"), params.signed_by(&key, &pki.issuer("root")).unwrap().pem()).unwrap();
    let (reason, detail) = rejected(&gateway, &pki, "thing002", &connect("thing002"), 3).await;
    assert_eq!(reason, "certificate_not_yet_valid");
    assert!(detail.starts_with("`CN=thing002` is valid from 2100-01-01T"), "{detail}");
}

#[tokio::test]
async fn of_passwords_and_brokers_it_says_what_is_missing() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "secret")]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream =
        format!("[[upstream]]\nname = \"brokers\"\nservers = [\"{closed}\"]\nhealth = {{ mode = \"off\" }}\n");
    let gateway = gateway(&format!("authenticate = [\"users\"]\n{}{upstream}{users}", pki.listener_tls())).await;
    pki.device("thing001");
    let without = b"\x10\x15\x00\x04MQTT\x04\x82\x00\x3c\x00\x02x1\x00\x05alice";
    let (reason, detail) = rejected(&gateway, &pki, "thing001", without, 1).await;
    assert_eq!((reason.as_str(), detail.as_str()), ("bad_credentials", "the client sent no password"));
    let (reason, detail) = rejected(&gateway, &pki, "thing001", &connect_as("x", "alice", b"secret"), 2).await;
    assert_eq!(reason, "upstream_unreachable");
    assert!(detail.starts_with(&format!("{closed}: Connection refused")), "{detail}");
}

#[tokio::test]
async fn of_what_took_too_long_it_names_the_key() {
    let (broker, silent) = (Broker::start().await, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = silent.local_addr().unwrap();
    let with = |tables: &str| {
        let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
        let text = format!("{listener}{tables}[access_log]\nformat = \"json\"\n");
        async move { TestGateway::start(&text).await }
    };
    let upstream = "[[upstream]]\nname = \"brokers\"\nconnect_timeout = \"100ms\"\nhealth = { mode = \"off\" }\n";
    let gateway = with(&format!("{upstream}servers = [\"{address}\"]\ntls = {{}}\n")).await;
    gateway.refusal(&connect("x")).await;
    assert_eq!(gateway.field(1, "reason").await, "upstream_unreachable");
    let detail = format!("{address}: timed out: `connect_timeout` of [[upstream]] is 100ms");
    assert_eq!(gateway.field(1, "detail").await, detail);

    let service = "[[authenticator]]\nname = \"service\"\nkind = \"http\"\ntimeout = \"100ms\"\n";
    let upstream = broker.upstream();
    let gateway =
        with(&format!("authenticate = [\"service\"]\n{upstream}{service}url = \"http://{address}/\"\n")).await;
    gateway.refusal(&connect("x")).await;
    assert_eq!(gateway.field(1, "reason").await, "authentication_unavailable");
    assert_eq!(gateway.field(1, "detail").await, "timed out after 100ms, the `timeout` of [[authenticator]]");

    let gateway = with(&broker.upstream()).await;
    let mut client = Client::tcp(gateway.address()).await;
    client.write(&connect("x")).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect("x")).await;
    portcullis_testkit::advance(std::time::Duration::from_secs(31));
    client.read_to_end().await;
    assert_eq!(gateway.field(1, "reason").await, "upstream_timeout");
    assert_eq!(gateway.field(1, "detail").await, "no answer to CONNECT within 30 s, which no key sets");
}
