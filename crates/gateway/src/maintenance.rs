//! Periodic maintenance of a running gateway. Enters: time and changed files. Leaves: CRLs, OCSP responses and keys
//! fetched again, sessions closed whose evidence is no longer sufficient, warnings of expiring certificates.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::devices::Changed;
use crate::limits::resident_memory;
use crate::observe::Expiry;
use crate::outcome::{CloseReason, Reject};
use crate::session::{self, Shared, evaluate};
use crate::sessions::SessionEntry;
use crate::tls::ServerTls;
use crate::util::clock::{now, rfc3339};

/// The longest delay until an expired or revoked certificate closes its session.
const PERIOD: Duration = Duration::from_secs(1);
/// A changed file is read after one or two of these periods.
const FILES_PERIOD: Duration = Duration::from_millis(500);
/// Between two looks at the memory of the process: a storm may take 50 MB a second.
const MEMORY_PERIOD: Duration = Duration::from_millis(100);
const MIB: usize = 1 << 20;
/// The numbers of days before a certificate's expiry at which the log warns of it.
const WARN_AT: [i64; 4] = [30, 7, 1, 0];
const DAY: i64 = 24 * 60 * 60;
/// The limit of concurrent revocation checks after a reload.
const MAX_CHECKS: usize = 16;

/// Runs until the gateway is dropped. Files have their own loop: a file system or PKCS#11 token that hangs must not
/// keep sessions from being closed.
pub(crate) async fn run(shared: Weak<Shared>) {
    tokio::join!(maintain_sessions(shared.clone()), follow_files(shared.clone()), watch_memory(shared));
}

async fn maintain_sessions(shared: Weak<Shared>) {
    let mut ticks = ticks(PERIOD);
    let mut warned = Warned::default();
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        fetch_due(&shared);
        shared.state.observer.overload.log(!shared.state.memory.is_over());
        let result = tokio::task::spawn_blocking(move || {
            end_sessions(&shared);
            follow_moves(&shared);
            drain_servers(&shared);
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
        // Reads files and parses certificates, which would block an async worker thread.
        if let Err(error) = tokio::task::spawn_blocking(move || read_files(&shared)).await {
            tracing::error!(%error, "checking files for changes failed; it runs again in half a second");
        }
    }
}

async fn watch_memory(shared: Weak<Shared>) {
    let mut ticks = ticks(MEMORY_PERIOD);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        check_memory(&shared);
    }
}

