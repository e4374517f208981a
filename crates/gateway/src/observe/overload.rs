//! Lines about clients that are rejected because there is no room for them: one when that begins, one a minute while it lasts,
//! one with their number when it is over. Enters: rejections, and the time. Leaves: lines, however many clients there are.

use parking_lot::Mutex;

use crate::outcome::{Outcome, Reject};
use crate::util::clock::now;

/// It is over once nobody was rejected for so many seconds.
const OVER_AFTER: i64 = 10;
/// Seconds between two lines while it lasts.
const REPEAT_AFTER: i64 = 60;

/// What clients are rejected for at present.
#[derive(Debug, Default)]
pub(crate) struct Overload(Mutex<Vec<Spell>>);

/// The time during which clients are rejected for one reason, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spell {
    reason: Reject,
    rejected: u64,
    began: i64,
    last: i64,
    logged: i64,
}

/// What is to be logged of a spell.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Lasts,
    Over,
}

impl Overload {
    /// Counts a rejection. Returns whether it is the first one, which is to be logged.
    pub(super) fn count(&self, reason: Reject) -> bool {
        self.count_at(reason, now())
    }

    fn count_at(&self, reason: Reject, now: i64) -> bool {
        let mut spells = self.0.lock();
        if let Some(spell) = spells.iter_mut().find(|spell| spell.reason == reason) {
            (spell.rejected, spell.last) = (spell.rejected + 1, now);
            return false;
        }
        spells.push(Spell { reason, rejected: 1, began: now, last: now, logged: now });
        true
    }

    /// Logs what lasts, and what is over. Called once a second. `has_memory`: whether the process is within `memory_limit`; if not,
    /// that no client has come is not the end.
    pub(crate) fn log(&self, has_memory: bool) {
        let may_end = |reason| has_memory || reason != Reject::MemoryLimit;
        for (Spell { reason, rejected, began, last, .. }, event) in self.events_at(now(), may_end) {
            let (hint, reason, seconds) = (Outcome::Rejected(reason).hint(), reason.label(), last - began);
            match event {
                Event::Lasts => tracing::warn!(reason, rejected, seconds, hint, "clients are still rejected"),
                Event::Over => tracing::info!(reason, rejected, seconds, "clients are no longer rejected"),
            }
        }
    }

    fn events_at(&self, now: i64, may_end: impl Fn(Reject) -> bool) -> Vec<(Spell, Event)> {
        let mut spells = self.0.lock();
        let is_over = |spell: &mut Spell| now - spell.last >= OVER_AFTER && may_end(spell.reason);
        let over = spells.extract_if(.., is_over).map(|spell| (spell, Event::Over));
        let mut events: Vec<_> = over.collect();
        for spell in spells.iter_mut().filter(|spell| now - spell.logged >= REPEAT_AFTER) {
            spell.logged = now;
            events.push((*spell, Event::Lasts));
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_logged_when_it_begins_each_minute_and_when_it_is_over() {
        let overload = Overload::default();
        let (mut begins, mut events) = (0, Vec::new());
        for second in 0..150 {
            if second < 130 {
                begins += (0..1000).filter(|_| overload.count_at(Reject::TooManyHandshakes, second)).count();
            }
            events.extend(
                overload.events_at(second, |_| true).into_iter().map(|(spell, event)| (second, spell.rejected, event)),
            );
        }
        assert_eq!(begins, 1);
        let expected = [(60, 61_000, Event::Lasts), (120, 121_000, Event::Lasts), (139, 130_000, Event::Over)];
        assert_eq!(events, expected);
        assert!(overload.count_at(Reject::TooManyHandshakes, 150), "it begins again");
        assert!(overload.count_at(Reject::MemoryLimit, 150), "another reason has lines of its own");
        let no_memory = |reason| reason != Reject::MemoryLimit;
        let ended: Vec<_> = overload.events_at(170, no_memory).into_iter().map(|(spell, _)| spell.reason).collect();
        assert_eq!(ended, [Reject::TooManyHandshakes], "memory is short still");
        assert_eq!(overload.events_at(170, |_| true).len(), 1);
    }
}
