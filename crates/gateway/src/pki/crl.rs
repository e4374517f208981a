//! Certificate revocation lists [RFC 5280, 5]. Enters: bytes of a file or of an answer. Leaves: who is revoked, for
//! whom the list speaks, and until when.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use webpki::BorrowedCertRevocationList;
use x509_parser::der_parser::asn1_rs::{Any, Class};
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::chain::IssuerId;
use super::chain::{ChainCertificate, Key, Serial, key, urls};
use super::issuers::Issuer;
use super::signature::Signed;

/// One list. It counts only once its signer is known: see [`Crl::learn`].
#[derive(Debug)]
pub(super) struct Crl {
    der: Box<[u8]>,
    /// The issuer's name, in DER.
    issuer: Box<[u8]>,
    /// Rises with each list of an issuer and scope. Big-endian, without leading zeros.
    number: Box<[u8]>,
    /// Seconds since 1970.
    pub(super) this_update: i64,
    /// Seconds since 1970; the list says nothing good of anybody from then on.
    pub(super) next_update: i64,
    scope: Scope,
    /// In order.
    revoked: Box<[Serial]>,
    /// The authority whose signature it has; not known at first.
    signer: OnceLock<IssuerId>,
}

/// For which certificates of its issuer a list speaks [RFC 5280, 5.2.5].
#[derive(Debug, Default, PartialEq, Eq)]
struct Scope {
    only_user_certificates: bool,
    only_authorities: bool,
    /// If there are any, only for certificates that name one of them.
    distribution_points: Vec<String>,
}

/// How a list comes to speak for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// It does not.
    None,
    /// It is a list of one place among others, and the certificate does not say which place is its.
    Perhaps,
    Full,
}

impl Crl {
    /// Reads all lists of a file: PEM, or one in DER.
    ///
    /// # Errors
    /// What is wrong with it, in a few words; more than `max` are wrong, too.
    pub(super) fn read(bytes: &[u8], max: usize) -> Result<Vec<Self>, String> {
        if bytes.first() == Some(&0x30) {
            return Ok(vec![Self::from_der(bytes)?]);
        }
        let ders = CertificateRevocationListDer::pem_slice_iter(bytes).take(max + 1);
        let ders: Result<Vec<_>, _> = ders.collect();
        let ders = ders.map_err(|error| format!("no PEM and no DER: {error}"))?;
        match ders.len() {
            0 => Err("no CRL in it: neither `-----BEGIN X509 CRL-----` nor DER".to_owned()),
            count if count > max => Err(format!("more than {max} CRLs")),
            _ => ders.iter().map(|der| Self::from_der(der)).collect(),
        }
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        // webpki refuses what it does not understand: deltas, indirect lists, unknown critical extensions.
        let list = BorrowedCertRevocationList::from_der(der).map_err(explain)?;
        let mut revoked = Vec::new();
        for entry in &list {
            let entry = entry.map_err(explain)?;
            revoked.push(Serial::new(entry.serial_number).ok_or("a serial number of more than 20 octets")?);
        }
        revoked.sort_unstable();
        revoked.dedup();
        let head = Head::read(der).ok_or("a CRL whose head or scope cannot be read")?;
        Ok(Self {
            der: der.into(),
            issuer: head.issuer.into(),
            number: head.number.iter().copied().skip_while(|octet| *octet == 0).collect(),
            this_update: head.this_update,
            next_update: head.next_update,
            scope: head.scope,
            revoked: revoked.into(),
            signer: OnceLock::new(),
        })
    }

    /// Finds out whether this authority has signed the list; nobody else can have, then.
    pub(super) fn learn(&self, issuer: &Issuer) {
        if self.signer.get().is_none()
            && issuer.is_named(&self.issuer)
            && issuer.may_sign_lists()
            && Signed::from_der(&self.der).is_some_and(|signed| signed.is_by(&issuer.der))
        {
            // Somebody else may have found out at the same time.
            let _ = self.signer.set(issuer.id);
        }
    }

    pub(super) fn signer(&self) -> Option<&IssuerId> {
        self.signer.get()
    }

    /// Whether an authority has the name that the list says is its issuer's.
    pub(super) fn names(&self, issuer: &Issuer) -> bool {
        issuer.is_named(&self.issuer)
    }

    /// Whether the list speaks for a certificate, which may be an authority's.
    pub(super) fn coverage(&self, link: &ChainCertificate, is_authority: bool) -> Coverage {
        let scope = &self.scope;
        let is_kind = if is_authority { !scope.only_user_certificates } else { !scope.only_authorities };
        if !is_kind || self.signer() != Some(&link.issuer) {
            return Coverage::None;
        }
        let places = &scope.distribution_points;
        match &link.distribution_points {
            _ if places.is_empty() => Coverage::Full,
            None => Coverage::Perhaps,
            Some(named) if places.iter().any(|place| named.contains(place)) => Coverage::Full,
            Some(_) => Coverage::None,
        }
    }

