//! `/keys`: lists keys in byte order, page by page, or counts them.

use std::io;
use std::sync::Arc;

use super::json::{json, json_reply};
use super::problem::{ErrorFormat, Problem};
use super::query::parameters;
use crate::http::{Budget, Exhausted, RequestHead, Response};
use crate::schema::{Count, Key, Page};
use vkog_engine::{Engine, Listing, RequestContext};

/// The maximum and the default number of keys and prefixes of one page.
const LIMIT_MAX: usize = 1000;
/// The maximum number of listings in flight. Each runs on its own thread.
pub(super) const CONCURRENT_MAX: usize = 64;

/// The parsed query of a listing.
pub(super) enum Query {
    Page(Listing),
    Count { prefix: String },
}

impl Query {
    /// Returns the prefix of all keys in the response.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Page(listing) => &listing.prefix,
            Self::Count { prefix } => prefix,
        }
    }
}

/// Parses the query.
///
/// # Errors
///
/// A parameter is repeated or has a wrong value.
pub(super) fn parse_query(query: &str) -> Result<Query, Problem> {
    let [prefix, after, limit, delimiter, count] =
        parameters(query, ["prefix", "after", "limit", "delimiter", "count"])?;
    let prefix = prefix.unwrap_or_default();
    let limit = match limit {
        None => LIMIT_MAX,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=LIMIT_MAX) if text.bytes().all(|byte| byte.is_ascii_digit()) => limit,
            _ => return Err(Problem::new(400, format!("limit is \"{text}\"; use a number from 1 to {LIMIT_MAX}"))),
        },
    };
    // Generated clients also send the default limit, which has no meaning here.
    if let Some(count) = count {
        return if count.is_empty() && after.is_none() && delimiter.is_none() {
            Ok(Query::Count { prefix })
        } else {
            Err(Problem::new(400, "count takes no value and can be combined only with prefix"))
        };
    }
    if delimiter.as_ref().is_some_and(String::is_empty) {
        return Err(Problem::new(400, "delimiter is empty; use a delimiter such as /, or remove the parameter"));
    }
    Ok(Query::Page(Listing { prefix, after, limit, delimiter }))
}

/// Makes the response. Blocks, on the disk and on plugins.
pub(super) fn list(
    engine: &Arc<Engine>,
    query: &Query,
    raw_query: String,
    head: Arc<RequestHead>,
    budget: &'static Budget,
    format: ErrorFormat,
) -> Response {
    let context = RequestContext { origin: head, query: raw_query };
    let answered = match query {
        Query::Count { prefix } => engine.count(prefix, &context).map(|count| json(&Count { count })),
        Query::Page(listing) => engine.list(listing, &context).map(|page| {
            let keys = page.entries.iter().map(|entry| Key {
                key: entry.key().into(),
                size: entry.value().len() as u64,
                revision: entry.revision(),
                content_type: entry.content_type().into(),
            });
            let page = Page { keys: keys.collect(), prefixes: page.prefixes, next: page.next };
            within(budget, &page).unwrap_or_else(|_| no_memory(format))
        }),
    };
    answered.unwrap_or_else(|refusal| Problem::of(refusal).reply(format))
}

/// Serializes a page within the memory budget. Its length is reserved before it is made.
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

fn no_memory(format: ErrorFormat) -> Response {
    let fact = "Not enough memory for this answer beside other requests in flight; try again";
    Problem::busy(fact).reply(format)
}

/// The response while too many listings are in flight.
pub(super) fn too_many(format: ErrorFormat) -> Response {
    let fact = format!("Too many requests for keys at once: {CONCURRENT_MAX} are the most; try again");
    Problem::busy(fact).reply(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_once_as_form_data() {
        let Ok(Query::Page(listing)) = parse_query("prefix=a%2Fb&%61fter=a+b%2B%2520&delimiter=%C3%A9&limit=7&_=1")
        else {
            unreachable!("the query is a good one")
        };
        assert_eq!((listing.prefix.as_str(), listing.after.as_deref()), ("a/b", Some("a b+%20")));
        assert_eq!((listing.delimiter.as_deref(), listing.limit), (Some("\u{e9}"), 7));
        for query in ["count&prefix=%61", "limit=1000&count=&prefix=a"] {
            assert!(matches!(parse_query(query), Ok(Query::Count { prefix }) if prefix == "a"), "{query}");
        }
        for query in ["count=1", "count&after=a", "count&delimiter=/", "count&limit=0"] {
            assert!(parse_query(query).is_err(), "{query}");
        }
        assert!(matches!(parse_query("count&prefix=%61"), Ok(Query::Count { prefix }) if prefix == "a"));
    }
}
