//! `/k/{key}`: one entry of the store.

use bytes::Bytes;

use super::problem::{ErrorFormat, Problem};
use super::range::{Range, Unsatisfiable};
use crate::http::{Body, RequestHead, Response};
use crate::ops::{Added, Answer, CONTENT_TYPE_MAX, Unmet};
use vkog_store::{DEFAULT_CONTENT_TYPE, StoreError, owned_content_type};

/// Returns the media type of a request body, from `Content-Type`.
pub(super) fn content_type(head: &RequestHead) -> Result<&str, Problem> {
    head.headers.get("content-type").map_or(Ok(DEFAULT_CONTENT_TYPE), media_type)
}

/// Checks the media type of a value.
///
/// # Errors
///
/// It is too long, or not ASCII text.
pub(super) fn media_type(value: &[u8]) -> Result<&str, Problem> {
    if value.len() > CONTENT_TYPE_MAX {
        let fact = format!("Content-Type too long: {} bytes, {CONTENT_TYPE_MAX} is the most", value.len());
        return Err(Problem::new(400, fact));
    }
    // Responses repeat it, so it must be a valid field value.
    match str::from_utf8(value) {
        Ok("") => Ok(DEFAULT_CONTENT_TYPE),
        Ok(text) if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(text),
        _ => Err(Problem::new(400, "Content-Type must be ASCII text")),
    }
}

/// Checks that a request body is a whole value or a whole batch.
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

/// Returns whether a content coding is `identity`.
pub(super) fn is_identity(coding: &[u8]) -> bool {
    coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
}

/// Makes the response to an operation on an entry, with the header fields of plugins. `reads` is true for GET and HEAD;
/// `range` is the requested part of the value.
pub(super) fn reply(answer: Answer, added: Added, reads: bool, range: Option<Range>, format: ErrorFormat) -> Response {
    let mut reply = bare(answer, reads, range, format);
    reply.headers.extend(added.into_iter().map(|(name, value)| (name.into(), value.into())));
    reply
}

fn bare(answer: Answer, reads: bool, range: Option<Range>, format: ErrorFormat) -> Response {
    let ok = || Response::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8");
    match answer {
        Answer::Found(entry) => {
            let len = entry.value().len();
            let part = match range.map_or(Ok(None), |range| range.within(&entry)) {
                Ok(part) => part,
                Err(Unsatisfiable) => {
                    return Problem::new(416, format!("Range not satisfiable: the value has {len} bytes"))
                        .reply(format)
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
        Answer::Written(revision) => ok().with_revision(revision),
        Answer::Removed(_) => ok(),
        Answer::Unexpected(Unmet::NoneOf(revision)) if reads => Response::new(304, &b""[..]).with_revision(revision),
        Answer::Unexpected(_) | Answer::Absent | Answer::Refused(_) | Answer::Failed(_) => {
            problem(answer).reply(format)
        }
    }
}

/// Makes the problem of a failed operation.
pub(super) fn problem(answer: Answer) -> Problem {
    match answer {
        Answer::Unexpected(_) => Problem::new(412, "Precondition failed: the entry is not as expected"),
        Answer::Absent => Problem::new(404, "Not Found"),
        Answer::Refused(refusal) => Problem::of(refusal),
        Answer::Failed(error) => {
            let (status, words) = not_durable(&error);
            Problem::new(status, format!("{words}: {error}"))
        }
        Answer::Found(_) | Answer::Written(_) | Answer::Removed(_) => Problem::new(500, "Internal error"),
    }
}

/// Returns the status and the first words for a write that is not durable.
fn not_durable(error: &StoreError) -> (u16, &'static str) {
    match error {
        error if error.is_full() => (507, "Not kept"),
        error if error.is_certain() => (503, "Not kept"),
        _ => (503, "Outcome unknown"),
    }
}

/// The problem of a value that is longer than the maximum, in bytes.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let length = length.map(|length| format!("{length} bytes, ")).unwrap_or_default();
    Problem::new(413, format!("Value too large: {length}{value_max} is the most (--max-value)"))
}
