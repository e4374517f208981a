//! Requests that are upgrades, and all that are not.

use super::*;
use crate::config::Origin;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn settings() -> tables::WebSocket {
    tables::WebSocket {
        path: "/mqtt".to_owned(),
        origins: None,
        require_subprotocol: false,
        trusted_proxies: vec![Origin::parse("192.0.2.0/24").unwrap(), Origin::parse("198.51.100.1").unwrap()],
        headers: vec!["x-tenant".to_owned()],
    }
}

fn upgrade() -> Upgrade {
    Upgrade::new(settings(), false, vec!["token".to_owned()])
}

/// A request with these headers behind those that every upgrade has.
fn request(headers: &str) -> String {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: mqtt.example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
    )
}

fn proxy() -> PeerAddress {
    ([192, 0, 2, 1], 4711).into()
}

fn refusal(upgrade: &Upgrade, request: &str) -> Option<(&'static str, &'static str)> {
    upgrade.parse(request.as_bytes(), proxy(), &mut None).err().map(|refusal| (&refusal.status[..3], refusal.text))
}

#[test]
fn the_answer_has_the_key_and_the_subprotocol() {
    let answer = |headers: &str| upgrade().parse(request(headers).as_bytes(), proxy(), &mut None).unwrap().1;
    // The key and its answer are those of RFC 6455, 1.3.
    assert!(answer("").contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert!(!answer("").contains("Sec-WebSocket-Protocol"));
    for (offered, chosen) in [
        ("mqtt", Some("mqtt")),
        ("mqttv3.1", Some("mqttv3.1")),
        ("chat, mqttv3.1, mqtt", Some("mqttv3.1")),
        ("chat", None),
        ("MQTT", None),
    ] {
        let headers = format!("Sec-WebSocket-Protocol: {offered}\r\n");
        let found =
            answer(&headers).lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: ").map(str::to_owned));
        assert_eq!(found.as_deref(), chosen, "{offered}");
        let strict = Upgrade::new(tables::WebSocket { require_subprotocol: true, ..settings() }, false, Vec::new());
        assert_eq!(refusal(&strict, &request(&headers)).is_none(), chosen.is_some());
    }
    assert!(answer("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: mqtt\r\n").contains("Protocol: mqtt\r\n"));
}

#[test]
fn what_is_no_upgrade_gets_a_status_and_a_text() {
    let good = request("");
    for (request, status, text) in [
        (good.replace("Upgrade: websocket\r\n", ""), "426", "This is for MQTT"),
        (good.replace("keep-alive, Upgrade", "keep-alive"), "426", "This is for MQTT"),
        (good.replace("Version: 13", "Version: 8"), "426", "version of WebSocket"),
        (good.replace("Sec-WebSocket-Version: 13\r\n", ""), "426", "version of WebSocket"),
        (good.replace("/mqtt", "/"), "404", "nothing at this path"),
        (good.replace("/mqtt", "/mqtt/"), "404", "nothing at this path"),
        (good.replace("/mqtt", "http://mqtt.example.com/mqtt"), "404", "nothing at this path"),
        (good.replace("GET", "POST"), "400", "not a GET"),
        (good.replace("HTTP/1.1", "HTTP/1.0"), "400", "not HTTP/1.1"),
        (good.replace("HTTP/1.1", "HTTP/2.0"), "400", "not HTTP/1.1"),
        (good.replace("GET /mqtt", "\u{1}"), "400", "not HTTP/1.1"),
        (good.replace(KEY, "dGhlIHNhbXBsZSBub25jZQ"), "400", "Sec-WebSocket-Key"),
        (good.replace(KEY, "c2hvcnQ="), "400", "Sec-WebSocket-Key"),
        (good.replace("Host: mqtt.example.com\r\n", ""), "400", "no Host"),
        (request("Host: b\r\n"), "400", "there twice"),
        (request(&format!("Sec-WebSocket-Key: {KEY}\r\n")), "400", "there twice"),
        (request("Content-Length: 4\r\n"), "400", "without a body"),
        (request("Transfer-Encoding: chunked\r\n"), "400", "without a body"),
        (good.clone() + "\u{82}", "400", "more before the answer"),
        (request(&"a: b\r\n".repeat(100)), "400", "too many headers"),
        (request(" folded: b\r\n"), "400", "not HTTP/1.1"),
        (request("Authorization: Basic !\r\n"), "400", "malformed"),
        (request("Authorization: Basic bm9uZQ==\r\n"), "400", "malformed"),
        (request("Cookie: token=a; token=b\r\n"), "400", "there twice"),
    ] {
        let found = refusal(&upgrade(), &request);
        assert!(found.is_some_and(|found| found.0 == status && found.1.contains(text)), "{request}: {found:?}");
    }
    assert_eq!(refusal(&upgrade(), &good.replace("/mqtt ", "/mqtt?access=x ")), None, "the query does not count");
    let text = refusal_of(UPGRADE_REQUIRED, "This is for MQTT over WebSocket.");
    assert!(text.contains("\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), "{text}");
}

#[test]
fn pages_of_other_origins_connect_only_where_they_may() {
    let listed = |origin: &str| {
        Upgrade::new(
            tables::WebSocket { origins: Some(vec![crate::peer::normalise_origin(origin).unwrap()]), ..settings() },
            false,
            Vec::new(),
        )
    };
    let (certificates, cookies) =
        (Upgrade::new(settings(), true, Vec::new()), Upgrade::new(settings(), false, vec!["token".to_owned()]));
    for (upgrade, origin, allowed) in [
        (&listed("https://app.example.com"), "https://app.example.com", true),
        (&listed("https://app.example.com"), "HTTPS://APP.example.com:443", true),
        (&listed("https://app.example.com"), "http://app.example.com", false),
        (&listed("https://app.example.com"), "https://app.example.com.evil", false),
        (&listed("https://app.example.com"), "https://app.example.com:8443", false),
        (&listed("https://app.example.com"), "null", false),
        (&certificates, "https://mqtt.example.com", true),
        (&certificates, "https://mqtt.example.com:8443", false),
        (&certificates, "https://evil.example.com", false),
        (&certificates, "null", false),
        (&cookies, "https://evil.example.com", false),
        (&Upgrade::new(settings(), false, Vec::new()), "https://evil.example.com", true),
    ] {
        let request = request(&format!("Origin: {origin}\r\n"));
        let found = upgrade.parse(request.as_bytes(), proxy(), &mut None).map(drop).map_err(|refusal| refusal.reject);
        assert_eq!(found, if allowed { Ok(()) } else { Err(Reject::OriginDenied) }, "{origin}");
    }
    assert_eq!(refusal(&listed("https://app.example.com"), &request("")), None, "no browser");
    let with_port = request("Origin: https://mqtt.example.com:8443\r\n")
        .replace("Host: mqtt.example.com", "Host: mqtt.example.com:8443");
    assert_eq!(refusal(&certificates, &with_port), None);
}

#[test]
fn a_proxy_that_is_trusted_names_the_client_and_nobody_else_does() {
    let named = |peer, headers: &str| {
        let parsed = upgrade().parse(request(headers).as_bytes(), peer, &mut None);
        parsed.map(|(upgraded, _)| upgraded.address.host()).map_err(|refusal| refusal.text)
    };
    for (headers, expected) in [
        ("", Ok("192.0.2.1")),
        ("X-Forwarded-For: 203.0.113.7\r\n", Ok("203.0.113.7")),
        // What the client wrote stands left.
        ("X-Forwarded-For: 10.0.0.1, 203.0.113.7\r\n", Ok("203.0.113.7")),
        ("X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 203.0.113.7, 192.0.2.9\r\n", Ok("203.0.113.7")),
        ("X-Forwarded-For: 192.0.2.8, 192.0.2.9\r\n", Ok("192.0.2.8")),
        ("X-Forwarded-For: 203.0.113.7:4711\r\n", Ok("203.0.113.7")),
        ("X-Forwarded-For: [2001:db8::1]:4711\r\n", Ok("2001:db8::1")),
        ("X-Forwarded-For: ::ffff:203.0.113.7\r\n", Ok("203.0.113.7")),
        ("X-Forwarded-For: 203.0.113.7, unknown\r\n", Ok("192.0.2.1")),
        ("X-Forwarded-For: \r\n", Ok("192.0.2.1")),
        ("X-Forwarded-For: größe, 203.0.113.7\r\n", Ok("203.0.113.7")),
        ("Forwarded: for=10.0.0.1;x=\"\\\"\", for=203.0.113.7\r\n", Ok("203.0.113.7")),
        // The proxy has added the last element.
        ("Forwarded: for=10.0.0.1;x=\", for=203.0.113.7\r\n", Err("malformed")),
        ("Forwarded: for=10.0.0.1;x=\"\\\", for=203.0.113.7\r\n", Err("malformed")),
        ("Forwarded: for=\"\r\nForwarded: for=203.0.113.7\r\n", Err("malformed")),
        ("X-Real-IP: 203.0.113.7\r\n", Ok("203.0.113.7")),
        ("Forwarded: for=10.0.0.1, For=\"[2001:db8::1]:4711\";proto=https\r\n", Ok("2001:db8::1")),
        ("Forwarded: for=\"a,b\";by=\"x\", for=203.0.113.7\r\n", Ok("203.0.113.7")),
        ("Forwarded: for=_hidden\r\n", Ok("192.0.2.1")),
        ("Forwarded: for=203.0.113.7;for=10.0.0.1\r\n", Ok("192.0.2.1")),
        ("X-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\n", Ok("203.0.113.7")),
        // The proxy sets one, and the client the other.
        ("X-Forwarded-For: 203.0.113.7\r\nForwarded: for=10.0.0.1\r\n", Err("different clients")),
        ("X-Forwarded-For: 10.0.0.1\r\nX-Real-IP: 203.0.113.7\r\n", Err("different clients")),
    ] {
        let found = named(proxy(), headers);
        match expected {
            Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{headers}"),
            Err(text) => assert!(found.is_err_and(|found| found.contains(text)), "{headers}"),
        }
        assert_eq!(
            named(([203, 0, 113, 1], 1).into(), headers).as_deref(),
            Ok("203.0.113.1"),
            "not a proxy: {headers}"
        );
    }
}

#[test]
fn credentials_and_configured_headers_are_read_and_never_shown() {
    let headers = "Authorization: basic dGhpbmc6c2VjcmV0OjE=\r\nCookie: a=b; token=\"abc\"\r\nCookie: other=1\r\n\
                   X-Tenant: acme\r\nX-TENANT: two\r\nX-Other: 1\r\n";
    let (upgraded, _) = upgrade().parse(request(headers).as_bytes(), proxy(), &mut None).unwrap();
    let credentials = upgraded.credentials;
    assert_eq!(
        credentials.basic.as_ref().map(|(user, password)| (&**user, password.as_slice())),
        Some(("thing", &b"secret:1"[..]))
    );
    assert_eq!((credentials.cookie("token"), credentials.cookies.len()), (Some("abc"), 1));
    assert_eq!(upgraded.request.headers, serde_json::json!({ "x-tenant": "acme, two" }));
    assert!(!format!("{credentials:?} {:?}", upgraded.request).contains("secret"));
    let (upgraded, _) =
        upgrade().parse(request("Authorization: Bearer  x.y.z\r\n").as_bytes(), proxy(), &mut None).unwrap();
    assert_eq!(upgraded.credentials.bearer.as_ref().map(|token| token.as_str()), Some("x.y.z"));
}
