//! Looks at the rules of a topic policy by themselves: patterns in the notation of other products, patterns that no client can
//! have, rules that never decide.

use portcullis_wire::TopicFilter;

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::{Effect, TopicPolicy, TopicRule};
use super::super::values::Setting;
use crate::expr::Template;

/// What other products write in a pattern, and what has its place here.
const PLACEHOLDERS: &[(&str, &str)] = &[
    ("%c", "`${mqtt.client_id}`"),
    ("%u", "`${mqtt.username}`"),
    ("%m", "`mountpoint` of [[listener]], which is in front of every topic"),
    ("{{", "`${...}` with an expression"),
    ("$mqtt.", "`${mqtt....}`"),
    ("$cert.", "`${cert....}`"),
    ("$jwt.", "`${jwt....}`"),
];

/// Topics that stand for others at some brokers.
const STANDING_FOR_OTHERS: &[&str] = &["$queue/", "$exclusive/", "$delayed/"];

/// How many patterns are compared with each other: of more, that would take seconds.
const MAX_COMPARED: usize = 1000;

/// A rule, and its patterns with a name for each expression.
struct Named<'a> {
    rule: &'a TopicRule,
    /// Those of `publish` and those of `subscribe`.
    patterns: [Vec<String>; 2],
}

impl<'a> Named<'a> {
    fn of(rule: &'a TopicRule) -> Self {
        let names = |list: &[Setting<Template>]| list.iter().map(|pattern| pattern.value.with_names()).collect();
        Self { rule, patterns: [names(&rule.publish), names(&rule.subscribe)] }
    }
}

/// Runs the lints of one policy.
pub(super) fn run(policy: &TopicPolicy, diagnostics: &mut Diagnostics) {
    for rule in &policy.rules {
        for pattern in rule.publish.iter().chain(&rule.subscribe) {
            warn_of_placeholders(pattern, diagnostics);
            warn_of_pattern(pattern, rule, diagnostics);
        }
    }
    let patterns: usize = policy.rules.iter().map(|rule| rule.publish.len() + rule.subscribe.len()).sum();
    if patterns > MAX_COMPARED {
        return;
    }
    let named: Vec<_> = policy.rules.iter().map(Named::of).collect();
    for (index, rule) in named.iter().enumerate() {
        warn_if_unreachable(rule, &named[..index], diagnostics);
        if rule.rule.effect == Effect::Deny {
            warn_of_rights_in_front(rule, &named[..index], diagnostics);
        }
    }
}

/// Warns of text in a pattern or mountpoint that means something at other products, and nothing here.
pub(super) fn warn_of_placeholders(template: &Setting<Template>, diagnostics: &mut Diagnostics) {
    let text = template.value.with_each("");
    let placeholder = PLACEHOLDERS.iter().find(|(placeholder, _)| text.contains(placeholder));
    if let Some((placeholder, ours)) = placeholder {
        let complaint = Complaint::new(format!("`{placeholder}` is plain text here"));
        diagnostics.warning(template, complaint.hint(format!("use {ours}")));
    }
    if text.split('/').any(|level| level == "*") {
        let complaint = Complaint::new("`*` is plain text here, as everywhere in MQTT");
        diagnostics.warning(template, complaint.hint("`+` stands for one level, `#` for all that follow"));
    }
}

fn warn_of_pattern(pattern: &Setting<Template>, rule: &TopicRule, diagnostics: &mut Diagnostics) {
    let is_unfit = |template: &Template| template.expressions().any(|it| it.always_contains(&['/', '+', '#']));
    if is_unfit(&pattern.value) {
        let what =
            if rule.effect == Effect::Deny { "all clients are rejected" } else { "this pattern is always left out" };
        let complaint = Complaint::new(format!("a value that contains `/`, `+` or `#` is unfit, so {what}"));
        diagnostics.warning(pattern, complaint.hint("write an expression for each level: ${...}/${...}"));
    } else if pattern.value.has_ambiguous_level() {
        let message = "two expressions in one level: different clients can have the same pattern";
        let hint = "put `/` between them: \"a-b\" and \"c\" give the same level as \"a\" and \"b-c\"";
        diagnostics.warning(pattern, Complaint::new(message).hint(hint));
    }
    let standing = STANDING_FOR_OTHERS.iter().find(|prefix| pattern.value.source().starts_with(**prefix));
    if let Some(prefix) = standing.filter(|_| rule.effect == Effect::Allow) {
        let message = format!("some brokers take `{prefix}t` for `t`, which the other rules may deny");
        diagnostics.warning(
            pattern,
            Complaint::new(message).hint("write the topics behind it, as far as this rule is to reach"),
        );
    }
}

/// Warns of a rule that never decides, because rules in front of it match all of its topics.
fn warn_if_unreachable(named: &Named<'_>, before: &[Named<'_>], diagnostics: &mut Diagnostics) {
    let rule = named.rule;
    if rule.publish_from.is_some() || rule.subscribe_from.is_some() {
        return;
    }
    let mut first = usize::MAX;
    for (list, patterns) in named.patterns.iter().enumerate() {
        for pattern in patterns {
            let decides = |other: &Named<'_>| {
                other.rule.when.is_none() && other.patterns[list].iter().any(|other| relate(other, pattern).covers)
            };
            match before.iter().position(decides) {
                Some(number) => first = first.min(number),
                None => return,
            }
        }
    }
    if let Some(number) = first.checked_add(1) {
        let message = format!("this rule never decides: rule {number}, in front of it, matches all of its topics");
        let hint = "the first rule that matches decides: move it to the front";
        diagnostics.warning(&rule.table, Complaint::new(message).hint(hint));
    }
}

/// Warns of a rule that denies what a rule in front of it partly allows. To allow a part of what a later rule denies is a habit;
/// if neither has all topics of the other, the order is probably a mistake.
fn warn_of_rights_in_front(named: &Named<'_>, before: &[Named<'_>], diagnostics: &mut Diagnostics) {
    for (number, other) in (1..).zip(before) {
        if other.rule.effect == Effect::Deny || other.rule.when.is_some() {
            continue;
        }
        for (pattern, at) in named.patterns[0].iter().zip(&named.rule.publish) {
            let is_partly_allowed = |allowed: &String| {
                let relation = relate(allowed, pattern);
                relation.overlaps && !relation.covers && !relation.is_covered
            };
            if let Some(index) = other.patterns[0].iter().position(is_partly_allowed) {
                let allowed = other.rule.publish[index].value.source();
                let message = format!("rule {number}, in front of this one, allows a part of it: `{allowed}`");
                let hint = "the first rule that matches decides: move this rule to the front";
                diagnostics.warning(at, Complaint::new(message).hint(hint));
                return;
            }
        }
    }
}

/// How the topics of two patterns relate, whatever the values of their expressions are; the same expressions have the same
/// ones.
#[derive(Clone, Copy, Default)]
struct Relation {
    /// The first has all of the second.
    covers: bool,
    /// The second has all of the first.
    is_covered: bool,
    overlaps: bool,
}

/// The patterns have a name for each expression.
fn relate(one: &str, two: &str) -> Relation {
    match (TopicFilter::new(one), TopicFilter::new(two)) {
        (Ok(one), Ok(two)) => {
            Relation { covers: one.covers(two), is_covered: two.covers(one), overlaps: one.overlaps(two) }
        }
        // An error was reported.
        _ => Relation::default(),
    }
}
