//! Tokens that an issuer has signed [RFC 7519], in the password or the user name.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Map, Value as Json};

use super::jwks::{Jwks, JwksUrl};
use super::{Answer, Candidate, Ground, Principal, Sources, Standing, compile_ca};
use crate::clock::now;
use crate::config::model::{TokenAlgorithm, TokenField};
use crate::config::{At, Document, model};
use crate::crypto::mark;
use crate::fetch::{Fetcher, is_url};
use crate::outcome::{CloseReason, Reject};
use crate::refresh::Refreshed;

const LEEWAY: Duration = Duration::from_secs(30);
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// Of a token, in bytes.
const MAX_TOKEN_LEN: usize = 16 << 10;
/// Keys that a token without a key ID is tried with.
const MAX_TRIED: usize = 8;
const DEFAULT_ALGORITHMS: &[TokenAlgorithm] = &[
    TokenAlgorithm::ES256,
    TokenAlgorithm::ES384,
    TokenAlgorithm::PS256,
    TokenAlgorithm::RS256,
    TokenAlgorithm::EdDSA,
];

/// The tokens of an issuer.
#[derive(Debug)]
pub(super) struct Tokens {
    jwks: Jwks,
    field: TokenField,
    issuer: Option<String>,
    /// One for each algorithm that is accepted: the library wants all of one to be of one family of keys.
    validations: Vec<Validation>,
    refresh: Duration,
    /// Tells what is asked of tokens from what another configuration asks.
    asks: u64,
}

/// What a token was verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verified {
    asks: u64,
    /// Tells the key from others.
    key: u64,
}

