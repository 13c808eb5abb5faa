//! The index of the example plugin `index` is exact: for each term of each entry there is one index entry, and no other. It is
//! written in the same step as the entry.
//!
//! Provoked with clients that write the same keys, alone and in batches, while the server is killed, and while the plugin
//! builds the index of a store that was written without it.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use serde_json::{Value, json};
use vkog_tests::{
    Reply, Server, Setup, TOKEN, Wire, administered, amount, artefacts, assert_one_step, conflict, on_etcd,
    with_background,
};

use super::ENGINE;

const CLIENTS: usize = 8;
const KEYS: usize = 20;

fn setup() -> Setup {
    Setup::on(ENGINE)
        .load(artefacts().library("vkog-index"))
        .config(administered("[plugins.index]\nfields = [\"city\"]\n"))
}

fn city(name: &str) -> String {
    json!({ "city": name }).to_string()
}

fn batch(server: &Server, operations: &Value) -> Reply {
    let request = server.path("POST", "/batch").header("Content-Type", "application/json");
    request.body(operations.to_string()).send()
}

/// The lines of an export that are entries or removals: revision, key and value.
fn lines(text: &str) -> Vec<(u64, String, Option<String>)> {
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("it is JSON"));
    let entries = lines.filter(|line| line["key"].is_string()).map(|line| {
        let key = line["key"].as_str().expect("a key").to_owned();
        (line["revision"].as_u64().expect("a revision"), key, line["value"].as_str().map(str::to_owned))
    });
    entries.collect()
}

/// All entries of a running server, and index entries, as of one revision.
fn exported(server: &Server, query: &str) -> Vec<(u64, String, Option<String>)> {
    let request = server.path("GET", &format!("/export{query}")).header("Authorization", format!("Bearer {TOKEN}"));
    lines(&request.send().expect(200).text())
}

/// Asserts that the index entries are those of the other entries. Returns the number of them.
#[track_caller]
fn is_exact(all: &[(u64, String, Option<String>)]) -> usize {
    let (index, entries): (Vec<_>, Vec<_>) = all.iter().partition(|(_, key, _)| key.starts_with("index/"));
    let index: BTreeSet<String> = index.into_iter().map(|(_, key, _)| key.clone()).collect();
    let expected = entries.into_iter().filter_map(|(_, key, value)| {
        let value: Value = serde_json::from_str(value.as_deref()?).ok()?;
        Some(format!("index/city/{}/{key}", value["city"].as_str()?))
    });
    let expected: BTreeSet<String> = expected.collect();
    let differing: Vec<_> = index.symmetric_difference(&expected).take(5).collect();
    assert!(differing.is_empty(), "{differing:?} of {} index entries and {} terms", index.len(), expected.len());
    index.len()
}

