//! `[listener.admit]` and `[listener.connect]`.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Setting, Timeout};
use super::identity::OWN_CLAIMS;
use super::{Names, compile};
use crate::expr::{Expression, Wanted};

/// Conditions that every client must meet.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Admit")]
pub(super) struct AdmitTable {
    /// CEL expressions that yield a boolean. The gateway rejects a client for which one is not true.
    pub(super) require: Vec<Setting<String>>,
}

/// Fields of CONNECT that the gateway replaces. Every expression sees the packet as the client sent it.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Connect")]
pub(super) struct ConnectTable {
    /// CEL expression that returns the new client ID. Default: the client's own.
    client_id: Option<Setting<String>>,
    /// CEL expression that returns the new user name. Default: the client's own.
    username: Option<Setting<String>>,
    /// CEL expression that returns the new password, or a table of a token that the gateway signs. Default: the client's
    /// own.
    password: Option<Setting<PasswordTable>>,
}

/// What replaces the password of CONNECT.
#[derive(Clone, Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Password")]
enum PasswordTable {
    /// The value of a CEL expression.
    Expression(String),
    /// A token signed by the gateway.
    Token(TokenTable),
}

/// A short-lived token (RFC 7519) that tells the broker who the client is, signed with the key of `[identity]`.
#[derive(Clone, Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Token")]
struct TokenTable {
    /// Claims by name, each a CEL expression. Include `sub`: brokers compare it with the client ID or user name.
    claims: BTreeMap<String, String>,
    /// The `aud` claim. Default: none; `check` warns.
    audience: Option<String>,
    /// Time from `iat` to `exp`.
    #[serde(default = "default_lifetime")]
    lifetime: Timeout,
}

/// The broker checks the token once, right after it is issued.
const fn default_lifetime() -> Timeout {
    Timeout(Duration::from_secs(5 * 60))
}

impl<'de> Deserialize<'de> for PasswordTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::String(source) => Ok(Self::Expression(source)),
            table => match TokenTable::deserialize(table) {
                Ok(token) => Ok(Self::Token(token)),
                Err(error) => Err(D::Error::custom(error.message())),
            },
        }
    }
}

/// How CONNECT is rewritten. `None`: the field stays.
#[derive(Debug, Default)]
pub struct Connect {
    /// Yields the new client ID.
    pub client_id: Option<Setting<Expression>>,
    /// Yields the new user name.
    pub username: Option<Setting<Expression>>,
    /// What replaces the password.
    pub password: Option<Password>,
}

/// What replaces a password.
#[derive(Debug)]
pub enum Password {
    /// The value of an expression.
    Expression(Setting<Expression>),
    /// A token that the gateway signs.
    Token(Token),
}

/// A token that the gateway signs for a broker.
#[derive(Debug)]
pub struct Token {
    /// Name and value of each claim.
    pub claims: Vec<(String, Setting<Expression>)>,
    /// The `aud` claim.
    pub audience: Option<String>,
    /// Time from `iat` to `exp`.
    pub lifetime: Duration,
}

pub(super) fn validate(table: &ConnectTable, names: &Names, document: &mut Document) -> Result<Connect, Reported> {
    let password = table.password.as_ref().map(|password| validate_password(password, names, document)).transpose();
    let client_id = compile(table.client_id.as_ref(), Wanted::String, document);
    let username = compile(table.username.as_ref(), Wanted::String, document);
    Ok(Connect { client_id: client_id?, username: username?, password: password? })
}

fn validate_password(
    table: &Setting<PasswordTable>,
    names: &Names,
    document: &mut Document,
) -> Result<Password, Reported> {
    match &table.value {
        PasswordTable::Expression(source) => {
            let expression = compile_as("connect.password", source, table, Wanted::String, document)?;
            Ok(Password::Expression(expression))
        }
        PasswordTable::Token(token) => validate_token(token, table, names, document).map(Password::Token),
    }
}

fn validate_token(
    token: &TokenTable,
    at: &Setting<PasswordTable>,
    names: &Names,
    document: &mut Document,
) -> Result<Token, Reported> {
    if !names.has_identity {
        let hint = "[identity] private_key = \"identity.key\" issuer = \"https://gateway.example.com\"";
        return Err(document.error(at, Complaint::new("a signed token requires [identity]").hint(hint)));
    }
    if let Some(own) = token.claims.keys().find(|name| OWN_CLAIMS.contains(&name.as_str())) {
        return Err(document.error(at, format!("the gateway sets the claim `{own}` itself")));
    }
    if !token.claims.contains_key("sub") {
        let complaint = Complaint::new("the token does not name the client: it has no `sub`");
        document.warning(at, complaint.hint("claims = { sub = 'cert.subject.cn' }"));
    }
    if token.audience.is_none() {
        let complaint = Complaint::new("any service that trusts this gateway accepts the token");
        document.warning(at, complaint.hint("audience = \"brokers\""));
    }
    let mut claims = Ok(Vec::new());
    for (name, source) in &token.claims {
        let known_as = format!("connect.password.claims.{name}");
        match (compile_as(&known_as, source, at, Wanted::Json, document), &mut claims) {
            (Ok(expression), Ok(claims)) => claims.push((name.clone(), expression)),
            (Err(reported), _) => claims = Err(reported),
            (Ok(_), Err(_)) => {}
        }
    }
    Ok(Token { claims: claims?, audience: token.audience.clone(), lifetime: token.lifetime.0 })
}

/// Compiles an expression that may contain a secret: logs show `key` in place of its source.
fn compile_as(
    key: &str,
    source: &str,
    at: &Setting<PasswordTable>,
    wanted: Wanted,
    document: &mut Document,
) -> Result<Setting<Expression>, Reported> {
    match compile(Some(&at.map(|_| source.to_owned())), wanted, document)? {
        Some(Setting { value, location }) => Ok(Setting { value: value.known_as(key), location }),
        None => Err(document.error(at, format!("`{key}` is missing"))),
    }
}
