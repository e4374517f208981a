//! Devices without certificates: pre-shared keys and raw public keys.

use std::fs;
use std::process::Output;
use std::sync::Arc;

use portcullis_testkit::Pki;

use crate::processes::{Gateway, Launch, Mosquitto, command, converse, eventually, finish, upstream};

const KEY: &str = "00112233445566778899aabbccddeeff";
const BOUND: &str = "[listener.admit]\nrequire = ['mqtt.client_id == tls.psk_identity']\n";
const PSK: &str = "[listener.tls]\n[listener.tls.psk]\nfile = \"psk.txt\"\n";

fn hex_gateway(broker: u16, tls: &str, rest: &str) -> Gateway {
    Launch::new(Arc::default(), &format!("{BOUND}{rest}{}", upstream(broker)))
        .file("psk.txt", &format!("# devices\n\nthing001:{KEY}\nthing002:{}\n", KEY.replace("00", "77")))
        .tls_table(&PSK.replace("[listener.tls.psk]", &format!("{tls}[listener.tls.psk]\nformat = \"hex\"")))
        .start()
}

fn publish(gateway: &Gateway, client_id: &str, identity: &str, key: &str, options: &[&str]) -> Output {
    finish(
        gateway
            .client("mosquitto_pub", client_id)
            .args(["--psk", key, "--psk-identity", identity, "-q", "1", "-t", "test/1", "-m", "hello"])
            .args(options),
    )
}

/// Runs `openssl s_client` with a pre-shared key and sends `input`. Returns its output.
fn s_client(gateway: &Gateway, identity: &str, key: &str, options: &[&str], input: &[u8]) -> (bool, String) {
    let mut command = command("openssl");
    command.args(["s_client", "-connect", &gateway.address.to_string(), "-psk_identity", identity, "-psk", key]);
    converse(command.args(options), b"", input, CONNACK)
}

const CONNACK: &[u8] = b"\x20\x02\x00\x00";
const CONNECT: &[u8] = b"\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x08thing001";

#[test]
fn mosquitto_with_a_pre_shared_key() {
    let broker = Mosquitto::start();
    let gateway = hex_gateway(broker.port, "", "");
    for version in ["tlsv1.2", "tlsv1.3"] {
        let published = publish(&gateway, "thing001", "thing001", KEY, &["--tls-version", version]);
        assert!(published.status.success(), "{version}: {published:?}");
    }
    let other = publish(&gateway, "thing002", "thing001", KEY, &[]);
    assert!(!other.status.success(), "the client ID of another device");
    gateway.wait_for_reason("identity_mismatch");
    assert!(broker.log().contains("as thing001") && !broker.log().contains("as thing002"), "{}", broker.log());
}

