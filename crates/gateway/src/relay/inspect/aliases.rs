//! Topic aliases of one direction [MQTT-3.3.2.3.4]. Enters: the aliases and topics of PUBLISH packets. Leaves: the topic that an
//! alias stands for, and whether the receiver knows it: a packet that sets an alias may have been withheld from it.

use crate::policy::MAX_TOPIC_ALIASES;

/// What the aliases of one direction stand for. Holds no memory while there are none, and 640 KiB at most.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// By alias, less one.
    topics: Vec<Option<Alias>>,
}

#[derive(Debug)]
struct Alias {
    topic: Box<str>,
    is_known: bool,
}

impl Aliases {
    /// The topic that an alias stands for, and whether the receiver knows that.
    pub(super) fn get(&self, alias: u16) -> Option<(&str, bool)> {
        let alias = self.topics.get(usize::from(alias).checked_sub(1)?)?.as_ref()?;
        Some((&alias.topic, alias.is_known))
    }

    /// Sets what an alias stands for; the receiver does not know it yet. Returns `false` if the alias is above the maximum.
    pub(super) fn set(&mut self, alias: u16, topic: &str) -> bool {
        let Some(index) = usize::from(alias).checked_sub(1).filter(|_| alias <= MAX_TOPIC_ALIASES) else {
            return false;
        };
        if self.topics.len() <= index {
            self.topics.resize_with(index + 1, || None);
        }
        // Many clients send the topic each time.
        match &mut self.topics[index] {
            Some(old) if *old.topic == *topic => old.is_known = false,
            slot => *slot = Some(Alias { topic: topic.into(), is_known: false }),
        }
        true
    }

    /// A packet may have set an alias, and nobody knows which: none stands for anything, until a packet sets it again.
    pub(super) fn forget(&mut self) {
        self.topics.clear();
    }

    /// The receiver gets a packet that sets the alias, and knows from now on what it stands for.
    pub(super) fn mark_known(&mut self, alias: u16) {
        let index = usize::from(alias).checked_sub(1);
        if let Some(alias) = index.and_then(|index| self.topics.get_mut(index)?.as_mut()) {
            alias.is_known = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_the_last_topic_that_set_it() {
        let mut aliases = Aliases::default();
        assert_eq!(aliases.get(1), None);
        assert!(aliases.set(3, "a") && aliases.set(1, "b"));
        assert_eq!((aliases.get(3), aliases.get(1), aliases.get(2)), (Some(("a", false)), Some(("b", false)), None));
        aliases.mark_known(3);
        assert_eq!(aliases.get(3), Some(("a", true)));
        assert!(aliases.set(3, "c"));
        assert_eq!(aliases.get(3), Some(("c", false)), "the receiver knows another topic by this alias");
        assert!(!aliases.set(0, "a") && !aliases.set(MAX_TOPIC_ALIASES + 1, "a"));
        assert_eq!((aliases.get(0), aliases.get(MAX_TOPIC_ALIASES + 1)), (None, None));
    }
}
