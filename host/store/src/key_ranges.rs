//! Keys in byte order, for those who list them. The map has no order: a look through all of it finds the keys of one
//! window, and serves many pages. While there are windows whoever adds a key to the map adds it here as well, so that a
//! window always has every key of its range; it may have others, which have been removed since.
//!
//! So an order costs who asks for it, and nobody else: a store that is not listed has no window, and one that is listed
//! has a window for a part of its keys, not a tree of all.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::entry::Entry;
use super::map::{Map, SHARDS};

/// A window has at most twice this part of all keys: a whole listing looks through the map so often, however large it is.
const PART: usize = 16;
/// Or twice so many, where that is more.
const KEYS_MIN: usize = 16 * 1024;
/// So many listings at different places keep what they found.
const RANGES_MAX: usize = 4;
/// How long a window is kept that nobody asks for.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The windows of a map.
#[derive(Default)]
pub(super) struct KeyRangeCache {
    /// Whether there are any, so that a write need not lock to learn that there are none.
    any: AtomicBool,
    open: Mutex<Vec<KeyRange>>,
    /// The right to look through the map: one at a time, so that listings cannot take all processors.
    scan_lock: Mutex<()>,
}

/// All keys of a range.
struct KeyRange {
    from: Box<[u8]>,
    /// The first key behind it; none if it goes to the end.
    to: Option<Box<[u8]>>,
    keys: BTreeSet<Box<[u8]>>,
    keys_max: usize,
    /// The map has been looked through; before that it has only the keys that came since it was begun.
    complete: bool,
    used: Instant,
}

/// Some keys in their order.
pub(super) struct KeyPage {
    pub(super) keys: Vec<Box<[u8]>>,
    /// Where to go on; none if the range ends here.
    pub(super) rest: Option<Box<[u8]>>,
}

impl KeyRangeCache {
    /// A key is added to the map. Its shard is locked for writing: whoever looks through the map either finds the key there
    /// or has begun its window before.
    pub(super) fn insert(&self, key: &[u8]) {
        if self.any.load(Relaxed) {
            for window in self.open.lock().iter_mut().filter(|window| window.covers(key)) {
                window.keys.insert(key.into());
                window.shrink();
            }
        }
    }

    /// At most so many keys of a range, if a window has them.
    pub(super) fn page(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Option<KeyPage> {
        let mut open = self.open.lock();
        let window = open.iter_mut().find(|window| window.complete && window.covers(from))?;
        window.used = Instant::now();
        let found = window.keys.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        let inside = |key: &&[u8]| end.is_none_or(|end| *key < end);
        let keys: Vec<Box<[u8]>> = found.map(AsRef::as_ref).take_while(inside).take(count).map(Box::from).collect();
        let rest = if keys.len() == count {
            keys.last().map(|last| successor(last))
        } else {
            window.to.clone().filter(|to| end.is_none_or(|end| to.as_ref() < end))
        };
        Some(KeyPage { keys, rest })
    }

    /// Has keys that come collected from now on.
    fn begin(&self, from: &[u8], end: Option<&[u8]>, keys_max: usize) {
        let window = KeyRange {
            from: from.into(),
            to: end.map(Into::into),
            keys: BTreeSet::new(),
            keys_max,
            complete: false,
            used: Instant::now(),
        };
        self.change(|open| {
            // One that is not complete was lost to a panic.
            let mut gone: Vec<_> = open.extract_if(.., |window| !window.complete).collect();
            if open.len() >= RANGES_MAX
                && let Some((oldest, _)) = open.iter().enumerate().min_by_key(|(_, window)| window.used)
            {
                gone.push(open.swap_remove(oldest));
            }
            open.push(window);
            gone
        });
    }

    /// Puts what was found in the map into the window that was begun: all keys below `to`.
    fn complete(&self, mut found: BTreeSet<Box<[u8]>>, to: Option<Box<[u8]>>) {
        let mut open = self.open.lock();
        let Some(window) = open.iter_mut().find(|window| !window.complete) else { return };
        found.append(&mut window.keys);
        window.keys = found;
        // It may have been cut for what came.
        window.to = [window.to.take(), to].into_iter().flatten().min();
        while window.keys.last().is_some_and(|last| window.to.as_ref().is_some_and(|to| last >= to)) {
            window.keys.pop_last();
        }
        window.complete = true;
        window.shrink();
    }

    /// Drops the windows that nobody asked for lately.
    pub(super) fn forget_idle(&self) {
        if self.any.load(Relaxed) {
            self.change(|open| {
                open.extract_if(.., |window| window.complete && window.used.elapsed() >= IDLE).collect()
            });
        }
    }

    /// Changes which windows there are. Those that are gone are freed without the lock: writers wait for it.
    fn change(&self, change: impl FnOnce(&mut Vec<KeyRange>) -> Vec<KeyRange>) {
        let mut open = self.open.lock();
        let gone = change(&mut open);
        self.any.store(!open.is_empty(), Relaxed);
        drop(open);
        drop(gone);
    }
}

impl KeyRange {
    fn covers(&self, key: &[u8]) -> bool {
        *self.from <= *key && self.to.as_ref().is_none_or(|to| *key < **to)
    }

