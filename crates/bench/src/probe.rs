//! Live sessions. Enters: a gateway, and the broker behind it. Leaves: the time from each PINGREQ to its PINGRESP, through the
//! gateway and straight to the broker, which shows what the machine and the probe themselves contribute.
//!
//! PINGREQs are sent by the clock and do not wait for answers: otherwise a long delay would count only once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::load::mqtt::{self, PINGREQ, PINGRESP};
use crate::load::{SETTLED, session_as};

/// How long the last answers may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two PINGREQs straight to the broker.
const STRAIGHT_GAP: Duration = Duration::from_millis(2);

/// What is probed.
pub(crate) struct Target {
    pub(crate) connector: TlsConnector,
    pub(crate) client_id: &'static str,
    pub(crate) gateway: SocketAddr,
    pub(crate) broker: SocketAddr,
    /// The number of live sessions, and the time between two PINGREQs of each.
    pub(crate) sessions: usize,
    pub(crate) gap: Duration,
}

/// A thread with live sessions.
pub(crate) struct Probe {
    thread: JoinHandle<anyhow::Result<Samples>>,
    stop: watch::Sender<bool>,
}

/// When each PINGREQ was sent, and how long its answer took.
#[derive(Default)]
pub(crate) struct Samples {
    through: Vec<Sample>,
    straight: Vec<Sample>,
}

type Sample = (Instant, Duration);

/// The latencies of some time, in order.
pub(crate) struct Latencies(Vec<Duration>);

impl Probe {
    /// Opens the sessions, and waits until they are [`SETTLED`].
    pub(crate) async fn start(target: Target) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (ready, is_ready) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("probe".to_owned());
        let thread = thread.spawn(move || runtime.block_on(probe(target, ready, stopped)))?;
        if is_ready.await.is_err() {
            let error = thread.join().map_err(|_| anyhow!("the probe has panicked"))?.err();
            return Err(error.context("the probe has ended")?.context("live sessions"));
        }
        sleep(SETTLED).await;
        Ok(Self { thread, stop })
    }

    /// Waits for the last answers. Fails if a session has ended.
    pub(crate) fn finish(self) -> anyhow::Result<Samples> {
        self.stop.send_replace(true);
        self.thread.join().map_err(|_| anyhow!("the probe has panicked"))?
    }
}

impl Samples {
    /// Through the gateway, and straight to the broker; of what was sent in this time.
    pub(crate) fn between(&self, begin: Instant, end: Instant) -> anyhow::Result<[Latencies; 2]> {
        let of = |samples: &[Sample]| {
            let within = samples.iter().filter(|(at, _)| (begin..end).contains(at));
            Latencies::of(within.map(|(_, took)| *took).collect())
        };
        Ok([of(&self.through)?, of(&self.straight)?])
    }
}

impl Latencies {
    /// At least 100 of them, so that there is a 99th percentile.
    pub(crate) fn of(mut times: Vec<Duration>) -> anyhow::Result<Self> {
        ensure!(times.len() >= 100, "only {} PINGREQs were sent", times.len());
        times.sort_unstable();
        Ok(Self(times))
    }

    /// As one.
    pub(crate) fn all(parts: impl IntoIterator<Item = Self>) -> anyhow::Result<Self> {
        Self::of(parts.into_iter().flat_map(|part| part.0).collect())
    }

    /// In ms.
    pub(crate) fn at(&self, per_mille: usize) -> f64 {
        self.0[(self.0.len() - 1) * per_mille / 1000].as_secs_f64() * 1e3
    }
}

async fn probe(target: Target, ready: oneshot::Sender<()>, stop: watch::Receiver<bool>) -> anyhow::Result<Samples> {
    let connect = mqtt::connect(target.client_id);
    let (mut through, mut straight) = (JoinSet::new(), JoinSet::new());
    for n in 0..target.sessions {
        let session = session_as(&target.connector, target.gateway, &connect).await?;
        let after = target.gap * u32::try_from(n)? / u32::try_from(target.sessions)?;
        through.spawn(pings(session, after, target.gap, stop.clone()));
    }
    let mut direct = TcpStream::connect(target.broker).await?;
    direct.set_nodelay(true)?;
    direct.write_all(&connect).await?;
    direct.read_exact(&mut [0; 4]).await?;
    straight.spawn(pings(direct, Duration::ZERO, STRAIGHT_GAP, stop));
    let _ = ready.send(());
    Ok(Samples { through: joined(through).await?, straight: joined(straight).await? })
}

async fn joined(mut tasks: JoinSet<anyhow::Result<Vec<Sample>>>) -> anyhow::Result<Vec<Sample>> {
    let mut all = Vec::new();
    while let Some(samples) = tasks.join_next().await {
        all.extend(samples??);
    }
    Ok(all)
}

async fn pings(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    after: Duration,
    gap: Duration,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<Vec<Sample>> {
    let (mut samples, mut sent, mut buffer) = (Vec::new(), VecDeque::new(), [0; 512]);
    let mut ticks = interval(gap);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sleep(after).await;
    while !*stop.borrow() {
        tokio::select! {
            _ = ticks.tick() => {
                sent.push_back(Instant::now());
                stream.write_all(&PINGREQ).await?;
                stream.flush().await?;
            }
            count = stream.read(&mut buffer) => answered(&buffer[..count?], &mut sent, &mut samples)?,
            _ = stop.changed() => {}
        }
    }
    let rest = async {
        while !sent.is_empty() {
            let count = stream.read(&mut buffer).await?;
            answered(&buffer[..count], &mut sent, &mut samples)?;
        }
        anyhow::Ok(())
    };
    timeout(DEADLINE, rest).await.context("no PINGRESP in time")??;
    Ok(samples)
}

/// A record of TLS carries whole packets: nothing here splits them.
fn answered(bytes: &[u8], sent: &mut VecDeque<Instant>, samples: &mut Vec<Sample>) -> anyhow::Result<()> {
    ensure!(!bytes.is_empty(), "a live session has ended");
    for packet in bytes.chunks(PINGRESP.len()) {
        ensure!(packet == PINGRESP, "something else than PINGRESP");
        let at = sent.pop_front().context("a PINGRESP without PINGREQ")?;
        samples.push((at, at.elapsed()));
    }
    Ok(())
}
