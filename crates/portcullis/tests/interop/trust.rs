//! Revocation, stapling and resumption, with OpenSSL and a plain web server as peers; what testssl finds.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_pki::{Init, Purpose, Request};
use portcullis_testkit::Pki;

use crate::processes::{
    ADMIT, Gateway, Launch, Mosquitto, Process, command, eventually, finish, finish_within, free_port, output_at_exit,
    subscriber, wait_for_port,
};

/// The documented bound: two seconds until the gateway notices a file, five until the session ends.
const BOUND: Duration = Duration::from_secs(7);

pub(crate) fn upstream(broker: &Mosquitto) -> String {
    format!(
        "{ADMIT}[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:{}\"]\nhealth = {{ mode = \"off\" }}\n",
        broker.port
    )
}

fn publish(gateway: &Gateway, device: &str) -> Output {
    finish(gateway.mosquitto("mosquitto_pub", device, device).args(["-t", "t", "-m", "m"]))
}

#[test]
fn a_connected_mosquitto_client_ends_when_its_certificate_is_revoked() {
    let broker = Mosquitto::start();
    let pki = Arc::new(Pki::new());
    let crl = format!("crl = [{:?}]\n", pki.crls());
    let gateway = Launch::new(pki, &upstream(&broker)).tls(&crl).start();
    assert!(publish(&gateway, "thing002").status.success());
    for version in ["mqttv311", "mqttv5"] {
        let device = format!("thing-{version}");
        let child = subscriber(&gateway, &|| broker.log(), &["-V", version, "-d"], &device);
        let begin = Instant::now();
        gateway.pki.revoke(&device);
        let lines = gateway.lines(if version == "mqttv311" { 2 } else { 3 });
        let took = begin.elapsed();
        println!("{version}: ended {took:?} after `pki revoke`");
        assert!(took < BOUND, "{took:?}");
        assert!(lines.last().unwrap().ends_with(" session_revoked"), "{lines:?}");
        if version == "mqttv311" {
            drop(Process(child));
        } else {
            let output = output_at_exit(child);
            assert!(output.contains("DISCONNECT"), "{output}");
        }
    }
    let refused = publish(&gateway, "thing-mqttv5");
    assert!(!refused.status.success());
    assert!(publish(&gateway, "thing002").status.success(), "other devices are still admitted");
}

