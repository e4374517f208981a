//! CA certificates, CRLs and OCSP responses, shared by all listeners. Enters: CA certificates, CRL files and URLs.
//! Leaves: the revocation status of certificates, and which of them were revoked since the last call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{IssuerId, Key, Serial, responder};
use super::issuers::Issuer;
use super::ocsp::{OcspStatus, Query};
use super::source::{CrlSummary, Origin, Shared, Source};
use super::statuses::Statuses;
use crate::util::clock::now;
use crate::util::url::is_url;
use crate::util::weak_map::WeakMap;

/// The CA certificates, CRLs and OCSP responses of the process. Survives reloads.
#[derive(Debug, Default)]
pub struct RevocationStore {
    pub(super) shared: Arc<Shared>,
    pub(super) statuses: Arc<Statuses>,
    /// The sources in use: listeners with the same CRL share one.
    sources: WeakMap<Origin, Source>,
    /// The sources that certificates name, by URL. Kept alive, so that a reload does not drop them.
    named: ArcSwap<HashMap<String, Arc<Source>>>,
    /// Held while a CA is added, so that no other thread sees the CA before its CRLs are verified.
    adding: Mutex<()>,
}

/// The limit of CRL URLs taken from certificates, across all CAs.
const MAX_NAMED: usize = 1024;

impl RevocationStore {
    pub(super) fn source(&self, origin: Origin) -> Arc<Source> {
        self.sources.get_or_insert_with(origin.clone(), || Source::of(origin, Arc::clone(&self.shared)))
    }

    /// The existing source of a URL that a certificate names.
    pub(super) fn named(&self, url: &str) -> Option<Arc<Source>> {
        self.named.load().get(url).cloned()
    }

    /// The source of a URL that a certificate names, created on first use. `None`: [`MAX_NAMED`] is reached.
    pub(super) fn get_or_add_named(&self, url: &str, refresh: Duration) -> Option<Arc<Source>> {
        let source = match self.named(url) {
            Some(source) => source,
            None if self.named.load().len() >= MAX_NAMED => return None,
            None => {
                let source = self.source(Origin::Url(url.to_owned()));
                self.named.rcu(|named| {
                    let mut named = HashMap::clone(named);
                    named.insert(url.to_owned(), Arc::clone(&source));
                    named
                });
                source
            }
        };
        source.refresh_every(refresh);
        Some(source)
    }

    /// Adds a CA certificate, and finds the CRLs that it signed.
    pub(super) fn add_issuer(&self, der: &[u8]) {
        let Some(issuer) = Issuer::from_der(der).map(Arc::new) else { return };
        let _adding = self.adding.lock();
        if !self.shared.issuers.has_equivalent(&issuer) {
            // Before other threads can see the CA; and again for CRLs that arrived in between.
            self.sources.values().iter().for_each(|source| source.adopt_signed_by(&issuer));
            self.shared.issuers.add(&issuer);
            self.sources.values().iter().for_each(|source| source.adopt_signed_by(&issuer));
        }
    }

    /// Reads the CRL files that have changed. Returns the problems of those that cannot be used; their last good content
    /// stays in use.
    pub fn read_changed_files(&self) -> Vec<String> {
        self.sources.values().iter().filter_map(|source| source.read_if_changed(false).err()).collect()
    }

    /// The index keys of certificates that were revoked since the last call.
    pub fn take_revoked(&self) -> Vec<Key> {
        let of_crls = self.sources.values().into_iter().flat_map(|source| source.take_revoked());
        of_crls.chain(self.statuses.take_revoked()).collect()
    }

    /// Starts to fetch the CRLs and OCSP responses that are due, in the background. OCSP responses are fetched only for
    /// certificates that `is_live`.
    pub fn fetch_due(self: &Arc<Self>, is_live: impl Fn(Key) -> bool) {
        self.sources.values().iter().for_each(Source::fetch_again);
        for entry in self.statuses.due(is_live) {
            let this = Arc::clone(self);
            tokio::spawn(async move { entry.ask(&this.shared.fetcher).await });
        }
    }

    /// Requests the OCSP response about the gateway's own certificate from the responder that the certificate names.
    /// Returns the response in DER and its nextUpdate in seconds since 1970. Only a status of `good` is returned:
    /// a stapled `revoked` or `unknown` would only make clients disconnect.
    ///
    /// # Errors
    /// Why there is no such response.
    pub(crate) async fn ocsp_answer_about(&self, leaf: &[u8], issuer: &[u8]) -> Result<(Vec<u8>, i64), String> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| "the certificate cannot be parsed")?;
        let url = responder(&certificate).filter(|url| is_url(url));
        let url = url.ok_or("the certificate names no OCSP responder")?;
        let serial =
            Serial::new(certificate.raw_serial()).ok_or("the certificate's serial number exceeds 20 octets")?;
        let question = Query::new(&serial, issuer).ok_or("cannot build an OCSP request for the certificate")?;
        let bytes = self
            .shared
            .fetcher
            .post_ocsp(&url, question.der.clone())
            .await
            .map_err(|error| format!("{url}: {error}"))?;
        let answer = question.answer(&bytes, issuer, now()).map_err(|error| format!("{url}: {error}"))?;
        match answer.status {
            OcspStatus::Good => Ok((bytes.to_vec(), answer.next_update)),
            status => Err(format!("{url}: the responder reports the gateway's own certificate as {status:?}")),
        }
    }

    /// The subject of a CA, in the form of `cert.issuer.dn`.
    pub fn name_of(&self, issuer: &IssuerId) -> Option<String> {
        self.shared.issuers.get(issuer)?.name()
    }

    /// The CRLs in use.
    pub fn crls(&self) -> Vec<CrlSummary> {
        self.sources.values().iter().filter_map(|source| source.summary()).collect()
    }
}
