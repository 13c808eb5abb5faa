//! The bytes plugin counts `len(key) + len(value)` of all stored entries, always exactly.
//!
//! Provoked at the edge of the limit, where a count that is off by one byte changes the status: a 413 reports the
//! needed and the free bytes. Then with 16 concurrent clients, and with another plugin that refuses writes that bytes
//! accepts.

use std::collections::BTreeMap;
use std::thread;

use vkog_tests::{Barrier, Reply, Server, Setup, artefacts, bytes, conflict, pattern};

use super::ENGINE;

/// The numbers in a 413: the needed bytes, the free bytes, and the limit.
fn told(refusal: &Reply) -> (u64, u64, u64) {
    let text = refusal.text();
    let rest = text.rsplit("\" needs ").next().unwrap_or_default();
    let numbers: Vec<u64> =
        rest.split(|char: char| !char.is_ascii_digit()).filter_map(|run| run.parse().ok()).collect();
    match numbers[..] {
        [needed, free, limit] => (needed, free, limit),
        _ => panic!("not three numbers in {refusal}"),
    }
}

/// Returns the plugin's count, from the refusal of a write.
fn counted(server: &Server, limit: u64) -> u64 {
    let refusal = server.post("no such key", pattern(limit as usize)).refused(413, "Max size exceeded");
    let (_, free, told_limit) = told(&refusal);
    assert_eq!(told_limit, limit, "the limit in {refusal}");
    limit - free
}

