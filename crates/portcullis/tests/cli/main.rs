//! What the command prints, and its exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

/// Exit code, standard output and standard error of a call, paths made the same everywhere.
fn call(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.current_dir(dir).args(arguments).env("COLUMNS", "100").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(dir.to_str().unwrap(), "[dir]");
    let code = output.status.code().unwrap();
    format!("exit code: {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_says_all_that_is_wrong_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let configuration = "\
[[listener]]
name = \"devices\"
bind = \"0.0.0.0:8883\"
upstream = \"broker\"
connect_timeout = \"10 parsecs\"

[listener.tls]
certificate = \"certs/server.pem\"
private_key = \"certs/server.key\"
client_atuh = \"required\"

[listener.admit]
require = ['mqtt.clientid == cert.subject.cn', 'mqtt.client_id']

[[upstream]]
name = \"brokers\"
servers = [\"10.0.0.113\"]
balance = \"ketama\"
";
    std::fs::write(dir.path().join("portcullis.toml"), configuration).unwrap();
    insta::assert_snapshot!(call(dir.path(), &["check", "-c", "portcullis.toml"]));
}

#[test]
fn check_of_what_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let configuration = "\
[[listener]]
name = \"local\"
bind = \"127.0.0.1:1884\"
protocol = \"tcp\"
upstream = \"brokers\"
admit = { require = ['mqtt.client_id.startsWith(\"local-\")'] }

[[upstream]]
name = \"brokers\"
servers = [\"127.0.0.1:1883\"]
";
    std::fs::write(dir.path().join("portcullis.toml"), configuration).unwrap();
    insta::assert_snapshot!(call(dir.path(), &["check", "-c", "portcullis.toml"]));
    std::fs::write(dir.path().join("portcullis.toml"), configuration.replace("127.0.0.1:1883", "embedded")).unwrap();
    insta::assert_snapshot!(call(dir.path(), &["check", "-c", "portcullis.toml"]));
}

#[test]
fn files_that_are_not_there_and_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(call(dir.path(), &["run", "-c", "gone.toml"]));
    insta::assert_snapshot!(call(dir.path(), &["pki", "issue", "device", "thing001"]));
    insta::assert_snapshot!(call(dir.path(), &["chekc"]));
}

#[test]
fn an_address_in_use_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let configuration = format!(
        "[[listener]]\nname = \"local\"\nbind = \"{address}\"\nprotocol = \"tcp\"\nupstream = \"b\"\n\
         admit = {{ require = ['mqtt.client_id == \"a\"'] }}\n\
         [[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1883\"]\n"
    );
    std::fs::write(dir.path().join("portcullis.toml"), configuration).unwrap();
    let text = call(dir.path(), &["run", "-c", "portcullis.toml"]).replace(&address, "[address]");
    insta::assert_snapshot!(text);
}

#[test]
fn help_man_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(call(dir.path(), &["--help"]));
    insta::assert_snapshot!(call(dir.path(), &["run", "--help"]));
    for shell in ["bash", "zsh", "fish"] {
        assert!(call(dir.path(), &["completions", shell]).contains("quickstart"), "{shell}");
    }
    assert!(call(dir.path(), &["man"]).contains(".TH portcullis 1"));
    assert!(call(dir.path(), &["man", "--dir", "man"]).starts_with("exit code: 0"));
    assert!(dir.path().join("man/portcullis-check.1").exists());
}

#[test]
fn quickstart_proves_itself_twice() {
    let dir = tempfile::tempdir().unwrap();
    let quickstart = || call(dir.path(), &["quickstart", "--check", "--dir", "qs", "--bind", "127.0.0.1:0"]);
    let first = quickstart();
    assert!(first.starts_with("exit code: 0"), "{first}");
    assert!(first.contains("PKI: qs/pki, new") && first.matches("proved: ").count() == 3, "{first}");
    let again = quickstart();
    assert!(again.starts_with("exit code: 0") && again.contains("PKI: qs/pki, as it is"), "{again}");
    let log = std::fs::read_to_string(dir.path().join("qs/access.log")).unwrap();
    let reasons: Vec<&str> = log.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(reasons, ["ok", "identity_mismatch", "no_certificate"].repeat(2), "{log}");
    // A proof that fails is a failure.
    let config = dir.path().join("qs/portcullis.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("mqtt.client_id == cert.subject.cn", "true")).unwrap();
    let failed = quickstart();
    assert!(failed.starts_with("exit code: 1") && failed.contains("error: not proved: BADTHING"), "{failed}");
}
