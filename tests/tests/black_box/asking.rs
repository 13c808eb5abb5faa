//! Store calls of plugins pass the whole chain, and are refused in hooks in which they could deadlock. Ticks run as
//! long as the plugin lives, and its metrics are published.
//!
//! Provoked with a plugin that calls the store in the hook that a request names, in its ticks and on its own thread,
//! during reloads and at the stop of the server.

use std::time::{Duration, Instant};

use serde_json::Value;
use vkog_tests::{DEADLINE, Server, Setup, administered, artefacts, bytes, conflict, pattern, with_background};

const VERBS: [&str; 4] = ["get", "post", "put", "delete"];

fn setup(config: &str) -> Setup {
    Setup::new().load(artefacts().library("drill")).config(administered(config))
}

/// Sends a request with this verb, with a value if it writes.
fn send(server: &Server, verb: &str, path: &str) -> vkog_tests::Reply {
    let request = server.path(&verb.to_uppercase(), path);
    if verb == "post" || verb == "put" { request.body("v").send() } else { request.send() }
}

/// Returns what the plugin logged.
fn said(log: &str) -> Vec<String> {
    let line = |line: &str| -> Option<String> {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["plugin"] == "drill").then(|| line["message"].as_str().unwrap_or_default().to_owned())
    };
    log.lines().filter_map(line).collect()
}

#[test]
fn store_calls_in_before_and_after_hooks_pass_the_whole_chain() {
    for phase in ["before", "after"] {
        for verb in VERBS {
            let server = setup("").load(conflict()).load(artefacts().library("witness-last")).start();
            let hook = format!("{phase}_{verb}");
            server.post("k", "v").expect(200);
            let key = if verb == "post" { "new" } else { "k" };
            send(&server, verb, &format!("/k/{key}?ask={hook}:post:other")).expect(200);
            server.get("other").expect(200).is("sent");
            server.logs(&["drill", &format!("{hook}: done")]);
            // The other plugins see which plugin called, and that clients are no plugins.
            server.logs(&["witness-last", "\\\"key\\\":\\\"other\\\"", "before_post", "\\\"asker\\\":\\\"drill\\\""]);
            server.logs(&["witness-last", "\\\"key\\\":\\\"other\\\"", "after_post", "\\\"asker\\\":\\\"drill\\\""]);
            server.logs(&["witness-last", "\\\"key\\\":\\\"k\\\"", "\\\"asker\\\":null"]);
            server.logs_no(&["\\\"key\\\":\\\"k\\\"", "\\\"asker\\\":\\\"drill\\\""]);
        }
    }
}

#[test]
fn a_store_call_returns_the_refusal_of_another_plugin() {
    let server = setup("").load(conflict()).start();
    server.post("k", "v").expect(200);
    let refused = server.path("GET", "/k/k?ask=before_get:post:k").send();
    refused.refused(409, "Key already exists").has("Vkog-Plugin", "drill");
    let told = server.path("GET", "/k/k?ask=after_get:put:absent").send().expect(200).is("v");
    assert!(told.header("X-Asked").is_some_and(|told| told.starts_with("refused 404 Key does not exist")), "{told}");
    server.path("PUT", "/k/k?ask=after_put:get:k").body("w").send().expect(200).has("X-Asked", "found w");
    server.path("PUT", "/k/k?ask=after_put:get:absent").body("w").send().expect(200).has("X-Asked", "absent");
}

#[test]
fn store_calls_in_guard_and_undo_hooks_are_refused_at_once() {
    let server = setup("").load(artefacts().library("fault-refuses")).start();
    for verb in VERBS {
        for asked in ["get", "post", "put", "delete"] {
            server.put("k", "v").expect(200);
            // Also for the locked key itself.
            let guard = send(&server, verb, &format!("/k/k?ask=guard_{verb}:{asked}:k"));
            guard.refused(508, "guard and undo hooks cannot send requests to the store").has("Vkog-Plugin", "drill");
            let path = format!("/k/k?ask=undo_{verb}:{asked}:k&refuse=guard_{verb}");
            send(&server, verb, &path).expect(403).has("Vkog-Plugin", "fault-refuses");
            server.get("k").expect(200).is("v");
        }
        server.logs(&[&format!("undo_{verb}: refused 508")]);
        server.logs_no(&[&format!("undo_{verb}: done")]);
    }
    let list = server.path("GET", "/k/k?list=guard_get:k").send();
    list.refused(508, "the store cannot be listed from here");
}

