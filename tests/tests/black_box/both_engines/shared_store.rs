//! A server on a store that several servers share behaves as one on a file, and says so where it cannot. While its store hangs or
//! cannot be reached, requests get a response in time; it heals without a restart.
//!
//! Provoked with a backend whose engine is a file, and which its routes let hang or disconnect. Other servers exist only in
//! what it reports.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vkog_tests::{
    DEADLINE, Reply, Running, Server, Setup, TOKEN, administered, artefacts, bytes, conflict, free_port, ttl,
};

use super::ENGINE;

const LOCAL: (&str, &str) = ("Vkog-Consistency", "local");

fn setup() -> Setup {
    Setup::on(ENGINE).load(artefacts().library("vkog-faults")).shared_store("faults://entries")
}

/// Lets the backend behave in another way.
#[track_caller]
fn set(server: &Server, mode: &str) {
    server.path("POST", &format!("/x/faults/{mode}")).header(LOCAL.0, LOCAL.1).send().expect(204);
}

/// Sends requests until one gets this status.
#[track_caller]
fn wait_for(status: u16, send: impl Fn() -> Reply) -> Reply {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let reply = send();
        if reply.status == status {
            return reply;
        }
        assert!(Instant::now() < deadline, "the status is {} and not {status}", reply.status);
        thread::sleep(Duration::from_millis(10));
    }
}

fn ready(server: &Server) -> Reply {
    server.path("GET", "/readyz").send()
}

fn batch(server: &Server, operations: &Value) -> Reply {
    server.path("POST", "/batch").header("Content-Type", "application/json").body(operations.to_string()).send()
}

#[test]
fn a_shared_store_serves_entries_batches_and_listings() {
    let server = setup().load(bytes()).load(ttl()).start();
    let first = server.put("a", "1").expect(200).revision();
    server.get("a").expect(200).is("1").has("ETag", &format!("\"{first}\""));
    server.key("PUT", "a").header("If-Match", format!("\"{}\"", first + 1)).body("2").send().expect(412);
    let second =
        server.key("PUT", "a").header("If-Match", format!("\"{first}\"")).body("2").send().expect(200).revision();
    assert!(second > first);
    server.key("GET", "a").header("If-None-Match", format!("\"{second}\"")).send().expect(304);
    let operations = json!([{ "op": "put", "key": "b", "value": "3" }, { "op": "get", "key": "a" }, { "op": "put", "key": "c", "value": "4" }]);
    let done: Value = serde_json::from_str(&batch(&server, &operations).expect(200).text()).expect("JSON");
    let revisions = [0, 2].map(|at: usize| done[at]["revision"].as_u64());
    assert!(revisions[0] == revisions[1] && revisions[0] > Some(second), "{done}");
    let listed = server.path("GET", "/keys").send().expect(200).text();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let keys: Vec<_> = listed["keys"].as_array().expect("keys").iter().map(|key| key["key"].clone()).collect();
    assert_eq!(keys, ["a", "b", "c"]);
    server.path("GET", "/keys?count").header(LOCAL.0, LOCAL.1).send().expect(200).says("3");
    server.path("DELETE", "/keys?prefix=b").send().expect(200);
    server.delete("c").expect(200);
    server.get("b").expect(404);
    // Another server writes.
    server.path("POST", "/x/faults/change/other").body("5").send().expect(204);
    server.get("other").expect(200).is("5");
    server.stop().expect(0);
}

