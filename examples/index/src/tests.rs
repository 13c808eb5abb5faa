use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use vkog_plugin_testing::{Setup, TestHost, plugin};

use super::*;

thread_local! {
    static READER: Cell<Option<Host>> = const { Cell::new(None) };
    /// Values that contain this cannot be read, with the plugin that stores values backwards.
    static LOST: Cell<&'static [u8]> = const { Cell::new(b"") };
}

/// Reads index entries, and refuses the values and the keys that contain `refused`.
struct Reader;

impl Plugin for Reader {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        READER.set(Some(host));
        Ok(Reader)
    }
}

impl GuardPut for Reader {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        let is_refused = put.key().contains("refused") || put.value().windows(7).any(|part| part == b"refused");
        if is_refused { Err(Refusal::new(418, "refused")) } else { Ok(()) }
    }
}

fn start() -> TestHost {
    let setup = Setup::new().load::<Index>().settings(r#"{"fields": ["city", "age"]}"#);
    setup.load_other(plugin!(Reader, "reader")).start()
}

/// Returns the keys of all index entries.
fn indexed() -> BTreeSet<String> {
    let lost = LOST.replace(b"");
    let mut keys = BTreeSet::new();
    let reader = READER.get().expect("the plugin was created");
    let listed = reader.for_each("", |key, entry| {
        if key.starts_with(PREFIX) || key.starts_with("ann/index/") || key.starts_with("ann/ann/index/") {
            assert!(key.ends_with(str::from_utf8(entry.value()).expect("a key").trim_start_matches("ann/")), "{key}");
            keys.insert(key.to_owned());
        }
        ControlFlow::Continue(())
    });
    listed.expect("a plugin may list");
    LOST.set(lost);
    keys
}

#[track_caller]
fn is_indexed(expected: &[&str]) {
    assert_eq!(indexed().iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn writes_and_removals_change_the_index_in_the_same_step() {
    let host = start();
    host.post("a", r#"{"city": "Rome", "age": 7}"#).expect(200);
    is_indexed(&["index/age/7/a", "index/city/Rome/a"]);
    host.put("a", r#"{"city": "Oslo", "age": 7}"#).expect(200);
    host.put("b", r#"{"city": "Oslo", "age": true}"#).expect(200);
    is_indexed(&["index/age/7/a", "index/age/true/b", "index/city/Oslo/a", "index/city/Oslo/b"]);
    host.put("a", "no JSON").expect(200);
    host.put("b", r#"{"city": null, "age": [1]}"#).expect(200);
    is_indexed(&[]);
    host.put("a", r#"{"city": "Rome"}"#).expect(200);
    host.delete("a").expect(200);
    is_indexed(&[]);
}

#[test]
fn a_touch_keeps_the_index() {
    let host = start();
    host.post("a", r#"{"city": "Rome"}"#).expect(200);
    host.touch("a").send().expect(200);
    is_indexed(&["index/city/Rome/a"]);
    host.put("a", "1").expect(200);
    is_indexed(&[]);
}

#[test]
fn slashes_and_control_characters_of_values_are_encoded() {
    let host = start();
    host.post("x/y", r#"{"city": "a/b%\n"}"#).expect(200);
    is_indexed(&["index/city/a%2Fb%25%0A/x/y"]);
    assert_eq!(term("city", "a/b%\n"), "city/a%2Fb%25%0A");
    host.post("x", format!(r#"{{"city": "{}"}}"#, "v".repeat(1020)))
        .refused(422, "The fields are too long for an index");
}

#[test]
fn index_entries_are_hidden_from_clients_and_protected() {
    let host = start();
    let mut watch = host.watch("");
    host.post("a", r#"{"city": "Rome"}"#).expect(200);
    let key = "index/city/Rome/a";
    for reply in [host.get(key), host.put(key, "1"), host.post(key, "1"), host.delete(key), host.post("index/x", "1")] {
        reply.refused(403, "Index entries belong to the plugin index");
    }
    assert_eq!(host.keys("").expect("nothing refuses"), ["a"]);
    assert_eq!(host.count("").expect("nothing refuses"), 1);
    let put = |key| host.request(Verb::Put, key).body("1");
    host.batch([put("b"), put(key)]).failed(1, 403, "Index entries belong");
    host.delete("a").expect(200);
    let seen: Vec<_> = watch.changes().into_iter().map(|change| change.key).collect();
    assert_eq!(seen, ["a", "a"]);
    is_indexed(&[]);
}

#[test]
fn changed_fields_build_the_index_again() {
    let mut host = start();
    let build = |host: &mut TestHost, fields: &str| {
        host.change_settings("index", &format!(r#"{{"fields": {fields}}}"#)).expect("the settings are valid");
        host.tick("index");
        assert_eq!(host.metric("index", "complete"), 1);
    };
    for number in 0..600 {
        host.put(&format!("{number}"), format!(r#"{{"name": "{}", "age": {number}}}"#, number % 3)).expect(200);
    }
    assert_eq!(indexed().len(), 600);
    build(&mut host, r#"["name"]"#);
    let names = indexed();
    assert!(names.len() == 600 && names.contains("index/name/1/598"), "{names:?}");
    build(&mut host, r#"["name", "age"]"#);
    assert_eq!(indexed().len(), 1200);
}

#[test]
fn the_plugin_finds_keys_by_the_value_of_a_field() {
    let host = start();
    let index = Index::create(
        READER.get().expect("a host"),
        Settings { fields: vec!["city".to_owned()], prefixes: Vec::new() },
    )
    .expect("a field");
    for key in ["b", "a/1", "c"] {
        host.post(key, r#"{"city": "a/b"}"#).expect(200);
    }
    host.put("c", r#"{"city": "a"}"#).expect(200);
    assert_eq!(index.find("city", "a/b").expect_err("it is not complete").status(), 503);
    index.left_out.store(0, SeqCst);
    assert_eq!(index.find("city", "a/b").expect("it is complete"), ["a/1", "b"]);
    assert_eq!(index.find("city", "none").expect("it is complete"), [""; 0]);
    assert_eq!(index.find("age", "1").expect_err("no such field").status(), 404);
}

#[test]
fn settings_without_a_usable_name_are_rejected() {
    for (fields, words) in [
        ("[]", "fields is []; give names without slashes"),
        (r#"[""]"#, "fields is [\"\"]"),
        (r#"["a", "a/b"]"#, "fields is [\"a\", \"a/b\"]; give names"),
        ("[1]", "fields: invalid type: integer `1`, expected a string"),
    ] {
        let setup = Setup::new().load::<Index>().settings(&format!(r#"{{"fields": {fields}}}"#));
        let error = setup.try_start().err().expect("the settings are invalid").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn keys_with_a_prefix_of_the_settings_have_their_index_behind_it() {
    let mut host = start();
    for key in ["k", "ann/k", "ann/ann/k", "bob/k"] {
        host.post(key, r#"{"city": "Rome"}"#).expect(200);
    }
    is_indexed(&["index/city/Rome/ann/ann/k", "index/city/Rome/ann/k", "index/city/Rome/bob/k", "index/city/Rome/k"]);
    let fields = r#""fields": ["city"]"#;
    host.change_settings("index", &format!(r#"{{{fields}, "prefixes": ["ann/"]}}"#)).expect("the settings are valid");
    host.tick("index");
    is_indexed(&["ann/index/city/Rome/ann/k", "ann/index/city/Rome/k", "index/city/Rome/bob/k", "index/city/Rome/k"]);
    for key in ["ann/index/city/Rome/k", "ann/index/x"] {
        host.put(key, "1").refused(403, "Index entries belong to the plugin index");
    }
    host.put("bob/index/x", "1").expect(200);
    host.delete("ann/k").expect(200);
    host.put("ann/ann/k", r#"{"city": "Oslo"}"#).expect(200);
    is_indexed(&["ann/index/city/Oslo/ann/k", "index/city/Rome/bob/k", "index/city/Rome/k"]);
    // An entry is in the area of the longest prefix that its key begins with.
    let areas = r#""prefixes": ["ann/", "ann/ann/"]"#;
    host.change_settings("index", &format!("{{{fields}, {areas}}}")).expect("the settings are valid");
    host.put("ann/ann/index/x", "1").refused(403, "Index entries belong to the plugin index");
    host.tick("index");
    is_indexed(&["ann/ann/index/city/Oslo/k", "index/city/Rome/bob/k", "index/city/Rome/k"]);
}

/// Stores values backwards.
struct Backwards;

fn backwards(value: &[u8]) -> Vec<u8> {
    value.iter().rev().copied().collect()
}

impl Plugin for Backwards {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

impl BeforePut for Backwards {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        put.replace_value(&backwards(put.value()));
        Ok(())
    }
}

impl ReadGet for Backwards {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        let lost = backwards(LOST.get());
        if !lost.is_empty() && read.value().windows(lost.len()).any(|part| part == lost) {
            return Err(Refusal::new(500, "the key is lost"));
        }
        read.replace_value(&backwards(read.value()));
        Ok(())
    }
}

#[test]
fn values_are_indexed_as_they_were_sent_before_a_transform() {
    let setup = Setup::new().load::<Index>().settings(r#"{"fields": ["city"]}"#);
    let setup = setup.load_other(plugin!(Reader, "reader")).load_other(plugin!(Backwards, "backwards"));
    let mut host = setup.start();
    host.put("a", r#"{"city": "Rome"}"#).expect(200);
    is_indexed(&["index/city/Rome/a"]);
    host.touch("a").send().expect(200);
    host.batch([host.touch("a")]).succeeded();
    is_indexed(&["index/city/Rome/a"]);
    host.change_settings("index", r#"{"fields": ["age", "city"]}"#).expect("the settings are valid");
    host.put("b", r#"{"city": "Rome", "age": 7}"#).expect(200);
    host.tick("index");
    is_indexed(&["index/age/7/b", "index/city/Rome/a", "index/city/Rome/b"]);
}

#[test]
fn an_entry_that_cannot_be_read_or_written_is_left_out_until_it_can() {
    let setup = Setup::new().load::<Index>().settings(r#"{"fields": ["age"]}"#);
    let mut host = setup.load_other(plugin!(Reader, "reader")).load_other(plugin!(Backwards, "backwards")).start();
    for (key, city) in [("a", "Rome"), ("b", "Oslo"), ("c", "Oslo"), ("d", "Rome")] {
        host.put(key, format!(r#"{{"city": "{city}", "age": 7}}"#)).expect(200);
    }
    LOST.set(b"Oslo");
    host.change_settings("index", r#"{"fields": ["city", "age"]}"#).expect("the settings are valid");
    host.tick("index");
    assert_eq!((host.metric("index", "complete"), host.metric("index", "left_out")), (0, 2));
    let line =
        r#"entries that cannot be read or written are left out of the index: 2, the first is "b": the key is lost"#;
    assert_eq!(host.log().matches(line).count(), 1, "{}", host.log());
    let age = ["index/age/7/a", "index/age/7/b", "index/age/7/c", "index/age/7/d"];
    is_indexed(&[&age[..], &["index/city/Rome/a", "index/city/Rome/d"]].concat());
    let reply = host.route("GET", "/x/index/city/Rome").send().expect(200).has("Index-Left-Out", "2");
    assert_eq!(reply.text(), r#"["a","d"]"#);

    // A client replaces one of them, and the other one can be read again.
    host.put("c", r#"{"city": "Rome", "age": 7}"#).expect(200);
    let revision = host.get("c").expect(200).revision();
    host.tick("index");
    assert_eq!(host.metric("index", "left_out"), 1);
    assert_eq!(host.get("c").revision(), revision, "it is not written again");
    LOST.set(b"");
    host.tick("index");
    assert_eq!((host.metric("index", "complete"), host.metric("index", "left_out")), (1, 0));
    let city = ["index/city/Oslo/b", "index/city/Rome/a", "index/city/Rome/c", "index/city/Rome/d"];
    is_indexed(&[&age[..], &city].concat());
    assert_eq!(host.route("GET", "/x/index/city/Rome").send().expect(200).header("Index-Left-Out"), None);
    assert_eq!(host.log().matches("left out of the index").count(), 2, "{}", host.log());
}

#[test]
fn an_entry_whose_write_is_refused_is_left_out() {
    let mut host = Setup::new().start();
    for (key, city) in [("a", "Rome"), ("b", "refused"), ("c", "Oslo")] {
        host.put(key, format!(r#"{{"city": "{city}"}}"#)).expect(200);
    }
    let setup = Setup::new().load::<Index>().settings(r#"{"fields": ["city"]}"#);
    host.restart_with(setup.load_other(plugin!(Reader, "reader")));
    host.tick("index");
    is_indexed(&["index/city/Oslo/c", "index/city/Rome/a"]);
    assert_eq!(host.metric("index", "left_out"), 1);
    assert!(host.log().contains(r#"are left out of the index: 1, the first is "b": refused"#));
}

#[test]
fn index_entries_that_cannot_be_read_are_found_and_removed() {
    let setup = Setup::new().load::<Index>().settings(r#"{"fields": ["city"]}"#);
    let setup = setup.load_other(plugin!(Reader, "reader")).load_other(plugin!(Backwards, "backwards"));
    let mut host = setup.clone().start();
    host.put("stray-x", r#"{"city": "Rome"}"#).expect(200);
    host.put("kept-x", r#"{"city": "Rome"}"#).expect(200);
    // Without the plugin, nothing keeps the index up to date.
    host.restart_with(Setup::new().load_other(plugin!(Backwards, "backwards")));
    host.put("stray-x", r#"{"city": "Oslo"}"#).expect(200);
    host.restart_with(setup);
    // The values of index entries are keys.
    LOST.set(b"-x");
    host.tick("index");
    LOST.set(b"");
    is_indexed(&["index/city/Oslo/stray-x", "index/city/Rome/kept-x"]);
    LOST.set(b"-x");
    assert_eq!(host.route("GET", "/x/index/city/Oslo").send().expect(200).text(), r#"["stray-x"]"#);
    LOST.set(b"");
}

#[test]
fn a_build_keeps_the_content_coding_of_an_entry() {
    let mut host = Setup::new().start();
    let gzip = host.request(Verb::Put, "a").header("Content-Encoding", "gzip").body(r#"{"city": "Rome"}"#);
    gzip.send().expect(200);
    host.restart_with(
        Setup::new().load::<Index>().settings(r#"{"fields": ["city"]}"#).load_other(plugin!(Reader, "reader")),
    );
    host.tick("index");
    is_indexed(&["index/city/Rome/a"]);
    host.get("a").expect(200).has("Content-Encoding", "gzip");
}

/// A generator of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn the_index_stays_exact_through_refusals_failures_batches_and_restarts() {
    let mut host = start();
    let mut random = Random(5);
    let mut held: BTreeMap<String, String> = BTreeMap::new();
    for step in 0..3000 {
        let count = if random.below(2) == 0 { 1 } else { 1 + random.below(4) };
        let operations: Vec<(Verb, String, String)> = (0..count)
            .map(|_| {
                let verb = [Verb::Put, Verb::Put, Verb::Put, Verb::Delete][random.below(4)];
                let cities = if random.below(8) == 0 { 4 } else { 3 };
                let city = ["Rome", "Oslo", "a/b", "refused"][random.below(cities)];
                let value = format!(r#"{{"city": "{city}", "age": {}}}"#, random.below(3));
                (verb, format!("k{}", random.below(5)), if random.below(6) == 0 { "text".to_owned() } else { value })
            })
            .collect();
        let fails = random.below(10) == 0;
        host.fail_writes(u64::from(fails));
        let mut after = held.clone();
        let mut succeeds = !fails;
        for (verb, key, value) in &operations {
            match verb {
                Verb::Put => drop(after.insert(key.clone(), value.clone())),
                _ => succeeds &= after.remove(key).is_some(),
            }
            succeeds &= *verb != Verb::Put || !value.contains("refused");
        }
        if let [one] = operations.as_slice() {
            let reply = match one {
                (Verb::Put, key, value) => host.put(key, value),
                (_, key, _) => host.delete(key),
            };
            assert_eq!(reply.status == 200, succeeds, "step {step}: {operations:?}: {reply}");
        } else {
            let requests = operations.iter().map(|(verb, key, value)| {
                let request = host.request(*verb, key);
                if *verb == Verb::Put { request.body(value) } else { request }
            });
            let done = host.batch(requests);
            assert_eq!(done.0.is_ok(), succeeds, "step {step}: {operations:?}");
        }
        host.fail_writes(0);
        if succeeds {
            held = after;
        }
        let fields = ["city".to_owned(), "age".to_owned()];
        let keys = held.iter().flat_map(|(key, value)| {
            let terms = terms_of(&fields, value.as_bytes());
            terms.lines().map(|term| format!("index/{term}/{key}")).collect::<Vec<_>>()
        });
        assert_eq!(indexed(), keys.collect(), "step {step}: {operations:?}");
        if step % 500 == 499 {
            host.restart();
        }
    }
}
