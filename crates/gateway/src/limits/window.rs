//! A sliding window of fixed size that counts events in sixteen slots. Enters: events with their slot. Leaves: the number of
//! events in the window. An event leaves up to one slot early, never late, so that no client is rejected below the limit.

use std::time::Duration;

/// The number of slots in a window.
const SLOTS: usize = 16;

/// The number of a slot, counted from the creation of the counters.
pub(super) type Slot = u64;

/// The slot at `elapsed` since the start of slot 0, for a window of this length.
pub(super) fn slot_at(elapsed: Duration, window: Duration) -> Slot {
    let length = (window.as_nanos() / SLOTS as u128).max(1);
    Slot::try_from(elapsed.as_nanos() / length).unwrap_or(Slot::MAX)
}

/// The events of one kind from one client, in 72 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The slot of the last event.
    last: Slot,
    events: [u32; SLOTS],
}

impl Window {
    /// A window without events.
    pub(super) const fn new(slot: Slot) -> Self {
        Self { last: slot, events: [0; SLOTS] }
    }

    /// Counts an event. Returns the number of events in the window that ends with this slot.
    pub(super) fn count(&mut self, slot: Slot) -> u64 {
        // The slots since the last event still hold counts that have left the window.
        for passed in self.last..slot.min(self.last.saturating_add(SLOTS as u64)) {
            self.events[index(passed + 1)] = 0;
        }
        self.last = self.last.max(slot);
        let events = &mut self.events[index(slot)];
        *events = events.saturating_add(1);
        self.events.iter().copied().map(u64::from).sum()
    }

    /// Whether all events have left the window.
    pub(super) const fn is_over(&self, slot: Slot) -> bool {
        slot.saturating_sub(self.last) >= SLOTS as u64
    }
}

fn index(slot: Slot) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_in_the_window_and_forgets_the_rest() {
        let mut window = Window::new(5);
        assert_eq!((window.count(5), window.count(5), window.count(8)), (1, 2, 3));
        assert_eq!(window.count(20), 4, "sixteen slots, 5 to 20");
        assert_eq!(window.count(21), 3, "without 5");
        assert!(!window.is_over(36) && window.is_over(37));
        assert_eq!(window.count(37), 1, "a window later");
        assert_eq!(window.count(1_000_000), 1);
        assert_eq!(window.count(999_999), 2, "a thread may be late");
        assert_eq!(Window::new(Slot::MAX).count(Slot::MAX), 1);
    }

    #[test]
    fn a_window_has_sixteen_slots() {
        let at = |millis| slot_at(Duration::from_millis(millis), Duration::from_secs(16));
        assert_eq!((at(0), at(999), at(1000), at(16_000)), (0, 0, 1, 16));
        assert_eq!(slot_at(Duration::from_secs(1), Duration::ZERO), 1_000_000_000);
        assert_eq!(slot_at(Duration::MAX, Duration::ZERO), Slot::MAX);
    }
}