/// Writes keys that other clients write as well, until the server does not answer.
fn write(client: usize, mut wire: Wire, written: &AtomicUsize) -> io::Result<()> {
    for round in client.. {
        let (key, other) = (format!("k{}", round * 7 % KEYS), format!("k{}", round * 11 % KEYS));
        let value = city(&format!("c{}", round / 3 % 5));
        let (method, path, body) = match round % 4 {
            0 => ("DELETE", format!("/k/{key}"), String::new()),
            1 => {
                let put = json!({ "op": "put", "key": other, "value": value });
                let again = json!({ "op": "put", "key": key, "value": city("batch") });
                ("POST", "/batch".to_owned(), json!([put, again, put]).to_string())
            }
            _ => ("PUT", format!("/k/{key}"), value),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        wire.try_send(&[head.as_bytes(), body.as_bytes()].concat())?;
        let reply = wire.try_reply()?;
        assert!([200, 404].contains(&reply.status), "{reply}");
        written.fetch_add(1, Relaxed);
    }
    Ok(())
}

#[test]
fn after_a_kill_under_load_the_index_is_exact() {
    let setup = setup();
    let (rounds, written) = (amount(4, 40), AtomicUsize::new(0));
    for round in 0..rounds {
        let server = setup.start();
        server.logs(&["the index is complete"]);
        let indexed = is_exact(&exported(&server, ""));
        assert!(indexed > 0 || round == 0, "nothing was written");
        let (wires, before) = (server.wires(CLIENTS), written.load(Relaxed));
        thread::scope(|scope| {
            for (client, wire) in wires.into_iter().enumerate() {
                let written = &written;
                scope.spawn(move || write(client, wire, written));
            }
            // A different time in each round.
            while written.load(Relaxed) < before + 200 + round * 17 % 300 {
                thread::yield_now();
            }
            server.stop_with("KILL");
        });
        let exit = setup.run(["export", "--file", &setup.store_file().to_string_lossy()]).expect(0);
        is_exact(&lines(&exit.stdout));
    }
}

#[test]
fn an_export_during_writes_has_the_entries_and_their_index_of_the_same_revision() {
    let server = setup().start();
    server.logs(&["the index is complete"]);
    let writers = server.wires(CLIENTS).into_iter().enumerate().map(|(client, mut wire)| {
        let mut round = client;
        move || {
            round += 1;
            let path = format!("/k/k{}", round * 7 % KEYS);
            wire.request("PUT", &path, city(&format!("c{}", round / 3 % 5)).as_bytes()).expect(200);
        }
    });
    with_background(writers, || {
        for _ in 0..amount(20, 200) {
            is_exact(&exported(&server, ""));
        }
    });
    assert_eq!(is_exact(&exported(&server, "")), KEYS);
}

#[test]
fn an_entry_and_its_index_entries_change_in_one_step() {
    let server = setup().load(conflict()).start();
    server.logs(&["the index is complete"]);
    let first = server.post("a", city("Rome")).expect(200).revision();
    let before = exported(&server, "").into_iter().map(|(revision, ..)| revision).max().expect("two entries");
    let operations = json!([
        { "op": "put", "key": "a", "value": city("Oslo"), "if_match": first },
        { "op": "post", "key": "b", "value": city("Oslo") },
        { "op": "get", "key": "a" },
        { "op": "get", "key": "index/city/Oslo/a" },
    ]);
    batch(&server, &operations).expect(403).says("Index entries belong to the plugin index");
    let mut operations = operations;
    operations.as_array_mut().expect("a list").truncate(3);
    let reply = batch(&server, &operations).expect(200);
    let results: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert_eq!(results.as_array().map(Vec::len), Some(3), "{reply}");
    let [a, b] = [0, 1].map(|index| reply.revision_at(index));
    // Without the history, the removal of an index entry does not show.
    let since = if on_etcd() { String::new() } else { format!("?since={before}") };
    let mut changes: Vec<_> = exported(&server, &since).into_iter().map(|(revision, key, _)| (revision, key)).collect();
    changes.sort();
    let (revisions, keys): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
    let mut expected = vec!["a", "b", "index/city/Rome/a", "index/city/Oslo/a", "index/city/Oslo/b"];
    if on_etcd() {
        expected.remove(2);
        expected.sort_unstable();
    }
    assert_eq!(keys, expected);
    assert_one_step(before, &revisions);
    assert_eq!([a, b], revisions[..2]);
}

#[test]
fn a_failed_write_leaves_the_index_as_it_was() {
    let server = setup().load(conflict()).start();
    server.logs(&["the index is complete"]);
    let revision = server.post("a", city("Rome")).expect(200).revision();
    let before = exported(&server, "");
    server.key("PUT", "a").header("If-Match", format!("\"{}\"", revision + 1)).body(city("Oslo")).send().expect(412);
    server.post("a", city("Oslo")).refused(409, "Key already exists");
    server.put("b", city("Oslo")).refused(404, "Key does not exist");
    let put = json!({ "op": "put", "key": "a", "value": city("Oslo") });
    let put_absent = json!({ "op": "put", "key": "b", "value": city("Oslo") });
    batch(&server, &json!([put, put_absent])).expect(404);
    batch(&server, &json!([put, { "op": "delete", "key": "b" }])).expect(404);
    for path in ["/k/index/city/Rome/a", "/k/index/new"] {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"] {
            let request = server.path(method, path);
            let request = if method == "PUT" || method == "POST" { request.body("1") } else { request };
            request.send().expect(403).has("Vkog-Plugin", "index");
        }
    }
    assert_eq!(exported(&server, ""), before);
    let keys = server.path("GET", "/keys").send().expect(200).text();
    assert!(keys.contains('a') && !keys.contains("index/"), "{keys}");
    server.key("PATCH", "a").send().expect(200);
    assert_eq!(is_exact(&exported(&server, "")), 1);
}

