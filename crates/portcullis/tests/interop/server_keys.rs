//! Server certificates and keys: files that change, every form of key, tokens, expiry; with OpenSSL and SoftHSM2.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use portcullis_pki::{Purpose, Request};
use portcullis_testkit::Pki;

use crate::processes::{Launch, Mosquitto, command, eventually, finish};
use crate::trust::{s_client, upstream};

#[test]
fn a_servers_certificate_follows_its_files() {
    let broker = Mosquitto::start();
    let pki = Arc::new(Pki::new());
    // As Kubernetes does it: files behind a symbolic link to a directory, which is replaced.
    let dir = tempfile::tempdir().unwrap();
    let fill = |folder: &str, chain: &str, key: &str| {
        let folder = dir.path().join(folder);
        fs::create_dir(&folder).unwrap();
        fs::copy(pki.chain(chain), folder.join("tls.crt")).unwrap();
        fs::copy(pki.key(key), folder.join("tls.key")).unwrap();
    };
    let point_to = |folder: &str| {
        let new = dir.path().join("new");
        std::os::unix::fs::symlink(folder, &new).unwrap();
        fs::rename(&new, dir.path().join("data")).unwrap();
    };
    pki.server("second", &["localhost"]);
    pki.server("third", &["localhost"]);
    fill("1", "localhost", "localhost");
    fill("2", "second", "second");
    fill("mismatched", "third", "second");
    point_to("1");
    let (chain, key) = (dir.path().join("data/tls.crt"), dir.path().join("data/tls.key"));
    let launch = Launch::new(Arc::clone(&pki), &upstream(&broker));
    let gateway = launch.server(&chain, key.to_str().unwrap()).start();
    let subject = || s_client(&gateway, &gateway.pki, "thing001", &[]);
    assert!(subject().contains("CN = localhost"), "{}", subject());
    point_to("2");
    eventually("the second certificate", || subject().contains("CN = second").then_some(()));
    point_to("mismatched");
    eventually("the complaint", || gateway.own_log().contains("keeping the last good version").then_some(()));
    assert!(subject().contains("CN = second"));
    gateway.pki.device_until("expired", -5);
    fs::create_dir(dir.path().join("expired")).unwrap();
    fs::copy(gateway.pki.chain("expired"), dir.path().join("expired/tls.crt")).unwrap();
    fs::copy(gateway.pki.key("expired"), dir.path().join("expired/tls.key")).unwrap();
    point_to("expired");
    eventually("the complaint", || gateway.own_log().contains("has expired").then_some(()));
    assert!(subject().contains("CN = second"));
    gateway.process.signal("HUP");
    eventually("the refusal", || gateway.own_log().contains("reload failed").then_some(()));
    assert!(subject().contains("CN = second"));
}

