//! Whether a device's certificate is to be believed, now and for as long as the device is connected. Enters: a chain as
//! it was shown, or a credential that was verified before. Leaves: a verdict. Never here: a handshake or a session; and
//! nothing waits for a network but [`Trust::settle`] and what fetches in the background.

mod anchors;
mod credential;
mod crl;
mod issuers;
mod knowledge;
mod ocsp;
mod signature;
mod source;
mod statuses;

pub use anchors::Anchors;
pub use credential::{Credential, IssuerId, Key, Link, Serial};
pub use knowledge::{CrlNote, Knowledge};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::task::JoinHandle;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::clock::now;
use crate::config::model::{ListenerTls, Ocsp, OnFailure};
use crate::config::{At, Document};
use crate::crypto::provider;
use crate::fetch::is_url;
use crate::outcome::{CloseReason, Reject};
use crate::refresh::FromFiles;
use crl::Coverage;
use ocsp::OcspStatus;
use source::{Origin, Source, Status};

const VERIFY_DEPTH: u8 = 2;
/// What webpki follows at most.
const MAX_VERIFY_DEPTH: u8 = 6;
/// Tolerated in times that another machine's clock wrote, in seconds.
pub(crate) const CLOCK_SKEW: i64 = 300;
const REFRESH: Duration = Duration::from_secs(15 * 60);
const OCSP_IS_OFF: &str = "without effect: `ocsp` is off";
const OCSP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a certificate is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// The trust anchor is not configured, or no longer.
    UnknownCa,
    /// More intermediates than are allowed.
    TooLong,
    /// A certificate of the chain has expired.
    Expired,
    /// A certificate of the chain is not valid yet.
    NotYetValid,
    /// A certificate of the chain is revoked.
    Revoked,
    /// There is no CRL for a certificate of the chain.
    CrlMissing,
    /// The CRL for a certificate of the chain is out of date.
    CrlExpired,
    /// No OCSP responder has answered for a certificate of the chain.
    OcspMissing,
}

impl From<Distrust> for Reject {
    fn from(distrust: Distrust) -> Self {
        match distrust {
            Distrust::UnknownCa => Reject::UnknownCa,
            Distrust::TooLong => Reject::CertificateChainTooLong,
            Distrust::Expired => Reject::CertificateExpired,
            Distrust::NotYetValid => Reject::CertificateNotYetValid,
            Distrust::Revoked => Reject::CertificateRevoked,
            Distrust::CrlMissing => Reject::CrlMissing,
            Distrust::CrlExpired => Reject::CrlExpired,
            Distrust::OcspMissing => Reject::OcspMissing,
        }
    }
}

impl Distrust {
    /// Why a session ends for it. `None`: it does not; nothing was learned about the device, and to end all sessions
    /// because a list is late would make of every outage of an authority one of the fleet.
    pub const fn ends_session(self) -> Option<CloseReason> {
        match self {
            Distrust::UnknownCa | Distrust::TooLong => Some(CloseReason::CaRemoved),
            Distrust::Expired => Some(CloseReason::CertificateExpired),
            Distrust::Revoked => Some(CloseReason::CertificateRevoked),
            // It was valid before: the clock was set back.
            Distrust::NotYetValid | Distrust::CrlMissing | Distrust::CrlExpired | Distrust::OcspMissing => None,
        }
    }
}

/// What one listener believes.
#[derive(Debug)]
pub struct Trust {
    knowledge: Arc<Knowledge>,
    anchors: FromFiles<Anchors>,
    depth: usize,
    /// Configured ones.
    sources: Vec<Arc<Source>>,
    /// Whether certificates are believed in where their CRLs are.
    follows_names: bool,
    crl_missing: OnFailure,
    refresh: Duration,
    ocsp: Ocsp,
    ocsp_responder: Option<String>,
    ocsp_failure: OnFailure,
    ocsp_timeout: Duration,
}

/// What is not known of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    crl: Option<Distrust>,
    ocsp: Option<Distrust>,
    /// There is an OCSP answer for everything, but one is old enough for another.
    is_old: bool,
}

