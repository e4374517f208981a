//! Revokes some of many connected devices, and measures how long until their sessions end and how the latency of the other
//! sessions changes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::crl;
use crate::load::mqtt::{self, PINGREQ, PINGRESP};
use crate::load::{CONCURRENCY, Load, SETTLED, Session, session_as};
use crate::peers::{More, Proxy};

/// The device that is not revoked.
const STAYING: &str = "thing001";
/// The device that is revoked.
const GOING: &str = "thing002";
/// How long to measure latency before the revocation, and after it.
const WATCHED: Duration = Duration::from_secs(8);

pub(crate) async fn run(
    binary: &Path,
    dir: &Path,
    sessions: usize,
    revoked: usize,
    entries: u32,
) -> anyhow::Result<()> {
    ensure!(revoked < sessions, "--revoked must be less than --sessions");
    let (load, connectors) = Load::of(dir, &[STAYING, GOING])?;
    let pki = dir.join("pki");
    let more = More { tls: "crl = [\"pki/crl.pem\"]".to_owned(), ..More::default() };
    let proxy = Proxy::portcullis_with(binary, dir, load.broker.address, &more).await?;
    let address = proxy.address;
    let open = async |count: usize, index: usize, name: &str| -> anyhow::Result<Vec<Session>> {
        let connect = mqtt::connect(name);
        let mut opened = Vec::with_capacity(count);
        while opened.len() < count {
            let mut opening = JoinSet::new();
            for _ in 0..(count - opened.len()).min(CONCURRENCY) {
                let (connector, connect) = (connectors[index].clone(), connect.clone());
                opening.spawn(async move { session_as(&connector, address, &connect).await });
            }
            while let Some(session) = opening.join_next().await {
                opened.push(session??);
            }
        }
        Ok(opened)
    };
    let mut staying = open(sessions - revoked, 0, STAYING).await?;
    let going = open(revoked, 1, GOING).await?;
    println!("{sessions} sessions");
    tokio::time::sleep(SETTLED).await;
    let probe = staying.pop().expect("fewer sessions are revoked than exist");
    let probe = tokio::spawn(ping(probe, WATCHED * 2));
    tokio::time::sleep(WATCHED).await;

    // The CRL also revokes many other certificates, so the gateway has a long CRL to read and compare.
    let crl = crl::with_root(&pki, entries, &[GOING])?;
    let new = pki.join("crl.new");
    std::fs::write(&new, crl)?;
    std::fs::rename(&new, pki.join("crl.pem"))?;
    let begin = Instant::now();
    let mut ending = JoinSet::new();
    for mut session in going {
        ending.spawn(async move {
            let _ = session.read(&mut [0; 16]).await;
            begin.elapsed()
        });
    }
    let mut ended = Vec::new();
    while let Some(time) = ending.join_next().await {
        ended.push(time?);
    }
    ended.sort_unstable();
    println!(
        "a CRL of {entries} entries; revoked sessions ended after: first {:?}, last {:?}",
        ended[0],
        ended[ended.len() - 1]
    );
    let times = probe.await??;
    let (before, after): (Vec<_>, Vec<_>) = times.into_iter().partition(|(at, _)| *at < WATCHED);
    for (what, mut times) in [("before", before), ("after", after)] {
        times.sort_unstable_by_key(|(_, took)| *took);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].1;
        println!(
            "PINGREQ to PINGRESP of another session, {what}: median {:?}, p99 {:?}, max {:?}",
            at(50),
            at(99),
            at(100)
        );
    }
    for session in &mut staying {
        session.write_all(&PINGREQ).await?;
        session.read_exact(&mut [0; 2]).await.context("a session that was not revoked has ended")?;
    }
    println!("{} other sessions are still connected", staying.len());
    drop(staying);
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.stop().await
}

/// Measures the time from PINGREQ to PINGRESP repeatedly. Returns pairs of elapsed time and latency.
async fn ping(mut session: Session, duration: Duration) -> anyhow::Result<Vec<(Duration, Duration)>> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < duration {
        let sent = Instant::now();
        session.write_all(&PINGREQ).await?;
        let mut response = [0; 2];
        session.read_exact(&mut response).await?;
        ensure!(response == PINGRESP, "no PINGRESP");
        times.push((begin.elapsed(), sent.elapsed()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(times)
}
