//! The memory of idle sessions, by what is at their ends: TLS or not, topic rules or not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use quinn::{Connection, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::load::{DEVICE, Load, Session, handshake, mqtt, quic, session_as, websocket};
use crate::packets::inspected;
use crate::peers::{More, Proxy, free_address, further_listener};
use crate::report::{Machine, number, write_block};
use crate::usage::affordable;

#[derive(Args)]
pub(crate) struct Options {
    /// The kinds of sessions, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "tls,wss,quic,inspected,tcp,tls-broker")]
    kinds: Vec<Kind>,
    /// Number of sessions; of `psk` 200 at most, which are processes
    #[arg(long, default_value_t = 4000)]
    sessions: usize,
    /// Replace the table in this Markdown document
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// TLS with client certificates
    Tls,
    /// The same, over WebSocket
    Wss,
    /// QUIC with client certificates
    Quic,
    /// TLS with client certificates, with topic rules
    Inspected,
    /// TCP
    Tcp,
    /// TLS with client certificates, and TLS to the broker
    TlsBroker,
    /// TLS with pre-shared keys, of a binary that was built with the feature `psk`; needs the command openssl
    Psk,
}

/// The payload of the message, in bytes.
const MESSAGE: usize = 16 << 10;
/// Sessions before the measurement, so that what a process allocates once does not count.
const WARM_UP: usize = 32;
/// Until sessions are on the threads that relay, and allocators have returned what they return.
const QUIET: Duration = Duration::from_secs(3);
/// How long a session may take to open.
const DEADLINE: Duration = Duration::from_secs(60);
const MAX_PROCESSES: usize = 200;
/// Topic rules of the listener that has some.
const RULES: usize = 100;
/// Of all devices.
const PSK: &str = "000102030405060708090a0b0c0d0e0f";

pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<()> {
    let load = Load::prepare(dir)?;
    std::fs::write(dir.join("psk.txt"), format!("{DEVICE}:{PSK}\n"))?;
    let mut markdown = format!(
        "{}\n\n| session | number | bytes of each | after one message of 16 KiB each |\n| --- | --- | --- | --- |\n",
        Machine::here(1)
    );
    for kind in &options.kinds {
        let count = if *kind == Kind::Psk { options.sessions.min(MAX_PROCESSES) } else { options.sessions };
        let count = affordable(count)?;
        eprintln!("{}", kind.title());
        let [idle, after] = kind.measure(binary, dir, &load, count).await.context(kind.title())?;
        markdown +=
            &format!("| {} | {} | {} | {} |\n", kind.title(), number(count as f64), number(idle), number(after));
    }
    println!("{markdown}");
    match &options.write {
        Some(document) => write_block(document, "kinds", &markdown, &[]),
        None => Ok(()),
    }
}

