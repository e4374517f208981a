//! What has to be looked after while the gateway runs, again and again: files that change, lists and answers to fetch,
//! certificates that expire, sessions that are over because of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::observe::Expiry;
use crate::pki::CrlNote;
use crate::session::index::Live;
use crate::session::{Shared, evaluate};
use crate::tls::ServerTls;
use crate::util::clock::now;

/// How late the end of a certificate's validity is noticed at most, and that it was revoked.
const PERIOD: Duration = Duration::from_secs(1);
/// A file that has changed is read after one of these to two.
const FILES_PERIOD: Duration = Duration::from_millis(500);
/// Days before a certificate expires on which it is said.
const WARN_AT: [i64; 4] = [30, 7, 1, 0];
const DAY: i64 = 24 * 60 * 60;
/// Connected devices that are asked about at once after a reload.
const MAX_CHECKS: usize = 16;
/// Issuers that metrics tell apart at most.
const MAX_ISSUERS: usize = 64;

/// Looks after the gateway for as long as it is there. Files have a loop of their own: a file system, or a token, that
/// hangs is not to keep sessions from ending.
pub(crate) async fn run(shared: Weak<Shared>) {
    tokio::join!(maintain_sessions(shared.clone()), follow_files(shared));
}

async fn maintain_sessions(shared: Weak<Shared>) {
    let mut ticks = ticks(PERIOD);
    let mut warned = Warned::default();
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        fetch_due(&shared);
        let result = tokio::task::spawn_blocking(move || {
            end_sessions(&shared);
            warned.warn(&shared, now());
            warned
        });
        warned = result.await.unwrap_or_else(|error| {
            tracing::error!(%error, "session maintenance failed; it runs again in a second");
            Warned::default()
        });
    }
}

async fn follow_files(shared: Weak<Shared>) {
    let mut ticks = ticks(FILES_PERIOD);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        // Files are read and certificates parsed: not on a thread that moves bytes.
        if let Err(error) = tokio::task::spawn_blocking(move || read_files(&shared)).await {
            tracing::error!(%error, "checking files for changes failed; it runs again in half a second");
        }
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Does at once all that is otherwise done at the next ticks, and returns once it is done; requests that it begins go on in
/// the background.
#[cfg(feature = "test-util")]
pub(crate) async fn run_once(shared: Arc<Shared>) {
    fetch_due(&shared);
    let result = tokio::task::spawn_blocking(move || {
        // Changed files are read once they have not changed between two looks.
        read_files(&shared);
        read_files(&shared);
        end_sessions(&shared);
    });
    if let Err(panic) = result.await {
        std::panic::resume_unwind(panic.into_panic());
    }
}

/// Begins, in the background, to fetch what is to be had from the network.
fn fetch_due(shared: &Shared) {
    shared.runtime.load().authenticators.iter().for_each(|authenticator| authenticator.fetch_due());
    shared.state.revocation.fetch_due(|key| shared.state.sessions.has_certificate(key));
    for listener in &shared.runtime.load().listeners {
        listener.tls.iter().for_each(ServerTls::refresh_staples);
    }
}

fn end_sessions(shared: &Shared) {
    let runtime = shared.runtime.load_full();
    let mut changed = shared.state.revocation.take_revoked();
    changed.extend(shared.state.sources.registries.values().iter().flat_map(|registry| registry.take_changed()));

    let now = now();
    let ended = shared.state.sessions.sweep_keys(&changed, |live| evaluate(live.claim(), &runtime, now))
        + shared.state.sessions.sweep_expired(now);
    if ended > 0 {
        tracing::info!(sessions = ended, "sessions ended: their credentials are no longer valid");
    }
}

fn read_files(shared: &Shared) {
    for problem in shared.state.revocation.read_changed_files() {
        tracing::error!(%problem, "CRL rejected; the last good one stays in use");
    }
    let runtime = shared.runtime.load_full();
    let mut have_changed = false;
    for listener in &runtime.listeners {
        if let Some(tls) = &listener.tls {
            have_changed |= tls.read_changed_files(&listener.name);
        }
    }
    for authenticator in &runtime.authenticators {
        have_changed |= authenticator.read_changed_files();
    }
    runtime.signer.iter().for_each(|signer| signer.read_changed_files());
    if have_changed {
        let ended = sweep(shared);
        tracing::info!(sessions = ended, "credential files changed: all sessions evaluated again, sessions ended");
    }
}

/// Judges all sessions by the configuration and the lists of the moment; returns how many have to end.
pub(crate) fn sweep(shared: &Shared) -> usize {
    let runtime = shared.runtime.load_full();
    let now = now();
    shared.state.sessions.sweep(|live| evaluate(live.claim(), &runtime, now))
}

/// Asks authorities about devices that are connected, as they would be asked if the devices came now: a configuration may
/// ask for more than the one they came under. What comes of it, ends them as ever.
pub(crate) async fn check_revocation_of_all(shared: Arc<Shared>) {
    let shared = &shared;
    let check_revocation = async |live: Arc<Live>| {
        let listener = shared.runtime.load().listener(live.claim().listener).cloned();
        let trust = listener.as_ref().and_then(|listener| listener.tls.as_ref()?.trust());
        if let (Some(chain), Some(trust)) = (live.chain(), trust) {
            // That nothing is known ends nobody.
            let _ = trust.check_revocation(chain).await;
        }
    };
    futures_util::stream::iter(shared.state.sessions.all()).for_each_concurrent(MAX_CHECKS, check_revocation).await;
}

/// What there is to say of certificates at a moment: those of the gateway, those devices are connected with, and CRLs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    /// The gateway's own and its trust anchors.
    pub certificates: Vec<Expiry>,
    /// CRLs in use.
    pub crls: Vec<CrlNote>,
    /// Connected devices by the name of who issued their certificates, and how many; the rest of many as `other`.
    pub devices_by_issuer: Vec<(String, usize)>,
    /// How many of them have a certificate that expires within so many days; the larger include the smaller.
    pub devices_expiring: Vec<(u32, usize)>,
}

