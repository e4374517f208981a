//! Bounds the memory of an evaluation. The size of an expression is bounded when it is compiled, but some functions multiply
//! the sizes of texts that clients choose: `replace` with a client's text on both sides turns 64 KB into gigabytes.
//! [`strict`](super::strict) calls the functions of this module in their place; an evaluation that exceeds its budget fails.

use std::cell::Cell;
use std::sync::Arc;

use cel::common::ast::operators;
use cel::{Context, ExecutionError, Value};

/// How many bytes the texts and lists that one evaluation builds may take together.
const BUDGET: usize = 4 << 20;

/// What an element of a list takes, in bytes.
const ELEMENT: usize = 64;

/// The names cannot be written in an expression.
pub(super) const REPLACE: &str = "%replace";
pub(super) const REPLACE_N: &str = "%replace_n";
pub(super) const JOIN: &str = "%join";
pub(super) const JOIN_WITH: &str = "%join_with";
pub(super) const SPEND: &str = "%spend";

/// Functions and operators whose result is a new text or list, of about the size of their operands. Their results are
/// charged: in a `map`, each element may be as large as what the client sent.
pub(super) const BUILDERS: &[&str] =
    &[operators::ADD, "split", "lowerAscii", "upperAscii", "trim", "substring", "charAt", "string"];

thread_local! {
    /// What is left to the evaluation on this thread. An evaluation does not wait, so it does not change threads.
    static LEFT: Cell<usize> = const { Cell::new(BUDGET) };
}

type Text = Arc<String>;

/// Begins an evaluation, with the whole budget.
pub(super) fn begin(context: &mut Context<'_, '_>) {
    LEFT.set(BUDGET);
    let mut functions = || {
        context.add_function(REPLACE, |text: Text, from: Text, to: Text| replace(&text, &from, &to, usize::MAX))?;
        context.add_function(REPLACE_N, |text: Text, from: Text, to: Text, count: i64| {
            replace(&text, &from, &to, usize::try_from(count).unwrap_or(usize::MAX))
        })?;
        context.add_function(JOIN, |list: Arc<Vec<Value>>| join(&list, ""))?;
        context.add_function(JOIN_WITH, |list: Arc<Vec<Value>>, separator: Text| join(&list, &separator))?;
        context.add_function(SPEND, spend_value)
    };
    functions().expect("the language has no functions of these names");
}

fn replace(text: &str, from: &str, to: &str, count: usize) -> Result<Value, ExecutionError> {
    let matches = text.matches(from).take(count).count();
    spend(matches.saturating_mul(to.len()).saturating_add(text.len()))?;
    Ok(Value::String(Arc::new(text.replacen(from, to, matches))))
}

fn join(list: &[Value], separator: &str) -> Result<Value, ExecutionError> {
    let mut len = list.len().saturating_mul(separator.len());
    let mut parts = Vec::with_capacity(list.len());
    for item in list {
        let Value::String(text) = item else { return Err(failed("join requires strings")) };
        len = len.saturating_add(text.len());
        parts.push(text.as_str());
    }
    spend(len)?;
    Ok(Value::String(Arc::new(parts.join(separator))))
}

/// Charges what an operator has built: at most as much as its operands together.
fn spend_value(value: Value) -> Result<Value, ExecutionError> {
    spend(match &value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.len().saturating_mul(ELEMENT),
        Value::Map(map) => map.map.len().saturating_mul(ELEMENT),
        _ => 0,
    })?;
    Ok(value)
}

fn spend(bytes: usize) -> Result<(), ExecutionError> {
    let left = LEFT.get().checked_sub(bytes).ok_or_else(|| failed("the result is too large"))?;
    LEFT.set(left);
    Ok(())
}

fn failed(why: &str) -> ExecutionError {
    ExecutionError::function_error("budget", why)
}

#[cfg(test)]
mod tests {
    use portcullis_wire::{Connect, Properties, Version};

    use super::*;
    use crate::expr::{Expression, Wanted};
    use crate::outcome::Reject;
    use crate::peer::{AuthAttributes, Facts, Peer};