#[test]
fn openssl_in_both_versions_and_with_forward_secrecy() {
    let broker = Mosquitto::start();
    let gateway = hex_gateway(broker.port, "", "");
    for (options, cipher) in [
        (&["-tls1_3"][..], "TLS_AES_128_GCM_SHA256"),
        (
            &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"],
            "TLS_CHACHA20_POLY1305_SHA256",
        ),
        (&["-tls1_2"], "ECDHE-PSK-CHACHA20-POLY1305"),
        (&["-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256:ECDHE-PSK-AES128-CBC-SHA256"], "ECDHE-PSK-AES128-CBC-SHA256"),
        (&["-tls1_2", "-cipher", "PSK-AES128-GCM-SHA256"], "PSK-AES128-GCM-SHA256"),
    ] {
        let (is_connected, text) = s_client(&gateway, "thing001", KEY, options, CONNECT);
        assert!(is_connected && text.contains(&format!("Cipher is {cipher}")), "{options:?}: {text}");
    }
    // External keys are bound to SHA-256: a cipher suite with another hash would skip the key.
    for options in [
        &["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"][..],
        &["-tls1_2", "-cipher", "PSK-AES128-CBC-SHA"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    ] {
        let (is_connected, text) = s_client(&gateway, "thing001", KEY, options, CONNECT);
        assert!(!is_connected && text.contains("Cipher is (NONE)"), "{options:?}: {text}");
    }
    // No resumption on PSK listeners: the server issues no session and accepts none.
    for version in ["-tls1_2", "-tls1_3"] {
        let file = gateway.dir().join("session");
        let (_, text) = s_client(&gateway, "thing001", KEY, &[version, "-sess_out", file.to_str().unwrap()], CONNECT);
        assert!(!text.contains("TLS session ticket:") && !text.contains("Post-Handshake New Session"), "{text}");
        if file.exists() {
            let wrong = KEY.replace("00", "01");
            let options = [version, "-sess_in", file.to_str().unwrap()];
            let (is_connected, text) = s_client(&gateway, "thing001", &wrong, &options, CONNECT);
            assert!(!is_connected, "{text}");
            fs::remove_file(file).unwrap();
        }
    }
    // The right key, rejected for another reason: does not count as a failed proof.
    let (is_connected, text) = s_client(&gateway, "thing001", KEY, &["-tls1_3", "-alpn", "http/1.1"], CONNECT);
    assert!(!is_connected, "{text}");
    gateway.wait_for_reason("tls_parameters");
    assert!(!gateway.lines(1).iter().any(|line| line.ends_with(" wrong_psk")));
}

#[test]
fn an_unknown_identity_and_a_wrong_key_look_the_same() {
    let broker = Mosquitto::start();
    let gateway = hex_gateway(broker.port, "", "");
    let wrong = KEY.replace("00", "01");
    let mut lines = 0;
    for version in ["-tls1_2", "-tls1_3"] {
        // Drop the fields that contain only time and address.
        let essence = |text: String| {
            let is_essential = |line: &&str| line.contains("alert") || line.contains("handshake has read");
            let cut = |line: &str| line.split_once(":error:").map_or(line, |(_, rest)| rest).to_owned();
            let mut lines: Vec<String> = text.lines().filter(is_essential).map(cut).collect();
            // Two streams, in any order.
            lines.sort();
            lines
        };
        let mut seen = Vec::new();
        for (identity, key, reason) in [
            ("thing001", wrong.as_str(), "wrong_psk"),
            ("nobody00", wrong.as_str(), "unknown_psk_identity"),
            ("nobody00", KEY, "unknown_psk_identity"),
        ] {
            let (is_connected, text) = s_client(&gateway, identity, key, &[version], CONNECT);
            assert!(!is_connected, "{version} {identity}: {text}");
            lines += 1;
            assert_eq!(gateway.reason(lines), reason, "{version} {identity}");
            seen.push(essence(text));
        }
        assert!(seen[0].iter().any(|line| line.contains("alert")), "{seen:?}");
        assert!(seen.iter().all(|other| *other == seen[0]), "{version}: {seen:#?}");
    }
    assert!(!broker.log().contains("New client"), "{}", broker.log());
}

#[test]
fn keys_as_emqx_has_them_and_keys_that_are_taken_away() {
    let broker = Mosquitto::start();
    let raw = "emqx secret of 20 by";
    let gateway = Launch::new(Arc::default(), &format!("{BOUND}{}", upstream(broker.port)))
        .file("psk.txt", &format!("thing001:{raw}\nthing002:{raw}\n"))
        .tls_table(&PSK.replace("[listener.tls.psk]", "[listener.tls.psk]\nformat = \"raw\""))
        .start();
    let hex = hex::encode(raw);
    let published = publish(&gateway, "thing001", "thing001", &hex, &[]);
    assert!(published.status.success(), "{published:?}");
    let mut live = gateway.client("mosquitto_sub", "thing002");
    let mut live = live.args(["--psk", &hex, "--psk-identity", "thing002", "-t", "x", "-V", "5"]).spawn().unwrap();
    eventually("the session", || broker.log().contains("Sending SUBACK to thing002").then_some(()));
    fs::write(gateway.dir().join("psk.txt"), format!("thing001:{raw}\n")).unwrap();
    eventually("the end of the session", || {
        gateway.lines(2)[1].ends_with("session_credential_withdrawn").then_some(())
    });
    let _ = live.kill();
    let _ = live.wait();
    let gone = publish(&gateway, "thing002", "thing002", &hex, &[]);
    assert!(!gone.status.success());
    eventually("its reason", || gateway.own_log().contains("pre-shared keys loaded").then_some(()));
    let published = publish(&gateway, "thing001", "thing001", &hex, &[]);
    assert!(published.status.success(), "{published:?}");
    // An invalid file changes nothing.
    fs::write(gateway.dir().join("psk.txt"), "thing001\n").unwrap();
    eventually("the complaint", || gateway.own_log().contains("keeping the last good version").then_some(()));
    let published = publish(&gateway, "thing001", "thing001", &hex, &[]);
    assert!(published.status.success(), "{published:?}");
    assert!(!gateway.own_log().contains(raw), "no key is logged");
}

/// Generates the key pair of a device. Returns its file and the fingerprint of the public key.
fn key_pair(pki: &Pki, name: &str) -> String {
    let dir = pki.dir();
    let run = |text: &str| {
        let output = finish(command("sh").current_dir(dir).args(["-c", text]));
        assert!(output.status.success(), "{text}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    run(&format!("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.raw.key"));
    run(&format!("openssl pkey -in {name}.raw.key -pubout -out {name}.raw.pub"));
    run(&format!("openssl pkey -in {name}.raw.key -pubout -outform DER | openssl dgst -sha256 -r | cut -c1-64"))
}

/// Connects with GnuTLS and a raw public key. Returns whether `until` was received after CONNECT, and the whole output.
fn gnutls(gateway: &Gateway, name: &str, priority: &str, until: &[u8]) -> (bool, String) {
    let file = |suffix: &str| gateway.pki.dir().join(format!("{name}.raw.{suffix}")).display().to_string();
    let port = gateway.address.port().to_string();
    let mut command = command("gnutls-cli");
    command.args(["-p", &port, "--insecure", "--priority", priority]);
    command.args(["--rawpkkeyfile", &file("key"), "--rawpkfile", &file("pub"), "localhost"]);
    converse(&mut command, b"Handshake was completed", CONNECT, until)
}

#[test]
fn gnutls_with_a_raw_public_key() {
    let (broker, pki) = (Mosquitto::start(), Arc::new(Pki::new()));
    let known = key_pair(&pki, "thing001");
    key_pair(&pki, "stranger");
    let rest = format!("[listener.admit]\nrequire = ['mqtt.client_id == tls.key_name']\n{}", upstream(broker.port));
    let gateway = Launch::new(Arc::clone(&pki), &rest)
        .file("keys.txt", &format!("# name:fingerprint\nthing001:{known}\n"))
        .tls_table(&format!("{}[listener.tls.raw_keys]\nfile = \"keys.txt\"\n", pki.listener_tls_without_ca()))
        .start();
    // With the server's certificate, and with its raw public key. No CA is involved.
    let certificate = "NORMAL:-CTYPE-ALL:+CTYPE-SRV-X509:+CTYPE-CLI-RAWPK";
    let bare = "NORMAL:-CTYPE-ALL:+CTYPE-RAWPK";
    for priority in [certificate, bare] {
        let (is_connected, text) = gnutls(&gateway, "thing001", priority, CONNACK);
        assert!(is_connected, "{priority}: {text}");
        assert!(text.contains("Raw Public Key") || priority == certificate, "{text}");
    }
    let (is_connected, text) = gnutls(&gateway, "stranger", bare, CONNACK);
    assert!(!is_connected, "{text}");
    gateway.wait_for_reason("unknown_key");
    // A client without a raw public key, or one that does not send it.
    gateway.pki.device("thing001");
    let certificate = finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "a", "-m", "b"]));
    assert!(!certificate.status.success());
    gateway.wait_for_reason("unknown_key");
    // The key is removed: its session ends, and the device cannot connect again.
    let connected = || broker.log().matches(" as thing001").count();
    let before = connected();
    std::thread::scope(|scope| {
        // Never printed: wait until the gateway ends the connection.
        let session = scope.spawn(|| gnutls(&gateway, "thing001", bare, b"\xff\xff\xff\xff"));
        eventually("the session", || (connected() > before).then_some(()));
        fs::write(gateway.dir().join("keys.txt"), "# none\n").unwrap();
        session.join().unwrap()
    });
    gateway.wait_for_reason("session_credential_withdrawn");
    let (is_connected, _) = gnutls(&gateway, "thing001", bare, CONNACK);
    assert!(!is_connected);
}
