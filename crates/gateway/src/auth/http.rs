//! An authentication service: asked by a JSON document, in bounded time, by a bounded number of clients at once. Left
//! alone for a while when it does not answer.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::cache::{Cache, Question};
use super::{Answer, Candidate, Ground, Principal, Standing, compile_ca};
use crate::clock::now;
use crate::config::{At, Document, model};
use crate::crypto::mark;
use crate::fetch::{Fetcher, host_of, is_url};
use crate::outcome::{CloseReason, Reject};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CONCURRENCY: u32 = 64;
const CACHE: Duration = Duration::from_secs(30);
const NEGATIVE_CACHE: Duration = Duration::from_secs(5);
const BREAK_AFTER: u32 = 5;
const BREAK_TIME: Duration = Duration::from_secs(10);

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

/// What is sent.
#[derive(Serialize)]
struct Asked<'a> {
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
    tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate<'a>>,
}

#[derive(Serialize)]
struct Tls<'a> {
    version: &'a str,
    sni: Option<&'a str>,
    psk_identity: Option<&'a str>,
    key_name: Option<&'a str>,
    key_fingerprint: Option<String>,
}

#[derive(Serialize)]
struct Certificate<'a> {
    subject: Option<&'a str>,
    common_name: Option<&'a str>,
    issuer: Option<&'a str>,
    serial: &'a str,
    sha256: String,
}

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

impl Service {
    pub(super) fn compile(table: &At<model::Authenticator>, document: &mut Document) -> Option<Self> {
        let Some(url) = &table.url else {
            document.missing(&table.span, "url", "where the JSON document about a client is sent to");
            return None;
        };
        if !is_url(url) {
            document.problems.error(&url.span, "this is no `http` or `https` URL").hide_line();
            return None;
        }
        let host = host_of(url);
        let is_near =
            host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        if url.starts_with("http://") && !is_near {
            let message = "passwords go to this service over plain HTTP";
            document.problems.warning(&url.span, message).hide_line().hint("https://");
        }
        let mut headers = HeaderMap::new();
        for (name, value) in table.headers.iter().flat_map(|headers| &headers.value) {
            let span = table.headers.as_ref().map_or(&table.span, |at| &at.span);
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                _ => {
                    let message = format!("the header `{}` cannot be sent", name.escape_debug());
                    document.problems.error(span, message).hide_line();
                    return None;
                }
            }
        }
        let fetcher = compile_ca(table, document)?.unwrap_or_default();
        let places = table.max_concurrency.as_ref().map_or(MAX_CONCURRENCY, |at| at.value.get());
        Some(Self {
            url: url.value.clone(),
            headers,
            fetcher,
            timeout: table.timeout.as_ref().map_or(TIMEOUT, |at| at.value.0),
            places: Semaphore::new(places as usize),
            breaker: Breaker::new(
                table.break_after.as_ref().map_or(BREAK_AFTER, |at| at.value.get()),
                table.break_time.as_ref().map_or(BREAK_TIME, |at| at.value.0),
            ),
            answers: Cache::default(),
            cache: table.cache.as_ref().map_or(CACHE, |at| at.value.0),
            negative_cache: table.negative_cache.as_ref().map_or(NEGATIVE_CACHE, |at| at.value.0),
        })
    }

    pub(super) async fn ask(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Answer {
        let Ok(document) = serde_json::to_vec(&describe(candidate)).map(Zeroizing::new) else {
            return Answer::Refused(Reject::AuthenticationUnavailable);
        };
        // All that is sent is in the question: an answer about one client is nobody else's.
        let question = Question::of(&[&document]);
        let said = match self.answers.get(question) {
            Some(said) => said,
            None => match self.exchange(&document, name).await {
                Ok(said) => {
                    let said = Arc::new(said);
                    let period = if said.result == Verdict::Allow { self.cache } else { self.negative_cache };
                    self.answers.put(question, Arc::clone(&said), period);
                    said
                }
                Err(reject) => return Answer::Refused(reject),
            },
        };
        match said.result {
            Verdict::Ignore => Answer::Unknown,
            Verdict::Deny => Answer::Refused(Reject::AuthenticationDenied),
            Verdict::Allow if said.expires_at.is_some_and(|until| until <= now()) => {
                Answer::Refused(Reject::AuthenticationDenied)
            }
            Verdict::Allow => Answer::Known(Box::new(Principal {
                authenticator: Some(Arc::clone(name)),
                http: Some(Json::Object(said.attributes.clone())),
                client_id: said.client_id.clone(),
                username: said.username.clone(),
                standing: Some(Standing {
                    authenticator: Arc::clone(name),
                    ground: Ground::Answer(mark(self.url.as_bytes()), said.expires_at),
                }),
                ..Principal::default()
            })),
        }
    }

    /// Why a session that stands on an answer of the service at this URL has to end; `None`: it has not.
    pub(super) fn judge(&self, of: u64, until: Option<i64>) -> Option<CloseReason> {
        if mark(self.url.as_bytes()) != of {
            return Some(CloseReason::CredentialWithdrawn);
        }
        until.is_some_and(|until| until <= now()).then_some(CloseReason::TokenExpired)
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

fn describe(candidate: Candidate<'_>) -> Asked<'_> {
    let facts = candidate.facts;
    let password = facts.mqtt.password.map(std::str::from_utf8);
    Asked {
        client_id: facts.mqtt.client_id,
        username: facts.mqtt.username,
        password: password.and_then(Result::ok),
        password_base64: match (password, facts.mqtt.password) {
            (Some(Err(_)), Some(octets)) => Some(STANDARD.encode(octets)),
            _ => None,
        },
        mqtt_version: facts.mqtt.version as u8,
        listener: facts.conn.listener,
        remote_addr: facts.conn.remote.ip().to_canonical().to_string(),
        tls: facts.tls.map(|tls| Tls {
            version: tls.version,
            sni: tls.sni.as_deref(),
            psk_identity: tls.psk.as_ref().map(|psk| &*psk.identity),
            key_name: tls.raw_key.as_ref().and_then(|key| key.name.as_deref()),
            key_fingerprint: tls.raw_key.as_ref().map(|key| hex::encode(key.fingerprint)),
        }),
        certificate: facts.certificate.map(|certificate| Certificate {
            subject: certificate.subject.dn.as_deref(),
            common_name: certificate.subject.cn.as_deref(),
            issuer: certificate.issuer.dn.as_deref(),
            serial: &certificate.serial,
            sha256: certificate.sha256(),
        }),
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
