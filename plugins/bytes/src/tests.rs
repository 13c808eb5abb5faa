//! Eviction in the hook chain: which entries go, that the limit holds at every instant, and that the count stays exact.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread;

use vkog_plugin_testing::{Reply, Setup, TestHost, plugin};

use super::*;

/// Returns a host whose store has room for `limit` bytes.
fn host(evict: &str, limit: u64) -> Setup {
    Setup::new().load::<Bytes>().settings(&format!(r#"{{"max_size": {limit}, "evict": {evict:?}}}"#))
}

/// Writes an entry of ten bytes.
fn put(host: &TestHost, key: &str) -> Reply {
    host.put(key, "v".repeat(10 - key.len()))
}

fn keys(host: &TestHost) -> Vec<String> {
    host.keys("").expect("no plugin refuses")
}

/// Returns the plugin's count, from the refusal of a value that never fits.
fn counted(host: &TestHost, limit: u64) -> u64 {
    let refusal = host.put("never", vec![b'v'; usize::try_from(limit).unwrap_or(0)]).refused(413, "Max size exceeded");
    let free = refusal.text().split(" bytes, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    limit - free.expect("it says how much is free")
}

#[test]
fn lru_evicts_the_entry_that_was_accessed_the_longest_time_ago() {
    let host = host("lru", 30).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    host.get("a").expect(200);
    put(&host, "d").expect(200);
    host.get("c").expect(200);
    put(&host, "a").expect(200);
    put(&host, "e").expect(200);
    assert_eq!(keys(&host), ["a", "c", "e"]);
    assert_eq!(host.metric("bytes", "evicted_total"), 2);
    assert_eq!(counted(&host, 30), 30);
}

#[test]
fn lfu_evicts_the_entry_that_is_accessed_most_rarely() {
    let host = host("lfu", 30).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    (0..500).for_each(|_| _ = host.get("a").expect(200));
    // The frequency grows by chance, but 50 accesses are always more than two.
    (0..50).for_each(|_| _ = host.get("b").expect(200));
    host.get("c").expect(200);
    for key in ["d", "e", "f"] {
        put(&host, key).expect(200);
    }
    assert_eq!(keys(&host), ["a", "b", "f"]);
}

#[test]
fn without_the_setting_a_write_that_does_not_fit_is_refused() {
    let host = Setup::new().load::<Bytes>().max_size(30).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    put(&host, "d").refused(413, r#"Max size exceeded: "d" needs 10 bytes, 0 of 30 are free"#);
    let error =
        Setup::new().load::<Bytes>().settings(r#"{"evict": "fifo"}"#).try_start().err().expect("no such policy");
    assert!(error.to_string().contains("lru"), "{error}");
}

#[test]
fn an_entry_over_the_limit_is_refused_and_evicts_nothing() {
    let host = host("lru", 30).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    for key in ["d", "a"] {
        host.put(key, [b'v'; 30]).refused(413, "Max size exceeded");
    }
    assert_eq!(keys(&host), ["a", "b", "c"]);
    host.put("d", [b'v'; 29]).expect(200);
    assert_eq!((keys(&host), counted(&host, 30)), (vec!["d".to_owned()], 30));
}

#[test]
fn the_entry_that_is_written_is_not_evicted_for_its_own_write() {
    for evict in ["lru", "lfu"] {
        let host = host(evict, 30).load_other(plugin!(Guarding, "guarding")).start();
        ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
        host.put("a", [b'v'; 15]).expect(200);
        assert_eq!(keys(&host)[0], "a", "{evict}");
        assert_eq!(host.metric("guarding", "absent"), 3, "it was there whenever the write was decided");
    }
}

#[test]
fn a_batch_evicts_for_all_its_operations() {
    for evict in ["lru", "lfu"] {
        let host = host(evict, 4000).start();
        let key = |index: usize| format!("{index:04}");
        (0..400).for_each(|index| _ = put(&host, &key(index)).expect(200));
        let names: Vec<String> = (1000..1390).map(key).collect();
        let batch = names.iter().map(|name| host.request(Verb::Put, name).body("vvvvvv"));
        host.batch(batch).succeeded();
        let left = keys(&host);
        assert!(names.iter().all(|name| left.contains(name)), "{} of {}", left.len(), names.len());
        assert_eq!(counted(&host, 4000), 10 * left.len() as u64);
        let names: Vec<String> = (2000..2401).map(key).collect();
        let batch = names.iter().map(|name| host.request(Verb::Put, name).body("vvvvvv"));
        host.batch(batch).failed(400, 413, "Max size exceeded");
        assert_eq!(counted(&host, 4000), 10 * keys(&host).len() as u64);
    }
}

#[test]
fn a_large_entry_evicts_many_small_ones() {
    let limit = 50_000;
    let host = host("lru", limit).start();
    let key = |index: usize| format!("{index:06}");
    (0..5_000).for_each(|index| _ = put(&host, &key(index)).expect(200));
    assert_eq!(counted(&host, limit), limit);
    host.put("large", vec![b'v'; 30_000]).expect(200);
    host.put("larger", vec![b'v'; 45_000]).expect(200);
    let (left, count) = (keys(&host), counted(&host, limit));
    assert!(left.iter().any(|key| key == "larger") && count <= limit, "{count}");
    let others = left.iter().filter(|key| key.len() == 6 && *key != "larger").count() as u64;
    assert_eq!(count, 45_006 + 10 * others);
}

/// Refuses to remove keys that begin with `pinned`, counts puts of absent keys and refused removals.
struct Guarding {
    refused: Counter,
    absent: Counter,
}

impl Plugin for Guarding {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let refused = host.counter("refused", "Refused removals.");
        Ok(Guarding { refused, absent: host.counter("absent", "Puts of absent keys.") })
    }
}

impl GuardPut for Guarding {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.absent.add(put.entry().is_none().into());
        if put.value() == b"reject" { Err(Refusal::new(413, "not that")) } else { Ok(()) }
    }
}

impl GuardDelete for Guarding {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        if delete.key().starts_with("pinned") {
            self.refused.add(1);
            return Err(Refusal::new(403, "pinned"));
        }
        Ok(())
    }
}

#[test]
fn a_store_full_of_entries_that_cannot_be_removed_refuses_with_413() {
    let host = host("lru", 1000).load_other(plugin!(Guarding, "guarding")).start();
    (0..100).for_each(|index| _ = host.put(&format!("pinned{index:02}"), "vv").expect(200));
    put(&host, "a").refused(413, "Max size exceeded");
    let refused = host.metric("guarding", "refused");
    assert!((1..=1000).contains(&refused), "{refused} attempts");
    assert_eq!(host.metric("bytes", "evictions_refused_total"), refused);
    assert_eq!((counted(&host, 1000), host.count("").expect("no plugin refuses")), (1000, 100));
}

#[test]
fn an_entry_that_can_be_removed_is_found_among_those_that_cannot() {
    for evict in ["lru", "lfu"] {
        let host = host(evict, 1000).load_other(plugin!(Guarding, "guarding")).start();
        (0..30).for_each(|index| _ = host.put(&format!("pinned{index:02}"), "vv").expect(200));
        host.put("free", [b'v'; 696]).expect(200);
        put(&host, "a").expect(200);
        assert!(!keys(&host).contains(&"free".to_owned()), "{evict}");
    }
}

#[test]
fn a_413_of_another_plugin_evicts_nothing() {
    let host = host("lru", 30).load_other(plugin!(Guarding, "guarding")).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    host.put("a", "reject").refused(413, "not that");
    assert_eq!(keys(&host), ["a", "b", "c"]);
}

/// Removes the entry `old` to make room, as ttl removes expired ones.
struct Sweeper {
    host: Host,
}

impl Plugin for Sweeper {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Sweeper { host })
    }
}

