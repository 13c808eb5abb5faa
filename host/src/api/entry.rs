//! `/k/{key}`: one entry of the store.

use bytes::Bytes;

use super::problem::{ErrorFormat, Problem};
use super::range::{Range, Unsatisfiable};
use super::shared::OUTCOME_UNKNOWN;
use crate::http::{Body, RequestHead, Response};
use vkog_engine::{ExtraHeaders, Outcome, PreconditionFailed, is_coding, is_identity, media_type};
use vkog_store::{DEFAULT_CONTENT_TYPE, owned_content_type};

/// Returns the media type of a request body, from `Content-Type`.
pub(super) fn content_type(head: &RequestHead) -> Result<&str, Problem> {
    head.headers.get("content-type").map_or(Ok(DEFAULT_CONTENT_TYPE), |name| Ok(media_type(name)?))
}

/// Checks that a request body is a whole value, whose content coding can be stored with it.
///
/// # Errors
///
/// It is a part of one (RFC 9110, section 14.4), or its coding is not one list of names.
pub(super) fn check_is_value(head: &RequestHead) -> Result<(), Problem> {
    let mut codings = head.headers.all("content-encoding");
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(list), None) if is_identity(list) || is_coding(list) => {}
        _ => {
            return Err(not_supported(
                "Content-Encoding must be one list of codings such as gzip, without aws-chunked",
            ));
        }
    }
    check_is_whole(head)
}

/// Checks that a PATCH has no body.
///
/// # Errors
///
/// It has one.
pub(super) fn check_no_value(body: &[u8]) -> Result<(), Problem> {
    if body.is_empty() {
        return Ok(());
    }
    Err(Problem::new(400, "PATCH takes no content; send PUT to change the value"))
}

/// Checks that a request body is a whole batch.
///
/// # Errors
///
/// It is a part of one, or encoded.
pub(super) fn check_is_batch(head: &RequestHead) -> Result<(), Problem> {
    if !head.headers.all("content-encoding").all(is_identity) {
        return Err(not_supported("Content-Encoding is not supported for a batch; send it as it is to be read"));
    }
    check_is_whole(head)
}

fn not_supported(fact: &'static str) -> Problem {
    Problem::new(415, fact).with_header("Accept-Encoding", "identity")
}

/// Checks that a write is not one of a part of a value.
///
/// # Errors
///
/// It is.
pub(super) fn check_is_whole(head: &RequestHead) -> Result<(), Problem> {
    if head.headers.get("content-range").is_some() {
        return Err(Problem::new(400, "Content-Range is not supported; send the whole value"));
    }
    Ok(())
}

/// Makes the response to an operation on an entry, with the header fields of plugins. `reads` is true for GET and HEAD;
/// `range` is the requested part of the value, and `caching` the value of `Cache-Control` with a value. No cache stores the
/// response to a write (RFC 9111, section 3), so a write has none.
pub(super) fn reply(
    answer: Outcome,
    added: ExtraHeaders,
    reads: bool,
    range: Option<Range>,
    caching: Option<&'static str>,
    format: ErrorFormat,
) -> Response {
    let mut reply = bare(answer, reads, range, format);
    if matches!(reply.status, 200 | 206 | 304) {
        reply.cache_control = caching;
    }
    // The coding is that of the value. The text of an error is not encoded.
    let is_error = reply.status >= 400;
    reply.extend(added.into_iter().filter(|(name, _)| !is_error || !name.eq_ignore_ascii_case("content-encoding")));
    reply
}

/// Returns the value of `Cache-Control` with a value. A cache has to ask the server each time, which then checks the token. The
/// value is not compressed on its way: a proxy that does so makes the entity tag weak or another one, which no `If-Match` matches.
pub(super) fn caching(is_open: bool) -> &'static str {
    if is_open { "no-cache, no-transform" } else { "private, no-cache, no-transform" }
}

#[inline]
fn bare(outcome: Outcome, reads: bool, range: Option<Range>, format: ErrorFormat) -> Response {
    let ok = |revision| {
        let mut reply = Response::new(200, &b"Ok"[..]);
        reply.revision = revision;
        reply.add_header("Content-Type", "text/plain; charset=utf-8");
        reply
    };
    match outcome {
        Outcome::Found(entry) => {
            let len = entry.value().len();
            let part = match range.map_or(Ok(None), |range| range.within(&entry)) {
                Ok(part) => part,
                Err(Unsatisfiable) => {
                    return Problem::new(
                        416,
                        format!("Range not satisfiable: the value has {len} bytes; request a part of it"),
                    )
                    .reply(format)
                    .with_header("Content-Range", format!("bytes */{len}"));
                }
            };
            let mut reply = Response::new(200, &b""[..]);
            reply.revision = Some(entry.revision());
            reply.add_header("Content-Type", owned_content_type(entry.content_type()));
            reply.add_header("Accept-Ranges", "bytes");
            reply.make_inert();
            reply.body = match part {
                None => Body::Whole(Bytes::from_owner(entry)),
                Some(range) => {
                    reply.status = 206;
                    reply.add_header("Content-Range", format!("bytes {}-{}/{len}", range.start, range.end - 1));
                    Body::Whole(Bytes::from_owner(entry).slice(range))
                }
            };
            reply
        }
        Outcome::Written(revision) => ok(Some(revision)),
        Outcome::Removed(_) => ok(None),
        Outcome::PreconditionFailed(PreconditionFailed::IfNoneMatch(revision)) if reads => {
            Response::new(304, &b""[..]).with_revision(revision)
        }
        Outcome::PreconditionFailed(_) | Outcome::Absent | Outcome::Refused(_) | Outcome::StoreFailed(_) => {
            problem(outcome).reply(format)
        }
    }
}

/// Makes the problem of a failed operation.
pub(super) fn problem(outcome: Outcome) -> Problem {
    if let Outcome::Refused(refusal) = outcome {
        return Problem::of(refusal);
    }
    let (status, text) = outcome.failure().unwrap_or((500, "Internal error".into()));
    let Outcome::StoreFailed(error) = outcome else { return Problem::new(status, text) };
    match &*error {
        error if !error.is_certain() => Problem::new(status, text).with_code(OUTCOME_UNKNOWN),
        error if error.is_temporary() => Problem::busy(text),
        _ => Problem::new(status, text),
    }
}

/// The problem of a value that is longer than the maximum, in bytes.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let length = length.map(|length| format!(": {length} bytes")).unwrap_or_default();
    Problem::new(413, format!("Value too large{length}; the maximum is {value_max} (--max-value)"))
}
