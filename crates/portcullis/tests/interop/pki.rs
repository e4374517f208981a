//! OpenSSL accepts what `portcullis pki` writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use portcullis_pki::{Algorithm, Init};
use portcullis_testkit::Pki;

use crate::processes::{Process, command, finish, free_port, wait_for_port};

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

/// The life cycle of certificates with each algorithm, verified by OpenSSL.
#[test]
fn what_it_renews_and_revokes_is_strictly_valid_and_revoked_for_openssl() {
    for algorithm in ["ec-p256", "ec-p384", "ed25519"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let run = |arguments: &str| {
            let output = portcullis(dir, arguments);
            assert!(output.status.success(), "{arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        run(&format!(
            "pki init --algorithm {algorithm} --permit-dns example.com --permit-ip 192.0.2.0/24 \
             --crl-url http://crl.example.com/fleet --ocsp-url http://ocsp.example.com/"
        ));
        run("pki issue server gw --san gw.example.com --san 192.0.2.7");
        let refused = portcullis(dir, "pki issue server elsewhere --san gw.example.org");
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(message.contains("not permitted by the authority's name constraints"), "{message}");
        run("pki issue device thing001 --san urn:device:thing001 --days 30");
        run("pki issue device thing002");
        run("pki issue ocsp responder");
        let text = |file: &str| openssl(dir, &format!("x509 -in pki/{file} -noout -text"));
        let constraints = text("intermediate.pem");
        assert!(
            constraints.contains("DNS:example.com") && constraints.contains("192.0.2.0/255.255.255.0"),
            "{constraints}"
        );
        let leaf = text("issued/thing001.pem");
        for part in [
            "http://crl.example.com/fleet/intermediate.crl",
            "OCSP - URI:http://ocsp.example.com/",
            "URI:urn:device:thing001",
        ] {
            assert!(leaf.contains(part), "{part} in {leaf}");
        }
        assert!(
            text("issued/responder.pem").contains("OCSP Signing")
                && text("issued/responder.pem").contains("OCSP No Check")
        );
        let verify = |purpose: &str, name: &str| {
            let chain = format!("pki/issued/{name}.pem");
            let arguments = format!(
                "verify -x509_strict -crl_check_all -CRLfile pki/crl.pem -purpose {purpose} -CAfile pki/root.pem -untrusted {chain} {chain}"
            );
            let output = finish(command("openssl").current_dir(dir).args(arguments.split_whitespace()));
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
        };
        for (purpose, name) in
            [("sslserver", "gw"), ("sslclient", "thing001"), ("sslclient", "thing002"), ("any", "responder")]
        {
            assert!(verify(purpose, name).contains(": OK"), "{algorithm} {name}: {}", verify(purpose, name));
        }
        let key = fs::read(dir.join("pki/issued/thing001.key")).unwrap();
        let before = openssl(dir, "x509 -in pki/issued/thing001.pem -noout -serial");
        run("pki renew thing001 --days 60");
        assert_ne!(openssl(dir, "x509 -in pki/issued/thing001.pem -noout -serial"), before);
        assert_eq!(fs::read(dir.join("pki/issued/thing001.key")).unwrap(), key);
        assert!(text("issued/thing001.pem").contains("URI:urn:device:thing001"));
        assert!(verify("sslclient", "thing001").contains(": OK"));

        run("pki revoke thing002 --reason key-compromise --crl-days 7");
        assert!(verify("sslclient", "thing002").contains("certificate revoked"), "{}", verify("sslclient", "thing002"));
        assert!(verify("sslclient", "thing001").contains(": OK"));
        let crl = openssl(dir, "crl -inform DER -in pki/intermediate.crl -noout -text -CAfile pki/intermediate.pem");
        for part in [
            "Key Compromise",
            "Issuing Distribution Point",
            "http://crl.example.com/fleet/intermediate.crl",
            "CRL Number",
        ] {
            assert!(crl.contains(part), "{part} in {crl}");
        }
        let list = run("pki list");
        assert!(list.contains("revoked: keyCompromise") && list.contains("59 days left"), "{list}");

        // The CRLs are regenerated without the key of the root.
        fs::rename(dir.join("pki/root.key"), dir.join("root.key")).unwrap();
        run("pki crl --crl-days 2");
        assert!(verify("sslclient", "thing001").contains(": OK"), "{}", verify("sslclient", "thing001"));
        let again = portcullis(dir, "pki revoke thing002");
        assert!(String::from_utf8_lossy(&again.stderr).contains("is already revoked"), "{again:?}");
        let nobody = portcullis(dir, "pki revoke nobody");
        assert!(String::from_utf8_lossy(&nobody.stderr).contains("`portcullis pki list`"), "{nobody:?}");
    }
}

