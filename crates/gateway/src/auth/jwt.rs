//! Authenticates clients by JWTs [RFC 7519] in CONNECT or in the request for WebSocket. Enters: a token. Leaves: its claims, if a
//! key of the issuer has signed it and its claims meet the requirements. Tokens are never logged.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Map, Value as Json};

use super::jwks::{Jwks, JwksUrl};
use super::{Candidate, Decision, Principal, Sources, open_ca};
use crate::config::tables::{JwksOrigin, TokenAlgorithm, TokenField};
use crate::config::{Diagnostics, Reported, tables};
use crate::evidence::Authenticated;
use crate::fetch::Fetcher;
use crate::outcome::{Reject, note_detail};
use crate::refresh::Refreshed;
use crate::util::clip::clip;
use crate::util::clock::now;
use crate::util::crypto::tag;

/// Maximum length of a token in bytes.
const MAX_TOKEN_LEN: usize = 16 << 10;
/// Seconds since 1970 from which a time is taken for milliseconds: in the year 5138.
const MILLISECONDS: i64 = 100_000_000_000;
/// Maximum number of keys tried for a token.
const MAX_TRIED: usize = 8;

/// Verifies the tokens of an issuer.
#[derive(Debug)]
pub(super) struct Tokens {
    jwks: Jwks,
    field: TokenField,
    /// For [`TokenField::Cookie`].
    cookie: Option<String>,
    issuer: Option<String>,
    typ: Option<String>,
    /// One for each accepted algorithm: the library requires all algorithms of a `Validation` to use the same key type.
    validations: Vec<(TokenAlgorithm, Validation)>,
    refresh: Duration,
    /// Distinguishes these requirements on tokens from those of another configuration.
    requirements: u64,
}

