//! Warns of a server certificate that clients will reject, whatever their trust anchors. Enters: the chain that the gateway
//! will send. Leaves: warnings.

use std::path::Path;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

use crate::config::{Complaint, Diagnostics, Located};
use crate::files::read_chain;
use crate::outcome::describe_webpki;
use crate::trust::{Purpose, TrustAnchors, allows_key_encipherment, may_sign_certificates, may_sign_handshakes};

/// Clients limit what a server may send: some to ten certificates, small ones to 16 KiB.
const MAX_CERTIFICATES: usize = 10;
const MAX_LEN: usize = 16 << 10;

/// Warns of what is wrong with a chain. `client_ca`: the anchors for devices, of which one may be the root of the chain.
pub(super) fn warn_of_unacceptable(
    chain: &[CertificateDer<'_>],
    client_ca: Option<&Path>,
    at: &impl Located,
    diagnostics: &mut Diagnostics,
) {
    let parsed: Vec<_> = chain.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let Some((leaf, authorities)) = parsed.split_first() else { return };
    let mut warn = |message: &str, hint: &str| diagnostics.warning(at, Complaint::new(message).hint(hint));
    warn_of_names(leaf, &mut warn);
    let usage = leaf.extended_key_usage().ok().flatten();
    if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        let message = "the server's certificate is not for servers: its extended key usage lacks serverAuth";
        return warn(message, "use a certificate that was issued to the gateway, not to a device");
    }
    if !may_sign_handshakes(leaf) && !allows_key_encipherment(leaf) {
        let message = "the server's certificate must not sign handshakes: its key usage lacks digitalSignature";
        return warn(message, "issue it again with keyUsage = digitalSignature");
    }
    if leaf.is_ca() && leaf.issuer() != leaf.subject() {
        return warn(
            "the server's certificate is that of a CA: many clients reject it",
            "issue it again with CA:FALSE",
        );
    }
    let is_issuer = |pair: &[X509Certificate<'_>]| pair[0].issuer() == pair[1].subject();
    if !parsed.windows(2).all(is_issuer) {
        let message =
            "the certificates are in the wrong order, or do not belong together: each must be issued by the next";
        return warn(message, "the server's own first, then the intermediate that issued it; no other certificates");
    }
    for authority in authorities {
        if let Some(message) = unfit(authority) {
            return warn(&message, "use the intermediate that the CA has for servers");
        }
    }
    let len: usize = chain.iter().map(|der| der.len()).sum();
    if len > MAX_LEN || chain.len() > MAX_CERTIFICATES {
        let message = format!("the chain has {} certificates and {len} bytes: many clients reject it", chain.len());
        return warn(&message, "it needs the server's own and the intermediates, not the root and not a bundle of CAs");
    }
    if let Some(message) = reason_to_reject(chain) {
        return warn(&message, "compare: openssl verify -purpose sslserver -untrusted FILE -CAfile ROOT FILE");
    }
    let is_self_issued = leaf.issuer() == leaf.subject();
    if authorities.is_empty() && !is_self_issued && (names_issuer(leaf) || !is_root(leaf.issuer(), client_ca)) {
        let message = format!("the file has no certificate of `{}`, which issued the server's", leaf.issuer());
        warn(&message, "append it, unless it is the root: clients that know only the root cannot build the chain");
    }
}

/// Whether an authority is a root: it is in `client_ca` and has issued itself, or the system trusts it.
fn is_root(authority: &X509Name<'_>, client_ca: Option<&Path>) -> bool {
    let devices = client_ca.and_then(|path| read_chain(path).ok()).unwrap_or_default();
    let is_it = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, it)| it.subject() == authority && it.issuer() == authority)
    };
    devices.iter().any(is_it) || TrustAnchors::of_system().has(authority)
}

/// Warns if clients cannot find the name of the gateway in its certificate.
fn warn_of_names(leaf: &X509Certificate<'_>, warn: &mut impl FnMut(&str, &str)) {
    let hint = "issue it again with the host name: `openssl req -addext subjectAltName=DNS:gw.example.com`";
    let Some(names) = leaf.subject_alternative_name().ok().flatten() else {
        return warn("the server's certificate has no subject alternative name: most clients reject it", hint);
    };
    let names = &names.value.general_names;
    if !names.iter().any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))) {
        return warn(
            "the server's certificate is for no host: its subject alternative names have neither a DNS name nor an address",
            hint,
        );
    }
    for name in names {
        if let GeneralName::DNSName(name) = name
            && !is_host(name)
        {
            warn(&format!("the server's certificate is for `{}`, which is no host name", name.escape_debug()), hint);
        }
    }
}

/// Whether this is a DNS name that clients can connect to, perhaps with a wildcard: no URL, port or address.
fn is_host(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label) && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// Why an authority must not issue certificates of servers.
fn unfit(authority: &X509Certificate<'_>) -> Option<String> {
    let usage = authority.extended_key_usage().ok().flatten();
    let why = if !authority.is_ca() {
        "is not a CA (basicConstraints without CA:TRUE)"
    } else if !may_sign_certificates(authority) {
        "must not sign certificates (keyUsage without keyCertSign)"
    } else if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        "must not issue certificates of servers (extendedKeyUsage without serverAuth)"
    } else {
        return None;
    };
    Some(format!("clients will reject the server's certificate: `{}`, which issued it, {why}", authority.subject()))
}

/// Why a client that trusts the last authority of the chain would reject it. Expiry has a warning of its own.
fn reason_to_reject(chain: &[CertificateDer<'_>]) -> Option<String> {
    let (leaf, rest) = chain.split_first()?;
    let (last, between) = rest.split_last()?;
    let anchors = TrustAnchors::of(last, Purpose::Servers)?;
    let leaf = EndEntityCert::try_from(leaf).ok()?;
    match anchors.verify(&leaf, between, between.len(), KeyUsage::server_auth(), UnixTime::now()) {
        Ok(_) | Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => None,
        Err(error) => Some(format!("clients will reject the server's certificate: {}", describe_webpki(&error))),
    }
}

/// Whether a certificate says where its issuer's can be fetched: that one is probably an intermediate.
fn names_issuer(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => {
            access.accessdescs.iter().any(|it| it.access_method == OID_PKIX_ACCESS_DESCRIPTOR_CA_ISSUERS)
        }
        _ => false,
    })
}
