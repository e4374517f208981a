//! `[[topic_policy]]`, and the keys of listeners that concern packets: `topics`, `mountpoint`, `[listener.publish]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use portcullis_wire::TopicFilter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{ByteSize, Location, Setting};
use super::{Named, compile};
use crate::expr::{Expression, Template, Wanted};

/// The deepest pattern, in levels. Deciding about a topic takes time by the depth of patterns, not of topics.
pub(crate) const MAX_PATTERN_LEVELS: usize = 128;
/// The longest mountpoint, in bytes: it is put in front of every topic.
const MAX_MOUNTPOINT: usize = 1024;
/// The largest payload that is collected for a schema, unless `max_payload` says otherwise.
const DEFAULT_SCHEMA_PAYLOAD: usize = 64 << 10;
/// Payloads are validated on the threads that move bytes.
const MAX_SCHEMA_PAYLOAD: usize = 256 << 10;

/// What clients may publish and subscribe to. Listeners refer to it by `topics`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "TopicPolicy", extend("required" = ["name"]))]
pub(in crate::config) struct TopicPolicyTable {
    /// Name of the policy. Appears in logs and metrics; must be unique.
    name: Option<Setting<String>>,
    /// What applies to topics that no rule matches: `deny` or `allow`.
    no_match: Effect,
    /// What happens to a PUBLISH that is denied: `ack` (it is acknowledged, and not delivered) or `disconnect`.
    on_deny: OnDeny,
    /// `enforce`, or `shadow`: everything passes, and what would be denied is logged and counted.
    mode: PolicyMode,
    /// Whether a response topic (MQTT 5) requires the right to subscribe to it.
    check_response_topic: bool,
    /// Rules, in order: the first that matches decides.
    rule: Vec<Setting<TopicRuleTable>>,
}

impl Default for TopicPolicyTable {
    fn default() -> Self {
        Self {
            name: None,
            no_match: Effect::Deny,
            on_deny: OnDeny::Ack,
            mode: PolicyMode::Enforce,
            check_response_topic: true,
            rule: Vec::new(),
        }
    }
}

impl Named for TopicPolicyTable {
    fn name(&self) -> Option<&Setting<String>> {
        self.name.as_ref()
    }
}

/// A rule of a topic policy. In patterns, `${...}` is an expression that yields one topic level.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "TopicRule")]
struct TopicRuleTable {
    /// `allow` or `deny`.
    effect: Effect,
    /// Condition of the rule: an expression that yields a boolean, evaluated once for each CONNECT. Default: it always
    /// applies.
    when: Option<Setting<String>>,
    /// Topics that may be published to, with the wildcards of MQTT.
    publish: Vec<Setting<String>>,
    /// Topics that may be subscribed to. A filter is allowed if one pattern includes all that it matches.
    subscribe: Vec<Setting<String>>,
    /// Expression that yields a list of further patterns for `publish`: `jwt.acl.pub`. Default: none.
    publish_from: Option<Setting<String>>,
    /// Expression that yields a list of further patterns for `subscribe`. Default: none.
    subscribe_from: Option<Setting<String>>,
    /// Highest QoS: subscriptions are lowered to it, and a PUBLISH above it is denied. Default: 2.
    max_qos: Option<Setting<u8>>,
    /// Whether messages may be retained. Default: `true`.
    retain: Option<Setting<bool>>,
    /// Largest payload of a PUBLISH. Default: no limit; with `schema` `64KiB`.
    max_payload: Option<Setting<ByteSize>>,
    /// File with a JSON Schema that payloads have to meet. Default: none.
    schema: Option<Setting<PathBuf>>,
}

impl Default for TopicRuleTable {
    fn default() -> Self {
        Self {
            effect: Effect::Allow,
            when: None,
            publish: Vec::new(),
            subscribe: Vec::new(),
            publish_from: None,
            subscribe_from: None,
            max_qos: None,
            retain: None,
            max_payload: None,
            schema: None,
        }
    }
}

/// What the gateway adds to messages of MQTT 5 clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Publish")]
pub(super) struct PublishTable {
    /// User properties by name, each an expression that yields a string, evaluated once for each CONNECT. They replace those
    /// that the client sends under the same names, so that subscribers can trust them. Default: none.
    user_properties: BTreeMap<String, Setting<String>>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies.
    Deny,
}

/// What happens to a PUBLISH that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDeny {
    /// It is acknowledged, and not delivered.
    Ack,
    /// The session ends.
    Disconnect,
}

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// It is.
    Enforce,
    /// Everything passes; what would be denied is logged and counted.
    Shadow,
}

