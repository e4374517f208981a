//! An HTTP authentication service. Enters: the facts about a client. Leaves: the service's decision. Time and
//! concurrency are bounded, networks take turns, and a circuit breaker stops requests to a service that fails. A
//! response about one client never serves another.

mod breaker;
mod cause;
mod failure;
mod response;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::Serialize;
use serde_json::{Map, Value as Json};
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::breaker::{Breaker, Opening};
use self::cause::{Cause, Causes};
use self::failure::Failure;
use self::response::{Response, Verdict};
use super::cache::{Cache, CacheKey};
use super::{Candidate, Decision, Principal, open_ca};
use crate::config::{Diagnostics, Reported, tables};
use crate::evidence::Authenticated;
use crate::fetch::{FetchError, FetchProblem, Fetcher};
use crate::limits::FairSlots;
use crate::observe::{Metrics, ServiceMetrics};
use crate::outcome::{Reject, note_detail};
use crate::peer::{FACTS, FactValue, Facts};
use crate::util::clock::now;
use crate::util::crypto::tag;
use crate::util::url::host_of;

/// The limit of clients that wait for a slot. They hold their CONNECT: the request, in which a byte of a password may take six,
/// is only written in the slot.
const MAX_WAITING: usize = 1024;

/// How long an error waits for the probe that shows whether the client caused it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// An authentication service.
pub(super) struct Service {
    url: String,
    headers: HeaderMap,
    fetcher: Arc<Fetcher>,
    timeout: Duration,
    slots: FairSlots,
    max_concurrency: u32,
    breaker: Arc<Breaker>,
    causes: Causes,
    metrics: ServiceMetrics,
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

impl Service {
    /// Reads the trust anchors. Opens no connection.
    pub(super) fn open(
        name: &str,
        settings: tables::HttpService,
        metrics: &Metrics,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let fetcher = Arc::new(open_ca(settings.ca.as_ref(), diagnostics)?.unwrap_or_default());
        Ok(Self {
            url: settings.url.expose().to_owned(),
            headers: settings.headers,
            fetcher,
            timeout: settings.timeout,
            slots: FairSlots::new(settings.max_concurrency as usize, MAX_WAITING),
            max_concurrency: settings.max_concurrency,
            breaker: Arc::new(Breaker::new(settings.break_after, settings.break_time)),
            causes: Causes::default(),
            metrics: metrics.service(name),
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

    /// Shows the service as up: the configuration is in use, with a closed circuit breaker.
    pub(super) fn prepare(&self) {
        self.metrics.up.set(1);
    }

    pub(super) async fn authenticate(&self, candidate: Candidate<'_>, name: &Arc<str>) -> Decision {
        // The key covers the whole request, so a response about one client never serves another.
        let key = document(candidate).map(|document| CacheKey::of(&[&document]));
        let response = match key {
            Ok(key) => self.request(key, candidate, name).await,
            Err(reject) => Err(reject),
        };
        let response = match response {
            Ok(response) => response,
            Err(reject) => return Decision::Deny(reject),
        };
        match response.result {
            Verdict::Ignore => Decision::Ignore("the service ignores it"),
            Verdict::Deny => Decision::Deny(Reject::AuthenticationDenied),
            Verdict::Allow if response.expires_at.is_some_and(|until| until <= now()) => {
                note_detail("the service allows the client, but `expires_at` has passed");
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

    /// The response from the cache, of a request for the same that is in progress, or of one of its own.
    async fn request(&self, key: CacheKey, candidate: Candidate<'_>, name: &Arc<str>) -> Result<Arc<Response>, Reject> {
        // Also if others, with which this client has waited, leave one after another.
        let deadline = Instant::now() + self.timeout;
        loop {
            let has_left = AtomicBool::new(false);
            let exchange = async {
                let response = self.exchange(candidate, deadline, name).await.inspect_err(|reject| {
                    has_left.store(*reject == Reject::ClientLeft, Ordering::Relaxed);
                })?;
                let period = if response.result == Verdict::Allow { self.cache } else { self.negative_cache };
                Ok((Arc::new(response), period))
            };
            // Without a cache, the service must see every attempt: it may count them, or accept each password only once.
            let response = if self.cache.is_zero() || self.negative_cache.is_zero() {
                self.responses.get_or_fetch(key, exchange).await
            } else {
                self.responses.get_or_fetch_once(key, exchange).await
            };
            match response {
                // Not this client, but another one, which was to make the request for both.
                Err(Reject::ClientLeft) if !has_left.load(Ordering::Relaxed) => {}
                response => return response,
            }
        }
    }

    /// Asks the service, in a slot that it waits for until `deadline`.
    async fn exchange(&self, candidate: Candidate<'_>, deadline: Instant, name: &Arc<str>) -> Result<Response, Reject> {
        let _slot = candidate.waiting().for_slot(&self.slots, deadline).await?;
        if self.breaker.is_open() {
            note_detail("the circuit breaker is open: the service keeps failing");
            return Err(Reject::AuthenticationUnavailable);
        }
        // The request has the whole timeout, however long it waited: the queue's length does not count as a failure of
        // the service. Neither does a client that disconnects during the request: that drops this future.
        let body = std::mem::take(&mut *document(candidate)?);
        let exchanged = self.fetcher.post_json(&self.url, &self.headers, body, self.timeout).await;
        let problem = match exchanged.map_err(Problem::from).and_then(|(status, body)| {
            response::read(status, &body).map_err(|text| Problem { text, failure: Failure::of_status(status) })
        }) {
            Ok(response) => {
                self.metrics.answered.inc();
                self.breaker.succeeded();
                self.causes.decided(candidate.remote());
                return Ok(response);
            }
            Err(problem) => problem,
        };
        let Problem { mut text, failure } = problem;
        if failure == Failure::Timeout {
            text += ", the `timeout` of [[authenticator]]";
        }
        self.metrics.failed(failure.label());
        if let Some(opening) = self.breaker.failed(failure, candidate.remote()) {
            self.opened(opening, name);
        }
        note_detail(&text);
        // Rarely, because clients may cause it and could flood the log.
        if let Some(suppressed) = self.metrics.warnings.permit() {
            tracing::warn!(authenticator = &**name, suppressed, "authentication service failed: {text}");
        }
        if failure == Failure::OwnShortage {
            return Err(Reject::AuthenticationUnavailable);
        }
        let cause = self.causes.failed(candidate.remote());
        Err(if failure.may_be_of_client() && self.is_of_client(cause).await {
            Reject::AuthenticationError
        } else {
            Reject::AuthenticationUnavailable
        })
    }

    /// Whether the client caused an error. Asks the service if only requests for this client's network show its state.
    async fn is_of_client(&self, cause: Cause) -> bool {
        // In a box, because it is rare and large.
        let probe = Box::pin(self.fetcher.probe(&self.url, &self.headers, self.timeout.min(PROBE_TIMEOUT)));
        match cause {
            Cause::Client => true,
            Cause::Service => false,
            Cause::Unknown => !self.causes.probe(async { is_failing(probe.await) }).await,
        }
    }

    /// The circuit breaker has opened. Waits in the background until the service responds again, and closes the circuit
    /// breaker then. The probe is the gateway's own request: that of a client may be one that the service fails on.
    fn opened(&self, opening: Opening, name: &Arc<str>) {
        let (breaker, fetcher, period) =
            (Arc::downgrade(&self.breaker), Arc::clone(&self.fetcher), self.breaker.period());
        let (url, headers, timeout) = (self.url.clone(), self.headers.clone(), self.timeout);
        let (name, up) = (Arc::clone(name), self.metrics.up.clone());
        tokio::spawn(async move {
            if opening == Opening::Suspected && responds(fetcher.probe(&url, &headers, timeout).await) {
                return breaker.upgrade().iter().for_each(|breaker| breaker.close());
            }
            let pause = humantime::format_duration(period).to_string();
            tracing::warn!(
                authenticator = &*name,
                pause,
                "circuit breaker open: the authentication service keeps failing"
            );
            up.set(0);
            loop {
                tokio::time::sleep(period).await;
                let Some(breaker) = breaker.upgrade() else { return };
                if responds(fetcher.probe(&url, &headers, timeout).await) {
                    breaker.close();
                    up.set(1);
                    tracing::info!(
                        authenticator = &*name,
                        "circuit breaker closed: the authentication service responds again"
                    );
                    return;
                }
            }
        });
    }
}

/// Whether a probe shows that the service responds, whatever it makes of it: any status, or closing the connection. A
/// proxy in front of it that cannot reach it does not count. What the gateway itself lacks says nothing about the
/// service.
const fn responds(probe: Result<StatusCode, FetchProblem>) -> bool {
    match probe {
        Ok(status) => !is_gateway_error(status),
        Err(problem) => matches!(problem, FetchProblem::Response | FetchProblem::OwnShortage),
    }
}

/// Whether a probe shows that the service fails for the gateway as for its clients. Silence does not show it: some services
/// do not answer HEAD.
fn is_failing(probe: Result<StatusCode, FetchProblem>) -> bool {
    match probe {
        Ok(status) => status == StatusCode::INTERNAL_SERVER_ERROR || is_gateway_error(status),
        // What the gateway lacks is not the client's fault either.
        Err(problem) => matches!(problem, FetchProblem::Unreachable | FetchProblem::OwnShortage),
    }
}

const fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// A request that led to no decision.
struct Problem {
    text: String,
    failure: Failure,
}

impl From<FetchError> for Problem {
    fn from(FetchError { problem, text }: FetchError) -> Self {
        Self { text, failure: problem.into() }
    }
}

/// The body of the request about a client.
fn document(candidate: Candidate<'_>) -> Result<Zeroizing<Vec<u8>>, Reject> {
    serde_json::to_vec(&request(candidate)).map(Zeroizing::new).map_err(|_| Reject::AuthenticationUnavailable)
}

fn request(candidate: Candidate<'_>) -> Request<'_> {
    let password = candidate.facts.mqtt.password.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes));
    Request {
        facts: sent_facts(candidate.facts),
        password: password.and_then(Result::ok),
        password_base64: password.and_then(Result::err).map(|bytes| STANDARD.encode(bytes)),
    }
}

/// The facts of a request. A field that the client lacks is left out, or `null` within an object; an object of which
/// the client lacks every field is left out.
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

/// Reads a response of each status.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(bytes: &[u8]) {
    let body = hyper::body::Bytes::copy_from_slice(bytes);
    for status in [200, 204, 401, 404, 500] {
        let status = hyper::StatusCode::from_u16(status).expect("these are valid");
        let read = response::read(status, &body);
        if let Ok(response) = &read
            && response.result == Verdict::Allow
        {
            assert!(status.is_success() && response.expires_at.is_none_or(|at| at >= 0));
        }
        let _ = read.map(|response| response.heap_len());
    }
}
