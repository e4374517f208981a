//! Bounds the work and the memory of an evaluation. The size of an expression is bounded when it is compiled, but its work
//! depends on texts that clients choose: `replace` with a client's text on both sides turns 64 KB into gigabytes, and macros
//! within macros take the square of a list. [`strict`](super::strict) charges what is built and read; an evaluation that
//! exceeds its budget fails.

use std::cell::Cell;
use std::sync::Arc;

use cel::common::ast::operators;
use cel::{Context, ExecutionError, Value};
use regex::Regex;

/// How many bytes one evaluation may build and read together. It bounds the time, too: every operation takes a few
/// nanoseconds a byte at most.
const BUDGET: usize = 4 << 20;

/// What an element of a list, or a step of a macro, is charged, in bytes.
const ELEMENT: usize = 64;

/// The names cannot be written in an expression.
pub(super) const REPLACE: &str = "%replace";
pub(super) const REPLACE_N: &str = "%replace_n";
pub(super) const JOIN: &str = "%join";
pub(super) const JOIN_WITH: &str = "%join_with";
pub(super) const SPEND: &str = "%spend";
pub(super) const STEP: &str = "%step";
pub(super) const MATCHES: &str = "%matches";

/// Functions and operators whose result is a new text or list, of about the size of their operands. Their results are
/// charged: in a `map`, each element may be as large as what the client sent.
pub(super) const BUILDERS: &[&str] =
    &[operators::ADD, "split", "lowerAscii", "upperAscii", "trim", "substring", "charAt", "string"];

/// Whether a function or operator may read its operands as a whole: all but those that select one of them, or an element.
pub(super) fn reads(function: &str) -> bool {
    !matches!(
        function,
        operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NOT_STRICTLY_FALSE
            | operators::INDEX
    )
}

thread_local! {
    /// What is left to the evaluation on this thread. An evaluation does not wait, so it does not change threads.
    static LEFT: Cell<usize> = const { Cell::new(BUDGET) };
}

type Text = Arc<String>;

/// Begins an evaluation, with the whole budget. `patterns`: those of the expression's calls of `matches`.
pub(super) fn begin(context: &mut Context<'_, '_>, patterns: &Arc<[Regex]>) {
    LEFT.set(BUDGET);
    let patterns = Arc::clone(patterns);
    let mut functions = || {
        context.add_function(REPLACE, |text: Text, from: Text, to: Text| replace(&text, &from, &to, usize::MAX))?;
        context.add_function(REPLACE_N, |text: Text, from: Text, to: Text, count: i64| {
            replace(&text, &from, &to, usize::try_from(count).unwrap_or(usize::MAX))
        })?;
        context.add_function(JOIN, |list: Arc<Vec<Value>>| join(&list, ""))?;
        context.add_function(JOIN_WITH, |list: Arc<Vec<Value>>, separator: Text| join(&list, &separator))?;
        context.add_function(SPEND, spend_value)?;
        context.add_function(STEP, |value: Value| spend(ELEMENT).map(|()| value))?;
        let patterns = Arc::clone(&patterns);
        context.add_function(MATCHES, move |text: Text, index: i64| matches(&text, index, &patterns))
    };
    functions().expect("the language has no functions of these names");
}

fn replace(text: &str, from: &str, to: &str, count: usize) -> Result<Value, ExecutionError> {
    let matches = text.matches(from).take(count).count();
    spend(matches.saturating_mul(to.len()).saturating_add(text.len()))?;
    Ok(Value::String(Arc::new(text.replacen(from, to, matches))))
}

