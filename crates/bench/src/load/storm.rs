//! A storm. Enters: a number of devices that all connect at the same time. Leaves: their sessions, how long it took until the
//! last had its CONNACK, and who failed.

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
    /// From the first connect to the last CONNACK.
    pub(crate) elapsed: Duration,
    pub(crate) failures: Vec<anyhow::Error>,
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
    let mut storm = Storm { sessions: Vec::with_capacity(count), elapsed: Duration::ZERO, failures: Vec::new() };
    while let Some(opened) = opening.join_next().await {
        match opened? {
            (Ok(session), elapsed) => {
                storm.sessions.push(session);
                storm.elapsed = storm.elapsed.max(elapsed);
            }
            (Err(error), _) => storm.failures.push(error),
        }
    }
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
