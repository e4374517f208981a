//! The device registry, and devices with raw public keys and pre-shared keys.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_gateway::PasswordHash;
use portcullis_gateway::peer::Certificate;
use portcullis_registry::{Device, Existing, Hash, Psk, Registry, State, Url};
use portcullis_testkit::{Broker, Client, Pki, TestGateway, connect, connect_as, tls_config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

pub(crate) const REFUSED: &[u8] = b"\x20\x02\x00\x04";
pub(crate) const LATER: &[u8] = b"\x20\x02\x00\x03";
/// The documented bound: five seconds.
pub(crate) const BOUND: Duration = Duration::from_secs(5);

pub(crate) async fn registry(dir: &Path) -> Registry {
    let path = dir.join("devices.db").display().to_string();
    Registry::open(&Url::parse(&format!("sqlite:{path}"), str::to_owned).unwrap()).await.unwrap()
}

pub(crate) fn table(dir: &Path, rest: &str) -> String {
    let path = dir.join("devices.db").display().to_string();
    format!("[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"sqlite:{path}\"\n{rest}")
}

pub(crate) async fn plain(dir: &Path, broker: &Broker, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let (table, upstream) = (table(dir, ""), broker.upstream());
    TestGateway::start(&format!("{listener}authenticate = [\"fleet\"]\n{rest}{upstream}{table}")).await
}

/// A listener with mutual TLS, and the registry with these keys.
async fn certified(dir: &Path, pki: &Pki, broker: &Broker, admit: &str, rest: &str) -> TestGateway {
    let (listener, tls, upstream) = (TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    let table = table(dir, rest);
    TestGateway::start(&format!("{listener}authenticate = [\"fleet\"]\n{tls}{admit}{upstream}{table}")).await
}

pub(crate) fn with_password(id: &str) -> Device {
    let hash = Hash(PasswordHash::make(b"secret").unwrap());
    let attributes = json!({ "site": "lyon" }).as_object().unwrap().clone();
    Device { password_hash: Some(hash), groups: vec!["pumps".to_owned()], attributes, ..Device::new(id) }
}

pub(crate) async fn add(registry: &Registry, device: Device) {
    registry.add(&[device], Existing::Refuse).await.unwrap();
}

#[tokio::test]
async fn a_device_is_let_in_by_its_password_and_known_to_expressions() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    add(&registry, with_password("thing001")).await;
    add(&registry, Device::new("bare")).await;
    let rest = "[listener.admit]\nrequire = ['mqtt.client_id == device.id', '\"pumps\" in device.groups', \
                'device.attributes.site == \"lyon\"']\n";
    let gateway = plain(dir.path(), &broker, rest).await;
    let _session = gateway.session(&broker, &connect_as("thing001", "thing001", b"secret")).await;
    for (packet, answer) in [
        (connect_as("thing001", "thing001", b"wrong"), REFUSED),
        (connect_as("thing001", "thing002", b"secret"), REFUSED),
        (connect_as("bare", "bare", b""), REFUSED),
        (connect_as("bare", "bare", b"secret"), REFUSED),
        (connect("thing001"), REFUSED),
        (connect_as("other", "thing001", b"secret"), b"\x20\x02\x00\x05"),
    ] {
        assert_eq!(gateway.refusal(&packet).await, answer, "{packet:?}");
    }
    assert!(broker.is_left_alone().await);
}

#[tokio::test]
async fn what_changes_in_the_registry_changes_for_sessions() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    for id in ["disabled", "banned", "removed", "changed", "stays"] {
        add(&registry, with_password(id)).await;
    }
    let gateway = plain(dir.path(), &broker, "").await;
    let (mut stays, mut at_broker) = gateway.session(&broker, &connect_as("x", "stays", b"secret")).await;
    let until = 4_000_000_000;
    for (n, (id, reason)) in [
        ("disabled", "session_device_disabled"),
        ("banned", "session_device_banned"),
        ("removed", "session_device_removed"),
        ("changed", "session_credential_withdrawn"),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut client, _connection) = gateway.session(&broker, &connect_as("x", id, b"secret")).await;
        match id {
            "disabled" => drop(registry.change(id, |device| device.state = State::Disabled).await.unwrap()),
            "banned" => drop(registry.change(id, |device| device.state = State::Banned(until)).await.unwrap()),
            "removed" => registry.remove(id).await.unwrap(),
            _ => {
                let hash = Some(Hash(PasswordHash::make(b"other").unwrap()));
                drop(registry.change(id, |device| device.password_hash = hash).await.unwrap());
            }
        }
        let begin = Instant::now();
        client.read_to_end().await;
        assert!(begin.elapsed() < BOUND, "{id}: {:?}", begin.elapsed());
        println!("{id}: its session ended after {:?}", begin.elapsed());
        let line = gateway.lines(2 * n + 1).await.pop().unwrap();
        assert!(line.ends_with(&format!(" {reason}")), "{line}");
        assert_eq!(gateway.refusal(&connect_as("x", id, b"secret")).await, REFUSED);
        gateway.lines(2 * n + 2).await;
    }
    // With a wrong password, the log does not report that the device is disabled; with the right one it does.
    let reasons = [(b"wrong", "bad_credentials"), (b"secre", "bad_credentials")];
    for (n, (password, reason)) in reasons.into_iter().enumerate() {
        gateway.refusal(&connect_as("x", "disabled", password)).await;
        assert!(gateway.lines(9 + n).await[8 + n].ends_with(reason));
    }
    registry.change("disabled", |device| device.state = State::Enabled).await.unwrap();
    let _again = gateway.session_at_last(&broker, &connect_as("x", "disabled", b"secret")).await;
    stays.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn pins_bind_a_device_to_its_certificate_or_its_key() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    let fingerprints = |name: &str| {
        pki.device(name);
        let leaf = CertificateDer::from_pem_file(pki.chain(name)).unwrap();
        Certificate::from_der(&leaf).unwrap().fingerprints().map(hex::encode)
    };
    let [certificate, _] = fingerprints("thing001");
    let [_, key] = fingerprints("thing002");
    fingerprints("stranger");
    add(&registry, Device { pins: vec![certificate.clone()], ..Device::new("one") }).await;
    add(&registry, Device { pins: vec![key], ..Device::new("two") }).await;
    let gateway =
        certified(dir.path(), &pki, &broker, "[listener.admit]\nrequire = ['mqtt.client_id == device.id']\n", "").await;
    let mut one = Client::tls(gateway.address(), &pki, "thing001").await;
    let _one = one.greet(&broker, &connect("one")).await;
    let mut two = Client::tls(gateway.address(), &pki, "thing002").await;
    let _two = two.greet(&broker, &connect("two")).await;
    for (name, packet) in [("stranger", connect("one")), ("stranger", connect_as("one", "one", b""))] {
        let mut client = Client::tls(gateway.address(), &pki, name).await;
        client.write(&packet).await;
        assert_eq!(client.read_to_end().await, REFUSED);
    }
    // Without the pin, its session closes.
    registry.change("one", |device| device.pins.clear()).await.unwrap();
    one.read_to_end().await;
    assert!(gateway.lines(3).await[2].ends_with(" session_credential_withdrawn"));
}

