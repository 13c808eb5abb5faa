//! No increment of the counter plugin is lost, and no client has to retry.
//!
//! Provoked with 32 connections that add to 10 counters at the same time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use vkog_tests::{Setup, amount, artefacts, exclusive};

use super::ENGINE;

/// The number of connections, which is also the maximum number of calls that a plugin serves at a time.
const CLIENTS: usize = 32;
const KEYS: usize = 10;

#[test]
fn increments_of_many_clients_add_up_exactly() {
    let _exclusive = exclusive();
    let setup = Setup::on(ENGINE).load(artefacts().library("vkog-counter")).args(["--fsync", "never"]);
    let server = setup.start();
    let each = amount(100, 3125);
    let sums: Vec<_> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (client, mut wire) in server.wires(CLIENTS).into_iter().enumerate() {
            let sums = &sums;
            scope.spawn(move || {
                for round in 0..each {
                    let (key, by) = ((client + round) % KEYS, (round % 7) as u64);
                    wire.request("POST", &format!("/x/counter/key-{key}?by={by}"), b"").expect(200);
                    sums[key].fetch_add(by, Relaxed);
                }
            });
        }
    });
    eprintln!("{} increments in {:?}", CLIENTS * each, began.elapsed());
    for (key, sum) in sums.iter().enumerate() {
        let sum = sum.load(Relaxed).to_string();
        server.path("GET", &format!("/x/counter/key-{key}")).send().expect(200).is(&sum);
        server.get(&format!("key-{key}")).expect(200).is(&sum);
    }
}

#[test]
fn an_update_whose_precondition_fails_changes_nothing() {
    let server = Setup::on(ENGINE).load(artefacts().library("vkog-counter")).start();
    let update = |condition: &str, tag: &str| server.path("POST", "/x/counter/k").header(condition, tag).send();
    update("If-Match", "*").refused(412, "Precondition failed");
    server.get("k").expect(404);
    update("If-None-Match", "*").expect(200).is("1");
    update("If-None-Match", "*").refused(412, "Precondition failed");
    update("If-Match", "\"1\"").refused(412, "Precondition failed");
    update("If-Match", "1").refused(400, "If-Match is not");
    server.get("k").is("1");
    let tag = server.get("k").header("ETag").expect("an entry has one").to_owned();
    update("If-Match", &tag).expect(200).is("2");
    update("If-Match", &tag).refused(412, "Precondition failed");
    update("If-None-Match", &tag).expect(200).is("3");
    server.get("k").is("3");
}
