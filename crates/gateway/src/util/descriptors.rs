//! The kernel's table of the file descriptors of this process.

use std::io;

use rustix::io::fcntl_dupfd_cloexec;

/// The greatest table to ask for, in descriptors: 2 MiB of kernel memory.
const MAX_TABLE: u64 = 1 << 18;

/// Raises the soft limit of open files to the hard one, and has the kernel make room for this many descriptors, or for as many
/// as the limit allows.
///
/// Without this, the table doubles whenever it is full. In a process with threads, the kernel then waits until no thread uses
/// the old table, and no other thread can open a descriptor meanwhile: 10 to 20 ms in which no connection is accepted, several
/// times while thousands connect. To be called before the process starts threads: there is nobody to wait for then.
///
/// # Errors
/// The system refuses. The table grows when needed, as ever.
pub fn grow_descriptor_table(count: u64) -> io::Result<()> {
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    let last = count.min(limit).min(MAX_TABLE).saturating_sub(1);
    let last = i32::try_from(last).map_err(io::Error::other)?;
    // The table stays as long as it has become.
    drop(fcntl_dupfd_cloexec(io::stderr(), last)?);
    Ok(())
}
