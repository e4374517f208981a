//! MQTT over WebSocket with clients of others: MQTT.js in node and in a browser, Paho, curl.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use portcullis_testkit::Pki;

use crate::processes::{ADMIT, Gateway, Launch, Mosquitto, Process, command, finish, installed, upstream};

/// A gateway for WebSocket, over TLS with client certificates or without TLS.
fn gateway(transport: &str, broker: u16) -> Gateway {
    let listener = format!("protocol = \"{transport}\"\n");
    if transport == "wss" {
        return Launch::new(Arc::default(), &format!("{ADMIT}{}", upstream(broker))).listener(&listener).start();
    }
    let rest = format!("[listener.admit]\nrequire = ['mqtt.client_id != \"BADTHING\"']\n{}", upstream(broker));
    Launch::new(Arc::default(), &rest).listener(&listener).tls_table("").start()
}

/// Runs a client, whose program is followed by the port, the client ID, the version, and files of the PKI.
fn run(program: &mut Command, transport: &str, gateway: &Gateway, client_id: &str, version: &str) -> String {
    gateway.pki.device("thing001");
    let output = finish(
        program.env("TRANSPORT", transport).args([&gateway.address.port().to_string(), client_id, version]).args([
            gateway.pki.root(),
            gateway.pki.chain("thing001"),
            gateway.pki.key("thing001"),
        ]),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn mqtt_js_in_node_and_paho() {
    let broker = Mosquitto::start();
    for transport in ["ws", "wss"] {
        let gateway = gateway(transport, broker.port);
        let mqtt_js = |client_id, version| {
            let mut node = command("node");
            node.env("NODE_PATH", installed("node_modules"));
            node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/mqttjs_client.js"));
            run(&mut node, transport, &gateway, client_id, version)
        };
        let paho = |client_id, version| {
            let mut python = Command::new(installed("venv/bin/python"));
            python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/paho_client.py"));
            run(&mut python, transport, &gateway, client_id, version)
        };
        for version in ["3", "4", "5"] {
            assert_eq!(mqtt_js("thing001", version), "received hello\n", "{transport} {version}");
        }
        for version in ["3.1.1", "5"] {
            assert_eq!(paho("thing001", version), "received hello\n", "{transport} {version}");
        }
        assert_eq!(mqtt_js("BADTHING", "4"), "refused 5\n");
        assert_eq!(paho("BADTHING", "5"), "refused Not authorized\n");
        let line = format!(" {} 200 ", transport.to_uppercase());
        assert!(gateway.lines(7).iter().filter(|found| found.contains(&line)).count() >= 5);
    }
}

#[test]
fn curl_is_told_what_this_is() {
    let gateway = gateway("wss", 1);
    gateway.pki.device("thing001");
    let get = |path: &str| {
        let output = finish(
            command("curl")
                .args(["-s", "-i", "--http1.1", &format!("https://localhost:{}{path}", gateway.address.port())])
                .args(["--cacert".as_ref(), gateway.pki.root().as_os_str()])
                .args(["--cert".as_ref(), gateway.pki.chain("thing001").as_os_str()])
                .args(["--key".as_ref(), gateway.pki.key("thing001").as_os_str()]),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let answer = get("/mqtt");
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.ends_with("This is for MQTT over WebSocket.\n"), "{answer}");
    assert!(get("/").starts_with("HTTP/1.1 404 "));
    gateway.wait_for_reason("websocket_upgrade_failed");
}

/// A web server with a page that connects by MQTT.js, and what the page reports.
struct Page {
    _server: Process,
    port: u16,
    reports: Receiver<String>,
}

impl Page {
    fn serve(pki: &Pki, jwks: &Path) -> Self {
        let mut server = Command::new(installed("venv/bin/python"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/page_server.py"))
            .args([&pki.chain("localhost"), &pki.key("localhost"), &installed("node_modules"), jwks])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (server, port) = (Process(server), lines.next().unwrap().parse().unwrap());
        let (report, reports) = channel();
        std::thread::spawn(move || lines.try_for_each(|line| report.send(line)));
        Self { _server: server, port, reports }
    }

    /// What the page reports next.
    fn report(&self) -> String {
        self.reports.recv_timeout(Duration::from_secs(30)).expect("a report of the page")
    }
}

/// Opens a page. A browser that is dropped ends.
fn browse(url: &str, profile: &Path) -> Process {
    let options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        // The authority of the test is none of the browser's.
        "--ignore-certificate-errors",
        "--remote-debugging-port=0",
    ];
    let mut chromium = command("chromium");
    let chromium = chromium.args(options).arg(format!("--user-data-dir={}", profile.display())).arg(url);
    Process(chromium.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn a_page_in_a_browser_has_its_client_id_from_the_token_in_a_cookie() {
    let (broker, pki, dir) = (Mosquitto::start(), Arc::new(Pki::new()), tempfile::tempdir().unwrap());
    let jwks = dir.path().join("jwks.json");
    let page = Page::serve(&pki, &jwks);
    let own = format!("https://localhost:{}", page.port);
    for (origin, expected) in [(own.as_str(), true), ("https://other.example.com", false)] {
        let tls = format!(
            "[listener.tls]\ncertificate = {:?}\nprivate_key = {:?}\n[listener.websocket]\norigins = [\"{origin}\"]\n",
            pki.chain("localhost"),
            pki.key("localhost")
        );
        let rest = format!(
            "[listener.connect]\nclient_id = 'jwt.sub'\n[[authenticator]]\nname = \"pages\"\nkind = \"jwt\"\n\
             jwks = {jwks:?}\nfield = \"cookie\"\ncookie = \"sid\"\n{}",
            upstream(broker.port)
        );
        let listener = "protocol = \"wss\"\nauthenticate = [\"pages\"]\n";
        let gateway = Launch::new(Arc::clone(&pki), &rest).listener(listener).tls_table(&tls).start();
        let profile = dir.path().join(format!("profile-{expected}"));
        let _browser = browse(&format!("{own}/?port={}", gateway.address.port()), &profile);
        if expected {
            assert_eq!([page.report(), page.report()], ["connected", "received hello from Chromium"]);
            assert!(broker.log().contains("as browser7 "), "{}", broker.log());
        } else {
            assert_eq!(page.report(), "closed");
            gateway.wait_for_reason("origin_denied");
        }
    }
    let _ = fs::remove_dir_all(dir.path());
}
