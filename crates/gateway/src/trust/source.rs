//! Where CRLs come from: files and URLs. A source keeps the last good lists until better ones are there. Lists count
//! only if an authority that is known has signed them; what comes over a network displaces nothing before that, and
//! never something newer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::credential::{Key, Link};
use super::crl::{Coverage, Crl, newly_revoked};
use super::issuers::{Issuer, Issuers};
use super::knowledge::CrlNote;
use crate::clock::now;
use crate::config::Complaint;
use crate::fetch::{Fetcher, Validators};
use crate::refresh::Watch;

/// Nothing is fetched more often.
const MIN_REFRESH: Duration = Duration::from_secs(2);
/// What failed is tried again after this at the latest.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// For others to be fetched first.
const WAITING: Duration = Duration::from_secs(10 * 60);
/// Lists in one file at most; and in one answer.
const MAX_LISTS_OF_FILE: usize = 4096;
const MAX_LISTS_OF_URL: usize = 64;

/// Where lists are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Origin {
    File(PathBuf),
    /// `http` or `https`.
    Url(String),
}

impl Origin {
    fn file(&self) -> Option<&Path> {
        match self {
            Origin::File(path) => Some(path),
            Origin::Url(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Url(url) => url.fmt(f),
        }
    }
}

/// The lists of one origin; shared by all listeners that use it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    lists: ArcSwap<Lists>,
    /// Held while lists are put in the place of others.
    changing: Mutex<()>,
    file: Watch,
    /// Held by whoever fetches.
    turn: tokio::sync::Mutex<Validators>,
    plan: Mutex<Plan>,
    /// Certificates found to be revoked, whose sessions have not been told yet.
    revoked: Mutex<Vec<Key>>,
}

#[derive(Clone, Debug, Default)]
struct Lists {
    signed: Vec<Arc<Crl>>,
    /// By authorities that have not been seen yet, for all that is known.
    pending: Vec<Arc<Crl>>,
    /// Those that came last, signed or pending; others may be kept beside them.
    latest: Vec<Arc<Crl>>,
}

