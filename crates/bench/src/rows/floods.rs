//! Messages as fast as the machine can: what a byte and a record cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Bench, Goal, Measured, cpu_of};
use crate::load::{LARGE, Load, flood_request, mqtt, write_again_and_again};
use crate::peers::Proxy;
use crate::report::Figure;

static SMALL: Figure = Figure {
    key: "flood-64",
    title: "64 B messages flooding, a record each",
    unit: "CPU µs",
    goal: Some(Goal::OfBest(0.7)),
};
static INWARDS: Figure = Figure {
    key: "flood-in",
    title: "64 KiB messages flooding in",
    unit: "CPU ns per byte",
    goal: Some(Goal::OfBest(0.85)),
};
static OUTWARDS: Figure = Figure {
    key: "flood-out",
    title: "64 KiB messages flooding out",
    unit: "CPU ns per byte",
    goal: Some(Goal::OfBest(0.85)),
};

/// Connections with small messages.
const CONNECTIONS: usize = 100;
/// Connections with large messages: enough to keep two workers busy, few enough that their socket buffers stay in the cache.
pub(crate) const LARGE_CONNECTIONS: usize = 16;
/// Until socket buffers are full and the flood is steady.
const WARM_UP: Duration = Duration::from_millis(500);

pub(super) async fn small(bench: &Bench<'_>) -> Measured {
    let message = mqtt::publish(mqtt::TOPIC, 64);
    let len = message.len() as f64;
    let flood = to_broker(bench.load, bench.proxy, CONNECTIONS, message, bench.amounts.duration()).await?;
    Ok(vec![(&SMALL, flood.nanos_per_byte() * len / 1e3)])
}

pub(super) async fn inwards(bench: &Bench<'_>) -> Measured {
    let message = mqtt::publish(mqtt::TOPIC, LARGE);
    let flood = to_broker(bench.load, bench.proxy, LARGE_CONNECTIONS, message, bench.amounts.duration()).await?;
    Ok(vec![(&INWARDS, flood.nanos_per_byte())])
}

pub(super) async fn outwards(bench: &Bench<'_>) -> Measured {
    let sessions = bench.load.settled(bench.proxy.address, LARGE_CONNECTIONS).await?;
    let (received, mut readers) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
    for mut session in sessions {
        let received = Arc::clone(&received);
        readers.spawn(async move {
            session.write_all(&flood_request()).await?;
            session.flush().await?;
            let mut buffer = vec![0; LARGE];
            loop {
                match session.read(&mut buffer).await? {
                    0 => bail!("a connection ended during the flood"),
                    count => _ = received.fetch_add(count, Ordering::Relaxed),
                }
            }
        });
    }
    let count = || received.load(Ordering::Relaxed);
    let flood = watch(bench.proxy, &mut readers, count, bench.amounts.duration()).await?;
    Ok(vec![(&OUTWARDS, flood.nanos_per_byte())])
}

/// What a proxy has done while it was flooded.
pub(crate) struct Flood {
    cpu: Duration,
    bytes: usize,
}

impl Flood {
    pub(crate) fn nanos_per_byte(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.bytes as f64
    }
}

/// Floods the broker through the proxy: each connection writes these bytes again and again. All of them count, from the first to
/// the arrival of the last: Envoy reads up to 1 MiB of small records from one connection before it writes anything.
pub(crate) async fn to_broker(
    load: &Load,
    proxy: &Proxy,
    connections: usize,
    bytes: Vec<u8>,
    duration: Duration,
) -> anyhow::Result<Flood> {
    let sessions = load.settled(proxy.address, connections).await?;
    let before = load.broker.received();
    let flooding = async {
        let (_sessions, sent) = write_again_and_again(sessions, bytes, duration).await?;
        load.broker.wait_for(before, sent).await?;
        Ok(sent)
    };
    let (cpu, bytes) = cpu_of(proxy, flooding).await?;
    Ok(Flood { cpu, bytes })
}

/// Measures a steady flood by the broker from outside: `count` tells what has arrived, `load` are the tasks of the devices.
async fn watch(
    proxy: &Proxy,
    load: &mut JoinSet<anyhow::Result<()>>,
    count: impl Fn() -> usize,
    duration: Duration,
) -> anyhow::Result<Flood> {
    sleep(WARM_UP).await;
    let (cpu, bytes) = (proxy.cpu()?, count());
    sleep(duration).await;
    let flood = Flood { cpu: proxy.cpu()?.saturating_sub(cpu), bytes: count() - bytes };
    if let Some(ended) = load.try_join_next() {
        ended??;
    }
    ensure!(flood.bytes > 0, "nothing arrived");
    Ok(flood)
}
