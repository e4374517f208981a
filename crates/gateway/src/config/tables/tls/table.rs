//! What `[listener.tls]` may contain.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::values::{Secret, Setting, Timeout};

/// TLS towards clients.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ListenerTls")]
pub(in crate::config::tables) struct TlsTable {
    /// PEM file of the server's certificate chain, leaf first. Or a list of tables `{ certificate, private_key,
    /// private_key_passphrase }`, of which SNI selects one; the first serves unknown names and clients without SNI.
    /// Reloaded when it changes. Not with `psk`.
    pub(super) certificate: Option<Setting<CertificatesTable>>,
    /// PEM file of the private key, or a PKCS#11 URI (`pkcs11:...`) of a key in a token. The file is reloaded when it
    /// changes. Required with one `certificate`; a list has its own keys.
    pub(super) private_key: Option<Setting<String>>,
    /// Passphrase of an encrypted private key. Default: none.
    pub(super) private_key_passphrase: Option<Setting<Secret>>,
    /// Whether clients present a certificate: `required`, `optional` (one that is presented must be valid) or `none`.
    /// Default: `required` if `client_ca` is set, else `none`.
    pub(super) client_auth: Option<Setting<ClientAuth>>,
    /// PEM bundle of trust anchors for client certificates. Reloaded when it changes. Default: the gateway requests no
    /// client certificate.
    pub(super) client_ca: Option<Setting<PathBuf>>,
    /// Whether the gateway sends clients the names of the trust anchors, by which they choose a certificate. Small clients
    /// fail on long lists. Names that do not fit into the handshake, 64 KiB, are not sent.
    pub(super) send_ca_names: Setting<bool>,
    /// Number of intermediate certificates that a client's certificate chain may have, 0 to 6.
    pub(super) verify_depth: Setting<u8>,
    /// Certificate revocation lists (CRLs): PEM or DER files, `http` or `https` URLs. If there is one, every
    /// certificate of a chain needs a CRL of its issuer. Default: CRLs are not checked.
    pub(super) crl: Vec<Setting<String>>,
    /// Whether the gateway also fetches CRLs from the distribution points that certificates name.
    pub(super) crl_distribution_points: Setting<bool>,
    /// What happens to a client whose CRL is missing or out of date: `refuse` or `allow`.
    pub(super) crl_missing: Setting<OnFailure>,
    /// Longest time between two fetches of a CRL, and between two OCSP requests about a connected client.
    pub(super) revocation_refresh: Setting<Timeout>,
    /// Certificates that the gateway checks by OCSP: `off`, `leaf` (the client's own) or `chain` (with the
    /// intermediates).
    pub(super) ocsp: Setting<OcspScope>,
    /// URL of the OCSP responder. Default: the URL that the certificate names.
    pub(super) ocsp_responder: Option<Setting<String>>,
    /// What happens to a client for which no OCSP responder answers: `refuse` or `allow`.
    pub(super) ocsp_failure: Setting<OnFailure>,
    /// How long a client waits, after its handshake, for OCSP responses and for CRLs of distribution points; and how
    /// long a start or reload waits for CRLs from URLs.
    pub(super) ocsp_timeout: Setting<Timeout>,
    /// Whether the handshake carries an OCSP response about the server's own certificate.
    pub(super) ocsp_stapling: Setting<bool>,
    /// How clients resume TLS sessions: `tickets`, `cache` (the gateway keeps the session), `both` or `off`.
    pub(super) resumption: Setting<ResumptionMode>,
    /// How long after its full handshake a session may be resumed; at most `7d`.
    pub(super) session_lifetime: Setting<Timeout>,
    /// Secret from which session ticket keys are derived, at least 32 characters. Gateways with the same secret accept
    /// each other's tickets on listeners of the same name. Default: random keys.
    pub(super) ticket_secret: Option<Setting<Secret>>,
    /// Pre-shared keys in place of certificates. Default: none.
    pub(super) psk: Option<Setting<PskTable>>,
    /// Raw public keys (RFC 7250) of clients without certificates. Default: none.
    pub(super) raw_keys: Option<Setting<RawKeysTable>>,
    /// TLS versions offered: `1.2`, `1.3`, or both.
    pub(super) versions: Setting<Vec<TlsVersion>>,
    /// AES cipher suites that the gateway chooses where a client offers both: `aes-256`, or `aes-128`, whose handshakes take fewer instructions. It
    /// accepts the same cipher suites either way. Where it chooses another one than before, sessions are not resumed. Not with
    /// `psk`.
    pub(super) cipher_preference: Setting<CipherPreference>,
    /// Time for the TLS handshake, from accept.
    pub(super) handshake_timeout: Timeout,
    /// Application protocols offered by ALPN. A client that offers none is served, except over QUIC; a client that offers only others is
    /// rejected. Default: `["mqtt"]`; with `protocol = "wss"` `["http/1.1"]`.
    pub(super) alpn: Option<Vec<String>>,
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
            send_ca_names: Setting::default_of(true),
            verify_depth: Setting::default_of(2),
            crl: Vec::new(),
            crl_distribution_points: Setting::default_of(false),
            crl_missing: Setting::default_of(OnFailure::Refuse),
            revocation_refresh: Setting::default_of(Timeout(hour / 4)),
            ocsp: Setting::default_of(OcspScope::Off),
            ocsp_responder: None,
            ocsp_failure: Setting::default_of(OnFailure::Refuse),
            ocsp_timeout: Setting::default_of(Timeout(Duration::from_secs(5))),
            ocsp_stapling: Setting::default_of(false),
            resumption: Setting::default_of(ResumptionMode::Both),
            session_lifetime: Setting::default_of(Timeout(hour)),
            ticket_secret: None,
            psk: None,
            raw_keys: None,
            versions: Setting::default_of(vec![TlsVersion::V12, TlsVersion::V13]),
            cipher_preference: Setting::default_of(CipherPreference::Aes256),
            handshake_timeout: Timeout(Duration::from_secs(10)),
            alpn: None,
        }
    }
}

