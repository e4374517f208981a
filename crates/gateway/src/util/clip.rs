//! What logs show of text that a client chose: it is cut, and may be a token, which they do not show.

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

/// Whether text may be or contain a JSON Web Token: three parts in base64, of which the first begins with `{"`. Clients that
/// are set up wrongly send it as user name or client ID.
pub(crate) fn may_hold_token(text: &str) -> bool {
    let is_token = |from: &str| {
        let parts = from.split('.').map(|part| part.bytes().take_while(|byte| is_base64(*byte)).count());
        parts.take(3).filter(|len| *len >= 8).count() >= 2
    };
    text.match_indices("eyJ").any(|(at, _)| at == 0 || is_token(&text[at..]))
}

const fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_recognised_wherever_they_are() {
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
        for text in [token, &format!(" {token}"), &format!("Bearer {token}"), &format!("dev-1:{token}"), "eyJ"] {
            assert!(may_hold_token(text), "{text}");
        }
        for text in ["", "alice", "HeyJude.v1.final", "dev.eyJ.1", "sensor.lyon.7"] {
            assert!(!may_hold_token(text), "{text}");
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character_and_says_so() {
        assert_eq!(clip(&"a".repeat(256)), "a".repeat(256));
        assert_eq!(clip(&"a".repeat(32_700)), "a".repeat(256) + "...[32700 bytes]");
        assert_eq!(clip(&"ä".repeat(129)), "ä".repeat(128) + "...[258 bytes]");
        assert_eq!(clip(&("a".to_owned() + &"東".repeat(100))), "a".to_owned() + &"東".repeat(85) + "...[301 bytes]");
        assert_eq!(clip(""), "");
    }
}
