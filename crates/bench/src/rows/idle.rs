//! The memory of connections that do nothing: at first, and after each has sent a message once.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::{Bench, Goal, Measured};
use crate::load::mqtt;
use crate::report::Figure;

static IDLE: Figure = Figure {
    key: "idle",
    title: "memory (PSS) of an idle connection",
    unit: "bytes",
    goal: Some(Goal::AtMost(7168.0)),
};
static AFTER_BURST: Figure =
    Figure { key: "idle-after-burst", title: "the same after one message of 16 KiB each", unit: "bytes", goal: None };

/// The payload of the message, in bytes.
const MESSAGE: usize = 16 << 10;
/// Connects before the measurement, so that what a process allocates once does not count.
const WARM_UP: usize = 32;
/// Until sessions are where they stay (`load::SETTLED`), and allocators have returned what they return.
const QUIET: Duration = Duration::from_secs(2);

pub(super) async fn memory(bench: &Bench<'_>) -> Measured {
    let (proxy, count) = (bench.proxy, bench.amounts.idle);
    bench.load.connect(proxy.address, WARM_UP).await?;
    sleep(QUIET).await;
    let before = proxy.pss()?;
    let grown = || anyhow::Ok(proxy.pss()?.saturating_sub(before) as f64 / count as f64);

    let mut sessions = bench.load.sessions(proxy.address, count).await?;
    sleep(QUIET).await;
    let idle = grown()?;

    let (message, received) = (mqtt::publish(mqtt::TOPIC, MESSAGE), bench.load.broker.received());
    for session in &mut sessions {
        session.write_all(&message).await?;
        session.flush().await?;
    }
    bench.load.broker.wait_for(received, count * message.len()).await?;
    sleep(QUIET).await;
    Ok(vec![(&IDLE, idle), (&AFTER_BURST, grown()?)])
}
