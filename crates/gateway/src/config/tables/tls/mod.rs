//! `[listener.tls]`: its keys, and how they fit together. `server.rs` has the server's certificates, `client.rs` how
//! devices' certificates are verified, `keys.rs` pre-shared and raw public keys, `table.rs` what the file may contain.

mod client;
mod keys;
mod server;
mod table;

use std::time::Duration;

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Located, Location, Secret, Setting};
use super::warn_of_literal_secret;
pub use client::{ClientCertificates, Crl, CrlOrigin, Ocsp};
pub use keys::{Psk, RawKeys};
pub(super) use server::private_key;
pub use server::{CertificateFiles, PrivateKey};
use table::ResumptionMode;
pub(super) use table::TlsTable;
pub use table::{CipherPreference, OcspScope, OnFailure, PskFormat, TlsVersion};

/// What the wire has room for: a name has at most 255 bytes, all together 65,535 [RFC 7301, 3.1].
const MAX_ALPN: usize = 128;
/// The longest lifetime of a ticket [RFC 8446, 4.6.1].
const MAX_SESSION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Shortest secret that ticket keys may be derived from, in bytes.
const MIN_TICKET_SECRET: usize = 32;

/// The TLS side of a listener.
#[derive(Debug)]
pub struct Tls {
    /// Time from accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// At least one.
    pub versions: Vec<TlsVersion>,
    /// Application protocols offered by ALPN.
    pub alpn: Vec<String>,
    /// How the two sides authenticate.
    pub mode: TlsMode,
}

/// How the two sides of a handshake authenticate.
#[derive(Debug)]
pub enum TlsMode {
    /// The server has a certificate. Devices present certificates, raw public keys, or nothing.
    Certificate(Box<CertificateTls>),
    /// Both sides share a key.
    Psk(Setting<Psk>),
}

/// TLS with a server certificate.
#[derive(Debug)]
pub struct CertificateTls {
    /// The server's certificates, at least one.
    pub certificates: Setting<Vec<CertificateFiles>>,
    /// Whether the handshake includes an OCSP response for the server's certificate.
    pub stapling: bool,
    /// `None`: the gateway requests no client certificate.
    pub client: Option<ClientCertificates>,
    /// `None`: the gateway accepts no raw public keys.
    pub raw_keys: Option<RawKeys>,
    /// How clients resume sessions.
    pub resumption: Resumption,
    /// The cipher suites that the gateway chooses first.
    pub cipher_preference: CipherPreference,
}

/// How sessions are resumed.
#[derive(Debug)]
pub struct Resumption {
    /// Whether the gateway issues session tickets.
    pub tickets: bool,
    /// Whether the gateway caches session state.
    pub cache: bool,
    /// How long after its full handshake a session may be resumed.
    pub lifetime: Duration,
    /// The secret from which ticket keys are derived; `None`: random keys.
    pub ticket_secret: Option<Secret>,
}

/// `registries`: number of authenticators of the kind `registry`. `protocol`: what is spoken over TLS, by its name for ALPN.
pub(super) fn validate(
    table: &Setting<TlsTable>,
    protocol: &str,
    registries: usize,
    document: &mut Document,
) -> Result<Tls, Reported> {
    let versions = if table.versions.is_empty() && !document.is_unread("versions", table) {
        Err(document.error(&table.versions, Complaint::new("`versions` is empty").hint("[\"1.2\", \"1.3\"]")))
    } else {
        Ok(table.versions.value.clone())
    };
    let alpn = table.alpn.clone().unwrap_or_else(|| vec![protocol.to_owned()]);
    if let Some(wrong) = alpn.iter().find(|protocol| !(1..=255).contains(&protocol.len())) {
        document.error(table, format!("`{wrong}` in `alpn` must have 1 to 255 bytes"));
    } else if alpn.len() > MAX_ALPN {
        document.error(table, format!("`alpn` must have at most {MAX_ALPN} protocols"));
    }
    let mode = match &table.psk {
        Some(psk) => {
            reject_beside_psk(table, document);
            keys::validate_psk(psk, registries, document).map(TlsMode::Psk)
        }
        None => validate_certificate_tls(table, registries, document).map(|tls| TlsMode::Certificate(Box::new(tls))),
    };
    Ok(Tls { handshake_timeout: table.handshake_timeout.0, versions: versions?, alpn, mode: mode? })
}

