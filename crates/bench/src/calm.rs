//! Storms. Enters: a gateway with live sessions, and a fleet that connects, stops, returns or floods. Leaves: what that does to the latency of the
//! live sessions, and whether everybody gets in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use tokio::time::sleep;

use crate::fleet::{Conduct, Fleet};
use crate::load::{Broker, DEVICE, Load};
use crate::peers::{More, Proxy, free_address, further_listener};
use crate::probe::{Latencies, Probe, Target};
use crate::report::{Machine, Spread, number, write_block};
use crate::rows::floods::LARGE_CONNECTIONS;

#[derive(Args)]
pub(crate) struct Options {
    /// Numbers of live sessions, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20])]
    live: Vec<u32>,
    /// Number of devices that connect at once
    #[arg(long, default_value_t = 5000)]
    devices: usize,
    /// How often to repeat each measurement
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Replace the table in this Markdown document
    #[arg(long)]
    write: Option<PathBuf>,
}

/// The 99th percentile of live sessions in a storm is at most so many times that before it.
const GOAL: f64 = 10.0;
/// How long latency is measured before a storm.
const QUIET: Duration = Duration::from_secs(3);
/// Between two PINGREQs of one live session, at least.
const GAP: Duration = Duration::from_millis(2);
/// `max_connect_rate`, its burst, and how long a CONNECT may wait for its turn.
const RATE: usize = 500;
const BURST: usize = 50;
const PATIENCE: &str = "20s";
/// A sample of the broker's connects is taken so often.
const SAMPLE: Duration = Duration::from_millis(50);
/// Devices that stop in the handshake, of 5: more would wait for so long that their time is over.
const STOPPING: usize = 2;
/// Devices that connect meanwhile.
const OTHERS: usize = 100;
/// The time that a flight of a distant device takes to its arrival and back.
const DISTANCE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Storm {
    Connect,
    Stop,
    Return,
    Distant,
    FloodSmall,
    FloodLarge,
}

/// Values of all rounds.
struct Row {
    storm: Storm,
    live: u32,
    quiet: [Vec<f64>; 3],
    stormy: [Vec<f64>; 3],
    straight: Vec<f64>,
    ratios: Vec<f64>,
    /// What else is to be said, for each round.
    others: Vec<Vec<f64>>,
}

/// One round of a row.
struct Outcome {
    begin: Instant,
    end: Instant,
    others: Vec<f64>,
}

/// Returns whether the goals are met.
pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<bool> {
    let load = Load::prepare(dir)?;
    let storms = [Storm::Connect, Storm::Stop, Storm::Return, Storm::Distant, Storm::FloodSmall, Storm::FloodLarge];
    let rows = storms.iter().flat_map(|storm| options.live.iter().map(|live| Row::new(*storm, *live)));
    let mut rows: Vec<Row> = rows.collect();
    for round in 1..=options.rounds {
        for row in &mut rows {
            eprintln!("round {round} of {}, {} live sessions: {}", options.rounds, row.live, row.storm.title());
            row.measure(binary, dir, &load, options.devices).await.with_context(|| row.storm.title())?;
        }
    }
    let markdown = markdown(&rows, options)?;
    println!("{markdown}");
    if let Some(document) = &options.write {
        write_block(document, "calm", &markdown, &[])?;
    }
    Ok(rows.iter().all(|row| row.is_met() != Some(false)))
}

impl Storm {
    fn title(self) -> &'static str {
        match self {
            Self::Connect => "all connect at once",
            Self::Stop => "clients stop in the middle of the handshake",
            Self::Return => "the broker closes all sessions, all return",
            Self::Distant => "all connect at once, 100 ms before each flight",
            Self::FloodSmall => "16 connections flood 64 B messages, a record each",
            Self::FloodLarge => "16 connections flood 64 KiB messages",
        }
    }

    async fn happen(self, dir: &Path, load: &Load, proxy: SocketAddr, devices: usize) -> anyhow::Result<Outcome> {
        match self {
            Self::Connect => connect(dir, proxy, devices, Duration::ZERO).await,
            Self::Distant => connect(dir, proxy, devices, DISTANCE).await,
            Self::Stop => stop(dir, proxy, devices * STOPPING / 5).await,
            Self::Return => come_back(dir, load, proxy, devices).await,
            Self::FloodSmall => flood(dir, load, proxy, Conduct::FloodSmall).await,
            Self::FloodLarge => flood(dir, load, proxy, Conduct::FloodLarge).await,
        }
    }

    /// What [`Outcome::others`] says.
    fn describe(self, others: &[f64], devices: usize) -> String {
        let value = |at: usize| number(others[at]);
        match self {
            Self::Connect | Self::Distant => format!("{devices} connected within {} ms, none failed", value(0)),
            Self::Stop => format!(
                "{} stopped, all still connected at the end; {OTHERS} others connected within {} ms, none failed",
                devices * STOPPING / 5,
                value(0)
            ),
            Self::Return => format!(
                "{devices} connected again within {} ms, with {:.0} failures; the broker got {} CONNECTs in one second at most, {} a \
                 second on average; `max_connect_rate` {RATE}/s, burst {BURST}",
                value(0),
                others[3],
                value(1),
                value(2)
            ),
            Self::FloodSmall | Self::FloodLarge => {
                format!("{} messages a second, {} MB/s; all have arrived", value(0), value(1))
            }
        }
    }
}

