//! With `count = "memory"`, `bytes` counts the memory of all stored entries exactly: their keys, values, media types,
//! details of plugins before and after it in the chain, content codings, and the index of what expires.
//!
//! Provoked with 16 clients that write, update, delete and batch the same keys near the limit, with entries that expire
//! meanwhile, with a later plugin that refuses, and with reloads. At rest, the count is the sum over all keys.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use vkog_tests::{
    Barrier, DEADLINE, Reply, Server, Setup, Wire, administered, amount, artefacts, bytes, conflict, pattern, ttl,
};

const LIMIT: u64 = 96 * 1024;
const KEYS: u64 = 40;
const TYPES: [&str; 3] =
    ["application/octet-stream", "text/plain", "application/vnd.example.measurement+json; charset=utf-8"];

fn setup() -> Setup {
    let limit = LIMIT.to_string();
    let setup = Setup::new().load(bytes()).load(conflict()).load(ttl());
    let setup = setup.load(artefacts().library("fault-refuses")).load(artefacts().library("witness-last"));
    setup.config(settings(1)).args(["--max-size", &limit, "--max-value", "1MiB"])
}

/// Another `round` makes a reload recreate `bytes`, which counts the stored entries again.
fn settings(round: usize) -> String {
    administered(&format!(
        "[plugins.bytes]\ncount = \"memory\"\noverhead = 200\nmax_size = {}\n",
        LIMIT + round as u64 % 2
    ))
}

/// Returns the cost of an entry, as the README of the plugin says.
fn cost(key: &str, found: &Reply, has_late_details: bool) -> u64 {
    let content_type = found.header("Content-Type").expect("a value has a media type");
    let content_type = if content_type == TYPES[0] { 0 } else { content_type.len() };
    let expires = found.header("Vkog-TTL").is_some();
    let details = [
        (expires, 1 + "ttl".len() + 2 + 8),
        (has_late_details, 1 + "witness-last".len() + 2 + format!("witness-last of {key}").len()),
        (found.header("Content-Encoding").is_some(), 1 + ":content-encoding".len() + 2 + "gzip".len()),
    ];
    let details: usize = details.iter().filter(|(is_set, _)| *is_set).map(|(_, len)| len).sum();
    let details = if details > 0 { 1 + details } else { 0 };
    let parts = 32 + key.len() + content_type + details + found.body.len();
    let index = if expires || has_late_details { 200 + key.len() } else { 0 };
    (21 + (parts.next_multiple_of(8) + 8).next_multiple_of(16) + index) as u64
}

/// Returns the plugin's count, from the refusal of a write.
fn counted(server: &Server) -> u64 {
    let refusal = server.post("no such key", pattern(LIMIT as usize)).refused(413, "Max size exceeded");
    let text = refusal.text();
    let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [_, free, limit] = numbers[..] else { panic!("not three numbers in {refusal}") };
    limit - free
}

/// Returns the sum over all keys, unless one of them expires within a second.
fn sum(server: &Server) -> Option<u64> {
    let mut sum = 0;
    for key in (0..KEYS).map(key) {
        let found = server.get(&key);
        if found.header("Vkog-TTL") == Some("1") {
            return None;
        }
        if found.status == 200 {
            // In the writes of these values, the plugin that is after `bytes` in the chain sets details.
            sum += cost(&key, &found, found.body.last() == Some(&b'+'));
        }
    }
    Some(sum)
}

fn key(number: u64) -> String {
    format!("{}{number}", "k".repeat(1 + number as usize % 20))
}

/// The same random numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn value(&mut self, is_late: bool) -> Vec<u8> {
        let mut value = pattern(1 + self.below(6000) as usize);
        value.push(if is_late { b'+' } else { b'-' });
        value
    }

    /// Returns the query of a write: it expires, a later plugin sets details of it, or refuses it.
    fn query(&mut self, is_late: bool) -> String {
        let life = ["", "&ttl=1h", "&ttl=1", "&ttl=none"][self.below(4) as usize];
        let late = if is_late { "&details-witness-last" } else { "" };
        let refused = ["", "&refuse=guard_put", "&refuse=guard_post"][self.below(8).saturating_sub(5) as usize];
        format!("?x{life}{late}{refused}")
    }
}

/// Runs one random operation, and returns its status.
fn operation(wire: &mut Wire, random: &mut Random) -> u16 {
    let is_late = random.below(3) == 0;
    let (key, query) = (key(random.below(KEYS)), random.query(is_late));
    let content_type = TYPES[random.below(3) as usize];
    let (method, path, content_type, body) = match random.below(12) {
        0..4 => ("POST", format!("/k/{key}{query}"), content_type, random.value(is_late)),
        4..8 => ("PUT", format!("/k/{key}{query}"), content_type, random.value(is_late)),
        8..10 => ("DELETE", format!("/k/{key}"), content_type, Vec::new()),
        _ => {
            let mut write = |number: u64| {
                let value = String::from_utf8_lossy(&random.value(is_late)).into_owned();
                let value: String = value.chars().filter(char::is_ascii).collect();
                let op = if random.below(2) == 0 { "post" } else { "put" };
                json!({ "op": op, "key": self::key(number % KEYS), "value": value, "content_type": content_type })
            };
            let mut all: Vec<Value> = (0..4).map(|number| write(number * 7)).collect();
            all.insert(2, json!({ "op": "delete", "key": self::key(random.below(KEYS)) }));
            ("POST", format!("/batch{query}"), "application/json", Value::from(all).to_string().into_bytes())
        }
    };
    let coding = if random.below(4) == 0 && !path.starts_with("/batch") { "Content-Encoding: gzip\r\n" } else { "" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{coding}Content-Length: {}\r\n\r\n",
        body.len()
    );
    wire.send([head.into_bytes(), body].concat()).reply().status
}

#[test]
fn the_memory_count_is_the_sum_over_all_entries_after_races() {
    const CLIENTS: usize = 16;
    let setup = setup();
    let server = setup.start();
    let start = Barrier::new(CLIENTS);
    let mut statuses = BTreeSet::new();
    thread::scope(|scope| {
        let clients = (1..).zip(server.wires(CLIENTS)).map(|(client, mut wire)| {
            let start = &start;
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(client));
                start.wait();
                (0..amount(200, 2000)).map(|_| operation(&mut wire, &mut random)).collect::<BTreeSet<_>>()
            })
        });
        let clients: Vec<_> = clients.collect();
        for round in 0..amount(5, 50) {
            setup.write_config(&settings(round));
            server.reload().expect(200);
        }
        for client in clients {
            statuses.append(&mut client.join().expect("the server responds to each client"));
        }
    });
    // A 409 is also the answer to a write whose entry expires while it is in flight.
    let expected = BTreeSet::from([200, 403, 404, 409, 413]);
    assert_eq!(statuses, expected, "{}", server.log());
    // What expires within the next second is removed.
    let begun = Instant::now();
    let held = loop {
        let (sum, counted) = (sum(&server), counted(&server));
        if sum == Some(counted) {
            break counted;
        }
        assert!(begun.elapsed() < DEADLINE, "{counted} bytes are counted, {sum:?} are stored");
        thread::yield_now();
    };
    assert!(held > LIMIT / 8, "{held} bytes are stored");
    server.stop().expect(0);
    let server = setup.start();
    assert_eq!(counted(&server), held, "the count after a restart");
    for number in 0..KEYS {
        server.delete(&key(number));
    }
    assert_eq!(counted(&server), 0);
}
