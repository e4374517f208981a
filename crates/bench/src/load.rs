//! The load: devices that connect, idle and publish, and a broker that accepts everything.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use portcullis_pki::{Authority, Init, Purpose, Request};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::proxies::Proxy;

const DEVICE: &str = "thing001";
const CONNECT: &[u8] = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x00\x00\x08thing001";
const WRONG_CONNECT: &[u8] = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x00\x00\x08thing002";
pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];
pub(crate) const PINGRESP: &[u8] = &[0xd0, 0];
const CONNACK: &[u8] = b"\x20\x02\x00\x00";
/// A PUBLISH with 64 bytes of payload.
const MESSAGE_LEN: usize = MESSAGE_REST as usize + 2;
const MESSAGE_REST: u8 = 2 + 6 + 64;
/// Concurrent connects: enough to keep two cores busy.
pub(crate) const CONCURRENCY: usize = 16;
/// Bytes per write when flooding.
const FLOOD: usize = 16 << 10;

pub(crate) type Session = TlsStream<TcpStream>;

/// Certificates and a broker.
pub(crate) struct Load {
    pub(crate) broker: SocketAddr,
    connector: TlsConnector,
    /// One connector per worker, with the TLS sessions it can resume.
    resuming: Vec<TlsConnector>,
    received: Arc<AtomicUsize>,
}

impl Load {
    /// Creates a PKI in `dir/pki` and starts the broker.
    pub(crate) async fn prepare(dir: &Path) -> anyhow::Result<Self> {
        Self::of(dir, &[DEVICE]).await.map(|(load, _)| load)
    }

