//! Entries in byte order: fills the cache of key ranges by scans of the map, and reads the entries of a range.

use crate::entry::Entry;
use crate::map::{Map, SHARDS};

/// A range has at most twice this part of all keys: a complete listing scans the map this often, however large it is.
const PART: usize = 16;
/// Or twice this many keys, if that is more.
const KEYS_MIN: usize = 16 * 1024;

/// The first entries of a range in byte order: `count` of them, fewer only if the range has no more. `seen` becomes the last
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

/// Caches the range that starts at a key, by a scan of the map. Each shard is locked in its turn.
fn scan(map: &Map, from: &[u8], end: Option<&[u8]>) {
    scan_with(map, from, end, || {});
}

/// Scans the map; `scanned` is called between the last shard and the completion of the range.
fn scan_with(map: &Map, from: &[u8], end: Option<&[u8]>, scanned: impl FnOnce()) {
    let cache = &map.key_ranges;
    let _alone = cache.lock_scans();
    if cache.page(from, end, 0).is_some() {
        return;
    }
    let keys_max = (map.totals().0 as usize / PART).max(KEYS_MIN);
    cache.begin(from, end, keys_max);
    let mut found: Vec<Entry> = Vec::new();
    let mut to: Option<Box<[u8]>> = end.map(Into::into);
    // Keeps the first keys, if there are more than this.
    let cut = |found: &mut Vec<Entry>, to: &mut Option<Box<[u8]>>, max: usize| {
        if found.len() <= max {
            return;
        }
        let (_, next, _) = found.select_nth_unstable_by(keys_max, |one, other| one.key_bytes().cmp(other.key_bytes()));
        *to = Some(next.key_bytes().into());
        found.truncate(keys_max);
    };
    for shard in 0..SHARDS {
        let inside = |key: &[u8]| from <= key && to.as_ref().is_none_or(|to| key < &**to);
        found.extend(map.read(shard).iter().filter(|entry| inside(entry.key_bytes())).cloned());
        cut(&mut found, &mut to, 2 * keys_max);
    }
    cut(&mut found, &mut to, keys_max);
    scanned();
    cache.complete(found.iter().map(|entry| entry.key_bytes().into()).collect(), to);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::thread;

    use super::*;
    use crate::entry::NewEntry;

    /// Enough keys that a range has a small part of them.
    const KEYS: usize = 8 * KEYS_MIN;

    fn insert(map: &Map, key: &str) {
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
        (0..KEYS).for_each(|index| insert(&map, &steady(index)));
        map
    }

    /// All keys of a range, page by page.
    fn list(map: &Map, from: &str, end: Option<&str>, count: usize) -> Vec<String> {
        let end = end.map(str::as_bytes);
        let (mut all, mut rest) = (Vec::new(), Some(Box::from(from.as_bytes())));
        while let Some(from) = rest.take() {
            let Some(page) = map.key_ranges.page(&from, end, count) else {
                scan(map, &from, end);
                rest = Some(from);
                continue;
            };
            assert!(page.keys.len() <= count);
            all.extend(page.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()));
            rest = page.rest;
        }
        all
    }

    #[test]
    fn keys_that_stay_are_listed_once_and_in_order_while_others_change() {
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
                        insert(map, &key);
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
    fn a_key_inserted_after_the_scan_is_on_the_next_page() {
        let map = filled();
        assert_eq!(list(&map, "000100", Some("000102"), 10), ["000100", "000101"]);
        for key in ["000100+", "000101+", "000102+", "0000"] {
            insert(&map, key);
        }
        assert_eq!(list(&map, "000100", Some("000102"), 1), ["000100", "000100+", "000101", "000101+"]);
        remove(&map, "000100");
        insert(&map, "000100");
        assert_eq!(list(&map, "000100", Some("000101"), 10), ["000100", "000100+"]);
        assert_eq!(list(&map, "0000", Some("000001"), 10), ["0000", "000000"]);
    }

    #[test]
    fn a_key_inserted_during_the_scan_is_listed() {
        let map = filled();
        let (first, last) = ("000000+".to_owned(), "000009+".to_owned());
        scan_with(&map, b"", Some(b"00001"), || [&first, &last].into_iter().for_each(|key| insert(&map, key)));
        let found = list(&map, "", Some("00001"), 5);
        let mut expected: Vec<_> = (0..10).map(steady).chain([first, last]).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn no_key_lies_between_a_page_and_the_next_one() {
        let map = Map::new(1);
        let keys = ["k", "k\0", "k\0\0", "k\0\u{1}", "k\u{1}", "k\u{1}\0", "kk", "l"];
        keys.iter().for_each(|key| insert(&map, key));
        for count in 1..=keys.len() {
            assert_eq!(list(&map, "", None, count), keys, "{count} keys a page");
        }
    }

    #[test]
    fn a_range_stays_a_part_of_all_keys_however_many_are_inserted() {
        let map = filled();
        assert_eq!(list(&map, "", Some("000002"), 10).len(), 2);
        // Behind the range that is cached already.
        scan(&map, b"000002", None);
        assert_eq!(map.key_ranges.sizes(), [2, KEYS_MIN]);
        let new = |index: usize| format!("{}+", steady(index));
        (0..KEYS).for_each(|index| insert(&map, &new(index)));
        let sizes = map.key_ranges.sizes();
        assert!(sizes.iter().all(|size| *size <= 2 * KEYS_MIN), "{sizes:?}");
        let found = list(&map, "", None, 1000);
        let both: Vec<_> = (0..KEYS).flat_map(|index| [steady(index), new(index)]).collect();
        assert!(found == both, "{} of {} keys", found.len(), both.len());
    }

    #[test]
    fn a_range_has_the_part_of_the_keys_that_it_may_have() {
        let map = Map::new(1);
        for index in 0..PART * KEYS_MIN + PART {
            insert(&map, &steady(index));
        }
        scan(&map, b"", None);
        assert_eq!(map.key_ranges.sizes(), [KEYS_MIN + 1]);
    }

    #[test]
    fn ranges_are_few_and_are_dropped_when_unused() {
        const RANGES_MAX: usize = 4;
        let map = filled();
        for from in ["1", "2", "3", "4", "5", "6"] {
            list(&map, from, Some(&format!("{from}1")), 10);
        }
        assert_eq!(map.key_ranges.sizes().len(), RANGES_MAX);
        map.key_ranges.forget_idle();
        assert_eq!(map.key_ranges.sizes().len(), RANGES_MAX);
        map.key_ranges.age(1);
        map.key_ranges.forget_idle();
        assert!(map.key_ranges.sizes().len() == 1 && map.key_ranges.any());
        map.key_ranges.age(0);
        map.key_ranges.forget_idle();
        assert!(!map.key_ranges.any());
    }
}
