//! Topic policies: what a client may publish, subscribe to and receive. Enters: a policy of the configuration, then the facts
//! about a client at CONNECT, then topics. Leaves: for each topic the rule that decides, and whether it allows. Not here:
//! packets and their answers, or I/O.
//!
//! Rules that are the same for every client are compiled once, with the policy; those with a condition or with `${...}` are
//! compiled for each session, which keeps only those that apply to it.

mod schema;
mod trie;

use std::sync::Arc;

use portcullis_wire::{Disconnect, TopicFilter, topic_levels};
use serde_json::Value as Json;

pub(crate) use schema::Schema;
use trie::{NO_RULE, RuleId, Trie};

use crate::config::tables::{self, Effect, MAX_PATTERN_LEVELS, OnDeny, PolicyMode};
use crate::config::{Diagnostics, Reported, Setting};
use crate::expr::{Expression, Template};
use crate::observe::{Action, Decisions, Failure, SessionInfo};
use crate::outcome::{Reject, note_detail};
use crate::peer::Facts;
use crate::util::clip::clip;

/// The patterns of one session, in bytes. Patterns can come from tokens and services.
const MAX_SESSION_PATTERNS: usize = 64 << 10;

/// A topic policy, compiled.
#[derive(Debug)]
pub(crate) struct TopicPolicy {
    name: Box<str>,
    no_match: Effect,
    on_deny: OnDeny,
    mode: PolicyMode,
    check_response_topic: bool,
    rules: Box<[Rule]>,
    /// The rules that are the same for every client.
    fixed: Patterns,
}

#[derive(Debug)]
struct Rule {
    effect: Effect,
    /// `None`: for every client.
    for_client: Option<ForClient>,
    max_qos: u8,
    retain: bool,
    max_payload: Option<usize>,
    schema: Option<Schema>,
}

/// What has to be evaluated for each client.
#[derive(Debug)]
struct ForClient {
    when: Option<Expression>,
    publish: Vec<Template>,
    subscribe: Vec<Template>,
    publish_from: Option<Expression>,
    subscribe_from: Option<Expression>,
}

/// The patterns of a rule.
struct RulePatterns {
    id: RuleId,
    effect: Effect,
    max_qos: u8,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

/// Patterns by what they are for.
#[derive(Debug, Default)]
struct Patterns {
    publish: Trie,
    /// Of rules that allow.
    subscribe: Trie,
    /// Of rules that deny, or that lower the QoS: those that concern a filter of which they match a part.
    restrict: Trie,
}

/// The rules of one session.
#[derive(Debug)]
pub(crate) struct TopicRules {
    policy: Arc<TopicPolicy>,
    decisions: Arc<Decisions>,
    /// `None`: the client has no rules of its own.
    own: Option<Box<Patterns>>,
}

/// A decision about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The rule that decided, counted from 1; `None`: no rule matches.
    pub(crate) rule: Option<u32>,
    /// Whether the topic is allowed.
    pub(crate) result: Result<(), Denial>,
}

/// Why something is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// By a rule, or because none matches.
    Topic,
    /// The response topic.
    ResponseTopic,
    /// `max_qos`.
    Qos,
    /// `retain`.
    Retain,
    /// `max_payload`.
    PayloadSize,
    /// `schema`.
    Schema,
    /// `max_topic_levels`, or the topic is too long with the mountpoint.
    TopicName,
    /// The packet is too large with what the gateway adds to it.
    PacketSize,
    /// Too many patterns would have to be compared with the filter.
    Work,
}

impl Denial {
    /// The reason of a DISCONNECT, if the policy ends the session.
    pub(crate) const fn disconnect(self) -> Disconnect {
        match self {
            Denial::Topic | Denial::ResponseTopic => Disconnect::NotAuthorized,
            Denial::Qos => Disconnect::QosNotSupported,
            Denial::Retain => Disconnect::RetainNotSupported,
            Denial::PayloadSize | Denial::PacketSize => Disconnect::PacketTooLarge,
            Denial::Work => Disconnect::QuotaExceeded,
            Denial::Schema => Disconnect::PayloadFormatInvalid,
            Denial::TopicName => Disconnect::TopicNameInvalid,
        }
    }

    /// The reason code of a PUBACK or PUBREC, which have fewer than DISCONNECT [MQTT-3.4.2.1].
    pub(crate) const fn ack_code(self) -> u8 {
        match self {
            Denial::Schema => Disconnect::PayloadFormatInvalid.code(),
            Denial::TopicName => Disconnect::TopicNameInvalid.code(),
            Denial::PacketSize => Disconnect::QuotaExceeded.code(),
            _ => Disconnect::NotAuthorized.code(),
        }
    }