impl MakeRoom for Sweeper {
    fn make_room(&self) -> bool {
        self.host.delete("old").unwrap_or(false)
    }
}

#[test]
fn nothing_is_evicted_where_another_plugin_made_room() {
    let host = host("lru", 30).load_other(plugin!(Sweeper, "sweeper")).start();
    ["a", "b", "old"].iter().for_each(|key| _ = put(&host, key).expect(200));
    put(&host, "c").expect(200);
    assert_eq!((keys(&host), host.metric("bytes", "evicted_total")), (["a", "b", "c"].map(str::to_owned).to_vec(), 0));
    put(&host, "d").expect(200);
    assert_eq!(host.metric("bytes", "evicted_total"), 1);
}

/// Writes an entry for each that is removed, as an audit trail does, but a larger one.
struct Trail {
    host: Host,
    number: AtomicU64,
}

impl Plugin for Trail {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Trail { host, number: AtomicU64::new(0) })
    }
}

impl AfterDelete for Trail {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        if !delete.key().starts_with("t-") {
            let number = self.number.fetch_add(1, SeqCst);
            let _ = self.host.put(&format!("t-{number:06}"), &[b'v'; 30]);
        }
    }
}

#[test]
fn removals_whose_hooks_write_to_the_full_store_end() {
    let host = host("lru", 1000).load_other(plugin!(Trail, "trail")).start();
    (0..300).for_each(|index| _ = put(&host, &format!("{index:03}")).expect(200));
    let stored: u64 = keys(&host).iter().map(|key| (key.len() + host.get(key).text().len()) as u64).sum();
    assert_eq!(counted(&host, 1000), stored);
}

