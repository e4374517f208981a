//! The request with which a client has upgraded its connection to WebSocket.

use std::fmt;

use serde_json::Value as Json;
use zeroize::Zeroizing;

/// What expressions may use of the request. The client chooses all of it.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The path, without the query, which may have a secret.
    pub path: Box<str>,
    /// The origin of the page that a browser shows.
    pub origin: Option<PageOrigin>,
    /// The configured headers that it has, by their names in lower case; a JSON object.
    pub headers: Json,
}

/// The origin of a page [RFC 6454].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageOrigin {
    /// As the browser sent it.
    pub text: Box<str>,
    /// With its port and in lower case; `None`: it is no origin, as `null`.
    pub name: Option<String>,
    /// Whether it is that of the gateway itself, by the host that the browser has asked for.
    pub is_own: bool,
    /// Whether the browser may have authenticated the request by itself, without the page: by basic authentication.
    pub is_authenticated: bool,
}

impl PageOrigin {
    /// An `Origin` header, and the `Host` header beside it. `is_authenticated`: with basic authentication.
    pub fn of(text: &str, host: &str, is_authenticated: bool) -> Self {
        let name = normalise_origin(text);
        let is_own = name.as_deref().and_then(|name| name.split_once("://")).is_some_and(|(scheme, authority)| {
            let port = match scheme {
                "http" => 80,
                "https" => 443,
                // No page is shown by this scheme.
                _ => return false,
            };
            normalise_authority(host, port).is_some_and(|host| host == authority)
        });
        Self { text: text.into(), name, is_own, is_authenticated }
    }
}

/// The credentials in the request.
#[derive(Default)]
pub struct HttpCredentials {
    /// User name and password of basic authentication [RFC 7617].
    pub basic: Option<(Box<str>, Zeroizing<Vec<u8>>)>,
    /// The bearer token [RFC 6750, 2.1].
    pub bearer: Option<Zeroizing<String>>,
    /// Names and values of cookies.
    pub cookies: Vec<(Box<str>, Zeroizing<String>)>,
}

impl HttpCredentials {
    /// The value of a cookie.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.iter().find(|(other, _)| **other == *name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for HttpCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpCredentials(***)")
    }
}

/// An origin with its port and in lower case; `None`: it is none [RFC 6454, 4 and 6.1].
pub(crate) fn normalise_origin(origin: &str) -> Option<String> {
    let (scheme, authority) = origin.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
        return None;
    }
    let port = match scheme.as_str() {
        "http" | "ws" => 80,
        "https" | "wss" => 443,
        // Of an app; it has no port.
        _ => return is_host(authority).then(|| format!("{scheme}://{}", authority.to_ascii_lowercase())),
    };
    Some(format!("{scheme}://{}", normalise_authority(authority, port)?))
}

/// Host and port in lower case; `port`: what a missing one stands for. `None`: it is not a host.
fn normalise_authority(authority: &str, port: u16) -> Option<String> {
    let bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match authority[bracket..].rsplit_once(':') {
        Some((rest, port)) => (&authority[..bracket + rest.len()], parse_port(port)?),
        None => (authority, port),
    };
    is_host(host).then(|| format!("{}:{port}", host.to_ascii_lowercase()))
}

fn parse_port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn is_host(host: &str) -> bool {
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[]:".contains(&byte);
    !host.is_empty() && host.bytes().all(is_host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_with_their_port_and_in_lower_case() {
        for (origin, expected) in [
            ("https://App.Example.com", Some("https://app.example.com:443")),
            ("HTTP://a:8080", Some("http://a:8080")),
            ("https://[2001:db8::1]", Some("https://[2001:db8::1]:443")),
            ("https://[2001:db8::1]:8443", Some("https://[2001:db8::1]:8443")),
            ("capacitor://localhost", Some("capacitor://localhost")),
            ("null", None),
            ("https://", None),
            ("https://a/b", None),
            ("https://a:b", None),
            ("https://a b", None),
            ("https://a@b", None),
            ("https://a:+1", None),
            ("https://a:", None),
            ("*", None),
            ("app.example.com", None),
        ] {
            assert_eq!(normalise_origin(origin).as_deref(), expected, "{origin}");
        }
    }

    #[test]
    fn the_gateways_own_origin_is_that_of_its_host() {
        for (origin, host, is_own) in [
            ("https://mqtt.example.com", "mqtt.example.com", true),
            ("https://mqtt.example.com", "MQTT.example.com:443", true),
            ("http://localhost:8083", "localhost:8083", true),
            ("https://mqtt.example.com:8443", "mqtt.example.com", false),
            ("https://evil.example.com", "mqtt.example.com", false),
            ("ws://mqtt.example.com", "mqtt.example.com", false),
            ("capacitor://mqtt.example.com", "mqtt.example.com", false),
            ("null", "null", false),
        ] {
            assert_eq!(PageOrigin::of(origin, host, false).is_own, is_own, "{origin} {host}");
        }
    }
}
