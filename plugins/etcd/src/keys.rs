//! The names of the keys in etcd, all below the prefix of the store's URL.
//!
//! | key | content | lease of the host |
//! |---|---|---|
//! | `done/ID/SLOT` | the number of the last group of writes that took effect in this slot | the long one |
//! | `done/ID/SLOT/INDEX` | the number of the last group of which this write was a conflict | the long one |
//! | `fence/ID` | nothing. Groups take effect only while it exists as it was created | yes |
//! | `hosts/ID` | what the host announces, as JSON | yes |
//! | `k/KEY` | the record of an entry | no |
//! | `last` | the host that wrote the last group: [`Last`](crate::proto::Last) | no |
//! | `leader` | the id of the host that leads | yes |
//!
//! One range from `hosts/` to `leader` has all that other hosts watch.

use bytes::Bytes;

/// The first segments of the names below a prefix.
pub(crate) const NAMES: [&str; 6] = ["done", "fence", "hosts", "k", "last", "leader"];

/// The names below one prefix.
pub(crate) struct Keys {
    prefix: String,
    entry_prefix: String,
}

/// The kind of a key below the prefix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    Entry(&'a str),
    Host(&'a str),
    Last,
    Leader,
    /// Written by somebody else.
    Foreign,
}

impl Keys {
    /// `prefix` has no slash at its ends.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), entry_prefix: format!("{prefix}/k/") }
    }

    /// Returns what all keys begin with: the prefix of the permission that the user needs.
    pub(crate) fn common_prefix(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Returns what the keys of entries begin with.
    pub(crate) fn entry_prefix(&self) -> &str {
        &self.entry_prefix
    }

    pub(crate) fn entry(&self, key: &str) -> Bytes {
        self.below(&["k/", key])
    }

    pub(crate) fn host(&self, id: &str) -> Bytes {
        self.below(&["hosts/", id])
    }

    pub(crate) fn fence(&self, id: &str) -> Bytes {
        self.below(&["fence/", id])
    }

    pub(crate) fn last(&self) -> Bytes {
        self.below(&["last"])
    }

    pub(crate) fn leader(&self) -> Bytes {
        self.below(&["leader"])
    }

    pub(crate) fn slot(&self, id: &str, slot: usize) -> Bytes {
        self.below(&["done/", id, "/", &slot.to_string()])
    }

    pub(crate) fn conflict(&self, id: &str, slot: usize, index: usize) -> Bytes {
        self.below(&["done/", id, "/", &slot.to_string(), "/", &index.to_string()])
    }

    /// Returns the range of all slots of a host.
    pub(crate) fn slots(&self, id: &str) -> (Bytes, Bytes) {
        // `0` follows `/`.
        (self.below(&["done/", id, "/"]), self.below(&["done/", id, "0"]))
    }

    /// Returns the range of all keys that hosts watch.
    pub(crate) fn watched(&self) -> (Bytes, Bytes) {
        (self.below(&["hosts/"]), self.below(&["leader\0"]))
    }

    pub(crate) fn kind<'a>(&self, key: &'a [u8]) -> Kind<'a> {
        let below = str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.prefix)?.strip_prefix('/'));
        match below {
            Some("last") => Kind::Last,
            Some("leader") => Kind::Leader,
            Some(below) => match (below.strip_prefix("k/"), below.strip_prefix("hosts/")) {
                (Some(key), _) => Kind::Entry(key),
                (_, Some(id)) => Kind::Host(id),
                _ => Kind::Foreign,
            },
            None => Kind::Foreign,
        }
    }

    fn below(&self, parts: &[&str]) -> Bytes {
        let mut key = Vec::with_capacity(self.prefix.len() + 1 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.extend(self.prefix.as_bytes());
        key.push(b'/');
        for part in parts {
            key.extend(part.as_bytes());
        }
        key.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watched_range_has_what_hosts_watch_and_nothing_else() {
        let keys = Keys::new("vkog");
        let (start, end) = keys.watched();
        for (key, kind) in [
            (keys.entry("a/b"), Kind::Entry("a/b")),
            (keys.entry("\u{10ffff}"), Kind::Entry("\u{10ffff}")),
            (keys.host("7"), Kind::Host("7")),
            (keys.last(), Kind::Last),
            (keys.leader(), Kind::Leader),
        ] {
            assert!(start <= key && key < end, "{key:?}");
            assert_eq!(keys.kind(&key), kind);
        }
        for key in [keys.fence("7"), keys.slot("7", 1), keys.conflict("7", 1, 2)] {
            assert!(key < start || key >= end, "{key:?}");
            assert_eq!(keys.kind(&key), Kind::Foreign);
        }
        assert_eq!(keys.kind(b"vkogs/k/a"), Kind::Foreign);
    }

    #[test]
    fn the_first_segments_of_all_names_are_reserved() {
        let keys = Keys::new("vkog");
        let all = [
            keys.slot("7", 1),
            keys.conflict("7", 1, 2),
            keys.fence("7"),
            keys.host("7"),
            keys.entry("a"),
            keys.last(),
            keys.leader(),
        ];
        let mut segments: Vec<_> = all
            .iter()
            .map(|key| str::from_utf8(key).expect("it is text").split('/').nth(1).expect("it is below the prefix"))
            .collect();
        segments.dedup();
        assert_eq!(segments, NAMES);
    }

    #[test]
    fn the_slots_of_a_host_have_none_of_another() {
        let keys = Keys::new("vkog");
        let (start, end) = keys.slots("7a");
        for (key, inside) in [
            (keys.slot("7a", 0), true),
            (keys.conflict("7a", 3, 120), true),
            (keys.slot("7", 0), false),
            (keys.slot("7a0", 0), false),
        ] {
            assert_eq!(start <= key && key < end, inside, "{key:?}");
        }
    }
}