impl Tokens {
    /// Reads a JWKS file, or shares the JWKS of a URL with other authenticators that use it.
    pub(super) fn open(
        settings: &tables::Jwt,
        sources: &Sources,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let fetcher = open_ca(settings.ca.as_ref(), diagnostics)?;
        let jwks = match &settings.jwks {
            JwksOrigin::Url(url) => {
                // A server behind other trust anchors may return other keys for the same URL.
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
        let requirements = format!(
            "{:?} {:?} {:?} {:?} {:?}",
            (settings.field, &settings.cookie),
            validation.iss,
            validation.aud,
            settings.typ,
            settings.jwks
        );
        Ok(Self {
            requirements: tag(requirements.as_bytes()),
            jwks,
            field: settings.field,
            cookie: settings.cookie.clone(),
            issuer: settings.issuer.clone(),
            typ: settings.typ.clone(),
            validations: settings
                .algorithms
                .iter()
                .map(|accepted| {
                    (*accepted, Validation { algorithms: vec![algorithm(*accepted)], ..validation.clone() })
                })
                .collect(),
            refresh: settings.refresh,
        })
    }

    /// The length of the longest user name that is a token, in bytes; 0 if tokens are passwords.
    pub(super) const fn max_username(&self) -> usize {
        match self.field {
            TokenField::Username => MAX_TOKEN_LEN,
            TokenField::Password | TokenField::Header | TokenField::Cookie => 0,
        }
    }

    /// The name of the cookie with the token.
    pub(super) fn cookie(&self) -> Option<&str> {
        self.cookie.as_deref()
    }

    pub(super) async fn prepare(&self) {
        self.jwks.fetched(self.refresh).await;
    }

    pub(super) fn fetch_due(&self) {
        self.jwks.fetch_if_due(self.refresh);
    }

    /// Reads a changed JWKS file again. Returns whether the keys have changed since the last call.
    pub(super) fn read_changed_keys(&self, name: &str) -> bool {
        self.jwks.read_changed_keys(name)
    }

    /// Whether a token of this algorithm that met `requirements` and was verified with `key` would still be accepted.
    pub(super) fn still_verify(&self, algorithm: TokenAlgorithm, requirements: u64, key: u64) -> bool {
        let is_accepted = self.validations.iter().any(|(accepted, _)| *accepted == algorithm);
        is_accepted && requirements == self.requirements && self.jwks.has(key) != Some(false)
    }

    pub(super) async fn authenticate(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Decision {
        let token = match self.field {
            TokenField::Password => candidate.password().and_then(|password| std::str::from_utf8(password).ok()),
            TokenField::Username => candidate.username(),
            TokenField::Header => candidate.of_request().and_then(|request| Some(request.bearer.as_ref()?.as_str())),
            TokenField::Cookie => candidate.of_request().and_then(|request| request.cookie(self.cookie.as_ref()?)),
        };
        // Text that is not a token may be a password for the next authenticator.
        let Some(token) = token.filter(|token| token.len() <= MAX_TOKEN_LEN) else {
            return Decision::Ignore(match self.field {
                TokenField::Password => "no password, or one that is no token",
                TokenField::Username => "no user name, or one that is no token",
                TokenField::Header => "no bearer token in the request for WebSocket, or CONNECT has a password",
                TokenField::Cookie => "no such cookie in the request for WebSocket, or CONNECT has a password",
            });
        };
        let Ok(header) = jsonwebtoken::decode_header(token) else {
            return Decision::Ignore(match self.field {
                TokenField::Password => "the password is no token",
                TokenField::Username => "the user name is no token",
                TokenField::Header => "the bearer token is no JWT",
                TokenField::Cookie => "the cookie is no token",
            });
        };
        // Leave tokens of other issuers to the next authenticator. The unverified claim is enough to ignore the client.
        if let Some(issuer) = &self.issuer
            && let Ok(claims) = jsonwebtoken::dangerous::insecure_decode_claims::<Map<String, Json>>(token)
            && claims.get("iss").and_then(Json::as_str).is_some_and(|found| found != issuer)
        {
            return Decision::Ignore("a token of another issuer");
        }
        match self.verify(token, &header).await {
            // [RFC 7519, 4.1.1]; the library also accepts a list that contains the issuer.
            Ok((claims, ..)) if claims.get("iss").is_some_and(|issuer| !issuer.is_string()) => {
                Decision::Deny(invalid("its `iss` is not a string"))
            }
            Ok((claims, algorithm, key)) => {
                let Some(until) = claims.get("exp").and_then(expiry).filter(|until| *until > now()) else {
                    return Decision::Deny(Reject::TokenExpired);
                };
                if until >= MILLISECONDS {
                    return Decision::Deny(invalid("`exp` is in seconds since 1970, not milliseconds"));
                }
                let what = Authenticated::Token { algorithm, requirements: self.requirements, key, expires_at: until };
                Decision::Allow(Box::new(Principal { jwt: Some(Json::Object(claims)), ..Principal::of(name, what) }))
            }
            Err(reject) => Decision::Deny(reject),
        }
    }

    async fn verify(&self, token: &str, header: &Header) -> Result<(Map<String, Json>, TokenAlgorithm, u64), Reject> {
        // Critical extensions are not supported, so the token must be rejected [RFC 7515, 4.1.11].
        if header.crit.is_some() {
            return Err(invalid("critical extensions"));
        }
        if self.typ.as_deref().is_some_and(|typ| header.typ.as_deref().is_none_or(|found| !is_type(found, typ))) {
            let found = header.typ.as_deref().unwrap_or("none");
            return Err(invalid(&format!("its `typ` is `{}`", clip(found))));
        }
        let accepted = self.validations.iter().find(|(_, validation)| validation.algorithms == [header.alg]);
        let (algorithm, validation) = accepted.ok_or_else(|| match header.alg {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                invalid("it is signed with a shared secret, which is never accepted: let the issuer use a key pair")
            }
            other => invalid(&format!("its algorithm {other:?} is not in `algorithms`")),
        })?;
        let candidates = || self.jwks.candidates(header.kid.as_deref(), header.alg);
        let mut keys = candidates();
        if keys.as_ref().is_none_or(Vec::is_empty) {
            // The issuer may have added a key.
            self.jwks.fetched(Duration::ZERO).await;
            keys = candidates();
        }
        let keys = keys.ok_or(Reject::AuthenticationUnavailable)?;
        if keys.is_empty() {
            return Err(invalid("no key of the issuer has its `kid` and algorithm"));
        }
        let mut reject = Reject::TokenInvalid;
        for (key, tag) in keys.iter().take(MAX_TRIED) {
            match jsonwebtoken::decode::<Map<String, Json>>(token, key, validation) {
                Ok(data) => return Ok((data.claims, *algorithm, *tag)),
                Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => reject = Reject::TokenExpired,
                Err(error) => note_detail(&describe(error.kind())),
            }
        }
        Err(reject)
    }
}

fn invalid(detail: &str) -> Reject {
    note_detail(detail);
    Reject::TokenInvalid
}

/// Whether a type is the wanted one: without regard to case, and with or without `application/` [RFC 7515, 4.1.9].
fn is_type(found: &str, wanted: &str) -> bool {
    let short = |typ: &str| {
        let typ = typ.to_ascii_lowercase();
        typ.strip_prefix("application/").map(str::to_owned).unwrap_or(typ)
    };
    short(found) == short(wanted)
}

/// Parses seconds since 1970; a token may use fractions [RFC 7519, 2].
fn expiry(claim: &Json) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a time beyond all calendars is as good as any")]
    claim.as_i64().or_else(|| claim.as_f64().map(|seconds| seconds as i64))
}

/// Describes an error by its kind, because its text may quote the token.
fn describe(kind: &ErrorKind) -> Cow<'static, str> {
    let text = match kind {
        ErrorKind::InvalidSignature => "invalid signature",
        ErrorKind::ImmatureSignature => "not valid yet",
        ErrorKind::InvalidIssuer => "another issuer",
        ErrorKind::InvalidAudience => "another audience",
        ErrorKind::MissingRequiredClaim(name) => return format!("it has no claim `{name}`").into(),
        ErrorKind::InvalidAlgorithm => "algorithm not accepted",
        _ => "malformed token",
    };
    text.into()
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

/// Reads a token, and its claims.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let _ = jsonwebtoken::decode_header(token);
    if let Ok(claims) = jsonwebtoken::dangerous::insecure_decode_claims::<Map<String, Json>>(token) {
        let _ = claims.get("exp").and_then(expiry);
    }
}
