//! Snapshots of what the command prints, and its exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

/// Runs the command; returns exit code, standard output and standard error, with the temporary directory masked.
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
allow = [\"127.0.0.0/8\"]

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
         allow = [\"127.0.0.1\"]\nmax_connections = 100\n\
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
    assert!(first.contains("PKI: qs/pki (new)") && first.matches("proved: ").count() == 3, "{first}");
    let again = quickstart();
    assert!(again.starts_with("exit code: 0") && again.contains("PKI: qs/pki (existing)"), "{again}");
    let log = std::fs::read_to_string(dir.path().join("qs/access.log")).unwrap();
    let reasons: Vec<&str> = log.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(reasons.len(), 6, "{log}");
    for run in reasons.chunks(3) {
        // A line is written when its connection has ended, so the order of the three may differ.
        let mut run = run.to_vec();
        run.sort_unstable();
        assert_eq!(run, ["identity_mismatch", "no_certificate", "ok"], "{log}");
    }
    // If a step of the proof fails, so does the command.
    let config = dir.path().join("qs/portcullis.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("mqtt.client_id == cert.subject.cn", "true")).unwrap();
    let failed = quickstart();
    assert!(
        failed.starts_with("exit code: 1") && failed.contains("error: not proved: the client ID BADTHING"),
        "{failed}"
    );
}

#[test]
fn check_of_authentication() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("users.txt", "alice:$argon2id$secret\n");
    write("psk.txt", "thing001:00gg11\n");
    write("identity.key", "no key\n");
    let configuration = "\
[[listener]]
name = \"psk\"
bind = \"0.0.0.0:8884\"
upstream = \"brokers\"
authenticate = [\"user\", \"user\"]
tls = { client_ca = \"ca.pem\", psk = { file = \"psk.txt\", format = \"hex\" } }

[[listener]]
name = \"keys\"
bind = \"0.0.0.0:8885\"
upstream = \"brokers\"
tls = { psk = { file = \"psk.txt\" } }
connect = { password = { claims = { iss = 'now' } } }
ban = [{ key = \"client_id\", on = [\"failure\"], count = 3 }, { window = \"1m\" }]

[[authenticator]]
name = \"users\"
kind = \"password_file\"
file = \"users.txt\"
url = \"http://user:s3cret@localhost/\"

[[authenticator]]
name = \"tokens\"
kind = \"jwt\"
jwks = \"jwks.json\"
algorithms = [\"none\"]

[[authenticator]]
name = \"fleet\"
kind = \"registry\"
database = \"mysql://user:s3cret@localhost/\"
device = 'mqtt.client_id'

[[authenticator]]
name = \"other\"
kind = \"registry\"
database = \"sqlite:devices.db\"

[identity]
private_key = \"identity.key\"
issuer = \"https://gateway.example.com\"

[[upstream]]
name = \"brokers\"
servers = [\"10.0.0.113:1883\"]
";
    write("portcullis.toml", configuration);
    let output = call(dir.path(), &["check", "-c", "portcullis.toml"]);
    assert!(!output.contains("s3cret"), "{output}");
    insta::assert_snapshot!(output);
}

#[test]
fn devices_and_what_is_wrong_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let device = |arguments: &[&str]| {
        let all = [&["device", "--database", "sqlite:devices.db"], arguments].concat();
        format!("$ portcullis device {}\n{}\n", arguments.join(" "), call(dir.path(), &all))
    };
    let output: String = [
        &["list"][..],
        &["add", "thing001", "--group", "pumps", "--attribute", "floor=3", "--attribute", "site=lyon"],
        &["add", "thing001"],
        &["add", "thing002", "--attribute", "site"],
        &["set", "thing001", "--group", "north", "--remove-group", "pumps", "--remove-attribute", "floor"],
        &["pin", "thing001", "--fingerprint", "AB"],
        &[
            "pin",
            "thing001",
            "--fingerprint",
            "00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF:00:FF",
        ],
        &["disable", "thing001"],
        &["list"],
        &["show", "thing002"],
        &["remove", "thing001"],
        &["list"],
    ]
    .map(device)
    .concat();
    insta::assert_snapshot!(output);
    insta::assert_snapshot!(call(dir.path(), &["device", "list"]));
    insta::assert_snapshot!(call(dir.path(), &["passwd", "users.txt", "a:b"]));
}

/// Behind `head`, the reader goes away early.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    call(dir.path(), &["pki", "init", "--dir", "pki", "--name", "Test"]);
    let binary = env!("CARGO_BIN_EXE_portcullis");
    for command in ["pki list --dir pki", "man", "completions bash"] {
        // The reader is gone before the command starts to write.
        let script = format!("exec 3>&1; {{ {{ sleep 0.2; {binary} {command}; echo $? >&3; }} | true; }} 2>&1");
        let output = std::process::Command::new("sh").current_dir(&dir).args(["-c", &script]).output().unwrap();
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"0\n"[..], &b""[..]),
            "{command}: {output:?}"
        );
    }
}

#[test]
fn messages_that_nobody_can_read_are_no_reason_to_fail() {
    let dir = tempfile::tempdir().unwrap();
    let warned = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"b\"\n\
        [[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1\"]\n";
    std::fs::write(dir.path().join("warned.toml"), warned).unwrap();
    std::fs::write(dir.path().join("broken.toml"), "[[listener]]\n").unwrap();
    for (arguments, code) in [
        (["check", "-c", "warned.toml"], 0),
        (["check", "-c", "broken.toml"], 78),
        (["check", "-c", "missing.toml"], 78),
        (["run", "-c", "broken.toml"], 78),
    ] {
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let status = command.current_dir(dir.path()).args(arguments).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn check_compares_settings_with_the_machine_that_it_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let configuration = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\nupstream = \"b\"\n\
        max_connections = 4000\nallow = [\"127.0.0.1\"]\n[[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1\"]\n\
        [runtime]\nworker_threads = 1024\nmemory_limit = \"1PiB\"\n";
    std::fs::write(dir.path().join("p.toml"), configuration).unwrap();
    let script = format!("ulimit -n 4096 && {} check -c p.toml", env!("CARGO_BIN_EXE_portcullis"));
    let output = Command::new("sh").current_dir(&dir).args(["-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    for warning in [
        "p.toml:6:19",
        "warning: `max_connections`, 4000, takes 12211 file descriptors; the hard limit here is 4096, enough for ",
        "warning: `worker_threads` is 1024, on ",
        "warning: `memory_limit` is 1.0 PiB, more than the ",
    ] {
        assert!(text.contains(warning), "{warning}: {text}");
    }
    assert!(output.status.success() && text.matches("warning: ").count() == 3, "{text}");
}
