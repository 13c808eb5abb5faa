//! `/keys` returns keys in byte order; each key that exists during the whole listing exactly once, during concurrent
//! writes; folded, counted, limited, and without keys that a GET would not find.
//!
//! Provoked with small stores whose listings are known, at every limit, and with a million keys while eight clients
//! write.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use serde_json::Value;
use vkog_tests::{Client, DEADLINE, Setup, amount, artefacts, encode, exclusive, ttl, with_background};

/// Requests keys and returns the response.
#[track_caller]
fn ask(server: &Client, query: &str) -> Value {
    let reply =
        server.path("GET", &format!("/keys?{query}")).send().expect(200).has("Content-Type", "application/json");
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

/// Returns the texts of a JSON list.
fn texts(list: &Value) -> Vec<String> {
    let text = |value: &Value| value["key"].as_str().or(value.as_str()).expect("a text").to_owned();
    list.as_array().expect("a list").iter().map(text).collect()
}

/// Returns all keys and prefixes of a listing, page by page.
#[track_caller]
fn list(server: &Client, query: &str) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut prefixes, mut after) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = ask(server, &format!("{query}{after}"));
        keys.extend(texts(&page["keys"]));
        prefixes.extend(texts(&page["prefixes"]));
        let Some(next) = page["next"].as_str() else { return (keys, prefixes) };
        after = format!("&after={}", encode(next));
    }
}

#[track_caller]
fn post_all(server: &Client, keys: &[&str]) {
    for key in keys {
        server.post(key, "value").expect(200);
    }
}

#[test]
fn an_empty_store_has_no_keys() {
    let server = Setup::new().start();
    let page = ask(&server, "");
    assert_eq!(page, serde_json::json!({ "keys": [], "prefixes": [], "next": null }));
    assert_eq!(ask(&server, "count")["count"], 0);
}

#[test]
fn a_key_is_listed_with_size_revision_and_content_type() {
    let server = Setup::new().start();
    let revision = server.key("POST", "a").header("Content-Type", "text/plain").body("12345").send().revision();
    server.post("b", "1").expect(200);
    let page = ask(&server, "limit=1");
    let key = serde_json::json!({ "key": "a", "size": 5, "revision": revision, "content_type": "text/plain" });
    assert_eq!(page, serde_json::json!({ "keys": [key], "prefixes": [], "next": "a" }));
    server.delete("a").expect(200);
    server.put("b", "12").expect(200);
    let page = ask(&server, "");
    assert_eq!((texts(&page["keys"]), &page["keys"][0]["size"]), (vec!["b".to_owned()], &Value::from(2)));
    assert_eq!(page["keys"][0]["content_type"], "application/octet-stream");
}

#[test]
fn keys_come_in_byte_order_at_every_limit_after_any_text_and_with_any_prefix() {
    let mut keys =
        ["a", "a ", "a+b", "a/b", "a/b/c", "aa", "b", "\u{e9}", "\u{1d11e}", "\u{ffff}", "%41", "\"\\", "\n\0\u{7f}"];
    keys.sort_unstable();
    let server = Setup::new().start();
    post_all(&server, &keys);
    for limit in 1..=keys.len() + 1 {
        assert_eq!(list(&server, &format!("limit={limit}")).0, keys, "limit {limit}");
    }
    for after in keys.into_iter().chain(["", "a!", "zz", "\u{10ffff}"]) {
        let expected: Vec<_> = keys.into_iter().filter(|key| *key > after).collect();
        assert_eq!(list(&server, &format!("limit=1000&after={}", encode(after))).0, expected, "after {after:?}");
    }
    for prefix in keys.into_iter().chain(["", "a/", "zz", "\u{c3}"]) {
        let expected: Vec<_> = keys.into_iter().filter(|key| key.starts_with(prefix)).collect();
        let behind_b: Vec<_> = expected.iter().copied().filter(|key| *key > "b").collect();
        let prefix = encode(prefix);
        assert_eq!(ask(&server, &format!("count&prefix={prefix}"))["count"], expected.len(), "prefix {prefix}");
        assert_eq!(list(&server, &format!("prefix={prefix}&limit=2")).0, expected, "prefix {prefix}");
        assert_eq!(texts(&ask(&server, &format!("prefix={prefix}&after=b"))["keys"]), behind_b, "prefix {prefix}");
    }
}

