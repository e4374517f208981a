//! URLs in the configuration and in certificates.

/// Whether the gateway can fetch a URL: `http` or `https`, with a host.
pub(crate) fn is_url(text: &str) -> bool {
    let has_host = |uri: hyper::Uri| uri.host().is_some_and(|host| !host.is_empty());
    (text.starts_with("http://") || text.starts_with("https://")) && text.parse().is_ok_and(has_host)
}

/// The host of a URL, for logs: the other parts may be secret.
pub(crate) fn host_of(url: &str) -> String {
    url.parse().ok().and_then(|uri: hyper::Uri| uri.host().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_is_fetched() {
        for url in ["http://a/", "https://a:1/b.crl"] {
            assert!(is_url(url), "{url}");
        }
        for other in ["ldap://a/", "file:///etc/passwd", "http://", "a.pem", "http:///x", "http://a b/"] {
            assert!(!is_url(other), "{other}");
        }
    }
}