#[test]
fn keys_of_every_form_are_read() {
    let broker = Mosquitto::start();
    let (pki, dir) = (Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &str| {
        let output = finish(command("openssl").current_dir(dir.path()).args(arguments.split(' ')));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(dir.path().join("passphrase"), "correct horse\n").unwrap();
    openssl("ecparam -name prime256v1 -genkey -noout -out p256-sec1.key");
    openssl("pkcs8 -topk8 -nocrypt -in p256-sec1.key -out p256-pkcs8.key");
    openssl("pkcs8 -topk8 -in p256-sec1.key -passout file:passphrase -out p256-encrypted.key");
    openssl("pkcs8 -topk8 -scrypt -in p256-sec1.key -passout file:passphrase -out p256-scrypt.key");
    openssl("ecparam -name secp384r1 -genkey -noout -out p384-sec1.key");
    openssl("genrsa -traditional -out rsa-pkcs1.key 2048");
    openssl("pkcs8 -topk8 -in rsa-pkcs1.key -passout file:passphrase -out rsa-encrypted.key");
    openssl("genpkey -algorithm ed25519 -out ed25519-pkcs8.key");
    for name in [
        "p256-sec1",
        "p256-pkcs8",
        "p256-encrypted",
        "p256-scrypt",
        "p384-sec1",
        "rsa-pkcs1",
        "rsa-encrypted",
        "ed25519-pkcs8",
    ] {
        openssl(&format!("req -new -key {name}.key -passin file:passphrase -subj /CN={name} -out {name}.csr"));
        let names = vec!["localhost".to_owned()];
        let csr = dir.path().join(format!("{name}.csr"));
        let issued = pki.authority().sign(&csr, None, Purpose::Server, names, 30).unwrap();
        let is_encrypted = name.contains("encrypted") || name.contains("scrypt");
        let passphrase = format!("private_key_passphrase = \"${{FILE:{}}}\"\n", at("passphrase"));
        let launch =
            Launch::new(Arc::clone(&pki), &upstream(&broker)).server(&issued.chain, &at(&format!("{name}.key")));
        let gateway = launch.tls(if is_encrypted { &passphrase } else { "" }).start();
        let output = s_client(&gateway, &pki, "thing001", &[]);
        assert!(
            output.contains(&format!("CN = {name}")) && output.contains("Verify return code: 0 (ok)"),
            "{name}: {output}"
        );
    }
}

#[test]
fn keys_stay_in_a_token() {
    let module = "/usr/lib/softhsm/libsofthsm2.so";
    assert!(Path::new(module).exists(), "{module} is not there: run ./test.sh, which installs what the tests need");
    let (pki, dir) = (Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let broker = Mosquitto::start();
    fs::create_dir(dir.path().join("tokens")).unwrap();
    let config = dir.path().join("softhsm2.conf");
    fs::write(&config, format!("directories.tokendir = {}\n", dir.path().join("tokens").display())).unwrap();
    fs::write(dir.path().join("pin"), "1234\n").unwrap();
    let softhsm = |arguments: &str| {
        let output = finish(
            command("softhsm2-util").env("SOFTHSM2_CONF", &config).current_dir(dir.path()).args(arguments.split(' ')),
        );
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let openssl = |arguments: &str| {
        let output = finish(command("openssl").current_dir(dir.path()).args(arguments.split(' ')));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    softhsm("--init-token --free --label gateway --pin 1234 --so-pin 5678");
    for (id, name, make) in [
        ("01", "p256", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"),
        ("02", "p384", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384"),
        ("03", "rsa", "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048"),
        ("04", "ed25519", "genpkey -algorithm ED25519"),
    ] {
        openssl(&format!("{make} -out {name}.key"));
        openssl(&format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"));
        softhsm(&format!("--import {name}.key --token gateway --label {name} --id {id} --pin 1234"));
        let csr = dir.path().join(format!("{name}.csr"));
        let issued = pki.authority().sign(&csr, None, Purpose::Server, vec!["localhost".to_owned()], 30).unwrap();
        // From here on, only the token has the key.
        fs::remove_file(dir.path().join(format!("{name}.key"))).unwrap();
        let pin = dir.path().join("pin");
        let uri = format!("pkcs11:token=gateway;object={name}?module-path={module}&pin-source={}", pin.display());
        let launch = Launch::new(Arc::clone(&pki), &upstream(&broker)).server(&issued.chain, &uri);
        let gateway = launch.env("SOFTHSM2_CONF", &config).start();
        for version in ["-tls1_2", "-tls1_3"] {
            let output = s_client(&gateway, &pki, "thing001", &[version]);
            assert!(
                output.contains(&format!("CN = {name}")) && output.contains("Verify return code: 0 (ok)"),
                "{name}: {output}"
            );
        }
        // The key of another certificate is rejected.
        let wrong = fs::read_to_string(gateway.config()).unwrap();
        let wrong = wrong.replace(&format!("{:?}", issued.chain), &format!("{:?}", pki.chain("localhost")));
        let path = dir.path().join("wrong.toml");
        fs::write(&path, wrong).unwrap();
        let check = finish(
            Command::new(env!("CARGO_BIN_EXE_portcullis"))
                .env("SOFTHSM2_CONF", &config)
                .args(["check", "-c"])
                .arg(&path),
        );
        let output = String::from_utf8_lossy(&check.stderr).into_owned() + &String::from_utf8_lossy(&check.stdout);
        assert_eq!(check.status.code(), Some(78), "{output}");
        assert!(output.contains("does not belong to the certificate") || output.contains("not sign"), "{output}");
        assert!(!output.contains("1234"), "{output}");
    }
}

#[test]
fn what_expires_is_said_in_time() {
    let broker = Mosquitto::start();
    let pki = Arc::new(Pki::new());
    let days = |name: &str, purpose, days| {
        let names = if purpose == Purpose::Server { vec!["localhost".to_owned()] } else { Vec::new() };
        pki.authority().issue(&Request { name: name.into(), organization: None, purpose, names, days }).unwrap()
    };
    let server = days("soon", Purpose::Server, 5);
    let upstream_pair = days("gateway", Purpose::Device, 1);
    let (bundle, anchor) = (pki.dir().join("bundle.pem"), pki.dir().join("anchor.pem"));
    let made = finish(
        command("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "20"])
            .args(["-subj", "/CN=anchor", "-keyout", "/dev/null", "-out"])
            .arg(&anchor),
    );
    assert!(made.status.success(), "{made:?}");
    let text = |path: &Path| fs::read_to_string(path).unwrap();
    fs::write(&bundle, text(&pki.root()) + &text(&anchor)).unwrap();
    pki.crls_until(2);
    let tls = format!("crl = [{:?}]\n", pki.crls());
    let rest = format!(
        "{}tls = {{ ca = {bundle:?}, certificate = {:?}, private_key = {:?} }}\n",
        upstream(&broker),
        upstream_pair.chain,
        upstream_pair.key.unwrap()
    );
    let launch =
        Launch::new(Arc::clone(&pki), &rest).tls(&tls).server(&server.chain, server.key.unwrap().to_str().unwrap());
    let gateway = launch.replace(&format!("client_ca = {:?}", pki.root()), &format!("client_ca = {bundle:?}")).start();
    for (role, left) in [("server", 4), ("client_ca", 19), ("upstream", 0), ("upstream_ca", 19)] {
        let field = format!("\"role\":\"{role}\"");
        let line = eventually(role, || {
            gateway
                .own_log()
                .lines()
                .find(|line| line.contains("is about to expire") && line.contains(&field))
                .map(str::to_owned)
        });
        // Within a second of its creation, rounding gives one more day.
        let says = |days: i32| line.contains(&format!("\"days_left\":{days},"));
        assert!(says(left) || says(left + 1), "{line}");
    }
    eventually("the end of the CRL", || gateway.own_log().contains("CRL is out of date").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let log = gateway.own_log();
    assert_eq!(log.matches("is about to expire").count(), 4, "each is logged once: {log}");
    assert_eq!(log.matches("CRL is out of date").count(), 1, "{log}");
    let metrics = gateway.admin_get("/metrics");
    for metric in [
        "portcullis_certificate_expiry_timestamp_seconds{owner=\"devices\",role=\"server\"}",
        "portcullis_certificate_expiry_timestamp_seconds{owner=\"devices\",role=\"client_ca\"}",
        "portcullis_certificate_expiry_timestamp_seconds{owner=\"brokers\",role=\"upstream\"}",
        "portcullis_crl_next_update_timestamp_seconds{crl=",
        "portcullis_crl_this_update_timestamp_seconds{crl=",
        "portcullis_crl_entries{crl=",
        "portcullis_device_certificates_expiring{days=\"30\"} 0",
    ] {
        assert!(metrics.contains(metric), "{metric} in\n{metrics}");
    }
}