#[test]
fn store_calls_nest_eight_deep_and_no_deeper() {
    let server = setup("").start();
    server.post("k", "v").expect(200);
    server.path("GET", "/k/k?again=before_get").send().refused(508, "requests of plugins are nested more than 8 deep");
    assert_eq!(server.count("drill", "before_get", "calls"), 9);
    server.path("GET", "/k/k?again=after_get").send().expect(200).is("v").has("X-Asked", "found v");
    assert_eq!(server.count("drill", "after_get", "calls"), 9);
    server.logs(&["after_get: refused 508 requests of plugins are nested more than 8 deep"]);
    server.path("PUT", "/k/k?again=after_put").body("w").send().expect(200).has("X-Asked", "done");
    assert_eq!(server.count("drill", "after_put", "calls"), 9);
    server.get("k").expect(200).is("sent");
}

#[test]
fn for_each_returns_the_entries_that_a_get_would_find() {
    let server = setup("").load(artefacts().library("witness-first")).start();
    for key in ["a/1", "a/2", "a/hidden", "b/1", "a"] {
        server.post(key, key).expect(200);
    }
    server.get("a/hidden").expect(404);
    let list = |prefix: &str| {
        let reply = server.path("GET", &format!("/k/a?list=after_get:{prefix}")).send().expect(200);
        reply.header("X-Asked").unwrap_or_else(|| panic!("no list in {reply}")).to_owned()
    };
    assert_eq!(list("a/"), "a/1=a/1 a/2=a/2");
    assert_eq!(list(""), "a/1=a/1 a/2=a/2 a=a b/1=b/1");
    assert_eq!(list("c"), "");
}

#[test]
fn headers_that_after_hooks_add_reach_the_client() {
    let server = setup("[plugins.drill]\nlabel = \"here\"\n").start();
    for (verb, key) in [("post", "k"), ("put", "k"), ("get", "k"), ("head", "k"), ("delete", "k")] {
        send(&server, verb, &format!("/k/{key}")).expect(200).has("X-Label", "here");
    }
    let absent = server.get("k").expect(404);
    assert_eq!(absent.header("X-Label"), None, "nothing went out: {absent}");
}

#[test]
fn ticks_remove_entries_through_the_chain_and_the_count_of_bytes_stays_exact() {
    const LIMIT: usize = 64 * 1024;

    let limit = LIMIT.to_string();
    let setup = setup("[plugins.drill]\nlabel = \"a\"\ntick_ms = 1\nsweep = \"tmp/\"\n").load(bytes());
    let server = setup.args(["--max-size", &limit, "--max-value", "1MiB", "--fsync", "never"]).start();
    let writers = server.wires(4).into_iter().enumerate().map(|(client, mut wire)| {
        let mut round = 0;
        move || {
            round += 1;
            let reply =
                wire.request("PUT", &format!("/k/tmp/{client}/{}", round % 20), &pattern(1 + round * 37 % 3000));
            assert!([200, 413].contains(&reply.status), "{reply}");
        }
    });
    let ticks = || server.plugin("drill")["metrics"]["ticks_total"].as_i64().unwrap_or_default();
    let wait_for_ticks = |more: i64| {
        let (before, deadline) = (ticks(), Instant::now() + DEADLINE);
        while ticks() < before + more {
            assert!(Instant::now() < deadline, "it does not tick:\n{}", server.log());
        }
    };
    with_background(writers, || wait_for_ticks(100));
    // The requests in flight have ended, and one whole tick has seen the remaining entries.
    wait_for_ticks(3);
    assert_eq!(server.plugin("drill")["metrics"]["swept"], 0, "what the last tick removed");
    assert!(server.count("drill", "tick", "calls") >= 100);
    assert!(server.count("bytes", "after_delete", "calls") > 0, "bytes sees the removals of ticks");
    server.post("z", pattern(LIMIT)).refused(413, "Max size exceeded").says(&format!(", {LIMIT} of {LIMIT} are free"));
    server.post("z", pattern(LIMIT - 1)).expect(200);
}

#[test]
fn ticks_end_before_the_plugin_is_dropped() {
    let config = |label: &str, budget: u32| {
        format!("[plugins.drill]\nlabel = \"{label}\"\ntick_ms = 1\nsweep = \"tmp/\"\nbudget = \"{budget}s\"\n")
    };
    let setup = setup(&config("0", 10));
    let server = setup.start();
    for round in 1..=5 {
        server.post("tmp/a", "v").expect(200);
        server.logs(&[&format!("{} ticked", round - 1)]);
        setup.write_config(&administered(&config(&round.to_string(), 10 + round)));
        assert_eq!(server.reloaded("drill"), "reloaded");
        server.logs(&[&format!("{} is dropped", round - 1)]);
    }
    server.logs(&["5 ticked"]);
    let exit = server.stop().expect(0);
    let said = said(&exit.stderr);
    for round in 0..=5 {
        let dropped = said.iter().position(|line| *line == format!("{round} is dropped"));
        let after = &said[dropped.unwrap_or_else(|| panic!("{round} is not dropped: {exit}"))..];
        assert!(!after.contains(&format!("{round} ticked")), "{round} ticks after it was dropped: {exit}");
    }
}

