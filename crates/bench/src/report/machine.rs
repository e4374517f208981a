//! /proc and the clock -> the machine and the day of a run.

use std::fmt;
use std::fs;
use std::thread::available_parallelism;

use time::OffsetDateTime;

/// Where and when a run took place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// In UTC, as YYYY-MM-DD.
    pub(super) date: String,
    pub(super) rounds: usize,
}

impl Machine {
    /// What is unknown stays empty: no measurement depends on it.
    pub(crate) fn here(rounds: usize) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: OffsetDateTime::now_utc().date().to_string(),
            rounds,
        }
    }
}

/// A sentence.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, date, .. } = self;
        write!(f, "Measured on {date}: {cpu}, {cores} cores shared by load, proxy and broker, Linux {kernel}.")
    }
}
