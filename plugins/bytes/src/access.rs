//! When and how often entries were accessed. The memory is fixed, however many entries there are: a cache of slots, found by
//! the hash of the key, which keeps the entries with the highest rank. An entry without a slot has the lowest rank.
//!
//! Threads update slots without locks. If two of them update the same set at the same time, one access may be lost.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vkog_plugin_api::serde::Deserialize;

/// Which entries are evicted first.
#[derive(Copy, Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
pub(crate) enum Policy {
    /// Those that were accessed the longest time ago.
    Lru,
    /// Those that are accessed most rarely.
    Lfu,
}

/// The slots of a set: one cache line.
const WAYS: usize = 8;
/// A slot for this number of bytes of the limit, so that the table takes a thirty-second part of the limit.
const BYTES_PER_SLOT: u64 = 256;
/// The minimum and the maximum number of sets.
const SETS: (u64, u64) = (128, 1 << 23);

// A slot has a time (40 bits), a frequency (8 bits) and a part of the hash (16 bits). 0 is an empty slot.
const TIME_BITS: u32 = 40;
const TIME_MAX: u64 = (1 << TIME_BITS) - 1;
const TAG_SHIFT: u32 = 48;
/// The frequency of an entry that was accessed once. A new entry needs a lead over those that are not read any more.
const FREQUENCY_FIRST: u64 = 5;
const FREQUENCY_MAX: u64 = 255;

#[derive(Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS]);

/// The accesses of entries.
pub(crate) struct AccessTable {
    policy: Policy,
    sets: Box<[Set]>,
    /// The base-two logarithm of the number of accesses after which an entry loses one of its frequency.
    decay: u32,
    hasher: RandomState,
    /// The number of accesses, which is the time.
    clock: AtomicU64,
}

impl AccessTable {
    /// Creates a table for a store with this limit in bytes.
    pub(crate) fn new(policy: Policy, limit: u64) -> Self {
        let sets = (limit / BYTES_PER_SLOT / WAYS as u64).clamp(SETS.0, SETS.1).next_power_of_two();
        Self {
            policy,
            decay: sets.ilog2() + 6,
            sets: (0..sets).map(|_| Set::default()).collect(),
            hasher: RandomState::new(),
            clock: AtomicU64::new(1),
        }
    }

    /// Returns the hash that stands for a key here.
    pub(crate) fn hash(&self, key: &str) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Records an access of an entry.
    pub(crate) fn record(&self, hash: u64) {
        let now = self.clock.fetch_add(1, Relaxed);
        let (slot, found) = self.slot(hash, now);
        let frequency = if found == 0 { FREQUENCY_FIRST } else { self.grown(self.frequency(found, now), hash ^ now) };
        slot.store(packed(hash, frequency, now), Relaxed);
    }

    /// Gives an entry the highest rank for now, because it cannot be removed.
    pub(crate) fn spare(&self, hash: u64) {
        let now = self.clock.load(Relaxed);
        self.slot(hash, now).0.store(packed(hash, FREQUENCY_MAX, now), Relaxed);
    }

    /// Returns the rank of an entry: that with the lowest one is evicted first.
    pub(crate) fn rank(&self, hash: u64) -> u64 {
        let now = self.clock.load(Relaxed);
        self.rank_at(self.slot(hash, now).1, now)
    }

    /// Finds the slot of an entry and what is in it; otherwise the slot that it gets, and 0.
    fn slot(&self, hash: u64, now: u64) -> (&AtomicU64, u64) {
        let set = &self.sets[hash as usize & (self.sets.len() - 1)].0;
        let mut lowest = (&set[0], u64::MAX);
        for slot in set {
            let value = slot.load(Relaxed);
            if value >> TAG_SHIFT == hash >> TAG_SHIFT && value != 0 {
                return (slot, value);
            }
            let rank = self.rank_at(value, now);
            if rank < lowest.1 {
                lowest = (slot, rank);
            }
        }
        (lowest.0, 0)
    }

    fn rank_at(&self, value: u64, now: u64) -> u64 {
        if value == 0 {
            return 0;
        }
        let recency = TIME_MAX - age(value, now);
        match self.policy {
            Policy::Lru => recency,
            Policy::Lfu => self.frequency(value, now) << TIME_BITS | recency,
        }
    }

