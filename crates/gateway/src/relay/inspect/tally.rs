//! Counts what topic rules allow. Enters: each decision. Leaves: counts, when another rule decides or a chunk ends: the counters
//! are shared by all sessions, and one addition for each message would be most of what a decision costs.

use crate::observe::Action;
use crate::policy::TopicRules;

/// Decisions of one rule that are not counted yet.
#[derive(Debug, Default)]
pub(super) struct Tally {
    rule: Option<u32>,
    number: u32,
}

impl Tally {
    /// A rule allows something.
    #[inline]
    pub(super) fn allowed(&mut self, topics: &TopicRules, action: Action, rule: Option<u32>) {
        if self.rule != rule {
            self.flush(topics, action);
            self.rule = rule;
        }
        self.number += 1;
    }

    /// The rule allows something again.
    #[inline]
    pub(super) fn again(&mut self) {
        // Without topic rules, nothing is counted.
        self.number += u32::from(self.number > 0);
    }

    /// Counts what is not counted yet.
    pub(super) fn flush(&mut self, topics: &TopicRules, action: Action) {
        if self.number > 0 {
            topics.count_allowed(action, self.rule, u64::from(std::mem::take(&mut self.number)));
        }
    }
}