    /// In logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Denial::Topic => "topic",
            Denial::ResponseTopic => "response topic",
            Denial::Qos => "max_qos",
            Denial::Retain => "retain",
            Denial::PayloadSize => "max_payload",
            Denial::Schema => "schema",
            Denial::TopicName => "topic name",
            Denial::PacketSize => "packet size",
            Denial::Work => "too many patterns to compare",
        }
    }
}

/// What is decided about of a PUBLISH or a will.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) topic: &'a str,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) payload_len: usize,
    pub(crate) response_topic: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// What a denial is about.
    pub(crate) fn subject(&self, denial: Denial) -> &'a str {
        self.response_topic.filter(|_| denial == Denial::ResponseTopic).unwrap_or(self.topic)
    }
}

impl TopicPolicy {
    /// Compiles a policy and the schemas that its rules name.
    pub(crate) fn open(settings: tables::TopicPolicy, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let tables::TopicPolicy { name, no_match, on_deny, mode, check_response_topic, rules, .. } = settings;
        let mut fixed: Vec<RulePatterns> = Vec::new();
        let mut compiled = Vec::new();
        let mut result = Ok(());
        for (id, rule) in (0..).zip(rules) {
            let tables::TopicRule { effect, when, publish, subscribe, publish_from, subscribe_from, .. } = rule;
            let templates = |list: Vec<Setting<Template>>| list.into_iter().map(|it| it.value).collect::<Vec<_>>();
            let value = |expression: Option<Setting<Expression>>| expression.map(|it| it.value);
            let (publish, subscribe) = (templates(publish), templates(subscribe));
            let (when, publish_from, subscribe_from) = (value(when), value(publish_from), value(subscribe_from));
            let schema = rule.schema.map(|path| Schema::open(&path, diagnostics)).transpose();
            let is_fixed = when.is_none()
                && publish_from.is_none()
                && subscribe_from.is_none()
                && publish.iter().chain(&subscribe).all(Template::is_constant);
            let for_client = if is_fixed {
                let text = |templates: &[Template]| templates.iter().map(|it| it.source().to_owned()).collect();
                let (publish, subscribe) = (text(&publish), text(&subscribe));
                fixed.push(RulePatterns { id, effect, max_qos: rule.max_qos, publish, subscribe });
                None
            } else {
                Some(ForClient { when, publish, subscribe, publish_from, subscribe_from })
            };
            let (max_qos, retain, max_payload) = (rule.max_qos, rule.retain, rule.max_payload);
            match schema {
                Ok(schema) => compiled.push(Rule { effect, for_client, max_qos, retain, max_payload, schema }),
                Err(reported) => result = Err(reported),
            }
        }
        result?;
        let fixed = Patterns::new(&fixed);
        Ok(Self { name: name.into(), no_match, on_deny, mode, check_response_topic, rules: compiled.into(), fixed })
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is enforced.
    pub(crate) fn is_enforced(&self) -> bool {
        self.mode == PolicyMode::Enforce
    }

    /// The number of rules.
    pub(crate) fn rules(&self) -> usize {
        self.rules.len()
    }

    /// Whether a rule uses this fact, or one below it.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.rules.iter().filter_map(|rule| rule.for_client.as_ref()).any(|rule| rule.uses(name))
    }
}

impl ForClient {
    fn uses(&self, name: &str) -> bool {
        let lists = [&self.when, &self.publish_from, &self.subscribe_from].into_iter().flatten();
        let templates = self.publish.iter().chain(&self.subscribe).flat_map(Template::expressions);
        lists.chain(templates).any(|expression| expression.uses(name))
    }

    /// The patterns for a client. `None`: the condition is not true.
    ///
    /// # Errors
    /// Why the condition, or a rule that denies, cannot be evaluated. A rule that allows keeps the patterns that can be, and
    /// calls `left_out` with why another one cannot.
    fn patterns(
        &self,
        effect: Effect,
        facts: &Facts<'_>,
        left_out: impl Fn(&str),
    ) -> Result<Option<[Vec<String>; 2]>, String> {
        if let Some(when) = &self.when
            && !when.try_bool(facts)?
        {
            return Ok(None);
        }
        let mut lists = [Vec::new(), Vec::new()];
        let sources = [
            ("publish_from", &self.publish, &self.publish_from),
            ("subscribe_from", &self.subscribe, &self.subscribe_from),
        ];
        for (list, (key, templates, from)) in lists.iter_mut().zip(sources) {
            for template in templates {
                match template.evaluate(facts) {
                    Ok(pattern) => list.push(pattern),
                    Err(why) if effect == Effect::Deny => return Err(why),
                    Err(why) => left_out(&format!("pattern `{}`: {why}", template.source())),
                }
            }
            let Some(from) = from else { continue };
            match from.try_json(facts).and_then(|value| pattern_list(&value)) {
                Ok(patterns) => list.extend(patterns),
                Err(why) if effect == Effect::Deny => return Err(format!("{key} `{from}`: {why}")),
                Err(why) => left_out(&format!("{key} `{from}`: {why}")),
            }
        }
        Ok(Some(lists))
    }
}

