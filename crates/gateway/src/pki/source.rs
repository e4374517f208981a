//! CRL sources: files and URLs. Enters: bytes from disk or network. Leaves: the status of a certificate by the CRLs of
//! the source. A source keeps its last good CRLs until better ones arrive. A CRL is used only after a known CA's
//! signature on it was verified. What arrives over a network replaces nothing before that, and never a newer CRL.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::chain::{ChainCertificate, IssuerId, Key};
use super::crl::{Coverage, Crl, newly_revoked};
use super::issuers::{Issuer, Issuers};

use crate::config::Complaint;
use crate::fetch::{Fetcher, Validators};
use crate::refresh::{Pace, Refreshed, Remote, Watch};
use crate::util::clock::{CLOCK_SKEW, now};
use crate::util::file::read;

/// What all sources and OCSP requests share: the known CA certificates and the HTTP client.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) issuers: Issuers,
    pub(super) fetcher: Fetcher,
}

/// A CRL in use, as metrics and `certificate_status` report it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CrlSummary {
    /// Its file or URL.
    pub origin: String,
    /// Its thisUpdate in seconds since 1970; the oldest, if the source has several CRLs.
    pub this_update: i64,
    /// Its nextUpdate in seconds since 1970; the earliest, if the source has several CRLs.
    pub next_update: i64,
    /// The number of certificates it revokes.
    pub revoked: usize,
}

/// The shortest interval between two fetches of a URL.
const MIN_REFRESH: Duration = Duration::from_secs(2);
/// The largest file of CRLs, in bytes. A million revoked certificates take about 40 MB in DER, 55 MB in PEM.
const MAX_FILE_LEN: u64 = 256 << 20;
/// The longest back-off after failed fetches.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// The limits of CRLs in one file and in one HTTP response.
const MAX_CRLS_OF_FILE: usize = 4096;
const MAX_CRLS_OF_URL: usize = 64;

/// Where CRLs are read or fetched from.
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

/// The CRLs of one origin, shared by all listeners that use it.
pub(super) type Source = Refreshed<CrlOrigin>;

/// The state of an origin besides its CRLs.
pub(super) struct CrlOrigin {
    origin: Origin,
    shared: Arc<Shared>,
    file: Watch,
    /// The shortest interval that any listener has asked for.
    refresh: Mutex<Duration>,
    /// The index keys of newly revoked certificates, until maintenance takes them to end their sessions.
    revoked: Mutex<Vec<Key>>,
}

/// The CRLs of a source.
#[derive(Clone, Debug, Default)]
pub(super) struct Crls {
    /// Verified and in use.
    signed: Vec<Arc<Crl>>,
    /// Not in use: no known CA has signed them, but a CA that a device presents later may have.
    pending: Vec<Arc<Crl>>,
    /// The most recently received ones, signed or pending. `signed` may keep older ones of other scopes.
    latest: Vec<Arc<Crl>>,
}

/// The status of one certificate by CRLs, in rising order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// No CRL covers it.
    Unknown,
    /// The CRLs that cover it are out of date.
    Stale,
    Good,
    Revoked,
}

impl Remote for CrlOrigin {
    type Value = Crls;
    const WHAT: &'static str = "CRL";
    const PACE: Pace = Pace { min: MIN_REFRESH, max_retry: MAX_RETRY };

    fn origin(&self) -> String {
        self.origin.to_string()
    }

    async fn fetch(&self, validators: &Validators) -> Result<Option<(Crls, Validators)>, String> {
        let url = self.origin();
        let fetched = self.shared.fetcher.get_crl(&url, validators).await;
        let Some((bytes, new)) = fetched.map_err(|problem| format!("{url}: {problem}"))? else { return Ok(None) };
        let (origin, shared) = (self.origin.clone(), Arc::clone(&self.shared));
        // A CRL may have millions of entries: parsing and verifying it would block an async worker thread.
        let reading = tokio::task::spawn_blocking(move || Crls::read(&origin, &bytes, &shared.issuers));
        let lists = reading.await.map_err(|error| format!("{url}: {error}"))??;
        // While the signer is unknown, do not keep the validators: with those of an attacker's CRL, the server would keep
        // answering 304 Not Modified.
        let is_signed = lists.latest.iter().all(|crl| crl.signer().is_some());
        Ok(Some((lists, if is_signed { new } else { Validators::default() })))
    }

