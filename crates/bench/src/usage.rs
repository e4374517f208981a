//! CPU time and memory of processes, as the kernel counts them.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Clock ticks per second in /proc/PID/stat, on all current Linux systems.
const TICKS: u64 = 100;

/// The CPU time and memory that a set of processes has used.
#[derive(Debug)]
pub(crate) struct Usage {
    ticks: u64,
    /// Proportional set size in bytes.
    pub(crate) pss: u64,
}

impl Usage {
    /// Reads the usage of these processes together.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let (mut ticks, mut pss) = (0, 0);
        for pid in pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Behind the command's name, which may contain anything: fields 14 and 15 of proc(5).
            let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat is malformed")?;
            let fields: Vec<&str> = fields.split_whitespace().collect();
            ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .context("/proc/PID/smaps_rollup has no Pss")?;
            pss += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        }
        Ok(Self { ticks, pss })
    }

    /// The user and system time since an earlier reading.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> Duration {
        Duration::from_millis((self.ticks - earlier.ticks) * 1000 / TICKS)
    }
}

/// The IDs of a process and its children.
pub(crate) fn family(parent: u32) -> anyhow::Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let children: Result<Vec<u32>, _> = children.split_whitespace().map(str::parse).collect();
    Ok([vec![parent], children?].concat())
}
