//! TLS, WebSocket and QUIC beside each other: what a connect, a small message and an idle session cost the gateway. In one run, one
//! transport after another in each round.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::time::{interval, sleep};

use crate::kinds::{Client, Kind};
use crate::load::{DEVICE, Load, SETTLED, mqtt};
use crate::peers::{More, Proxy, free_address, further_listener};
use crate::report::{Machine, Spread, number, write_block};
use crate::usage::affordable;

#[derive(Args)]
pub(crate) struct Options {
    /// How often to repeat each measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connects in each round
    #[arg(long, default_value_t = 500)]
    connects: usize,
    /// Messages in each round
    #[arg(long, default_value_t = 5000)]
    messages: usize,
    /// Sessions that are idle
    #[arg(long, default_value_t = 3000)]
    idle: usize,
    /// Replace the table in this Markdown document
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

const KINDS: [Kind; 3] = [Kind::Tls, Kind::Wss, Kind::Quic];
/// Sessions that send messages.
const SENDERS: usize = 50;
/// The payload of a message, in bytes.
const MESSAGE: usize = 64;
/// Between two messages: 1,000 a second, fewer than any of the transports can move.
const PACE: Duration = Duration::from_millis(1);
/// Until the last bytes of a round are on their way.
const QUIET: Duration = Duration::from_millis(200);

/// What one round has shown, in microseconds of the gateway's CPU time; and the time until CONNACK in milliseconds.
#[derive(Default)]
struct Shown {
    connect: Vec<f64>,
    connack: Vec<f64>,
    message: Vec<f64>,
}

pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<()> {
    let load = Load::prepare(dir)?;
    let mut shown: [Shown; 3] = Default::default();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (kind, shown) in KINDS.into_iter().zip(&mut shown) {
            one_round(kind, binary, dir, &load, options, shown).await.with_context(|| kind.title())?;
        }
    }
    let mut markdown = format!(
        "{}\n\n| clients over | connect, µs of CPU time | until CONNACK, ms | message of 64 B, µs of CPU time | bytes of an idle session |\n\
         | --- | --- | --- | --- | --- |\n",
        Machine::here(options.rounds)
    );
    for (kind, shown) in KINDS.into_iter().zip(&shown) {
        eprintln!("idle: {}", kind.name());
        let [idle, _] = kind.measure(binary, dir, &load, affordable(options.idle)?).await.context(kind.title())?;
        let median = |values: &[f64]| Spread::of(values).map_or_else(|| "-".to_owned(), |it| it.to_string());
        let (connect, connack, message) = (median(&shown.connect), median(&shown.connack), median(&shown.message));
        markdown += &format!("| {} | {connect} | {connack} | {message} | {} |\n", kind.name(), number(idle));
    }
    println!("{markdown}");
    match &options.write {
        Some(document) => write_block(document, "transports", &markdown, &[]),
        None => Ok(()),
    }
}

async fn one_round(
    kind: Kind,
    binary: &Path,
    dir: &Path,
    load: &Load,
    options: &Options,
    shown: &mut Shown,
) -> anyhow::Result<()> {
    let other = free_address()?;
    let keys = format!("protocol = \"{}\"", kind.name());
    let more = More { tables: further_listener("other", other, "brokers", &keys), ..More::default() };
    let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, &more).await?;
    drop(kind.open(load, other).await?);
    sleep(QUIET).await;

    let (cpu, begin) = (proxy.cpu()?, Instant::now());
    let mut waited = Duration::ZERO;
    for _ in 0..options.connects {
        let begin = Instant::now();
        let client = kind.open(load, other).await?;
        waited += begin.elapsed();
        drop(client);
    }
    sleep(QUIET).await;
    let used = proxy.cpu()?.saturating_sub(cpu);
    eprintln!("  {}: {} connects of {DEVICE} in {:?}", kind.name(), options.connects, begin.elapsed());
    shown.connect.push(used.as_secs_f64() * 1e6 / options.connects as f64);
    shown.connack.push(waited.as_secs_f64() * 1e3 / options.connects as f64);

    let mut senders: Vec<Client> = Vec::new();
    for _ in 0..SENDERS {
        senders.push(kind.open(load, other).await?);
    }
    sleep(SETTLED).await;
    let (message, received) = (mqtt::publish(mqtt::TOPIC, MESSAGE), load.broker.received());
    let cpu = proxy.cpu()?;
    let mut pace = interval(PACE);
    for number in 0..options.messages {
        pace.tick().await;
        senders[number % SENDERS].send(&message).await?;
    }
    load.broker.wait_for(received, options.messages * message.len()).await?;
    sleep(QUIET).await;
    shown.message.push(proxy.cpu()?.saturating_sub(cpu).as_secs_f64() * 1e6 / options.messages as f64);
    drop(senders);
    proxy.stop().await
}