#[test]
fn the_changes_of_a_step_have_one_id_on_the_last_event() {
    let server = setup().start();
    let mut watching = server.watch("", "");
    let began = watching.last_id;
    let operations = json!([{ "op": "put", "key": "a", "value": "1" }, { "op": "put", "key": "b", "value": "2" }]);
    batch(&server, &operations).expect(200);
    let revision = server.get("b").revision();
    let events = watching.events(2);
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids, [began, Some(revision)], "an event without an id keeps the one before");
    let keys: Vec<_> = events.iter().map(|event| event.key().to_owned()).collect();
    assert_eq!(keys, ["a", "b"]);
    // Each watcher of one key gets the id with it, although they share encoded events.
    for key in ["a", "b"] {
        let mut one = server.watch(&format!("prefix={key}&since={}", revision - 1), "");
        assert_eq!(
            one.events(1).iter().map(|event| (event.key(), event.id)).collect::<Vec<_>>(),
            [(key, Some(revision))]
        );
    }
    // A client that was interrupted after the first event gets both again.
    let mut again = server.watch("", &format!("Last-Event-ID: {}\r\n", revision - 1));
    assert_eq!(again.events(2).iter().map(|event| event.key().to_owned()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn the_guards_of_a_rejected_write_run_twice() {
    let server = setup().load(conflict()).start();
    server.post("k", "1").expect(200);
    let guards = || server.count("conflict", "guard_post", "calls");
    assert_eq!(guards(), 1);
    server.post("k", "2").expect(409);
    assert_eq!(guards(), 3);
    server.get("k").expect(200).is("1");
}

#[test]
fn requests_to_a_store_that_hangs_get_a_response_in_time() {
    let server =
        setup().load(artefacts().library("serves")).args(["--store-timeout", "300ms", "--max-lag", "1h"]).start();
    server.put("k", "before").expect(200);
    set(&server, "hang");
    server.get("k").refused(503, "The shared store did not respond within 300ms").has("Retry-After", "1");
    server.key("GET", "k").header(LOCAL.0, LOCAL.1).send().expect(200).is("before");
    server.path("GET", "/keys").send().expect(503);
    server.path("GET", "/x/serves/k/k").send().expect(503);
    let late = server.key("PUT", "k").header("Accept", "application/json").body("after").send().expect(504);
    let problem: Value = serde_json::from_str(&late.text()).expect("JSON");
    assert_eq!(problem["code"], "outcome-unknown");
    server.put("k2", "after").refused(504, "Outcome unknown: the shared store did not respond within 300ms");
    batch(&server, &json!([{ "op": "get", "key": "k" }])).expect(503);
    let operations = json!([{ "op": "put", "key": "k3", "value": "after" }]);
    batch(&server, &operations).expect(504).says("\"code\":\"outcome-unknown\"");
    server.key("PATCH", "k").send().expect(504);
    server.path("DELETE", "/keys?prefix=none").send().expect(504);
    let route = server.path("PUT", "/x/serves/k/k4").header(LOCAL.0, LOCAL.1).body("after");
    route.send().refused(504, "Outcome unknown");
    ready(&server).expect(200);
    // The operations continue.
    set(&server, "answer");
    for key in ["k", "k2", "k3", "k4"] {
        wait_for(200, || server.get(key)).is("after");
    }
}

#[test]
fn a_store_without_connection_refuses_at_once_and_heals() {
    // The time of requests is longer than the test, so that only an immediate refusal passes it.
    let server = setup().args(["--store-timeout", "1h", "--max-lag", "1h"]).start();
    server.put("k", "before").expect(200);
    ready(&server).expect(200);
    set(&server, "disconnect");
    ready(&server).refused(503, "Not ready: the shared store cannot be reached: a test has disconnected it");
    server.get("k").refused(503, "Unavailable: the shared store cannot be reached").has("Retry-After", "1");
    server.put("k", "after").refused(503, "Unavailable: the shared store cannot be reached").has("Retry-After", "1");
    server.path("GET", "/keys").send().expect(503).has("Retry-After", "1");
    batch(&server, &json!([{ "op": "put", "key": "k", "value": "after" }])).expect(503).has("Retry-After", "1");
    server.key("GET", "k").header(LOCAL.0, LOCAL.1).send().expect(200).is("before");
    server.path("GET", "/livez").send().expect(200);
    server.logs(&["faults://entries cannot be reached: a test has disconnected it"]);
    set(&server, "connect");
    wait_for(200, || ready(&server));
    server.get("k").expect(200).is("before");
    server.put("k", "after").expect(200);
    server.logs(&["the connection to faults://entries is back"]);
}

#[test]
fn a_rejection_on_an_old_copy_is_decided_again() {
    let server = setup().load(conflict()).load(artefacts().library("vkog-counter")).start();
    let late = |key: &str| {
        let put = server.path("POST", &format!("/x/faults/late/{key}")).header(LOCAL.0, LOCAL.1);
        put.body("7").send().expect(204);
        server.key("GET", key).header(LOCAL.0, LOCAL.1).send().expect(404);
    };
    late("get");
    server.get("get").expect(200).is("7");
    // Without the entry, plugins and conditions reject these.
    for (verb, header) in [
        ("PUT", ("Accept", "*/*")),
        ("PUT", ("If-Match", "*")),
        ("PATCH", ("Accept", "*/*")),
        ("DELETE", ("Accept", "*/*")),
        ("DELETE", ("If-Match", "*")),
    ] {
        let key = format!("{verb}-{}", header.0);
        late(&key);
        let request = server.key(verb, &key).header(header.0, header.1);
        if verb == "PUT" { request.body("8") } else { request }.send().expect(200);
    }
    for verb in ["put", "delete", "patch"] {
        let key = format!("batch-{verb}");
        late(&key);
        let mut operation = json!({ "op": verb, "key": key });
        if verb == "put" {
            operation["value"] = "8".into();
        }
        batch(&server, &json!([{ "op": "post", "key": format!("other-{verb}"), "value": "1" }, operation])).expect(200);
    }
    // With the entry, these are rejected.
    late("post");
    server.post("post", "8").refused(409, "Key already exists");
    late("none-match");
    server.key("PUT", "none-match").header("If-None-Match", "*").body("8").send().expect(412);
    late("counter");
    let add = |key: &str| server.path("POST", &format!("/x/counter/{key}")).header(LOCAL.0, LOCAL.1).send();
    add("counter").expect(200).is("8");
    server.post("text", "seven").expect(200);
    server.path("POST", "/x/faults/late/text").header(LOCAL.0, LOCAL.1).body("7").send().expect(204);
    add("text").expect(200).is("8");
}

#[test]
fn a_local_read_of_old_data_is_refused() {
    let server = setup().args(["--reads", "local", "--max-lag", "1ns"]).start();
    server.put("k", "v").expect(200);
    server.get("k").refused(503, "Unavailable: the entries of this host may be");
    server.key("GET", "k").header(LOCAL.0, "linearizable").send().expect(200).is("v");
    server
        .key("GET", "k")
        .header(LOCAL.0, "eventual")
        .send()
        .refused(400, "Vkog-Consistency is \"eventual\"; use local");
}

#[test]
fn a_server_that_loads_a_shared_store_is_alive_and_not_ready() {
    let setup = setup();
    setup.write_config("[plugins.faults]\ngate = \"gate\"\n");
    let address = format!("127.0.0.1:{}", free_port());
    let mut command: Command = setup.vkog();
    command.args(["--config", "vkog.toml", "--store", "faults://entries", "--listen", &address]);
    let process = Running::start(command.arg("--plugin-dir").arg(setup.plugin_folder()));
    let waits = |log: &str| log.contains("waiting for faults://entries: the gate is closed");
    assert!(process.stderr.wait_for(waits), "{}", process.stderr.text());
    // With the environment of the server, as in a container.
    let of_server = setup.clone().env("VKOG_LISTEN", &address).env("VKOG_STORE", "faults://entries");
    let health = |expected| of_server.run(["health"]).expect(expected);
    let exit = health(4);
    assert!(exit.to_string().contains("not ready: waiting for faults://entries: the gate is closed"), "{exit}");
    fs::write(setup.folder().join("gate"), "").expect("the folder is ours");
    assert!(process.stdout.wait_for(|text| text.contains("listening on")), "{}", process.stderr.text());
    health(0);
}

#[test]
fn a_command_gives_up_when_the_connection_is_lost_after_a_load_has_begun() {
    let setup = setup();
    setup.write_config("[plugins.faults]\ngate = \"gate\"\n");
    let folder = setup.plugin_folder();
    let folder = folder.to_str().expect("UTF-8");
    let arguments = ["export", "--store", "faults://entries", "--config", "vkog.toml", "--plugin-dir", folder];
    let exit = setup.run(arguments).expect(6);
    assert!(exit.stderr.contains("cannot reach faults://entries within 10s: the gate is closed"), "{exit}");
}

#[test]
fn a_missing_plugin_is_named_with_its_library_and_its_source() {
    let setup = Setup::on(ENGINE).load(bytes());
    let folder = setup.plugin_folder();
    let folder = folder.to_str().expect("UTF-8");
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["export"], &["import"]] {
        let store = ["--store", "etcd://127.0.0.1:1/vkog", "--plugin-dir", folder];
        let exit = setup.run(arguments.iter().chain(&store).copied()).expect(1);
        let error = exit.stderr.lines().last().unwrap_or_default();
        for words in [
            "vkog: cannot open etcd://127.0.0.1:1/vkog: it needs the plugin etcd, which is not in the plugin folder",
            "get libvkog_etcd.so from the release of this version, or build it with `cargo build --release -p vkog-etcd`",
        ] {
            assert!(error.contains(words), "{error}");
        }
    }
}

#[test]
fn a_store_that_refuses_the_server_stops_the_start() {
    let exit = setup().shared_store("faults://refused").fail().expect(1);
    let error = exit.stderr.lines().last().unwrap_or_default();
    let expected =
        "vkog: cannot open faults://refused: plugin \"faults\" cannot open the store: the engine refuses this host";
    assert_eq!(error, expected);
}

#[test]
fn an_added_plugin_that_opens_stores_needs_a_restart() {
    let library = artefacts().library("vkog-faults").display().to_string();
    let exit = Setup::on(ENGINE).run(["plugins", "add", &library, "--plugin-dir", "plugins"]).expect(0);
    assert!(
        exit.stdout.ends_with("restart the servers whose store is faults://; others apply this when they reload\n"),
        "{exit}"
    );
}

#[test]
fn servers_with_other_plugins_are_reported() {
    let other = json!({ "version": "9.9.9", "machine": "vkog-2", "addresses": ["10.0.0.2:3110"], "plugins": [{ "name": "bytes", "version": "1", "sha256": "00" }] });
    let setup = setup().config(format!("[plugins.faults]\nhosts = ['{other}', '{{}}']\n"));
    let server = setup.start();
    let listed: Value = serde_json::from_str(&server.path("GET", "/plugins").send().expect(200).text()).expect("JSON");
    let hosts = listed["hosts"].as_array().expect("hosts");
    assert_eq!(hosts.len(), 2, "a command is no server: {listed}");
    assert_eq!((&hosts[0]["own"], &hosts[0]["differs"]), (&json!(true), &json!(false)));
    assert_eq!(hosts[0]["addresses"], json!([format!("http://{}", server.address())]));
    assert!(hosts[0]["machine"].as_str().is_some_and(|machine| !machine.is_empty()), "{listed}");
    assert_eq!(hosts[0]["plugins"][0]["sha256"], listed["plugins"][0]["sha256"]);
    assert_eq!(
        (&hosts[1]["own"], &hosts[1]["differs"], &hosts[1]["version"]),
        (&json!(false), &json!(true), &json!("9.9.9"))
    );
    ready(&server).expect(200).is("Ok; other plugins run on 2 (vkog-2, 10.0.0.2:3110); see /plugins\n");
    let exit = setup.run(["health", "--url", &format!("http://{}", server.address())]).expect(0);
    assert!(exit.stdout.ends_with(": ready; other plugins run on 2 (vkog-2, 10.0.0.2:3110); see /plugins\n"), "{exit}");
    server.logs(&[
        "other plugins run on 2 (vkog-2, 10.0.0.2:3110)",
        "give all servers of faults://entries the same plugins",
    ]);
}

#[test]
fn metrics_describe_the_shared_store_and_no_files() {
    let server = setup().start();
    server.put("k", "v").expect(200);
    let text = server.path("GET", "/metrics").send().expect(200).text();
    for line in [
        "vkog_store_connected 1",
        "vkog_store_leader 1",
        "vkog_store_members 1",
        "vkog_store_database_bytes 1000",
        "vkog_store_database_limit_bytes 2000",
        "vkog_store_conflicts_total 0",
        "vkog_store_commit_seconds_count 1",
        "vkog_writable 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    assert!(text.contains("\nvkog_store_lag_seconds 0."), "{text}");
    for absent in ["vkog_log_bytes", "vkog_snapshots", "vkog_fsync"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

#[test]
fn a_shared_store_is_imported_and_exported_and_has_no_incremental_backup() {
    let setup = setup().config(administered(""));
    let folder = setup.plugin_folder();
    let folder = folder.to_str().expect("UTF-8");
    let shared = ["--store", "faults://entries", "--plugin-dir", folder];
    let lines = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\",\"content_type\":\"text/plain\"}\n";
    fs::write(setup.folder().join("in.json"), lines).expect("the folder is ours");
    let exit = setup.run(["import", "in.json"].into_iter().chain(shared)).expect(0);
    assert!(
        exit.stdout.starts_with("faults://entries: imported 2 entries, 2 of them new; 2 entries now, revision"),
        "{exit}"
    );
    let server = setup.start();
    server
        .key("GET", "b")
        .header("Authorization", format!("Bearer {TOKEN}"))
        .send()
        .expect(200)
        .is("2")
        .has("Content-Type", "text/plain");
    let url = format!("http://{}", server.address());
    let remote = ["--url", url.as_str(), "--token", TOKEN];
    setup.run(["backup", "full.backup"].into_iter().chain(remote)).expect(0);
    let exit = setup.run(["backup", "--since", "full.backup", "more.backup"].into_iter().chain(remote)).expect(1);
    assert!(
        exit.stderr
            .contains("faults://entries has no incremental exports, because only a store in files has timelines"),
        "{exit}"
    );
    setup.run(["restore", "full.backup", "--file", "copy.vkog"]).expect(0);
    server.signal("USR1");
    server.logs(&["no snapshot was written: faults://entries is not in files of this machine"]);
    server.stop().expect(0);
    for arguments in [&["export", "--file", "copy.vkog"][..], &["export", shared[0], shared[1], shared[2], shared[3]]] {
        let exit = setup.run(arguments.iter().copied()).expect(0);
        let value = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["value"].clone();
        assert_eq!(exit.stdout.lines().map(value).collect::<Vec<_>>(), ["1", "2"], "{arguments:?}");
    }
    let exit = setup.run(["import", "in.json"].into_iter().chain(shared)).expect(0);
    assert!(exit.stdout.contains("imported 2 entries, 0 of them new; 2 entries now"), "{exit}");
    for command in ["check", "repair", "restore"] {
        let exit = setup.run([command, "--store", "faults://entries"]).expect(2);
        assert!(exit.one_error().contains("works on the files of a store, and a shared store has none"), "{exit}");
    }
}
