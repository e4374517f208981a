//! What has to be looked after while the gateway runs, once a second: files that change, lists and answers to fetch,
//! certificates that expire, sessions that are over because of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval};

use crate::observe::Expiry;
use crate::runtime::Lasting;
use crate::session::{Shared, judge};
use crate::tls::ServerTls;

/// How late a change of a file is noticed at most, and the end of a certificate's validity.
const PERIOD: Duration = Duration::from_secs(1);
/// Days before a certificate expires on which it is said.
const WARN_AT: [i64; 4] = [30, 7, 1, 0];
const DAY: i64 = 24 * 60 * 60;
/// Issuers that metrics tell apart at most.
const MAX_ISSUERS: usize = 64;

/// Looks after the gateway for as long as it is there.
pub(crate) async fn run(shared: Weak<Shared>, lasting: Arc<Lasting>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = Warned::default();
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        fetch_due(&shared, &lasting);
        let lasting = Arc::clone(&lasting);
        // Files are read and certificates parsed: not on a thread that moves bytes.
        let result = tokio::task::spawn_blocking(move || {
            look_after(&shared, &lasting);
            warned.warn(&shared, &lasting, now());
            warned
        });
        warned = result.await.unwrap_or_else(|error| {
            tracing::error!(%error, "upkeep failed; it goes on");
            Warned::default()
        });
    }
}

/// Begins, in the background, to fetch what is to be had from the network.
fn fetch_due(shared: &Arc<Shared>, lasting: &Arc<Lasting>) {
    lasting.knowledge.fetch_due(|key| shared.sessions.has_certificate(key));
    for listener in &shared.runtime.load().listeners {
        if listener.tls.as_ref().is_some_and(ServerTls::check_staples) {
            let (listener, lasting) = (Arc::clone(listener), Arc::clone(lasting));
            tokio::spawn(async move {
                if let Some(tls) = &listener.tls {
                    tls.fetch_staples(&lasting.knowledge).await;
                }
            });
        }
    }
}

fn look_after(shared: &Shared, lasting: &Lasting) {
    let (revoked, problems) = lasting.knowledge.read_changed_files();
    for problem in problems {
        tracing::error!("CRL: the last good one stays: {problem}");
    }
    let runtime = shared.runtime.load_full();
    let mut ended = shared.sessions.sweep_certificates(&revoked, |live| judge(&runtime, live));
    let mut have_anchors_changed = false;
    for listener in &runtime.listeners {
        if let Some(tls) = &listener.tls {
            have_anchors_changed |= tls.read_changed_files(&listener.name);
        }
    }
    if have_anchors_changed {
        ended += sweep(shared);
    }
    ended += shared.sessions.sweep_expired(now());
    if ended > 0 {
        tracing::info!(sessions = ended, "sessions ended: their certificates are no longer good");
    }
}

/// Judges all sessions by the configuration and the lists of the moment; returns how many have to end.
pub(crate) fn sweep(shared: &Shared) -> usize {
    let runtime = shared.runtime.load_full();
    shared.sessions.sweep(|live| judge(&runtime, live))
}

/// Sets the metrics that say what is there, rather than what happened.
pub(crate) fn refresh_metrics(shared: &Shared, lasting: &Lasting) {
    let metrics = &shared.observer.metrics;
    metrics.set_certificate_expiry(&shared.runtime.load().expiries());
    let crls = lasting.knowledge.crls().into_iter();
    metrics.set_crls(crls.map(|crl| (crl.origin, crl.this_update, crl.next_update, crl.revoked)));
    let inventory = shared.sessions.inventory(now());
    let mut by_issuer: Vec<(String, usize)> = Vec::new();
    for (issuer, count) in inventory.by_issuer {
        let name = lasting.knowledge.name_of(&issuer).filter(|_| by_issuer.len() < MAX_ISSUERS);
        let name = name.unwrap_or_else(|| "other".to_owned());
        // Two authorities may call themselves the same.
        match by_issuer.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => by_issuer.push((name, count)),
        }
    }
    metrics.set_inventory(&by_issuer, &inventory.expiring);
}

/// What has been warned of, so that it is said once.
#[derive(Default)]
struct Warned {
    /// By owner and role: when it expires, and how many of [`WARN_AT`] have been reached.
    certificates: HashMap<(String, &'static str), (i64, usize)>,
    /// By file or URL: the end of the list's validity.
    crls: HashMap<String, i64>,
}

impl Warned {
    fn warn(&mut self, shared: &Shared, lasting: &Lasting, now: i64) {
        for Expiry { owner, role, not_after } in shared.runtime.load().expiries() {
            let left = not_after - now;
            let reached = WARN_AT.iter().filter(|days| left <= **days * DAY).count();
            let last = self.certificates.insert((owner.clone(), role), (not_after, reached));
            if reached == 0 || last.is_some_and(|last| last == (not_after, reached)) {
                continue;
            }
            let expires = chrono::DateTime::from_timestamp(not_after, 0).map(|at| at.to_rfc3339()).unwrap_or_default();
            if left <= 0 {
                tracing::error!(owner, role, expires, "a certificate has expired");
            } else {
                tracing::warn!(owner, role, expires, days_left = left / DAY, "a certificate is about to expire");
            }
        }
        for crl in lasting.knowledge.crls().into_iter().filter(|crl| crl.next_update <= now) {
            if self.crls.insert(crl.origin.clone(), crl.next_update) != Some(crl.next_update) {
                tracing::error!(
                    crl = crl.origin,
                    "a CRL is out of date: nothing is known of its issuer's certificates"
                );
            }
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
