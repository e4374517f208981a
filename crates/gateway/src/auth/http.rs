//! An authentication service: asked by a JSON document, in bounded time, by a bounded number of clients at once. Left
//! alone for a while when it does not answer.

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
use serde_json::{Map, Value as Json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::cache::{Cache, Question};
use super::{Answer, Candidate, Principal, open_ca};
use crate::config::{Diagnostics, Reported, tables};
use crate::evidence::Authenticated;
use crate::fetch::Fetcher;
use crate::outcome::Reject;
use crate::peer::{FACTS, FactValue, Facts};
use crate::util::clock::now;
use crate::util::crypto::tag;
use crate::util::url::host_of;

/// A service.
pub(super) struct Service {
    url: String,
    headers: HeaderMap,
    fetcher: Fetcher,
    timeout: Duration,
    places: Semaphore,
    breaker: Breaker,
    answers: Cache<Arc<Said>>,
    cache: Duration,
    negative_cache: Duration,
}

/// Its URL may have a secret in it.
impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({})", host_of(&self.url))
    }
}

/// The request: what the table of facts says of a client, under the names of this protocol, and the password.
#[derive(Serialize)]
struct Request<'a> {
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    /// One that is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_base64: Option<String>,
    mqtt_version: u8,
    listener: &'a str,
    remote_addr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Map<String, Json>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Map<String, Json>>,
}

/// Fields of `tls` in the request, each with the fact that it is.
const TLS: &[(&str, &str)] = &[
    ("version", "tls.version"),
    ("sni", "tls.sni"),
    ("psk_identity", "tls.psk_identity"),
    ("key_name", "tls.key_name"),
    ("key_fingerprint", "tls.key_fingerprint"),
];

/// Fields of `certificate` in the request, likewise.
const CERTIFICATE: &[(&str, &str)] = &[
    ("subject", "cert.subject.dn"),
    ("common_name", "cert.subject.cn"),
    ("issuer", "cert.issuer.dn"),
    ("serial", "cert.serial"),
    ("sha256", "cert.fingerprint.sha256"),
];

/// What is answered.
#[derive(Debug, Deserialize)]
struct Said {
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
    /// Somebody else may know the client.
    Ignore,
}

impl Said {
    /// What it holds besides itself, in bytes.
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
    /// Reads the trust anchors; connects to nothing.
    pub(super) fn open(settings: tables::HttpService, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let fetcher = open_ca(settings.ca.as_ref(), diagnostics)?.unwrap_or_default();
        Ok(Self {
            url: settings.url.expose().to_owned(),
            headers: settings.headers,
            fetcher,
            timeout: settings.timeout,
            places: Semaphore::new(settings.max_concurrency as usize),
            breaker: Breaker::new(settings.break_after, settings.break_time),
            answers: Cache::new(|said| said.heap_len()),
            cache: settings.cache,
            negative_cache: settings.negative_cache,
        })
    }

    /// Distinguishes the service's URL from others.
    pub(super) fn tag(&self) -> u64 {
        tag(self.url.as_bytes())
    }