/// A web server for the files of a directory, which logs each request.
fn web_server(dir: &Path) -> (Process, u16, std::path::PathBuf) {
    let port = free_port();
    let log = dir.join("http.log");
    let file = fs::File::create(&log).unwrap();
    let child = command("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
        .arg(dir)
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .unwrap();
    wait_for_port(port);
    (Process(child), port, log)
}

#[test]
fn crls_are_fetched_from_where_the_configuration_or_the_certificate_says() {
    let broker = Mosquitto::start();
    let served = tempfile::tempdir().unwrap();
    let (_web, port, log) = web_server(served.path());
    let url = format!("http://127.0.0.1:{port}");
    for configured in [true, false] {
        let pki = Pki::with(&Init { name: "Test".into(), crl_url: Some(url.clone()), ..Init::default() });
        let copy = |pki: &Pki| {
            for file in ["root.crl", "intermediate.crl"] {
                fs::copy(pki.dir().join(file), served.path().join(file)).unwrap();
            }
        };
        copy(&pki);
        let tls = if configured {
            format!("crl = [\"{url}/root.crl\", \"{url}/intermediate.crl\"]\nrevocation_refresh = \"2s\"\n")
        } else {
            "crl_distribution_points = true\nrevocation_refresh = \"2s\"\n".to_owned()
        };
        let gateway = Launch::new(Arc::new(pki), &upstream(&broker)).tls(&tls).start();
        assert!(publish(&gateway, "thing001").status.success(), "{}", gateway.own_log());
        let device = format!("held{configured}");
        let _child = Process(subscriber(&gateway, &|| broker.log(), &[], &device));
        // A reload keeps what was fetched.
        gateway.process.signal("HUP");
        eventually("the reload", || gateway.own_log().contains("\"reloaded\"").then_some(()));
        // Unchanged content is not sent again.
        let not_modified = || fs::read_to_string(&log).unwrap().matches(" 304 ").count();
        let before = not_modified();
        eventually("a 304", || (not_modified() > before).then_some(()));
        gateway.pki.revoke(&device);
        copy(&gateway.pki);
        assert!(gateway.lines(2)[1].ends_with(" session_revoked"), "{:?} {}", gateway.lines(2), gateway.own_log());
        assert!(!publish(&gateway, &device).status.success());
        assert!(publish(&gateway, "thing001").status.success());
        // The last good CRL stays in use.
        fs::write(served.path().join("intermediate.crl"), "nothing").unwrap();
        eventually("the complaint", || gateway.own_log().contains("keeping any earlier version").then_some(()));
        assert!(publish(&gateway, "thing001").status.success());
    }
}

#[test]
fn a_crl_is_fetched_again_when_its_time_is_over() {
    let broker = Mosquitto::start();
    let served = tempfile::tempdir().unwrap();
    let (_web, port, _) = web_server(served.path());
    let pki = Arc::new(Pki::new());
    pki.crls_until(4);
    let publish_list = || fs::copy(pki.crls(), served.path().join("all.pem")).unwrap();
    publish_list();
    let tls = format!("crl = [\"http://127.0.0.1:{port}/all.pem\"]\n");
    let gateway = Launch::new(Arc::clone(&pki), &upstream(&broker)).tls(&tls).start();
    assert!(publish(&gateway, "thing001").status.success(), "{}", gateway.own_log());
    pki.authority().crl(30).unwrap();
    publish_list();
    eventually("the next CRL", || (gateway.own_log().matches("CRL fetched").count() > 1).then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        publish(&gateway, "thing001").status.success(),
        "though every quarter of an hour would do: {}",
        gateway.own_log()
    );
}

#[test]
fn a_list_without_end_is_given_up() {
    let broker = Mosquitto::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming().take(4).map_while(Result::ok) {
            let chunk = vec![b'x'; 1 << 20];
            let mut socket = socket;
            // Read the request first: a response without a request is invalid.
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            while socket.write_all(&chunk).is_ok() {}
        }
    });
    let tls = format!("crl = [\"http://127.0.0.1:{port}/\"]\n");
    let gateway = Launch::new(Arc::default(), &upstream(&broker)).tls(&tls).start();
    // The gateway stops at 64 MiB, or on a busy machine after 15 seconds.
    let bounds = ["length limit exceeded", "timed out"];
    let begin = Instant::now();
    while !bounds.iter().any(|bound| gateway.own_log().contains(bound)) {
        assert!(begin.elapsed() < Duration::from_secs(40), "{}", gateway.own_log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// OpenSSL's responder, which reads the index once; for a PKI that names `http://127.0.0.1:PORT` in its certificates.
struct Responder(#[expect(dead_code, reason = "ends with it")] Process);

impl Responder {
    fn pki() -> (Pki, u16) {
        let port = free_port();
        let ocsp_url = Some(format!("http://127.0.0.1:{port}/"));
        let pki = Pki::with(&Init { name: "Test".into(), ocsp_url, ..Init::default() });
        let request = Request {
            name: "responder".into(),
            organization: None,
            purpose: Purpose::Ocsp,
            names: Vec::new(),
            days: 30,
        };
        pki.authority().issue(&request).unwrap();
        for device in ["thing001", "thing003", "thing004", "thing005", "thing006", "held"] {
            pki.device(device);
        }
        (pki, port)
    }

    /// Starts it with the key of this CA's responder, or of another CA's.
    fn start(pki: &Pki, signer: &Pki, port: u16) -> Self {
        Self::good_for(pki, signer, port, 5)
    }

    fn good_for(pki: &Pki, signer: &Pki, port: u16, minutes: u8) -> Self {
        let mut child = command("openssl")
            .arg("ocsp")
            .args(["-index".as_ref(), pki.dir().join("index.txt").as_os_str()])
            .args(["-CA".as_ref(), pki.dir().join("intermediate.pem").as_os_str()])
            .args(["-rsigner".as_ref(), signer.chain("responder").as_os_str()])
            .args(["-rkey".as_ref(), signer.key("responder").as_os_str()])
            .args(["-port", &port.to_string(), "-nmin", &minutes.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A connection without a request, such as a port probe, would block it forever.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        lines.by_ref().map_while(Result::ok).find(|line| line.contains("waiting")).unwrap();
        std::thread::spawn(move || lines.count());
        Self(Process(child))
    }
}

#[test]
fn openssls_responder_says_who_is_revoked() {
    let broker = Mosquitto::start();
    let (pki, port) = Responder::pki();
    pki.revoke("thing003");
    let responder = Responder::start(&pki, &pki, port);
    let tls = "ocsp = \"leaf\"\nrevocation_refresh = \"5s\"\n";
    let gateway = Launch::new(Arc::new(pki), &upstream(&broker)).tls(tls).start();
    assert!(publish(&gateway, "thing001").status.success(), "{}", gateway.own_log());
    assert!(!publish(&gateway, "thing003").status.success(), "revoked before it was first seen");
    assert!(gateway.lines(2)[1].ends_with(" certificate_revoked"), "{:?}", gateway.lines(2));
    let _child = Process(subscriber(&gateway, &|| broker.log(), &[], "held"));
    gateway.pki.revoke("held");
    drop(responder);
    let responder = Responder::start(&gateway.pki, &gateway.pki, port);
    assert!(gateway.lines(3)[2].ends_with(" session_revoked"), "checked again while the device is connected");
    assert!(!publish(&gateway, "held").status.success());
    // If a device is offline when its response is due for renewal, the gateway renews it when the device reconnects.
    assert!(publish(&gateway, "thing006").status.success());
    gateway.pki.revoke("thing006");
    drop(responder);
    let responder = Responder::start(&gateway.pki, &gateway.pki, port);
    std::thread::sleep(Duration::from_secs(6));
    assert!(!publish(&gateway, "thing006").status.success());
    // Without a responder: a device with a cached response is admitted, an unknown one is rejected.
    drop(responder);
    assert!(publish(&gateway, "thing001").status.success(), "the cached response is still valid");
    assert!(!publish(&gateway, "thing004").status.success());
    eventually("the reason", || {
        gateway.lines(1).iter().any(|line| line.ends_with(" thing004 ocsp_missing")).then_some(())
    });
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), text.replace("ocsp = \"leaf\"", "ocsp = \"leaf\"\nocsp_failure = \"allow\"")).unwrap();
    gateway.process.signal("HUP");
    eventually("the reload", || gateway.own_log().contains("\"reloaded\"").then_some(()));
    assert!(publish(&gateway, "thing005").status.success(), "soft failure");
}

#[test]
fn an_answer_that_somebody_else_signed_is_none() {
    let broker = Mosquitto::start();
    let (pki, port) = Responder::pki();
    let (impostor, _) = Responder::pki();
    let _responder = Responder::start(&pki, &impostor, port);
    let gateway = Launch::new(Arc::new(pki), &upstream(&broker)).tls("ocsp = \"leaf\"\n").start();
    assert!(!publish(&gateway, "thing001").status.success());
    assert!(gateway.lines(1)[0].ends_with(" ocsp_missing"));
    eventually("the reason", || gateway.own_log().contains("not signed by the issuer").then_some(()));
}

/// A port that accepts connections and never responds.
fn silence() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let held: Vec<_> = listener.incoming().take(64).collect();
        std::thread::sleep(Duration::from_secs(60));
        drop(held);
    });
    port
}

