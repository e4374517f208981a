//! The device registry: the command, with both kinds of database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis_registry::{Registry, Url};
use portcullis_testkit::Pki;
use tempfile::TempDir;

use crate::processes::{Gateway, Launch, Mosquitto, Process, command, eventually, finish, free_port, upstream};

/// The documented bound until a change takes effect.
const BOUND: Duration = Duration::from_secs(5);

/// Runs `portcullis device`.
fn device(database: &str, arguments: &[&str]) -> Output {
    finish(
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("device")
            .args(arguments)
            .env("PORTCULLIS_DATABASE", database),
    )
}

/// Runs `portcullis device` and asserts that it succeeds. Returns its standard output.
fn device_ok(database: &str, arguments: &[&str]) -> String {
    let output = device(database, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sets the pre-shared key of a device. Returns the key.
fn psk(database: &str, id: &str) -> String {
    let output = device_ok(database, &["psk", id]);
    output.lines().find_map(|line| line.strip_prefix("key: ")).unwrap().to_owned()
}

const ADMIT: &str = "[listener.admit]\nrequire = ['mqtt.client_id == device.id']\n";

/// A listener with the pre-shared keys of a registry.
fn gateway(database: &str, broker: u16) -> Gateway {
    let rest = format!(
        "{ADMIT}[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"${{FILE:database}}\"\n{}",
        upstream(broker)
    );
    Launch::new(Arc::default(), &rest)
        .file("database", database)
        .tls_table("[listener.tls]\n[listener.tls.psk]\nregistry = true\n")
        .start()
}

fn publish(gateway: &Gateway, id: &str, key: &str) -> bool {
    let mut command = gateway.client("mosquitto_pub", id);
    finish(command.args(["--psk", key, "--psk-identity", id, "-q", "1", "-t", "t", "-m", "m"])).status.success()
}

/// A subscriber that stays connected.
fn live(gateway: &Gateway, broker: &Mosquitto, id: &str, key: &str) -> Process {
    let mut command = gateway.client("mosquitto_sub", id);
    let child = command.args(["--psk", key, "--psk-identity", id, "-t", "x"]).stderr(Stdio::null()).spawn().unwrap();
    eventually("the session", || broker.log().contains(&format!("Sending SUBACK to {id}")).then_some(()));
    Process(child)
}

/// Waits for an access line with this reason. Returns how long it took.
fn ended(gateway: &Gateway, begin: Instant, id: &str, reason: &str) -> Duration {
    eventually(&format!("{reason} of {id}"), || {
        gateway.lines(1).iter().any(|line| line.ends_with(&format!(" {id} {reason}"))).then(|| begin.elapsed())
    })
}

/// The tests that every kind of database must pass.
fn a_fleet_by_the_command(database: &str) {
    let broker = Mosquitto::start();
    device_ok(database, &["add", "thing001", "--group", "pumps", "--attribute", "site=lyon", "--attribute", "floor=3"]);
    let again = device(database, &["add", "thing001"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already"), "{again:?}");
    let key = psk(database, "thing001");
    let gateway = gateway(database, broker.port);
    assert!(publish(&gateway, "thing001", &key));
    // A device added while the gateway runs.
    device_ok(database, &["add", "thing002"]);
    let second = psk(database, "thing002");
    let begin = Instant::now();
    eventually("the new device", || publish(&gateway, "thing002", &second).then_some(()));
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    // Removing what the session relies on ends it.
    for (arguments, reason) in [
        (&["disable", "thing002"][..], "session_device_disabled"),
        (&["ban", "thing002", "--for", "1h"], "session_device_banned"),
        (&["psk", "thing002"], "session_credential_withdrawn"),
    ] {
        device_ok(database, &["enable", "thing002"]);
        let key = psk(database, "thing002");
        eventually("the device is admitted again", || publish(&gateway, "thing002", &key).then_some(()));
        let before = broker.log().matches("Sending SUBACK to thing002").count();
        let mut command = gateway.client("mosquitto_sub", "thing002");
        let child =
            command.args(["--psk", &key, "--psk-identity", "thing002", "-t", "x"]).stderr(Stdio::null()).spawn();
        let _session = Process(child.unwrap());
        eventually("the session", || {
            (broker.log().matches("Sending SUBACK to thing002").count() > before).then_some(())
        });
        let begin = Instant::now();
        device_ok(database, arguments);
        let took = ended(&gateway, begin, "thing002", reason);
        println!("{arguments:?}: its session ended after {took:?}");
        assert!(took < BOUND, "{reason}: {took:?}");
    }
    device_ok(database, &["remove", "thing002"]);
    eventually("the device to be rejected", || (!publish(&gateway, "thing002", &second)).then_some(()));
    assert_eq!(device_ok(database, &["list"]).lines().count(), 1);
    let shown = device_ok(database, &["show", "thing001", "--json"]);
    assert!(shown.contains("\"floor\":3") && shown.contains("\"site\":\"lyon\"") && !shown.contains(&key), "{shown}");
    assert!(!gateway.own_log().contains(&key));
}

#[test]
fn a_fleet_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    a_fleet_by_the_command(&format!("sqlite:{}", dir.path().join("devices.db").display()));
}

/// Neither the revision nor SQLite's own counter of changes tells the copy from the original.
#[test]
fn a_copy_with_as_many_changes_that_cp_puts_in_place_ends_the_sessions_it_does_not_admit() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Mosquitto::start());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (database, copy) = (format!("sqlite:{}", path("devices.db")), format!("sqlite:{}", path("copy.db")));
    for id in ["thing001", "thing002", "seen"] {
        device_ok(&database, &["add", id]);
    }
    let (first, second, seen) = (psk(&database, "thing001"), psk(&database, "thing002"), psk(&database, "seen"));
    fs::copy(path("devices.db"), path("copy.db")).unwrap();
    let gateway = gateway(&database, broker.port);
    let _first = live(&gateway, &broker, "thing001", &first);
    // The gateway has read these changes: SQLite has the pages in its cache.
    for (change, is_admitted) in [("disable", false), ("enable", true)] {
        device_ok(&database, &[change, "seen"]);
        eventually(change, || (publish(&gateway, "seen", &seen) == is_admitted).then_some(()));
    }
    for id in ["thing001", "thing002"] {
        device_ok(&copy, &["disable", id]);
    }
    let begin = Instant::now();
    assert!(Command::new("cp").args([path("copy.db"), path("devices.db")]).status().unwrap().success());
    ended(&gateway, begin, "thing001", "session_device_disabled");
    assert!(!publish(&gateway, "thing002", &second));
    assert!(publish(&gateway, "seen", &seen));
}

#[test]
fn devices_are_imported_from_csv_and_prove_themselves_in_each_way() {
    let (dir, broker, pki) = (tempfile::tempdir().unwrap(), Mosquitto::start(), Arc::new(Pki::new()));
    let database = format!("sqlite:{}", dir.path().join("devices.db").display());
    let csv = dir.path().join("devices.csv");
    fs::write(
        &csv,
        "id,groups,site,psk,password,state\nthing001,pumps;north,lyon,,wonderland,\nthing002,,\"a, b\",00112233445566778899aabbccddeeff,,\nthing003,,,,secret,disabled\n",
    )
    .unwrap();
    let csv = csv.to_str().unwrap();
    assert_eq!(device_ok(&database, &["import", csv]), "imported 3 of 3 devices\n");
    let again = device(&database, &["import", csv]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--existing"), "{again:?}");
    assert_eq!(device_ok(&database, &["import", csv, "--existing", "skip"]), "imported 0 of 3 devices\n");
    assert_eq!(
        device_ok(&database, &["list", "--group", "north"]),
        "thing001\tenabled\tpassword\tnorth,pumps\n".replace("north,pumps", "pumps,north")
    );
    assert_eq!(device_ok(&database, &["list", "--state", "disabled"]), "thing003\tdisabled\tpassword\t-\n");
    for wrong in ["name\nx\n", "id,psk\na,0011\n", "id,psk\na,xyz\n", "id\na\na\n", "id,state\na,perhaps\n"] {
        let path = dir.path().join("wrong.csv");
        fs::write(&path, wrong).unwrap();
        let output = device(&database, &["import", path.to_str().unwrap()]);
        assert!(
            !output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("xyz"),
            "{wrong}: {output:?}"
        );
    }
    pki.device("pinned");
    device_ok(&database, &["add", "pinned"]);
    device_ok(&database, &["pin", "pinned", "--certificate", pki.chain("pinned").to_str().unwrap()]);
    let rest = format!(
        "{ADMIT}[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"{database}\"\n{}",
        upstream(broker.port)
    );
    let gateway = Launch::new(Arc::clone(&pki), &rest)
        .listener("authenticate = [\"fleet\"]\n")
        .tls("client_auth = \"optional\"\n")
        .start();
    let by_password = |id: &str, password: &str| {
        let mut command = gateway.client("mosquitto_pub", id);
        command.args(["--cafile".as_ref(), pki.root().as_os_str()]);
        finish(command.args(["-u", id, "-P", password, "-t", "t", "-m", "m"])).status.success()
    };
    assert!(by_password("thing001", "wonderland"));
    assert!(!by_password("thing001", "secret") && !by_password("thing003", "secret") && !by_password("pinned", ""));
    let pinned = finish(gateway.mosquitto("mosquitto_pub", "pinned", "pinned").args(["-t", "t", "-m", "m"]));
    assert!(pinned.status.success(), "{pinned:?}");
    let lines = gateway.lines(5);
    let mut reasons: Vec<&str> = lines.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["bad_credentials", "bad_credentials", "device_disabled", "ok", "ok"]);
}

/// Debian's PostgreSQL, in a temporary directory.
struct Postgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    fn start() -> Self {
        command("pg_ctlcluster");
        let versions = fs::read_dir("/usr/lib/postgresql").expect("postgresql is not installed: run ./test.sh");
        let bin = versions.map(|entry| entry.unwrap().path().join("bin")).find(|bin| bin.join("postgres").exists());
        let dir = tempfile::tempdir().unwrap();
        let mut this = Self { bin: bin.unwrap(), dir, port: free_port(), process: None };
        fs::create_dir(this.data()).unwrap();
        let password = this.dir.path().join("password");
        fs::write(&password, "s3cret\n").unwrap();
        let chown = format!(
            "chown -R postgres {} 2>/dev/null || true; chmod 755 {}",
            this.dir.path().display(),
            this.dir.path().display()
        );
        finish(Command::new("sh").args(["-c", &chown]));
        let init = this
            .run("initdb", &["-A", "scram-sha-256", "-U", "fleet", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(this.data())
            .output()
            .unwrap();
        assert!(init.status.success(), "{init:?}");
        this.restart();
        this
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Prepares a PostgreSQL program, which refuses to run as root.
    fn run(&self, program: &str, arguments: &[&str]) -> Command {
        let is_root = finish(Command::new("id").arg("-u")).stdout == b"0\n";
        let program = self.bin.join(program);
        let mut command = if is_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments).current_dir(self.dir.path());
        command
    }

    fn restart(&mut self) {
        let child: Child = self
            .run(
                "postgres",
                &["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c"],
            )
            .arg(format!("unix_socket_directories={}", self.data().display()))
            .arg("-D")
            .arg(self.data())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(Process(child));
        eventually("PostgreSQL", || {
            let ready = self.run("pg_isready", &["-h", "127.0.0.1", "-p", &self.port.to_string()]).output().unwrap();
            ready.status.success().then_some(())
        });
    }

    fn url(&self) -> String {
        format!("postgres://fleet:s3cret@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops the server without closing its connections, as if its machine had failed.
    fn kill(&mut self) {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        let children = format!("kill -9 {pid} $(ps -o pid= --ppid {pid})");
        finish(Command::new("sh").args(["-c", &children]));
        self.process = None;
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if Path::new(&self.data().join("postmaster.pid")).exists() {
            self.kill();
        }
    }
}

#[test]
fn a_fleet_in_postgresql() {
    let postgres = Postgres::start();
    a_fleet_by_the_command(&postgres.url());
}

#[test]
fn postgresql_says_at_once_that_something_has_changed() {
    let postgres = Postgres::start();
    let url = postgres.url();
    device_ok(&url, &["add", "thing001"]);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let registry = Registry::connect_lazy(&Url::parse(&url, str::to_owned).unwrap()).unwrap();
        let mut listening = registry.listen().await.unwrap().unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(300), listening.changed()).await;
        assert!(nothing.is_err(), "no device has changed");
        device_ok(&url, &["disable", "thing001"]);
        tokio::time::timeout(Duration::from_secs(5), listening.changed()).await.unwrap().unwrap();
    });
}

/// The operations of the command that the other tests do not cover.
#[test]
fn keys_and_passwords_are_given_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", dir.path().join("devices.db").display());
    let piped = |input: &str, arguments: &str| {
        let script = format!("printf '{input}' | {} device {arguments}", env!("CARGO_BIN_EXE_portcullis"));
        let output = finish(Command::new("sh").args(["-c", &script]).env("PORTCULLIS_DATABASE", &database));
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let key = "0b".repeat(16);
    assert_eq!(piped("id,rack\nthing001,012\n", "import -"), "imported 1 of 1 devices\n");
    assert_eq!(piped(&format!("{key}\n"), "psk thing001 --stdin --identity pump"), "identity: pump\n");
    piped("secret\n", "password thing001");
    let pin = "0c".repeat(32);
    device_ok(&database, &["pin", "thing001", "--fingerprint", &pin]);
    let shown = device_ok(&database, &["list", "--json"]);
    for part in ["\"psk_identity\":\"pump\"", "\"has_password\":true", "\"rack\":\"012\"", &pin] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains(&key) && !shown.contains("argon2"), "{shown}");
    // The configuration takes precedence over the environment.
    let config = dir.path().join("portcullis.toml");
    let table = "[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"sqlite:devices.db\"\n";
    fs::write(&config, table).unwrap();
    let by_config = device_ok("sqlite:elsewhere.db", &["list", "-c", config.to_str().unwrap()]);
    assert_eq!(by_config, "thing001\tenabled\tpin,psk,password\t-\n");
    device_ok(&database, &["psk", "thing001", "--remove"]);
    device_ok(&database, &["password", "thing001", "--remove"]);
    device_ok(&database, &["pin", "thing001", "--remove", &pin]);
    assert_eq!(device_ok(&database, &["list"]), "thing001\tenabled\t-\t-\n");
    // An import is atomic.
    fs::write(dir.path().join("twice.csv"), format!("id,pins\na,{pin}\nb,{pin}\n")).unwrap();
    let twice = device(&database, &["import", dir.path().join("twice.csv").to_str().unwrap()]);
    assert!(!twice.status.success(), "{twice:?}");
    assert_eq!(device_ok(&database, &["list"]).lines().count(), 1);
    // A ban expires, so a disabled device cannot be banned.
    device_ok(&database, &["disable", "thing001"]);
    assert!(!device(&database, &["ban", "thing001", "--for", "1h"]).status.success());
    fs::write(dir.path().join("new.csv"), "id,rack\nthing001,9\n").unwrap();
    let new = dir.path().join("new.csv");
    device_ok(&database, &["import", new.to_str().unwrap(), "--existing", "replace"]);
    assert!(device_ok(&database, &["show", "thing001"]).contains("rack = \"9\""));
}

