//! The limit of open files: raised at the start, and divided among what needs descriptors.

use crate::outcome::RAISE_OPEN_FILES;
use crate::relay::RelayThreads;
use crate::runtime::Runtime;
use crate::state::ProcessState;

/// Raises the limit of open files, and returns it; `None`: unknown. A session needs two file descriptors, so the usual
/// soft limit of 1,024 would allow about 400 sessions.
pub(super) fn raise_descriptor_limit() -> Option<u64> {
    let raised = rlimit::increase_nofile_limit(u64::MAX);
    let limit = raised.inspect_err(|error| tracing::warn!(%error, "cannot raise the limit of open files"));
    limit.or_else(|_| rlimit::Resource::NOFILE.get_soft()).ok()
}

/// Limits the connections of clients to what the limit of open files allows. Warns if the listeners could have more, unless
/// loading the configuration has done so.
pub(super) fn divide_descriptors(limit: Option<u64>, runtime: &Runtime, relays: &RelayThreads, state: &ProcessState) {
    let Some(limit) = limit else { return };
    let (max, is_new) = state.descriptors.divide(limit, runtime.descriptors() + relays.descriptors());
    let wanted = runtime.max_connections();
    let is_reported = runtime.sets_max_connections() && state.machine.descriptors == Some(limit);
    if is_new && wanted > max.into() && !is_reported {
        tracing::warn!(
            limit,
            max_connections = max,
            configured = wanted,
            "the limit of open files allows fewer connections than the listeners' `max_connections`; \
             {RAISE_OPEN_FILES}, or lower `max_connections`"
        );
    }
}
