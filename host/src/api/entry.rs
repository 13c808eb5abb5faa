//! `/k/{key}`: one entry.

use std::borrow::Cow;

use super::problem::{Manner, Problem};
use crate::http::{Body, Head, Reply};
use crate::ops::{Added, Answer, CONTENT_TYPE_MAX, Conditions, Revisions, Unmet};
use crate::plugins::Refusal;
use crate::store::{DEFAULT_CONTENT_TYPE, StoreError};

/// The methods an entry has.
pub(super) const ALLOW: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";

/// The media type of a request's body.
pub(super) fn content_type(head: &Head) -> Result<Cow<'static, str>, Problem> {
    let Some(value) = head.headers.get("content-type") else { return Ok(DEFAULT_CONTENT_TYPE.into()) };
    if value.len() > CONTENT_TYPE_MAX {
        let fact = format!("Content-Type too long: {} bytes, {CONTENT_TYPE_MAX} is the most", value.len());
        return Err(Problem::new(400, fact));
    }
    // It is given back as it is, so it must be something that may be sent.
    match str::from_utf8(value) {
        Ok("") => Ok(DEFAULT_CONTENT_TYPE.into()),
        Ok(text) if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(text.to_owned().into()),
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
        let named = named.get_or_insert_default();
        for tag in value.split(|byte| *byte == b',').filter_map(|tag| str::from_utf8(tag).ok()).map(str::trim) {
            if tag == "*" {
                return Some(Revisions::Any);
            }
            let tag = tag.strip_prefix("W/").filter(|_| weak).unwrap_or(tag);
            // A tag that is none of ours names no revision.
            named.extend(tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')?.parse::<u64>().ok()));
        }
    }
    named.map(Revisions::These)
}

/// The reply to an operation on an entry, with what plugins add to it. `reads` is whether it only reads.
pub(super) fn reply(answer: Answer, added: Added, reads: bool, manner: Manner) -> Reply {
    let mut reply = bare(answer, reads, manner);
    reply.headers.extend(added.into_iter().map(|(name, value)| (name.into(), value.into())));
    reply
}

fn bare(answer: Answer, reads: bool, manner: Manner) -> Reply {
    let ok = || Reply::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8");
    match answer {
        Answer::Found(entry) => {
            let content_type = match entry.content_type() {
                DEFAULT_CONTENT_TYPE => Cow::Borrowed(DEFAULT_CONTENT_TYPE),
                content_type => Cow::Owned(content_type.to_owned()),
            };
            let mut reply = Reply::new(200, &b""[..])
                .of_revision(entry.revision())
                .with_header("Content-Type", content_type)
                .with_header("X-Content-Type-Options", "nosniff");
            reply.body = Body::Shared(Box::new(entry));
            reply
        }
        Answer::Written(revision) => ok().of_revision(revision),
        Answer::Removed(_) => ok(),
        Answer::Unexpected(Unmet::NoneOf(revision)) if reads => Reply::new(304, &b""[..]).of_revision(revision),
        Answer::Unexpected(_) => Problem::new(412, "Precondition failed: the entry is not as expected").reply(manner),
        Answer::Absent => Problem::new(404, "Not Found").reply(manner),
        Answer::Refused(refusal) => refused(refusal, manner),
        Answer::Failed(error) => {
            let status = if matches!(*error, StoreError::Full { .. }) { 507 } else { 503 };
            Problem::new(status, format!("Not kept: {error}")).reply(manner)
        }
    }
}

/// The reply to what a plugin refused.
pub(super) fn refused(refusal: Refusal, manner: Manner) -> Reply {
    let problem = Problem::new(refusal.status, refusal.message);
    let by_host = refusal.plugin.is_empty();
    let mut reply = if by_host { problem } else { problem.by(refusal.plugin) }.reply(manner);
    for (name, value) in refusal.headers {
        // A plugin may say what its own text is.
        if name.eq_ignore_ascii_case("content-type") {
            reply.headers.retain(|(other, _)| other != "Content-Type");
        }
        reply = reply.with_header(name, value);
    }
    reply
}