/// When to fetch. By a clock that nobody sets.
#[derive(Debug)]
struct Plan {
    /// `None`: at once.
    next: Option<Instant>,
    /// Times in a row that it failed.
    failures: u32,
    refresh: Duration,
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
            file: Watch::new(origin.file().map(Path::to_owned).into_iter().collect()),
            origin,
            lists: ArcSwap::default(),
            changing: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            plan: Mutex::new(Plan { next: None, failures: 0, refresh: Duration::MAX }),
            revoked: Mutex::default(),
        }
    }

    /// Reads the file again if it is not what it was; returns what is wrong with it if that has not been said. The last
    /// good lists stay.
    /// `at_once`: even if it has changed only just now.
    pub(super) fn read_if_changed(&self, at_once: bool, issuers: &Issuers) -> Result<(), String> {
        let Some(path) = self.origin.file() else { return Ok(()) };
        let read = || {
            let bytes = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            self.replace(&bytes, issuers)
        };
        match self.file.read_if_changed(at_once, || read().map_err(Complaint::new)) {
            Some(Ok(())) => tracing::info!(crl = %self.origin, "CRL loaded"),
            Some(Err(complaint)) => return Err(complaint.message),
            None => {}
        }
        Ok(())
    }

    /// What is wrong with the file at present.
    pub(super) fn problem(&self) -> Option<String> {
        self.file.problem()
    }

    /// Puts other lists in the place of those that are there.
    ///
    /// # Errors
    /// The bytes are no lists, are not signed by the authority whose name they have, or are older than what they would
    /// replace; nothing was replaced.
    pub(super) fn replace(&self, bytes: &[u8], issuers: &Issuers) -> Result<(), String> {
        let is_file = matches!(self.origin, Origin::File(_));
        let max = if is_file { MAX_LISTS_OF_FILE } else { MAX_LISTS_OF_URL };
        let lists = Crl::read(bytes, max).map_err(|what| format!("{}: {what}", self.origin))?;
        let known = issuers.all();
        for list in &lists {
            known.values().for_each(|issuer| list.learn(issuer));
        }
        let latest: Vec<Arc<Crl>> = lists.into_iter().map(Arc::new).collect();
        let (signed, pending): (Vec<_>, Vec<_>) = latest.iter().cloned().partition(|list| list.signer().is_some());
        let not_signed = || format!("{}: not signed by the authority whose name it has", self.origin);
        let is_known = |list: &Arc<Crl>| known.values().any(|issuer| list.names(issuer));
        let changing = lock(&self.changing);
        let before = self.lists.load_full();
        let after = if is_file {
            // An authority may have got another key and kept its name, so that a list of a key that nobody has shown
            // yet is no mistake; one that takes the place of a list that counted is.
            let is_lost = |old: &Arc<Crl>| {
                let is_there = signed.iter().any(|list| list.signer() == old.signer());
                let issuer = old.signer().and_then(|signer| known.get(signer));
                !is_there && issuer.is_some_and(|issuer| pending.iter().any(|list| list.names(issuer)))
            };
            if before.signed.iter().any(is_lost) || (signed.is_empty() && pending.iter().all(is_known)) {
                return Err(not_signed());
            }
            Lists { signed, pending, latest }
        } else {
            if pending.iter().any(is_known) {
                return Err(not_signed());
            }
            if signed.iter().any(|list| before.signed.iter().any(|other| list.is_older_than(other))) {
                // Over plain HTTP, somebody on the way could send a list from before a revocation.
                return Err(format!("{}: older than the CRL that is there", self.origin));
            }
            Lists { signed: merged(&before.signed, signed), pending, latest }
        };
        self.store(&before, after);
        drop(changing);
        // An authority that was seen while the lists were being looked at is known now.
        issuers.all().values().for_each(|issuer| self.learn(issuer));
        Ok(())
    }

    /// Finds out whether this authority has signed lists of this source that nobody was known to have signed.
    pub(super) fn learn(&self, issuer: &Issuer) {
        if self.lists.load().pending.is_empty() {
            return;
        }
        let _changing = lock(&self.changing);
        let before = self.lists.load_full();
        before.pending.iter().for_each(|list| list.learn(issuer));
        let (signed, pending): (Vec<_>, Vec<_>) =
            before.pending.iter().cloned().partition(|list| list.signer().is_some());
        if !signed.is_empty() {
            let newer = signed.into_iter().filter(|list| !before.signed.iter().any(|other| list.is_older_than(other)));
            let signed = merged(&before.signed, newer.collect());
            self.store(&before, Lists { signed, pending, latest: before.latest.clone() });
        }
    }

    fn store(&self, before: &Lists, after: Lists) {
        let keys = newly_revoked(&before.signed, &after.signed);
        self.lists.store(Arc::new(after));
        lock(&self.revoked).extend(keys);
    }

    /// Fetches at least this often; of several wishes, the shortest counts.
    pub(super) fn refresh_every(&self, period: Duration) {
        let mut plan = lock(&self.plan);
        plan.refresh = plan.refresh.min(period.max(MIN_REFRESH));
    }

    /// Whether it is time to fetch; if so, it is not again until that is done, or has taken too long.
    pub(super) fn is_due(&self) -> bool {
        let mut plan = lock(&self.plan);
        let is_due = matches!(self.origin, Origin::Url(_)) && plan.next.is_none_or(|next| Instant::now() >= next);
        if is_due {
            plan.next = Some(Instant::now() + WAITING);
        }
        is_due
    }

    /// Whether there is nothing to be had, so far.
    pub(super) fn is_empty(&self) -> bool {
        let lists = self.lists.load();
        lists.signed.is_empty() && lists.pending.is_empty()
    }

    /// Fetches the first lists, unless they are there, or it went wrong a moment ago.
    pub(super) async fn fetch_first(self: &Arc<Self>, fetcher: &Fetcher, issuers: &Arc<Issuers>) {
        if !self.is_empty() {
            return;
        }
        let turn = self.turn.lock().await;
        let has_just_failed = {
            let plan = lock(&self.plan);
            plan.failures > 0 && plan.next.is_some_and(|next| Instant::now() < next)
        };
        if self.is_empty() && !has_just_failed {
            // Not by anybody else meanwhile.
            lock(&self.plan).next = Some(Instant::now() + WAITING);
            self.fetch_in_turn(turn, fetcher, issuers).await;
        }
    }

    /// Fetches the lists; says in the log what came of it.
    pub(super) async fn fetch(self: &Arc<Self>, fetcher: &Fetcher, issuers: &Arc<Issuers>) {
        self.fetch_in_turn(self.turn.lock().await, fetcher, issuers).await;
    }

    async fn fetch_in_turn(
        self: &Arc<Self>,
        mut validators: tokio::sync::MutexGuard<'_, Validators>,
        fetcher: &Fetcher,
        issuers: &Arc<Issuers>,
    ) {
        let Origin::Url(url) = &self.origin else { return };
        let result = match fetcher.get_crl(url, &validators).await {
            Ok(Some((bytes, new))) => {
                let (this, issuers) = (Arc::clone(self), Arc::clone(issuers));
                // Millions of entries are read, and their signature verified: not on a thread that moves bytes.
                let replaced = tokio::task::spawn_blocking(move || this.replace(&bytes, &issuers)).await;
                replaced.unwrap_or_else(|error| Err(format!("{url}: {error}"))).inspect(|()| {
                    // Before that, somebody on the way could make us ask for a false list for ever.
                    *validators = if self.lists.load().pending.is_empty() { new } else { Validators::default() };
                    tracing::info!(crl = %self.origin, "CRL fetched");
                })
            }
            Ok(None) => Ok(()),
            Err(problem) => Err(format!("{url}: {problem}")),
        };
        let mut plan = lock(&self.plan);
        let left = self.lists.load().latest.iter().map(|list| list.next_update - now()).min().unwrap_or(0);
        let wait = match result {
            Ok(()) if left > 0 => {
                plan.failures = 0;
                Duration::from_secs(left.unsigned_abs()).clamp(MIN_REFRESH, plan.refresh.max(MIN_REFRESH))
            }
            // Also where the authority is late: it is asked again and again, but less and less often.
            result => {
                if let Err(problem) = result {
                    tracing::warn!("CRL: the last good one stays: {problem}");
                }
                plan.failures = plan.failures.saturating_add(1);
                (MIN_REFRESH * (1 << plan.failures.min(5))).min(MAX_RETRY).min(plan.refresh)
            }
        };
        plan.next = Some(Instant::now() + wait);
    }

    /// Certificates found to be revoked since this was asked last.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut *lock(&self.revoked))
    }

    /// For operators; `None`: there is no list.
    pub(super) fn note(&self) -> Option<CrlNote> {
        let lists = self.lists.load();
        let all = || lists.latest.iter();
        Some(CrlNote {
            origin: self.origin.to_string(),
            this_update: all().map(|list| list.this_update).min()?,
            next_update: all().map(|list| list.next_update).min()?,
            revoked: all().map(|list| list.len()).sum(),
        })
    }

    /// Tells what each list says that speaks for a certificate, and how it comes to do so.
    pub(super) fn tell(&self, link: &Link, is_authority: bool, now: i64, mut tell: impl FnMut(Coverage, Status)) {
        for list in &self.lists.load().signed {
            let coverage = list.coverage(link, is_authority);
            if coverage == Coverage::None {
                continue;
            }
            tell(
                coverage,
                match () {
                    // That it is out of date does not give anybody back a certificate.
                    () if list.revokes(&link.serial) => Status::Revoked,
                    () if now >= list.next_update || now < list.this_update - super::CLOCK_SKEW => Status::Stale,
                    () => Status::Good,
                },
            );
        }
    }
}

