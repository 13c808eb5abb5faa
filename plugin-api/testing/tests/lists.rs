//! A plugin lists entries in byte order, from a start, up to a limit; it draws random samples; and it switches hooks off.
//!
//! Provoked by a plugin that lists when a client writes the key `list`, and stores what it found as the value.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Lists the range that the value describes: prefix, start, limit, and the number of entries after which it stops.
struct Lister {
    host: Host,
}

impl Plugin for Lister {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Lister { host })
    }
}

impl BeforePut for Lister {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        let text = String::from_utf8_lossy(put.value()).into_owned();
        let parts: Vec<&str> = text.split('|').collect();
        let mut found = Vec::new();
        let number = |text: &str| text.parse::<usize>().unwrap_or(usize::MAX);
        match (put.key(), &parts[..]) {
            ("list", [prefix, from, limit, stop]) => {
                let range = KeyRange::new(prefix).from(from).limit(number(limit) as u64);
                self.host.for_each_in(&range, |key, entry| {
                    found.push(format!("{key}={}", String::from_utf8_lossy(entry.value())));
                    if found.len() == number(stop) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })?;
            }
            ("sample", [count]) => self.host.sample(number(count) as u64, |key, _| {
                found.push(key.to_owned());
                ControlFlow::Continue(())
            })?,
            _ => return Ok(()),
        }
        put.replace_value(found.join(",").as_bytes());
        Ok(())
    }
}

impl GuardPost for Lister {
    fn guard_post(&self, _: &mut Guard<'_, Post>) -> Verdict {
        self.host.for_each_in(&KeyRange::new(""), |_, _| ControlFlow::Continue(()))
    }
}

/// Hides and refuses gets, and counts those of plugins.
struct Shy {
    gets: Counter,
}

impl Plugin for Shy {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Shy { gets: host.counter("gets", "Gets of plugins.") })
    }
}

impl BeforeGet for Shy {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        if get.asker() == Some("lister") {
            self.gets.add(1);
        }
        if get.key().contains("hidden") {
            get.hide();
        }
        if get.key().contains("refused") { Err(Refusal::new(403, "not that")) } else { Ok(()) }
    }
}

fn host() -> TestHost {
    Setup::new().load_other(plugin!(Lister, "lister")).load_other(plugin!(Shy, "shy")).start()
}

/// Returns what the plugin finds in a range, and how many entries it has read.
fn list(host: &TestHost, range: &str) -> (String, i64) {
    let before = host.metric("shy", "gets");
    host.put("list", range).expect(200);
    let reads = host.metric("shy", "gets") - before;
    let found = host.get("list").expect(200).text();
    host.delete("list").expect(200);
    (found, reads)
}

#[test]
fn a_range_has_the_entries_with_the_prefix_from_the_start_in_byte_order() {
    let host = host();
    for key in ["b/2", "a", "b/10", "b", "b/", "b/1", "c", "b/\u{e9}", "b/z", "b/\u{1f980}", "b0"] {
        host.put(key, "1").expect(200);
    }
    for (range, expected) in [
        ("b/|||", "b/=1,b/1=1,b/10=1,b/2=1,b/z=1,b/\u{e9}=1,b/\u{1f980}=1"),
        ("b/|b/10||", "b/10=1,b/2=1,b/z=1,b/\u{e9}=1,b/\u{1f980}=1"),
        ("b/|b/11||", "b/2=1,b/z=1,b/\u{e9}=1,b/\u{1f980}=1"),
        ("b/|b/\u{e9}||", "b/\u{e9}=1,b/\u{1f980}=1"),
        ("b/\u{1f980}|||", "b/\u{1f980}=1"),
        // A start before the prefix, and one behind all keys with it.
        ("b/|a||", "b/=1,b/1=1,b/10=1,b/2=1,b/z=1,b/\u{e9}=1,b/\u{1f980}=1"),
        ("b/|c||", ""),
        ("d|||", ""),
        ("|b/z|3|", "b/z=1,b/\u{e9}=1,b/\u{1f980}=1"),
        ("||2|", "a=1,b=1"),
        ("||0|", ""),
        ("|||1", "a=1"),
        ("|zz||", ""),
    ] {
        assert_eq!(list(&host, range).0, expected, "{range}");
    }
}

#[test]
fn an_empty_store_has_an_empty_range() {
    assert_eq!(list(&host(), "|||"), (String::new(), 0));
}

