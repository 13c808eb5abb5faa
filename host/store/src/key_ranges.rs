//! A cache of sorted key ranges, for listings. The map has no order: one scan of all its shards finds the keys of a range, which
//! then serves many pages. While a range is cached, every key that is inserted into the map is inserted into the range as
//! well. So a range always has all its keys; it may also have keys that were removed since.
//!
//! Only listings pay for the order: a store that is never listed caches nothing, and one that is listed caches a part of its
//! keys, not a tree of all.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// The maximum number of ranges.
const RANGES_MAX: usize = 4;
/// The time for which an unused range is cached.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The key ranges of a map.
#[derive(Default)]
pub(super) struct KeyRangeCache {
    /// Whether there are any. A write of a store that is not listed takes no lock to find out.
    any: AtomicBool,
    ranges: Mutex<Vec<KeyRange>>,
    /// The right to scan the map: one thread at a time, so that listings do not occupy all cores.
    scan_lock: Mutex<()>,
}

/// All keys of a range.
struct KeyRange {
    from: Box<[u8]>,
    /// The first key behind the range; none if it is unbounded.
    to: Option<Box<[u8]>>,
    keys: BTreeSet<Box<[u8]>>,
    keys_max: usize,
    /// The map has been scanned. Until then the range has only the keys that were inserted meanwhile.
    complete: bool,
    used: Instant,
}

/// Some keys in byte order.
pub(super) struct KeyPage {
    pub(super) keys: Vec<Box<[u8]>>,
    /// The start of the next page; `None` if there is none.
    pub(super) rest: Option<Box<[u8]>>,
}

impl KeyRangeCache {
    /// Inserts a key that is inserted into the map. The caller holds the write lock of its shard: a scan either finds the key in
    /// the map or has begun its range before.
    pub(super) fn insert(&self, key: &[u8]) {
        if self.any.load(Relaxed) {
            for range in self.ranges.lock().iter_mut().filter(|range| range.covers(key)) {
                range.keys.insert(key.into());
                range.shrink();
            }
        }
    }

    /// The first keys from `from` on, at most `count`, if a range has them.
    pub(super) fn page(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Option<KeyPage> {
        let mut ranges = self.ranges.lock();
        let range = ranges.iter_mut().find(|range| range.complete && range.covers(from))?;
        range.used = Instant::now();
        let found = range.keys.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        let inside = |key: &&[u8]| end.is_none_or(|end| *key < end);
        let keys: Vec<Box<[u8]>> = found.map(AsRef::as_ref).take_while(inside).take(count).map(Box::from).collect();
        let rest = if keys.len() == count {
            keys.last().map(|last| successor(last))
        } else {
            range.to.clone().filter(|to| end.is_none_or(|end| to.as_ref() < end))
        };
        Some(KeyPage { keys, rest })
    }

    /// Takes the right to scan the map.
    pub(super) fn lock_scans(&self) -> MutexGuard<'_, ()> {
        self.scan_lock.lock()
    }

    /// Begins a range: from now on it gets the keys that are inserted. Replaces the range that was unused for longest.
    pub(super) fn begin(&self, from: &[u8], end: Option<&[u8]>, keys_max: usize) {
        let range = KeyRange {
            from: from.into(),
            to: end.map(Into::into),
            keys: BTreeSet::new(),
            keys_max,
            complete: false,
            used: Instant::now(),
        };
        self.change(|ranges| {
            // The scan of an incomplete one has panicked.
            let mut gone: Vec<_> = ranges.extract_if(.., |range| !range.complete).collect();
            if ranges.len() >= RANGES_MAX
                && let Some((oldest, _)) = ranges.iter().enumerate().min_by_key(|(_, range)| range.used)
            {
                gone.push(ranges.swap_remove(oldest));
            }
            ranges.push(range);
            gone
        });
    }

    /// Completes the range that was begun with the keys that a scan found, all of which are below `to`.
    pub(super) fn complete(&self, mut found: BTreeSet<Box<[u8]>>, to: Option<Box<[u8]>>) {
        let mut ranges = self.ranges.lock();
        let Some(range) = ranges.iter_mut().find(|range| !range.complete) else { return };
        found.append(&mut range.keys);
        range.keys = found;
        // It may have shrunk because of the keys that were inserted.
        range.to = [range.to.take(), to].into_iter().flatten().min();
        while range.keys.last().is_some_and(|last| range.to.as_ref().is_some_and(|to| last >= to)) {
            range.keys.pop_last();
        }
        range.complete = true;
        range.shrink();
    }

    /// Drops the ranges that were not used lately.
    pub(super) fn forget_idle(&self) {
        if self.any.load(Relaxed) {
            self.change(|ranges| {
                ranges.extract_if(.., |range| range.complete && range.used.elapsed() >= IDLE_TIMEOUT).collect()
            });
        }
    }

    /// Adds and removes ranges. Those that are removed are freed without the lock, which writers wait for.
    fn change(&self, change: impl FnOnce(&mut Vec<KeyRange>) -> Vec<KeyRange>) {
        let mut ranges = self.ranges.lock();
        let gone = change(&mut ranges);
        self.any.store(!ranges.is_empty(), Relaxed);
        drop(ranges);
        drop(gone);
    }

    /// The number of keys of each range.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<usize> {
        self.ranges.lock().iter().map(|range| range.keys.len()).collect()
    }

    /// Makes all ranges but the first few look unused for as long as [`IDLE_TIMEOUT`].
    #[cfg(test)]
    pub(super) fn age(&self, kept: usize) {
        for range in self.ranges.lock().iter_mut().skip(kept) {
            range.used -= IDLE_TIMEOUT;
        }
    }

    /// Whether a write takes the lock.
    #[cfg(test)]
    pub(super) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }
}

impl KeyRange {
    fn covers(&self, key: &[u8]) -> bool {
        *self.from <= *key && self.to.as_ref().is_none_or(|to| *key < **to)
    }

    /// Drops the end of the range if it has too many keys.
    fn shrink(&mut self) {
        while self.keys.len() > 2 * self.keys_max {
            self.to = self.keys.pop_last();
        }
    }
}

/// The first key after this one.
fn successor(key: &[u8]) -> Box<[u8]> {
    [key, &[0]].concat().into()
}
