//! Tokens that an issuer has signed [RFC 7519], in the password or the user name.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Map, Value as Json};

use super::jwks::{Jwks, JwksUrl};
use super::{Answer, Candidate, Principal, Sources, open_ca};
use crate::config::tables::{JwksOrigin, TokenAlgorithm, TokenField};
use crate::config::{Diagnostics, Reported, tables};
use crate::evidence::Authenticated;
use crate::fetch::Fetcher;
use crate::outcome::Reject;
use crate::refresh::Refreshed;
use crate::util::clock::now;
use crate::util::crypto::tag;

/// Of a token, in bytes.
const MAX_TOKEN_LEN: usize = 16 << 10;
/// Keys that a token without a key ID is tried with.
const MAX_TRIED: usize = 8;

/// The tokens of an issuer.
#[derive(Debug)]
pub(super) struct Tokens {
    jwks: Jwks,
    field: TokenField,
    issuer: Option<String>,
    /// One for each algorithm that is accepted: the library wants all of one to be of one family of keys.
    validations: Vec<Validation>,
    refresh: Duration,
    /// Distinguishes what is required of tokens from what another configuration requires.
    requirements: u64,
}

impl Tokens {
    /// Reads the keys, if they are in a file; shares those of a URL with others that use the same.
    pub(super) fn open(
        settings: &tables::Jwt,
        sources: &Sources,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let fetcher = open_ca(settings.ca.as_ref(), diagnostics)?;
        let jwks = match &settings.jwks {
            JwksOrigin::Url(url) => {
                // The keys of one URL by way of other trust anchors are others.
                let by = format!("{url} {:?}", fetcher.as_ref().map(Fetcher::tag));
                let source = JwksUrl { url: url.clone(), fetcher: fetcher.unwrap_or_default() };
                Jwks::Url(sources.jwks.get_or_insert_with(by, || Refreshed::new(source)))
            }
            JwksOrigin::File(file) => {
                Jwks::file(file.value.clone()).map_err(|complaint| diagnostics.error(file, complaint))?
            }
        };
        let mut validation = Validation::new(algorithm(settings.algorithms[0]));
        validation.leeway = settings.leeway.as_secs();
        validation.validate_nbf = true;
        validation.required_spec_claims = ["exp".to_owned()].into();
        if let Some(issuer) = &settings.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        validation.validate_aud = settings.audience.is_some();
        if let Some(audience) = &settings.audience {
            validation.set_audience(audience);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        let requirements = format!("{:?} {:?} {:?}", validation.iss, validation.aud, settings.jwks);
        Ok(Self {
            requirements: tag(requirements.as_bytes()),
            jwks,
            field: settings.field,
            issuer: settings.issuer.clone(),
            validations: settings
                .algorithms
                .iter()
                .map(|accepted| Validation { algorithms: vec![algorithm(*accepted)], ..validation.clone() })
                .collect(),
            refresh: settings.refresh,
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

    /// Whether a token that met these requirements and was verified with this key would be accepted now.
    pub(super) fn still_verify(&self, requirements: u64, key: u64) -> bool {
        requirements == self.requirements && self.jwks.has(key) != Some(false)
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
                let what = Authenticated::Token { requirements: self.requirements, key, expires_at: until };
                Answer::Known(Box::new(Principal { jwt: Some(Json::Object(claims)), ..Principal::of(name, what) }))
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
        for (key, tag) in keys.iter().take(MAX_TRIED) {
            match jsonwebtoken::decode::<Map<String, Json>>(token, key, validation) {
                Ok(data) => return Ok((data.claims, *tag)),
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
