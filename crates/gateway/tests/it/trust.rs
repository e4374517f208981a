//! Whom a gateway believes, and for how long: CRLs, expiry, and sessions that end when trust does.

use std::fs;
use std::time::{Duration, Instant};

use portcullis_testkit::{Broker, BrokerConnection, Client, Pki, TestGateway, connack, connect, connect_v5};

const REST: &str = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
/// The bound that is stated: within five seconds of the change being loaded, which is within two.
const BOUND: Duration = Duration::from_secs(5);

async fn gateway(broker: &Broker, tls: &str) -> TestGateway {
    TestGateway::start(&format!("{}{tls}{REST}{}", TestGateway::LISTENER, broker.upstream())).await
}

/// A device that is connected and has its CONNACK.
async fn session(
    gateway: &TestGateway,
    pki: &Pki,
    broker: &Broker,
    name: &str,
    version: u8,
) -> (Client, BrokerConnection) {
    let connect = if version == 5 { connect_v5(name) } else { connect(name) };
    let mut client = Client::tls(gateway.address(), pki, name).await;
    client.write(&connect).await;
    let mut connection = broker.accept().await;
    connection.expect(&connect).await;
    connection.write(&connack(version)).await;
    client.expect(&connack(version)).await;
    (client, connection)
}

/// How a connection attempt ends that is not to get through.
async fn refusal(gateway: &TestGateway, pki: &Pki, name: &str) -> String {
    let mut client = Client::tls(gateway.address(), pki, name).await;
    let _ = client.try_write(&connect(name)).await;
    client.read_to_end().await;
    gateway.outcome().await
}

#[tokio::test]
async fn a_connected_device_ends_soon_after_its_certificate_is_revoked() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut five, mut at_broker) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let (mut three, _three) = session(&gateway, &pki, &broker, "thing002", 4).await;
    let (mut other, mut other_at_broker) = session(&gateway, &pki, &broker, "thing003", 4).await;
    let begin = Instant::now();
    pki.revoke("thing001");
    pki.revoke("thing002");
    assert_eq!(five.read_to_end().await, b"\xe0\x02\x87\x00", "MQTT 5 is told: not authorized");
    assert_eq!(three.read_to_end().await, b"");
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    println!("revoked sessions ended after {:?}", begin.elapsed());
    at_broker.read_to_end().await;
    other.write(b"\xc0\x00").await;
    other_at_broker.expect(b"\xc0\x00").await;
    for line in gateway.lines(2).await {
        assert!(line.ends_with(" session_revoked") && line.contains(" 403 "), "{line}");
    }
}

#[tokio::test]
async fn a_session_ends_between_packets() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    for (version, goodbye) in [(4, &b""[..]), (5, b"\xe0\x02\x87\x00")] {
        let name = format!("thing{version}");
        let (mut client, mut connection) = session(&gateway, &pki, &broker, &name, version).await;
        // The first half of a PUBLISH.
        connection.write(b"\x30\x06\x00\x01t").await;
        client.expect(b"\x30\x06\x00\x01t").await;
        pki.revoke(&name);
        gateway.gateway.reload().await.unwrap();
        connection.write(b"abc\x30\x06\x00\x01t").await;
        assert_eq!(client.read_to_end().await, [b"abc", goodbye].concat());
    }
}

#[tokio::test]
async fn the_whole_chain_is_checked() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let intermediate = pki.authority().list().unwrap().into_iter().find(|entry| entry.kind == "intermediate").unwrap();
    pki.revoke(&intermediate.serial);
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    gateway.lines(1).await;
    let mut late = Client::tls(gateway.address(), &pki, "thing002").await;
    late.read_to_end().await;
    assert!(gateway.lines(2).await[1].ends_with(" certificate_revoked"));
}

