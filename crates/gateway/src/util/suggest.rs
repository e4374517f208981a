//! Suggestions for misspelt names ("did you mean").

/// The candidate most similar to `found`, if one is similar enough.
pub(crate) fn suggest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        // A typo in a short word, or a longer word with a similar beginning.
        .filter(|candidate| {
            strsim::jaro_winkler(found, candidate) > 0.8 || strsim::osa_distance(found, candidate) <= found.len() / 3
        })
        .map(|candidate| (strsim::jaro_winkler(found, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