#[test]
fn authorities_that_are_silent_hold_up_no_handshake() {
    let broker = Mosquitto::start();
    let port = silence();
    let crl = format!("crl = [\"http://127.0.0.1:{port}/a.crl\"]\nocsp_timeout = \"1s\"\n");
    let gateway = Launch::new(Arc::default(), &upstream(&broker)).tls(&crl).start();
    let begin = Instant::now();
    assert!(!publish(&gateway, "thing001").status.success());
    assert!(gateway.lines(1)[0].ends_with(" crl_missing"));
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    for failure in ["refuse", "allow"] {
        let ocsp = format!(
            "ocsp = \"leaf\"\nocsp_responder = \"http://127.0.0.1:{port}/\"\nocsp_timeout = \"1s\"\nocsp_failure = \"{failure}\"\n"
        );
        let gateway = Launch::new(Arc::default(), &upstream(&broker)).tls(&ocsp).start();
        let begin = Instant::now();
        assert_eq!(publish(&gateway, "thing001").status.success(), failure == "allow", "{}", gateway.own_log());
        let took = begin.elapsed();
        assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
    }
}

#[test]
fn the_responder_may_be_configured_and_the_whole_chain_asked_about() {
    let broker = Mosquitto::start();
    let (pki, port) = Responder::pki();
    let plain = Pki::new();
    plain
        .authority()
        .issue(&Request {
            name: "responder".into(),
            organization: None,
            purpose: Purpose::Ocsp,
            names: Vec::new(),
            days: 30,
        })
        .unwrap();
    plain.device("thing001");
    drop(pki);
    let plain = Arc::new(plain);
    let _responder = Responder::start(&plain, &plain, port);
    for (which, is_let_in) in [("leaf", true), ("chain", false)] {
        let tls = format!("ocsp = \"{which}\"\nocsp_responder = \"http://127.0.0.1:{port}/\"\n");
        let gateway = Launch::new(Arc::clone(&plain), &upstream(&broker)).tls(&tls).start();
        // This responder does not know the certificates that the root issued.
        assert_eq!(publish(&gateway, "thing001").status.success(), is_let_in, "{which}: {}", gateway.own_log());
    }
}

