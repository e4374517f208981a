//! Configurations that let nobody in, and server certificates that clients reject: `check` says so.

use std::path::Path;

use portcullis_testkit::Pki;

use crate::configuration::{REST, listener, problems};

#[test]
fn what_lets_nobody_in_is_an_error() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let tls = pki.listener_tls_without_ca();
    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "pw")]);
    let http = "[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1/\"\n";
    let found = |authenticate: &str, require: &str| {
        problems(&(listener(&format!("authenticate = {authenticate}\n"), &tls, &[require]) + &users + http))
    };
    for (authenticate, require, problem) in [
        ("[\"users\"]", "mqtt.client_id == cert.subject.cn", "error: no client of this listener has `cert`"),
        ("[\"users\"]", "mqtt.client_id == jwt.sub", "error: no client of this listener has `jwt`"),
        ("[\"users\"]", "mqtt.client_id == device.id", "error: no client of this listener has `device`"),
        ("[\"users\"]", "http.site == 'lyon'", "error: no client of this listener has `http`"),
        ("[]", "auth.name == 'users'", "error: no client of this listener has `auth`"),
        ("[]", "tls.psk_identity == mqtt.client_id", "error: no client of this listener has `tls.psk_identity`"),
        ("[]", "tls.key_name == mqtt.client_id", "error: no client of this listener has `tls.key_name`"),
        ("[]", "has(cert.subject) && mqtt.version == 4", "error: no client of this listener has `cert`"),
        ("[]", "mqtt.username == 'a' && mqtt.username == 'b'", "error: this contradicts itself"),
        ("[\"users\"]", "auth.name == 'service'", "warning: this expression rejects all clients of the listener"),
        ("[\"users\"]", "auth.name == 'user'", "error: there is no authenticator `user`"),
        ("[\"users\"]", "auth.kind == 'password'", "warning: `auth.kind` is never `password`"),
        ("[]", "conn.listener == 'devices'", "error: there is no listener `devices`"),
        ("[]", "mqtt.version == 3.1", "warning: `mqtt.version` is never `3.1`"),
        ("[]", "mqtt.version in [5, 6]", "warning: `mqtt.version` is never `6`"),
        ("[]", "tls.version == '1.3'", "warning: `tls.version` is never `1.3`"),
        ("[]", "cert.serial in ['0A', '0a']", "warning: `cert.serial` is never `0a`"),
        ("[]", "mqtt.version > 5", "warning: this expression rejects all clients of the listener"),
        ("[]", "mqtt.version == 4 && mqtt.version == 5", "error: this contradicts itself"),
        (
            "[\"users\", \"service\"]",
            "has(cert.subject.cn) || http.site == 'lyon'",
            "warning: clients of the authenticator `users` have no `http`",
        ),
    ] {
        let text = found(authenticate, require);
        assert!(text.contains(problem), "{require}: {text}");
        assert!(text.contains(":10:"), "it says where: {text}");
    }
}

#[test]
fn headers_that_the_listener_does_not_read_are_found() {
    let check = |header: &str| {
        problems(&format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"ws\"\nupstream = \"brokers\"\n\
             [listener.websocket]\nheaders = [\"x-tenant\"]\n[listener.admit]\nrequire = ['conn.headers[\"{header}\"] == \"acme\"']\n{REST}"
        ))
    };
    let found = "the listener does not read the header";
    assert!(!check("x-tenant").contains(found));
    assert!(check("X-Tenant").contains("names are in lower case: conn.headers[\"x-tenant\"]"), "{}", check("X-Tenant"));
    let other = check("x-team");
    assert!(other.contains(found) && other.contains("headers = [\"x-team\"] in [listener.websocket]"), "{other}");
}

