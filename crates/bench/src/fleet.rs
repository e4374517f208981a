//! A fleet of devices in a process of its own, which gets the CPU time that gateway, broker and probe leave: on a machine that
//! they share, what is measured would otherwise be how long the load computes.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use portcullis_pki::Authority;
use rustls::ClientConfig;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::load::{
    DEVICE, Flights, LARGE, SETTLED, Stop, client_config, mqtt, session_as, socket_from, write_again_and_again,
};

/// How long one step of a fleet may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long one device may take to connect.
const CONNECTING: Duration = Duration::from_secs(60);
/// How long a device waits after a failure.
const BACK_OFF: Duration = Duration::from_secs(1);
/// How long devices flood.
const FLOOD: Duration = Duration::from_secs(5);
/// Bytes of payload of a small message.
const SMALL: usize = 64;

/// What the devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Conduct {
    /// Connect, all at once, and stay
    Connect,
    /// Stop in the middle of the handshake, half of them in ClientHello
    Stop,
    /// Connect, and connect again when the connection is closed
    Return,
    /// Connect, and publish messages of 64 B as fast as possible, a write and a TLS record each
    FloodSmall,
    /// The same with messages of 64 KiB
    FloodLarge,
}

/// The fleet's own process.
#[derive(Args)]
pub(crate) struct Orders {
    pki: PathBuf,
    address: SocketAddr,
    conduct: Conduct,
    count: usize,
    /// Delay before each flight of a device, in ms
    delay: u64,
}

/// A fleet in another process, which ends with this value.
pub(crate) struct Fleet {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// When the devices began, those that flood with that.
    pub(crate) begin: Instant,
}

/// What became of a fleet.
pub(crate) struct Done {
    pub(crate) elapsed: Duration,
    /// Failed connects.
    pub(crate) failures: usize,
    /// Bytes of messages that were sent.
    pub(crate) sent: usize,
    /// One of the failures.
    pub(crate) cause: String,
}

impl Conduct {
    /// What a device that floods writes again and again.
    pub(crate) fn message(self) -> Option<Vec<u8>> {
        let payload = match self {
            Self::FloodSmall => SMALL,
            Self::FloodLarge => LARGE,
            Self::Connect | Self::Stop | Self::Return => return None,
        };
        Some(mqtt::publish(mqtt::TOPIC, payload))
    }
}

impl Fleet {
    /// The devices begin.
    pub(crate) async fn start(
        dir: &Path,
        address: SocketAddr,
        conduct: Conduct,
        count: usize,
        delay: Duration,
    ) -> anyhow::Result<Self> {
        let conduct = conduct.to_possible_value().context("unknown conduct")?;
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(std::env::current_exe()?).arg("fleet").arg(dir.join("pki"));
        command.args([&address.to_string(), conduct.get_name(), &count.to_string(), &delay.as_millis().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("chrt")?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let mut this = Self { process, lines, begin: Instant::now() };
        this.next().await?;
        this.begin = Instant::now();
        Ok(this)
    }

    /// Waits until all devices have done what they do; of those that return, until they have connected, and until they have
    /// returned.
    pub(crate) async fn done(&mut self) -> anyhow::Result<Done> {
        Done::parse(&self.next().await?)
    }

    /// Ends the fleet. Returns how many devices were still connected.
    pub(crate) async fn end(mut self) -> anyhow::Result<usize> {
        drop(self.process.stdin.take());
        let open = self.next().await?.parse()?;
        ensure!(timeout(DEADLINE, self.process.wait()).await??.success(), "the fleet has failed");
        Ok(open)
    }

    async fn next(&mut self) -> anyhow::Result<String> {
        let line = timeout(DEADLINE, self.lines.next_line()).await.context("the fleet does not get on")??;
        line.context("the fleet has ended")
    }
}

impl Done {
    /// As it is displayed.
    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().context("a short line of the fleet");
        let (micros, failures, sent) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
        Ok(Self { elapsed: Duration::from_micros(micros), failures, sent, cause: next()?.to_owned() })
    }
}

/// A line.
impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed, failures, sent, cause } = self;
        write!(f, "{} {failures} {sent} {cause}", elapsed.as_micros())
    }
}

