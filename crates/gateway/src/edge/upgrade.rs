//! The HTTP request that upgrades a connection to WebSocket [RFC 6455, 4.2]. Enters: a stream. Leaves: the same stream behind
//! the answer, and what the request says of the client; or a rejection, which the client has been told with a status and a
//! short text. Not here: deadlines, frames.

mod forwarded;
mod headers;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Request, Status};
use serde_json::{Map, Value as Json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tungstenite::handshake::derive_accept_key;
use zeroize::Zeroizing;

use self::forwarded::Ambiguous;
use self::headers::Headers;
use super::proxy_header::{PROXY_WITHOUT_KEY, is_proxy_header};
use crate::config::tables;
use crate::limits::AddressRules;
use crate::net::Stream;
use crate::outcome::{Reject, note_detail};
use crate::peer::{HttpCredentials, HttpRequest, PageOrigin, PeerAddress};

/// The limits of a request.
const MAX_SIZE: usize = 16 << 10;
const MAX_HEADERS: usize = 100;
/// The subprotocols of MQTT, as they are registered, and of MQTT 3.1 [MQTT-6.0.0-3].
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// How clients of a listener upgrade their connection, compiled.
#[derive(Debug)]
pub(crate) struct Upgrade {
    path: String,
    origins: Option<Vec<String>>,
    /// Without `origins`, pages of other origins may not connect.
    same_origin: bool,
    require_subprotocol: bool,
    /// `None`: there are none.
    proxies: Option<AddressRules>,
    headers: Vec<String>,
    /// Names of cookies that carry credentials.
    cookies: Vec<String>,
}

/// What a request says of the client.
pub(super) struct Upgraded {
    pub(super) address: PeerAddress,
    pub(super) request: HttpRequest,
    pub(super) credentials: HttpCredentials,
}

/// Why a request is rejected, and what the client is told. No text has anything of the request.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: &'static str,
    reject: Reject,
    text: &'static str,
}

const BAD_REQUEST: &str = "400 Bad Request";
const FORBIDDEN: &str = "403 Forbidden";
const UPGRADE_REQUIRED: &str = "426 Upgrade Required";

const fn bad_request(text: &'static str) -> Refusal {
    Refusal { status: BAD_REQUEST, reject: Reject::WebSocketUpgradeFailed, text }
}

const fn upgrade_required(text: &'static str) -> Refusal {
    Refusal { status: UPGRADE_REQUIRED, reject: Reject::WebSocketUpgradeFailed, text }
}

impl Upgrade {
    /// Compiles the settings of a listener. `uses_certificates`: browsers authenticate by a certificate without asking the page.
    /// `cookies`: names of those that authenticate.
    pub(crate) fn new(settings: tables::WebSocket, uses_certificates: bool, cookies: Vec<String>) -> Self {
        let tables::WebSocket { path, origins, require_subprotocol, trusted_proxies, headers } = settings;
        Self {
            path,
            origins,
            same_origin: uses_certificates || !cookies.is_empty(),
            require_subprotocol,
            proxies: (!trusted_proxies.is_empty()).then(|| AddressRules::new(&trusted_proxies, &[])),
            headers,
            cookies,
        }
    }

    /// Whether the peer is a proxy whose headers name the client.
    pub(crate) fn trusts(&self, peer: PeerAddress) -> bool {
        self.proxies.as_ref().is_some_and(|proxies| proxies.allows(peer))
    }

    /// Reads the request of a client that is connected from `peer`, and answers it. `admit` decides about the client's address.
    ///
    /// # Errors
    /// Why there is no WebSocket. The client has been told.
    pub(super) async fn accept(
        &self,
        stream: &mut Stream,
        peer: PeerAddress,
        admit: &(dyn Fn(PeerAddress) -> Result<(), Reject> + Sync),
    ) -> Result<Upgraded, Reject> {
        let request = read(stream).await?;
        let mut named = None;
        let parsed = match &request {
            Ok(bytes) => self.parse(bytes, peer, &mut named),
            Err(refusal) => Err(Refusal { ..*refusal }),
        };
        // Also of one whose request is rejected: for the log, and for bans.
        let parsed = match named.map_or(Ok(()), admit) {
            Ok(()) => parsed,
            Err(reject) => Err(Refusal { status: FORBIDDEN, reject, text: "Forbidden." }),
        };
        match parsed {
            Ok((upgraded, answer)) => {
                write(stream, &answer).await?;
                Ok(upgraded)
            }
            Err(Refusal { status, reject, text }) => {
                if reject == Reject::WebSocketUpgradeFailed || reject == Reject::OriginDenied {
                    note_detail(&describe(text, request.as_deref().unwrap_or_default()));
                }
                // How it ends is decided.
                let _ = write(stream, &refusal_of(status, text)).await;
                Err(reject)
            }
        }
    }