#[test]
fn the_limit_is_exact_to_the_byte() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["-s", "100", "--max-value", "1MiB"]).start();
    server.post("abc", pattern(98)).refused(413, r#"Max size exceeded: "abc" needs 101 bytes, 100 of 100 are free"#);
    server.post("abc", pattern(97)).expect(200);
    server.post("k", "v").refused(413, r#"Max size exceeded: "k" needs 2 bytes, 0 of 100 are free"#);
    // An update counts for its difference.
    server.put("abc", pattern(98)).refused(413, r#"Max size exceeded: "abc" needs 1 bytes, 0 of 100 are free"#);
    server.put("abc", pattern(97)).expect(200);
    server.put("abc", pattern(95)).expect(200);
    server.post("k", "v").expect(200);
    server.post("l", "v").refused(413, r#"Max size exceeded: "l" needs 2 bytes, 0 of 100 are free"#);
    server.delete("k").expect(200);
    server.post("é", "").refused(400, "No content provided");
    server.post("é", "ü").refused(413, r#"Max size exceeded: "é" needs 4 bytes, 2 of 100 are free"#);
    server.delete("abc").expect(200);
    server.post("é", pattern(98)).expect(200);
    assert_eq!(counted(&server, 100), 100);
}

#[test]
fn a_refused_write_reserves_nothing() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["-s", "100", "--max-value", "1MiB"]).start();
    server.post("k", pattern(49)).expect(200);
    for _ in 0..10 {
        server.post("k", pattern(40)).refused(409, "Key already exists");
        server.put("absent", pattern(40)).refused(404, "Key does not exist");
        server.delete("absent").refused(404, "Not Found");
        server.post("l", pattern(60)).refused(413, "Max size exceeded");
        server.put("l", "").refused(400, "No content provided");
    }
    assert_eq!(counted(&server, 100), 50);
    server.post("l", pattern(49)).expect(200);
}

#[test]
fn without_conflict_an_overwriting_post_and_a_creating_put_are_counted() {
    let server = Setup::on(ENGINE).load(bytes()).args(["-s", "100", "--max-value", "1MiB"]).start();
    server.put("k", pattern(50)).expect(200);
    server.post("k", pattern(20)).expect(200);
    assert_eq!(counted(&server, 100), 21);
    server.post("k", pattern(100)).refused(413, r#"Max size exceeded: "k" needs 80 bytes, 79 of 100 are free"#);
    server.post("k", pattern(99)).expect(200);
    assert_eq!(counted(&server, 100), 100);
}

#[test]
fn bytes_counts_the_stored_entries_at_the_start() {
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["-s", "1000", "--max-value", "1MiB"]);
    let server = setup.start();
    server.post("a", pattern(99)).expect(200);
    server.post("b", pattern(299)).expect(200);
    server.put("b", pattern(199)).expect(200);
    server.post("c", pattern(99)).expect(200);
    server.delete("c").expect(200);
    server.stop().expect(0);
    let server = setup.start();
    assert_eq!(counted(&server, 1000), 300);
    server.delete("a").expect(200);
    assert_eq!(counted(&server, 1000), 200);
}

/// 16 clients write, update and delete 40 keys with random sizes against a limit that is always near. Every refusal has to
/// be justified by its own numbers; at the end the sum over all keys is what the plugin has counted.
fn race(setup: Setup, refusals: &[(u16, &str)]) {
    const LIMIT: u64 = 64 * 1024;
    const CLIENTS: u64 = 16;
    const ROUNDS: u64 = 250;
    const KEYS: u64 = 40;

    let limit = LIMIT.to_string();
    let setup = setup.args(["--max-size", &limit, "--max-value", "1MiB"]);
    let server = setup.start();
    let start = Barrier::new(CLIENTS as usize);
    let mut seen: BTreeMap<(u16, String), u64> = BTreeMap::new();
    thread::scope(|scope| {
        let wires = server.wires(CLIENTS as usize).into_iter();
        let clients: Vec<_> = (0..CLIENTS)
            .zip(wires)
            .map(|(client, mut wire)| {
                let start = &start;
                scope.spawn(move || {
                    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(client + 1);
                    let mut below = |bound: u64| {
                        // Xorshift, so that every run is the same.
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random % bound
                    };
                    let mut seen = Vec::new();
                    start.wait();
                    for _ in 0..ROUNDS {
                        let path = format!("/k/{}{}", "k".repeat(1 + below(20) as usize % 3), below(KEYS));
                        let mut value = pattern(1 + below(6000) as usize);
                        if below(4) == 0 {
                            value[0] = b'!';
                        }
                        let reply = match below(10) {
                            0..4 => wire.request("POST", &path, &value),
                            4..8 => wire.request("PUT", &path, &value),
                            _ => wire.request("DELETE", &path, b""),
                        };
                        if reply.status == 413 {
                            let (needed, free, limit) = told(&reply);
                            assert!(
                                needed > free && free <= limit && limit == LIMIT,
                                "refused without a reason: {reply}"
                            );
                        }
                        let plugin = reply.header("Vkog-Plugin").unwrap_or_default().to_owned();
                        seen.push((reply.status, plugin));
                    }
                    seen
                })
            })
            .collect();
        for client in clients {
            for answer in client.join().expect("a client's assertions hold") {
                *seen.entry(answer).or_default() += 1;
            }
        }
    });
    // Every expected status has occurred, and no other one.
    let expected: Vec<(u16, String)> = refusals.iter().map(|&(status, plugin)| (status, plugin.to_owned())).collect();
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), expected, "{seen:?}\n{}", server.log());

    let mut sum = 0;
    for prefix in ["k", "kk", "kkk"] {
        for number in 0..KEYS {
            let key = format!("{prefix}{number}");
            let reply = server.get(&key);
            if reply.status == 200 {
                sum += (key.len() + reply.body.len()) as u64;
            }
        }
    }
    assert!(sum <= LIMIT, "{sum} bytes are held, {LIMIT} is the limit");
    assert_eq!(counted(&server, LIMIT), sum, "the plugin's count and the sum over all keys");
    // The rest can be filled exactly.
    if LIMIT - sum > 1 {
        server.post("z", pattern((LIMIT - sum) as usize)).refused(413, "Max size exceeded");
        server.post("z", pattern((LIMIT - sum - 1) as usize)).expect(200);
        assert_eq!(counted(&server, LIMIT), LIMIT);
        sum = LIMIT;
    }
    server.stop().expect(0);
    assert_eq!(counted(&setup.start(), LIMIT), sum, "the plugin's count after a restart");
}

#[test]
fn racing_clients_never_exceed_the_limit_and_the_count_stays_exact() {
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict());
    race(setup, &[(200, ""), (404, ""), (404, "conflict"), (409, "conflict"), (413, "bytes")]);
}

#[test]
fn the_count_stays_exact_without_conflict() {
    race(Setup::on(ENGINE).load(bytes()), &[(200, ""), (404, ""), (413, "bytes")]);
}

#[test]
fn the_count_stays_exact_if_a_later_plugin_refuses() {
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict()).load(artefacts().library("fault-refuses"));
    let setup = setup.config("[plugins.fault-refuses]\nwhere = \"guard_put\"\nvalue = \"!\"\n");
    let all = [(200, ""), (403, "fault-refuses"), (404, ""), (404, "conflict"), (409, "conflict"), (413, "bytes")];
    race(setup, &all);
}
