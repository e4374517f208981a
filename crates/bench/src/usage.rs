//! IDs of processes -> the CPU time and memory that they have used together, as the kernel counts them.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::Context as _;

/// Descriptors that load and gateway need for other things than these connections.
const SPARE_DESCRIPTORS: u64 = 600;

/// The time on a CPU, in user mode and in the kernel. Threads that have ended do not count. The clock ticks of /proc/PID/stat
/// would be too coarse: a thread that wakes up for some microseconds at a time may meet none of them, or each.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedstat = match fs::read_to_string(thread?.path().join("schedstat")) {
                Ok(schedstat) => schedstat,
                // The thread has ended since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context("/proc/PID/task/TID/schedstat"),
            };
            let on_cpu = schedstat.split_whitespace().next().context("/proc/PID/task/TID/schedstat is empty")?;
            nanoseconds += on_cpu.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// The proportional set size in bytes.
pub(crate) fn pss(pids: &[u32]) -> anyhow::Result<u64> {
    let mut pss = 0;
    for pid in pids {
        pss += field(*pid, "smaps_rollup", "Pss:")?;
    }
    Ok(pss)
}

/// Memory of the process alone, without files and libraries, in bytes: of a library, other processes may have a share.
pub(crate) fn anonymous(pid: u32) -> anyhow::Result<u64> {
    field(pid, "smaps_rollup", "Pss_Anon:")
}

/// The greatest resident set size that a process has had, in bytes.
pub(crate) fn peak(pid: u32) -> anyhow::Result<u64> {
    field(pid, "status", "VmHWM:")
}

/// A field in kB of a file in /proc/PID, in bytes.
fn field(pid: u32, file: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.with_context(|| format!("/proc/PID/{file} has no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Lowers a number of connections to what the limit of descriptors allows: load and broker share it, and the gateway needs as
/// many.
pub(crate) fn affordable(connections: usize) -> anyhow::Result<usize> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(connections.min(usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS) / 2)?))
}

/// The IDs of a process and its descendants.
pub(crate) fn family(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut family = vec![parent];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            let children: Result<Vec<u32>, _> = children.split_whitespace().map(str::parse).collect();
            family.extend(children?);
        }
        next += 1;
    }
    Ok(family)
}