#[tokio::test]
async fn an_expression_may_say_which_device_it_is() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    add(&registry, Device::new("thing001")).await;
    add(&registry, Device { state: State::Disabled, ..Device::new("thing002") }).await;
    add(&registry, Device { pins: vec!["0".repeat(64)], ..Device::new("thing003") }).await;
    let gateway = certified(dir.path(), &pki, &broker, "", "device = 'cert.subject.cn'\n").await;
    let mut one = Client::tls(gateway.address(), &pki, "thing001").await;
    let _one = one.greet(&broker, &connect_as("x", "thing002", b"")).await;
    for (n, (name, reason)) in
        [("thing002", "device_disabled"), ("thing003", "pin_mismatch"), ("thing004", "unknown_client")]
            .into_iter()
            .enumerate()
    {
        let mut client = Client::tls(gateway.address(), &pki, name).await;
        client.write(&connect_as("x", "thing001", b"")).await;
        assert_eq!(client.read_to_end().await, REFUSED);
        assert!(gateway.lines(n + 1).await[n].ends_with(reason), "{name}");
    }
    registry.change("thing001", |device| device.state = State::Disabled).await.unwrap();
    one.read_to_end().await;
}

#[tokio::test]
async fn another_way_to_find_devices_ends_the_sessions_of_the_old_one() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    add(&registry, Device::new("thing001")).await;
    for new in ["", "device = 'cert.subject.o'\n"] {
        let device = "device = 'cert.subject.cn'\n";
        let gateway = certified(dir.path(), &pki, &broker, "", device).await;
        let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
        let _connection = client.greet(&broker, &connect("x")).await;
        let text = fs::read_to_string(gateway.path()).unwrap();
        let text = text.split("[access_log]").next().unwrap();
        gateway.write(&text.replace(device, new));
        gateway.gateway.reload().await.unwrap();
        client.read_to_end().await;
        let line = gateway.lines(1).await.pop().unwrap();
        assert!(line.ends_with(" session_credential_withdrawn"), "{new}: {line}");
    }
}