#[test]
fn the_index_of_a_store_that_was_written_without_the_plugin_is_built_while_clients_write() {
    let plain = Setup::on(ENGINE);
    let server = plain.start();
    for number in 0..amount(500, 5000) {
        server.put(&format!("old{number}"), city(&format!("c{}", number % 7))).expect(200);
    }
    server.put("index/city/stray/old1", "a stray").expect(200);
    server.stop().expect(0);
    let setup = setup().store(plain.store_file());
    let server = setup.start();
    let writers = server.wires(4).into_iter().enumerate().map(|(client, mut wire)| {
        let mut round = client;
        move || {
            round += 13;
            let key = format!("/k/old{}", round * 7 % 500);
            let (method, value) = if round % 5 == 0 { ("DELETE", String::new()) } else { ("PUT", city("new")) };
            let reply = wire.request(method, &key, value.as_bytes());
            assert!([200, 404].contains(&reply.status), "{reply}");
        }
    });
    with_background(writers, || server.logs(&["the index is complete"]));
    is_exact(&exported(&server, ""));
    assert_eq!(server.plugin("index")["metrics"]["complete"], 1);
    server.stop().expect(0);
    let exit = setup.run(["export", "--file", &setup.store_file().to_string_lossy()]).expect(0);
    assert!(is_exact(&lines(&exit.stdout)) > 100);
}

#[test]
fn a_build_keeps_content_codings_and_leaves_out_what_nobody_can_decrypt() {
    let plugins = artefacts();
    let keys = |setup: &Setup, name: char| {
        let path = setup.folder().join("keys");
        std::fs::write(&path, format!("{name} {}\n", "1a".repeat(32))).expect("it can be written");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
    };
    let config = administered("[plugins.encrypt]\nkey_file = \"keys\"\n[plugins.index]\nfields = [\"city\"]\n");
    let plain = Setup::on(ENGINE).load(plugins.library("vkog-encrypt")).config(config.clone());
    keys(&plain, 'a');
    let server = plain.start();
    server.put("lost", city("Rome")).expect(200);
    keys(&plain, 'b');
    assert_eq!(server.reloaded("encrypt"), "reloaded");
    let coded = server.key("PUT", "coded").header("Content-Encoding", "gzip").header("Content-Type", "text/x");
    coded.body(city("Rome")).send().expect(200);
    server.put("plain", city("Rome")).expect(200);
    server.stop().expect(0);

    let setup = setup().load(plugins.library("vkog-encrypt")).config(config).store(plain.store_file());
    keys(&setup, 'b');
    let server = setup.start();
    let fact = "entries that cannot be read or written are left out of the index: 1, the first is";
    server.logs(&["WARN", fact, "lost", "The value was encrypted with the key"]);
    let found = server.path("GET", "/x/index/city/Rome").send().expect(200).has("Index-Left-Out", "1");
    assert_eq!(found.text(), r#"["coded","plain"]"#);
    server.get("coded").expect(200).has("Content-Encoding", "gzip").has("Content-Type", "text/x");
    assert_eq!(server.get("plain").expect(200).header("Content-Encoding"), None);
    let metrics = &server.plugin("index")["metrics"];
    assert_eq!((&metrics["complete"], &metrics["left_out"]), (&json!(0), &json!(1)));
    server.get("lost").expect(500);
}
