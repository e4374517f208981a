//! What is kept of a verified certificate chain while its device is connected or may resume: enough to evaluate the
//! chain again without its signatures. Enters: a path that webpki verified. Leaves: a [`VerifiedChain`].

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_PKIX_ACCESS_DESCRIPTOR_OCSP, OID_X509_EXT_CRL_DISTRIBUTION_POINTS};
use x509_parser::prelude::X509Certificate;

use crate::util::crypto::sha256;

/// A CA, identified by its name and key. By name alone, a CRL of one CA would cover certificates of another CA with the
/// same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IssuerId([u8; 32]);

impl IssuerId {
    /// From a digest of the CA's name and key.
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The CA whose certificate this is.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        Self(sha256(&[certificate.subject().as_raw(), certificate.public_key().raw].concat()))
    }
}

/// A serial number, as the content of a DER INTEGER without redundant octets. Its sign counts: -5 and 251 are `FB` and
/// `00 FB`. At most 20 octets of value [RFC 5280, 4.1.2.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Serial {
    len: u8,
    octets: [u8; 21],
}

impl Serial {
    /// From the content of a DER INTEGER; `None` if it is empty or too long.
    pub fn new(der: &[u8]) -> Option<Self> {
        let is_redundant = |pair: &&[u8]| {
            matches!(pair, [0, next, ..] if *next < 0x80) || matches!(pair, [0xff, next, ..] if *next >= 0x80)
        };
        let start = (0..der.len()).find(|start| !is_redundant(&&der[*start..]))?;
        let significant = &der[start..];
        if significant.len() > 20 && significant.first() != Some(&0) {
            return None;
        }
        let mut octets = [0; 21];
        octets.get_mut(..significant.len())?.copy_from_slice(significant);
        Some(Self { len: u8::try_from(significant.len()).ok()?, octets })
    }

    /// The content of the DER INTEGER.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }
}

/// One certificate of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainCertificate {
    /// Who issued it.
    pub issuer: IssuerId,
    /// Its serial number.
    pub serial: Serial,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// The URLs of its CRL distribution points [RFC 5280, 4.2.1.13]; `None` if it has no such extension. The URLs may be
    /// malformed.
    pub distribution_points: Option<Vec<String>>,
    /// The URL of its OCSP responder [RFC 5280, 4.2.2.1].
    pub responder: Option<String>,
}

/// The hash of a certificate in indexes. Two certificates may share one, so that a match only selects a session for
/// evaluation.
pub type Key = u64;

impl ChainCertificate {
    /// Its index key.
    pub fn key(&self) -> Key {
        key(&self.issuer, &self.serial)
    }
}

/// The index key of the certificate with this issuer and serial number.
pub(super) fn key(issuer: &IssuerId, serial: &Serial) -> Key {
    let mut hasher = DefaultHasher::new();
    (issuer, serial).hash(&mut hasher);
    hasher.finish()
}

/// A chain whose signatures were verified: from the device's own certificate up to the one that a trust anchor issued.
/// It has at least one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedChain {
    /// SHA-256 of the device's own certificate.
    leaf: [u8; 32],
    /// No larger than needed: it lasts as long as the session.
    certificates: Box<[ChainCertificate]>,
    /// Tells the constraints of the anchor's certificate from others; 0: it has none.
    anchor_constraints: u64,
}

impl VerifiedChain {
    /// Takes the SHA-256 of the device's own certificate, and the certificates from it up to the one that a trust anchor
    /// issued. `None` if `certificates` is empty.
    pub fn new(leaf: [u8; 32], certificates: Vec<ChainCertificate>) -> Option<Self> {
        let certificates = certificates.into_boxed_slice();
        (!certificates.is_empty()).then_some(Self { leaf, certificates, anchor_constraints: 0 })
    }

    /// The chain, verified with these constraints of its anchor.
    pub(super) fn constrained(self, anchor_constraints: u64) -> Self {
        Self { anchor_constraints, ..self }
    }

    /// Whether `leaf`, in DER, is the device's own certificate of this chain.
    pub fn is_of(&self, leaf: &[u8]) -> bool {
        self.leaf == sha256(leaf)
    }

    /// The certificates, the device's own first.
    pub fn certificates(&self) -> &[ChainCertificate] {
        &self.certificates
    }

    /// The issuer of the device's own certificate.
    pub fn issuer(&self) -> IssuerId {
        self.certificates[0].issuer
    }

    /// The trust anchor at which the chain ends.
    pub fn anchor(&self) -> IssuerId {
        self.certificates[self.certificates.len() - 1].issuer
    }

    /// Tells the constraints of the anchor's certificate from others.
    pub(super) const fn anchor_constraints(&self) -> u64 {
        self.anchor_constraints
    }

    /// When the first certificate of the chain expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.certificates.iter().map(|certificate| certificate.not_after).min().unwrap_or(i64::MIN)
    }
}

/// The URLs in a certificate's CRL distribution points; `None` if it has none. Points with a cRLIssuer lead to indirect
/// CRLs, points with reasons to partial ones: neither is supported, so both are left out.
pub(super) fn distribution_points(certificate: &X509Certificate<'_>) -> Option<Vec<String>> {
    let mut extensions = certificate.extensions().iter();
    let extension = extensions.find(|extension| extension.oid == OID_X509_EXT_CRL_DISTRIBUTION_POINTS)?;
    let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() else { return Some(Vec::new()) };
    let plain = points.points.iter().filter(|point| point.crl_issuer.is_none() && point.reasons.is_none());
    Some(plain.flat_map(|point| urls(point.distribution_point.as_ref())).collect())
}

/// The URL of a certificate's first OCSP responder.
pub(crate) fn responder(certificate: &X509Certificate<'_>) -> Option<String> {
    let access = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => Some(access),
        _ => None,
    })?;
    access.accessdescs.iter().find_map(|description| match &description.access_location {
        GeneralName::URI(url) if description.access_method == OID_PKIX_ACCESS_DESCRIPTOR_OCSP => {
            Some((*url).to_owned())
        }
        _ => None,
    })
}

/// The URLs of a distribution point.
pub(super) fn urls(point: Option<&DistributionPointName<'_>>) -> Vec<String> {
    let Some(DistributionPointName::FullName(names)) = point else { return Vec::new() };
    let url = |name: &GeneralName<'_>| match name {
        GeneralName::URI(url) => Some((*url).to_owned()),
        _ => None,
    };
    names.iter().filter_map(url).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_of_a_serial_number_counts() {
        let octets = |der: &[u8]| Serial::new(der).map(|serial| serial.octets().to_vec());
        assert_eq!(octets(&[0xfb]), Some(vec![0xfb]), "-5");
        assert_eq!(octets(&[0, 0xfb]), Some(vec![0, 0xfb]), "251");
        assert_eq!(octets(&[0, 0, 0x7b]), Some(vec![0x7b]));
        assert_eq!(octets(&[0xff, 0xff, 0xfb]), Some(vec![0xfb]));
        assert_eq!((octets(&[0]), octets(&[])), (Some(vec![0]), None));
        assert_eq!(octets(&[0x7f; 20]).map(|octets| octets.len()), Some(20));
        assert_eq!(octets(&[&[0][..], &[0xff; 20]].concat()).map(|octets| octets.len()), Some(21));
        assert_eq!((octets(&[0x7f; 21]), octets(&[&[0][..], &[0xff; 21]].concat())), (None, None));
    }
}
