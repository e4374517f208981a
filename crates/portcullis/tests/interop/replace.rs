//! The process is replaced, and sockets are passed to it: SIGUSR2, and socket activation by systemd's own program.

use std::fs;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portcullis_testkit::Pki;

use crate::processes::{
    ADMIT, Gateway, Launch, Mosquitto, Process, command, eventually, finish, free_port, installed, output_at_exit,
    upstream, wait_for_port,
};

/// The process that has replaced another one, which the test has to end.
struct Successor(u32);

impl Drop for Successor {
    fn drop(&mut self) {
        signal(self.0, "KILL");
    }
}

fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Whether the process runs.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// The numbers of the processes of these messages in the gateway's log.
fn pids(gateway: &Gateway, message: &str) -> Vec<u32> {
    let is_it = |line: &&str| line.contains(&format!("\"message\":\"{message}\""));
    let log = gateway.own_log();
    let pid = |line: &str| line.split_once("\"pid\":")?.1.split(['}', ',']).next()?.parse().ok();
    log.lines().filter(is_it).filter_map(pid).collect()
}

/// Sends SIGUSR2, and waits until another process serves.
fn replace(gateway: &Gateway) -> Successor {
    let before = pids(gateway, "another process serves in place of this one").len();
    gateway.process.signal("USR2");
    let pids = eventually("the new process", || {
        let pids = pids(gateway, "another process serves in place of this one");
        (pids.len() > before).then_some(pids)
    });
    Successor(*pids.last().unwrap())
}

#[test]
fn a_new_process_takes_over_without_a_failed_connect_and_without_a_lost_message() {
    const MESSAGES: usize = 60;
    let broker = Mosquitto::start();
    let gateway = Launch::new(Arc::default(), &format!("{ADMIT}{}", upstream(broker.port)))
        .replace("drain_timeout = \"500ms\"", "drain_timeout = \"10s\"\ndrain_pace = \"2/s\"")
        .start();
    let pki = &gateway.pki;
    pki.device("sub");
    let subscriber = Command::new(installed("venv/bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/replace_paho.py"))
        .args([&gateway.address.port().to_string(), &MESSAGES.to_string()])
        .args([pki.root().as_os_str(), pki.chain("sub").as_os_str(), pki.key("sub").as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the subscription", || broker.log().contains("Sending SUBACK to sub").then_some(()));
    // Who is connected already, and sends nothing, stays with the old process for a while.
    let publish = |number: usize| {
        let message = number.to_string();
        let options = ["-t", "replace/1", "-q", "1", "-m", &message];
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(options))
    };
    for number in 0..5 {
        assert!(publish(number).status.success());
    }
    let first = gateway.process.0.id();
    let is_replaced = AtomicBool::new(false);
    let successor = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut after = 0;
            for number in 5..MESSAGES {
                let output = publish(number);
                assert!(output.status.success(), "{number}: {output:?}");
                after += usize::from(is_replaced.load(Ordering::Acquire));
            }
            after
        });
        let successor = replace(&gateway);
        is_replaced.store(true, Ordering::Release);
        let after = publishing.join().unwrap();
        assert!(after > 0, "the replacement was over before all were published");
        successor
    });
    let output = output_at_exit(subscriber);
    assert!(output.ends_with("all\n") && !output.contains("refused"), "{output}");
    assert_eq!(output.matches("connected").count(), 2, "its session was ended, and resumed: {output}");
    eventually("the end of the old process", || (!runs(first)).then_some(()));
    assert!(runs(successor.0));
    // The new one serves as the old one did: its own signals, metrics on the same address, and the same access log.
    assert!(publish(0).status.success());
    assert!(gateway.admin_get("/readyz").contains("200 OK"));
    signal(successor.0, "HUP");
    eventually("the reload", || gateway.own_log().contains("\"message\":\"reloaded\"").then_some(()));
    signal(successor.0, "TERM");
    eventually("the end of the new process", || (!runs(successor.0)).then_some(()));
    assert!(TcpStream::connect(gateway.address).is_err(), "nobody listens");
    let lines = gateway.lines(MESSAGES + 2);
    assert_eq!(lines.iter().filter(|line| line.ends_with(" drained")).count(), 1, "{lines:#?}");
}

