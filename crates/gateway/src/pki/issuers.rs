//! The CA certificates this process has seen: trust anchors, and intermediates that devices presented. Their keys verify
//! the signatures of CRLs and OCSP responses.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::IssuerId;

/// A CA certificate.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) id: IssuerId,
    pub(super) der: Box<[u8]>,
}

impl Issuer {
    /// `None` if the certificate cannot be parsed.
    pub(super) fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self { id: IssuerId::of(&certificate), der: der.into() })
    }

    /// Whether it is this certificate, byte for byte. A CA may have several with the same name and key.
    pub(super) fn is_certificate(&self, der: &[u8]) -> bool {
        *self.der == *der
    }

    fn certificate(&self) -> Option<X509Certificate<'_>> {
        X509Certificate::from_der(&self.der).ok().map(|(_, certificate)| certificate)
    }

    /// Whether its subject is `name`, in DER.
    pub(super) fn is_named(&self, name: &[u8]) -> bool {
        self.certificate().is_some_and(|certificate| certificate.subject().as_raw() == name)
    }

    /// Its subject as text, in the order of the certificate.
    pub(super) fn name(&self) -> Option<String> {
        self.certificate().map(|certificate| certificate.subject().to_string())
    }

    pub(super) fn may_sign_crls(&self) -> bool {
        self.certificate().is_some_and(|certificate| may_sign_crls(&certificate))
    }
}

/// More CAs than any fleet has. CRLs of CAs beyond it count for nothing, so that devices of theirs are rejected where
/// CRLs are required.
const MAX_ISSUERS: usize = 4096;

/// All known CA certificates, by name and key. Read in each handshake, written when a new CA is seen.
#[derive(Debug, Default)]
pub(super) struct Issuers(ArcSwap<HashMap<IssuerId, Arc<Issuer>>>);

impl Issuers {
    pub(super) fn get(&self, id: &IssuerId) -> Option<Arc<Issuer>> {
        self.0.load().get(id).cloned()
    }

    /// Whether adding `issuer` would change nothing. Of several certificates of one CA, one that may sign CRLs replaces
    /// one that may not.
    pub(super) fn has_equivalent(&self, issuer: &Issuer) -> bool {
        let known = self.0.load();
        known.get(&issuer.id).is_some_and(|known| known.may_sign_crls() || !issuer.may_sign_crls())
    }

    /// Adds a CA certificate whose chain ends at a trust anchor.
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

/// Whether the key usage allows signing CRLs [RFC 5280, 4.2.1.3]. A certificate without key usage may.
fn may_sign_crls(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign()))
}