#[test]
fn a_delimiter_folds_keys_into_prefixes() {
    let server = Setup::new().start();
    let mut keys = vec!["a", "a/", "b/", "b0", "c//d", "c/d/e", "d"];
    let many: Vec<String> = (0..50).map(|index| format!("b/{index}")).collect();
    keys.extend(many.iter().map(String::as_str));
    post_all(&server, &keys);
    for limit in 1..=7 {
        let (keys, prefixes) = list(&server, &format!("delimiter=/&limit={limit}"));
        assert_eq!(keys, ["a", "b0", "d"], "limit {limit}");
        assert_eq!(prefixes, ["a/", "b/", "c/"], "limit {limit}");
    }
    let page = ask(&server, "delimiter=%2F&limit=3");
    assert_eq!((texts(&page["keys"]), texts(&page["prefixes"])), (vec!["a".into()], vec!["a/".into(), "b/".into()]));
    assert_eq!(page["next"], "b/");
    assert_eq!(list(&server, "delimiter=/&prefix=c/"), (vec![], vec!["c//".into(), "c/d/".into()]));
    assert_eq!(list(&server, "delimiter=/&prefix=b/").0.len(), 51);
    // `after` may be any text, not only the end of a page: the rest of b/ follows.
    assert_eq!(list(&server, "delimiter=/&after=b/49").1, ["b/", "c/"]);
    assert_eq!(list(&server, "delimiter=/&after=b/99").1, ["c/"]);
}

