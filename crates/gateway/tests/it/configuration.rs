//! The problems that `check` reports for a configuration as a whole.

use std::path::{Path, PathBuf};

use portcullis_gateway::{Machine, ProcessState, Runtime};
use portcullis_testkit::Pki;

pub(crate) fn problems(configuration: &str) -> String {
    problems_on(Machine::default(), configuration)
}

pub(crate) fn problems_on(machine: Machine, configuration: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, configuration).unwrap();
    match Runtime::load(&path, &ProcessState::on(machine)) {
        Ok(loaded) => loaded.diagnostics.render(false),
        Err(problems) => problems.render(false),
    }
}

pub(crate) const REST: &str = "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:1883\"]\n";

#[test]
fn an_error_hides_no_other_and_brings_about_none() {
    let listener = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"brokers\"\n";
    let missing = problems(&format!("{listener}connect_timeout = \"soon\"\n"));
    assert!(missing.contains("unknown upstream `brokers`") && missing.contains("not a duration"), "{missing}");
    let as_table = problems(&format!("{listener}{}", REST.replace("[[upstream]]", "[upstream]")));
    assert!(as_table.contains("expected a list of tables") && !as_table.contains("unknown upstream"), "{as_table}");
    let in_list =
        REST.replace("[\"127.0.0.1:1883\"]", "[\n{ address = \"a:1\" },\n{ adress = \"b:1\" },\n{ weight = 1 },\n]");
    let in_list = problems(&format!("{listener}{in_list}"));
    assert!(in_list.contains("p.toml:10:3") && in_list.contains("did you mean `address`?"), "{in_list}");
    assert_eq!(in_list.matches("`address` is missing").count(), 1, "{in_list}");
}

#[test]
fn expressions_are_judged_at_load() {
    let listener = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"brokers\"\n";
    for (expression, message, hint) in [
        ("mqtt.clientid == 'a'", "`mqtt` has no field `clientid`", "did you mean `mqtt.client_id`?"),
        ("certt.subject.cn == 'a'", "unknown name `certt`", "did you mean `cert`?"),
        ("cert.subject.common_name == 'a'", "`cert.subject` has no field `common_name`", "fields: dn, cn"),
        ("mqtt.password == 'a'", "`mqtt` has no field `password`", ""),
        ("mqtt.client_id", "this expression returns a string, expected a boolean", ""),
        ("mqtt.client_id == 7", "a string never equals a number", ""),
        ("mqtt.client_id && true", "expected a boolean, found a string", ""),
        ("mqtt.client_id.startswith('a')", "unknown function `startswith`", "did you mean `startsWith`?"),
        ("mqtt.client_id.matches('[')", "invalid pattern of `matches`", ""),
        ("mqtt.client_id.matches(mqtt.username)", "the pattern of `matches` must be a literal", ""),
        ("cert.san.dns.all(a, cert.san.uri.all(b, a == b))", "cannot be nested", ""),
        ("mqtt.version.startsWith('5')", "`startsWith` requires a string, found a number", ""),
        ("starts_with(mqtt.client_id, 'a')", "unknown function `starts_with`", "did you mean `startsWith`?"),
        ("mqtt.user_properties.all(k, k.matches('^a'))", "`matches` cannot be used inside `all`", ""),
        ("mqtt.client_id ==", "", ""),
        ("mqtt.keep_alive.x == 1", "a number has no field `x`", ""),
    ] {
        let text = problems(&format!("{listener}[listener.admit]\nrequire = [\"{expression}\"]\n{REST}"));
        assert!(text.contains("error: ") && text.contains(message) && text.contains(hint), "{expression}:\n{text}");
        assert!(text.contains("p.toml:7:"), "{expression}: the line is named:\n{text}");
    }
    let long = format!("{listener}[listener.admit]\nrequire = [\"mqtt.client_id == '{}'\"]\n{REST}", "x".repeat(5000));
    assert!(problems(&long).contains("at most 4096 bytes"));
}