#[test]
fn mistakes_about_quic_and_drains_are_explained() {
    let pki = Pki::new();
    let quic = |keys: &str, tls: &str| {
        problems(&format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:14567\"\nprotocol = \"quic\"\nupstream = \"brokers\"\n{keys}{tls}{REST}"
        ))
    };
    let tls = pki.listener_tls();
    for (keys, tls, problem) in [
        ("", String::new(), "a QUIC listener requires [listener.tls]"),
        ("tcp = { keepalive = \"5s\" }\n", tls.clone(), "`tcp` has no effect with `protocol = \"quic\"`"),
        ("proxy_protocol = { from = [\"10.0.0.0/8\"] }\n", tls.clone(), "`proxy_protocol` has no effect"),
        ("quic = { keepalive = \"2m\" }\n", tls.clone(), "`keepalive` must be less than `idle_timeout`"),
        ("quic = { idle_timeout = \"25h\" }\n", tls.clone(), "`idle_timeout` must be between 1s and 24h"),
        ("", format!("{tls}versions = [\"1.2\"]\n"), "QUIC requires TLS 1.3"),
        ("", format!("{tls}alpn = []\n"), "QUIC requires ALPN"),
        ("", format!("{tls}[listener.websocket]\n"), "[listener.websocket] has no effect with `protocol = \"quic\"`"),
    ] {
        let text = quic(keys, &tls);
        assert!(text.contains(&format!("error: {problem}")), "{problem}: {text}");
    }
    let unix = problems(&format!(
        "[[listener]]\nname = \"a\"\nbind = \"unix:/run/x.sock\"\nprotocol = \"quic\"\nupstream = \"brokers\"\n{tls}{REST}"
    ));
    assert!(unix.contains("error: QUIC has no Unix sockets"), "{unix}");
    assert!(!quic("", &tls).contains("error"));
    let listener = |protocol: &str, keys: &str| {
        let name = protocol.trim_matches('"');
        format!(
            "[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:8883\"\nprotocol = {protocol}\nupstream = \"brokers\"\n{keys}{tls}"
        )
    };
    let both = problems(&format!("{}{}{REST}", listener("\"tls\"", ""), listener("\"quic\"", "")));
    assert!(!both.contains("already bound"), "UDP and TCP have ports of their own: {both}");
    let twice = listener("\"quic\"", "").replace("name = \"quic\"", "name = \"b\"");
    let twice = problems(&format!("{}{twice}{REST}", listener("\"quic\"", "")));
    assert!(twice.contains("`127.0.0.1:8883` is already bound"), "{twice}");
    let unused = problems(&format!("{}{REST}", listener("\"tls\"", "quic = { keepalive = \"5s\" }\n")));
    assert!(unused.contains("`quic` has no effect with `protocol = \"tls\"`"), "{unused}");
    for (value, hint) in [("websocket", "write \"wss\""), ("mqtts", "write \"tls\""), ("UDP", "write \"quic\"")] {
        let text = problems(&format!("{}{REST}", listener(&format!("{value:?}"), "")));
        assert!(text.contains(hint), "{value}: {text}");
    }
    let text = problems(&format!("{}{REST}", listener("\"tls\"", "proxy_protocol = true\n")));
    assert!(text.contains("write `proxy_protocol = { from ="), "{text}");
    for (keys, problem) in [
        ("drain_pace = \"fast\"", "`fast` is not a rate"),
        ("drain_pace = { rate = \"1/s\", burst = 5 }", "a pace has no burst"),
        ("drain_pace = \"0/s\"", "a rate is greater than 0"),
        ("drain_reference = \"b:8883\"", "`drain_reference` has no effect with `drain_reason = \"shutting_down\"`"),
        ("drain_reason = \"server_moved\"\ndrain_reference = \"\"", "`drain_reference` must be 1 to 1024 bytes"),
        ("drain_reason = \"moved\"", "unknown value `moved`"),
    ] {
        let text = problems(&format!("{}{REST}[runtime]\n{keys}\n", listener("\"tls\"", "")));
        assert!(text.contains(problem), "{problem}: {text}");
    }
}