    /// Gives up the end of the range where there are too many keys.
    fn shrink(&mut self) {
        while self.keys.len() > 2 * self.keys_max {
            self.to = self.keys.pop_last();
        }
    }
}

/// Opens a window that begins at a key, by a look through the map. Each shard is locked when it is its turn.
pub(super) fn scan(map: &Map, from: &[u8], end: Option<&[u8]>) {
    let windows = &map.key_ranges;
    let _alone = windows.scan_lock.lock();
    if windows.page(from, end, 0).is_some() {
        return;
    }
    let keys_max = (map.totals().0 as usize / PART).max(KEYS_MIN);
    windows.begin(from, end, keys_max);
    let mut found: Vec<Entry> = Vec::new();
    let mut to: Option<Box<[u8]>> = end.map(Into::into);
    // Leaves the first keys.
    let cut = |found: &mut Vec<Entry>, to: &mut Option<Box<[u8]>>| {
        let (_, next, _) = found.select_nth_unstable_by(keys_max, |one, other| one.key_bytes().cmp(other.key_bytes()));
        *to = Some(next.key_bytes().into());
        found.truncate(keys_max);
    };
    for shard in 0..SHARDS {
        let inside = |key: &[u8]| from <= key && to.as_ref().is_none_or(|to| key < &**to);
        found.extend(map.read(shard).iter().filter(|entry| inside(entry.key_bytes())).cloned());
        if found.len() > 2 * keys_max {
            cut(&mut found, &mut to);
        }
    }
    if found.len() > keys_max {
        cut(&mut found, &mut to);
    }
    let keys = found.iter().map(|entry| entry.key_bytes().into()).collect();
    windows.complete(keys, to);
}

/// The first entries of a range in byte order: `count` of them, fewer only where the range has no more. `seen` becomes the last
/// revision that the result depends on. `scanned` is called after each scan of the map.
pub(super) fn entries(
    map: &Map,
    from: &[u8],
    end: Option<&[u8]>,
    count: usize,
    seen: &mut u64,
    scanned: impl Fn(),
) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut rest = Some(Box::from(from));
    while let Some(from) = rest.take_if(|from| found.len() < count && end.is_none_or(|end| &**from < end)) {
        let Some(page) = map.key_ranges.page(&from, end, count - found.len()) else {
            scan(map, &from, end);
            scanned();
            rest = Some(from);
            continue;
        };
        for key in &page.keys {
            let hashed = map.hash(key);
            let shard = map.read(map.shard_of(hashed));
            let (entry, revision) = shard.see(hashed);
            *seen = revision.max(*seen);
            found.extend(entry.cloned());
        }
        rest = page.rest;
    }
    found
}

