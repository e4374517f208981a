//! Listeners that inspect packets, in front of mosquitto: real clients behave as with mosquitto alone, and see denials as their
//! protocol expresses them.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use portcullis_testkit::Pki;

use crate::processes::{Gateway, Launch, Mosquitto, command, eventually, finish, finish_within, installed, upstream};

/// Longer than any of the scripts takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything is allowed, but `$`-topics other than the broker's own.
const OPEN: &str = "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"#\", \"$SYS/#\", \"$TopicA/#\"]\n\
                    subscribe = [\"#\", \"$SYS/#\", \"$TopicA/#\"]\n";
const DENIALS: &str = "[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\neffect = \"deny\"\n\
                       publish = [\"+/denied/#\"]\nsubscribe = [\"+/denied/#\"]\n[[topic_policy.rule]]\n\
                       publish = [\"#\"]\nsubscribe = [\"+/ok/#\"]\n";

/// A listener without TLS.
fn plain(broker: &Mosquitto, listener: &str, rest: &str) -> Gateway {
    Launch::new(Arc::new(Pki::new()), &format!("{rest}{}", upstream(broker.port)))
        .listener(&format!("protocol = \"tcp\"\n{listener}\n"))
        .tls_table("")
        .start()
}

fn with_mountpoint(broker: &Mosquitto) -> Gateway {
    plain(broker, "topics = \"p\"\nmountpoint = 'tenants/acme/'", OPEN)
}

/// The same over TCP, and over WebSocket.
fn over_both(broker: &Mosquitto) -> [(&'static str, Gateway); 2] {
    let listener = "protocol = \"ws\"\ntopics = \"p\"\nmountpoint = 'tenants/acme/'\n";
    let over_websocket = Launch::new(Arc::new(Pki::new()), &format!("{OPEN}{}", upstream(broker.port)));
    [("tcp", with_mountpoint(broker)), ("websockets", over_websocket.listener(listener).tls_table("").start())]
}

fn passes(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn script(name: &str) -> String {
    format!("{}/tests/interop/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn python(name: &str, port: u16, transport: &str, options: &[&str]) -> Output {
    let mut python = Command::new(installed("venv/bin/python"));
    python.env("TRANSPORT", transport);
    finish_within(PATIENCE, python.arg(script(name)).args(["127.0.0.1", &port.to_string()]).args(options))
}

#[test]
fn paho_flows_behind_a_mountpoint() {
    let broker = Mosquitto::start();
    for (transport, gateway) in over_both(&broker) {
        passes(&python("packets_paho.py", gateway.address.port(), transport, &[]));
    }
}

#[test]
fn mosquitto_clients_behind_a_mountpoint() {
    let broker = Mosquitto::start();
    let gateway = with_mountpoint(&broker);
    passes(&python("packets_mosquitto.py", gateway.address.port(), "tcp", &[]));
}

#[test]
fn mqtt_js_behind_a_mountpoint() {
    let broker = Mosquitto::start();
    for (transport, gateway) in over_both(&broker) {
        let mut node = command("node");
        node.env("NODE_PATH", installed("node_modules")).env("TRANSPORT", transport).arg(script("packets_mqttjs.mjs"));
        passes(&finish_within(PATIENCE, node.args(["127.0.0.1", &gateway.address.port().to_string()])));
    }
}

#[test]
fn paho_sees_denials_and_goes_on() {
    let broker = Mosquitto::start();
    let gateway = plain(&broker, "topics = \"p\"", DENIALS);
    let witness = format!("127.0.0.1:{}", broker.port);
    passes(&python("denials_paho.py", gateway.address.port(), "tcp", &["--broker", &witness]));
}

#[test]
fn rumqttc_in_both_versions_behind_a_mountpoint() {
    const MESSAGES: usize = 200;
    let broker = Mosquitto::start();
    let gateway = with_mountpoint(&broker);
    let port = gateway.address.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for qos in [0, 1, 2] {
            let received = tokio::time::timeout(PATIENCE, rumqttc_v4(port, qos, MESSAGES)).await.unwrap();
            assert!(received.into_iter().eq(0..MESSAGES), "MQTT 3.1.1, QoS {qos}");
            let received = tokio::time::timeout(PATIENCE, rumqttc_v5(port, qos, MESSAGES)).await.unwrap();
            assert!(received.into_iter().eq(0..MESSAGES), "MQTT 5, QoS {qos}");
        }
    });
}

/// Publishes numbers to itself; returns those that it receives.
async fn rumqttc_v4(port: u16, qos: u8, messages: usize) -> Vec<usize> {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, qos as qos_of};
    let qos = qos_of(qos).unwrap();
    let mut options = MqttOptions::new(format!("rumqttc-4-{qos:?}"), "127.0.0.1", port);
    // mosquitto takes part in 20 exchanges at once.
    options.set_inflight(15);
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("numbers", qos).await.unwrap();
    let mut received = Vec::new();
    while received.len() < messages {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::SubAck(_)) => {
                let client = client.clone();
                tokio::spawn(async move {
                    for number in 0..messages {
                        client.publish("numbers", qos, false, number.to_string()).await.unwrap();
                    }
                });
            }
            Event::Incoming(Packet::Publish(message)) => {
                received.push(String::from_utf8(message.payload.to_vec()).unwrap().parse().unwrap());
            }
            _ => {}
        }
    }
    received
}