#[test]
fn what_openssl_makes_and_clients_reject_is_explained() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    pki.device("thing001");
    let openssl = |arguments: &str| {
        let status =
            std::process::Command::new("openssl").current_dir(&dir).args(arguments.split(' ')).output().unwrap();
        assert!(status.status.success(), "{arguments}: {status:?}");
    };
    openssl("genrsa -out small.key 1024");
    openssl("genpkey -algorithm ed448 -out ed448.key");
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.key");
    for name in ["small", "ed448", "ec"] {
        openssl(&format!("req -x509 -key {name}.key -subj /CN=gw -out {name}.pem -days 30"));
    }
    let (chain, key) = (pki.chain("localhost"), pki.key("localhost"));
    let text = std::fs::read_to_string(&chain).unwrap();
    let (leaf, intermediate) = text.split_at(text.rfind("-----BEGIN").unwrap());
    std::fs::write(dir.path().join("reversed.pem"), format!("{intermediate}{leaf}")).unwrap();
    std::fs::write(dir.path().join("twice.pem"), format!("{leaf}{leaf}{intermediate}")).unwrap();
    std::fs::write(dir.path().join("cut.key"), "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
    let marked = "\u{feff}".to_owned() + &std::fs::read_to_string(&key).unwrap();
    std::fs::write(dir.path().join("marked.key"), marked).unwrap();
    let bound = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
    let found = |chain: &std::path::Path, key: &std::path::Path| {
        std::process::Command::new("chmod").arg("600").arg(key).status().unwrap();
        let tls =
            format!("[listener.tls]\ncertificate = {chain:?}\nprivate_key = {key:?}\nclient_ca = {:?}\n", pki.root());
        problems(&format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{tls}{bound}{REST}"
        ))
    };
    let file = |name: &str| dir.path().join(name);
    assert_eq!(found(&chain, &key), "");
    assert_eq!(found(&chain, &file("marked.key")), "", "with a byte order mark");
    for (chain, key, problem, line) in [
        (file("small.pem"), file("small.key"), "error: [small.key] has a key that is not supported", 7),
        (file("ed448.pem"), file("ed448.key"), "error: [ed448.key] has a key that is not supported", 7),
        (key.clone(), chain.clone(), "hint: it has a private key, where a certificate is expected", 6),
        (chain.clone(), chain.clone(), "is a certificate, not a private key", 7),
        (chain.clone(), file("cut.key"), "error: [cut.key], line 1: the section has no `-----END PRIVATE KEY-----`", 7),
        (file("ec.pem"), file("ec.key"), "warning: the server's certificate has no subject alternative name", 6),
        (pki.chain("thing001"), pki.key("thing001"), "warning: the server's certificate is not for servers", 6),
        (file("twice.pem"), key.clone(), "warning: the certificates are in the wrong order", 6),
        (file("reversed.pem"), key.clone(), "is not the key of", 7),
    ] {
        let text = found(&chain, &key);
        let problem = problem.replace('[', &format!("{}/", dir.path().display())).replace(']', "");
        assert!(text.contains(&problem), "{problem}: {text}");
        assert!(text.contains(&format!("p.toml:{line}:")), "{line}: {text}");
    }
}

