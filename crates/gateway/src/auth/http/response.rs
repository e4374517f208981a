//! The response of an authentication service. Enters: a status and a body. Leaves: a decision, or what is wrong with the
//! response. A member that the gateway does not know is an error: it may be a misspelt limit.

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::util::clip::clip;
use crate::util::suggest::suggest;

/// Seconds since 1970 from which a time is taken for milliseconds: in the year 5138.
const MILLISECONDS: i64 = 100_000_000_000;

/// The members of a response.
const MEMBERS: [&str; 5] = ["result", "client_id", "username", "expires_at", "attributes"];

/// The body of a response.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Response {
    pub(super) result: Verdict,
    pub(super) client_id: Option<String>,
    pub(super) username: Option<String>,
    /// Seconds since 1970.
    #[serde(default, alias = "expire_at", deserialize_with = "limit")]
    pub(super) expires_at: Option<i64>,
    #[serde(default, alias = "client_attrs")]
    pub(super) attributes: Map<String, Json>,
    /// EMQX skips topic rules for such a client. The gateway has no use for it.
    #[serde(default, rename = "is_superuser")]
    _is_superuser: Option<bool>,
    /// EMQX's topic rules.
    #[serde(default)]
    acl: Option<Vec<Json>>,
}

/// A limit that is present has a value: `null` may be one that the service failed to compute.
fn limit<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    i64::deserialize(deserializer).map(Some)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Allow,
    #[default]
    Deny,
    /// The next authenticator decides.
    Ignore,
}

impl Response {
    /// Bytes that the response owns on the heap.
    pub(super) fn heap_len(&self) -> usize {
        fn of(value: &Json) -> usize {
            match value {
                Json::String(text) => text.len(),
                Json::Array(values) => values.iter().map(|value| size_of::<Json>() + of(value)).sum(),
                Json::Object(fields) => of_fields(fields),
                Json::Null | Json::Bool(_) | Json::Number(_) => 0,
            }
        }
        fn of_fields(fields: &Map<String, Json>) -> usize {
            fields.iter().map(|(name, value)| size_of::<(String, Json)>() + name.len() + of(value)).sum()
        }
        let texts = [&self.client_id, &self.username];
        texts.into_iter().flatten().map(String::len).sum::<usize>() + of_fields(&self.attributes)
    }

    fn check(self) -> Result<Self, String> {
        // A broker would take the empty one for a client without a name.
        let is_empty = |text: &Option<String>| text.as_ref().is_some_and(String::is_empty);
        if is_empty(&self.client_id) || is_empty(&self.username) {
            let name = if is_empty(&self.client_id) { "client_id" } else { "username" };
            return Err(format!("`{name}` is empty: leave it out if it is not to be replaced"));
        }
        match self.expires_at {
            Some(MILLISECONDS..) => return Err("`expires_at` is in seconds since 1970, not milliseconds".to_owned()),
            Some(..0) => return Err("`expires_at` is negative".to_owned()),
            _ => {}
        }
        if self.acl.as_ref().is_some_and(|rules| !rules.is_empty()) {
            return Err("`acl` is not supported: the gateway would not enforce these rules".to_owned());
        }
        Ok(self)
    }
}