    fn evaluate(source: &str, client_id: &str) -> Result<Arc<String>, Reject> {
        let peer = Peer::plain(([192, 0, 2, 1], 5).into());
        let mqtt = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive: 60,
            properties: Properties::default(),
            client_id,
            will: None,
            username: None,
            password: None,
        };
        let attributes = AuthAttributes::default();
        let facts = Facts { peer: &peer, listener: "l", mqtt: &mqtt, attributes, now: 7 };
        Expression::compile(source, Wanted::String).unwrap_or_else(|errors| panic!("{source}: {errors:?}")).text(&facts)
    }

    #[test]
    fn what_multiplies_the_clients_text_fails() {
        let long = "a".repeat(32_000);
        for source in [
            r#"mqtt.client_id.replace("a", mqtt.client_id)"#,
            r#"mqtt.client_id.replace("a", mqtt.client_id).replace("a", mqtt.client_id)"#,
            r#"mqtt.client_id.replace("", mqtt.client_id)"#,
            r#"mqtt.client_id.replace("a", mqtt.client_id, -1)"#,
            r#"mqtt.client_id.replace("a", mqtt.client_id, 31999)"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id).join("")"#,
            r#"mqtt.client_id.split("").join(mqtt.client_id)"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id + x)[0]"#,
            r#"mqtt.client_id.split("").map(x, [x, x, x, x])[0][0]"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id)[0]"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id.split(""))[0][0]"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id.lowerAscii())[0]"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id.upperAscii())[0]"#,
            r#"mqtt.client_id.split("").map(x, mqtt.client_id.substring(1))[0]"#,
            r#"mqtt.client_id.split("").map(x, (mqtt.client_id + " ").trim())[0]"#,
            r#"mqtt.client_id.split("").map(x, string(mqtt.client_id))[0]"#,
            r#"mqtt.client_id.split("").map(x, {"a": x, "b": x, "c": x, "d": x})[0]["a"]"#,
            r#"true ? mqtt.client_id.replace("a", mqtt.client_id) : """#,
        ] {
            assert_eq!(evaluate(source, &long), Err(Reject::ExpressionFailed), "{source}");
        }
    }

    #[test]
    fn the_functions_yield_what_those_of_the_language_do() {
        for (source, expected) in [
            (r#"mqtt.client_id.replace("b", "xy")"#, "axya-axya"),
            (r#"mqtt.client_id.replace("", "_")"#, "_a_b_a_-_a_b_a_"),
            (r#"mqtt.client_id.replace("b", "", 1)"#, "aa-aba"),
            (r#"mqtt.client_id.replace("b", "", 0)"#, "aba-aba"),
            (r#"mqtt.client_id.replace("b", "", -1)"#, "aa-aa"),
            (r#"mqtt.client_id.split("-").join("/")"#, "aba/aba"),
            (r#"mqtt.client_id.split("-").join()"#, "abaaba"),
            (r#"mqtt.client_id.split("-").map(x, x + "!").join(",")"#, "aba!,aba!"),
            (r#"mqtt.client_id.split("-").filter(x, x in ["aba"]).join(",")"#, "aba,aba"),
            (r#""devices/" + mqtt.client_id + "/" + string(1 + 1)"#, "devices/aba-aba/2"),
            ("mqtt.client_id.upperAscii().lowerAscii().substring(4).trim().charAt(1)", "b"),
            (r#"{"a": mqtt.client_id}["a"]"#, "aba-aba"),
            (r#"(["x"] + mqtt.client_id.split("-")).join("")"#, "xabaaba"),
        ] {
            assert_eq!(evaluate(source, "aba-aba").as_deref().map(String::as_str), Ok(expected), "{source}");
        }
    }

    #[test]
    fn each_evaluation_has_the_whole_budget() {
        let long = "a".repeat(60_000);
        for _ in 0..200 {
            assert_eq!(evaluate(r#"mqtt.client_id + "b""#, &long).map(|text| text.len()), Ok(60_001));
        }
    }
}