/// Is the fleet: prints a line when it begins, lines of [`Fleet::done`], and at the end of its input how many are connected.
pub(crate) async fn run(orders: Orders) -> anyhow::Result<()> {
    let config = Arc::new(client_config(&Authority::open(&orders.pki)?, DEVICE)?);
    let open = match orders.conduct.message() {
        Some(message) => flood(&TlsConnector::from(config), &orders, message).await?,
        None => connect(&config, &orders).await?,
    };
    println!("{open}");
    Ok(())
}

/// Returns how many are connected at the end.
async fn flood(connector: &TlsConnector, orders: &Orders, message: Vec<u8>) -> anyhow::Result<usize> {
    let (connect, mut sessions) = (mqtt::connect(DEVICE), Vec::with_capacity(orders.count));
    for _ in 0..orders.count {
        sessions.push(session_as(connector, orders.address, &connect).await?);
    }
    sleep(SETTLED).await;
    println!("begun");
    let begin = Instant::now();
    let (sessions, sent) = write_again_and_again(sessions, message, FLOOD).await?;
    println!("{}", Done { elapsed: begin.elapsed(), failures: 0, sent, cause: String::new() });
    end_of_input().await?;
    Ok(sessions.len())
}

/// Returns how many are connected at the end.
async fn connect(config: &Arc<ClientConfig>, orders: &Orders) -> anyhow::Result<usize> {
    println!("begun");
    let (mut devices, done) = all(config, orders, Duration::ZERO).await?;
    println!("{done}");
    if orders.conduct == Conduct::Return {
        let mut closing: JoinSet<_> =
            devices.drain(..).map(|mut device| async move { device.closed().await }).collect();
        closing.join_next().await;
        drop(closing);
        let (returned, done) = all(config, orders, BACK_OFF).await?;
        println!("{done}");
        devices = returned;
    }
    end_of_input().await?;
    Ok(devices.iter().filter(|device| device.is_open()).count())
}

async fn end_of_input() -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    Ok(())
}

/// All devices at once. With `again`, those that fail try again after this time.
async fn all(config: &Arc<ClientConfig>, orders: &Orders, again: Duration) -> anyhow::Result<(Vec<Flights>, Done)> {
    let (begin, mut tasks) = (Instant::now(), JoinSet::new());
    for n in 0..orders.count {
        let (config, address) = (Arc::clone(config), orders.address);
        let (conduct, delay) = (orders.conduct, Duration::from_millis(orders.delay));
        tasks.spawn(async move {
            let mut failures = Vec::new();
            loop {
                let device = timeout(CONNECTING, one(n, &config, address, conduct, delay)).await;
                match device.context("no end").flatten() {
                    Ok(device) => return (Some(device), failures),
                    Err(error) => failures.push(error),
                }
                if again.is_zero() {
                    return (None, failures);
                }
                sleep(again).await;
            }
        });
    }
    let (mut devices, mut failures) = (Vec::with_capacity(orders.count), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (device, failed) = ended?;
        devices.extend(device);
        failures.extend(failed);
    }
    let cause = failures.first().map(|error| format!("{error:#}")).unwrap_or_default();
    Ok((devices, Done { elapsed: begin.elapsed(), failures: failures.len(), sent: 0, cause }))
}

async fn one(
    n: usize,
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    conduct: Conduct,
    delay: Duration,
) -> anyhow::Result<Flights> {
    let mut device = Flights::new(Arc::clone(config), socket_from(n, address).await?)?;
    if conduct == Conduct::Stop {
        device.stop_in(if n.is_multiple_of(2) { Stop::Hello } else { Stop::Certificate }).await?;
    } else {
        device.connect(&mqtt::connect(DEVICE), delay).await?;
    }
    Ok(device)
}
