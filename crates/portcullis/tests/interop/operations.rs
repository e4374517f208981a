//! Operation: reload, drain, metrics, and the loss of a broker.

use std::fs;
use std::net::TcpStream;
use std::process::Stdio;

use crate::processes::{Gateway, Mosquitto, Process, eventually, finish, output_at_exit, subscriber};

#[test]
fn sighup_reloads_without_dropping_a_session_and_a_bad_file_changes_nothing() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let subscriber = subscriber(&gateway, &|| broker.log(), &[], "sub");
    let configuration = fs::read_to_string(gateway.config()).unwrap();
    let publish = |client_id| {
        finish(gateway.mosquitto("mosquitto_pub", "thing001", client_id).args(["-t", "other", "-m", "x"]))
            .status
            .success()
    };

    fs::write(gateway.config(), configuration.replace("cert.subject.cn'", "cert.subject.common_name'")).unwrap();
    gateway.process.signal("HUP");
    eventually("the failed reload", || {
        gateway.own_log().contains("reload failed, the current configuration stays active").then_some(())
    });
    assert!(gateway.own_log().contains("portcullis.toml:10:"), "it says where: {}", gateway.own_log());
    assert!(publish("thing001") && !publish("BADTHING"));

    fs::write(gateway.config(), configuration.replace("== cert.subject.cn'", "== \"x\" + cert.subject.cn'")).unwrap();
    gateway.process.signal("HUP");
    eventually("the reload", || gateway.own_log().contains("\"message\":\"reloaded\"").then_some(()));
    assert!(!publish("thing001") && publish("xthing001"));
    assert!(gateway.admin_get("/metrics").contains("portcullis_reloads_total{result=\"ok\"} 1"));
    assert!(gateway.admin_get("/metrics").contains("portcullis_reloads_total{result=\"failed\"} 1"));

    // The earlier subscriber is still connected.
    let published =
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "xthing001").args(["-t", "test/1", "-m", "still here"]));
    assert!(published.status.success());
    let received = subscriber.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&received.stdout), "test/1 still here\n");
}

#[test]
fn sigterm_drains_with_a_deadline_and_tells_mqtt_5_clients() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port);
    let subscriber = gateway
        .mosquitto("mosquitto_sub", "sub", "sub")
        .args(["-V", "mqttv5", "-t", "test/#", "-d", "-W", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the subscription", || broker.log().contains("Sending SUBACK to sub").then_some(()));
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.exit_code(), Some(0));
    let line = gateway.lines(1).remove(0);
    assert!(line.ends_with(" sub drained"), "{line}");
    let output = output_at_exit(subscriber);
    assert!(output.to_lowercase().contains("received disconnect (139)"), "0x8B, server shutting down: {output}");
}

#[test]
fn logrotate_gets_a_new_access_log() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port);
    let publish = || {
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"]));
        gateway.lines(1)
    };
    let rotate = |name: &str| fs::rename(gateway.dir().join("access.log"), gateway.dir().join(name)).unwrap();
    publish();
    rotate("access.log.1");
    gateway.process.signal("USR1");
    eventually("the new log", || gateway.dir().join("access.log").exists().then_some(()));
    publish();
    // Also by a reload whose configuration has an error.
    fs::write(gateway.config(), "[[listener]").unwrap();
    rotate("access.log.2");
    gateway.process.signal("HUP");
    eventually("the new log", || gateway.dir().join("access.log").exists().then_some(()));
    publish();
    gateway.process.signal("QUIT");
    assert_eq!(gateway.process.exit_code(), Some(0));
    assert!(gateway.own_log().contains("\"message\":\"draining\""));
}

#[test]
fn signals_for_a_gateway_that_runs_do_not_end_one_that_starts() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("portcullis.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let log = dir.path().join("log");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["run", "-c"])
        .arg(&pipe)
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn();
    let mut gateway = Process(child.unwrap());
    let configuration = "[runtime]\nworker_threads = 1\nlog_format = \"json\"\n[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\nprotocol = \"tcp\"\n\
                         upstream = \"b\"\n[[upstream]]\nname = \"b\"\nservers = [\"127.0.0.1:1\"]\nhealth = { mode = \"off\" }\n";
    // Opened once the gateway reads it.
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    for name in ["USR1", "USR2", "HUP"] {
        gateway.signal(name);
    }
    std::io::Write::write_all(&mut writer, configuration.as_bytes()).unwrap();
    drop(writer);
    let has_logged = |text: &str| fs::read_to_string(&log).unwrap().contains(text).then_some(());
    eventually("the start", || has_logged("ready"));
    // The reload reads it again.
    fs::write(&pipe, configuration).unwrap();
    eventually("the reload", || has_logged("reloaded"));
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(0));
    // The warnings of the start are JSON, too.
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("does not authenticate clients"), "{text}");
    for line in text.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn a_drain_goes_on_until_a_second_signal_which_stops_at_once() {
    let broker = Mosquitto::start();
    let mut gateway = Gateway::start(broker.port);
    // One session ends at once, the other one a minute later.
    let _subscribers = ["sub", "other"].map(|name| Process(subscriber(&gateway, &|| broker.log(), &[], name)));
    let configuration = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), configuration.replace("\"500ms\"", "\"10m\"\ndrain_pace = \"1/m\"")).unwrap();
    gateway.process.signal("HUP");
    eventually("the reload", || gateway.own_log().contains("\"message\":\"reloaded\"").then_some(()));
    gateway.process.signal("INT");
    eventually("the drain", || gateway.own_log().contains("\"message\":\"draining\"").then_some(()));
    // A drain may take hours, in which logs are rotated.
    let log = || gateway.dir().join("access.log");
    for (name, text) in [("USR1", "access log opened again"), ("HUP", "a gateway that drains takes no other")] {
        fs::rename(log(), gateway.dir().join("rotated")).unwrap();
        gateway.process.signal(name);
        eventually(text, || (gateway.own_log().contains(text) && log().exists()).then_some(()));
    }
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.exit_code(), Some(0));
}

