//! The trust anchors of a listener. Enters: a PEM bundle. Leaves: parsed anchors, their issuer IDs and expiry times.

use std::path::Path;

use rustls::DistinguishedName;
use rustls::pki_types::TrustAnchor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{IssuerId, VerifiedChain};
use super::revocation::RevocationStore;
use crate::config::Complaint;
use crate::files::read_chain;
use crate::outcome::ChainError;
use crate::trust::{Purpose, TrustAnchors};

/// What a CertificateRequest has room for, in bytes: its extensions have a length of two octets [RFC 8446, 4.3.2]. A longer
/// list would make every handshake fail.
const MAX_NAMES_LEN: usize = 65_000;

/// The trust anchors of a bundle, in its order.
#[derive(Debug)]
pub struct Anchors {
    trusted: TrustAnchors,
    ids: Vec<IssuerId>,
    subjects: Vec<DistinguishedName>,
    names_fit: bool,
    /// Subject and notAfter of each, in seconds since 1970.
    expiries: Vec<(String, i64)>,
}

impl Anchors {
    pub(super) fn read(path: &Path, revocation: &RevocationStore) -> Result<Self, Complaint> {
        let (trusted, ders) = (TrustAnchors::read(path, Purpose::Clients)?, read_chain(path)?);
        let (mut ids, mut expiries) = (Vec::new(), Vec::new());
        for (index, der) in ders.iter().enumerate() {
            let parsed = X509Certificate::from_der(der);
            let (_, certificate) = parsed.map_err(|_| Complaint::new(format!("{} changes", path.display())))?;
            expiries.push((certificate.subject().to_string(), trusted.not_after(index)));
            ids.push(IssuerId::of(&certificate));
        }
        if ids.len() != trusted.list().len() {
            return Err(Complaint::new(format!("{} changes while it is read", path.display())));
        }
        // Only after the whole bundle has been parsed: a rejected bundle must leave no trace.
        ders.iter().for_each(|der| revocation.add_issuer(der));
        let mut subjects: Vec<_> =
            trusted.list().iter().map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect();
        // Each name has a length of two octets before it.
        let len: usize = subjects.iter().map(|name| name.as_ref().len() + 2).sum();
        let names_fit = len <= MAX_NAMES_LEN;
        if !names_fit {
            subjects.clear();
        }
        Ok(Self { trusted, ids, subjects, names_fit, expiries })
    }

    /// Whether the subject names fit into the handshake.
    pub(super) const fn names_fit(&self) -> bool {
        self.names_fit
    }

    /// The subject names, sent to clients as a hint [RFC 8446, 4.2.4]; none if they do not fit into the handshake.
    pub fn subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    /// Subject and notAfter of each, in seconds since 1970.
    pub fn expiries(&self) -> &[(String, i64)] {
        &self.expiries
    }

    pub(super) const fn trusted(&self) -> &TrustAnchors {
        &self.trusted
    }

    /// The ID and the subject of each.
    pub(super) fn names(&self) -> impl Iterator<Item = (&IssuerId, &str)> {
        self.ids.iter().zip(self.expiries.iter().map(|(subject, _)| subject.as_str()))
    }

    /// Whether the authority at which a chain ends is an anchor that is valid now, with the constraints by which the chain was
    /// verified; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// It is no anchor, or none that is valid.
    pub(super) fn check(&self, chain: &VerifiedChain, now: i64) -> Result<(), ChainError> {
        let is_it = |index: usize| {
            self.ids[index] == chain.anchor() && self.trusted.constraints(index) == chain.anchor_constraints()
        };
        let same = (0..self.ids.len()).filter(|index| is_it(*index));
        let mut verdicts = same.map(|index| self.trusted.check_validity(index, now));
        let first = verdicts.next().unwrap_or(Err(ChainError::UnknownCa));
        if verdicts.any(|verdict| verdict.is_ok()) { Ok(()) } else { first }
    }

    /// The number of anchors that have expired; `now` is in seconds since 1970.
    pub(crate) fn expired(&self, now: i64) -> usize {
        self.expiries.iter().filter(|(_, not_after)| *not_after < now).count()
    }

    pub(super) fn are_same(&self, other: &Self) -> bool {
        let constraints = |it: &Self| (0..it.ids.len()).map(|index| it.trusted.constraints(index)).collect::<Vec<_>>();
        self.ids == other.ids && constraints(self) == constraints(other)
    }

    pub(super) fn id_of(&self, anchor: &TrustAnchor<'_>) -> Option<IssuerId> {
        let is_it = |other: &TrustAnchor<'_>| {
            other.subject == anchor.subject && other.subject_public_key_info == anchor.subject_public_key_info
        };
        self.trusted.list().iter().position(is_it).map(|position| self.ids[position])
    }
}
