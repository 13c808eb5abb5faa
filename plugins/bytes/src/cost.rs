//! The cost of an entry in bytes. A pure function of the entry, so that exactly the reserved bytes are released.

use vkog_plugin_api::serde::Deserialize;

/// What is counted of an entry.
#[derive(Copy, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
pub(crate) enum Count {
    /// The bytes of its key and of its value.
    #[default]
    Payload,
    /// What it takes of the server's memory.
    Memory,
}

/// How entries are counted.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Costs {
    pub(crate) count: Count,
    /// For what other plugins keep of each entry.
    pub(crate) overhead: u64,
}

/// The media type that the server stores without a byte.
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// What stands before key, media type and value: the count of those who share it (8), the revision (8), three lengths (8)
/// and the length of all (8).
const HEADER: u64 = 32;
/// A place in the table of keys: 8 bytes and one for the hash, where after a growth 16 places are there for 7 entries.
const PLACE: u64 = 21;
/// glibc's allocator: 8 bytes of its own, all in units of 16.
const ALLOCATOR: (u64, u64) = (8, 16);
/// From here on it takes whole pages from the system, with 16 bytes of its own.
const PAGES_FROM: u64 = 128 << 10;
const PAGE: u64 = 4096;

impl Costs {
    /// What an entry with this key, media type and value counts for.
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
