//! Topic names and topic filters [MQTT-4.7]: validity, matching, coverage and overlap. Nothing here allocates.

use crate::Rule;

/// What separates the levels of a topic [MQTT-4.7.1.1].
const SEPARATOR: char = '/';
/// The prefix of a shared subscription [MQTT-4.8.2].
const SHARED: &str = "$share/";

/// Checks a topic name: at least one character [MQTT-4.7.3-1], no wildcards [MQTT-3.3.2-2], no U+0000 [MQTT-4.7.3-2].
///
/// # Errors
/// [`Rule::TopicName`] or [`Rule::NullCharacter`].
#[inline]
pub fn check_topic_name(topic: &str) -> Result<(), Rule> {
    let mut has_null = false;
    let mut has_wildcard = topic.is_empty();
    // Without an early exit, so that it becomes a few vector instructions.
    for byte in topic.bytes() {
        has_null |= byte == 0;
        has_wildcard |= byte == b'+' || byte == b'#';
    }
    match (has_null, has_wildcard) {
        (true, _) => Err(Rule::NullCharacter),
        (_, true) => Err(Rule::TopicName),
        _ => Ok(()),
    }
}

/// The number of levels of a topic name or filter, at least 1.
pub fn topic_levels(topic: &str) -> usize {
    1 + topic.bytes().filter(|byte| *byte == b'/').count()
}

