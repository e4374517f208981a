//! Sessions of every kind pass all bytes in order before, during and after their move to a thread that relays and between such threads, and end there
//! as elsewhere: each half by itself, in TLS with close_notify, and with a complete access line.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use portcullis_testkit::{Broker, Client, Pki, TestGateway, connack, connect, eventually, publish, soon, tls_config};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;

use crate::places::Place;

/// So many messages are in flight each way.
const WINDOW: usize = 4;
/// The pause between two messages of a session.
const PACE: Duration = Duration::from_millis(5);
/// The messages that follow the move.
const MORE: usize = 20;
const KEY: &[u8] = b"0123456789abcdef";

/// Writes a file with the pre-shared key of `device`. Returns a `[listener.tls]` with it.
pub(crate) fn with_key(path: &Path) -> String {
    fs::write(path, format!("device:{}\n", hex::encode(KEY))).unwrap();
    format!("[listener.tls]\npsk = {{ file = {path:?}, format = \"hex\" }}\n")
}

/// What is between the client and its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Tls12,
    Tls13,
    TlsToBroker,
    #[cfg(feature = "psk")]
    Psk12,
    #[cfg(feature = "psk")]
    Psk13,
    TopicRules,
    Mountpoint,
}

const KINDS: &[Kind] = &[
    Kind::Plain,
    Kind::Tls12,
    Kind::Tls13,
    Kind::TlsToBroker,
    #[cfg(feature = "psk")]
    Kind::Psk12,
    #[cfg(feature = "psk")]
    Kind::Psk13,
    Kind::TopicRules,
    Kind::Mountpoint,
];

/// Which end closes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Client,
    Broker,
}

/// A gateway with a listener of each kind, and what is behind it.
struct Setup {
    pki: Pki,
    broker: Broker,
    gateway: TestGateway,
}

impl Setup {
    async fn new() -> Self {
        let (pki, broker) = (Pki::new(), Broker::start().await);
        let psk = with_key(&pki.dir().join("psk.txt"));
        let listener = |name: &str, protocol: &str, rest: &str| {
            let listener = TestGateway::LISTENER.replace("\"devices\"", &format!("{name:?}"));
            format!("{}{rest}", listener.replace("\"tls\"", &format!("{protocol:?}")))
        };
        let secure = listener("to-broker", "tcp", "").replace("\"brokers\"", "\"secure\"");
        let mut listeners = vec![
            listener("plain", "tcp", ""),
            listener("tls", "tls", &pki.listener_tls()),
            listener("rules", "tcp", "topics = \"all\"\n"),
            listener("mounted", "tcp", "mountpoint = 'm/${mqtt.client_id}/'\n"),
            secure,
        ];
        if cfg!(feature = "psk") {
            listeners.push(listener("psk", "tls", &psk));
        }
        let upstreams = [
            broker.upstream(),
            format!(
                "{}[upstream.tls]\nca = {:?}\n",
                broker.upstream().replace("\"brokers\"", "\"secure\""),
                pki.root()
            ),
        ];
        let policy =
            "[[topic_policy]]\nname = \"all\"\n[[topic_policy.rule]]\npublish = [\"t/#\"]\nsubscribe = [\"t/#\"]\n";
        let gateway = TestGateway::start(
            &(listeners.concat() + &upstreams.concat() + policy + "[runtime]\nworker_threads = 2\n"),
        )
        .await;
        Self { pki, broker, gateway }
    }

    fn address(&self, listener: &str) -> SocketAddr {
        self.gateway.gateway.addresses().into_iter().find(|(name, _)| **name == *listener).unwrap().1
    }

    /// Opens a session.
    async fn open(&self, kind: Kind, first: First) -> Session {
        let name = format!("{kind:?}-{first:?}");
        let tls = async |version| {
            let config = tls_config(&self.pki, Some(&name), &[version]);
            Client::try_tls(self.address("tls"), config, "localhost").await.unwrap()
        };
        let mut client = match kind {
            Kind::Plain => Client::tcp(self.address("plain")).await,
            Kind::Tls12 => tls(&rustls::version::TLS12).await,
            Kind::Tls13 => tls(&rustls::version::TLS13).await,
            Kind::TlsToBroker => Client::tcp(self.address("to-broker")).await,
            #[cfg(feature = "psk")]
            Kind::Psk12 => psk::connect(self.address("psk"), openssl::ssl::SslVersion::TLS1_2).await,
            #[cfg(feature = "psk")]
            Kind::Psk13 => psk::connect(self.address("psk"), openssl::ssl::SslVersion::TLS1_3).await,
            Kind::TopicRules => Client::tcp(self.address("rules")).await,
            Kind::Mountpoint => Client::tcp(self.address("mounted")).await,
        };
        let packet = connect(&name);
        client.write(&packet).await;
        let connection = self.broker.accept().await.0;
        let mut broker = match kind {
            Kind::TlsToBroker => {
                Client::over(soon("TLS to the broker", self.acceptor().accept(connection)).await.unwrap())
            }
            _ => Client::over(connection),
        };
        broker.expect(&packet).await;
        broker.write(&connack(4)).await;
        client.expect(&connack(4)).await;
        let prefix = if kind == Kind::Mountpoint { format!("m/{name}/") } else { String::new() };
        Session { kind, first, prefix, client, broker, received: packet.len(), sent: connack(4).len(), name }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let chain = CertificateDer::pem_file_iter(self.pki.chain("localhost")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(self.pki.key("localhost")).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        TlsAcceptor::from(Arc::new(config.unwrap()))
    }
}

/// Both ends of a session, and the bytes that its client has sent and received.
struct Session {
    kind: Kind,
    first: First,
    name: String,
    /// What precedes topics at the broker.
    prefix: String,
    client: Client,
    broker: Client,
    received: usize,
    sent: usize,
}

impl Session {
    /// Message number `n` of a direction, as it is with a topic prefix. Some are larger than a TLS record.
    fn message(direction: &str, n: usize, prefix: &str) -> Vec<u8> {
        let payload = format!("{direction} {n} ").repeat(if n.is_multiple_of(16) { 3000 } else { 1 + n % 50 });
        publish(4, 0, &format!("{prefix}t/{direction}"), None, &[], payload.as_bytes())
    }