async fn connect(dir: &Path, proxy: SocketAddr, devices: usize, delay: Duration) -> anyhow::Result<Outcome> {
    let mut fleet = Fleet::start(dir, proxy, Conduct::Connect, devices, delay).await?;
    let done = fleet.done().await?;
    let (begin, end) = (fleet.begin, Instant::now());
    ensure!(done.failures == 0, "{} of {devices} failed, one of them: {}", done.failures, done.cause);
    fleet.end().await?;
    Ok(Outcome { begin, end, others: vec![done.elapsed.as_secs_f64() * 1e3] })
}

async fn stop(dir: &Path, proxy: SocketAddr, devices: usize) -> anyhow::Result<Outcome> {
    let mut fleet = Fleet::start(dir, proxy, Conduct::Stop, devices, Duration::ZERO).await?;
    let stopped = fleet.done().await?;
    ensure!(stopped.failures == 0, "{} did not come so far: {}", stopped.failures, stopped.cause);
    let others = connect(dir, proxy, OTHERS, Duration::ZERO).await.context("other devices")?;
    let (begin, end) = (fleet.begin, Instant::now());
    let open = fleet.end().await?;
    ensure!(open == devices, "{open} of {devices} are still connected: their time is over before the measurement is");
    Ok(Outcome { begin, end, others: others.others })
}

async fn come_back(dir: &Path, load: &Load, proxy: SocketAddr, devices: usize) -> anyhow::Result<Outcome> {
    let mut fleet = Fleet::start(dir, proxy, Conduct::Return, devices, Duration::ZERO).await?;
    let connected = fleet.done().await?;
    ensure!(connected.failures == 0, "{} failed at first: {}", connected.failures, connected.cause);
    let begin = Instant::now();
    let before = load.broker.connects();
    load.broker.close_all();
    let mut counts = vec![before];
    let back = {
        let mut back = std::pin::pin!(fleet.done());
        let mut ticks = tokio::time::interval(SAMPLE);
        loop {
            tokio::select! {
                done = &mut back => break done?,
                _ = ticks.tick() => counts.push(load.broker.connects()),
            }
        }
    };
    let end = Instant::now();
    counts.push(load.broker.connects());
    fleet.end().await?;
    let second = (Duration::from_secs(1).as_millis() / SAMPLE.as_millis()) as usize;
    let most = counts.windows(second + 1).map(|counts| counts[second] - counts[0]).max().unwrap_or_default();
    let all = load.broker.connects() - before;
    ensure!(all >= devices, "the broker has got {all} CONNECTs of {devices}");
    let average = all as f64 / (end - begin).as_secs_f64();
    Ok(Outcome {
        begin,
        end,
        others: vec![back.elapsed.as_secs_f64() * 1e3, most as f64, average, back.failures as f64],
    })
}

async fn flood(dir: &Path, load: &Load, proxy: SocketAddr, conduct: Conduct) -> anyhow::Result<Outcome> {
    let message = conduct.message().context("these devices do not flood")?;
    let before = load.broker.received();
    let mut fleet = Fleet::start(dir, proxy, conduct, LARGE_CONNECTIONS, Duration::ZERO).await?;
    let done = fleet.done().await?;
    load.broker.wait_for(before, done.sent).await?;
    let (begin, end) = (fleet.begin, Instant::now());
    fleet.end().await?;
    let rate = done.sent as f64 / (end - begin).as_secs_f64();
    Ok(Outcome { begin, end, others: vec![rate / message.len() as f64, rate / 1e6] })
}

impl Row {
    fn new(storm: Storm, live: u32) -> Self {
        let [quiet, stormy] = [const { [const { Vec::new() }; 3] }; 2];
        Self { storm, live, quiet, stormy, straight: Vec::new(), ratios: Vec::new(), others: Vec::new() }
    }

