//! The keys that say how devices prove who they are, other than by certificates.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::super::value::{At, Cidr, OneOrMany, Period, Secret, Timeout};

/// Something that knows clients by what their CONNECT carries. Which keys it takes, `kind` says.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Authenticator {
    /// Unique; listeners name it in `authenticate`, and it appears in logs.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// What it is.
    #[schemars(required)]
    pub kind: Option<At<AuthenticatorKind>>,
    /// `password_file`: lines of `user:hash`, as `portcullis passwd` and `mosquitto_passwd` write them.
    pub file: Option<At<PathBuf>>,
    /// How long a proof is remembered, so that it need not be verified again; "0s" never. Default: 60s for
    /// `password_file` and `registry`, 30s for `http`.
    pub cache: Option<At<Period>>,
    /// `jwt`: the issuer's public keys: a JWKS file, or an `http` or `https` URL.
    pub jwks: Option<At<String>>,
    /// `jwt`: which field of CONNECT carries the token. Default: password.
    pub field: Option<At<TokenField>>,
    /// `jwt`: what the token's `iss` must be.
    pub issuer: Option<At<String>>,
    /// `jwt`: what the token's `aud` must be, or have among others; one of these.
    pub audience: Option<At<OneOrMany<String>>>,
    /// `jwt`: signature algorithms that are accepted. Default: ES256, ES384, PS256, RS256, EdDSA.
    pub algorithms: Option<At<Vec<TokenAlgorithm>>>,
    /// `jwt`: how far the issuer's clock may be ahead, for `nbf`. Default: 30s.
    pub leeway: Option<At<Period>>,
    /// `jwt`: how often the keys of a URL are fetched again at least. Default: 15m.
    pub refresh: Option<At<Timeout>>,
    /// `http`: where the JSON document about a client is sent to.
    pub url: Option<At<String>>,
    /// `http`: headers sent along, as `{ Authorization = "Bearer ${FILE:token}" }`.
    pub headers: Option<At<BTreeMap<String, Secret>>>,
    /// `http` and `jwt`: PEM bundle of trust anchors for `https`. Default: those of the system.
    pub ca: Option<At<PathBuf>>,
    /// `http`: for one answer. Default: 5s.
    pub timeout: Option<At<Timeout>>,
    /// `http`: questions at once. Default: 64.
    pub max_concurrency: Option<At<NonZeroU32>>,
    /// `http`: how long a refusal is remembered; "0s" not at all. Default: 5s.
    pub negative_cache: Option<At<Period>>,
    /// `http`: failures in a row after which the service is left alone for `break_time`. Default: 5.
    pub break_after: Option<At<NonZeroU32>>,
    /// `http`: how long it is left alone. Default: 10s.
    pub break_time: Option<At<Timeout>>,
    /// `registry`: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`.
    pub database: Option<At<Secret>>,
    /// `registry`: CEL string, of `cert` and `tls` only, that says which device it is. Default: the one that the key
    /// shown in the handshake is pinned to, else the one whose pre-shared key was used, else `mqtt.username`.
    pub device: Option<At<String>>,
    /// `registry`: devices kept in memory; more than these are not served. Default: 1000000.
    pub max_devices: Option<At<NonZeroU32>>,
}

/// What an authenticator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthenticatorKind {
    /// A file of users and password hashes.
    PasswordFile,
    /// Tokens that an issuer has signed (RFC 7519).
    Jwt,
    /// A service that is asked.
    Http,
    /// The device registry.
    Registry,
}

impl AuthenticatorKind {
    /// As the configuration says it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PasswordFile => "password_file",
            Self::Jwt => "jwt",
            Self::Http => "http",
            Self::Registry => "registry",
        }
    }
}

/// A field of CONNECT that may carry a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenField {
    /// The password.
    #[default]
    Password,
    /// The user name.
    Username,
}

/// A signature algorithm of RFC 7518, 3.1, or RFC 8037: with public keys only, so that none can be taken for a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the standard's")]
pub enum TokenAlgorithm {
    ES256,
    ES384,
    PS256,
    PS384,
    PS512,
    RS256,
    RS384,
    RS512,
    EdDSA,
}

/// TLS with pre-shared keys (RFC 4279, RFC 5489, RFC 8446), in place of certificates.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Psk {
    /// Lines of `identity:key`.
    pub file: Option<At<PathBuf>>,
    /// How keys are written in the file: `hex`, as for mosquitto, or `raw`, as for EMQX.
    pub format: Option<At<PskFormat>>,
    /// Whether the devices of the registry that have a pre-shared key are known, too. Default: false.
    pub registry: Option<At<bool>>,
}

/// How keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PskFormat {
    /// Two hexadecimal digits an octet.
    Hex,
    /// The octets themselves.
    Raw,
}

/// Raw public keys (RFC 7250): devices are known by their keys, without certificates.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeys {
    /// Lines of `name:fingerprint`: the SHA-256 of the key's SubjectPublicKeyInfo, in hex or in base64.
    pub file: Option<At<PathBuf>>,
    /// Whether keys that devices of the registry are pinned to are known, too. Default: false.
    pub registry: Option<At<bool>>,
}

/// Clients that come too often, or fail too often, are refused for a while.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ban {
    /// By what clients are told apart. Default: address.
    pub key: BanKey,
    /// What is counted. Default: both.
    pub on: Option<At<Vec<BanEvent>>>,
    /// More than so many within `window` are too many.
    #[schemars(required)]
    pub count: Option<At<NonZeroU32>>,
    /// Default: 1m.
    pub window: Option<Timeout>,
    /// How long a client is refused. Default: 5m.
    pub duration: Option<Timeout>,
    /// Networks that are never banned.
    pub except: Vec<Cidr>,
}

/// By what clients are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanKey {
    /// Their address, of IPv6 its first 64 bits; they are refused before TLS.
    #[default]
    Address,
    /// Their client ID, once they have proved who they are.
    ClientId,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanEvent {
    /// Connections.
    Connect,
    /// Connections that could not prove who they are.
    Failure,
}

/// How the gateway signs identities towards brokers.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// PEM file of the private key: P-256, P-384, Ed25519 or RSA.
    #[schemars(required)]
    pub private_key: Option<At<PathBuf>>,
    /// PEM files of private keys whose public halves stay in the JWKS, for the time in which the key is changed.
    pub other_keys: Vec<At<PathBuf>>,
    /// The tokens' `iss`.
    #[schemars(required)]
    pub issuer: Option<At<String>>,
}

/// What a password is replaced by.
#[derive(Clone, Debug, JsonSchema)]
#[serde(untagged)]
pub enum Password {
    /// The value of a CEL string.
    Expression(String),
    /// A token that the gateway signs.
    Token(Token),
}

/// A short-lived token (RFC 7519) that says who the client is, signed by the gateway's `[identity]`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// CEL expressions by name of the claim; `sub` is one that brokers look for.
    pub claims: BTreeMap<String, String>,
    /// The token's `aud`.
    pub audience: Option<String>,
    /// From its `iat` to its `exp`. Default: 5m.
    pub lifetime: Option<Timeout>,
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(source) => Ok(Self::Expression(source)),
            table => match Token::deserialize(table) {
                Ok(token) => Ok(Self::Token(token)),
                Err(error) => Err(D::Error::custom(error.message())),
            },
        }
    }
}