/// The same with topic aliases.
async fn rumqttc_v5(port: u16, qos: u8, messages: usize) -> Vec<usize> {
    use rumqttc::v5::mqttbytes::qos as qos_of;
    use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let qos = qos_of(qos).unwrap();
    let mut options = MqttOptions::new(format!("rumqttc-5-{qos:?}"), "127.0.0.1", port);
    options.set_outgoing_inflight_upper_limit(15);
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("numbers", qos).await.unwrap();
    let mut received = Vec::new();
    while received.len() < messages {
        match events.poll().await.unwrap() {
            Event::Incoming(Packet::SubAck(_)) => {
                let client = client.clone();
                tokio::spawn(async move {
                    for number in 0..messages {
                        let properties = PublishProperties { topic_alias: Some(1), ..PublishProperties::default() };
                        let topic = if number == 0 { "numbers" } else { "" };
                        let payload = number.to_string();
                        client.publish_with_properties(topic, qos, false, payload, properties).await.unwrap();
                    }
                });
            }
            Event::Incoming(Packet::Publish(message)) => {
                received.push(String::from_utf8(message.payload.to_vec()).unwrap().parse().unwrap());
            }
            _ => {}
        }
    }
    received
}

#[test]
fn a_tenant_publishes_into_its_own_space_and_others_see_who_it_was() {
    let broker = Mosquitto::start();
    let stamps = "[listener.publish]\nuser_properties = { publisher = 'mqtt.client_id' }\n";
    let gateway = plain(&broker, "mountpoint = 'tenants/acme/'", stamps);
    let subscriber = command("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-V", "5", "-t", "tenants/#", "-C", "1", "-W", "20"])
        .args(["-F", "%t %P %p", "-i", "observer"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a subscriber", || broker.log().contains("observer 0 tenants/#").then_some(()));
    let published = finish(
        command("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &gateway.address.port().to_string(), "-V", "5", "-i", "pump-7", "-q", "1"])
            .args(["-t", "level", "-m", "42", "-D", "publish", "user-property", "publisher", "somebody-else"]),
    );
    assert!(published.status.success(), "{published:?}");
    let received = subscriber.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&received.stdout), "tenants/acme/level publisher:pump-7 42\n");
}

#[test]
fn mosquitto_pub_and_sub_report_what_is_denied() {
    let broker = Mosquitto::start();
    let gateway = plain(&broker, "topics = \"p\"", DENIALS);
    let port = gateway.address.port().to_string();
    let publish = |version: &str, qos: &str, topic: &str| {
        let mut publish = command("mosquitto_pub");
        publish.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-q", qos, "-t", topic, "-m", "x"]);
        let output = finish(&mut publish);
        String::from_utf8(output.stderr).unwrap()
    };
    for (version, told) in [("311", ""), ("5", "Not authorized")] {
        for qos in ["1", "2"] {
            assert!(publish(version, qos, "a/denied/x").contains(told), "{version} {qos}");
            assert_eq!(publish(version, qos, "a/ok/x"), "", "{version} {qos}");
        }
        publish(version, "0", "a/denied/x");
    }
    let log = broker.log();
    assert!(log.contains("a/ok/x") && !log.contains("a/denied"), "nothing denied reaches the broker");
    for (version, codes) in [("311", "Subscribed (mid: 1): 0, 128, 0"), ("5", "Subscribed (mid: 1): 0, 135, 0")] {
        let mut subscribe = command("mosquitto_sub");
        subscribe.args(["-h", "127.0.0.1", "-p", &port, "-V", version, "-d", "-E"]);
        let output = finish(subscribe.args(["-t", "a/ok/1", "-t", "a/denied/1", "-t", "a/ok/2"]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(codes), "{version}: {text}");
    }
}
