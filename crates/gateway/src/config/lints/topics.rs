//! Looks at the expressions of topic policies, mountpoints and stamps as the clients of each listener have them, and at what the
//! listener does to topics and client IDs.

use portcullis_wire::topic_levels;

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::{Effect, Listener, Settings, TopicPolicy, TopicRule};
use super::super::values::{Location, Setting};
use super::clients::{how_to_have, lacked_by_all, proves_nothing_of, report_impossible_value, report_unknown_name};
use super::rules::warn_of_placeholders;
use crate::expr::{Expression, Template};

/// What follows if an expression has no value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Rejected,
    LeftOut,
}

/// Runs the lints of one listener.
pub(super) fn run(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    let policy = settings.topic_policies.iter().find(|policy| listener.topics.as_ref() == Some(&policy.name));
    for Place { expression, at, without } in places(listener, policy) {
        if report_unknown_name(expression, &at, settings, diagnostics).is_err() {
            continue;
        }
        report_impossible_value(expression, &at, diagnostics);
        if let Some(root) = lacked_by_all(expression, listener, settings) {
            let who = format!("no client of the listener `{}` has `{root}`", listener.name);
            match without {
                Without::Rejected => {
                    let complaint = Complaint::new(format!("{who}, so all are rejected"));
                    diagnostics.error(&at, complaint.hint(how_to_have(root)));
                }
                Without::LeftOut => {
                    let complaint = Complaint::new(format!("{who}, so this gives no rights"));
                    diagnostics.warning(&at, complaint.hint(how_to_have(root)));
                }
            }
        } else if let Some(fact) = proves_nothing_of(expression, listener, settings) {
            let message = format!("clients choose `{fact}` freely: nothing binds it to what they proved");
            let hint = format!("[listener.admit] require: compare {fact} with an authenticated name");
            diagnostics.warning(&at, Complaint::new(message).hint(hint));
        }
    }
    if let Some(mountpoint) = &listener.mountpoint {
        warn_of_placeholders(mountpoint, diagnostics);
    }
    for rule in policy.iter().flat_map(|policy| &policy.rules) {
        warn_of_optional_condition(rule, diagnostics);
        for pattern in rule.publish.iter().chain(&rule.subscribe) {
            warn_of_pattern(pattern, listener, diagnostics);
        }
    }
}

/// An expression, where it is, and what follows if it has no value.
struct Place<'a> {
    expression: &'a Expression,
    at: Setting<()>,
    without: Without,
}

fn places<'a>(listener: &'a Listener, policy: Option<&'a TopicPolicy>) -> Vec<Place<'a>> {
    let mut places: Vec<_> = policy.iter().flat_map(|policy| &policy.rules).flat_map(of_rule).collect();
    places.extend(listener.mountpoint.iter().flat_map(|template| of_template(template, Without::Rejected)));
    let stamps = listener.stamps.iter();
    places.extend(stamps.map(|(_, stamp)| place(&stamp.value, stamp.location.as_ref(), Without::Rejected)));
    places
}

fn place<'a>(expression: &'a Expression, location: Option<&Location>, without: Without) -> Place<'a> {
    Place { expression, at: Setting { value: (), location: location.cloned() }, without }
}

fn of_rule(rule: &TopicRule) -> Vec<Place<'_>> {
    let of_patterns = if rule.effect == Effect::Deny { Without::Rejected } else { Without::LeftOut };
    let when = rule.when.iter().map(|when| (when, Without::Rejected));
    let lists = rule.publish_from.iter().chain(&rule.subscribe_from).map(|list| (list, of_patterns));
    let settings = when.chain(lists);
    let mut places: Vec<_> = settings.map(|(it, without)| place(&it.value, it.location.as_ref(), without)).collect();
    places.extend(rule.publish.iter().chain(&rule.subscribe).flat_map(|template| of_template(template, of_patterns)));
    places
}

fn of_template(template: &Setting<Template>, without: Without) -> impl Iterator<Item = Place<'_>> {
    let location = template.location.as_ref();
    template.value.expressions().map(move |expression| place(expression, location, without))
}

/// Warns of a condition that rejects clients whose certificate lacks a field.
fn warn_of_optional_condition(rule: &TopicRule, diagnostics: &mut Diagnostics) {
    let Some(when) = &rule.when else { return };
    // Nearly every certificate has these.
    let is_rare = |fact: &&str| fact.starts_with("cert.") && !matches!(fact.rsplit('.').next(), Some("cn" | "dn"));
    if let Some(fact) = when.value.untested().filter(is_rare) {
        let complaint = Complaint::new(format!("a client without `{fact}` is rejected, whatever the other rules say"));
        diagnostics.warning(when, complaint.hint(format!("has({fact}) && ...")));
    }
}

fn warn_of_pattern(pattern: &Setting<Template>, listener: &Listener, diagnostics: &mut Diagnostics) {
    let source = pattern.value.source();
    let name = &listener.name;
    if let Some(mountpoint) = &listener.mountpoint {
        let prefix = mountpoint.value.source().split("${").next().unwrap_or_default();
        if prefix.contains('/') && source.starts_with(prefix) {
            let message = format!("this pattern begins with the mountpoint of the listener `{name}`");
            let complaint = Complaint::new(message);
            diagnostics
                .warning(pattern, complaint.hint("rules see topics as the client names them, without the mountpoint"));
        }
    }
    let uses_client_id = pattern.value.expressions().any(|expression| expression.uses("mqtt.client_id"));
    let is_unfit = |id: &Setting<Expression>| id.value.always_contains(&['/', '+', '#']);
    if uses_client_id && listener.connect.client_id.as_ref().is_some_and(is_unfit) {
        let message =
            format!("client IDs of the listener `{name}` contain `/`, `+` or `#`, so no client has this pattern");
        let hint = "`mqtt.client_id` is the replaced one: use another separator in `client_id` of [listener.connect]";
        diagnostics.warning(pattern, Complaint::new(message).hint(hint));
    }
    let levels = topic_levels(&pattern.value.with_each("x"));
    if listener.limits.packets.max_topic_levels.is_some_and(|max| levels > max as usize) {
        let message = format!("`max_topic_levels` of the listener `{name}` denies topics with {levels} levels");
        diagnostics.warning(pattern, Complaint::new(message).hint("raise the limit, or remove the pattern"));
    }
}
