//! Keys for authentication other than by certificates, for bans, and for tokens that the gateway signs.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::super::value::{At, Cidr, OneOrMany, Period, Secret, Timeout};

/// A source that authenticates clients by what CONNECT carries. `kind` decides which of the other keys apply.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Authenticator {
    /// Name of the authenticator. Listeners refer to it in `authenticate`; it appears in logs and must be unique.
    #[schemars(required)]
    pub name: Option<At<String>>,
    /// `password_file`, `jwt`, `http` or `registry`.
    #[schemars(required)]
    pub kind: Option<At<AuthenticatorKind>>,
    /// `password_file`: file of `user:hash` lines, as `portcullis passwd` and `mosquitto_passwd` write them. Reloaded
    /// when it changes. Required.
    pub file: Option<At<PathBuf>>,
    /// `password_file`, `registry`, `http`: how long a verified password, or an `allow` answer, is cached; `0s`
    /// disables the cache. Default: `60s`; for `http` `30s`.
    pub cache: Option<At<Period>>,
    /// `jwt`: the issuer's public keys (JWKS): a file, reloaded when it changes, or an `http` or `https` URL. Required.
    pub jwks: Option<At<String>>,
    /// `jwt`: field of CONNECT that carries the token: `password` or `username`. Default: `password`.
    pub field: Option<At<TokenField>>,
    /// `jwt`: value that the `iss` claim must have. Default: not checked; `check` warns.
    pub issuer: Option<At<String>>,
    /// `jwt`: value that the `aud` claim must have or contain; of a list, one is enough. Default: not checked; `check`
    /// warns.
    pub audience: Option<At<OneOrMany<String>>>,
    /// `jwt`: accepted signature algorithms: `ES256`, `ES384`, `PS256`, `PS384`, `PS512`, `RS256`, `RS384`, `RS512`,
    /// `EdDSA`. Default: `ES256`, `ES384`, `PS256`, `RS256`, `EdDSA`.
    pub algorithms: Option<At<Vec<TokenAlgorithm>>>,
    /// `jwt`: how far the issuer's clock may be ahead, for `nbf`. `exp` has no leeway. Default: `30s`.
    pub leeway: Option<At<Period>>,
    /// `jwt`: longest time between two fetches of a JWKS URL. Default: `15m`.
    pub refresh: Option<At<Timeout>>,
    /// `http`: URL to which the gateway sends its request. Required.
    pub url: Option<At<String>>,
    /// `http`: headers of the request, as `{ Authorization = "Bearer ${FILE:token}" }`. Default: none.
    pub headers: Option<At<BTreeMap<String, Secret>>>,
    /// `http`, `jwt`: PEM bundle of trust anchors for `https`. Default: the system's.
    pub ca: Option<At<PathBuf>>,
    /// `http`: time for one response. Before it, a request may wait as long again for its turn. Default: `5s`.
    pub timeout: Option<At<Timeout>>,
    /// `http`: requests at the same time. Default: `64`.
    pub max_concurrency: Option<At<NonZeroU32>>,
    /// `http`: how long a `deny` or `ignore` answer is cached; `0s` disables the cache. Default: `5s`.
    pub negative_cache: Option<At<Period>>,
    /// `http`: failures in a row that open the circuit breaker. Default: `5`.
    pub break_after: Option<At<NonZeroU32>>,
    /// `http`: how long the circuit breaker stays open. Default: `10s`.
    pub break_time: Option<At<Timeout>>,
    /// `registry`: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`. Required.
    pub database: Option<At<Secret>>,
    /// `registry`: CEL expression that yields the device ID, over `cert`, `tls.psk_identity`, `tls.key_name` and
    /// `tls.key_fingerprint` only. Default: the device pinned to the presented key, else the one whose pre-shared key
    /// was used, else `mqtt.username`.
    pub device: Option<At<String>>,
    /// `registry`: devices kept in memory. The gateway rejects devices beyond them. Default: `1000000`.
    pub max_devices: Option<At<NonZeroU32>>,
}

