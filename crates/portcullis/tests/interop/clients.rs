//! Third-party clients: several MQTT versions, TLS stacks and languages.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use portcullis_testkit::Pki;

use crate::processes::{ADMIT, Gateway, Launch, Mosquitto, command, eventually, finish, installed, subscriber};
use crate::trust::{s_client, upstream};

#[test]
fn mosquitto_clients_in_all_three_versions() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    for (n, version) in ["mqttv31", "mqttv311", "mqttv5"].into_iter().enumerate() {
        let subscriber = subscriber(&gateway, &|| broker.log(), &["-V", version, "-q", "2"], &format!("sub{n}"));
        let mut publish = gateway.mosquitto("mosquitto_pub", "thing001", "thing001");
        publish.args(["-V", version, "-q", "2", "-t", "test/1", "-m", version]);
        publish.args(["--will-topic", "gone", "--will-payload", "thing001"]);
        if version == "mqttv5" {
            publish.args(["-D", "connect", "user-property", "site", "a"]);
            publish.args(["-D", "will", "user-property", "b", "c"]);
        }
        let published = finish(&mut publish);
        assert!(published.status.success(), "{published:?}");
        let received = subscriber.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&received.stdout), format!("test/1 {version}\n"));
    }
    let lines = gateway.lines(6);
    assert!(lines.iter().all(|line| line.contains(" TLS 200 ")), "{lines:#?}");
    // The broker received the will and the certificate's subject, in each version.
    assert_eq!(broker.log().matches("Will message specified").count(), 3, "{}", broker.log());
    for (n, protocol) in ["p1", "p2", "p5"].into_iter().enumerate() {
        let client = format!("as sub{n} ({protocol}, c1, k60, u'CN=sub{n},O=");
        assert!(broker.log().contains(&client), "{client} in:\n{}", broker.log());
    }
}

#[test]
fn a_message_of_a_megabyte_arrives_whole() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payload");
    fs::write(&file, vec![b'x'; 1_000_000]).unwrap();
    let mut subscriber = subscriber(&gateway, &|| broker.log(), &["-q", "1"], "sub");
    let published = finish(
        gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-q", "1", "-t", "test/1", "-f"]).arg(&file),
    );
    assert!(published.status.success(), "{published:?}");
    let mut received = Vec::new();
    subscriber.stdout.take().unwrap().read_to_end(&mut received).unwrap();
    subscriber.wait().unwrap();
    assert_eq!(received.len(), "test/1 ".len() + 1_000_000 + 1);
}

#[test]
fn the_embedded_broker_serves_mosquitto_clients() {
    let gateway = Gateway::with(&format!("{ADMIT}[[upstream]]\nname = \"brokers\"\nservers = [\"embedded\"]\n"));
    for version in ["mqttv311", "mqttv5"] {
        // A retained message, so that the subscriber may connect later.
        let publish = |payload: &str| {
            let mut command = gateway.mosquitto("mosquitto_pub", "thing001", "thing001");
            finish(command.args(["-V", version, "-q", "1", "-r", "-t", "test/1", "-m", payload]))
        };
        let published = publish(version);
        assert!(published.status.success(), "{published:?}");
        let mut subscribe = gateway.mosquitto("mosquitto_sub", "thing002", "thing002");
        let received = finish(subscribe.args(["-V", version, "-q", "1", "-t", "test/#", "-v", "-C", "1", "-W", "10"]));
        assert_eq!(String::from_utf8_lossy(&received.stdout), format!("test/1 {version}\n"), "{received:?}");
    }
}

#[test]
fn paho_from_python() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    gateway.pki.device("thing001");
    let python = installed("venv/bin/python");
    let run = |client_id: &str, version: &str| {
        finish(
            Command::new(&python)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/paho_client.py"))
                .args([&gateway.address.port().to_string(), client_id, version])
                .args([gateway.pki.root(), gateway.pki.chain("thing001"), gateway.pki.key("thing001")]),
        )
    };
    for version in ["3.1.1", "5"] {
        let output = run("thing001", version);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "received hello\n", "{output:?}");
    }
    let output = run("BADTHING", "5");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused Not authorized\n", "{output:?}");
}

