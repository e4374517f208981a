//! Rewrites errors of TOML's syntax: what is wrong with the line, and how to write it.

use std::ops::Range;

use super::diagnostics::Complaint;
use super::elsewhere::instead_of;

/// Rewrites an error. `span`: where it is in `source`.
pub(super) fn explain_syntax(message: &str, source: &str, span: &Range<usize>) -> Complaint {
    let at = source.floor_char_boundary(span.start.min(source.len()));
    let begin = source[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = source[begin..].lines().next().unwrap_or_default().trim();
    let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
    if (line.ends_with(['{', ';']) && !line.contains('=')) || line == "}" || line.starts_with('<') {
        let complaint = Complaint::new("this is not TOML");
        return complaint
            .hint("docs/migrate-from-nginx.md and migrate-from-others.md show how to convert other configurations");
    }
    if message.starts_with("key with no value") {
        let word = line.split_whitespace().next().unwrap_or_default();
        let complaint = Complaint::new(format!("`{}` has no value", word.escape_debug()));
        return complaint.hint(instead_of(word, &[], true).unwrap_or_else(|| "a line is `key = value`".to_owned()));
    }
    if line.contains("[\"") && line.matches('"').count() > 2 && message.starts_with("missing") {
        let complaint = Complaint::new("the string ends at its second quote");
        return complaint.hint("write expressions in single quotes: require = ['mqtt.client_id == \"thing001\"']");
    }
    if message.starts_with("missing escaped value") {
        let complaint = Complaint::new("`\\` begins an escape in a text in double quotes");
        return complaint.hint("write the text in single quotes, or the character twice");
    }
    let is_bare = value.chars().next().is_some_and(|first| first.is_alphanumeric() || "./:*".contains(first));
    if message.starts_with("invalid") && is_bare && !value.contains(['"', '\'']) {
        return Complaint::new("a string needs quotes").hint(format!("{key} = \"{value}\""));
    }
    Complaint::new(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(source: &str) -> (String, Option<String>) {
        let (_, errors) = toml::de::DeTable::parse_recoverable(source);
        let error = errors.first().unwrap_or_else(|| panic!("{source} has no error"));
        let complaint = explain_syntax(error.message(), source, &error.span().unwrap_or(0..0));
        (complaint.message, complaint.hint)
    }

    #[test]
    fn mistakes_are_explained_by_their_line() {
        for (source, message, hint) in [
            ("bind = 127.0.0.1:8883\n", "a string needs quotes", "bind = \"127.0.0.1:8883\""),
            ("bind = 0.0.0.0:8883\n", "a string needs quotes", "bind = \"0.0.0.0:8883\""),
            ("stream {\n  listen 8883;\n}\n", "this is not TOML", "docs/migrate"),
            ("cafile /etc/ca.pem\n", "`cafile` has no value", "use `client_ca`"),
            ("nonsense here\n", "`nonsense` has no value", "a line is `key = value`"),
            (
                "require = [\"mqtt.client_id == \"x\"\"]\n",
                "the string ends at its second quote",
                "write expressions in single",
            ),
            ("ca = \"certs\\server.pem\"\n", "`\\` begins an escape", "write the text in single quotes"),
        ] {
            let (found, found_hint) = first(source);
            assert!(found.starts_with(message), "{source}: {found}");
            assert!(found_hint.is_some_and(|found| found.starts_with(hint)), "{source}");
        }
    }
}
