//! A sliding window in fixed memory: events are counted by sixteenths of it. An event is forgotten up to one slot too
//! early, never too late, so that nobody is refused for fewer events than are allowed.

use std::time::Duration;

/// Slots of a window.
const SLOTS: usize = 16;

/// The number of a slot, counted from a moment that all who share it have agreed on.
pub(super) type Slot = u64;

/// The slot that begins `elapsed` after the first one did, in a window of this length.
pub(super) fn slot_at(elapsed: Duration, window: Duration) -> Slot {
    let length = (window.as_nanos() / SLOTS as u128).max(1);
    Slot::try_from(elapsed.as_nanos() / length).unwrap_or(Slot::MAX)
}

/// Events of one kind from one client: 72 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Of the last event.
    last: Slot,
    events: [u32; SLOTS],
}

impl Window {
    /// Without events.
    pub(super) const fn new(slot: Slot) -> Self {
        Self { last: slot, events: [0; SLOTS] }
    }

    /// Counts an event; returns how many there are in the window that ends with this slot.
    pub(super) fn count(&mut self, slot: Slot) -> u64 {
        // The slots that have come round since the last event hold what is a window old.
        for passed in self.last..slot.min(self.last.saturating_add(SLOTS as u64)) {
            self.events[index(passed + 1)] = 0;
        }
        self.last = self.last.max(slot);
        let events = &mut self.events[index(slot)];
        *events = events.saturating_add(1);
        self.events.iter().copied().map(u64::from).sum()
    }

    /// Whether all its events are out of the window by now.
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
        assert_eq!(window.count(999_999), 2, "threads may come late");
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
