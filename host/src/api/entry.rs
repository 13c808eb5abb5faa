//! `/k/{key}`: one entry.

use bytes::Bytes;

use super::problem::{Manner, Problem};
use super::range::{Range, Unsatisfiable};
use crate::http::{Body, Head, Reply};
use crate::ops::{Added, Answer, CONTENT_TYPE_MAX, Conditions, Revisions, Unmet};
use crate::store::{DEFAULT_CONTENT_TYPE, StoreError, owned_content_type};

/// The media type of a request's body.
pub(super) fn content_type(head: &Head) -> Result<&str, Problem> {
    head.headers.get("content-type").map_or(Ok(DEFAULT_CONTENT_TYPE), media_type)
}

/// The media type that a client gives a value.
pub(super) fn media_type(value: &[u8]) -> Result<&str, Problem> {
    if value.len() > CONTENT_TYPE_MAX {
        let fact = format!("Content-Type too long: {} bytes, {CONTENT_TYPE_MAX} is the most", value.len());
        return Err(Problem::new(400, fact));
    }
    // It is given back as it is, so it must be something that may be sent.
    match str::from_utf8(value) {
        Ok("") => Ok(DEFAULT_CONTENT_TYPE),
        Ok(text) if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(text),
        _ => Err(Problem::new(400, "Content-Type must be ASCII text")),
    }
}

/// The conditions of a request.
pub(super) fn conditions(head: &Head) -> Conditions {
    // A weak tag never matches strongly (RFC 9110, section 8.8.3.2), and this program gives none.
    Conditions { one_of: revisions(head, "if-match", false), none_of: revisions(head, "if-none-match", true) }
}

fn revisions(head: &Head, name: &str, weak: bool) -> Option<Revisions> {
    let mut named: Option<Vec<u64>> = None;
    for value in head.headers.all(name) {
        let value = String::from_utf8_lossy(value.trim_ascii());
        if value == "*" {
            return Some(Revisions::Any);
        }
        let named = named.get_or_insert_default();
        // A tag may hold a comma, and an asterisk; it ends where its quotation mark does.
        let mut rest = &*value;
        while let Some((before, from)) = rest.split_once('"')
            && let Some((tag, after)) = from.split_once('"')
        {
            rest = after;
            let counts = match before.trim_matches([',', ' ', '\t']) {
                "" => true,
                "W/" => weak,
                _ => false,
            };
            named.extend(opaque(tag).filter(|_| counts));
        }
    }
    named.map(Revisions::These)
}

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
pub(super) fn reply(answer: Answer, added: Added, reads: bool, range: Option<Range>, manner: Manner) -> Reply {
    let mut reply = bare(answer, reads, range, manner);
    reply.headers.extend(added.into_iter().map(|(name, value)| (name.into(), value.into())));
    reply
}

fn bare(answer: Answer, reads: bool, range: Option<Range>, manner: Manner) -> Reply {
    let ok = || Reply::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8");
    match answer {
        Answer::Found(entry) => {
            let len = entry.value().len();
            let part = match range.map_or(Ok(None), |range| range.within(&entry)) {
                Ok(part) => part,
                Err(Unsatisfiable) => {
                    return Problem::new(416, format!("Range not satisfiable: the value has {len} bytes"))
                        .reply(manner)
                        .with_header("Content-Range", format!("bytes */{len}"));
                }
            };
            let mut reply = Reply::new(200, &b""[..])
                .of_revision(entry.revision())
                .with_header("Content-Type", owned_content_type(entry.content_type()))
                .with_header("Accept-Ranges", "bytes")
                .with_header("X-Content-Type-Options", "nosniff");
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
        Answer::Written(revision) => ok().of_revision(revision),
        Answer::Removed(_) => ok(),
        Answer::Unexpected(Unmet::NoneOf(revision)) if reads => Reply::new(304, &b""[..]).of_revision(revision),
        Answer::Unexpected(_) | Answer::Absent | Answer::Refused(_) | Answer::Failed(_) => {
            problem(answer).reply(manner)
        }
    }
}

/// Why an operation was not done.
pub(super) fn problem(answer: Answer) -> Problem {
    match answer {
        Answer::Unexpected(_) => Problem::new(412, "Precondition failed: the entry is not as expected"),
        Answer::Absent => Problem::new(404, "Not Found"),
        Answer::Refused(refusal) => Problem::of(refusal),
        Answer::Failed(error) => {
            let (status, words) = not_kept(&error);
            Problem::new(status, format!("{words}: {error}"))
        }
        Answer::Found(_) | Answer::Written(_) | Answer::Removed(_) => Problem::new(500, "Internal error"),
    }
}

/// The status of a write that is not kept, and the first words.
fn not_kept(error: &StoreError) -> (u16, &'static str) {
    match error {
        error if error.is_full() => (507, "Not kept"),
        error if error.is_certain() => (503, "Not kept"),
        _ => (503, "Outcome unknown"),
    }
}

/// The problem of a value that is longer than one may be, in bytes.
pub(super) fn too_large(length: u64, value_max: u64) -> Problem {
    Problem::new(413, format!("Value too large: {length} bytes, {value_max} is the most (--max-value)"))
}
