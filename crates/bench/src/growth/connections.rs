//! Numbers of idle connections -> the cost of connects, of messages over a few others, and of messages over all.

use std::slice;
use std::time::Duration;

use tokio::time::sleep;

use super::{Bench, WARM_UP, connect_cost};
use crate::load::mqtt::{TOPIC, publish};
use crate::load::{Load, Session};
use crate::peers::{More, Proxy};
use crate::report::Family;
use crate::rows::{cpu_of, micros_each};
use crate::usage::affordable;

const SIZES: [usize; 3] = [100, 1000, 9900];
/// Connections with messages while the others are idle.
const BUSY: usize = 100;
/// Messages per second over all connections.
const PACE: usize = 5000;
const DURATION: Duration = Duration::from_secs(3);
/// Until sessions are where they stay (`load::SETTLED`), and allocators have returned what they return.
const QUIET: Duration = Duration::from_secs(2);

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Family> {
    let mut family = Family::new("idle connections");
    for size in bench.sizes(&SIZES) {
        let idle = affordable(size + BUSY)? - BUSY;
        eprintln!("{idle} idle connections");
        let load = bench.load;
        let proxy = Proxy::portcullis_with(bench.binary, bench.dir, load.broker.address, &More::default()).await?;
        load.connect(proxy.address, WARM_UP).await?;
        sleep(QUIET).await;
        let before = proxy.pss()?;
        let mut sessions = load.sessions(proxy.address, idle).await?;
        sleep(QUIET).await;
        let grown = proxy.pss()?.saturating_sub(before) as f64 / idle as f64;
        family.add("memory (PSS) of each", "bytes", idle, grown);
        family.add("full connect", "CPU µs", idle, connect_cost(load, &proxy).await?);
        let mut busy = load.settled(proxy.address, BUSY).await?;
        family.add("64 B message over 100 others", "CPU µs", idle, message_cost(load, &proxy, &mut busy).await?);
        drop(busy);
        family.add("64 B message over all", "CPU µs", idle, message_cost(load, &proxy, &mut sessions).await?);
        drop(sessions);
        proxy.stop().await?;
    }
    Ok(family)
}

async fn message_cost(load: &Load, proxy: &Proxy, sessions: &mut [Session]) -> anyhow::Result<f64> {
    let message = publish(TOPIC, 64);
    let paced = load.paced(sessions, slice::from_ref(&message), PACE, DURATION);
    let (cpu, sent) = cpu_of(proxy, paced).await?;
    Ok(micros_each(cpu, sent))
}
