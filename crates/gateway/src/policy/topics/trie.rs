//! Patterns of topics, by level. Enters: patterns, each with the number of its rule. Leaves: for a topic name or a topic
//! filter, the first rule that concerns it. Nothing is allocated.
//!
//! The time depends on the depth of the patterns, not on their number, as long as few have `+` where others have the topic's
//! own level: a search follows both, at each level again. It never visits more nodes than there are, and none below which
//! only later rules are.

use std::collections::BTreeMap;
use std::ops::Range;

use portcullis_wire::TopicFilter;

/// The number of a rule, in the order of the policy.
pub(super) type RuleId = u32;
/// No rule.
pub(super) const NO_RULE: RuleId = RuleId::MAX;

const ROOT: u32 = 0;
const NO_NODE: u32 = u32::MAX;

/// Patterns by level.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Box<[Node]>,
    /// The children of all nodes, those of one node together, in the order of their levels.
    edges: Box<[Edge]>,
    /// The levels.
    text: Box<str>,
}

#[derive(Debug)]
struct Node {
    /// First and last edge.
    edges: (u32, u32),
    /// The child for `+`.
    plus: u32,
    /// The first rule with a pattern that ends here.
    end: RuleId,
    /// The first rule with a pattern whose `#` is the next level.
    hash: RuleId,
    /// The first rule of this node and of those below.
    first: RuleId,
}

#[derive(Debug)]
struct Edge {
    /// The level, in the text.
    level: (u32, u32),
    node: u32,
}

impl Default for Trie {
    fn default() -> Self {
        Self::new(std::iter::empty())
    }
}

impl Trie {
    /// Sorts patterns, which are valid topic filters.
    pub(super) fn new<'p>(patterns: impl IntoIterator<Item = (&'p str, RuleId)>) -> Self {
        let mut nodes = vec![Building::default()];
        for (pattern, rule) in patterns {
            let mut at = 0;
            let mut levels = pattern.split('/').peekable();
            while let Some(level) = levels.next() {
                nodes[at].first = nodes[at].first.min(rule);
                if level == "#" {
                    nodes[at].hash = nodes[at].hash.min(rule);
                    break;
                }
                let new = nodes.len();
                let child = if level == "+" {
                    *nodes[at].plus.get_or_insert(new)
                } else {
                    *nodes[at].children.entry(level).or_insert(new)
                };
                if child == new {
                    nodes.push(Building::default());
                }
                at = child;
                if levels.peek().is_none() {
                    nodes[at].end = nodes[at].end.min(rule);
                    nodes[at].first = nodes[at].first.min(rule);
                }
            }
        }
        let (mut edges, mut text) = (Vec::new(), String::new());
        let index = |number: usize| u32::try_from(number).unwrap_or(NO_NODE);
        let freeze = |node: &Building<'_>| {
            let begin = index(edges.len());
            for (level, child) in &node.children {
                let start = index(text.len());
                text.push_str(level);
                edges.push(Edge { level: (start, index(text.len())), node: index(*child) });
            }
            let plus = node.plus.map_or(NO_NODE, index);
            Node { edges: (begin, index(edges.len())), plus, end: node.end, hash: node.hash, first: node.first }
        };
        let nodes = nodes.iter().map(freeze).collect();
        Self { nodes, edges: edges.into(), text: text.into() }
    }

    /// The first rule before `before` with a pattern that matches the topic name; otherwise `before`.
    #[inline]
    pub(super) fn first_match(&self, topic: &str, before: RuleId) -> RuleId {
        let mut best = before;
        self.find_match(ROOT, Some(topic), &mut best);
        best
    }

    /// The first rule with a pattern that covers the topic filter, or [`NO_RULE`].
    pub(super) fn first_cover(&self, filter: TopicFilter<'_>) -> RuleId {
        let mut best = NO_RULE;
        self.find_cover(ROOT, Some(filter.as_str()), filter, &mut best);
        best
    }

    /// Calls `visit` with the rule of each pattern before `before` that overlaps the topic filter, as long as `budget`, which
    /// is reduced by one for each node, is not 0.
    pub(super) fn overlaps(
        &self,
        filter: TopicFilter<'_>,
        before: RuleId,
        budget: &mut u32,
        visit: &mut impl FnMut(RuleId),
    ) {
        let mut walk = Overlaps { trie: self, filter: filter.as_str(), before, budget, visit };
        walk.node(ROOT, Some(filter.as_str()));
    }

    /// `rest`: the levels that are left; `None`: none.
    fn find_match(&self, at: u32, rest: Option<&str>, best: &mut RuleId) {
        let Some(node) = self.node(at).filter(|node| node.first < *best) else { return };
        let is_hidden = at == ROOT && rest.is_some_and(|topic| topic.starts_with('$'));
        if !is_hidden {
            *best = node.hash.min(*best);
        }
        let Some(rest) = rest else { return *best = node.end.min(*best) };
        let (level, rest) = split(rest);
        if let Some(child) = self.child(node, level) {
            self.find_match(child, rest, best);
        }
        if !is_hidden {
            self.find_match(node.plus, rest, best);
        }
    }

    fn find_cover(&self, at: u32, rest: Option<&str>, filter: TopicFilter<'_>, best: &mut RuleId) {
        let Some(node) = self.node(at).filter(|node| node.first < *best) else { return };
        let is_hidden = at == ROOT && filter.as_str().starts_with('$');
        if !is_hidden {
            *best = node.hash.min(*best);
        }
        let Some(rest) = rest else { return *best = node.end.min(*best) };
        let (level, behind) = split(rest);
        match level {
            // The parent level of `#` and of `/#` is no topic name, so that `+/#` behind it covers as much as `#`.
            "#" => {
                let below = self.node(node.plus).filter(|_| matches!(filter.as_str(), "#" | "/#"));
                *best = below.map_or(*best, |below| below.hash.min(*best));
            }
            "+" => self.find_cover(node.plus, behind, filter, best),
            level => {
                if let Some(child) = self.child(node, level) {
                    self.find_cover(child, behind, filter, best);
                }
                if !is_hidden {
                    self.find_cover(node.plus, behind, filter, best);
                }
            }
        }
    }

    #[inline]
    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize)
    }

    #[inline]
    fn child(&self, node: &Node, level: &str) -> Option<u32> {
        let edges = &self.edges[as_range(node.edges)];
        let found = edges.binary_search_by(|edge| self.level(edge).cmp(level)).ok()?;
        Some(edges[found].node)
    }

    #[inline]
    fn level(&self, edge: &Edge) -> &str {
        &self.text[as_range(edge.level)]
    }
}

