//! `/keys`: which keys there are, in byte order and page by page, and how many.

use std::io;
use std::sync::Arc;

use serde::Serialize;

use super::plugins::{json, json_reply};
use super::problem::{Manner, Problem};
use super::query::parameters;
use crate::http::{Budget, Exhausted, RequestHead, Response};
use vkog_engine::{Engine, Listing, RequestContext};

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

/// What a query asks for.
pub(super) fn question(query: &str) -> Result<Question, Problem> {
    let [prefix, after, limit, delimiter, count] =
        parameters(query, ["prefix", "after", "limit", "delimiter", "count"])?;
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
pub(super) fn answer(
    engine: &Arc<Engine>,
    question: &Question,
    query: String,
    head: Arc<RequestHead>,
    budget: &'static Budget,
    manner: Manner,
) -> Response {
    let viewer = RequestContext { origin: head, query };
    let answered = match question {
        Question::Count { prefix } => engine.count(prefix, &viewer).map(|count| json(&Count { count })),
        Question::Page(listing) => engine.list(listing, &viewer).map(|page| {
            let keys = page.entries.iter().map(|entry| Key {
                key: entry.key(),
                size: entry.value().len(),
                revision: entry.revision(),
                content_type: entry.content_type(),
            });
            let page = Page { keys: keys.collect(), prefixes: page.prefixes, next: page.next };
            within(budget, &page).unwrap_or_else(|_| no_memory(manner))
        }),
    };
    answered.unwrap_or_else(|refusal| Problem::of(refusal).reply(manner))
}

/// The answer in JSON within the memory budget: its length is reserved before it is made.
fn within(budget: &'static Budget, page: &Page<'_>) -> Result<Response, Exhausted> {
    let mut length = Length(0);
    // Counting does not fail.
    let _ = serde_json::to_writer_pretty(&mut length, page);
    let mut share = budget.share();
    share.grow_to(length.0 + 1)?;
    let mut body = Vec::with_capacity(length.0 as usize + 1);
    let _ = serde_json::to_writer_pretty(&mut body, page);
    body.push(b'\n');
    Ok(json_reply(share.body(body)))
}

/// Counts the bytes that are written.
struct Length(u64);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn no_memory(manner: Manner) -> Response {
    let fact = "Not enough memory for this answer beside other requests in flight; try again";
    Problem::new(503, fact).with_header("Retry-After", "1").reply(manner)
}

/// The answer where too many others are under way.
pub(super) fn too_many(manner: Manner) -> Response {
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