#[test]
fn two_gateways_share_postgresql_and_live_through_its_death() {
    let (mut postgres, broker) = (Postgres::start(), Mosquitto::start());
    let url = postgres.url();
    device_ok(&url, &["add", "thing001"]);
    device_ok(&url, &["add", "thing002"]);
    let (key, other) = (psk(&url, "thing001"), psk(&url, "thing002"));
    let (one, two) = (gateway(&url, broker.port), gateway(&url, broker.port));
    let sessions = [live(&one, &broker, "thing001", &key), live(&two, &broker, "thing002", &other)];
    // A change takes effect in both gateways, which the database notifies.
    for (gateway, id) in [(&one, "thing001"), (&two, "thing002")] {
        let begin = Instant::now();
        device_ok(&url, &["disable", id]);
        let took = ended(gateway, begin, id, "session_device_disabled");
        println!("{id}: its session ended after {took:?}");
        assert!(took < BOUND, "{took:?}");
        device_ok(&url, &["enable", id]);
    }
    // These clients would reconnect and take over sessions with the same client ID.
    drop(sessions);
    let both = [(&one, "thing001", &key), (&two, "thing002", &other)];
    for (gateway, id, key) in both {
        eventually("the device is admitted again", || publish(gateway, id, key).then_some(()));
    }
    // The database is killed during connects: no connect of a known device fails.
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (gateway, id, key) in both {
            let (stop, count) = (&stop, &count);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    assert!(publish(gateway, id, key), "a known device was rejected: {:?}", gateway.lines(1).last());
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        postgres.kill();
        std::thread::sleep(Duration::from_secs(5));
        stop.store(true, Ordering::SeqCst);
    });
    println!("{} connects around the death of the database", count.load(Ordering::SeqCst));
    assert!(count.load(Ordering::SeqCst) > 2);
    eventually("the outage in the log", || one.own_log().contains("device registry unavailable").then_some(()));
    assert!(!one.own_log().contains("s3cret"), "{}", one.own_log());
    // An unknown device may be a new one, as the log reports; the device sees the same as with a wrong key.
    assert!(!publish(&one, "stranger", &key));
    one.wait_for_reason("registry_unavailable");
    // The database is back, and changes take effect again.
    postgres.restart();
    device_ok(&url, &["disable", "thing001"]);
    for gateway in [&one, &two] {
        eventually("the change after the outage", || (!publish(gateway, "thing001", &key)).then_some(()));
    }
}

