//! Where CRLs come from: files and URLs. A source keeps the last good lists until better ones are there. Lists count
//! only if an authority that is known has signed them; what comes over a network displaces nothing before that, and
//! never something newer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::chain::{ChainCertificate, Key};
use super::crl::{Coverage, Crl, newly_revoked};
use super::issuers::{Issuer, Issuers};

use crate::config::Complaint;
use crate::fetch::{Fetcher, Validators};
use crate::refresh::{Pace, Refreshed, Remote, Watch};
use crate::util::clock::{CLOCK_SKEW, now};

/// What lists and answers are fetched and verified with.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) issuers: Issuers,
    pub(super) fetcher: Fetcher,
}

/// A CRL that is in use, for operators.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CrlNote {
    /// Its file or URL.
    pub origin: String,
    /// When it was made, in seconds since 1970; of several in one file, the oldest.
    pub this_update: i64,
    /// When it ceases to count, in seconds since 1970; of several, the first.
    pub next_update: i64,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// Nothing is fetched more often.
const MIN_REFRESH: Duration = Duration::from_secs(2);
/// What failed is tried again after this at the latest.
const MAX_RETRY: Duration = Duration::from_secs(60);
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
pub(super) type Source = Refreshed<CrlOrigin>;

/// What is known of an origin beside its lists.
pub(super) struct CrlOrigin {
    origin: Origin,
    shared: Arc<Shared>,
    file: Watch,
    /// Of several wishes, the shortest counts.
    refresh: Mutex<Duration>,
    /// Certificates found to be revoked, whose sessions have not been told yet.
    revoked: Mutex<Vec<Key>>,
}

/// The lists that count, and those that may yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    signed: Vec<Arc<Crl>>,
    /// By authorities that have not been seen yet, for all that is known.
    pending: Vec<Arc<Crl>>,
    /// Those that came last, signed or pending; others may be kept beside them.
    latest: Vec<Arc<Crl>>,
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

impl Remote for CrlOrigin {
    type Value = Lists;
    const WHAT: &'static str = "CRL";
    const PACE: Pace = Pace { min: MIN_REFRESH, max_retry: MAX_RETRY };

    fn origin(&self) -> String {
        self.origin.to_string()
    }

    async fn fetch(&self, validators: &Validators) -> Result<Option<(Lists, Validators)>, String> {
        let url = self.origin();
        let fetched = self.shared.fetcher.get_crl(&url, validators).await;
        let Some((bytes, new)) = fetched.map_err(|problem| format!("{url}: {problem}"))? else { return Ok(None) };
        let (origin, shared) = (self.origin.clone(), Arc::clone(&self.shared));
        // Millions of entries are read, and their signature verified: not on a thread that moves bytes.
        let reading = tokio::task::spawn_blocking(move || Lists::read(&origin, &bytes, &shared.issuers));
        let lists = reading.await.map_err(|error| format!("{url}: {error}"))??;
        // Before its signer is known, somebody on the way could make us ask for a false list for ever.
        let is_signed = lists.latest.iter().all(|list| list.signer().is_some());
        Ok(Some((lists, if is_signed { new } else { Validators::default() })))
    }

    /// Lists of unknown signers displace nothing, and none makes way for an older one.
    fn accept(&self, Lists { latest, .. }: Lists, last: Option<&Lists>) -> Result<Lists, String> {
        // Asked while nothing changes: an authority that is seen later finds these lists.
        let known = self.shared.issuers.all();
        for list in &latest {
            known.values().for_each(|issuer| list.learn(issuer));
        }
        let (signed, pending): (Vec<_>, Vec<_>) = latest.iter().cloned().partition(|list| list.signer().is_some());
        let before = last.map_or(&[][..], |last| &last.signed);
        let is_known = |list: &Arc<Crl>| known.values().any(|issuer| list.names(issuer));
        let is_not_signed = match &self.origin {
            // An authority may have got another key and kept its name, so that a list of a key that nobody has shown
            // yet is no mistake; one that takes the place of a list that counted is.
            Origin::File(_) => {
                let is_lost = |old: &Arc<Crl>| {
                    let is_there = signed.iter().any(|list| list.signer() == old.signer());
                    let issuer = old.signer().and_then(|signer| known.get(signer));
                    !is_there && issuer.is_some_and(|issuer| pending.iter().any(|list| list.names(issuer)))
                };
                before.iter().any(is_lost) || (signed.is_empty() && pending.iter().all(is_known))
            }
            Origin::Url(_) => pending.iter().any(is_known),
        };
        if is_not_signed {
            return Err(format!("{}: not signed by the authority whose name it has", self.origin));
        }
        match &self.origin {
            Origin::File(_) => Ok(Lists { signed, pending, latest }),
            // Over plain HTTP, somebody on the way could send a list from before a revocation.
            Origin::Url(_) if signed.iter().any(|list| before.iter().any(|other| list.is_older_than(other))) => {
                Err(format!("{}: older than the CRL that is there", self.origin))
            }
            Origin::Url(_) => Ok(Lists { signed: merged(before, signed), pending, latest }),
        }
    }

