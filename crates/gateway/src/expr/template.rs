//! Text with expressions in it: `devices/${mqtt.client_id}/up/#`. Each `${...}` yields a part of one topic level. Compiled
//! and checked at load, evaluated once for each client.
//!
//! Values come from certificates, tokens and CONNECT, and must not change what the text around them means: a value that is
//! empty, or that contains a separator, a wildcard or U+0000, makes the evaluation fail; so does one that begins with `$`
//! where the whole text would, because such topics belong to the broker [MQTT-4.7.2].

use std::ops::Range;

use super::{Expression, ExpressionError, Wanted};
use crate::peer::Facts;

/// Text with expressions in it.
#[derive(Debug)]
pub struct Template {
    source: Box<str>,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(Box<str>),
    Expression(Box<Expression>),
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// All errors in its expressions, with their byte ranges in `source`.
    pub fn compile(source: &str) -> Result<Self, Vec<ExpressionError>> {
        let (mut parts, mut errors) = (Vec::new(), Vec::new());
        let mut at = 0;
        while let Some(offset) = source[at..].find("${") {
            let begin = at + offset;
            if begin > at {
                parts.push(Part::Text(source[at..begin].into()));
            }
            let inner = begin + 2;
            let Some(len) = expression_len(&source[inner..]) else {
                errors.push(error("`${` has no closing `}`", begin..source.len()));
                return Err(errors);
            };
            match Expression::compile(&source[inner..inner + len], Wanted::String) {
                Ok(expression) => parts.push(Part::Expression(Box::new(expression))),
                Err(inside) => {
                    let moved = |error: ExpressionError| {
                        let span = error.span.start + inner..error.span.end + inner;
                        ExpressionError { span, ..error }
                    };
                    errors.extend(inside.into_iter().map(moved));
                }
            }
            at = inner + len + 1;
        }
        if at < source.len() {
            parts.push(Part::Text(source[at..].into()));
        }
        if errors.is_empty() { Ok(Self { source: source.into(), parts }) } else { Err(errors) }
    }

    /// As it stands in the configuration.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is the same for every client.
    pub fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The text with `value` for each expression.
    pub fn with_each(&self, value: &str) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.to_string(),
            Part::Expression(_) => value.to_owned(),
        };
        self.parts.iter().map(text).collect()
    }

    /// The text with a name for each expression, the same for the same one, that has no separators and wildcards.
    pub fn with_names(&self) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.to_string(),
            Part::Expression(expression) => format!("\u{1}{}", hex::encode(expression.to_string())),
        };
        self.parts.iter().map(text).collect()
    }

    /// Whether a topic level contains two expressions. With text between them or without, it can be read in two ways: `a-b`
    /// and `c` give the same level as `a` and `b-c`.
    pub fn has_ambiguous_level(&self) -> bool {
        const MARK: &str = "\u{1}";
        self.with_each(MARK).split('/').any(|level| level.matches(MARK).count() > 1)
    }

    /// The expressions.
    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.parts.iter().filter_map(|part| match part {
            Part::Expression(expression) => Some(&**expression),
            Part::Text(_) => None,
        })
    }

    /// Evaluates the template.
    ///
    /// # Errors
    /// Why it has no value for this client.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Expression(expression) => {
                    let value = expression.try_text(facts)?;
                    let why = if value.is_empty() {
                        "is empty"
                    } else if value.contains(['/', '+', '#', '\0']) {
                        "contains `/`, `+`, `#` or U+0000"
                    } else if text.is_empty() && value.starts_with('$') {
                        "begins with `$`"
                    } else {
                        text.push_str(&value);
                        continue;
                    };
                    return Err(format!("`{expression}`: the value {why}"));
                }
            }
        }
        Ok(text)
    }
}

fn error(message: &str, span: Range<usize>) -> ExpressionError {
    ExpressionError { message: message.to_owned(), span, hint: None }
}

/// The length of the expression at the front of `text`, up to its closing brace: not one in a string or a map.
fn expression_len(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut is_escaped) = (0_u32, None, false);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{AuthAttributes, Peer};
    use portcullis_wire::{Connect, Properties, Version};

    fn evaluate(template: &str, client_id: &str) -> Result<String, String> {
        let peer = Peer::plain(([192, 0, 2, 1], 5).into());
        let connect = Connect {
            version: Version::V5,
            clean_start: true,
            keep_alive: 60,
            properties: Properties::default(),
            client_id,
            will: None,
            username: None,
            password: None,
        };
        let facts = Facts { peer: &peer, listener: "l", mqtt: &connect, attributes: AuthAttributes::default(), now: 7 };
        Template::compile(template).unwrap_or_else(|errors| panic!("{errors:?}")).evaluate(&facts)
    }

    #[test]
    fn expressions_are_replaced_by_their_values() {
        assert_eq!(evaluate("a/b/#", "x").as_deref(), Ok("a/b/#"));
        assert_eq!(evaluate("a/${mqtt.client_id}/#", "x").as_deref(), Ok("a/x/#"));
        assert_eq!(
            evaluate("${mqtt.client_id}-${conn.listener}", "$x-").as_deref(),
            Err(&"`mqtt.client_id`: the value begins with `$`".to_owned())
        );
        assert_eq!(evaluate("a/${mqtt.client_id}", "$x").as_deref(), Ok("a/$x"));
        assert_eq!(evaluate(r#"${mqtt.client_id + "}" + {"a": "}"}["a"]}/b"#, "x").as_deref(), Ok("x}}/b"));
        assert_eq!(evaluate(r#"${"\"}" + mqtt.client_id}"#, "x").as_deref(), Ok("\"}x"));
    }

    #[test]
    fn a_value_changes_nothing_around_it() {
        for client_id in ["", "+", "#", "a/b", "a+", "#a", "/", "a\0"] {
            assert!(evaluate("a/${mqtt.client_id}/b", client_id).is_err(), "{client_id:?}");
        }
        assert!(evaluate("a/${mqtt.username}", "x").is_err(), "a fact that is missing");
    }

    #[test]
    fn two_expressions_in_one_level_are_ambiguous() {
        for (template, is_ambiguous) in [
            ("a/b", false),
            ("${mqtt.client_id}/${conn.listener}", false),
            ("x-${mqtt.client_id}/a", false),
            ("${mqtt.client_id}${conn.listener}/a", true),
            ("a/${mqtt.client_id}-${conn.listener}", true),
        ] {
            let template = Template::compile(template).unwrap();
            assert_eq!(template.has_ambiguous_level(), is_ambiguous, "{}", template.source());
        }
        let named = |template: &str| Template::compile(template).unwrap().with_names();
        assert_eq!(named("a/${mqtt.client_id}/#").split('/').count(), 3);
        assert_eq!(named("${'/' + mqtt.client_id}"), named("${'/' + mqtt.client_id}"));
        assert_ne!(named("${'/' + mqtt.client_id}"), named("${mqtt.client_id}"));
    }

    #[test]
    fn errors_are_where_they_are_in_the_whole_text() {
        let errors = Template::compile("a/${mqtt.cilent_id}/${conn.remote_port}").unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert_eq!(&"a/${mqtt.cilent_id}"[errors[0].span.clone()], ".cilent_id", "{errors:?}");
        assert!(Template::compile("a/${mqtt.client_id").is_err());
        assert!(Template::compile("a/${}").is_err());
    }
}
