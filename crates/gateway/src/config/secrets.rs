//! Whether a line of a configuration file may be shown. Enters: the file as it is written, which need not be TOML, and the line.
//! Leaves: whether it may contain a secret, whatever is wrong in it: a table may be written in one line, or over many.

use std::ops::Range;

/// Keys whose values are secrets, if the file contains them in place of a reference to where they are.
const KEYS: [&str; 3] = ["ticket_secret", "private_key_passphrase", "password"];
/// The table of the headers of HTTP requests. Any of them may be a token.
const HEADERS: &str = "headers";
/// The delimiters of strings of several lines.
const LONG_STRINGS: [&str; 2] = ["\"\"\"", "'''"];

/// Whether the line, a byte range of `source`, may contain a secret.
pub(super) fn may_be_in(source: &str, line: Range<usize>) -> bool {
    let before = &source[..line.start];
    may_contain(&source[line]) || is_in_headers(before) || is_in_secret_string(before)
}

/// Of a line by itself.
fn may_contain(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let values = |key: &'static str| {
        let after = |(at, _): (usize, &str)| line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
        line.match_indices(key).filter_map(move |found| Some(after(found).strip_prefix('=')?.trim_start()))
    };
    let is_reference = |value: &str| value.trim_start_matches(['"', '\'']).starts_with("${");
    // A table describes a token that the gateway signs.
    let is_secret = |value: &str| !value.is_empty() && !value.starts_with(['{', '=']) && !is_reference(value);
    KEYS.into_iter().flat_map(values).any(is_secret)
        || line.contains(HEADERS)
        // The PIN of a PKCS#11 token.
        || line.contains("pin-value")
        // A URL with a password, or a query, which may contain a token.
        || (line.contains("://") && line.contains(['@', '?']))
}

/// Whether what follows belongs to a table of headers, under a header of its own or in braces.
fn is_in_headers(before: &str) -> bool {
    let is_table = |line: &&str| line.trim_start().starts_with('[');
    let of_table = before.lines().rev().find(is_table).is_some_and(|header| header.contains(HEADERS));
    let in_braces = |(at, _): (usize, &str)| before[at..].contains('{') && !before[at..].contains('}');
    of_table || before.rmatch_indices(HEADERS).next().is_some_and(in_braces)
}

/// Whether what follows belongs to a string of several lines that may be a secret, by the line in which it begins.
fn is_in_secret_string(before: &str) -> bool {
    let mut at = 0;
    loop {
        let next = LONG_STRINGS.into_iter().filter_map(|quotes| Some((before[at..].find(quotes)?, quotes))).min();
        let Some((begin, quotes)) = next else { return false };
        let begin = at + begin;
        match before[begin + quotes.len()..].find(quotes) {
            Some(len) => at = begin + quotes.len() + len + quotes.len(),
            None => {
                let line = before[..begin].rfind('\n').map_or(0, |at| at + 1);
                return may_contain(before[line..].lines().next().unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the last line.
    fn may_be_in_last(source: &str) -> bool {
        let start = source.rfind('\n').map_or(0, |at| at + 1);
        may_be_in(source, start..source.len())
    }

    #[test]
    fn lines_with_secrets_are_recognised_however_they_are_written() {
        for secret in [
            "ticket_secret = \"hunter2\"",
            "tls = { certificate = 1, \"ticket_secret\"='hunter2' }",
            "tls.private_key_passphrase = \"hunter2",
            "PASSWORD=\"hunter2\"",
            "database = \"host=a password=hunter2\"",
            "url = \"http://a/?token=hunter2\"",
            "url = \"http://u:hunter2@a/\"",
            "private_key = \"pkcs11:token=a?pin-value=hunter2\"",
            "headers.Authorization = \"Bearer hunter2\"",
            "headers = \"Bearer hunter2\"",
            "headers = { A = 1,\nAuthorization = \"Bearer hunter2\"",
            "[authenticator.headers]\nA = 1\nAuthorization = \"Bearer hunter2\" x",
            "ticket_secret = \"\"\"\nhunter2 \\x",
            "password = '''a\nb\nhunter2",
        ] {
            assert!(may_be_in_last(secret), "{secret}");
        }
        for other in [
            "certificate = \"a.pem\"",
            "password = \"${FILE:/run/password}\"",
            "connect = { password = { claims = { iss = 'now' } } }",
            "require = ['mqtt.password == \"a\"']",
            "headers = { A = \"b\" }\nurl = \"http://a/\"",
            "[authenticator.headers]\nA = \"b\"\n[[upstream]]\nname = 1",
            "ticket_secret = \"\"\"a\"\"\"\nsession_lifetime = 1",
            "hint = '''\na\n'''\nname = 1",
            "require = ['''\nmqtt.client_id == cert",
        ] {
            assert!(!may_be_in_last(other), "{other}");
        }
    }
}