#[test]
fn a_broker_that_dies_takes_no_gateway_with_it() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let publish = || finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"]));
    assert!(publish().status.success());
    let mut session = subscriber(&gateway, &|| broker.log(), &[], "sub");
    let port = broker.kill();
    let _ = session.kill();
    session.wait().unwrap();
    let refused = publish();
    let output = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(!refused.status.success() && output.contains("unavailable"), "{output}");
    assert!(gateway.lines(3)[2].ends_with(" - thing001 upstream_unreachable"), "{:#?}", gateway.lines(3));
    let _broker = Mosquitto::on(port);
    assert!(publish().status.success());
}

#[test]
fn metrics_count_what_happened() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    assert!(gateway.admin_get("/livez").starts_with("HTTP/1.1 200"));
    assert!(gateway.admin_get("/readyz").starts_with("HTTP/1.1 200"));
    finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"]));
    finish(gateway.mosquitto("mosquitto_pub", "thing001", "BADTHING").args(["-t", "t", "-m", "x"]));
    gateway.lines(2);
    let metrics = gateway.admin_get("/metrics");
    let server = format!("upstream=\"brokers\",server=\"127.0.0.1:{}\"", broker.port);
    for line in [
        "portcullis_connections_total{listener=\"devices\",reason=\"ok\"} 1".to_owned(),
        "portcullis_connections_total{listener=\"devices\",reason=\"identity_mismatch\"} 1".to_owned(),
        "portcullis_connections_active{listener=\"devices\"} 0".to_owned(),
        "portcullis_tls_handshakes_total{listener=\"devices\",kind=\"full\"} 2".to_owned(),
        "portcullis_tls_handshakes_total{listener=\"devices\",kind=\"resumed\"} 0".to_owned(),
        "portcullis_tls_handshake_duration_seconds_count{listener=\"devices\"} 2".to_owned(),
        "portcullis_certificate_expiry_timestamp_seconds{owner=\"devices\",role=\"server\"} 1".to_owned(),
        "portcullis_certificate_expiry_timestamp_seconds{owner=\"devices\",role=\"client_ca\"} 2".to_owned(),
        format!("portcullis_upstream_up{{{server}}} 1"),
        format!("portcullis_upstream_connections_active{{{server}}} 0"),
        format!("portcullis_upstream_connects_total{{{server},result=\"ok\"}} 1"),
        "portcullis_received_bytes_total{listener=\"devices\"} ".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} in:\n{metrics}");
    }
    assert!(!metrics.contains("thing001") && !metrics.contains("BADTHING"), "no label that a client chose");
}

#[test]
fn metrics_say_which_certificates_are_connected() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let _child = Process(subscriber(&gateway, &|| broker.log(), &[], "thing001"));
    let metrics = gateway.admin_get("/metrics");
    for metric in [
        "portcullis_device_certificates{issuer=\"CN=Test intermediate\"} 1",
        "portcullis_device_certificates_expiring{days=\"7\"} 0",
        "portcullis_device_certificates_expiring{days=\"90\"} 1",
    ] {
        assert!(metrics.contains(metric), "{metric} in\n{metrics}");
    }
}

#[test]
fn a_thousand_silent_connections_cost_little_memory() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let status = |field: &str| {
        let status = fs::read_to_string(format!("/proc/{}/status", gateway.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let resident = || status("VmRSS:") * 1024;
    let (before, descriptors) = (resident(), status("FDSize:"));
    let silent: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    eventually("the connections", || {
        gateway.admin_get("/metrics").contains("portcullis_connections_active{listener=\"devices\"} 1000").then_some(())
    });
    let each = resident().saturating_sub(before) / 1000;
    assert!(each < 32 << 10, "{each} bytes for a connection that says nothing");
    assert_eq!(status("FDSize:"), descriptors, "accepting stops while the kernel's table of descriptors grows");
    // Other clients are not affected.
    let published = finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"]));
    assert!(published.status.success(), "{published:?}");
    drop(silent);
    assert_eq!(gateway.lines(1001).iter().filter(|line| line.contains("- - handshake_")).count(), 1000);
}