#[test]
fn crls_over_https_come_from_whom_they_should() {
    let broker = Mosquitto::start();
    let (pki, port) = (Arc::new(Pki::new()), free_port());
    let script = format!(
        "import http.server, ssl, functools\n\
         handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory={:?})\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), handler)\n\
         context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
         context.load_cert_chain({:?}, {:?})\n\
         server.socket = context.wrap_socket(server.socket, server_side=True)\n\
         server.serve_forever()\n",
        pki.dir(),
        pki.chain("localhost"),
        pki.key("localhost")
    );
    let mut python = command("python3");
    let python = python.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _web = Process(python);
    wait_for_port(port);
    let tls = format!("crl = [\"https://localhost:{port}/root.crl\", \"https://localhost:{port}/intermediate.crl\"]\n");
    for is_known in [true, false] {
        let launch = Launch::new(Arc::clone(&pki), &upstream(&broker)).tls(&tls);
        // This variable replaces the system's trust anchors.
        let launch = if is_known { launch.env("SSL_CERT_FILE", &pki.root()) } else { launch };
        let gateway = launch.start();
        assert_eq!(publish(&gateway, "thing001").status.success(), is_known, "{}", gateway.own_log());
        if !is_known {
            assert!(gateway.lines(1)[0].ends_with(" crl_missing"));
            assert!(
                gateway.own_log().contains("keeping any earlier version: https://localhost"),
                "{}",
                gateway.own_log()
            );
        }
    }
}

