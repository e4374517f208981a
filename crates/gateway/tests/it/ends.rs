//! What ends sessions ends them in time wherever they run: where connections begin, and on the threads that relay.

use std::fs;
use std::time::{Duration, Instant};

use portcullis_gateway::Successor;
use portcullis_registry::State;
use portcullis_testkit::{
    Broker, BrokerConnection, Client, Pki, TestGateway, connack, connect, connect_as, connect_v5, eventually,
    password_file,
};
use serde_json::json;
use tokio::time::sleep_until;

use crate::places::Place;
use crate::tokens::{self, Issuer};
use crate::{devices, trust};

/// The documented bound of the slowest: two seconds until a changed file is loaded, and five more until the session closes.
const BOUND: Duration = Duration::from_secs(7);
const NOT_AUTHORIZED: &[u8] = b"\xe0\x02\x87\x00";
const SHUTTING_DOWN: &[u8] = b"\xe0\x02\x8b\x00";
const KEEP_ALIVE_TIMEOUT: &[u8] = b"\xe0\x02\x8d\x00";
const MESSAGE_RATE_TOO_HIGH: &[u8] = b"\xe0\x02\x96\x00";
const MAXIMUM_CONNECT_TIME: &[u8] = b"\xe0\x02\xa0\x00";

/// The only session of a gateway.
struct Session {
    gateway: TestGateway,
    client: Client,
    connection: BrokerConnection,
}

/// How a session ends: what the client receives, and the access line's status and reason.
struct End {
    goodbye: &'static [u8],
    outcome: &'static str,
}

const fn end(goodbye: &'static [u8], outcome: &'static str) -> End {
    End { goodbye, outcome }
}

impl Session {
    /// Of a plain listener with this CONNECT.
    async fn plain(listener: &str, rest: &str, broker: &Broker, packet: &[u8]) -> Self {
        let listener = format!("{}{listener}", TestGateway::LISTENER.replace("\"tls\"", "\"tcp\""));
        Self::of(TestGateway::start(&format!("{listener}{rest}{}", broker.upstream())).await, broker, packet).await
    }

    async fn of(gateway: TestGateway, broker: &Broker, packet: &[u8]) -> Self {
        let version = packet[packet.windows(4).position(|bytes| bytes == b"MQTT").unwrap() + 4];
        let mut client = Client::tcp(gateway.address()).await;
        client.write(packet).await;
        let mut connection = broker.accept().await;
        connection.expect(packet).await;
        connection.write(&connack(version)).await;
        client.expect(&connack(version)).await;
        Self { gateway, client, connection }
    }

    /// Of a device with a certificate.
    async fn certified(pki: &Pki, broker: &Broker, tls: &str) -> Self {
        let gateway = trust::gateway(broker, tls).await;
        let (client, connection) = trust::session(&gateway, pki, broker, "thing001", 5).await;
        Self { gateway, client, connection }
    }

    async fn exchange(&mut self) {
        self.client.write(b"\xc0\x00").await;
        self.connection.expect(b"\xc0\x00").await;
        self.connection.write(b"\xd0\x00").await;
        self.client.expect(b"\xd0\x00").await;
    }

    /// The session goes on in its place, until `act` has done what ends it.
    async fn ends(mut self, place: Place, act: impl AsyncFnOnce(&mut Self), End { goodbye, outcome }: End) {
        self.exchange().await;
        place.reached(&self.gateway, 1).await;
        self.exchange().await;
        act(&mut self).await;
        let begin = Instant::now();
        assert_eq!(self.client.read_to_end().await, goodbye, "{outcome}");
        assert!(begin.elapsed() < BOUND, "{outcome}: {:?}", begin.elapsed());
        assert_eq!(self.gateway.outcome().await, outcome);
        self.connection.read_to_end().await;
        place.reached(&self.gateway, 0).await;
    }

    /// Reloads the configuration with a part replaced.
    async fn reload(&self, before: &str, after: &str) {
        let text = fs::read_to_string(self.gateway.path()).unwrap();
        assert!(text.contains(before), "{text}");
        fs::write(self.gateway.path(), text.replacen(before, after, 1)).unwrap();
        self.gateway.gateway.reload().await.unwrap();
    }
}

