//! Rewrites serde's errors in the words of the configuration file.

use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::Complaint;
use crate::util::suggest::suggest;

/// Rewrites serde's error in the words of the configuration file.
pub(super) fn explain(error: &toml::de::Error, schema: impl Fn() -> Json) -> Complaint {
    let message = error.message();
    if let Some(complaint) = explain_type(message) {
        return complaint;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let known: Vec<&str> = quoted.clone().skip(1).collect();
    let kind = ["unknown field", "unknown variant"].into_iter().find(|kind| message.starts_with(kind));
    let (Some(kind), Some(found)) = (kind, quoted.next()) else { return Complaint::new(message) };
    let what = if kind == "unknown field" { "unknown key" } else { "unknown value" };
    let complaint = Complaint::new(format!("{what} `{found}`"));
    // A similar value may mean something else: `1.3` is no better `1.1`.
    let is_key = kind == "unknown field";
    let elsewhere = if is_key { tables_with(found, &schema()) } else { Vec::new() };
    if !elsewhere.is_empty() {
        complaint.hint(format!("it belongs to {}", elsewhere.join(" or ")))
    } else if let Some(suggestion) = suggest(found, known.iter().copied()).filter(|_| is_key) {
        complaint.hint(format!("did you mean `{suggestion}`?"))
    } else if known.is_empty() {
        complaint
    } else {
        complaint.hint(format!("expected one of: {}", known.join(", ")))
    }
}

/// The headers of the tables that have this key, by the schema of the file.
fn tables_with(key: &str, schema: &Json) -> Vec<String> {
    fn walk(key: &str, table: &Json, path: &str, schema: &Json, found: &mut Vec<String>) {
        for (name, property) in table["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let is_list = !property["items"].is_null();
            for table in tables_of(property, schema) {
                if !table["properties"][key].is_null() {
                    found.push(if is_list { format!("[[{path}]]") } else { format!("[{path}]") });
                }
                walk(key, table, &path, schema, found);
            }
        }
    }
    /// The tables that a value, or an item of it, may be.
    fn tables_of<'s>(value: &'s Json, schema: &'s Json) -> Vec<&'s Json> {
        let choices = value["anyOf"].as_array().into_iter().flatten();
        let named = value["$ref"].as_str().and_then(|name| schema.pointer(name.strip_prefix('#')?));
        let inner = choices.chain(named).chain(value.get("items")).flat_map(|value| tables_of(value, schema));
        value.get("properties").map(|_| value).into_iter().chain(inner).collect()
    }
    let mut found = Vec::new();
    walk(key, schema, "", schema, &mut found);
    found
}

/// Rewrites serde's error about a value of another type or out of range; `None`: it is another error.
fn explain_type(message: &str) -> Option<Complaint> {
    let mismatch = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, expected) = mismatch.split_once(", expected ")?;
    let found = match found.split_once(' ') {
        Some(("string", _)) => "a string".to_owned(),
        Some(("integer", number)) => format!("the number {}", number.trim_matches('`')),
        Some(("boolean", value)) => value.to_owned(),
        None if found == "map" => "a table".to_owned(),
        None if found == "sequence" => "a list".to_owned(),
        _ => found.to_owned(),
    };
    let (expected, hint) = match expected {
        "a string" | "a borrowed string" | "path string" => {
            ("a string", "write it in quotes; a duration or size also has a unit: \"5s\", \"64KiB\"")
        }
        "a sequence" if found == "a table" => ("a list of tables", "write the header in double brackets: [[...]]"),
        "a sequence" => ("a list", "write it in brackets: [\"...\"]"),
        "a map" => ("a table", "write it as { key = \"value\" }, or under a header of its own"),
        "a boolean" => ("a boolean", "write `true` or `false` without quotes"),
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a number", "write a whole number, 0 or greater, without quotes"),
        "a nonzero u32" => ("a number greater than 0", "write a whole number without quotes"),
        other if other.starts_with("struct ") => {
            ("a table", "write it as { key = \"value\" }, or under a header of its own")
        }
        other => (other, ""),
    };
    let complaint = Complaint::new(format!("expected {expected}, found {found}"));
    Some(if hint.is_empty() { complaint } else { complaint.hint(hint) })
}

/// The span of the item of a list that an error quotes; `None`: `span` is not that of a list, or it quotes no item.
pub(super) fn item_of(table: &DeTable<'_>, span: &Range<usize>, message: &str) -> Option<Range<usize>> {
    table.iter().find_map(|(_, value)| item_of_value(value, span, message))
}

fn item_of_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, message: &str) -> Option<Range<usize>> {
    match value.get_ref() {
        DeValue::Table(table) => item_of(table, span, message),
        DeValue::Array(items) if value.span() == *span => {
            let is_quoted = |item: &&Spanned<DeValue<'_>>| matches!(item.get_ref(), DeValue::String(text) if message.starts_with(&format!("`{text}`")));
            items.iter().find(is_quoted).map(Spanned::span)
        }
        DeValue::Array(items) => items.iter().find_map(|item| item_of_value(item, span, message)),
        _ => None,
    }
}
