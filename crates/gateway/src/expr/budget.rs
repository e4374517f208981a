//! Bounds the work and the memory of an evaluation. The size of an expression is bounded when it is compiled, but its work
//! depends on texts that clients choose: `replace` with a client's text on both sides turns 64 KB into gigabytes, and macros
//! within macros take the square of a list. [`strict`](super::strict) charges what is built and read; an evaluation that
//! exceeds its budget fails.

use std::cell::Cell;
use std::sync::Arc;

use cel::common::ast::operators;
use cel::{Context, ExecutionError, Value};
use regex::{Regex, RegexBuilder};

use super::search::{index_of, last_index_of};

/// How many bytes one evaluation may build and read together. It bounds the time, too: every operation takes about a
/// nanosecond a byte at most.
const BUDGET: usize = 4 << 20;

/// What an element of a list, or a step of a macro, is charged, in bytes: it takes as much time as so many bytes of text.
const ELEMENT: usize = 512;

/// The names cannot be written in an expression.
pub(super) const REPLACE: &str = "%replace";
pub(super) const REPLACE_N: &str = "%replace_n";
pub(super) const JOIN: &str = "%join";
pub(super) const JOIN_WITH: &str = "%join_with";
pub(super) const SPLIT: &str = "%split";
pub(super) const SPLIT_N: &str = "%split_n";
pub(super) const INDEX_OF: &str = "%index_of";
pub(super) const INDEX_OF_FROM: &str = "%index_of_from";
pub(super) const LAST_INDEX_OF: &str = "%last_index_of";
pub(super) const LAST_INDEX_OF_FROM: &str = "%last_index_of_from";
pub(super) const SPEND: &str = "%spend";
pub(super) const STEP: &str = "%step";
pub(super) const MATCHES: &str = "%matches";

/// Functions and operators whose result is a new text or list, of about the size of their operands. Their results are
/// charged: in a `map`, each element may be as large as what the client sent.
pub(super) const BUILDERS: &[&str] =
    &[operators::ADD, "lowerAscii", "upperAscii", "trim", "substring", "charAt", "string"];

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

/// A pattern of `matches`, compiled.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Of the compiled pattern, in bytes, rounded up.
    size: usize,
}

/// A byte of text is charged one byte for so many bytes of the compiled pattern. In a short text: the bound of client IDs
/// and user names, for which `\w{1,64}` (4 MiB) has to work.
const PATTERN_PER_BYTE: usize = 2 << 10;
const SHORT: usize = 1 << 10;
/// In a longer text. Some patterns take the time of their size for each byte.
const PATTERN_PER_BYTE_OF_LONG: usize = 64;
/// The largest size, in bytes. Also bounds the time to compile a pattern.
const MAX_PATTERN: usize = 8 << 20;

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// It is not a regular expression, or too large.
    pub(super) fn compile(pattern: &str) -> Result<Self, regex::Error> {
        let mut size = PATTERN_PER_BYTE;
        // The library does not say how large a compiled pattern is, but it obeys a limit.
        loop {
            match RegexBuilder::new(pattern).size_limit(size).build() {
                Ok(regex) => return Ok(Self { regex, size }),
                Err(regex::Error::CompiledTooBig(_)) if size < MAX_PATTERN => size *= 2,
                Err(error) => return Err(error),
            }
        }
    }
}

thread_local! {
    /// What is left to the evaluation on this thread. An evaluation does not wait, so it does not change threads.
    static LEFT: Cell<usize> = const { Cell::new(BUDGET) };
}

type Text = Arc<String>;

