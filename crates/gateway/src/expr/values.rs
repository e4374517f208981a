//! The values that facts can have, where their format is fixed: a comparison with another one is a mistake.

use std::net::IpAddr;

/// Describes the values of a fact if this is none of them; `None`: it may be one, or anything is.
pub(super) fn expected(path: &str, value: &str) -> Option<&'static str> {
    let (is_possible, expected) = match path {
        "mqtt.version" => (["3", "4", "5"].contains(&value), "3 (MQTT 3.1), 4 (MQTT 3.1.1) or 5"),
        "tls.version" => (["TLSv1.2", "TLSv1.3"].contains(&value), "`TLSv1.2` or `TLSv1.3`"),
        "auth.kind" => (
            ["password_file", "jwt", "http", "registry"].contains(&value),
            "`password_file`, `jwt`, `http` or `registry`",
        ),
        "cert.serial" => (
            is_hex(value.strip_prefix('-').unwrap_or(value), true),
            "in upper-case hexadecimal without colons, as `0A1B`",
        ),
        "cert.fingerprint.sha256" | "tls.key_fingerprint" => {
            (value.len() == 64 && is_hex(value, false), "64 digits of lower-case hexadecimal without colons")
        }
        "cert.fingerprint.sha1" => {
            (value.len() == 40 && is_hex(value, false), "40 digits of lower-case hexadecimal without colons")
        }
        "cert.subject.dn" | "cert.issuer.dn" => (is_name(value), "in the format of RFC 2253, as `CN=thing001,O=Acme`"),
        "conn.remote_addr" | "conn.peer_addr" => (
            value == "unix:" || value.parse::<IpAddr>().is_ok(),
            "one address, or `unix:`; networks belong in `allow` and `deny`",
        ),
        _ => return None,
    };
    (!is_possible).then_some(expected)
}

fn is_hex(text: &str, upper: bool) -> bool {
    let is_digit = |byte: u8| {
        byte.is_ascii_digit() || if upper { (b'A'..=b'F').contains(&byte) } else { (b'a'..=b'f').contains(&byte) }
    };
    !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(is_digit)
}

/// Whether this may be a name in the format of RFC 2253: neither OpenSSL's `/CN=a` nor blanks between attributes.
fn is_name(text: &str) -> bool {
    let has_blank = |(at, _): (usize, &str)| {
        let next = text[at + 2..].split(['=', ',']).next().unwrap_or_default();
        !text[..at].ends_with('\\')
            && text[at + 2..].contains('=')
            && next.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    !text.starts_with('/') && !text.match_indices(", ").any(has_blank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fact_never_is_is_recognised() {
        for (path, value, is_possible) in [
            ("mqtt.version", "4", true),
            ("mqtt.version", "3.1", false),
            ("tls.version", "TLSv1.3", true),
            ("tls.version", "1.3", false),
            ("auth.kind", "password", false),
            ("cert.serial", "0A1B", true),
            ("cert.serial", "-05", true),
            ("cert.serial", "0a1b", false),
            ("cert.serial", "0A:1B", false),
            ("cert.fingerprint.sha256", "9F:86", false),
            ("cert.issuer.dn", "CN=Fleet,O=Acme", true),
            ("cert.issuer.dn", "CN=Fleet\\, Inc,O=Acme", true),
            ("cert.issuer.dn", "O=Acme, CN=Fleet", false),
            ("cert.issuer.dn", "/O=Acme/CN=Fleet", false),
            ("conn.remote_addr", "2001:db8::1", true),
            ("conn.remote_addr", "10.0.0.0/8", false),
            ("mqtt.client_id", "anything", true),
        ] {
            assert_eq!(expected(path, value).is_none(), is_possible, "{path} {value}");
        }
    }
}
