//! One entry: key, media type, details and value in one allocation, shared by whoever reads it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use triomphe::ThinArc;

/// The media type of a value that came without one.
pub const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";

/// A media type to be kept longer than what it was read from. The default one needs no heap.
pub fn owned_content_type(content_type: &str) -> Cow<'static, str> {
    match content_type {
        DEFAULT_CONTENT_TYPE => DEFAULT_CONTENT_TYPE.into(),
        other => other.to_owned().into(),
    }
}

/// What is about to be written under a key.
#[derive(Clone, Debug)]
pub struct NewEntry<'a> {
    /// The value.
    pub value: &'a [u8],
    /// Its media type, at most 65,535 bytes.
    pub content_type: &'a str,
    /// What belongs to the entry beside its value: an encoded MessagePack value, or nothing. The store never looks inside.
    pub details: Vec<u8>,
}

/// An entry of the store. Cloning shares it; an entry that is in the store never changes, a write replaces it.
#[derive(Clone)]
pub struct Entry(ThinArc<Header, u8>);

/// The lengths of what follows: the key, the media type (none stands for the default one), the details; the rest is the
/// value.
struct Header {
    /// 0 until it is known.
    revision: AtomicU64,
    key_len: u16,
    content_type_len: u16,
    details_len: u32,
}

/// A buffer larger than this is freed after use, in bytes.
const SCRATCH_KEPT: usize = 1 << 20;

impl Entry {
    /// Makes an entry that is not in a store, and has no revision yet.
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

    /// Makes an entry. `scratch` is overwritten; a caller that makes many keeps it.
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
        // All at once: a buffer that grows by doubling could need twice as much.
        scratch.reserve_exact(key.len() + content_type.len() + draft.details.len() + draft.value.len());
        for part in [key.as_bytes(), content_type.as_bytes(), &draft.details, draft.value] {
            scratch.extend_from_slice(part);
        }
        Self(ThinArc::from_header_and_slice(header, scratch))
    }

    /// Gives a new entry its revision, which is known only when its place in the log is: before the lock is free under
    /// which it comes into the store, so that no other thread ever sees it without.
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
        // Only whole strings are ever stored here, so the check cannot fail; it costs less than the cache miss before it.
        str::from_utf8(self.key_bytes()).unwrap_or_default()
    }

    /// The key's bytes, without looking at them.
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

    /// The details, as they were drafted.
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

    /// The bytes of all its parts.
    pub(super) fn len(&self) -> usize {
        self.0.slice.len()
    }

    /// How much the entry counts for: the bytes of its key and of its value, as the Go program counted.
    pub fn size(&self) -> u64 {
        let (_, content_type, details) = self.lens();
        (self.0.slice.len() - content_type - details) as u64
    }
}

impl AsRef<[u8]> for Entry {
    /// The value, so that an entry can be the body of an answer.
    fn as_ref(&self) -> &[u8] {
        self.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_what_it_was_made_of() {
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
    fn the_default_media_type_takes_no_room() {
        let draft = NewEntry { value: b"", content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
        let entry = Entry::with_revision("k", &draft, 0, &mut Vec::new());
        assert_eq!(entry.content_type(), DEFAULT_CONTENT_TYPE);
        assert_eq!(entry.0.slice.len(), 1);
    }
}