#[test]
fn a_page_has_at_most_a_thousand_keys() {
    let server = Setup::new().args(["--fsync", "never"]).start();
    let keys: Vec<String> = (0..1001).map(|index| format!("{index:04}")).collect();
    post_all(&server, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    for query in ["", "limit=1000"] {
        let page = ask(&server, query);
        assert_eq!((texts(&page["keys"]).len(), page["next"].as_str()), (1000, Some("0999")));
    }
    assert_eq!(list(&server, "").0, keys);
    assert_eq!(ask(&server, "prefix=1000")["next"], Value::Null);
}

#[test]
fn an_invalid_query_is_refused_with_the_valid_parameters() {
    let server = Setup::new().start();
    for (query, words) in [
        ("limit=0", "limit is \"0\"; use a number from 1 to 1000"),
        ("limit=%2B5", "limit is \"+5\"; use a number from 1 to 1000"),
        ("limit=1001", "limit is \"1001\"; use a number from 1 to 1000"),
        ("limit=", "limit is \"\"; use a number from 1 to 1000"),
        ("limit=-1", "limit is \"-1\""),
        ("prefix=a&prefix=b", "The parameter prefix is repeated"),
        ("delimiter=", "delimiter is empty"),
        ("count&after=a", "count takes no value and can be combined only with prefix"),
        ("count=1", "count takes no value"),
        ("prefix=%zz", "prefix is not percent-encoded correctly at byte 0"),
        ("after=a%ff", "after is not UTF-8"),
    ] {
        server.path("GET", &format!("/keys?{query}")).send().refused(400, words);
    }
    server.post("a", "1").expect(200);
    let head = server.path("HEAD", "/keys").send().expect(200);
    assert_eq!(head.header("Content-Length").map(str::to_owned), {
        let reply = server.path("GET", "/keys").send();
        Some(reply.body.len().to_string())
    });
    server.path("OPTIONS", "/keys").send().expect(204).has("Allow", "GET, HEAD, DELETE, OPTIONS");
    server.path("POST", "/keys").body("x").send().refused(405, "Method not allowed");
    server.path("GET", "/keys/a").send().refused(404, "Invalid path");
}

#[test]
fn an_entry_that_has_expired_is_not_listed_and_not_counted() {
    let server = Setup::new().load(ttl()).start();
    for key in ["lives", "lives too", "tmp/1", "tmp/2"] {
        let time = if key.starts_with("tmp") { "1s" } else { "1h" };
        server.key("POST", key).header("Vkog-TTL", time).body("value").send().expect(200);
    }
    assert_eq!(list(&server, "delimiter=/").1, ["tmp/"]);
    let begun = Instant::now();
    // Once a response has shown that the key is absent, no later response may list it.
    while server.get("tmp/1").status != 404 {
        assert!(begun.elapsed() < DEADLINE, "tmp/1 does not expire\n{}", server.log());
    }
    while server.get("tmp/2").status != 404 {
        assert!(begun.elapsed() < DEADLINE, "tmp/2 does not expire\n{}", server.log());
    }
    assert_eq!(list(&server, "delimiter=/&limit=1"), (vec!["lives".into(), "lives too".into()], vec![]));
    assert_eq!(ask(&server, "count")["count"], 2);
}

#[test]
fn keys_are_hidden_from_clients_that_a_plugin_refuses() {
    let server =
        Setup::new().load(artefacts().library("vkog-bearer")).config("[plugins.bearer]\ntoken = \"s3cret\"\n").start();
    let authorized = |method: &str, path: &str| server.path(method, path).header("Authorization", "Bearer s3cret");
    authorized("POST", "/k/hidden").body("value").send().expect(200);
    for path in ["/keys", "/keys?count", "/keys?prefix=hid&delimiter=/"] {
        let refused = server.path("GET", path).send().refused(401, "Send the token").has("Vkog-Plugin", "bearer");
        assert!(refused.header("WWW-Authenticate").is_some() && !refused.text().contains("hidden"), "{refused}");
        let shown = authorized("GET", path).send().expect(200);
        assert!(shown.text().contains(if path.contains("count") { "1" } else { "hidden" }), "{shown}");
    }
}

/// A store of the Go program, which has the shortest file: one MessagePack map.
fn store_of(keys: impl ExactSizeIterator<Item = String>) -> Vec<u8> {
    let mut file = b"\x82\xa2KV\xdf".to_vec();
    file.extend_from_slice(&u32::try_from(keys.len()).expect("a map32").to_be_bytes());
    let mut size = 0;
    for key in keys {
        file.extend_from_slice(&[0xd9, key.len() as u8]);
        file.extend_from_slice(key.as_bytes());
        file.extend_from_slice(b"\xa1v");
        size += key.len() as u64 + 1;
    }
    file.extend_from_slice(b"\xa6KVSize\xcf");
    file.extend_from_slice(&size.to_be_bytes());
    file
}

#[test]
fn all_keys_are_listed_once_and_in_order_while_eight_clients_write() {
    let _alone = exclusive();
    let keys = amount(100_000, 1_000_000) as u64;
    let steady = |index: u64| format!("key/{index:06}");
    let setup = Setup::new();
    std::fs::write(setup.store_file(), store_of((0..keys as usize).map(|index| steady(index as u64))))
        .expect("the store can be written");
    let server = setup.start();
    let writes = AtomicU64::new(0);
    let writers = (0..8_u64).map(|writer| {
        let (client, mut step, writes) = (server.client(), writer, &writes);
        move || {
            step = (step * 7919 + 104_729) % keys;
            client.put(&steady(step), "other").expect(200);
            let own = format!("{}+{writer}", steady(step * 31 % keys));
            client.post(&own, "v").expect(200);
            if step % 2 == 0 {
                client.delete(&own).expect(200);
            }
            writes.fetch_add(2, Relaxed);
        }
    });
    let begun = Instant::now();
    let found = with_background(writers, || list(&server, "prefix=key/").0);
    eprintln!("{} keys in {:?}, beside {} writes", found.len(), begun.elapsed(), writes.load(Relaxed));
    assert!(found.is_sorted_by(|one, next| one < next), "the keys are in order, and none comes twice");
    let mut others = 0;
    let mut expected = (0..keys).map(steady);
    for key in found {
        if key.contains('+') {
            others += 1;
        } else {
            assert_eq!(Some(key), expected.next());
        }
    }
    assert_eq!(expected.next(), None);
    assert!(others > 0 && writes.load(Relaxed) > 0, "others wrote meanwhile");
    assert_eq!(ask(&server, "count"), ask(&server, "count&prefix=key/"));
}
