//! "Did you mean".

/// The candidate that is most like `found`, if one is like it at all.
pub(crate) fn suggest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        // One slip of the fingers in a short word, or a word that begins and goes on much the same.
        .filter(|candidate| {
            strsim::jaro_winkler(found, candidate) > 0.8 || strsim::osa_distance(found, candidate) <= found.len() / 3
        })
        .map(|candidate| (strsim::jaro_winkler(found, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
