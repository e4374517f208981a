//! The work that is measured, a row each. Enters: a load and a running proxy. Leaves: figures.

mod connects;
pub(crate) mod floods;
mod idle;
mod latency;
mod paced;

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::load::Load;
use crate::peers::Proxy;
use crate::report::{Figure, Goal};

/// A kind of work. One may give several figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Connects with full handshakes
    Full,
    /// Connects that resume a TLS session
    Resumed,
    /// Connects of sessions that stay for half a second, and for one and a half
    Stay,
    /// Sessions that are all opened at once
    Storm,
    /// 64 B messages, 10,000 a second over 100 connections
    #[value(name = "paced-64")]
    Paced64,
    /// 16 KiB messages, 1,000 a second over 100 connections
    #[value(name = "paced-16k")]
    Paced16k,
    /// 64 B messages as fast as possible, a write and a TLS record each
    #[value(name = "flood-64")]
    Flood64,
    /// 64 KiB messages to the broker, as fast as possible
    FloodIn,
    /// 64 KiB messages from the broker, as fast as possible
    FloodOut,
    /// PINGREQ to PINGRESP of one connection, less that without a proxy
    Latency,
    /// Memory of connections that do nothing, and of those that have done something once
    Idle,
}

/// How much of each kind of work.
#[derive(Args, Clone, Debug)]
pub(crate) struct Amounts {
    /// Number of connects per measurement
    #[arg(long, default_value_t = 2000)]
    pub(crate) connects: usize,
    /// Number of connects of sessions that stay, for each time that they do
    #[arg(long, default_value_t = 1000)]
    pub(crate) stays: usize,
    /// Number of sessions of the storm
    #[arg(long, default_value_t = 5000)]
    pub(crate) storm: usize,
    /// Duration of each measurement of messages, in seconds
    #[arg(long, default_value_t = 4)]
    pub(crate) seconds: u64,
    /// Number of PINGREQ per measurement
    #[arg(long, default_value_t = 2000)]
    pub(crate) pings: usize,
    /// Number of idle connections
    #[arg(long, default_value_t = 9700)]
    pub(crate) idle: usize,
}

impl Amounts {
    /// How long messages are measured.
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// One measurement: a new process of a proxy, and the load for it.
pub(crate) struct Bench<'a> {
    /// Where the PKI of the load is.
    pub(crate) dir: &'a Path,
    pub(crate) load: &'a Load,
    pub(crate) proxy: &'a Proxy,
    pub(crate) amounts: &'a Amounts,
}

pub(crate) type Measured = anyhow::Result<Vec<(&'static Figure, f64)>>;

impl Row {
    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
    }

    pub(crate) async fn measure(self, bench: &Bench<'_>) -> Measured {
        match self {
            Self::Full => connects::full(bench).await,
            Self::Resumed => connects::resumed(bench).await,
            Self::Stay => connects::stay(bench).await,
            Self::Storm => connects::storm(bench).await,
            Self::Paced64 => paced::small(bench).await,
            Self::Paced16k => paced::large(bench).await,
            Self::Flood64 => floods::small(bench).await,
            Self::FloodIn => floods::inwards(bench).await,
            Self::FloodOut => floods::outwards(bench).await,
            Self::Latency => latency::added(bench).await,
            Self::Idle => idle::memory(bench).await,
        }
    }
}

/// How long a proxy goes on working after the load has ended: it closes connections and writes its log.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// Does some work. Returns the CPU time that the proxy has spent on it, and its result.
pub(crate) async fn cpu_of<T>(
    proxy: &Proxy,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Duration, T)> {
    let begin = proxy.cpu()?;
    let result = work.await?;
    tokio::time::sleep(AFTERWARDS).await;
    Ok((proxy.cpu()?.saturating_sub(begin), result))
}

/// µs for each of `count`.
pub(crate) fn micros_each(cpu: Duration, count: usize) -> f64 {
    cpu.as_secs_f64() * 1e6 / count as f64
}
