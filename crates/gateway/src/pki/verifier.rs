//! Whether a device's certificate is to be believed, now and for as long as the device is connected. Enters: a chain as
//! it was shown, or a chain that was verified before. Leaves: a verdict. Never here: a handshake or a session; and
//! nothing waits for a network but [`ChainVerifier::check_revocation`] and what fetches in the background.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::task::JoinHandle;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use super::anchors::Anchors;
use super::chain::{ChainCertificate, VerifiedChain};
use super::crl::Coverage;
use super::ocsp::OcspStatus;
use super::revocation::RevocationStore;
use super::source::{Origin, Source, Status};
use crate::config::tables::{ClientCertificates, CrlOrigin, OcspScope, OnFailure};
use crate::config::{Diagnostics, Reported, Setting};
use crate::files::warn_if_expired;
use crate::outcome::ChainError;
use crate::peer::Certificate;
use crate::refresh::FromFiles;
use crate::util::clock::now;
use crate::util::crypto::provider;
use crate::util::url::is_url;

/// What one listener believes.
#[derive(Debug)]
pub struct ChainVerifier {
    revocation: Arc<RevocationStore>,
    anchors: FromFiles<Anchors>,
    depth: usize,
    /// Configured ones.
    sources: Vec<Arc<Source>>,
    /// Whether certificates are believed in where their CRLs are.
    follows_names: bool,
    crl_missing: OnFailure,
    refresh: Duration,
    ocsp: OcspScope,
    ocsp_responder: Option<String>,
    ocsp_failure: OnFailure,
    ocsp_timeout: Duration,
}

/// What is not known of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    crl: Option<ChainError>,
    ocsp: Option<ChainError>,
    /// There is an OCSP answer for everything, but one is old enough for another.
    is_old: bool,
}