#[test]
fn rules_that_leave_nobody_are_errors() {
    let pki = Pki::new();
    let tls = pki.listener_tls();
    let found = |keys: &str, require: &[&str]| problems(&listener(keys, &tls, require));
    let bound = "mqtt.client_id == cert.subject.cn";
    let opposite = "error: this contradicts `mqtt.client_id == cert.subject.cn`";
    for (keys, require, problem) in [
        ("deny = [\"0.0.0.0/1\", \"128.0.0.0/1\"]\n", &[bound][..], "warning: `allow` and `deny` leave no address"),
        (
            "allow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]\n",
            &[bound],
            "warning: `allow` and `deny` leave no address",
        ),
        ("", &[bound, "cert.subject.cn != mqtt.client_id"], opposite),
        ("", &[bound, "cert.subject.o == 'a' && mqtt.client_id != cert.subject.cn"], opposite),
        ("", &[bound, "has(cert.subject.o)", "!has(cert.subject.o)"], "error: this contradicts `has(cert.subject.o)`"),
        (
            "",
            &["mqtt.client_id.startsWith('a')", bound, "mqtt.client_id.startsWith('b')"],
            "error: this contradicts `mqtt.client_id.startsWith('a')`",
        ),
        (
            "",
            &[bound, "cert.subject.o == 'a'", "'b' == cert.subject.o"],
            "error: this contradicts `cert.subject.o == 'a'`",
        ),
    ] {
        let text = found(keys, require);
        assert!(
            text.contains(problem) && text.matches(": `allow`").count() + text.matches("error: ").count() == 1,
            "{keys}{require:?}: {text}"
        );
    }
    for (keys, require) in [
        ("allow = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/7\"]\n", &[bound][..]),
        ("", &[bound, "cert.subject.o == 'a' || cert.subject.o == 'b'"]),
        ("", &[bound, "cert.subject.o != 'a'", "cert.subject.o != 'b'"]),
    ] {
        assert_eq!(found(keys, require), "", "{keys}{require:?}");
    }
    let by_token = listener("", &tls, &[bound]) + "hash_key = 'jwt.sub'\n";
    let by_token = problems(&by_token);
    assert!(by_token.contains("error: no client of this listener has `jwt`"), "{by_token}");
    let ipv6 = listener("allow = [\"10.0.0.0/8\"]\n", &tls, &[bound]).replace("127.0.0.1:0", "[::1]:0");
    let ipv6 = problems(&ipv6);
    assert!(ipv6.contains("leave no address"), "{ipv6}");
    let clear = problems(&listener("protocol = \"tcp\"\n", "", &["tls.version == 'TLSv1.3'"]));
    assert!(clear.contains("error: no client of this listener has `tls.version`"), "{clear}");
    assert!(clear.contains("hint: protocol = \"tls\""), "{clear}");
}

#[test]
fn credentials_of_health_checks_fit_into_connect() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long");
    std::fs::write(&long, "a".repeat(70_000)).unwrap();
    std::process::Command::new("chmod").arg("600").arg(&long).status().unwrap();
    let long = format!("${{FILE:{}}}", long.display());
    for (health, problem) in [
        (format!("username = {long:?}"), "error: longer than MQTT allows: 70000 bytes, at most 65535"),
        (format!("username = \"a\", password = {long:?}"), "error: longer than MQTT allows"),
        ("username = \"a\\u0000b\"".to_owned(), "error: a user name must not contain U+0000"),
    ] {
        let text = problems(&(listener("protocol = \"tcp\"\n", "", &[]) + &format!("health = {{ {health} }}\n")));
        assert!(text.contains(problem), "{health}: {text}");
    }
}

const SERVER: &str = "basicConstraints=CA:FALSE\nsubjectAltName=DNS:gw.example.com\n";
const INTERMEDIATE: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";

