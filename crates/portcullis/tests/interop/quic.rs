//! MQTT over QUIC with two clients that share no code with the gateway's own stack of MQTT: flowsdk of EMQX, and a script on
//! aioquic, which is another stack of QUIC.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use portcullis_testkit::Pki;

use crate::processes::{ADMIT, Gateway, Launch, Mosquitto, finish, installed, upstream};

fn start(broker: &Mosquitto) -> Gateway {
    let pki: Arc<Pki> = Arc::default();
    Launch::new(pki, &format!("{ADMIT}{}", upstream(broker.port))).listener("protocol = \"quic\"\n").start()
}

/// What a client prints that connects with the certificate of a device, or without one.
fn run(client: &str, gateway: &Gateway, client_id: &str, device: Option<&str>) -> String {
    let mut command = match client {
        "flowsdk" => Command::new(installed("flowsdk/debug/flowsdk-client")),
        _ => {
            let mut python = Command::new(installed("venv/bin/python"));
            python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/quic_aioquic.py"));
            python
        }
    };
    let identity: Vec<PathBuf> = device.map_or(Vec::new(), |device| {
        gateway.pki.device(device);
        vec![gateway.pki.chain(device), gateway.pki.key(device)]
    });
    command.args([&gateway.address.port().to_string(), client_id]).arg(gateway.pki.root()).args(identity);
    let output = finish(&mut command);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn clients_of_others_publish_receive_and_are_rejected() {
    let broker = Mosquitto::start();
    for client in ["flowsdk", "aioquic"] {
        let gateway = start(&broker);
        let output = run(client, &gateway, "thing001", Some("thing001"));
        assert!(output.contains("received hello"), "{client}: {output}");
        let line = gateway.lines(1).remove(0);
        assert!(line.contains(" QUIC ") && line.ends_with(" thing001 ok"), "{client}: {line}");
        for (client_id, device, reason) in
            [("other", Some("thing001"), "identity_mismatch"), ("thing001", None, "no_certificate")]
        {
            let output = run(client, &gateway, client_id, device);
            assert!(!output.contains("received"), "{client}: {output}");
            gateway.wait_for_reason(reason);
        }
    }
    let log = broker.log();
    assert!(log.contains("CN=thing001"), "the user name comes from the certificate: {log}");
}
