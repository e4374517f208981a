//! A bounded map of what was used lately. Enters: values by digest. Leaves: a value, until it is forgotten. Safe to share: a
//! lookup holds a lock of one of its parts for less than a microsecond.

use std::collections::HashMap;

use parking_lot::Mutex;

/// What identifies a value: a digest of what clients choose, so that nobody can make two values share one, or an address. The first
/// byte selects the part.
pub(crate) type Key = [u8; 32];

/// Parts with a lock each, so that threads hardly meet.
const PARTS: usize = 16;

/// Values by their keys, with a limit of what they cost together.
#[derive(Debug)]
pub(crate) struct Recent<V> {
    parts: [Mutex<Part<V>>; PARTS],
    /// The limit of each generation of a part.
    limit: usize,
}

/// Values of two generations: those that were not used while `new` filled are forgotten with `old`.
#[derive(Debug)]
struct Part<V> {
    new: HashMap<Key, (V, usize)>,
    cost: usize,
    old: HashMap<Key, (V, usize)>,
}

impl<V> Default for Part<V> {
    fn default() -> Self {
        Self { new: HashMap::new(), cost: 0, old: HashMap::new() }
    }
}

impl<V: Clone> Recent<V> {
    /// Keeps values that cost `max` together, in the unit of [`add`](Self::add).
    pub(crate) fn new(max: usize) -> Self {
        Self { parts: Default::default(), limit: (max / PARTS / 2).max(1) }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<V> {
        let mut part = self.part(key).lock();
        if let Some((value, _)) = part.new.get(key) {
            return Some(value.clone());
        }
        let (value, cost) = part.old.remove(key)?;
        part.add(*key, (value.clone(), cost), self.limit);
        Some(value)
    }

    /// Adds a value, unless it alone exceeds the limit.
    pub(crate) fn add(&self, key: Key, value: V, cost: usize) {
        if cost <= self.limit {
            self.part(&key).lock().add(key, (value, cost), self.limit);
        }
    }

    fn part(&self, key: &Key) -> &Mutex<Part<V>> {
        &self.parts[usize::from(key[0]) % PARTS]
    }

    /// What the values cost together.
    #[cfg(test)]
    fn cost(&self) -> usize {
        let of_part = |part: &Mutex<Part<V>>| {
            let part = part.lock();
            part.new.values().chain(part.old.values()).map(|(_, cost)| cost).sum::<usize>()
        };
        self.parts.iter().map(of_part).sum()
    }
}

impl<V> Part<V> {
    fn add(&mut self, key: Key, (value, cost): (V, usize), limit: usize) {
        if self.cost + cost > limit {
            self.old = std::mem::take(&mut self.new);
            self.cost = 0;
        }
        self.old.remove(&key);
        if self.new.insert(key, (value, cost)).is_none() {
            self.cost += cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::crypto::sha256;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let recent = Recent::new(3200);
        let key = |number: u32| sha256(&number.to_be_bytes());
        recent.add(key(0), 0, 10);
        for number in 1..10_000 {
            recent.add(key(number), number, 10);
            recent.add(key(number), number, 10);
            assert_eq!(recent.get(&key(0)), Some(0), "it is used all the time");
            assert!(recent.cost() <= 3200);
        }
        assert_eq!(recent.get(&key(1)), None, "it was used once");
        recent.add(key(1), 1, 1000);
        assert_eq!(recent.get(&key(1)), None, "it exceeds the limit");
    }
}
