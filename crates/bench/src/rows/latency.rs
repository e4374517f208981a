//! The time that the proxy adds to a packet and its answer while nothing else happens.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{Bench, Goal, Measured};
use crate::load::{Session, mqtt};
use crate::report::Figure;

static P50: Figure = Figure {
    key: "latency-p50",
    title: "added latency of PINGREQ to PINGRESP, p50",
    unit: "ms",
    goal: Some(Goal::OfBest(0.7)),
};
static P99: Figure =
    Figure { key: "latency-p99", title: "added latency of PINGREQ to PINGRESP, p99", unit: "ms", goal: None };

/// Between two packets.
const GAP: Duration = Duration::from_millis(1);
/// Packets before the measurement.
const WARM_UP: usize = 50;

/// Packets go through the proxy and straight to the broker in turn, so that both meet the same machine.
pub(super) async fn added(bench: &Bench<'_>) -> Measured {
    let session = bench.load.settled(bench.proxy.address, 1).await?.remove(0);
    let mut direct = TcpStream::connect(bench.load.broker.address).await?;
    direct.set_nodelay(true)?;
    direct.write_all(&mqtt::connect("direct")).await?;
    direct.read_exact(&mut [0; 4]).await?;
    // On a worker, which itself waits for the sockets: `main` would be woken up by one.
    let (mut through, mut straight) = tokio::spawn(pings(session, direct, bench.amounts.pings)).await??;
    through.sort_unstable();
    straight.sort_unstable();
    let added = |percent: usize| {
        let at = |times: &[Duration]| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        at(&through) - at(&straight)
    };
    Ok(vec![(&P50, added(50)), (&P99, added(99))])
}

/// Returns the times of `count` packets through the proxy, and of as many without it.
async fn pings(
    mut session: Session,
    mut direct: TcpStream,
    count: usize,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut through, mut straight) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for n in 0..count + WARM_UP {
        sleep(GAP).await;
        let proxied = ping(&mut session).await?;
        sleep(GAP).await;
        let unproxied = ping(&mut direct).await?;
        if n >= WARM_UP {
            through.push(proxied);
            straight.push(unproxied);
        }
    }
    Ok((through, straight))
}

async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    stream.write_all(&mqtt::PINGREQ).await?;
    stream.flush().await?;
    let mut answer = [0; mqtt::PINGRESP.len()];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == mqtt::PINGRESP, "no PINGRESP");
    Ok(begin.elapsed())
}
