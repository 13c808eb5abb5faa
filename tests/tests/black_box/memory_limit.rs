//! With `count = "memory"`, the limit of `bytes` limits the memory of the server: its resident memory stays below 1.15
//! times the limit plus that of an empty server, for small and for large entries.
//!
//! Provoked by filling a server with batches until it refuses.
#![cfg(target_os = "linux")]

use serde_json::{Value, json};
use vkog_tests::{Server, Setup, bytes, on_windows};

const LIMIT: u64 = 32 << 20;

fn setup(count: &str) -> Setup {
    let limit = LIMIT.to_string();
    let arguments = ["--http", "hyper", "--fsync", "never", "--watch-history", "1KiB", "-s", &limit];
    Setup::new().load(bytes()).config(format!("[plugins.bytes]\ncount = {count:?}\n")).args(arguments)
}

/// Returns the resident memory of the server, in bytes.
fn resident(server: &Server) -> u64 {
    server.proc_status("VmRSS") << 10
}

/// Fills a server until it refuses. Returns the number of entries.
fn fill(server: &Server, value: &str) -> u64 {
    const BATCH: u64 = 512;
    let mut wire = server.wire();
    for first in (0..).step_by(BATCH as usize) {
        let create = |number: u64| json!({ "op": "post", "key": format!("{number:08}"), "value": value });
        let body = Value::from((first..first + BATCH).map(create).collect::<Vec<_>>()).to_string();
        let request = format!(
            "POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = wire.send(request).reply();
        if reply.status != 200 {
            assert_eq!(reply.status, 413, "{reply}");
            return first;
        }
    }
    unreachable!("no store is endless")
}

#[test]
fn the_memory_count_bounds_the_resident_memory() {
    if on_windows() {
        return;
    }
    for (value, cost) in [("x".to_owned(), 64 + 21), ("x".repeat(1016), 1072 + 21)] {
        let server = setup("memory").start();
        let empty = resident(&server);
        let entries = fill(&server, &value);
        let (full, bound) = (resident(&server), LIMIT * 115 / 100 + empty);
        println!("{entries} entries of {} bytes: {full} bytes, {empty} of the empty server", 8 + value.len());
        assert!(full <= bound, "{full} bytes are resident, {bound} may be, {empty} were of the empty server");
        // It is also close to the limit: the limit can be used.
        assert!((entries + 512) * cost > LIMIT, "{entries} entries at {cost} bytes");
        assert!(full - empty > LIMIT * 8 / 10, "{} bytes of {LIMIT} are used", full - empty);
    }
}

#[test]
fn the_memory_count_is_exact_and_the_default_counts_the_payload() {
    let server = setup("memory").start();
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

    let server = setup("payload").start();
    server.put("b", &big[..whole - 1]).expect(200);
    server
        .put("c", vec![b'x'; 4096])
        .refused(413, "Max size exceeded: \"c\" needs 4097 bytes, 4096 of 33554432 are free");
}
