//! Resumption: a resumed session keeps its identity, is evaluated again, and is accepted only by its own listener.

use std::fs;
use std::time::Duration;

use portcullis_testkit::{Broker, Client, Pki, TestGateway, advance, connack, connect, tls_config};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::{ClientConfig, SupportedProtocolVersion};

const V12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const V13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
const BOTH: [&[&SupportedProtocolVersion]; 2] = [V12, V13];

const REST: &str =
    "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n[access_log]\nformat = \"json\"\n";

async fn gateway(broker: &Broker, tls: &str) -> TestGateway {
    TestGateway::start(&format!("{}{tls}{REST}{}", TestGateway::LISTENER, broker.upstream())).await
}

/// Connects as `thing001`, to listener number `place`; true: the broker saw it.
async fn attempt_at(gateway: &TestGateway, place: usize, config: &ClientConfig, name: &str, broker: &Broker) -> bool {
    let address = gateway.gateway.addresses()[place].1;
    let Ok(mut client) = Client::try_tls(address, config.clone(), name).await else { return false };
    if client.try_write(&connect("thing001")).await.is_err() {
        return false;
    }
    let accepted = tokio::select! {
        mut connection = broker.accept() => {
            connection.expect(&connect("thing001")).await;
            connection.write(&connack(4)).await;
            client.expect(&connack(4)).await;
            true
        }
        // In TLS 1.3, the alert arrives with the first read.
        _ = client.try_read(1) => false,
    };
    client.shutdown().await;
    client.read_to_end().await;
    accepted
}

async fn attempt(gateway: &TestGateway, config: &ClientConfig, broker: &Broker) -> bool {
    attempt_at(gateway, 0, config, "localhost", broker).await
}

#[tokio::test]
async fn a_resumed_session_keeps_its_identity() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for (ways, versions, by_number) in [
        ("both", V13, false),
        ("tickets", V13, false),
        ("cache", V13, false),
        ("both", V12, false),
        ("both", V12, true),
        ("tickets", V12, false),
        ("cache", V12, true),
    ] {
        let gateway = gateway(&broker, &format!("{}resumption = \"{ways}\"\n", pki.listener_tls())).await;
        let mut config = tls_config(&pki, Some("thing001"), versions);
        if by_number {
            config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
        }
        assert!(attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(1, "tls_resumed").await, "false");
        let subject = gateway.field(1, "cert_subject").await;
        for count in 2..4 {
            assert!(attempt(&gateway, &config, &broker).await);
            assert_eq!(gateway.field(count, "tls_resumed").await, "true", "{ways} {versions:?} {by_number}");
            assert_eq!(gateway.field(count, "cert_subject").await, subject);
        }
    }
}

#[tokio::test]
async fn nothing_is_resumed_where_it_is_off_or_not_offered() {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    for (ways, versions, by_number) in
        [("off", V13, false), ("off", V12, false), ("off", V12, true), ("tickets", V12, true)]
    {
        let gateway = gateway(&broker, &format!("{}resumption = \"{ways}\"\n", pki.listener_tls())).await;
        let mut config = tls_config(&pki, Some("thing001"), versions);
        if by_number {
            config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
        }
        for count in 1..3 {
            assert!(attempt(&gateway, &config, &broker).await);
            assert_eq!(gateway.field(count, "tls_resumed").await, "false");
        }
    }
}

/// A client with a session from a gateway with this `[listener.tls]`.
async fn with_session(
    pki: &Pki,
    broker: &Broker,
    tls: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> (TestGateway, ClientConfig) {
    let gateway = gateway(broker, tls).await;
    let config = tls_config(pki, Some("thing001"), versions);
    assert!(attempt(&gateway, &config, broker).await);
    // Its line is to be the first.
    gateway.lines(1).await;
    (gateway, config)
}

#[tokio::test]
async fn a_revoked_device_does_not_resume() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        let (gateway, config) = with_session(&pki, &broker, &pki.listener_tls_with_crl(), versions).await;
        pki.revoke("thing001");
        gateway.gateway.reload().await.unwrap();
        assert!(!attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "reason").await, "certificate_revoked");
    }
}