#[tokio::test]
async fn a_crl_that_is_missing_or_stale_refuses_unless_told_otherwise() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    // The root's is not there.
    let text = fs::read_to_string(pki.crls()).unwrap();
    let first = text.split_inclusive("-----END X509 CRL-----\n").next().unwrap();
    let only_one = pki.dir().join("one.pem");
    fs::write(&only_one, first).unwrap();
    let tls = |crl: &std::path::Path, more: &str| format!("{}crl = [{crl:?}]\n{more}", pki.listener_tls());
    let refusing = gateway(&broker, &tls(&only_one, "")).await;
    assert_eq!(refusal(&refusing, &pki, "thing001").await, "500 crl_missing");
    let allowing = gateway(&broker, &tls(&only_one, "crl_missing = \"allow\"\n")).await;
    session(&allowing, &pki, &broker, "thing001", 4).await;

    pki.crls_until(-1);
    let refusing = gateway(&broker, &tls(&pki.crls(), "")).await;
    assert_eq!(refusal(&refusing, &pki, "thing001").await, "500 crl_expired");
    let allowing = gateway(&broker, &tls(&pki.crls(), "crl_missing = \"allow\"\n")).await;
    session(&allowing, &pki, &broker, "thing001", 4).await;
}

#[tokio::test]
async fn a_crl_that_goes_stale_ends_no_session_but_lets_in_no_new_one() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    pki.crls_until(3);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, mut connection) = session(&gateway, &pki, &broker, "thing001", 4).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(refusal(&gateway, &pki, "thing002").await, "500 crl_expired");
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_crl_of_another_authority_with_the_same_name_counts_for_nothing() {
    // Both are called the same.
    let (pki, impostor, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let _first = session(&gateway, &pki, &broker, "thing001", 4).await;
    fs::copy(impostor.crls(), pki.crls()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _second = session(&gateway, &pki, &broker, "thing002", 4).await;
    let error = gateway.gateway.reload().await.unwrap_err().to_string();
    assert!(error.contains("not signed by the authority"), "{error}");
    fs::write(pki.crls(), "no CRL").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (last, _connection) = session(&gateway, &pki, &broker, "thing003", 4).await;
    // And the right one again, which now has somebody in it.
    let mut last = last;
    pki.revoke("thing003");
    last.read_to_end().await;
    assert_eq!(gateway.outcome().await, "403 session_revoked");
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    pki.device_until("thing001", 3);
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let begin = Instant::now();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\xa0\x00", "maximum connect time");
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert_eq!(gateway.outcome().await, "403 session_expired");
}

#[tokio::test]
async fn a_trust_anchor_that_is_taken_away_takes_its_sessions() {
    let (pki, other, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let bundle = pki.dir().join("bundle.pem");
    let (ours, theirs) = (fs::read_to_string(pki.root()).unwrap(), fs::read_to_string(other.root()).unwrap());
    fs::write(&bundle, format!("{ours}{theirs}")).unwrap();
    let tls = format!("{}client_ca = {bundle:?}\n", pki.listener_tls_without_ca());
    let gateway = gateway(&broker, &tls).await;
    let (mut ends, _ends) = session(&gateway, &pki, &broker, "thing001", 5).await;
    // As Kubernetes does it: another file in the old one's place.
    let new = pki.dir().join("new.pem");
    fs::write(&new, theirs).unwrap();
    fs::rename(&new, &bundle).unwrap();
    assert_eq!(ends.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_ca_removed");
}

#[tokio::test]
async fn an_address_that_is_denied_takes_its_sessions() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls()).await;
    let (mut client, _connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    fs::write(gateway.path(), text.replacen("upstream =", "deny = [\"127.0.0.1\"]\nupstream =", 1)).unwrap();
    gateway.gateway.reload().await.unwrap();
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
    assert_eq!(gateway.outcome().await, "403 session_address_denied");
}

#[tokio::test]
async fn a_session_of_a_listener_that_is_gone_stays_while_somebody_believes_its_certificate() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let gateway = gateway(&broker, &pki.listener_tls_with_crl()).await;
    let (mut client, mut connection) = session(&gateway, &pki, &broker, "thing001", 5).await;
    let text = fs::read_to_string(gateway.path()).unwrap();
    fs::write(gateway.path(), text.replace("\"devices\"", "\"renamed\"")).unwrap();
    gateway.gateway.reload().await.unwrap();
    client.write(b"\xc0\x00").await;
    connection.expect(b"\xc0\x00").await;
    pki.revoke("thing001");
    assert_eq!(client.read_to_end().await, b"\xe0\x02\x87\x00");
}
