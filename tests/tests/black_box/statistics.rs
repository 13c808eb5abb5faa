//! The statistics of hooks in `/plugins` are right: calls, refusals and overruns are exact, times are close.
//!
//! Provoked with a plugin that sleeps, and with many reads of which the first of two plugins refuses some.

use std::thread;
use std::time::Instant;

use vkog_tests::{Setup, administered, artefacts, exclusive, guard_runs, median};

#[test]
fn a_hook_that_sleeps_five_milliseconds_shows_them() {
    const READS: u64 = 200;

    let _alone = exclusive();
    let config = "[plugins.drill]\nsleep_ms = 5\n";
    let server = Setup::new().load(artefacts().library("drill")).config(config).start();
    let mut wire = server.wire();
    let times = (0..READS).map(|_| {
        let began = Instant::now();
        wire.request("GET", "/k/absent", b"").expect(404);
        began.elapsed()
    });
    let waited = median(times.collect()).as_nanos() as u64;
    let plugin = server.plugin("drill");
    let hook = plugin["hooks"].as_array().and_then(|hooks| hooks.iter().find(|hook| hook["hook"] == "before_get"));
    let time = &hook.expect("it has the hook")["time"];
    let p50 = time["p50_ns"].as_u64().expect("it was measured");
    // On a busy system it sleeps longer, and the client waits as long.
    println!("p50 of 5 ms: {p50} ns; the client waited for {waited} ns");
    assert!((5_000_000..=waited * 6 / 5).contains(&p50), "p50 in {time}, beside {waited} ns");
    assert_eq!(time["measured"], READS, "all of few calls are timed: {time}");
    let at_least = |name: &str| time[name].as_u64() >= time["p50_ns"].as_u64();
    assert!(["p90_ns", "p99_ns", "max_ns"].into_iter().all(at_least), "{time}");
}

#[test]
fn calls_and_refusals_are_exact_also_if_an_earlier_plugin_refuses() {
    const CONNECTIONS: usize = 8;
    const ROUNDS: usize = 250;
    const AHEAD: usize = 50;
    const ALL: u64 = (CONNECTIONS * ROUNDS * AHEAD) as u64;

    assert_eq!(ALL, 100_000);
    let plugins = artefacts();
    let setup = Setup::new().load(plugins.library("fault-refuses")).load(plugins.library("fault-panics"));
    let order = "[plugins]\norder = [\"fault-refuses\", \"fault-panics\"]\n";
    let setup = setup.config(administered(order));
    let server = setup.start();
    server.post("k", "v").expect(200);
    // Of five reads, one is refused in `before`, one in `guard`.
    let queries = ["", "?refuse=before_get", "", "?refuse=guard_get", ""];
    let sent: Vec<u8> = (0..AHEAD)
        .flat_map(|read| format!("GET /k/k{} HTTP/1.1\r\nHost: localhost\r\n\r\n", queries[read % 5]).into_bytes())
        .collect();
    thread::scope(|scope| {
        for mut wire in server.wires(CONNECTIONS) {
            let sent = &sent;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    wire.send(sent);
                    for read in 0..AHEAD {
                        wire.reply().expect(if queries[read % 5].is_empty() { 200 } else { 403 });
                    }
                }
            });
        }
    });
    let counted =
        |plugin: &str, hook: &str| (server.count(plugin, hook, "calls"), server.count(plugin, hook, "refusals"));
    let fifth = ALL / 5;
    let right = || {
        assert_eq!(counted("fault-refuses", "before_get"), (5 * fifth, fifth));
        assert_eq!(counted("fault-panics", "before_get"), (4 * fifth, 0), "not called where an earlier one refuses");
        assert_eq!(counted("fault-refuses", "guard_get"), (4 * fifth, fifth));
        assert_eq!(counted("fault-panics", "guard_get"), (3 * fifth, 0));
        assert_eq!(counted("fault-panics", "after_get"), (3 * fifth, 0));
        assert_eq!(counted("fault-panics", "undo_get"), (0, 0), "it is behind the one that refuses");
        assert_eq!(counted("fault-panics", "before_post"), (1, 0));
    };
    right();
    // Also in another chain.
    setup.write_config(&administered("[plugins]\norder = [\"fault-panics\"]\n"));
    server.reload().expect(200);
    right();
    for _ in 0..10 {
        server.path("PUT", "/k/k?refuse=guard_put").body("v").send().expect(403);
    }
    let runs = 10 * guard_runs();
    assert_eq!(counted("fault-panics", "guard_put"), (runs, 0));
    assert_eq!(counted("fault-panics", "undo_put"), (runs, 0));
    assert_eq!(counted("fault-panics", "after_put"), (0, 0));
    assert_eq!(counted("fault-refuses", "guard_put"), (runs, runs));
}

#[test]
fn a_call_over_its_budget_is_counted_and_logged() {
    // A busy machine delays the other hooks, but not by so much.
    let config = "[plugins.drill]\nsleep_ms = 500\nbudget = \"250ms\"\n";
    let server = Setup::new().load(artefacts().library("drill")).config(config).start();
    server.post("k", "v").expect(200);
    (0..3).for_each(|_| _ = server.get("k").expect(200));
    assert_eq!(server.count("drill", "before_get", "overruns"), 3);
    assert_eq!(server.count("drill", "before_post", "overruns"), 0);
    assert_eq!(server.plugin("drill")["budget_ns"], 250_000_000);
    server.logs(&["plugin \\\"drill\\\" took ", "in before_get; its budget is 250ms"]);
    server.logs_no(&["in before_post"]);
}
