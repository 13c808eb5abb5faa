//! `/keys`: lists keys in byte order, page by page, counts them, or deletes them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::entry;
use super::json::{json, json_reply};
use super::prefix;
use super::problem::{ErrorFormat, Problem};
use super::query::{parameters, unknown};
use crate::any_store::Engine;
use crate::http::{Budget, Exhausted, RequestHead, Response};
use crate::schema::{Count, Deletion, DryRun, Key, Page};
use vkog_engine::{DeletedPage, ExtraHeaders, Form, Listed, Listing, Reads, RequestContext};

/// The maximum and the default number of keys and prefixes of one page.
const LIMIT_MAX: usize = 1000;
/// The maximum number of listings in flight. Each runs on its own thread.
pub(super) const CONCURRENT_MAX: usize = 64;

/// The parsed query of a listing.
pub(super) enum Query {
    Page(Listing),
    Count {
        prefix: String,
    },
    /// Deletes the keys of a page.
    Delete(Listing),
    /// Lists the keys of a page that would be deleted.
    DryRun(Listing),
}

impl Query {
    /// Returns the prefix of all keys in the response.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Page(listing) | Self::Delete(listing) | Self::DryRun(listing) => &listing.prefix,
            Self::Count { prefix } => prefix,
        }
    }

    /// Whether it deletes keys.
    pub(super) fn deletes(&self) -> bool {
        matches!(self, Self::Delete(_))
    }

    /// Puts the key prefix of its request before the prefix and the position.
    pub(super) fn whole(mut self, head: &RequestHead) -> Self {
        match &mut self {
            Self::Count { prefix } => *prefix = prefix::whole(head, std::mem::take(prefix)),
            Self::Page(listing) | Self::Delete(listing) | Self::DryRun(listing) => {
                listing.prefix = prefix::whole(head, std::mem::take(&mut listing.prefix));
                listing.after = listing.after.take().map(|after| prefix::whole(head, after));
            }
        }
        self
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
    let limit = parse_limit(limit)?;
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
    Ok(Query::Page(Listing { prefix, after, limit, delimiter, form: Form::Sent }))
}

/// Parses the maximum number of keys of one page.
fn parse_limit(limit: Option<String>) -> Result<usize, Problem> {
    let Some(text) = limit else { return Ok(LIMIT_MAX) };
    match text.parse() {
        Ok(limit @ 1..=LIMIT_MAX) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(limit),
        _ => Err(Problem::new(400, format!("limit is \"{text}\"; use a number from 1 to {LIMIT_MAX}"))),
    }
}

/// Parses the request for a deletion. Unlike other requests it rejects parameters that it does not know: a misspelt `dry_run`
/// must not delete anything.
///
/// # Errors
///
/// It has a precondition; no keys are named; a parameter is unknown, is repeated, or has a wrong value.
pub(super) fn parse_deletion(head: &RequestHead, query: &str) -> Result<Query, Problem> {
    check_unconditional(head)?;
    const NAMES: [&str; 5] = ["prefix", "after", "limit", "all", "dry_run"];
    let [prefix, after, limit, all, dry_run] = parameters(query, NAMES)?;
    if let Some(name) = unknown(query, &NAMES) {
        return Err(Problem::new(400, format!("The parameter {name:?} is unknown; use {}", NAMES.join(", "))));
    }
    for (name, value) in [("all", &all), ("dry_run", &dry_run)] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            return Err(Problem::new(400, format!("{name} takes no value; send it alone")));
        }
    }
    let prefix = match (prefix.filter(|prefix| !prefix.is_empty()), all) {
        (Some(prefix), None) => prefix,
        (None, Some(_)) => String::new(),
        (Some(_), Some(_)) => return Err(Problem::new(400, "prefix and all exclude each other; send one of them")),
        (None, None) => {
            return Err(Problem::new(400, "prefix is missing; name the prefix, or send all to delete every key"));
        }
    };
    // A deletion shows no sizes, and removes also what cannot be read.
    let listing = Listing { prefix, after, limit: parse_limit(limit)?, delimiter: None, form: Form::Stored };
    Ok(if dry_run.is_some() { Query::DryRun(listing) } else { Query::Delete(listing) })
}

/// Checks that a deletion has no preconditions, which are those of one entry.
fn check_unconditional(head: &RequestHead) -> Result<(), Problem> {
    for (field, name) in [("if-match", "If-Match"), ("if-none-match", "If-None-Match")] {
        if head.headers.get(field).is_some() {
            let fact = format!("{name} is not supported for a deletion by prefix; delete the keys one by one");
            return Err(Problem::new(400, fact));
        }
    }
    Ok(())
}

/// Checks that a deletion has no body, which may be meant as the keys to delete.
///
/// # Errors
///
/// It has one.
pub(super) fn check_no_body(query: &Query, body: &[u8]) -> Result<(), Problem> {
    if body.is_empty() || !matches!(query, Query::Delete(_) | Query::DryRun(_)) {
        return Ok(());
    }
    Err(Problem::new(400, "DELETE takes no content; name the keys in the query"))
}