#[test]
fn a_process_that_does_not_start_leaves_the_old_one_serving() {
    let broker = Mosquitto::start();
    let gateway = Gateway::start(broker.port);
    let publish = || {
        finish(gateway.mosquitto("mosquitto_pub", "thing001", "thing001").args(["-t", "t", "-m", "x"])).status.success()
    };
    let configuration = fs::read_to_string(gateway.config()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = format!("{}:{}", "127.0.0.1", taken.local_addr().unwrap().port());
    for (wrong, why) in [
        ("[[listener]".to_owned(), "exit status: 78"),
        // It has taken the sockets already when it fails.
        (
            configuration.replace(
                "bind = \"127.0.0.1:0\"\nupstream",
                &format!("bind = [\"127.0.0.1:0\", \"{other}\"]\nupstream"),
            ),
            "exit status: 1",
        ),
    ] {
        assert_ne!(wrong, configuration);
        fs::write(gateway.config(), wrong).unwrap();
        gateway.process.signal("USR2");
        eventually(why, || {
            let log = gateway.own_log();
            log.lines()
                .any(|line| line.contains("does not serve, this one goes on") && line.contains(why))
                .then_some(())
        });
        assert!(publish());
    }
    // The next attempt succeeds.
    fs::write(gateway.config(), configuration).unwrap();
    let successor = replace(&gateway);
    assert!(publish());
    assert!(runs(successor.0));
}

#[test]
fn mqtt_5_clients_are_told_where_to_go_and_unix_sockets_pass_to_the_new_process() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mqtt.sock");
    let tables = format!(
        "[[listener]]\nname = \"local\"\nprotocol = \"tcp\"\nbind = \"unix:{}\"\nupstream = \"brokers\"\n{}",
        socket.display(),
        upstream(broker.port)
    );
    let mut gateway = Launch::new(Arc::default(), &tables)
        .replace(
            "drain_timeout = \"500ms\"",
            "drain_timeout = \"20s\"\ndrain_pace = \"100/s\"\ndrain_reason = \"server_moved\"\ndrain_reference = \"b.example.com:8883\"",
        )
        .start_with_sockets(1);
    let through_socket = || {
        let options = ["--unix", socket.to_str().unwrap(), "-i", "local", "-t", "t", "-m", "x", "-q", "1"];
        finish(command("mosquitto_pub").args(options)).status.success()
    };
    let subscriber = gateway
        .mosquitto("mosquitto_sub", "sub", "sub")
        .args(["-V", "mqttv5", "-t", "test/#", "-d", "-W", "20"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the subscription", || broker.log().contains("Sending SUBACK to sub").then_some(()));
    assert!(through_socket());
    let successor = replace(&gateway);
    assert!(through_socket());
    assert_eq!(gateway.process.exit_code(), Some(0));
    let output = output_at_exit(subscriber).to_lowercase();
    assert!(output.contains("received disconnect (157)"), "0x9D, server moved: {output}");
    assert!(through_socket(), "the old process has left the file");
    signal(successor.0, "TERM");
    eventually("the end of the new process", || (!runs(successor.0)).then_some(()));
    assert!(!socket.exists(), "the last process removes it");
}

/// A gateway over QUIC whose sessions have time.
fn quic(broker: &Mosquitto) -> Gateway {
    Launch::new(Arc::default(), &format!("{ADMIT}{}", upstream(broker.port)))
        .listener("protocol = \"quic\"\n")
        .replace("drain_timeout = \"500ms\"", "drain_timeout = \"20s\"")
        .start()
}

/// A client over QUIC. With `hold`, it waits for this file once it is connected.
fn quic_client(gateway: &Gateway, device: &str, hold: Option<&Path>) -> Command {
    gateway.pki.device(device);
    let mut command = Command::new(installed("venv/bin/python"));
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/quic_aioquic.py"))
        .args([&gateway.address.port().to_string(), device])
        .args([gateway.pki.root(), gateway.pki.chain(device), gateway.pki.key(device)])
        .envs(hold.map(|path| ("HOLD", path)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn has_received(client: &mut Command) -> bool {
    let output = finish(client);
    String::from_utf8_lossy(&output.stdout).contains("received hello")
}

#[test]
fn sessions_over_quic_stay_with_the_old_process_and_new_ones_reach_the_new_one() {
    let broker = Mosquitto::start();
    let mut gateway = quic(&broker);
    let go_on = gateway.dir().join("go_on");
    let before = quic_client(&gateway, "thing001", Some(&go_on)).spawn().unwrap();
    eventually("the first session", || broker.log().contains("as thing001").then_some(()));
    let successor = replace(&gateway);
    // The new process reads the socket, and passes on what is not its own.
    assert!(has_received(&mut quic_client(&gateway, "thing002", None)));
    assert!(gateway.process.0.try_wait().unwrap().is_none(), "the old process has a session");
    // That session would be lost with the next one.
    signal(successor.0, "USR2");
    eventually("the refusal", || gateway.own_log().contains("still has sessions over QUIC").then_some(()));
    fs::write(&go_on, "").unwrap();
    let output = output_at_exit(before);
    assert!(output.starts_with("connected\nreceived hello\n"), "{output}");
    // Its last session has ended, and so does it.
    assert_eq!(gateway.process.exit_code(), Some(0));
    assert!(has_received(&mut quic_client(&gateway, "thing003", None)));
    assert!(runs(successor.0));
    let lines = gateway.lines(3);
    assert!(lines.iter().all(|line| line.ends_with(" ok")), "{lines:#?}");
}

#[test]
fn sessions_over_quic_go_on_if_the_new_process_has_no_listener_for_them() {
    let broker = Mosquitto::start();
    let gateway = quic(&broker);
    let go_on = gateway.dir().join("go_on");
    let before = quic_client(&gateway, "thing001", Some(&go_on)).spawn().unwrap();
    eventually("the session", || broker.log().contains("as thing001").then_some(()));
    let configuration = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), configuration.replace("\"quic\"", "\"tls\"")).unwrap();
    let _successor = replace(&gateway);
    eventually("the warning", || gateway.own_log().contains("an inherited socket is closed").then_some(()));
    fs::write(&go_on, "").unwrap();
    let output = output_at_exit(before);
    assert!(output.starts_with("connected\nreceived hello\n"), "{output}");
}

/// A gateway on inherited sockets, as systemd starts it.
fn activate(dir: &Path, configuration: &str, options: &[&str]) -> Process {
    fs::write(dir.join("portcullis.toml"), configuration).unwrap();
    let child = command("systemd-socket-activate")
        .args(options)
        .args([env!("CARGO_BIN_EXE_portcullis"), "run", "-c"])
        .arg(dir.join("portcullis.toml"))
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .spawn();
    Process(child.unwrap())
}

#[test]
fn sockets_of_systemd_are_matched_by_address() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let (port, unused, path) = (free_port(), free_port(), dir.path().join("x.sock"));
    let listener = |name: &str, bind: &str| {
        format!("[[listener]]\nname = \"{name}\"\nprotocol = \"tcp\"\nbind = \"{bind}\"\nupstream = \"brokers\"\n")
    };
    let configuration = format!(
        "[runtime]\nlog_format = \"json\"\n{}{}{}",
        listener("tcp", &format!("127.0.0.1:{port}")),
        listener("unix", &format!("unix:{}", path.display())),
        upstream(broker.port)
    );
    let (tcp, other) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{unused}"));
    let mut process = activate(dir.path(), &configuration, &["-l", &other, "-l", path.to_str().unwrap(), "-l", &tcp]);
    // systemd listens, and starts the gateway for the first connection, which is served.
    wait_for_port(port);
    let publish = |options: &[&str]| {
        finish(command("mosquitto_pub").args(options).args(["-i", "x", "-t", "t", "-m", "x", "-q", "1"]))
            .status
            .success()
    };
    assert!(publish(&["-h", "127.0.0.1", "-p", &port.to_string()]));
    assert!(publish(&["--unix", path.to_str().unwrap()]));
    eventually("the warning", || {
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        let warns = |line: &str| line.contains("an inherited socket is closed") && line.contains(&other);
        log.lines().any(warns).then_some(())
    });
    process.signal("TERM");
    assert_eq!(process.exit_code(), Some(0));
    assert!(path.exists(), "the file is systemd's");
}

#[test]
fn what_is_not_a_listening_socket_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let configuration = format!(
        "[[listener]]\nname = \"a\"\nprotocol = \"tcp\"\nbind = \"127.0.0.1:{}\"\nupstream = \"brokers\"\n{}",
        free_port(),
        upstream(free_port())
    );
    fs::write(dir.path().join("portcullis.toml"), configuration).unwrap();
    let datagram = UnixDatagram::bind(dir.path().join("datagram")).unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    for (descriptor, why) in [(OwnedFd::from(datagram), "neither TCP nor"), (stream.into(), "does not listen")] {
        let output = finish_with_descriptor(dir.path(), descriptor);
        assert!(output.contains("descriptor 3 of LISTEN_FDS cannot be used") && output.contains(why), "{output}");
        assert!(output.contains("hint: LISTEN_FDS is set by systemd's socket units"), "{output}");
    }
}

/// Starts a gateway with this as descriptor 3, and returns what it prints until it ends.
fn finish_with_descriptor(dir: &Path, descriptor: OwnedFd) -> String {
    let child: Child = Command::new("sh")
        .args([
            "-c",
            "exec env LISTEN_FDS=1 LISTEN_PID=$$ \"$0\" run -c \"$1\" 3<&0 </dev/null",
            env!("CARGO_BIN_EXE_portcullis"),
        ])
        .arg(dir.join("portcullis.toml"))
        .stdin(Stdio::from(descriptor))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    output_at_exit(child)
}

#[test]
fn the_service_manager_is_told_what_the_gateway_does() {
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let receive = || {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let pki: Arc<Pki> = Arc::default();
    let gateway = Launch::new(pki, &format!("{ADMIT}{}", upstream(broker.port))).env("NOTIFY_SOCKET", &path).start();
    assert_eq!(receive(), "READY=1\n");
    gateway.process.signal("HUP");
    let reloading = receive();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(receive(), "READY=1\n");
    let successor = replace(&gateway);
    assert_eq!(receive(), format!("MAINPID={}\n", successor.0));
    signal(successor.0, "TERM");
    assert_eq!(receive(), "STOPPING=1\n");
}
