//! Suggestions for misspelt names: commands, and keys of the configuration file.

/// The minimum similarity of a suggestion, from 0 to 1. Two swapped letters of a word of three are still similar.
const SIMILARITY_MIN: f64 = 0.6;

/// Returns the known name that is most similar to an unknown one, or `None` if no name is similar.
pub fn similar<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.map(|name| (strsim::normalized_damerau_levenshtein(unknown, name), name));
    let (similarity, name) = rated.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (similarity > SIMILARITY_MIN).then_some(name)
}
