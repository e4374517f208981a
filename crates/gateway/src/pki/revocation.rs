//! What is known of authorities, their lists and their answers, by whichever listener it was learned.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{IssuerId, Key, Serial, responder};
use super::issuers::Issuer;
use super::ocsp::{OcspStatus, Question};
use super::source::{CrlNote, Origin, Shared, Source};
use super::statuses::Statuses;
use crate::util::clock::now;
use crate::util::url::is_url;
use crate::util::weak_map::WeakMap;

/// What is known. Outlives reloads.
#[derive(Debug, Default)]
pub struct RevocationStore {
    pub(super) shared: Arc<Shared>,
    pub(super) statuses: Arc<Statuses>,
    /// Those in use, so that listeners share them.
    sources: WeakMap<Origin, Source>,
    /// Those that certificates have named, by URL. They stay: a reload is not to forget them.
    named: ArcSwap<HashMap<String, Arc<Source>>>,
    /// Held while an authority is being learned, so that nobody finds it known and its lists not.
    learning: Mutex<()>,
}

/// URLs that certificates may name, of all authorities together.
const MAX_NAMED: usize = 1024;

impl RevocationStore {
    pub(super) fn source(&self, origin: Origin) -> Arc<Source> {
        self.sources.get_or_insert_with(origin.clone(), || Source::of(origin, Arc::clone(&self.shared)))
    }

    /// The source of a URL that a certificate names, if it is known.
    pub(super) fn named(&self, url: &str) -> Option<Arc<Source>> {
        self.named.load().get(url).cloned()
    }

    /// The source of a URL that a certificate names; `None`: there are too many.
    pub(super) fn name(&self, url: &str, refresh: Duration) -> Option<Arc<Source>> {
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

    /// Remembers an authority, and which lists it has signed.
    pub(super) fn learn(&self, der: &[u8]) {
        let Some(issuer) = Issuer::from_der(der).map(Arc::new) else { return };
        let _learning = self.learning.lock();
        if !self.shared.issuers.knows(&issuer) {
            // Before anybody finds it known; and again, for lists that have come meanwhile.
            self.sources.values().iter().for_each(|source| source.learn(&issuer));
            self.shared.issuers.add(&issuer);
            self.sources.values().iter().for_each(|source| source.learn(&issuer));
        }
    }

    /// Reads the CRL files that have changed. Returns what is wrong with those that cannot be used, of which the last good
    /// content stays.
    pub fn read_changed_files(&self) -> Vec<String> {
        self.sources.values().iter().filter_map(|source| source.read_if_changed(false).err()).collect()
    }

    /// The keys of certificates that were found to be revoked since this was asked last.
    pub fn take_revoked(&self) -> Vec<Key> {
        let of_lists = self.sources.values().into_iter().flat_map(|source| source.take_revoked());
        of_lists.chain(self.statuses.take_revoked()).collect()
    }

    /// Fetches again, in the background, the CRLs and OCSP answers whose time has come; of the answers those of
    /// certificates that `is_live`.
    pub fn fetch_due(self: &Arc<Self>, is_live: impl Fn(Key) -> bool) {
        self.sources.values().iter().for_each(Source::fetch_again);
        for entry in self.statuses.due(is_live) {
            let this = Arc::clone(self);
            tokio::spawn(async move { entry.ask(&this.shared.fetcher).await });
        }
    }

    /// Asks the responder that a certificate names about it; returns the answer in DER, and when it ceases to count, in
    /// seconds since 1970. The answer is good: there is nothing to be gained from showing another one.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub(crate) async fn ocsp_answer_about(&self, leaf: &[u8], issuer: &[u8]) -> Result<(Vec<u8>, i64), String> {
        let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| "the certificate cannot be read")?;
        let url = responder(&certificate).filter(|url| is_url(url));
        let url = url.ok_or("the certificate names no responder")?;
        let serial = Serial::new(certificate.raw_serial()).ok_or("the certificate's number is too long")?;
        let question = Question::about(&serial, issuer).ok_or("the certificate cannot be asked about")?;
        let bytes = self
            .shared
            .fetcher
            .post_ocsp(&url, question.der.clone())
            .await
            .map_err(|error| format!("{url}: {error}"))?;
        let answer = question.answer(&bytes, issuer, now()).map_err(|error| format!("{url}: {error}"))?;
        match answer.status {
            OcspStatus::Good => Ok((bytes.to_vec(), answer.next_update)),
            status => Err(format!("{url}: the gateway's own certificate is {status:?}")),
        }
    }

    /// The name of an authority, as expressions have it.
    pub fn name_of(&self, issuer: &IssuerId) -> Option<String> {
        self.shared.issuers.get(issuer)?.name()
    }

    /// The CRLs in use.
    pub fn crls(&self) -> Vec<CrlNote> {
        self.sources.values().iter().filter_map(|source| source.note()).collect()
    }
}
