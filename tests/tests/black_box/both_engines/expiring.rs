//! PATCH changes the expiry of an entry, listings show it, and watchers learn the reason of
//! a removal. Provoked over HTTP, with times to live of a second where something expires; tests with a controlled clock are in
//! the plugin.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rmpv::Value as Packed;
use serde_json::{Value, json};
use vkog_tests::{Client, Exit, Reply, Running, Server, Setup, assert_one_step, conflict, ttl, with_background};

use super::ENGINE;

fn setup() -> Setup {
    Setup::on(ENGINE).load(ttl())
}

fn touch(server: &Client, key: &str, time: &str) -> Reply {
    server.key("PATCH", key).header("Vkog-TTL", time).send()
}

/// Returns the remaining seconds in a reply.
#[track_caller]
fn left(reply: &Reply) -> u64 {
    let left = reply.header("Vkog-TTL").and_then(|left| left.parse().ok());
    left.unwrap_or_else(|| panic!("no seconds are left in {reply}"))
}

/// Sends operations as JSON.
fn batch(server: &Client, operations: &Value) -> Reply {
    let request = server.path("POST", "/batch").header("Content-Type", "application/json");
    request.body(operations.to_string()).send()
}

/// Asserts the status, the operation and the message of a batch that failed.
#[track_caller]
fn failed(reply: Reply, status: u16, index: usize, title: &str) {
    let reply = reply.expect(status);
    let problem: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert_eq!(problem["index"], json!(index), "{reply}");
    assert!(problem["title"].as_str().is_some_and(|text| text.starts_with(title)), "{reply}");
}

/// Returns the first key of the listing with this prefix.
#[track_caller]
fn listed(server: &Client, prefix: &str) -> Value {
    let reply = server.path("GET", &format!("/keys?prefix={prefix}")).send().expect(200);
    let page: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    page["keys"][0].clone()
}

#[test]
fn patch_changes_the_expiry_and_keeps_value_media_type_and_coding() {
    let setup = setup().load(conflict());
    let server = setup.start();
    let post = server.key("POST", "a").header("Content-Type", "text/x").header("Content-Encoding", "gzip");
    let first = post.header("Vkog-TTL", "1h").body("packed").send().expect(200).revision();
    let same = |reply: Reply| {
        let reply = reply.expect(200).is("packed").has("Content-Type", "text/x").has("Content-Encoding", "gzip");
        left(&reply)
    };
    let touched =
        server.key("PATCH", "a").header("Vkog-TTL", "2h").header("Content-Type", "text/other").send().expect(200);
    assert!(touched.revision() > first, "{touched}");
    assert!((7100..=7200).contains(&same(server.get("a"))));
    server.path("PATCH", "/k/a?ttl=3h").send().expect(200);
    assert!((10_700..=10_800).contains(&same(server.get("a"))));
    server.key("PATCH", "a").send().expect(200);
    assert!((10_700..=10_800).contains(&same(server.get("a"))));
    let part = server.key("PATCH", "a").header("Content-Range", "bytes 0-1/6").send();
    part.refused(400, "Content-Range is not supported");
    // It is in the log.
    drop(server);
    let server = setup.start();
    assert!((10_600..=10_800).contains(&same(server.get("a"))));
    touch(&server, "a", "none").expect(200);
    assert_eq!(server.get("a").expect(200).header("Vkog-TTL"), None);
}

#[test]
fn patch_obeys_preconditions_and_takes_no_content() {
    let server = setup().start();
    let revision = server.put("a", "value").revision();
    touch(&server, "absent", "5m").refused(404, "Not Found");
    touch(&server, "a", "soon").refused(400, "Not a time to live").has("Vkog-Plugin", "ttl");
    server.key("PATCH", "a").header("If-Match", "\"1\"").send().expect(412);
    server.key("PATCH", "a").header("If-None-Match", format!("\"{revision}\"")).send().expect(412);
    server.key("PATCH", "a").body("other").send().refused(400, "PATCH takes no content; send PUT to change the value");
    assert_eq!(server.get("a").expect(200).is("value").revision(), revision);
    server.key("PATCH", "a").header("If-Match", format!("\"{revision}\"")).send().expect(200);
    let large = vec![b'x'; 300_000];
    server.put("large", &large).expect(200);
    touch(&server, "large", "5m").expect(200);
    assert!((290..=300).contains(&left(&server.get("large").expect(200).is(large))));
}

