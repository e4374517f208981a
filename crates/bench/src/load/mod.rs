//! The load. Enters: the address of a proxy, numbers of connections. Leaves: sessions of devices with that proxy, and what the
//! broker behind it has received.

mod addresses;
mod broker;
mod flights;
mod flood;
pub(crate) mod mqtt;
pub(crate) mod quic;
mod tls;
mod trusting;
pub(crate) mod websocket;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use portcullis_pki::{Authority, Init, Purpose, Request};
use rustls::client::Resumption;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsConnector;

pub(crate) use addresses::socket_from;
pub(crate) use broker::{BACKLOG, Broker, flood_request};
pub(crate) use flights::{Flights, Stop};
pub(crate) use flood::{LARGE, write_again_and_again};
pub(crate) use tls::{Session, client_config, handshake, session_as};

pub(crate) const DEVICE: &str = "thing001";
/// Not the common name of any certificate.
const OTHER_DEVICE: &str = "thing999";
/// Concurrent connects: enough to keep two cores busy.
pub(crate) const CONCURRENCY: usize = 16;
/// How old a session is when its messages begin to count. Portcullis moves a session to a relay thread once it has lasted a
/// second: before, its messages wait behind handshakes, and the move itself takes CPU time. What counts is what a session costs for
/// the rest of its life, of all proxies alike.
pub(crate) const SETTLED: Duration = Duration::from_millis(1500);

/// Between two batches of [`Load::stay`]: 320 connects a second, so slow that all proxies keep up, and connects, sessions that move
/// and ends happen at the same time.
const BATCH_GAP: Duration = Duration::from_millis(50);

/// Certificates and a broker.
pub(crate) struct Load {
    pub(crate) broker: Broker,
    connector: TlsConnector,
    /// One for each worker, with the TLS sessions that it can resume.
    resuming: Vec<TlsConnector>,
}

/// What to do with a session that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Close,
    Keep,
}

impl Load {
    /// Creates a PKI in `dir/pki` and starts the broker.
    pub(crate) fn prepare(dir: &Path) -> anyhow::Result<Self> {
        Self::of(dir, &[DEVICE]).map(|(load, _)| load)
    }

    /// As [`Load::prepare`], with connectors for several devices.
    pub(crate) fn of(dir: &Path, devices: &[&str]) -> anyhow::Result<(Self, Vec<TlsConnector>)> {
        let authority = Authority::init(&dir.join("pki"), &Init { name: "Bench".to_owned(), ..Init::default() })?;
        let request = |name: &str, purpose| {
            let names = if purpose == Purpose::Server { vec![name.to_owned()] } else { Vec::new() };
            Request { name: name.to_owned(), organization: None, purpose, names, days: 2 }
        };
        authority.issue(&request("localhost", Purpose::Server))?;
        let mut configs = Vec::new();
        for device in devices {
            authority.issue(&request(device, Purpose::Device))?;
            configs.push(tls::client_config(&authority, device)?);
        }
        let resuming = (0..CONCURRENCY).map(|_| {
            let mut config = configs[0].clone();
            config.resumption = Resumption::in_memory_sessions(8);
            TlsConnector::from(Arc::new(config))
        });
        let resuming = resuming.collect();
        let connectors: Vec<_> = configs.into_iter().map(|config| TlsConnector::from(Arc::new(config))).collect();
        Ok((Self { broker: Broker::start()?, connector: connectors[0].clone(), resuming }, connectors))
    }

    /// The device of all sessions that do not say otherwise.
    pub(crate) fn connector(&self) -> TlsConnector {
        self.connector.clone()
    }

    /// Whether the proxy admits a client ID that is not the certificate's common name.
    pub(crate) async fn is_other_admitted(&self, proxy: SocketAddr) -> bool {
        session_as(&self.connector, proxy, &mqtt::connect(OTHER_DEVICE)).await.is_ok()
    }

    /// Connects over TLS, without CONNECT.
    pub(crate) async fn handshake(&self, socket: TcpStream) -> anyhow::Result<Session> {
        tls::handshake(&self.connector, socket).await
    }

    /// Connects, waits for CONNACK and closes, `count` times.
    pub(crate) async fn connect(&self, proxy: SocketAddr, count: usize) -> anyhow::Result<()> {
        open(&vec![self.connector.clone(); CONCURRENCY], proxy, count, Then::Close).await.map(|_| ())
    }

    /// As [`Load::connect`], but each worker resumes its last TLS session. Returns how many connects were resumed.
    pub(crate) async fn connect_again(&self, proxy: SocketAddr, count: usize) -> anyhow::Result<usize> {
        for connector in &self.resuming {
            open(std::slice::from_ref(connector), proxy, 1, Then::Close).await?;
        }
        Ok(open(&self.resuming, proxy, count, Then::Close).await?.resumed)
    }

