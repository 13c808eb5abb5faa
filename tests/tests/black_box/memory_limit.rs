//! With `count = "memory"`, the limit of `bytes` limits the memory of the server: its resident memory stays below 1.15
//! times the limit plus that of an empty server, for small and for large entries, with media types and expiries.
//!
//! Provoked by filling a server until it refuses, by writing all entries again, and by replacing half of the large ones by
//! entries of another size.
#![cfg(target_os = "linux")]

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vkog_tests::{DEADLINE, Server, Setup, amount, bytes, exclusive, on_windows, pattern, ttl};

/// The media type of the entries that have one.
const CONTENT_TYPE: &str = "application/vnd.example.measurement+json";

/// The entries of a server: all have keys of 8 bytes.
#[derive(Copy, Clone, Debug)]
struct Kind {
    value_len: usize,
    /// They have a media type, and expire.
    is_rich: bool,
    /// The cost of an entry, as the README of the plugin says.
    cost: u64,
}

const KINDS: [Kind; 6] = [
    Kind { value_len: 1, is_rich: false, cost: 64 + 21 },
    Kind { value_len: 1, is_rich: true, cost: 112 + 21 + INDEX },
    Kind { value_len: 1016, is_rich: false, cost: 1072 + 21 },
    Kind { value_len: 1016, is_rich: true, cost: 1120 + 21 + INDEX },
    Kind { value_len: (1 << 20) - 8, is_rich: false, cost: (1 << 20) + 4096 + 21 },
    Kind { value_len: (1 << 20) - 8, is_rich: true, cost: (1 << 20) + 4096 + 21 + INDEX },
];
/// The default overhead of an entry that expires, and the copy of its key.
const INDEX: u64 = 208 + 8;

fn setup(count: &str, limit: u64) -> Setup {
    let limit = limit.to_string();
    let arguments = ["--http", "hyper", "--fsync", "never", "--watch-history", "1KiB", "-s", &limit];
    let setup = Setup::new().load(bytes()).load(ttl()).config(format!("[plugins.bytes]\ncount = {count:?}\n"));
    setup.args(arguments)
}

/// Returns the resident memory of the server, in bytes.
fn resident(server: &Server) -> u64 {
    server.proc_status("VmRSS") << 10
}

/// Returns the resident memory of the server as soon as it is within the bound, or what it is at the deadline. The bound leaves
/// out requests in flight, and a server frees a request of more than 1 MiB only after its response has been received here.
fn resident_when_idle(server: &Server, bound: u64) -> u64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let resident = resident(server);
        if resident <= bound || Instant::now() > deadline {
            return resident;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

impl Kind {
    /// Writes the entries with these numbers, in batches of about 512 KiB. Returns the number of the first one that the
    /// server has refused, if any.
    fn write(self, server: &Server, numbers: impl Iterator<Item = u64>) -> Option<u64> {
        let value: String = pattern(self.value_len).into_iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let create = |number: &u64| {
            let mut create = json!({ "op": "post", "key": format!("{number:08}"), "value": value });
            if self.is_rich {
                create["content_type"] = CONTENT_TYPE.into();
            }
            create
        };
        let query = if self.is_rich { "?ttl=1h" } else { "" };
        let (mut wire, mut numbers) = (server.wire(), numbers.peekable());
        while let Some(&first) = numbers.peek() {
            let batch: Vec<_> = numbers.by_ref().take((1 << 19) / (self.value_len + 520) + 1).collect();
            let body = Value::from(batch.iter().map(create).collect::<Vec<_>>()).to_string();
            let head = format!("POST /batch{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
            let reply = wire.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())).reply();
            if reply.status != 200 {
                assert_eq!(reply.status, 413, "{reply}");
                return Some(first);
            }
        }
        None
    }

    /// Removes the entries with these numbers.
    fn remove(server: &Server, numbers: impl Iterator<Item = u64>) {
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let remove = |number: u64| json!({ "op": "delete", "key": format!("{number:08}") });
            let body = Value::from(numbers.by_ref().take(512).map(remove).collect::<Vec<_>>()).to_string();
            server.path("POST", "/batch").header("Content-Type", "application/json").body(body).send().expect(200);
        }
    }
}

