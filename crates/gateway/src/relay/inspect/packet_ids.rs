//! A set of packet identifiers. Holds no memory while it is empty, and at most 8 KiB.

use std::num::NonZeroU16;

/// Identifiers of messages of QoS 2 that the gateway acknowledges itself, between PUBREC and PUBREL.
#[derive(Debug, Default)]
pub(super) struct PacketIds {
    /// A bit for each identifier.
    bits: Vec<u64>,
    len: usize,
}

impl PacketIds {
    pub(super) fn insert(&mut self, id: NonZeroU16) {
        let (word, bit) = place(id);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.len += usize::from(self.bits[word] & bit == 0);
        self.bits[word] |= bit;
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, id: NonZeroU16) -> bool {
        let (word, bit) = place(id);
        let Some(word) = self.bits.get_mut(word).filter(|word| **word & bit != 0) else { return false };
        *word &= !bit;
        self.len -= 1;
        if self.len == 0 {
            self.bits = Vec::new();
        }
        true
    }
}

fn place(id: NonZeroU16) -> (usize, u64) {
    (usize::from(id.get() / 64), 1 << (id.get() % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set_that_forgets_its_memory() {
        let id = |id| NonZeroU16::new(id).unwrap();
        let mut ids = PacketIds::default();
        for number in [1, 63, 64, 65_535, 1] {
            ids.insert(id(number));
        }
        assert!(ids.bits.len() * 8 <= 8 << 10);
        assert!(!ids.remove(id(2)) && ids.remove(id(1)) && !ids.remove(id(1)));
        assert!(ids.remove(id(63)) && ids.remove(id(64)) && ids.remove(id(65_535)));
        assert_eq!(ids.bits.capacity(), 0);
        assert!(!ids.remove(id(64)));
    }
}
