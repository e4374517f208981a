//! Converts facts to CEL values, and CEL values to JSON.

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::{Key, Map, Value};
use cel::{Context, ExecutionError};
use chrono::DateTime;
use portcullis_wire::Properties;
use serde_json::Value as Json;

use super::budget;
use crate::peer::{FACTS, FactValue, Facts, ROOTS, root_of};

/// A group that exists only if one of its facts has a value. Other groups exist whenever their root does.
const OPTIONAL_GROUP: &str = "mqtt.will";

/// Adds the facts that an expression uses to its context. A missing value (a certificate, a user name) is a missing
/// field: using it is an error, and `has()` of it is false.
///
/// # Errors
/// They exceed the budget of the evaluation.
pub(super) fn add_facts(
    context: &mut Context<'_, '_>,
    facts: &Facts<'_>,
    used: &[usize],
) -> Result<(), ExecutionError> {
    let mut used = used.iter().map(|index| &FACTS[*index]).peekable();
    while let Some(first) = used.peek() {
        let root = root_of(first.path);
        let mut tree = Tree::default();
        let has_root = ROOTS.iter().any(|it| it.name == root && facts.has_root(it));
        while let Some(fact) = used.next_if(|fact| root_of(fact.path) == root) {
            let value = fact.get(facts).map(value).transpose()?.flatten();
            if has_root {
                tree.insert(fact.path, value);
            }
        }
        context.add_variable_from_value(root, tree.into_value());
    }
    Ok(())
}

/// The values below one root.
#[derive(Default)]
struct Tree {
    /// The value, if this node is a fact itself.
    root: Option<Value>,
    fields: HashMap<String, Tree>,
}

impl Tree {
    fn insert(&mut self, path: &str, value: Option<Value>) {
        let is_missing = value.is_none();
        let (group, leaf) = path.rsplit_once('.').unwrap_or(("", path));
        if is_missing && group == OPTIONAL_GROUP {
            return;
        }
        let mut tree = self;
        for name in group.split('.').skip(1) {
            tree = tree.fields.entry(name.to_owned()).or_default();
        }
        match value {
            Some(value) if group.is_empty() => tree.root = Some(value),
            Some(value) => drop(tree.fields.insert(leaf.to_owned(), Tree { root: Some(value), ..Tree::default() })),
            None => {}
        }
    }

    fn into_value(self) -> Value {
        self.root.unwrap_or_else(|| {
            let fields = self.fields.into_iter().map(|(name, tree)| (name.into(), tree.into_value()));
            Value::Map(Map { map: Arc::new(fields.collect()) })
        })
    }
}

/// A fact as a value; `None`: a timestamp out of range. Charges what clients may fill with any number of entries.
fn value(fact: FactValue<'_>) -> Result<Option<Value>, ExecutionError> {
    Ok(Some(match fact {
        FactValue::Bool(value) => value.into(),
        FactValue::Int(value) => value.into(),
        FactValue::Text(value) => Value::String(Arc::new(value.into_owned())),
        FactValue::Time(seconds) => {
            return Ok(DateTime::from_timestamp(seconds, 0).map(|time| Value::Timestamp(time.fixed_offset())));
        }
        FactValue::List(values) => Value::List(Arc::new(values.iter().map(|value| text(value)).collect())),
        FactValue::UserProperties(properties) => user_properties(properties)?,
        FactValue::Json(document) => json(document)?,
    }))
}

/// User properties by name. A name may occur more than once, so each has the list of its values.
fn user_properties(properties: &Properties<'_>) -> Result<Value, ExecutionError> {
    let mut by_name: HashMap<Key, Vec<Value>> = HashMap::new();
    for (name, value) in properties.user_properties() {
        budget::spend_user_property()?;
        by_name.entry(name.to_owned().into()).or_default().push(text(value));
    }
    let by_name = by_name.into_iter().map(|(name, values)| (name, Value::List(Arc::new(values))));
    Ok(Value::Map(Map { map: Arc::new(by_name.collect()) }))
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

/// A JSON document as a value. The JSON parser bounds its depth.
fn json(document: &Json) -> Result<Value, ExecutionError> {
    Ok(match document {
        Json::Null => Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(value) => text(value),
        Json::Array(items) => {
            budget::spend_elements(items.len())?;
            Value::List(Arc::new(items.iter().map(json).collect::<Result<_, _>>()?))
        }
        Json::Object(fields) => {
            budget::spend_elements(fields.len())?;
            let fields = fields.iter().map(|(name, value)| Ok((name.clone().into(), json(value)?)));
            Value::Map(Map { map: Arc::new(fields.collect::<Result<_, ExecutionError>>()?) })
        }
    })
}

/// A value as JSON; `None`: JSON cannot represent it.
pub(super) fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::UInt(value) => (*value).into(),
        Value::Float(value) => serde_json::Number::from_f64(*value)?.into(),
        Value::String(value) => value.as_str().into(),
        Value::Timestamp(time) => time.timestamp().into(),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(map) => {
            let entry = |(key, value): (&Key, &Value)| match key {
                Key::String(name) => Some((name.to_string(), to_json(value)?)),
                _ => None,
            };
            Json::Object(map.map.iter().map(entry).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}