/// The patterns in the value of `publish_from` or `subscribe_from`: all of them, or none.
///
/// # Errors
/// What is wrong with the value.
fn pattern_list(value: &Json) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| format!("is {}, not a list", kind_of(value)))?;
    let pattern = |(number, item): (usize, &Json)| {
        let text = item.as_str().ok_or_else(|| format!("entry {number} is {}, not a string", kind_of(item)))?;
        let what = match TopicFilter::new(text) {
            Err(_) => "is not a topic filter",
            Ok(filter) if filter.is_shared() => "has a share name",
            Ok(_) if topic_levels(text) > MAX_PATTERN_LEVELS => "has too many levels",
            Ok(_) => return Ok(text.to_owned()),
        };
        Err(format!("entry {number}, \"{}\", {what}", clip(text)))
    };
    (1..).zip(list).map(pattern).collect()
}

fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

impl Patterns {
    fn new(rules: &[RulePatterns]) -> Self {
        let of = |is_wanted: &dyn Fn(Effect, u8) -> bool, is_publish: bool| {
            let rules = rules.iter().filter(|rule| is_wanted(rule.effect, rule.max_qos));
            Trie::new(rules.flat_map(|rule| {
                let list = if is_publish { &rule.publish } else { &rule.subscribe };
                list.iter().map(|pattern| (pattern.as_str(), rule.id))
            }))
        };
        Self {
            publish: of(&|_, _| true, true),
            subscribe: of(&|effect, _| effect == Effect::Allow, false),
            restrict: of(&|effect, max_qos| effect == Effect::Deny || max_qos < 2, false),
        }
    }
}

impl TopicRules {
    /// The rules for a client.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: a condition, or a rule that denies, cannot be evaluated, or there are too many patterns.
    pub(crate) fn for_client(
        policy: &Arc<TopicPolicy>,
        decisions: &Arc<Decisions>,
        facts: &Facts<'_>,
    ) -> Result<Self, Reject> {
        let mut own = Vec::new();
        let mut size = 0;
        for (id, rule) in (0..).zip(&policy.rules) {
            let Some(for_client) = &rule.for_client else { continue };
            let refused = |why: &str| {
                note_detail(&format!("rule {} of topic policy `{}`: {why}", id + 1, policy.name));
                Reject::ExpressionFailed
            };
            let failed = |why: &str, failure| decisions.log_failure(id + 1, why, failure, facts);
            let left_out = |why: &str| failed(why, Failure::LeftOut);
            let patterns = match for_client.patterns(rule.effect, facts, left_out) {
                Ok(Some(patterns)) => patterns,
                Ok(None) => continue,
                Err(why) if policy.mode == PolicyMode::Enforce => return Err(refused(&why)),
                Err(why) => {
                    failed(&why, Failure::WouldReject);
                    continue;
                }
            };
            size += patterns.iter().flatten().map(String::len).sum::<usize>();
            if size > MAX_SESSION_PATTERNS {
                let why = "the patterns of this client are too long together";
                if policy.mode == PolicyMode::Enforce {
                    return Err(refused(why));
                }
                failed(why, Failure::WouldReject);
                break;
            }
            let [publish, subscribe] = patterns;
            own.push(RulePatterns { id, effect: rule.effect, max_qos: rule.max_qos, publish, subscribe });
        }
        let own = (!own.is_empty()).then(|| Box::new(Patterns::new(&own)));
        Ok(Self { policy: Arc::clone(policy), decisions: Arc::clone(decisions), own })
    }

    /// Whether denials only count.
    pub(crate) fn is_shadow(&self) -> bool {
        self.policy.mode == PolicyMode::Shadow
    }

    /// What happens to a PUBLISH that is denied.
    pub(crate) fn on_deny(&self) -> OnDeny {
        self.policy.on_deny
    }

    /// Decides about a message of the client. If the rule has a schema, that is still to be checked.
    pub(crate) fn publish(&self, message: &Message<'_>) -> (Decision, Option<&Schema>) {
        let id = self.first(|patterns| &patterns.publish, message.topic, NO_RULE);
        let mut decision = self.decide(id, message.topic);
        let rule = self.policy.rules.get(id as usize);
        if let (Some(rule), Ok(())) = (rule, decision.result) {
            decision.result = rule.check(message);
        }
        if let (Some(topic), Ok(()), true) = (message.response_topic, decision.result, self.policy.check_response_topic)
        {
            let response = self.receive(topic);
            if response.result.is_err() {
                decision = Decision { rule: response.rule, result: Err(Denial::ResponseTopic) };
            }
        }
        let schema = rule.and_then(|rule| rule.schema.as_ref()).filter(|_| decision.result.is_ok());
        (decision, schema)
    }