/// The first key after this one.
pub(super) fn successor(key: &[u8]) -> Box<[u8]> {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::NewEntry;

    /// So many that a window has a small part of them.
    const KEYS: usize = 8 * KEYS_MIN;

    fn add(map: &Map, key: &str) {
        let draft = NewEntry { value: b"v", content_type: "text/plain", details: Vec::new() };
        let (hashed, entry) = (map.hash(key.as_bytes()), Entry::with_revision(key, &draft, 1, &mut Vec::new()));
        map.insert(&mut map.write(map.shard_of(hashed)), hashed, entry);
    }

    fn remove(map: &Map, key: &str) {
        let hashed = map.hash(key.as_bytes());
        map.write(map.shard_of(hashed)).remove(hashed, 1);
    }

    fn steady(index: usize) -> String {
        format!("{index:06}")
    }

    fn filled() -> Map {
        let map = Map::new(1);
        (0..KEYS).for_each(|index| add(&map, &steady(index)));
        map
    }

    /// All keys of a range, in runs.
    fn list(map: &Map, from: &str, end: Option<&str>, count: usize) -> Vec<String> {
        let end = end.map(str::as_bytes);
        let (mut all, mut rest) = (Vec::new(), Some(Box::from(from.as_bytes())));
        while let Some(from) = rest.take() {
            let Some(run) = map.key_ranges.page(&from, end, count) else {
                scan(map, &from, end);
                rest = Some(from);
                continue;
            };
            assert!(run.keys.len() <= count);
            all.extend(run.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()));
            rest = run.rest;
        }
        all
    }

    #[test]
    fn keys_that_are_there_throughout_are_found_once_and_in_order_while_others_come_and_go() {
        let map = filled();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..4 {
                let (map, ended) = (&map, &ended);
                scope.spawn(move || {
                    let mut step = writer;
                    while !ended.load(Relaxed) {
                        step = (step * 7919 + 13) % KEYS;
                        let key = format!("{}+{writer}", steady(step));
                        add(map, &key);
                        if step % 2 == 0 {
                            remove(map, &key);
                        }
                    }
                });
            }
            for round in 0..4 {
                let found = list(&map, "", None, 1000 + round);
                ended.store(round == 3 || !found.is_sorted_by(|one, next| one < next), Relaxed);
                let found: Vec<_> = found.into_iter().filter(|key| !key.contains('+')).collect();
                let whole = found.iter().enumerate().all(|(index, key)| *key == steady(index)) && found.len() == KEYS;
                ended.fetch_or(!whole, Relaxed);
                assert!(whole, "round {round} found {} of {KEYS} keys", found.len());
            }
            assert!(ended.load(Relaxed));
        });
    }

    #[test]
    fn a_key_that_came_after_the_look_is_in_the_next_run() {
        let map = filled();
        assert_eq!(list(&map, "000100", Some("000102"), 10), ["000100", "000101"]);
        for key in ["000100+", "000101+", "000102+", "0000"] {
            add(&map, key);
        }
        assert_eq!(list(&map, "000100", Some("000102"), 1), ["000100", "000100+", "000101", "000101+"]);
        remove(&map, "000100");
        add(&map, "000100");
        assert_eq!(list(&map, "000100", Some("000101"), 10), ["000100", "000100+"]);
        assert_eq!(list(&map, "0000", Some("000001"), 10), ["0000", "000000"]);
    }

    #[test]
    fn a_window_stays_a_part_of_all_keys_however_many_come() {
        let map = filled();
        assert_eq!(list(&map, "", Some("000002"), 10).len(), 2);
        scan(&map, b"0", None);
        let came = |index: usize| format!("{}+", steady(index));
        (0..KEYS).for_each(|index| add(&map, &came(index)));
        let sizes: Vec<_> = map.key_ranges.open.lock().iter().map(|window| window.keys.len()).collect();
        assert!(sizes.iter().all(|size| *size <= 2 * KEYS_MIN), "{sizes:?}");
        let found = list(&map, "", None, 1000);
        let both: Vec<_> = (0..KEYS).flat_map(|index| [steady(index), came(index)]).collect();
        assert!(found == both, "{} of {} keys", found.len(), both.len());
    }

    #[test]
    fn windows_are_few_and_end_when_nobody_asks() {
        let map = filled();
        for from in ["1", "2", "3", "4", "5", "6"] {
            list(&map, from, Some(&format!("{from}1")), 10);
        }
        assert_eq!(map.key_ranges.open.lock().len(), RANGES_MAX);
        map.key_ranges.forget_idle();
        assert_eq!(map.key_ranges.open.lock().len(), RANGES_MAX);
        for window in map.key_ranges.open.lock().iter_mut().skip(1) {
            window.used -= IDLE;
        }
        map.key_ranges.forget_idle();
        assert!(map.key_ranges.open.lock().len() == 1 && map.key_ranges.any.load(Relaxed));
        map.key_ranges.open.lock()[0].used -= IDLE;
        map.key_ranges.forget_idle();
        assert!(!map.key_ranges.any.load(Relaxed));
    }
}
