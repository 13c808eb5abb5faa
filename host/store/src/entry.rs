//! An entry: key, media type, details and value in one allocation, which its readers share.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use triomphe::ThinArc;

/// The media type of a value that was sent without one.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// An owned copy of a media type. The default one needs no heap.
pub fn owned_content_type(content_type: &str) -> Cow<'static, str> {
    match content_type {
        DEFAULT_CONTENT_TYPE => DEFAULT_CONTENT_TYPE.into(),
        other => other.to_owned().into(),
    }
}

/// The content of an entry that is about to be written.
#[derive(Clone, Debug)]
pub struct NewEntry<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The media type, at most 65,535 bytes.
    pub content_type: &'a str,
    /// Further data of the entry: an encoded MessagePack value, or nothing. The store does not interpret it.
    pub details: Vec<u8>,
}

/// An entry of the store. A clone shares the allocation. An entry that is in the store never changes: a write replaces it.
#[derive(Clone)]
pub struct Entry(ThinArc<Header, u8>);

/// The lengths of the key, the media type (0 for the default one) and the details. The rest is the value.
struct Header {
    /// 0 until it is assigned.
    revision: AtomicU64,
    key_len: u16,
    content_type_len: u16,
    details_len: u32,
}

/// A buffer larger than this is freed after use, in bytes.
const SCRATCH_KEPT: usize = 1 << 20;

impl Entry {
    /// Creates an entry that has no revision yet and is in no store.
    pub fn new(key: &str, draft: &NewEntry<'_>) -> Self {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let entry = Self::with_revision(key, draft, 0, scratch);
            if scratch.capacity() > SCRATCH_KEPT {
                *scratch = Vec::new();
            }
            entry
        })
    }

    /// Creates an entry. `scratch` is overwritten; a caller that creates many entries reuses it.
    pub(super) fn with_revision(key: &str, draft: &NewEntry<'_>, revision: u64, scratch: &mut Vec<u8>) -> Self {
        let content_type = if draft.content_type == DEFAULT_CONTENT_TYPE { "" } else { draft.content_type };
        let header = Header {
            revision: revision.into(),
            key_len: key.len() as u16,
            content_type_len: content_type.len() as u16,
            details_len: draft.details.len() as u32,
        };
        debug_assert!(key.len() <= u16::MAX.into() && content_type.len() <= u16::MAX.into());
        scratch.clear();
        // Exactly: a buffer that grows by doubling could need twice as much.
        scratch.reserve_exact(key.len() + content_type.len() + draft.details.len() + draft.value.len());
        for part in [key.as_bytes(), content_type.as_bytes(), &draft.details, draft.value] {
            scratch.extend_from_slice(part);
        }
        Self(ThinArc::from_header_and_slice(header, scratch))
    }

    /// Returns a copy with another value and media type. It has the same key, details and revision, and is in no store.
    pub fn with_value(&self, value: &[u8], content_type: &str) -> Self {
        let draft = NewEntry { value, content_type, details: self.details().to_vec() };
        let copy = Self::new(self.key(), &draft);
        copy.0.header.header.revision.store(self.revision(), Relaxed);
        copy
    }

    /// Assigns a new entry its revision, which is known only with its position in the log. The caller still holds the lock of its
    /// shard, so that no other thread ever sees the entry without a revision.
    pub(super) fn set_revision(&self, revision: u64) {
        debug_assert_eq!(self.revision(), 0, "an entry gets its revision once");
        self.0.header.header.revision.store(revision, Relaxed);
    }

    fn lens(&self) -> (usize, usize, usize) {
        let header = &self.0.header.header;
        (header.key_len.into(), header.content_type_len.into(), header.details_len as usize)
    }

    /// The key.
    pub fn key(&self) -> &str {
        // Only strings are stored, so the check cannot fail. It costs less than the cache miss before it.
        str::from_utf8(self.key_bytes()).unwrap_or_default()
    }

    /// The bytes of the key, without a check for UTF-8.
    pub(super) fn key_bytes(&self) -> &[u8] {
        &self.0.slice[..self.lens().0]
    }

    /// The media type.
    pub fn content_type(&self) -> &str {
        let (key, content_type, _) = self.lens();
        match &self.0.slice[key..key + content_type] {
            [] => DEFAULT_CONTENT_TYPE,
            bytes => str::from_utf8(bytes).unwrap_or_default(),
        }
    }

    /// The details.
    pub fn details(&self) -> &[u8] {
        let (key, content_type, details) = self.lens();
        &self.0.slice[key + content_type..][..details]
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        let (key, content_type, details) = self.lens();
        &self.0.slice[key + content_type + details..]
    }

    /// The revision.
    pub fn revision(&self) -> u64 {
        self.0.header.header.revision.load(Relaxed)
    }

    /// The length of all its parts, in bytes.
    pub(super) fn len(&self) -> usize {
        self.0.slice.len()
    }

    /// The size of the key and the value in bytes, as the Go program counted.
    pub fn size(&self) -> u64 {
        let (_, content_type, details) = self.lens();
        (self.0.slice.len() - content_type - details) as u64
    }
}

impl AsRef<[u8]> for Entry {
    /// The value: an entry can be the body of a response.
    fn as_ref(&self) -> &[u8] {
        self.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_returns_the_parts_it_was_created_from() {
        let draft = NewEntry { value: b"value", content_type: "text/plain", details: b"\x80".to_vec() };
        let entry = Entry::with_revision("a/key", &draft, 0, &mut Vec::new());
        entry.set_revision(7);
        assert_eq!(entry.key(), "a/key");
        assert_eq!(entry.value(), b"value");
        assert_eq!(entry.content_type(), "text/plain");
        assert_eq!(entry.details(), b"\x80");
        assert_eq!(entry.revision(), 7);
        assert_eq!(entry.size(), 10);
    }

    #[test]
    fn a_copy_with_another_value_keeps_key_details_and_revision() {
        let draft = NewEntry { value: b"stored", content_type: "text/plain", details: b"\x80".to_vec() };
        let entry = Entry::new("a/key", &draft);
        entry.set_revision(7);
        let copy = entry.with_value(b"as it was sent", DEFAULT_CONTENT_TYPE);
        assert_eq!((copy.key(), copy.details(), copy.revision()), ("a/key", &b"\x80"[..], 7));
        assert_eq!((copy.value(), copy.content_type()), (&b"as it was sent"[..], DEFAULT_CONTENT_TYPE));
        assert_eq!(entry.value(), b"stored");
    }

    #[test]
    fn the_default_media_type_takes_no_space() {
        let draft = NewEntry { value: b"", content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
        let entry = Entry::with_revision("k", &draft, 0, &mut Vec::new());
        assert_eq!(entry.content_type(), DEFAULT_CONTENT_TYPE);
        assert_eq!(entry.0.slice.len(), 1);
    }
}
