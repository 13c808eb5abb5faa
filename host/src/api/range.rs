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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Headers;
    use vkog_store::NewEntry;

    fn range(method: Method, fields: &[(&str, &str)]) -> Option<Range> {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value.as_bytes()));
        Range::of(&RequestHead::new(method, "/k/a".to_owned(), headers, None))
    }

    #[test]
    fn a_range_selects_these_bytes_of_ten() {
        let entry = NewEntry { value: b"0123456789", content_type: "text/plain", details: Vec::new() };
        let entry = Entry::new("a", &entry);
        for (text, expected) in [
            ("bytes=0-0", Ok(Some(0..1))),
            ("bytes=0-9", Ok(Some(0..10))),
            ("bytes=9-", Ok(Some(9..10))),
            ("bytes=5-18446744073709551615", Ok(Some(5..10))),
            ("bytes=5-99999999999999999999", Ok(Some(5..10))),
            ("bytes=-1", Ok(Some(9..10))),
            ("bytes=-11", Ok(Some(0..10))),
            ("Bytes=\t1-2 ", Ok(Some(1..3))),
            ("bytes=10-", Err(Unsatisfiable)),
            ("bytes=10-10", Err(Unsatisfiable)),
            ("bytes=-0", Err(Unsatisfiable)),
        ] {
            let range = range(Method::Get, &[("Range", text)]).expect(text);
            assert_eq!(range.within(&entry), expected, "{text}");
            let other = Range { of: Some(entry.revision() + 1), ..range };
            assert_eq!(other.within(&entry), Ok(None), "another revision is sent as a whole");
            let same = Range { of: Some(entry.revision()), ..range };
            assert_eq!(same.within(&entry), expected, "{text}");
        }
    }

    #[test]
    fn a_range_that_cannot_be_understood_is_the_whole_value() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=1",
            "bytes=2-1",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=1-x",
            "bytes=x-1",
            "bytes=1-2,4-5",
            "bytes=1 -2",
            "items=1-2",
            "bytes 1-2",
        ] {
            assert_eq!(range(Method::Get, &[("Range", text)]), None, "{text}");
        }
        let one = ("Range", "bytes=1-2");
        assert_eq!(range(Method::Get, &[one, one]), None);
        assert_eq!(range(Method::Head, &[one]), None);
    }

    #[test]
    fn a_range_is_for_the_revision_of_if_range() {
        let of = |tag| range(Method::Get, &[("Range", "bytes=1-2"), ("If-Range", tag)]);
        assert_eq!(of("\"7\""), Some(Range { bytes: Bytes::Between(1, 2), of: Some(7) }));
        for tag in ["W/\"7\"", "7", "\"a\"", "Sun, 06 Nov 1994 08:49:37 GMT", "\u{e9}"] {
            assert_eq!(of(tag), None, "{tag}");
        }
    }
}
