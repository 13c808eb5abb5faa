//! The cost of an entry in bytes. A pure function of the entry, so that exactly the reserved bytes are released.

use vkog_plugin_api::serde::Deserialize;

/// The part of an entry that is counted.
#[derive(Copy, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
pub(crate) enum Count {
    /// The bytes of the key and of the value.
    #[default]
    Payload,
    /// The memory of the entry in the server.
    Memory,
}

/// How entries are counted.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Costs {
    pub(crate) count: Count,
    /// The memory that plugins need for an entry of which they store details, in bytes, besides a copy of its key.
    pub(crate) overhead: u64,
}

/// An entry, as far as it is counted.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) key: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) value: &'a [u8],
    /// The size of all details, in bytes.
    pub(crate) details: u64,
    /// Whether a plugin has set details.
    pub(crate) is_indexed: bool,
}

/// The default of [`Costs::overhead`]: what `ttl` needs for a key that expires, while its hash table has just grown.
pub(crate) const OVERHEAD: u64 = 208;
/// The media type that takes no memory.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// The header of an entry, in bytes: the reference count (8), the revision (8), three lengths (8) and the total length
/// (8).
const HEADER: u64 = 32;
/// A slot of the hash table, in bytes: 8 and 1 for the hash. After the table has grown, 16 slots serve 7 entries.
const SLOT: u64 = 21;
/// The overhead of an allocation in glibc, and the unit to which its size is rounded up, in bytes.
const ALLOCATOR: (u64, u64) = (8, 16);
/// Allocations from this size on take whole pages of the system, with twice the overhead.
const PAGES_FROM: u64 = 128 << 10;
const PAGE: u64 = 4096;

impl Costs {
    /// Returns the cost of an entry, in bytes.
    pub(crate) fn of(self, entry: Parts<'_>) -> u64 {
        let Parts { key, content_type, value, details, is_indexed } = entry;
        let payload = (key.len() + value.len()) as u64;
        match self.count {
            Count::Payload => payload,
            Count::Memory => {
                let content_type = if content_type == DEFAULT_CONTENT_TYPE { "" } else { content_type };
                let parts = HEADER + payload + content_type.len() as u64 + details;
                let index = if is_indexed { self.overhead + key.len() as u64 } else { 0 };
                SLOT + allocated(parts.next_multiple_of(8)) + index
            }
        }
    }
}

fn allocated(bytes: u64) -> u64 {
    let (own, unit) = ALLOCATOR;
    if bytes < PAGES_FROM { (bytes + own).next_multiple_of(unit) } else { (bytes + 2 * own).next_multiple_of(PAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(content_type: &str, len: usize, details: u64, is_indexed: bool) -> u64 {
        let value = vec![0; len];
        let parts = Parts { key: "12345678", content_type, value: &value, details, is_indexed };
        Costs { count: Count::Memory, overhead: 100 }.of(parts)
    }

    #[test]
    fn an_entry_counts_for_its_payload_or_for_the_memory_it_takes() {
        let parts = Parts { key: "key", content_type: "text/plain", value: b"value", details: 9, is_indexed: true };
        assert_eq!(Costs { count: Count::Payload, overhead: OVERHEAD }.of(parts), 8);
        assert_eq!(memory(DEFAULT_CONTENT_TYPE, 1, 0, false), 64 + 21);
        assert_eq!(memory("text/plain", 1, 0, false), 64 + 21, "10 bytes that fit into the same unit");
        assert_eq!(memory("text/plain", 7, 0, false), 80 + 21);
        assert_eq!(memory(DEFAULT_CONTENT_TYPE, 1024, 0, false), 1072 + 21);
        assert_eq!(memory(DEFAULT_CONTENT_TYPE, 1 << 20, 0, false), (1 << 20) + 4096 + 21);
        assert_eq!(memory(DEFAULT_CONTENT_TYPE, 1, 22, false), 80 + 21, "a content coding");
        assert_eq!(memory(DEFAULT_CONTENT_TYPE, 1, 15, true), 64 + 21 + 100 + 8, "an expiry, and the index of the key");
    }

    #[test]
    fn an_entry_that_grows_never_counts_for_less() {
        let costs: Vec<_> = (0..200_000).step_by(7).map(|len| memory("text/plain", len, 0, false)).collect();
        assert!(costs.is_sorted());
    }
}