/// Parses a response. The error describes a response that does not follow the protocol, without quoting its values.
pub(super) fn read(status: StatusCode, body: &Bytes) -> Result<Response, String> {
    let plain = |result| Response { result, ..Response::default() };
    match status {
        StatusCode::OK => {
            let parsed: Result<Response, _> = serde_json::from_slice(body);
            parsed.map_err(|error| describe(&error, body)).and_then(Response::check)
        }
        StatusCode::NO_CONTENT => Ok(plain(Verdict::Allow)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(plain(Verdict::Deny)),
        status => Err(format!("the response has status {status}")),
    }
}

/// Describes an error by the names of members, without their values.
fn describe(error: &serde_json::Error, body: &[u8]) -> String {
    let Ok(document) = serde_json::from_slice::<Json>(body) else { return "the response is not JSON".to_owned() };
    let text = error.to_string();
    let named = |prefix: &str| text.strip_prefix(prefix)?.split('`').next().map(|name| clip(name).into_owned());
    if let Some(name) = named("unknown field `") {
        let meant = suggest(&name, MEMBERS).map_or_else(
            || "members of your own belong in `attributes`".to_owned(),
            |meant| format!("did you mean `{meant}`?"),
        );
        return format!("unknown member `{name}`: {meant}");
    }
    if let Some(name) = named("duplicate field `") {
        return format!("the member `{name}` occurs twice");
    }
    let wrong = |member: &Member| {
        let value = document.get(member.name).filter(|value| !value.is_null() || member.what == SECONDS)?;
        (!(member.is_right)(value)).then(|| format!("`{}` must be {}", member.name, member.what))
    };
    match document.get("result") {
        _ if !document.is_object() => "the response is not a JSON object".to_owned(),
        None => "the response has no `result`".to_owned(),
        Some(_) => {
            TYPED.iter().find_map(wrong).unwrap_or_else(|| "a member of the response has a wrong value".to_owned())
        }
    }
}

const SECONDS: &str = "a whole number of seconds since 1970";

/// A member of a response, and what it must be.
struct Member {
    name: &'static str,
    what: &'static str,
    is_right: fn(&Json) -> bool,
}

const fn member(name: &'static str, what: &'static str, is_right: fn(&Json) -> bool) -> Member {
    Member { name, what, is_right }
}

const TYPED: &[Member] = &[
    member("result", "\"allow\", \"deny\" or \"ignore\"", |value| {
        value.as_str().is_some_and(|result| ["allow", "deny", "ignore"].contains(&result))
    }),
    member("client_id", "a string", Json::is_string),
    member("username", "a string", Json::is_string),
    member("expires_at", SECONDS, Json::is_i64),
    member("expire_at", SECONDS, Json::is_i64),
    member("attributes", "an object", Json::is_object),
    member("client_attrs", "an object", Json::is_object),
    member("is_superuser", "a boolean", Json::is_boolean),
    member("acl", "a list", Json::is_array),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(status: u16, body: &str) -> Result<Response, String> {
        read(StatusCode::from_u16(status).unwrap(), &Bytes::from(body.to_owned()))
    }

    #[test]
    fn responses_are_parsed() {
        let decision = |status: u16, body: &str| parsed(status, body).map(|response| response.result).ok();
        assert_eq!(decision(200, r#"{"result":"allow","is_superuser":false}"#), Some(Verdict::Allow));
        assert_eq!(decision(200, r#"{"result":"deny"}"#), Some(Verdict::Deny));
        assert_eq!(decision(200, r#"{"result":"ignore"}"#), Some(Verdict::Ignore));
        assert_eq!(decision(204, ""), Some(Verdict::Allow));
        assert_eq!((decision(401, ""), decision(403, "{}")), (Some(Verdict::Deny), Some(Verdict::Deny)));
        for (status, body) in [
            (200, ""),
            (200, "{}"),
            (200, "true"),
            (200, r#"{"result":"Allow"}"#),
            (200, r#"{"result":true}"#),
            (200, r#"{"result":"deny","result":"allow"}"#),
            (201, r#"{"result":"allow"}"#),
            (302, r#"{"result":"allow"}"#),
            (500, r#"{"result":"allow"}"#),
        ] {
            assert_eq!(decision(status, body), None, "{status} {body}");
        }
    }

    #[test]
    fn a_limit_that_the_gateway_does_not_understand_admits_nobody() {
        for (member, problem) in [
            (r#""expiresAt":1"#, "unknown member `expiresAt`: did you mean `expires_at`?"),
            (r#""expires":1"#, "unknown member `expires`: did you mean `expires_at`?"),
            (r#""quota":1"#, "unknown member `quota`: members of your own belong in `attributes`"),
            (r#""clientid":"a""#, "unknown member `clientid`: did you mean `client_id`?"),
            (r#""expires_at":1893456000000"#, "`expires_at` is in seconds since 1970, not milliseconds"),
            (r#""expire_at":1893456000000"#, "`expires_at` is in seconds since 1970, not milliseconds"),
            (r#""expires_at":-1"#, "`expires_at` is negative"),
            (r#""expires_at":1893456000.5"#, "`expires_at` must be a whole number of seconds"),
            (r#""expires_at":"1893456000""#, "`expires_at` must be a whole number of seconds"),
            (r#""expires_at":null"#, "`expires_at` must be a whole number of seconds"),
            (r#""expire_at":null"#, "`expire_at` must be a whole number of seconds"),
            (r#""client_id":5"#, "`client_id` must be a string"),
            (r#""client_id":"""#, "`client_id` is empty"),
            (r#""username":"""#, "`username` is empty"),
            (r#""expires_at":1,"expire_at":2"#, "the member `expires_at` occurs twice"),
            (r#""acl":[{"permission":"deny"}]"#, "`acl` is not supported"),
        ] {
            let error = parsed(200, &format!("{{\"result\":\"allow\",{member}}}")).unwrap_err();
            assert!(error.starts_with(problem), "{member}: {error}");
        }
    }

    #[test]
    fn a_wrong_result_is_named() {
        for (body, problem) in [
            ("true", "the response is not a JSON object"),
            ("{}", "the response has no `result`"),
            (r#"{"result":true}"#, "`result` must be"),
            (r#"{"result":"allowed"}"#, "`result` must be"),
            ("<html>", "the response is not JSON"),
        ] {
            assert!(parsed(200, body).unwrap_err().starts_with(problem), "{body}: {:?}", parsed(200, body));
        }
    }

    #[test]
    fn what_emqx_understands_is_understood() {
        let body =
            r#"{"result":"allow","is_superuser":true,"client_attrs":{"site":"lyon"},"expire_at":1893456000,"acl":[]}"#;
        let response = parsed(200, body).unwrap();
        assert_eq!((response.expires_at, &response.attributes["site"]), (Some(1_893_456_000), &Json::from("lyon")));
        let own = r#"{"result":"allow","attributes":{"expiresAt":1}}"#;
        assert!(parsed(200, own).is_ok(), "in `attributes`, anything goes");
    }
}