/// A client with a raw public key, from a P-256 key in PEM.
fn raw_key_config(pki: &Pki, pem: &str) -> rustls::ClientConfig {
    #[derive(Debug)]
    struct RawKey(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for RawKey {
        fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn only_raw_public_keys(&self) -> bool {
            true
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let mut config = tls_config(pki, None, &[&rustls::version::TLS13]);
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let public = CertificateDer::from(key.public_key().unwrap().to_vec());
    config.client_auth_cert_resolver = Arc::new(RawKey(Arc::new(rustls::sign::CertifiedKey::new(vec![public], key))));
    config
}

fn raw_key() -> (String, String) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &rcgen::PublicKeyData::subject_public_key_info(&pair));
    (pair.serialize_pem(), hex::encode(digest))
}

#[tokio::test]
async fn rustls_with_a_raw_public_key_of_the_registry() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    let ((one, pin), (other, _)) = (raw_key(), raw_key());
    add(&registry, Device { pins: vec![pin], ..Device::new("thing001") }).await;
    // Together with certificates: the device's ClientHello selects one of the two.
    let configuration = format!(
        "{}{}[listener.tls.raw_keys]\nregistry = true\n[listener.admit]\n\
         require = ['has(cert.subject) ? mqtt.client_id == cert.subject.cn : has(device.id) && mqtt.client_id == device.id']\n{}{}",
        TestGateway::LISTENER,
        pki.listener_tls(),
        broker.upstream(),
        table(dir.path(), "")
    );
    let gateway = TestGateway::start(&configuration).await;
    let connect_raw =
        async |pem: &str| Client::try_tls(gateway.address(), raw_key_config(&pki, pem), "localhost").await;
    let mut raw = connect_raw(&one).await.unwrap();
    let _raw = raw.greet(&broker, &connect("thing001")).await;
    let mut certified = Client::tls(gateway.address(), &pki, "thing002").await;
    let _certified = certified.greet(&broker, &connect("thing002")).await;
    // In TLS 1.3 the client sees the alert with its first read.
    if let Ok(mut stranger) = connect_raw(&other).await {
        let _ = stranger.try_write(&connect("thing001")).await;
        assert!(stranger.read_to_end().await.is_empty());
    }
    assert!(gateway.lines(1).await[0].ends_with(" unknown_key"));
    let mut imposter = connect_raw(&one).await.unwrap();
    imposter.write(&connect("thing002")).await;
    assert_eq!(imposter.read_to_end().await, b"\x20\x02\x00\x05");
    registry.change("thing001", |device| device.state = State::Disabled).await.unwrap();
    raw.read_to_end().await;
    assert!(gateway.lines(3).await[2].ends_with(" session_device_disabled"));
    let mut disabled = connect_raw(&one).await.unwrap();
    disabled.write(&connect("thing001")).await;
    assert_eq!(disabled.read_to_end().await, REFUSED);
    assert!(gateway.lines(4).await[3].ends_with(" device_disabled"));
}

#[tokio::test]
async fn a_pre_shared_key_is_no_password() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    let psk = Psk { identity: "pump".to_owned(), key: hex::decode("0a".repeat(16)).unwrap().into() };
    add(&registry, Device { psk: Some(psk), ..Device::new("thing001") }).await;
    // A PSK of the registry is not evidence on a listener without PSKs.
    let gateway = plain(dir.path(), &broker, "").await;
    for packet in
        [connect_as("x", "thing001", b""), connect_as("x", "pump", b""), connect_as("x", "thing001", &[10; 16])]
    {
        assert_eq!(gateway.refusal(&packet).await, REFUSED);
    }
}

#[tokio::test]
async fn other_groups_end_a_session_that_they_have_let_in() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    add(&registry, with_password("thing001")).await;
    let gateway = plain(dir.path(), &broker, "[listener.admit]\nrequire = ['\"pumps\" in device.groups']\n").await;
    let (mut client, _connection) = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    registry.change("thing001", |device| device.groups.clear()).await.unwrap();
    client.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_device_changed"));
    assert_eq!(gateway.refusal(&connect_as("x", "thing001", b"secret")).await, b"\x20\x02\x00\x05");
}

#[tokio::test]
async fn a_pin_that_comes_later_counts_for_those_who_are_there() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    add(&registry, Device::new("thing001")).await;
    let gateway = certified(dir.path(), &pki, &broker, "", "device = 'cert.subject.cn'\n").await;
    let mut client = Client::tls(gateway.address(), &pki, "thing001").await;
    let _connection = client.greet(&broker, &connect("x")).await;
    registry.change("thing001", |device| device.pins.push("0".repeat(64))).await.unwrap();
    client.read_to_end().await;
    assert!(gateway.lines(1).await[0].ends_with(" session_credential_withdrawn"));
}

#[tokio::test]
async fn who_cannot_be_a_device_is_left_to_the_next_authenticator() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Broker::start().await, Pki::new());
    let registry = registry(dir.path()).await;
    add(&registry, Device::new("thing001")).await;
    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "pw")]);
    let (listener, tls, upstream) = (TestGateway::LISTENER, pki.listener_tls(), broker.upstream());
    let table = table(dir.path(), "device = 'cert.subject.cn'\n");
    let gateway = TestGateway::start(&format!(
        "{listener}authenticate = [\"fleet\", \"users\"]\n{tls}client_auth = \"optional\"\n{upstream}{table}{users}"
    ))
    .await;
    let mut device = Client::tls(gateway.address(), &pki, "thing001").await;
    let _device = device.greet(&broker, &connect("x")).await;
    let anonymous = tls_config(&pki, None, rustls::ALL_VERSIONS);
    let mut alice = Client::try_tls(gateway.address(), anonymous.clone(), "localhost").await.unwrap();
    let _alice = alice.greet(&broker, &connect_as("y", "alice", b"pw")).await;
    let mut stranger = Client::try_tls(gateway.address(), anonymous, "localhost").await.unwrap();
    stranger.write(&connect_as("y", "thing001", b"pw")).await;
    assert_eq!(stranger.read_to_end().await, REFUSED);
}