    /// A CRL of an unknown signer replaces nothing, and no CRL is replaced by an older one.
    fn accept(&self, Crls { latest, .. }: Crls, last: Option<&Crls>) -> Result<Crls, String> {
        // Runs under the lock of the value, so that a CA added later finds these CRLs in `pending`.
        let known = self.shared.issuers.all();
        for crl in &latest {
            known.values().for_each(|issuer| crl.identify_signer(issuer));
        }
        let (signed, pending): (Vec<_>, Vec<_>) = latest.iter().cloned().partition(|crl| crl.signer().is_some());
        let before = last.map_or(&[][..], |last| &last.signed);
        let is_known = |crl: &Arc<Crl>| known.values().any(|issuer| crl.names_issuer(issuer));
        let is_not_signed = match &self.origin {
            // A CA may have a new key under its old name, and no device has presented that certificate yet: such a CRL
            // is not an error, unless it replaces a CRL in use.
            Origin::File(_) => {
                let loses_signer = |old: &Arc<Crl>| {
                    let is_replaced = signed.iter().any(|crl| crl.signer() == old.signer());
                    let issuer = old.signer().and_then(|signer| known.get(signer));
                    !is_replaced && issuer.is_some_and(|issuer| pending.iter().any(|crl| crl.names_issuer(issuer)))
                };
                before.iter().any(loses_signer) || (signed.is_empty() && pending.iter().all(is_known))
            }
            Origin::Url(_) => pending.iter().any(is_known),
        };
        if is_not_signed {
            return Err(format!("{}: not signed by the authority that it names as its issuer", self.origin));
        }
        match &self.origin {
            Origin::File(path) => {
                if signed.iter().any(|crl| before.iter().any(|other| crl.is_older_than(other))) {
                    tracing::warn!(crl = %path.display(), "the CRL file now has an older CRL than before");
                }
                Ok(Crls { signed, pending, latest })
            }
            // Over plain HTTP, an attacker on the path could replay a CRL from before a revocation.
            Origin::Url(_) if signed.iter().any(|crl| before.iter().any(|other| crl.is_older_than(other))) => {
                Err(format!("{}: older than the CRL in use", self.origin))
            }
            Origin::Url(_) => Ok(Crls { signed: merged(before, signed), pending, latest }),
        }
    }

    fn on_change(&self, last: Option<&Crls>, new: &Crls) -> bool {
        let revoked = newly_revoked(last.map_or(&[], |last| &last.signed), &new.signed);
        self.revoked.lock().extend(revoked);
        true
    }

    /// Until the earliest nextUpdate: by then, the CA has issued a new CRL.
    fn good_for(&self, lists: &Crls) -> Duration {
        let left = lists.latest.iter().map(|list| list.next_update - now()).min();
        Duration::from_secs(left.unwrap_or(0).max(0).unsigned_abs())
    }
}

