//! What has to be looked after while the gateway runs, once a second: files that change, certificates that expire,
//! sessions that are over because of it.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval};

use crate::runtime::Lasting;
use crate::session::{Shared, judge};

/// How late a change of a file is noticed at most, and the end of a certificate's validity.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks after the gateway for as long as it is there.
pub(crate) async fn run(shared: Weak<Shared>, lasting: Arc<Lasting>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        lasting.knowledge.fetch_due(|key| shared.sessions.has_certificate(key));
        let lasting = Arc::clone(&lasting);
        // Files are read and certificates parsed: not on a thread that moves bytes.
        let result = tokio::task::spawn_blocking(move || tick(&shared, &lasting)).await;
        if let Err(error) = result {
            tracing::error!(%error, "upkeep failed; it goes on");
        }
    }
}

fn tick(shared: &Shared, lasting: &Lasting) {
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

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
