//! Values are stored as plugins transform them, and clients read them as they were sent.
//!
//! Provoked with the example plugins compress and encrypt: in the files of the store, in each way to read, without the
//! plugins, with other keys, and in another order.

use std::fs;

use serde_json::{Value, json};
use vkog_tests::{Server, Setup, administered, amount, artefacts, only_ours, with_background};

use super::ENGINE;

/// A text that stands for plain text on disk.
const SECRET: &str = "treasure-in-the-garden";

/// Writes a key file: each key has the digits of its name.
fn write_keys(setup: &Setup, file: &str, names: &[char]) {
    let line = |name: &char| format!("{name} {}\n", format!("{:02x}", *name as u8).repeat(32));
    let path = setup.folder().join(file);
    fs::write(&path, names.iter().map(line).collect::<String>()).expect("it can be written");
    restrict(&path);
}

fn restrict(path: &std::path::Path) {
    only_ours(path);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
}

fn config(order: &str, keys: &str) -> String {
    administered(&format!("[plugins]\norder = [{order}]\n[plugins.encrypt]\nkey_file = \"{keys}\"\n"))
}

fn setup() -> Setup {
    let plugins = artefacts();
    let setup = Setup::on(ENGINE).load(plugins.library("vkog-compress")).load(plugins.library("vkog-encrypt"));
    write_keys(&setup, "keys", &['a']);
    setup.config(config("", "keys"))
}

/// The same store without plugins.
fn without_plugins(setup: &Setup) -> Setup {
    Setup::on(ENGINE).store(setup.store_file())
}

fn long() -> String {
    format!("{SECRET} again and again. ").repeat(5000)
}

fn batch(server: &Server, operations: &Value) -> vkog_tests::Reply {
    server.path("POST", "/batch").header("Content-Type", "application/json").body(operations.to_string()).send()
}

fn listed(server: &Server) -> Value {
    serde_json::from_slice(&server.path("GET", "/keys").send().expect(200).body).expect("it is JSON")
}

#[test]
fn nothing_on_disk_and_in_exports_is_plain_text() {
    let setup = setup();
    let server = setup.start();
    server.put("short", SECRET).expect(200);
    server.post("long", long()).expect(200);
    batch(&server, &json!([{ "op": "put", "key": "batched", "value": SECRET }])).expect(200);
    let touched = server.path("PATCH", "/k/short").send().expect(200);
    let is_plain = |bytes: &[u8]| bytes.windows(8).any(|part| part == &SECRET.as_bytes()[..8]);
    let log = fs::read(setup.store_file().with_extension("vkog.log")).expect("there is a log");
    assert!(log.len() < long().len() && !is_plain(&log), "the log of {touched}");
    assert!(log.windows(7).any(|part| part == b"batched"), "keys are not encrypted");
    let export = server.path("GET", "/export").header("Authorization", "Bearer s3cret").send().expect(200);
    assert!(!is_plain(&export.body));
    server.stop().expect(0);
    let snapshot = fs::read(setup.store_file()).expect("there is a snapshot");
    assert!(snapshot.len() < long().len() && !is_plain(&snapshot));
    let server = setup.start();
    for (key, value) in [("short", SECRET.to_owned()), ("long", long()), ("batched", SECRET.to_owned())] {
        server.get(key).expect(200).is(value);
    }
}

