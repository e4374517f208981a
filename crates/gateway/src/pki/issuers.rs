//! The authorities that are known: trust anchors, and intermediates that devices have shown.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::IssuerId;

/// An authority's certificate.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) id: IssuerId,
    pub(super) der: Box<[u8]>,
}

impl Issuer {
    /// `None`: it cannot be read.
    pub(super) fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self { id: IssuerId::of(&certificate), der: der.into() })
    }

    /// As it was shown; another certificate may be of the same authority.
    pub(super) fn is_certificate(&self, der: &[u8]) -> bool {
        *self.der == *der
    }

    fn certificate(&self) -> Option<X509Certificate<'_>> {
        X509Certificate::from_der(&self.der).ok().map(|(_, certificate)| certificate)
    }

    /// Whether this is its name, in DER.
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.certificate().is_some_and(|certificate| certificate.subject().as_raw() == name)
    }

    /// Its name as text, in the order it is written in.
    pub(super) fn name(&self) -> Option<String> {
        self.certificate().map(|certificate| certificate.subject().to_string())
    }

    pub(super) fn may_sign_lists(&self) -> bool {
        self.certificate().is_some_and(|certificate| may_sign_lists(&certificate))
    }
}

/// More authorities than any fleet has; those beyond have no CRL, so that with CRLs configured their devices are
/// refused.
const MAX_ISSUERS: usize = 4096;

/// All that are known. Read in each handshake, written when a new one is seen.
#[derive(Debug, Default)]
pub(super) struct Issuers(ArcSwap<HashMap<IssuerId, Arc<Issuer>>>);

impl Issuers {
    pub(super) fn get(&self, id: &IssuerId) -> Option<Arc<Issuer>> {
        self.0.load().get(id).cloned()
    }

    /// Whether a certificate of an authority would say nothing new. Of several of one authority, one that may sign lists
    /// counts more than one that may not.
    pub(super) fn knows(&self, issuer: &Issuer) -> bool {
        let known = self.0.load();
        known.get(&issuer.id).is_some_and(|known| known.may_sign_lists() || !issuer.may_sign_lists())
    }

    /// Remembers an authority that a trust anchor vouches for.
    pub(super) fn add(&self, issuer: &Arc<Issuer>) {
        self.0.rcu(|known| {
            let mut known = HashMap::clone(known);
            if known.len() < MAX_ISSUERS || known.contains_key(&issuer.id) {
                known.insert(issuer.id, Arc::clone(issuer));
            }
            known
        });
    }

    pub(super) fn all(&self) -> Arc<HashMap<IssuerId, Arc<Issuer>>> {
        self.0.load_full()
    }
}

/// Whether the certificate says that its key may sign lists [RFC 5280, 4.2.1.3]; one that says nothing may.
fn may_sign_lists(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}
