//! Tests of `expr::binding`.

use super::*;
use crate::expr::Wanted;

fn expression(source: &str, wanted: Wanted) -> Expression {
    Expression::compile(source, wanted).unwrap_or_else(|errors| panic!("{source}: {errors:?}"))
}

/// Clients of a `jwt` authenticator named `tokens`, with or without a certificate.
fn with_client<T>(has_certificate: bool, test: impl FnOnce(&ClientKind<'_>) -> T) -> T {
    let has_root = |root: &str| match root {
        "cert" => has_certificate,
        "device" | "http" => false,
        _ => true,
    };
    let is_proved = |path: &str| match root_of(path) {
        "cert" => has_certificate,
        "jwt" => true,
        _ => false,
    };
    let has_fact = |path: &str| !path.starts_with("tls.key_");
    test(&ClientKind {
        has_root: &has_root,
        has_fact: &has_fact,
        is_proved: &is_proved,
        authenticator: Some(("tokens", "jwt")),
    })
}

#[test]
fn only_a_comparison_with_something_proved_binds() {
    for (source, expected) in [
        ("mqtt.client_id == jwt.sub", true),
        ("jwt.sub == mqtt.client_id", true),
        (r#"mqtt.client_id == "dev-" + jwt.sub"#, true),
        (r#"mqtt.client_id.startsWith(jwt.sub + "-")"#, true),
        ("mqtt.client_id.lowerAscii() == jwt.sub.lowerAscii()", true),
        ("mqtt.client_id in jwt.devices", true),
        ("jwt.devices.exists(d, d == mqtt.client_id)", true),
        ("mqtt.version >= 4 && mqtt.client_id == jwt.sub", true),
        (r#"auth.kind != "jwt" || mqtt.client_id == jwt.sub"#, true),
        (r#"auth.name == "tokens" ? mqtt.client_id == jwt.sub : true"#, true),
        ("has(device.id) || mqtt.client_id == jwt.sub", true),
        ("false", true),
        ("has(tls.key_name) ? true : mqtt.client_id == jwt.sub", true),
        ("has(jwt.sub) ? mqtt.client_id == jwt.sub : mqtt.client_id == tls.key_name", true),
        ("has(jwt.sub) ? mqtt.client_id == jwt.sub : mqtt.client_id == tls.sni", false),
        (r#"auth.name == "users""#, true),
        ("mqtt.version >= 4", false),
        ("true", false),
        ("mqtt.client_id == mqtt.username", false),
        ("mqtt.client_id != jwt.sub", false),
        ("!(mqtt.client_id == jwt.sub)", false),
        ("mqtt.client_id.size() == string(jwt.sub).size()", false),
        ("mqtt.client_id == jwt.sub || mqtt.version == 5", false),
        ("!has(jwt.sub) || mqtt.client_id == jwt.sub", false),
        ("has(jwt.sub) ? mqtt.client_id == jwt.sub : true", false),
        ("mqtt.username == jwt.sub", false),
        ("jwt.devices.exists(d, d != mqtt.client_id)", false),
        (r#"mqtt.client_id.matches("^[a-z]+$")"#, false),
        (r#"mqtt.client_id == "thing001""#, false),
        // The other forms of a comparison.
        ("!(mqtt.client_id != jwt.sub)", true),
        ("(mqtt.client_id == jwt.sub) == true", true),
        ("false != (mqtt.client_id == jwt.sub)", true),
        (r#"mqtt["client_id"] == jwt["sub"]"#, true),
        (r#"mqtt.client_id.split("-")[0] == jwt.sub"#, true),
        (r#"mqtt.client_id in jwt.devices.map(d, "dev-" + string(d))"#, true),
        ("jwt.devices.exists_one(d, d == mqtt.client_id)", true),
        ("!(mqtt.version == 3 || mqtt.client_id != jwt.sub)", true),
        // A condition that holds without the comparison.
        ("(mqtt.client_id == jwt.sub) == false", false),
        ("jwt.devices.all(d, d == mqtt.client_id)", false),
        ("mqtt.client_id == (mqtt.version == 5 ? jwt.sub : mqtt.username)", false),
        ("mqtt.client_id in [jwt.sub, mqtt.username]", false),
        ("mqtt.client_id in []", false),
        ("jwt.devices.exists(d, d == mqtt.client_id || true)", false),
        (r#"jwt.devices.exists(d, d == mqtt.client_id || d == "*")"#, false),
        ("jwt.devices.exists(d, !(d == mqtt.client_id))", false),
        (r#"jwt.devices.map(d, "x").exists(d, d == mqtt.client_id)"#, false),
        ("!(mqtt.client_id == jwt.sub && mqtt.version == 5)", false),
        // Something of the client ID in something proved, or on both sides.
        ("(jwt.sub + mqtt.client_id).contains(mqtt.client_id)", false),
        ("jwt.sub + mqtt.client_id == mqtt.client_id + jwt.sub", false),
        ("string(jwt.sub).contains(mqtt.client_id)", false),
        ("string(jwt.sub).startsWith(mqtt.client_id)", false),
        ("mqtt.client_id.contains(jwt.sub)", false),
        (r#"jwt.sub in mqtt.client_id.split("-")"#, false),
        // A prefix without an end: `dev-1` is one of `dev-10`.
        ("mqtt.client_id.startsWith(jwt.sub)", false),
        ("mqtt.client_id.endsWith(jwt.sub)", false),
        (r#"mqtt.client_id.endsWith("-" + jwt.sub)"#, true),
    ] {
        let expression = expression(source, Wanted::Bool);
        assert_eq!(with_client(false, |it| expression.binds("mqtt.client_id", it)), expected, "{source}");
    }
}

#[test]
fn what_lets_nobody_in_is_found() {
    for (source, expected) in [
        ("mqtt.client_id == cert.subject.cn", true),
        ("has(cert.subject.cn) && mqtt.version == 5", true),
        (r#"has(jwt.sub) || http.site == "lyon""#, true),
        (r#"auth.name == "users""#, true),
        ("has(cert.subject.cn) || mqtt.client_id == jwt.sub", false),
        ("has(jwt.sub)", false),
    ] {
        let expression = expression(source, Wanted::Bool);
        assert_eq!(with_client(false, |it| expression.rejects_all(it)), expected, "{source}");
        assert!(
            source.contains("http") || source.contains("users") || !with_client(true, |it| expression.rejects_all(it))
        );
    }
}

#[test]
fn a_value_is_proved_in_each_of_its_branches() {
    for (source, is_of_proved, chosen) in [
        ("jwt.sub", true, None),
        (r#""dev-" + jwt.sub"#, true, None),
        (r#"jwt.sub + "/" + mqtt.client_id"#, true, Some("mqtt.client_id")),
        // Nothing says where one ends and the other begins.
        ("jwt.sub + mqtt.client_id", false, Some("mqtt.client_id")),
        (r#"mqtt.client_id + jwt.sub + "-x""#, false, Some("mqtt.client_id")),
        ("jwt.iss", false, None),
        ("has(device.id) ? device.id : jwt.sub", true, None),
        (r#"auth.kind == "jwt" ? jwt.sub : mqtt.username"#, true, None),
        ("has(jwt.sub) ? jwt.sub : mqtt.username", false, Some("mqtt.username")),
        ("mqtt.client_id", false, Some("mqtt.client_id")),
        ("tls.sni", false, Some("tls.sni")),
        ("conn.remote_addr", false, None),
        (r#""verified""#, false, None),
        (r#"mqtt["client_id"]"#, false, Some("mqtt.client_id")),
        (r#"{"a": mqtt.username}["a"]"#, false, Some("mqtt.username")),
        ("jwt.devices.map(d, mqtt.client_id)[0]", false, Some("mqtt.client_id")),
        ("jwt.devices.map(d, string(d))[0]", true, None),
        ("jwt.devices.filter(d, d != mqtt.client_id)[0]", true, None),
        ("mqtt.client_id.charAt(0)", false, Some("mqtt.client_id")),
        ("[jwt.sub, mqtt.username][0]", false, Some("mqtt.username")),
    ] {
        let expression = expression(source, Wanted::String);
        with_client(false, |client| {
            assert_eq!(expression.is_of_proved(client), is_of_proved, "{source}");
            assert_eq!(expression.chosen(client), chosen, "{source}");
        });
    }
}

#[test]
fn what_many_certificates_share_identifies_none() {
    for (source, expected) in [
        ("mqtt.client_id == cert.subject.cn", true),
        ("mqtt.client_id == cert.subject.o", false),
        (r#"mqtt.client_id.split("-")[0] == cert.subject.o"#, false),
        (r#"mqtt.client_id.endsWith("-" + cert.issuer.cn)"#, false),
        (r#"mqtt.client_id == cert.issuer.cn + "-" + cert.serial"#, true),
        ("mqtt.client_id in cert.san.dns", true),
        ("cert.san.dns.all(d, d == mqtt.client_id)", false),
        ("cert.subject.cn.contains(mqtt.client_id)", false),
    ] {
        let expression = expression(source, Wanted::Bool);
        assert_eq!(with_client(true, |it| expression.binds("mqtt.client_id", it)), expected, "{source}");
    }
    for (source, expected) in
        [(r#"cert.issuer.cn + "-" + mqtt.client_id"#, false), (r#"cert.subject.o + "-" + cert.serial"#, true)]
    {
        let expression = expression(source, Wanted::String);
        assert_eq!(with_client(true, |it| expression.is_of_proved(it)), expected, "{source}");
    }
}