    pub(super) fn revokes(&self, serial: &Serial) -> bool {
        self.revoked.binary_search(serial).is_ok()
    }

    /// Whether it is of the same signer and scope.
    pub(super) fn stands_beside(&self, other: &Self) -> bool {
        self.signer().is_some() && self.signer() == other.signer() && self.scope == other.scope
    }

    /// Whether it was made before another one of the same signer and scope. The number is optional in practice.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let rank = |crl: &Self| (crl.number.len(), crl.number.clone(), crl.this_update);
        self.stands_beside(other) && rank(self) < rank(other)
    }

    /// How many certificates it revokes.
    pub(super) fn len(&self) -> usize {
        self.revoked.len()
    }
}

/// The keys of certificates that are revoked by lists of `after` and by none of `before`.
pub(super) fn newly_revoked(before: &[Arc<Crl>], after: &[Arc<Crl>]) -> Vec<Key> {
    let mut keys = Vec::new();
    for list in after.iter().filter(|list| !before.iter().any(|other| Arc::ptr_eq(list, other))) {
        let Some(signer) = list.signer() else { continue };
        // Of another scope, it may have revoked nobody who is concerned now.
        let same: Vec<&Arc<Crl>> = before.iter().filter(|other| other.stands_beside(list)).collect();
        let is_new = |serial: &&Serial| !same.iter().any(|other| other.revokes(serial));
        keys.extend(list.revoked.iter().filter(is_new).map(|serial| key(signer, serial)));
    }
    keys
}

/// What stands before and behind the entries.
struct Head<'d> {
    issuer: &'d [u8],
    number: &'d [u8],
    this_update: i64,
    next_update: i64,
    scope: Scope,
}

impl<'d> Head<'d> {
    /// Of a list that webpki has read.
    fn read(der: &'d [u8]) -> Option<Self> {
        let (_, tbs) = Any::from_der(Signed::from_der(der)?.tbs).ok()?;
        let (rest, _version) = Any::from_der(tbs.data).ok()?;
        let (name, _algorithm) = Any::from_der(rest).ok()?;
        let (rest, _) = Any::from_der(name).ok()?;
        let issuer = &name[..name.len() - rest.len()];
        let (rest, this_update) = ASN1Time::from_der(rest).ok()?;
        let (mut rest, next_update) = ASN1Time::from_der(rest).ok()?;
        let (mut number, mut scope) = (&[][..], Scope::default());
        while !rest.is_empty() {
            let (behind, part) = Any::from_der(rest).ok()?;
            // [0]: the extensions; the entries are a SEQUENCE.
            if part.class() == Class::ContextSpecific {
                let (_, extensions) = Any::from_der(part.data).ok()?;
                let mut left = extensions.data;
                while !left.is_empty() {
                    let (behind, extension) = X509Extension::from_der(left).ok()?;
                    match extension.parsed_extension() {
                        ParsedExtension::CRLNumber(_) => number = Any::from_der(extension.value).ok()?.1.data,
                        ParsedExtension::IssuingDistributionPoint(point) => {
                            scope.only_user_certificates = point.only_contains_user_certs;
                            scope.only_authorities = point.only_contains_ca_certs;
                            scope.distribution_points = urls(point.distribution_point.as_ref());
                            if point.distribution_point.is_some() && scope.distribution_points.is_empty() {
                                // A place that cannot be compared.
                                return None;
                            }
                        }
                        // Better none than one whose scope was taken for everything.
                        ParsedExtension::ParseError { .. } => return None,
                        _ => {}
                    }
                    left = behind;
                }
            }
            rest = behind;
        }
        Some(Self { issuer, number, this_update: this_update.timestamp(), next_update: next_update.timestamp(), scope })
    }
}

fn explain(error: webpki::Error) -> String {
    match error {
        webpki::Error::UnsupportedDeltaCrl => {
            "a delta CRL, which says only what has changed; complete CRLs are wanted".to_owned()
        }
        webpki::Error::UnsupportedIndirectCrl => "an indirect CRL, which speaks for other authorities".to_owned(),
        webpki::Error::UnsupportedCrlIssuingDistributionPoint => {
            "a CRL whose issuing distribution point names no place; with it, or without the extension, it can be used"
                .to_owned()
        }
        // A list of version 1 has no field for it.
        webpki::Error::UnsupportedCrlVersion | webpki::Error::BadDer => {
            "a CRL that is cut off or broken, or of version 1, or without nextUpdate; version 2 with it is wanted"
                .to_owned()
        }
        webpki::Error::UnsupportedRevocationReasonsPartitioning => {
            "a CRL for some reasons of revocation only; one for all reasons is wanted".to_owned()
        }
        error => format!("no CRL that can be used: {error}"),
    }
}