#[test]
fn patch_loses_no_concurrent_write() {
    let server = setup().args(["--fsync", "never"]).start();
    server.put("a", "0").expect(200);
    let written = AtomicU64::new(1);
    // The only writer of other values: each of its reads returns what it has just written.
    let writer = || {
        let next = written.fetch_add(1, Relaxed).to_string();
        server.put("a", &next).expect(200);
        server.get("a").expect(200).is(&next);
    };
    with_background([writer], || {
        for _ in 0..300 {
            let touched = touch(&server, "a", "1h");
            assert!(touched.status == 200 || touched.status == 409, "{touched}");
        }
    });
    assert!(written.load(Relaxed) > 1, "nothing was written meanwhile");
}

#[test]
fn a_batch_changes_expiries_and_writes_in_one_step() {
    let server = setup().start();
    let post = server.key("POST", "a").header("Content-Type", "text/x").header("Content-Encoding", "gzip");
    post.body("packed").send().expect(200);
    let before = server.put("large", vec![b'x'; 300_000]).expect(200).revision();
    let patch = |key: &str, ttl: &str| json!({ "op": "patch", "key": key, "headers": { "Vkog-TTL": ttl } });
    let mut operations = json!([
        { "op": "put", "key": "b", "value": "1" },
        patch("a", "1h"),
        patch("large", "2h"),
        { "op": "get", "key": "a" },
        { "op": "put", "key": "large", "value": "small" },
    ]);
    let reply = batch(&server, &operations).expect(200);
    let results: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert_eq!((&results[1]["status"], &results[1]["value"]), (&json!(200), &Value::Null), "{reply}");
    let [revision, touched] = [0, 1].map(|index| reply.revision_at(index));
    assert_one_step(before, &[revision, touched]);
    let read = (&results[3]["value"], &results[3]["headers"]["Vkog-TTL"], &results[3]["headers"]["Content-Encoding"]);
    assert_eq!(read, (&json!("packed"), &json!("3600"), &json!("gzip")), "{reply}");
    let read = server.get("a").expect(200).is("packed").has("Content-Type", "text/x").has("Content-Encoding", "gzip");
    assert_eq!(read.revision(), touched);
    assert!((7100..=7200).contains(&left(&server.get("large").expect(200).is("small"))));
    operations[2] = patch("large", "3h");
    operations.as_array_mut().expect("a list").truncate(3);
    operations.as_array_mut().expect("a list").push(patch("b", "soon"));
    let fact = "A patch follows a write of its key in the same batch: send its headers with that write";
    failed(batch(&server, &operations), 400, 3, fact);
    operations[3] = patch("absent", "1h");
    failed(batch(&server, &operations), 404, 3, "Not Found");
    operations[3] = patch("large", "soon");
    operations[2] = json!({ "op": "patch", "key": "a", "if_match": before });
    operations[0] = json!({ "op": "patch", "key": "b", "value": "1" });
    let fact = "Operation 0 cannot be read: a patch takes neither value nor content_type; remove them";
    failed(batch(&server, &operations), 400, 0, fact);
    operations[0] = json!({ "op": "put", "key": "b", "value": "2" });
    operations[1] = json!({ "op": "get", "key": "b" });
    failed(batch(&server, &operations), 412, 2, "Precondition failed: the entry is not as expected");
    server.get("b").expect(200).is("1");
}

#[test]
fn a_batch_in_messagepack_touches_an_entry() {
    let server = setup().start();
    server.put("a", "value").expect(200);
    let headers = Packed::Map(vec![("Vkog-TTL".into(), "1h".into())]);
    let fields = [("op", "patch".into()), ("key", "a".into()), ("if_match", "*".into()), ("headers", headers)];
    let operation = Packed::Map(fields.into_iter().map(|(name, field)| (name.into(), field)).collect());
    let mut body = Vec::new();
    rmpv::encode::write_value(&mut body, &Packed::Array(vec![operation])).expect("a vector takes all");
    let reply = server.path("POST", "/batch").header("Content-Type", "application/msgpack").body(body).send();
    let results = rmpv::decode::read_value(&mut &reply.expect(200).body[..]).expect("it is MessagePack");
    let revision = server.get("a").expect(200).is("value").revision();
    assert_eq!(results[0]["revision"].as_u64(), Some(revision), "{results}");
    assert!((3500..=3600).contains(&left(&server.get("a"))));
}