#[test]
fn nothing_from_outside_is_put_into_an_expression() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pw"), "s3cret").unwrap();
    let pw = dir.path().join("pw");
    let listener = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"brokers\"\n";
    for expression in ["${FILE:pw}", "'${FILE:pw}' + mqtt.username"] {
        let expression = expression.replace("pw}", &format!("{}}}", pw.display()));
        let text = problems(&format!("{listener}[listener.connect]\npassword = \"{expression}\"\n{REST}"));
        assert!(text.contains("substitution is not supported in expressions"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn what_is_legal_but_unsafe_is_a_warning() {
    let pki = Pki::new();
    let listener = |rest: &str| {
        format!("[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{rest}{REST}")
    };
    let open = problems(&listener(&pki.listener_tls_without_ca()));
    assert!(open.contains("warning: this listener does not authenticate clients"), "{open}");
    let unbound = problems(&listener(&pki.listener_tls()));
    assert!(unbound.contains("warning: any device can use any other device's client ID"), "{unbound}");
    let optional = problems(&listener(&format!("{}client_auth = \"optional\"\n", pki.listener_tls())));
    assert!(optional.contains("warning: client certificates are optional"), "{optional}");
    let bound = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n";
    assert_eq!(problems(&listener(&(pki.listener_tls() + bound))), "");
    std::process::Command::new("chmod").arg("644").arg(pki.key("localhost")).status().unwrap();
    let exposed = problems(&listener(&(pki.listener_tls() + bound)));
    assert!(exposed.contains("warning: every user of this machine can read the private key"), "{exposed}");
    // Only a verified value binds the client ID. With a token, the user name is not verified.
    let jwks = pki.dir().join("jwks.json");
    let jwk = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    std::fs::write(&jwks, jwk).unwrap();
    let tokens = format!(
        "[[authenticator]]\nname = \"tokens\"\nkind = \"jwt\"\njwks = {jwks:?}\nissuer = \"i\"\naudience = \"a\"\n"
    );
    let by_token = problems(&format!(
        "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\nauthenticate = [\"tokens\"]\n{}{REST}{tokens}",
        pki.listener_tls_without_ca()
    ));
    assert!(by_token.contains("'mqtt.client_id == jwt.sub'"), "{by_token}");
    assert!(by_token.contains("a client may send the broker any user name"), "{by_token}");
    let embedded = problems(&listener(&(pki.listener_tls() + bound)).replace("127.0.0.1:1883", "embedded"));
    assert!(embedded.contains("warning: the embedded broker"), "{embedded}");
}

/// A listener with these keys, tables and `require`.
pub(crate) fn listener(keys: &str, tables: &str, require: &[&str]) -> String {
    format!(
        "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{keys}{tables}[listener.admit]\nrequire = {require:?}\n{REST}"
    )
}

#[test]
fn a_rule_is_not_taken_for_the_right_rule() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "pw")]);
    let by_users = "authenticate = [\"users\"]\n";
    let by_certificate = |require: &[&str], keys: &str| problems(&listener(keys, &pki.listener_tls(), require));
    let by_password =
        |require: &[&str]| problems(&(listener(by_users, &pki.listener_tls_without_ca(), require) + &users));
    let unbound = "any device can use any other device's client ID";
    for require in ["mqtt.version >= 4", "mqtt.client_id != cert.subject.cn", "mqtt.client_id == mqtt.username"] {
        let found = by_certificate(&[require], "");
        assert!(found.contains(unbound), "{require}: {found}");
    }
    for require in ["mqtt.client_id == cert.subject.cn", "mqtt.client_id in cert.san.dns"] {
        assert_eq!(by_certificate(&[require], ""), "", "{require}");
    }
    // A user name that is bound to the certificate binds a client ID that is compared with it.
    assert_eq!(by_certificate(&["mqtt.client_id == mqtt.username", "mqtt.username == cert.subject.cn"], ""), "");
    assert!(by_password(&["mqtt.version >= 4"]).contains(unbound));
    assert_eq!(by_password(&["mqtt.client_id == mqtt.username"]), "");
    assert_eq!(by_password(&[r#"auth.name == "users" && mqtt.client_id.startsWith(mqtt.username + "/")"#]), "");

    let open = problems(&listener("", &pki.listener_tls_without_ca(), &["mqtt.version >= 4"]));
    assert!(open.contains("this listener does not authenticate clients"), "{open}");
    let optional = pki.listener_tls() + "client_auth = \"optional\"\n";
    let optional = |require: &str| problems(&listener("", &optional, &[require]));
    assert!(optional("mqtt.version >= 4").contains("clients without one are not authenticated"));
    assert_eq!(optional("mqtt.client_id == cert.subject.cn"), "", "which clients without one fail");

    let bans = "[[listener.ban]]\nkey = \"client_id\"\ncount = 5\n";
    let banning = |require: &str| {
        by_certificate(&[require], "").is_empty()
            && problems(&listener("", &(pki.listener_tls() + bans), &[require])).is_empty()
    };
    assert!(banning("mqtt.client_id == cert.subject.cn"));
    let found = problems(&listener("", &(pki.listener_tls() + bans), &["mqtt.version >= 4"]));
    assert!(found.contains("any client can get another one banned"), "{found}");
    let twice = problems(&listener("", &(pki.listener_tls() + bans + bans), &["mqtt.client_id == cert.subject.cn"]));
    assert!(twice.contains("this rule repeats an earlier one"), "{twice}");
}

#[test]
fn each_kind_of_clients_is_followed_through_the_expressions() {
    let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
    let keys = dir.path().join("keys.txt");
    std::fs::write(&keys, format!("thing001:{}\n", "0".repeat(64))).unwrap();
    let both = format!("{}[listener.tls.raw_keys]\nfile = {keys:?}\n", pki.listener_tls());
    let found = |require: &str| problems(&listener("", &both, &[require]));
    assert_eq!(found("has(cert.subject) ? mqtt.client_id == cert.subject.cn : mqtt.client_id == tls.key_name"), "");
    let reversed = found("has(tls.key_name) ? mqtt.client_id == tls.key_name : mqtt.client_id == cert.subject.cn");
    assert!(reversed.contains("clients with a raw public key have no `cert`"), "{reversed}");
    assert!(found("has(cert.subject) || mqtt.client_id == tls.key_name").contains("nothing binds the client ID"));

    let users = portcullis_testkit::password_file(dir.path(), "users", &[("alice", "pw")]);
    let http = "[[authenticator]]\nname = \"service\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1/\"\n";
    let tls = pki.listener_tls_without_ca();
    let found = |require: &str, connect: &str| {
        let keys = "authenticate = [\"users\", \"service\"]\n";
        problems(
            &(listener(keys, &tls, &[require]) + &users + http)
                .replace("[listener.admit]", &format!("{connect}[listener.admit]")),
        )
    };
    let by_kind = "auth.kind == 'http' ? mqtt.client_id == http.id : mqtt.client_id == mqtt.username";
    assert_eq!(found(by_kind, ""), "");
    assert_eq!(found("auth.name == 'service' ? mqtt.client_id == http.id : mqtt.client_id == mqtt.username", ""), "");
    let neither = found(
        "mqtt.client_id == http.id",
        "[listener.connect]\nusername = 'auth.kind == \"http\" ? jwt.sub : \"x\"'\n",
    );
    assert!(neither.contains("error: clients of the authenticator `users` have no `http`"), "{neither}");
    assert!(neither.contains("error: clients of the authenticator `service` have no `jwt`"), "{neither}");
    assert!(
        found("mqtt.client_id == mqtt.username", "[listener.connect]\nusername = 'gateway'\n")
            .contains("quotes of its own")
    );
}

#[test]
fn an_authority_without_a_crl_is_pointed_out() {
    let pki = Pki::new();
    let (root_only, both) = (pki.dir().join("root.crl"), pki.crls());
    let check = |crls: &std::path::Path, rest: &str| {
        let tls = format!("{}crl = [{crls:?}]\n{rest}", pki.listener_tls());
        problems(&listener("", &tls, &["mqtt.client_id == cert.subject.cn"]))
    };
    assert_eq!(check(&both, ""), "");
    assert_eq!(check(&root_only, ""), "", "intermediates are not known yet");
    let found = check(&pki.dir().join("intermediate.crl"), "");
    assert!(found.contains("warning: `crl` has no list of `CN=Test root`"), "{found}");
}

#[test]
fn no_error_shows_an_inserted_value() {
    let pki = Pki::new();
    let whole = format!(
        "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{}{REST}",
        pki.listener_tls()
    );
    let dir = tempfile::tempdir().unwrap();
    let line = |key: &str| {
        let begins = |line: &&str| line.starts_with(&format!("{key} ="));
        whole.lines().find(begins).unwrap_or_else(|| panic!("{key}: {whole}")).to_owned()
    };
    for (secret, shown) in
        [("hunter2", "unter"), ("s3cr3t:99999", "s3cr"), ("Zx9", "Zx9"), ("a b/k?v=pw1234", "pw1234")]
    {
        let file = dir.path().join("f");
        std::fs::write(&file, secret).unwrap();
        let file = file.display();
        for key in ["bind", "upstream", "servers", "certificate", "private_key", "client_ca"] {
            for value in [format!("\"${{FILE:{file}}}\""), format!("\"x${{FILE:{file}}}/y\"")] {
                let value = if key == "servers" { format!("[{value}]") } else { value };
                let text = problems(&whole.replace(&line(key), &format!("{key} = {value}")));
                assert!(text.contains("error: "), "{key} = {value}: {text}");
                assert!(!text.contains(shown), "{key} = {value}: {text}");
            }
        }
    }
}

#[test]
fn mistakes_of_meaning_are_errors() {
    let pki = Pki::new();
    let tls = pki.listener_tls();
    let with = |from: &str, to: &str| {
        let whole = format!("[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{tls}{REST}");
        assert!(whole.contains(from), "{from}");
        problems(&whole.replace(from, to))
    };
    for (from, to, message) in [
        ("name = \"a\"\n", "", "`name` is missing"),
        ("bind = \"127.0.0.1:0\"\n", "", "`bind` is missing"),
        ("127.0.0.1:0", "localhost", "`localhost` is not an address with a port"),
        ("upstream = \"brokers\"", "upstream = \"broker\"", "did you mean `brokers`?"),
        ("issued/localhost.key", "intermediate.key", "is not the key of"),
        ("127.0.0.1:1883", "127.0.0.1", "has no port"),
        ("127.0.0.1:1883", "127.0.0.1:99999", "`99999` is not a port"),
        ("servers = [\"127.0.0.1:1883\"]", "servers = []", "`servers` is empty"),
        (
            "servers = [\"127.0.0.1:1883\"]",
            "servers = [{ address = \"a:1\", weight = 0 }]",
            "`weight` must be between 1",
        ),
        ("[listener.tls]", "[listener.tls]\nverify_depth = 7", "`verify_depth` must be at most 6"),
        ("[listener.tls]", "[listener.tls]\nclient_auth = \"none\"", "`client_ca` is set, but"),
        ("[listener.tls]", "protocol = \"tcp\"\n[listener.tls]", "[listener.tls] has no effect"),
        ("[[upstream]]", "[runtime]\nlog = \"loud\"\n[[upstream]]", "`loud` is not a log level"),
        ("[listener.tls]", "connect_timeout = \"0s\"\n[listener.tls]", "must be at least \"1ms\""),
        ("[listener.tls]", "connect_timeout = \"500000000000y\"\n[listener.tls]", "must be at most ten years"),
        ("[listener.tls]", "max_connections = 0\n[listener.tls]", "expected a number greater than 0"),
        ("[[upstream]]", "[admin]\nbind = \"x\"\n[[upstream]]", "`x` is not an address with a port"),
        ("[[upstream]]", "[access_log]\npath = \"no/such/x.log\"\n[[upstream]]", "the directory of"),
    ] {
        let text = with(from, to);
        assert!(text.contains("error: ") && text.contains(message), "{to}: {message}\n{text}");
    }
}

#[test]
fn what_is_said_of_revocation_and_resumption_is_judged() {
    let pki = Pki::new();
    let listener = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n";
    let long = "x".repeat(32);
    for (with_ca, line, word) in [
        (true, "crl = [\"ldap://crl.example.com/\"]", "is not an `http` or `https` URL"),
        (true, "crl = [\"http://\"]", "is not an `http` or `https` URL"),
        (true, "crl = [\"http://crl.example.com/a.crl\"]\ncrl_missing = \"allow\"", "is admitted"),
        (true, "ocsp = \"leaf\"\nocsp_failure = \"allow\"", "is admitted"),
        (true, "ocsp = \"leaf\"\nocsp_responder = \"responder\"", "is not an `http` or `https` URL"),
        (true, "ocsp = \"all\"", "unknown value `all`"),
        (true, "revocation_refresh = \"0s\"", "at least"),
        (true, "session_lifetime = \"8d\"", "at most 7d"),
        (true, "ticket_secret = \"short\"", "at least 32"),
        (true, &format!("ticket_secret = \"{long}\""), "the configuration file contains a secret in plain text"),
        (true, &format!("ticket_secret = \"{long}\"\nresumption = \"cache\""), "no effect"),
        (true, "private_key_passphrase = \"x\"", "is not encrypted"),
        (false, "crl = [\"a.pem\"]", "require `client_ca`"),
        (false, "ocsp = \"leaf\"", "require `client_ca`"),
        (false, "crl_distribution_points = true", "require `client_ca`"),
    ] {
        let tls = if with_ca { pki.listener_tls() } else { pki.listener_tls_without_ca() };
        let text = problems(&format!("{listener}{tls}{line}\n{REST}"));
        assert!(text.contains(word), "{line}:\n{text}");
    }
    // An interpolated secret would appear in logs, metrics and this error message.
    let secret = pki.dir().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    for line in ["crl = [\"http://user:${FILE:X}@a/b.crl\"]", "ocsp = \"leaf\"\nocsp_responder = \"${FILE:X}\""] {
        let line = line.replace('X', secret.to_str().unwrap());
        let text = problems(&format!("{listener}{}{line}\n{REST}", pki.listener_tls()));
        assert!(text.contains("substitution is not supported here") && !text.contains("hunter2"), "{text}");
    }
    let token = "pkcs11:object=k?pin-value=hunter2";
    let tls = pki.listener_tls().replace(&format!("{:?}", pki.key("localhost")), &format!("{token:?}"));
    let text = problems(&format!("{listener}{tls}{REST}"));
    assert!(text.contains("the PKCS#11 URI names no module") && !text.contains("hunter2"), "{text}");
    let text = problems(&format!("{listener}{}ticket_secret = \"{long}\"\n{REST}", pki.listener_tls()));
    assert!(text.contains("the configuration file contains a secret in plain text") && !text.contains(&long), "{text}");
}

#[test]
fn every_example_passes() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(&examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        count += 1;
        // Create the files that the example names.
        let (pki, dir) = (Pki::new(), tempfile::tempdir().unwrap());
        for (name, file) in [
            ("certs/server.pem", pki.chain("localhost")),
            ("certs/server.key", pki.key("localhost")),
            ("certs/devices-ca.pem", pki.root()),
            ("certs/crl.pem", pki.crls()),
        ] {
            std::fs::create_dir_all(dir.path().join("certs")).unwrap();
            std::fs::copy(file, dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("certs/ticket.secret"), "0123456789abcdef0123456789abcdef").unwrap();
        set_private(&dir.path().join("certs/ticket.secret"));
        for (name, text) in [
            ("psk.txt", "thing001:00112233445566778899aabbccddeeff\n"),
            ("users.txt", "# none\n"),
            ("devices.db", "SQLite format 3\0"),
        ] {
            std::fs::write(dir.path().join("certs").join(name), text).unwrap();
            set_private(&dir.path().join("certs").join(name));
        }
        let copy: PathBuf = dir.path().join("portcullis.toml");
        std::fs::copy(&path, &copy).unwrap();
        let loaded = Runtime::load(&copy, &ProcessState::new());
        let text = match &loaded {
            Ok(loaded) => loaded.diagnostics.render(false),
            Err(problems) => problems.render(false),
        };
        assert!(loaded.is_ok(), "{}:\n{text}", path.display());
        assert!(!text.contains("warning") || path.ends_with("embedded.toml"), "{}:\n{text}", path.display());
    }
    assert!(count >= 6, "{count} examples");
}

#[test]
fn the_published_schema_is_the_model_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/portcullis.schema.json");
    let schema = serde_json::to_string_pretty(&portcullis_gateway::config::json_schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(published == schema, "run the tests once with UPDATE_SCHEMA=1 and commit docs/portcullis.schema.json");
}

fn set_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn settings_of_tcp_have_bounds() {
    for (tcp, expected) in [
        ("{ keepalive = \"30s\", user_timeout = \"30s\", backlog = 128 }", "none"),
        ("{ keepalive = \"0s\" }", "none"),
        ("{ keepalive = \"500ms\" }", "`keepalive` must be between"),
        ("{ keepalive = \"10h\" }", "`keepalive` must be between"),
        ("{ user_timeout = \"0s\" }", "must be at least"),
        ("{ backlog = 0 }", "expected a number greater than 0"),
        ("{ backlog = 70000 }", "`backlog` must be at most 65535"),
        ("{ nodelay = true }", "unknown key `nodelay`"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"b\"\ntcp = {tcp}\n\
             [[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1\"]\n"
        );
        std::fs::write(&path, text).unwrap();
        let found = portcullis_gateway::Runtime::load(&path, &portcullis_gateway::ProcessState::new())
            .map_or_else(|problems| problems.render(false), |_| "none".to_owned());
        assert!(found.contains(expected), "{tcp}: {found}");
    }
}
