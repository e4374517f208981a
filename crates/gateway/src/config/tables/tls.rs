//! `[listener.tls]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Located, Secret, Setting, Timeout};
use super::warn_of_literal_secret;
use crate::util::url::is_url;

/// webpki follows at most this many intermediates.
const MAX_VERIFY_DEPTH: u8 = 6;
/// The longest lifetime of a ticket [RFC 8446, 4.6.1].
const MAX_SESSION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Shortest secret that ticket keys may be derived from, in bytes.
const MIN_TICKET_SECRET: usize = 32;

/// TLS towards clients.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ListenerTls")]
pub(super) struct TlsTable {
    /// PEM file of the server's certificate chain, leaf first. Or a list of tables `{ certificate, private_key,
    /// private_key_passphrase }`, of which SNI selects one; the first serves unknown names and clients without SNI.
    /// Reloaded when it changes. Not with `psk`.
    certificate: Option<Setting<CertificatesTable>>,
    /// PEM file of the private key, or a PKCS#11 URI (`pkcs11:...`) of a key in a token. The file is reloaded when it
    /// changes. Required with one `certificate`; a list has its own keys.
    private_key: Option<Setting<String>>,
    /// Passphrase of an encrypted private key. Default: none.
    private_key_passphrase: Option<Setting<Secret>>,
    /// Whether clients present a certificate: `required`, `optional` (one that is presented must be valid) or `none`.
    /// Default: `required` if `client_ca` is set, else `none`.
    client_auth: Option<Setting<ClientAuth>>,
    /// PEM bundle of trust anchors for client certificates. Reloaded when it changes. Default: the gateway requests no
    /// client certificate.
    client_ca: Option<Setting<PathBuf>>,
    /// Number of intermediate certificates that a client's certificate chain may have, 0 to 6.
    verify_depth: Setting<u8>,
    /// Certificate revocation lists (CRLs): PEM or DER files, `http` or `https` URLs. If there is one, every
    /// certificate of a chain needs a CRL of its issuer. Default: CRLs are not checked.
    crl: Vec<Setting<String>>,
    /// Whether the gateway also fetches CRLs from the distribution points that certificates name.
    crl_distribution_points: bool,
    /// What happens to a client whose CRL is missing or out of date: `refuse` or `allow`.
    crl_missing: Setting<OnFailure>,
    /// Longest time between two fetches of a CRL, and between two OCSP requests about a connected client.
    revocation_refresh: Timeout,
    /// Certificates that the gateway checks by OCSP: `off`, `leaf` (the client's own) or `chain` (with the
    /// intermediates).
    ocsp: OcspScope,
    /// URL of the OCSP responder. Default: the URL that the certificate names.
    ocsp_responder: Option<Setting<String>>,
    /// What happens to a client for which no OCSP responder answers: `refuse` or `allow`.
    ocsp_failure: Setting<OnFailure>,
    /// How long a client waits, after its handshake, for OCSP responses and for CRLs of distribution points; and how
    /// long a start or reload waits for CRLs from URLs.
    ocsp_timeout: Timeout,
    /// Whether the handshake carries an OCSP response about the server's own certificate.
    ocsp_stapling: bool,
    /// How clients resume TLS sessions: `tickets`, `cache` (the gateway keeps the session), `both` or `off`.
    resumption: Setting<ResumptionMode>,
    /// How long after its full handshake a session may be resumed; at most `7d`.
    session_lifetime: Setting<Timeout>,
    /// Secret from which session ticket keys are derived, at least 32 characters. Gateways with the same secret accept
    /// each other's tickets on listeners of the same name. Default: random keys.
    ticket_secret: Option<Setting<Secret>>,
    /// Pre-shared keys in place of certificates. Default: none.
    psk: Option<Setting<PskTable>>,
    /// Raw public keys (RFC 7250) of clients without certificates. Default: none.
    raw_keys: Option<Setting<RawKeysTable>>,
    /// TLS versions offered: `1.2`, `1.3`, or both.
    versions: Setting<Vec<TlsVersion>>,
    /// Time for the TLS handshake, from accept.
    handshake_timeout: Timeout,
    /// Application protocols offered by ALPN. A client that offers none is served; a client that offers only others is
    /// rejected.
    alpn: Vec<String>,
}

