//! The parts of the documentation that are generated from the code.

use std::path::Path;

use portcullis_gateway::outcome::{CloseReason, Reject};
use portcullis_gateway::peer::FACTS;
use portcullis_wire::Version;
use serde_json::Value;

#[test]
fn the_reasons_are_documented() {
    let rejected = Reject::ALL.iter().map(|reject| {
        let code = |version| reject.connack().and_then(|refusal| refusal.code(version)).map_or("-".to_owned(), hex);
        let connack = match reject.connack() {
            Some(_) => format!("{}, {}", code(Version::V5), code(Version::V311)),
            None => String::new(),
        };
        let columns = (reject.label(), reject.status(), reject.stage().label(), reject.blame().label());
        row(columns, &connack, reject.meaning(), reject.hint())
    });
    let closed = CloseReason::ALL.iter().map(|reason| {
        let disconnect = reason.disconnect().map_or(String::new(), |disconnect| hex(disconnect as u8));
        let columns = (reason.label(), reason.status(), reason.stage().label(), reason.blame().label());
        row(columns, &disconnect, reason.meaning(), reason.hint())
    });
    let failures = Reject::ALL.iter().filter(|reject| reject.is_failed_proof());
    let failures: Vec<_> = failures.map(|reject| format!("`{}`", reject.label())).collect();

    assert_generated("access-log.md", "reject reasons", &table("CONNACK", rejected));
    assert_generated("access-log.md", "close reasons", &table("DISCONNECT", closed));
    assert_generated("access-log.md", "failures", &(failures.join(", ") + ".\n"));
}

/// Sub-tables, which are documented in their own sections.
const SUB_TABLES: &[(&str, &[&str])] = &[
    ("Listener", &["tls", "websocket", "ban", "admit", "connect", "publish", "limits"]),
    ("Upstream", &["health", "tls"]),
    ("TopicPolicy", &["rule"]),
];

#[test]
fn the_keys_of_the_configuration_are_documented() {
    let schema = portcullis_gateway::config::json_schema();
    for (table, definition) in schema["$defs"].as_object().unwrap() {
        let Some(keys) = definition["properties"].as_object().filter(|_| table != "CertificatePair") else { continue };
        let required = definition["required"].as_array().cloned().unwrap_or_default();
        let sub_tables = SUB_TABLES.iter().find(|(name, _)| name == table).map_or(&[][..], |(_, keys)| keys);
        let row = |(key, schema): (&String, &Value)| {
            let text = schema["description"].as_str().unwrap_or_else(|| panic!("{table}.{key} has no comment"));
            let text = &text.replace('\n', " ");
            let (meaning, told) = text.split_once(" Default: ").unwrap_or((text.as_str(), "-"));
            let default = match &schema["default"] {
                _ if required.contains(&Value::from(key.as_str())) => "required".to_owned(),
                Value::Null => told.trim_end_matches('.').to_owned(),
                Value::Array(items) if items.is_empty() && told != "-" => told.trim_end_matches('.').to_owned(),
                default => format!("`{}`", as_toml(default)),
            };
            format!("| `{key}` | {meaning} | {default} |\n")
        };
        let rows: String = keys.iter().filter(|(key, _)| !sub_tables.contains(&key.as_str())).map(row).collect();
        let text = format!("| key | meaning | default |\n| --- | --- | --- |\n{rows}");
        assert_generated("configuration.md", &format!("keys of {table}"), &text);
    }
}

/// A default as it is written in the file, strings without quotes.
fn as_toml(default: &Value) -> String {
    match default {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[test]
fn the_facts_of_expressions_are_documented() {
    let rows = FACTS.iter().map(|fact| {
        let kind = format!("{:?}", fact.kind).to_lowercase();
        let optional = if fact.optional { ", optional" } else { "" };
        format!("| `{}` | {kind}{optional} | {} |\n", fact.path, fact.meaning)
    });
    let text = "| variable | type | value |\n| --- | --- | --- |\n".to_owned() + &rows.collect::<String>();
    assert_generated("expressions.md", "facts", &text);
    let rows =
        FACTS.iter().filter_map(|fact| Some(format!("| `{}` | `{}` | {} |\n", fact.sent_as?, fact.path, fact.meaning)));
    let text = "| field | in expressions | value |\n| --- | --- | --- |\n".to_owned() + &rows.collect::<String>();
    assert_generated("authentication.md", "request", &text);
}

fn table(answer: &str, rows: impl Iterator<Item = String>) -> String {
    let header = format!("| reason | status | stage | blame | {answer} | what happened | what to do |\n");
    header + "| --- | --- | --- | --- | --- | --- | --- |\n" + &rows.collect::<String>()
}

fn row(
    (label, status, stage, blame): (&str, u16, &str, &str),
    answer: &str,
    meaning: &str,
    hint: Option<&str>,
) -> String {
    assert!(meaning.ends_with('.'), "{label}: {meaning}");
    let hint = hint.map_or(String::new(), |hint| {
        let (first, rest) = hint.split_at(1);
        format!("{}{rest}.", first.to_uppercase())
    });
    format!("| `{label}` | {status} | {stage} | {blame} | {answer} | {meaning} | {hint} |\n")
}

fn hex(code: u8) -> String {
    format!("0x{code:02X}")
}

/// Fails unless `docs/FILE` has `text` between `<!-- generated: NAME -->` and `<!-- /generated -->`. With `UPDATE_DOCS` set,
/// writes it there.
fn assert_generated(file: &str, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file);
    let published = std::fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = published.split_once(&begin).unwrap_or_else(|| panic!("docs/{file} lacks {begin}"));
    let (found, after) = rest.split_once("<!-- /generated -->").unwrap();
    let text = format!("\n{text}\n");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, [before, &begin, &text, "<!-- /generated -->", after].concat()).unwrap();
        return;
    }
    assert!(found == text, "run the tests once with UPDATE_DOCS=1 and commit docs/{file}");
}