#[test]
fn the_memory_count_bounds_the_resident_memory() {
    if on_windows() {
        return;
    }
    let _alone = exclusive();
    let limit = amount(16, 64) as u64 * (1 << 20);
    for kind in KINDS {
        let server = setup("memory", limit).start();
        let empty = resident(&server);
        let bound = (limit + empty) * 115 / 100;
        let check = |what: &str| {
            let full = resident_when_idle(&server, bound);
            let part = (full as f64) / (limit + empty) as f64;
            println!("{what} {kind:?}: {full} bytes, {empty} of the empty server: {part:.3}");
            assert!(full <= bound, "{what} {kind:?}: {full} bytes are resident, {bound} may be");
            full
        };
        let entries = kind.write(&server, 0..).expect("no store is endless");
        let full = check("filled with");
        // It is also close to the limit: the limit can be used.
        assert!((entries + 1008) * kind.cost > limit, "{entries} entries at {} bytes", kind.cost);
        assert!(full - empty > limit * 8 / 10, "{} bytes of {limit} are used", full - empty);
        kind.write(&server, 0..entries);
        check("written again");
        if kind.value_len < 1 << 16 {
            // Small entries of other sizes do not fit into the holes that removed ones leave.
            continue;
        }
        Kind::remove(&server, (0..entries).filter(|number| number % 2 == 0));
        let longer = Kind { value_len: kind.value_len * 3 / 2, ..kind };
        longer.write(&server, entries..);
        check("half of them removed, and longer ones added to");
    }
}

#[test]
fn the_memory_count_is_exact_and_the_default_counts_the_payload() {
    const LIMIT: u64 = 32 << 20;
    let server = setup("memory", LIMIT).start();
    // A write that adds nothing is never refused. The refusal of another write reports what it needs.
    server.put("12345678", "x").expect(200);
    let whole = (LIMIT as usize) - 4096;
    let big = vec![b'x'; whole];
    server.put("b", &big).refused(413, "Max size exceeded: \"b\" needs 33554453 bytes, 33554347 of 33554432 are free");
    server.put("12345678", "y").expect(200);
    server.delete("12345678").expect(200);
    server.put("b", &big[..whole - 4096]).expect(200);
    server.delete("b").expect(200);
    server.put("b", &big).refused(413, "Max size exceeded: \"b\" needs 33554453 bytes, 33554432 of 33554432 are free");

    let server = setup("payload", LIMIT).start();
    server.put("b", &big[..whole - 1]).expect(200);
    server
        .put("c", vec![b'x'; 4096])
        .refused(413, "Max size exceeded: \"c\" needs 4097 bytes, 4096 of 33554432 are free");
}

#[test]
fn details_count_in_the_write_that_sets_them() {
    let server = setup("memory", 1000).start();
    // 85 bytes, and 64 + 21 + 208 + 8 with an expiry.
    server.put("12345678", "x").expect(200);
    server.put("b", vec![b'x'; 744]).expect(200);
    let with_ttl = |key: &str| server.key("PUT", key).header("Vkog-TTL", "1h").body("x").send();
    with_ttl("12345678").refused(413, "Max size exceeded: \"12345678\" needs 216 bytes, 94 of 1000 are free");
    let coded = |coding: &str| server.key("PUT", "12345678").header("Content-Encoding", coding).body("x").send();
    coded(&"x".repeat(64)).expect(200);
    coded("gzip").expect(200);
    server.put("b", vec![b'x'; 528]).expect(200);
    with_ttl("12345678").expect(200);
    server.put("c", [b'x'; 100]).refused(413, "Max size exceeded: \"c\" needs 165 bytes, 102 of 1000 are free");
}

#[test]
fn an_overhead_without_the_memory_count_is_refused() {
    let setup = Setup::new().load(bytes()).config("[plugins.bytes]\noverhead = 1\n");
    let error = setup.fail().expect(1).stderr;
    assert!(error.contains("overhead belongs to count = \"memory\"; set that, or remove overhead"), "{error}");
}