    fn on_change(&self, last: Option<&Lists>, new: &Lists) -> bool {
        let revoked = newly_revoked(last.map_or(&[], |last| &last.signed), &new.signed);
        self.revoked.lock().extend(revoked);
        true
    }

    /// Until its authority makes another one.
    fn good_for(&self, lists: &Lists) -> Duration {
        let left = lists.latest.iter().map(|list| list.next_update - now()).min();
        Duration::from_secs(left.unwrap_or(0).max(0).unsigned_abs())
    }
}

impl Lists {
    /// Reads lists, and finds out who of those that are known has signed them.
    fn read(origin: &Origin, bytes: &[u8], issuers: &Issuers) -> Result<Self, String> {
        let max = if origin.file().is_some() { MAX_LISTS_OF_FILE } else { MAX_LISTS_OF_URL };
        let lists = Crl::read(bytes, max).map_err(|what| format!("{origin}: {what}"))?;
        let known = issuers.all();
        for list in &lists {
            known.values().for_each(|issuer| list.learn(issuer));
        }
        Ok(Self { latest: lists.into_iter().map(Arc::new).collect(), ..Self::default() })
    }
}

impl Source {
    pub(super) fn of(origin: Origin, shared: Arc<Shared>) -> Self {
        Self::new(CrlOrigin {
            file: Watch::new(origin.file().map(Path::to_owned).into_iter().collect()),
            origin,
            shared,
            refresh: Mutex::new(Duration::MAX),
            revoked: Mutex::default(),
        })
    }

    /// Reads the file again if it is not what it was; returns what is wrong with it if that has not been said. The last
    /// good lists stay.
    /// `at_once`: even if it has changed only just now.
    pub(super) fn read_if_changed(&self, at_once: bool) -> Result<(), String> {
        let Some(path) = self.remote().origin.file() else { return Ok(()) };
        let read = || {
            let bytes = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            self.put(&bytes)
        };
        match self.remote().file.read_if_changed(at_once, || read().map_err(Complaint::new)) {
            Some(Ok(())) => tracing::info!(crl = %path.display(), "CRL loaded"),
            Some(Err(complaint)) => return Err(complaint.message),
            None => {}
        }
        Ok(())
    }

    /// What is wrong with the file at present.
    pub(super) fn problem(&self) -> Option<String> {
        self.remote().file.problem()
    }

    /// Puts other lists in the place of those that are there.
    ///
    /// # Errors
    /// The bytes are no lists, are not signed by the authority whose name they have, or are older than what they would
    /// replace; nothing was replaced.
    fn put(&self, bytes: &[u8]) -> Result<(), String> {
        self.replace(Lists::read(&self.remote().origin, bytes, &self.remote().shared.issuers)?)
    }

    /// Finds out whether this authority has signed lists of this source that nobody was known to have signed.
    pub(super) fn learn(&self, issuer: &Issuer) {
        self.change(|before| {
            let before = before?;
            before.pending.iter().for_each(|list| list.learn(issuer));
            let (signed, pending): (Vec<_>, Vec<_>) =
                before.pending.iter().cloned().partition(|list| list.signer().is_some());
            let newer = signed.iter().filter(|list| !before.signed.iter().any(|other| list.is_older_than(other)));
            let all = merged(&before.signed, newer.cloned().collect());
            (!signed.is_empty()).then(|| Lists { signed: all, pending, latest: before.latest.clone() })
        });
    }

    /// Fetches at least this often; of several wishes, the shortest counts.
    pub(super) fn refresh_every(&self, period: Duration) {
        let mut refresh = self.remote().refresh.lock();
        *refresh = refresh.min(period);
    }

    /// Whether there is nothing to be had, so far.
    pub(super) fn is_empty(&self) -> bool {
        self.load().is_none()
    }

    /// Begins to fetch the lists in the background, if it is time.
    pub(super) fn fetch_again(self: &Arc<Self>) {
        if self.remote().origin.file().is_none() {
            self.fetch_if_due(*self.remote().refresh.lock());
        }
    }

    /// Fetches the first lists, unless they are there, or it went wrong a moment ago.
    pub(super) async fn fetch_first(self: Arc<Self>) {
        if self.remote().origin.file().is_none() && self.is_empty() {
            self.fetched(Duration::MAX).await;
        }
    }

