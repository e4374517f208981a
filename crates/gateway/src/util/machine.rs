//! What the machine, and the limits around the process, have for it. Enters: `/proc`, the control groups, the limits of the
//! process. Leaves: numbers. Not here: whether that is enough.

use std::path::Path;

/// What a process may have at most. `None`: the system does not say, or sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The cores that the process may use, within the CPU quota of its control group.
    pub cores: Option<usize>,
    /// The hard limit of open files.
    pub descriptors: Option<u64>,
    /// How many local ports connections to one address and port can have.
    pub local_ports: Option<u64>,
    /// The memory of the machine, in bytes.
    pub memory: Option<u64>,
    /// The limit of memory of the process's control group, such as a container or a systemd service, in bytes.
    pub group_memory: Option<u64>,
}

impl Machine {
    /// What this process has.
    pub fn of_this_process() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().ok().map(usize::from),
            descriptors: rlimit::Resource::NOFILE.get_hard().ok(),
            local_ports: std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
                .ok()
                .and_then(|text| number_of_ports(&text)),
            memory: std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)),
            group_memory: group_memory(Path::new("/sys/fs/cgroup"), &groups),
        }
    }
}

/// `text`: the first and the last port.
fn number_of_ports(text: &str) -> Option<u64> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.trim().parse().ok()?);
    Some((last + 1).saturating_sub(first))
}

/// `text`: `/proc/meminfo`.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The lowest limit of the control groups, of either version, that `groups` lists as `/proc/self/cgroup` does, and of those
/// around them. In a container, a group may have its path on the host: then the root of the mount is its own.
fn group_memory(mount: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (mount, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let around = Path::new(path.trim_start_matches('/')).ancestors();
        let limit = |group| std::fs::read_to_string(mount.join(group).join(file)).ok()?.trim().parse::<u64>().ok();
        around.filter_map(limit).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_the_groups_around_counts() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("system.slice/memory.max", "2147483648\n");
        write("system.slice/portcullis.service/memory.max", "max\n");
        write("user.slice/memory.max", "max\n");
        write("memory/memory.limit_in_bytes", "1073741824\n");
        for (groups, limit) in [
            ("0::/system.slice/portcullis.service\n", Some(2 << 30)),
            ("0::/user.slice\n", None),
            ("4:cpu,cpuacct:/\n3:memory:/docker/0a1b\n0::/\n", Some(1 << 30)),
            ("", None),
        ] {
            assert_eq!(group_memory(mount.path(), groups), limit, "{groups}");
        }
        assert_eq!(total_memory("MemTotal:       24684084 kB\nMemFree:        1 kB\n"), Some(24_684_084 << 10));
        assert_eq!(number_of_ports("32768\t60999\n"), Some(28_232));
        let here = Machine::of_this_process();
        assert!(here.local_ports >= Some(1));
        assert!(here.cores >= Some(1) && here.memory > Some(64 << 20) && here.descriptors.is_some(), "{here:?}");
    }
}
