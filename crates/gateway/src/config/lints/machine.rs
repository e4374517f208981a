//! Compares what the settings demand with what the machine has. Enters: both, as numbers. Leaves: warnings, since the machine
//! on which a file is checked need not be the one that it is for.

use bytesize::ByteSize;

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::Process;
use super::super::values::Setting;
use crate::outcome::RAISE_OPEN_FILES;
use crate::util::machine::Machine;

/// With more threads than this for each core, they only take turns.
const THREADS_PER_CORE: usize = 2;

/// What a configuration demands.
pub(crate) struct Demand<'a> {
    pub(crate) process: &'a Process,
    /// `max_connections` of each listener.
    pub(crate) connections: Vec<&'a Setting<u32>>,
    /// The descriptors of all these connections, and of the gateway itself.
    pub(crate) descriptors: u64,
    /// The number of connections that the machine's descriptors are enough for.
    pub(crate) possible: u32,
    pub(crate) upstreams: Vec<UpstreamDemand<'a>>,
}

/// What the listeners of an upstream demand of it.
pub(crate) struct UpstreamDemand<'a> {
    pub(crate) name: &'a str,
    /// The number of addresses and ports of its servers.
    pub(crate) addresses: u64,
    /// `max_connections` of each listener that uses it.
    pub(crate) connections: Vec<&'a Setting<u32>>,
}

impl Demand<'_> {
    /// Warns of what the machine does not have. What the file does not set is not reported: it has no place in it.
    pub(crate) fn compare(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        self.compare_threads(machine, diagnostics);
        self.compare_memory(machine, diagnostics);
        self.compare_descriptors(machine, diagnostics);
        self.upstreams.iter().for_each(|upstream| upstream.compare(machine, diagnostics));
    }

    fn compare_threads(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        let (Some(threads), Some(cores)) = (&self.process.worker_threads, machine.cores) else { return };
        if threads.value > cores.saturating_mul(THREADS_PER_CORE) {
            let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
            let complaint = Complaint::new(format!("`worker_threads` is {}, on {cores}", threads.value));
            let hint = "so many threads relay, and as many more connect clients; for as many as there are cores, leave the key out";
            diagnostics.warning(threads, complaint.hint(hint));
        }
    }

    fn compare_memory(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        let Some(limit) = &self.process.memory_limit else { return };
        let of_group = machine.group_memory.map(|bytes| (bytes, "its control group (container or service) may have"));
        let of_machine = machine.memory.map(|bytes| (bytes, "this machine has"));
        let Some((memory, whose)) = of_group.into_iter().chain(of_machine).min_by_key(|(bytes, _)| *bytes) else {
            return;
        };
        if limit.value as u64 > memory {
            let [limit_text, memory] = [limit.value as u64, memory].map(|bytes| ByteSize::b(bytes).to_string());
            let complaint =
                Complaint::new(format!("`memory_limit` is {limit_text}, more than the {memory} that {whose}"));
            let hint = "the kernel would kill the gateway before the limit applies: set 40 % of the memory at most, sockets need the rest";
            diagnostics.warning(limit, complaint.hint(hint));
        }
    }

    fn compare_descriptors(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        let Some(limit) = machine.descriptors.filter(|limit| self.descriptors > *limit) else { return };
        let Some((largest, total)) = largest_and_sum(&self.connections) else { return };
        let of_all = if self.connections.len() > 1 { " of all listeners" } else { "" };
        let complaint = Complaint::new(format!(
            "`max_connections`{of_all}, {total}, takes {} file descriptors; the hard limit here is {limit}, enough for {} connections",
            self.descriptors, self.possible
        ));
        diagnostics.warning(largest, complaint.hint(format!("{RAISE_OPEN_FILES}; or lower `max_connections`")));
    }
}

impl UpstreamDemand<'_> {
    /// Each session has a port of its own, which the system can use once for each address and port of a server.
    fn compare(&self, machine: &Machine, diagnostics: &mut Diagnostics) {
        let (Some(ports), Some((largest, total))) = (machine.local_ports, largest_and_sum(&self.connections)) else {
            return;
        };
        if total <= ports.saturating_mul(self.addresses) {
            return;
        }
        let (name, possible) = (self.name, ports * self.addresses);
        let of_all = if self.connections.len() > 1 { " of all its listeners" } else { "" };
        let servers = if self.addresses == 1 { "one server".to_owned() } else { format!("{} servers", self.addresses) };
        let complaint = Complaint::new(format!(
            "`max_connections`{of_all} is {total}, but upstream {name:?} has {servers}, for which the {ports} local ports here allow {possible} sessions"
        ));
        let hint = "if there are as many devices, add `source_addresses` to the upstream, widen `net.ipv4.ip_local_port_range`, or add addresses or ports of the brokers";
        diagnostics.warning(largest, complaint.hint(hint));
    }
}

/// The largest of those that the file sets, if any, and the sum of all.
fn largest_and_sum<'a>(connections: &[&'a Setting<u32>]) -> Option<(&'a Setting<u32>, u64)> {
    let set = connections.iter().filter(|connections| connections.is_set());
    let largest = set.max_by_key(|connections| connections.value)?;
    Some((largest, connections.iter().map(|connections| u64::from(connections.value)).sum()))
}