impl Tokens {
    pub(super) fn compile(
        table: &At<model::Authenticator>,
        sources: &Sources,
        document: &mut Document,
    ) -> Option<Self> {
        let Some(origin) = &table.jwks else {
            document.missing(&table.span, "jwks", "a file of the issuer's public keys, or an `https` URL");
            return None;
        };
        let fetcher = compile_ca(table, document)?;
        let jwks = if is_url(origin) {
            if origin.starts_with("http://") && !document.is_substituted(&origin.span) {
                let message = "keys fetched over plain HTTP are whoever's on the way";
                document.problems.warning(&origin.span, message).hide_line().hint("https://");
            }
            let url = origin.value.clone();
            // The keys of one URL by way of other trust anchors are others'.
            let by = format!("{url} {:?}", fetcher.as_ref().map(Fetcher::mark));
            let source = JwksUrl { url, fetcher: fetcher.unwrap_or_default() };
            Jwks::Url(sources.jwks.get_or_insert_with(by, || Refreshed::new(source)))
        } else {
            match Jwks::file(document.resolve(origin.value.as_ref())) {
                Ok(jwks) => jwks,
                Err(complaint) => {
                    document.problems.complain(&origin.span, complaint);
                    return None;
                }
            }
        };
        let algorithms = table.algorithms.as_ref().map_or(DEFAULT_ALGORITHMS, |at| &at.value);
        let Some(first) = algorithms.first() else {
            let span = table.algorithms.as_ref().map_or(&table.span, |at| &at.span);
            document.problems.error(span, "`algorithms` is empty, so no token would be accepted");
            return None;
        };
        let mut validation = Validation::new(algorithm(*first));
        validation.leeway = table.leeway.as_ref().map_or(LEEWAY, |period| period.value.0).as_secs();
        validation.validate_nbf = true;
        validation.required_spec_claims = ["exp".to_owned()].into();
        match &table.issuer {
            Some(issuer) => {
                validation.set_issuer(&[&issuer.value]);
                validation.required_spec_claims.insert("iss".to_owned());
            }
            None => {
                let message = "tokens of whichever issuer are accepted, if one of these keys has signed them";
                document.problems.warning(&table.span, message).hint("issuer = \"https://issuer.example.com\"");
            }
        }
        match &table.audience {
            Some(audience) => {
                validation.set_audience(&audience.value.0);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            None => {
                validation.validate_aud = false;
                let message = "tokens that were made for another service are accepted, too";
                document.problems.warning(&table.span, message).hint("audience = \"mqtt\"");
            }
        }
        let asks = format!("{:?} {:?} {:?}", validation.iss, validation.aud, table.jwks.as_ref().map(|at| &at.value));
        Some(Self {
            asks: mark(asks.as_bytes()),
            jwks,
            field: table.field.as_ref().map_or_else(TokenField::default, |at| at.value),
            issuer: table.issuer.as_ref().map(|issuer| issuer.value.clone()),
            validations: algorithms
                .iter()
                .map(|accepted| Validation { algorithms: vec![algorithm(*accepted)], ..validation.clone() })
                .collect(),
            refresh: table.refresh.as_ref().map_or(REFRESH, |period| period.value.0),
        })
    }

    pub(super) async fn prepare(&self) {
        self.jwks.fetched(self.refresh).await;
    }

    pub(super) fn fetch_due(&self) {
        self.jwks.fetch_if_due(self.refresh);
    }

    /// Reads the keys again if their file has changed; whether they are others than those that were looked at last.
    pub(super) fn read_changed_keys(&self, name: &str) -> bool {
        self.jwks.read_changed_keys(name)
    }

    /// Why a session that stands on a token has to end; `None`: it has not.
    pub(super) fn judge(&self, verified: &Verified, until: i64, now: i64) -> Option<CloseReason> {
        if verified.asks != self.asks || self.jwks.has(verified.key) == Some(false) {
            return Some(CloseReason::CredentialWithdrawn);
        }
        (until <= now).then_some(CloseReason::TokenExpired)
    }

    pub(super) async fn ask(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Answer {
        let token = match self.field {
            TokenField::Password => candidate.password().and_then(|password| std::str::from_utf8(password).ok()),
            TokenField::Username => candidate.username(),
        };
        // What has not the form of a token is perhaps somebody's password.
        let Some(token) = token.filter(|token| token.len() <= MAX_TOKEN_LEN) else { return Answer::Unknown };
        let Ok(header) = jsonwebtoken::decode_header(token) else { return Answer::Unknown };
        // Another issuer's token is another authenticator's. That it claims to be has no proof here, and needs none.
        if let Some(issuer) = &self.issuer
            && let Ok(claims) = jsonwebtoken::dangerous::insecure_decode_claims::<Map<String, Json>>(token)
            && claims.get("iss").and_then(Json::as_str).is_some_and(|found| found != issuer)
        {
            return Answer::Unknown;
        }
        match self.verify(token, &header).await {
            Ok((claims, key)) => {
                let Some(until) = claims.get("exp").and_then(expiry).filter(|until| *until > now()) else {
                    return Answer::Refused(Reject::TokenExpired);
                };
                let verified = Verified { asks: self.asks, key };
                let standing = Standing { authenticator: Arc::clone(name), ground: Ground::Token(verified, until) };
                Answer::Known(Box::new(Principal {
                    authenticator: Some(Arc::clone(name)),
                    jwt: Some(Json::Object(claims)),
                    standing: Some(standing),
                    ..Principal::default()
                }))
            }
            Err(reject) => Answer::Refused(reject),
        }
    }

    async fn verify(&self, token: &str, header: &Header) -> Result<(Map<String, Json>, u64), Reject> {
        // Extensions that have to be understood are not [RFC 7515, 4.1.11].
        if header.crit.is_some() {
            return Err(Reject::TokenInvalid);
        }
        let validation = self.validations.iter().find(|validation| validation.algorithms == [header.alg]);
        let validation = validation.ok_or(Reject::TokenInvalid)?;
        let candidates = || self.jwks.candidates(header.kid.as_deref(), header.alg);
        let mut keys = candidates();
        if keys.as_ref().is_none_or(Vec::is_empty) {
            // The issuer may have a new one.
            self.jwks.fetched(Duration::ZERO).await;
            keys = candidates();
        }
        let keys = keys.ok_or(Reject::AuthenticationUnavailable)?;
        let mut why = Reject::TokenInvalid;
        for (key, mark) in keys.iter().take(MAX_TRIED) {
            match jsonwebtoken::decode::<Map<String, Json>>(token, key, validation) {
                Ok(data) => return Ok((data.claims, *mark)),
                Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => why = Reject::TokenExpired,
                Err(error) => tracing::debug!(error = describe(error.kind()), "token refused"),
            }
        }
        Err(why)
    }
}

/// Seconds since 1970, of which a token may have fractions [RFC 7519, 2].
fn expiry(claim: &Json) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a time beyond all calendars is as good as any")]
    claim.as_i64().or_else(|| claim.as_f64().map(|seconds| seconds as i64))
}

/// The kind of an error: its text may quote the token.
fn describe(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "the signature is wrong",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidIssuer => "it is another issuer's",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "a claim is missing",
        ErrorKind::InvalidAlgorithm => "its algorithm is not accepted",
        _ => "it is no token",
    }
}

const fn algorithm(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::ES256 => Algorithm::ES256,
        TokenAlgorithm::ES384 => Algorithm::ES384,
        TokenAlgorithm::PS256 => Algorithm::PS256,
        TokenAlgorithm::PS384 => Algorithm::PS384,
        TokenAlgorithm::PS512 => Algorithm::PS512,
        TokenAlgorithm::RS256 => Algorithm::RS256,
        TokenAlgorithm::RS384 => Algorithm::RS384,
        TokenAlgorithm::RS512 => Algorithm::RS512,
        TokenAlgorithm::EdDSA => Algorithm::EdDSA,
    }
}
