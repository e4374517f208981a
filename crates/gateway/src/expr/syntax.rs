//! Explains syntax errors. Enters: the text of an expression and the parser's message, which lists grammar symbols. Leaves:
//! what is wrong at which character, and what was probably meant.

use std::ops::Range;

use super::ExpressionError;

/// Variables of NGINX and placeholders of EMQX and mosquitto, and what they are here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("$ssl_client_s_dn", "cert.subject.dn"),
    ("$ssl_client_i_dn", "cert.issuer.dn"),
    ("$ssl_client_serial", "cert.serial"),
    ("$ssl_client_fingerprint", "cert.fingerprint.sha1"),
    ("$ssl_client_v_end", "cert.not_after"),
    ("$ssl_server_name", "tls.sni"),
    ("$ssl_protocol", "tls.version"),
    ("$ssl_cipher", "tls.cipher"),
    ("$ssl_session_reused", "tls.resumed"),
    ("$ssl_alpn_protocol", "tls.alpn"),
    ("$mqtt_preread_clientid", "mqtt.client_id"),
    ("$mqtt_preread_username", "mqtt.username"),
    ("$remote_addr", "conn.remote_addr"),
    ("$binary_remote_addr", "conn.remote_addr"),
    ("$remote_port", "conn.remote_port"),
    ("${clientid}", "mqtt.client_id"),
    ("${username}", "mqtt.username"),
    ("${cert_common_name}", "cert.subject.cn"),
    ("${cert_subject}", "cert.subject.dn"),
    ("%c", "mqtt.client_id"),
    ("%u", "mqtt.username"),
];

/// Functions of a string that other languages have as operators.
const INFIX: &[&str] = &["matches", "contains", "startsWith", "endsWith", "like"];

/// Explains the first error in the parser's `message` about `source`.
pub(super) fn explain(source: &str, message: &str) -> ExpressionError {
    if source.trim().is_empty() {
        return error("the expression is empty", 0..source.len(), None);
    }
    let at = position(source, message).unwrap_or(source.len());
    let rest = &source[at..];
    let token = token(rest);
    let span = at..at + token.len();
    if rest.trim().is_empty() || message.contains("at '<EOF>'") || message.contains("input '<EOF>'") {
        return unfinished(source);
    }
    if rest.starts_with(['\'', '"']) && message.contains("token recognition") {
        return error("this text has no closing quote", at..source.len(), None);
    }
    if rest.starts_with(['$', '%']) {
        let known = ELSEWHERE.iter().filter(|(name, _)| rest.starts_with(name)).max_by_key(|(name, _)| name.len());
        let (name, hint) = match known {
            Some((name, ours)) => (*name, format!("here it is `{ours}`")),
            None => (token, "docs/expressions.md lists the variables".to_owned()),
        };
        return error(&format!("`{name}` is not a variable"), at..at + name.len(), Some(&hint));
    }
    let before = source[..at].trim_end();
    let hint = match token {
        "=" | "===" => Some("`==` compares".to_owned()),
        "=~" | "~" => Some("`mqtt.client_id.matches(\"^thing\")` matches a pattern".to_owned()),
        "<>" => Some("`!=` is the opposite of `==`".to_owned()),
        "or" | "OR" | "|" => Some("`||` is the operator".to_owned()),
        "and" | "AND" | "&" => Some("`&&` is the operator".to_owned()),
        ")" => Some("it closes no `(`".to_owned()),
        ";" => Some("an expression ends without it; `require` is a list".to_owned()),
        "if" | "then" | "else" => Some("write `condition ? value : other`".to_owned()),
        name if INFIX.contains(&name) => Some(format!("write it as `text.{name}(...)`").replace("like", "matches")),
        _ if before.ends_with("not") || before.ends_with("NOT") => {
            Some("`!` negates: `!has(mqtt.username)`".to_owned())
        }
        _ if before.ends_with('=') && !before.ends_with("==") => Some("`==` compares".to_owned()),
        _ => None,
    };
    if message.contains("reserved identifier") {
        return error(&format!("`{token}` is a reserved word"), span, hint.as_deref());
    }
    error(&format!("`{token}` is not expected here"), span, hint.as_deref())
}

fn error(message: &str, span: Range<usize>, hint: Option<&str>) -> ExpressionError {
    ExpressionError { message: message.to_owned(), span, hint: hint.map(str::to_owned) }
}

