//! `Range` and `If-Range`: a part of a value (RFC 9110, section 14).

use std::ops;

use super::etag::revision;
use crate::http::{Method, RequestHead};
use vkog_store::Entry;

/// A requested range.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    bytes: Bytes,
    /// The revision of `If-Range`. An entry with another one is sent as a whole.
    of: Option<u64>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Bytes {
    /// From the first to the last position, both included.
    Between(u64, u64),
    /// The last bytes, by their number.
    Last(u64),
}

impl Range {
    /// Parses `Range` and `If-Range`. Returns `None`, which is the whole value, for several ranges and for unknown units.
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
            // No entry of this server has a weak tag, a date or another server's tag.
            Some(other) => Some(revision(str::from_utf8(other).ok()?)?),
        };
        Some(Self { bytes, of })
    }

    /// Returns the positions of the range in a value, or `None` for the whole value.
    ///
    /// # Errors
    ///
    /// The range is beyond the end of the value.
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

/// A range beyond the end of a value.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsatisfiable;

/// Parses a position. Positions beyond every value are equal.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}
