//! Entries that expire at the same time are removed by few syncs of the log, and their room is free again.
//!
//! Provoked with thousands of entries of one time to live, with every write synced, and with a limit that they fill.

use std::time::Instant;

use serde_json::{Value, json};
use vkog_tests::{DEADLINE, Server, Setup, bytes, ttl};

const ENTRIES: u64 = 20_000;

/// A number of `/metrics`.
#[track_caller]
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let number = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn entries_that_expire_at_once_are_removed_by_few_syncs_and_their_room_is_free() {
    let limit = ENTRIES * 9;
    let setup = Setup::new().load(ttl()).load(bytes()).args(["--fsync", "always", "-s", &limit.to_string()]);
    let server = setup.start();
    for first in (0..ENTRIES).step_by(1000) {
        let create = |number: u64| json!({ "op": "post", "key": format!("{number:08}"), "value": "x" });
        let body = Value::from((first..first + 1000).map(create).collect::<Vec<_>>()).to_string();
        server.path("POST", "/batch?ttl=4").header("Content-Type", "application/json").body(body).send().expect(200);
    }
    let filled = metric(&server, "vkog_fsync_seconds_count");
    let begun = Instant::now();
    while metric(&server, "vkog_plugin_ttl_expired_total") < ENTRIES {
        assert!(begun.elapsed() < DEADLINE, "not all have been removed");
        std::thread::yield_now();
    }
    let syncs = metric(&server, "vkog_fsync_seconds_count") - filled;
    println!("{syncs} syncs for {ENTRIES} removals");
    // One at a time from 16 threads would share a sync among 16 at the most.
    assert!(syncs <= ENTRIES / 100, "{syncs} syncs for {ENTRIES} removals");
    assert_eq!((metric(&server, "vkog_entries"), metric(&server, "vkog_plugin_ttl_entries")), (0, 0));
    server.put("k", vec![b'x'; limit as usize - 1]).expect(200);
    // They stay gone.
    server.delete("k").expect(200);
    server.stop().expect(0);
    let server = setup.start();
    assert_eq!(metric(&server, "vkog_entries"), 0);
}
