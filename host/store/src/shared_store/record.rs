//! The record of an entry, as a backend keeps it: a MessagePack array of media type, details and value. The key and the revision
//! are the backend's.

use rmp::encode;

use crate::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use crate::invalid::check_entry;
use crate::snapshot::take_bytes;

const COLUMNS: u32 = 3;

/// Encodes an entry. The default media type is an empty one.
pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let content_type = match entry.content_type() {
        DEFAULT_CONTENT_TYPE => "",
        other => other,
    };
    // Three heads of at most five bytes, and that of the array.
    let mut out = Vec::with_capacity(16 + content_type.len() + entry.details().len() + entry.value().len());
    // Writing to a vector cannot fail.
    let _ = encode::write_array_len(&mut out, COLUMNS);
    let _ = encode::write_str(&mut out, content_type);
    let _ = encode::write_bin(&mut out, entry.details());
    let _ = encode::write_bin(&mut out, entry.value());
    out
}

/// Decodes a record; `None` if no host of this version could have written it. `scratch` is overwritten.
pub(super) fn decode(key: &str, record: &[u8], revision: u64, scratch: &mut Vec<u8>) -> Option<Entry> {
    let rest = &mut &record[..];
    // More columns may come with a later version.
    rmp::decode::read_array_len(rest).ok().filter(|columns| *columns >= COLUMNS)?;
    let content_type = str::from_utf8(take_bytes(rest)?).ok()?;
    let (details, value) = (take_bytes(rest)?, take_bytes(rest)?);
    check_entry(key.as_bytes(), value).ok()?;
    let content_type = if content_type.is_empty() { DEFAULT_CONTENT_TYPE } else { content_type };
    let draft = NewEntry { value, content_type, details: details.to_vec() };
    (content_type.len() <= usize::from(u16::MAX)).then(|| Entry::with_revision(key, &draft, revision, scratch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_all_of_an_entry_but_its_key_and_revision() {
        for (content_type, details) in [(DEFAULT_CONTENT_TYPE, &b""[..]), ("text/plain", b"\x81\xa3ttl\x05")] {
            let draft = NewEntry { value: b"value", content_type, details: details.to_vec() };
            let entry = Entry::new("key", &draft);
            let found = decode("key", &encode(&entry), 7, &mut Vec::new()).expect("it is a record");
            assert_eq!((found.key(), found.value(), found.revision()), ("key", &b"value"[..], 7));
            assert_eq!((found.content_type(), found.details()), (content_type, details));
        }
    }

    #[test]
    fn bytes_of_other_programs_are_no_record() {
        let draft = NewEntry { value: b"value", content_type: "text/plain", details: Vec::new() };
        let record = encode(&Entry::new("key", &draft));
        for foreign in [&b""[..], b"text", b"\x92\xa0\xa0", &record[..record.len() - 1]] {
            assert!(decode("key", foreign, 1, &mut Vec::new()).is_none(), "{foreign:?}");
        }
        assert!(decode("", &record, 1, &mut Vec::new()).is_none(), "no entry has an empty key");
    }
}
