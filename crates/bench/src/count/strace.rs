//! A gateway under strace -> its system calls, by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::Counter;

/// The trace, as it grows. strace writes each line at once.
pub(super) struct Strace {
    file: PathBuf,
    /// What has been read.
    read: u64,
}

impl Strace {
    /// A trace in `dir`, and the command that writes it: of all threads, without decoding what need not be known.
    pub(super) fn new(dir: &Path) -> (Self, Command) {
        let file = dir.join("strace.log");
        let mut command = Command::new("strace");
        // Signals are blocked by default, and then nobody could end it. How often threads that connect yield depends on the time
        // that all takes, which is not counted here.
        command.args(["-f", "-I", "2", "-e", "trace=!sched_yield", "-e", "raw=all", "-o"]).arg(&file);
        (Self { file, read: 0 }, command)
    }
}

impl Counter for Strace {
    async fn take(&mut self) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut file = File::open(&self.file).with_context(|| self.file.display().to_string())?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may be incomplete.
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        self.read += end as u64;
        let mut calls = BTreeMap::new();
        for name in text[..end].lines().filter_map(called) {
            *calls.entry(name.to_owned()).or_default() += 1.0;
        }
        Ok(calls)
    }
}

/// The name of the system call that begins in this line.
fn called(line: &str) -> Option<&str> {
    let (_thread, event) = line.trim_start().split_once(' ')?;
    let (name, _) = event.trim_start().split_once('(')?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_where_it_begins() {
        assert_eq!(called("812 write(0x5, 0x7f, 0x10) = 0x10"), Some("write"));
        assert_eq!(called("812   epoll_wait(0x3, 0x7f, 0x400, 0xffffffff <unfinished ...>"), Some("epoll_wait"));
        assert_eq!(called("812 <... epoll_wait resumed>)     = 0x1"), None);
        assert_eq!(called("812 --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER (from 1)} ---"), None);
        assert_eq!(called("812 +++ exited with 0 +++"), None);
    }
}
