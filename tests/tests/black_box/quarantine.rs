//! A plugin that panics repeatedly ends neither the process nor requests of other clients: it goes into quarantine, as
//! its settings say, until a reload.
//!
//! Provoked with a plugin that panics in the hook that a request names, before one that refuses, for the undo hooks.

use std::thread;
use std::time::Instant;

use vkog_tests::{DEADLINE, Reply, Server, Setup, Wire, administered, amount, artefacts, guard_runs, with_background};

const VERBS: [&str; 4] = ["get", "post", "put", "delete"];

fn setup(on_failure: &str) -> Setup {
    let plugins = artefacts();
    let setup = Setup::new().load(plugins.library("fault-panics")).load(plugins.library("fault-refuses"));
    let setup = setup.args(["--fsync", "never"]);
    setup.config(administered(&format!("[plugins.fault-panics]\non_failure = \"{on_failure}\"\n")))
}

/// Panics once in `before_put`.
fn panic_once(server: &Server) {
    server.path("PUT", "/k/k?panic=before_put").body("v").send().expect(500).has("Vkog-Plugin", "fault-panics");
}

#[test]
fn panics_in_every_hook_are_counted_and_disturb_no_other_request() {
    const CONNECTIONS: usize = 32;
    let rounds = amount(125, 625);
    let hooks: Vec<(&str, &str)> =
        ["before", "guard", "undo", "after"].into_iter().flat_map(|phase| VERBS.map(|verb| (phase, verb))).collect();
    let server = setup("keep").start();
    let others = server.wires(2).into_iter().enumerate().map(|(client, mut wire)| {
        let path = format!("/k/other-{client}");
        move || {
            wire.request("PUT", &path, b"v").expect(200);
            wire.request("GET", &path, b"").expect(200).is("v");
            wire.request("DELETE", &path, b"").expect(200);
        }
    });
    let wires = server.wires(CONNECTIONS);
    let panic = |client: usize, mut wire: Wire| {
        let path = format!("/k/panics-{client}");
        for _ in (client..rounds).step_by(CONNECTIONS) {
            for (phase, verb) in &hooks {
                wire.request("PUT", &path, b"v").expect(200);
                let refuse = if *phase == "undo" { format!("&refuse=guard_{verb}") } else { String::new() };
                let path = format!("{path}?panic={phase}_{verb}{refuse}");
                let body: &[u8] = if *verb == "post" || *verb == "put" { b"w" } else { b"" };
                let status = match *phase {
                    "after" => 200,
                    "undo" => 403,
                    _ => 500,
                };
                wire.request(&verb.to_uppercase(), &path, body).expect(status);
            }
        }
    };
    with_background(others, || {
        thread::scope(|scope| {
            for (client, wire) in wires.into_iter().enumerate() {
                let panic = &panic;
                scope.spawn(move || panic(client, wire));
            }
        });
    });
    for (phase, verb) in &hooks {
        let hook = format!("{phase}_{verb}");
        let panics = server.count("fault-panics", &hook, "panics");
        let is_repeated = ["guard", "undo"].contains(phase) && *verb != "get";
        let runs = if is_repeated { guard_runs() } else { 1 };
        assert_eq!(panics, runs * rounds as u64, "the panics in {hook}");
    }
    assert_eq!(server.plugin("fault-panics")["quarantined"], false);
    server.path("GET", "/readyz").send().expect(200);
    server.stop().expect(0);
}

#[test]
fn five_panics_put_a_plugin_into_quarantine_until_a_reload() {
    let server = setup("refuse").start();
    server.post("k", "v").expect(200);
    for _ in 0..4 {
        panic_once(&server);
        server.get("k").expect(200);
    }
    assert_eq!(server.plugin("fault-panics")["quarantined"], false);
    server.path("GET", "/readyz").send().expect(200);
    panic_once(&server);
    server.logs(&["fault-panics", "in quarantine", "5 panics"]);
    let refused = |reply: Reply| {
        reply.refused(503, "plugin \"fault-panics\" is in quarantine").has("Vkog-Plugin", "fault-panics");
    };
    refused(server.get("k"));
    refused(server.post("l", "v"));
    refused(server.put("k", "w"));
    refused(server.delete("k"));
    assert_eq!(server.plugin("fault-panics")["quarantined"], true);
    assert_eq!(server.count("fault-panics", "before_put", "panics"), 5);
    let ready = server.path("GET", "/readyz").send();
    ready.refused(503, "Not ready: plugin \"fault-panics\" is quarantined");
    server.path("GET", "/livez").send().expect(200);

    assert_eq!(server.reloaded("fault-panics"), "reloaded");
    assert_eq!(server.plugin("fault-panics")["quarantined"], false);
    server.path("GET", "/readyz").send().expect(200);
    server.get("k").expect(200).is("v");
    server.get("l").expect(404);
    // Its panics are counted from zero again.
    (0..5).for_each(|_| panic_once(&server));
    refused(server.get("k"));
}

#[test]
fn panics_in_after_hooks_count_and_a_plugin_with_skip_is_left_out() {
    let server = setup("skip").start();
    server.post("k", "v").expect(200);
    for _ in 0..5 {
        server.path("GET", "/k/k?panic=after_get").send().expect(200).is("v");
    }
    assert_eq!(server.plugin("fault-panics")["quarantined"], true);
    let calls = server.count("fault-panics", "before_put", "calls");
    // It would panic if it were called.
    server.path("PUT", "/k/k?panic=before_put").body("w").send().expect(200);
    server.get("k").expect(200).is("w");
    assert_eq!(server.count("fault-panics", "before_put", "calls"), calls);
    server.path("GET", "/readyz").send().expect(200);
    // Other plugins are called as before.
    server.path("PUT", "/k/k?refuse=guard_put").body("x").send().expect(403);

    assert_eq!(server.reloaded("fault-panics"), "reloaded");
    panic_once(&server);
}

#[test]
fn quarantine_begins_also_while_a_client_lists_the_plugins() {
    let server = setup("refuse").start();
    let looks = server.wires(2).into_iter().map(|mut wire| {
        move || {
            wire.request("GET", "/plugins", b"").expect(200);
        }
    });
    with_background(looks, || {
        for round in 0..20 {
            (0..5).for_each(|_| panic_once(&server));
            let deadline = Instant::now() + DEADLINE / 6;
            while server.put("k", "v").status == 200 {
                assert!(Instant::now() < deadline, "in round {round} a plugin in quarantine is still called");
            }
            assert_eq!(server.reloaded("fault-panics"), "reloaded");
        }
    });
}
