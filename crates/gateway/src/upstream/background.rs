//! The background tasks of an upstream: resolving its names again, and active health checks. They run until the upstream is
//! dropped.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use portcullis_wire::{Connack, Disconnect, Version};
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dial::timed_out;
use super::endpoint::Endpoint;
use super::pool::Upstream;
use crate::config::tables::{HealthMode, ServerAddress};
use crate::net::is_own_shortage;
use crate::observe::Observer;

/// The interval between lookups while a name has no address.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The limit of a response in bytes. A CONNACK is smaller.
const MAX_CONNACK_LEN: usize = 4096;
/// The return code "server unavailable" [MQTT-3.2.2.3 (3.1.1)].
const SERVER_UNAVAILABLE: u8 = 3;

/// Starts the tasks. They end when the upstream is dropped.
pub(crate) fn start(upstream: &Arc<Upstream>, observer: &Arc<Observer>) {
    if upstream.servers.iter().any(|server| matches!(server.address, ServerAddress::Name(..))) {
        resolve_again(upstream, observer);
    }
    if !upstream.check.is_off() {
        check_again(upstream);
    }
}

fn resolve_again(upstream: &Arc<Upstream>, observer: &Arc<Observer>) {
    let (upstream, observer, interval) = (Arc::downgrade(upstream), Arc::clone(observer), upstream.resolve_interval);
    tokio::spawn(async move {
        // Retry soon the names that the first lookup could not resolve.
        let mut is_complete = false;
        loop {
            tokio::time::sleep(if is_complete { interval } else { RETRY_INTERVAL.min(interval) }).await;
            let Some(upstream) = Weak::upgrade(&upstream) else { return };
            let known = upstream.endpoints();
            is_complete = upstream.resolve(Some(&known), &observer, interval).await;
        }
    });
}

fn check_again(upstream: &Arc<Upstream>) {
    let upstream = Arc::downgrade(upstream);
    tokio::spawn(async move {
        loop {
            let Some(this) = Weak::upgrade(&upstream) else { return };
            let mut checks = JoinSet::new();
            for endpoint in this.endpoints().all() {
                checks.spawn(run_check(Arc::clone(&this), Arc::clone(endpoint)));
            }
            checks.join_all().await;
            // Jitter of a tenth, so that several gateways do not check in step.
            let interval = this.check.settings.interval.mul_f64(rand::rng().random_range(0.9..1.1));
            drop(this);
            tokio::time::sleep(interval).await;
        }
    });
}

async fn run_check(upstream: Arc<Upstream>, endpoint: Arc<Endpoint>) {
    let timeout = upstream.check.settings.timeout;
    let attempt = tokio::time::timeout(timeout, attempt(&upstream, &endpoint));
    let result = attempt.await.unwrap_or_else(|_| Err(timed_out("`timeout` of [upstream.health]", timeout)));
    // What the gateway itself lacks says nothing about the server.
    if upstream.is_retired() || result.as_ref().is_err_and(is_own_shortage) {
        return;
    }
    let change = endpoint.state.health.checked(result.is_ok(), &upstream.check, Instant::now());
    let (name, server) = (upstream.name(), &*endpoint.label);
    match (change, result) {
        (Some(true), _) => tracing::info!(upstream = name, server, "server is up"),
        (Some(false), Err(error)) => tracing::warn!(upstream = name, server, %error, "server is down"),
        _ => {}
    }
}

async fn attempt(upstream: &Upstream, endpoint: &Endpoint) -> io::Result<()> {
    let mut stream = upstream.connect_for_check(endpoint).await?;
    if upstream.check.settings.mode == HealthMode::Tcp {
        return stream.shutdown().await;
    }
    stream.write_all(&upstream.check.connect_packet(&endpoint.label).map_err(io::Error::other)?).await?;
    stream.flush().await?;
    let mut answer = Vec::with_capacity(64);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Connack::decode(&answer, Version::V311, MAX_CONNACK_LEN).map_err(io::Error::other)? {
            None => {}
            Some((connack, _)) if connack.code == SERVER_UNAVAILABLE => {
                return Err(io::Error::other("the broker returned `server unavailable`"));
            }
            // A broker that rejects the check's user is up nevertheless.
            Some(_) => break,
        }
    }
    // After DISCONNECT, the broker publishes no will and logs no error [MQTT-3.14].
    stream.write_all(&Disconnect::NORMAL_V3).await?;
    stream.shutdown().await
}
