//! Reads PEM files and credential files. Enters: a path. Leaves: certificates or entries, or a complaint
//! that names the file. No complaint quotes a secret.

use std::path::Path;

use rustls::pki_types::pem;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::config::{Complaint, Diagnostics, Located};
use crate::util::clock::{now, rfc3339};
use crate::util::file::{MAX_PEM_LEN, read};
use crate::util::invisible::is_invisible;
use crate::util::pem::{Section, sections};

/// Part of the label of every private key in PEM.
const KEY_MARK: &[u8] = b"PRIVATE KEY-----";
/// A header of a private key that is encrypted in OpenSSL's traditional format [RFC 1421, 4.6.1.1].
const ENCRYPTED_MARK: &[u8] = b"Proc-Type: 4,ENCRYPTED";

/// Reads the certificates of a PEM file, in the order of the file; at least one.
///
/// # Errors
/// The file cannot be read, or contains no certificate.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    Ok(read_certificates(path)?.into_iter().map(|(certificate, _)| certificate).collect())
}

/// Reads the certificates of a PEM file as [`read_chain`] does, each with the settings that OpenSSL appends in a
/// section `TRUSTED CERTIFICATE`; empty for others.
///
/// # Errors
/// The file cannot be read, or contains no certificate.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<(CertificateDer<'static>, Vec<u8>)>, Complaint> {
    let bytes = read(path, MAX_PEM_LEN).map_err(|error| unreadable(path, &pem::Error::Io(error)))?;
    // A sequence, as DER and PKCS#12 begin.
    if bytes.first() == Some(&0x30) && bytes.get(1).is_some_and(|byte| *byte >= 0x80) {
        let complaint = Complaint::new(format!("{} is DER or PKCS#12, not PEM", path.display()));
        return Err(
            complaint.hint("openssl x509 -inform DER -in FILE -out FILE.pem, or openssl pkcs12 -in FILE -out FILE.pem")
        );
    }
    let invalid = |what: String| Complaint::new(format!("{}, {what}", path.display()));
    let mut chain = Vec::new();
    for Section { label, der } in sections(&bytes).map_err(invalid)? {
        match label.as_str() {
            "CERTIFICATE" | "X509 CERTIFICATE" => chain.push((CertificateDer::from(der), Vec::new())),
            "TRUSTED CERTIFICATE" => {
                let (rest, _) = X509Certificate::from_der(&der)
                    .map_err(|_| Complaint::new(format!("{} contains an invalid certificate", path.display())))?;
                let (certificate, settings) = der.split_at(der.len() - rest.len());
                chain.push((CertificateDer::from(certificate.to_vec()), settings.to_vec()));
            }
            // A key, its parameters, or a CRL may be in the same file.
            other if other.ends_with("KEY") || other.ends_with("PARAMETERS") || other.ends_with("CRL") => {
                if X509Certificate::from_der(&der).is_ok() {
                    return Err(invalid(format!("a section `{other}` is a certificate")));
                }
            }
            "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
                let complaint = Complaint::new(format!("{} is a certificate request", path.display()));
                return Err(complaint.hint("let the CA sign it, and use the certificate that it returns"));
            }
            "PKCS7" | "CMS" => {
                let complaint = Complaint::new(format!("{} is a PKCS#7 bundle", path.display()));
                return Err(complaint.hint("openssl pkcs7 -print_certs -in FILE -out FILE.pem"));
            }
            other => return Err(Complaint::new(format!("{}: unknown section `{other}`", path.display()))),
        }
    }
    if chain.is_empty() {
        let complaint = Complaint::new(format!("{} contains no certificate", path.display()));
        let is_key = bytes.windows(KEY_MARK.len()).any(|window| window == KEY_MARK);
        return Err(complaint.hint(if is_key {
            "it has a private key, where a certificate is expected; were two files swapped?"
        } else {
            "expected a PEM file with `-----BEGIN CERTIFICATE-----`"
        }));
    }
    Ok(chain)
}

