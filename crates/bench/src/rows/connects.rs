//! Connects: full, resumed, of sessions that stay for a while, all at once.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use super::{Bench, Goal, Measured, cpu_of, micros_each};
use crate::fleet::{Conduct, Fleet};
use crate::load::SETTLED;
use crate::report::Figure;

static FULL: Figure =
    Figure { key: "full-connect", title: "full connect", unit: "CPU µs", goal: Some(Goal::OfEnvoy(0.65)) };
static RESUMED: Figure =
    Figure { key: "resumed-connect", title: "resumed connect", unit: "CPU µs", goal: Some(Goal::OfEnvoy(0.7)) };
static STAY_SHORT: Figure =
    Figure { key: "stay-short", title: "connect that stays 0.5 s", unit: "CPU µs", goal: None };
static STAY: Figure = Figure { key: "stay", title: "connect that stays 1.5 s", unit: "CPU µs", goal: None };
static STORM: Figure =
    Figure { key: "storm", title: "storm, until all are connected", unit: "ms", goal: Some(Goal::OfEnvoy(0.8)) };
static STORM_CPU: Figure = Figure { key: "storm-cpu", title: "storm, each connect", unit: "CPU µs", goal: None };

/// Connects before a measurement, so that what a process does once does not count.
const WARM_UP: usize = 200;
/// Less than the second after which Portcullis moves a session to a thread that relays.
const SHORT: Duration = Duration::from_millis(500);
/// Of the connects that are to be resumed, so many must be.
const MIN_RESUMED: f64 = 0.99;

/// Full handshake, CONNECT, CONNACK, end.
pub(super) async fn full(bench: &Bench<'_>) -> Measured {
    let (address, count) = (bench.proxy.address, bench.amounts.connects);
    bench.load.connect(address, WARM_UP).await?;
    let (cpu, ()) = cpu_of(bench.proxy, bench.load.connect(address, count)).await?;
    Ok(vec![(&FULL, micros_each(cpu, count))])
}

/// The same by ticket.
pub(super) async fn resumed(bench: &Bench<'_>) -> Measured {
    let (address, count) = (bench.proxy.address, bench.amounts.connects);
    bench.load.connect_again(address, WARM_UP).await?;
    let (cpu, resumed) = cpu_of(bench.proxy, bench.load.connect_again(address, count)).await?;
    ensure!(resumed as f64 > count as f64 * MIN_RESUMED, "{resumed} of {count} connects were resumed");
    Ok(vec![(&RESUMED, micros_each(cpu, count))])
}

/// Full connects of sessions that end before Portcullis would move them, and after.
pub(super) async fn stay(bench: &Bench<'_>) -> Measured {
    let (address, count) = (bench.proxy.address, bench.amounts.stays);
    bench.load.stay(address, WARM_UP, SETTLED).await?;
    // For as long as the other, so that what the clock causes does not make a difference.
    let as_long = async {
        bench.load.stay(address, count, SHORT).await?;
        sleep(SETTLED.saturating_sub(SHORT)).await;
        Ok(())
    };
    let (short, ()) = cpu_of(bench.proxy, as_long).await?;
    let (long, ()) = cpu_of(bench.proxy, bench.load.stay(address, count, SETTLED)).await?;
    Ok(vec![(&STAY_SHORT, micros_each(short, count)), (&STAY, micros_each(long, count))])
}

/// Everybody connects at the same time, and stays.
pub(super) async fn storm(bench: &Bench<'_>) -> Measured {
    let (address, count) = (bench.proxy.address, bench.amounts.storm);
    bench.load.connect(address, WARM_UP).await?;
    let storm = async {
        let mut fleet = Fleet::start(bench.dir, address, Conduct::Connect, count, Duration::ZERO).await?;
        let done = fleet.done().await?;
        Ok((fleet, done))
    };
    let (cpu, (fleet, done)) = cpu_of(bench.proxy, storm).await?;
    ensure!(done.failures == 0, "{} of {count} connects failed, one of them: {}", done.failures, done.cause);
    fleet.end().await?;
    Ok(vec![(&STORM, done.elapsed.as_secs_f64() * 1e3), (&STORM_CPU, micros_each(cpu, count))])
}