#[test]
fn every_way_to_read_returns_values_and_sizes_as_they_were_sent() {
    let setup = setup();
    let server = setup.start();
    let mut watching = server.watch("values", "");
    let (value, length) = (long(), long().len().to_string());
    let revision =
        server.key("PUT", "k").header("Content-Type", "text/plain").body(&value).send().expect(200).revision();
    server.put("short", SECRET).expect(200);
    let tag = format!("\"{revision}\"");
    server.get("k").expect(200).is(&value).has("ETag", &tag).has("Content-Type", "text/plain");
    server.key("HEAD", "k").send().expect(200).has("Content-Length", &length).has("ETag", &tag);
    let part = server.key("GET", "k").header("Range", "bytes=9-19").header("If-Range", &tag).send();
    part.expect(206).is(&value[9..20]).has("Content-Range", &format!("bytes 9-19/{length}"));
    let last = server.key("GET", "k").header("Range", "bytes=-3").send();
    last.expect(206).is(&value[value.len() - 3..]);
    server.key("GET", "k").header("Range", format!("bytes={length}-")).send().expect(416);
    server.key("GET", "k").header("If-None-Match", &tag).send().expect(304);
    server.key("GET", "k").header("If-Match", "\"1\"").send().expect(412);
    let size = |key: &str| {
        let listed = listed(&server);
        let keys = listed["keys"].as_array().expect("a list").clone();
        keys.into_iter().find(|found| found["key"] == key).expect("it is listed")["size"].clone()
    };
    assert_eq!([size("k"), size("short")], [json!(value.len()), json!(SECRET.len())]);
    let events = watching.events(2);
    // Values over 64 KiB are not part of events.
    assert_eq!((&events[0].data["size"], events[0].data.get("value")), (&json!(value.len()), None));
    assert_eq!((&events[1].data["size"], &events[1].data["value"]), (&json!(SECRET.len()), &json!(SECRET)));
    let reply = batch(
        &server,
        &json!([
            { "op": "get", "key": "short" },
            { "op": "put", "key": "k", "value": "written by the batch", "if_match": revision },
            { "op": "get", "key": "k" },
        ]),
    );
    let done: Value = serde_json::from_slice(&reply.expect(200).body).expect("it is JSON");
    assert_eq!((&done[0]["value"], &done[2]["value"]), (&json!(SECRET), &json!("written by the batch")));
    assert_eq!(done[1]["revision"], done[2]["revision"]);
    let reply = batch(&server, &json!([{ "op": "get", "key": "short" }, { "op": "get", "key": "k" }])).expect(200);
    assert!(reply.text().contains(SECRET) && reply.text().contains("written by the batch"), "{reply}");
    let touched = server.path("PATCH", "/k/k").send().expect(200).revision();
    assert_eq!(server.get("k").expect(200).is("written by the batch").revision(), touched);
    // One of k (four gets, one head, one listing) and the others.
    assert!(server.count("encrypt", "read_get", "calls") > 10);
    assert_eq!(server.count("encrypt", "read_get", "refusals"), 0);
}

#[test]
fn entries_of_before_the_plugin_are_read_as_they_are() {
    let setup = setup();
    let plain = without_plugins(&setup);
    let server = plain.start();
    server.put("before", SECRET).expect(200);
    server.stop().expect(0);
    let server = setup.start();
    server.get("before").expect(200).is(SECRET);
    server.put("after", SECRET).expect(200);
    assert_eq!(listed(&server)["keys"][1]["size"], json!(SECRET.len()));
    server.get("after").expect(200).is(SECRET);
}

#[test]
fn without_the_plugin_reads_fail_with_503_and_writes_succeed() {
    let setup = setup();
    let server = setup.start();
    for key in ["a", "b", "c"] {
        server.put(key, SECRET).expect(200);
    }
    server.stop().expect(0);
    let server = without_plugins(&setup).start();
    let gone = "plugin \"encrypt\" is not loaded, and it has transformed this value";
    server.put("plain", "plain").expect(200);
    server.get("a").refused(503, gone);
    server.key("HEAD", "a").send().expect(503);
    server.key("GET", "a").header("Range", "bytes=0-0").send().refused(503, gone);
    batch(&server, &json!([{ "op": "get", "key": "plain" }, { "op": "get", "key": "a" }])).expect(503).says("encrypt");
    let mixed = json!([{ "op": "put", "key": "plain", "value": "x" }, { "op": "get", "key": "a" }]);
    batch(&server, &mixed).expect(503).says("encrypt");
    server.get("plain").is("plain");
    server.path("GET", "/keys").send().refused(503, &format!("Key \"a\": {gone}"));
    server.path("GET", "/keys?count").send().expect(200).says("4");
    server.path("GET", "/keys?delimiter=a").send().refused(503, "Key \"b\": plugin");
    let mut watching = server.watch("values", "");
    server.path("PATCH", "/k/a").send().expect(200);
    let end = watching.event().expect("the watch says why it ends");
    assert_eq!((end.name.as_str(), &end.data["status"]), ("end", &json!(503)), "{end:?}");
    assert!(
        end.data["title"].as_str().is_some_and(|title| title.starts_with("Key \"a\": plugin \"encrypt\"")),
        "{end:?}"
    );
    server.put("b", "new").expect(200);
    server.get("b").expect(200).is("new");
    server.delete("c").expect(200);
    server.path("DELETE", "/keys?prefix=a").send().expect(200);
    server.path("GET", "/keys").send().expect(200);
    server.stop().expect(0);
    let server = setup.start();
    server.get("b").is("new");
}