/// A topic policy, validated.
#[derive(Debug)]
pub struct TopicPolicy {
    /// Unique.
    pub name: String,
    /// Location of the table.
    pub(crate) table: Location,
    /// What applies to topics that no rule matches.
    pub no_match: Effect,
    /// What happens to a PUBLISH that is denied.
    pub on_deny: OnDeny,
    /// Whether the policy is enforced.
    pub mode: PolicyMode,
    /// Whether a response topic requires the right to subscribe to it.
    pub check_response_topic: bool,
    /// In order.
    pub rules: Vec<TopicRule>,
}

/// A rule, validated.
#[derive(Debug)]
pub struct TopicRule {
    /// Location of the table.
    pub(crate) table: Location,
    /// What it does.
    pub effect: Effect,
    /// `None`: it always applies.
    pub when: Option<Setting<Expression>>,
    /// Patterns for PUBLISH.
    pub publish: Vec<Setting<Template>>,
    /// Patterns for SUBSCRIBE.
    pub subscribe: Vec<Setting<Template>>,
    /// Yields further patterns for PUBLISH.
    pub publish_from: Option<Setting<Expression>>,
    /// Yields further patterns for SUBSCRIBE.
    pub subscribe_from: Option<Setting<Expression>>,
    /// Highest QoS.
    pub max_qos: u8,
    /// Whether messages may be retained.
    pub retain: bool,
    /// Largest payload in bytes.
    pub max_payload: Option<usize>,
    /// JSON Schema of payloads.
    pub schema: Option<Setting<PathBuf>>,
}

pub(super) fn validate(table: &Setting<TopicPolicyTable>, document: &mut Document) -> TopicPolicy {
    if table.rule.is_empty() && !document.is_unread("rule", table) {
        let what = if table.no_match == Effect::Deny { "denies everything" } else { "allows everything" };
        let complaint = Complaint::new(format!("this policy has no rules: it {what}"));
        document.warning(table, complaint.hint("[[topic_policy.rule]] publish = [\"devices/${mqtt.client_id}/#\"]"));
    }
    TopicPolicy {
        // `names` has reported a missing name.
        name: table.name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
        table: table.location.clone().unwrap_or_default(),
        no_match: table.no_match,
        on_deny: table.on_deny,
        mode: table.mode,
        check_response_topic: table.check_response_topic,
        rules: table.rule.iter().map(|rule| validate_rule(rule, document)).collect(),
    }
}

fn validate_rule(table: &Setting<TopicRuleTable>, document: &mut Document) -> TopicRule {
    let has_publish = !table.publish.is_empty() || table.publish_from.is_some();
    let has_subscribe = !table.subscribe.is_empty() || table.subscribe_from.is_some();
    let is_unread =
        ["publish", "subscribe", "publish_from", "subscribe_from"].iter().any(|key| document.is_unread(key, table));
    if !has_publish && !has_subscribe && !is_unread {
        let complaint = Complaint::new("this rule matches nothing: it has neither `publish` nor `subscribe`");
        document.error(table, complaint.hint("publish = [\"devices/${mqtt.client_id}/#\"]"));
    }
    warn_of_conditions_without_effect(table, has_publish, document);
    if let Some(qos) = table.max_qos.as_ref().filter(|qos| qos.value > 2) {
        document.error(qos, "`max_qos` must be 0, 1 or 2");
    }
    if table.schema.is_some()
        && let Some(size) = table.max_payload.as_ref().filter(|size| size.value.0 > MAX_SCHEMA_PAYLOAD)
    {
        let message = "with `schema`, `max_payload` must be at most 256KiB: such payloads are collected before they are validated";
        document.error(size, message);
    }
    let schema_payload = table.schema.is_some().then_some(DEFAULT_SCHEMA_PAYLOAD);
    let patterns = |list: &[Setting<String>], document: &mut Document| {
        list.iter().filter_map(|pattern| compile_pattern(pattern, document).ok()).collect::<Vec<_>>()
    };
    let expression = |source: &Option<Setting<String>>, wanted, document: &mut Document| {
        compile(source.as_ref(), wanted, document).ok().flatten()
    };
    TopicRule {
        table: table.location.clone().unwrap_or_default(),
        effect: table.effect,
        when: expression(&table.when, Wanted::Bool, document),
        publish: patterns(&table.publish, document),
        subscribe: patterns(&table.subscribe, document),
        publish_from: expression(&table.publish_from, Wanted::List, document),
        subscribe_from: expression(&table.subscribe_from, Wanted::List, document),
        max_qos: table.max_qos.as_ref().map_or(2, |qos| qos.value),
        retain: table.retain.as_ref().is_none_or(|retain| retain.value),
        max_payload: table.max_payload.as_ref().map(|size| size.value.0).or(schema_payload),
        schema: table.schema.as_ref().map(|path| path.map(|path| document.resolve(path))),
    }
}