    async fn client_sends(&mut self, n: usize) {
        let message = Self::message("up", n, "");
        self.client.write(&message).await;
        self.received += message.len();
    }

    async fn broker_sends(&mut self, n: usize) {
        self.broker.write(&Self::message("down", n, &self.prefix)).await;
    }

    async fn broker_receives(&mut self, n: usize) {
        self.broker.expect(&Self::message("up", n, &self.prefix)).await;
    }

    async fn client_receives(&mut self, n: usize) {
        let message = Self::message("down", n, "");
        self.client.expect(&message).await;
        self.sent += message.len();
    }

    /// Sends and receives messages until the session has moved, and some more. Returns the number of the next one.
    async fn converse(&mut self, has_moved: &AtomicBool) -> usize {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut next, mut more) = (0, 0);
        while more < MORE {
            more += usize::from(has_moved.load(Ordering::Relaxed));
            if more == MORE / 2 && self.kind == Kind::Tls13 {
                self.client.update_keys();
            }
            self.client_sends(next).await;
            self.broker_sends(next).await;
            if let Some(n) = next.checked_sub(WINDOW) {
                self.broker_receives(n).await;
                self.client_receives(n).await;
            }
            next += 1;
            pace.tick().await;
        }
        for n in next - WINDOW..next {
            self.broker_receives(n).await;
            self.client_receives(n).await;
        }
        next
    }

    /// Closes one half, uses the other one, and closes that. `n`: the number of the next message.
    async fn close(&mut self, n: usize) {
        match self.first {
            First::Client => {
                self.client.shutdown().await;
                self.broker.expect_end().await;
                self.broker_sends(n).await;
                self.client_receives(n).await;
                self.broker.shutdown().await;
                self.client.expect_end().await;
            }
            First::Broker => {
                self.broker.shutdown().await;
                self.client.expect_end().await;
                self.client_sends(n).await;
                self.broker_receives(n).await;
                self.client.shutdown().await;
                self.broker.expect_end().await;
            }
        }
    }

    /// Status, bytes, and reason of its access line.
    fn line(&self) -> String {
        let (status, reason) = match self.first {
            First::Client => (200, "ok"),
            First::Broker => (502, "upstream_closed"),
        };
        format!("{status} {} {} {reason}", self.received, self.sent)
    }
}

#[test]
fn sessions_of_every_kind_pass_all_bytes_wherever_they_run() {
    Place::both(async |place| {
        let setup = Setup::new().await;
        let mut sessions = Vec::new();
        for kind in KINDS {
            for first in [First::Client, First::Broker] {
                sessions.push(setup.open(*kind, first).await);
            }
        }
        let (count, has_moved) = (sessions.len(), AtomicBool::new(false));
        let moves = async {
            place.reached(&setup.gateway, count).await;
            if place == Place::Relay {
                spread_and_gather(&setup.gateway).await;
            }
            has_moved.store(true, Ordering::Relaxed);
        };
        let converse = sessions.iter_mut().map(async |session| {
            let next = session.converse(&has_moved).await;
            session.close(next).await;
        });
        tokio::join!(moves, join_all(converse));
        let lines: HashMap<String, String> =
            setup.gateway.lines(count).await.iter().map(|line| of_client(line)).collect();
        for session in &sessions {
            assert_eq!(lines[&session.name], session.line(), "{}", session.name);
        }
    });
}

/// Moves half of the sessions to another thread and back, some times.
async fn spread_and_gather(gateway: &TestGateway) {
    for _ in 0..5 {
        for all in [true, false] {
            gateway.gateway.use_all_relay_threads(all);
            let is_moved = || (gateway.gateway.relays_on(1) == all).then_some(());
            eventually("a change of threads", is_moved).await;
        }
    }
}

/// The client ID of an access line; its status, bytes, and reason.
fn of_client(line: &str) -> (String, String) {
    let columns: Vec<&str> = line.split(' ').collect();
    (columns[8].to_owned(), format!("{} {} {} {}", columns[4], columns[5], columns[6], columns[9]))
}

#[cfg(feature = "psk")]
pub(crate) mod psk {
    use std::net::SocketAddr;
    use std::pin::Pin;

    use openssl::ssl::{Ssl, SslContextBuilder, SslMethod, SslVersion};
    use portcullis_testkit::{Client, soon};
    use tokio::net::TcpStream;
    use tokio_openssl::SslStream;

    use super::KEY;

    /// Connects as `device` with the pre-shared key, over this version of TLS.
    pub(crate) async fn connect(address: SocketAddr, version: SslVersion) -> Client {
        let mut context = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
        context.set_min_proto_version(Some(version)).unwrap();
        context.set_max_proto_version(Some(version)).unwrap();
        context.set_cipher_list("PSK:@SECLEVEL=0").unwrap();
        context.set_psk_client_callback(|_, _, identity, key| {
            identity[..7].copy_from_slice(b"device\0");
            key[..KEY.len()].copy_from_slice(KEY);
            Ok(KEY.len())
        });
        let socket = TcpStream::connect(address).await.unwrap();
        let mut stream = SslStream::new(Ssl::new(&context.build()).unwrap(), socket).unwrap();
        soon("a TLS handshake", Pin::new(&mut stream).connect()).await.unwrap();
        Client::over(stream)
    }
}
