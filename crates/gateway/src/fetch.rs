//! HTTP towards others: authorities, issuers of tokens, authentication services. Bounded answers, within a time, over
//! verified TLS where the URL says `https`. Never on the way of a handshake.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::TrustAnchor;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;

use crate::config::Complaint;
use crate::files::read_anchors;
use crate::util::crypto::{provider, tag};

/// For one exchange as a whole.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Of a CRL: a million revoked certificates are about 40 MB.
const MAX_CRL_LEN: usize = 64 << 20;
/// Of an OCSP answer, which has a certificate in it at most, and of that of an authentication service.
const MAX_ANSWER_LEN: usize = 64 << 10;

/// Of a set of keys.
const MAX_KEYS_LEN: usize = 256 << 10;

/// An HTTP client.
#[derive(Default)]
pub(crate) struct Fetcher {
    client: OnceLock<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
    /// `None`: those of the system.
    anchors: Option<Vec<TrustAnchor<'static>>>,
    /// Tells the anchors from others.
    tag: u64,
}

/// CRLs that are fetched at once: each may be large.
static FETCHING: Semaphore = Semaphore::const_new(4);

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

/// What came, and what makes the next request conditional; `None`: it is what the validators are of.
pub(crate) type Answer = Option<(Bytes, Validators)>;

/// What makes the next request for the same thing conditional [RFC 9110, 13].
#[derive(Clone, Debug, Default)]
pub(crate) struct Validators {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

impl Fetcher {
    /// One that believes servers which these trust anchors vouch for, and no others.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn with_anchors(path: &Path) -> Result<Self, Complaint> {
        let anchors = read_anchors(path)?;
        let tag = tag(format!("{anchors:?}").as_bytes());
        Ok(Self { client: OnceLock::new(), anchors: Some(anchors), tag })
    }

    /// Tells the anchors that it believes from others.
    pub(crate) const fn tag(&self) -> u64 {
        self.tag
    }

    /// Fetches a CRL, unless it is the one that the validators are of.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub(crate) async fn get_crl(&self, url: &str, validators: &Validators) -> Result<Answer, String> {
        // Closed never.
        let _permit = FETCHING.acquire().await.map_err(|error| error.to_string())?;
        self.get(url, validators, MAX_CRL_LEN).await
    }

    /// Fetches a set of keys, likewise.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub(crate) async fn get_keys(&self, url: &str, validators: &Validators) -> Result<Answer, String> {
        self.get(url, validators, MAX_KEYS_LEN).await
    }

    async fn get(&self, url: &str, validators: &Validators, max_len: usize) -> Result<Answer, String> {
        let mut request = Request::builder().method(Method::GET).uri(url);
        let conditions =
            [(header::IF_NONE_MATCH, &validators.etag), (header::IF_MODIFIED_SINCE, &validators.last_modified)];
        for (name, value) in conditions {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::default()).map_err(|error| error.to_string())?;
        let (status, headers, body) = self.exchange(request, max_len, TIMEOUT).await?;
        let value = |name: HeaderName| headers.get(name).cloned();
        match status {
            StatusCode::OK => {
                let last_modified = value(header::LAST_MODIFIED).filter(|at| is_settled(at, headers.get(header::DATE)));
                let etag = value(header::ETAG);
                Ok(Some((body, Validators { etag, last_modified })))
            }
            StatusCode::NOT_MODIFIED => Ok(None),
            status => Err(format!("the answer is {status}")),
        }
    }

    /// Asks an OCSP responder [RFC 6960, A.1].
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub(crate) async fn post_ocsp(&self, url: &str, question: Vec<u8>) -> Result<Bytes, String> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/ocsp-request")
            .header(header::ACCEPT, "application/ocsp-response")
            .body(Full::from(question))
            .map_err(|error| error.to_string())?;
        match self.exchange(request, MAX_ANSWER_LEN, TIMEOUT).await? {
            (StatusCode::OK, _, body) => Ok(body),
            (status, ..) => Err(format!("the answer is {status}")),
        }
    }

    /// Sends a JSON document, with these headers; the answer's status and body, within this time.
    ///
    /// # Errors
    /// What went wrong, in a few words.
    pub(crate) async fn post_json(
        &self,
        url: &str,
        headers: &HeaderMap,
        document: Vec<u8>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
            all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            all.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        }
        let request = request.body(Full::from(document)).map_err(|error| error.to_string())?;
        let (status, _, body) = self.exchange(request, MAX_ANSWER_LEN, timeout).await?;
        Ok((status, body))
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        max_len: usize,
        timeout: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let agent = concat!("portcullis/", env!("CARGO_PKG_VERSION"));
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(agent));
        let exchange = async {
            // Redirections are not followed: an authority says where its lists are.
            let answer = self.client().request(request).await.map_err(|error| explain(&error))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, max_len).collect().await.map_err(|error| error.to_string())?;
            Ok((head.status, head.headers, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| Err("it took too long".to_owned()))
    }

    fn client(&self) -> &Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
        self.client.get_or_init(|| {
            // Read when the first URL is asked for: most gateways have none.
            let mut roots = RootCertStore::empty();
            match &self.anchors {
                Some(anchors) => roots.extend(anchors.iter().cloned()),
                None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
            }
            let tls = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
            Client::builder(TokioExecutor::new()).pool_idle_timeout(TIMEOUT).build(connector)
        })
    }
}

/// Whether what was changed at this time cannot change again without another time [RFC 9110, 8.8.2.2]: they are in
/// whole seconds, and a list that is made anew within one would never be seen.
fn is_settled(last_modified: &HeaderValue, date: Option<&HeaderValue>) -> bool {
    let time = |value: &HeaderValue| chrono::DateTime::parse_from_rfc2822(value.to_str().ok()?).ok();
    match (time(last_modified), date.and_then(time)) {
        (Some(last_modified), Some(date)) => (date - last_modified).num_seconds() >= 2,
        _ => false,
    }
}

fn explain(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_once_it_is_over() {
        let at = |seconds: &str| HeaderValue::from_str(&format!("Sun, 22 Nov 2026 04:57:{seconds} GMT")).unwrap();
        assert!(is_settled(&at("30"), Some(&at("32"))));
        for (last_modified, date) in
            [(at("30"), Some(at("31"))), (at("30"), None), (HeaderValue::from_static("x"), None)]
        {
            assert!(!is_settled(&last_modified, date.as_ref()), "{last_modified:?}");
        }
    }
}
