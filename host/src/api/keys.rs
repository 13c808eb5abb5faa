//! `/keys`: which keys there are, in byte order and page by page, and how many.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::bad_escape;
use super::entry::refused;
use super::plugins::json;
use super::problem::{Manner, Problem};
use crate::http::{Head, Reply};
use crate::ops::{Listing, Ops, Viewer};

/// The most keys and prefixes of one page, and as many as are given to who does not say.
const LIMIT_MAX: usize = 1000;
/// So many requests for keys are under way at most. Each has a thread of its own.
pub(super) const AT_ONCE_MAX: usize = 64;

/// What somebody wants to know of the keys.
pub(super) enum Question {
    Page(Listing),
    Count { prefix: String },
}

impl Question {
    /// How all keys begin that the answer may speak of.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Page(listing) => &listing.prefix,
            Self::Count { prefix } => prefix,
        }
    }
}

/// The parameters of a query, each at most once.
pub(super) fn question(query: &str) -> Result<Question, Problem> {
    const NAMES: [&str; 5] = ["prefix", "after", "limit", "delimiter", "count"];
    let mut values: [Option<String>; NAMES.len()] = Default::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = NAMES.iter().position(|known| *known == name) else {
            let known = NAMES.join(", ");
            return Err(Problem::new(400, format!("Unknown parameter \"{name}\"; there are {known}")));
        };
        if values[at].is_some() {
            return Err(Problem::new(400, format!("The parameter {name} is given twice")));
        }
        values[at] = Some(decode(name, value)?);
    }
    let [prefix, after, limit, delimiter, count] = values;
    let prefix = prefix.unwrap_or_default();
    if let Some(count) = count {
        return if count.is_empty() && after.is_none() && limit.is_none() && delimiter.is_none() {
            Ok(Question::Count { prefix })
        } else {
            Err(Problem::new(400, "count has no value, and goes with prefix alone"))
        };
    }
    if delimiter.as_ref().is_some_and(String::is_empty) {
        return Err(Problem::new(400, "delimiter is empty; give one such as /, or leave it out"));
    }
    let limit = match limit {
        None => LIMIT_MAX,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=LIMIT_MAX) => limit,
            _ => return Err(Problem::new(400, format!("limit is \"{text}\"; give a number from 1 to {LIMIT_MAX}"))),
        },
    };
    Ok(Question::Page(Listing { prefix, after, limit, delimiter }))
}

/// A value, decoded once. A plus sign is one: the same text in a path and in a query is the same key.
fn decode(name: &str, value: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(value) {
        let fact = format!("{name} is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let text = percent_decode_str(value).decode_utf8();
    text.map(Into::into).map_err(|_| Problem::new(400, format!("{name} is not UTF-8; keys are")))
}

#[derive(Serialize)]
struct Page<'a> {
    keys: Vec<Key<'a>>,
    prefixes: Vec<String>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Key<'a> {
    key: &'a str,
    size: usize,
    revision: u64,
    content_type: &'a str,
}

#[derive(Serialize)]
struct Count {
    count: u64,
}

/// The answer. Waits, for the disk and for plugins.
pub(super) fn answer(ops: &Arc<Ops>, question: &Question, query: String, head: Box<Head>, manner: Manner) -> Reply {
    let viewer = Viewer { origin: Arc::new(head), query };
    let answered = match question {
        Question::Count { prefix } => ops.count(prefix, &viewer).map(|count| json(&Count { count })),
        Question::Page(listing) => ops.list(listing, &viewer).map(|page| {
            let keys = page.entries.iter().map(|entry| Key {
                key: entry.key(),
                size: entry.value().len(),
                revision: entry.revision(),
                content_type: entry.content_type(),
            });
            json(&Page { keys: keys.collect(), prefixes: page.prefixes, next: page.next })
        }),
    };
    answered.unwrap_or_else(|refusal| refused(refusal, manner))
}

/// The answer where too many others are under way.
pub(super) fn too_many(manner: Manner) -> Reply {
    let fact = format!("Too many requests for keys at once: {AT_ONCE_MAX} are the most; try again");
    Problem::new(503, fact).reply(manner).with_header("Retry-After", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_once_and_a_plus_sign_is_one() {
        let Ok(Question::Page(listing)) = question("prefix=a%2Fb&after=a+b%2520&delimiter=%C3%A9&limit=7&") else {
            unreachable!("the query is a good one")
        };
        assert_eq!((listing.prefix.as_str(), listing.after.as_deref()), ("a/b", Some("a+b%20")));
        assert_eq!((listing.delimiter.as_deref(), listing.limit), (Some("\u{e9}"), 7));
        assert!(matches!(question("count&prefix=%61"), Ok(Question::Count { prefix }) if prefix == "a"));
    }
}