#[test]
fn who_is_unknown_in_an_outage_is_told_to_come_later() {
    let (mut postgres, broker, pki) = (Postgres::start(), Mosquitto::start(), Arc::new(Pki::new()));
    let url = postgres.url();
    device_ok(&url, &["add", "thing001"]);
    let password =
        format!("printf 'secret\\n' | {} device password thing001 --database {url}", env!("CARGO_BIN_EXE_portcullis"));
    assert!(finish(Command::new("sh").args(["-c", &password])).status.success());
    let rest = format!(
        "{ADMIT}[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"${{FILE:database}}\"\n{}",
        upstream(broker.port)
    );
    let gateway = Launch::new(Arc::clone(&pki), &rest)
        .listener("authenticate = [\"fleet\"]\n")
        .tls_table(&pki.listener_tls_without_ca())
        .file("database", &url)
        .start();
    let attempt = |id: &str| {
        let mut command = gateway.client("mosquitto_pub", id);
        command.args(["--cafile".as_ref(), pki.root().as_os_str()]);
        finish(command.args(["-u", id, "-P", "secret", "-t", "t", "-m", "m"])).status.success()
    };
    assert!(attempt("thing001") && !attempt("thing002"));
    gateway.wait_for_reason("unknown_client");
    let up = "portcullis_registry_up{authenticator=\"fleet\"}";
    let metrics = gateway.admin_get("/metrics");
    assert!(
        metrics.contains(&format!("{up} 1"))
            && metrics.contains("portcullis_registry_devices{authenticator=\"fleet\"} 1")
    );
    postgres.kill();
    eventually("the outage in the metrics", || {
        gateway.admin_get("/metrics").contains(&format!("{up} 0")).then_some(())
    });
    eventually("the outage is noticed", || gateway.own_log().contains("device registry unavailable").then_some(()));
    assert!(attempt("thing001") && !attempt("thing002"));
    gateway.wait_for_reason("registry_unavailable");
}
