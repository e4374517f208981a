//! What was found out a moment ago, for a bounded number of clients: by a digest with a key of this process, so that no
//! password stands in memory and none can be looked for.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::crypto::keyed_digest;

/// Entries at most, about 100 bytes each and what the values hold.
const MAX_ENTRIES: usize = 65_536;

/// The digest of what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Question([u8; 32]);

impl Question {
    /// Of several fields; where one ends and the next begins counts, too.
    pub(super) fn of(fields: &[&[u8]]) -> Self {
        Self(keyed_digest(fields))
    }
}

/// Answers by question, each for a time.
pub(super) struct Cache<V>(Mutex<HashMap<Question, (Instant, V)>>);

impl<V: Clone> Cache<V> {
    pub(super) fn get(&self, question: Question) -> Option<V> {
        let answers = self.0.lock();
        answers.get(&question).filter(|(until, _)| Instant::now() < *until).map(|(_, answer)| answer.clone())
    }

    pub(super) fn put(&self, question: Question, answer: V, period: Duration) {
        if period.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.0.lock();
        if answers.len() >= MAX_ENTRIES {
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() >= MAX_ENTRIES {
            // In no order that somebody could know: a part is forgotten, so that this does not happen each time.
            let mut place = 0;
            answers.retain(|_, _| {
                place += 1;
                place % 8 != 0
            });
        }
        answers.insert(question, (now + period, answer));
    }
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert!(Question::of(&[b"ab", b"c"]) != Question::of(&[b"a", b"bc"]));
        assert!(Question::of(&[b"a", b""]) != Question::of(&[b"a"]));
        assert!(Question::of(&[b"a", b"b"]) == Question::of(&[b"a", b"b"]));
    }

    #[test]
    fn answers_are_forgotten_in_time_and_bounded_in_number() {
        let cache = Cache::default();
        let question = |n: usize| Question::of(&[&n.to_be_bytes()]);
        cache.put(question(0), 0, Duration::ZERO);
        assert_eq!(cache.get(question(0)), None);
        cache.put(question(0), 0, Duration::from_nanos(1));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(cache.get(question(0)), None);
        for n in 0..MAX_ENTRIES + 1000 {
            cache.put(question(n), n, Duration::from_secs(60));
        }
        assert!(cache.0.lock().len() <= MAX_ENTRIES);
        assert_eq!(cache.get(question(MAX_ENTRIES + 999)), Some(MAX_ENTRIES + 999));
    }
}
