//! Compares Portcullis with Debian's NGINX (stream with njs) doing the same work: mutual TLS, the common name equals the
//! client ID, a broker chosen by hash, one access line. Starts both, loads them in turn, and reads the CPU time and memory of
//! their processes from /proc. README.md explains the figures.

mod index;
mod load;
mod packets;
mod proxies;
mod report;
mod slow;
mod sweep;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use load::{CONCURRENCY, Load};
use proxies::Proxy;
use report::Report;

/// Compare Portcullis with NGINX
#[derive(Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The Portcullis binary
    #[arg(long, global = true, default_value = "target/dist/portcullis")]
    portcullis: PathBuf,
    /// Another build of Portcullis to compare with instead of NGINX
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// How often to repeat each measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Number of connects per measurement
    #[arg(long, default_value_t = 2000)]
    connects: usize,
    /// Number of idle connections
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Duration of each message measurement, in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Revoke some of many connected devices: measure how long until their sessions end, and the latency of the others
    Sweep {
        /// Number of sessions
        #[arg(long, default_value_t = 9000)]
        sessions: usize,
        /// Number of sessions to revoke
        #[arg(long, default_value_t = 50)]
        revoked: usize,
        /// Number of other certificates in the same CRL
        #[arg(long, default_value_t = 100_000)]
        entries: u32,
    },
    /// Compare the relay that looks at packets with the one that does not
    Packets {
        /// How often to repeat each measurement
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Duration of each measurement, in seconds
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// Number of topic rules
        #[arg(long, default_value_t = 100)]
        rules: usize,
    },
    /// Measure the memory of clients that connect and then send next to nothing
    Slow {
        /// Number of clients in each stage
        #[arg(long, default_value_t = 5000)]
        clients: usize,
    },
    /// Measure the index of live sessions alone
    Index {
        /// Number of sessions in the index
        #[arg(long, default_value_t = 1_000_000)]
        sessions: u32,
    },
}

/// The rate of paced messages, over all connections, per second.
const PACE: usize = 10_000;
const CONNECTIONS: usize = 100;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    portcullis_gateway::crypto::install_crypto_provider();
    rlimit::increase_nofile_limit(u64::MAX)?;
    let dir = tempfile::tempdir()?;
    match arguments.command {
        Some(Command::Sweep { sessions, revoked, entries }) => {
            return sweep::run(&arguments.portcullis, dir.path(), sessions, revoked, entries).await;
        }
        Some(Command::Packets { rounds, seconds, rules }) => {
            return packets::run(&arguments.portcullis, dir.path(), rounds, seconds, rules).await;
        }
        Some(Command::Slow { clients }) => return slow::run(&arguments.portcullis, dir.path(), clients).await,
        Some(Command::Index { sessions }) => return index::run(sessions),
        None => {}
    }
    let load = Load::prepare(dir.path()).await?;
    let names = if arguments.baseline.is_some() { ["Portcullis", "baseline"] } else { proxies::NAMES };
    let mut report = Report::new(names);
    for round in 0..arguments.rounds {
        for (column, name) in names.into_iter().enumerate() {
            eprintln!("round {} of {}: {name}", round + 1, arguments.rounds);
            // A new process for each round, so that memory of earlier rounds does not count.
            let proxy = match (column, &arguments.baseline) {
                (0, _) => Proxy::portcullis(&arguments.portcullis, dir.path(), load.broker).await?,
                (_, Some(baseline)) => Proxy::portcullis(baseline, dir.path(), load.broker).await?,
                (_, None) => Proxy::nginx(dir.path(), load.broker).await?,
            };
            measure(&arguments, &load, &proxy, column, &mut report).await?;
            proxy.stop().await?;
        }
    }
    println!("{}", report.table());
    Ok(())
}

async fn measure(
    arguments: &Arguments,
    load: &Load,
    proxy: &Proxy,
    column: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    load.refuses_another(proxy).await?;
    let duration = Duration::from_secs(arguments.seconds);

    let before = proxy.usage()?;
    let sessions = load.sessions(proxy, arguments.idle).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = proxy.usage()?.pss.saturating_sub(before.pss);
    report.add("bytes (PSS) per idle connection", column, grown as f64 / arguments.idle as f64);
    drop(sessions);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let begin = proxy.usage()?;
    let elapsed = load.connect(proxy, arguments.connects).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    let connects = arguments.connects as f64;
    report.add("CPU µs per full mutual-TLS connect", column, cpu.as_secs_f64() * 1e6 / connects);
    report.add("connects per second (load and proxy share 2 cores)", column, connects / elapsed.as_secs_f64());

    load.connect_again(proxy, CONCURRENCY).await?;
    let begin = proxy.usage()?;
    let resumed = load.connect_again(proxy, arguments.connects).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add("CPU µs per resumed connect, evaluated again", column, cpu.as_secs_f64() * 1e6 / connects);
    report.add("share of connects that were resumed", column, resumed as f64 / connects);

    let sessions = load.sessions(proxy, CONNECTIONS).await?;
    let begin = proxy.usage()?;
    let (sessions, sent) = load.paced(sessions, PACE, duration).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add("CPU µs per 64 B message, paced 10,000/s", column, cpu.as_secs_f64() * 1e6 / sent as f64);

    let begin = proxy.usage()?;
    let (_sessions, sent) = load.flood(sessions, duration).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add("CPU ns per 64 B message, flooding in 16 KiB writes", column, cpu.as_secs_f64() * 1e9 / sent as f64);
    Ok(())
}
