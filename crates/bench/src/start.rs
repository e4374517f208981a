//! How fast a gateway is there, and that a reload disturbs nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use tokio::time::sleep;

use crate::load::{DEVICE, Load};
use crate::packets::inspected;
use crate::peers::{More, Proxy, errors, free_address};
use crate::probe::{Latencies, Probe, Samples, Target};
use crate::report::{Machine, Spread, number, write_block};
use crate::usage::affordable;
use crate::{crl, startup};

#[derive(Args)]
pub(crate) struct Options {
    /// How often to start the gateway
    #[arg(long, default_value_t = 20)]
    starts: usize,
    /// How often to reload its configuration
    #[arg(long, default_value_t = 10)]
    reloads: usize,
    /// Number of connected sessions during reloads, as far as descriptors suffice
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Number of entries of the CRL that a reload reads
    #[arg(long, default_value_t = 100_000)]
    entries: u32,
    /// Replace the table in this Markdown document
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Until the first client has an answer, in ms.
const START_GOAL: f64 = 30.0;
/// What a reload adds to the greatest latency of a window, in ms: medians over the windows.
const DELAY_GOAL: f64 = 5.0;
const RULES: usize = 100;
/// How long latency is measured from the signal on, and as long before it. Reloads go on in the background when they are done:
/// live sessions get the new rules.
const WINDOW: Duration = Duration::from_secs(3);
/// Between two looks at the log.
const POLL: Duration = Duration::from_millis(2);
/// What the gateway logs when it has reloaded.
const RELOADED: &str = " reloaded";

/// Returns whether the goals are met.
pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<bool> {
    let load = Load::prepare(dir)?;
    let (listening, serving) = starts(binary, dir, &load, options.starts)?;
    let reloads = Reloads::measure(binary, dir, &load, options).await?;
    let goal =
        |value: f64, goal: f64| format!("{} ms | {}", number(goal), if value <= goal { "yes" } else { "**no**" });
    let markdown = format!(
        "{} {} starts: TLS with client certificates, CRL, {RULES} topic rules, access log, admin interface. {} reloads while {} sessions \
         are connected: each with one topic rule more, certificates read again, and a new CRL of {} entries; for {} s from each signal \
         on, and as long before it.\n\n\
         | ms | median (minimum to maximum) | goal | met |\n| --- | --- | --- | --- |\n\
         | from exec until it listens | {listening} | | |\n\
         | from exec to the first byte of ServerHello | {serving} | {} |\n\
         | from SIGHUP until it has reloaded | {} | | |\n\n{}",
        Machine::here(1),
        options.starts,
        options.reloads,
        reloads.sessions,
        number(options.entries.into()),
        WINDOW.as_secs(),
        goal(serving.median, START_GOAL),
        reloads.took,
        reloads.markdown(),
    );
    println!("{markdown}");
    if let Some(document) = &options.write {
        write_block(document, "start", &markdown, &[])?;
    }
    Ok(serving.median <= START_GOAL && reloads.added() <= DELAY_GOAL)
}

/// Everything that a gateway usually has.
fn full(rules: usize) -> More {
    More { tls: "crl = [\"pki/crl.pem\"]".to_owned(), is_informing: true, ..inspected(rules) }
}

fn starts(binary: &Path, dir: &Path, load: &Load, count: usize) -> anyhow::Result<(Spread, Spread)> {
    let (mut listening, mut serving) = (Vec::new(), Vec::new());
    // The first fills the page cache.
    for n in 0..=count {
        let address = free_address()?;
        let mut command = full(RULES).write(binary, dir, address, load.broker.address)?;
        let startup = startup::measure(load, &mut command, address)?;
        if n > 0 {
            listening.push(startup.listening.as_secs_f64() * 1e3);
            serving.push(startup.serving.as_secs_f64() * 1e3);
        }
    }
    let spread = |values: &[f64]| Spread::of(values).context("no starts");
    Ok((spread(&listening)?, spread(&serving)?))
}

/// Latencies of a live session, quiet and during reloads.
struct Reloads {
    sessions: usize,
    /// Until the log says so, in ms.
    took: Spread,
    /// Each through the gateway, and straight to the broker.
    quiet: [Windows; 2],
    reloading: [Windows; 2],
}

/// Several windows of time.
struct Windows {
    all: Latencies,
    /// The maximum of each.
    greatest: Spread,
}

impl Windows {
    fn of(parts: Vec<Latencies>) -> anyhow::Result<Self> {
        let greatest: Vec<f64> = parts.iter().map(|part| part.at(1000)).collect();
        Ok(Self { all: Latencies::all(parts)?, greatest: Spread::of(&greatest).context("no windows")? })
    }
}

impl Reloads {
    async fn measure(binary: &Path, dir: &Path, load: &Load, options: &Options) -> anyhow::Result<Self> {
        let pki = dir.join("pki");
        let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, &full(RULES)).await?;
        let sessions = load.sessions(proxy.address, affordable(options.sessions)?).await?;
        let probe = Probe::start(Target {
            connector: load.connector(),
            client_id: DEVICE,
            gateway: proxy.address,
            broker: load.broker.address,
            sessions: 1,
            gap: Duration::from_millis(1),
        })
        .await?;
        let (mut took, mut quiet, mut reloading) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..options.reloads {
            eprintln!("reload {} of {}", n + 1, options.reloads);
            let crl = crl::with_root(&pki, options.entries, &[])?;
            quiet.push(Instant::now());
            sleep(WINDOW).await;
            full(RULES + n + 1).write(binary, dir, proxy.address, load.broker.address)?;
            std::fs::write(pki.join("crl.new"), crl)?;
            std::fs::rename(pki.join("crl.new"), pki.join("crl.pem"))?;
            let begin = Instant::now();
            proxy.signal("HUP").await?;
            while errors(dir).matches(RELOADED).count() <= n {
                ensure!(begin.elapsed() < WINDOW, "no reload within {WINDOW:?}:\n{}", errors(dir));
                sleep(POLL).await;
            }
            took.push(begin.elapsed().as_secs_f64() * 1e3);
            sleep(WINDOW.saturating_sub(begin.elapsed())).await;
            reloading.push(begin);
        }
        let samples = probe.finish()?;
        let (quiet, reloading) = (windows(&samples, &quiet)?, windows(&samples, &reloading)?);
        let count = sessions.len();
        drop(sessions);
        proxy.stop().await?;
        Ok(Self { sessions: count, took: Spread::of(&took).context("no reloads")?, quiet, reloading })
    }