#[test]
fn after_a_rotation_by_reload_old_values_are_read_and_new_ones_use_the_new_key() {
    let setup = setup();
    let server = setup.start();
    server.put("old", SECRET).expect(200);
    write_keys(&setup, "keys-2", &['b', 'a']);
    setup.write_config(&config("", "keys-2"));
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    server.put("new", SECRET).expect(200);
    for key in ["old", "new"] {
        server.get(key).expect(200).is(SECRET);
    }
    write_keys(&setup, "keys-3", &['b']);
    setup.write_config(&config("", "keys-3"));
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    server.get("new").expect(200).is(SECRET);
    server.get("old").refused(500, "The value was encrypted with the key \"a\"").has("Vkog-Plugin", "encrypt");
    // A key file that is refused leaves the keys as they are.
    setup.write_config(&config("", "missing"));
    server.reload().expect(409);
    server.get("new").expect(200).is(SECRET);
}

#[test]
fn a_reload_reads_a_key_file_again_whose_content_has_changed() {
    let setup = setup();
    let server = setup.start();
    server.put("old", SECRET).expect(200);
    assert_eq!(server.reloaded("encrypt"), "kept");
    write_keys(&setup, "keys", &['b', 'a']);
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    assert_eq!(server.reloaded("encrypt"), "kept");
    server.put("new", SECRET).expect(200);
    write_keys(&setup, "keys", &['b']);
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    server.get("new").expect(200).is(SECRET);
    server.get("old").refused(500, "The value was encrypted with the key \"a\"");
    // A file that is refused leaves the keys as they are, and each reload tries it again.
    for content in [Some("b 12\n"), None, None] {
        let path = setup.folder().join("keys");
        match content {
            Some(content) => fs::write(&path, content).expect("it can be written"),
            None => drop(fs::remove_file(&path)),
        }
        assert_eq!(server.reloaded("encrypt"), "create-failed");
        server.get("new").expect(200).is(SECRET);
    }
    write_keys(&setup, "keys", &['a', 'b']);
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    server.get("old").expect(200).is(SECRET);
}

#[test]
fn the_order_of_the_chain_decides_about_writes_and_the_record_about_reads() {
    let setup = setup();
    let server = setup.start();
    server.put("compressed-first", long()).expect(200);
    setup.write_config(&config("\"encrypt\", \"compress\"", "keys"));
    server.reload().expect(200);
    server.put("encrypted-first", long()).expect(200);
    for key in ["compressed-first", "encrypted-first"] {
        server.get(key).expect(200).is(long());
    }
    server.stop().expect(0);
    // Encrypted data cannot be compressed, so compress has left that value as it was.
    let lines = setup.run(["export", "-f", "store.vkog", "lines"]).expect(0);
    drop(lines);
    let text = fs::read_to_string(setup.folder().join("lines")).expect("it was written");
    let entry = |key: &str| -> Value {
        let line = text.lines().find(|line| line.contains(&format!("\"key\":\"{key}\"")));
        serde_json::from_str(line.unwrap_or_else(|| panic!("no {key} in the export"))).expect("it is JSON")
    };
    let stored = |key: &str| entry(key)["value_base64"].as_str().expect("no text").len();
    assert!(stored("compressed-first") * 10 < stored("encrypted-first"), "{}", stored("compressed-first"));
    let server = setup.start();
    for key in ["compressed-first", "encrypted-first"] {
        server.get(key).expect(200).is(long());
    }
}

#[test]
fn reads_and_writes_during_reloads_use_one_chain_each() {
    let setup = setup();
    let server = setup.start();
    server.put("k", long()).expect(200);
    let clients = (0..3).map(|number| {
        let (server, key, mut round) = (&server, format!("k{number}"), 0);
        move || {
            let value = format!("{SECRET} {round} ").repeat(1 + round % 30);
            server.put(&key, &value).expect(200);
            server.get(&key).expect(200).is(&value);
            server.get("k").expect(200).is(long());
            round += 1;
        }
    });
    with_background(clients, || {
        for (number, last) in ('b'..).take(amount(8, 25)).enumerate() {
            let keys = format!("keys-{number}");
            write_keys(&setup, &keys, &('a'..=last).rev().collect::<Vec<_>>());
            setup.write_config(&config(["", "\"encrypt\""][number % 2], &keys));
            assert_eq!(server.reloaded("encrypt"), "reloaded");
        }
    });
}
