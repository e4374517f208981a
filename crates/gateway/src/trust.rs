//! Trust anchors and the paths that end at them. Enters: a PEM bundle or the system's anchors, and a certificate chain.
//! Leaves: a verified path, or why there is none. webpki verifies signatures, names, validity and extended key usage. It
//! takes an anchor for a name and a key: what else the anchor's certificate says, and what keyUsage allows, is checked here,
//! as OpenSSL does.

mod openssl;
mod servers;
mod signatures;
mod subject_names;

pub(crate) use servers::ServerVerifier;

use std::fmt;
use std::path::Path;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, NameConstraints};
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;
use x509_parser::prelude::{FromDer, X509Certificate, X509Extension, X509Name, X509Version};

use self::subject_names::SubjectConstraints;
use crate::config::Complaint;
use crate::files::read_certificates;
use crate::outcome::ChainError;
use crate::util::crypto::sha256;

/// The certificates at which verified paths may end.
#[derive(Default)]
pub(crate) struct TrustAnchors {
    list: Vec<TrustAnchor<'static>>,
    /// In the same order.
    limits: Vec<Limits>,
}

/// What the certificate of an anchor limits.
struct Limits {
    /// Seconds since 1970.
    not_before: i64,
    /// Seconds since 1970.
    not_after: i64,
    /// The number of intermediates that may follow [RFC 5280, 4.2.1.9].
    path_len: Option<u32>,
    /// On the subjects of certificates that it issues.
    subjects: Option<SubjectConstraints>,
    /// Tells path length and name constraints from others; 0: it has none.
    tag: u64,
}

/// Whose certificates end at an anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Clients,
    Servers,
}

impl Purpose {
    /// Whose certificates, and the name of their extended key usage.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Clients => ("clients", "clientAuth"),
            Self::Servers => ("servers", "serverAuth"),
        }
    }
}

impl TrustAnchors {
    /// Reads a PEM bundle.
    ///
    /// # Errors
    /// The file cannot be read, or contains a certificate that cannot be a trust anchor for this purpose.
    pub(crate) fn read(path: &Path, purpose: Purpose) -> Result<Self, Complaint> {
        let mut anchors = Self::default();
        for (der, settings) in read_certificates(path)? {
            let complain = |what: String| Complaint::new(format!("{}: not a trust anchor: {what}", path.display()));
            anchors.add(&der, &settings, purpose).map_err(|NotAnAnchor { what, hint }| match hint {
                Some(hint) => complain(what).hint(hint),
                None => complain(what),
            })?;
        }
        Ok(anchors)
    }

    /// One anchor; `None`: the certificate cannot be one.
    pub(crate) fn of(der: &CertificateDer<'_>, purpose: Purpose) -> Option<Self> {
        let mut anchors = Self::default();
        anchors.add(der, &[], purpose).ok().map(|()| anchors)
    }

    /// The anchors of the operating system for servers; those that cannot be used are left out.
    pub(crate) fn of_system() -> Self {
        let mut anchors = Self::default();
        for der in rustls_native_certs::load_native_certs().certs {
            let _ = anchors.add(&der, &[], Purpose::Servers);
        }
        anchors
    }

    /// Whether one of the anchors has this name.
    pub(crate) fn has(&self, name: &X509Name<'_>) -> bool {
        // webpki keeps names without the header of their sequence.
        let is_it = |anchor: &TrustAnchor<'_>| {
            let headed = name.as_raw().len().checked_sub(anchor.subject.len());
            headed.is_some_and(|header| (2..=4).contains(&header)) && name.as_raw().ends_with(&anchor.subject)
        };
        self.list.iter().any(is_it)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The anchors, as webpki takes them.
    pub(crate) fn list(&self) -> &[TrustAnchor<'static>] {
        &self.list
    }

    /// Whether an anchor is valid now; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// It has expired, or is not valid yet.
    pub(crate) fn check_validity(&self, index: usize, now: i64) -> Result<(), ChainError> {
        let limits = self.limits.get(index).ok_or(ChainError::UnknownCa)?;
        if now > limits.not_after {
            return Err(ChainError::Expired);
        }
        if now < limits.not_before { Err(ChainError::NotYetValid) } else { Ok(()) }
    }

    /// Tells the path length and the name constraints of an anchor from those of another certificate with the same name and
    /// key; 0: it has none.
    pub(crate) fn constraints(&self, index: usize) -> u64 {
        self.limits.get(index).map_or(0, |limits| limits.tag)
    }