/// The new lists, and those of the old ones that none of them replaces.
fn merged(old: &[Arc<Crl>], new: Vec<Arc<Crl>>) -> Vec<Arc<Crl>> {
    let is_kept = |list: &&Arc<Crl>| !new.iter().any(|other| other.stands_beside(list));
    let kept: Vec<Arc<Crl>> = old.iter().filter(is_kept).cloned().collect();
    new.into_iter().chain(kept).take(MAX_LISTS_OF_FILE).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use portcullis_testkit::Pki;
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
    use time::{Duration as Days, OffsetDateTime};

    use super::*;
    use crate::trust::{IssuerId, Serial};

    /// A list of the PKI's intermediate with this number, made so many days ago, that revokes this serial number.
    fn list(pki: &Pki, number: u64, age: i64, revoked: u8, place: Option<&str>) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let params = CertificateRevocationListParams {
            this_update: now - Days::days(age),
            next_update: now + Days::days(1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: place.map(|place| rcgen::CrlIssuingDistributionPoint {
                distribution_point: rcgen::CrlDistributionPoint { uris: vec![place.to_owned()] },
                scope: None,
            }),
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(&[revoked]),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&pki.issuer("intermediate")).unwrap().der().to_vec()
    }

    fn issuer(pki: &Pki) -> Arc<Issuer> {
        let chain = crate::files::read_chain(&pki.dir().join("intermediate.pem")).unwrap();
        Arc::new(Issuer::from_der(&chain[0]).unwrap())
    }

    fn knowing(pki: &Pki) -> Issuers {
        let issuers = Issuers::default();
        issuers.add(&issuer(pki));
        issuers
    }

    fn status(source: &Source, issuer: IssuerId, serial: u8) -> Status {
        let serial = Serial::new(&[serial]).unwrap();
        let link = Link { issuer, serial, not_before: 0, not_after: 0, distribution_points: None, responder: None };
        let mut status = Status::Unknown;
        source.tell(&link, false, now(), |_, said| status = status.max(said));
        status
    }

    fn url() -> Source {
        Source::new(Origin::Url("http://crl.example.com/".to_owned()))
    }

    #[test]
    fn what_was_fetched_does_not_go_back() {
        let (pki, impostor) = (Pki::new(), Pki::named("Somebody"));
        let (source, issuers, id) = (url(), knowing(&pki), issuer(&pki).id);
        source.replace(&list(&pki, 7, 1, 1, None), &issuers).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Revoked, Status::Good));
        assert_eq!(source.take_revoked().len(), 1);
        // Of somebody whom nobody knows: it may be good one day, and takes nothing away.
        source.replace(&list(&impostor, 900, 0, 9, None), &issuers).unwrap();
        assert_eq!(status(&source, id, 1), Status::Revoked);
        for (older, why) in [(list(&pki, 6, 0, 2, None), "number"), (list(&pki, 7, 2, 2, None), "time")] {
            assert!(source.replace(&older, &issuers).unwrap_err().contains("older"), "{why}");
        }
        // Of another place: it stands beside.
        source.replace(&list(&pki, 1, 3, 3, Some("http://there/")), &issuers).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 3)), (Status::Revoked, Status::Revoked));
        assert!(source.replace(&list(&pki, 6, 0, 2, None), &issuers).is_err(), "still");
        source.replace(&list(&pki, 8, 0, 2, None), &issuers).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Good, Status::Revoked));
    }

    #[test]
    fn nobody_blocks_a_list_that_is_not_known_to_be_good_yet() {
        let (pki, impostor) = (Pki::new(), Pki::new());
        let (source, issuers, id) = (url(), Issuers::default(), issuer(&pki).id);
        // Before the authority was seen, somebody on the way sends one with its name.
        source.replace(&list(&impostor, u64::MAX, 0, 9, None), &issuers).unwrap();
        source.replace(&list(&pki, 5, 0, 1, None), &issuers).unwrap();
        assert_eq!(status(&source, id, 1), Status::Unknown, "nothing counts before that");
        let issuer = issuer(&pki);
        issuers.add(&issuer);
        source.learn(&issuer);
        assert_eq!(status(&source, id, 1), Status::Revoked);
        assert_eq!(source.take_revoked().len(), 1, "and sessions are told");
        assert!(source.replace(&list(&impostor, u64::MAX, 0, 9, None), &issuers).unwrap_err().contains("not signed"));
        assert_eq!(status(&source, id, 1), Status::Revoked);
    }

    #[test]
    fn a_list_that_was_changed_counts_for_nothing() {
        let pki = Pki::new();
        let (issuers, id, honest) = (knowing(&pki), issuer(&pki).id, list(&pki, 7, 0, 1, Some("http://here/")));
        for place in 0..honest.len() {
            for bytes in [honest[..place].to_vec(), {
                let mut changed = honest.clone();
                changed[place] ^= 1 << (place % 8);
                changed
            }] {
                let source = url();
                let _ = source.replace(&bytes, &issuers);
                assert_eq!(status(&source, id, 1), Status::Unknown, "{place}");
            }
        }
    }

    #[test]
    fn too_many_lists_are_none() {
        let (pki, source) = (Pki::new(), url());
        let one = ::pem::encode(&::pem::Pem::new("X509 CRL", list(&pki, 1, 0, 1, None)));
        let error = source.replace(one.repeat(MAX_LISTS_OF_URL + 1).as_bytes(), &Issuers::default()).unwrap_err();
        assert!(error.contains("more than 64 CRLs"), "{error}");
    }
}
