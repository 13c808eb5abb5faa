//! A route that behaves badly, or whose clients do, harms neither other clients nor the stop of the server.
//!
//! Provoked with a plugin whose routes hang, panic and send without end, and with clients that send bodies slowly or too large
//! ones, and that do not read.

use std::time::{Duration, Instant};

use vkog_tests::{DEADLINE, Server, Setup, Wire, administered, artefacts, exclusive, pattern, with_background};

use super::ENGINE;

/// The number of calls that a plugin serves at a time.
const CALLS_MAX: usize = 32;

fn setup() -> Setup {
    Setup::on(ENGINE).load(artefacts().library("serves"))
}

fn call(wire: &mut Wire, method: &str, path: &str) {
    wire.send(format!("{method} /x/serves/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
}

#[test]
fn a_route_that_does_not_respond_in_time_is_504() {
    let server = setup().args(["--route-timeout", "200ms"]).start();
    let reply = server.path("POST", "/x/serves/behave/hang").send();
    reply.refused(504, "plugin \"serves\" did not respond in time (route-timeout)").has("Vkog-Plugin", "serves");
    server.path("GET", "/x/serves/hello/a").send().expect(200);
}

#[test]
fn a_plugin_that_serves_the_maximum_number_of_requests_refuses_more() {
    let server = setup().start();
    let mut waiting = server.wires(CALLS_MAX);
    waiting.iter_mut().for_each(|wire| call(wire, "POST", "behave/wait"));
    let waits = |log: &str| log.matches("serve waits").count() == CALLS_MAX;
    assert!(server.logged(waits), "{}", server.log());
    let reply = server.path("GET", "/x/serves/hello/a").send().expect(503).has("Retry-After", "1");
    reply.says("serves 32 requests, which is the maximum");
    server.put("k", "v").expect(200);
    server.put("released", "now").expect(200);
    for wire in &mut waiting {
        wire.reply().expect(200).is("waited");
    }
    server.path("GET", "/x/serves/hello/a").send().expect(200);
}

#[test]
fn a_stream_whose_client_has_gone_ends() {
    let server = setup().start();
    let mut wire = server.wire();
    call(&mut wire, "GET", "stream/1000000");
    wire.try_head().expect("the response begins");
    wire.chunk().expect("it continues");
    drop(wire);
    server.logs(&["sent ", " of 1000000 parts"]);
    server.logs_no(&["sent 1000000 of"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_client_that_does_not_read_a_stream_holds_little_memory() {
    let server = setup().start();
    let before = server.proc_status("VmRSS");
    let mut wires: Vec<_> = (0..16).map(|_| server.wire()).collect();
    for wire in &mut wires {
        // More than the sockets buffer.
        call(wire, "GET", "stream/100000");
        wire.try_head().expect("the response begins");
    }
    // Other requests take longer than it would take to send much of the streams.
    for _ in 0..200 {
        server.put("k", pattern(10_000)).expect(200);
    }
    let grown = server.proc_status("VmRSS") - before;
    assert!(grown < 48 << 10, "{grown} KiB for 16 clients");
    drop(wires);
    let ended = |log: &str| log.matches(" of 100000 parts").count() == 16;
    assert!(server.logged(ended), "{}", server.log());
}

#[test]
fn a_stream_that_fails_does_not_look_complete() {
    let server = setup().start();
    let mut wire = server.wire();
    call(&mut wire, "POST", "behave/break");
    wire.try_head().expect("the response begins");
    assert_eq!(wire.chunk().expect("the first part"), b"the first part");
    let end = wire.chunk();
    assert!(end.is_err(), "the stream ended as if it were complete: {end:?}");
    server.logs(&["failed after it had responded"]);
}

#[test]
fn a_stream_may_pause() {
    let server = setup().start();
    let mut wire = server.wire();
    call(&mut wire, "POST", "behave/pause");
    wire.reply().expect(200).is("one two");
    wire.request("GET", "/x/serves/hello/a", b"").expect(200);
}

#[test]
fn a_stop_does_not_wait_for_a_route_that_hangs() {
    let server = setup().args(["--route-timeout", "200ms"]).start();
    server.put("k", "v").expect(200);
    server.path("POST", "/x/serves/behave/hang").send().expect(504);
    let began = Instant::now();
    server.stop().expect(0);
    assert!(began.elapsed() < Duration::from_secs(15), "the stop took {:?}", began.elapsed());
}

#[test]
fn a_body_that_a_route_still_holds_after_its_504_counts_against_the_budget() {
    const SIZES: [&str; 6] = ["--max-size", "1GiB", "--max-value", "12MiB", "--memory-budget", "16MiB"];
    let server = setup().args(SIZES).args(["--route-timeout", "200ms"]).start();
    server.path("POST", "/x/serves/behave/hang").body(pattern(8 << 20)).send().expect(504);
    server.put("k", pattern(10 << 20)).refused(503, "Not enough memory");
    server.put("k", pattern(1 << 20)).expect(200);
}

#[test]
fn a_call_in_flight_ends_in_the_plugin_that_a_reload_removes() {
    let setup = setup().config(administered(""));
    let server = setup.start();
    let mut wire = server.wire();
    call(&mut wire, "POST", "behave/wait");
    server.logs(&["serve waits"]);
    std::fs::remove_file(server.library_of("serves")).expect("it was there");
    std::thread::scope(|scope| {
        let authorization = format!("Bearer {}", vkog_tests::TOKEN);
        let client = server.client();
        let reload =
            scope.spawn(move || client.path("POST", "/plugins/reload").header("Authorization", authorization).send());
        let began = Instant::now();
        while server.path("GET", "/x/serves/hello/a").send().status != 404 {
            assert!(began.elapsed() < DEADLINE, "the plugin is not removed: {}", server.log());
        }
        server.put("released", "now").expect(200);
        wire.reply().expect(200).is("waited");
        reload.join().expect("it does not panic").expect(200).says("removed");
    });
}

/// Begins to misuse the routes, in each way four times.
fn attack(server: &Server, wires: &mut Vec<Wire>) {
    for _ in 0..4 {
        let mut wire = server.wire();
        wire.send("POST /x/serves/length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nslow");
        wires.push(wire);
        let mut wire = server.wire();
        wire.send("POST /x/serves/length HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n");
        wires.push(wire);
        for path in ["behave/hang", "behave/panic"] {
            let mut wire = server.wire();
            call(&mut wire, "POST", path);
            wires.push(wire);
        }
        let mut wire = server.wire();
        call(&mut wire, "GET", "stream/100000");
        wires.push(wire);
    }
}

#[test]
fn other_clients_are_served_while_a_route_is_under_attack() {
    let _exclusive = exclusive();
    let config = "[plugins.serves]\non_failure = \"keep\"\n";
    let server = setup().config(config).args(["--max-value", "1MiB", "--route-timeout", "500ms"]).start();
    server.put("k", "value").expect(200);
    let mut wires = Vec::new();
    attack(&server, &mut wires);
    let attacked = |log: &str| log.matches("serve hangs").count() == 4;
    assert!(server.logged(attacked), "{}", server.log());
    let mut times = Vec::new();
    let behave = || {
        let mut wire = server.wire();
        call(&mut wire, "POST", "behave/panic");
        let _ = wire.try_reply();
    };
    with_background([behave], || {
        let mut wire = server.wire();
        for _ in 0..2000 {
            let began = Instant::now();
            wire.request("GET", "/k/k", b"").expect(200).is("value");
            wire.request("PUT", "/k/k", b"value").expect(200);
            times.push(began.elapsed());
        }
    });
    times.sort();
    eprintln!("p50 {:?}, p99 {:?} of a GET and a PUT under attack", times[1000], times[1980]);
    server.path("GET", "/x/serves/hello/a").send().expect(200);
    drop(wires);
}
