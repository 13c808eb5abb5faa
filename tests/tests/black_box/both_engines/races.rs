//! Guard, write and revision are one step for an entry, and every later read sees an acknowledged write.
//!
//! Provoked with 64 clients that POST one key at once, 200 times, and with clients that write and read their own and
//! shared keys at once.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use vkog_tests::{Barrier, Setup, bytes, conflict};

use super::ENGINE;

#[test]
fn exactly_one_of_64_concurrent_posts_of_a_key_succeeds() {
    const CLIENTS: usize = 64;
    const ROUNDS: usize = 200;

    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    let gate = Barrier::new(CLIENTS);
    // For each round: the number of each status, and the value of the winner.
    let rounds = Mutex::new(vec![(BTreeMap::<u16, usize>::new(), Vec::new()); ROUNDS]);
    thread::scope(|scope| {
        for (client, mut wire) in server.wires(CLIENTS).into_iter().enumerate() {
            let (gate, rounds) = (&gate, &rounds);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    gate.wait();
                    let value = format!("client {client}");
                    let reply = wire.request("POST", &format!("/k/round-{round}"), value.as_bytes());
                    let mut rounds = rounds.lock().expect("no holder of this lock panics");
                    *rounds[round].0.entry(reply.status).or_default() += 1;
                    if reply.status == 200 {
                        rounds[round].1.push(value);
                    }
                }
            });
        }
    });
    for (round, (statuses, winners)) in rounds.into_inner().expect("all clients are done").into_iter().enumerate() {
        assert_eq!(statuses, BTreeMap::from([(200, 1), (409, 63)]), "round {round}\n{}", server.log());
        server.get(&format!("round-{round}")).expect(200).is(&winners[0]);
    }
}

#[test]
fn every_later_read_sees_an_acknowledged_write() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    thread::scope(|scope| {
        for (client, mut writer) in server.wires(8).into_iter().enumerate() {
            let mut reader = server.wires(1).remove(0);
            scope.spawn(move || {
                let path = format!("/k/own-{client}");
                for round in 0..100 {
                    let value = format!("{client} {round}");
                    let method = if round % 10 == 0 { "POST" } else { "PUT" };
                    let written = writer.request(method, &path, value.as_bytes()).expect(200);
                    let read = reader.request("GET", &path, b"").expect(200).is(&value);
                    assert_eq!(written.revision(), read.revision());
                    if round % 10 == 9 {
                        writer.request("DELETE", &path, b"").expect(200);
                        reader.request("GET", &path, b"").expect(404);
                    }
                }
            });
        }
    });
}

#[test]
fn of_racing_updates_the_greatest_revision_remains_and_none_repeats() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    server.post("k", "first").expect(200);
    let written = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for (client, mut wire) in server.wires(8).into_iter().enumerate() {
            let written = &written;
            scope.spawn(move || {
                let mut last = 0;
                for round in 0..100 {
                    let value = format!("{client} {round}");
                    let revision = wire.request("PUT", "/k/k", value.as_bytes()).expect(200).revision();
                    assert!(revision > last, "revision {revision} after {last}");
                    let read = wire.request("GET", "/k/k", b"").expect(200).revision();
                    assert!(read >= revision, "revision {read} is read after {revision} was written");
                    last = read;
                    let twice = written.lock().expect("no holder of this lock panics").insert(revision, value);
                    assert_eq!(twice, None, "revision {revision} was given twice");
                }
            });
        }
    });
    let written = written.into_inner().expect("all clients are done");
    let (revision, value) = written.last_key_value().expect("something was written");
    let read = server.get("k").expect(200).is(value);
    assert_eq!(read.revision(), *revision);
}