fn validate_certificate_tls(
    table: &Setting<TlsTable>,
    registries: usize,
    document: &mut Document,
) -> Result<CertificateTls, Reported> {
    let raw_keys = table.raw_keys.as_ref().map(|keys| keys::validate_raw_keys(keys, registries, document)).transpose();
    let in_certificates = table.raw_keys.as_ref().is_some_and(|keys| keys.certificates);
    if table.raw_keys.is_some() && !in_certificates && !table.versions.contains(&TlsVersion::V13) {
        document.error(&table.versions, "raw public keys require TLS 1.3");
    }
    if let (Some(ca), Some(raw_keys)) = (&table.client_ca, &table.raw_keys)
        && raw_keys.registry.value
    {
        let message = "a device that is pinned to its certificate's key may present that key without the certificate";
        let hint = "the gateway then checks neither expiry nor revocation; pin certificates by `--fingerprint`, or use two listeners";
        document.warning(ca, Complaint::new(message).hint(hint));
    }
    let certificates = server::validate(table, document);
    let client = client::validate(table, document);
    let resumption = validate_resumption(table, document);
    Ok(CertificateTls {
        certificates: certificates?,
        stapling: table.ocsp_stapling.value,
        client: client?,
        raw_keys: raw_keys?,
        resumption: resumption?,
        cipher_preference: table.cipher_preference.value,
    })
}

fn validate_resumption(table: &TlsTable, document: &mut Document) -> Result<Resumption, Reported> {
    if table.session_lifetime.value.0 > MAX_SESSION_LIFETIME {
        return Err(document.error(&table.session_lifetime, "`session_lifetime` must be at most 7d"));
    }
    let mode = table.resumption.value;
    let tickets = matches!(mode, ResumptionMode::Tickets | ResumptionMode::Both);
    if let Some(secret) = &table.ticket_secret {
        if secret.expose().len() < MIN_TICKET_SECRET {
            let message = format!("`ticket_secret` must have at least {MIN_TICKET_SECRET} characters");
            return Err(document
                .error(secret, Complaint::new(message).hide_line().hint("create one with `openssl rand -hex 32`")));
        }
        if !tickets {
            let complaint = Complaint::new("`ticket_secret` has no effect: `resumption` issues no tickets");
            return Err(document.error(secret, complaint.hide_line()));
        }
        let hint = "ticket_secret = \"${FILE:ticket.secret}\"";
        warn_of_literal_secret(secret, "the configuration file contains a secret in plain text", hint, document);
    }
    Ok(Resumption {
        tickets,
        cache: matches!(mode, ResumptionMode::Cache | ResumptionMode::Both),
        lifetime: table.session_lifetime.value.0,
        ticket_secret: table.ticket_secret.as_ref().map(|secret| secret.value.clone()),
    })
}

/// Rejects keys that exclude `psk`. A listener with pre-shared keys has no certificate: with one, a TLS 1.3 server may
/// choose the certificate and ignore the key.
fn reject_beside_psk(table: &TlsTable, document: &mut Document) {
    // Without `..`, so that a new key is in one of the two groups.
    let TlsTable {
        certificate,
        private_key,
        private_key_passphrase,
        client_auth,
        client_ca,
        send_ca_names,
        verify_depth,
        crl,
        crl_distribution_points,
        crl_missing,
        revocation_refresh,
        ocsp,
        ocsp_responder,
        ocsp_failure,
        ocsp_timeout,
        ocsp_stapling,
        resumption,
        session_lifetime,
        ticket_secret,
        raw_keys,
        cipher_preference,
        psk: _,
        versions: _,
        handshake_timeout: _,
        alpn: _,
    } = table;
    let others = [
        ("certificate", at(certificate.as_ref())),
        ("private_key", at(private_key.as_ref())),
        ("private_key_passphrase", at(private_key_passphrase.as_ref())),
        ("client_auth", at(client_auth.as_ref())),
        ("client_ca", at(client_ca.as_ref())),
        ("send_ca_names", send_ca_names.location()),
        ("verify_depth", verify_depth.location()),
        ("crl", crl.first().and_then(Located::location)),
        ("crl_distribution_points", crl_distribution_points.location()),
        ("crl_missing", crl_missing.location()),
        ("revocation_refresh", revocation_refresh.location()),
        ("ocsp", ocsp.location()),
        ("ocsp_responder", at(ocsp_responder.as_ref())),
        ("ocsp_failure", ocsp_failure.location()),
        ("ocsp_timeout", ocsp_timeout.location()),
        ("ocsp_stapling", ocsp_stapling.location()),
        ("resumption", resumption.location()),
        ("session_lifetime", session_lifetime.location()),
        ("ticket_secret", at(ticket_secret.as_ref())),
        ("raw_keys", at(raw_keys.as_ref())),
        ("cipher_preference", cipher_preference.location()),
    ];
    for (key, location) in others {
        let Some(location) = location else { continue };
        let complaint = Complaint::new(format!("`{key}` cannot be combined with `psk`"));
        let hint = match key {
            "cipher_preference" => {
                "pre-shared keys have cipher suites of their own, of which TLS 1.3 chooses AES-128 first"
            }
            _ => "pre-shared keys require their own listener, without certificates and without resumption",
        };
        document.error(location, complaint.hint(hint));
    }
}

fn at<T>(setting: Option<&Setting<T>>) -> Option<&Location> {
    setting?.location()
}