pub(crate) fn s_client(gateway: &Gateway, pki: &Pki, device: &str, more: &[&str]) -> String {
    pki.device(device);
    let output = finish(
        command("openssl")
            .args(["s_client", "-connect", &gateway.address.to_string(), "-servername", "localhost"])
            .args(["-CAfile".as_ref(), pki.root().as_os_str()])
            .args([
                "-cert".as_ref(),
                pki.chain(device).as_os_str(),
                "-cert_chain".as_ref(),
                pki.chain(device).as_os_str(),
            ])
            .args(["-key".as_ref(), pki.key(device).as_os_str()])
            .args(more),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_servers_own_certificate_comes_with_an_answer() {
    let broker = Mosquitto::start();
    let (pki, port) = Responder::pki();
    let responder = Responder::good_for(&pki, &pki, port, 1);
    let gateway = Launch::new(Arc::new(pki), &upstream(&broker)).tls("ocsp_stapling = true\n").start();
    let status = eventually("an OCSP response", || {
        let output = s_client(&gateway, &gateway.pki, "thing001", &["-status"]);
        output.contains("OCSP Response Status: successful").then_some(output)
    });
    assert!(status.contains("Cert Status: good"), "{status}");
    drop(responder);
    // A reload keeps the staple; the gateway stops sending it before it expires.
    gateway.process.signal("HUP");
    eventually("the reload", || gateway.own_log().contains("\"reloaded\"").then_some(()));
    assert!(s_client(&gateway, &gateway.pki, "thing001", &["-status"]).contains("Cert Status: good"));
    let begin = Instant::now();
    while s_client(&gateway, &gateway.pki, "thing001", &["-status"]).contains("Cert Status: good") {
        assert!(
            begin.elapsed() < Duration::from_secs(50),
            "valid for a minute, and removed half a minute before it expires"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(begin.elapsed() > Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn gateways_with_one_ticket_secret_resume_each_others_sessions() {
    let broker = Mosquitto::start();
    let shared = Arc::new(Pki::new());
    for (versions, same) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_3", false), ("-tls1_2", false)] {
        let start = |text: &str| {
            let launch = Launch::new(Arc::clone(&shared), &upstream(&broker)).file("secret", text);
            launch.tls("ticket_secret = \"${FILE:secret}\"\n").start()
        };
        let first = start("0123456789abcdef0123456789abcdef");
        let second = start(if same { "0123456789abcdef0123456789abcdef" } else { "fedcba9876543210fedcba9876543210" });
        let session = shared.dir().join(format!("session{versions}{same}"));
        let session = session.to_str().unwrap();
        // In TLS 1.3 the ticket arrives after the handshake, so the client waits for data.
        let made = s_client(&first, &shared, "thing001", &[versions, "-sess_out", session, "-ign_eof"]);
        assert!(made.contains("New, TLSv1"), "{made}");
        let resumed = s_client(&second, &shared, "thing001", &[versions, "-sess_in", session]);
        assert_eq!(resumed.contains("Reused, TLSv1"), same, "{versions} {same}: {resumed}");
    }
}

#[test]
fn openssl_does_not_resume_once_its_certificate_is_revoked() {
    let broker = Mosquitto::start();
    for versions in ["-tls1_3", "-tls1_2"] {
        let pki = Arc::new(Pki::new());
        let crl = format!("crl = [{:?}]\n", pki.crls());
        let start = || {
            let launch =
                Launch::new(Arc::clone(&pki), &upstream(&broker)).file("secret", "0123456789abcdef0123456789abcdef");
            launch.tls(&format!("{crl}ticket_secret = \"${{FILE:secret}}\"\n")).start()
        };
        let gateway = start();
        let session = pki.dir().join("session");
        let session = session.to_str().unwrap();
        s_client(&gateway, &pki, "thing001", &[versions, "-sess_out", session, "-ign_eof"]);
        assert!(s_client(&gateway, &pki, "thing001", &[versions, "-sess_in", session]).contains("Reused, TLSv1"));
        pki.revoke("thing001");
        eventually("the list", || gateway.own_log().contains("CRL loaded").then_some(()));
        let after = s_client(&gateway, &pki, "thing001", &[versions, "-sess_in", session, "-ign_eof"]);
        assert!(!after.contains("Reused, TLSv1"), "{after}");
        eventually("the reason", || {
            gateway.lines(3).iter().any(|line| line.ends_with(" certificate_revoked")).then_some(())
        });
        // Nor with a gateway that knows the ticket's secret, and verifies its certificate for the first time.
        let other = start();
        let after = s_client(&other, &pki, "thing001", &[versions, "-sess_in", session, "-ign_eof"]);
        assert!(!after.contains("Reused, TLSv1"), "{after}");
        assert!(other.lines(1)[0].ends_with(" certificate_revoked"), "{:?}", other.lines(1));
    }
}

#[test]
fn testssl_finds_nothing_above_low() {
    let broker = Mosquitto::start();
    // The tool checks that the certificate names its revocation sources and does not expire soon.
    let url = |host: &str| Some(format!("http://{host}.example.com/"));
    let init = Init { name: "Test".into(), crl_url: url("crl"), ocsp_url: url("ocsp"), ..Init::default() };
    let pki = Arc::new(Pki::with(&init));
    let request = Request {
        name: "gw".into(),
        organization: None,
        purpose: Purpose::Server,
        names: vec!["localhost".into()],
        days: 365,
    };
    let server = pki.authority().issue(&request).unwrap();
    let launch = Launch::new(pki, &upstream(&broker)).server(&server.chain, server.key.unwrap().to_str().unwrap());
    let gateway = launch.start();
    let report = gateway.pki.dir().join("report.csv");
    let address = format!("localhost:{}", gateway.address.port());
    let output = finish_within(
        Duration::from_secs(400),
        command("testssl")
            .args(["--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1", "--openssl-timeout", "5"])
            .args(["--csvfile".as_ref(), report.as_os_str(), "--add-ca".as_ref(), gateway.pki.root().as_os_str()])
            .arg(address),
    );
    let report = fs::read_to_string(report).unwrap();
    // ID, name and address, port, severity, finding, and two more columns.
    let findings: Vec<Vec<&str>> =
        report.lines().skip(1).map(|line| line.trim_matches('"').split("\",\"").collect()).collect();
    let has = |severity: &str| findings.iter().filter(|finding| finding.get(3) == Some(&severity)).count();
    assert!(has("OK") > 30, "{output:?}\n{report}");
    for severity in ["MEDIUM", "HIGH", "CRITICAL", "FATAL"] {
        assert_eq!(has(severity), 0, "{report}");
    }
}
