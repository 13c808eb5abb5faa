//! Nothing prevents a server from stopping: neither a plugin that never returns, nor a start or a reload in progress.
//! All acknowledged writes exist after the next start. A reload that hangs in a plugin has already replaced the tokens,
//! and does not replace the plugin.
//!
//! Provoked with a plugin that never returns from the function that its settings name, and with a store that takes a
//! while to load.

#![cfg(unix)]

use std::time::{Duration, Instant};

use vkog_tests::{DEADLINE, ENGINES, Exit, Running, Server, Setup, administered, artefacts};

/// The maximum duration of a stop, in seconds.
const STOP_MAX: f64 = 15.0;
/// In seconds.
const DAY: f64 = 86_400.0;
/// The maximum duration of an immediate end, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn a_server_that_drains_is_not_ready_and_serves_until_its_time_is_over() {
    for engine in ENGINES {
        let server = Setup::on(engine).args(["--drain-time", "1h"]).start();
        let mut watch = server.watch("", "");
        server.path("GET", "/readyz").send().expect(200);
        server.signal("TERM");
        server.logs(&["draining for 1h: /readyz is 503, other requests are served"]);
        server.path("GET", "/readyz").send().refused(503, "Not ready: the server is about to stop (drain-time)");
        server.path("GET", "/livez").send().expect(200);
        server.put("k", "v").expect(200);
        assert_eq!(watch.events(1)[0].key(), "k");
        // A second signal ends it.
        server.stop().expect(1);
        let server = Setup::on(engine).args(["--drain-time", "100ms"]).start();
        server.put("k", "v").expect(200);
        let exit = server.stop().expect(0);
        let log = ["draining for 100ms", "stopping", "stopped"].map(|words| exit.stderr.find(words));
        assert!(log.is_sorted() && log[0].is_some(), "{exit}");
    }
}

fn hanging(place: &str) -> Setup {
    Setup::new().load(artefacts().library("hangs")).config(administered(&table(place)))
}

fn table(place: &str) -> String {
    format!("[plugins.hangs]\nwhere = {place:?}\n")
}

/// Starts a server with acknowledged writes, whose plugin never returns from this function.
fn hung(setup: &Setup, place: &str) -> Server {
    let server = setup.start();
    for key in 0..100 {
        server.put(&format!("key-{key}"), "kept").expect(200);
    }
    if place.ends_with("_put") {
        let mut wire = server.wire();
        wire.send("PUT /k/hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv");
        server.logs(&[&format!("{place} hangs")]);
        std::mem::forget(wire);
    } else if place == "tick" {
        server.logs(&["tick hangs"]);
    }
    server
}

#[track_caller]
fn all_is_there(setup: &Setup) {
    let server = Setup::new().store(setup.store_file()).start();
    for key in 0..100 {
        server.get(&format!("key-{key}")).expect(200).is("kept");
    }
}

/// Runs a test of each combination at the same time: most of it is waiting.
fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, run: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| run(case));
        }
    });
}

fn cases<'a>(places: &'a [&'a str]) -> impl Iterator<Item = (&'static str, &'a str)> {
    ENGINES.into_iter().flat_map(|engine| places.iter().map(move |place| (engine, *place)))
}

/// Returns when the server logged a message, in seconds of the day. Its own clock does not count the time that a busy machine
/// needs to send the signal and to notice the end.
fn logged(exit: &Exit, message: &str) -> f64 {
    let line = exit.stderr.lines().find(|line| line.contains(&format!("\"message\":\"{message}")));
    let line = line.unwrap_or_else(|| panic!("{message} in {exit}"));
    let time = line.split('T').nth(1).and_then(|rest| rest.split('Z').next()).expect("a timestamp");
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
}

/// Waits for the end, and asserts its maximum duration.
#[track_caller]
fn ends(server: Server, max: Duration) -> Exit {
    let began = Instant::now();
    let exit = server.stop();
    assert!(began.elapsed() < max, "the stop took {:?}: {exit}", began.elapsed());
    exit
}

