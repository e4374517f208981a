//! The memory guard: connections are refused before the kernel kills the process. Enters: the resident memory of the process.
//! Leaves: whether new connections are refused. Live sessions are left alone.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// All connections are accepted again below this part of the limit: around one value, the gateway would change its mind with
/// every connection.
const ACCEPT_AGAIN: (usize, usize) = (9, 10);
/// The allocator may keep memory that clients have left, which new ones can use. So after a time, some are let in each time the
/// guard looks, as long as the process does not grow. If it does, the next time is later.
const TRY_AFTER: Duration = Duration::from_secs(10);
const TRY_AFTER_AT_MOST: Duration = Duration::from_secs(600);
const TRIED_AT_ONCE: u32 = 64;
/// What counts as growing.
const GROWTH: usize = 1 << 20;
/// Stands for any number of connections.
const ALL: u32 = u32::MAX;

/// Whether the process has more memory than `memory_limit`.
#[derive(Debug)]
pub(crate) struct MemoryGuard {
    /// How many more connections are accepted.
    accepts: AtomicU32,
    over: Mutex<Option<Over>>,
}

/// The process has had more memory than the limit.
#[derive(Debug)]
struct Over {
    /// The most it had.
    peak: usize,
    pause: Duration,
    try_at: Instant,
}

impl Default for MemoryGuard {
    fn default() -> Self {
        Self { accepts: AtomicU32::new(ALL), over: Mutex::default() }
    }
}

impl MemoryGuard {
    /// Whether another connection is accepted.
    pub(crate) fn accepts(&self) -> bool {
        let take = |left: u32| if left == ALL { Some(ALL) } else { left.checked_sub(1) };
        self.accepts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Whether there was more memory than the limit, and is not less by a tenth yet.
    pub(crate) fn is_over(&self) -> bool {
        self.over.lock().is_some()
    }

    /// Compares what is resident with the limit, both in bytes. Returns `Some(true)` when rejecting
    /// begins, `Some(false)` when it ends, and `None` if nothing has changed.
    pub(crate) fn update(&self, resident: usize, limit: Option<usize>, now: Instant) -> Option<bool> {
        let mut over = self.over.lock();
        let (times, of) = ACCEPT_AGAIN;
        let Some(limit) = limit.filter(|limit| resident >= if over.is_some() { limit / of * times } else { *limit })
        else {
            self.accepts.store(ALL, Ordering::Relaxed);
            return over.take().map(|_| false);
        };
        let Some(Over { peak, pause, try_at }) = &mut *over else {
            self.accepts.store(0, Ordering::Relaxed);
            *over = Some(Over { peak: resident.max(limit), pause: TRY_AFTER, try_at: now + TRY_AFTER });
            return Some(true);
        };
        let mut accepts = 0;
        if resident > *peak + GROWTH {
            let was_tried = now > *try_at;
            (*peak, *pause) = (resident, if was_tried { (*pause * 2).min(TRY_AFTER_AT_MOST) } else { *pause });
            *try_at = now + *pause;
        } else if now >= *try_at {
            accepts = TRIED_AT_ONCE;
        }
        self.accepts.store(accepts, Ordering::Relaxed);
        None
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

    const MIB: usize = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn it_changes_its_mind_with_a_distance() {
        let guard = MemoryGuard::default();
        let now = Instant::now();
        let limit = Some(1000);
        assert_eq!((guard.update(999, limit, now), guard.accepts()), (None, true));
        assert_eq!((guard.update(1000, limit, now), guard.accepts()), (Some(true), false));
        assert_eq!((guard.update(900, limit, now), guard.accepts()), (None, false));
        assert_eq!((guard.update(899, limit, now), guard.accepts()), (Some(false), true));
        assert_eq!((guard.update(999, limit, now), guard.accepts()), (None, true));
        guard.update(2000, limit, now);
        assert_eq!((guard.update(2000, None, now), guard.accepts()), (Some(false), true), "a reload removed the limit");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_the_allocator_keeps_locks_nobody_out() {
        let guard = MemoryGuard::default();
        let (begin, limit) = (Instant::now(), Some(100 * MIB));
        let after = |seconds| begin + Duration::from_secs(seconds);
        let accepted = || std::iter::repeat_with(|| guard.accepts()).take(1000).filter(|accepted| *accepted).count();
        guard.update(150 * MIB, limit, begin);
        guard.update(150 * MIB, limit, after(9));
        assert_eq!(accepted(), 0);
        // Nothing grows: some are let in each time.
        for _ in 0..3 {
            guard.update(150 * MIB, limit, after(11));
            assert_eq!(accepted(), 64);
        }
        // They make it grow: nobody for twice the time.
        guard.update(153 * MIB, limit, after(12));
        assert_eq!(accepted(), 0);
        guard.update(153 * MIB, limit, after(31));
        assert_eq!(accepted(), 0);
        guard.update(153 * MIB, limit, after(33));
        assert_eq!(accepted(), 64);
        assert_eq!((guard.update(80 * MIB, limit, after(34)), accepted()), (Some(false), 1000));
    }

    #[test]
    fn the_system_says_how_much_is_resident() {
        let before = resident_memory().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = resident_memory().unwrap();
        assert!(before > 1 << 20 && after > before + (32 << 20), "{before} {after} {}", block.len());
    }
}