    /// Returns the frequency in a slot, as far as it has not decayed.
    fn frequency(&self, value: u64, now: u64) -> u64 {
        (value >> TIME_BITS & FREQUENCY_MAX).saturating_sub(age(value, now) >> self.decay)
    }

    /// Returns the frequency after one more access: it grows by chance, more rarely the higher it is, so that 8 bits count tens of
    /// thousands of accesses.
    fn grown(&self, frequency: u64, seed: u64) -> u64 {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let grows = random * (frequency.saturating_sub(FREQUENCY_FIRST) + 1) <= u64::from(u32::MAX);
        (frequency + u64::from(grows)).min(FREQUENCY_MAX)
    }
}

fn age(value: u64, now: u64) -> u64 {
    now.wrapping_sub(value) & TIME_MAX
}

fn packed(hash: u64, frequency: u64, now: u64) -> u64 {
    hash >> TAG_SHIFT << TAG_SHIFT | frequency << TIME_BITS | now & TIME_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_follows_the_last_access_or_the_number_of_accesses() {
        let (lru, lfu) = (AccessTable::new(Policy::Lru, 0), AccessTable::new(Policy::Lfu, 0));
        for table in [&lru, &lfu] {
            assert_eq!(table.rank(table.hash("unknown")), 0);
            (0..1000).for_each(|_| table.record(table.hash("often")));
            table.record(table.hash("once"));
            table.record(table.hash("last"));
        }
        let order = |table: &AccessTable| {
            let mut keys = ["last", "often", "unknown", "once"];
            keys.sort_by_key(|key| table.rank(table.hash(key)));
            keys
        };
        assert_eq!(order(&lru), ["unknown", "often", "once", "last"]);
        assert_eq!(order(&lfu), ["unknown", "once", "last", "often"]);
        lfu.spare(lfu.hash("once"));
        assert_eq!(order(&lfu)[3], "once");
    }

    #[test]
    fn a_frequency_grows_ever_more_slowly_and_decays_without_accesses() {
        let table = AccessTable::new(Policy::Lfu, 0);
        let frequency = |key| table.rank(table.hash(key)) >> TIME_BITS;
        let mut seen = Vec::new();
        for accesses in [1, 9, 90, 900, 9000] {
            (0..accesses).for_each(|_| table.record(table.hash("a")));
            seen.push(frequency("a"));
        }
        assert!(seen[0] == FREQUENCY_FIRST && seen.is_sorted() && seen[4] < FREQUENCY_MAX, "{seen:?}");
        assert!(seen[4] > seen[3] && seen[3] > seen[2] && seen[2] > seen[1], "{seen:?}");
        let before = frequency("a");
        (0..3 << table.decay).for_each(|_| table.record(table.hash("b")));
        assert_eq!(frequency("a"), before - 3);
        (0..2000_u64 << table.decay)
            .step_by(1 << table.decay)
            .for_each(|_| _ = table.clock.fetch_add(1 << table.decay, Relaxed));
        assert_eq!(frequency("a"), 0);
    }

    #[test]
    fn a_table_has_a_fixed_size_and_keeps_the_entries_that_were_accessed_last() {
        let table = AccessTable::new(Policy::Lru, 1 << 20);
        assert_eq!(table.sets.len() * WAYS, (1 << 20) / 256);
        let hashes: Vec<u64> = (0..100_000).map(|index| table.hash(&format!("{index}"))).collect();
        hashes.iter().for_each(|hash| table.record(*hash));
        let known = |hashes: &[u64]| hashes.iter().filter(|hash| table.rank(**hash) > 0).count();
        // Half as many as there are slots: few sets are full of later ones.
        assert!(known(&hashes[98_000..]) > 1900, "{}", known(&hashes[98_000..]));
        assert!(known(&hashes[..50_000]) < 500, "{}", known(&hashes[..50_000]));
    }

    #[test]
    fn the_order_of_accesses_survives_the_end_of_the_clock() {
        let table = AccessTable::new(Policy::Lru, 0);
        table.clock.store(TIME_MAX - 1, Relaxed);
        let keys = ["a", "b", "c", "d"];
        keys.iter().for_each(|key| table.record(table.hash(key)));
        let mut order = ["d", "b", "a", "c"];
        order.sort_by_key(|key| table.rank(table.hash(key)));
        assert_eq!(order, keys);
    }
}