/// Conditions say what an allowed message has to be like.
fn warn_of_conditions_without_effect(table: &TopicRuleTable, has_publish: bool, document: &mut Document) {
    let conditions = [
        ("max_qos", table.max_qos.as_ref().map(|it| it.map(|_| ()))),
        ("retain", table.retain.as_ref().map(|it| it.map(|_| ()))),
        ("max_payload", table.max_payload.as_ref().map(|it| it.map(|_| ()))),
        ("schema", table.schema.as_ref().map(|it| it.map(|_| ()))),
    ];
    for (key, at) in conditions.iter().filter_map(|(key, at)| Some((*key, at.as_ref()?))) {
        if table.effect == Effect::Deny {
            let complaint = Complaint::new(format!("`{key}` has no effect in a rule that denies"));
            document.warning(at, complaint.hint("put it into the rule that allows"));
        } else if !has_publish && key != "max_qos" {
            document.warning(at, format!("`{key}` has no effect in a rule without `publish`"));
        }
    }
}

/// Compiles a pattern, and checks that it is a topic filter whatever its expressions yield.
fn compile_pattern(source: &Setting<String>, document: &mut Document) -> Result<Setting<Template>, Reported> {
    let template = compile_template(source, document)?;
    let example = template.with_each("x");
    let complaint = match TopicFilter::new(&example) {
        Ok(filter) if filter.is_shared() => Complaint::new("a pattern has no share name")
            .hint("a shared subscription is judged by the filter behind its share name"),
        Ok(_) if portcullis_wire::topic_levels(&example) > MAX_PATTERN_LEVELS => {
            Complaint::new(format!("a pattern has at most {MAX_PATTERN_LEVELS} levels"))
        }
        Ok(_) => return Ok(source.map(|_| template)),
        Err(_) if example.is_empty() => Complaint::new("a pattern is empty"),
        Err(_) => Complaint::new(format!("`{}` is not a topic filter", template.source()))
            .hint("`+` stands for one whole level, `#` for all that follow: \"a/+/b\", \"a/#\""),
    };
    Err(document.error(source, complaint))
}

/// Compiles text with expressions in it.
pub(super) fn compile_template(source: &Setting<String>, document: &mut Document) -> Result<Template, Reported> {
    Template::compile(source).map_err(|errors| {
        for error in errors {
            let mut complaint = Complaint::new(error.message);
            complaint.hint = error.hint;
            // The text differs from the file where something was substituted.
            if document.is_substituted(source) {
                document.error(source, complaint);
            } else {
                document.diagnostics.error_within(source, error.span, complaint);
            }
        }
        document.diagnostics.already_reported()
    })
}

pub(super) fn validate_mountpoint(
    source: &Setting<String>,
    document: &mut Document,
) -> Result<Setting<Template>, Reported> {
    let template = compile_template(source, document)?;
    let example = template.with_each("x");
    let complaint = if example.is_empty() || example == "/" {
        Complaint::new("a mountpoint names at least one level").hint("mountpoint = 'tenants/${cert.subject.o}/'")
    } else if example.contains(['+', '#', '\0']) {
        Complaint::new("a mountpoint has no wildcards")
            .hint("it is text with ${...}, and no expression: 'tenants/${cert.subject.o}/'")
    } else if !example.ends_with('/') {
        Complaint::new("a mountpoint ends with `/`").hint(format!("mountpoint = '{}/'", template.source()))
    } else if example.starts_with('$') {
        Complaint::new("a mountpoint cannot begin with `$`: brokers keep such topics for themselves")
    } else if template.has_ambiguous_level() {
        Complaint::new("two expressions in one level: different clients can have the same mountpoint")
            .hint("put `/` between them: \"a-b\" and \"c\" give the same level as \"a\" and \"b-c\"")
    } else if example.len() > MAX_MOUNTPOINT {
        Complaint::new(format!("a mountpoint has at most {MAX_MOUNTPOINT} bytes"))
    } else {
        return Ok(source.map(|_| template));
    };
    Err(document.error(source, complaint))
}

/// The user properties that are added to messages: name and expression of each.
pub(super) fn validate_publish(table: &PublishTable, document: &mut Document) -> Vec<(String, Setting<Expression>)> {
    let mut properties = Vec::new();
    for (name, source) in &table.user_properties {
        if name.is_empty() || name.contains('\0') || name.len() > usize::from(u16::MAX) {
            document.error(source, "the name of a user property is empty, too long, or contains U+0000");
            continue;
        }
        if let Ok(Some(expression)) = compile(Some(source), Wanted::String, document) {
            properties.push((name.clone(), expression));
        }
    }
    properties
}