    /// Decides whether the client may receive messages of this topic.
    pub(crate) fn receive(&self, topic: &str) -> Decision {
        let id = self.first(|patterns| &patterns.subscribe, topic, NO_RULE);
        self.decide(self.first(|patterns| &patterns.restrict, topic, id), topic)
    }

    /// Decides about a subscription: allowed if all topics that the filter matches are. Returns the highest QoS that it may
    /// have. `budget` bounds the work and is reduced by it; what exceeds it is denied, because a rule that denies may not have been found.
    pub(crate) fn subscribe(&self, filter: TopicFilter<'_>, budget: &mut u32) -> (Decision, u8) {
        let cover = self.sets().map(|patterns| patterns.subscribe.first_cover(filter)).min().unwrap_or(NO_RULE);
        // Without a rule that covers the filter, all rules concern it.
        let (mut denied_by, mut max_qos) =
            (NO_RULE, self.policy.rules.get(cover as usize).map_or(2, |rule| rule.max_qos));
        for patterns in self.sets() {
            patterns.restrict.overlaps(filter, cover, budget, &mut |id| match self.policy.rules.get(id as usize) {
                Some(rule) if rule.effect == Effect::Allow => max_qos = max_qos.min(rule.max_qos),
                _ => denied_by = denied_by.min(id),
            });
        }
        let mut decision = self.decide(if denied_by == NO_RULE { cover } else { denied_by }, filter.as_str());
        if *budget == 0 && decision.result.is_ok() {
            decision.result = Err(Denial::Work);
        }
        (decision, max_qos)
    }

    /// Counts decisions by a rule that allow.
    pub(crate) fn count_allowed(&self, action: Action, rule: Option<u32>, number: u64) {
        self.decisions.count(action, rule, true, self.is_shadow(), number);
    }

    /// Counts a decision, and logs it if it denies. `subject` is the topic; `client` names the client.
    pub(crate) fn count(&self, action: Action, decision: Decision, subject: &str, client: &SessionInfo) {
        let is_shadow = self.is_shadow();
        self.decisions.count(action, decision.rule, decision.result.is_ok(), is_shadow, 1);
        if let Err(denial) = decision.result {
            if !is_shadow && action != Action::Deliver {
                client.count_denial();
            }
            self.decisions.log_denial(action, decision.rule, denial.label(), subject, is_shadow, client);
        }
    }

    /// A denial in words, for the access log. `subject` is the topic.
    pub(crate) fn explain(&self, decision: Decision, subject: &str) -> String {
        let (subject, policy) = (clip(subject), &self.policy.name);
        let why = decision.result.err().map_or("allowed", Denial::label);
        match decision.rule {
            Some(rule) => format!("`{subject}`: {why}, by rule {rule} of topic policy `{policy}`"),
            None => format!("`{subject}`: {why}, no rule of topic policy `{policy}` matches"),
        }
    }

    /// `topic`: name or filter.
    fn decide(&self, id: RuleId, topic: &str) -> Decision {
        let rule = self.policy.rules.get(id as usize);
        // What begins with `$` is the broker's, and may mean another topic (`$delayed/60/secret` of EMQX): only a rule allows it.
        let no_match = if topic.starts_with('$') { Effect::Deny } else { self.policy.no_match };
        let effect = rule.map_or(no_match, |rule| rule.effect);
        let result = if effect == Effect::Allow { Ok(()) } else { Err(Denial::Topic) };
        Decision { rule: rule.map(|_| id + 1), result }
    }

    #[inline]
    fn first(&self, of: impl Fn(&Patterns) -> &Trie, topic: &str, before: RuleId) -> RuleId {
        self.sets().fold(before, |before, patterns| of(patterns).first_match(topic, before))
    }

    fn sets(&self) -> impl Iterator<Item = &Patterns> {
        std::iter::once(&self.policy.fixed).chain(self.own.as_deref())
    }
}

impl Rule {
    /// Checks the conditions, in the order in which they are documented.
    fn check(&self, message: &Message<'_>) -> Result<(), Denial> {
        if message.qos > self.max_qos {
            return Err(Denial::Qos);
        }
        if message.retain && !self.retain {
            return Err(Denial::Retain);
        }
        if self.max_payload.is_some_and(|max| message.payload_len > max) {
            return Err(Denial::PayloadSize);
        }
        Ok(())
    }
}