    /// What reloads add to the greatest latency, in ms. Of the windows' medians: on a machine with other work, the one greatest
    /// latency of all windows of a kind is chance.
    fn added(&self) -> f64 {
        self.reloading[0].greatest.median - self.quiet[0].greatest.median
    }

    fn markdown(&self) -> String {
        let mut out = "| PINGREQ to PINGRESP, ms | p50 | p99 | p99.9 | greatest | greatest of each window |\n\
                       | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        let rows = [("no reload", &self.quiet), ("reload", &self.reloading)];
        for (what, [through, straight]) in rows {
            for (how, windows) in [("", through), (", straight to the broker", straight)] {
                let at = |per_mille| number(windows.all.at(per_mille));
                let (p50, p99, p999, max) = (at(500), at(990), at(999), at(1000));
                out += &format!("| {what}{how} | {p50} | {p99} | {p999} | {max} | {} |\n", windows.greatest);
            }
        }
        let (added, is_met) = (self.added(), if self.added() <= DELAY_GOAL { "met" } else { "**missed**" });
        format!(
            "{out}\nReloads add {} ms to the latency: the median, over the windows with a reload, of the greatest latency in each, minus \
             the same of the windows without; goal {DELAY_GOAL} ms: {is_met}.\n",
            number(added)
        )
    }
}

fn windows(samples: &Samples, begins: &[Instant]) -> anyhow::Result<[Windows; 2]> {
    let (mut through, mut straight) = (Vec::new(), Vec::new());
    for begin in begins {
        let [one, other] = samples.between(*begin, *begin + WINDOW)?;
        through.push(one);
        straight.push(other);
    }
    Ok([Windows::of(through)?, Windows::of(straight)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows with these greatest latencies, in ms.
    fn windows(greatest: [u64; 3]) -> [Windows; 2] {
        let part = |ms| Latencies::of([vec![Duration::ZERO; 99], vec![Duration::from_millis(ms)]].concat()).unwrap();
        [(), ()].map(|()| Windows::of(greatest.map(part).into()).unwrap())
    }

    #[test]
    fn one_window_alone_does_not_decide() {
        let took = Spread::of(&[0.0]).unwrap();
        let added = |quiet, reloading| {
            Reloads { sessions: 1, took, quiet: windows(quiet), reloading: windows(reloading) }.added()
        };
        assert!((added([4, 24, 4], [5, 6, 5]) - 1.0).abs() < 1e-9);
        assert!((added([4, 4, 4], [5, 60, 5]) - 1.0).abs() < 1e-9);
        assert!(added([4, 4, 4], [10, 10, 5]) > DELAY_GOAL);
    }
}