impl Default for TlsTable {
    fn default() -> Self {
        let hour = Duration::from_secs(60 * 60);
        Self {
            certificate: None,
            private_key: None,
            private_key_passphrase: None,
            client_auth: None,
            client_ca: None,
            verify_depth: Setting::default_of(2),
            crl: Vec::new(),
            crl_distribution_points: false,
            crl_missing: Setting::default_of(OnFailure::Refuse),
            revocation_refresh: Timeout(hour / 4),
            ocsp: OcspScope::Off,
            ocsp_responder: None,
            ocsp_failure: Setting::default_of(OnFailure::Refuse),
            ocsp_timeout: Timeout(Duration::from_secs(5)),
            ocsp_stapling: false,
            resumption: Setting::default_of(ResumptionMode::Both),
            session_lifetime: Setting::default_of(Timeout(hour)),
            ticket_secret: None,
            psk: None,
            raw_keys: None,
            versions: Setting::default_of(vec![TlsVersion::V12, TlsVersion::V13]),
            handshake_timeout: Timeout(Duration::from_secs(10)),
            alpn: vec!["mqtt".to_owned()],
        }
    }
}

/// One certificate file, or a list of certificates with their keys, selected by SNI.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Certificates")]
enum CertificatesTable {
    /// PEM file of the only certificate chain.
    One(PathBuf),
    /// Certificates to select from by SNI.
    Many(Vec<CertificatePair>),
}

impl<'de> Deserialize<'de> for CertificatesTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(path) => Ok(Self::One(path.into())),
            list => match Vec::deserialize(list) {
                Ok(pairs) => Ok(Self::Many(pairs)),
                Err(error) => Err(D::Error::custom(error.message())),
            },
        }
    }
}

/// A certificate and its private key.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CertificatePair {
    /// PEM file of the certificate chain, leaf first.
    certificate: PathBuf,
    /// PEM file of the private key, or a PKCS#11 URI of a key in a token.
    private_key: String,
    /// Passphrase of an encrypted private key. Default: none.
    private_key_passphrase: Option<Secret>,
}

/// Whether clients present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ClientAuth {
    /// The handshake fails without a valid certificate.
    Required,
    /// A client may leave the certificate out. One that is presented must be valid.
    Optional,
    /// The gateway requests no certificate.
    None,
}

/// What happens to a client whose revocation status is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The gateway rejects it (fails closed).
    Refuse,
    /// The gateway accepts it.
    Allow,
}

/// Certificates that the gateway checks by OCSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OcspScope {
    /// None.
    Off,
    /// The device's own.
    Leaf,
    /// The device's own and those of the intermediates.
    Chain,
}

/// How clients resume TLS sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Resumption")]
enum ResumptionMode {
    /// The client keeps the session state in a session ticket, encrypted by the gateway.
    Tickets,
    /// The gateway keeps the session state.
    Cache,
    /// Session tickets for clients that support them, the cache for others.
    Both,
    /// Every handshake is a full one.
    Off,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V13,
}

/// TLS with pre-shared keys (RFC 4279, RFC 5489, RFC 8446), in place of certificates.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Psk")]
struct PskTable {
    /// File of `identity:key` lines. Reloaded when it changes. Default: none.
    file: Option<Setting<PathBuf>>,
    /// How the file writes keys: `hex` (as mosquitto) or `raw` (as EMQX). Required with `file`.
    format: Option<Setting<PskFormat>>,
    /// Whether devices of the registry that have a pre-shared key are accepted, too.
    registry: Setting<bool>,
}

/// How a file writes pre-shared keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PskFormat {
    /// Two hexadecimal digits for each byte.
    Hex,
    /// The bytes themselves.
    Raw,
}