async fn revoked(place: Place) {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let session = Session::certified(&pki, &broker, &pki.listener_tls_with_crl()).await;
    let act = async |_: &mut Session| pki.revoke("thing001");
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_revoked")).await;
}

async fn certificate_expired(place: Place) {
    let (pki, broker) = (Pki::new(), Broker::start().await);
    let expires = tokens::now() + 3;
    pki.device_until("thing001", 3);
    let session = Session::certified(&pki, &broker, &pki.listener_tls()).await;
    let act = async |_: &mut Session| eventually("the expiry", || (tokens::now() > expires).then_some(())).await;
    session.ends(place, act, end(MAXIMUM_CONNECT_TIME, "403 session_expired")).await;
}

async fn authority_removed(place: Place) {
    let (pki, other, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let bundle = pki.dir().join("bundle.pem");
    fs::copy(pki.root(), &bundle).unwrap();
    let tls = format!("{}client_ca = {bundle:?}\n", pki.listener_tls_without_ca());
    let session = Session::certified(&pki, &broker, &tls).await;
    let act = async |_: &mut Session| {
        fs::copy(other.root(), &bundle).unwrap();
    };
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_ca_removed")).await;
}

async fn listener_removed(place: Place) {
    let (pki, other, broker) = (Pki::new(), Pki::new(), Broker::start().await);
    let tls = format!("{}client_ca = {:?}\n", pki.listener_tls_without_ca(), other.root());
    let others = format!("{}{tls}", TestGateway::LISTENER.replace("\"devices\"", "\"others\""));
    let devices = format!("{}{}", TestGateway::LISTENER, pki.listener_tls());
    let gateway = TestGateway::start(&format!("{devices}{others}{}", broker.upstream())).await;
    let (client, connection) = trust::session(&gateway, &pki, &broker, "thing001", 5).await;
    let session = Session { gateway, client, connection };
    let act = async |session: &mut Session| session.reload(&devices, "").await;
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_ca_removed")).await;
}

async fn token_expired(place: Place) {
    let (dir, broker, issuer) = (tempfile::tempdir().unwrap(), Broker::start().await, Issuer::new("k1"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, tokens::jwks(&[&issuer])).unwrap();
    let gateway = tokens::gateway(&broker, path.to_str().unwrap(), "").await;
    let expires = tokens::now() + 3;
    let token = issuer.sign(&tokens::changed(&json!({ "exp": expires })));
    let session = Session::of(gateway, &broker, &connect_as("thing001", "u", token.as_bytes())).await;
    let act = async |_: &mut Session| eventually("the expiry", || (tokens::now() > expires).then_some(())).await;
    session.ends(place, act, end(b"", "403 session_token_expired")).await;
}

async fn key_of_token_withdrawn(place: Place) {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let (issuer, successor) = (Issuer::new("k1"), Issuer::new("k2"));
    let path = dir.path().join("jwks.json");
    fs::write(&path, tokens::jwks(&[&issuer])).unwrap();
    let gateway = tokens::gateway(&broker, path.to_str().unwrap(), "").await;
    let token = issuer.sign(&tokens::changed(&json!({})));
    let session = Session::of(gateway, &broker, &connect_as("thing001", "u", token.as_bytes())).await;
    let act = async |_: &mut Session| fs::write(&path, tokens::jwks(&[&successor])).unwrap();
    session.ends(place, act, end(b"", "403 session_credential_withdrawn")).await;
}

async fn password_withdrawn(place: Place) {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let users = password_file(dir.path(), "users", &[("alice", "secret"), ("bob", "other")]);
    let packet = connect_as("thing001", "alice", b"secret");
    let session = Session::plain("authenticate = [\"users\"]\n", &users, &broker, &packet).await;
    let path = dir.path().join("users");
    let act = async |_: &mut Session| {
        let text = fs::read_to_string(&path).unwrap();
        let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("alice")).collect();
        fs::write(&path, others.join("\n") + "\n").unwrap();
    };
    session.ends(place, act, end(b"", "403 session_credential_withdrawn")).await;
}

#[cfg(feature = "psk")]
async fn pre_shared_key_withdrawn(place: Place) {
    use crate::moves;

    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let keys = dir.path().join("psk.txt");
    let (tls, packet) = (moves::with_key(&keys), connect("thing001"));
    let gateway = TestGateway::start(&format!("{}{tls}{}", TestGateway::LISTENER, broker.upstream())).await;
    let mut client = moves::psk::connect(gateway.address(), openssl::ssl::SslVersion::TLS1_3).await;
    let connection = client.greet(&broker, &packet).await;
    let session = Session { gateway, client, connection };
    let act = async |_: &mut Session| {
        let text = fs::read_to_string(&keys).unwrap();
        fs::write(&keys, text.replace("device:", "other:")).unwrap();
    };
    session.ends(place, act, end(b"", "403 session_credential_withdrawn")).await;
}

async fn banned_or_disabled_in_the_registry(place: Place, state: State, outcome: &'static str) {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = devices::registry(dir.path()).await;
    devices::add(&registry, devices::with_password("thing001")).await;
    let gateway = devices::plain(dir.path(), &broker, "").await;
    let session = Session::of(gateway, &broker, &connect_as("x", "thing001", b"secret")).await;
    let act = async |_: &mut Session| drop(registry.change("thing001", |device| device.state = state).await.unwrap());
    session.ends(place, act, end(b"", outcome)).await;
}

async fn removed_from_the_registry(place: Place) {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = devices::registry(dir.path()).await;
    devices::add(&registry, devices::with_password("thing001")).await;
    let gateway = devices::plain(dir.path(), &broker, "").await;
    let session = Session::of(gateway, &broker, &connect_as("x", "thing001", b"secret")).await;
    let act = async |_: &mut Session| registry.remove("thing001").await.unwrap();
    session.ends(place, act, end(b"", "403 session_device_removed")).await;
}

#[test]
fn credentials_that_are_no_longer_valid_end_sessions_in_both_places() {
    let far = 4_000_000_000;
    Place::both(async |place| {
        #[cfg(feature = "psk")]
        let of_psk = pre_shared_key_withdrawn(place);
        #[cfg(not(feature = "psk"))]
        let of_psk = async {};
        tokio::join!(
            of_psk,
            revoked(place),
            certificate_expired(place),
            authority_removed(place),
            token_expired(place),
            key_of_token_withdrawn(place),
            password_withdrawn(place),
            banned_or_disabled_in_the_registry(place, State::Banned(far), "403 session_device_banned"),
            banned_or_disabled_in_the_registry(place, State::Disabled, "403 session_device_disabled"),
            removed_from_the_registry(place),
        );
    });
}

async fn address_denied(place: Place) {
    let broker = Broker::start().await;
    let session = Session::plain("", "", &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.reload("upstream =", "deny = [\"127.0.0.1\"]\nupstream =").await;
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_address_denied")).await;
}

async fn rules_added(place: Place) {
    let broker = Broker::start().await;
    let session = Session::plain("", "", &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.reload("upstream =", "mountpoint = 'm/'\nupstream =").await;
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_policy_changed")).await;
}

async fn authentication_added(place: Place) {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let users = password_file(dir.path(), "users", &[("alice", "secret")]);
    let session = Session::plain("", "", &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| {
        session.reload("[[upstream]]", &format!("authenticate = [\"users\"]\n{users}[[upstream]]")).await;
    };
    session.ends(place, act, end(NOT_AUTHORIZED, "403 session_credential_withdrawn")).await;
}

async fn server_drained(place: Place) {
    let broker = Broker::start().await;
    let session = Session::plain("", "", &broker, &connect_v5("thing001")).await;
    let (before, other) = (format!("[\"{}\"]", broker.address()), Broker::start().await);
    let after = format!("[{{ address = \"{}\", drain = true }}, \"{}\"]", broker.address(), other.address());
    let act = async |session: &mut Session| session.reload(&before, &after).await;
    session.ends(place, act, end(SHUTTING_DOWN, "200 server_drained")).await;
}

async fn drained(place: Place) {
    let broker = Broker::start().await;
    let rest = "[runtime]\ndrain_timeout = \"300ms\"\n";
    let session = Session::plain("", rest, &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.gateway.gateway.drain(Successor::Others).await;
    session.ends(place, act, end(SHUTTING_DOWN, "200 drained")).await;
}

async fn stopped(place: Place) {
    let broker = Broker::start().await;
    let session = Session::plain("", "", &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.gateway.gateway.stop().await;
    session.ends(place, act, end(SHUTTING_DOWN, "200 drained")).await;
}

#[test]
fn reloads_and_drains_end_sessions_in_both_places() {
    Place::both(async |place| {
        tokio::join!(
            listener_removed(place),
            address_denied(place),
            rules_added(place),
            authentication_added(place),
            server_drained(place),
            drained(place),
            stopped(place),
        );
    });
}

async fn lifetime_over(place: Place, rest: &str) {
    let broker = Broker::start().await;
    let limits = format!("[listener.limits]\nmax_session_lifetime = \"2s\"\n{rest}");
    let session = Session::plain("", &limits, &broker, &connect_v5("thing001")).await;
    let over = tokio::time::Instant::now() + Duration::from_secs(2);
    let act = async |_: &mut Session| sleep_until(over).await;
    session.ends(place, act, end(MAXIMUM_CONNECT_TIME, "200 session_lifetime")).await;
}

async fn lifetime_shortened(place: Place) {
    let broker = Broker::start().await;
    let limits = "[listener.limits]\nmax_session_lifetime = \"1h\"\n";
    let session = Session::plain("", limits, &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.reload("\"1h\"", "\"1s\"").await;
    session.ends(place, act, end(MAXIMUM_CONNECT_TIME, "200 session_lifetime")).await;
}

async fn silent(place: Place) {
    let broker = Broker::start().await;
    let mut packet = connect_v5("thing001");
    // A keep-alive interval of two seconds: the session ends after three.
    packet[11] = 2;
    let limits = "[listener.limits]\nmax_keep_alive = \"20s\"\n";
    let session = Session::plain("", limits, &broker, &packet).await;
    session.ends(place, async |_| (), end(KEEP_ALIVE_TIMEOUT, "200 keep_alive_timeout")).await;
}

async fn over_its_rate(place: Place) {
    let broker = Broker::start().await;
    let limits = "[listener.limits]\nmessage_rate = { rate = \"1/h\", burst = 1 }\non_exceed = \"disconnect\"\n";
    let session = Session::plain("", limits, &broker, &connect_v5("thing001")).await;
    let act = async |session: &mut Session| session.client.write(&b"\x30\x05\x00\x01a\x00X".repeat(2)).await;
    session.ends(place, act, end(MESSAGE_RATE_TOO_HIGH, "503 quota_exceeded")).await;
}

#[test]
fn limits_end_sessions_in_both_places() {
    Place::both(async |place| {
        tokio::join!(
            lifetime_over(place, ""),
            lifetime_over(place, "max_topic_levels = 9\n"),
            lifetime_shortened(place),
            silent(place),
            over_its_rate(place),
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stop_while_sessions_move_ends_all_of_them() {
    const COUNT: usize = 40;
    let broker = Broker::start().await;
    let gateway = TestGateway::plain(&broker.upstream()).await;
    let mut sessions = Vec::new();
    for n in 0..COUNT {
        sessions.push(gateway.session(&broker, &connect(&format!("thing{n}"))).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // They move as they have come: some have, some are about to.
    eventually("some to move", || (gateway.gateway.relayed_sessions() >= COUNT / 4).then_some(())).await;
    gateway.gateway.stop().await;
    for (mut client, _connection) in sessions {
        assert!(client.read_to_end().await.is_empty());
    }
    let lines = gateway.lines(COUNT).await;
    assert!(lines.iter().all(|line| line.contains(" 200 ") && line.ends_with(" drained")), "{lines:#?}");
    assert_eq!(gateway.gateway.connections(), 0);
}
