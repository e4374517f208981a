//! A writer for log lines that escapes what a reader would not see, or would see in another place: controls, and characters
//! that change the direction of text or have no width. Enters: lines with text that clients chose. Leaves: the same lines with
//! `\uXXXX` for each such character, which in JSON means the same. ESC stays: it begins a colour of the log itself, which
//! escapes it in values.

use std::borrow::Cow;
use std::io::{self, Write};

use crate::util::invisible::is_invisible;

/// Escapes what it writes to the inner writer.
#[derive(Debug)]
pub(super) struct Escaping<W>(pub(super) W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(&escape(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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
            let mut written = Vec::new();
            Escaping(&mut written).write_all(line.as_bytes()).unwrap();
            assert!(written.is_ascii() && !written.contains(&0x7f), "{hostile:?}");
            assert_eq!(serde_json::from_slice::<String>(&written).unwrap(), hostile);
        }
        assert_eq!(&*escape("Zürich \u{1b}[2m東京\n".as_bytes()), "Zürich \u{1b}[2m東京\n".as_bytes());
    }
}
