//! Reads certificates of the directory: their names, purpose and serial number.

use std::fs;
use std::path::Path;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use crate::error::file_error;
use crate::index::Line;
use crate::{Error, Purpose};

pub(crate) fn first_pem(path: &Path) -> Result<Pem, Error> {
    let bytes = fs::read(path).map_err(file_error(path))?;
    let pem = Pem::iter_from_buffer(&bytes).next().and_then(Result::ok);
    pem.ok_or_else(|| Error::Content(path.to_owned(), "not PEM".to_owned()))
}

pub(crate) fn parse<'p>(path: &Path, pem: &'p Pem) -> Result<X509Certificate<'p>, Error> {
    pem.parse_x509().map_err(|_| Error::Content(path.to_owned(), "not a certificate".to_owned()))
}

pub(crate) fn purpose(certificate: &X509Certificate<'_>) -> Purpose {
    match certificate.extended_key_usage().ok().flatten().map(|usage| usage.value) {
        Some(usage) if usage.server_auth => Purpose::Server,
        Some(usage) if usage.ocsp_signing => Purpose::Ocsp,
        _ => Purpose::Device,
    }
}

pub(crate) fn kind(certificate: &X509Certificate<'_>) -> &'static str {
    match (certificate.is_ca(), certificate.issuer() == certificate.subject(), purpose(certificate)) {
        (true, true, _) => "root",
        (true, false, _) => "intermediate",
        (false, _, Purpose::Server) => "server",
        (false, _, Purpose::Device) => "device",
        (false, _, Purpose::Ocsp) => "ocsp",
    }
}

/// The subject alternative names, of the kinds that `template` writes.
pub(crate) fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(bytes) => Some(std::net::Ipv4Addr::from(bytes).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

pub(crate) fn line_of(certificate: &X509Certificate<'_>) -> Line {
    let part = |name: &str, value: Option<&str>| value.map(|value| format!("/{name}={value}")).unwrap_or_default();
    let subject = certificate.subject();
    let organization = subject.iter_organization().next().and_then(|value| value.as_str().ok());
    let common_name = subject.iter_common_name().next().and_then(|value| value.as_str().ok());
    Line {
        expires: certificate.validity().not_after.to_datetime(),
        revoked: None,
        serial: serial_of(certificate),
        subject: part("O", organization) + &part("CN", common_name),
    }
}

/// The serial number in upper-case hex, with an even number of digits.
pub(crate) fn serial_of(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial_as_string().replace(':', "").to_uppercase()
}

pub(crate) fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}