/// Counts the bytes of entries and of reservations after `bytes` has reserved and before it releases them, so its sum is never
/// greater than what is really in use.
struct Witness {
    sum: AtomicI64,
    limit: i64,
}

/// The limit of the racing writers.
const LIMIT: u64 = 20_000;

impl Plugin for Witness {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Witness { sum: AtomicI64::new(0), limit: LIMIT as i64 })
    }
}

fn payload(key: &str, entry: Option<Entry<'_>>) -> i64 {
    entry.map_or(0, |entry| (key.len() + entry.value().len()) as i64)
}

impl GuardPut for Witness {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.value().starts_with(b"!") {
            return Err(Refusal::new(422, "not that"));
        }
        let after = (put.key().len() + put.value().len()) as i64;
        let grows = (after - payload(put.key(), put.entry())).max(0);
        let sum = self.sum.fetch_add(grows, SeqCst) + grows;
        assert!(sum <= self.limit, "{sum} bytes are in use, {} is the limit", self.limit);
        Ok(())
    }
}

impl UndoPut for Witness {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        let after = (put.key().len() + put.value().len()) as i64;
        self.sum.fetch_sub((after - payload(put.key(), put.entry())).max(0), SeqCst);
    }
}

impl AfterPut for Witness {
    fn after_put(&self, put: &After<'_, Put>) {
        let shrinks = payload(put.key(), put.entry_before()) - payload(put.key(), put.entry_after());
        self.sum.fetch_sub(shrinks.max(0), SeqCst);
    }
}

impl AfterDelete for Witness {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        self.sum.fetch_sub(payload(delete.key(), delete.entry_before()), SeqCst);
    }
}

#[test]
fn racing_writers_never_exceed_the_limit_and_the_count_stays_exact() {
    for evict in ["lru", "lfu"] {
        let host = &host(evict, LIMIT).load_other(plugin!(Witness, "witness")).start();
        thread::scope(|scope| {
            for writer in 0..16_u64 {
                scope.spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(writer + 1);
                    let mut below = |bound: u64| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random % bound
                    };
                    for round in 0..200 {
                        let key = format!("{}", below(300));
                        let mut value = vec![b'v'; 1 + below(400) as usize];
                        if round % 16 == 0 {
                            value[0] = b'!';
                        }
                        if round % 50 == 7 {
                            host.fail_writes(1);
                        }
                        let reply = match below(10) {
                            0..7 => host.put(&key, &value),
                            7 => host.get(&key),
                            8 => host.delete(&key),
                            _ => {
                                let put = |key| host.request(Verb::Put, key).body(&value);
                                let other = format!("{}", below(300));
                                _ = host.batch([put(key.as_str()), put(other.as_str())]);
                                continue;
                            }
                        };
                        assert!([200, 404, 422, 503].contains(&reply.status), "{reply}");
                    }
                });
            }
        });
        assert!(!host.is_quarantined("witness") && !host.log().contains("in use"), "{}", host.log());
        let stored = keys(host).iter().map(|key| (key.len() + host.get(key).text().len()) as u64).sum::<u64>();
        assert_eq!(counted(host, LIMIT), stored, "{evict}");
        assert!(host.metric("bytes", "evicted_total") > 100, "{evict}");
    }
}

#[test]
fn racing_batches_that_each_need_most_of_the_limit_all_succeed() {
    const LIMIT: u64 = 100_000;
    for evict in ["lru", "lfu"] {
        let host = &host(evict, LIMIT).start();
        thread::scope(|scope| {
            for writer in 0..4 {
                scope.spawn(move || {
                    for round in 0..4 {
                        let keys: Vec<String> =
                            (0..350).map(|index| format!("{writer}-{}", round * 97 + index)).collect();
                        let puts = keys.iter().map(|key| host.request(Verb::Put, key).body([b'v'; 250]));
                        host.batch(puts).succeeded();
                    }
                });
            }
        });
        let stored = keys(host).iter().map(|key| key.len() as u64 + 250).sum::<u64>();
        assert_eq!(counted(host, LIMIT), stored, "{evict}");
    }
}

