//! `[listener.websocket]`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use super::super::values::{Origin, Setting};
use crate::peer::normalise_origin;

/// Headers that are no facts: they carry credentials, or the gateway has its own reading of them.
const RESERVED: &[&str] = &["authorization", "cookie", "proxy-authorization", "sec-websocket-key"];
/// As many as a request may have.
const MAX_HEADERS: usize = 100;

/// How clients upgrade their connection, with `protocol = "ws"` or `"wss"`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "WebSocket")]
pub(super) struct WebSocketTable {
    /// Path of the request, compared without its query.
    path: Setting<String>,
    /// Origins whose pages may connect, as browsers send them: `["https://app.example.com"]`. Clients without an `Origin` header
    /// may always connect. Default: every origin; with client certificates or cookies, only that of the gateway itself.
    origins: Option<Setting<Vec<Setting<String>>>>,
    /// Whether the request has to offer the subprotocol `mqtt` or `mqttv3.1`.
    require_subprotocol: bool,
    /// Networks of HTTP proxies in front, whose `X-Forwarded-For`, `X-Real-IP` or `Forwarded` name the client: the rightmost
    /// address that is not of a proxy counts.
    trusted_proxies: Vec<Setting<Origin>>,
    /// Names of headers that expressions may use: `conn.headers["x-tenant"]`.
    headers: Vec<Setting<String>>,
}

impl Default for WebSocketTable {
    fn default() -> Self {
        Self {
            path: Setting::default_of("/mqtt".to_owned()),
            origins: None,
            require_subprotocol: false,
            trusted_proxies: Vec::new(),
            headers: Vec::new(),
        }
    }
}

/// How clients upgrade their connection to WebSocket.
#[derive(Clone, Debug)]
pub struct WebSocket {
    /// The path of the request.
    pub path: String,
    /// Origins whose pages may connect, with the port and in lower case; `None`: not set.
    pub origins: Option<Vec<String>>,
    /// Whether a known subprotocol has to be offered.
    pub require_subprotocol: bool,
    /// Proxies whose headers name the client.
    pub trusted_proxies: Vec<Origin>,
    /// Names of headers for expressions, in lower case.
    pub headers: Vec<String>,
}

pub(super) fn validate(table: &WebSocketTable, document: &mut Document) -> WebSocket {
    if !table.path.starts_with('/') || table.path.contains(['?', '#', ' ']) || !table.path.is_ascii() {
        let message = format!("`{}` is not the path of a request", table.path.value);
        document.error(&table.path, Complaint::new(message).hint("path = \"/mqtt\""));
    }
    let origins = table.origins.as_ref().map(|origins| validate_origins(origins, document));
    for origin in &table.trusted_proxies {
        if origin.network().is_some_and(|net| net.prefix_len() == 0) {
            let message = "every client chooses the address that it has for all rules, limits and logs";
            let hint = "trusted_proxies: the networks of the HTTP proxies alone";
            document.warning(origin, Complaint::new(message).hint(hint));
        }
    }
    let headers = table.headers.iter().filter_map(|name| validate_header(name, document)).collect();
    if table.headers.len() > MAX_HEADERS {
        document.error(&table.path, format!("`headers` must have at most {MAX_HEADERS} names"));
    }
    WebSocket {
        path: table.path.value.clone(),
        origins,
        require_subprotocol: table.require_subprotocol,
        trusted_proxies: table.trusted_proxies.iter().map(|origin| origin.value).collect(),
        headers,
    }
}

fn validate_origins(origins: &Setting<Vec<Setting<String>>>, document: &mut Document) -> Vec<String> {
    let mut normal = Vec::new();
    for origin in &origins.value {
        match normalise_origin(origin) {
            Some(origin) => normal.push(origin),
            None => {
                let complaint = Complaint::new(format!("`{}` is not an origin", origin.value));
                let hint = match origin.as_str() {
                    "*" => "for every origin, leave `origins` out",
                    _ => "scheme, host, and port if it is not the usual one: \"https://app.example.com\"",
                };
                document.error(origin, complaint.hint(hint));
            }
        }
    }
    normal
}

fn validate_header(name: &Setting<String>, document: &mut Document) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if lower.is_empty() || !lower.bytes().all(is_token) {
        document.error(name, format!("`{}` is not the name of a header", name.value));
        return None;
    }
    if RESERVED.contains(&lower.as_str()) {
        let complaint = Complaint::new(format!("`{}` carries credentials, which no expression may see", name.value));
        let hint = "an authenticator of the kind `jwt` reads them with `field = \"header\"` or `\"cookie\"`";
        document.error(name, complaint.hint(hint));
        return None;
    }
    Some(lower)
}
