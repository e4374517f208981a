//! Topic names and filters [MQTT-4.7].

/// Whether this is a valid topic name, to which messages can be published.
pub(crate) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

/// Whether this is a valid topic filter: `#` only as the last level, `+` only as a whole level.
pub(crate) fn is_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    let mut is_valid = !filter.is_empty() && !filter.contains('\0');
    while let Some(level) = levels.next() {
        is_valid &= match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            _ => !level.contains(['+', '#']),
        };
    }
    is_valid
}

/// Whether a valid filter matches a topic. Wildcards do not match a first level that begins with `$` [MQTT-4.7.2-1].
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic) in [
            ("a/b", "a/b"),
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("#", "a/b"),
            ("+/b", "a/b"),
            ("+/+", "/b"),
            ("/+", "/b"),
            ("a/+/", "a//"),
            ("$SYS/#", "$SYS/x"),
        ] {
            assert!(is_filter(filter) && matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in
            [("a/b", "a/b/c"), ("a/b", "a"), ("+", "a/b"), ("+", "/b"), ("#", "$SYS/x"), ("+/x", "$SYS/x")]
        {
            assert!(is_filter(filter) && !matches(filter, topic), "{filter} {topic}");
        }
        for wrong in ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a\0"] {
            assert!(!is_filter(wrong) && !is_topic(wrong), "{wrong}");
        }
    }
}
