//! What an authority is asked for, and what it returns.

use std::path::PathBuf;

use rcgen::{KeyPair, SignatureAlgorithm};
use serde::{Deserialize, Serialize};

use crate::{Error, Reason};

/// The parameters of a new authority.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// The name of the authority, as its certificates show it.
    pub name: String,
    /// The algorithm of the CA keys and of the keys it generates.
    pub algorithm: Algorithm,
    /// DNS domains it may issue for, subdomains included; empty: any.
    pub permit_dns: Vec<String>,
    /// Networks whose addresses it may issue for, in CIDR notation; empty: any.
    pub permit_ip: Vec<String>,
    /// The URL under which the CRLs of the directory are published.
    pub crl_url: Option<String>,
    /// The URL of the OCSP responder.
    pub ocsp_url: Option<String>,
}

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the standards'")]
pub enum Algorithm {
    #[default]
    EcP256,
    EcP384,
    Ed25519,
}

impl Algorithm {
    pub(crate) fn key(self) -> Result<KeyPair, Error> {
        let algorithm: &'static SignatureAlgorithm = match self {
            Algorithm::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Algorithm::Ed25519 => &rcgen::PKCS_ED25519,
        };
        Ok(KeyPair::generate_for(algorithm)?)
    }
}

/// The settings that all certificates of an authority share: `authority.toml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) algorithm: Algorithm,
    pub(crate) crl_url: Option<String>,
    pub(crate) ocsp_url: Option<String>,
}

impl Settings {
    /// The URL of a CRL file of the directory.
    pub(crate) fn crl(&self, file: &str) -> Option<String> {
        self.crl_url.as_ref().map(|url| format!("{}/{file}", url.trim_end_matches('/')))
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server.
    Server,
    /// A device that connects.
    Device,
    /// An OCSP responder for certificates of the intermediate.
    Ocsp,
}

/// What to issue a certificate for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The common name. For a device this is its client ID.
    pub name: String,
    /// The organization in the subject.
    pub organization: Option<String>,
    /// What the certificate is for.
    pub purpose: Purpose,
    /// Subject alternative names: host names, IP addresses, URIs, email addresses. Clients connect to a server by one of them.
    pub names: Vec<String>,
    /// How many days the certificate is valid.
    pub days: u32,
}

/// The files of an issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key, if the directory has it.
    pub key: Option<PathBuf>,
}

/// A certificate in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The certificate file.
    pub path: PathBuf,
    /// The common name.
    pub name: String,
    /// The serial number, in upper-case hex.
    pub serial: String,
    /// `root`, `intermediate`, `server`, `device` or `ocsp`.
    pub kind: &'static str,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// Why it is revoked; `None` if it is not.
    pub revoked: Option<Reason>,
}
