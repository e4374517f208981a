//! Whether a device's certificate is to be believed, now and for as long as the device is connected. Enters: a chain as
//! it was shown, or a credential that was verified before. Leaves: a verdict. Never here: a handshake, a session, and
//! waiting, except in what fetches in the background.

mod credential;
mod crl;
mod issuers;
mod signature;
mod source;

pub use credential::{Credential, IssuerId, Key, Link, Serial};

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use rustls::DistinguishedName;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::config::model::{CrlMissing, ListenerTls};
use crate::config::{At, Complaint, Document};
use crate::crypto::provider;
use crate::files::{Stamp, read_anchors, read_chain};
use crate::outcome::{CloseReason, Reject};
use issuers::{Issuer, Issuers};
use source::{Origin, Source, Status};

const VERIFY_DEPTH: u8 = 2;
/// What webpki follows at most.
const MAX_VERIFY_DEPTH: u8 = 6;
/// Tolerated in times that another machine's clock wrote, in seconds.
pub(crate) const CLOCK_SKEW: i64 = 300;

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
        }
    }
}

impl Distrust {
    /// Why a session ends for it. `None`: it does not; nothing was learned about the device, and to end all sessions
    /// because a list is late would make of every outage of an authority one of the fleet.
    pub const fn ends_session(self) -> Option<CloseReason> {
        match self {
            Distrust::UnknownCa | Distrust::TooLong => Some(CloseReason::CaRemoved),
            Distrust::Expired | Distrust::NotYetValid => Some(CloseReason::CertificateExpired),
            Distrust::Revoked => Some(CloseReason::CertificateRevoked),
            Distrust::CrlMissing | Distrust::CrlExpired => None,
        }
    }
}

/// What is known of authorities and their lists, by whichever listener it was learned. Outlives reloads.
#[derive(Debug, Default)]
pub struct Knowledge {
    issuers: Issuers,
    /// Those in use, so that listeners share them.
    sources: Mutex<HashMap<Origin, Weak<Source>>>,
}

