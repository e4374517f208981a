//! Name constraints on what a subject contains. webpki applies the constraints of a CA to subjectAltName only. Devices are
//! identified by the common name, so a CA that may only issue for `lyon.example.com` must not issue `CN=paris.example.com`: a
//! common name that looks like a DNS name counts as one. OpenSSL has the same rule, but not if subjectAltName has DNS names:
//! with one that is permitted, a CA could give its devices any common name.

use x509_parser::extensions::{GeneralName, GeneralSubtree};
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::AttributeTypeAndValue;

use crate::peer::text_of;

/// The constraints of a CA on DNS names and email addresses [RFC 5280, 4.2.1.10].
#[derive(Debug, Default)]
pub(super) struct SubjectConstraints {
    dns: Subtrees,
    email: Subtrees,
}

#[derive(Debug, Default)]
struct Subtrees {
    permitted: Vec<String>,
    excluded: Vec<String>,
}

impl SubjectConstraints {
    /// The constraints of a CA; `None` if it has none on such names.
    pub(super) fn of(authority: &X509Certificate<'_>) -> Option<Self> {
        let constraints = authority.name_constraints().ok().flatten()?.value;
        let mut all = Self::default();
        for (subtrees, are_excluded) in
            [(&constraints.permitted_subtrees, false), (&constraints.excluded_subtrees, true)]
        {
            for GeneralSubtree { base } in subtrees.iter().flatten() {
                let (of_kind, name) = match base {
                    GeneralName::DNSName(name) => (&mut all.dns, name),
                    GeneralName::RFC822Name(name) => (&mut all.email, name),
                    _ => continue,
                };
                let list = if are_excluded { &mut of_kind.excluded } else { &mut of_kind.permitted };
                list.push(name.to_ascii_lowercase());
            }
        }
        (!all.dns.is_empty() || !all.email.is_empty()).then_some(all)
    }

    /// Whether a CA may have constraints, without parsing its certificate: its DER has the OID of the extension.
    pub(super) fn may_be_in(der: &[u8]) -> bool {
        const OID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1e];
        der.windows(OID.len()).any(|bytes| bytes == OID)
    }

    /// Whether the subject of a certificate satisfies them.
    pub(super) fn allow(&self, certificate: &X509Certificate<'_>) -> bool {
        let subject = certificate.subject();
        // Decoded as expressions see them. What is no text cannot be compared, and is rejected.
        let allows_name = |name: &str| !is_dns_name(name) || self.dns.allow(name, is_in_domain);
        let allows_email = |email: &str| self.email.allow(email, is_in_mailboxes);
        let text = |attribute: &AttributeTypeAndValue<'_>| text_of(attribute.attr_value());
        (self.dns.is_empty() || subject.iter_common_name().all(|it| text(it).is_some_and(|name| allows_name(&name))))
            && (self.email.is_empty() || subject.iter_email().all(|it| text(it).is_some_and(|it| allows_email(&it))))
    }
}

impl Subtrees {
    fn is_empty(&self) -> bool {
        self.permitted.is_empty() && self.excluded.is_empty()
    }

    fn allow(&self, name: &str, is_in: fn(&str, &str) -> bool) -> bool {
        let name = name.to_ascii_lowercase();
        (self.permitted.is_empty() || self.permitted.iter().any(|base| is_in(&name, base)))
            && !self.excluded.iter().any(|base| is_in(&name, base))
    }
}

/// Whether a common name looks like a DNS name: letters, digits, `-`, `_` and `*`, in two labels or more.
fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*'))
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.contains('.') && name.split('.').all(is_label)
}

fn is_in_domain(name: &str, base: &str) -> bool {
    let (name, base) = (name.strip_suffix('.').unwrap_or(name), base.strip_prefix('.').unwrap_or(base));
    base.is_empty() || name.strip_suffix(base).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `base` is a mailbox, a host, or a domain with a leading dot.
fn is_in_mailboxes(email: &str, base: &str) -> bool {
    let host = email.rsplit_once('@').map_or(email, |(_, host)| host);
    match base.rsplit_once('@') {
        Some(("", base)) => host == base,
        Some(_) => email == base,
        None if base.starts_with('.') => host.ends_with(base),
        None => host == base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_label_and_case_does_not_matter() {
        let subtrees = |permitted: &[&str], excluded: &[&str]| Subtrees {
            permitted: permitted.iter().map(|name| (*name).to_owned()).collect(),
            excluded: excluded.iter().map(|name| (*name).to_owned()).collect(),
        };
        for (permitted, excluded, name, expected) in [
            (&["example.com"][..], &[][..], "a.example.com", true),
            (&["example.com"], &[], "EXAMPLE.com", true),
            (&["example.com"], &[], "example.com.", true),
            (&["example.com"], &[], "evilexample.com", false),
            (&["example.com"], &[], "example.org", false),
            (&[], &["example.com"], "a.example.com", false),
            (&[], &["example.com"], "example.org", true),
            (&["example.com"], &["b.example.com"], "a.b.example.com", false),
            (&[""], &[], "any.name", true),
        ] {
            assert_eq!(subtrees(permitted, excluded).allow(name, is_in_domain), expected, "{name} {permitted:?}");
        }
        for (base, email, expected) in [
            ("a@example.com", "a@example.com", true),
            ("a@example.com", "b@example.com", false),
            ("example.com", "b@example.com", true),
            ("example.com", "b@x.example.com", false),
            (".example.com", "b@x.example.com", true),
            (".example.com", "b@example.com", false),
        ] {
            assert_eq!(is_in_mailboxes(email, base), expected, "{base} {email}");
        }
        for (name, expected) in [("thing001", false), ("a.b", true), ("a b.c", false), ("a..b", false), ("*.b", true)] {
            assert_eq!(is_dns_name(name), expected, "{name}");
        }
    }
}