impl Trust {
    /// Compiles what a listener's table says of devices' certificates, of which `ca` is the part that must be there;
    /// says what is wrong with it in the document's problems. `None`: something is.
    pub(crate) fn compile(
        tls: &At<ListenerTls>,
        ca: &At<PathBuf>,
        knowledge: &Arc<Knowledge>,
        document: &mut Document,
    ) -> Option<Self> {
        let mut depth = VERIFY_DEPTH;
        if let Some(wanted) = &tls.verify_depth {
            depth = wanted.value;
            if depth > MAX_VERIFY_DEPTH {
                let message = format!("`verify_depth` is {MAX_VERIFY_DEPTH} at most");
                document.problems.error(&wanted.span, message);
            }
        }
        let learn = Arc::clone(knowledge);
        let anchors = FromFiles::open("client_ca", document.resolve(ca), move |path| Anchors::read(path, &learn));
        let refresh = tls.revocation_refresh.map_or(REFRESH, |period| period.0);
        let sources = compile_sources(tls, refresh, knowledge, document);
        let ocsp_responder = tls.ocsp_responder.as_ref().map(|url| url.value.clone());
        if let Some(url) = tls.ocsp_responder.as_ref().filter(|url| !is_url(url) && !document.is_substituted(&url.span))
        {
            document
                .problems
                .error(&url.span, format!("`{}` is no URL", url.value))
                .hint("\"http://ocsp.example.com/\"");
        }
        let has_crls = !tls.crl.is_empty() || tls.crl_distribution_points;
        for (span, is_used, message) in [
            (tls.crl_missing.as_ref().map(|at| &at.span), has_crls, "`crl_missing` without effect: there is no `crl`"),
            (tls.ocsp_responder.as_ref().map(|at| &at.span), tls.ocsp != Ocsp::Off, OCSP_IS_OFF),
            (tls.ocsp_failure.as_ref().map(|at| &at.span), tls.ocsp != Ocsp::Off, OCSP_IS_OFF),
        ] {
            if let (Some(span), false) = (span, is_used) {
                document.problems.warning(span, message);
            }
        }
        let allow = |at: &Option<At<OnFailure>>| at.as_ref().map_or(OnFailure::Refuse, |at| at.value);
        for (key, at, what) in [
            ("crl_missing", &tls.crl_missing, "whose CRL is missing or out of date"),
            ("ocsp_failure", &tls.ocsp_failure, "for which no OCSP responder answers"),
        ] {
            if let Some(at) = at.as_ref().filter(|at| at.value == OnFailure::Allow) {
                let message = format!("a device {what} is let in: {key} = \"allow\"");
                document.problems.warning(&at.span, message);
            }
        }
        match anchors {
            Ok(anchors) => Some(Self {
                knowledge: Arc::clone(knowledge),
                anchors,
                depth: usize::from(depth),
                sources,
                follows_names: tls.crl_distribution_points,
                crl_missing: allow(&tls.crl_missing),
                refresh,
                ocsp: tls.ocsp,
                ocsp_responder,
                ocsp_failure: allow(&tls.ocsp_failure),
                ocsp_timeout: tls.ocsp_timeout.map_or(OCSP_TIMEOUT, |period| period.0),
            }),
            Err(complaint) => {
                document.problems.complain(&ca.span, complaint);
                None
            }
        }
    }

    /// Fetches what is configured by URL, for the first time; to be called before the first handshake. Takes a bounded
    /// time, whatever comes of it.
    pub(crate) async fn prepare(&self) {
        let fetch = self.sources.iter().cloned().map(Source::fetch_first);
        // What is not there by then goes on in the background.
        let _ = tokio::time::timeout(self.ocsp_timeout, join_all(fetch)).await;
    }

    /// The trust anchors of the moment.
    pub fn anchors(&self) -> Arc<Anchors> {
        Arc::clone(&self.anchors.load())
    }

    /// Reads the trust anchors again if their file has changed, and says in the log what came of it; whether they are
    /// others now.
    pub(crate) fn read_if_changed(&self, listener: &str) -> bool {
        let before = self.anchors();
        self.anchors.read_if_changed(listener) && !self.anchors.load().are_same(&before)
    }

