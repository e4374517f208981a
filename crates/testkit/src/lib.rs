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

use std::time::Duration;

/// For whatever a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a future, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
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