/// Raw public keys (RFC 7250): clients authenticate by a key without a certificate. TLS 1.3 only.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "RawKeys")]
struct RawKeysTable {
    /// File of `name:fingerprint` lines; the fingerprint is the SHA-256 of the key's SubjectPublicKeyInfo, in hex or
    /// base64. Reloaded when it changes. Default: none.
    file: Option<Setting<PathBuf>>,
    /// Whether keys that devices of the registry are pinned to are accepted, too.
    registry: Setting<bool>,
}

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
}

/// A certificate and its key.
#[derive(Debug)]
pub struct CertificateFiles {
    /// PEM file of the chain, leaf first.
    pub chain: PathBuf,
    /// Its private key.
    pub key: Setting<PrivateKey>,
}

/// The location of a private key.
#[derive(Clone, Debug)]
pub enum PrivateKey {
    /// A PEM file, and the passphrase that decrypts it.
    File(PathBuf, Option<Secret>),
    /// PKCS#11 URI of a key in a token, and the directory that paths in the URI are relative to.
    Pkcs11(Secret, PathBuf),
}

/// How devices' certificates are verified.
#[derive(Debug)]
pub struct ClientCertificates {
    /// Whether the handshake fails without a certificate.
    pub required: bool,
    /// PEM bundle of trust anchors.
    pub ca: Setting<PathBuf>,
    /// Number of intermediates that a chain may have.
    pub verify_depth: usize,
    /// Certificate revocation lists.
    pub crl: Crl,
    /// OCSP.
    pub ocsp: Ocsp,
    /// Longest time between two fetches of a CRL or an OCSP response.
    pub refresh: Duration,
}

/// Certificate revocation lists.
#[derive(Debug)]
pub struct Crl {
    /// Files and URLs.
    pub origins: Vec<Setting<CrlOrigin>>,
    /// Whether the gateway also fetches CRLs from distribution points.
    pub distribution_points: bool,
    /// What happens to a device whose CRL is missing or out of date.
    pub missing: OnFailure,
}

/// The source of a CRL.
#[derive(Clone, Debug)]
pub enum CrlOrigin {
    /// A PEM or DER file.
    File(PathBuf),
    /// An `http` or `https` URL.
    Url(String),
}

