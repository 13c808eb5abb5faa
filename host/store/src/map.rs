//! The map in memory: entries under their keys, in shards with a lock each.

use foldhash::quality::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use smallvec::{SmallVec, smallvec};
use std::hash::BuildHasher;

use super::entry::Entry;
use super::key_ranges::KeyRangeCache;
use super::view::{Retained, ViewState};

/// The number of shards: enough that two writers rarely need the same lock, that a snapshot holds each lock for well under a
/// millisecond, and that growing one table is no pause (with ten million entries, a shard has ten thousand).
pub(super) const SHARDS: usize = 1024;

/// The maximum number of entries for which a sample reserves memory before it finds them.
const SAMPLE_CAPACITY: usize = 1024;

/// Entries under their keys.
pub(super) struct Map {
    shards: Box<[RwLock<Shard>]>,
    hasher: FixedState,
    seed: u64,
    pub(super) key_ranges: KeyRangeCache,
    pub(super) view: ViewState,
}

/// A part of the map: what one lock protects.
#[derive(Default)]
pub(super) struct Shard {
    table: HashTable<Entry>,
    size: u64,
    /// The revision of the last removal. An absent key may be absent since then.
    last_removal: u64,
    /// The entries that are retained for a view. Its lock is taken with the shard locked.
    retained: Mutex<Retained>,
}

/// A key with its hash, computed once.
#[derive(Copy, Clone)]
pub(super) struct Hashed<'a> {
    pub(super) key: &'a [u8],
    hash: u64,
}

impl Hashed<'_> {
    pub(super) fn hash(self) -> u64 {
        self.hash
    }
}

/// The shards of some keys, locked.
pub(super) struct Locked<G> {
    shards: SmallVec<[G; 1]>,
    /// The position of each key.
    keys: SmallVec<[Location; 1]>,
}

/// The position of a key among several.
#[derive(Copy, Clone, Default)]
struct Location {
    /// The index of its shard among the locked ones.
    shard: usize,
    /// The index at which the same key was named before, if it was.
    earlier: Option<usize>,
}

impl Map {
    /// An empty map. A store keeps its seed, so that the entries that one shard wrote to a file return to one shard. Clients
    /// never learn the seed, so that they cannot create collisions.
    pub(super) fn new(seed: u64) -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        let (key_ranges, view) = (KeyRangeCache::default(), ViewState::default());
        Self { shards, hasher: FixedState::with_seed(seed), seed, key_ranges, view }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn hash<'a>(&self, key: &'a [u8]) -> Hashed<'a> {
        Hashed { key, hash: self.hasher.hash_one(key) }
    }

    /// The shard of a key: by bits of its hash that the table of a shard does not use.
    pub(super) fn shard_of(&self, hashed: Hashed<'_>) -> usize {
        (hashed.hash >> 32) as usize % SHARDS
    }

    pub(super) fn read(&self, shard: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard].read()
    }

    pub(super) fn write(&self, shard: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard].write()
    }

    /// Locks the shards of several keys, each once, in ascending order. All threads lock in this order, so that there is no
    /// deadlock.
    pub(super) fn lock_all<'a, G>(&'a self, keys: &[Hashed<'_>], lock: impl Fn(&'a Self, usize) -> G) -> Locked<G> {
        let mut order: SmallVec<[usize; 1]> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|&index| (self.shard_of(keys[index]), keys[index].hash, index));
        let (mut shards, mut locations) = (SmallVec::new(), smallvec![Location::default(); keys.len()]);
        let mut last = None;
        for (at, &index) in order.iter().enumerate() {
            let Hashed { key, hash } = keys[index];
            let shard = self.shard_of(keys[index]);
            if last.replace(shard) != Some(shard) {
                shards.push(lock(self, shard));
            }
            let mut before = order[..at].iter().rev().take_while(|&&other| keys[other].hash == hash);
            locations[index] =
                Location { shard: shards.len() - 1, earlier: before.find(|&&other| keys[other].key == key).copied() };
        }
        Locked { shards, keys: locations }
    }

    /// Reserves capacity for entries in a shard.
    pub(super) fn reserve(&self, shard: &mut Shard, entries: usize) {
        shard.table.reserve(entries, |entry| self.hasher.hash_one(entry.key_bytes()));
    }

    /// Inserts an entry into its shard. Returns the one that it replaces.
    pub(super) fn insert(&self, shard: &mut Shard, hashed: Hashed<'_>, entry: Entry) -> Option<Entry> {
        shard.size += entry.size();
        let rehash = |entry: &Entry| self.hasher.hash_one(entry.key_bytes());
        match shard.table.entry(hashed.hash, |other| other.key_bytes() == hashed.key, rehash) {
            hash_table::Entry::Occupied(mut occupied) => {
                let before = std::mem::replace(occupied.get_mut(), entry);
                shard.size -= before.size();
                Some(before)
            }
            hash_table::Entry::Vacant(vacant) => {
                vacant.insert(entry);
                self.key_ranges.insert(hashed.key);
                None
            }
        }
    }

    /// Looks at several entries with the locks of all their shards. The revision is the last that what is seen depends on.
    pub(super) fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>], u64) -> R) -> R {
        let hashed: SmallVec<[Hashed<'_>; 1]> = keys.iter().map(|key| self.hash(key.as_bytes())).collect();
        let locked = self.lock_all(&hashed, Self::read);
        let mut last = 0;
        let see = |(index, hashed): (usize, &Hashed<'_>)| {
            let (entry, revision) = locked.shard(index).see(*hashed);
            last = last.max(revision);
            entry
        };
        let entries: Vec<_> = hashed.iter().enumerate().map(see).collect();
        look(&entries, last)
    }

    /// Calls a function for every entry, in no order, with the lock of its shard.
    pub(super) fn for_each(&self, mut each: impl FnMut(&Entry)) {
        for shard in 0..SHARDS {
            self.read(shard).iter().for_each(&mut each);
        }
    }

    /// The entries whose keys start with a prefix, in no order. Each shard is read in its turn, and no lock is held between
    /// two entries.
    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        (0..SHARDS).flat_map(move |shard| {
            let shard = self.read(shard);
            shard.iter().filter(|entry| entry.key().starts_with(prefix)).cloned().collect::<Vec<_>>()
        })
    }

    /// Different entries that are chosen at random: those behind a position in the table of a shard that a random number
    /// selects, and those of the next shards if it has too few.
    pub(super) fn sample(&self, random: u64, count: usize) -> Vec<Entry> {
        let mut found = Vec::with_capacity(count.min(SAMPLE_CAPACITY));
        let first = random as usize % SHARDS;
        for shard in (first..SHARDS).chain(0..first) {
            if found.len() == count {
                break;
            }
            let shard = self.read(shard);
            let buckets = shard.table.num_buckets();
            let start = (random >> 32) as usize % buckets.max(1);
            let order = (start..buckets).chain(0..start);
            found.extend(order.filter_map(|bucket| shard.table.get_bucket(bucket)).take(count - found.len()).cloned());
        }
        found
    }

    /// The number of keys that start with a prefix.
    pub(super) fn count(&self, prefix: &str) -> u64 {
        if prefix.is_empty() {
            return self.totals().0;
        }
        let mut count = 0;
        self.for_each(|entry| count += u64::from(entry.key_bytes().starts_with(prefix.as_bytes())));
        count
    }

    /// The number of entries, and the sum of their sizes in bytes.
    pub(super) fn totals(&self) -> (u64, u64) {
        self.shards
            .iter()
            .map(|shard| shard.read())
            .fold((0, 0), |(entries, size), shard| (entries + shard.table.len() as u64, size + shard.size))
    }
}