#[tokio::test]
async fn an_expired_device_does_not_resume() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        pki.device_until("thing001", 60);
        let (gateway, config) = with_session(&pki, &broker, &pki.listener_tls(), versions).await;
        advance(Duration::from_secs(61));
        assert!(!attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "reason").await, "certificate_expired");
    }
}

#[tokio::test]
async fn a_device_of_an_authority_that_was_removed_does_not_resume() {
    for versions in BOTH {
        let (pki, other, broker) = (Pki::new(), Pki::named("Other"), Broker::start().await);
        let (gateway, config) = with_session(&pki, &broker, &pki.listener_tls(), versions).await;
        fs::copy(other.root(), pki.dir().join("other.pem")).unwrap();
        let text = fs::read_to_string(gateway.path()).unwrap();
        let (before, after) = (format!("client_ca = {:?}", pki.root()), format!("client_ca = {:?}", other.root()));
        fs::write(gateway.path(), text.replace(&before, &after)).unwrap();
        gateway.gateway.reload().await.unwrap();
        assert!(!attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "reason").await, "unknown_ca");
    }
}

#[tokio::test]
async fn a_session_of_one_listener_is_none_on_another() {
    for versions in BOTH {
        let (pki, other, broker) = (Pki::new(), Pki::named("Other"), Broker::start().await);
        let second = TestGateway::LISTENER.replace("\"devices\"", "\"others\"");
        let tls = format!("{}client_ca = {:?}\n", pki.listener_tls_without_ca(), other.root());
        let rest = format!("{}[access_log]\nformat = \"json\"\n{second}{tls}{}", pki.listener_tls(), broker.upstream());
        let gateway = TestGateway::start(&format!("{}{rest}", TestGateway::LISTENER)).await;
        let config = tls_config(&pki, Some("thing001"), versions);
        assert!(attempt(&gateway, &config, &broker).await);
        assert!(!attempt_at(&gateway, 1, &config, "localhost", &broker).await);
        assert_eq!(gateway.field(2, "reason").await, "unknown_ca");
        assert!(attempt(&gateway, &config, &broker).await, "the session itself is still valid");
    }
}

#[tokio::test]
async fn not_even_where_the_same_devices_are_believed() {
    for versions in BOTH {
        for ways in ["both", "cache"] {
            let (pki, broker) = (Pki::new(), Broker::start().await);
            let second = TestGateway::LISTENER.replace("\"devices\"", "\"others\"");
            let tls = format!("{}resumption = \"{ways}\"\n", pki.listener_tls());
            let rest = format!("{tls}[access_log]\nformat = \"json\"\n{second}{tls}{}", broker.upstream());
            let gateway = TestGateway::start(&format!("{}{rest}", TestGateway::LISTENER)).await;
            let mut config = tls_config(&pki, Some("thing001"), versions);
            if ways == "cache" {
                config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
            }
            assert!(attempt(&gateway, &config, &broker).await);
            assert!(attempt_at(&gateway, 1, &config, "localhost", &broker).await, "a full handshake");
            assert_eq!(gateway.field(2, "tls_resumed").await, "false", "{ways}");
            assert!(attempt_at(&gateway, 1, &config, "localhost", &broker).await);
            assert_eq!(gateway.field(3, "tls_resumed").await, "true", "{ways}: it is not that nothing is resumed");
        }
    }
}

#[tokio::test]
async fn a_session_made_under_one_name_is_none_under_another() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        pki.server("both", &["localhost", "other.example"]);
        let tls =
            pki.listener_tls().replace(pki.chain("localhost").to_str().unwrap(), pki.chain("both").to_str().unwrap());
        let tls = tls.replace(pki.key("localhost").to_str().unwrap(), pki.key("both").to_str().unwrap());
        let gateway = gateway(&broker, &tls).await;
        // A client that does not separate sessions by server name.
        let mut config = tls_config(&pki, Some("thing001"), versions);
        config.resumption =
            Resumption::store(std::sync::Arc::new(AnyName(rustls::client::ClientSessionMemoryCache::new(8))));
        assert!(attempt(&gateway, &config, &broker).await);
        assert!(attempt_at(&gateway, 0, &config, "other.example", &broker).await);
        assert_eq!(gateway.field(2, "tls_resumed").await, "false");
    }
}

