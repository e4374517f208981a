//! The short form of the measurements, which counts work and does not time it: the counts of two runs on a busy machine differ by
//! a percent, so a test can fail when the work grows. Enters: a gateway, ceilings. Leaves: counts, and which exceed theirs.

mod ceilings;
mod parse;
mod strace;
mod valgrind;
mod work;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum as _};
use tokio::time::sleep;

use crate::load::{Load, SETTLED};
use crate::peers::{More, Proxy};
use crate::report::{Machine, number, write_block};
use ceilings::Ceilings;
use parse::Parsed;
pub(crate) use parse::{Parse, parse};
use strace::Strace;
use valgrind::{ALLOCATIONS, Callgrind, INSTRUCTIONS};
use work::{Unit, Work, configuration};

#[derive(Args)]
#[command(after_help = "Examples:
  cargo build --release --package portcullis --package portcullis-bench --locked
  target/release/portcullis-bench count
  target/release/portcullis-bench count --write docs/performance.md
  target/release/portcullis-bench count --keep counted && callgrind_annotate counted/callgrind.out.4

With CARGO_PROFILE_RELEASE_STRIP=none, the profiles that --keep keeps have the names of functions.")]
pub(crate) struct Options {
    /// The ceilings of all counts
    #[arg(long, value_name = "FILE", default_value = "crates/bench/ceilings.toml")]
    ceilings: PathBuf,
    /// Replace the table in this Markdown document
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Keep traces and profiles in this directory, which must be new
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// How long a step of the work may take: valgrind is about 50 times slower.
const DEADLINE: Duration = Duration::from_secs(120);
/// Until the gateway has done what follows a piece of work: it logs and waits again.
const AFTERWARDS: Duration = Duration::from_millis(100);
/// How long the gateway is counted while nothing happens, so that what the clock causes does not count.
const IDLE: Duration = Duration::from_secs(5);
/// Two numbers of idle sessions; what counts is the difference.
const SESSIONS: [usize; 2] = [50, 250];
/// So many of them are opened one after another, and then [`SETTLED`] passes: what they need until then is not to count. At the moment when
/// the heap is greatest, all but as many are idle.
const BATCH: usize = 25;
const PARSES: usize = 10_000;

/// The tables of the file of ceilings.
const TABLES: [&str; 4] = [SYSTEM_CALLS, INSTRUCTIONS, ALLOCATIONS, IDLE_SESSION];
const SYSTEM_CALLS: &str = "system-calls";
const IDLE_SESSION: &str = "idle-session";

/// A count, and where its ceiling is.
struct Figure {
    /// One of [`TABLES`], and its key there.
    table: &'static str,
    key: &'static str,
    title: &'static str,
    value: f64,
}

impl Figure {
    fn of(unit: Unit, table: &'static str, value: f64) -> Self {
        Self { table, key: unit.key(), title: unit.title(), value }
    }
}

/// What can say what has been done so far.
trait Counter {
    /// By name: what has been done since this was last asked.
    async fn take(&mut self) -> anyhow::Result<BTreeMap<String, f64>>;
}

/// Returns whether no ceiling is exceeded.
pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<bool> {
    let ceilings = Ceilings::read(&options.ceilings)?;
    for (program, package) in [("strace", "strace"), ("valgrind", "valgrind"), ("vgdb", "valgrind")] {
        let status = Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.with_context(|| format!("cannot run {program}: install the Debian package `{package}`"))?;
    }
    ensure!(
        binary.exists(),
        "{} is missing: build it by `cargo build --release --package portcullis --locked`, or name another by --portcullis",
        binary.display()
    );
    let dir = match &options.keep {
        Some(keep) => {
            std::fs::create_dir(keep).with_context(|| keep.display().to_string())?;
            keep.canonicalize()?
        }
        None => dir.to_owned(),
    };
    let load = Load::prepare(&dir)?;
    let (mut figures, by_name) = system_calls(binary, &dir, &load).await?;
    figures.extend(instructions(binary, &dir, &load).await?);
    figures.extend(heap(binary, &dir, &load).await?);
    figures.extend(parses(&dir).await?);
    figures.sort_by_key(|figure| TABLES.iter().position(|table| *table == figure.table));
    let markdown = format!("{}\n\n{}\n{by_name}", Machine::here(1), ceilings.markdown(&figures));
    println!("{markdown}");
    if let Some(document) = &options.write {
        write_block(document, "count", &markdown, &[])?;
    }
    let verdict = ceilings.judge(&figures);
    verdict.hints.iter().for_each(|hint| eprintln!("{hint}"));
    verdict.failures.iter().for_each(|failure| eprintln!("{failure}"));
    Ok(verdict.failures.is_empty())
}

/// The system calls of each unit, and the most frequent of them, in words.
async fn system_calls(binary: &Path, dir: &Path, load: &Load) -> anyhow::Result<(Vec<Figure>, String)> {
    eprintln!("system calls");
    let (more, inspecting) = configuration()?;
    let (mut strace, command) = Strace::new(dir);
    let proxy = Proxy::portcullis_under(command, binary, dir, load.broker.address, &more).await?;
    // Topic rules only compute.
    let units = Unit::ALL.into_iter().filter(|unit| *unit != Unit::Inspected);
    let counted = count(&mut strace, load, proxy.address, inspecting, units).await;
    // Even after an error: strace would leave the gateway running.
    let stopped = proxy.stop().await;
    let (mut figures, mut by_name) = (Vec::new(), "System calls:\n\n".to_owned());
    for (unit, calls) in counted? {
        figures.push(Figure::of(unit, SYSTEM_CALLS, calls.values().sum()));
        by_name += &format!("- {}: {}\n", unit.title(), most_frequent(&calls));
    }
    stopped.map(|()| (figures, by_name))
}

/// The instructions and allocations of each unit.
async fn instructions(binary: &Path, dir: &Path, load: &Load) -> anyhow::Result<Vec<Figure>> {
    eprintln!("instructions and allocations");
    let (more, inspecting) = configuration()?;
    let command = Callgrind::command(dir);
    let proxy = Proxy::portcullis_under(command, binary, dir, load.broker.address, &more).await?;
    let mut callgrind = Callgrind::of(proxy.pid()?, dir);
    let counted = count(&mut callgrind, load, proxy.address, inspecting, Unit::ALL).await?;
    proxy.stop().await?;
    let of = |unit, counts: &BTreeMap<String, f64>, table| {
        Figure::of(unit, table, counts.get(table).copied().unwrap_or_default())
    };
    Ok(counted
        .iter()
        .flat_map(|(unit, counts)| [INSTRUCTIONS, ALLOCATIONS].map(|table| of(*unit, counts, table)))
        .collect())
}

/// The heap of an idle session.
async fn heap(binary: &Path, dir: &Path, load: &Load) -> anyhow::Result<Vec<Figure>> {
    eprintln!("heap of idle sessions");
    let mut heaps = Vec::new();
    for sessions in SESSIONS {
        let more = More { is_single: true, ..More::default() };
        let proxy = Proxy::portcullis_under(valgrind::dhat(dir), binary, dir, load.broker.address, &more).await?;
        let mut open = Vec::with_capacity(sessions);
        while open.len() < sessions {
            sleep(SETTLED).await;
            open.extend(load.sessions_in_turn(proxy.address, BATCH).await?);
        }
        sleep(AFTERWARDS).await;
        // Ends one session after another: many that end at once would need more than they do while they are idle.
        proxy.stop().await?;
        drop(open);
        heaps.push(valgrind::greatest_heap(dir)?);
    }
    let more = (SESSIONS[1] - SESSIONS[0]) as f64;
    let [bytes, blocks] = [heaps[1].0 - heaps[0].0, heaps[1].1 - heaps[0].1].map(|grown| grown / more);
    let table = IDLE_SESSION;
    Ok(vec![
        Figure { table, key: "heap-bytes", title: "bytes of the heap", value: bytes },
        Figure { table, key: "heap-blocks", title: "blocks of the heap", value: blocks },
    ])
}

/// The instructions of `wire` alone.
async fn parses(dir: &Path) -> anyhow::Result<Vec<Figure>> {
    eprintln!("parsers");
    let of = async |packet: Parsed, count: usize| {
        let packet = packet.to_possible_value().context("unknown packet")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("parse").arg(packet.get_name()).arg(count.to_string());
        valgrind::instructions(&command, dir).await
    };
    let start = of(Parsed::Connect, 0).await?;
    let mut figures = Vec::new();
    for (packet, key, title) in [
        (Parsed::Connect, "parse-connect", "CONNECT parsed"),
        (Parsed::Publish, "parse-publish", "head of PUBLISH parsed"),
    ] {
        let value = (of(packet, PARSES).await? - start) / PARSES as f64;
        figures.push(Figure { table: INSTRUCTIONS, key, title, value });
    }
    Ok(figures)
}

/// What each unit adds to what happens anyway, by name.
async fn count(
    counter: &mut impl Counter,
    load: &Load,
    gateway: SocketAddr,
    inspecting: SocketAddr,
    units: impl IntoIterator<Item = Unit>,
) -> anyhow::Result<Vec<(Unit, BTreeMap<String, f64>)>> {
    let mut work = Work::open(load, gateway, inspecting).await?;
    sleep(AFTERWARDS).await;
    let idle = async {
        sleep(IDLE).await;
        Ok(())
    };
    let (background, seconds) = during(counter, idle).await?;
    let mut all = Vec::new();
    for unit in units {
        let (mut counts, elapsed) = during(counter, work.run(unit, unit.count())).await?;
        for (name, value) in &mut counts {
            let anyway = background.get(name).copied().unwrap_or_default() / seconds * elapsed;
            *value = (*value - anyway) / unit.count() as f64;
        }
        all.push((unit, counts));
    }
    Ok(all)
}

/// What is counted during some work, and until the gateway has settled, in how many seconds.
async fn during(
    counter: &mut impl Counter,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<(BTreeMap<String, f64>, f64)> {
    counter.take().await?;
    let begin = Instant::now();
    work.await?;
    sleep(AFTERWARDS).await;
    let counts = counter.take().await?;
    Ok((counts, begin.elapsed().as_secs_f64()))
}

/// Names with their counts, the greatest first.
fn most_frequent(calls: &BTreeMap<String, f64>) -> String {
    let mut calls: Vec<_> = calls.iter().filter(|(_, count)| **count >= 0.05).collect();
    calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    calls.truncate(10);
    calls.iter().map(|(name, count)| format!("`{name}` {}", number(**count))).collect::<Vec<_>>().join(", ")
}
