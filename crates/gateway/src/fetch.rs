//! HTTP client for CRLs, OCSP, JWKS and authentication services. Enters: a URL and a request. Leaves: a response of
//! bounded size, within a timeout. TLS is always verified. Redirects are never followed, and no TLS handshake
//! waits for a response.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use tokio::sync::Semaphore;

use crate::config::Complaint;
use crate::net::is_own_shortage;
use crate::trust::{Purpose, ServerVerifier, TrustAnchors};
use crate::util::causes::{causes, with_causes};
use crate::util::crypto::{provider, tag};

/// Time for a request and its whole response.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum size of a CRL in bytes. A million revoked certificates take about 40 MB.
const MAX_CRL_LEN: usize = 64 << 20;
/// Maximum size of a response of an OCSP responder or an authentication service, in bytes.
const MAX_RESPONSE_LEN: usize = 64 << 10;

/// Maximum size of a JWKS in bytes.
const MAX_KEYS_LEN: usize = 256 << 10;

/// An HTTP client.
#[derive(Default)]
pub(crate) struct Fetcher {
    client: OnceLock<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
    /// `None`: the system's trust anchors.
    verifier: Option<Arc<ServerVerifier>>,
    /// Distinguishes the trust anchors from others.
    tag: u64,
}

/// Limits concurrent fetches of CRLs, because each may be large.
static CRL_FETCHES: Semaphore = Semaphore::const_new(4);

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

/// A request without a usable response.
#[derive(Debug)]
pub(crate) struct FetchError {
    pub problem: FetchProblem,
    /// Describes it.
    pub text: String,
}

/// Why a request has no usable response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchProblem {
    /// No connection.
    Unreachable,
    /// No connection, because this machine lacks descriptors or ports.
    OwnShortage,
    /// No response in time.
    Timeout,
    /// The response is too large or malformed, or ended early.
    Response,
}

impl FetchError {
    fn response(text: impl Into<String>) -> Self {
        Self { problem: FetchProblem::Response, text: text.into() }
    }
}

/// A body, and the validators for the next request; `None`: not modified.
pub(crate) type Fetched = Option<(Bytes, Validators)>;

/// Validators that make the next request for the same resource conditional [RFC 9110, 13].
#[derive(Clone, Debug, Default)]
pub(crate) struct Validators {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Fetcher {
    /// A client that accepts only servers with a certificate from these trust anchors.
    ///
    /// # Errors
    /// The file cannot be read, or contains an invalid trust anchor.
    pub(crate) fn with_anchors(path: &Path) -> Result<Self, Complaint> {
        let anchors = TrustAnchors::read(path, Purpose::Servers)?;
        let tag = tag(format!("{:?}", anchors.list()).as_bytes());
        Ok(Self { client: OnceLock::new(), verifier: Some(ServerVerifier::new(anchors)), tag })
    }

    /// Distinguishes the trust anchors from others.
    pub(crate) const fn tag(&self) -> u64 {
        self.tag
    }

    /// Fetches a CRL, unless it is unmodified.
    ///
    /// # Errors
    /// A description of the failure.
    pub(crate) async fn get_crl(&self, url: &str, validators: &Validators) -> Result<Fetched, String> {
        // The semaphore is never closed.
        let _permit = CRL_FETCHES.acquire().await.map_err(|error| error.to_string())?;
        self.get(url, validators, MAX_CRL_LEN).await
    }

    /// Fetches a JWKS, unless it is unmodified.
    ///
    /// # Errors
    /// A description of the failure.
    pub(crate) async fn get_keys(&self, url: &str, validators: &Validators) -> Result<Fetched, String> {
        self.get(url, validators, MAX_KEYS_LEN).await
    }

    async fn get(&self, url: &str, validators: &Validators, max_len: usize) -> Result<Fetched, String> {
        let mut request = Request::builder().method(Method::GET).uri(url);
        let conditions =
            [(header::IF_NONE_MATCH, &validators.etag), (header::IF_MODIFIED_SINCE, &validators.last_modified)];
        for (name, value) in conditions {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::default()).map_err(|error| error.to_string())?;
        let (status, headers, body) = self.exchange(request, max_len, TIMEOUT).await.map_err(|error| error.text)?;
        let value = |name: HeaderName| headers.get(name).cloned();
        match status {
            StatusCode::OK => {
                let last_modified = value(header::LAST_MODIFIED).filter(|at| is_strong(at, headers.get(header::DATE)));
                let etag = value(header::ETAG);
                Ok(Some((body, Validators { etag, last_modified })))
            }
            StatusCode::NOT_MODIFIED => Ok(None),
            status => Err(format!("the response has status {status}")),
        }
    }

