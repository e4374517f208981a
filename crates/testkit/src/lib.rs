//! Shared test utilities. Everything listens on a free loopback port, every wait has a deadline, and every failure
//! panics.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::must_use_candidate)]

mod broker;
mod client;
mod gateway;
mod packet;
mod pki;
mod quic;
mod service;

pub use broker::{Broker, BrokerConnection};
pub use client::{Client, tls_config};
pub use gateway::{TestGateway, password_file};
pub use packet::{connack, connect, connect_as, connect_v5, field, packet, publish, suback, subscribe};
pub use pki::Pki;
pub use quic::{QuicClient, UdpPath};
pub use service::Service;

use std::task::{Context, Waker};
use std::time::Duration;

/// The deadline of everything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a future, and panics after [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Advances the time of this test: all timers of its runtime, the gateway's wall clock, which follows them, and that of
/// [`Pki`]. Timers that are due by then fire as soon as the test waits for something.
///
/// The runtime's clock is paused only during this call: it never advances by itself, which would let timeouts fire while
/// bytes are in flight. Needs the single-threaded runtime that `#[tokio::test]` uses by default.
pub fn advance(by: Duration) {
    tokio::time::pause();
    // The first poll advances the clock; the rest would wait for timers to fire.
    let _ = std::pin::pin!(tokio::time::advance(by)).poll(&mut Context::from_waker(Waker::noop()));
    tokio::time::resume();
}

/// The wall clock of this test.
fn now() -> time::OffsetDateTime {
    let advanced = tokio::time::Instant::now().into_std().saturating_duration_since(std::time::Instant::now());
    time::OffsetDateTime::now_utc() + advanced
}

/// Polls `check` until it returns a value, and panics after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(value) = check() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
