//! The memory guard: connections are refused before the kernel kills the process. Enters: the resident memory of the process.
//! Leaves: whether new connections are refused. Live sessions are left alone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::util::client_network::ClientNetwork;

/// All connections are accepted again below this part of the limit: around one value, the gateway would change its mind with
/// every connection.
const ACCEPT_AGAIN: (usize, usize) = (9, 10);
/// The allocator may keep memory that clients have left, which new ones can use. So after a time, some are let in each time the
/// guard looks, as long as the process does not grow. If it does, the next time is later.
const TRY_AFTER: Duration = Duration::from_secs(10);
const TRY_AFTER_AT_MOST: Duration = Duration::from_secs(600);
const TRIED_AT_ONCE: u32 = 64;
/// How many of them may be of one client network, so that one that connects again and again leaves some to others.
const OF_NETWORK: u32 = TRIED_AT_ONCE / 4;
/// How many may be clients that were not connected lately, so that strangers from many networks leave some to the fleet.
const OF_UNKNOWN: u32 = TRIED_AT_ONCE / 2;
const OF_UNKNOWN_NETWORK: u32 = OF_UNKNOWN / 4;
/// What counts as growing.
const GROWTH: usize = 1 << 20;

/// Whether the process has more memory than `memory_limit`.
#[derive(Debug)]
pub(crate) struct MemoryGuard {
    accepts_all: AtomicBool,
    /// The connections that are accepted until the guard looks again, unless all are.
    places: Mutex<Places>,
    over: Mutex<Option<Over>>,
}

#[derive(Debug, Default)]
struct Places {
    left: u32,
    /// Of those, what clients may take that were not connected lately.
    left_to_unknown: u32,
    /// By who has taken them: [`TRIED_AT_ONCE`] entries at most.
    taken: HashMap<ClientNetwork, u32>,
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
        Self { accepts_all: AtomicBool::new(true), places: Mutex::default(), over: Mutex::default() }
    }
}

impl MemoryGuard {
    /// Whether another connection of this client is accepted. `is_known`: it was connected lately.
    pub(crate) fn accepts(&self, address: IpAddr, is_known: bool) -> bool {
        if self.accepts_all.load(Ordering::Relaxed) {
            return true;
        }
        let Places { left, left_to_unknown, taken } = &mut *self.places.lock();
        let mut unused = u32::MAX;
        let max_of_network = if is_known { OF_NETWORK } else { OF_UNKNOWN_NETWORK };
        let left_to_it = if is_known { &mut unused } else { left_to_unknown };
        if (*left).min(*left_to_it) == 0 {
            return false;
        }
        let of_network = taken.entry(ClientNetwork::of(address)).or_default();
        if *of_network >= max_of_network {
            return false;
        }
        (*left, *left_to_it, *of_network) = (*left - 1, *left_to_it - 1, *of_network + 1);
        true
    }

    /// Accepts so many connections until it looks again.
    fn set_places(&self, left: u32) {
        *self.places.lock() = Places { left, left_to_unknown: left.min(OF_UNKNOWN), taken: HashMap::new() };
        self.accepts_all.store(false, Ordering::Relaxed);
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
            self.accepts_all.store(true, Ordering::Relaxed);
            return over.take().map(|_| false);
        };
        let Some(Over { peak, pause, try_at }) = &mut *over else {
            self.set_places(0);
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
        self.set_places(accepts);
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
        let accepts = || guard.accepts([10, 0, 0, 1].into(), true);
        assert_eq!((guard.update(999, limit, now), accepts()), (None, true));
        assert_eq!((guard.update(1000, limit, now), accepts()), (Some(true), false));
        assert_eq!((guard.update(900, limit, now), accepts()), (None, false));
        assert_eq!((guard.update(899, limit, now), accepts()), (Some(false), true));
        assert_eq!((guard.update(999, limit, now), accepts()), (None, true));
        guard.update(2000, limit, now);
        assert_eq!((guard.update(2000, None, now), accepts()), (Some(false), true), "a reload removed the limit");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_the_allocator_keeps_locks_nobody_out() {
        let guard = MemoryGuard::default();
        let (begin, limit) = (Instant::now(), Some(100 * MIB));
        let after = |seconds| begin + Duration::from_secs(seconds);
        let accepted = || (0..=u8::MAX).filter(|n| guard.accepts([10, 0, 0, *n].into(), true)).count();
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
        assert_eq!((guard.update(80 * MIB, limit, after(34)), accepted()), (Some(false), 256));
    }

    #[tokio::test(start_paused = true)]
    async fn one_network_and_strangers_leave_places_to_others() {
        let guard = MemoryGuard::default();
        let (begin, limit) = (Instant::now(), Some(100 * MIB));
        guard.update(150 * MIB, limit, begin);
        for _ in 0..2 {
            guard.update(150 * MIB, limit, begin + Duration::from_secs(11));
            for n in 0..1000_u16 {
                let [_, low] = n.to_be_bytes();
                let flood = std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, u16::from(low), 0, 0, 0, n);
                assert_eq!(guard.accepts(flood.into(), false), n < 8, "{n}: a /48");
            }
            let accepted =
                |third, is_known| (0..=u8::MAX).filter(|n| guard.accepts([10, 0, third, *n].into(), is_known)).count();
            assert_eq!([accepted(0, false), accepted(1, false), accepted(2, true), accepted(3, true)], [24, 0, 32, 0]);
        }
    }

    #[test]
    fn the_system_says_how_much_is_resident() {
        let before = resident_memory().unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = resident_memory().unwrap();
        assert!(before > 1 << 20 && after > before + (32 << 20), "{before} {after} {}", block.len());
    }
}