#[test]
fn a_stop_ends_within_15_seconds_wherever_a_plugin_hangs() {
    at_once(cases(&["before_put", "guard_put", "after_put", "tick", "drop"]), |(engine, place)| {
        let setup = hanging(place).args(["--http", engine]);
        let server = hung(&setup, place);
        // A snapshot may wait for the entry that the plugin holds locked.
        server.signal("USR1");
        let exit = server.stop().expect(0);
        let took = logged(&exit, "stopped") - logged(&exit, "stopping");
        assert!(took.rem_euclid(DAY) < STOP_MAX, "the stop took {took} s: {exit}");
        let is_hook = place.ends_with("_put");
        let abandoned = if is_hook { "a request in a hook of a plugin (hangs)" } else { "plugin \\\"hangs\\\"" };
        let told = |line: &str| line.contains(abandoned) && line.contains("did not return and was abandoned");
        assert!(exit.stderr.lines().any(told), "{engine}: {place}: {exit}");
        all_is_there(&setup);
    });
}

#[test]
fn a_second_signal_ends_a_hanging_stop_at_once_and_keeps_all_acknowledged_writes() {
    let modes = ["always", "1h", "never"];
    at_once(cases(&["guard_put", "drop"]).zip(modes.into_iter().cycle()), |((engine, place), mode)| {
        let setup = hanging(place).args(["--http", engine, "--fsync", mode]);
        let server = hung(&setup, place);
        server.signal("TERM");
        server.logs(&["stopping"]);
        let exit = ends(server, AT_ONCE).expect(1);
        assert!(exit.stderr.contains("stopped immediately by a second signal"), "{engine}: {exit}");
        all_is_there(&setup);
    });
}

#[test]
fn a_second_signal_after_the_stop_does_not_change_the_exit_status() {
    for engine in ENGINES {
        let setup = hanging("exit").args(["--http", engine]);
        let server = hung(&setup, "exit");
        server.signal("TERM");
        server.logs(&["stopped"]);
        // The process waits for the library of the plugin.
        let exit = ends(server, AT_ONCE).expect(0);
        assert!(!exit.stderr.contains("second signal"), "{engine}: {exit}");
        all_is_there(&setup);
    }
}

/// Starts a server that does not listen yet.
fn starting(setup: &Setup) -> Running {
    let mut command = setup.vkog();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config", "vkog.toml", "--file"]).arg(setup.store_file());
    command.arg("--plugin-dir").arg(setup.plugin_folder());
    Running::start(&mut command)
}

#[test]
fn a_stop_during_a_start_that_hangs_in_a_plugin_ends_at_once() {
    at_once(["create", "start"], |place| {
        let setup = hanging(place);
        setup.write_config(&administered(&table(place)));
        let starting = starting(&setup);
        assert!(starting.stderr.wait_for(|log| log.contains(&format!("{place} hangs"))), "{}", starting.stderr.text());
        let began = Instant::now();
        starting.signal("TERM");
        let exit = starting.wait().expect(0);
        assert!(began.elapsed() < AT_ONCE && exit.stdout.is_empty(), "{:?}: {exit}", began.elapsed());
    });
}

#[test]
fn a_stop_while_a_large_store_loads_ends_at_once() {
    const ENTRIES: u32 = 3_000_000;
    let setup = hanging("");
    setup.write_config(&administered(&table("")));
    // A file of the Go program: a map of the entries, and their size.
    let mut store = b"\x82\xa2KV\xdf".to_vec();
    store.extend_from_slice(&ENTRIES.to_be_bytes());
    for entry in 0..ENTRIES {
        store.push(0xa8);
        store.extend_from_slice(format!("{entry:08}").as_bytes());
        store.extend_from_slice(b"\xc4\x01v");
    }
    store.extend_from_slice(b"\xa6KVSize\x00");
    std::fs::write(setup.store_file(), store).expect("it can be written");
    let lock = setup.store_file().with_extension("vkog.lock");
    let starting = starting(&setup);
    let deadline = Instant::now() + DEADLINE;
    // The lock is taken just before the store is read.
    while std::fs::read_to_string(&lock).unwrap_or_default().trim() != starting.id().to_string() {
        assert!(Instant::now() < deadline, "it does not open the store: {}", starting.stderr.text());
        std::thread::park_timeout(Duration::from_millis(1));
    }
    starting.signal("TERM");
    let exit = starting.wait().expect(0);
    assert!(exit.stdout.is_empty() && !exit.stderr.contains("opened"), "{exit}");
}

