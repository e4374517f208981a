//! A command that starts a proxy -> a process that listens, its CPU time and memory, its end.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::usage::{anonymous, cpu, family, peak, pss};

/// How long a proxy may take until it listens, and until it has ended.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// Standard output and standard error of a proxy, in its directory. The former is the access log of some.
const OUTPUT: &str = "output.log";
const ERRORS: &str = "errors.log";

/// A running proxy; killed when dropped.
pub(crate) struct Proxy {
    name: &'static str,
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Proxy {
    /// Starts a proxy in `dir`, and waits until it listens on `address`.
    pub(super) async fn spawn(
        name: &'static str,
        address: SocketAddr,
        dir: &Path,
        mut command: Command,
    ) -> anyhow::Result<Self> {
        let program = PathBuf::from(command.as_std().get_program());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(File::create(dir.join(OUTPUT))?).stderr(File::create(dir.join(ERRORS))?);
        let mut process = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        let listening = async {
            while TcpStream::connect(address).await.is_err() {
                if let Some(status) = process.try_wait()? {
                    bail!("{name} ended at once ({status})");
                }
                sleep(POLL).await;
            }
            Ok(())
        };
        let listening = timeout(DEADLINE, listening).await.unwrap_or_else(|_| bail!("{name} does not listen in time"));
        listening.with_context(|| format!("{name} wrote:\n{}", written(dir)))?;
        Ok(Self { name, address, process })
    }

    /// Terminates the proxy and waits until its descendants have ended too. Killing it would leave its workers running.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let family = family(self.pid()?)?;
        self.signal("TERM").await?;
        timeout(DEADLINE, self.process.wait()).await.with_context(|| format!("{} does not end", self.name))??;
        let is_running = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        let ending = async {
            while family.iter().any(is_running) {
                sleep(POLL).await;
            }
        };
        timeout(DEADLINE, ending).await.with_context(|| format!("{}: its workers do not end", self.name))
    }

    pub(crate) async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let status =
            Command::new("kill").args(["-s", name, &self.pid()?.to_string()]).status().await.context("kill")?;
        ensure!(status.success(), "kill: {status}");
        Ok(())
    }

    /// The CPU time of the process and its descendants until now.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu(&self.family()?)
    }

    /// The memory (PSS) of the process and its descendants, in bytes.
    pub(crate) fn pss(&self) -> anyhow::Result<u64> {
        pss(&self.family()?)
    }

    /// The memory of the process without files and libraries, in bytes.
    pub(crate) fn anonymous(&self) -> anyhow::Result<u64> {
        anonymous(self.pid()?)
    }

    /// The greatest resident memory that the process has had, in bytes.
    pub(crate) fn peak(&self) -> anyhow::Result<u64> {
        peak(self.pid()?)
    }

    fn family(&self) -> anyhow::Result<Vec<u32>> {
        family(self.pid()?).with_context(|| format!("{} has ended", self.name))
    }

    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.process.id().with_context(|| format!("{} has ended", self.name))
    }
}

/// An address of this machine where nobody listens.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What a program prints on both streams, for example its version.
pub(super) async fn output_of(program: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let running = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(DEADLINE, running).await.with_context(|| format!("{} does not end", program.display()))?;
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{} {} fails", program.display(), arguments.join(" "));
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// What a proxy in this directory has written to standard error.
pub(crate) fn errors(dir: &Path) -> String {
    fs::read_to_string(dir.join(ERRORS)).unwrap_or_default()
}

/// The last lines of what a proxy has written.
fn written(dir: &Path) -> String {
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let text = read(OUTPUT) + &read(ERRORS);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