/// A session store that ignores server names.
#[derive(Debug)]
struct AnyName(rustls::client::ClientSessionMemoryCache);

type Name = rustls::pki_types::ServerName<'static>;

fn anybody() -> Name {
    Name::try_from("anybody.example").unwrap()
}

impl rustls::client::ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: Name, group: rustls::NamedGroup) {
        self.0.set_kx_hint(anybody(), group);
    }
    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&anybody())
    }
    fn set_tls12_session(&self, _: Name, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(anybody(), value);
    }
    fn tls12_session(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&anybody())
    }
    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'_>) {
        self.0.remove_tls12_session(&anybody());
    }
    fn insert_tls13_ticket(&self, _: Name, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(anybody(), value);
    }
    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&anybody())
    }
}

#[tokio::test]
async fn resuming_does_not_make_a_session_younger() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        let tls = format!("{}session_lifetime = \"1h\"\n", pki.listener_tls());
        let (gateway, config) = with_session(&pki, &broker, &tls, versions).await;
        advance(Duration::from_secs(30 * 60));
        assert!(attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "tls_resumed").await, "true");
        advance(Duration::from_secs(31 * 60));
        assert!(attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(3, "tls_resumed").await, "false");
    }
}

#[tokio::test]
async fn a_session_without_a_certificate_is_none_once_certificates_are_required() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        let rest = "[access_log]\nformat = \"json\"\n";
        let configuration = |auth: &str| {
            let tls = format!("{}client_auth = \"{auth}\"\n", pki.listener_tls());
            format!("{}{tls}{rest}{}", TestGateway::LISTENER, broker.upstream())
        };
        let gateway = TestGateway::start(&configuration("optional")).await;
        let config = tls_config(&pki, None, versions);
        assert!(attempt(&gateway, &config, &broker).await);
        assert!(attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "tls_resumed").await, "true");
        gateway.write(&configuration("required"));
        gateway.gateway.reload().await.unwrap();
        assert!(!attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(3, "reason").await, "no_certificate");
    }
}

#[tokio::test]
async fn sessions_outlive_a_reload() {
    for versions in BOTH {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        let (gateway, config) = with_session(&pki, &broker, &pki.listener_tls(), versions).await;
        gateway.gateway.reload().await.unwrap();
        assert!(attempt(&gateway, &config, &broker).await);
        assert_eq!(gateway.field(2, "tls_resumed").await, "true");
    }
}

#[tokio::test]
async fn where_another_cipher_suite_is_preferred_a_full_handshake_follows() {
    for versions in BOTH {
        for (ways, by_number) in [("tickets", false), ("cache", true)] {
            let (pki, broker) = (Pki::new(), Broker::start().await);
            let tls = format!("{}resumption = \"{ways}\"\ncipher_preference = \"aes-256\"\n", pki.listener_tls());
            let gateway = gateway(&broker, &tls).await;
            let mut config = tls_config(&pki, Some("thing001"), versions);
            if by_number {
                config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
            }
            let mut line = 0;
            let mut connects_resumed = async || {
                line += 1;
                assert!(attempt(&gateway, &config, &broker).await);
                assert!(gateway.field(line, "cert_subject").await.contains("CN=thing001"));
                gateway.field(line, "tls_resumed").await
            };
            assert_eq!(connects_resumed().await, "false");
            for (before, after) in [("aes-256", "aes-128"), ("aes-128", "aes-256")] {
                assert_eq!(connects_resumed().await, "true");
                let text = fs::read_to_string(gateway.path()).unwrap();
                fs::write(gateway.path(), text.replace(before, after)).unwrap();
                gateway.gateway.reload().await.unwrap();
                assert_eq!(connects_resumed().await, "false", "{ways} {versions:?}: sessions have a cipher suite");
                assert_eq!(connects_resumed().await, "true", "{ways} {versions:?}: the session that followed");
            }
        }
    }
}
