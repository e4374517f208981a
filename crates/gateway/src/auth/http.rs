//! An HTTP authentication service. Enters: the facts about a client. Leaves: the service's decision. Time and
//! concurrency are bounded, and a circuit breaker stops requests to a service that fails. A response about one
//! client never serves another.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Map, Value as Json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::cache::{Cache, CacheKey};
use super::{Candidate, Decision, Principal, open_ca};
use crate::config::{Diagnostics, Reported, tables};
use crate::evidence::Authenticated;
use crate::fetch::Fetcher;
use crate::outcome::Reject;
use crate::peer::{FACTS, FactValue, Facts};
use crate::util::clock::now;
use crate::util::crypto::tag;
use crate::util::url::host_of;

/// An authentication service.
pub(super) struct Service {
    url: String,
    headers: HeaderMap,
    fetcher: Fetcher,
    timeout: Duration,
    permits: Semaphore,
    max_concurrency: u32,
    breaker: Breaker,
    responses: Cache<Arc<Response>>,
    cache: Duration,
    negative_cache: Duration,
}

/// Shows only the host: the URL may contain a secret.
impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", host_of(&self.url))
    }
}

/// The body of a request.
#[derive(Serialize)]
struct Request<'a> {
    /// The facts that the table of facts sends.
    #[serde(flatten)]
    facts: Map<String, Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    /// A password that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_base64: Option<String>,
}

/// The body of a response.
#[derive(Debug, Deserialize)]
struct Response {
    result: Verdict,
    client_id: Option<String>,
    username: Option<String>,
    /// Seconds since 1970.
    expires_at: Option<i64>,
    #[serde(default)]
    attributes: Map<String, Json>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Deny,
    /// The next authenticator decides.
    Ignore,
}

impl Response {
    /// Bytes that the response owns on the heap.
    fn heap_len(&self) -> usize {
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
}

impl Service {
    /// Reads the trust anchors. Opens no connection.
    pub(super) fn open(settings: tables::HttpService, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let fetcher = open_ca(settings.ca.as_ref(), diagnostics)?.unwrap_or_default();
        Ok(Self {
            url: settings.url.expose().to_owned(),
            headers: settings.headers,
            fetcher,
            timeout: settings.timeout,
            permits: Semaphore::new(settings.max_concurrency as usize),
            max_concurrency: settings.max_concurrency,
            breaker: Breaker::new(settings.break_after, settings.break_time),
            responses: Cache::new(|response| response.heap_len()),
            cache: settings.cache,
            negative_cache: settings.negative_cache,
        })
    }

    /// Distinguishes the service's URL from others.
    pub(super) fn tag(&self) -> u64 {
        tag(self.url.as_bytes())
    }

    /// The connections to the service that may be open at once.
    pub(super) fn descriptors(&self) -> u64 {
        self.max_concurrency.into()
    }

