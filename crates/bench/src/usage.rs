//! CPU time and memory of processes, as the kernel counts them.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// The CPU time and memory that a set of processes has used.
#[derive(Debug)]
pub(crate) struct Usage {
    /// On a CPU, in user mode and in the kernel. The clock ticks of /proc/PID/stat would be too coarse: a thread that wakes up
    /// for some microseconds at a time may meet none of them, or each.
    cpu: Duration,
    /// Proportional set size in bytes.
    pub(crate) pss: u64,
}

impl Usage {
    /// Reads the usage of these processes together.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let (mut nanoseconds, mut pss) = (0, 0);
        for pid in pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
                let on_cpu = schedstat.split_whitespace().next().context("/proc/PID/task/TID/schedstat is empty")?;
                nanoseconds += on_cpu.parse::<u64>()?;
            }
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .context("/proc/PID/smaps_rollup has no Pss")?;
            pss += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        }
        Ok(Self { cpu: Duration::from_nanos(nanoseconds), pss })
    }

    /// The time on a CPU since an earlier reading. Threads that have ended meanwhile do not count.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> Duration {
        self.cpu.saturating_sub(earlier.cpu)
    }
}

/// The IDs of a process and its children.
pub(crate) fn family(parent: u32) -> anyhow::Result<Vec<u32>> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let children: Result<Vec<u32>, _> = children.split_whitespace().map(str::parse).collect();
    Ok([vec![parent], children?].concat())
}