impl ChainVerifier {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// One cannot be used, which was reported.
    pub(crate) fn open(
        settings: &ClientCertificates,
        revocation: &Arc<RevocationStore>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let ClientCertificates { ca, verify_depth, crl, ocsp, refresh, .. } = settings;
        warn_if_expired(ca, ca, diagnostics);
        let learn = Arc::clone(revocation);
        let anchors = FromFiles::open("client_ca", ca.value.clone(), move |path| Anchors::read(path, &learn));
        let sources = open_sources(&crl.origins, *refresh, revocation, diagnostics);
        let anchors = anchors.map_err(|complaint| diagnostics.error(ca, complaint))?;
        Ok(Self {
            revocation: Arc::clone(revocation),
            anchors,
            depth: *verify_depth,
            sources,
            follows_names: crl.distribution_points,
            crl_missing: crl.missing,
            refresh: *refresh,
            ocsp: ocsp.scope,
            ocsp_responder: ocsp.responder.clone(),
            ocsp_failure: ocsp.failure,
            ocsp_timeout: ocsp.timeout,
        })
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

    /// Verifies a chain as the device presented it: signatures up to a trust anchor, validity, purpose, depth [RFC 5280,
    /// 6.1]. Revocation remains for [`ChainVerifier::evaluate`]. Returns the chain and the device's own certificate.
    ///
    /// # Errors
    /// Why the chain is rejected.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(VerifiedChain, Certificate), ChainError> {
        let anchors = self.anchors.load();
        // What webpki says in more words than the reason.
        let explain = |error: &webpki::Error| tracing::debug!(%error, "client certificate not accepted");
        let leaf = EndEntityCert::try_from(leaf).inspect_err(explain)?;
        let depth = |path: &VerifiedPath<'_>| {
            let is_short_enough = path.intermediate_certificates().count() <= self.depth;
            if is_short_enough { Ok(()) } else { Err(webpki::Error::MaximumPathDepthExceeded) }
        };
        let path = leaf
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                anchors.list(),
                rest,
                now,
                KeyUsage::client_auth(),
                // Revocation is judged apart: webpki would verify the signature of each list in each handshake.
                None,
                Some(&depth),
            )
            .inspect_err(explain)?;
        let mut certificates = vec![leaf.der()];
        certificates.extend(path.intermediate_certificates().map(webpki::Cert::der));
        let anchor = anchors.id_of(path.anchor()).ok_or(ChainError::UnknownCa)?;
        let (chain, leaf) = VerifiedChain::of(&certificates, anchor).ok_or(ChainError::Malformed)?;
        for (authority, certificate) in certificates.iter().skip(1).zip(chain.certificates()) {
            let known = self.revocation.shared.issuers.get(&certificate.issuer);
            if known.is_none_or(|known| !known.is_certificate(authority)) {
                self.revocation.learn(authority);
            }
        }
        Ok((chain, leaf))
    }

    /// Judges a chain whose signatures were verified, by what is known: at a handshake, when a session is resumed, and
    /// when something has changed while the device is connected. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn evaluate(&self, chain: &VerifiedChain, now: i64) -> Result<(), ChainError> {
        let open = self.look(chain, now)?;
        match (open.crl, open.ocsp) {
            (Some(error), _) if self.crl_missing == OnFailure::Refuse => Err(error),
            (_, Some(error)) if self.ocsp_failure == OnFailure::Refuse => Err(error),
            _ => Ok(()),
        }
    }

    /// As [`ChainVerifier::judge`], but for what may yet be found out by [`ChainVerifier::check_revocation`].
    ///
    /// # Errors
    /// Why it is not believed.
    pub(crate) fn evaluate_for_now(&self, chain: &VerifiedChain, now: i64) -> Result<(), ChainError> {
        match self.evaluate(chain, now) {
            Err(ChainError::CrlMissing | ChainError::CrlExpired) if self.follows_names => {
                self.look(chain, now).map(drop)
            }
            Err(ChainError::OcspMissing) => Ok(()),
            verdict => verdict,
        }
    }

    /// Finds out what is not known of a chain yet, from the CRLs it names and from OCSP responders, and judges it. To be
    /// called after the handshake and before anything is done for the device; takes `ocsp_timeout` at most.
    ///
    /// # Errors
    /// Why it is not believed.
    pub async fn check_revocation(&self, chain: &VerifiedChain) -> Result<(), ChainError> {
        let open = self.look(chain, now())?;
        if open != Open::default() {
            // What takes longer than this device waits goes on, and is of use to the next.
            let asking = join(join_all(self.fetch_named(chain)), join_all(self.ask_responders(chain)));
            let _ = tokio::time::timeout(self.ocsp_timeout, asking).await;
        }
        self.evaluate(chain, now())
    }

    /// Whether signatures on lists and answers about this chain could be verified: its authorities have been seen, by
    /// this process.
    pub(crate) fn knows_authorities_of(&self, chain: &VerifiedChain) -> bool {
        let checks_nothing = !self.looks_at_crls() && self.ocsp == OcspScope::Off;
        checks_nothing
            || chain
                .certificates()
                .iter()
                .all(|certificate| self.revocation.shared.issuers.get(&certificate.issuer).is_some())
    }

    /// What is certain is an error, what is not known is handed back.
    fn look(&self, chain: &VerifiedChain, now: i64) -> Result<Open, ChainError> {
        if !self.anchors.load().contains(&chain.anchor()) {
            return Err(ChainError::UnknownCa);
        }
        if chain.certificates().len() > self.depth + 1 {
            return Err(ChainError::TooLong);
        }
        let mut open = Open::default();
        for (position, certificate) in chain.certificates().iter().enumerate() {
            if now > certificate.not_after {
                return Err(ChainError::Expired);
            }
            if now < certificate.not_before {
                return Err(ChainError::NotYetValid);
            }
            match self.crl_status(certificate, position > 0, now) {
                // Said at once: it counts more than a list that is missing further down.
                Some(Status::Revoked) => return Err(ChainError::Revoked),
                Some(Status::Stale) => open.crl = Some(ChainError::CrlExpired),
                Some(Status::Unknown) => open.crl = Some(ChainError::CrlMissing),
                Some(Status::Good) | None => {}
            }
            if self.asks_about(position) {
                match self.revocation.statuses.get(certificate.issuer, certificate.serial, now) {
                    Some((OcspStatus::Revoked, _)) => return Err(ChainError::Revoked),
                    Some((OcspStatus::Good, age)) => open.is_old |= age >= self.refresh,
                    Some((OcspStatus::Unknown, _)) | None => open.ocsp = Some(ChainError::OcspMissing),
                }
            }
        }
        Ok(open)
    }

    fn looks_at_crls(&self) -> bool {
        self.follows_names || !self.sources.is_empty()
    }

    /// `None`: CRLs are not looked at.
    fn crl_status(&self, certificate: &ChainCertificate, is_authority: bool, now: i64) -> Option<Status> {
        if !self.looks_at_crls() {
            return None;
        }
        let (mut sure, mut perhaps) = (Status::Unknown, None);
        let mut tell = |coverage, status| match coverage {
            // Of lists of several places, each has to be there and to say so.
            Coverage::Perhaps if status != Status::Revoked => perhaps = perhaps.min(Some(status)).or(Some(status)),
            _ => sure = sure.max(status),
        };
        self.sources.iter().for_each(|source| source.tell(certificate, is_authority, now, &mut tell));
        if self.follows_names {
            let urls = certificate.distribution_points.iter().flatten();
            let named = urls.filter_map(|url| self.revocation.named(url));
            named.for_each(|source| source.tell(certificate, is_authority, now, &mut tell));
        }
        if self.sources.iter().any(|source| source.is_empty()) {
            perhaps = perhaps.min(Some(Status::Unknown));
        }
        Some(sure.max(perhaps.unwrap_or(Status::Unknown)))
    }

    fn asks_about(&self, position: usize) -> bool {
        match self.ocsp {
            OcspScope::Off => false,
            OcspScope::Leaf => position == 0,
            OcspScope::Chain => true,
        }
    }

    /// Begins to fetch the CRLs that the chain names and that are not there.
    fn fetch_named(&self, chain: &VerifiedChain) -> Vec<impl Future<Output = ()>> {
        let mut fetching = Vec::new();
        for (position, certificate) in chain.certificates().iter().enumerate() {
            if !self.follows_names || self.crl_status(certificate, position > 0, now()) >= Some(Status::Good) {
                continue;
            }
            for url in certificate.distribution_points.iter().flatten().filter(|url| is_url(url)) {
                let Some(source) = self.revocation.name(url, self.refresh) else { continue };
                fetching.push(source.fetch_first());
            }
        }
        fetching
    }

    /// Begins to ask OCSP responders about the certificates of the chain that nothing is known of.
    fn ask_responders(&self, chain: &VerifiedChain) -> Vec<JoinHandle<()>> {
        let asked = chain.certificates().iter().enumerate().filter(|(position, _)| self.asks_about(*position));
        let ask = |(_, certificate): (usize, &ChainCertificate)| {
            let responder = self.ocsp_responder.as_ref().or(certificate.responder.as_ref());
            let responder = responder.filter(|url| is_url(url))?.clone();
            let issuer = self.revocation.shared.issuers.get(&certificate.issuer)?;
            let (revocation, serial, refresh) = (Arc::clone(&self.revocation), certificate.serial, self.refresh);
            Some(tokio::spawn(async move {
                revocation.statuses.ask(&revocation.shared.fetcher, serial, issuer, &responder, refresh).await;
            }))
        };
        asked.filter_map(ask).collect()
    }
}

fn open_sources(
    origins: &[Setting<CrlOrigin>],
    refresh: Duration,
    revocation: &RevocationStore,
    diagnostics: &mut Diagnostics,
) -> Vec<Arc<Source>> {
    let open = |origin: &Setting<CrlOrigin>| match &origin.value {
        CrlOrigin::Url(url) => {
            let source = revocation.source(Origin::Url(url.clone()));
            source.refresh_every(refresh);
            source
        }
        CrlOrigin::File(path) => {
            let source = revocation.source(Origin::File(path.clone()));
            // The problem is reported below, even if it is not a new one.
            let _ = source.read_if_changed(true);
            if let Some(problem) = source.problem() {
                diagnostics.error(origin, problem);
            }
            source
        }
    };
    origins.iter().map(open).collect()
}
