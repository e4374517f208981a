//! Where CRLs come from: files and URLs. A source keeps the last good lists until better ones are there.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use super::credential::{Key, Link};
use super::crl::Crl;
use super::fetch::{Fetched, Fetcher, Validators};
use super::issuers::{Issuer, Issuers};
use super::knowledge::CrlNote;
use super::now;
use crate::files::Stamp;

/// Nothing is fetched more often, in seconds.
const MIN_REFRESH: i64 = 2;
/// What failed is tried again after so many seconds at the latest.
const MAX_RETRY: i64 = 60;

/// Where lists are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Origin {
    File(PathBuf),
    /// `http` or `https`.
    Url(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Url(url) => url.fmt(f),
        }
    }
}

/// The lists of one origin; shared by all listeners that name it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    lists: ArcSwap<Vec<Arc<Crl>>>,
    /// The file as it was last read, and what was wrong with it.
    last: Mutex<(Option<Stamp>, Option<String>)>,
    /// Held by whoever fetches.
    turn: tokio::sync::Mutex<Validators>,
    plan: Mutex<Plan>,
    /// Certificates found to be revoked, whose sessions have not been told yet.
    revoked: Mutex<Vec<Key>>,
}

/// When to fetch.
#[derive(Debug)]
struct Plan {
    /// Seconds since 1970; 0: at once.
    next: i64,
    /// Times in a row that it failed.
    failures: u32,
    /// Seconds.
    refresh: i64,
}

/// What lists say of one certificate; what is further down counts more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// No list speaks for it.
    Unknown,
    /// Those that speak for it are out of date.
    Stale,
    Good,
    Revoked,
}