/// Finds the patterns that overlap a filter.
struct Overlaps<'t, 'f, V> {
    trie: &'t Trie,
    filter: &'f str,
    before: RuleId,
    budget: &'t mut u32,
    visit: &'t mut V,
}

impl<V: FnMut(RuleId)> Overlaps<'_, '_, V> {
    fn node(&mut self, at: u32, rest: Option<&str>) {
        let Some(node) = self.trie.node(at).filter(|node| node.first < self.before) else { return };
        let Some(left) = self.budget.checked_sub(1) else { return };
        *self.budget = left;
        let is_hidden = at == ROOT && self.filter.starts_with('$');
        if !is_hidden {
            self.rule(node.hash);
        }
        let Some(rest) = rest else { return self.rule(node.end) };
        let (level, behind) = split(rest);
        let edges = &self.trie.edges[as_range(node.edges)];
        if matches!(level, "+" | "#") {
            let (is_last, is_root) = (level == "#", at == ROOT);
            // The parent level of `/#` is no topic name.
            if is_last && !(self.filter == "/#" && self.is_first_plus(at)) {
                self.rule(node.end);
            }
            let below = if is_last { Some("#") } else { behind };
            for edge in edges {
                let own = self.trie.level(edge);
                // Leading wildcards do not match internal topics, and a topic name is not empty.
                if is_root && (own.starts_with('$') || self.filter == "+" && own.is_empty()) {
                    continue;
                }
                self.node(edge.node, below);
            }
            self.node(node.plus, below);
        } else {
            if let Some(child) = self.trie.child(node, level) {
                self.node(child, behind);
            }
            if !is_hidden {
                self.node(node.plus, behind);
            }
        }
    }

    fn is_first_plus(&self, at: u32) -> bool {
        self.trie.node(ROOT).is_some_and(|root| root.plus == at)
    }

