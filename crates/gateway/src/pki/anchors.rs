//! The trust anchors of a listener. Enters: a PEM bundle. Leaves: parsed anchors, their issuer IDs and expiry times.

use std::path::Path;

use rustls::DistinguishedName;
use rustls::pki_types::TrustAnchor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::IssuerId;
use super::revocation::RevocationStore;
use crate::config::Complaint;
use crate::files::{check_anchor, read_chain};

/// The trust anchors of a bundle, in its order.
#[derive(Debug)]
pub struct Anchors {
    list: Vec<TrustAnchor<'static>>,
    ids: Vec<IssuerId>,
    subjects: Vec<DistinguishedName>,
    /// Subject and notAfter of each, in seconds since 1970.
    expiries: Vec<(String, i64)>,
}

impl Anchors {
    pub(super) fn read(path: &Path, revocation: &RevocationStore) -> Result<Self, Complaint> {
        let not_an_anchor = |what: &str| Complaint::new(format!("{}: not a trust anchor: {what}", path.display()));
        let ders = read_chain(path)?;
        let (mut list, mut ids, mut expiries) = (Vec::new(), Vec::new(), Vec::new());
        for der in &ders {
            check_anchor(path, der)?;
            let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| not_an_anchor(&error.to_string()))?;
            let (_, certificate) = X509Certificate::from_der(der).map_err(|_| not_an_anchor("it cannot be parsed"))?;
            expiries.push((certificate.subject().to_string(), certificate.validity().not_after.timestamp()));
            ids.push(IssuerId::of(&certificate));
            list.push(anchor.to_owned());
        }
        // Only after the whole bundle has been parsed: a rejected bundle must leave no trace.
        ders.iter().for_each(|der| revocation.add_issuer(der));
        let subjects = list.iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        Ok(Self { list, ids, subjects, expiries })
    }

    /// The subject names, sent to clients as a hint [RFC 8446, 4.2.4].
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    /// Subject and notAfter of each, in seconds since 1970.
    pub fn expiries(&self) -> &[(String, i64)] {
        &self.expiries
    }

    pub(super) fn list(&self) -> &[TrustAnchor<'static>] {
        &self.list
    }

    pub(super) fn contains(&self, id: &IssuerId) -> bool {
        self.ids.contains(id)
    }

    pub(super) fn are_same(&self, other: &Self) -> bool {
        self.ids == other.ids
    }

    pub(super) fn id_of(&self, anchor: &TrustAnchor<'_>) -> Option<IssuerId> {
        let is_it = |other: &TrustAnchor<'_>| {
            other.subject == anchor.subject && other.subject_public_key_info == anchor.subject_public_key_info
        };
        self.list.iter().position(is_it).map(|position| self.ids[position])
    }
}
