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
