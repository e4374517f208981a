//! Escapes in log lines what a reader would not see, or would see in another place: controls, and characters
//! that change the direction of text or have no width. Enters: lines with text that clients chose. Leaves: the same lines with
//! `\uXXXX` for each such character, which in JSON means the same. ESC stays: it begins a colour of the log itself, which
//! escapes it in values.

use std::borrow::Cow;

use crate::util::invisible::is_invisible;

/// Escapes lines. What is no UTF-8, which no line should be, stays as it is.
pub(super) fn escape_lines(lines: &[u8]) -> Cow<'_, [u8]> {
    if str::from_utf8(lines).is_ok_and(|text| !text.contains(is_invisible)) {
        return Cow::Borrowed(lines);
    }
    Cow::Owned(lines.split_inclusive(|byte| *byte == b'\n').flat_map(|line| escape(line).into_owned()).collect())
}

fn escape(line: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(line) else { return Cow::Borrowed(line) };
    if !text.contains(is_invisible) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_invisible(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| escaped += &format!("\\u{unit:04x}"));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_would_not_see_is_escaped_and_keeps_its_meaning() {
        for hostile in ["a\u{85}b", "\u{202e}evil", "a\u{2028}b", "\u{7f}", "x\u{200b}y", "\u{feff}", "\u{e0041}"] {
            let line = serde_json::to_string(hostile).unwrap();
            let written = escape_lines(line.as_bytes());
            assert!(written.is_ascii() && !written.contains(&0x7f), "{hostile:?}");
            assert_eq!(serde_json::from_slice::<String>(&written).unwrap(), hostile);
        }
        assert_eq!(&*escape("Zürich \u{1b}[2m東京\n".as_bytes()), "Zürich \u{1b}[2m東京\n".as_bytes());
    }
}