/// Makes the response. Blocks, on the disk and on plugins.
pub(super) fn list(
    engine: &Arc<Engine>,
    query: &Query,
    raw_query: String,
    head: Arc<RequestHead>,
    reads: Reads,
    budget: &'static Budget,
    format: ErrorFormat,
) -> Response {
    let seen = |key: String| prefix::seen(&head, &key).to_owned();
    let context = RequestContext { origin: Arc::clone(&head) as _, query: raw_query, reads };
    let answered = match query {
        Query::Count { prefix } => engine.count(prefix, &context).map(|count| json(&Count { count })),
        Query::Page(listing) => engine.list(listing, &context).map(|page| {
            let keys = page.entries.iter().map(|Listed { entry, size, headers }| Key {
                key: prefix::seen(&head, entry.key()).into(),
                size: *size as u64,
                revision: entry.revision(),
                content_type: entry.content_type().into(),
                fields: fields(&head, headers),
            });
            let prefixes = page.prefixes.into_iter().map(seen).collect();
            let page = Page { keys: keys.collect(), prefixes, next: page.next.map(seen) };
            within(budget, &page).unwrap_or_else(|_| no_memory(format))
        }),
        Query::DryRun(listing) => engine.list(listing, &context).map(|page| {
            let would_delete =
                page.entries.iter().map(|listed| prefix::seen(&head, listed.entry.key()).into()).collect();
            let dry_run = DryRun { would_delete, next: page.next.map(seen) };
            within(budget, &dry_run).unwrap_or_else(|_| no_memory(format))
        }),
        Query::Delete(listing) => match engine.delete_page(listing, &context) {
            Ok(deleted) => Ok(json(&deletion(&head, deleted))),
            Err(outcome) => return entry::problem(prefix::seen_outcome(&head, outcome)).reply(format),
        },
    };
    answered.unwrap_or_else(|refusal| Problem::of(prefix::seen_refusal(&head, refusal)).reply(format))
}

/// The fields that plugins add to a key: a header `Vkog-Some-Name` that they add to a GET of it becomes `some_name`.
fn fields(head: &RequestHead, headers: &ExtraHeaders) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::new();
    for (name, value) in headers {
        let Some((_, name)) = name.split_at_checked(5).filter(|(vkog, _)| vkog.eq_ignore_ascii_case("vkog-")) else {
            continue;
        };
        let name = name.to_ascii_lowercase().replace('-', "_");
        if !Key::OWN_FIELDS.contains(&name.as_str()) {
            fields.entry(name).or_insert_with(|| prefix::seen_text(head, value.clone()).into());
        }
    }
    fields
}

/// The response to a deletion.
fn deletion(head: &RequestHead, DeletedPage { deleted, refused, next }: DeletedPage) -> Deletion<'static> {
    let seen = |key: String| prefix::seen(head, &key).to_owned();
    let of_key = |(key, outcome)| entry::problem(prefix::seen_outcome(head, outcome)).of_key(seen(key));
    Deletion { deleted, refused: refused.into_iter().map(of_key).collect(), next: next.map(seen) }
}

/// Serializes a page within the memory budget. Its length is reserved before it is made.
fn within(budget: &'static Budget, page: &impl Serialize) -> Result<Response, Exhausted> {
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
    use crate::http::{Headers, Method};

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

    #[test]
    fn a_header_of_a_plugin_becomes_a_field_and_replaces_none_of_the_server() {
        let header = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let headers = [
            ("Vkog-Expires", "2026"),
            ("VKOG-Some-Name", "a"),
            ("vkog-some-name", "b"),
            ("Vkog-Size", "7"),
            ("X-Size", "8"),
            ("Vkog", "9"),
        ];
        let head = RequestHead::new(Method::Get, "/keys".to_owned(), Headers::default(), None);
        let fields = fields(&head, &headers.map(header).to_vec());
        assert_eq!(serde_json::json!(fields), serde_json::json!({ "expires": "2026", "some_name": "a" }));
    }

    #[test]
    fn a_deletion_names_its_keys_and_has_no_other_parameter() {
        let head = RequestHead::new(Method::Delete, "/keys".to_owned(), Headers::default(), None);
        let parsed = |query| match parse_deletion(&head, query) {
            Ok(Query::Delete(listing)) => format!("delete {} {}", listing.prefix, listing.limit),
            Ok(Query::DryRun(listing)) => format!("list {} {}", listing.prefix, listing.limit),
            Ok(_) => "another query".to_owned(),
            Err(problem) => problem.document().title.to_string(),
        };
        for (query, expected) in [
            ("prefix=a%2F", "delete a/ 1000"),
            ("all&limit=7", "delete  7"),
            ("prefix=&all", "delete  1000"),
            ("prefix=a&dry_run&after=b", "list a 1000"),
            ("%64ry_run=&prefix=a", "list a 1000"),
            ("", "prefix is missing; name the prefix, or send all to delete every key"),
            ("prefix=", "prefix is missing; name the prefix, or send all to delete every key"),
            ("prefix=a&all", "prefix and all exclude each other; send one of them"),
            ("prefix=a&dry_run=false", "dry_run takes no value; send it alone"),
            ("all=0", "all takes no value; send it alone"),
            ("prefix=a&limit=0", "limit is \"0\"; use a number from 1 to 1000"),
            ("prefix=a&dry-run", "The parameter \"dry-run\" is unknown; use prefix, after, limit, all, dry_run"),
            ("count&prefix=a", "The parameter \"count\" is unknown; use prefix, after, limit, all, dry_run"),
        ] {
            assert_eq!(parsed(query), expected, "{query}");
        }
    }
}