    /// Measures with a new process, so that no device is known from before.
    async fn measure(&mut self, binary: &Path, dir: &Path, load: &Load, devices: usize) -> anyhow::Result<()> {
        let broker = Broker::start()?;
        let gateway = free_address()?;
        let rate =
            format!("max_connect_rate = {{ rate = \"{RATE}/s\", burst = {BURST} }}\nconnect_timeout = \"{PATIENCE}\"");
        let more = More {
            upstream: if self.storm == Storm::Return { rate } else { String::new() },
            tables: live_listener(gateway, broker.address),
            ..More::default()
        };
        let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, &more).await?;
        let probe = Probe::start(Target {
            connector: load.connector(),
            client_id: DEVICE,
            gateway,
            broker: broker.address,
            sessions: self.live as usize,
            // All together send no more than one PINGREQ a ms.
            gap: Duration::from_millis(self.live.into()).max(GAP),
        })
        .await?;
        let quiet = Instant::now();
        sleep(QUIET).await;
        let quiet_end = Instant::now();
        let outcome = self.storm.happen(dir, load, proxy.address, devices).await?;
        let samples = probe.finish()?;
        proxy.stop().await?;
        let [before, _] = samples.between(quiet, quiet_end)?;
        let [during, straight] = samples.between(outcome.begin, outcome.end)?;
        self.ratios.push(during.at(990) / before.at(990));
        self.straight.push(straight.at(990));
        add(&mut self.quiet, &before);
        add(&mut self.stormy, &during);
        self.others.push(outcome.others);
        Ok(())
    }

    fn ratio(&self) -> Option<Spread> {
        Spread::of(&self.ratios)
    }

    /// `None`: there is no goal for floods. The threads that relay are for them as well.
    fn is_met(&self) -> Option<bool> {
        if matches!(self.storm, Storm::FloodSmall | Storm::FloodLarge) {
            return None;
        }
        let is_paced = self.others.iter().all(|others| {
            // A sample may come late by as much as it is long.
            self.storm != Storm::Return || others[1] <= RATE as f64 * 1.1 + BURST as f64
        });
        Some(is_paced && self.ratio().is_some_and(|ratio| ratio.median <= GOAL))
    }
}

/// Median, 99th percentile, maximum.
fn add(values: &mut [Vec<f64>; 3], latencies: &Latencies) {
    for (values, per_mille) in values.iter_mut().zip([500, 990, 1000]) {
        values.push(latencies.at(per_mille));
    }
}

/// The live sessions have another broker, which the storm leaves alone.
fn live_listener(address: SocketAddr, broker: SocketAddr) -> String {
    let upstream = format!("[[upstream]]\nname = \"live\"\nservers = [\"{broker}\"]\nhealth = {{ mode = \"off\" }}\n");
    further_listener("live", address, "live", "") + &upstream
}

fn markdown(rows: &[Row], options: &Options) -> anyhow::Result<String> {
    let mut out = format!(
        "{} Medians of {} rounds. PINGREQ to PINGRESP of live sessions: median / 99th percentile / maximum in ms; the ratio is of the \
         99th percentiles, at most {GOAL} in the median while devices connect. Straight: the 99th percentile of the same without the gateway, during the storm.\n\n\
         | storm | live sessions | quiet | in the storm | ratio | straight | met |\n| --- | --- | --- | --- | --- | --- | --- |\n",
        Machine::here(options.rounds),
        options.rounds,
    );
    let mut notes = String::new();
    for row in rows {
        let median = |values: &Vec<f64>| Spread::of(values).map(|it| number(it.median)).unwrap_or_default();
        let three = |values: &[Vec<f64>; 3]| values.each_ref().map(median).join(" / ");
        let ratio = row.ratio().context("no round")?;
        out += &format!(
            "| {} | {} | {} | {} | {ratio} | {} | {} |\n",
            row.storm.title(),
            row.live,
            three(&row.quiet),
            three(&row.stormy),
            median(&row.straight),
            match row.is_met() {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            }
        );
        let columns = row.others.first().map_or(0, Vec::len);
        let others = (0..columns).map(|at| row.others.iter().map(|others| others[at]).collect::<Vec<_>>());
        let medians: Vec<f64> = others.filter_map(|values| Some(Spread::of(&values)?.median)).collect();
        if Some(&row.live) == options.live.first() {
            notes += &format!("- {}: {}\n", row.storm.title(), row.storm.describe(&medians, options.devices));
        }
    }
    Ok(out + "\n" + &notes)
}