/// A server certificate, and the intermediate that issued it, with these extensions in OpenSSL's notation. Writes the chain
/// and the key.
fn issue(dir: &Path, leaf: &str, intermediate: &str) {
    const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";
    let openssl = |arguments: &str| {
        let output =
            std::process::Command::new("openssl").current_dir(dir).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    let signed = |name: &str, issuer: &str, extensions: &str| {
        std::fs::write(dir.join(format!("{name}.ext")), extensions).unwrap();
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        let by =
            if issuer == name { format!("-key {name}.key") } else { format!("-CA {issuer}.pem -CAkey {issuer}.key") };
        openssl(&format!("x509 -req -in {name}.csr {by} -set_serial 7 -days 30 -extfile {name}.ext -out {name}.pem"));
    };
    signed("root", "root", CA);
    signed("between", "root", intermediate);
    signed("leaf", "between", leaf);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    std::fs::write(dir.join("chain.pem"), read("leaf.pem") + &read("between.pem")).unwrap();
    signed("direct", "root", leaf);
}

#[test]
fn a_server_certificate_without_its_intermediate_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    issue(dir.path(), SERVER, INTERMEDIATE);
    let both =
        std::fs::read_to_string(path("root.pem")).unwrap() + &std::fs::read_to_string(path("between.pem")).unwrap();
    std::fs::write(path("both.pem"), both).unwrap();
    for (chain, client_ca, is_complete) in [
        ("chain", Some("root"), true),
        ("leaf", Some("root"), false),
        // That devices' certificates may end there does not send it to clients.
        ("leaf", Some("both"), false),
        ("leaf", None, false),
        ("direct", Some("root"), true),
        ("direct", None, false),
    ] {
        let key = if chain == "direct" { path("direct.key") } else { path("leaf.key") };
        let chain_path = path(&format!("{chain}.pem"));
        let tls = format!("[listener.tls]\ncertificate = {chain_path:?}\nprivate_key = {key:?}\n");
        let client_ca = client_ca.map(|name| format!("client_ca = {:?}\n", path(&format!("{name}.pem"))));
        let text = problems(&listener("", &(tls + &client_ca.unwrap_or_default()), &[]));
        assert_eq!(text.contains("which issued the server's"), !is_complete, "{chain}: {text}");
    }
}

