//! Certificate revocation lists [RFC 5280, 5]. Enters: the bytes of a file or of an HTTP response. Leaves: the revoked
//! serial numbers, the certificates that the CRL covers, and its validity.

use std::sync::{Arc, OnceLock};

use webpki::BorrowedCertRevocationList;
use x509_parser::der_parser::asn1_rs::{Any, Class};
use x509_parser::extensions::{ParsedExtension, X509Extension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::chain::IssuerId;
use super::chain::{ChainCertificate, Key, Serial, key, urls};
use super::issuers::Issuer;
use super::signature::Signed;
use crate::util::pem::{Section, sections};

/// A parsed CRL. It is used only after [`Crl::identify_signer`] has verified its signature.
#[derive(Debug)]
pub(super) struct Crl {
    der: Box<[u8]>,
    /// The issuer's name, in DER.
    issuer: Box<[u8]>,
    /// The CRL number, which increases with each CRL of an issuer and scope [RFC 5280, 5.2.3]. Big-endian, without
    /// leading zeros.
    number: Box<[u8]>,
    /// Seconds since 1970.
    pub(super) this_update: i64,
    /// Seconds since 1970. From then on the CRL does not prove that a certificate is good; its revocations still count.
    pub(super) next_update: i64,
    scope: Scope,
    /// Sorted.
    revoked: Box<[Serial]>,
    /// The CA that signed it; empty until the signature is verified.
    signer: OnceLock<IssuerId>,
}

/// The issuing distribution point: which certificates of its issuer a CRL covers [RFC 5280, 5.2.5].
#[derive(Debug, Default, PartialEq, Eq)]
struct Scope {
    only_user_certificates: bool,
    only_authorities: bool,
    /// If not empty, only certificates that name one of these URLs are covered.
    distribution_points: Vec<String>,
}

/// Whether a CRL covers a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    None,
    /// The CRL is for one of several distribution points, and the certificate does not name its own.
    Possible,
    Full,
}

impl Crl {
    /// Parses one CRL in DER, or up to `max` in PEM.
    ///
    /// # Errors
    /// Why the CRLs cannot be used, or that there are more than `max`.
    pub(super) fn read(bytes: &[u8], max: usize) -> Result<Vec<Self>, String> {
        if bytes.first() == Some(&0x30) {
            return Ok(vec![Self::from_der(bytes)?]);
        }
        let mut ders = Vec::new();
        for Section { label, der } in sections(bytes)? {
            match label.as_str() {
                "X509 CRL" | "CRL" => ders.push(der),
                // A CA may publish its certificate in the same file.
                other if other.ends_with("CERTIFICATE") => {
                    X509Certificate::from_der(&der).map_err(|_| format!("a section `{other}` is no certificate"))?;
                }
                other => return Err(format!("unknown section `{other}`")),
            }
        }
        match ders.len() {
            0 => Err("contains no CRL: expected DER or `-----BEGIN X509 CRL-----`".to_owned()),
            count if count > max => Err(format!("more than {max} CRLs")),
            _ => ders.iter().map(|der| Self::from_der(der)).collect(),
        }
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        // webpki rejects what it does not support: delta CRLs, indirect CRLs, unknown critical extensions.
        let crl = BorrowedCertRevocationList::from_der(der).map_err(explain)?;
        let mut revoked = Vec::new();
        for entry in &crl {
            let entry = entry.map_err(explain)?;
            revoked.push(Serial::new(entry.serial_number).ok_or("a serial number exceeds 20 octets")?);
        }
        revoked.sort_unstable();
        revoked.dedup();
        let header = Header::read(der).ok_or("the CRL's header or scope cannot be parsed")?;
        Ok(Self {
            der: der.into(),
            issuer: header.issuer.into(),
            number: header.number.iter().copied().skip_while(|octet| *octet == 0).collect(),
            this_update: header.this_update,
            next_update: header.next_update,
            scope: header.scope,
            revoked: revoked.into(),
            signer: OnceLock::new(),
        })
    }

    /// Records `issuer` as the signer if its key made the signature. At most one CA can be the signer.
    pub(super) fn identify_signer(&self, issuer: &Issuer) {
        if self.signer.get().is_none()
            && issuer.is_named(&self.issuer)
            && issuer.may_sign_crls()
            && Signed::from_der(&self.der).is_some_and(|signed| signed.is_by(&issuer.der))
        {
            // Another thread may have recorded the same signer.
            let _ = self.signer.set(issuer.id);
        }
    }

