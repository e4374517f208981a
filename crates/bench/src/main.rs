//! Measures Portcullis next to other proxies that do the same work: mutual TLS, the common name equals the client ID, a broker
//! chosen by hash, one access line. README.md explains the rows and the peers; subcommands measure Portcullis alone.

mod calm;
mod compare;
mod count;
mod crl;
mod fleet;
mod growth;
mod index;
mod kinds;
mod load;
mod packets;
mod peers;
mod probe;
mod report;
mod rows;
mod slow;
mod start;
mod startup;
mod sweep;
mod transports;
mod usage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use compare::Comparison;
use peers::bare;

/// Compare Portcullis with other proxies. Exit code 1: a goal is missed, or something failed
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The Portcullis binary [default: target/dist/portcullis; of `count`: target/release/portcullis]
    #[arg(long, global = true)]
    portcullis: Option<PathBuf>,
    #[command(flatten)]
    comparison: Comparison,
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
    /// Measure the memory of idle sessions, by their kind: TLS or TCP, topic rules, TLS to the broker, pre-shared keys
    Kinds(kinds::Options),
    /// Measure connects, small messages and idle sessions over TLS, WebSocket and QUIC, beside each other
    Transports(transports::Options),
    /// Measure the latency of live sessions in storms. Exit code 1: a goal is missed
    Calm(calm::Options),
    /// Measure how long a start takes, and how much a reload delays live sessions. Exit code 1: a goal is missed
    Start(start::Options),
    /// Measure how costs grow with connections, topic rules, devices, and entries of a CRL
    Growth(growth::Options),
    /// Count the gateway's work: system calls, instructions, allocations, the heap of idle sessions
    ///
    /// Starts the gateway under strace and valgrind, with one worker, and does one thing at a time. Prints a hint if a count is well
    /// below its ceiling. Exit code 1: a count exceeds its ceiling, or something failed.
    Count(count::Options),
    /// Parse packets, for `count`
    #[command(hide = true)]
    Parse(count::Parse),
    /// Be a fleet of devices
    #[command(hide = true)]
    Fleet(fleet::Orders),
    /// Be the bare proxy of the comparison
    #[command(hide = true)]
    Bare {
        /// Where to listen
        address: SocketAddr,
        /// Where to connect to
        broker: SocketAddr,
        /// The directory of the certificates
        pki: PathBuf,
    },
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    portcullis_gateway::crypto::install_crypto_provider();
    // Neither load nor broker stops while the table of descriptors grows.
    portcullis_gateway::grow_descriptor_table(1 << 16)?;
    let profile = if matches!(arguments.command, Some(Command::Count(_))) { "release" } else { "dist" };
    let binary = arguments.portcullis.unwrap_or_else(|| Path::new("target").join(profile).join("portcullis"));
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let is_met = match arguments.command {
        None => compare::run(binary, arguments.comparison, dir).await?,
        Some(Command::Calm(options)) => calm::run(&binary, dir, &options).await?,
        Some(Command::Start(options)) => start::run(&binary, dir, &options).await?,
        Some(Command::Count(options)) => count::run(&binary, dir, &options).await?,
        Some(command) => {
            run(command, &binary, dir).await?;
            true
        }
    };
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has no goals.
async fn run(command: Command, binary: &Path, dir: &Path) -> anyhow::Result<()> {
    match command {
        Command::Sweep { sessions, revoked, entries } => sweep::run(binary, dir, sessions, revoked, entries).await,
        Command::Packets { rounds, seconds, rules } => packets::run(binary, dir, rounds, seconds, rules).await,
        Command::Slow { clients } => slow::run(binary, dir, clients).await,
        Command::Index { sessions } => index::run(sessions),
        Command::Growth(options) => growth::run(binary, dir, &options).await,
        Command::Kinds(options) => kinds::run(binary, dir, &options).await,
        Command::Transports(options) => transports::run(binary, dir, &options).await,
        Command::Fleet(orders) => fleet::run(orders).await,
        Command::Bare { address, broker, pki } => bare::run(address, broker, pki).await,
        Command::Parse(orders) => count::parse(&orders),
        Command::Calm(_) | Command::Start(_) | Command::Count(_) => Ok(()),
    }
}