impl<G> Locked<G> {
    /// The shard of the key with this index.
    pub(super) fn shard(&self, index: usize) -> &G {
        &self.shards[self.keys[index].shard]
    }

    pub(super) fn shard_mut(&mut self, index: usize) -> &mut G {
        &mut self.shards[self.keys[index].shard]
    }

    /// The index at which the same key was named before, if it was.
    pub(super) fn earlier(&self, index: usize) -> Option<usize> {
        self.keys[index].earlier
    }
}

impl Shard {
    pub(super) fn get(&self, hashed: Hashed<'_>) -> Option<&Entry> {
        self.table.find(hashed.hash, |entry| entry.key_bytes() == hashed.key)
    }

    /// The result of a read: the entry, and the last revision on which it depends.
    pub(super) fn see(&self, hashed: Hashed<'_>) -> (Option<&Entry>, u64) {
        let entry = self.get(hashed);
        (entry, entry.map_or(self.last_removal, Entry::revision))
    }

    /// Removes an entry, as of a revision.
    pub(super) fn remove(&mut self, hashed: Hashed<'_>, revision: u64) -> Option<Entry> {
        let found = self.table.find_entry(hashed.hash, |entry| entry.key_bytes() == hashed.key).ok()?;
        let (entry, _) = found.remove();
        self.size -= entry.size();
        self.last_removal = self.last_removal.max(revision);
        Some(entry)
    }

    /// Forgets the removals after a revision, which were rolled back.
    pub(super) fn forget_removals_after(&mut self, revision: u64) {
        self.last_removal = self.last_removal.min(revision);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.table.iter()
    }

    pub(super) fn retained(&self) -> &Mutex<Retained> {
        &self.retained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewEntry;

    #[test]
    fn the_map_agrees_with_a_standard_map_and_counts_its_bytes() {
        let map = Map::new(1);
        let mut model = std::collections::HashMap::new();
        for step in 0..20_000_u64 {
            let key = format!("key-{}", step * 7919 % 997);
            let hashed = map.hash(key.as_bytes());
            let mut shard = map.write(map.shard_of(hashed));
            if step % 3 == 0 {
                assert_eq!(shard.remove(hashed, step).map(|entry| entry.revision()), model.remove(&key));
            } else {
                let draft = NewEntry { value: key.as_bytes(), content_type: "text/plain", details: Vec::new() };
                let entry = Entry::with_revision(&key, &draft, step, &mut Vec::new());
                let before = map.insert(&mut shard, hashed, entry);
                assert_eq!(before.map(|entry| entry.revision()), model.insert(key.clone(), step));
            }
        }
        for (key, revision) in &model {
            let hashed = map.hash(key.as_bytes());
            assert_eq!(map.read(map.shard_of(hashed)).get(hashed).map(Entry::revision), Some(*revision));
        }
        let size = model.keys().map(|key| 2 * key.len() as u64).sum();
        assert_eq!(map.totals(), (model.len() as u64, size));
    }
}
