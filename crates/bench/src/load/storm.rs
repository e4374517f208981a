//! A storm. Enters: a number of devices that all connect at the same time. Leaves: their sessions, how long each waited for its
//! CONNACK, and who failed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::tls::{Session, session_over};
use super::{DEVICE, mqtt};

/// So many addresses of this machine connect, as devices of a fleet do: a proxy may limit what one address can take.
const ADDRESSES: usize = 50;

/// What became of a storm.
pub(crate) struct Storm {
    pub(crate) sessions: Vec<Session>,
    /// From the beginning to each CONNACK, the shortest first.
    elapsed: Vec<Duration>,
    pub(crate) failures: Vec<anyhow::Error>,
}

impl Storm {
    /// From the beginning until so many percent of those that did not fail had their CONNACK, in ms.
    pub(crate) fn until(&self, percent: usize) -> f64 {
        let at = self.elapsed.len().saturating_sub(1) * percent / 100;
        self.elapsed.get(at).map_or(f64::NAN, |elapsed| elapsed.as_secs_f64() * 1e3)
    }
}

pub(super) async fn run(connector: &TlsConnector, proxy: SocketAddr, count: usize) -> anyhow::Result<Storm> {
    let connect: Arc<[u8]> = mqtt::connect(DEVICE).into();
    let (begin, mut opening) = (Instant::now(), JoinSet::new());
    for n in 0..count {
        let (connector, connect) = (connector.clone(), Arc::clone(&connect));
        opening.spawn(async move {
            let session = open(&connector, n, proxy, &connect).await;
            (session, begin.elapsed())
        });
    }
    let mut storm =
        Storm { sessions: Vec::with_capacity(count), elapsed: Vec::with_capacity(count), failures: Vec::new() };
    while let Some(opened) = opening.join_next().await {
        match opened? {
            (Ok(session), elapsed) => {
                storm.sessions.push(session);
                storm.elapsed.push(elapsed);
            }
            (Err(error), _) => storm.failures.push(error),
        }
    }
    storm.elapsed.sort_unstable();
    Ok(storm)
}

async fn open(connector: &TlsConnector, n: usize, proxy: SocketAddr, connect: &[u8]) -> anyhow::Result<Session> {
    session_over(connector, socket_from(n, proxy).await?, connect).await
}

/// The connection of the `n`th device.
pub(crate) async fn socket_from(n: usize, proxy: SocketAddr) -> anyhow::Result<TcpStream> {
    let [.., host] = (1 + n % ADDRESSES).to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
    socket.connect(proxy).await.context("TCP connect")
}