#[test]
fn with_the_memory_count_each_entry_evicts_one_of_its_size() {
    let settings = r#"{"max_size": 1000, "evict": "lru", "count": "memory"}"#;
    let host = Setup::new().load::<Bytes>().settings(settings).start();
    // 85 bytes each.
    (0..100).for_each(|index| _ = put(&host, &format!("{index:08}")).expect(200));
    assert_eq!(host.count("").expect("no plugin refuses"), 11);
    host.put("never", [b'v'; 1000]).refused(413, "Max size exceeded: \"never\" needs 1077 bytes, 65 of 1000 are free");
}

#[test]
fn a_reload_switches_eviction_on_and_off() {
    let mut host = Setup::new().load::<Bytes>().max_size(30).start();
    ["a", "b", "c"].iter().for_each(|key| _ = put(&host, key).expect(200));
    put(&host, "d").expect(413);
    host.change_settings("bytes", r#"{"evict": "lru"}"#).expect("it is a policy");
    // The new instance knows of no access, so the entry that was written first goes.
    put(&host, "d").expect(200);
    assert_eq!(keys(&host), ["b", "c", "d"]);
    host.change_settings("bytes", "{}").expect("it is the default");
    put(&host, "e").expect(413);
    host.change_settings("bytes", r#"{"max_size": 15, "evict": "lfu"}"#).expect("it is a policy");
    assert!(host.log().contains("the store has 30 bytes, the limit is 15: writes that grow it remove entries"));
    put(&host, "e").expect(200);
    assert_eq!((keys(&host), counted(&host, 15)), (vec!["e".to_owned()], 10));
}

#[test]
fn a_restart_evicts_the_entries_that_were_written_first() {
    let mut host = host("lru", 30).start();
    ["c", "a", "b"].iter().for_each(|key| _ = put(&host, key).expect(200));
    host.restart();
    put(&host, "d").expect(200);
    assert_eq!(keys(&host), ["a", "b", "d"]);
}

#[test]
fn the_count_follows_the_writes_of_other_hosts() {
    let setup = Setup::new().load::<Bytes>().max_size(100);
    let [one, other] = [setup.clone().start(), setup.start()];
    let apply = |key: &str, counts: u64| {
        one.apply(&other, key);
        assert_eq!((counted(&one, 100), counted(&other, 100)), (counts, counts));
    };
    put(&other, "a").expect(200);
    apply("a", 10);
    other.put("a", [b'v'; 29]).expect(200);
    apply("a", 30);
    other.put("b", [b'v'; 4]).expect(200);
    apply("b", 35);
    put(&other, "a").expect(200);
    apply("a", 15);
    other.delete("a").expect(200);
    apply("a", 5);
    one.apply_expiry("b");
    assert_eq!(counted(&one, 100), 0);
}

#[test]
fn writes_of_other_hosts_may_exceed_the_limit_and_then_none_fits_here() {
    let setup = Setup::new().load::<Bytes>().max_size(30);
    let [one, other] = [setup.clone().start(), setup.start()];
    ["a", "b"].iter().for_each(|key| _ = put(&one, key).expect(200));
    ["c", "d"].iter().for_each(|key| _ = put(&other, key).expect(200));
    ["c", "d"].iter().for_each(|key| one.apply(&other, key));
    one.put("e", "1").refused(413, r#"Max size exceeded: "e" needs 2 bytes, 0 of 30 are free"#);
    one.delete("a").expect(200);
    one.put("e", "1").refused(413, r#"Max size exceeded: "e" needs 2 bytes, 0 of 30 are free"#);
    one.delete("b").expect(200);
    put(&one, "e").expect(200);
}

#[test]
fn removals_and_writes_of_other_hosts_count_for_evictions() {
    let setup = host("lru", 30);
    let [one, other] = [setup.clone().start(), setup.start()];
    ["a", "b", "c"].iter().for_each(|key| _ = put(&one, key).expect(200));
    put(&other, "a").expect(200);
    one.apply(&other, "a");
    put(&one, "d").expect(200);
    assert_eq!(keys(&one), ["a", "c", "d"], "a was written on another host");
    one.apply(&other, "c");
    put(&one, "e").expect(200);
    assert_eq!((keys(&one), counted(&one, 30)), (["a", "d", "e"].map(str::to_owned).to_vec(), 30));
}
