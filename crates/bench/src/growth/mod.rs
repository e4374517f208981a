//! How costs grow with what a gateway has to remember: connections, topic rules, devices of a registry, entries of a CRL.

mod connections;
mod crls;
mod devices;
mod rules;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::load::Load;
use crate::peers::{More, Proxy, free_address};
use crate::report::{Family, Machine, Plot, write_block};
use crate::rows::{cpu_of, micros_each};
use crate::startup;

#[derive(Args)]
pub(crate) struct Options {
    /// What is to grow, separated by commas; all by default
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Leave out greater sizes
    #[arg(long, value_name = "SIZE", default_value_t = usize::MAX, hide_default_value = true)]
    up_to: usize,
    /// Replace the tables in this Markdown document, and the plot in plots/ beside it
    #[arg(long)]
    write: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Connections,
    Rules,
    Devices,
    Crl,
}

/// Connects whose CPU time is measured, and connects before, so that what a process does once does not count.
const CONNECTS: usize = 500;
const WARM_UP: usize = 50;

/// What all parts need.
struct Bench<'a> {
    binary: &'a Path,
    dir: &'a Path,
    load: &'a Load,
    up_to: usize,
}

pub(crate) async fn run(binary: &Path, dir: &Path, options: &Options) -> anyhow::Result<()> {
    let load = Load::prepare(dir)?;
    let bench = Bench { binary, dir, load: &load, up_to: options.up_to };
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    let mut families = Vec::new();
    for part in parts {
        families.push(match part {
            Part::Connections => connections::measure(&bench).await?,
            Part::Rules => rules::measure(&bench).await?,
            Part::Devices => devices::measure(&bench).await?,
            Part::Crl => crls::measure(&bench).await?,
        });
    }
    let tables: Vec<String> = families.iter().map(Family::markdown).collect();
    let markdown = format!("{} One round.\n\n{}", Machine::here(1), tables.join("\n"));
    println!("{markdown}");
    if let Some(document) = &options.write {
        let (name, title) = ("growth".to_owned(), "how costs grow".to_owned());
        write_block(document, "growth", &markdown, &[Plot { name, title, svg: Family::plot(&families) }])?;
    }
    Ok(())
}

impl Bench<'_> {
    /// Those that are to be measured.
    fn sizes(&self, all: &'static [usize]) -> impl Iterator<Item = usize> {
        all.iter().copied().filter(|size| *size <= self.up_to)
    }

    /// Measures how long a gateway takes to start, and its memory. Returns it, running.
    async fn start(&self, more: &More, size: usize, family: &mut Family) -> anyhow::Result<Proxy> {
        let (broker, address) = (self.load.broker.address, free_address()?);
        let command = more.write(self.binary, self.dir, address, broker)?;
        family.add_total("start", "ms", size, startup::median(self.load, command, address)?);
        let proxy = Proxy::portcullis_with(self.binary, self.dir, broker, more).await?;
        family.add_total("memory (PSS)", "MiB", size, mib(proxy.pss()?));
        Ok(proxy)
    }
}

/// CPU µs of a full connect.
async fn connect_cost(load: &Load, proxy: &Proxy) -> anyhow::Result<f64> {
    load.connect(proxy.address, WARM_UP).await?;
    let (cpu, ()) = cpu_of(proxy, load.connect(proxy.address, CONNECTS)).await?;
    Ok(micros_each(cpu, CONNECTS))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
