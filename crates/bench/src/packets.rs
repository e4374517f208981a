//! What it costs to look at packets: the relay with and without topic rules, in the same run.

use std::path::Path;
use std::time::Duration;

use crate::load::{Load, TOPIC, message};
use crate::proxies::{More, Proxy};
use crate::report::Report;

const CONNECTIONS: usize = 100;
/// Messages per second over all connections.
const PACE: usize = 10_000;
/// The payload of a large message, in bytes.
const LARGE: usize = 64 << 10;

/// Compares the raw relay with one that has this number of topic rules.
pub(crate) async fn run(binary: &Path, dir: &Path, rounds: usize, seconds: u64, rules: usize) -> anyhow::Result<()> {
    let load = Load::prepare(dir).await?;
    let variants = [More::default(), inspected(rules)];
    let mut report = Report::new(["topic rules", "raw relay"]);
    for round in 0..rounds {
        for (column, more) in variants.iter().rev().enumerate() {
            eprintln!("round {} of {rounds}", round + 1);
            let proxy = Proxy::portcullis_with(binary, dir, load.broker, more).await?;
            measure(&load, &proxy, Duration::from_secs(seconds), column, &mut report).await?;
            proxy.stop().await?;
        }
    }
    println!("{}", report.table());
    Ok(())
}

async fn measure(
    load: &Load,
    proxy: &Proxy,
    duration: Duration,
    column: usize,
    report: &mut Report,
) -> anyhow::Result<()> {
    let before = proxy.usage()?;
    let sessions = load.sessions(proxy, CONNECTIONS * 5).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = proxy.usage()?.pss.saturating_sub(before.pss);
    report.add("bytes (PSS) per idle connection, 500 of them", column, grown as f64 / (CONNECTIONS * 5) as f64);
    drop(sessions);
    let sessions = load.sessions(proxy, CONNECTIONS).await?;
    let begin = proxy.usage()?;
    let (sessions, sent) = load.paced(sessions, PACE, duration).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add("CPU µs per 64 B message, paced 10,000/s", column, cpu.as_secs_f64() * 1e6 / sent as f64);

    let one = message();
    let begin = proxy.usage()?;
    let (sessions, bytes) = load.flood_with(sessions, duration, one.clone()).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    let sent = bytes as f64 / one.len() as f64;
    report.add("CPU ns per 64 B message, flooding, a write each", column, cpu.as_secs_f64() * 1e9 / sent);

    let begin = proxy.usage()?;
    let (sessions, sent) = load.flood(sessions, duration).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add("CPU ns per 64 B message, flooding in 16 KiB writes", column, cpu.as_secs_f64() * 1e9 / sent as f64);

    let begin = proxy.usage()?;
    let (_sessions, bytes) = load.flood_with(sessions, duration, large()).await?;
    let cpu = proxy.usage()?.cpu_since(&begin);
    report.add(
        "CPU ns per KiB of 64 KiB messages, flooding",
        column,
        cpu.as_secs_f64() * 1e9 / (bytes as f64 / 1024.0),
    );
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

fn large() -> Vec<u8> {
    let len = 2 + TOPIC.len() + LARGE;
    let mut packet = vec![0x30];
    let mut rest = len;
    while rest > 0 {
        let digit = u8::try_from(rest % 128).unwrap_or(0);
        rest /= 128;
        packet.push(if rest > 0 { digit | 0x80 } else { digit });
    }
    packet.extend([0, u8::try_from(TOPIC.len()).unwrap_or(0)]);
    packet.extend(TOPIC.as_bytes());
    packet.resize(packet.len() + LARGE, b'x');
    packet
}
