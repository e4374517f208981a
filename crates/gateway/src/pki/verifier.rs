//! Verifies a device's certificate chain at the handshake, and evaluates it again while the device is connected.
//! Enters: a chain as the device presented it, or one that was verified before. Leaves: `Ok` or a [`ChainError`]. Never
//! here: a handshake or a session. Only [`ChainVerifier::check_revocation`] and background fetches wait for a network.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::task::JoinHandle;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::anchors::Anchors;
use super::chain::{ChainCertificate, VerifiedChain};
use super::crl::Coverage;
use super::ocsp::OcspStatus;
use super::parsed::verified_chain;
use super::revocation::RevocationStore;
use super::source::{Origin, Source, Status};
use crate::config::tables::{ClientCertificates, CrlOrigin, OcspScope, OnFailure};
use crate::config::{Complaint, Diagnostics, Reported, Setting};
use crate::outcome::{ChainError, describe_webpki, note_detail};
use crate::peer::Certificate;
use crate::refresh::FromFiles;
use crate::util::clock::{now, rfc3339};
use crate::util::url::is_url;

/// The trust anchors and revocation settings of one listener.
#[derive(Debug)]
pub struct ChainVerifier {
    revocation: Arc<RevocationStore>,
    anchors: FromFiles<Anchors>,
    /// Whether clients are sent the names of the anchors.
    sends_names: bool,
    depth: usize,
    /// The CRL files and URLs of the configuration.
    sources: Vec<Arc<Source>>,
    /// Whether CRLs are fetched from the distribution points that certificates name.
    follows_names: bool,
    crl_missing: OnFailure,
    refresh: Duration,
    ocsp: OcspScope,
    ocsp_responder: Option<String>,
    ocsp_failure: OnFailure,
    ocsp_timeout: Duration,
}

/// What could not be decided about a chain from the CRLs and OCSP responses at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unresolved {
    crl: Option<ChainError>,
    ocsp: Option<ChainError>,
    /// Every certificate has a valid OCSP response, but one of them is due to be fetched again.
    is_old: bool,
}