impl Source {
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            lists: ArcSwap::default(),
            last: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            plan: Mutex::new(Plan { next: 0, failures: 0, refresh: i64::MAX }),
            revoked: Mutex::default(),
        }
    }

    /// Reads the file again if it is not what it was. Returns the keys of certificates that are now revoked; `None` if
    /// nothing has changed.
    ///
    /// # Errors
    /// What is wrong with it; the last good lists stay.
    pub(super) fn read_if_changed(&self, issuers: &Issuers) -> Result<Option<Vec<Key>>, String> {
        let Origin::File(path) = &self.origin else { return Ok(None) };
        let stamp = Stamp::of(path);
        // Held while the file is read: who asks at the same time is to see what came of it.
        let mut last = lock(&self.last);
        if last.0 == stamp && stamp.is_some() {
            return Ok(None);
        }
        let bytes = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
        let result = bytes.and_then(|bytes| self.replace(&bytes, issuers)).map(Some);
        *last = (stamp, result.as_ref().err().cloned());
        result
    }

    /// What was wrong with the file when it was last read.
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.last).1.clone()
    }

    /// Puts other lists in the place of those that are there. Returns the keys of certificates that are now revoked.
    ///
    /// # Errors
    /// The bytes are no lists, are signed by none of the authorities whose name they have, or are older than what they
    /// would replace; nothing was replaced.
    pub(super) fn replace(&self, bytes: &[u8], issuers: &Issuers) -> Result<Vec<Key>, String> {
        let lists: Vec<Arc<Crl>> =
            Crl::read(bytes).map_err(|what| format!("{}: {what}", self.origin))?.into_iter().map(Arc::new).collect();
        let known = issuers.all();
        let before = self.lists.load_full();
        for list in &lists {
            known.values().for_each(|issuer| list.learn(issuer));
            if list.is_disowned() {
                return Err(format!("{}: not signed by the authority whose name it has", self.origin));
            }
            let is_older = |other: &&Arc<Crl>| list.precedes(other);
            // Over plain HTTP, somebody on the way could send a list from before a revocation.
            if matches!(self.origin, Origin::Url(_)) && before.iter().any(|other| is_older(&other)) {
                return Err(format!("{}: older than the CRL that is there", self.origin));
            }
        }
        self.lists.store(Arc::new(lists));
        // An authority that was seen while the lists were being looked at is known now.
        issuers.all().values().for_each(|issuer| self.learn(issuer));
        Ok(self.lists.load().iter().flat_map(|list| list.newly_revoked(&before)).collect())
    }

    /// Fetches at least every so many seconds; of several wishes, the shortest counts.
    pub(super) fn refresh_every(&self, seconds: i64) {
        let mut plan = lock(&self.plan);
        plan.refresh = plan.refresh.min(seconds.max(MIN_REFRESH));
    }

    /// Whether it is time to fetch; if so, it is not again until that is done, or has taken too long.
    pub(super) fn is_due(&self) -> bool {
        let mut plan = lock(&self.plan);
        let is_due = matches!(self.origin, Origin::Url(_)) && now() >= plan.next;
        if is_due {
            plan.next = now() + MAX_RETRY;
        }
        is_due
    }

    /// Whether there was never anything to be had.
    pub(super) fn is_empty(&self) -> bool {
        self.lists.load().is_empty()
    }

    /// Fetches the first lists, unless somebody else has by now, or it went wrong a moment ago.
    pub(super) async fn fetch_first(&self, fetcher: &Fetcher, issuers: &Issuers) {
        let turn = self.turn.lock().await;
        let has_just_failed = {
            let plan = lock(&self.plan);
            plan.failures > 0 && now() < plan.next
        };
        if self.is_empty() && !has_just_failed {
            self.fetch_in_turn(turn, fetcher, issuers).await;
        }
    }

    /// Fetches the lists; says in the log what came of it.
    pub(super) async fn fetch(&self, fetcher: &Fetcher, issuers: &Issuers) {
        self.fetch_in_turn(self.turn.lock().await, fetcher, issuers).await;
    }

    async fn fetch_in_turn(
        &self,
        mut validators: tokio::sync::MutexGuard<'_, Validators>,
        fetcher: &Fetcher,
        issuers: &Issuers,
    ) {
        let Origin::Url(url) = &self.origin else { return };
        let result = match fetcher.get(url, &validators).await {
            Ok(Fetched::New(bytes, new)) => match self.replace(&bytes, issuers) {
                Ok(keys) => {
                    *validators = new;
                    tracing::info!(crl = %self.origin, newly_revoked = keys.len(), "CRL fetched");
                    lock(&self.revoked).extend(keys);
                    Ok(())
                }
                Err(problem) => Err(problem),
            },
            Ok(Fetched::NotModified) => Ok(()),
            Err(problem) => Err(format!("{url}: {problem}")),
        };
        let mut plan = lock(&self.plan);
        match result {
            Ok(()) => {
                plan.failures = 0;
                let now = now();
                let first = self.lists.load().iter().map(|list| list.next_update).min().unwrap_or(now);
                plan.next = now + (first - now).clamp(MIN_REFRESH, plan.refresh.max(MIN_REFRESH));
            }
            Err(problem) => {
                tracing::warn!("CRL: the last good one stays: {problem}");
                plan.failures = plan.failures.saturating_add(1);
                plan.next = now() + (MIN_REFRESH << plan.failures.min(6)).min(MAX_RETRY).min(plan.refresh);
            }
        }
    }

    /// Certificates found to be revoked since this was asked last.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut *lock(&self.revoked))
    }

    /// For operators; `None`: there is no list.
    pub(super) fn note(&self) -> Option<CrlNote> {
        let lists = self.lists.load();
        Some(CrlNote {
            origin: self.origin.to_string(),
            this_update: lists.iter().map(|list| list.this_update).min()?,
            next_update: lists.iter().map(|list| list.next_update).min()?,
            revoked: lists.iter().map(|list| list.len()).sum(),
        })
    }

    /// Finds out whether this authority has signed lists of this source.
    pub(super) fn learn(&self, issuer: &Issuer) {
        self.lists.load().iter().for_each(|list| list.learn(issuer));
    }

    pub(super) fn status(&self, link: &Link, is_authority: bool, now: i64) -> Status {
        let lists = self.lists.load();
        let speaking = lists.iter().filter(|list| list.covers(link, is_authority));
        let status = |list: &Arc<Crl>| match () {
            // That it is out of date does not give anybody back a certificate.
            () if list.revokes(&link.serial) => Status::Revoked,
            () if now >= list.next_update || now < list.this_update - super::CLOCK_SKEW => Status::Stale,
            () => Status::Good,
        };
        speaking.map(status).max().unwrap_or(Status::Unknown)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