    pub(super) async fn authenticate(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Decision {
        let Ok(document) = serde_json::to_vec(&request(candidate)).map(Zeroizing::new) else {
            return Decision::Deny(Reject::AuthenticationUnavailable);
        };
        // The key covers the whole request, so a response about one client never serves another.
        let key = CacheKey::of(&[&document]);
        let exchange = async {
            let response = self.exchange(&document, name).await?;
            let period = if response.result == Verdict::Allow { self.cache } else { self.negative_cache };
            Ok((Arc::new(response), period))
        };
        // Without a cache, the service must see every attempt: it may count them, or accept each password only once.
        let result = if self.cache.is_zero() || self.negative_cache.is_zero() {
            self.responses.get_or_fetch(key, exchange).await
        } else {
            self.responses.get_or_fetch_once(key, exchange).await
        };
        let response = match result {
            Ok(response) => response,
            Err(reject) => return Decision::Deny(reject),
        };
        match response.result {
            Verdict::Ignore => Decision::Ignore,
            Verdict::Deny => Decision::Deny(Reject::AuthenticationDenied),
            Verdict::Allow if response.expires_at.is_some_and(|until| until <= now()) => {
                Decision::Deny(Reject::AuthenticationDenied)
            }
            Verdict::Allow => {
                let what = Authenticated::Response { service: self.tag(), expires_at: response.expires_at };
                Decision::Allow(Box::new(Principal {
                    http: Some(Json::Object(response.attributes.clone())),
                    client_id: response.client_id.clone(),
                    username: response.username.clone(),
                    ..Principal::of(name, what)
                }))
            }
        }
    }

    async fn exchange(&self, document: &[u8], name: &str) -> Result<Response, Reject> {
        // The semaphore is never closed.
        let Ok(Ok(_permit)) = tokio::time::timeout(self.timeout, self.permits.acquire()).await else {
            return Err(Reject::AuthenticationBusy);
        };
        if !self.breaker.may_try() {
            return Err(Reject::AuthenticationUnavailable);
        }
        // The request has the whole timeout, however long it waited: the queue's length does not count as a failure of
        // the service.
        let exchanged = self.fetcher.post_json(&self.url, &self.headers, document.to_vec(), self.timeout).await;
        // Neither does a 4xx status, nor a client that disconnects during the request: that drops this future.
        let is_client_error = exchanged.as_ref().is_ok_and(|(status, _)| status.is_client_error());
        let response = exchanged.and_then(|(status, body)| read(status, &body));
        if self.breaker.record(is_client_error || response.is_ok()) {
            let pause = humantime::format_duration(self.breaker.period).to_string();
            tracing::warn!(
                authenticator = name,
                pause,
                "circuit breaker open: the authentication service keeps failing"
            );
        }
        response.map_err(|problem| {
            if is_client_error {
                // At debug level, because clients may cause it and could flood the log.
                tracing::debug!(authenticator = name, "authentication service rejected the request: {problem}");
            } else {
                tracing::warn!(authenticator = name, "authentication service failed: {problem}");
            }
            Reject::AuthenticationUnavailable
        })
    }
}

fn request(candidate: Candidate<'_>) -> Request<'_> {
    let password = candidate.facts.mqtt.password.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes));
    Request {
        facts: sent_facts(candidate.facts),
        password: password.and_then(Result::ok),
        password_base64: password.and_then(Result::err).map(|bytes| STANDARD.encode(bytes)),
    }
}

/// The facts of a request. A field that the client lacks is left out, or `null` within an object; an object of which the
/// client lacks every field is left out.
fn sent_facts(facts: &Facts<'_>) -> Map<String, Json> {
    let mut fields = Map::new();
    for (fact, path) in FACTS.iter().filter_map(|fact| Some((fact, fact.sent_as?))) {
        let value = match fact.get(facts) {
            Some(FactValue::Text(text)) => Json::String(text.into_owned()),
            Some(FactValue::Int(number)) => number.into(),
            _ => Json::Null,
        };
        match path.split_once('.') {
            None => drop(fields.insert(path.to_owned(), value)),
            Some((object, field)) => {
                let object = fields.entry(object).or_insert_with(|| Json::Object(Map::new()));
                object[field] = value;
            }
        }
    }
    fields.retain(|_, value| match value {
        Json::Null => false,
        Json::Object(fields) => fields.values().any(|value| !value.is_null()),
        _ => true,
    });
    fields
}

/// Parses a response. The error describes a response that does not follow the protocol.
fn read(status: StatusCode, body: &Bytes) -> Result<Response, String> {
    let plain = |result| Response { result, client_id: None, username: None, expires_at: None, attributes: Map::new() };
    match status {
        StatusCode::OK => serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => "a member of the response is missing or has a wrong value: `result` is `allow`, `deny` or \
                `ignore`, `client_id` and `username` are strings, `expires_at` is a whole number, `attributes` an object",
            Category::Io | Category::Syntax | Category::Eof => "the response is not JSON",
        }.to_owned()),
        StatusCode::NO_CONTENT => Ok(plain(Verdict::Allow)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(plain(Verdict::Deny)),
        status => Err(format!("the response has status {status}")),
    }
}

/// A circuit breaker. Closed, it lets requests pass. After `after` failures in a row it opens and rejects them. After
/// `period` it lets one request pass as a probe (half-open).
#[derive(Debug)]
struct Breaker {
    after: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// When the breaker is open: the time of the next probe.
    open_until: Option<Instant>,
}

impl Breaker {
    fn new(after: u32, period: Duration) -> Self {
        Self { after, period, state: Mutex::default() }
    }

    fn may_try(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        match state.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                // This request is the probe. If it reports no result in time, another one follows.
                state.open_until = Some(now + self.period);
                true
            }
            None => true,
        }
    }

    /// Records the result of a request. Returns whether the breaker opens.
    fn record(&self, is_success: bool) -> bool {
        let mut state = self.state.lock();
        if is_success {
            *state = State::default();
            return false;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures < self.after {
            return false;
        }
        let was_open = state.open_until.replace(Instant::now() + self.period).is_some();
        !was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_parsed() {
        let decision = |status: u16, body: &str| {
            read(StatusCode::from_u16(status).unwrap(), &Bytes::from(body.to_owned()))
                .map(|response| response.result)
                .ok()
        };
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
            (201, r#"{"result":"allow"}"#),
            (302, r#"{"result":"allow"}"#),
            (500, r#"{"result":"allow"}"#),
        ] {
            assert_eq!(decision(status, body), None, "{status} {body}");
        }
    }

    #[test]
    fn a_service_that_fails_is_left_alone_for_a_while() {
        let breaker = Breaker::new(2, Duration::from_millis(20));
        breaker.record(false);
        assert!(breaker.may_try());
        breaker.record(true);
        breaker.record(false);
        assert!(breaker.may_try(), "two failures in a row open it");
        breaker.record(false);
        assert!(!breaker.may_try());
        std::thread::sleep(Duration::from_millis(25));
        assert!(breaker.may_try(), "one request probes");
        assert!(!breaker.may_try(), "and no other meanwhile");
        breaker.record(true);
        assert!(breaker.may_try() && breaker.may_try());
    }
}