/// Begins an evaluation, with the whole budget. `patterns`: those of the expression's calls of `matches`.
pub(super) fn begin(context: &mut Context<'_, '_>, patterns: &Arc<[Pattern]>) {
    LEFT.set(BUDGET);
    let patterns = Arc::clone(patterns);
    let mut functions = || {
        context.add_function(REPLACE, |text: Text, from: Text, to: Text| replace(&text, &from, &to, usize::MAX))?;
        context.add_function(REPLACE_N, |text: Text, from: Text, to: Text, count: i64| {
            replace(&text, &from, &to, usize::try_from(count).unwrap_or(usize::MAX))
        })?;
        context.add_function(JOIN, |list: Arc<Vec<Value>>| join(&list, ""))?;
        context.add_function(JOIN_WITH, |list: Arc<Vec<Value>>, separator: Text| join(&list, &separator))?;
        context.add_function(SPLIT, |text: Text, separator: Text| split(&text, &separator, -1))?;
        context.add_function(SPLIT_N, |text: Text, separator: Text, max: i64| split(&text, &separator, max))?;
        let found = |index: Option<i64>| index.map(Value::Int).ok_or_else(|| failed("index out of range"));
        context.add_function(INDEX_OF, move |text: Text, part: Text| found(index_of(&text, &part, None)))?;
        context.add_function(INDEX_OF_FROM, move |text: Text, part: Text, from: i64| {
            found(index_of(&text, &part, Some(from)))
        })?;
        context.add_function(LAST_INDEX_OF, move |text: Text, part: Text| found(last_index_of(&text, &part, None)))?;
        context.add_function(LAST_INDEX_OF_FROM, move |text: Text, part: Text, from: i64| {
            found(last_index_of(&text, &part, Some(from)))
        })?;
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

fn matches(text: &str, index: i64, patterns: &[Pattern]) -> Result<Value, ExecutionError> {
    let pattern = usize::try_from(index).ok().and_then(|index| patterns.get(index));
    let pattern = pattern.ok_or_else(|| failed("no such pattern"))?;
    let per_byte = if text.len() <= SHORT { PATTERN_PER_BYTE } else { PATTERN_PER_BYTE_OF_LONG };
    spend(text.len().saturating_mul(pattern.size / per_byte))?;
    Ok(Value::Bool(pattern.regex.is_match(text)))
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

/// Splits a text into at most `max` parts, of which the last has the rest; into all if `max` is negative. An empty separator
/// splits between characters. The parts are charged before they are built: they take a hundred times as long as the text.
fn split(text: &str, separator: &str, max: i64) -> Result<Value, ExecutionError> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    // The empty text matches at both ends, too.
    let between = if separator.is_empty() { text.chars().count() } else { text.matches(separator).count() + 1 };
    spend_elements(between.min(max))?;
    let part = |part: &str| Value::String(Arc::new(part.to_owned()));
    let parts: Vec<Value> = match (max, separator.is_empty()) {
        (0, _) => Vec::new(),
        (_, false) => text.splitn(max, separator).map(part).collect(),
        (_, true) => {
            let ends = text.char_indices().map(|(at, _)| at).skip(1).take(max - 1).chain([text.len()]);
            let ranges = ends.scan(0, |begin, end| Some(std::mem::replace(begin, end)..end));
            ranges.filter(|range| !range.is_empty()).map(|range| part(&text[range])).collect()
        }
    };
    Ok(Value::List(Arc::new(parts)))
}

/// Charges what an operator has built: at most as much as its operands together.
fn spend_value(value: Value) -> Result<Value, ExecutionError> {
    spend(match &value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => return spend_elements(list.len()).map(|()| value),
        Value::Map(map) => return spend_elements(map.map.len()).map(|()| value),
        _ => 0,
    })?;
    Ok(value)
}

/// Charges a user property of CONNECT, before it is converted. It has a name and a list of its own, so it costs as much as
/// several elements, and a client may send thousands.
pub(super) fn spend_user_property() -> Result<(), ExecutionError> {
    spend(8 * ELEMENT)
}

/// Charges the elements of a list or map.
pub(super) fn spend_elements(count: usize) -> Result<(), ExecutionError> {
    spend(count.saturating_mul(ELEMENT))
}

fn spend(bytes: usize) -> Result<(), ExecutionError> {
    let left = LEFT.get().checked_sub(bytes).ok_or_else(|| failed("it exceeds its budget of 4 MiB"))?;
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
        evaluate_compiled(&compiled(source), client_id)
    }

    fn compiled(source: &str) -> Expression {
        Expression::compile(source, Wanted::String).unwrap_or_else(|errors| panic!("{source}: {errors:?}"))
    }

    fn evaluate_compiled(expression: &Expression, client_id: &str) -> Result<Arc<String>, Reject> {
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
        expression.text(&facts)
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
            format!(r#"{parts}.all(p, mqtt.client_id.lastIndexOf("b") < 0) ? "a" : "b""#),
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
            r#"string(mqtt.client_id.matches("(a|b)*a(a|b){20}c"))"#,
            r#"string(mqtt.client_id.matches("a.{100}x"))"#,
            r#"string(mqtt.client_id.matches("(.{0,90}a){60}c"))"#,
            r#"string(mqtt.client_id.indexOf("none"))"#,
            r#"string(mqtt.client_id.lastIndexOf("none"))"#,
            r#"string(mqtt.client_id.indexOf(mqtt.client_id.substring(32000) + "x"))"#,
            r#"string(mqtt.client_id.lastIndexOf(mqtt.client_id.substring(32000) + "x"))"#,
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
            let expression = compiled(source);
            let mut times: Vec<_> = (0..21)
                .map(|_| {
                    let begin = std::time::Instant::now();
                    let result = evaluate_compiled(&expression, &text);
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
        // By default a client ID has 1,024 bytes at most.
        let long = "a".repeat(1024);
        for pattern in
            [r"^\\w{1,64}$", r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", r"^[^@]+@([a-z0-9-]+\\.)+[a-z]{2,}$"]
        {
            let expression = compiled(&format!(r#"mqtt.client_id.matches("{pattern}") ? "yes" : "no""#));
            assert_eq!(evaluate_compiled(&expression, &long).as_deref().map(String::as_str), Ok("no"), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_is_charged_by_its_size() {
        let long = "ab".repeat(32_000);
        for pattern in ["(.{0,90}a){60}c", "(a|b)*a(a|b){300}c", "a.{200}b.{200}c"] {
            let source = format!(r#"mqtt.client_id.matches("{pattern}") ? "yes" : "no""#);
            assert_eq!(evaluate(&source, &long), Err(Reject::ExpressionFailed), "{pattern}");
        }
        assert!(Expression::compile(r#"mqtt.client_id.matches("((.{0,90}a){60}){60}c")"#, Wanted::Bool).is_err());
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
            (r#"mqtt.client_id.split("").join("/")"#, "a/b/a/-/a/b/a"),
            (r#"mqtt.client_id.split("", 3).join("/")"#, "a/b/a-aba"),
            (r#"mqtt.client_id.split("", 1).join("/")"#, "aba-aba"),
            (r#"mqtt.client_id.split("", 99).join("/")"#, "a/b/a/-/a/b/a"),
            (r#"mqtt.client_id.split("a", 2).join("/")"#, "/ba-aba"),
            (r#"mqtt.client_id.split("a", -1).join("/")"#, "/b/-/b/"),
            (r#"string(mqtt.client_id.split("a", 0).size())"#, "0"),
            (r#"string(mqtt.client_id.indexOf("a-"))"#, "2"),
            (r#"string(mqtt.client_id.indexOf("none"))"#, "-1"),
            (r#"string(mqtt.client_id.indexOf("")) + string("".indexOf("a"))"#, "0-1"),
            (r#"string(mqtt.client_id.indexOf("a", 3))"#, "4"),
            (r#"string(mqtt.client_id.indexOf("", 99))"#, "7"),
            (r#"string("ta©o©αT".indexOf("©", 3)) + string("ta©o©αT".indexOf("©α", 5))"#, "4-1"),
            (r#"string(mqtt.client_id.lastIndexOf("ab"))"#, "4"),
            (r#"string(mqtt.client_id.lastIndexOf("ab", 3)) + string(mqtt.client_id.lastIndexOf("ab", 4))"#, "04"),
            (r#"string("ta©o©αT".lastIndexOf("©", 3)) + string("ta©o©αT".lastIndexOf("©"))"#, "24"),
            (r#"string(mqtt.client_id.lastIndexOf("")) + string(mqtt.client_id.lastIndexOf("", 2))"#, "72"),
            (r#"string("".split("").size()) + string("".split(",").size())"#, "01"),
            (r#""äöü".split("", 2).join("/")"#, "ä/öü"),
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
    fn a_search_for_a_long_text_is_within_the_budget() {
        let long = "a".repeat(60_000);
        for (function, result) in [("indexOf", "-1"), ("lastIndexOf", "-1"), ("contains", "false")] {
            let source = format!(r#"string(mqtt.client_id.{function}(mqtt.client_id.substring(30000) + "b"))"#);
            assert_eq!(evaluate(&source, &long).as_deref().map(String::as_str), Ok(result), "{function}");
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
