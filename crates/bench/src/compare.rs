//! The comparison. Enters: which peers, which rows, how often. Leaves: a report; the caller learns whether the goals are met.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::time::timeout;

use crate::load::Load;
use crate::peers::{Peer, Programs};
use crate::report::{Described, Machine, Report};
use crate::rows::{Amounts, Bench, Measured, Row};

#[derive(Args)]
pub(crate) struct Comparison {
    /// Another build of Portcullis to compare with; without --peers, with nothing else
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// The proxies to measure, separated by commas; all by default
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// The directory in which peers/install.sh has installed the peers
    #[arg(long, default_value = "target/peers")]
    installed: PathBuf,
    /// The work to measure, separated by commas; all by default
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// How often to repeat each measurement
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[command(flatten)]
    amounts: Amounts,
    /// Write the values of all rounds to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the report into this Markdown document, between its markers, and plots beside it
    #[arg(long)]
    write: Option<PathBuf>,
}

/// How long one row may take with one peer.
const DEADLINE: Duration = Duration::from_secs(300);
/// Descriptors that the load needs for other things than sessions.
const SPARE_DESCRIPTORS: u64 = 400;

/// What all measurements have in common.
struct Run<'a> {
    programs: Programs,
    dir: &'a Path,
    load: Load,
    amounts: Amounts,
}

/// Returns whether all goals are met.
pub(crate) async fn run(portcullis: PathBuf, options: Comparison, dir: &Path) -> anyhow::Result<bool> {
    let installed = std::path::absolute(&options.installed)?;
    let programs = Programs { portcullis, baseline: options.baseline.clone(), installed };
    let (peers, rows, rounds) = (options.peers(), options.rows(), options.rounds);
    let mut described = Vec::new();
    for peer in &peers {
        // A missing program must not be found out after half an hour.
        described.push(Described { peer: *peer, version: peer.version(&programs).await? });
    }
    let amounts = within_limit(options.amounts, &rows)?;
    let run = Run { programs, dir, load: Load::prepare(dir)?, amounts };
    let mut report = Report::new(Machine::here(rounds), described);
    for round in 1..=rounds {
        for row in &rows {
            // The peers of a row one after another: what else the machine does affects all of them. Another one first in each
            // round: the row before leaves the kernel something to do.
            let (before, from) = peers.split_at(round % peers.len().max(1));
            for peer in from.iter().chain(before) {
                eprint!("round {round} of {rounds}, {}, {}:", row.name(), peer.title());
                run.add(*row, *peer, round, &mut report).await;
            }
        }
    }
    println!("{}", report.markdown());
    if let Some(file) = &options.json {
        std::fs::write(file, report.json()?).with_context(|| file.display().to_string())?;
    }
    if let Some(document) = &options.write {
        report.write(document)?;
    }
    Ok(report.is_met())
}

impl Run<'_> {
    /// Measures a row and adds the result, or why there is none.
    async fn add(&self, row: Row, peer: Peer, round: usize, report: &mut Report) {
        match self.measure(row, peer).await {
            Ok(figures) => {
                for (figure, value) in figures {
                    eprint!(" {value:.3} {}", figure.unit);
                    report.add(peer, figure, round, value);
                }
                eprintln!();
            }
            Err(error) => {
                eprintln!(" {error:#}");
                report.add_failure(peer, row.name(), format!("{error:#}"));
            }
        }
    }

    /// Measures with a new process, so that nothing of earlier work counts.
    async fn measure(&self, row: Row, peer: Peer) -> Measured {
        let proxy = peer.start(&self.programs, self.dir, &self.load).await?;
        let bench = Bench { dir: self.dir, load: &self.load, proxy: &proxy, amounts: &self.amounts };
        let measured = timeout(DEADLINE, row.measure(&bench)).await.context("the measurement does not end");
        let stopped = proxy.stop().await;
        let figures = measured.flatten()?;
        stopped?;
        Ok(figures)
    }
}

impl Comparison {
    fn peers(&self) -> Vec<Peer> {
        let chosen = match (self.peers.as_slice(), &self.baseline) {
            ([], Some(_)) => vec![Peer::Portcullis],
            ([], None) => Peer::value_variants().to_vec(),
            (peers, _) => peers.to_vec(),
        };
        let baseline = self.baseline.as_ref().map(|_| Peer::Baseline);
        chosen.into_iter().chain(baseline).collect()
    }

    fn rows(&self) -> Vec<Row> {
        if self.rows.is_empty() { Row::value_variants().to_vec() } else { self.rows.clone() }
    }
}

/// Lowers the numbers of connections to what the limit of descriptors allows: load and broker share it.
fn within_limit(mut amounts: Amounts, rows: &[Row]) -> anyhow::Result<Amounts> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    let max = usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS) / 2)?;
    for (row, count) in [(Row::Storm, &mut amounts.storm), (Row::Idle, &mut amounts.idle)] {
        if rows.contains(&row) && *count > max {
            eprintln!("warning: {max} connections instead of {count}: the process may have {limit} descriptors");
            *count = max;
        }
    }
    Ok(amounts)
}
