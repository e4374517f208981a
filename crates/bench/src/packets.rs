//! What it costs to look at packets: the relay with and without topic rules, in the same run.

use std::path::Path;
use std::slice;
use std::time::Duration;

use crate::load::mqtt::{TOPIC, publish};
use crate::load::{LARGE, Load};
use crate::peers::{More, Proxy};
use crate::report::Table;
use crate::rows::floods::to_broker;

const CONNECTIONS: usize = 100;
const IDLE: usize = 500;
/// Messages per second over all connections.
const PACE: usize = 10_000;
/// Bytes of small messages that are written at once.
const BATCH: usize = 16 << 10;

/// Compares the raw relay with one that has this number of topic rules.
pub(crate) async fn run(binary: &Path, dir: &Path, rounds: usize, seconds: u64, rules: usize) -> anyhow::Result<()> {
    let load = Load::prepare(dir)?;
    let variants = [inspected(rules), More::default()];
    let mut table = Table::new(["topic rules", "raw relay"]);
    for round in 0..rounds {
        for (column, more) in variants.iter().enumerate() {
            eprintln!("round {} of {rounds}", round + 1);
            let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, more).await?;
            measure(&load, &proxy, Duration::from_secs(seconds), column, &mut table).await?;
            proxy.stop().await?;
        }
    }
    println!("{}", table.markdown());
    Ok(())
}

async fn measure(
    load: &Load,
    proxy: &Proxy,
    duration: Duration,
    column: usize,
    table: &mut Table,
) -> anyhow::Result<()> {
    let before = proxy.pss()?;
    let sessions = load.settled(proxy.address, IDLE).await?;
    let grown = proxy.pss()?.saturating_sub(before);
    table.add("bytes (PSS) per idle connection, 500 of them", column, grown as f64 / IDLE as f64);
    drop(sessions);

    let small = publish(TOPIC, 64);
    let mut sessions = load.settled(proxy.address, CONNECTIONS).await?;
    let begin = proxy.cpu()?;
    let sent = load.paced(&mut sessions, slice::from_ref(&small), PACE, duration).await?;
    let cpu = proxy.cpu()?.saturating_sub(begin);
    table.add("CPU µs per 64 B message, paced 10,000/s", column, cpu.as_secs_f64() * 1e6 / sent as f64);
    drop(sessions);

    let len = small.len() as f64;
    let flood = to_broker(load, proxy, CONNECTIONS, small.clone(), duration).await?;
    table.add("CPU ns per 64 B message, flooding, a write each", column, flood.nanos_per_byte() * len);

    let batch = small.repeat(BATCH / small.len());
    let flood = to_broker(load, proxy, CONNECTIONS, batch, duration).await?;
    table.add("CPU ns per 64 B message, flooding in 16 KiB writes", column, flood.nanos_per_byte() * len);

    let flood = to_broker(load, proxy, CONNECTIONS, publish(TOPIC, LARGE), duration).await?;
    table.add("CPU ns per KiB of 64 KiB messages, flooding", column, flood.nanos_per_byte() * 1024.0);
    Ok(())
}

/// Topic rules, the last of which matches.
pub(crate) fn inspected(rules: usize) -> More {
    let mut tables = "[[topic_policy]]\nname = \"bench\"\n".to_owned();
    for rule in 1..rules {
        tables +=
            &format!("[[topic_policy.rule]]\npublish = [\"other/{rule}/+/x\"]\nsubscribe = [\"down/{rule}/#\"]\n");
    }
    let (first, _) = TOPIC.split_once('/').unwrap_or((TOPIC, ""));
    tables += &format!("[[topic_policy.rule]]\npublish = [\"{first}/+/#\"]\nsubscribe = [\"down/#\"]\n");
    More { listener: "topics = \"bench\"".to_owned(), tables, ..More::default() }
}
