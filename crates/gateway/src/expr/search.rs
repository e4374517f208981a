//! `indexOf` and `lastIndexOf` in linear time: the language's own functions take the product of both lengths.

/// The index, in characters, of the first occurrence of `part` that begins at `from` or later; -1 if there is none. `None`:
/// `from` is out of range.
pub(super) fn index_of(text: &str, part: &str, from: Option<i64>) -> Option<i64> {
    match begin_of(text, part, from)? {
        Begin::Result(index) => Some(index),
        Begin::Byte(begin) => Some(in_characters(text, text[begin..].find(part).map(|at| begin + at))),
    }
}

/// As [`index_of`], of the last occurrence that begins at `from` or earlier.
pub(super) fn last_index_of(text: &str, part: &str, from: Option<i64>) -> Option<i64> {
    let end = match (from, begin_of(text, part, from)?) {
        (None, _) => text.len(),
        (_, Begin::Result(index)) => return Some(index),
        (_, Begin::Byte(byte)) => text.floor_char_boundary(byte + part.len()),
    };
    Some(in_characters(text, text[..end].rfind(part)))
}

/// Where a search begins.
enum Begin {
    /// At this byte.
    Byte(usize),
    /// Nowhere: this is its result.
    Result(i64),
}

fn begin_of(text: &str, part: &str, from: Option<i64>) -> Option<Begin> {
    let Some(from) = from else { return Some(Begin::Byte(0)) };
    let begin = usize::try_from(from).ok()?;
    if part.is_empty() {
        let len = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        return Some(Begin::Result(from.min(len)));
    }
    text.char_indices().nth(begin).map(|(byte, _)| Begin::Byte(byte))
}

fn in_characters(text: &str, byte: Option<usize>) -> i64 {
    byte.and_then(|byte| i64::try_from(text[..byte].chars().count()).ok()).unwrap_or(-1)
}