#[test]
fn a_server_certificate_that_clients_reject_is_a_warning() {
    const LEAF: &str = SERVER;
    const CA: &str = INTERMEDIATE;
    let constrained = CA.to_owned() + "nameConstraints=critical,permitted;DNS:example.org\n";
    let named = |names: &str| LEAF.replace("DNS:gw.example.com", names);
    for (leaf, intermediate, problem) in [
        (LEAF.to_owned(), CA, ""),
        (named("IP:192.0.2.1"), CA, ""),
        (named("DNS:*.example.com"), CA, ""),
        (named("email:a@example.com"), CA, "warning: the server's certificate is for no host"),
        (named("DNS:gw.example.com:8883"), CA, "is for `gw.example.com:8883`, which is no host name"),
        (LEAF.to_owned() + "keyUsage=keyAgreement\n", CA, "its key usage lacks digitalSignature"),
        (LEAF.replace("CA:FALSE", "CA:TRUE"), CA, "the server's certificate is that of a CA"),
        (
            LEAF.to_owned() + "1.2.3.4=critical,DER:0500\n",
            CA,
            "error: [chain.pem]: the certificate cannot be used: it has a critical extension",
        ),
        (LEAF.to_owned(), "basicConstraints=critical,CA:FALSE\n", "`CN=between`, which issued it, is not a CA"),
        (
            LEAF.to_owned(),
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,cRLSign\n",
            "must not sign certificates",
        ),
        (LEAF.to_owned(), &format!("{CA}extendedKeyUsage=clientAuth\n"), "must not issue certificates of servers"),
        (LEAF.to_owned(), &constrained, "is not permitted by the name constraints of its CA"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        issue(dir.path(), &leaf, intermediate);
        let (chain, key) = (dir.path().join("chain.pem"), dir.path().join("leaf.key"));
        let ca = Pki::new();
        let tls =
            format!("[listener.tls]\ncertificate = {chain:?}\nprivate_key = {key:?}\nclient_ca = {:?}\n", ca.root());
        let text = problems(&listener("", &tls, &["mqtt.client_id == cert.subject.cn"]));
        let problem = problem.replace('[', &format!("{}/", dir.path().display())).replace(']', "");
        assert!(text.contains(&problem) && (problem.is_empty() == text.is_empty()), "{leaf}{intermediate}: {text}");
    }
}

#[test]
fn mistakes_in_topic_rules_are_explained() {
    let pki = Pki::new();
    let bound = "mqtt.client_id == cert.subject.cn";
    let found = |keys: &str, rest: &str| {
        let first = listener(&format!("topics = \"p\"\n{keys}"), &pki.listener_tls(), &[bound]);
        problems(&format!("{first}{rest}"))
    };
    let rules = |rules: &str| format!("[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\n{rules}");
    let next = "\n[[topic_policy.rule]]\n";
    for (rule, problem, hint) in [
        ("publish = [\"d/%c/#\"]", "warning: `%c` is plain text here", "use `${mqtt.client_id}`"),
        ("publish = [\"d/*\"]", "warning: `*` is plain text here", "`+` stands for one level"),
        ("publish = [\"d/${clientid}\"]", "error: unknown name `clientid`", "did you mean `mqtt.client_id`?"),
        ("subscribe = [\"$queue/#\"]", "warning: some brokers take `$queue/t` for `t`", "write the topics behind it"),
        (
            "publish = [\"${cert.subject.o + '/' + cert.subject.cn}\"]",
            "warning: a value that contains `/`, `+` or `#` is unfit, so this pattern is always left out",
            "write an expression for each level",
        ),
        (
            "publish = [\"${cert.subject.o}-${cert.subject.cn}/#\"]",
            "warning: two expressions in one level: different clients can have the same pattern",
            "put `/` between them",
        ),
        (
            &format!("publish = [\"a/#\"]{next}effect = \"deny\"\npublish = [\"a/${{cert.subject.cn}}/x\"]"),
            "warning: this rule never decides: rule 1",
            "the first rule that matches decides",
        ),
        (
            &format!("publish = [\"a\"]{next}publish = [\"b\"]{next}publish = [\"a\"]"),
            "warning: this rule never decides: rule 1",
            "the first rule that matches decides",
        ),
        (
            &format!("publish = [\"a/${{cert.subject.cn}}/#\"]{next}publish = [\"a/${{cert.subject.cn}}/x\"]"),
            "warning: this rule never decides: rule 1",
            "the first rule that matches decides",
        ),
        (
            &format!("publish = [\"a/${{cert.subject.cn}}/#\"]{next}effect = \"deny\"\npublish = [\"a/+/x\"]"),
            "warning: rule 1, in front of this one, allows a part of it",
            "move this rule to the front",
        ),
        ("publish = [\"d/$mqtt.client_id\"]", "warning: `$mqtt.` is plain text here", "use `${mqtt"),
        (
            "when = 'cert.subject.ou == \"Pumps\"'\npublish = [\"a\"]",
            "warning: a client without `cert.subject.ou` is rejected",
            "has(cert.subject.ou) && ...",
        ),
        ("when = 'jwt.role == \"a\"'\npublish = [\"a\"]", "has `jwt`, so all are rejected", "clients have a token if"),
        ("publish_from = 'jwt.acl'", "has `jwt`, so this gives no rights", "clients have a token if"),
        (
            "publish = [\"u/${mqtt.username}\"]",
            "warning: clients choose `mqtt.username` freely",
            "[listener.admit] require: compare mqtt.username",
        ),
        ("action = \"deny\"\npublish = [\"a\"]", "error: unknown key `action`", "use `effect`"),
        ("publish = [\"${ENV:PORTCULLIS_SURELY_UNSET}/#\"]", "error: the environment variable", "set `PORTCULLIS_"),
    ] {
        let text = found("", &rules(rule));
        assert!(text.contains(problem) && text.contains(hint), "{rule}: {text}");
        assert_eq!(text.matches("error: ").count() + text.matches("warning: ").count(), 1, "{rule}: {text}");
    }
    for (keys, problem) in [
        ("mountpoint = 'd/${cert.subject.o}/'\n", "warning: this pattern begins with the mountpoint"),
        ("mountpoint = '${cert.subject.o}${cert.subject.cn}/'\n", "error: two expressions in one level"),
        ("mountpoint = '%u/'\n", "warning: `%u` is plain text here"),
    ] {
        let text = found(keys, &rules("publish = [\"d/x/#\"]"));
        assert!(text.contains(problem), "{keys}: {text}");
    }
    for (tables, problem) in [
        ("[listener.limits]\nmax_topic_levels = 2\n", "warning: `max_topic_levels` of the listener"),
        ("[listener.limits]\non_exceed = \"disconnect\"\n", "warning: `on_exceed` has no effect"),
        ("[listener.limits]\nmessage_rate = \"100\"\n", "error: `100` is not a rate"),
        ("[listener.limits]\nmax_keep_alive = \"1500ms\"\n", "error: `max_keep_alive` must be whole seconds"),
        ("[listener.connect]\nclient_id = 'cert.subject.o + \"/\" + cert.subject.cn'\n", "contain `/`, `+` or `#`"),
    ] {
        let text = found("", &format!("{tables}{}", rules("publish = [\"d/x/${mqtt.client_id}\"]")));
        assert!(text.contains(problem), "{tables}: {text}");
    }
    // What is right is not warned of.
    for rule in [
        "effect = \"deny\"\npublish = [\"a/secret\"]\n[[topic_policy.rule]]\npublish = [\"a/#\"]",
        "when = 'has(cert.subject.ou) && cert.subject.ou == \"Pumps\"'\npublish = [\"a/#\"]\n[[topic_policy.rule]]\npublish = [\"a/b\"]",
        "publish = [\"a/${cert.subject.cn}/#\"]\n[[topic_policy.rule]]\neffect = \"deny\"\npublish = [\"a/#\"]",
        "publish = [\"a\"]\n[[topic_policy.rule]]\nsubscribe = [\"a\"]",
    ] {
        assert_eq!(found("", &rules(rule)), "", "{rule}");
    }
}

#[test]
fn mistakes_in_the_limits_of_the_process_are_explained() {
    for (keys, problem, hint) in [
        ("worker_threads = 0", "`worker_threads` must be between 1 and 1024", "leave the key out"),
        ("max_handshakes = 0", "`max_handshakes` must be between 1 and 65536", "for 64, leave the key out"),
        ("handshake_queue = 0", "`handshake_queue` must be between 1 and 100000", "for 10000, leave the key out"),
        ("max_handshakes = -1", "expected a whole number", "without quotes, sign and decimals"),
        (
            "max_handshakes = 99999999999999999999",
            "expected a smaller whole number, found the number 99999999999999999999\n",
            "leave the key out",
        ),
        ("memory_limit = \"0\"", "`memory_limit` must be at least \"64MiB\"", "for no limit, leave the key out"),
        ("maxsslrate = 100", "unknown key `maxsslrate`", "`max_handshakes` of [runtime]"),
        ("concurrency = 4", "unknown key `concurrency`", "`worker_threads` of [runtime]"),
        ("max_heap_size = \"1GiB\"", "unknown key `max_heap_size`", "`memory_limit` of [runtime]"),
    ] {
        let text = problems(&(listener("", "", &["true"]) + &format!("[runtime]\n{keys}\n")));
        assert!(text.contains(problem) && text.contains(hint), "{keys}: {text}");
    }
}

#[test]
fn mistakes_in_rates_are_explained_where_they_are() {
    let found =
        |key: &str| problems(&listener("protocol = \"tcp\"\n", &format!("[listener.limits]\n{key}\n"), &["true"]));
    for (key, at, problem, hint) in [
        (
            "message_rate = { rate = \"100/s\", burst = 0 }",
            "0",
            "error: `burst` must be a number greater than 0",
            "such as 200",
        ),
        (
            "message_rate = { rate = \"100/s\", burst = -1 }",
            "-1",
            "error: `burst` must be a number",
            "for one second's worth",
        ),
        (
            "byte_rate = { rate = \"1MiB/s\", burst = \"x\" }",
            "\"x\"",
            "error: `burst` must be a size",
            "such as \"4MiB\"",
        ),
        (
            "connect_rate = { rate = \"100/s\" }",
            "{ rate = \"100/s\" }",
            "error: `burst` is missing",
            "write \"100/s\" alone",
        ),
        (
            "connect_rate = { burst = 1 }",
            "{ burst = 1 }",
            "error: `rate` is missing",
            "{ rate = \"100/s\", burst = 200 }",
        ),
        (
            "message_rate = { rate = \"1/d\", burst = 9 }",
            "\"1/d\"",
            "error: `1/d` is not a rate",
            "per second, minute and hour",
        ),
        ("message_rate = { rate = 5, burst = 9 }", "5", "error: `rate` must be a string", "write \"100/s\""),
        (
            "message_rate = { rate = \"1/s\", brust = 9 }",
            "brust",
            "error: unknown key `brust`",
            "did you mean `burst`?",
        ),
        ("message_rate = \"0/s\"", "\"0/s\"", "error: `0/s`: a rate is greater than 0", "leave the key out"),
        ("message_rate = 100", "100", "error: expected a rate, found the number 100", "write \"100/s\""),
        (
            "connect_rate_per_address = { rate = \"10/m\", burst = 14_401 }",
            "14_401",
            "warning: `burst` is more than the rate allows in a day",
            "some seconds' worth",
        ),
    ] {
        let text = found(key);
        assert!(text.contains(problem) && text.contains(hint), "{key}: {text}");
        let column = key.rfind(at).unwrap();
        assert!(text.contains(&format!("7 | {key}\n  | {}{}\n", " ".repeat(column), "^".repeat(at.len()))), "{text}");
        assert_eq!(text.matches("error: ").count(), usize::from(problem.starts_with("error")), "{key}: {text}");
    }
    let rate = "connect_rate_per_address = { rate = \"10/m\", burst = 14_400 }";
    assert!(!found(rate).contains("burst"), "{}", found(rate));
    let upstream = listener("", "", &["true"]) + "max_connect_rate = { rate = \"10/s\", burst = 0 }\n";
    assert!(problems(&upstream).contains("`burst` must be a number greater than 0"), "{}", problems(&upstream));
}

#[test]
fn no_line_with_a_secret_is_shown_whatever_is_wrong_in_it() {
    let base = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"b\"\n";
    for line in [
        "tls = { certifcate = \"a.pem\", ticket_secret = \"hunter2-hunter2-hunter2-hunter2-\" }",
        "tls = { ticket_secret = \"hunter2-hunter2-hunter2-hunter2-\", min_version = 3 }",
        "tls = { private_key_passphrase = \"hunter2\", certificate }",
        "tls.ticket_secret = \"hunter2",
        "tls = { \"ticket_secret\" = 'hunter2', psk = 1 }",
        "tls = { private_key = \"pkcs11:token=a?pin-value=hunter2\", max_version = [] }",
        "[[authenticator]]\nname = \"c\"\nkind = \"http\"\nurl = \"http://u:hunter2@127.0.0.1/\" timeout = \"1s\"",
        "[[authenticator]]\nname = \"c\"\nkind = \"http\"\nheaders = { Authorization = \"Bearer hunter2\", A = 1 }",
        "[[authenticator]]\nname = \"c\"\nkind = \"http\"\nheaders = \"Bearer hunter2\"",
        "[[authenticator]]\nname = \"c\"\nkind = \"http\"\n[authenticator.headers]\nAuthorization = \"Bearer hunter2\" x",
        "tls = { ticket_secret = [\"hunter2\"], private_key_passphrase = { a = \"hunter2\" } }",
        "[listener.tls]\nticket_secret = \"\"\"\nhunter2 \\x\"\"\"",
        "[[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1\"]\nhealth = { mode = \"mqtt\", username = 1, password = \"hunter2\" }",
    ] {
        let text = problems(&format!("{base}{line}\n"));
        assert!(text.contains("error") && !text.contains("hunter2"), "{line}:\n{text}");
    }
}