/// The kind of an authenticator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthenticatorKind {
    /// A file of users and password hashes.
    PasswordFile,
    /// Tokens signed by an issuer (RFC 7519).
    Jwt,
    /// An HTTP service.
    Http,
    /// The device registry.
    Registry,
}

impl AuthenticatorKind {
    /// The word in the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PasswordFile => "password_file",
            Self::Jwt => "jwt",
            Self::Http => "http",
            Self::Registry => "registry",
        }
    }
}

/// A field of CONNECT that can carry a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenField {
    /// The password.
    #[default]
    Password,
    /// The user name.
    Username,
}

/// A signature algorithm of RFC 7518, 3.1, or RFC 8037. Public keys only: a public key can never be used as an HMAC
/// secret.
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
    /// File of `identity:key` lines. Reloaded when it changes. Default: none.
    pub file: Option<At<PathBuf>>,
    /// How the file writes keys: `hex` (as mosquitto) or `raw` (as EMQX). Required with `file`.
    pub format: Option<At<PskFormat>>,
    /// Whether devices of the registry that have a pre-shared key are accepted, too. Default: `false`.
    pub registry: Option<At<bool>>,
}

/// How a file writes pre-shared keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PskFormat {
    /// Two hexadecimal digits for each octet.
    Hex,
    /// The octets themselves.
    Raw,
}

/// Raw public keys (RFC 7250): clients authenticate by a key without a certificate. TLS 1.3 only.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeys {
    /// File of `name:fingerprint` lines; the fingerprint is the SHA-256 of the key's SubjectPublicKeyInfo, in hex or
    /// base64. Reloaded when it changes. Default: none.
    pub file: Option<At<PathBuf>>,
    /// Whether keys that devices of the registry are pinned to are accepted, too. Default: `false`.
    pub registry: Option<At<bool>>,
}

/// Bans clients that connect, or fail, too often.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ban {
    /// What identifies a client: `address` (of IPv6 the first 64 bits) or `client_id`. Default: `address`.
    pub key: BanKey,
    /// Events that count, each separately: `connect`, `failure`. `failure` requires `key = "address"`. Default: both;
    /// with `client_id` only `connect`.
    pub on: Option<At<Vec<BanEvent>>>,
    /// Events allowed within `window`. One more starts the ban.
    #[schemars(required)]
    pub count: Option<At<NonZeroU32>>,
    /// Period in which events are counted. Default: `1m`.
    pub window: Option<Timeout>,
    /// How long a ban lasts. Default: `5m`.
    pub duration: Option<Timeout>,
    /// Networks that are never banned. Default: none.
    pub except: Vec<Cidr>,
}

/// What identifies a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanKey {
    /// Its address, of IPv6 the first 64 bits. The gateway rejects a banned address before TLS.
    #[default]
    Address,
    /// Its client ID, once the client has authenticated.
    ClientId,
}

/// An event that counts towards a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BanEvent {
    /// A connection.
    Connect,
    /// A connection that failed to authenticate or to meet `require`.
    Failure,
}

/// How the gateway signs tokens for brokers.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// PEM file of a PKCS#8 private key: P-256, P-384, Ed25519 or RSA. Reloaded when it changes.
    #[schemars(required)]
    pub private_key: Option<At<PathBuf>>,
    /// PEM files of private keys whose public keys stay in the JWKS, for key rotation. Default: none.
    pub other_keys: Vec<At<PathBuf>>,
    /// The `iss` claim of the tokens.
    #[schemars(required)]
    pub issuer: Option<At<String>>,
}

/// What replaces the password of CONNECT.
#[derive(Clone, Debug, JsonSchema)]
#[serde(untagged)]
pub enum Password {
    /// The value of a CEL expression.
    Expression(String),
    /// A token signed by the gateway.
    Token(Token),
}

/// A short-lived token (RFC 7519) that tells the broker who the client is, signed with the key of `[identity]`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Claims by name, each a CEL expression. Include `sub`: brokers compare it with the client ID or user name.
    pub claims: BTreeMap<String, String>,
    /// The `aud` claim. Default: none; `check` warns.
    pub audience: Option<String>,
    /// Time from `iat` to `exp`. Default: `5m`.
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
