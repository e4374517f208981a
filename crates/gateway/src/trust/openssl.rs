//! OpenSSL's own settings for a certificate, which follow it in a section `TRUSTED CERTIFICATE`: `openssl x509 -trustout`
//! writes them, with `-addtrust` and `-addreject`.

use x509_parser::asn1_rs::{Any, Class, FromDer, Oid, Sequence, Tag};

use super::Purpose;

// [RFC 5280, 4.2.1.12]
const ANY: &str = "2.5.29.37.0";
const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";

/// Whether the settings allow an anchor to be trusted for a purpose, as OpenSSL evaluates them: a rejected purpose is not
/// allowed, and if purposes are trusted, no other is. `settings`: in DER, perhaps empty; `None`: they cannot be parsed.
pub(super) fn allows(settings: &[u8], purpose: Purpose) -> Option<bool> {
    if settings.is_empty() {
        return Some(true);
    }
    let (rest, sequence) = Sequence::from_der(settings).ok()?;
    let (mut content, mut trusted, mut rejected) = (sequence.content.as_ref(), Vec::new(), Vec::new());
    while !content.is_empty() {
        let (after, field) = Any::from_der(content).ok()?;
        match (field.class(), field.tag()) {
            (Class::Universal, Tag::Sequence) => trusted = oids(field.data)?,
            (Class::ContextSpecific, Tag(0)) => rejected = oids(field.data)?,
            // A name, an identifier of the key, and others.
            _ => {}
        }
        content = after;
    }
    let wanted = match purpose {
        Purpose::Clients => CLIENT_AUTH,
        Purpose::Servers => SERVER_AUTH,
    };
    let has = |list: &[Oid<'_>]| list.iter().map(Oid::to_id_string).any(|oid| oid == wanted || oid == ANY);
    rest.is_empty().then(|| !has(&rejected) && (trusted.is_empty() || has(&trusted)))
}

fn oids(mut content: &[u8]) -> Option<Vec<Oid<'_>>> {
    let mut all = Vec::new();
    while !content.is_empty() {
        let (rest, oid) = Oid::from_der(content).ok()?;
        all.push(oid);
        content = rest;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_is_rejected_or_among_those_that_are_trusted() {
        const CLIENT: &str = "06082b06010505070302";
        const SERVER: &str = "06082b06010505070301";
        let settings = |trusted: &str, rejected: &str| {
            let list = |tag: &str, list: &str| match list.len() / 2 {
                0 => String::new(),
                len => format!("{tag}{len:02x}{list}"),
            };
            let content = list("30", trusted) + &list("a0", rejected) + "0c0161";
            hex::decode(format!("30{:02x}{content}", content.len() / 2)).unwrap()
        };
        for (trusted, rejected, clients, servers) in [
            ("", "", true, true),
            (CLIENT, "", true, false),
            ("", CLIENT, false, true),
            (CLIENT, CLIENT, false, false),
            ("0604551d2500", "", true, true),
            ("", "0604551d2500", false, false),
            (&*format!("{CLIENT}{SERVER}"), "", true, true),
        ] {
            let settings = settings(trusted, rejected);
            let found = (allows(&settings, Purpose::Clients), allows(&settings, Purpose::Servers));
            assert_eq!(found, (Some(clients), Some(servers)), "{trusted} {rejected}");
        }
        assert_eq!(allows(&[], Purpose::Clients), Some(true));
        for broken in [&b"\x30"[..], b"\x30\x02\x30\x05", b"\x30\x00\x00", b"\x30\x04\x30\x02\x06\x05"] {
            assert_eq!(allows(broken, Purpose::Clients), None, "{broken:?}");
        }
    }
}
