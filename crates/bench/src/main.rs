//! Measures Portcullis beside the Debian NGINX (stream with njs) doing the same work: mutual TLS, common name equals
//! client ID, a broker chosen by hash, one access line. Both are started here, loaded in turn, and their processes' CPU
//! time and memory read from /proc. README.md has the figures and what they mean.

mod load;
mod proxies;
mod report;
mod usage;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use load::Load;
use proxies::Proxy;
use report::Report;

/// Measures Portcullis beside NGINX
#[derive(Parser)]
pub(crate) struct Arguments {
    /// The built binary
    #[arg(long, default_value = "target/release/portcullis")]
    portcullis: PathBuf,
    /// How often each measurement is made, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connects in one measurement
    #[arg(long, default_value_t = 2000)]
    connects: usize,
    /// Idle connections
    #[arg(long, default_value_t = 1000)]
    idle: usize,
    /// Seconds of messages in one measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// Messages a second, over all connections, where they are paced.
const PACE: usize = 10_000;
const CONNECTIONS: usize = 100;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    portcullis_gateway::tls::install_crypto_provider();
    rlimit::increase_nofile_limit(u64::MAX)?;
    let dir = tempfile::tempdir()?;
    let load = Load::prepare(dir.path()).await?;
    let proxies = [
        Proxy::portcullis(&arguments.portcullis, dir.path(), load.broker).await?,
        Proxy::nginx(dir.path(), load.broker).await?,
    ];
    let mut report = Report::new(proxies.each_ref().map(|proxy| proxy.name));
    let duration = Duration::from_secs(arguments.seconds);
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        for (column, proxy) in proxies.iter().enumerate() {
            load.refuses_another(proxy).await?;
            let begin = proxy.usage()?;
            let elapsed = load.connect(proxy, arguments.connects).await?;
            let cpu = proxy.usage()?.cpu_since(&begin);
            let connects = arguments.connects as f64;
            report.add("CPU µs per full mutual-TLS connect", column, cpu.as_secs_f64() * 1e6 / connects);
            report.add("connects per second (load and proxy share 2 cores)", column, connects / elapsed.as_secs_f64());

            let sessions = load.sessions(proxy, CONNECTIONS).await?;
            let begin = proxy.usage()?;
            let (sessions, sent) = load.paced(sessions, PACE, duration).await?;
            let cpu = proxy.usage()?.cpu_since(&begin);
            report.add("CPU µs per 64 B message, paced 10,000/s", column, cpu.as_secs_f64() * 1e6 / sent as f64);

            let begin = proxy.usage()?;
            let (sessions, sent) = load.flood(sessions, duration).await?;
            let cpu = proxy.usage()?.cpu_since(&begin);
            report.add("CPU µs per 64 B message, flooding", column, cpu.as_secs_f64() * 1e6 / sent as f64);
            drop(sessions);
            tokio::time::sleep(Duration::from_millis(500)).await;

            let before = proxy.usage()?;
            let sessions = load.sessions(proxy, arguments.idle).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let grown = proxy.usage()?.pss.saturating_sub(before.pss);
            report.add("bytes (PSS) per idle connection", column, grown as f64 / arguments.idle as f64);
            drop(sessions);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    println!("{}", report.table());
    Ok(())
}