/// A private key from a PEM file.
pub(crate) enum KeyFile {
    Plain(PrivateKeyDer<'static>),
    /// PKCS#8, encrypted with a passphrase.
    Encrypted(Zeroizing<Vec<u8>>),
}

/// Reads the first private key of a PEM file: PKCS#8, encrypted PKCS#8, SEC1 or PKCS#1. The file may also have
/// parameters and certificates.
///
/// # Errors
/// The file cannot be read, or has no such key.
pub(crate) fn read_private_key(path: &Path) -> Result<KeyFile, Complaint> {
    let bytes = read(path, MAX_PEM_LEN).map_err(|error| unreadable(path, &pem::Error::Io(error)))?;
    let all = sections(&bytes).map_err(|what| Complaint::new(format!("{}, {what}", path.display())))?;
    if bytes.windows(ENCRYPTED_MARK.len()).any(|window| window == ENCRYPTED_MARK) {
        let complaint = Complaint::new(format!("{} is encrypted in OpenSSL's traditional format", path.display()));
        return Err(complaint.hint("convert it to PKCS#8: openssl pkcs8 -topk8 -in old.key -out new.key"));
    }
    let has_certificate = all.iter().any(|section| section.label.ends_with("CERTIFICATE"));
    let mut others = Vec::new();
    for Section { label, der } in all {
        match label.as_str() {
            "PRIVATE KEY" => return Ok(KeyFile::Plain(PrivateKeyDer::Pkcs8(der.into()))),
            "EC PRIVATE KEY" => return Ok(KeyFile::Plain(PrivateKeyDer::Sec1(der.into()))),
            "RSA PRIVATE KEY" => return Ok(KeyFile::Plain(PrivateKeyDer::Pkcs1(der.into()))),
            "ENCRYPTED PRIVATE KEY" => return Ok(KeyFile::Encrypted(Zeroizing::new(der))),
            _ => others.push(label),
        }
    }
    if has_certificate {
        let complaint = Complaint::new(format!("{} is a certificate, not a private key", path.display()));
        return Err(complaint.hint("`certificate` and `private_key` may be the wrong way round"));
    }
    Err(match others.first() {
        Some(label) => Complaint::new(format!("{} has a section `{label}`, but no private key", path.display())),
        None => Complaint::new(format!("{} contains no private key", path.display())),
    }
    .hint("use a PEM file with a PKCS#8, SEC1 or PKCS#1 key"))
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
    if expires <= now() {
        diagnostics.warning(at, format!("a certificate in {} expired at {}", path.display(), rfc3339(expires)));
    }
    Some(expires)
}

/// The complaint about a PEM file that cannot be read.
pub(crate) fn unreadable(path: &Path, error: &pem::Error) -> Complaint {
    match error {
        pem::Error::Io(error) => Complaint::new(format!("{} cannot be read: {error}", path.display())),
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no PEM data", path.display())),
        pem::Error::MissingSectionEnd { end_marker } => {
            let marker = String::from_utf8_lossy(end_marker).into_owned();
            Complaint::new(format!("{}: a section has no `-----END {marker}-----`", path.display()))
        }
        pem::Error::Base64Decode(_) => Complaint::new(format!("{}: a section is not base64", path.display())),
        _ => Complaint::new(format!("{} is not valid PEM", path.display())),
    }
}

/// Maximum size of a credential file in bytes. A million entries take about 120 MB.
const MAX_ENTRIES_LEN: u64 = 256 << 20;

/// Reads a credential file: lines of `name:value`; ignores blank lines and lines that begin with `#`. Calls `take` for
/// each entry; an error of `take` describes what is wrong with the entry.
///
/// # Errors
/// The file cannot be read, or a line is invalid. The complaint names the line by number and never quotes its value.
pub(crate) fn read_entries(path: &Path, take: impl FnMut(&str, &[u8]) -> Result<(), String>) -> Result<(), Complaint> {
    let bytes = read(path, MAX_ENTRIES_LEN).map_err(|error| unreadable(path, &pem::Error::Io(error)))?;
    parse_entries(&bytes, take).map_err(|problem| Complaint::new(format!("{}, {problem}", path.display())))
}

/// The entries of a credential file with this content, as [`read_entries`].
///
/// # Errors
/// A line is invalid. The error names the line by number and never quotes its value.
pub(crate) fn parse_entries(
    bytes: &[u8],
    mut take: impl FnMut(&str, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A byte order mark would be a part of the name. One within the file was at the start of another one.
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let complain = |what: &str| format!("line {}: {what}", index + 1);
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| complain("missing `:`"))?;
        let name = std::str::from_utf8(&line[..colon]).map_err(|_| complain("the name is not UTF-8"))?;
        if name.is_empty() {
            return Err(complain("the name is empty"));
        }
        // Nobody sees it, so nobody would send it.
        if name.trim() != name || name.contains(|c: char| c.is_control() || is_invisible(c)) {
            return Err(complain("the name has a blank at its start or end, or an invisible character"));
        }
        take(name, &line[colon + 1..]).map_err(|what| complain(&what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_read_or_is_an_error() {
        let names = |text: &[u8]| {
            let mut names = Vec::new();
            parse_entries(text, |name, _| {
                names.push(name.to_owned());
                Ok(())
            })
            .map(|()| names)
        };
        let two = Ok(vec!["a".to_owned(), "b".to_owned()]);
        for text in ["a:1\nb:2", "\u{feff}a:1\r\n\r\n# c:3\r\nb:2\r\n", "a:1\n\u{feff}b:2\n", "a:1\n\u{feff}# c\nb:2\n"]
        {
            assert_eq!(names(text.as_bytes()), two, "{text:?}");
        }
        for name in ["", " b", "b ", "\tb", "\u{a0}b", "\x0cb", "\0b", "b\u{200b}", "\u{feff}\u{feff}b", "b\u{202e}c"] {
            let error = names(format!("a:1\n{name}:2\n").as_bytes()).unwrap_err();
            assert!(error.starts_with("line 2: the name "), "{name:?}: {error}");
        }
        let utf16: Vec<u8> = "a:1\nb:2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(names(&utf16).is_err() && names(b"a b:1").is_ok() && names("\u{e4}:1".as_bytes()).is_ok());
    }
}
