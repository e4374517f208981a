//! Clients that connect and then send next to nothing: what each of them costs the gateway, by how far it has come.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::load::{Load, Session};
use crate::packets::inspected;
use crate::peers::{More, Proxy};

/// The beginning of a CONNECT.
const HALF_A_CONNECT: &[u8] = b"\x10\x14\x00\x04MQTT\x04";
/// The beginning of a ClientHello.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00";
/// The head of a PUBLISH that announces 256 MiB, and the first byte of its payload; half a topic; half a SUBSCRIBE.
const HALVES: [(&str, &[u8]); 3] = [
    ("payload of a PUBLISH of 256 MiB", b"\x30\xff\xff\xff\x7f\x00\x06a/b/cdx"),
    ("topic of a PUBLISH", b"\x30\xff\x7f\x30\x00a/b"),
    ("SUBSCRIBE", b"\x82\xff\x07\x00\x01\x00\x05down/"),
];

/// So many addresses of this machine connect: one may hold a share of the connections that are not established.
const ADDRESSES: u8 = 50;

enum Client {
    Plain(TcpStream),
    Secure(Box<Session>),
}

impl Client {
    /// Whether the gateway has kept the connection.
    async fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let read = async {
            match self {
                Self::Plain(socket) => socket.read(&mut byte).await,
                Self::Secure(session) => session.read(&mut byte).await,
            }
        };
        // Nobody sends anything.
        timeout(Duration::from_millis(1), read).await.is_err()
    }
}

/// Measures each stage with a new process.
pub(crate) async fn run(binary: &Path, dir: &Path, clients: usize) -> anyhow::Result<()> {
    let load = Load::prepare(dir)?;
    println!("| where {clients} clients wait | bytes (PSS) each |\n| --- | --- |");
    let stages = ["TCP", "ClientHello", "TLS", "CONNECT"].into_iter().map(|stage| (stage, None));
    for (stage, half) in stages.chain(HALVES.map(|(stage, half)| (stage, Some(half)))) {
        // Deadlines long enough that nobody is disconnected before the measurement.
        let base = inspected(100);
        let more = More {
            listener: format!("{}\nconnect_timeout = \"10m\"", base.listener),
            tls: "handshake_timeout = \"10m\"".to_owned(),
            ..base
        };
        let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, &more).await?;
        let before = proxy.pss()?;
        let mut waiting = Vec::with_capacity(clients);
        while waiting.len() < clients {
            let from = u8::try_from(waiting.len() % usize::from(ADDRESSES)).unwrap_or(0);
            waiting.push(open(&load, &proxy, stage, half, from).await.context(stage)?);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let grown = proxy.pss()?.saturating_sub(before);
        println!("| {stage} | {:.0} |", grown as f64 / clients as f64);
        for client in &mut waiting {
            ensure!(client.is_open().await, "{stage}: the gateway has closed a connection");
        }
        drop(waiting);
        proxy.stop().await?;
    }
    Ok(())
}

/// `from`: the last byte of the client's address, less 1.
async fn open(load: &Load, proxy: &Proxy, stage: &str, half: Option<&[u8]>, from: u8) -> anyhow::Result<Client> {
    if let Some(half) = half {
        let mut session = load.sessions(proxy.address, 1).await?.remove(0);
        session.write_all(half).await?;
        session.flush().await?;
        return Ok(Client::Secure(Box::new(session)));
    }
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, from + 1], 0).into())?;
    let mut socket = socket.connect(proxy.address).await?;
    if matches!(stage, "TCP" | "ClientHello") {
        if stage == "ClientHello" {
            socket.write_all(HALF_A_HELLO).await?;
        }
        return Ok(Client::Plain(socket));
    }
    let mut session = load.handshake(socket).await?;
    if stage == "CONNECT" {
        session.write_all(HALF_A_CONNECT).await?;
        session.flush().await?;
    }
    Ok(Client::Secure(Box::new(session)))
}