    /// Verifies a chain as it was shown: signatures up to an anchor, validity, purpose, depth. What remains is
    /// [`Trust::judge`].
    ///
    /// # Errors
    /// Why it is not believed.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Credential, webpki::Error> {
        let anchors = self.anchors.load();
        let leaf = EndEntityCert::try_from(leaf)?;
        let depth = |path: &VerifiedPath<'_>| {
            let is_short_enough = path.intermediate_certificates().count() <= self.depth;
            if is_short_enough { Ok(()) } else { Err(webpki::Error::MaximumPathDepthExceeded) }
        };
        let path = leaf.verify_for_usage(
            provider().signature_verification_algorithms.all,
            anchors.list(),
            rest,
            now,
            KeyUsage::client_auth(),
            // Revocation is judged apart: webpki would verify the signature of each list in each handshake.
            None,
            Some(&depth),
        )?;
        let mut certificates = vec![leaf.der()];
        certificates.extend(path.intermediate_certificates().map(webpki::Cert::der));
        let anchor = anchors.id_of(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
        let credential = Credential::of(&certificates, anchor).ok_or(webpki::Error::BadDer)?;
        for (authority, link) in certificates.iter().skip(1).zip(credential.links()) {
            let known = self.knowledge.shared.issuers.get(&link.issuer);
            if known.is_none_or(|known| !known.is_certificate(authority)) {
                self.knowledge.learn(authority);
            }
        }
        Ok(credential)
    }

    /// Judges a chain whose signatures were verified, by what is known: at a handshake, when a session is resumed, and
    /// when something has changed while the device is connected. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn judge(&self, credential: &Credential, now: i64) -> Result<(), Distrust> {
        let open = self.look(credential, now)?;
        match (open.crl, open.ocsp) {
            (Some(distrust), _) if self.crl_missing == OnFailure::Refuse => Err(distrust),
            (_, Some(distrust)) if self.ocsp_failure == OnFailure::Refuse => Err(distrust),
            _ => Ok(()),
        }
    }

    /// As [`Trust::judge`], but for what may yet be found out by [`Trust::settle`].
    ///
    /// # Errors
    /// Why it is not believed.
    pub(crate) fn judge_for_now(&self, credential: &Credential, now: i64) -> Result<(), Distrust> {
        match self.judge(credential, now) {
            Err(Distrust::CrlMissing | Distrust::CrlExpired) if self.follows_names => {
                self.look(credential, now).map(drop)
            }
            Err(Distrust::OcspMissing) => Ok(()),
            verdict => verdict,
        }
    }

    /// Finds out what is not known of a chain yet, from the CRLs it names and from OCSP responders, and judges it. To be
    /// called after the handshake and before anything is done for the device; takes `ocsp_timeout` at most.
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn settle(&self, credential: &Credential) -> Result<(), Distrust> {
        let open = self.look(credential, now())?;
        if open != Open::default() {
            // What takes longer than this device waits goes on, and is of use to the next.
            let asking = join(join_all(self.fetch_named(credential)), join_all(self.ask_responders(credential)));
            let _ = tokio::time::timeout(self.ocsp_timeout, asking).await;
        }
        self.judge(credential, now())
    }

    /// Whether signatures on lists and answers about this chain could be verified: its authorities have been seen, by
    /// this process.
    pub(crate) fn knows_authorities_of(&self, credential: &Credential) -> bool {
        let checks_nothing = !self.looks_at_crls() && self.ocsp == Ocsp::Off;
        checks_nothing
            || credential.links().iter().all(|link| self.knowledge.shared.issuers.get(&link.issuer).is_some())
    }

    /// What is certain is an error, what is not known is handed back.
    fn look(&self, credential: &Credential, now: i64) -> Result<Open, Distrust> {
        if !self.anchors.load().contains(&credential.anchor()) {
            return Err(Distrust::UnknownCa);
        }
        if credential.links().len() > self.depth + 1 {
            return Err(Distrust::TooLong);
        }
        let mut open = Open::default();
        for (place, link) in credential.links().iter().enumerate() {
            if now > link.not_after {
                return Err(Distrust::Expired);
            }
            if now < link.not_before {
                return Err(Distrust::NotYetValid);
            }
            match self.crl_status(link, place > 0, now) {
                // Said at once: it counts more than a list that is missing further down.
                Some(Status::Revoked) => return Err(Distrust::Revoked),
                Some(Status::Stale) => open.crl = Some(Distrust::CrlExpired),
                Some(Status::Unknown) => open.crl = Some(Distrust::CrlMissing),
                Some(Status::Good) | None => {}
            }
            if self.asks_about(place) {
                match self.knowledge.statuses.get(link.issuer, link.serial, now) {
                    Some((OcspStatus::Revoked, _)) => return Err(Distrust::Revoked),
                    Some((OcspStatus::Good, age)) => open.is_old |= age >= self.refresh,
                    Some((OcspStatus::Unknown, _)) | None => open.ocsp = Some(Distrust::OcspMissing),
                }
            }
        }
        Ok(open)
    }

    fn looks_at_crls(&self) -> bool {
        self.follows_names || !self.sources.is_empty()
    }

    /// `None`: CRLs are not looked at.
    fn crl_status(&self, link: &Link, is_authority: bool, now: i64) -> Option<Status> {
        if !self.looks_at_crls() {
            return None;
        }
        let (mut sure, mut perhaps) = (Status::Unknown, None);
        let mut tell = |coverage, status| match coverage {
            // Of lists of several places, each has to be there and to say so.
            Coverage::Perhaps if status != Status::Revoked => perhaps = perhaps.min(Some(status)).or(Some(status)),
            _ => sure = sure.max(status),
        };
        self.sources.iter().for_each(|source| source.tell(link, is_authority, now, &mut tell));
        if self.follows_names {
            let urls = link.distribution_points.iter().flatten();
            let named = urls.filter_map(|url| self.knowledge.named(url));
            named.for_each(|source| source.tell(link, is_authority, now, &mut tell));
        }
        if self.sources.iter().any(|source| source.is_empty()) {
            perhaps = perhaps.min(Some(Status::Unknown));
        }
        Some(sure.max(perhaps.unwrap_or(Status::Unknown)))
    }

    fn asks_about(&self, place: usize) -> bool {
        match self.ocsp {
            Ocsp::Off => false,
            Ocsp::Leaf => place == 0,
            Ocsp::Chain => true,
        }
    }

    /// Begins to fetch the CRLs that the chain names and that are not there.
    fn fetch_named(&self, credential: &Credential) -> Vec<impl Future<Output = ()>> {
        let mut fetching = Vec::new();
        for (place, link) in credential.links().iter().enumerate() {
            if !self.follows_names || self.crl_status(link, place > 0, now()) >= Some(Status::Good) {
                continue;
            }
            for url in link.distribution_points.iter().flatten().filter(|url| is_url(url)) {
                let Some(source) = self.knowledge.name(url, self.refresh) else { continue };
                fetching.push(source.fetch_first());
            }
        }
        fetching
    }

    /// Begins to ask OCSP responders about the certificates of the chain that nothing is known of.
    fn ask_responders(&self, credential: &Credential) -> Vec<JoinHandle<()>> {
        let asked = credential.links().iter().enumerate().filter(|(place, _)| self.asks_about(*place));
        let ask = |(_, link): (usize, &Link)| {
            let responder = self.ocsp_responder.as_ref().or(link.responder.as_ref());
            let responder = responder.filter(|url| is_url(url))?.clone();
            let issuer = self.knowledge.shared.issuers.get(&link.issuer)?;
            let (knowledge, serial, refresh) = (Arc::clone(&self.knowledge), link.serial, self.refresh);
            Some(tokio::spawn(async move {
                knowledge.statuses.ask(&knowledge.shared.fetcher, serial, issuer, &responder, refresh).await;
            }))
        };
        asked.filter_map(ask).collect()
    }
}

