//! What topic policies decide. Enters: decisions. Leaves: counters, and a rate-limited log line that names the rule of each
//! denial. The labels are bounded by the configuration; a counter exists once it is used.

use std::sync::OnceLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::SessionInfo;
use super::rate_limit::FairRateLimit;
use crate::peer::Facts;
use crate::util::clip::{clip, may_hold_token};

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To publish a message, or to leave a will.
    Publish,
    /// To subscribe.
    Subscribe,
    /// To receive a message that the broker delivers.
    Deliver,
}

impl Action {
    const ALL: [Self; 3] = [Self::Publish, Self::Subscribe, Self::Deliver];

    const fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Deliver => "deliver",
        }
    }
}

const VERDICTS: [&str; 3] = ["allowed", "denied", "shadow_denied"];

/// The labels of a counter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByDecision {
    listener: String,
    policy: String,
    /// Counted from 1, or `no_match`.
    rule: String,
    action: &'static str,
    verdict: &'static str,
}

/// The counters of one topic policy at one listener.
#[derive(Debug)]
pub struct Decisions {
    listener: Box<str>,
    policy: Box<str>,
    family: Family<ByDecision, Counter>,
    /// By rule (the first is for no rule), action and verdict.
    counters: Box<[OnceLock<Counter>]>,
    denials: FairRateLimit,
    /// Lines about rules that cannot be evaluated for a client.
    failures: FairRateLimit,
}

impl Decisions {
    pub(super) fn new(family: Family<ByDecision, Counter>, listener: &str, policy: &str, rules: usize) -> Self {
        let counters = (0..=rules).flat_map(|_| 0..Action::ALL.len() * VERDICTS.len()).map(|_| OnceLock::new());
        Self {
            listener: listener.into(),
            policy: policy.into(),
            family,
            counters: counters.collect(),
            denials: FairRateLimit::default(),
            failures: FairRateLimit::default(),
        }
    }

    /// Counts so many decisions. `rule` is counted from 1; `None`: no rule matches.
    pub fn count(&self, action: Action, rule: Option<u32>, is_allowed: bool, is_shadow: bool, number: u64) {
        let verdict = if is_allowed { 0 } else { 1 + usize::from(is_shadow) };
        let index = (rule.unwrap_or(0) as usize * Action::ALL.len() + action as usize) * VERDICTS.len() + verdict;
        let Some(counter) = self.counters.get(index) else { return };
        let new = || {
            self.family.get_or_create_owned(&ByDecision {
                listener: self.listener.to_string(),
                policy: self.policy.to_string(),
                rule: label_of(rule),
                action: action.label(),
                verdict: VERDICTS[verdict],
            })
        };
        counter.get_or_init(new).inc_by(number);
    }

    /// Logs a denial, one a second for each client at most. `why` is the condition of the rule that failed.
    pub fn log_denial(
        &self,
        action: Action,
        rule: Option<u32>,
        why: &str,
        topic: &str,
        is_shadow: bool,
        client: &SessionInfo,
    ) {
        let suppressed = client.permit_line(&self.denials);
        if suppressed.is_none() && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (connection, client_id, remote) = (client.id, client.client_id(), client.address());
        let (listener, policy, rule, action) = (&*self.listener, &*self.policy, label_of(rule), action.label());
        let topic = &*clip(topic);
        let message =
            if is_shadow { "a topic policy in shadow mode would deny this" } else { "denied by a topic policy" };
        match suppressed {
            Some(suppressed) => tracing::info!(
                connection, listener, policy, rule, action, why, topic, client_id, %remote, suppressed, "{message}"
            ),
            None => tracing::debug!(
                connection, listener, policy, rule, action, why, topic, client_id, %remote, "{message}"
            ),
        }
    }

    /// Logs that a rule, or a part of it, cannot be evaluated for a client, and what follows from it.
    pub(crate) fn log_failure(&self, rule: u32, why: &str, failure: Failure, facts: &Facts<'_>) {
        let client_id = facts.mqtt.client_id;
        let Some(suppressed) = self.failures.permit(facts.peer.address.share()) else { return };
        let (listener, policy) = (&*self.listener, &*self.policy);
        let client_id = if may_hold_token(client_id) { "***" } else { &clip(client_id) };
        let message = match failure {
            Failure::LeftOut => "a rule gives a client fewer rights: a pattern is left out",
            Failure::WouldReject => {
                "a rule of a topic policy in shadow mode cannot be evaluated: enforced, it would reject the client"
            }
        };
        tracing::info!(listener, policy, rule, why, client_id, suppressed, "{message}");
    }
}

/// What follows if a rule cannot be evaluated for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It allows, and a pattern, or a list of them, is left out.
    LeftOut,
    /// It is in shadow mode. Enforced, it would reject the client.
    WouldReject,
}

fn label_of(rule: Option<u32>) -> String {
    rule.map_or_else(|| "no_match".to_owned(), |rule| rule.to_string())
}
