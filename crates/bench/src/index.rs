//! Measures the index of live sessions alone: the cost of an entry, and how a sweep delays sessions that it does not
//! concern.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portcullis_gateway::config::tables::Protocol;
use portcullis_gateway::evidence::Evidence;
use portcullis_gateway::observe::SessionInfo;
use portcullis_gateway::outcome::CloseReason;
use portcullis_gateway::pki::{ChainCertificate, IssuerId, Key, Serial, VerifiedChain};
use portcullis_gateway::sessions::{SessionEntry, SessionGuard, Sessions};

use crate::usage::pss;

/// Devices per intermediate CA: a fleet of a million has several.
const DEVICES_OF_ONE: u32 = 100_000;
const DAY: i64 = 24 * 60 * 60;

pub(crate) fn run(count: u32) -> anyhow::Result<()> {
    let sessions = Sessions::new();
    let listener: Arc<str> = "devices".into();
    let address = (std::net::Ipv4Addr::LOCALHOST, 1).into();
    let memory = pss(&[std::process::id()])?;
    let open = |n: u32| {
        let info = SessionInfo::new(sessions.next_id(), Arc::clone(&listener), Protocol::Tls, address);
        let session = sessions.open(info);
        session.proved(Some(Evidence::Chain(chain(n))));
        session
    };
    let begin = Instant::now();
    let held: Vec<SessionGuard> = (0..count).map(open).collect();
    println!("{count} sessions added: {:?} each", begin.elapsed() / count);
    println!("memory: {} bytes each", pss(&[std::process::id()])?.saturating_sub(memory) / u64::from(count));

    let none = |_: &SessionEntry| Ok(());
    let keys = |range: std::ops::Range<u32>| -> Vec<Key> { range.map(|n| chain(n).certificates()[0].key()).collect() };
    measure("a CRL that revokes one of them", open, count, || {
        sessions.sweep_keys(&keys(7..8), |_| Err(CloseReason::CertificateRevoked))
    });
    let others = keys(count..count + 1_000_000);
    measure("a CRL that revokes 1,000,000 others", open, count, || {
        sessions.sweep_keys(&others, |_| Err(CloseReason::CertificateRevoked))
    });
    let intermediate = [chain(0).certificates()[1].key()];
    measure("an intermediate of 100,000 that is evaluated again", open, count, || {
        sessions.sweep_keys(&intermediate, none)
    });
    measure("all of them evaluated again", open, count, || sessions.sweep(none));
    measure("those that expire in the first of 365 days", open, count, || sessions.sweep_expired(DAY + 1));
    let begin = Instant::now();
    drop(held);
    println!("{count} sessions removed: {:?} each", begin.elapsed() / count);
    Ok(())
}

/// Measures a sweep, and the latency of sessions that open and close during it.
fn measure<T>(what: &str, open: impl Fn(u32) -> SessionGuard + Sync, count: u32, sweep: impl FnOnce() -> T)
where
    T: std::fmt::Display,
{
    let is_over = AtomicBool::new(false);
    let (took, ended, mut others) = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut times = Vec::new();
            for n in 0.. {
                let begin = Instant::now();
                drop(open(count + 2_000_000 + n % 1000));
                times.push(begin.elapsed());
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            times
        });
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        let ended = sweep();
        let took = begin.elapsed();
        is_over.store(true, Ordering::Relaxed);
        (took, ended, others.join().unwrap_or_default())
    });
    others.sort_unstable();
    let at = |per_mille: usize| others.get(others.len() * per_mille / 1000).copied().unwrap_or_default();
    println!(
        "{what}: {took:?}, {ended} ended; opening and closing a session meanwhile: median {:?}, p99.9 {:?}, max {:?}",
        at(500),
        at(999),
        others.last().copied().unwrap_or_default()
    );
}

fn chain(n: u32) -> VerifiedChain {
    let id = |n: u32, kind: u8| {
        let mut digest = [kind; 32];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        IssuerId::new(digest)
    };
    let intermediate = n / DEVICES_OF_ONE;
    let certificate = |issuer, serial: u32, not_after| {
        let serial = Serial::new(&serial.to_be_bytes()).expect("four bytes");
        ChainCertificate { issuer, serial, not_before: 0, not_after, distribution_points: None, responder: None }
    };
    let not_after = i64::from(n % 365 + 1) * DAY;
    let certificates =
        vec![certificate(id(intermediate, 1), n, not_after), certificate(id(0, 2), intermediate, 4000 * DAY)];
    VerifiedChain::new([0; 32], certificates).expect("two certificates")
}