#[test]
fn mosquitto_and_nginx_take_its_certificates_and_its_crls() {
    for algorithm in [Algorithm::EcP256, Algorithm::EcP384, Algorithm::Ed25519] {
        take_certificates_and_crls(algorithm);
    }
}

fn take_certificates_and_crls(algorithm: Algorithm) {
    let permit_dns = vec!["localhost".to_owned()];
    let permit_ip = vec!["127.0.0.0/8".to_owned()];
    let pki = Pki::with(&Init { name: "Test".into(), algorithm, permit_dns, permit_ip, ..Init::default() });
    pki.device("thing001");
    pki.authority().renew("thing001", 30, true).unwrap();
    pki.device("revoked");
    pki.revoke("revoked");
    let dir = tempfile::tempdir().unwrap();
    let (mosquitto_port, nginx_port) = (free_port(), free_port());
    let path = |path: std::path::PathBuf| path.display().to_string();
    let mosquitto = format!(
        "listener {mosquitto_port} 127.0.0.1\nallow_anonymous true\nuser root\nrequire_certificate true\n\
         use_identity_as_username true\ncafile {}\ncertfile {}\nkeyfile {}\ncrlfile {}\n",
        path(pki.root()),
        path(pki.chain("localhost")),
        path(pki.key("localhost")),
        path(pki.crls()),
    );
    fs::write(dir.path().join("mosquitto.conf"), mosquitto).unwrap();
    let at = dir.path().display();
    let nginx = format!(
        "pid {at}/pid; error_log {at}/error.log; daemon off; master_process off; user root; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; \
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
         server {{ listen 127.0.0.1:{nginx_port} ssl; ssl_certificate {}; ssl_certificate_key {}; \
         ssl_client_certificate {}; ssl_crl {}; ssl_verify_client on; ssl_verify_depth 2; return 200 admitted; }} }}\n",
        path(pki.chain("localhost")),
        path(pki.key("localhost")),
        path(pki.root()),
        path(pki.crls()),
    );
    fs::write(dir.path().join("nginx.conf"), nginx).unwrap();
    let spawn = |program: &str, file: &str| {
        let mut command = command(program);
        Process(
            command.arg("-c").arg(dir.path().join(file)).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap(),
        )
    };
    let _mosquitto = spawn("mosquitto", "mosquitto.conf");
    let _nginx = spawn("nginx", "nginx.conf");
    wait_for_port(mosquitto_port);
    wait_for_port(nginx_port);
    for (device, is_admitted) in [("thing001", true), ("revoked", false)] {
        let published = finish(
            command("mosquitto_pub")
                .args(["-h", "localhost", "-p", &mosquitto_port.to_string(), "-t", "t", "-m", "m"])
                .args(["--cafile".as_ref(), pki.root().as_os_str()])
                .args(["--cert".as_ref(), pki.chain(device).as_os_str()])
                .args(["--key".as_ref(), pki.key(device).as_os_str()]),
        );
        assert_eq!(published.status.success(), is_admitted, "mosquitto, {device}: {published:?}");
        let response = finish(
            command("curl")
                .args(["-s", &format!("https://localhost:{nginx_port}/")])
                .args(["--cacert".as_ref(), pki.root().as_os_str()])
                .args(["--cert".as_ref(), pki.chain(device).as_os_str()])
                .args(["--key".as_ref(), pki.key(device).as_os_str()]),
        );
        assert_eq!(
            String::from_utf8_lossy(&response.stdout) == "admitted",
            is_admitted,
            "nginx, {device}: {response:?}"
        );
    }
}
