//! The fields of a certificate in the form that expressions and logs use. Enters: DER. Leaves: strings and times. Never
//! here: a decision to trust the certificate.

use std::ops::Range;

use aws_lc_rs::digest;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_X509_COMMON_NAME, OID_X509_COUNTRY_NAME, OID_X509_LOCALITY_NAME, OID_X509_ORGANIZATION_NAME,
    OID_X509_ORGANIZATIONAL_UNIT, OID_X509_STATE_OR_PROVINCE_NAME, Oid,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::Fingerprint;
use super::dn::{Value, rfc2253, text};
use crate::util::crypto::sha256;

/// The fields of a certificate. `pki` has verified it.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Box<[u8]>,
    /// Byte range of the SubjectPublicKeyInfo in `der`.
    key: Range<usize>,
    /// Name of the subject.
    pub subject: Name,
    /// Name of the issuer.
    pub issuer: Name,
    /// Serial number in upper-case hex, an even number of digits, as `openssl x509 -serial` prints it; with a `-` if it is
    /// negative.
    pub serial: String,
    /// Start of validity in seconds since 1970.
    pub not_before: i64,
    /// End of validity in seconds since 1970.
    pub not_after: i64,
    /// Subject alternative names.
    pub san: AlternativeNames,
}

/// A distinguished name. An empty attribute counts as missing, so that two empty fields never compare as equal.
#[derive(Clone, Debug, Default)]
pub struct Name {
    /// The whole name in the format of NGINX's `$ssl_client_s_dn`.
    pub dn: Option<String>,
    /// First common name.
    pub cn: Option<String>,
    /// First organisation.
    pub o: Option<String>,
    /// First organisational unit.
    pub ou: Option<String>,
    /// First country.
    pub c: Option<String>,
    /// First locality.
    pub l: Option<String>,
    /// First state or province.
    pub st: Option<String>,
}

/// Subject alternative names [RFC 5280, 4.2.1.6].
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub struct AlternativeNames {
    pub dns: Vec<String>,
    pub uri: Vec<String>,
    pub email: Vec<String>,
    pub ip: Vec<String>,
}

impl Certificate {
    /// Parses a certificate; `None`: not X.509 in DER.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if rest.is_empty() { Self::of(der, &certificate) } else { None }
    }

    /// From the certificate parsed from `der`; `None` if it was parsed from something else.
    pub(crate) fn of(der: &[u8], certificate: &X509Certificate<'_>) -> Option<Self> {
        let key = certificate.public_key().raw;
        let start = key.as_ptr().addr().checked_sub(der.as_ptr().addr())?;
        Some(Self {
            der: der.into(),
            key: start..start + key.len(),
            subject: Name::of(certificate.subject()),
            issuer: Name::of(certificate.issuer()),
            serial: serial(certificate.raw_serial()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            san: AlternativeNames::of(certificate),
        })
    }

    /// SHA-256 of the certificate in lower-case hex.
    pub fn sha256(&self) -> String {
        hex::encode(sha256(&self.der))
    }

    /// Fingerprints of the certificate and of its public key (SubjectPublicKeyInfo).
    pub fn fingerprints(&self) -> [Fingerprint; 2] {
        [sha256(&self.der), self.der.get(self.key.clone()).map_or([0; 32], sha256)]
    }

    /// SHA-1 of the certificate in lower-case hex, for existing lists only.
    pub fn sha1(&self) -> String {
        hex::encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.der))
    }
}

impl Name {
    fn of(name: &X509Name<'_>) -> Self {
        let first = |oid: &Oid<'_>| match text(name.iter_by_oid(oid).next()?.attr_value()) {
            Value::Text(value) if !value.is_empty() => Some(value),
            _ => None,
        };
        Self {
            dn: rfc2253(name).filter(|dn| !dn.is_empty()),
            cn: first(&OID_X509_COMMON_NAME),
            o: first(&OID_X509_ORGANIZATION_NAME),
            ou: first(&OID_X509_ORGANIZATIONAL_UNIT),
            c: first(&OID_X509_COUNTRY_NAME),
            l: first(&OID_X509_LOCALITY_NAME),
            st: first(&OID_X509_STATE_OR_PROVINCE_NAME),
        }
    }
}

impl AlternativeNames {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                GeneralName::URI(name) => names.uri.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => names.email.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip.extend(ip(bytes)),
                _ => {}
            }
        }
        names
    }
}

fn ip(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(bytes).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())
}

/// `bytes` is the content of a DER INTEGER, in two's complement.
fn serial(bytes: &[u8]) -> String {
    let is_negative = bytes.first().is_some_and(|first| *first >= 0x80);
    let mut magnitude = bytes.to_vec();
    if is_negative {
        // The two's complement of a negative number is its magnitude.
        let mut carries = true;
        for byte in magnitude.iter_mut().rev() {
            (*byte, carries) = (!*byte).overflowing_add(u8::from(carries));
        }
    }
    let first = magnitude.iter().position(|byte| *byte != 0).unwrap_or(magnitude.len().saturating_sub(1));
    let sign = if is_negative { "-" } else { "" };
    sign.to_owned() + &hex::encode_upper(&magnitude[first..])
}

#[cfg(test)]
mod tests {
    use super::serial;

    #[test]
    fn serial_numbers_read_as_openssl_prints_them() {
        for (bytes, text) in [
            (&[0x05][..], "05"),
            (&[0x00, 0xfb], "FB"),
            (&[0xfb], "-05"),
            (&[0x80], "-80"),
            (&[0xff, 0x00], "-0100"),
            (&[0x00], "00"),
            (&[0x12, 0x34], "1234"),
        ] {
            assert_eq!(serial(bytes), text, "{bytes:02x?}");
        }
    }
}
