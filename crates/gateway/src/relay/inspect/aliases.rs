//! Topic aliases of one direction [MQTT-3.3.2.3.4]. Enters: the aliases and topics of PUBLISH packets. Leaves: the topic of each,
//! and whether the receiver knows it: a packet that sets an alias may have been withheld from it.

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

/// The topic of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved<'t> {
    pub(super) topic: &'t str,
    /// Whether the receiver can tell the topic from the packet as it is.
    pub(super) is_known: bool,
}

/// Why an alias has no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTopic {
    /// No packet has set it, or it was forgotten.
    NotSet,
    /// It is above [`MAX_TOPIC_ALIASES`].
    AboveMaximum,
}

impl Aliases {
    /// The topic of a PUBLISH with this topic, which may be empty, and this alias, which a packet with both sets.
    ///
    /// # Errors
    /// There is none.
    #[inline]
    pub(super) fn follow<'t>(&'t mut self, topic: &'t str, alias: Option<u16>) -> Result<Resolved<'t>, NoTopic> {
        match alias {
            Some(alias) if topic.is_empty() => {
                self.get(alias).map(|(topic, is_known)| Resolved { topic, is_known }).ok_or(NoTopic::NotSet)
            }
            Some(alias) if !self.set(alias, topic) => Err(NoTopic::AboveMaximum),
            _ => Ok(Resolved { topic, is_known: true }),
        }
    }

    /// The topic that an alias stands for, and whether the receiver knows that.
    fn get(&self, alias: u16) -> Option<(&str, bool)> {
        let alias = self.topics.get(usize::from(alias).checked_sub(1)?)?.as_ref()?;
        Some((&alias.topic, alias.is_known))
    }

    /// Sets what an alias stands for; the receiver does not know it yet. Returns `false` if the alias is above the maximum.
    fn set(&mut self, alias: u16, topic: &str) -> bool {
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
        let resolved = |topic, is_known| Ok(Resolved { topic, is_known });
        assert_eq!(aliases.follow("", Some(1)), Err(NoTopic::NotSet));
        assert_eq!(aliases.follow("t", None), resolved("t", true));
        assert_eq!(aliases.topics.len(), 0);
        assert_eq!(aliases.follow("t", Some(2)), resolved("t", true));
        assert_eq!(aliases.follow("", Some(2)), resolved("t", false));
        assert_eq!(aliases.follow("t", Some(MAX_TOPIC_ALIASES + 1)), Err(NoTopic::AboveMaximum));
        let mut aliases = Aliases::default();
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
