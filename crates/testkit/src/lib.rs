//! What the tests share. Everything listens on the loopback and on port 0, every wait has an end, and whatever cannot
//! go on panics: this is code of tests.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::must_use_candidate)]

mod broker;
mod client;
mod gateway;
mod packet;
mod pki;
mod service;

pub use broker::{Broker, BrokerConnection};
pub use client::{Client, tls_config};
pub use gateway::{TestGateway, password_file};
pub use packet::{connack, connect, connect_as, connect_v5};
pub use pki::Pki;
pub use service::Service;

use std::task::{Context, Waker};
use std::time::Duration;

/// For whatever a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a future, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Advances the time of this test: of all timers of its runtime, of the gateway's calendar, which follows them, and of
/// [`Pki`]. Timers that are due by then fire as soon as the test waits for something.
///
/// The runtime's clock stands still for no more than this call: it never advances by itself, which would let time-outs fire
/// while bytes are on their way. Needs the runtime of one thread that `#[tokio::test]` has by default.
pub fn advance(by: Duration) {
    tokio::time::pause();
    // The first poll advances; what it would wait for is that timers fire.
    let _ = std::pin::pin!(tokio::time::advance(by)).poll(&mut Context::from_waker(Waker::noop()));
    tokio::time::resume();
}

/// The time of day of this test.
fn now() -> time::OffsetDateTime {
    let advanced = tokio::time::Instant::now().into_std().saturating_duration_since(std::time::Instant::now());
    time::OffsetDateTime::now_utc() + advanced
}

/// Asks again and again, until the answer is there.
pub async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