    /// Parses a whole request. Returns what it says of the client, and the answer. `named`: the address of the client, also if the
    /// request is rejected for another reason.
    fn parse(
        &self,
        bytes: &[u8],
        peer: PeerAddress,
        named: &mut Option<PeerAddress>,
    ) -> Result<(Upgraded, String), Refusal> {
        let mut headers = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(Status::Complete(len)) if len == bytes.len() => {}
            Ok(Status::Complete(_)) => return Err(bad_request("The client sent more before the answer.")),
            Err(httparse::Error::TooManyHeaders) => return Err(bad_request("The request has too many headers.")),
            _ => return Err(bad_request("The request is not HTTP/1.1.")),
        }
        let headers = Headers(request.headers);
        let address = match &self.proxies {
            Some(proxies) if proxies.allows(peer) => {
                forwarded::client(&headers, proxies, peer).map_err(|ambiguous| {
                    bad_request(match ambiguous {
                        Ambiguous::Different => "The headers of the proxy name different clients.",
                        Ambiguous::Unquoted => "The Forwarded header is malformed.",
                    })
                })?
            }
            _ => peer,
        };
        *named = Some(address);
        let target = request.path.unwrap_or_default();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        if request.version != Some(1) {
            return Err(bad_request("The request is not HTTP/1.1."));
        }
        if path != self.path {
            let (status, reject) = ("404 Not Found", Reject::WebSocketUpgradeFailed);
            return Err(Refusal { status, reject, text: "There is nothing at this path." });
        }
        let has_body = headers.all("content-length").any(|len| len != b"0") || headers.has("transfer-encoding");
        if request.method != Some("GET") || has_body {
            return Err(bad_request("The request is not a GET without a body."));
        }
        let key = check_upgrade(&headers)?;
        let host = headers.one("host").map_err(bad_request)?.ok_or(bad_request("The request has no Host."))?;
        let credentials = self.credentials(&headers)?;
        let origin = headers.one("origin").map_err(bad_request)?;
        let origin = origin.map(|origin| PageOrigin::of(origin, host, credentials.basic.is_some()));
        if origin.as_ref().is_some_and(|origin| !self.admits(origin)) {
            return Err(Refusal {
                status: FORBIDDEN,
                reject: Reject::OriginDenied,
                text: "This origin may not connect.",
            });
        }
        let offered = || headers.list("sec-websocket-protocol");
        let subprotocol = offered().find(|offered| SUBPROTOCOLS.contains(offered));
        if subprotocol.is_none() && self.require_subprotocol {
            return Err(bad_request("The request does not offer the subprotocol mqtt."));
        }
        let request = HttpRequest { path: path.into(), origin, headers: self.facts(&headers) };
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n",
            derive_accept_key(key)
        );
        if let Some(subprotocol) = subprotocol {
            // Writing to a String cannot fail.
            let _ = write!(answer, "Sec-WebSocket-Protocol: {subprotocol}\r\n");
        }
        answer += "\r\n";
        Ok((Upgraded { address, request, credentials }, answer))
    }

    /// Whether a page of this origin may connect.
    pub(crate) fn admits(&self, origin: &PageOrigin) -> bool {
        match &self.origins {
            Some(origins) => origin.name.as_ref().is_some_and(|name| origins.contains(name)),
            None => origin.is_own || !(self.same_origin || origin.is_authenticated),
        }
    }

    /// The configured headers. Those that are there several times are one list [RFC 9110, 5.2].
    fn facts(&self, headers: &Headers<'_, '_>) -> Json {
        let value = |name: &String| {
            let values: Option<Vec<&str>> = headers.all(name).map(|value| std::str::from_utf8(value).ok()).collect();
            let value = values.filter(|values| !values.is_empty())?.join(", ");
            Some((name.clone(), Json::String(value)))
        };
        Json::Object(self.headers.iter().filter_map(value).collect::<Map<_, _>>())
    }

    fn credentials(&self, headers: &Headers<'_, '_>) -> Result<HttpCredentials, Refusal> {
        let mut credentials = HttpCredentials::default();
        if let Some((scheme, value)) =
            headers.one("authorization").map_err(bad_request)?.and_then(|value| value.split_once(' '))
        {
            let value = value.trim();
            if scheme.eq_ignore_ascii_case("bearer") {
                credentials.bearer = Some(Zeroizing::new(value.to_owned()));
            } else if scheme.eq_ignore_ascii_case("basic") {
                credentials.basic = Some(basic(value).ok_or(bad_request("The Authorization header is malformed."))?);
            }
        }
        let pairs =
            headers.all("cookie").filter_map(|line| std::str::from_utf8(line).ok()).flat_map(|line| line.split(';'));
        for (name, value) in pairs.filter_map(|pair| pair.trim().split_once('=')) {
            if !self.cookies.iter().any(|cookie| cookie == name) {
                continue;
            }
            if credentials.cookie(name).is_some() {
                // One may be of another path or domain, set by somebody else.
                return Err(bad_request("A cookie is there twice."));
            }
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            credentials.cookies.push((name.into(), Zeroizing::new(value.to_owned())));
        }
        Ok(credentials)
    }
}