    pub(super) async fn ask(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Answer {
        let Ok(document) = serde_json::to_vec(&request(candidate)).map(Zeroizing::new) else {
            return Answer::Refused(Reject::AuthenticationUnavailable);
        };
        // All that is sent is in the question: an answer about one client is nobody else's.
        let question = Question::of(&[&document]);
        let exchange = async {
            let said = self.exchange(&document, name).await?;
            let period = if said.result == Verdict::Allow { self.cache } else { self.negative_cache };
            Ok((Arc::new(said), period))
        };
        // Where answers are not cached, the service sees every attempt: it may count them, or passwords may be for once.
        let answer = if self.cache.is_zero() || self.negative_cache.is_zero() {
            self.answers.get_or_ask(question, exchange).await
        } else {
            self.answers.get_or_ask_once(question, exchange).await
        };
        let said = match answer {
            Ok(said) => said,
            Err(reject) => return Answer::Refused(reject),
        };
        match said.result {
            Verdict::Ignore => Answer::Unknown,
            Verdict::Deny => Answer::Refused(Reject::AuthenticationDenied),
            Verdict::Allow if said.expires_at.is_some_and(|until| until <= now()) => {
                Answer::Refused(Reject::AuthenticationDenied)
            }
            Verdict::Allow => {
                let what = Authenticated::Response { service: self.tag(), expires_at: said.expires_at };
                Answer::Known(Box::new(Principal {
                    http: Some(Json::Object(said.attributes.clone())),
                    client_id: said.client_id.clone(),
                    username: said.username.clone(),
                    ..Principal::of(name, what)
                }))
            }
        }
    }

    async fn exchange(&self, document: &[u8], name: &str) -> Result<Said, Reject> {
        // Closed never.
        let Ok(Ok(_place)) = tokio::time::timeout(self.timeout, self.places.acquire()).await else {
            return Err(Reject::AuthenticationBusy);
        };
        if !self.breaker.may_try() {
            return Err(Reject::AuthenticationUnavailable);
        }
        // With all of the time, however long it has waited: a queue says nothing of the service.
        let asked = self.fetcher.post_json(&self.url, &self.headers, document.to_vec(), self.timeout).await;
        // Nor does a client that goes away in the midst of it, or one whose question the service does not like.
        let dislikes_it = asked.as_ref().is_ok_and(|(status, _)| status.is_client_error());
        let said = asked.and_then(|(status, body)| read(status, &body));
        self.breaker.note(dislikes_it || said.is_ok());
        said.map_err(|problem| {
            if dislikes_it {
                // Whoever brings that about could fill the log with it.
                tracing::debug!(authenticator = name, "the authentication service does not like a question: {problem}");
            } else {
                tracing::warn!(authenticator = name, "the authentication service gave no answer: {problem}");
            }
            Reject::AuthenticationUnavailable
        })
    }
}

fn request(candidate: Candidate<'_>) -> Request<'_> {
    let Facts { peer, listener, mqtt, .. } = *candidate.facts;
    let password = mqtt.password.map(std::str::from_utf8);
    let object = |fields: &[(&str, &str)]| {
        fields.iter().map(|(name, fact)| ((*name).to_owned(), text_of(fact, candidate.facts))).collect()
    };
    Request {
        client_id: mqtt.client_id,
        username: mqtt.username,
        password: password.and_then(Result::ok),
        password_base64: match (password, mqtt.password) {
            (Some(Err(_)), Some(octets)) => Some(STANDARD.encode(octets)),
            _ => None,
        },
        mqtt_version: mqtt.version as u8,
        listener,
        remote_addr: peer.address.ip().to_canonical().to_string(),
        tls: peer.tls.as_ref().map(|_| object(TLS)),
        certificate: peer.certificate().map(|_| object(CERTIFICATE)),
    }
}

/// The text of a fact; `null` if there is none.
fn text_of(path: &str, facts: &Facts<'_>) -> Json {
    let fact = FACTS.iter().find(|fact| fact.path == path);
    match fact.and_then(|fact| fact.get(facts)) {
        Some(FactValue::Text(text)) => Json::String(text.into_owned()),
        _ => Json::Null,
    }
}

/// What an answer says. `Err`: nothing; the service is at fault.
fn read(status: StatusCode, body: &Bytes) -> Result<Said, String> {
    let plain = |result| Said { result, client_id: None, username: None, expires_at: None, attributes: Map::new() };
    match status {
        StatusCode::OK => serde_json::from_slice(body)
            .map_err(|_| "the answer is no JSON as it is wanted, with `result` = allow, deny or ignore".to_owned()),
        StatusCode::NO_CONTENT => Ok(plain(Verdict::Allow)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(plain(Verdict::Deny)),
        status => Err(format!("the answer is {status}")),
    }
}

/// Leaves a service alone that does not answer: closed, it is asked; open, it is not; after a while one client tries.
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
    /// When somebody may try again.
    closed_until: Option<Instant>,
}

impl Breaker {
    fn new(after: u32, period: Duration) -> Self {
        Self { after, period, state: Mutex::default() }
    }

    fn may_try(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        match state.closed_until {
            Some(until) if now < until => false,
            Some(_) => {
                // This one tries; the next does so if nothing has come of it by then.
                state.closed_until = Some(now + self.period);
                true
            }
            None => true,
        }
    }

    fn note(&self, is_good: bool) {
        let mut state = self.state.lock();
        if is_good {
            *state = State::default();
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= self.after {
            state.closed_until = Some(Instant::now() + self.period);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let said = |status: u16, body: &str| {
            read(StatusCode::from_u16(status).unwrap(), &Bytes::from(body.to_owned())).map(|said| said.result).ok()
        };
        assert_eq!(said(200, r#"{"result":"allow","is_superuser":false}"#), Some(Verdict::Allow));
        assert_eq!(said(200, r#"{"result":"deny"}"#), Some(Verdict::Deny));
        assert_eq!(said(200, r#"{"result":"ignore"}"#), Some(Verdict::Ignore));
        assert_eq!(said(204, ""), Some(Verdict::Allow));
        assert_eq!((said(401, ""), said(403, "{}")), (Some(Verdict::Deny), Some(Verdict::Deny)));
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
            assert_eq!(said(status, body), None, "{status} {body}");
        }
    }

    #[test]
    fn a_service_that_fails_is_left_alone_for_a_while() {
        let breaker = Breaker::new(2, Duration::from_millis(20));
        breaker.note(false);
        assert!(breaker.may_try());
        breaker.note(true);
        breaker.note(false);
        assert!(breaker.may_try(), "two in a row are wanted");
        breaker.note(false);
        assert!(!breaker.may_try());
        std::thread::sleep(Duration::from_millis(25));
        assert!(breaker.may_try(), "somebody tries");
        assert!(!breaker.may_try(), "and nobody else meanwhile");
        breaker.note(true);
        assert!(breaker.may_try() && breaker.may_try());
    }
}
