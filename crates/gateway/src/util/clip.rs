//! Cuts text that a client chose to the length that logs show.

use std::borrow::Cow;

/// The length in bytes from which text is cut.
const MAX_LEN: usize = 256;

/// The text, or its first 256 bytes and a mark with its length, as in `sensor-sensor-sen...[32700 bytes]`. No text of a
/// client can imitate a cut one: with the mark, that is longer than 256 bytes.
pub(crate) fn clip(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_LEN {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(MAX_LEN);
    Cow::Owned(format!("{}...[{} bytes]", &text[..end], text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_character_and_says_so() {
        assert_eq!(clip(&"a".repeat(256)), "a".repeat(256));
        assert_eq!(clip(&"a".repeat(32_700)), "a".repeat(256) + "...[32700 bytes]");
        assert_eq!(clip(&"ä".repeat(129)), "ä".repeat(128) + "...[258 bytes]");
        assert_eq!(clip(&("a".to_owned() + &"東".repeat(100))), "a".to_owned() + &"東".repeat(85) + "...[301 bytes]");
        assert_eq!(clip(""), "");
    }
}