/// What is wrong with a request, and what it asked for: its path without the query, and its origin.
fn describe(text: &str, bytes: &[u8]) -> String {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let mut detail = text.trim_end_matches('.').to_owned();
    if request.parse(bytes).is_ok() {
        let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(detail, "; path {path}");
        if let Ok(Some(origin)) = Headers(request.headers).one("origin") {
            let _ = write!(detail, ", origin {origin}");
        }
    }
    detail
}

/// Checks what makes a request one for WebSocket. Returns its key.
fn check_upgrade<'h>(headers: &Headers<'_, 'h>) -> Result<&'h [u8], Refusal> {
    let has = |header, token: &str| headers.list(header).any(|other| other.eq_ignore_ascii_case(token));
    if !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err(upgrade_required("This is for MQTT over WebSocket."));
    }
    if headers.one("sec-websocket-version").map_err(bad_request)? != Some("13") {
        return Err(upgrade_required("The version of WebSocket is not 13."));
    }
    let key = headers.one("sec-websocket-key").map_err(bad_request)?.map(str::as_bytes);
    let is_key = |key: &&[u8]| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16);
    key.filter(is_key).ok_or(bad_request("Sec-WebSocket-Key is missing or malformed."))
}

/// User name and password [RFC 7617, 2].
fn basic(value: &str) -> Option<(Box<str>, Zeroizing<Vec<u8>>)> {
    let decoded = Zeroizing::new(STANDARD.decode(value).ok()?);
    let at = decoded.iter().position(|byte| *byte == b':')?;
    let username = std::str::from_utf8(&decoded[..at]).ok().filter(|name| !name.contains('\0'))?;
    Some((username.into(), Zeroizing::new(decoded[at + 1..].to_vec())))
}

/// Reads a request. An error of the outer result cannot be answered.
async fn read(stream: &mut Stream) -> Result<Result<Vec<u8>, Refusal>, Reject> {
    let closed = |why| {
        note_detail(why);
        Reject::WebSocketUpgradeFailed
    };
    let mut bytes = Vec::with_capacity(1 << 10);
    loop {
        let (before, room) = (bytes.len(), (MAX_SIZE - bytes.len()) as u64);
        match (&mut *stream).take(room).read_buf(&mut bytes).await {
            Ok(1..) => {}
            Ok(0) if room == 0 => return Ok(Err(bad_request("The request is too large."))),
            Ok(0) | Err(_) => return Err(closed("the client closed the connection before its request was complete")),
        }
        match bytes.as_slice() {
            [0x16, 3, ..] => return Err(Reject::TlsOnPlainPort),
            [0x10, ..] => return Err(closed("the client speaks MQTT without WebSocket")),
            bytes if is_proxy_header(bytes) => return Err(closed(PROXY_WITHOUT_KEY)),
            // What came before has no end: a client that sends byte by byte would have all of it searched each time.
            bytes if bytes[before.saturating_sub(3)..].windows(4).any(|end| end == b"\r\n\r\n") => break,
            _ => {}
        }
    }
    Ok(Ok(bytes))
}

async fn write(stream: &mut Stream, answer: &str) -> Result<(), Reject> {
    let written = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await
    };
    let written: std::io::Result<()> = written.await;
    written.map_err(|_| {
        note_detail("the client closed the connection before the answer");
        Reject::WebSocketUpgradeFailed
    })
}

fn refusal_of(status: &str, text: &str) -> String {
    let upgrade = if status == UPGRADE_REQUIRED { "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" } else { "" };
    let connection = if upgrade.is_empty() { "close" } else { "close, Upgrade" };
    let len = text.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\n{upgrade}Connection: {connection}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\n\r\n{text}\n"
    )
}

/// Whatever is accepted is one request, and says nothing that is not in it.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let settings = tables::WebSocket {
        path: "/mqtt".to_owned(),
        origins: None,
        require_subprotocol: false,
        trusted_proxies: vec![crate::config::Origin::Unix],
        headers: vec!["x-tenant".to_owned()],
    };
    let upgrade = Upgrade::new(settings, true, vec!["token".to_owned()]);
    if let Ok((upgraded, answer)) = upgrade.parse(bytes, PeerAddress::Unix, &mut None) {
        assert!(bytes.ends_with(b"\r\n\r\n") && answer.ends_with("\r\n\r\n") && answer.is_ascii());
        assert!(bytes.starts_with(b"GET /mqtt") && &*upgraded.request.path == "/mqtt");
        assert!(upgraded.credentials.cookies.len() <= 1);
    }
}

#[cfg(test)]
mod tests;
