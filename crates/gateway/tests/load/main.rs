//! Password verification under load. In its own process, because all gateways of a process share the verifying threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use portcullis_testkit::{Broker, Client, TestGateway, connect_as, password_file};
use tokio::sync::Mutex;

const REFUSED: &[u8] = b"\x20\x02\x00\x04";
/// One test after the other.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn gateway(broker: &Broker, authenticate: &str, rest: &str) -> TestGateway {
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let upstream = broker.upstream();
    TestGateway::start(&format!("{listener}authenticate = {authenticate}\n{upstream}{rest}")).await
}

/// The median time of several rejections.
async fn time(gateway: &TestGateway, packet: &[u8]) -> Duration {
    let mut times = Vec::new();
    for _ in 0..9 {
        let begin = Instant::now();
        assert_eq!(gateway.refusal(packet).await, REFUSED);
        times.push(begin.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_nobody_knows_waits_as_long() {
    let _alone = ALONE.lock().await;
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let tables = password_file(dir.path(), "users", &[("alice", "one"), ("bob", "two")]);
    let gateway = gateway(&broker, "[\"users\"]", &tables).await;
    let known = time(&gateway, &connect_as("a", "alice", b"wrong")).await;
    let unknown = time(&gateway, &connect_as("a", "nobody", b"wrong")).await;
    let ratio = unknown.as_secs_f64() / known.as_secs_f64();
    println!("a wrong password takes {known:?}, an unknown user {unknown:?}");
    // If no hash were verified, it would be a hundred times faster.
    assert!((0.3..3.0).contains(&ratio), "{known:?} {unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_passwords_leaves_sessions_alone() {
    let _alone = ALONE.lock().await;
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let tables = password_file(dir.path(), "users", &[("alice", "one")]);
    let gateway = gateway(&broker, "[\"users\"]", &tables).await;
    let (mut alice, mut at_broker) = gateway.session(&broker, &connect_as("a", "alice", b"one")).await;
    let mut flood = Vec::new();
    for n in 0..300 {
        let mut client = Client::tcp(gateway.address()).await;
        client.write(&connect_as("x", "alice", format!("guess {n}").as_bytes())).await;
        flood.push(client);
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let begin = Instant::now();
        alice.write(b"\xc0\x00").await;
        at_broker.expect(b"\xc0\x00").await;
        slowest = slowest.max(begin.elapsed());
    }
    println!("the slowest of 50 packets beside 300 guesses took {slowest:?}");
    // In the queue of the pool, it would have waited for seconds.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // A client whose password was verified a moment ago does not wait either. Where the guesses come from, it would have to:
    // a right one is not to be answered before the wrong ones.
    let begin = Instant::now();
    let mut again = Client::tcp_from([127, 0, 0, 2], gateway.address()).await;
    again.greet(&broker, &connect_as("b", "alice", b"one")).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // Beyond the queue's limit, clients are rejected with "server unavailable".
    let mut busy = 0;
    for mut client in flood {
        match client.read_to_end().await.as_slice() {
            b"\x20\x02\x00\x03" => busy += 1,
            answer => assert_eq!(answer, REFUSED),
        }
    }
    assert!(busy > 0, "the queue is bounded");
}
