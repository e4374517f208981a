//! Rewrites serde's errors in the words of the configuration file.

use std::ops::Range;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::Complaint;
use super::elsewhere::{instead_of, value_instead_of};
use crate::util::suggest::suggest;

/// Rewrites serde's error in the words of the configuration file.
pub(super) fn explain(error: &toml::de::Error, schema: &Json) -> Complaint {
    let message = error.message();
    if let Some(complaint) = explain_type(message) {
        return complaint;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let known: Vec<&str> = quoted.clone().skip(1).collect();
    let kind = ["unknown field", "unknown variant"].into_iter().find(|kind| message.starts_with(kind));
    let (Some(kind), Some(found)) = (kind, quoted.next()) else {
        return Complaint::new(message);
    };
    let what = if kind == "unknown field" { "unknown key" } else { "unknown value" };
    let complaint = Complaint::new(format!("{what} `{found}`"));
    // A similar value may mean something else: `1.3` is no better `1.1`.
    let is_key = kind == "unknown field";
    let elsewhere = if is_key { tables_with(found, schema) } else { Vec::new() };
    // Written otherwise, or in the plural.
    let letters = |key: &str| key.to_ascii_lowercase().replace(['-', '_'], "").trim_end_matches('s').to_owned();
    let same_word = known.iter().find(|known| is_key && letters(known) == letters(found));
    if let Some(key) = same_word {
        complaint.hint(format!("did you mean `{key}`?"))
    } else if let Some(ours) = instead_of(found, &known, elsewhere.is_empty()).filter(|_| is_key) {
        complaint.hint(ours)
    } else if !elsewhere.is_empty() {
        complaint.hint(format!("it belongs to {}", elsewhere.join(" or ")))
    } else if let Some(suggestion) = suggest(found, known.iter().copied()).filter(|_| is_key) {
        complaint.hint(format!("did you mean `{suggestion}`?"))
    } else if let Some(value) = value_instead_of(found, &known).filter(|_| !is_key) {
        complaint.hint(value)
    } else if known.is_empty() {
        complaint
    } else {
        complaint.hint(format!("expected one of: {}", known.join(", ")))
    }
}

/// A list in place of one table, with its path: serde would take the items for the values of the table's keys, in order.
pub(super) fn list_for_table(table: &DeTable<'_>, schema: &Json) -> Option<(Range<usize>, String)> {
    fn find(table: &DeTable<'_>, about: &Json, path: &str, schema: &Json) -> Option<(Range<usize>, String)> {
        table.iter().find_map(|(key, value)| {
            let property = &about["properties"][key.get_ref().as_ref()];
            let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
            let tables = tables_of(property, schema);
            let within = |table| tables.iter().find_map(|about| find(table, about, &path, schema));
            match value.get_ref() {
                DeValue::Array(_) if !tables.is_empty() && !may_be_list(property, schema) => Some((value.span(), path)),
                DeValue::Array(items) => items.iter().find_map(|item| within(item.get_ref().as_table()?)),
                DeValue::Table(table) => within(table),
                _ => None,
            }
        })
    }
    find(table, schema, "", schema)
}

/// The hint for a key or the header of a table that is in the file twice. `span`: that of the second one.
pub(super) fn hint_for_duplicate(source: &str, span: &Range<usize>, schema: &Json) -> &'static str {
    let line = source[..span.start].rfind('\n').map_or(0, |end| end + 1);
    let name = &source[span.clone()];
    if !source[line..].trim_start().starts_with('[') {
        "remove one of the two"
    } else if may_be_list(&schema["properties"][name], schema) {
        "of several tables of a kind, each begins with [[...]]"
    } else {
        "there is one table of this kind: write all its keys under one header"
    }
}

fn may_be_list(value: &Json, schema: &Json) -> bool {
    let choices = value["anyOf"].as_array().into_iter().flatten();
    value.get("items").is_some() || choices.chain(named(value, schema)).any(|value| may_be_list(value, schema))
}

/// The tables that a value, or an item of it, may be.
fn tables_of<'s>(value: &'s Json, schema: &'s Json) -> Vec<&'s Json> {
    let choices = value["anyOf"].as_array().into_iter().flatten();
    let inner = choices.chain(named(value, schema)).chain(value.get("items"));
    let inner = inner.flat_map(|value| tables_of(value, schema));
    value.get("properties").map(|_| value).into_iter().chain(inner).collect()
}

/// The definition that a schema refers to.
fn named<'s>(value: &Json, schema: &'s Json) -> Option<&'s Json> {
    schema.pointer(value["$ref"].as_str()?.strip_prefix('#')?)
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
    let mut found = Vec::new();
    walk(key, schema, "", schema, &mut found);
    found
}

/// Whether what was found, as [`explain_type`] puts it, is a whole number above 0.
fn is_positive(found: &str) -> bool {
    let digits = found.strip_prefix("the number ").unwrap_or_default();
    digits.bytes().all(|digit| digit.is_ascii_digit()) && digits.bytes().any(|digit| digit != b'0')
}

/// Rewrites serde's error about a value of another type or out of range; `None`: it is another error.
fn explain_type(message: &str) -> Option<Complaint> {
    if message == "wanted string or table" {
        return Some(Complaint::new("expected a string").hint("write it in quotes"));
    }
    let mismatch = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (found, expected) = mismatch.split_once(", expected ")?;
    let found = match found.split_once(' ') {
        Some(("string", _)) => "a string".to_owned(),
        // For large ones, serde adds a type.
        Some(("integer", number)) => format!("the number {}", number.split('`').nth(1).unwrap_or(number)),
        Some(("boolean", value)) => value.to_owned(),
        None if found == "map" => "a table".to_owned(),
        None if found == "sequence" => "a list".to_owned(),
        _ => found.to_owned(),
    };
    let (expected, hint) = match expected {
        "a string" | "a borrowed string" | "path string" if found == "a list" => {
            ("a string", "it takes one value: remove the brackets")
        }
        "a string" | "a borrowed string" | "path string" => {
            ("a string", "write it in quotes; a duration or size also has a unit: \"5s\", \"64KiB\"")
        }
        "a sequence" if found == "a table" => ("a list of tables", "write the header in double brackets: [[...]]"),
        "a sequence" => ("a list", "write it in brackets: [\"...\"]"),
        "a map" => ("a table", "write it as { key = \"value\" }, or under a header of its own"),
        "a boolean" => ("a boolean", "write `true` or `false` without quotes"),
        "u8" | "u16" | "u32" | "u64" | "usize" if is_positive(&found) => {
            ("a smaller whole number", "for the default, leave the key out")
        }
        "u8" | "u16" | "u32" | "u64" | "usize" => {
            ("a whole number", "write it without quotes, sign and decimals; for the default, leave the key out")
        }
        "a nonzero u32" if is_positive(&found) => ("a number of 4294967295 at most", "write a smaller number"),
        "a nonzero u32" if found == "the number 0" => ("a number greater than 0", "for the default, leave the key out"),
        "a nonzero u32" => ("a number greater than 0", "write a whole number without quotes"),
        "a rate" => ("a rate", "write \"100/s\", or { rate = \"100/s\", burst = 200 }"),
        "a rate of bytes" => ("a rate of bytes", "write \"1MiB/s\", or { rate = \"1MiB/s\", burst = \"4MiB\" }"),
        "struct ProxyProtocolTable" => {
            ("a table", "write `proxy_protocol = { from = [\"10.0.0.0/8\"] }`, with the network of your load balancers")
        }
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