    fn rule(&mut self, rule: RuleId) {
        if rule < self.before {
            (self.visit)(rule);
        }
    }
}

/// A node while patterns are added.
struct Building<'p> {
    children: BTreeMap<&'p str, usize>,
    plus: Option<usize>,
    end: RuleId,
    hash: RuleId,
    first: RuleId,
}

impl Default for Building<'_> {
    fn default() -> Self {
        Self { children: BTreeMap::new(), plus: None, end: NO_RULE, hash: NO_RULE, first: NO_RULE }
    }
}

/// The first level, and those behind it.
#[inline]
fn split(topic: &str) -> (&str, Option<&str>) {
    // Levels are short: a search by vectors would take longer to set up.
    let Some(at) = topic.bytes().position(|byte| byte == b'/') else { return (topic, None) };
    (topic.get(..at).unwrap_or_default(), topic.get(at + 1..))
}

const fn as_range((start, end): (u32, u32)) -> Range<usize> {
    start as usize..end as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["", "a", "b", "$x", "+"]);
        (prop::collection::vec(level, 0..4), any::<bool>()).prop_filter_map("invalid", |(levels, has_hash)| {
            let mut levels = levels;
            if has_hash {
                levels.push("#");
            }
            let text = levels.join("/");
            TopicFilter::new(&text).is_ok().then_some(text)
        })
    }

    fn topic() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["", "a", "b", "$x", "other"]);
        prop::collection::vec(level, 1..5).prop_map(|levels| levels.join("/")).prop_filter("empty", |it| !it.is_empty())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn it_finds_what_a_search_of_all_patterns_finds(
            patterns in prop::collection::vec(filter(), 0..8),
            topic in topic(),
            wanted in filter(),
        ) {
            let numbered = || (0..).zip(patterns.iter().map(|pattern| TopicFilter::new(pattern).unwrap()));
            let trie = Trie::new(numbered().map(|(rule, pattern)| (pattern.as_str(), rule)));
            let first = |is_found: &dyn Fn(TopicFilter<'_>) -> bool| {
                numbered().find(|(_, pattern)| is_found(*pattern)).map_or(NO_RULE, |(rule, _)| rule)
            };
            prop_assert_eq!(trie.first_match(&topic, NO_RULE), first(&|pattern| pattern.matches(&topic)));
            let wanted = TopicFilter::new(&wanted).unwrap();
            prop_assert_eq!(trie.first_cover(wanted), first(&|pattern| pattern.covers(wanted)));
            let mut found = std::collections::BTreeSet::new();
            trie.overlaps(wanted, NO_RULE, &mut 1000, &mut |rule| {
                found.insert(rule);
            });
            // Of equal patterns, the first one counts.
            let is_first = |rule: u32, pattern: TopicFilter<'_>| !patterns[..rule as usize].contains(&pattern.as_str().to_owned());
            let expected: std::collections::BTreeSet<_> =
                numbered().filter(|(rule, it)| it.overlaps(wanted) && is_first(*rule, *it)).map(|(rule, _)| rule).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_work_of_one_search_is_bounded() {
        let patterns: Vec<String> = (0..10_000).map(|number| format!("{number}/a")).collect();
        let trie = Trie::new((0..).zip(&patterns).map(|(rule, pattern)| (pattern.as_str(), rule)));
        let (mut budget, mut found) = (100, 0);
        trie.overlaps(TopicFilter::new("+/a").unwrap(), NO_RULE, &mut budget, &mut |_| found += 1);
        assert_eq!(budget, 0);
        assert!(found < 100);
        assert_eq!(trie.first_match("9999/a", NO_RULE), 9999);
        // Every pattern is a branch at every level; the topic follows all of them.
        let patterns: Vec<String> = (0..1024_u32)
            .map(|bits| {
                (0..10).map(|bit| if bits >> bit & 1 == 0 { "+" } else { "a" }).collect::<Vec<_>>().join("/") + "/b"
            })
            .collect();
        let trie = Trie::new((0..).zip(&patterns).map(|(rule, pattern)| (pattern.as_str(), rule)));
        assert_eq!(trie.first_match(&("a/".repeat(10) + "c"), NO_RULE), NO_RULE);
    }
}