    /// As [`Self::constraints`], of the anchor of a verified path.
    pub(crate) fn constraints_of(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> u64 {
        self.limits_of(anchor, now).map_or(0, |limits| limits.tag)
    }

    /// When an anchor expires, in seconds since 1970.
    pub(crate) fn not_after(&self, index: usize) -> i64 {
        self.limits.get(index).map_or(i64::MIN, |limits| limits.not_after)
    }

    /// Verifies a chain up to an anchor. `depth`: the number of intermediates that are allowed.
    ///
    /// # Errors
    /// webpki's reason. The anchor's own limits are reported in its terms, too.
    pub(crate) fn verify<'p>(
        &'p self,
        leaf: &'p EndEntityCert<'p>,
        rest: &'p [CertificateDer<'p>],
        depth: usize,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<VerifiedPath<'p>, webpki::Error> {
        let check = |path: &VerifiedPath<'_>| {
            let intermediates = path.intermediate_certificates().count();
            let limits = self.limits_of(path.anchor(), now)?;
            if intermediates > depth {
                return Err(webpki::Error::MaximumPathDepthExceeded);
            }
            if limits.path_len.is_some_and(|allowed| intermediates > allowed as usize) {
                return Err(webpki::Error::PathLenConstraintViolated);
            }
            check_subject(leaf, path, limits.subjects.as_ref())
        };
        if is_ambiguous(rest) {
            return Err(webpki::Error::MaximumPathBuildCallsExceeded);
        }
        // Revocation is checked separately: webpki would verify the signature of each CRL in each handshake.
        leaf.verify_for_usage(signatures::algorithms(), &self.list, rest, now, usage, None, Some(&check))
    }

    /// The limits of an anchor of a path. Of several certificates with the same name and key, a valid one counts.
    fn limits_of(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> Result<&Limits, webpki::Error> {
        let at = now.as_secs().cast_signed();
        let same =
            || self.list.iter().zip(&self.limits).filter(|(other, _)| *other == anchor).map(|(_, limits)| limits);
        if let Some(valid) = same().find(|limits| (limits.not_before..=limits.not_after).contains(&at)) {
            return Ok(valid);
        }
        let time =
            |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.max(0).unsigned_abs()));
        match same().next() {
            Some(limits) if at > limits.not_after => {
                Err(webpki::Error::CertExpired { time: now, not_after: time(limits.not_after) })
            }
            Some(limits) => Err(webpki::Error::CertNotValidYet { time: now, not_before: time(limits.not_before) }),
            None => Err(webpki::Error::UnknownIssuer),
        }
    }

    /// `settings`: OpenSSL's for the certificate, perhaps none.
    fn add(&mut self, der: &CertificateDer<'_>, settings: &[u8], purpose: Purpose) -> Result<(), NotAnAnchor> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NotAnAnchor::new("it cannot be parsed"))?;
        check_authority(&certificate)?;
        check_extensions(&certificate, purpose)?;
        check_settings(&certificate, settings, purpose)?;
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| NotAnAnchor::new(&error.to_string()))?;
        let constraints = certificate.basic_constraints().ok().flatten();
        self.list.push(anchor.to_owned());
        self.limits.push(Limits {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            path_len: constraints.and_then(|constraints| constraints.value.path_len_constraint),
            subjects: SubjectConstraints::of(&certificate),
            tag: constraints_tag(&certificate),
        });
        Ok(())
    }
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustAnchors({})", self.list.len())
    }
}

/// Why a certificate cannot be a trust anchor.
struct NotAnAnchor {
    what: String,
    hint: Option<&'static str>,
}

impl NotAnAnchor {
    fn new(what: &str) -> Self {
        Self { what: what.to_owned(), hint: None }
    }
}

/// Checks that a certificate is that of a CA. With a device's certificate as trust anchor, that device could issue
/// certificates for all others [RFC 5280, 4.2.1.3 and 4.2.1.9].
fn check_authority(certificate: &X509Certificate<'_>) -> Result<(), NotAnAnchor> {
    let subject = certificate.subject();
    let constraints = certificate.basic_constraints();
    let constraints = constraints.map_err(|_| NotAnAnchor::new("its basicConstraints cannot be parsed"))?;
    let is_ca = match constraints {
        Some(constraints) => constraints.value.ca,
        // Version 1 has no extensions.
        None => certificate.version() == X509Version::V1 && subject == certificate.issuer(),
    };
    if !is_ca {
        return Err(NotAnAnchor {
            what: format!("`{subject}` is not a CA (basicConstraints without CA:TRUE)"),
            hint: Some(
                "name the CA that issued it; to accept one certificate alone, pin its key: [listener.tls.raw_keys]",
            ),
        });
    }
    if may_sign_certificates(certificate) {
        return Ok(());
    }
    Err(NotAnAnchor::new(&format!("`{subject}` must not sign certificates (keyUsage without keyCertSign)")))
}

