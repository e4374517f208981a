//! `[identity]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::Reported;
use super::super::document::Document;
use super::super::values::{Location, Setting};

/// Claims that the gateway sets itself. The configuration must not set them.
pub const OWN_CLAIMS: &[&str] = &["iss", "aud", "iat", "nbf", "exp", "jti"];

/// How the gateway signs tokens for brokers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Identity", extend("required" = ["private_key", "issuer"]))]
pub(in crate::config) struct IdentityTable {
    /// PEM file of a PKCS#8 private key: P-256, P-384, Ed25519 or RSA. Reloaded when it changes.
    private_key: Option<Setting<PathBuf>>,
    /// PEM files of private keys whose public keys stay in the JWKS, for key rotation.
    other_keys: Vec<Setting<PathBuf>>,
    /// The `iss` claim of the tokens.
    issuer: Option<Setting<String>>,
}

/// How the gateway signs tokens for brokers.
#[derive(Debug)]
pub struct Identity {
    /// The first key signs. The JWKS contains all public keys.
    pub keys: Vec<Setting<PathBuf>>,
    /// The `iss` claim of the tokens.
    pub issuer: String,
    /// Location of the table.
    pub(crate) table: Location,
}

pub(super) fn validate(table: &Setting<IdentityTable>, document: &mut Document) -> Result<Identity, Reported> {
    let hint = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out identity.key";
    let key = document.require(table.private_key.as_ref(), table, "private_key", hint)?;
    let issuer = table.issuer.as_ref().filter(|issuer| !issuer.is_empty());
    let hint = "the tokens' `iss`, for example \"https://gateway.example.com\"";
    let issuer = document.require(issuer, table, "issuer", hint)?;
    let keys = std::iter::once(key).chain(&table.other_keys).map(|path| path.map(|path| document.resolve(path)));
    Ok(Identity {
        keys: keys.collect(),
        issuer: issuer.value.clone(),
        table: table.location.clone().unwrap_or_default(),
    })
}