fn compile_sources(
    tls: &At<ListenerTls>,
    refresh: Duration,
    knowledge: &Knowledge,
    document: &mut Document,
) -> Vec<Arc<Source>> {
    let mut sources = Vec::new();
    for url in tls.crl.iter().chain(&tls.ocsp_responder) {
        if document.is_substituted(&url.span) {
            let problem = document.problems.error(&url.span, "nothing from outside the file can be put into this");
            problem.hint("it is shown in logs and metrics");
        }
    }
    for crl in tls.crl.iter().filter(|crl| !document.is_substituted(&crl.span)).collect::<Vec<_>>() {
        if crl.contains("://") {
            if !is_url(crl) {
                let problem = document.problems.error(&crl.span, format!("`{}` cannot be fetched", crl.value));
                problem.hint("a file, or \"http://...\" or \"https://...\"");
                continue;
            }
            let source = knowledge.source(Origin::Url(crl.value.clone()));
            source.refresh_every(refresh);
            sources.push(source);
            continue;
        }
        let source = knowledge.source(Origin::File(document.resolve(&PathBuf::from(&crl.value))));
        // What it says is looked at below, even if somebody has seen it before.
        let _ = source.read_if_changed(true);
        if let Some(problem) = source.problem() {
            document.problems.error(&crl.span, problem);
        }
        sources.push(source);
    }
    sources
}