    pub(super) fn signer(&self) -> Option<&IssuerId> {
        self.signer.get()
    }

    /// Whether the CRL names this CA as its issuer. The signature is not checked.
    pub(super) fn names_issuer(&self, issuer: &Issuer) -> bool {
        issuer.is_named(&self.issuer)
    }

    /// Whether the CRL covers a certificate, which may be a CA's.
    pub(super) fn coverage(&self, certificate: &ChainCertificate, is_ca: bool) -> Coverage {
        let scope = &self.scope;
        let covers_kind = if is_ca { !scope.only_user_certificates } else { !scope.only_authorities };
        if !covers_kind || self.signer() != Some(&certificate.issuer) {
            return Coverage::None;
        }
        let points = &scope.distribution_points;
        match &certificate.distribution_points {
            _ if points.is_empty() => Coverage::Full,
            None => Coverage::Possible,
            Some(named) if points.iter().any(|url| named.contains(url)) => Coverage::Full,
            Some(_) => Coverage::None,
        }
    }

    pub(super) fn revokes(&self, serial: &Serial) -> bool {
        self.revoked.binary_search(serial).is_ok()
    }

    /// Whether both have the same signer and scope, so that one replaces the other.
    pub(super) fn has_scope_of(&self, other: &Self) -> bool {
        self.signer().is_some() && self.signer() == other.signer() && self.scope == other.scope
    }

    /// Whether it was issued before another CRL of the same signer and scope. Falls back to thisUpdate: some CAs issue
    /// CRLs without a number.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        let rank = |crl: &Self| (crl.number.len(), crl.number.clone(), crl.this_update);
        self.has_scope_of(other) && rank(self) < rank(other)
    }

    /// The number of certificates it revokes.
    pub(super) fn len(&self) -> usize {
        self.revoked.len()
    }
}

/// The index keys of certificates that a CRL of `after` revokes and no CRL of the same scope in `before` does.
pub(super) fn newly_revoked(before: &[Arc<Crl>], after: &[Arc<Crl>]) -> Vec<Key> {
    let mut keys = Vec::new();
    for crl in after.iter().filter(|crl| !before.iter().any(|other| Arc::ptr_eq(crl, other))) {
        let Some(signer) = crl.signer() else { continue };
        // A CRL of another scope may not have covered the certificate: compare within the scope only.
        let same: Vec<&Arc<Crl>> = before.iter().filter(|other| other.has_scope_of(crl)).collect();
        let is_new = |serial: &&Serial| !same.iter().any(|other| other.revokes(serial));
        keys.extend(crl.revoked.iter().filter(is_new).map(|serial| key(signer, serial)));
    }
    keys
}

/// The fields before and after the revoked entries.
struct Header<'d> {
    issuer: &'d [u8],
    number: &'d [u8],
    this_update: i64,
    next_update: i64,
    scope: Scope,
}

impl<'d> Header<'d> {
    /// Parses a CRL that webpki has accepted.
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
                                // A name that cannot be compared with the certificates' URLs.
                                return None;
                            }
                        }
                        // Reject the CRL: with an unknown scope, it would be taken to cover every certificate.
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
        webpki::Error::UnsupportedDeltaCrl => "delta CRLs are not supported; use the complete CRL".to_owned(),
        webpki::Error::UnsupportedIndirectCrl => {
            "indirect CRLs, which cover certificates of other issuers, are not supported".to_owned()
        }
        webpki::Error::UnsupportedCrlIssuingDistributionPoint => {
            "the CRL's issuing distribution point names no URL; add one or leave the extension out".to_owned()
        }
        // Version 1 has no version field: webpki reports it as malformed.
        webpki::Error::UnsupportedCrlVersion | webpki::Error::BadDer => {
            "the CRL is truncated or malformed, has version 1 or lacks nextUpdate; use version 2 with nextUpdate"
                .to_owned()
        }
        webpki::Error::UnsupportedRevocationReasonsPartitioning => {
            "CRLs for some revocation reasons only are not supported; use one for all reasons".to_owned()
        }
        error => format!("unsupported CRL: {error}"),
    }
}
