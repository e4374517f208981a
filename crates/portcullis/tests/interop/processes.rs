//! Processes that a test starts, and that end with it.

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

const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again, until the answer is there.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
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
    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for it to end by itself; its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually("the end of a process", || self.0.try_wait().unwrap()).code()
    }
}

/// Starts a program that may not be installed.
pub(crate) fn command(program: &str) -> Command {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    assert!(found.status.success(), "{program} is not installed: run ./test.sh, which installs what the tests need");
    Command::new(program)
}

/// Runs a command to its end, which has to come.
pub(crate) fn finish(command: &mut Command) -> Output {
    finish_within(PATIENCE, command)
}

/// Likewise, but not too soon.
pub(crate) fn finish_within(patience: Duration, command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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

/// Talks with a program by its standard input and output: writes `input` once it has said `ready`, and waits until it has
/// said `until`, or has ended. Returns whether it has said that, and all it has said.
pub(crate) fn converse(command: &mut Command, ready: &[u8], input: &[u8], until: &[u8]) -> (bool, String) {
    let pipe = Stdio::piped;
    let mut process = Process(command.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap());
    let said: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (stdout, stderr) = (process.0.stdout.take().unwrap(), process.0.stderr.take().unwrap());
    let listen = |mut from: Box<dyn Read + Send>| {
        let said = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                said.lock().unwrap().extend(&buffer[..read]);
            }
        })
    };
    let listening = [listen(Box::new(stdout)), listen(Box::new(stderr))];
    let wait_for = |process: &mut Process, what: &[u8]| {
        let begin = Instant::now();
        loop {
            // Asked first: what it says at its end counts, too.
            let has_ended = process.0.try_wait().unwrap().is_some() && listening.iter().all(JoinHandle::is_finished);
            let has_said = what.is_empty() || said.lock().unwrap().windows(what.len()).any(|window| window == what);
            if has_said || has_ended || begin.elapsed() > PATIENCE {
                return has_said;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut stdin = process.0.stdin.take().unwrap();
    if wait_for(&mut process, ready) {
        // It may have ended.
        let _ = stdin.write_all(input);
    }
    let has_said = wait_for(&mut process, until);
    drop(stdin);
    let _ = process.0.kill();
    let _ = process.0.wait();
    let text = String::from_utf8_lossy(&said.lock().unwrap()).into_owned();
    (has_said, text)
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for_port(port: u16) {
    eventually("a port to open", || TcpStream::connect(("127.0.0.1", port)).ok());
}

/// The folder `./test.sh` installs Python's and Node's packages into.
pub(crate) fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop").join(path);
    assert!(path.exists(), "{} is not there: run ./test.sh, which installs what the tests need", path.display());
    path
}

/// A mosquitto broker that tells everything it sees.
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

/// How a gateway is to be started.
pub(crate) struct Launch {
    dir: TempDir,
    pki: Arc<Pki>,
    /// Keys of the listener itself.
    listener: String,
    /// In place of the listener's TLS table with mutual TLS.
    tls_table: Option<String>,
    tls: String,
    rest: String,
    replaced: Vec<(String, String)>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Launch {
    /// A listener with mutual TLS, and what is given behind its `[listener.tls]`.
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
        }
    }

    /// Adds keys to `[[listener]]`.
    pub(crate) fn listener(mut self, text: &str) -> Self {
        self.listener += text;
        self
    }

    /// Another table than `[listener.tls]` with mutual TLS.
    pub(crate) fn tls_table(mut self, text: &str) -> Self {
        self.tls_table = Some(text.to_owned());
        self
    }

    /// Adds to `[listener.tls]`.
    pub(crate) fn tls(mut self, text: &str) -> Self {
        self.tls += text;
        self
    }

    /// Writes this certificate and this key where those of the server would be.
    pub(crate) fn server(mut self, chain: &Path, key: &str) -> Self {
        self.replaced.push((format!("{:?}", self.pki.chain("localhost")), format!("{chain:?}")));
        self.replaced.push((format!("{:?}", self.pki.key("localhost")), format!("{key:?}")));
        self
    }

    /// Writes something else where this stands.
    pub(crate) fn replace(mut self, from: &str, to: &str) -> Self {
        self.replaced.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Puts a file beside the configuration.
    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: &Path) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    pub(crate) fn start(self) -> Gateway {
        let Self { dir, pki, listener, tls_table, tls, rest, replaced, environment } = self;
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
        let mut process = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["run", "-c"])
            .arg(&path)
            .envs(environment)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let process = Process(process);
        let (mut addresses, mut said) = (Vec::new(), String::new());
        for line in lines.by_ref().map(Result::unwrap) {
            if let Some((_, rest)) = line.split_once("\"address\":\"") {
                addresses.push(rest.split('"').next().unwrap().parse().unwrap());
            }
            said += &format!("{line}\n");
            if line.contains("\"message\":\"ready\"") {
                break;
            }
        }
        // The admin interface is announced before the listener, since it is there first.
        assert_eq!(addresses.len(), 2, "admin interface and listener:\n{said}");
        let mut log = File::create(dir.path().join("own.log")).unwrap();
        log.write_all(said.as_bytes()).unwrap();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = log.write_all((line + "\n").as_bytes());
            }
        });
        Gateway { process, dir, pki, admin: addresses[0], address: addresses[1] }
    }
}

/// An upstream of one server without health checks.
pub(crate) fn upstream(broker: u16) -> String {
    format!(
        "[[upstream]]\nname = \"brokers\"\nservers = [\"127.0.0.1:{broker}\"]\nhealth = {{ mode = \"off\" }}\n\
         fail_timeout = \"200ms\"\n"
    )
}

pub(crate) const ADMIT: &str = "[listener.admit]\nrequire = ['mqtt.client_id == cert.subject.cn']\n\
                         [listener.connect]\nusername = 'cert.subject.dn'\n";

impl Gateway {
    /// Mutual TLS in front of a broker on this port.
    pub(crate) fn start(broker: u16) -> Self {
        Self::with(&format!("{ADMIT}{}", upstream(broker)))
    }

    /// A listener with mutual TLS, and what is given behind its `[listener.tls]`.
    pub(crate) fn with(rest: &str) -> Self {
        Launch::new(Arc::default(), rest).start()
    }

    pub(crate) fn own_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("own.log")).unwrap_or_default()
    }

    /// The folder of its configuration.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("portcullis.toml")
    }

    /// The lines of the access log, once there are that many.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} access lines"), || {
            let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    }

    /// A mosquitto client that connects here with the certificate of a device.
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

    /// A mosquitto client that connects here over TLS, without a certificate or over whatever is added.
    pub(crate) fn client(&self, program: &str, client_id: &str) -> Command {
        let mut command = command(program);
        command.args(["-h", "localhost", "-p", &self.address.port().to_string(), "-i", client_id]);
        command
    }

    /// The reason on the last of so many access lines.
    pub(crate) fn reason(&self, lines: usize) -> String {
        self.lines(lines)[lines - 1].rsplit(' ').next().unwrap().to_owned()
    }

    /// Waits for an access line with this reason. The lines of two connections may come in any order.
    pub(crate) fn says(&self, reason: &str) {
        let end = format!(" {reason}");
        let is_said = || self.lines(1).iter().any(|line| line.ends_with(&end));
        eventually(&format!("{reason} in the access log"), || is_said().then_some(()));
    }

    /// What the admin interface answers.
    pub(crate) fn ask(&self, path: &str) -> String {
        let mut http = TcpStream::connect(self.admin).unwrap();
        write!(http, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        http.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// A subscriber that runs until it has seen one message; started when the broker has taken the subscription.
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