/// The online certificate status protocol [RFC 6960].
#[derive(Debug)]
pub struct Ocsp {
    /// Certificates that the gateway checks by OCSP.
    pub scope: OcspScope,
    /// URL of the responder; `None`: the one that the certificate names.
    pub responder: Option<String>,
    /// What happens to a device if no responder responds in time.
    pub failure: OnFailure,
    /// How long a device waits for revocation data.
    pub timeout: Duration,
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

/// Pre-shared keys.
#[derive(Debug)]
pub struct Psk {
    /// File of `identity:key` lines, and its format.
    pub file: Option<(Setting<PathBuf>, PskFormat)>,
    /// Whether keys of devices in the registry are accepted.
    pub registry: bool,
}

/// Raw public keys.
#[derive(Debug)]
pub struct RawKeys {
    /// File of `name:fingerprint` lines.
    pub file: Option<Setting<PathBuf>>,
    /// Whether keys of devices in the registry are accepted.
    pub registry: bool,
}

/// `registries`: number of authenticators of the kind `registry`.
pub(super) fn validate(table: &Setting<TlsTable>, registries: usize, document: &mut Document) -> Result<Tls, Reported> {
    let versions = if table.versions.is_empty() {
        Err(document.error(&table.versions, Complaint::new("`versions` is empty").hint("[\"1.2\", \"1.3\"]")))
    } else {
        Ok(table.versions.value.clone())
    };
    let mode = match &table.psk {
        Some(psk) => {
            reject_beside_psk(table, document);
            validate_psk(psk, registries, document).map(TlsMode::Psk)
        }
        None => validate_certificate_tls(table, registries, document).map(|tls| TlsMode::Certificate(Box::new(tls))),
    };
    Ok(Tls { handshake_timeout: table.handshake_timeout.0, versions: versions?, alpn: table.alpn.clone(), mode: mode? })
}

fn validate_certificate_tls(
    table: &Setting<TlsTable>,
    registries: usize,
    document: &mut Document,
) -> Result<CertificateTls, Reported> {
    let raw_keys = table.raw_keys.as_ref().map(|keys| validate_raw_keys(keys, registries, document)).transpose();
    if table.raw_keys.is_some() && !table.versions.contains(&TlsVersion::V13) {
        document.error(&table.versions, "raw public keys require TLS 1.3");
    }
    if let (Some(ca), Some(raw_keys)) = (&table.client_ca, &table.raw_keys)
        && raw_keys.registry.value
    {
        let message = "a device that is pinned to its certificate's key may present that key without the certificate";
        let hint = "the gateway then checks neither expiry nor revocation; pin certificates by `--fingerprint`, or use two listeners";
        document.warning(ca, Complaint::new(message).hint(hint));
    }
    let certificates = validate_certificates(table, document);
    let client = validate_client(table, document);
    let resumption = validate_resumption(table, document);
    Ok(CertificateTls {
        certificates: certificates?,
        stapling: table.ocsp_stapling,
        client: client?,
        raw_keys: raw_keys?,
        resumption: resumption?,
    })
}

fn validate_certificates(
    table: &Setting<TlsTable>,
    document: &mut Document,
) -> Result<Setting<Vec<CertificateFiles>>, Reported> {
    let hint = "a PEM file of the server's certificate chain, leaf first";
    let certificate = document.require(table.certificate.as_ref(), table, "certificate", hint)?;
    let mut files = Vec::new();
    match (&certificate.value, &table.private_key) {
        (CertificatesTable::One(chain), key) => {
            let hint = "a PEM file of the certificate's private key";
            let key = document.require(key.as_ref(), table, "private_key", hint)?;
            let passphrase = table.private_key_passphrase.as_ref().map(|passphrase| &passphrase.value);
            files
                .push(CertificateFiles { chain: document.resolve(chain), key: private_key(key, passphrase, document) });
        }
        (CertificatesTable::Many(_), Some(key)) => {
            let complaint = Complaint::new("each certificate in the list has its own key");
            return Err(document.error(key, complaint.hint("set `private_key` in each table of the list")));
        }
        (CertificatesTable::Many(pairs), None) => {
            for pair in pairs {
                let key = certificate.map(|_| pair.private_key.clone());
                let key = private_key(&key, pair.private_key_passphrase.as_ref(), document);
                files.push(CertificateFiles { chain: document.resolve(&pair.certificate), key });
            }
        }
    }
    if files.is_empty() {
        return Err(document.error(certificate, "`certificate` is an empty list"));
    }
    Ok(certificate.map(|_| files))
}

/// Parses a path or a PKCS#11 URI. The scheme is case-insensitive [RFC 3986, 3.1]: if `PKCS11:` counted as a path,
/// errors would show the PIN.
pub(super) fn private_key(
    text: &Setting<String>,
    passphrase: Option<&Secret>,
    document: &Document,
) -> Setting<PrivateKey> {
    let is_uri = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("pkcs11:"));
    text.map(|text| {
        if is_uri {
            PrivateKey::Pkcs11(Secret::new(text), document.resolve(Path::new("")))
        } else {
            PrivateKey::File(document.resolve(Path::new(text)), passphrase.cloned())
        }
    })
}