impl Knowledge {
    fn source(&self, origin: Origin) -> Arc<Source> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.retain(|_, source| source.strong_count() > 0);
        if let Some(source) = sources.get(&origin).and_then(Weak::upgrade) {
            return source;
        }
        let source = Arc::new(Source::new(origin.clone()));
        sources.insert(origin, Arc::downgrade(&source));
        source
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.values().filter_map(Weak::upgrade).collect()
    }

    /// Remembers an authority, and which lists it has signed.
    fn learn(&self, der: &[u8]) {
        let Some(issuer) = Issuer::from_der(der).map(Arc::new) else { return };
        if self.issuers.add(Arc::clone(&issuer)) {
            self.sources().iter().for_each(|source| source.learn(&issuer));
        }
    }

    /// Reads the CRL files that have changed. Returns the keys of certificates that are now revoked, and what is wrong
    /// with files that cannot be used, of which the last good content stays.
    pub fn read_changed_files(&self) -> (Vec<Key>, Vec<String>) {
        let (mut revoked, mut problems) = (Vec::new(), Vec::new());
        for source in self.sources() {
            match source.read_if_changed(&self.issuers) {
                Ok(Some(keys)) => {
                    tracing::info!(crl = %source.origin, newly_revoked = keys.len(), "CRL loaded");
                    revoked.extend(keys);
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        (revoked, problems)
    }
}

/// The trust anchors of a bundle.
#[derive(Debug)]
pub struct Anchors {
    anchors: Vec<TrustAnchor<'static>>,
    ids: Vec<IssuerId>,
    subjects: Vec<DistinguishedName>,
}

impl Anchors {
    fn read(path: &Path, knowledge: &Knowledge) -> Result<Self, Complaint> {
        let not_an_anchor = |what: &str| Complaint::new(format!("{}: not a trust anchor: {what}", path.display()));
        let anchors = read_anchors(path)?;
        let mut ids = Vec::new();
        for der in read_chain(path)? {
            ids.push(Issuer::from_der(&der).ok_or_else(|| not_an_anchor("it cannot be read"))?.id);
            knowledge.learn(&der);
        }
        if ids.len() != anchors.len() {
            return Err(not_an_anchor("it changed while it was read"));
        }
        let subjects = anchors.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Ok(Self { anchors, ids, subjects })
    }

    /// Their names, as a hint for clients.
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn id_of(&self, anchor: &TrustAnchor<'_>) -> Option<IssuerId> {
        let is_it = |other: &TrustAnchor<'_>| {
            other.subject == anchor.subject && other.subject_public_key_info == anchor.subject_public_key_info
        };
        self.anchors.iter().position(is_it).map(|position| self.ids[position])
    }
}

/// What one listener believes.
#[derive(Debug)]
pub struct Trust {
    knowledge: Arc<Knowledge>,
    client_ca: PathBuf,
    stamp: Mutex<Option<Stamp>>,
    anchors: ArcSwap<Anchors>,
    depth: usize,
    sources: Vec<Arc<Source>>,
    crl_missing: CrlMissing,
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
        let client_ca = document.resolve(ca);
        let stamp = Mutex::new(Stamp::of(&client_ca));
        let anchors = Anchors::read(&client_ca, knowledge);
        let sources = compile_sources(tls, knowledge, document);
        match anchors {
            Ok(anchors) => Some(Self {
                knowledge: Arc::clone(knowledge),
                client_ca,
                stamp,
                anchors: ArcSwap::from_pointee(anchors),
                depth: usize::from(depth),
                sources,
                crl_missing: tls.crl_missing.as_ref().map_or(CrlMissing::Refuse, |at| at.value),
            }),
            Err(complaint) => {
                document.problems.complain(&ca.span, complaint);
                None
            }
        }
    }

    /// The trust anchors of the moment.
    pub fn anchors(&self) -> Arc<Anchors> {
        self.anchors.load_full()
    }

    /// Reads the trust anchors again if their file has changed; `true`: they are others now.
    ///
    /// # Errors
    /// They cannot be read; the last good ones stay.
    pub fn read_if_changed(&self) -> Result<bool, Complaint> {
        let now = Stamp::of(&self.client_ca);
        {
            let mut last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == now {
                return Ok(false);
            }
            *last = now;
        }
        let anchors = Anchors::read(&self.client_ca, &self.knowledge)?;
        let is_same = anchors.ids == self.anchors.load().ids;
        self.anchors.store(Arc::new(anchors));
        Ok(!is_same)
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
            &anchors.anchors,
            rest,
            now,
            KeyUsage::client_auth(),
            // Revocation is judged apart: webpki would verify the signature of each list in each handshake.
            None,
            Some(&depth),
        )?;
        let mut certificates = vec![leaf.der()];
        certificates.extend(path.intermediate_certificates().map(|certificate| certificate.der()));
        let anchor = anchors.id_of(path.anchor()).ok_or(webpki::Error::UnknownIssuer)?;
        let credential = Credential::of(&certificates, anchor).ok_or(webpki::Error::BadDer)?;
        for (authority, link) in certificates.iter().skip(1).zip(credential.links()) {
            if self.knowledge.issuers.get(&link.issuer).is_none() {
                self.knowledge.learn(authority);
            }
        }
        Ok(credential)
    }

    /// Judges a chain again whose signatures were verified before: when a session is resumed, and when something has
    /// changed while the device is connected. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not believed any more.
    pub fn judge(&self, credential: &Credential, now: i64) -> Result<(), Distrust> {
        if !self.anchors.load().ids.contains(&credential.anchor()) {
            return Err(Distrust::UnknownCa);
        }
        if credential.links().len() > self.depth + 1 {
            return Err(Distrust::TooLong);
        }
        let mut verdict = Ok(());
        for (place, link) in credential.links().iter().enumerate() {
            if now > link.not_after {
                return Err(Distrust::Expired);
            }
            if now < link.not_before {
                return Err(Distrust::NotYetValid);
            }
            if self.sources.is_empty() {
                continue;
            }
            let statuses = self.sources.iter().map(|source| source.status(link, place > 0, now));
            match statuses.max().unwrap_or(Status::Unknown) {
                // Said at once: it counts more than a list that is missing further down.
                Status::Revoked => return Err(Distrust::Revoked),
                Status::Good => {}
                Status::Stale if self.crl_missing == CrlMissing::Refuse => verdict = Err(Distrust::CrlExpired),
                Status::Unknown if self.crl_missing == CrlMissing::Refuse => verdict = Err(Distrust::CrlMissing),
                Status::Stale | Status::Unknown => {}
            }
        }
        verdict
    }
}

fn compile_sources(tls: &At<ListenerTls>, knowledge: &Knowledge, document: &mut Document) -> Vec<Arc<Source>> {
    let mut sources = Vec::new();
    for crl in &tls.crl {
        let source = knowledge.source(Origin::File(document.resolve(&PathBuf::from(&crl.value))));
        // What it says is looked at below, even if somebody has seen it before.
        let _ = source.read_if_changed(&knowledge.issuers);
        if let Some(problem) = source.problem() {
            document.problems.error(&crl.span, problem);
        }
        sources.push(source);
    }
    if let Some(missing) = tls.crl_missing.as_ref().filter(|missing| missing.value == CrlMissing::Allow) {
        let message = "a device whose CRL is missing or out of date is let in";
        document.problems.warning(&missing.span, message);
    }
    sources
}
