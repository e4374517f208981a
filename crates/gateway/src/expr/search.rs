//! `indexOf` and `lastIndexOf` in linear time.

use cel::{ExecutionError, Value};

use super::budget::failed;

/// The index, in characters, of the first occurrence of `part` that begins at `from` or later; -1 if there is none. The
/// language's own function takes the product of both lengths; this one takes their sum, as the operands
/// are charged.
pub(super) fn index_of(text: &str, part: &str, from: Option<i64>) -> Result<Value, ExecutionError> {
    let begin = match place_of(text, part, from)? {
        Place::Index(index) => return Ok(Value::Int(index)),
        Place::Byte(byte) => byte,
    };
    Ok(index_in_characters(text, text[begin..].find(part).map(|at| begin + at)))
}

/// As [`index_of`], of the last occurrence that begins at `from` or earlier.
pub(super) fn last_index_of(text: &str, part: &str, from: Option<i64>) -> Result<Value, ExecutionError> {
    let end = match (from, place_of(text, part, from)?) {
        (None, _) => text.len(),
        (_, Place::Index(index)) => return Ok(Value::Int(index)),
        (_, Place::Byte(byte)) => text.floor_char_boundary(byte + part.len()),
    };
    Ok(index_in_characters(text, text[..end].rfind(part)))
}

/// Where a search begins.
enum Place {
    /// At this byte.
    Byte(usize),
    /// Nowhere: this is the result.
    Index(i64),
}

fn place_of(text: &str, part: &str, from: Option<i64>) -> Result<Place, ExecutionError> {
    let Some(from) = from else { return Ok(Place::Byte(0)) };
    let begin = usize::try_from(from).map_err(|_| failed("index out of range"))?;
    match text.char_indices().nth(begin) {
        _ if part.is_empty() => Ok(Place::Index(from.min(i64::try_from(text.chars().count()).unwrap_or(i64::MAX)))),
        Some((byte, _)) => Ok(Place::Byte(byte)),
        None => Err(failed("index out of range")),
    }
}

fn index_in_characters(text: &str, byte: Option<usize>) -> Value {
    let index = byte.and_then(|byte| i64::try_from(text[..byte].chars().count()).ok());
    Value::Int(index.unwrap_or(-1))
}
