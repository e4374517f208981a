//! Programs under valgrind -> instructions and calls of the allocator, at any time; blocks of the heap when there are most.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use tokio::time::timeout;

use super::{Counter, DEADLINE};

/// The names of [`Callgrind`]'s counts.
pub(super) const INSTRUCTIONS: &str = "instructions";
pub(super) const ALLOCATIONS: &str = "allocations";

/// Functions of the C library that allocate. The names of a library's functions are known even if the program has none.
const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];

/// A process under callgrind.
pub(super) struct Callgrind {
    dir: PathBuf,
    /// Parts of the profile that have been read.
    parts: usize,
    process: u32,
}

impl Callgrind {
    /// The command that runs another one; `dir`: where it writes.
    pub(super) fn command(dir: &Path) -> Command {
        let mut command = valgrind("callgrind", dir);
        command.arg(option("--callgrind-out-file=", &dir.join("callgrind.out")));
        command.arg(option("--vgdb-prefix=", &dir.join("vgdb")));
        command
    }

    pub(super) fn of(process: u32, dir: &Path) -> Self {
        Self { dir: dir.to_owned(), parts: 0, process }
    }
}

impl Counter for Callgrind {
    async fn take(&mut self) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut vgdb = tokio::process::Command::new("vgdb");
        vgdb.arg(option("--vgdb-prefix=", &self.dir.join("vgdb"))).arg(format!("--pid={}", self.process)).arg("dump");
        vgdb.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(DEADLINE, vgdb.output()).await.context("vgdb does not end")?.context("cannot run vgdb")?;
        ensure!(output.status.success(), "vgdb: {}", String::from_utf8_lossy(&output.stderr));
        self.parts += 1;
        let file = self.dir.join(format!("callgrind.out.{}", self.parts));
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let profile = Profile::parse(&text).with_context(|| file.display().to_string())?;
        Ok([(INSTRUCTIONS, profile.instructions), (ALLOCATIONS, profile.allocations)]
            .map(|(name, count)| (name.to_owned(), count))
            .into())
    }
}

/// The instructions of a program until it ends.
pub(super) async fn instructions(command: &Command, dir: &Path) -> anyhow::Result<f64> {
    run(Callgrind::command(dir), command).await?;
    let text = fs::read_to_string(dir.join("callgrind.out"))?;
    Ok(Profile::parse(&text)?.instructions)
}

/// What callgrind has written.
#[derive(Debug, PartialEq)]
struct Profile {
    instructions: f64,
    allocations: f64,
}

impl Profile {
    /// Of all threads: callgrind does not separate them unless told to.
    fn parse(text: &str) -> anyhow::Result<Self> {
        // `cfn=(12) malloc` names the callee of the next `calls=3 0`; later, `cfn=(12)` does.
        let (mut names, mut callee, mut allocations, mut total) = (BTreeMap::new(), "", 0.0, None);
        for line in text.lines() {
            if let Some((kind, name)) = line.split_once('=').filter(|(kind, _)| matches!(*kind, "fn" | "cfn")) {
                let (id, name) = name.split_once(' ').unwrap_or((name, ""));
                if !name.is_empty() {
                    names.insert(id, name);
                }
                if kind == "cfn" {
                    callee = names.get(id).copied().unwrap_or_default();
                }
            } else if let Some(calls) = line.strip_prefix("calls=") {
                if ALLOCATORS.contains(&callee) {
                    allocations += calls.split(' ').next().unwrap_or_default().parse::<f64>()?;
                }
            } else if let Some(instructions) = line.strip_prefix("totals: ") {
                total = Some(instructions.trim().parse()?);
            }
        }
        Ok(Self { instructions: total.context("no totals")?, allocations })
    }
}

/// The command that runs another one under DHAT, and writes what [`greatest_heap`] reads.
pub(super) fn dhat(dir: &Path) -> Command {
    let mut command = valgrind("dhat", dir);
    command.arg(option("--dhat-out-file=", &dir.join("dhat.out")));
    command
}

/// Bytes and blocks of the heap at the moment when it was greatest, of a program that DHAT has seen end.
pub(super) fn greatest_heap(dir: &Path) -> anyhow::Result<(f64, f64)> {
    let text = fs::read_to_string(dir.join("dhat.log"))?;
    at_greatest(&text).context("DHAT does not say how large the heap was")
}

fn at_greatest(text: &str) -> Option<(f64, f64)> {
    let (_, line) = text.lines().find_map(|line| line.split_once("At t-gmax:"))?;
    let (bytes, blocks) = line.split_once(" bytes in ")?;
    let number = |text: &str| text.trim().trim_end_matches(" blocks").replace(',', "").parse().ok();
    Some((number(bytes)?, number(blocks)?))
}

fn valgrind(tool: &str, dir: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.arg(format!("--tool={tool}")).arg(option("--log-file=", &dir.join(format!("{tool}.log"))));
    command
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

async fn run(mut tracer: Command, command: &Command) -> anyhow::Result<()> {
    tracer.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    let running = tokio::process::Command::from(tracer).kill_on_drop(true).output();
    let output = timeout(DEADLINE, running).await.context("valgrind does not end")??;
    ensure!(output.status.success(), "valgrind: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_the_allocator_are_added_up() {
        let text = "fn=(1) main\n1 5\ncfn=(2) malloc\ncalls=3 0\n1 90\ncfn=(3) free\ncalls=7 0\n1 9\n\
                    fn=(4) other\n2 1\ncfn=(2)\ncalls=2 0\n2 60\nfn=(2)\n0 150\n\ntotals: 165\n";
        assert_eq!(Profile::parse(text).unwrap(), Profile { instructions: 165.0, allocations: 5.0 });
        assert!(Profile::parse("fn=(1) main\n").is_err());
    }

    #[test]
    fn the_greatest_heap_is_read() {
        let text = "==7== Total:     9,000 bytes in 90 blocks\n==7== At t-gmax: 1,234 bytes in 1,005 blocks\n";
        assert_eq!(at_greatest(text), Some((1234.0, 1005.0)));
        assert_eq!(at_greatest(""), None);
    }
}
