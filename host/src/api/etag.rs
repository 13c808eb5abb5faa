//! Entity tags: the revision of an entry in quotation marks, and the conditional requests that name some (RFC 9110).

use super::problem::Problem;
use crate::http::RequestHead;
use vkog_engine::{Conditions, Revisions};

/// Parses `If-Match` and `If-None-Match`.
///
/// # Errors
///
/// A condition is malformed. Ignoring it could run an operation that the client wanted to prevent.
pub(super) fn conditions(head: &RequestHead) -> Result<Conditions, Problem> {
    // A weak tag never matches strongly (RFC 9110, section 8.8.3.2), and this server sends none.
    let condition = |name, weak| {
        let fault = || Problem::new(400, format!("{name} is not * or a list of entity tags such as \"7\""));
        revisions(head, name, weak).map_err(|NotTags| fault())
    };
    Ok(Conditions { if_match: condition("If-Match", false)?, if_none_match: condition("If-None-Match", true)? })
}

/// A header field that is neither `*` nor a list of entity tags.
#[derive(Debug)]
struct NotTags;

fn revisions(head: &RequestHead, name: &str, weak: bool) -> Result<Option<Revisions>, NotTags> {
    let mut values = head.headers.all(name).peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let (mut revisions, mut tags, mut any) = (Vec::new(), 0, 0);
    for value in values {
        let value = String::from_utf8_lossy(value.trim_ascii());
        if value == "*" {
            any += 1;
            continue;
        }
        // A quoted `*` is a mistake of the client: no entry has this tag.
        if value == "\"*\"" {
            return Err(NotTags);
        }
        // A tag can contain commas and asterisks; it ends at its closing quotation mark.
        let mut rest = value.trim_start_matches(BETWEEN_TAGS);
        while !rest.is_empty() {
            let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |strong| (true, strong));
            let (tag, after) = quoted.strip_prefix('"').and_then(|tag| tag.split_once('"')).ok_or(NotTags)?;
            tags += 1;
            revisions.extend(opaque(tag).filter(|_| weak || !is_weak));
            rest = after.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(NotTags);
            }
            rest = rest.trim_start_matches(BETWEEN_TAGS);
        }
    }
    match (any, tags) {
        (1, 0) => Ok(Some(Revisions::Any)),
        (0, 1..) => Ok(Some(Revisions::These(revisions))),
        _ => Err(NotTags),
    }
}

/// The characters between the elements of a list (RFC 9110, section 5.6.1.2).
const BETWEEN_TAGS: [char; 3] = [',', ' ', '\t'];

/// Returns the revision of a strong entity tag.
pub(super) fn revision(tag: &str) -> Option<u64> {
    opaque(tag.strip_prefix('"')?.strip_suffix('"')?)
}

/// Returns the revision between the quotation marks. A tag of another server has no revision, and "07" is not "7".
fn opaque(tag: &str) -> Option<u64> {
    tag.parse().ok().filter(|revision: &u64| revision.to_string() == tag)
}