/// How the gateway verifies devices' certificates; `None`: it requests none.
fn validate_client(table: &Setting<TlsTable>, document: &mut Document) -> Result<Option<ClientCertificates>, Reported> {
    let checks_revocation = !table.crl.is_empty() || table.crl_distribution_points || table.ocsp != OcspScope::Off;
    if table.client_ca.is_none() && checks_revocation {
        let message = "`crl`, `crl_distribution_points` and `ocsp` require `client_ca`";
        match table.crl.first() {
            Some(crl) => document.error(crl, message),
            None => document.error(table, message),
        };
    }
    let auth = table.client_auth.as_ref().map(|auth| auth.value);
    match (auth, &table.client_ca) {
        (None | Some(ClientAuth::None), None) => Ok(None),
        (Some(ClientAuth::None), Some(ca)) => {
            let complaint = Complaint::new("`client_ca` is set, but `client_auth = \"none\"`");
            Err(document.error(ca, complaint.hint("remove one of them")))
        }
        (Some(ClientAuth::Required | ClientAuth::Optional), None) => {
            let at: &dyn Located = table.client_auth.as_ref().map_or(table as &dyn Located, |auth| auth);
            Err(document.error(&at.location().cloned().unwrap_or_default(), "`client_auth` requires `client_ca`"))
        }
        (None | Some(ClientAuth::Required | ClientAuth::Optional), Some(ca)) => {
            validate_revocation(table, document);
            let required = auth != Some(ClientAuth::Optional);
            Ok(Some(ClientCertificates {
                required,
                ca: ca.map(|ca| document.resolve(ca)),
                verify_depth: usize::from(table.verify_depth.value),
                crl: Crl {
                    origins: table.crl.iter().filter_map(|crl| crl_origin(crl, document).ok()).collect(),
                    distribution_points: table.crl_distribution_points,
                    missing: table.crl_missing.value,
                },
                ocsp: Ocsp {
                    scope: table.ocsp,
                    responder: table.ocsp_responder.as_ref().map(|url| url.value.clone()),
                    failure: table.ocsp_failure.value,
                    timeout: table.ocsp_timeout.0,
                },
                refresh: table.revocation_refresh.0,
            }))
        }
    }
}

fn validate_revocation(table: &TlsTable, document: &mut Document) {
    if table.verify_depth.value > MAX_VERIFY_DEPTH {
        document.error(&table.verify_depth, format!("`verify_depth` must be at most {MAX_VERIFY_DEPTH}"));
    }
    if let Some(url) = &table.ocsp_responder {
        if let Ok(()) = reject_substitution(url, document)
            && !is_url(url)
        {
            let complaint = Complaint::new(format!("`{}` is not an `http` or `https` URL", url.value));
            document.error(url, complaint.hint("\"http://ocsp.example.com/\""));
        }
        if table.ocsp == OcspScope::Off {
            document.warning(url, OCSP_IS_OFF);
        }
    }
    if table.ocsp_failure.is_set() && table.ocsp == OcspScope::Off {
        document.warning(&table.ocsp_failure, OCSP_IS_OFF);
    }
    if table.crl_missing.is_set() && table.crl.is_empty() && !table.crl_distribution_points {
        document.warning(&table.crl_missing, "`crl_missing` has no effect without `crl` or `crl_distribution_points`");
    }
    for (key, on_failure, what) in [
        ("crl_missing", &table.crl_missing, "whose CRL is missing or out of date"),
        ("ocsp_failure", &table.ocsp_failure, "for which no OCSP responder answers"),
    ] {
        if on_failure.value == OnFailure::Allow {
            document.warning(on_failure, format!("a device {what} is admitted: {key} = \"allow\""));
        }
    }
}

const OCSP_IS_OFF: &str = "no effect: `ocsp` is off";

fn crl_origin(crl: &Setting<String>, document: &mut Document) -> Result<Setting<CrlOrigin>, Reported> {
    reject_substitution(crl, document)?;
    if !crl.contains("://") {
        return Ok(crl.map(|path| CrlOrigin::File(document.resolve(Path::new(path)))));
    }
    if !is_url(crl) {
        let complaint = Complaint::new(format!("`{}` is not an `http` or `https` URL", crl.value));
        return Err(document.error(crl, complaint.hint("a file, or \"http://...\" or \"https://...\"")));
    }
    Ok(crl.map(|url| CrlOrigin::Url(url.clone())))
}