/// One certificate file, or a list of certificates with their keys, selected by SNI.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Certificates")]
pub(super) enum CertificatesTable {
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
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificatePair {
    /// PEM file of the certificate chain, leaf first.
    pub(super) certificate: PathBuf,
    /// PEM file of the private key, or a PKCS#11 URI of a key in a token.
    pub(super) private_key: String,
    /// Passphrase of an encrypted private key. Default: none.
    pub(super) private_key_passphrase: Option<Secret>,
}

/// Whether clients present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ClientAuth {
    /// The handshake fails without a valid certificate.
    Required,
    /// A client may leave the certificate out. One that is presented must be valid.
    Optional,
    /// The gateway requests no certificate.
    None,
}

/// What happens to a client whose revocation status is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The gateway rejects it (fails closed).
    Refuse,
    /// The gateway accepts it.
    Allow,
}

/// Certificates that the gateway checks by OCSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Resumption")]
pub(super) enum ResumptionMode {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V13,
}

/// The cipher suites that the gateway chooses first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CipherPreference {
    /// Those with AES-256-GCM and SHA-384.
    #[serde(rename = "aes-256")]
    Aes256,
    /// Those with AES-128-GCM and SHA-256.
    #[serde(rename = "aes-128")]
    Aes128,
}

/// TLS with pre-shared keys (RFC 4279, RFC 5489, RFC 8446), in place of certificates.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Psk")]
pub(super) struct PskTable {
    /// File of `identity:key` lines. Reloaded when it changes. Default: none.
    pub(super) file: Option<Setting<PathBuf>>,
    /// How the file writes keys: `hex` (as mosquitto) or `raw` (as EMQX). Required with `file`.
    pub(super) format: Option<Setting<PskFormat>>,
    /// Whether devices of the registry that have a pre-shared key are accepted, too.
    pub(super) registry: Setting<bool>,
}

/// How a file writes pre-shared keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PskFormat {
    /// Two hexadecimal digits for each byte.
    Hex,
    /// The bytes themselves.
    Raw,
}

/// Raw public keys (RFC 7250): clients authenticate by a key without a certificate. TLS 1.3 only.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "RawKeys")]
pub(super) struct RawKeysTable {
    /// File of `name:fingerprint` lines; the fingerprint is the SHA-256 of the key's SubjectPublicKeyInfo, in hex or
    /// base64. Reloaded when it changes. Default: none.
    pub(super) file: Option<Setting<PathBuf>>,
    /// Whether keys that devices of the registry are pinned to are accepted, too.
    pub(super) registry: Setting<bool>,
    /// Whether a client may present its key in a self-signed X.509 certificate, also with TLS 1.2. Nothing but the key
    /// counts: the client wrote the rest. Without `client_ca`, any certificate is taken for its key.
    pub(super) certificates: bool,
}