/// A valid topic filter [MQTT-4.7.1]. `$share/group/filter` is valid, too: see [`TopicFilter::shared`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicFilter<'a> {
    /// Checks that `+` and `#` stand alone in their levels, `#` only in the last one.
    ///
    /// # Errors
    /// [`Rule::TopicFilter`] or [`Rule::NullCharacter`].
    pub fn new(text: &'a str) -> Result<Self, Rule> {
        if text.is_empty() {
            return Err(Rule::TopicFilter);
        }
        if text.contains('\0') {
            return Err(Rule::NullCharacter);
        }
        let mut levels = text.split(SEPARATOR).peekable();
        while let Some(level) = levels.next() {
            let is_valid = match level {
                "+" => true,
                "#" => levels.peek().is_none(),
                level => !level.contains(['+', '#']),
            };
            if !is_valid {
                return Err(Rule::TopicFilter);
            }
        }
        Ok(Self(text))
    }

    /// The filter as text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The share name and the filter of a shared subscription [MQTT-4.8.2]. `None`: the filter is not shared, or lacks the
    /// name or the filter behind it.
    pub fn shared(self) -> Option<(&'a str, TopicFilter<'a>)> {
        let (group, filter) = self.0.strip_prefix(SHARED)?.split_once(SEPARATOR)?;
        (!group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty()).then_some((group, Self(filter)))
    }

    /// Whether it begins like a shared subscription.
    pub fn is_shared(self) -> bool {
        self.0.starts_with(SHARED)
    }

    /// Its levels.
    pub fn levels(self) -> impl Iterator<Item = &'a str> + Clone {
        self.0.split(SEPARATOR)
    }

    /// Whether the topic name matches. A leading wildcard does not match topics that begin with `$` [MQTT-4.7.2-1]; `#`
    /// includes its parent level [MQTT-4.7.1.2].
    pub fn matches(self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut filter, mut topic) = (self.levels(), topic.split(SEPARATOR));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(level), Some(name)) if level == name => {}
                _ => return false,
            }
        }
    }

    /// Whether every topic name that `other` matches is one that this filter matches.
    pub fn covers(self, other: TopicFilter<'_>) -> bool {
        let is_internal = other.0.starts_with('$');
        if is_internal && self.0.starts_with(['+', '#']) {
            return false;
        }
        // The parent level of `#` and of `/#` is no topic name, so that `+/#` behind it covers as much as `#`.
        if other.0 == "#" && self.0 == "+/#" || other.0 == "/#" && matches!(self.0, "/+/#" | "+/+/#") {
            return true;
        }
        let (mut own, mut other) = (self.levels(), other.levels());
        loop {
            match (own.next(), other.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some(own), Some("#")) if own != "#" => return false,
                (Some("+"), Some(_)) => {}
                (Some(level), Some(name)) if level == name => {}
                _ => return false,
            }
        }
    }

    /// Whether a topic name exists that both filters match.
    pub fn overlaps(self, other: TopicFilter<'_>) -> bool {
        let is_wild = |filter: &str| filter.starts_with(['+', '#']);
        let is_internal = |filter: &str| filter.starts_with('$');
        if is_wild(self.0) && is_internal(other.0) || is_internal(self.0) && is_wild(other.0) {
            return false;
        }
        // The parent level of `/#` is no topic name.
        if matches!((self.0, other.0), ("+", "/#") | ("/#", "+")) {
            return false;
        }
        let (mut own, mut other) = (self.levels(), other.levels());
        loop {
            match (own.next(), other.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (Some(level), Some(name)) if level == name => {}
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(text: &str) -> TopicFilter<'_> {
        TopicFilter::new(text).unwrap_or_else(|rule| panic!("{text}: {rule:?}"))
    }

    #[test]
    fn wildcards_stand_alone_and_the_last_one_is_last() {
        for text in ["#", "+", "/", "a", "a/#", "+/#", "+/a/+", "/+", "a//b", "$SYS/#", "$share/g/a", " ", "a b/ä"] {
            assert!(TopicFilter::new(text).is_ok(), "{text}");
        }
        for text in ["", "a#", "a/b#", "#/a", "a/#/b", "a+", "+a", "a/+b/c", "##", "++", "a/##"] {
            assert_eq!(TopicFilter::new(text), Err(Rule::TopicFilter), "{text}");
        }
        assert_eq!(TopicFilter::new("a\0b"), Err(Rule::NullCharacter), "[MQTT-4.7.3-2]");
    }

    #[test]
    fn topic_names_have_no_wildcards() {
        for topic in ["a", "/", "a/b", "$SYS/a", " ", "finance//x", "ä"] {
            assert_eq!(check_topic_name(topic), Ok(()), "{topic}");
        }
        for topic in ["", "+", "a/+", "#", "a#"] {
            assert_eq!(check_topic_name(topic), Err(Rule::TopicName), "{topic}");
        }
        assert_eq!(check_topic_name("a\0"), Err(Rule::NullCharacter));
    }

    #[test]
    fn the_examples_of_the_standard_match() {
        // Section 4.7.1 and 4.7.2.
        for (pattern, topic, matches) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/monitor", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/monitor", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("ACCOUNTS", "Accounts", false),
            ("/finance", "finance", false),
        ] {
            assert_eq!(filter(pattern).matches(topic), matches, "{pattern} {topic}");
        }
    }

    #[test]
    fn a_shared_subscription_has_a_group_and_a_filter() {
        assert_eq!(filter("$share/g/a/+").shared(), Some(("g", filter("a/+"))));
        assert_eq!(filter("$share/g//").shared(), Some(("g", filter("/"))));
        for text in
            ["$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$shared/g/a", "share/g/a"]
        {
            assert_eq!(filter(text).shared(), None, "{text}");
        }
    }

    /// Every string of one to four levels over an alphabet, which has one level that the filters cannot name, so that a
    /// literal never stands for all names.
    fn topics() -> Vec<String> {
        const LEVELS: [&str; 5] = ["", "a", "b", "$x", "other"];
        let mut all: Vec<String> = LEVELS.iter().map(|level| (*level).to_owned()).collect();
        let mut longer = all.clone();
        for _ in 0..3 {
            longer =
                longer.iter().flat_map(|start| LEVELS.iter().map(move |level| format!("{start}/{level}"))).collect();
            all.extend(longer.iter().cloned());
        }
        all.retain(|topic| !topic.is_empty());
        all
    }

    fn any_filter() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["", "a", "b", "$x", "+"]);
        (prop::collection::vec(level, 0..3), any::<bool>()).prop_filter_map("empty", |(levels, has_hash)| {
            let mut levels = levels;
            if has_hash {
                levels.push("#");
            }
            let text = levels.join("/");
            TopicFilter::new(&text).is_ok().then_some(text)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn coverage_and_overlap_agree_with_the_matching_of_all_topics(one in any_filter(), other in any_filter()) {
            let (one, other) = (filter(&one), filter(&other));
            let topics = topics();
            let matched: Vec<_> = topics.iter().filter(|topic| other.matches(topic)).collect();
            prop_assert_eq!(one.covers(other), matched.iter().all(|topic| one.matches(topic)), "{:?} covers {:?}", one, other);
            prop_assert_eq!(one.overlaps(other), matched.iter().any(|topic| one.matches(topic)), "{:?} overlaps {:?}", one, other);
            prop_assert_eq!(one.overlaps(other), other.overlaps(one));
            prop_assert!(one.covers(one));
        }
    }
}