/// Checks the extensions of an authority: each critical one has to be known [RFC 5280, 4.2], and extendedKeyUsage, if there
/// is one, has to allow the certificates that it issues to be used for `purpose`.
fn check_extensions(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), NotAnAnchor> {
    let subject = certificate.subject();
    for extension in certificate.extensions().iter().filter(|extension| extension.critical) {
        if extension.parsed_extension().unsupported() || extension.parsed_extension().error().is_some() {
            let what = format!("`{subject}` has a critical extension that is not supported: {}", extension.oid);
            return Err(NotAnAnchor::new(&what));
        }
    }
    if let Some(constraints) = certificate.name_constraints().ok().flatten() {
        let NameConstraints { permitted_subtrees, excluded_subtrees } = constraints.value;
        let mut all = permitted_subtrees.iter().chain(excluded_subtrees).flatten();
        if all.any(|subtree| matches!(subtree.base, GeneralName::DirectoryName(_))) {
            // webpki rejects all certificates below it.
            let what = format!("`{subject}` has name constraints on directory names, which are not supported");
            return Err(NotAnAnchor::new(&what));
        }
    }
    let usage = certificate.extended_key_usage();
    let usage = usage.map_err(|_| NotAnAnchor::new("its extendedKeyUsage cannot be parsed"))?;
    let allows = |usage: &ExtendedKeyUsage<'_>| match purpose {
        Purpose::Clients => usage.any || usage.client_auth,
        Purpose::Servers => usage.any || usage.server_auth,
    };
    if usage.is_none_or(|usage| allows(usage.value)) {
        return Ok(());
    }
    let (of, name) = purpose.names();
    Err(NotAnAnchor::new(&format!("`{subject}` must not issue certificates of {of} (extendedKeyUsage without {name})")))
}

/// Checks that OpenSSL's settings for an authority allow it to be trusted for `purpose`.
fn check_settings(certificate: &X509Certificate<'_>, settings: &[u8], purpose: Purpose) -> Result<(), NotAnAnchor> {
    let subject = certificate.subject();
    match openssl::allows(settings, purpose) {
        Some(true) => Ok(()),
        Some(false) => Err(NotAnAnchor {
            what: format!(
                "OpenSSL's settings in its section `TRUSTED CERTIFICATE` do not trust `{subject}` for {}",
                purpose.names().0
            ),
            hint: Some("if it is to be trusted: openssl x509 -in FILE -out FILE writes it without such settings"),
        }),
        None => Err(NotAnAnchor::new(&format!("OpenSSL's settings for `{subject}` cannot be parsed"))),
    }
}

