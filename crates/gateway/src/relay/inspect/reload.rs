//! What a reload changes for a live session. Enters: other rules. Leaves: the session with them, or why it ends: a broker cannot
//! be told to forget a subscription, or a will, quietly.

use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::{TopicFilter, Version};
use tokio::time::Instant;

use super::subscriptions::Comparison;
use super::{Ending, Inspect, WORK, max_packet};
use crate::outcome::CloseReason;
use crate::policy::{Decision, Denial, PacketRules, TopicRules};
use crate::util::clip::clip;

/// How many patterns may be looked at for the subscriptions of a session at once.
const COMPARE_BUDGET: u32 = 20_000;
/// What a subscription costs of it at least.
const MIN_COMPARE: u32 = 10;
/// The pause behind that.
const COMPARE_PAUSE: Duration = Duration::from_millis(1);

impl Inspect {
    /// Applies other rules from now on.
    ///
    /// # Errors
    /// The session closes.
    pub(super) fn follow(&mut self, rules: Arc<PacketRules>, now: Instant) -> Result<(), Ending> {
        if rules.mountpoint != self.rules.mountpoint {
            return Err(policy_changed("the mountpoint has changed"));
        }
        self.rules = rules;
        // Interval and maximum stay what the client was told.
        if self.version != Version::V5 {
            self.max_packet = max_packet(&self.rules);
        }
        self.keep_alive.enforce(self.rules.limits.max_keep_alive.is_some());
        self.check_will()?;
        self.comparison = Some(Comparison { last: "".into(), at: now });
        self.compare_subscriptions(now)
    }

    /// Evaluates the will by new rules: the broker would publish it in the client's name.
    ///
    /// # Errors
    /// The session closes: the will is no longer allowed.
    fn check_will(&self) -> Result<(), Ending> {
        let Some(will) = &self.will else { return Ok(()) };
        if let Err((_, topic)) = self.rules.check_topics(&will.topic, will.response_topic.as_deref()) {
            return Err(policy_changed(&format!("will to `{}`: {}", clip(topic), Denial::TopicName.label())));
        }
        let Some(topics) = self.rules.topics.as_ref().filter(|topics| !topics.is_shadow()) else { return Ok(()) };
        let message = will.message();
        let (mut decision, schema) = topics.publish(&message);
        if schema.is_some_and(|schema| !schema.accepts(&will.payload)) {
            decision.result = Err(Denial::Schema);
        }
        let Err(denial) = decision.result else { return Ok(()) };
        Err(policy_changed(&format!("will to {}", topics.explain(decision, message.subject(denial)))))
    }

    /// Compares some of the session's subscriptions with new rules. The rest has its turn a moment later: there may be thousands
    /// of both.
    ///
    /// # Errors
    /// The session closes: one of them is no longer allowed.
    pub(super) fn compare_subscriptions(&mut self, now: Instant) -> Result<(), Ending> {
        let Some(Comparison { last, .. }) = self.comparison.take_if(|comparison| comparison.at <= now) else {
            return Ok(());
        };
        let Some(topics) = self.rules.topics.as_ref().filter(|topics| !topics.is_shadow()) else { return Ok(()) };
        let mut budget = COMPARE_BUDGET;
        for filter in self.subscriptions.filters(&last) {
            let (decision, work) = decide_subscription(topics, filter);
            if decision.result.is_err() {
                return Err(policy_changed(&format!("subscription to {}", topics.explain(decision, filter))));
            }
            budget = budget.saturating_sub(work + MIN_COMPARE);
            if budget == 0 {
                self.comparison = Some(Comparison { last: filter.into(), at: now + COMPARE_PAUSE });
                break;
            }
        }
        Ok(())
    }
}

fn policy_changed(detail: &str) -> Ending {
    Ending { detail: Some(detail.into()), ..CloseReason::SessionPolicyChanged.into() }
}

/// Decides about a subscription that a session holds, by the work that its SUBSCRIBE could have had. Returns the number of
/// patterns that were looked at, too.
fn decide_subscription(topics: &TopicRules, filter: &str) -> (Decision, u32) {
    let filter = TopicFilter::new(filter).map(|filter| filter.shared().map_or(filter, |(_, shared)| shared));
    let Ok(filter) = filter else { return (Decision { rule: None, result: Err(Denial::Topic) }, 1) };
    let max = u32::try_from(WORK.burst).unwrap_or(u32::MAX);
    let mut budget = max;
    let (decision, _) = topics.subscribe(filter, &mut budget);
    (decision, max - budget)
}