/// What there is to say at the moment.
pub(crate) fn certificate_status(shared: &Shared) -> CertificateStatus {
    let inventory = shared.state.sessions.inventory(now());
    let mut devices_by_issuer: Vec<(String, usize)> = Vec::new();
    for (issuer, count) in inventory.by_issuer {
        let name = shared.state.revocation.name_of(&issuer).filter(|_| devices_by_issuer.len() < MAX_ISSUERS);
        let name = name.unwrap_or_else(|| "other".to_owned());
        // Two authorities may call themselves the same.
        match devices_by_issuer.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => devices_by_issuer.push((name, count)),
        }
    }
    CertificateStatus {
        certificates: shared.runtime.load().expiries(),
        crls: shared.state.revocation.crls(),
        devices_by_issuer,
        devices_expiring: inventory.expiring,
    }
}

/// Sets the metrics that say what is there, rather than what happened.
pub(crate) fn refresh_metrics(shared: &Shared) {
    let (metrics, status) = (&shared.state.observer.metrics, certificate_status(shared));
    metrics.set_certificate_expiry(&status.certificates);
    let crls = status.crls.into_iter();
    metrics.set_crls(crls.map(|crl| (crl.origin, crl.this_update, crl.next_update, crl.revoked)));
    metrics.set_inventory(&status.devices_by_issuer, &status.devices_expiring);
    let runtime = shared.runtime.load();
    let registries = runtime.authenticators.iter().filter_map(|it| Some((&*it.name, it.registry()?)));
    metrics.set_registries(registries.map(|(name, registry)| (name, registry.len(), registry.is_certain())));
}

/// What has been warned of, so that it is said once.
#[derive(Default)]
struct Warned {
    /// By certificate: how many of [`WARN_AT`] have been reached.
    certificates: HashMap<Expiry, usize>,
    /// By file or URL: the end of the list's validity.
    crls: HashMap<String, i64>,
}

impl Warned {
    fn warn(&mut self, shared: &Shared, now: i64) {
        let expiries = shared.runtime.load().expiries();
        self.certificates.retain(|known, _| expiries.contains(known));
        for expiry in expiries {
            let left = expiry.not_after - now;
            let reached = WARN_AT.iter().filter(|days| left <= **days * DAY).count();
            let last = self.certificates.insert(expiry.clone(), reached);
            if reached == 0 || last == Some(reached) {
                continue;
            }
            let Expiry { owner, role, subject, not_after } = expiry;
            let end = chrono::DateTime::from_timestamp(not_after, 0).map(|at| at.to_rfc3339()).unwrap_or_default();
            if left <= 0 {
                tracing::error!(owner, role, subject, expires = end, "certificate has expired");
            } else {
                let days_left = left / DAY;
                tracing::warn!(owner, role, subject, expires = end, days_left, "certificate is about to expire");
            }
        }
        for crl in shared.state.revocation.crls().into_iter().filter(|crl| crl.next_update <= now) {
            if self.crls.insert(crl.origin.clone(), crl.next_update) != Some(crl.next_update) {
                tracing::error!(crl = crl.origin, "CRL is out of date: its issuer's certificates cannot be checked");
            }
        }
    }
}
