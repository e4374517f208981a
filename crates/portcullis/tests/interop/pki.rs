//! What `portcullis pki` writes is accepted by OpenSSL.

use std::path::Path;
use std::process::{Command, Output};

use crate::processes::{command, finish};

fn portcullis(dir: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    finish(command.current_dir(dir).args(arguments.split(' ')))
}

fn openssl(dir: &Path, arguments: &str) -> String {
    let output = finish(command("openssl").current_dir(dir).args(arguments.split(' ')));
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn everything_it_writes_is_strictly_valid() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for arguments in [
        "pki init --name Example",
        "pki issue server gw --san gw.example.com --san 192.0.2.7",
        "pki issue device thing001 --organization Fleet --days 30",
    ] {
        let output = portcullis(dir, arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
    }
    openssl(
        dir,
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout thing002.key -subj /O=Fleet/CN=thing002 -out thing002.csr",
    );
    let signed = portcullis(dir, "pki sign thing002.csr");
    assert!(signed.status.success(), "{signed:?}");

    let verify = |purpose: &str, name: &str| {
        let leaf = format!("pki/issued/{name}.pem");
        openssl(dir, &format!("verify -x509_strict -purpose {purpose} -CAfile pki/root.pem -untrusted {leaf} {leaf}"))
    };
    assert!(verify("sslserver", "gw").contains("OK"));
    assert!(verify("sslclient", "thing001").contains("OK"));
    assert!(verify("sslclient", "thing002").contains("OK"));
    let subject = openssl(dir, "x509 -in pki/issued/thing002.pem -noout -subject -nameopt RFC2253");
    assert_eq!(subject, "subject=CN=thing002,O=Fleet\n");
    let names = openssl(dir, "x509 -in pki/issued/gw.pem -noout -ext subjectAltName");
    assert!(names.contains("DNS:gw.example.com") && names.contains("IP Address:192.0.2.7"), "{names}");

    let list = portcullis(dir, "pki list");
    let list = String::from_utf8_lossy(&list.stdout);
    let serial = openssl(dir, "x509 -in pki/issued/thing001.pem -noout -serial");
    assert!(list.contains(serial.trim().strip_prefix("serial=").unwrap()), "{list}");
    for line in
        ["root         Example root", "intermediate Example intermediate", "server       gw", "device       thing002"]
    {
        assert!(list.contains(line), "{line} in:\n{list}");
    }
}

#[test]
fn a_request_does_not_get_to_be_an_authority() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(portcullis(dir, "pki init").status.success());
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem";
    openssl(
        dir,
        &format!(
            "req -new {key} -subj /CN=evil -addext basicConstraints=critical,CA:TRUE -addext subjectAltName=DNS:gw.example.com -out evil.csr"
        ),
    );
    assert!(portcullis(dir, "pki sign evil.csr").status.success());
    let text = openssl(dir, "x509 -in pki/issued/evil.pem -noout -text");
    assert!(text.contains("CA:FALSE") && !text.contains("gw.example.com") && !text.contains("Server Authentication"));
}