#[test]
fn a_batch_with_a_touch_loses_no_concurrent_write() {
    let server = setup().args(["--fsync", "never"]).start();
    server.put("a", "0").expect(200);
    let written = AtomicU64::new(1);
    // The only writer of other values: each of its reads returns what it has just written.
    let writer = || {
        let next = written.fetch_add(1, Relaxed).to_string();
        server.put("a", &next).expect(200);
        server.get("a").expect(200).is(&next);
    };
    let operations = json!([
        { "op": "put", "key": "b", "value": "1" },
        { "op": "patch", "key": "a", "headers": { "Vkog-TTL": "1h" } },
    ]);
    with_background([writer], || {
        for _ in 0..300 {
            let touched = batch(&server, &operations);
            assert!(touched.status == 200 || touched.status == 409, "{touched}");
        }
    });
    assert!(written.load(Relaxed) > 1, "nothing was written meanwhile");
}

#[test]
fn listings_show_when_a_key_expires() {
    let server = setup().start();
    server.put("never", "value").expect(200);
    server.key("PUT", "soon").header("Vkog-TTL", "1h").body("value").send().expect(200);
    assert_eq!(listed(&server, "never").as_object().map(|key| key.len()), Some(4));
    let key = listed(&server, "soon");
    assert_eq!(key["size"], json!(5));
    let read = server.get("soon");
    assert_eq!(key["expires"].as_str(), read.header("Vkog-Expires"), "{key}");
    let expires = key["expires"].as_str().expect("a time");
    assert!(expires.len() == 24 && expires.ends_with('Z'), "{expires}");
    touch(&server, "soon", "2h").expect(200);
    assert_ne!(listed(&server, "soon")["expires"], key["expires"]);
}

#[test]
fn an_event_has_the_reason_of_an_expiry() {
    let server = setup().start();
    let since = server.put("first", "value").revision();
    for (key, time) in [("deleted", "1h"), ("expires", "1s")] {
        server.key("PUT", key).header("Vkog-TTL", time).body("value").send().expect(200);
    }
    server.key("DELETE", "deleted").header("Vkog-Reason", "expired").send().expect(200);
    let mut watch = server.watch(&format!("since={since}"), "");
    // The write of an entry that has expired by now is hidden.
    let events = std::iter::from_fn(|| watch.event()).filter(|event| event.name == "delete").take(2);
    let mut seen: Vec<_> = events.map(|event| (event.key().to_owned(), event.data["reason"].clone())).collect();
    seen.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(seen, [("deleted".to_owned(), Value::Null), ("expires".to_owned(), json!("expired"))]);
}

/// Runs a shell command in which `vkog` uses this server.
#[track_caller]
fn run(setup: &Setup, server: &Server, line: &str) -> Exit {
    Running::start(setup.shell(line).env("VKOG_URL", format!("http://{}", server.address()))).wait()
}

#[test]
fn the_client_touches_a_key_and_lists_its_expiry() {
    let setup = setup();
    let server = setup.start();
    let revision = server.put("a", "value").revision();
    let exit = run(&setup, &server, "vkog touch a --ttl 5m").expect(0);
    assert_eq!(exit.stdout.trim(), server.get("a").revision().to_string(), "{exit}");
    let exit = run(&setup, &server, &format!("vkog touch a --ttl 5m --if-match {revision}")).expect(4);
    assert!(exit.one_error().starts_with("vkog: cannot touch a: Precondition failed"), "{exit}");
    run(&setup, &server, "vkog touch a").expect(2);
    let exit = run(&setup, &server, "vkog ls --json").expect(0);
    let key: Value = serde_json::from_str(exit.stdout.trim()).expect("it is JSON");
    assert_eq!(key, listed(&server, "a"), "{exit}");
    let exit = run(&setup, &server, "vkog touch absent --ttl 5m").expect(3);
    assert_eq!(exit.one_error(), "vkog: cannot touch absent: Not Found (404)", "{exit}");
}

#[test]
fn the_client_fails_if_a_server_without_ttl_ignores_the_time_to_live() {
    let setup = setup();
    let server = setup.start();
    run(&setup, &server, "vkog put a value --ttl 5m").expect(0);
    assert!(server.get("a").header("Vkog-Expires").is_some());
    run(&setup, &server, "vkog post b value --ttl none").expect(0);
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    server.put("a", "value").expect(200);
    for line in ["vkog touch a --ttl 5m", "vkog put a value --ttl 5m", "vkog post b value --ttl 5m"] {
        let exit = run(&setup, &server, line).expect(1);
        assert!(exit.one_error().contains("the server does not have the plugin ttl"), "{exit}");
        assert_eq!(exit.stdout, "", "{exit}");
    }
    run(&setup, &server, "vkog touch a --ttl none").expect(0);
}
