//! `DELETE /keys` removes the keys with a prefix in bounded steps, each key through the hooks of plugins, and can be continued
//! after a crash; `vkog delete --prefix` repeats it until no key is left.
//!
//! Provoked with a plugin that refuses to delete some keys, with steps of a few keys, and by killing the server between two of
//! them.

use serde_json::{Value, json};
use vkog_tests::{Client, Exit, Running, Server, Setup, artefacts, encode};

use super::ENGINE;

/// A server whose plugin refuses to delete keys that start with `a/keep`.
fn refusing() -> Setup {
    let config = "[plugins.fault-refuses]\nwhere = \"guard_delete\"\nkey = \"a/keep\"\nstatus = 423\n";
    Setup::on(ENGINE).load(artefacts().library("fault-refuses")).config(config)
}

#[track_caller]
fn put_all(server: &Client, keys: &[&str]) {
    for key in keys {
        server.put(key, "value").expect(200);
    }
}

/// Sends a deletion and returns the document of the response.
#[track_caller]
fn delete(server: &Client, query: &str) -> Value {
    let reply = server.path("DELETE", &format!("/keys?{query}")).send().expect(200);
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

/// Returns the keys of the store.
#[track_caller]
fn keys(server: &Client) -> Vec<String> {
    let reply = server.path("GET", "/keys").send().expect(200);
    let page: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let key = |key: &Value| key["key"].as_str().expect("a key").to_owned();
    page["keys"].as_array().expect("a list").iter().map(key).collect()
}

#[test]
fn a_deletion_by_prefix_removes_a_page_and_names_the_refused_keys() {
    let server = refusing().start();
    put_all(&server, &["a", "a/1", "a/2", "a/keep", "a/keep2", "a/z", "b/1"]);
    let since = server.put("b/1", "again").revision();
    let step = delete(&server, "prefix=a/&limit=3");
    let refused = |key: &str| json!({ "type": "about:blank", "title": "refused on purpose", "status": 423, "plugin": "fault-refuses", "key": key });
    assert_eq!(step, json!({ "deleted": 2, "refused": [refused("a/keep")], "next": "a/keep" }));
    assert_eq!(keys(&server), ["a", "a/keep", "a/keep2", "a/z", "b/1"]);
    let step = delete(&server, "prefix=a/&limit=3&after=a/keep");
    assert_eq!(step, json!({ "deleted": 1, "refused": [refused("a/keep2")], "next": null }));
    assert_eq!(keys(&server), ["a", "a/keep", "a/keep2", "b/1"]);
    let mut watch = server.watch(&format!("since={since}"), "");
    let mut seen: Vec<_> = watch.events(3).iter().map(|event| (event.name.clone(), event.key().to_owned())).collect();
    seen[..2].sort_unstable();
    assert_eq!(seen, ["a/1", "a/2", "a/z"].map(|key| ("delete".to_owned(), key.to_owned())));
    assert_eq!(
        delete(&server, "all"),
        json!({ "deleted": 2, "refused": [refused("a/keep"), refused("a/keep2")], "next": null })
    );
    assert_eq!(keys(&server), ["a/keep", "a/keep2"]);
}

#[test]
fn a_dry_run_returns_the_keys_and_deletes_nothing() {
    let server = refusing().start();
    put_all(&server, &["a/1", "a/2", "a/keep", "b"]);
    assert_eq!(delete(&server, "prefix=a/&dry_run&limit=2"), json!({ "would_delete": ["a/1", "a/2"], "next": "a/2" }));
    assert_eq!(delete(&server, "prefix=a/&dry_run&after=a/2"), json!({ "would_delete": ["a/keep"], "next": null }));
    assert_eq!(keys(&server).len(), 4);
}

#[test]
fn a_deletion_without_a_prefix_or_with_an_unknown_parameter_deletes_nothing() {
    let server = Setup::on(ENGINE).start();
    put_all(&server, &["a", "b"]);
    for (query, words) in [
        ("", "prefix is missing; name the prefix, or send all to delete every key"),
        ("prefix=", "prefix is missing"),
        ("prefix=a&dryrun", "The parameter \"dryrun\" is unknown"),
        ("prefix=a&dry_run=true", "dry_run takes no value"),
        ("prefix=a&all", "prefix and all exclude each other"),
        ("prefix=a&prefix=b", "The parameter prefix is repeated"),
        ("all&limit=1001", "limit is \"1001\""),
    ] {
        server.path("DELETE", &format!("/keys?{query}")).send().refused(400, words);
    }
    server.path("DELETE", "/keys").send().refused(400, "prefix is missing");
    for (name, value) in [("If-Match", "\"1\""), ("If-None-Match", "*")] {
        let fact = format!("{name} is not supported for a deletion by prefix; delete the keys one by one");
        server.path("DELETE", "/keys?prefix=a").header(name, value).send().refused(400, &fact);
    }
    let fact = "DELETE takes no content; name the keys in the query";
    server.path("DELETE", "/keys?prefix=a").body("[\"a\"]").send().refused(400, fact);
    assert_eq!(keys(&server), ["a", "b"]);
}

#[test]
fn a_client_that_a_plugin_does_not_let_read_deletes_nothing() {
    let config = "[plugins.bearer]\ntoken = \"s3cret\"\n";
    let server = Setup::on(ENGINE).load(artefacts().library("vkog-bearer")).config(config).start();
    let authorized = |method: &str, path: &str| server.path(method, path).header("Authorization", "Bearer s3cret");
    authorized("PUT", "/k/hidden").body("value").send().expect(200);
    server.path("DELETE", "/keys?prefix=hid").send().refused(401, "Send the token").has("Vkog-Plugin", "bearer");
    authorized("GET", "/k/hidden").send().expect(200);
    authorized("DELETE", "/keys?prefix=hid").send().expect(200);
    authorized("GET", "/k/hidden").send().expect(404);
}

#[test]
fn a_deletion_continues_after_a_kill_and_its_steps_share_syncs() {
    let setup = Setup::on(ENGINE).args(["--fsync", "always"]);
    let server = setup.start();
    let put = |number: u32| json!({ "op": "put", "key": format!("a/{number:04}"), "value": "x" });
    for first in [0, 1000] {
        let body = Value::from((first..first + 1000).map(put).collect::<Vec<_>>()).to_string();
        server.path("POST", "/batch").header("Content-Type", "application/json").body(body).send().expect(200);
    }
    let syncs = |server: &Server| -> u64 {
        let text = server.path("GET", "/metrics").send().expect(200).text();
        let count = text.lines().find_map(|line| line.strip_prefix("vkog_fsync_seconds_count "));
        count.and_then(|count| count.parse().ok()).expect("a count")
    };
    let before = syncs(&server);
    let step = delete(&server, "prefix=a/");
    assert_eq!((&step["deleted"], &step["next"]), (&json!(1000), &json!("a/0999")));
    let shared = syncs(&server) - before;
    assert!(shared <= 250, "{shared} syncs for 1000 deletions");
    // Kills it.
    drop(server);
    let server = setup.start();
    assert_eq!(keys(&server).first().map(String::as_str), Some("a/1000"));
    let step = delete(&server, &format!("prefix=a/&after={}", encode("a/0999")));
    assert_eq!(step, json!({ "deleted": 1000, "refused": [], "next": null }));
    assert_eq!(keys(&server), [""; 0]);
}

/// Runs a shell command in which `vkog` uses this server.
#[track_caller]
fn run(setup: &Setup, server: &Server, line: &str) -> Exit {
    Running::start(setup.shell(line).env("VKOG_URL", format!("http://{}", server.address()))).wait()
}

#[test]
fn the_client_deletes_by_prefix_after_a_confirmation_and_names_refused_keys() {
    let setup = refusing();
    let server = setup.start();
    put_all(&server, &["a/1", "a/2", "a/keep", "b c", "b%"]);
    let exit = run(&setup, &server, "vkog delete --prefix a/").expect(2);
    let unconfirmed = "vkog: deleting 3 keys needs a confirmation; add --yes, or --dry-run to print the keys";
    assert_eq!((exit.one_error(), &*exit.stdout), (unconfirmed, ""), "{exit}");
    let exit = run(&setup, &server, "vkog delete --prefix zz").expect(0);
    assert_eq!((&*exit.stdout, &*exit.stderr), ("deleted 0 keys\n", ""), "{exit}");
    let exit = run(&setup, &server, "vkog delete --prefix b --dry-run").expect(0);
    assert_eq!((&*exit.stdout, exit.stderr.trim()), ("b c\nb%\n", "2 keys would be deleted"), "{exit}");
    for line in [
        "vkog delete",
        "vkog delete a/1 --prefix a/",
        "vkog delete a/1 --yes",
        "vkog delete --prefix ''",
        "vkog delete --prefix '' --yes",
        "vkog delete --prefix a/ --all --yes",
        "vkog delete --prefix a/ --yes --if-match 7",
    ] {
        run(&setup, &server, line).expect(2);
    }
    assert_eq!(keys(&server).len(), 5);
    let exit = run(&setup, &server, "vkog delete --prefix b --yes").expect(0);
    assert_eq!((&*exit.stdout, &*exit.stderr), ("deleted 2 keys\n", ""), "{exit}");
    let exit = run(&setup, &server, "vkog delete --all --yes").expect(4);
    assert_eq!(exit.stdout, "deleted 2 keys\n", "{exit}");
    assert_eq!(exit.one_error(), "vkog: cannot delete a/keep: refused on purpose (423)", "{exit}");
    assert_eq!(keys(&server), ["a/keep"]);
}