    /// Certificates found to be revoked since this was asked last.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut self.remote().revoked.lock())
    }

    /// For operators; `None`: there is no list.
    pub(super) fn note(&self) -> Option<CrlNote> {
        let lists = self.load();
        let all = || lists.iter().flat_map(|lists| &lists.latest);
        Some(CrlNote {
            origin: self.remote().origin(),
            this_update: all().map(|list| list.this_update).min()?,
            next_update: all().map(|list| list.next_update).min()?,
            revoked: all().map(|list| list.len()).sum(),
        })
    }

    /// Tells what each list says that speaks for a certificate, and how it comes to do so.
    pub(super) fn tell(
        &self,
        link: &ChainCertificate,
        is_authority: bool,
        now: i64,
        mut tell: impl FnMut(Coverage, Status),
    ) {
        for list in self.load().iter().flat_map(|lists| &lists.signed) {
            let coverage = list.coverage(link, is_authority);
            if coverage == Coverage::None {
                continue;
            }
            tell(
                coverage,
                match () {
                    // That it is out of date does not give anybody back a certificate.
                    () if list.revokes(&link.serial) => Status::Revoked,
                    () if now >= list.next_update || now < list.this_update - CLOCK_SKEW => Status::Stale,
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

#[cfg(test)]
mod tests {
    use portcullis_testkit::Pki;
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
    use time::{Duration as Days, OffsetDateTime};

    use super::*;
    use crate::pki::{IssuerId, Serial};

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

    fn knowing(pki: &Pki) -> Source {
        let source = url();
        source.remote().shared.issuers.add(&issuer(pki));
        source
    }

    fn status(source: &Source, issuer: IssuerId, serial: u8) -> Status {
        let serial = Serial::new(&[serial]).unwrap();
        let link = ChainCertificate {
            issuer,
            serial,
            not_before: 0,
            not_after: 0,
            distribution_points: None,
            responder: None,
        };
        let mut status = Status::Unknown;
        source.tell(&link, false, now(), |_, said| status = status.max(said));
        status
    }

    fn url() -> Source {
        Source::of(Origin::Url("http://crl.example.com/".to_owned()), Arc::default())
    }

    #[test]
    fn what_was_fetched_does_not_go_back() {
        let (pki, impostor) = (Pki::new(), Pki::named("Somebody"));
        let (source, id) = (knowing(&pki), issuer(&pki).id);
        source.put(&list(&pki, 7, 1, 1, None)).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Revoked, Status::Good));
        assert_eq!(source.take_revoked().len(), 1);
        // Of somebody whom nobody knows: it may be good one day, and takes nothing away.
        source.put(&list(&impostor, 900, 0, 9, None)).unwrap();
        assert_eq!(status(&source, id, 1), Status::Revoked);
        for (older, why) in [(list(&pki, 6, 0, 2, None), "number"), (list(&pki, 7, 2, 2, None), "time")] {
            assert!(source.put(&older).unwrap_err().contains("older"), "{why}");
        }
        // Of another place: it stands beside.
        source.put(&list(&pki, 1, 3, 3, Some("http://there/"))).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 3)), (Status::Revoked, Status::Revoked));
        assert!(source.put(&list(&pki, 6, 0, 2, None)).is_err(), "still");
        source.put(&list(&pki, 8, 0, 2, None)).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Good, Status::Revoked));
    }

    #[test]
    fn nobody_blocks_a_list_that_is_not_known_to_be_good_yet() {
        let (pki, impostor) = (Pki::new(), Pki::new());
        let (source, id) = (url(), issuer(&pki).id);
        // Before the authority was seen, somebody on the way sends one with its name.
        source.put(&list(&impostor, u64::MAX, 0, 9, None)).unwrap();
        source.put(&list(&pki, 5, 0, 1, None)).unwrap();
        assert_eq!(status(&source, id, 1), Status::Unknown, "nothing counts before that");
        let issuer = issuer(&pki);
        source.remote().shared.issuers.add(&issuer);
        source.learn(&issuer);
        assert_eq!(status(&source, id, 1), Status::Revoked);
        assert_eq!(source.take_revoked().len(), 1, "and sessions are told");
        assert!(source.put(&list(&impostor, u64::MAX, 0, 9, None)).unwrap_err().contains("not signed"));
        assert_eq!(status(&source, id, 1), Status::Revoked);
    }

    #[test]
    fn a_list_that_was_changed_counts_for_nothing() {
        let pki = Pki::new();
        let (id, honest) = (issuer(&pki).id, list(&pki, 7, 0, 1, Some("http://here/")));
        for place in 0..honest.len() {
            for bytes in [honest[..place].to_vec(), {
                let mut changed = honest.clone();
                changed[place] ^= 1 << (place % 8);
                changed
            }] {
                let source = knowing(&pki);
                let _ = source.put(&bytes);
                assert_eq!(status(&source, id, 1), Status::Unknown, "{place}");
            }
        }
    }

    #[test]
    fn too_many_lists_are_none() {
        let (pki, source) = (Pki::new(), url());
        let one = ::pem::encode(&::pem::Pem::new("X509 CRL", list(&pki, 1, 0, 1, None)));
        let error = source.put(one.repeat(MAX_LISTS_OF_URL + 1).as_bytes()).unwrap_err();
        assert!(error.contains("more than 64 CRLs"), "{error}");
    }
}