/// The expression ends where something has to follow.
fn unfinished(source: &str) -> ExpressionError {
    let end = source.trim_end().len();
    let count = |bracket: char| source.matches(bracket).count();
    for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
        if count(open) > count(close) {
            let start = source.rfind(open).unwrap_or(0);
            return error(&format!("`{close}` is missing"), start..start + 1, Some("it would close this one"));
        }
    }
    let last = source[..end].char_indices().next_back().map_or(0, |(start, _)| start);
    error("the expression is not complete", last..end, Some("something has to follow"))
}

/// The byte offset in the parser's message, `<input>:LINE:COLUMN:`, both counted from 1 in characters.
fn position(source: &str, message: &str) -> Option<usize> {
    let mut numbers = message.split("<input>:").nth(1)?.split(':');
    let line: usize = numbers.next()?.parse().ok()?;
    let column: usize = numbers.next()?.parse().ok()?;
    let start: usize = source.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let rest = source.get(start..)?;
    Some(start + rest.char_indices().nth(column.checked_sub(1)?).map_or(rest.len(), |(offset, _)| offset))
}

/// The word or the run of operator characters at the beginning.
fn token(rest: &str) -> &str {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let first = rest.chars().next().unwrap_or(' ');
    let is_operator = |c: char| "=~<>!&|".contains(c);
    let len = if is_word(first) {
        rest.find(|c| !is_word(c)).unwrap_or(rest.len())
    } else if is_operator(first) {
        rest.find(|c| !is_operator(c)).unwrap_or(rest.len())
    } else {
        first.len_utf8()
    };
    &rest[..len.min(rest.len())]
}

#[cfg(test)]
mod tests {
    use crate::expr::{Expression, Wanted};

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        for (source, message, marked, hint) in [
            ("mqtt.client_id = cert.subject.cn", "`=` is not expected here", "=", "`==` compares"),
            ("mqtt.client_id === \"a\"", "`=` is not expected here", "=", "`==` compares"),
            ("mqtt.client_id =~ \"a\"", "`=~` is not expected here", "=~", "matches"),
            ("mqtt.version == 4 or mqtt.version == 5", "`or` is not expected here", "or", "`||` is the operator"),
            ("mqtt.version == 4 and true", "`and` is not expected here", "and", "`&&` is the operator"),
            ("mqtt.version == 4 & true", "`&` is not expected here", "&", "`&&` is the operator"),
            ("not mqtt.clean_start", "`mqtt` is not expected here", "mqtt", "`!` negates"),
            ("(mqtt.version == 4", "`)` is missing", "(", "close"),
            ("\"a\" in [\"a\", \"b\"", "`]` is missing", "[", "close"),
            ("mqtt.version == 4)", "`)` is not expected here", ")", "closes no"),
            ("mqtt.client_id ==", "the expression is not complete", "=", "has to follow"),
            ("", "the expression is empty", "", ""),
            ("mqtt.client_id == \"abc", "this text has no closing quote", "\"abc", ""),
            (
                "$ssl_client_s_dn == \"a\"",
                "`$ssl_client_s_dn` is not a variable",
                "$ssl_client_s_dn",
                "`cert.subject.dn`",
            ),
            (
                "mqtt.client_id == $mqtt_preread_username",
                "`$mqtt_preread_username` is not a variable",
                "$mqtt_preread_username",
                "`mqtt.username`",
            ),
            ("${clientid} == \"a\"", "`${clientid}` is not a variable", "${clientid}", "`mqtt.client_id`"),
            ("mqtt.client_id matches \"a\"", "`matches` is not expected here", "matches", "text.matches(...)"),
            ("if mqtt.clean_start then true", "`if` is a reserved word", "if", "condition ? value : other"),
            ("mqtt.client_id == \"ä\" or true", "`or` is not expected here", "or", "`||`"),
            ("mqtt.version == 4\nor true", "`or` is not expected here", "or", "`||`"),
        ] {
            let error = Expression::compile(source, Wanted::Bool).map(drop).unwrap_err().remove(0);
            assert_eq!((error.message.as_str(), &source[error.span.clone()]), (message, marked), "{source}");
            assert!(error.hint.unwrap_or_default().contains(hint), "{source}");
        }
    }
}
