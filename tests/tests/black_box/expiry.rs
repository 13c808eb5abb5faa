//! Entries that expire at the same time are removed with few syncs of the log, and a write finds their space from their
//! expiry on.
//!
//! Provoked with thousands of entries of one time to live that fill the limit, with every write synced.

use std::time::Instant;

use serde_json::{Value, json};
use vkog_tests::{DEADLINE, Server, Setup, bytes, ttl};

const ENTRIES: u64 = 20_000;

/// Returns the value of a metric.
#[track_caller]
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Returns the total duration and the number of syncs of the log.
#[track_caller]
fn seconds(server: &Server) -> f64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let sum = text.lines().find_map(|line| line.strip_prefix("vkog_fsync_seconds_sum "));
    sum.and_then(|sum| sum.parse().ok()).unwrap_or_else(|| panic!("no sum in {text}"))
}

fn all(server: &Server) -> f64 {
    metric(server, "vkog_fsync_seconds_count") as f64
}

#[test]
fn entries_that_expire_together_are_removed_with_few_syncs() {
    let limit = ENTRIES * 9;
    let setup = Setup::new().load(ttl()).load(bytes()).args(["--fsync", "always", "-s", &limit.to_string()]);
    let server = setup.start();
    for first in (0..ENTRIES).step_by(1000) {
        let create = |number: u64| json!({ "op": "post", "key": format!("{number:08}"), "value": "x" });
        let body = Value::from((first..first + 1000).map(create).collect::<Vec<_>>()).to_string();
        server.path("POST", "/batch?ttl=4").header("Content-Type", "application/json").body(body).send().expect(200);
    }
    let filled = metric(&server, "vkog_fsync_seconds_count");
    // All of them share the room that one value takes. From when the last has expired it is there for that value, at once.
    let (last, begun) = (format!("{:08}", ENTRIES - 1), Instant::now());
    while server.get(&last).status == 200 {
        assert!(begun.elapsed() < DEADLINE, "it does not expire");
        std::thread::yield_now();
    }
    server.put("k", vec![b'x'; limit as usize - 1]).expect(200);
    // The space is free before the plugin has counted the removals.
    while metric(&server, "vkog_plugin_ttl_expired_total") < ENTRIES {
        assert!(begun.elapsed() < DEADLINE, "not all are counted as expired");
        std::thread::yield_now();
    }
    assert_eq!(metric(&server, "vkog_plugin_ttl_expired_total"), ENTRIES);
    let (syncs, time) = (metric(&server, "vkog_fsync_seconds_count") - filled, seconds(&server) / all(&server));
    println!("{syncs} syncs of {time} s for {ENTRIES} removals");
    // Removed by 16 threads, one entry after the other, 16 would share a sync at the most. On a disk that syncs
    // as fast as removals are asked for fewer share one, but never does each have its own.
    let most = if time < 5e-4 { ENTRIES / 4 } else { ENTRIES / 20 };
    assert!(syncs <= most, "{syncs} syncs for {ENTRIES} removals");
    assert_eq!((metric(&server, "vkog_entries"), metric(&server, "vkog_plugin_ttl_entries")), (1, 0));
    // If nothing has expired, a write that does not fit is refused.
    server.put("l", "x").refused(413, "Max size exceeded");
    // They stay absent.
    server.delete("k").expect(200);
    server.stop().expect(0);
    let server = setup.start();
    assert_eq!(metric(&server, "vkog_entries"), 0);
}