#[test]
fn hidden_and_refused_entries_are_left_out_and_do_not_count_for_the_limit() {
    let host = host();
    for key in ["1-hidden", "2", "3-refused", "4", "5-hidden", "6"] {
        host.put(key, "1").expect(200);
    }
    assert_eq!(list(&host, "|||"), ("2=1,4=1,6=1".to_owned(), 6));
    assert_eq!(list(&host, "||2|"), ("2=1,4=1".to_owned(), 4));
    assert_eq!(list(&host, "|3||1"), ("4=1".to_owned(), 2), "it reads nothing behind the entry at which it stops");
}

#[test]
fn a_guard_cannot_list_a_range() {
    host().post("a", "1").refused(508, "the store cannot be listed from here");
}

#[test]
fn entries_that_stay_are_listed_once_and_in_order_while_others_are_written() {
    const STEADY: usize = 1500;
    let host = host();
    let key = |index: usize| format!("k/{index:06}");
    (0..STEADY).for_each(|index| _ = host.put(&key(index), "1").expect(200));
    let (ended, host) = (AtomicBool::new(false), &host);
    thread::scope(|scope| {
        for writer in 0..4_usize {
            let (ended, key) = (&ended, &key);
            scope.spawn(move || {
                let mut step = writer;
                while !ended.load(SeqCst) {
                    step = (step * 7919 + 13) % STEADY;
                    let other = format!("{}+{writer}", key(step));
                    host.put(&other, "2").expect(200);
                    host.delete(&other).expect(200);
                }
            });
        }
        let lists: Vec<String> = (0..5).map(|_| list(host, "k/|||").0).collect();
        ended.store(true, SeqCst);
        let expected: Vec<String> = (0..STEADY).map(|index| format!("{}=1", key(index))).collect();
        for found in lists {
            let all: Vec<&str> = found.split(',').collect();
            assert!(all.is_sorted_by(|one, next| one.split('=').next() < next.split('=').next()), "{found}");
            let steady: Vec<&str> = all.into_iter().filter(|entry| !entry.contains('+')).collect();
            assert!(steady == expected, "{} of {STEADY} entries", steady.len());
        }
    });
}

#[test]
fn a_sample_has_different_entries_that_a_get_finds() {
    let host = host();
    for index in 0..100 {
        host.put(&format!("{index}"), "1").expect(200);
        host.put(&format!("{index}-hidden"), "1").expect(200);
    }
    let sample = |count: &str| {
        host.put("sample", count).expect(200);
        let text = host.get("sample").expect(200).text();
        host.delete("sample").expect(200);
        let mut keys: Vec<String> = text.split(',').filter(|key| !key.is_empty()).map(str::to_owned).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    assert_eq!(sample("1000").len(), 100);
    assert_eq!(sample("0").len(), 0);
    let some = sample("20");
    assert!(some.len() <= 20 && some.iter().all(|key| !key.contains("hidden")), "{some:?}");
}

/// Counts gets, if its settings say so.
struct Optional {
    gets: AtomicU64,
}

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Reads {
    #[serde(default)]
    reads: bool,
}

impl Plugin for Optional {
    type Settings = Reads;

    fn create(host: Host, settings: Reads) -> Result<Self, CreateError> {
        if !settings.reads {
            host.switch_off("after_get");
        }
        host.switch_off("no such hook");
        Ok(Optional { gets: AtomicU64::new(0) })
    }
}

impl AfterGet for Optional {
    fn after_get(&self, get: &After<'_, Get>) {
        get.add_header("X-Gets", &(self.gets.fetch_add(1, SeqCst) + 1).to_string());
    }
}

impl AfterPut for Optional {
    fn after_put(&self, put: &After<'_, Put>) {
        put.add_header("X-Put", "1");
    }
}

#[test]
fn a_hook_that_was_switched_off_is_not_called_until_the_settings_change() {
    let mut host = Setup::new().load_other(plugin!(Optional, "optional")).start();
    host.put("a", "1").expect(200).has("X-Put", "1");
    assert_eq!(host.get("a").expect(200).header("X-Gets"), None);
    host.change_settings("optional", r#"{"reads": true}"#).expect("it has such a key");
    host.get("a").expect(200).has("X-Gets", "1");
    host.change_settings("optional", "{}").expect("it has a default");
    assert_eq!(host.get("a").expect(200).header("X-Gets"), None);
}
