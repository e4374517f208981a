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
    const MIN_PART: usize = 8;
    // In one pass over the parts: what looks like many beginnings must not be searched again from each of them.
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_header = |part: &str| {
        let end = &part[part.trim_end_matches(is_base64).len()..];
        end.find("eyJ").is_some_and(|at| end.len() - at >= MIN_PART)
    };
    let is_payload = |part: &str| part.len() - part.trim_start_matches(is_base64).len() >= MIN_PART;
    let mut parts = text.split('.').peekable();
    let has_token = std::iter::from_fn(|| parts.next().map(|part| (part, parts.peek().copied())))
        .any(|(part, next)| next.is_some_and(is_payload) && is_header(part));
    text.starts_with("eyJ") || has_token
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
        assert!(!may_hold_token(&format!(" {}", "eyJ".repeat(20_000))));
        assert!(may_hold_token(&format!(" {}.eyJzdWIiOiJhIn0", "eyJ".repeat(20_000))));
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
