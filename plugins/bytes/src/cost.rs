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
    /// Further bytes per entry, for data of other plugins.
    pub(crate) overhead: u64,
}

/// The media type that takes no memory.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// The header of an entry, in bytes: the reference count (8), the revision (8), three lengths (8) and the total length
/// (8).
const HEADER: u64 = 32;
/// A slot of the hash table, in bytes: 8 and 1 for the hash. After the table has grown, 16 slots serve 7 entries.
const PLACE: u64 = 21;
/// The overhead of an allocation in glibc, and the unit to which its size is rounded up, in bytes.
const ALLOCATOR: (u64, u64) = (8, 16);
/// Allocations from this size on take whole pages of the system, with twice the overhead.
const PAGES_FROM: u64 = 128 << 10;
const PAGE: u64 = 4096;

impl Costs {
    /// Returns the cost of an entry with this key, media type and value, in bytes.
    pub(crate) fn of(self, key: &str, content_type: &str, value: &[u8]) -> u64 {
        let payload = (key.len() + value.len()) as u64;
        let counted = match self.count {
            Count::Payload => payload,
            Count::Memory => {
                let content_type = if content_type == DEFAULT_CONTENT_TYPE { "" } else { content_type };
                PLACE + allocated((HEADER + payload + content_type.len() as u64).next_multiple_of(8))
            }
        };
        counted + self.overhead
    }
}

fn allocated(bytes: u64) -> u64 {
    let (own, unit) = ALLOCATOR;
    if bytes < PAGES_FROM { (bytes + own).next_multiple_of(unit) } else { (bytes + 2 * own).next_multiple_of(PAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(key: &str, content_type: &str, len: usize) -> u64 {
        Costs { count: Count::Memory, overhead: 0 }.of(key, content_type, &vec![0; len])
    }

    #[test]
    fn an_entry_counts_for_its_payload_or_for_the_memory_it_takes() {
        let payload = Costs { count: Count::Payload, overhead: 0 };
        assert_eq!(payload.of("key", "text/plain", b"value"), 8);
        assert_eq!(memory("12345678", DEFAULT_CONTENT_TYPE, 1), 64 + 21);
        assert_eq!(memory("12345678", "text/plain", 1), 64 + 21, "10 bytes that fit into the same unit");
        assert_eq!(memory("12345678", "text/plain", 7), 80 + 21);
        assert_eq!(memory("12345678", DEFAULT_CONTENT_TYPE, 1024), 1072 + 21);
        assert_eq!(memory("12345678", DEFAULT_CONTENT_TYPE, 1 << 20), (1 << 20) + 4096 + 21);
        let costs = Costs { count: Count::Memory, overhead: 192 };
        assert_eq!(costs.of("12345678", DEFAULT_CONTENT_TYPE, b"1"), 64 + 21 + 192);
    }

    #[test]
    fn an_entry_that_grows_never_counts_for_less() {
        let costs: Vec<_> = (0..200_000).step_by(7).map(|len| memory("k", "text/plain", len)).collect();
        assert!(costs.is_sorted());
    }
}
