//! Shared test utilities. Everything listens on a free loopback port, every wait has a deadline, and every failure
//! panics.
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

use std::time::Duration;

/// The deadline of everything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a future, and panics after [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
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
