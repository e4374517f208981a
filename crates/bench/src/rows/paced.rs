//! Messages at a rate that leaves the machine idle most of the time: what a wake-up costs.

use std::slice;

use super::{Bench, Goal, Measured, cpu_of, micros_each};
use crate::load::mqtt;
use crate::report::Figure;

pub(super) const CONNECTIONS: usize = 100;

static SMALL: Figure = Figure {
    key: "paced-64",
    title: "64 B message, 10,000/s over 100 connections",
    unit: "CPU µs",
    goal: Some(Goal::OfBest(0.75)),
};
static LARGE: Figure = Figure {
    key: "paced-16k",
    title: "16 KiB message, 1,000/s over 100 connections",
    unit: "CPU µs",
    goal: Some(Goal::OfBest(0.9)),
};

pub(super) async fn small(bench: &Bench<'_>) -> Measured {
    Ok(vec![(&SMALL, paced(bench, 64, 10_000).await?)])
}

pub(super) async fn large(bench: &Bench<'_>) -> Measured {
    Ok(vec![(&LARGE, paced(bench, 16 << 10, 1000).await?)])
}

/// CPU µs per message with this payload in bytes, at this rate per second.
async fn paced(bench: &Bench<'_>, payload: usize, pace: usize) -> anyhow::Result<f64> {
    let mut sessions = bench.load.settled(bench.proxy.address, CONNECTIONS).await?;
    let message = mqtt::publish(mqtt::TOPIC, payload);
    // The same once before, so that buffers have grown.
    bench.load.paced(&mut sessions, slice::from_ref(&message), pace, bench.amounts.duration() / 10).await?;
    let work = bench.load.paced(&mut sessions, slice::from_ref(&message), pace, bench.amounts.duration());
    let (cpu, sent) = cpu_of(bench.proxy, work).await?;
    Ok(micros_each(cpu, sent))
}