#[test]
fn a_withdrawn_token_is_refused_while_the_same_reload_hangs_in_a_plugin() {
    for engine in ENGINES {
        let tokens = "[[access.tokens]]\nname = \"guest\"\ntoken = \"guest\"\nright = \"write\"\n";
        let closed = |config: &str| administered(config).replace("open = true\n", "");
        let setup = hanging("").args(["--http", engine]).config(closed(&format!("{tokens}{}", table(""))));
        let server = setup.start();
        let ask = |path: &str, token: &str| {
            server.path("GET", path).header("Authorization", format!("Bearer {token}")).send().status
        };
        assert_eq!((ask("/k/a", "guest"), ask("/plugins", "s3cret")), (404, 200));
        setup.write_config(&closed(&format!("{}budget = \"1s\"\n", table("create"))));
        server.signal("HUP");
        server.logs(&["create hangs"]);
        assert_eq!((ask("/k/a", "guest"), ask("/plugins", "s3cret"), ask("/k/a", "s3cret")), (401, 200, 404));
        // The reload is still in flight.
        let exit = ends(server, AT_ONCE).expect(0);
        assert!(!exit.stderr.contains("no-return"), "{exit}");
    }
}

#[test]
fn a_plugin_that_never_returns_fails_only_its_own_reload() {
    at_once(["create", "settings_changed", "start"], |place| {
        let setup = hanging("");
        let server = hung(&setup, "");
        // A change of the host's own keys needs a new instance.
        let fresh = if place == "settings_changed" { "" } else { "budget = \"1s\"\n" };
        setup.write_config(&administered(&format!("{}{fresh}", table(place))));
        assert_eq!(server.reloaded("hangs"), "no-return", "{place}");
        server.logs(&[place, "did not return within 10s and was abandoned"]);
        // The old instance continues, and no entry is locked.
        for key in 0..100 {
            server.put(&format!("key-{key}"), "kept").expect(200);
        }
        assert_eq!(server.plugin("hangs")["settings"]["where"], "", "{place}");
        setup.write_config(&administered(&format!("{}budget = \"2s\"\n", table(""))));
        assert_eq!(server.reloaded("hangs"), "reloaded", "{place}");
        ends(server, AT_ONCE).expect(0);
        all_is_there(&setup);
    });
}

#[test]
fn a_replaced_plugin_that_hangs_in_drop_or_tick_delays_no_later_reload() {
    at_once(["drop", "tick"], |place| {
        let setup = hanging(place);
        let server = hung(&setup, place);
        setup.write_config(&administered(&format!("{}budget = \"1s\"\n", table(""))));
        assert_eq!(server.reloaded("hangs"), "reloaded", "{place}");
        server.logs(&["hangs", "was replaced, but its", "is abandoned"]);
        setup.write_config(&administered(&format!("{}budget = \"2s\"\n", table(""))));
        assert_eq!(server.reloaded("hangs"), "reloaded", "{place}");
        ends(server, AT_ONCE).expect(0);
        all_is_there(&setup);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_was_suspended_continues_with_the_bodies_that_it_was_reading() {
    for engine in ENGINES {
        let server = Setup::on(engine).start();
        for end in ["Content-Length: 8\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
            let mut wire = server.wire();
            // The server sends `100 Continue` just before it reads the body.
            wire.send("PUT /k/k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n");
            let (head, half) = end.split_at(end.len() - if end.starts_with('C') { 4 } else { 9 });
            wire.send(head);
            assert_eq!(wire.try_head().expect("it continues").status, 100, "{engine}");
            wire.send(half);
            (0..20).for_each(|_| drop(server.pause()));
            wire.send(if end.starts_with('C') { "-way" } else { "4\r\n-way\r\n0\r\n\r\n" });
            wire.reply().expect(200);
            server.get("k").expect(200).is("half-way");
        }
    }
}