#[test]
fn a_tick_that_returns_zero_is_called_at_most_every_millisecond() {
    let server = setup("[plugins.drill]\ntick_ms = 0\n").start();
    let ticks = || server.plugin("drill")["metrics"]["ticks_total"].as_u64().expect("a counter");
    let (began, before) = (Instant::now(), ticks());
    let mut ticked = 0;
    while ticked < 50 {
        ticked = ticks() - before;
        // The request that reads the counter counts itself, too.
        let most = began.elapsed().as_millis() + 2;
        assert!(u128::from(ticked) <= most, "{ticked} ticks in {most} ms");
    }
}

#[test]
fn a_slow_tick_delays_only_the_reload() {
    let config = |label: &str| {
        format!("[plugins.drill]\nlabel = {label:?}\ntick_ms = 1\ntick_takes_ms = 3000\nbudget = \"1{label}s\"\n")
    };
    let setup = setup(&config("1"));
    let server = setup.start();
    server.post("k", "v").expect(200);
    server.logs(&["1 ticked"]);
    // The next tick has started, or starts soon.
    let deadline = Instant::now() + DEADLINE;
    while server.plugin("drill")["metrics"]["ticks_total"].as_u64() < Some(2) {
        assert!(Instant::now() < deadline, "it does not tick:\n{}", server.log());
    }
    setup.write_config(&administered(&config("2")));
    let looks = server.wires(3).into_iter().map(|mut wire| {
        move || {
            let began = Instant::now();
            wire.request("GET", "/plugins", b"").expect(200);
            wire.request("GET", "/k/k", b"").expect(200);
            assert!(began.elapsed() < Duration::from_millis(1500), "to look takes {:?}", began.elapsed());
        }
    });
    let began = Instant::now();
    with_background(looks, || assert_eq!(server.reloaded("drill"), "reloaded"));
    assert!(began.elapsed() > Duration::from_secs(2), "no tick was running: {:?}", began.elapsed());
    let said = said(&server.log());
    let at = |line: &str| said.iter().rposition(|said| said == line);
    assert!(at("1 ticked") < at("1 is dropped"), "{said:?}");
}

#[test]
fn store_calls_before_start_are_refused_and_delay_no_reload_or_stop() {
    let config = |budget: u32| format!("[plugins.drill]\nwatch = \"k\"\nbudget = \"{budget}s\"\n");
    let setup = setup(&config(10));
    let server = setup.start();
    server.post("k", "v").expect(200);
    let refusals = |what: &str| said(&server.log()).iter().filter(|line| line.starts_with(what)).count();
    for round in 1..=5 {
        // The thread calls the store as soon as it is permitted.
        let deadline = Instant::now() + DEADLINE;
        while server.get("k").expect(200).body != b"watched" {
            assert!(Instant::now() < deadline, "its thread cannot ask:\n{}", server.log());
        }
        server.put("k", "v").expect(200);
        let began = Instant::now();
        setup.write_config(&administered(&config(10 + round)));
        assert_eq!(server.reloaded("drill"), "reloaded");
        assert!(began.elapsed() < DEADLINE / 6, "a reload took {:?}", began.elapsed());
        assert_eq!(refusals("create: refused 508 "), 1 + round as usize, "{}", server.log());
        assert_eq!(refusals("start: refused 508 "), 1 + round as usize, "{}", server.log());
    }
    let exit = server.stop().expect(0);
    assert_eq!(exit.stderr.matches("is dropped").count(), 6, "{exit}");
    assert!(!exit.stderr.contains("failed while it was dropped"), "{exit}");
}

#[test]
fn store_calls_in_hooks_and_a_reload_do_not_deadlock() {
    let config = |budget: u32| format!("[plugins.drill]\ntick_ms = 1\nsweep = \"tmp/\"\nbudget = \"{budget}s\"\n");
    let setup = setup(&config(10)).load(bytes());
    let server = setup.start();
    server.post("k", "v").expect(200);
    let asks = [
        ("PUT", "/k/own?ask=before_put:put:other"),
        ("PUT", "/k/k?ask=after_put:put:tmp/other"),
        ("GET", "/k/k?list=before_get:"),
        ("GET", "/k/k?ask=after_get:delete:own"),
    ];
    let clients = asks.into_iter().zip(server.wires(asks.len())).map(|((method, path), mut wire)| {
        move || {
            wire.request(method, path, if method == "PUT" { b"v" } else { b"" }).expect(200);
        }
    });
    with_background(clients, || {
        for round in 1..=10 {
            let began = Instant::now();
            setup.write_config(&administered(&config(10 + round)));
            assert_eq!(server.reloaded("drill"), "reloaded");
            assert!(began.elapsed() < DEADLINE / 6, "a reload took {:?}", began.elapsed());
        }
    });
    server.stop().expect(0);
}