impl Crls {
    /// Parses CRLs, and looks for their signers among the known CAs.
    fn read(origin: &Origin, bytes: &[u8], issuers: &Issuers) -> Result<Self, String> {
        let max = if origin.file().is_some() { MAX_CRLS_OF_FILE } else { MAX_CRLS_OF_URL };
        let lists = Crl::read(bytes, max).map_err(|what| format!("{origin}: {what}"))?;
        let known = issuers.all();
        for crl in &lists {
            known.values().for_each(|issuer| crl.identify_signer(issuer));
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

    /// Reads the file again if it has changed. `at_once`: also if it changed only a moment ago, and may still be written.
    ///
    /// # Errors
    /// A new problem with the file; one that was already returned is not returned again. The last good CRLs stay in use.
    pub(super) fn read_if_changed(&self, at_once: bool) -> Result<(), String> {
        let Some(path) = self.remote().origin.file() else { return Ok(()) };
        let read = || {
            let bytes =
                read(path, MAX_FILE_LEN).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            self.put(&bytes)
        };
        match self.remote().file.read_if_changed(at_once, || read().map_err(Complaint::new)) {
            Some(Ok(())) => tracing::info!(crl = %path.display(), "CRL loaded"),
            Some(Err(complaint)) => return Err(complaint.message),
            None => {}
        }
        Ok(())
    }

    /// Whether one of its CRLs is signed by this authority.
    pub(super) fn is_signed_by(&self, authority: &IssuerId) -> bool {
        self.load().iter().flat_map(|lists| &lists.signed).any(|crl| crl.signer() == Some(authority))
    }

    /// The current problem with the file.
    pub(super) fn problem(&self) -> Option<String> {
        self.remote().file.problem()
    }

    /// Replaces the CRLs.
    ///
    /// # Errors
    /// The bytes cannot be parsed, are not signed by the CA that they name as issuer, or are older than the CRLs in use.
    /// Nothing is replaced then.
    fn put(&self, bytes: &[u8]) -> Result<(), String> {
        self.replace(Crls::read(&self.remote().origin, bytes, &self.remote().shared.issuers)?)
    }

    /// Moves the pending CRLs that this CA has signed into use.
    pub(super) fn adopt_signed_by(&self, issuer: &Issuer) {
        self.change(|before| {
            let before = before?;
            before.pending.iter().for_each(|list| list.identify_signer(issuer));
            let (signed, pending): (Vec<_>, Vec<_>) =
                before.pending.iter().cloned().partition(|list| list.signer().is_some());
            let newer = signed.iter().filter(|list| !before.signed.iter().any(|other| list.is_older_than(other)));
            let all = merged(&before.signed, newer.cloned().collect());
            (!signed.is_empty()).then(|| Crls { signed: all, pending, latest: before.latest.clone() })
        });
    }

    /// Fetches at least this often. The shortest period that was ever set applies.
    pub(super) fn refresh_every(&self, period: Duration) {
        let mut refresh = self.remote().refresh.lock();
        *refresh = refresh.min(period);
    }

    /// Whether no CRL has been loaded yet.
    pub(super) fn is_empty(&self) -> bool {
        self.load().is_none()
    }

    /// Starts a fetch in the background, if one is due.
    pub(super) fn fetch_again(self: &Arc<Self>) {
        if self.remote().origin.file().is_none() {
            self.fetch_if_due(*self.remote().refresh.lock());
        }
    }

    /// Fetches the first CRLs, unless there are some or a fetch failed a moment ago.
    pub(super) async fn fetch_first(self: Arc<Self>) {
        if self.remote().origin.file().is_none() && self.is_empty() {
            self.fetched(Duration::MAX).await;
        }
    }

    /// The index keys of certificates that were revoked since the last call.
    pub(super) fn take_revoked(&self) -> Vec<Key> {
        std::mem::take(&mut self.remote().revoked.lock())
    }

    /// A summary for operators; `None` if there is no CRL.
    pub(super) fn summary(&self) -> Option<CrlSummary> {
        let lists = self.load();
        let all = || lists.iter().flat_map(|lists| &lists.latest);
        Some(CrlSummary {
            origin: self.remote().origin(),
            this_update: all().map(|list| list.this_update).min()?,
            next_update: all().map(|list| list.next_update).min()?,
            revoked: all().map(|list| list.len()).sum(),
        })
    }

    /// Calls `report` with the status of a certificate by each CRL that covers it.
    pub(super) fn each_status(
        &self,
        certificate: &ChainCertificate,
        is_ca: bool,
        now: i64,
        mut report: impl FnMut(Coverage, Status),
    ) {
        for list in self.load().iter().flat_map(|lists| &lists.signed) {
            let coverage = list.coverage(certificate, is_ca);
            if coverage == Coverage::None {
                continue;
            }
            let is_current = now < list.next_update && now >= list.this_update - CLOCK_SKEW;
            // A revocation outlives the CRL: an out-of-date CRL does not reinstate a certificate.
            let status = if list.revokes(&certificate.serial) {
                Status::Revoked
            } else if is_current {
                Status::Good
            } else {
                Status::Stale
            };
            report(coverage, status);
        }
    }
}

/// The new CRLs, and those of the old ones that none of them replaces.
fn merged(old: &[Arc<Crl>], new: Vec<Arc<Crl>>) -> Vec<Arc<Crl>> {
    let is_kept = |list: &&Arc<Crl>| !new.iter().any(|other| other.has_scope_of(list));
    let kept: Vec<Arc<Crl>> = old.iter().filter(is_kept).cloned().collect();
    new.into_iter().chain(kept).take(MAX_CRLS_OF_FILE).collect()
}

#[cfg(test)]
mod tests {
    use portcullis_testkit::Pki;
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
    use time::{Duration as Days, OffsetDateTime};

    use super::*;
    use crate::pki::{IssuerId, Serial};

    /// A CRL of the PKI's intermediate with this number, issued `age` days ago, that revokes this serial number.
    fn crl(pki: &Pki, number: u64, age: i64, revoked: u8, url: Option<&str>) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let params = CertificateRevocationListParams {
            this_update: now - Days::days(age),
            next_update: now + Days::days(1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: url.map(|url| rcgen::CrlIssuingDistributionPoint {
                distribution_point: rcgen::CrlDistributionPoint { uris: vec![url.to_owned()] },
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

    fn source_with_issuer(pki: &Pki) -> Source {
        let source = url_source();
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
        source.each_status(&link, false, now(), |_, said| status = status.max(said));
        status
    }

    fn url_source() -> Source {
        Source::of(Origin::Url("http://crl.example.com/".to_owned()), Arc::default())
    }

    #[test]
    fn what_was_fetched_does_not_go_back() {
        let (pki, impostor) = (Pki::new(), Pki::named("Impostor"));
        let (source, id) = (source_with_issuer(&pki), issuer(&pki).id);
        source.put(&crl(&pki, 7, 1, 1, None)).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Revoked, Status::Good));
        assert_eq!(source.take_revoked().len(), 1);
        // By an unknown CA: it stays pending and replaces nothing.
        source.put(&crl(&impostor, 900, 0, 9, None)).unwrap();
        assert_eq!(status(&source, id, 1), Status::Revoked);
        for (older, why) in [(crl(&pki, 6, 0, 2, None), "number"), (crl(&pki, 7, 2, 2, None), "time")] {
            assert!(source.put(&older).unwrap_err().contains("older"), "{why}");
        }
        // For another distribution point: both are in use.
        source.put(&crl(&pki, 1, 3, 3, Some("http://there/"))).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 3)), (Status::Revoked, Status::Revoked));
        assert!(source.put(&crl(&pki, 6, 0, 2, None)).is_err(), "still older");
        source.put(&crl(&pki, 8, 0, 2, None)).unwrap();
        assert_eq!((status(&source, id, 1), status(&source, id, 2)), (Status::Good, Status::Revoked));
    }

    #[test]
    fn nobody_blocks_a_list_that_is_not_known_to_be_good_yet() {
        let (pki, impostor) = (Pki::new(), Pki::new());
        let (source, id) = (url_source(), issuer(&pki).id);
        // Before the CA is known, an attacker on the path sends a CRL under its name.
        source.put(&crl(&impostor, u64::MAX, 0, 9, None)).unwrap();
        source.put(&crl(&pki, 5, 0, 1, None)).unwrap();
        assert_eq!(status(&source, id, 1), Status::Unknown, "no CRL is used before the CA is known");
        let issuer = issuer(&pki);
        source.remote().shared.issuers.add(&issuer);
        source.adopt_signed_by(&issuer);
        assert_eq!(status(&source, id, 1), Status::Revoked);
        assert_eq!(source.take_revoked().len(), 1, "the revocation is reported");
        assert!(source.put(&crl(&impostor, u64::MAX, 0, 9, None)).unwrap_err().contains("not signed"));
        assert_eq!(status(&source, id, 1), Status::Revoked);
    }

    #[test]
    fn a_list_that_was_changed_counts_for_nothing() {
        let pki = Pki::new();
        let (id, honest) = (issuer(&pki).id, crl(&pki, 7, 0, 1, Some("http://here/")));
        for position in 0..honest.len() {
            for bytes in [honest[..position].to_vec(), {
                let mut changed = honest.clone();
                changed[position] ^= 1 << (position % 8);
                changed
            }] {
                let source = source_with_issuer(&pki);
                let _ = source.put(&bytes);
                assert_eq!(status(&source, id, 1), Status::Unknown, "{position}");
            }
        }
    }

    #[test]
    fn too_many_lists_are_none() {
        let (pki, source) = (Pki::new(), url_source());
        let one = ::pem::encode(&::pem::Pem::new("X509 CRL", crl(&pki, 1, 0, 1, None)));
        let error = source.put(one.repeat(MAX_CRLS_OF_URL + 1).as_bytes()).unwrap_err();
        assert!(error.contains("more than 64 CRLs"), "{error}");
    }
}