impl ChainVerifier {
    /// Reads the files of the settings.
    ///
    /// # Errors
    /// A file cannot be used; the problem was reported.
    pub(crate) fn open(
        settings: &ClientCertificates,
        revocation: &Arc<RevocationStore>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let ClientCertificates { ca, send_names, verify_depth, crl, ocsp, refresh, .. } = settings;
        let learn = Arc::clone(revocation);
        let anchors = FromFiles::open("client_ca", ca.value.clone(), move |path| Anchors::read(path, &learn));
        let sources = open_sources(&crl.origins, *refresh, revocation, diagnostics);
        let anchors = anchors.map_err(|complaint| diagnostics.error(ca, complaint))?;
        let fetches =
            crl.distribution_points || crl.origins.iter().any(|origin| matches!(origin.value, CrlOrigin::Url(_)));
        if crl.missing == OnFailure::Refuse && !fetches && !diagnostics.has_errors() {
            warn_of_missing_crls(&anchors.load(), &sources, ca, diagnostics);
        }
        for (subject, not_after) in anchors.load().expiries().iter().filter(|(_, not_after)| *not_after < now()) {
            let message =
                format!("`{subject}` expired at {}, so every device under it is rejected", rfc3339(*not_after));
            diagnostics.warning(ca, message);
        }
        if *send_names && !anchors.load().names_fit() {
            let message = "the names of these authorities do not fit into the handshake, so none are sent";
            let hint = "clients that choose a certificate by these names may send none; send_ca_names = false";
            diagnostics.warning(ca, Complaint::new(message).hint(hint));
        }
        Ok(Self {
            revocation: Arc::clone(revocation),
            anchors,
            sends_names: *send_names,
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

    /// Fetches the configured CRL URLs for the first time. Call it before the first handshake. Returns within
    /// `ocsp_timeout`, whether the fetches succeed or not.
    pub(crate) async fn prepare(&self) {
        let fetch = self.sources.iter().cloned().map(Source::fetch_first);
        // Fetches that take longer continue in the background.
        let _ = tokio::time::timeout(self.ocsp_timeout, join_all(fetch)).await;
    }

    /// Whether clients are sent the names of the anchors.
    pub(crate) const fn sends_names(&self) -> bool {
        self.sends_names
    }

    /// The trust anchors in use.
    pub fn anchors(&self) -> Arc<Anchors> {
        Arc::clone(&self.anchors.load())
    }

    /// Reads the trust anchors again if their file has changed, and logs the result. Returns whether the anchors
    /// differ.
    pub(crate) fn read_if_changed(&self, listener: &str) -> bool {
        let before = self.anchors();
        self.anchors.read_if_changed(listener) && !self.anchors.load().are_same(&before)
    }

    /// Verifies a chain as the device presented it: signatures up to a trust anchor, validity, purpose, depth [RFC
    /// 5280, 6.1]. Revocation remains for [`ChainVerifier::evaluate`]. Returns the chain and the device's own
    /// certificate.
    ///
    /// # Errors
    /// Why the chain is rejected.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(VerifiedChain, Arc<Certificate>), ChainError> {
        let anchors = self.anchors.load();
        let explain = |error: &webpki::Error| note_detail(&self.explain(error, leaf, rest, now));
        let parsed = EndEntityCert::try_from(leaf).inspect_err(explain)?;
        let path = anchors.trusted().verify(&parsed, rest, self.depth, KeyUsage::client_auth(), now);
        let path = path.inspect_err(explain)?;
        let mut certificates = vec![parsed.der()];
        certificates.extend(path.intermediate_certificates().map(webpki::Cert::der));
        let anchor = anchors.id_of(path.anchor()).ok_or(ChainError::UnknownCa)?;
        let (chain, leaf) = verified_chain(&certificates, anchor)?;
        let chain = chain.constrained(anchors.trusted().constraints_of(path.anchor(), now));
        for (authority, certificate) in certificates.iter().skip(1).zip(chain.certificates()) {
            let known = self.revocation.shared.issuers.get(&certificate.issuer);
            if known.is_none_or(|known| !known.is_certificate(authority)) {
                self.revocation.add_issuer(authority);
            }
        }
        Ok((chain, leaf))
    }

    /// Why a chain is rejected, for the log.
    fn explain(
        &self,
        error: &webpki::Error,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> String {
        let parse = |der| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
        let Some(leaf) = parse(leaf) else { return describe_webpki(error) };
        let rest: Vec<_> = rest.iter().filter_map(|der| parse(der)).collect();
        match error {
            webpki::Error::CertExpired { .. } => {
                let at = now.as_secs().cast_signed();
                let has_expired = |it: &&X509Certificate<'_>| it.validity().not_after.timestamp() < at;
                let presented = std::iter::once(&leaf).chain(&rest).find(has_expired);
                let anchors = self.anchors.load();
                let expired = || anchors.expiries().iter().find(|(_, not_after)| *not_after < at);
                let (subject, not_after) = match presented {
                    Some(it) => (it.subject().to_string(), it.validity().not_after.timestamp()),
                    None => expired().cloned().unwrap_or_default(),
                };
                format!("`{subject}` expired at {}", rfc3339(not_after))
            }
            webpki::Error::CertNotValidYet { .. } => {
                let at = now.as_secs().cast_signed();
                let is_early = |it: &&X509Certificate<'_>| it.validity().not_before.timestamp() > at;
                match std::iter::once(&leaf).chain(&rest).find(is_early) {
                    Some(it) => {
                        let from = rfc3339(it.validity().not_before.timestamp());
                        format!("`{}` is valid from {from} on; check the clocks", it.subject())
                    }
                    None => describe_webpki(error),
                }
            }
            webpki::Error::UnknownIssuer if leaf.issuer() == leaf.subject() => {
                "it is self-signed; to accept it, pin its key: [listener.tls.raw_keys] with `certificates = true`"
                    .to_owned()
            }
            webpki::Error::UnknownIssuer => {
                // The end of the chain as far as it was sent.
                let mut last = &leaf;
                for _ in 0..rest.len() {
                    let Some(next) = rest.iter().find(|it| it.subject() == last.issuer()) else { break };
                    last = next;
                }
                let issuer = last.issuer();
                format!(
                    "the client did not send the certificate of the issuer `{issuer}`, and it is not in `client_ca`"
                )
            }
            error => describe_webpki(error),
        }
    }

    /// Evaluates a verified chain by the trust anchors, CRLs and OCSP responses at hand: at a handshake, at resumption,
    /// and when one of them has changed while the device is connected. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Why the chain is rejected.
    pub fn evaluate(&self, chain: &VerifiedChain, now: i64) -> Result<(), ChainError> {
        let unresolved = self.evaluate_known(chain, now)?;
        match (unresolved.crl, unresolved.ocsp) {
            (Some(error), _) if self.crl_missing == OnFailure::Refuse => Err(error),
            (_, Some(error)) if self.ocsp_failure == OnFailure::Refuse => Err(error),
            _ => Ok(()),
        }
    }

    /// As [`ChainVerifier::evaluate`], but accepts a chain whose CRL or OCSP response is missing if
    /// [`ChainVerifier::check_revocation`] can still fetch it.
    ///
    /// # Errors
    /// Why the chain is rejected.
    pub(crate) fn evaluate_provisionally(&self, chain: &VerifiedChain, now: i64) -> Result<(), ChainError> {
        match self.evaluate(chain, now) {
            Err(ChainError::CrlMissing | ChainError::CrlExpired) if self.follows_names => {
                self.evaluate_known(chain, now).map(drop)
            }
            Err(ChainError::OcspMissing) => Ok(()),
            verdict => verdict,
        }
    }

    /// Fetches the missing CRLs and OCSP responses for a chain, then evaluates it. Call it after the handshake and
    /// before the device is served. Returns within `ocsp_timeout`.
    ///
    /// # Errors
    /// Why the chain is rejected.
    pub async fn check_revocation(&self, chain: &VerifiedChain) -> Result<(), ChainError> {
        let open = self.evaluate_known(chain, now())?;
        if open != Unresolved::default() {
            // A fetch that exceeds the timeout continues: its result serves the next connection.
            let asking = join(join_all(self.fetch_named(chain)), join_all(self.request_statuses(chain)));
            let _ = tokio::time::timeout(self.ocsp_timeout, asking).await;
        }
        self.evaluate(chain, now())
    }

    /// Whether this process has the issuer certificates of the chain, so that it can verify the signatures on their
    /// CRLs and OCSP responses. A resumed session carries no certificates.
    pub(crate) fn knows_issuers_of(&self, chain: &VerifiedChain) -> bool {
        let checks_nothing = !self.checks_crls() && self.ocsp == OcspScope::Off;
        checks_nothing
            || chain
                .certificates()
                .iter()
                .all(|certificate| self.revocation.shared.issuers.get(&certificate.issuer).is_some())
    }

    /// Evaluates without the settings for missing CRLs and OCSP responses: definite failures are errors, missing status
    /// is returned.
    fn evaluate_known(&self, chain: &VerifiedChain, now: i64) -> Result<Unresolved, ChainError> {
        self.anchors.load().check(chain, now)?;
        if chain.certificates().len() > self.depth + 1 {
            return Err(ChainError::TooLong);
        }
        let mut unresolved = Unresolved::default();
        for (position, certificate) in chain.certificates().iter().enumerate() {
            if now > certificate.not_after {
                return Err(ChainError::Expired);
            }
            if now < certificate.not_before {
                return Err(ChainError::NotYetValid);
            }
            match self.crl_status(certificate, position > 0, now) {
                // Returned at once: revocation takes precedence over a CRL that is missing further up the chain.
                Some(Status::Revoked) => return Err(self.revoked(certificate, position, "the CRL")),
                Some(Status::Stale) => {
                    note_detail(&format!("the CRL of {} is out of date", self.name_of(certificate)));
                    unresolved.crl = Some(ChainError::CrlExpired);
                }
                Some(Status::Unknown) => {
                    note_detail(&format!("there is no CRL of {}", self.name_of(certificate)));
                    unresolved.crl = Some(ChainError::CrlMissing);
                }
                Some(Status::Good) | None => {}
            }
            if self.checks_ocsp(position) {
                match self.revocation.statuses.get(certificate.issuer, certificate.serial, now) {
                    Some((OcspStatus::Revoked, _)) => {
                        return Err(self.revoked(certificate, position, "the OCSP responder"));
                    }
                    Some((OcspStatus::Good, age)) => unresolved.is_old |= age >= self.refresh,
                    Some((OcspStatus::Unknown, _)) | None => unresolved.ocsp = Some(ChainError::OcspMissing),
                }
            }
        }
        Ok(unresolved)
    }

    /// Notes which certificate of a chain is revoked.
    fn revoked(&self, certificate: &ChainCertificate, position: usize, source: &str) -> ChainError {
        let which = if position == 0 { "its certificate" } else { "an intermediate" };
        let (serial, issuer) = (hex::encode_upper(certificate.serial.octets()), self.name_of(certificate));
        note_detail(&format!("{source} of {issuer} lists {which}, serial number {serial}"));
        ChainError::Revoked
    }

    /// The name of a certificate's issuer, for the log.
    fn name_of(&self, certificate: &ChainCertificate) -> String {
        let name = self.revocation.name_of(&certificate.issuer);
        name.map_or_else(|| "an issuer".to_owned(), |name| format!("`{name}`"))
    }

    fn checks_crls(&self) -> bool {
        self.follows_names || !self.sources.is_empty()
    }

    /// The certificate's status by CRLs; `None` if the listener checks none.
    fn crl_status(&self, certificate: &ChainCertificate, is_ca: bool, now: i64) -> Option<Status> {
        if !self.checks_crls() {
            return None;
        }
        let (mut full, mut partial) = (Status::Unknown, None);
        let mut report = |coverage, status| match coverage {
            // CRLs of several distribution points: each must exist and report the certificate as good.
            Coverage::Possible if status != Status::Revoked => partial = partial.min(Some(status)).or(Some(status)),
            _ => full = full.max(status),
        };
        self.sources.iter().for_each(|source| source.each_status(certificate, is_ca, now, &mut report));
        if self.follows_names {
            let urls = certificate.distribution_points.iter().flatten();
            let named = urls.filter_map(|url| self.revocation.named(url));
            named.for_each(|source| source.each_status(certificate, is_ca, now, &mut report));
        }
        if self.sources.iter().any(|source| source.is_empty()) {
            partial = partial.min(Some(Status::Unknown));
        }
        Some(full.max(partial.unwrap_or(Status::Unknown)))
    }

    fn checks_ocsp(&self, position: usize) -> bool {
        match self.ocsp {
            OcspScope::Off => false,
            OcspScope::Leaf => position == 0,
            OcspScope::Chain => true,
        }
    }

    /// Starts to fetch the missing CRLs that the chain's certificates name.
    fn fetch_named(&self, chain: &VerifiedChain) -> Vec<impl Future<Output = ()>> {
        let mut fetching = Vec::new();
        for (position, certificate) in chain.certificates().iter().enumerate() {
            if !self.follows_names || self.crl_status(certificate, position > 0, now()) >= Some(Status::Good) {
                continue;
            }
            for url in certificate.distribution_points.iter().flatten().filter(|url| is_url(url)) {
                let Some(source) = self.revocation.get_or_add_named(url, self.refresh) else { continue };
                fetching.push(source.fetch_first());
            }
        }
        fetching
    }

    /// Starts OCSP requests for the certificates of the chain.
    fn request_statuses(&self, chain: &VerifiedChain) -> Vec<JoinHandle<()>> {
        let asked = chain.certificates().iter().enumerate().filter(|(position, _)| self.checks_ocsp(*position));
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

/// Warns of trust anchors without a CRL: every chain that ends there is rejected.
fn warn_of_missing_crls(
    anchors: &Anchors,
    sources: &[Arc<Source>],
    ca: &Setting<PathBuf>,
    diagnostics: &mut Diagnostics,
) {
    if sources.is_empty() {
        return;
    }
    for (id, subject) in anchors.names() {
        if !sources.iter().any(|source| source.is_signed_by(id)) {
            let message = format!("`crl` has no list of `{subject}`, so every device under it is rejected");
            let hint = "add the CRL of each authority of the chain, the root included; or crl_missing = \"allow\"";
            diagnostics.warning(ca, Complaint::new(message).hint(hint));
        }
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
            // Reported below, also when an earlier load already reported the same problem.
            let _ = source.read_if_changed(true);
            if let Some(problem) = source.problem() {
                diagnostics.error(origin, problem);
            }
            if let Some(summary) = source.summary().filter(|summary| summary.next_update <= now()) {
                let message = format!("this CRL is out of date since {}", rfc3339(summary.next_update));
                let hint =
                    "let the CA issue a new one: until then, `crl_missing` decides about the devices of its issuer";
                diagnostics.warning(origin, Complaint::new(message).hint(hint));
            }
            source
        }
    };
    origins.iter().map(open).collect()
}
