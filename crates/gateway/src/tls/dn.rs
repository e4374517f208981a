//! Distinguished names as text, exactly as OpenSSL's `XN_FLAG_RFC2253` and so NGINX's `$ssl_client_s_dn` have it:
//! RFC 2253 with OpenSSL's short names, every byte above 0x7E escaped, and values that are no text dumped as `#DER`.

use std::fmt::Write as _;

use x509_parser::der_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::x509::X509Name;

/// OpenSSL's short names of the attribute types that names have. An attribute that is not listed is written with its
/// number and its value as `#DER`, as OpenSSL writes those it does not know.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.14", "searchGuide"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.19", "physicalDeliveryOfficeName"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.31", "member"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.51", "houseIdentifier"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("2.5.4.98", "c3"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.9", "host"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
];

/// The whole name; `None` if a value is not what its type says, of which OpenSSL prints nothing either.
pub(super) fn rfc2253(name: &X509Name<'_>) -> Option<String> {
    let mut out = String::new();
    // RFC 2253 begins at the end of the sequence; OpenSSL turns the parts of a multi-valued RDN around with it.
    for (position, rdn) in name.iter_rdn().collect::<Vec<_>>().into_iter().rev().enumerate() {
        for (part, attribute) in rdn.iter().collect::<Vec<_>>().into_iter().rev().enumerate() {
            match (position, part) {
                (0, 0) => {}
                (_, 0) => out.push(','),
                _ => out.push('+'),
            }
            let oid = attribute.attr_type().to_id_string();
            let short = SHORT_NAMES.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
            out.push_str(short.unwrap_or(&oid));
            out.push('=');
            match text(attribute.attr_value()) {
                Value::Text(value) if short.is_some() => escape(&value, &mut out),
                Value::Broken => return None,
                _ => dump(attribute.attr_value(), &mut out)?,
            }
        }
    }
    Some(out)
}

pub(super) enum Value {
    Text(String),
    /// A type that holds no text.
    Other,
    /// Bytes that are not what the type says.
    Broken,
}

/// The characters of a string type; T61 and the like count as Latin-1, as everybody reads them.
pub(super) fn text(value: &Any<'_>) -> Value {
    let wide = |size: usize, character: fn(&[u8]) -> u32| {
        if value.data.len() % size != 0 {
            return None;
        }
        value.data.chunks(size).map(|chunk| char::from_u32(character(chunk))).collect::<Option<String>>()
    };
    let text = match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.data).ok().map(str::to_owned),
        Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::UtcTime
        | Tag::GeneralizedTime
        | Tag::VisibleString => Some(value.data.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString => wide(2, |chunk| chunk.iter().fold(0, |c, byte| c << 8 | u32::from(*byte))),
        Tag::UniversalString => wide(4, |chunk| chunk.iter().fold(0, |c, byte| c << 8 | u32::from(*byte))),
        _ => return Value::Other,
    };
    text.map_or(Value::Broken, Value::Text)
}

fn escape(value: &str, out: &mut String) {
    let last = value.len().wrapping_sub(1);
    for (position, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b' ' if position == 0 || position == last => out.push_str("\\ "),
            b'#' if position == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                // A String takes every write.
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

fn dump(value: &Any<'_>, out: &mut String) -> Option<()> {
    out.push('#');
    for byte in value.to_der_vec().ok()? {
        let _ = write!(out, "{byte:02X}");
    }
    Some(())
}