fn matches(text: &str, index: i64, patterns: &[Regex]) -> Result<Value, ExecutionError> {
    spend(text.len())?;
    let pattern = usize::try_from(index).ok().and_then(|index| patterns.get(index));
    pattern.map(|pattern| Value::Bool(pattern.is_match(text))).ok_or_else(|| failed("no such pattern"))
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

/// The function that errors of this module name.
pub(super) const BY: &str = "%budget";

fn failed(why: &str) -> ExecutionError {
    ExecutionError::function_error(BY, why)
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
    fn work_is_bounded_whatever_the_expression_looks_like() {
        let long = "a-".repeat(16_000);
        let parts = r#"mqtt.client_id.split("-")"#;
        for source in [
            format!(r#"{parts}.all(p, p in {parts}) ? "a" : "b""#),
            format!(r#"{parts}.filter(p, mqtt.client_id.contains(p)).join("")"#),
            format!(r#"{parts}.exists(p, mqtt.client_id == p) ? "a" : "b""#),
            format!(r#"{parts}.exists(p, mqtt.client_id < p) ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.startsWith(p)) ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.size() > 0) ? "a" : "b""#),
            format!(r#"{parts}.all(p, size(mqtt.client_id) > 0) ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.charAt(31000) != "b") ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.substring(31000) != "b") ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.split("none").size() == 1) ? "a" : "b""#),
            format!(r#"{parts}.all(p, mqtt.client_id.indexOf("b") < 0) ? "a" : "b""#),
        ] {
            let begin = std::time::Instant::now();
            assert_eq!(evaluate(&source, &long), Err(Reject::ExpressionFailed), "{source}");
            println!("{source}: {:?}", begin.elapsed());
        }
    }

    /// Prints the table of docs/expressions.md. Run it with `--release -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn the_cost_of_each_function_on_64_kib() {
        let text = "ab-".repeat(21_845);
        for source in [
            "mqtt.client_id",
            "string(size(mqtt.client_id))",
            r#"string(mqtt.client_id == "a")"#,
            r#"string(mqtt.client_id.contains("none"))"#,
            r#"string(mqtt.client_id.startsWith("ab"))"#,
            r#"string(mqtt.client_id.endsWith("b-"))"#,
            r#"string(mqtt.client_id.matches("^(ab-)+$"))"#,
            r#"string(mqtt.client_id.matches("^\\w{1,64}$"))"#,
            r#"string(mqtt.client_id.indexOf("none"))"#,
            r#"string(mqtt.client_id.lastIndexOf("none"))"#,
            "mqtt.client_id.charAt(65000)",
            "mqtt.client_id.substring(65000)",
            "mqtt.client_id.lowerAscii()",
            "mqtt.client_id.upperAscii()",
            "mqtt.client_id.trim()",
            r#"mqtt.client_id.replace("-", "+")"#,
            r#"mqtt.client_id + "x""#,
            "string(mqtt.client_id)",
            r#"mqtt.client_id.split("-")[0]"#,
            r#"mqtt.client_id.split("-").join("+")"#,
            r#"string("none" in mqtt.client_id.split("-"))"#,
            r#"string(mqtt.client_id.split("-").exists(part, part == "none"))"#,
            r#"string(mqtt.client_id.split("-").all(part, mqtt.client_id.contains(part)))"#,
        ] {
            let mut times: Vec<_> = (0..21)
                .map(|_| {
                    let begin = std::time::Instant::now();
                    let result = evaluate(source, &text);
                    (begin.elapsed(), result.is_ok())
                })
                .collect();
            times.sort_unstable();
            let (median, is_ok) = times[10];
            println!(
                "| `{source}` | {:.3} ms | {} |",
                median.as_secs_f64() * 1e3,
                if is_ok { "" } else { "over budget" }
            );
        }
    }

    #[test]
    fn patterns_are_compiled_once_and_find_what_they_should() {
        let all = r#"mqtt.client_id.matches("^a") && mqtt.client_id.matches("-a") && !mqtt.client_id.matches("c")
            && matches(mqtt.client_id, "^aba-aba$") ? "yes" : "no""#;
        assert_eq!(evaluate(all, "aba-aba").as_deref().map(String::as_str), Ok("yes"));
        let long = "a".repeat(60_000);
        for _ in 0..100 {
            assert!(evaluate(r#"mqtt.client_id.matches("^\\w{1,64}$") ? "yes" : "no""#, &long).is_ok());
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
