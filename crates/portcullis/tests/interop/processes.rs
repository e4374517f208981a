//! Processes that a test starts: brokers, the gateway and clients. They are killed when the test ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portcullis_testkit::Pki;
use tempfile::TempDir;

/// The deadline of everything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `check` until it returns a value, and panics after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begin.elapsed() < PATIENCE, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is killed when the test ends.
pub(crate) struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Sends the signal with this name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the process exits by itself. Returns its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually("the end of a process", || self.0.try_wait().unwrap()).code()
    }
}

/// Prepares a command. Panics with a hint if the program is not installed.
pub(crate) fn command(program: &str) -> Command {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    assert!(found.status.success(), "{program} is not installed: run ./test.sh, which installs what the tests need");
    Command::new(program)
}

/// Runs a command until it exits. Panics after [`PATIENCE`].
pub(crate) fn finish(command: &mut Command) -> Output {
    finish_within(PATIENCE, command)
}

/// Runs a command until it exits. Panics after this time.
pub(crate) fn finish_within(patience: Duration, command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    output_within(patience, &name, child)
}

/// Waits until a client that the gateway has disconnected exits by itself: a client that is killed may not have written yet
/// what it was told. Returns its standard output and error together.
pub(crate) fn output_at_exit(client: Child) -> String {
    let output = output_within(PATIENCE, "a client that was disconnected", client);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn output_within(patience: Duration, name: &str, mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > patience {
            let _ = child.kill();
            panic!("timed out: {name}: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Runs a program interactively: writes `input` once it has printed `ready`, and waits until it has printed `until` or has
/// exited. Returns whether it printed `until`, and its whole output.
pub(crate) fn converse(command: &mut Command, ready: &[u8], input: &[u8], until: &[u8]) -> (bool, String) {
    let pipe = Stdio::piped;
    let mut process = Process(command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap());
    let output: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (stdout, stderr) = (process.0.stdout.take().unwrap(), process.0.stderr.take().unwrap());
    let collect = |mut from: Box<dyn Read + Send>| {
        let output = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                output.lock().unwrap().extend(&buffer[..read]);
            }
        })
    };
    let collectors = [collect(Box::new(stdout)), collect(Box::new(stderr))];
    let wait_for = |process: &mut Process, what: &[u8]| {
        let begin = Instant::now();
        loop {
            // Checked before the output, so that output printed right before the exit counts.
            let has_ended = process.0.try_wait().unwrap().is_some() && collectors.iter().all(JoinHandle::is_finished);
            let has_printed =
                what.is_empty() || output.lock().unwrap().windows(what.len()).any(|window| window == what);
            if has_printed || has_ended || begin.elapsed() > PATIENCE {
                return has_printed;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut stdin = process.0.stdin.take().unwrap();
    if wait_for(&mut process, ready) {
        // The write fails if the process has exited.
        let _ = stdin.write_all(input);
    }
    let has_printed = wait_for(&mut process, until);
    drop(stdin);
    let _ = process.0.kill();
    let _ = process.0.wait();
    let text = String::from_utf8_lossy(&output.lock().unwrap()).into_owned();
    (has_printed, text)
}

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for_port(port: u16) {
    eventually("a port to open", || TcpStream::connect(("127.0.0.1", port)).ok());
}

/// A path in the directory into which `./test.sh` installs Python and Node.js packages.
pub(crate) fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop").join(path);
    assert!(path.exists(), "{} does not exist: run ./test.sh, which installs what the tests need", path.display());
    path
}

/// A mosquitto broker that logs everything.
pub(crate) struct Mosquitto {
    process: Process,
    dir: TempDir,
    pub(crate) port: u16,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        Self::on(free_port())
    }

    pub(crate) fn on(port: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config =
            format!("listener {port} 127.0.0.1\nallow_anonymous true\nlog_type all\nlog_dest stderr\nuser root\n");
        fs::write(dir.path().join("m.conf"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process = command("mosquitto")
            .arg("-c")
            .arg(dir.path().join("m.conf"))
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .unwrap();
        let this = Self { process: Process(process), dir, port };
        wait_for_port(port);
        this
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn kill(mut self) -> u16 {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
        self.port
    }
}

/// The built binary, as `portcullis run`.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    dir: TempDir,
    pub(crate) pki: Arc<Pki>,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A gateway to be started, and its configuration.
pub(crate) struct Launch {
    dir: TempDir,
    pki: Arc<Pki>,
    /// Additional keys of `[[listener]]`.
    listener: String,
    /// Replaces the `[listener.tls]` table with mutual TLS.
    tls_table: Option<String>,
    tls: String,
    rest: String,
    replaced: Vec<(String, String)>,
    environment: Vec<(&'static str, PathBuf)>,
    open_files: Option<u32>,
}

impl Launch {
    /// A listener with mutual TLS; `rest` follows its `[listener.tls]`.
    pub(crate) fn new(pki: Arc<Pki>, rest: &str) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            pki,
            listener: String::new(),
            tls_table: None,
            tls: String::new(),
            rest: rest.to_owned(),
            replaced: Vec::new(),
            environment: Vec::new(),
            open_files: None,
        }
    }

    /// Adds keys to `[[listener]]`.
    pub(crate) fn listener(mut self, text: &str) -> Self {
        self.listener += text;
        self
    }

    /// Replaces the `[listener.tls]` table with mutual TLS by this text.
    pub(crate) fn tls_table(mut self, text: &str) -> Self {
        self.tls_table = Some(text.to_owned());
        self
    }

    /// Adds to `[listener.tls]`.
    pub(crate) fn tls(mut self, text: &str) -> Self {
        self.tls += text;
        self
    }

    /// Replaces the server's certificate and key in the configuration.
    pub(crate) fn server(mut self, chain: &Path, key: &str) -> Self {
        self.replaced.push((format!("{:?}", self.pki.chain("localhost")), format!("{chain:?}")));
        self.replaced.push((format!("{:?}", self.pki.key("localhost")), format!("{key:?}")));
        self
    }

    /// Replaces a text of the configuration. Panics if it does not occur.
    pub(crate) fn replace(mut self, from: &str, to: &str) -> Self {
        self.replaced.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Writes a file next to the configuration.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: &Path) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Sets the limit of open files.
    pub(crate) fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    pub(crate) fn start(self) -> Gateway {
        self.start_with_sockets(0)
    }

    /// With so many Unix sockets besides the listener's address.
    pub(crate) fn start_with_sockets(self, unix: usize) -> Gateway {
        let Self { dir, pki, listener, tls_table, tls, rest, replaced, environment, open_files } = self;
        let mut configuration = format!(
            "[[listener]]\nname = \"devices\"\nbind = \"127.0.0.1:0\"\nupstream = \"brokers\"\n{listener}{}{tls}{rest}\n\
             [access_log]\npath = \"access.log\"\n[admin]\nbind = \"127.0.0.1:0\"\n\
             [runtime]\nlog_format = \"json\"\ndrain_timeout = \"500ms\"\n",
            tls_table.unwrap_or_else(|| pki.listener_tls())
        );
        for (from, to) in replaced {
            assert!(configuration.contains(&from), "{from} in {configuration}");
            configuration = configuration.replace(&from, &to);
        }
        let path = dir.path().join("portcullis.toml");
        fs::write(&path, configuration).unwrap();
        let limit = open_files.map(|limit| format!("ulimit -n {limit}; ")).unwrap_or_default();
        let mut process = Command::new("sh")
            .args(["-c", &format!("{limit}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_portcullis"), "run", "-c"])
            .arg(&path)
            .envs(environment)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let process = Process(process);
        let (mut addresses, mut output, mut sockets) = (Vec::new(), String::new(), 0);
        for line in lines.by_ref().map(Result::unwrap) {
            if let Some((_, rest)) = line.split_once("\"address\":\"") {
                addresses.extend(rest.split('"').next().unwrap().parse::<SocketAddr>());
                sockets += 1;
            }
            output += &format!("{line}\n");
            if line.contains("\"message\":\"ready\"") {
                break;
            }
        }
        // The gateway logs the address of the admin interface before that of the listener.
        assert_eq!((addresses.len(), sockets), (2, 2 + unix), "admin interface and listeners:\n{output}");
        let mut log = File::create(dir.path().join("own.log")).unwrap();
        log.write_all(output.as_bytes()).unwrap();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = log.write_all((line + "\n").as_bytes());
            }
        });
        Gateway { process, dir, pki, admin: addresses[0], address: addresses[1] }
    }
}

/// An `[[upstream]]` with one server, without health checks.
pub(crate) fn upstream(broker: u16) -> String {
    format!(
        "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:{broker}\"]\nhealth = {{ mode = \"off\" }}\n\
         fail_timeout = \"200ms\"\n"
    )
}

pub(crate) const ADMIT: &str = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n\
                         [listener.connect]\nusername = 'cert.subject.dn'\n";

impl Gateway {
    /// Starts a gateway with mutual TLS in front of a broker on this port.
    pub(crate) fn start(broker: u16) -> Self {
        Self::with(&format!("{ADMIT}{}", upstream(broker)))
    }

    /// A listener with mutual TLS; `rest` follows its `[listener.tls]`.
    pub(crate) fn with(rest: &str) -> Self {
        Launch::new(Arc::default(), rest).start()
    }

    pub(crate) fn own_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("own.log")).unwrap_or_default()
    }

    /// The directory of the configuration.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("portcullis.toml")
    }

    /// Waits until the access log has at least `count` lines, and returns them.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} access lines"), || {
            let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    }

    /// A mosquitto client for this gateway, with the certificate of a device.
    pub(crate) fn mosquitto(&self, program: &str, device: &str, client_id: &str) -> Command {
        self.pki.device(device);
        let mut command = command(program);
        command
            .args(["-h", "localhost", "-p", &self.address.port().to_string(), "-i", client_id])
            .args(["--cafile".as_ref(), self.pki.root().as_os_str()])
            .args(["--cert".as_ref(), self.pki.chain(device).as_os_str()])
            .args(["--key".as_ref(), self.pki.key(device).as_os_str()]);
        command
    }

    /// A mosquitto client for this gateway, without TLS options: the test adds its own.
    pub(crate) fn client(&self, program: &str, client_id: &str) -> Command {
        let mut command = command(program);
        command.args(["-h", "localhost", "-p", &self.address.port().to_string(), "-i", client_id]);
        command
    }

    /// Waits for this many access lines, and returns the reason of the last.
    pub(crate) fn reason(&self, lines: usize) -> String {
        self.lines(lines)[lines - 1].rsplit(' ').next().unwrap().to_owned()
    }

    /// Waits for an access line with this reason. The lines of different connections may have any order.
    pub(crate) fn wait_for_reason(&self, reason: &str) {
        let end = format!(" {reason}");
        let is_logged = || self.lines(1).iter().any(|line| line.ends_with(&end));
        eventually(&format!("{reason} in the access log"), || is_logged().then_some(()));
    }

    /// Requests a path of the admin interface. Returns the whole response.
    pub(crate) fn admin_get(&self, path: &str) -> String {
        let mut http = TcpStream::connect(self.admin).unwrap();
        write!(http, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        http.read_to_string(&mut response).unwrap();
        response
    }
}

/// Starts a subscriber that exits after one message. Returns once the broker has acknowledged the subscription.
pub(crate) fn subscriber(gateway: &Gateway, broker: &dyn Fn() -> String, options: &[&str], device: &str) -> Child {
    let child = gateway
        .mosquitto("mosquitto_sub", device, device)
        .args(["-t", "test/#", "-v", "-C", "1", "-W", "20"])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the subscription", || broker().contains(&format!("Sending SUBACK to {device}")).then_some(()));
    child
}
