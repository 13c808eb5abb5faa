//! Entries that expire, over HTTP and by the system's clock, beside the other bundled plugins. Provoked with times to
//! live of one and two seconds. Tests with a controlled clock are in the plugin and in host/tests/ttl.rs.

use std::time::{Duration, Instant};

use vkog_tests::{Client, DEADLINE, Reply, Server, Setup, bytes, conflict, ttl};

/// Sends a write with a time to live.
#[track_caller]
fn write(server: &Client, method: &str, key: &str, time: &str) {
    server.key(method, key).header("Vkog-TTL", time).body("value").send().expect(200);
}

/// Returns the remaining seconds in a reply.
#[track_caller]
fn left(reply: &Reply) -> u64 {
    let left = reply.header("Vkog-TTL").and_then(|left| left.parse().ok());
    left.unwrap_or_else(|| panic!("no seconds are left in {reply}"))
}

/// Waits until a key is absent. Returns the duration.
#[track_caller]
fn gone(server: &Server, key: &str) -> Duration {
    let begun = Instant::now();
    while server.get(key).status != 404 {
        assert!(begun.elapsed() < DEADLINE, "{key} does not expire\n{}", server.log());
    }
    begun.elapsed()
}

fn all() -> Setup {
    Setup::new().load(bytes()).load(conflict()).load(ttl())
}

#[test]
fn an_entry_reports_its_remaining_seconds_and_is_absent_after_its_expiry() {
    let server = all().start();
    for key in ["a", "b", "c"] {
        write(&server, "POST", key, "2s");
    }
    let live = server.get("a").expect(200);
    assert!((1..=2).contains(&left(&live)) && left(&server.key("HEAD", "a").send()) <= 2, "{live}");
    server.post("a", "again").refused(409, "Key already exists");
    let took = gone(&server, "c");
    assert!(took > Duration::from_millis(500), "it was gone after {took:?}");
    server.key("HEAD", "a").send().expect(404);
    let tag = live.header("ETag").expect("a GET has an ETag").to_owned();
    server.key("GET", "a").header("If-None-Match", tag).send().refused(404, "Not Found");
    server.put("a", "again").refused(404, "Key does not exist");
    server.delete("b").refused(404, "Not Found");
    server.post("a", "again").expect(200);
    assert_eq!(server.get("a").expect(200).header("Vkog-TTL"), None);
}

#[test]
fn an_expired_entry_frees_its_space_without_a_request() {
    let server = all().args(["--max-size", "16"]).start();
    write(&server, "POST", "a", "1");
    server.post("other", "0123456789").refused(413, "Max size exceeded: \"other\" needs 15 bytes, 10 of 16 are free");
    let begun = Instant::now();
    while server.post("other", "0123456789").status != 200 {
        assert!(begun.elapsed() < DEADLINE, "no room\n{}", server.log());
    }
    server.post("b", "").refused(400, "No content provided");
    server.post("b", "1").refused(413, "Max size exceeded: \"b\" needs 2 bytes, 1 of 16 are free");
}

#[test]
fn an_expiry_survives_a_restart_and_a_kill() {
    let setup = all();
    let server = setup.start();
    write(&server, "POST", "long", "1h");
    write(&server, "POST", "short", "1s");
    server.stop();
    let server = setup.start();
    gone(&server, "short");
    assert!((3500..=3600).contains(&left(&server.get("long"))));
    write(&server, "POST", "short", "1s");
    write(&server, "PUT", "long", "2h");
    drop(server);
    let server = setup.start();
    gone(&server, "short");
    assert!((7100..=7200).contains(&left(&server.get("long"))));
}

#[test]
fn a_malformed_time_to_live_is_refused_and_writes_nothing() {
    let server = Setup::new().load(ttl()).config("[plugins.ttl]\nmax = \"1h\"\n").start();
    let post = |time: &str| server.key("POST", "a").header("Vkog-TTL", time).body("1").send();
    post("1h30m").refused(400, "Not a time to live: \"1h30m\"; use seconds such as 60").has("Vkog-Plugin", "ttl");
    post("2h").refused(400, "Time to live too long: 2h; the maximum is 1h");
    server.path("POST", "/k/a?ttl=none").body("1").send().refused(400, "Every entry must expire: use at most 1h");
    server.get("a").expect(404);
    server.path("POST", "/k/a?x&ttl=5m").body("1").send().expect(200);
    assert!((290..=300).contains(&left(&server.get("a"))));
}

#[test]
fn settings_that_contradict_each_other_stop_the_start() {
    let exit = Setup::new().load(ttl()).config("[plugins.ttl]\ndefault = \"2h\"\nmax = \"1h\"\n").fail();
    assert!(exit.stderr.contains("default is 2h and max is 1h; set default to at most max"), "{exit}");
}