/// A tag of what an authority limits beyond time.
fn constraints_tag(certificate: &X509Certificate<'_>) -> u64 {
    let path_len = certificate.basic_constraints().ok().flatten().and_then(|it| it.value.path_len_constraint);
    let is_names = |extension: &&X509Extension<'_>| extension.oid == OID_X509_EXT_NAME_CONSTRAINTS;
    let names = certificate.extensions().iter().find(is_names).map_or(&[][..], |extension| extension.value);
    if path_len.is_none() && names.is_empty() {
        return 0;
    }
    let digest = sha256(&[&path_len.unwrap_or(u32::MAX).to_be_bytes()[..], names].concat());
    digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Whether many of the presented authorities have one name. webpki tries every path that their names allow, before any signature
/// is verified: ten with one name keep it busy for a quarter of a second.
fn is_ambiguous(authorities: &[CertificateDer<'_>]) -> bool {
    /// So few cost nothing, and authorities that are cross-signed have two certificates or three.
    const MAX_OF_ONE_NAME: usize = 3;
    if authorities.len() <= MAX_OF_ONE_NAME {
        return false;
    }
    let parsed: Option<Vec<_>> = authorities.iter().map(|der| X509Certificate::from_der(der).ok()).collect();
    // webpki may be able to parse what is not counted here.
    let Some(parsed) = parsed else { return true };
    let of_name = |name: &X509Name<'_>| parsed.iter().filter(|(_, other)| other.subject() == name).count();
    parsed.iter().any(|(_, authority)| of_name(authority.subject()) > MAX_OF_ONE_NAME)
}

/// Checks the subject of a certificate against the name constraints of the authorities of its path.
fn check_subject(
    leaf: &EndEntityCert<'_>,
    path: &VerifiedPath<'_>,
    of_anchor: Option<&SubjectConstraints>,
) -> Result<(), webpki::Error> {
    let mut constraints = Vec::new();
    for authority in path.intermediate_certificates().map(webpki::Cert::der) {
        if SubjectConstraints::may_be_in(&authority) {
            let (_, authority) = X509Certificate::from_der(&authority).map_err(|_| webpki::Error::BadDer)?;
            constraints.extend(SubjectConstraints::of(&authority));
        }
    }
    if constraints.is_empty() && of_anchor.is_none() {
        return Ok(());
    }
    let leaf = leaf.der();
    let (_, leaf) = X509Certificate::from_der(&leaf).map_err(|_| webpki::Error::BadDer)?;
    let is_allowed = constraints.iter().chain(of_anchor).all(|constraints| constraints.allow(&leaf));
    if is_allowed { Ok(()) } else { Err(webpki::Error::NameConstraintViolation) }
}

/// Whether keyUsage, if there is one, allows an authority to sign certificates [RFC 5280, 4.2.1.3]. One that cannot be
/// parsed allows nothing.
pub(crate) fn may_sign_certificates(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// Whether keyUsage, if there is one, allows the owner to sign handshakes [RFC 8446, 4.4.2.2].
pub(crate) fn may_sign_handshakes(certificate: &X509Certificate<'_>) -> bool {
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.digital_signature()))
}

/// Whether a certificate is for the key exchange of old TLS versions. They are common, and their keys can sign.
pub(crate) fn allows_key_encipherment(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.key_usage().ok().flatten();
    usage.is_some_and(|usage| usage.value.key_encipherment())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

    use rustls::Error;
    use rustls::pki_types::ServerName;

    use super::*;

    fn params(name: &str, ca: bool, usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut params = CertificateParams::new(if ca { Vec::new() } else { vec!["localhost".to_owned()] }).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.key_usages = usages.to_vec();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2040, 1, 1));
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        params
    }

    /// The verdict on a broker's chain, in which each certificate has its keyUsage.
    fn verdict(root: CertificateParams, between: CertificateParams, leaf: &CertificateParams) -> Result<(), Error> {
        let keys: Vec<KeyPair> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
        let mut keys = keys.into_iter();
        let (root_key, between_key, leaf_key) = (keys.next().unwrap(), keys.next().unwrap(), keys.next().unwrap());
        let mut anchors = TrustAnchors::default();
        assert!(anchors.add(root.self_signed(&root_key).unwrap().der(), &[], Purpose::Servers).is_ok());
        let authority = between.signed_by(&between_key, &Issuer::new(root, root_key)).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &Issuer::new(between, between_key)).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let name = ServerName::try_from("localhost").unwrap();
        ServerVerifier::new(anchors).verify(leaf.der(), &[authority.der().clone()], &name, now)
    }

    #[test]
    fn an_anchor_is_one_for_its_purpose_and_without_unknown_critical_extensions() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
        let add = |params: &CertificateParams, purpose| {
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            TrustAnchors::default().add(certificate.der(), &[], purpose).map_err(|error| error.what)
        };
        for (usages, clients, servers) in [
            (vec![], true, true),
            (vec![Any], true, true),
            (vec![ClientAuth], true, false),
            (vec![ServerAuth], false, true),
            (vec![ClientAuth, ServerAuth], true, true),
            (vec![CodeSigning], false, false),
        ] {
            let mut root = params("root", true, &[]);
            root.extended_key_usages.clone_from(&usages);
            let found = (add(&root, Purpose::Clients).is_ok(), add(&root, Purpose::Servers).is_ok());
            assert_eq!(found, (clients, servers), "{usages:?}");
        }
        for (is_critical, expected) in [(false, true), (true, false)] {
            let mut root = params("root", true, &[]);
            let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            extension.set_criticality(is_critical);
            root.custom_extensions = vec![extension];
            root.name_constraints = Some(rcgen::NameConstraints {
                permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".to_owned())],
                excluded_subtrees: Vec::new(),
            });
            assert_eq!(add(&root, Purpose::Clients).is_ok(), expected);
        }
    }

    #[test]
    fn the_path_of_a_broker_is_checked_as_a_whole() {
        use KeyUsagePurpose as Usage;
        let (root, between, leaf) =
            (|| params("root", true, &[]), || params("between", true, &[]), || params("broker", false, &[]));
        verdict(root(), between(), &leaf()).unwrap();
        let old = params("broker", false, &[Usage::KeyEncipherment]);
        verdict(root(), params("between", true, &[Usage::KeyCertSign]), &old).unwrap();
        let mut expired = root();
        expired.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let mut short = root();
        short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let mut other = leaf();
        other.subject_alt_names = vec![rcgen::SanType::DnsName("example.com".try_into().unwrap())];
        for (root, between, leaf, expected) in [
            (expired, between(), leaf(), "certificate expired"),
            (short, between(), leaf(), "the path length of one of its CAs"),
            (root(), params("between", true, &[Usage::CrlSign]), leaf(), "not acceptable for this purpose|purpose"),
            (root(), between(), params("broker", false, &[Usage::KeyAgreement]), "purpose"),
            (root(), between(), other, "not valid for name"),
        ] {
            let error = verdict(root, between, &leaf).unwrap_err().to_string();
            let is_said = expected.split('|').any(|part| error.to_lowercase().contains(&part.to_lowercase()));
            assert!(is_said, "{expected}: {error}");
        }
    }
}
