//! Reads PEM files and credential files. Enters: a path. Leaves: certificates, trust anchors or entries, or a complaint
//! that names the file. No complaint quotes a secret.

use std::path::Path;

use rustls::pki_types::pem;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::config::{Complaint, Diagnostics, Located};
use crate::util::file::{MAX_PEM_LEN, read};
use crate::util::pem::{Section, sections};

/// Reads the certificates of a PEM file, in the order of the file; at least one.
///
/// # Errors
/// The file cannot be read, or contains no certificate.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    let bytes = read(path, MAX_PEM_LEN).map_err(|error| unreadable(path, &pem::Error::Io(error)))?;
    let invalid = |what: String| Complaint::new(format!("{}, {what}", path.display()));
    let mut chain = Vec::new();
    for Section { label, der } in sections(&bytes).map_err(invalid)? {
        match label.as_str() {
            "CERTIFICATE" | "X509 CERTIFICATE" => chain.push(CertificateDer::from(der)),
            // OpenSSL appends its settings for the certificate.
            "TRUSTED CERTIFICATE" => {
                let (rest, _) = X509Certificate::from_der(&der)
                    .map_err(|_| Complaint::new(format!("{} contains an invalid certificate", path.display())))?;
                chain.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
            }
            // A key, its parameters, or a CRL may be in the same file.
            other if other.ends_with("KEY") || other.ends_with("PARAMETERS") || other.ends_with("CRL") => {}
            other => return Err(Complaint::new(format!("{}: unknown section `{other}`", path.display()))),
        }
    }
    if chain.is_empty() {
        let complaint = Complaint::new(format!("{} contains no certificate", path.display()));
        return Err(complaint.hint("expected a PEM file with `-----BEGIN CERTIFICATE-----`"));
    }
    Ok(chain)
}

/// Reads the trust anchors of a PEM bundle.
///
/// # Errors
/// The file cannot be read, or contains a certificate that cannot be a trust anchor.
pub(crate) fn read_anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, Complaint> {
    let anchor = |der: &CertificateDer<'_>| {
        check_anchor(path, der)?;
        webpki::anchor_from_trusted_cert(der)
            .map(|anchor| anchor.to_owned())
            .map_err(|error| Complaint::new(format!("{}: not a trust anchor: {error}", path.display())))
    };
    read_chain(path)?.iter().map(anchor).collect()
}

/// Checks that a certificate of `path` is that of a CA, as OpenSSL does. With a device's certificate as trust anchor, that
/// device could issue certificates for all others [RFC 5280, 4.2.1.3 and 4.2.1.9].
///
/// # Errors
/// It is not a CA.
pub(crate) fn check_anchor(path: &Path, der: &CertificateDer<'_>) -> Result<(), Complaint> {
    let complain = |what: &str| Complaint::new(format!("{}: not a trust anchor: {what}", path.display()));
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| complain("it cannot be parsed"))?;
    let subject = certificate.subject();
    let constraints = certificate.basic_constraints().map_err(|_| complain("its basicConstraints cannot be parsed"))?;
    let is_ca = match constraints {
        Some(constraints) => constraints.value.ca,
        // Version 1 has no extensions.
        None => certificate.version() == X509Version::V1 && subject == certificate.issuer(),
    };
    if !is_ca {
        let complaint = complain(&format!("`{subject}` is not a CA (basicConstraints without CA:TRUE)"));
        let hint = "name the CA that issued it; to accept one certificate alone, pin it: `portcullis device pin`";
        return Err(complaint.hint(hint));
    }
    let usage = certificate.key_usage().map_err(|_| complain("its keyUsage cannot be parsed"))?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(complain(&format!("`{subject}` must not sign certificates (keyUsage without keyCertSign)")));
    }
    Ok(())
}

/// The earliest expiry of the certificates of a PEM file, in seconds since 1970.
///
/// # Errors
/// The file cannot be read, or contains no certificate or an invalid one.
pub(crate) fn expiry(path: &Path) -> Result<i64, Complaint> {
    let not_after = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
    };
    let complaint = || Complaint::new(format!("{} contains an invalid certificate", path.display()));
    let expiries: Option<Vec<i64>> = read_chain(path)?.iter().map(not_after).collect();
    expiries.and_then(|all| all.into_iter().min()).ok_or_else(complaint)
}

/// The earliest expiry of the certificates of a PEM file, in seconds since 1970. Warns if it has passed. `None`: the
/// file cannot be used, which its user reports.
pub(crate) fn warn_if_expired(at: &impl Located, path: &Path, diagnostics: &mut Diagnostics) -> Option<i64> {
    let expires = expiry(path).ok()?;
    if expires <= crate::util::clock::now() {
        let when = chrono::DateTime::from_timestamp(expires, 0).map(|when| when.to_rfc3339()).unwrap_or_default();
        diagnostics.warning(at, format!("a certificate in {} expired at {when}", path.display()));
    }
    Some(expires)
}

/// The complaint about a PEM file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &pem::Error) -> Complaint {
    match error {
        pem::Error::Io(error) => Complaint::new(format!("{} cannot be read: {error}", path.display())),
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no PEM data", path.display())),
        error => Complaint::new(format!("{} is not valid PEM: {error}", path.display())),
    }
}

/// Maximum size of a credential file in bytes. A million entries take about 120 MB.
const MAX_ENTRIES_LEN: u64 = 256 << 20;

/// Reads a credential file: lines of `name:value`; ignores blank lines and lines that begin with `#`. Calls `take` for
/// each entry; an error of `take` describes what is wrong with the entry.
///
/// # Errors
/// The file cannot be read, or a line is invalid. The complaint names the line by number and never quotes its value.
pub(crate) fn read_entries(
    path: &Path,
    mut take: impl FnMut(&str, &[u8]) -> Result<(), String>,
) -> Result<(), Complaint> {
    let bytes = read(path, MAX_ENTRIES_LEN).map_err(|error| unreadable(path, &pem::Error::Io(error)))?;
    // Without it, a byte order mark would be a part of the first name.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let complain = |what: &str| Complaint::new(format!("{}, line {}: {what}", path.display(), index + 1));
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| complain("missing `:`"))?;
        let name = std::str::from_utf8(&line[..colon]).map_err(|_| complain("the name is not UTF-8"))?;
        if name.is_empty() {
            return Err(complain("the name is empty"));
        }
        take(name, &line[colon + 1..]).map_err(|what| complain(&what))?;
    }
    Ok(())
}