    /// As [`Load::prepare`], with connectors for several devices.
    pub(crate) async fn of(dir: &Path, devices: &[&str]) -> anyhow::Result<(Self, Vec<TlsConnector>)> {
        let authority = Authority::init(&dir.join("pki"), &Init { name: "Bench".to_owned(), ..Init::default() })?;
        let request = |name: &str, purpose| {
            let names = if purpose == Purpose::Server { vec![name.to_owned()] } else { Vec::new() };
            Request { name: name.to_owned(), organization: None, purpose, names, days: 2 }
        };
        authority.issue(&request("localhost", Purpose::Server))?;
        let mut configs = Vec::new();
        for device in devices {
            authority.issue(&request(device, Purpose::Device))?;
            configs.push(client_config(&authority, device)?);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (broker, received) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        tokio::spawn(accept(listener, Arc::clone(&received)));
        let resuming = (0..CONCURRENCY).map(|_| {
            let mut config = configs[0].clone();
            config.resumption = rustls::client::Resumption::in_memory_sessions(8);
            TlsConnector::from(Arc::new(config))
        });
        let resuming = resuming.collect();
        let connectors: Vec<_> = configs.into_iter().map(|config| TlsConnector::from(Arc::new(config))).collect();
        Ok((Self { broker, connector: connectors[0].clone(), resuming, received }, connectors))
    }

    /// Asserts that the proxy checks the identity: only proxies that do are comparable.
    pub(crate) async fn refuses_another(&self, proxy: &Proxy) -> anyhow::Result<()> {
        let mut stream = tls(&self.connector, TcpStream::connect(proxy.address).await?).await?;
        stream.write_all(WRONG_CONNECT).await?;
        let mut answer = [0; 4];
        let is_admitted = stream.read_exact(&mut answer).await.is_ok() && answer == CONNACK;
        ensure!(!is_admitted, "{} admits a client ID that does not match the certificate", proxy.name);
        Ok(())
    }

    /// Connects, waits for CONNACK and closes, `count` times. Returns the elapsed time.
    pub(crate) async fn connect(&self, proxy: &Proxy, count: usize) -> anyhow::Result<Duration> {
        let (begin, left, mut workers) = (Instant::now(), Arc::new(AtomicUsize::new(count)), JoinSet::new());
        for _ in 0..CONCURRENCY {
            let (left, connector, address) = (Arc::clone(&left), self.connector.clone(), proxy.address);
            workers.spawn(async move {
                let take = |left: usize| left.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    session(&connector, address).await?.shutdown().await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(result) = workers.join_next().await {
            result??;
        }
        Ok(begin.elapsed())
    }

    /// As [`Load::connect`], but each worker resumes its last TLS session. Returns how many connects were resumed.
    pub(crate) async fn connect_again(&self, proxy: &Proxy, count: usize) -> anyhow::Result<usize> {
        let (left, resumed, mut workers) = (Arc::new(AtomicUsize::new(count)), Arc::default(), JoinSet::new());
        for connector in &self.resuming {
            let (left, resumed) = (Arc::clone(&left), Arc::<AtomicUsize>::clone(&resumed));
            let (connector, address) = (connector.clone(), proxy.address);
            workers.spawn(async move {
                let take = |left: usize| left.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    let mut session = session(&connector, address).await?;
                    if session.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed) {
                        resumed.fetch_add(1, Ordering::Relaxed);
                    }
                    session.shutdown().await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(result) = workers.join_next().await {
            result??;
        }
        Ok(resumed.load(Ordering::Relaxed))
    }

    /// Connects over TLS, without CONNECT.
    pub(crate) async fn handshake(&self, socket: TcpStream) -> anyhow::Result<Session> {
        tls(&self.connector, socket).await
    }

    /// Opens sessions that stay connected.
    pub(crate) async fn sessions(&self, proxy: &Proxy, count: usize) -> anyhow::Result<Vec<Session>> {
        let mut sessions = Vec::with_capacity(count);
        while sessions.len() < count {
            let some = (count - sessions.len()).min(CONCURRENCY);
            let mut opening = JoinSet::new();
            for _ in 0..some {
                let (connector, address) = (self.connector.clone(), proxy.address);
                opening.spawn(async move { session(&connector, address).await });
            }
            while let Some(session) = opening.join_next().await {
                sessions.push(session??);
            }
        }
        Ok(sessions)
    }

    /// Publishes at this rate per second over all sessions together. Returns how many messages the broker received.
    pub(crate) async fn paced(
        &self,
        mut sessions: Vec<Session>,
        pace: usize,
        duration: Duration,
    ) -> anyhow::Result<(Vec<Session>, usize)> {
        let (message, before) = (message(), self.received.load(Ordering::Relaxed));
        let gap = Duration::from_secs_f64(sessions.len() as f64 / pace as f64);
        let mut tick = tokio::time::interval(gap / 10);
        let begin = Instant::now();
        let part = sessions.len() / 10;
        'load: loop {
            for chunk in sessions.chunks_mut(part) {
                tick.tick().await;
                if begin.elapsed() >= duration {
                    break 'load;
                }
                for session in chunk {
                    session.write_all(&message).await?;
                    session.flush().await?;
                }
            }
        }
        Ok((sessions, self.settled(before).await / MESSAGE_LEN))
    }

    /// Publishes as fast as possible. Returns how many messages the broker received.
    pub(crate) async fn flood(
        &self,
        sessions: Vec<Session>,
        duration: Duration,
    ) -> anyhow::Result<(Vec<Session>, usize)> {
        let (sessions, bytes) = self.flood_with(sessions, duration, message().repeat(FLOOD / MESSAGE_LEN)).await?;
        Ok((sessions, bytes / MESSAGE_LEN))
    }

    /// Writes the same bytes again and again, as fast as possible. Returns how many bytes the broker received.
    pub(crate) async fn flood_with(
        &self,
        sessions: Vec<Session>,
        duration: Duration,
        flood: Vec<u8>,
    ) -> anyhow::Result<(Vec<Session>, usize)> {
        let before = self.received.load(Ordering::Relaxed);
        let flood = Arc::new(flood);
        let mut flooding = JoinSet::new();
        for mut session in sessions {
            let flood = Arc::clone(&flood);
            flooding.spawn(async move {
                let begin = Instant::now();
                while begin.elapsed() < duration {
                    session.write_all(&flood).await?;
                }
                session.flush().await?;
                anyhow::Ok(session)
            });
        }
        let mut sessions = Vec::new();
        while let Some(session) = flooding.join_next().await {
            sessions.push(session??);
        }
        Ok((sessions, self.settled(before).await))
    }

    /// Waits until no more bytes arrive, and returns their number since `before`.
    async fn settled(&self, before: usize) -> usize {
        let mut last = before;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.received.load(Ordering::Relaxed);
            if now == last {
                return now - before;
            }
            last = now;
        }
    }
}

fn client_config(authority: &Authority, device: &str) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.root())?)?;
    let chain = CertificateDer::pem_file_iter(authority.chain_of(device))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(authority.key_of(device))?;
    // A group that both support: Debian's OpenSSL has no post-quantum key exchange.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    provider.cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

async fn tls(connector: &TlsConnector, socket: TcpStream) -> anyhow::Result<Session> {
    socket.set_nodelay(true)?;
    connector.connect(ServerName::try_from("localhost")?, socket).await.context("TLS handshake")
}

async fn session(connector: &TlsConnector, address: SocketAddr) -> anyhow::Result<Session> {
    session_as(connector, address, CONNECT).await
}

/// Opens a session with this CONNECT.
pub(crate) async fn session_as(
    connector: &TlsConnector,
    address: SocketAddr,
    connect: &[u8],
) -> anyhow::Result<Session> {
    let mut stream = tls(connector, TcpStream::connect(address).await?).await?;
    stream.write_all(connect).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == CONNACK, "CONNECT was rejected");
    Ok(stream)
}

/// The topic of all messages.
pub(crate) const TOPIC: &str = "a/b/cd";

/// A message of QoS 0 with 64 bytes of payload.
pub(crate) fn message() -> Vec<u8> {
    let mut message = vec![0x30, MESSAGE_REST, 0, 6];
    message.extend(TOPIC.as_bytes());
    message.resize(MESSAGE_LEN, b'x');
    message
}

/// Accepts every CONNECT and counts the bytes behind it.
async fn accept(listener: TcpListener, received: Arc<AtomicUsize>) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            let _ = socket.set_nodelay(true);
            // The proxy may have added a user name, so read the packet's length from its header: all are shorter than 128
            // bytes.
            let mut head = [0; 2];
            socket.read_exact(&mut head).await?;
            let mut rest = vec![0; head[1].into()];
            socket.read_exact(&mut rest).await?;
            socket.write_all(CONNACK).await?;
            // A small buffer, so that a thousand idle connections of the broker hardly affect the measurement.
            let mut buffer = vec![0; 16 << 10];
            loop {
                match socket.read(&mut buffer).await? {
                    0 => return std::io::Result::Ok(()),
                    read if buffer[..read] == PINGREQ => socket.write_all(PINGRESP).await?,
                    read => {
                        received.fetch_add(read, Ordering::Relaxed);
                    }
                }
            }
        });
    }
}