impl Kind {
    /// The protocol of the listener, or what is special about the sessions.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Wss => "wss",
            Self::Quic => "quic",
            Self::Inspected => "inspected",
            Self::Tcp => "tcp",
            Self::TlsBroker => "tls-broker",
            Self::Psk => "psk",
        }
    }

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Tls => "TLS 1.3 with a client certificate, TCP to the broker",
            Self::Wss => "the same, over WebSocket",
            Self::Quic => "QUIC with a client certificate, TCP to the broker",
            Self::Inspected => "TLS 1.3 with a client certificate, with topic rules",
            Self::Tcp => "TCP on both sides",
            Self::TlsBroker => "TLS 1.3 with a client certificate, TLS to the broker",
            Self::Psk => "TLS with a pre-shared key, TCP to the broker",
        }
    }

    /// Bytes of each session: at first, and after each has sent a message.
    pub(crate) async fn measure(
        self,
        binary: &Path,
        dir: &Path,
        load: &Load,
        count: usize,
    ) -> anyhow::Result<[f64; 2]> {
        // Another gateway is the broker with TLS.
        let broker = match self {
            Self::TlsBroker => Some(Proxy::portcullis_with(binary, dir, load.broker.address, &More::default()).await?),
            _ => None,
        };
        let other = free_address()?;
        let more = self.configuration(other);
        let behind = broker.as_ref().map_or(load.broker.address, |broker| broker.address);
        let proxy = Proxy::portcullis_with(binary, dir, behind, &more).await?;
        let address =
            if matches!(self, Self::Tcp | Self::Psk | Self::Wss | Self::Quic) { other } else { proxy.address };
        for _ in 0..WARM_UP {
            drop(self.open(load, address).await?);
        }
        sleep(QUIET).await;
        let before = proxy.anonymous()?;
        let grown = || anyhow::Ok(proxy.anonymous()?.saturating_sub(before) as f64 / count as f64);
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            sessions.push(self.open(load, address).await?);
        }
        sleep(QUIET).await;
        let idle = grown()?;
        let (message, received) = (mqtt::publish(mqtt::TOPIC, MESSAGE), load.broker.received());
        for session in &mut sessions {
            session.send(&message).await?;
        }
        load.broker.wait_for(received, count * message.len()).await?;
        sleep(QUIET).await;
        let after = grown()?;
        drop(sessions);
        proxy.stop().await?;
        if let Some(broker) = broker {
            broker.stop().await?;
        }
        Ok([idle, after])
    }

    /// The configuration, with another listener at `address` if that of all measurements is of another kind.
    fn configuration(self, address: SocketAddr) -> More {
        let listener = |keys: &str| {
            format!("[[listener]]\nname = \"other\"\nbind = \"{address}\"\nupstream = \"brokers\"\n{keys}\n")
        };
        match self {
            Self::Tls => More::default(),
            Self::Wss => {
                More { tables: further_listener("other", address, "brokers", "protocol = \"wss\""), ..More::default() }
            }
            Self::Quic => {
                More { tables: further_listener("other", address, "brokers", "protocol = \"quic\""), ..More::default() }
            }
            Self::Inspected => inspected(RULES),
            Self::Tcp => More { tables: listener("protocol = \"tcp\""), ..More::default() },
            Self::TlsBroker => {
                let (certificate, key) = (format!("pki/issued/{DEVICE}.pem"), format!("pki/issued/{DEVICE}.key"));
                let tls = format!(
                    "tls = {{ ca = \"pki/root.pem\", certificate = \"{certificate}\", private_key = \"{key}\", \
                     server_name = \"localhost\" }}"
                );
                More { upstream: tls, ..More::default() }
            }
            Self::Psk => {
                let tls = "[listener.tls.psk]\nfile = \"psk.txt\"\nformat = \"hex\"";
                More { tables: listener(tls), ..More::default() }
            }
        }
    }

    /// Opens a session.
    pub(crate) async fn open(self, load: &Load, address: SocketAddr) -> anyhow::Result<Client> {
        let connect = mqtt::connect(DEVICE);
        match self {
            Self::Tls | Self::Inspected | Self::TlsBroker => {
                Ok(Client::Tls(Box::new(session_as(&load.connector(), address, &connect).await?)))
            }
            Self::Wss => {
                let socket = TcpStream::connect(address).await?;
                let mut session = handshake(&load.connector(), socket).await?;
                websocket::upgrade(&mut session).await?;
                session.write_all(&websocket::frame(&connect)).await?;
                let mut answer = [0; websocket::HEADER + mqtt::CONNACK.len()];
                let reading = session.read_exact(&mut answer);
                timeout(DEADLINE, reading).await.context("no CONNACK in time")?.context("CONNACK")?;
                ensure!(answer.ends_with(&mqtt::CONNACK), "CONNECT was rejected");
                Ok(Client::Wss(Box::new(session)))
            }
            Self::Quic => {
                let (mut writer, mut reader, connection) = quic::open(&load.connector(), address).await?;
                begin(&mut reader, &mut writer, &connect).await?;
                Ok(Client::Quic(Box::new((writer, reader, connection))))
            }
            Self::Tcp => {
                let mut client = TcpStream::connect(address).await?;
                let (mut reader, mut writer) = client.split();
                begin(&mut reader, &mut writer, &connect).await?;
                Ok(Client::Tcp(client))
            }
            Self::Psk => {
                let mut command = Command::new("openssl");
                command.args(["s_client", "-quiet", "-connect", &address.to_string()]);
                command.args(["-psk_identity", DEVICE, "-psk", PSK]);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
                let mut client = command.spawn().context("openssl")?;
                let writer = client.stdin.as_mut().context("no standard input")?;
                let reader = client.stdout.as_mut().context("no standard output")?;
                begin(reader, writer, &connect).await?;
                Ok(Client::Psk(client))
            }
        }
    }
}

/// A device with its session.
pub(crate) enum Client {
    Tls(Box<Session>),
    Wss(Box<Session>),
    /// Reading and the connection are kept, so that the session is.
    Quic(Box<(SendStream, RecvStream, Connection)>),
    Tcp(TcpStream),
    Psk(Child),
}

impl Client {
    pub(crate) async fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Tls(session) => {
                session.write_all(message).await?;
                session.flush().await?;
            }
            Self::Wss(session) => {
                session.write_all(&websocket::frame(message)).await?;
                session.flush().await?;
            }
            Self::Quic(stream) => stream.0.write_all(message).await?,
            Self::Tcp(socket) => socket.write_all(message).await?,
            Self::Psk(client) => client.stdin.as_mut().context("no standard input")?.write_all(message).await?,
        }
        Ok(())
    }
}

async fn begin(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    connect: &[u8],
) -> anyhow::Result<()> {
    writer.write_all(connect).await?;
    writer.flush().await?;
    let mut answer = [0; mqtt::CONNACK.len()];
    timeout(DEADLINE, reader.read_exact(&mut answer)).await.context("no CONNACK in time")?.context("CONNACK")?;
    ensure!(answer == mqtt::CONNACK, "CONNECT was rejected");
    Ok(())
}