#[test]
fn mqtt_js_from_node() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    gateway.pki.device("thing001");
    let modules = installed("node_modules");
    let run = |client_id: &str, version: &str| {
        finish(
            command("node")
                .env("NODE_PATH", &modules)
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/mqttjs_client.js"))
                .args([&gateway.address.port().to_string(), client_id, version])
                .args([gateway.pki.root(), gateway.pki.chain("thing001"), gateway.pki.key("thing001")]),
        )
    };
    for version in ["3", "4", "5"] {
        let output = run("thing001", version);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "received hello\n", "{output:?}");
    }
    let output = run("BADTHING", "4");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused 5\n", "{output:?}");
}

#[test]
fn openssl_s_client_in_both_tls_versions() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    gateway.pki.device("thing001");
    for version in ["-tls1_2", "-tls1_3"] {
        let mut child = command("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-servername", "localhost", version, "-connect"])
            .arg(gateway.address.to_string())
            .args(["-CAfile".as_ref(), gateway.pki.root().as_os_str()])
            .args(["-cert".as_ref(), gateway.pki.chain("thing001").as_os_str()])
            .args(["-cert_chain".as_ref(), gateway.pki.chain("thing001").as_os_str()])
            .args(["-key".as_ref(), gateway.pki.key("thing001").as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // CONNECT and PINGREQ in one write; CONNACK and PINGRESP return.
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"\x10\x14\x00\x04MQTT\x04\x02\x00\x3c\x00\x08thing001\xc0\x00")
            .unwrap();
        let mut answer = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"\x20\x02\x00\x00\xd0\x00");
        drop(child.stdin.take());
        let _ = child.kill();
        let _ = child.wait();
    }
    // An obsolete TLS version.
    let old = finish(command("openssl").args([
        "s_client",
        "-tls1_1",
        "-cipher",
        "ALL:@SECLEVEL=0",
        "-connect",
        &gateway.address.to_string(),
    ]));
    assert!(!old.status.success());
    eventually("the reason in the access log", || {
        gateway.lines(3).iter().any(|line| line.ends_with(" tls_version")).then_some(())
    });
}

#[test]
fn openssl_begins_anew_where_another_cipher_suite_is_preferred() {
    let (broker, pki) = (Mosquitto::start(), Arc::new(Pki::new()));
    let gateway = |preference: &str| {
        let launch = Launch::new(Arc::clone(&pki), &upstream(&broker));
        // The client waits for so long.
        let launch = launch.listener("connect_timeout = \"1s\"\n").file("secret", "0123456789abcdef0123456789abcdef");
        launch.tls(&format!("ticket_secret = \"${{FILE:secret}}\"\ncipher_preference = \"{preference}\"\n")).start()
    };
    let (first, second) = (gateway("aes-256"), gateway("aes-128"));
    for (version, aes256, aes128) in [
        ("-tls1_3", "TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384", "TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256"),
        (
            "-tls1_2",
            "TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384",
            "TLSv1.2, Cipher is ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
    ] {
        let session = pki.dir().join(format!("session{version}"));
        let session = session.to_str().unwrap();
        // In TLS 1.3 the ticket arrives after the handshake, so the client waits for data.
        let connect = |gateway, options: &[&str]| {
            s_client(gateway, &pki, "thing001", &[&[version, "-sess_out", session, "-ign_eof"], options].concat())
        };
        let resume = |gateway| connect(gateway, &["-sess_in", session]);
        for (output, expected) in [
            (connect(&first, &[]), format!("New, {aes256}")),
            (resume(&first), format!("Reused, {aes256}")),
            (resume(&second), format!("New, {aes128}")),
            (resume(&second), format!("Reused, {aes128}")),
        ] {
            assert!(output.contains(&expected), "{expected}: {output}");
        }
    }
}