/// Refuses new connections while the process has more memory than `memory_limit`, and logs when that begins and ends.
fn check_memory(shared: &Shared) {
    let limit = shared.runtime.load().process.memory_limit.as_ref().map(|limit| limit.value);
    if limit.is_none() && !shared.state.memory.is_over() {
        return;
    }
    // Where the system does not say, the guard cannot work, and does not refuse everybody.
    let resident = resident_memory().unwrap_or(0);
    let (resident_mib, limit_mib) = (resident.div_ceil(MIB), limit.map(|limit| limit / MIB));
    match shared.state.memory.update(resident, limit, Instant::now()) {
        Some(true) => tracing::error!(
            resident_mib,
            limit_mib,
            hint = Reject::MemoryLimit.hint(),
            "the gateway has more memory than `memory_limit`: new connections are rejected"
        ),
        Some(false) => tracing::info!(resident_mib, limit_mib, "new connections are accepted again"),
        None => {}
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Does at once what is otherwise done at the next ticks about files and revocation, and returns once it is done;
/// requests that it begins go on in the background.
#[cfg(feature = "test-util")]
pub(crate) async fn run_once(shared: Arc<Shared>) {
    fetch_due(&shared);
    let result = tokio::task::spawn_blocking(move || {
        // Changed files are read once they have not changed between two looks.
        read_files(&shared);
        read_files(&shared);
        end_sessions(&shared);
        follow_moves(&shared);
    });
    if let Err(panic) = result.await {
        std::panic::resume_unwind(panic.into_panic());
    }
}

/// Starts to fetch what is due from the network, in the background.
fn fetch_due(shared: &Shared) {
    shared.runtime.load().authenticators.iter().for_each(|authenticator| authenticator.fetch_due());
    shared.state.revocation.fetch_due(|key| shared.state.sessions.has_certificate(key));
    for listener in &shared.runtime.load().listeners {
        listener.tls.iter().for_each(ServerTls::refresh_staples);
    }
}

/// Evaluates the sessions of clients whose address has changed, and their rules.
fn follow_moves(shared: &Shared) {
    let (moved, runtime) = (shared.state.sessions.take_moved(), shared.runtime.load_full());
    for entry in moved {
        tracing::debug!(connection = entry.info.id, address = %entry.info.address(), "the client has migrated");
        match evaluate(entry.client_evidence(), &runtime, now()) {
            Ok(()) => session::follow_rules(&entry, &shared.state.sessions, &runtime),
            Err(reason) => {
                entry.end(reason);
            }
        }
    }
}

fn end_sessions(shared: &Shared) {
    let runtime = shared.runtime.load_full();
    let (mut changed, mut is_all) = (shared.state.revocation.take_revoked(), false);
    for registry in shared.state.sources.registries.values() {
        match registry.take_changed() {
            Changed::Keys(keys) => changed.extend(keys),
            Changed::All => is_all = true,
        }
    }
    let (now, sessions) = (now(), &shared.state.sessions);
    let trusts = runtime.listeners.iter().filter_map(|listener| listener.tls.as_ref()?.trust());
    let expired = trusts.map(|trust| trust.anchors().expired(now)).sum();
    // Sessions are not indexed by the anchors that their chains end at.
    is_all |= shared.state.expired_anchors.swap(expired, Ordering::Relaxed) != expired;
    let evaluate = |entry: &SessionEntry| evaluate(entry.client_evidence(), &runtime, now);
    let ended = if is_all { sessions.sweep(evaluate) } else { sessions.sweep_keys(&changed, evaluate) }
        + sessions.sweep_expired(now);
    if ended > 0 {
        tracing::info!(sessions = ended, "sessions ended: their credentials are no longer valid");
    }
}

/// Ends some of the sessions on servers that drain. Called once a second.
fn drain_servers(shared: &Shared) {
    let runtime = shared.runtime.load_full();
    for upstream in &runtime.upstreams {
        let (servers, mut left) = upstream.draining();
        if servers.is_empty() {
            continue;
        }
        for session in shared.state.sessions.all() {
            let Some(chosen) = session.info.upstream() else { continue };
            // A reload may have renamed the upstream, or have moved the listener to another one.
            let is_renamed = || runtime.upstreams.iter().all(|upstream| upstream.name() != &*chosen.name);
            let is_on_it = servers.contains(&chosen.server) && (&*chosen.name == upstream.name() || is_renamed());
            if left > 0 && is_on_it && session.end(CloseReason::ServerDrained) {
                left -= 1;
            }
        }
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

/// Evaluates all sessions by the current configuration and revocation data, closes those that fail, and returns their
/// number.
pub(crate) fn sweep(shared: &Shared) -> usize {
    let runtime = shared.runtime.load_full();
    let now = now();
    shared.state.sessions.sweep(|entry| evaluate(entry.client_evidence(), &runtime, now))
}

/// Evaluates the rules of all sessions' packets by the current configuration.
pub(crate) fn follow_rules(shared: &Shared) {
    let runtime = shared.runtime.load_full();
    for session in shared.state.sessions.all() {
        session::follow_rules(&session, &shared.state.sessions, &runtime);
    }
}

/// Checks the revocation of all connected devices as if they connected now: a new configuration may require CRLs or
/// OCSP where the old one did not. A result of "revoked" closes the session in the next maintenance run.
pub(crate) async fn check_revocation_of_all(shared: Arc<Shared>) {
    let shared = &shared;
    let check_revocation = async |entry: Arc<SessionEntry>| {
        let listener = shared.runtime.load().listener(entry.client_evidence().listener).cloned();
        let trust = listener.as_ref().and_then(|listener| listener.tls.as_ref()?.trust());
        if let (Some(chain), Some(trust)) = (entry.chain(), trust) {
            // A missing CRL or OCSP response closes no session.
            let _ = trust.check_revocation(chain).await;
            // Most are known already, and would all be checked before anything else has a turn.
            tokio::task::consume_budget().await;
        }
    };
    futures_util::stream::iter(shared.state.sessions.all()).for_each_concurrent(MAX_CHECKS, check_revocation).await;
}

/// The warnings already logged, so that each is logged once.
#[derive(Default)]
struct Warned {
    /// By certificate: the number of [`WARN_AT`] thresholds reached.
    certificates: HashMap<Expiry, usize>,
    /// By file or URL: nextUpdate of the CRL.
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
            let end = rfc3339(not_after);
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