    /// Connects one after another: the next when both sides know the end of the one before. Returns how many were resumed: all
    /// but the first, if this is wanted, or none.
    pub(crate) async fn connect_in_turn(
        &self,
        proxy: SocketAddr,
        count: usize,
        is_resuming: bool,
    ) -> anyhow::Result<usize> {
        let connector = if is_resuming { &self.resuming[0] } else { &self.connector };
        let (connect, mut resumed) = (mqtt::connect(DEVICE), 0);
        for _ in 0..count {
            let ended = self.broker.ended();
            let mut session = session_as(connector, proxy, &connect).await?;
            resumed += usize::from(tls::is_resumed(&session));
            session.shutdown().await.context("TLS close")?;
            tls::wait_for_end(&mut session).await?;
            self.broker.wait_for_ended(ended + 1).await?;
        }
        Ok(resumed)
    }

    /// Opens sessions that stay connected, one after another.
    pub(crate) async fn sessions_in_turn(&self, proxy: SocketAddr, count: usize) -> anyhow::Result<Vec<Session>> {
        Ok(open(std::slice::from_ref(&self.connector), proxy, count, Then::Keep).await?.sessions)
    }

    /// Opens sessions that stay connected, [`CONCURRENCY`] at a time.
    pub(crate) async fn sessions(&self, proxy: SocketAddr, count: usize) -> anyhow::Result<Vec<Session>> {
        Ok(open(&vec![self.connector.clone(); CONCURRENCY], proxy, count, Then::Keep).await?.sessions)
    }

    /// Connects `count` times, [`CONCURRENCY`] at once every [`BATCH_GAP`]. Each session does nothing for this time, and then ends.
    pub(crate) async fn stay(&self, proxy: SocketAddr, count: usize, time: Duration) -> anyhow::Result<()> {
        let (connect, mut staying) = (Arc::<[u8]>::from(mqtt::connect(DEVICE)), JoinSet::new());
        let mut batches = interval(BATCH_GAP);
        for n in 0..count {
            if n.is_multiple_of(CONCURRENCY) {
                batches.tick().await;
            }
            let (connector, connect) = (self.connector.clone(), Arc::clone(&connect));
            staying.spawn(async move {
                let mut session = session_as(&connector, proxy, &connect).await?;
                let read = timeout(time, session.read(&mut [0])).await;
                ensure!(read.is_err(), "a session did not stay: {read:?}");
                session.shutdown().await.context("TLS close")
            });
        }
        while let Some(ended) = staying.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// As [`Load::sessions`], and waits until all of them are [`SETTLED`].
    pub(crate) async fn settled(&self, proxy: SocketAddr, count: usize) -> anyhow::Result<Vec<Session>> {
        let sessions = self.sessions(proxy, count).await?;
        sleep(SETTLED).await;
        Ok(sessions)
    }

    /// Publishes these messages in turn, at this rate per second over all sessions together, at least ten. Each message must
    /// arrive. Returns their number.
    pub(crate) async fn paced(
        &self,
        sessions: &mut [Session],
        messages: &[Vec<u8>],
        pace: usize,
        duration: Duration,
    ) -> anyhow::Result<usize> {
        let before = self.broker.received();
        // Few at once: what arrives together costs less.
        let part = (sessions.len() / 10).min(10);
        let mut tick = interval(Duration::from_secs_f64(part as f64 / pace as f64));
        let begin = Instant::now();
        let (mut sent, mut bytes) = (0, 0);
        'load: loop {
            for chunk in sessions.chunks_mut(part) {
                tick.tick().await;
                if begin.elapsed() >= duration {
                    break 'load;
                }
                for session in chunk {
                    let message = &messages[sent % messages.len()];
                    session.write_all(message).await?;
                    session.flush().await?;
                    sent += 1;
                    bytes += message.len();
                }
            }
        }
        self.broker.wait_for(before, bytes).await?;
        Ok(sent)
    }
}

#[derive(Default)]
struct Opened {
    sessions: Vec<Session>,
    resumed: usize,
}

/// Opens `count` sessions, with one worker for each connector.
async fn open(connectors: &[TlsConnector], proxy: SocketAddr, count: usize, then: Then) -> anyhow::Result<Opened> {
    let (left, mut workers) = (Arc::new(AtomicUsize::new(count)), JoinSet::new());
    let connect: Arc<[u8]> = mqtt::connect(DEVICE).into();
    for connector in connectors {
        let (left, connector, connect) = (Arc::clone(&left), connector.clone(), Arc::clone(&connect));
        workers.spawn(async move {
            let mut opened = Opened::default();
            let take = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                let mut session = session_as(&connector, proxy, &connect).await?;
                opened.resumed += usize::from(tls::is_resumed(&session));
                match then {
                    Then::Close => session.shutdown().await.context("TLS close")?,
                    Then::Keep => opened.sessions.push(session),
                }
            }
            anyhow::Ok(opened)
        });
    }
    let mut all = Opened::default();
    while let Some(opened) = workers.join_next().await {
        let opened = opened??;
        all.sessions.extend(opened.sessions);
        all.resumed += opened.resumed;
    }
    Ok(all)
}
