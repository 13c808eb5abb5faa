//! `/k/{key}`: one entry.

use bytes::Bytes;

use super::problem::{Manner, Problem};
use super::range::{Range, Unsatisfiable};
use crate::http::{Body, RequestHead, Response};
use vkog_engine::{Conditions, ExtraHeaders, Outcome, PreconditionFailed, Revisions, media_type};
use vkog_store::{DEFAULT_CONTENT_TYPE, owned_content_type};

/// The media type of a request's body.
pub(super) fn content_type(head: &RequestHead) -> Result<&str, Problem> {
    head.headers.get("content-type").map_or(Ok(DEFAULT_CONTENT_TYPE), |name| Ok(media_type(name)?))
}

/// Checks that the body of a request is a whole value, or a whole batch, as it is to be read.
///
/// # Errors
///
/// It is a part of one (RFC 9110, section 14.4), or encoded.
pub(super) fn check_body_is_plain(head: &RequestHead) -> Result<(), Problem> {
    let codings = head.headers.all("content-encoding").flat_map(|value| value.split(|&byte| byte == b','));
    if !codings.map(<[u8]>::trim_ascii).all(is_identity) {
        let fact = "Content-Encoding is not supported; send the value as it is to be read";
        return Err(Problem::new(415, fact).with_header("Accept-Encoding", "identity"));
    }
    if head.headers.get("content-range").is_some() {
        return Err(Problem::new(400, "Content-Range is not supported; send the whole value"));
    }
    Ok(())
}

/// Whether a content coding changes nothing.
pub(super) fn is_identity(coding: &[u8]) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// The conditions of a request.
///
/// # Errors
///
/// A condition that cannot be read. To ignore it would do what the client wanted to prevent.
pub(super) fn conditions(head: &RequestHead) -> Result<Conditions, Problem> {
    // A weak tag never matches strongly (RFC 9110, section 8.8.3.2), and this program gives none.
    let condition = |name, weak| {
        let fault = || Problem::new(400, format!("{name} is not * or a list of entity tags such as \"7\""));
        revisions(head, name, weak).map_err(|NotTags| fault())
    };
    Ok(Conditions { if_match: condition("If-Match", false)?, if_none_match: condition("If-None-Match", true)? })
}

/// A condition is neither `*` nor a list of entity tags.
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
        // A tag may hold a comma, and an asterisk; it ends where its quotation mark does.
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

/// What may stand between the elements of a list (RFC 9110, section 5.6.1.2).
const BETWEEN_TAGS: [char; 3] = [',', ' ', '\t'];

/// The revision that a strong entity tag names.
pub(super) fn revision(tag: &str) -> Option<u64> {
    opaque(tag.strip_prefix('"')?.strip_suffix('"')?)
}

/// The revision between quotation marks. A tag that is none of ours names none, and "07" is not "7".
fn opaque(tag: &str) -> Option<u64> {
    tag.parse().ok().filter(|revision: &u64| revision.to_string() == tag)
}

/// The reply to an operation on an entry, with what plugins add to it. `reads` is whether it only reads, and `range` what
/// of the value.
pub(super) fn reply(
    outcome: Outcome,
    added: ExtraHeaders,
    reads: bool,
    range: Option<Range>,
    manner: Manner,
) -> Response {
    let mut reply = bare(outcome, reads, range, manner);
    reply.headers.extend(added.into_iter().map(|(name, value)| (name.into(), value.into())));
    reply
}

fn bare(outcome: Outcome, reads: bool, range: Option<Range>, manner: Manner) -> Response {
    let ok = || Response::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8");
    match outcome {
        Outcome::Found(entry) => {
            let len = entry.value().len();
            let part = match range.map_or(Ok(None), |range| range.within(&entry)) {
                Ok(part) => part,
                Err(Unsatisfiable) => {
                    return Problem::new(416, format!("Range not satisfiable: the value has {len} bytes"))
                        .reply(manner)
                        .with_header("Content-Range", format!("bytes */{len}"));
                }
            };
            let mut reply = Response::new(200, &b""[..])
                .with_revision(entry.revision())
                .with_header("Content-Type", owned_content_type(entry.content_type()))
                .with_header("Accept-Ranges", "bytes")
                .inert();
            reply.body = match part {
                None => Body::Whole(Bytes::from_owner(entry)),
                Some(range) => {
                    reply.status = 206;
                    let shown = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                    reply = reply.with_header("Content-Range", shown);
                    Body::Whole(Bytes::from_owner(entry).slice(range))
                }
            };
            reply
        }
        Outcome::Written(revision) => ok().with_revision(revision),
        Outcome::Removed(_) => ok(),
        Outcome::PreconditionFailed(PreconditionFailed::IfNoneMatch(revision)) if reads => {
            Response::new(304, &b""[..]).with_revision(revision)
        }
        Outcome::PreconditionFailed(_) | Outcome::Absent | Outcome::Refused(_) | Outcome::StoreFailed(_) => {
            problem(outcome).reply(manner)
        }
    }
}

/// Why an operation failed.
pub(super) fn problem(outcome: Outcome) -> Problem {
    if let Outcome::Refused(refusal) = outcome {
        return Problem::of(refusal);
    }
    let (status, text) = outcome.failure().unwrap_or((500, "Internal error".into()));
    Problem::new(status, text)
}

/// The problem of a value that is longer than the maximum, in bytes.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let length = length.map(|length| format!("{length} bytes, ")).unwrap_or_default();
    Problem::new(413, format!("Value too large: {length}{value_max} is the most (--max-value)"))
}
