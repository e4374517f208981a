//! The memory guard: connections are refused before the kernel kills the process. Enters: the resident memory of the process.
//! Leaves: whether new connections are refused. Live sessions are left alone.

use std::sync::atomic::{AtomicBool, Ordering};

/// New connections are accepted again below this part of the limit: around one value, the gateway would change its mind with
/// every connection.
const ACCEPT_AGAIN: (usize, usize) = (9, 10);

/// Whether the process has more memory than `memory_limit`.
#[derive(Debug, Default)]
pub(crate) struct MemoryGuard {
    is_over: AtomicBool,
}

impl MemoryGuard {
    /// Whether new connections are refused.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Compares what is resident with the limit, both in bytes. Returns whether it matters from now on, or no more; `None`:
    /// nothing has changed.
    pub(crate) fn update(&self, resident: usize, limit: Option<usize>) -> Option<bool> {
        let was_over = self.is_over();
        let is_over = limit.is_some_and(|limit| {
            let (times, of) = ACCEPT_AGAIN;
            let limit = if was_over { limit / of * times } else { limit };
            resident >= limit
        });
        self.is_over.store(is_over, Ordering::Relaxed);
        (is_over != was_over).then_some(is_over)
    }
}

/// The resident memory of this process in bytes; `None`: the system does not say.
pub(crate) fn resident_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_its_mind_with_a_distance() {
        let guard = MemoryGuard::default();
        let limit = Some(1000);
        assert_eq!((guard.update(999, limit), guard.is_over()), (None, false));
        assert_eq!((guard.update(1000, limit), guard.is_over()), (Some(true), true));
        assert_eq!((guard.update(900, limit), guard.is_over()), (None, true));
        assert_eq!((guard.update(899, limit), guard.is_over()), (Some(false), false));
        assert_eq!((guard.update(999, limit), guard.is_over()), (None, false));
        guard.update(2000, limit);
        assert_eq!((guard.update(2000, None), guard.is_over()), (Some(false), false), "a reload removed the limit");
    }

    #[test]
    fn the_system_says_how_much_is_resident() {
        let before = resident_memory().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = resident_memory().unwrap();
        assert!(before > 1 << 20 && after > before + (32 << 20), "{before} {after} {}", block.len());
    }
}