    /// Sends a request to an OCSP responder [RFC 6960, A.1].
    ///
    /// # Errors
    /// A description of the failure.
    pub(crate) async fn post_ocsp(&self, url: &str, request: Vec<u8>) -> Result<Bytes, String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/ocsp-request")
            .header(header::ACCEPT, "application/ocsp-response")
            .body(Full::from(request))
            .map_err(|error| error.to_string())?;
        match self.exchange(request, MAX_RESPONSE_LEN, TIMEOUT).await.map_err(|error| error.text)? {
            (StatusCode::OK, _, body) => Ok(body),
            (status, ..) => Err(format!("the response has status {status}")),
        }
    }

    /// Posts a JSON document with these headers. Returns the status and body of the response.
    ///
    /// # Errors
    /// The failure; also if the exchange exceeds `timeout`.
    pub(crate) async fn post_json(
        &self,
        url: &str,
        headers: &HeaderMap,
        document: Vec<u8>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), FetchError> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
            all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            all.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        }
        let request = request.body(Full::from(document)).map_err(|error| FetchError::response(error.to_string()))?;
        let (status, _, body) = self.exchange(request, MAX_RESPONSE_LEN, timeout).await?;
        Ok((status, body))
    }

    /// Sends a request that asks for nothing. Returns the status of the response.
    pub(crate) async fn probe(
        &self,
        url: &str,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<StatusCode, FetchProblem> {
        let request = Request::builder().method(Method::HEAD).uri(url).body(Full::default());
        let mut request = request.map_err(|_| FetchProblem::Unreachable)?;
        request.headers_mut().extend(headers.clone());
        let response = self.exchange(request, MAX_RESPONSE_LEN, timeout).await;
        response.map(|(status, ..)| status).map_err(|error| error.problem)
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        max_len: usize,
        timeout: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), FetchError> {
        let agent = concat!("portcullis/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(agent));
        let exchange = async {
            // Redirects are not followed: the configuration or the certificate names the origin.
            let response = self.client().request(request).await.map_err(|error| FetchError::of(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, max_len).collect().await;
            let body = body.map_err(|error| FetchError::response(error.to_string()))?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        let timed_out = || {
            let text = format!("timed out after {}", humantime::format_duration(timeout));
            FetchError { problem: FetchProblem::Timeout, text }
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err(timed_out()))
    }

    fn client(&self) -> &Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
        self.client.get_or_init(|| {
            // Load the system's anchors on first use: most gateways fetch nothing.
            let verifier = self.verifier.clone().unwrap_or_else(|| ServerVerifier::new(TrustAnchors::of_system()));
            let tls = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs supports TLS 1.2 and 1.3")
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth();
            let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
            Client::builder(TokioExecutor::new()).pool_idle_timeout(TIMEOUT).build(connector)
        })
    }
}

/// Whether `Last-Modified` is a strong validator [RFC 9110, 8.8.2.2]. Its resolution is one second: a CRL that changes
/// twice within a second would otherwise never be fetched again.
fn is_strong(last_modified: &HeaderValue, date: Option<&HeaderValue>) -> bool {
    let time = |value: &HeaderValue| chrono::DateTime::parse_from_rfc2822(value.to_str().ok()?).ok();
    match (time(last_modified), date.and_then(time)) {
        (Some(last_modified), Some(date)) => (date - last_modified).num_seconds() >= 2,
        _ => false,
    }
}

impl FetchError {
    fn of(error: &hyper_util::client::legacy::Error) -> Self {
        let is_own = |error: &(dyn std::error::Error + 'static)| error.downcast_ref().is_some_and(is_own_shortage);
        let problem = match error.is_connect() {
            true if causes(error).any(is_own) => FetchProblem::OwnShortage,
            true => FetchProblem::Unreachable,
            false => FetchProblem::Response,
        };
        Self { problem, text: with_causes(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_modified_is_strong_after_two_seconds() {
        let at = |seconds: &str| HeaderValue::from_str(&format!("Sun, 22 Nov 2026 04:57:{seconds} GMT")).unwrap();
        assert!(is_strong(&at("30"), Some(&at("32"))));
        for (last_modified, date) in
            [(at("30"), Some(at("31"))), (at("30"), None), (HeaderValue::from_static("x"), None)]
        {
            assert!(!is_strong(&last_modified, date.as_ref()), "{last_modified:?}");
        }
    }
}