/// Rejects a substitution in a URL that appears in logs and metrics.
fn reject_substitution(url: &Setting<String>, document: &mut Document) -> Result<(), Reported> {
    if document.is_substituted(url) {
        let complaint = Complaint::new("substitution is not supported here");
        return Err(
            document.error(url, complaint.hint("the URL appears in logs and metrics, so it must not contain a secret"))
        );
    }
    Ok(())
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
    if table.ocsp != OcspScope::Off || table.ocsp_stapling || table.crl_distribution_points {
        let message = "`ocsp`, `ocsp_stapling` and `crl_distribution_points` cannot be combined with `psk`";
        let at = table.psk.as_ref().and_then(Located::location).cloned().unwrap_or_default();
        document.error(&at, Complaint::new(message).hint("a listener with `psk` uses no certificates"));
    }
    let others = [
        ("certificate", table.certificate.as_ref().and_then(Located::location)),
        ("private_key", table.private_key.as_ref().and_then(Located::location)),
        ("client_auth", table.client_auth.as_ref().and_then(Located::location)),
        ("client_ca", table.client_ca.as_ref().and_then(Located::location)),
        ("crl", table.crl.first().and_then(Located::location)),
        ("raw_keys", table.raw_keys.as_ref().and_then(Located::location)),
        ("resumption", table.resumption.location()),
        ("session_lifetime", table.session_lifetime.location()),
        ("ticket_secret", table.ticket_secret.as_ref().and_then(Located::location)),
        ("private_key_passphrase", table.private_key_passphrase.as_ref().and_then(Located::location)),
        ("verify_depth", table.verify_depth.location()),
        ("crl_missing", table.crl_missing.location()),
        ("ocsp_responder", table.ocsp_responder.as_ref().and_then(Located::location)),
        ("ocsp_failure", table.ocsp_failure.location()),
    ];
    for (key, location) in others {
        let Some(location) = location else { continue };
        let complaint = Complaint::new(format!("`{key}` cannot be combined with `psk`")).hide_line();
        let hint = "pre-shared keys require their own listener, without certificates and without resumption";
        document.error(location, complaint.hint(hint));
    }
}

fn validate_psk(
    table: &Setting<PskTable>,
    registries: usize,
    document: &mut Document,
) -> Result<Setting<Psk>, Reported> {
    let registry = validate_registry(&table.registry, registries, document)?;
    let file = match (&table.file, &table.format) {
        (Some(file), format) => {
            let hint = "\"hex\" (as in mosquitto) or \"raw\" (as in EMQX)";
            let format = document.require(format.as_ref(), table, "format", hint)?.value;
            Some((file.map(|file| document.resolve(file)), format))
        }
        (None, Some(format)) => {
            return Err(document.error(format, "`format` has no effect without `file`"));
        }
        (None, None) if !registry => {
            document.require::<()>(None, table, "file", "a file of `identity:key` lines; or set `registry = true`")?;
            None
        }
        (None, None) => None,
    };
    Ok(table.map(|_| Psk { file, registry }))
}

fn validate_raw_keys(
    table: &Setting<RawKeysTable>,
    registries: usize,
    document: &mut Document,
) -> Result<RawKeys, Reported> {
    let registry = validate_registry(&table.registry, registries, document)?;
    if table.file.is_none() && !registry {
        document.require::<()>(None, table, "file", "a file of `name:fingerprint` lines; or set `registry = true`")?;
    }
    Ok(RawKeys { file: table.file.as_ref().map(|file| file.map(|file| document.resolve(file))), registry })
}

fn validate_registry(wanted: &Setting<bool>, registries: usize, document: &mut Document) -> Result<bool, Reported> {
    if wanted.value && registries != 1 {
        let message = "`registry = true` requires exactly one [[authenticator]] of `kind = \"registry\"`";
        return Err(document.error(wanted, message));
    }
    Ok(wanted.value)
}
