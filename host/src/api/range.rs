//! `Range` and `If-Range`: a part of a value (RFC 9110, section 14).

use std::ops;

use super::entry::revision;
use crate::http::{Method, RequestHead};
use vkog_store::Entry;

/// A part that a client asks for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    bytes: Bytes,
    /// Only while the entry has this revision; otherwise all of it.
    of: Option<u64>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Bytes {
    /// From one to another, both included.
    Between(u64, u64),
    /// So many at the end.
    Last(u64),
}

impl Range {
    /// What a request asks for, or all where it asks for more than one part, or in words that nobody has to understand.
    pub(super) fn of(head: &RequestHead) -> Option<Self> {
        let mut all = head.headers.all("range");
        let (Some(range), None) = (all.next(), all.next()) else { return None };
        if head.method != Method::Get {
            return None;
        }
        let (unit, range) = str::from_utf8(range).ok()?.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim_matches([' ', '\t']).split_once('-')?;
        let bytes = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Bytes::Between(first, last),
            (Some(first), None) if last.is_empty() => Bytes::Between(first, u64::MAX),
            (None, Some(last)) if first.is_empty() => Bytes::Last(last),
            _ => return None,
        };
        let of = match head.headers.get("if-range") {
            None => None,
            // A weak tag, a date or another's tag is of no entry here.
            Some(other) => Some(revision(str::from_utf8(other).ok()?)?),
        };
        Some(Self { bytes, of })
    }

    /// Where the part is in an entry's value: none if it is the whole of it.
    ///
    /// # Errors
    ///
    /// It is beyond the value's end.
    pub(super) fn within(self, entry: &Entry) -> Result<Option<ops::Range<usize>>, Unsatisfiable> {
        if self.of.is_some_and(|revision| revision != entry.revision()) {
            return Ok(None);
        }
        let len = entry.value().len();
        let clamped = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(len);
        let part = match self.bytes {
            Bytes::Between(first, last) => clamped(first)..clamped(last.saturating_add(1)),
            Bytes::Last(count) => len - clamped(count)..len,
        };
        if part.is_empty() { Err(Unsatisfiable) } else { Ok(Some(part)) }
    }
}

/// A part that a value does not have.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsatisfiable;

/// One beyond all values is as good as any other.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}
