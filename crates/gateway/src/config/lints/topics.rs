//! Looks at the expressions of topic policies, mountpoints and stamps as the clients of each listener have them.

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::{Effect, Listener, Settings, TopicRule};
use super::super::values::{Location, Setting};
use super::clients::{how_to_have, lacked_by_all, report_impossible_value, report_unknown_name};
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
    let at = |located: Option<&Location>| Setting { value: (), location: located.cloned() };
    let mut places = Vec::new();
    for rule in policy.iter().flat_map(|policy| &policy.rules) {
        places.extend(of_rule(rule).map(|(expression, location, without)| (expression, at(location), without)));
    }
    if let Some(template) = &listener.mountpoint {
        places
            .extend(of_template(template).map(|(expression, location)| (expression, at(location), Without::Rejected)));
    }
    for (_, expression) in &listener.stamps {
        places.push((&expression.value, at(expression.location.as_ref()), Without::Rejected));
    }
    for (expression, at, without) in &places {
        if report_unknown_name(expression, at, settings, diagnostics).is_err() {
            continue;
        }
        report_impossible_value(expression, at, diagnostics);
        if let Some(root) = lacked_by_all(expression, listener, settings) {
            let consequence = match *without {
                Without::Rejected => "so all are rejected",
                Without::LeftOut => "so this gives no rights",
            };
            let message = format!("no client of the listener `{}` has `{root}`, {consequence}", listener.name);
            diagnostics.warning(at, Complaint::new(message).hint(how_to_have(root)));
        }
    }
}

type Place<'a> = (&'a Expression, Option<&'a Location>, Without);

fn of_rule(rule: &TopicRule) -> impl Iterator<Item = Place<'_>> {
    let of_patterns = if rule.effect == Effect::Deny { Without::Rejected } else { Without::LeftOut };
    let when = rule.when.iter().map(|when| (&when.value, when.location.as_ref(), Without::Rejected));
    let lists = rule.publish_from.iter().chain(&rule.subscribe_from);
    let lists = lists.map(move |list| (&list.value, list.location.as_ref(), of_patterns));
    let templates = rule.publish.iter().chain(&rule.subscribe).flat_map(of_template);
    when.chain(lists).chain(templates.map(move |(expression, location)| (expression, location, of_patterns)))
}

fn of_template(template: &Setting<Template>) -> impl Iterator<Item = (&Expression, Option<&Location>)> {
    template.value.expressions().map(|expression| (expression, template.location.as_ref()))
}
