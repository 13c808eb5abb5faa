//! `Ok` means durable: however the process ends, no acknowledged write is lost, no removed entry returns, and none is
//! torn.
//!
//! Provoked with 32 clients that write and delete their own keys without a pause while the process is killed, up to 200
//! times on the same store, with each mode of `--fsync` (the system's memory outlives a process); and with SIGTERM
//! under the same load.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use vkog_tests::{DEADLINE, Server, Setup, Wire, amount, bytes, conflict, on_windows};

const CLIENTS: usize = 32;
/// The number of keys: few, so that each is overwritten and removed many times.
const KEYS: u64 = 8;

/// The state of a key, as its client knows it.
#[derive(Clone, Default)]
struct Known {
    /// The number of the last acknowledged write; `None` after an acknowledged removal.
    kept: Option<u64>,
    /// The last request without a response: a write or a removal.
    asked: Option<Option<u64>>,
}

/// A client and the state of its keys.
#[derive(Clone, Default)]
struct Writer {
    keys: BTreeMap<u64, Known>,
    next: u64,
}

/// Returns a value that contains its number; its length depends on the number.
fn value(client: usize, number: u64) -> Vec<u8> {
    let mut value = format!("{client} {number} ").into_bytes();
    value.resize(20 + (number * 37 % 400) as usize, b'.');
    value
}

impl Writer {
    /// Writes and removes until the connection breaks or the server stops.
    fn run(&mut self, client: usize, mut wire: Wire, done: &Sender<()>) {
        loop {
            self.next += 1;
            let number = self.next;
            let key = number % KEYS;
            let removes = number.is_multiple_of(5);
            let known = self.keys.entry(key).or_default();
            known.asked = Some((!removes).then_some(number));
            let path = format!("/k/{client}/{key}");
            let reply = if removes {
                ask(&mut wire, "DELETE", &path, b"")
            } else {
                ask(&mut wire, "PUT", &path, &value(client, number))
            };
            match reply {
                Ok(200 | 404) => {
                    known.kept = known.asked.take().flatten();
                    let _ = done.send(());
                }
                // Refused, so nothing was written.
                Ok(503) => {
                    known.asked = None;
                    return;
                }
                Ok(status) => panic!("client {client} got {status}"),
                Err(_) => return,
            }
        }
    }

    /// Compares the entries with what was acknowledged, and continues from them.
    fn check(&mut self, client: usize, server: &Server) {
        for (key, known) in &mut self.keys {
            let reply = server.get(&format!("{client}/{key}"));
            let found = match reply.status {
                200 => {
                    let number = reply.text().split(' ').nth(1).and_then(|number| number.parse().ok());
                    let number = number.unwrap_or_else(|| panic!("a value from nowhere: {reply}"));
                    assert_eq!(reply.body, value(client, number), "a torn value: {reply}");
                    Some(number)
                }
                404 => None,
                _ => panic!("{reply}"),
            };
            let right = found == known.kept || known.asked == Some(found);
            assert!(
                right,
                "client {client}, key {key}: found {found:?}, acknowledged {:?}, sent {:?}\n{}",
                known.kept,
                known.asked,
                server.log()
            );
            *known = Known { kept: found, asked: None };
        }
    }
}

fn ask(wire: &mut Wire, method: &str, path: &str, body: &[u8]) -> io::Result<u16> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.try_send(&[head.as_bytes(), body].concat())?;
    Ok(wire.try_reply()?.status)
}

/// Runs the clients until they have done some work, ends the server, starts it again and compares, round by round.
fn rounds(rounds: usize, setup: &Setup, end: impl Fn(Server)) {
    // Wine starts programs slowly.
    let rounds = if on_windows() { rounds / 20 } else { rounds };
    let mut writers = vec![Writer::default(); CLIENTS];
    let mut total = 0;
    for round in 0..rounds {
        let server = setup.start();
        for (client, writer) in writers.iter_mut().enumerate() {
            writer.check(client, &server);
        }
        let (done, acknowledged) = channel();
        let wires = server.wires(CLIENTS);
        thread::scope(|scope| {
            for ((client, writer), wire) in writers.iter_mut().enumerate().zip(wires) {
                let done = done.clone();
                scope.spawn(move || writer.run(client, wire, &done));
            }
            // A different time in each round.
            for _ in 0..50 + round * 17 % 400 {
                acknowledged.recv_timeout(DEADLINE).expect("the clients continue to write");
                total += 1;
            }
            end(server);
        });
        total += acknowledged.try_iter().count();
    }
    let server = setup.start();
    for (client, writer) in writers.iter_mut().enumerate() {
        writer.check(client, &server);
    }
    println!("{rounds} rounds, {total} acknowledged writes, 0 lost");
    server.stop().expect(0);
}

fn kill(server: Server) {
    server.stop_with("KILL");
}

#[test]
fn no_kill_under_load_loses_an_acknowledged_write() {
    rounds(amount(40, 200), &Setup::new(), kill);
}

#[test]
fn a_kill_loses_nothing_with_a_duration_either() {
    rounds(amount(15, 40), &Setup::new().args(["--fsync", "100ms"]), kill);
}

#[test]
fn a_kill_loses_nothing_without_any_sync() {
    rounds(amount(15, 40), &Setup::new().args(["--fsync", "never"]), kill);
}

#[test]
fn no_stop_under_load_loses_an_acknowledged_write_and_each_exits_0() {
    rounds(amount(20, 50), &Setup::new(), |server| {
        server.stop().expect(0);
    });
}

#[test]
fn after_a_kill_plugins_count_what_the_store_holds() {
    let setup = Setup::new().load(bytes()).load(conflict()).args(["--max-size", "100"]);
    let server = setup.start();
    server.post("a", "0123456789").expect(200);
    kill(server);
    let server = setup.start();
    server.post("a", "again").refused(409, "Key already exists");
    server.post("b", "v".repeat(100)).refused(413, "Max size exceeded").says("needs 101 bytes, 89 of 100 are free");
    server.stop().expect(0);
}

#[test]
fn a_second_server_on_a_store_is_refused_with_the_first_process_id() {
    let setup = Setup::new();
    let server = setup.start();
    let exit = setup.fail().expect(4);
    let error = exit.one_error();
    assert!(error.contains(&server.own_id()) && error.contains("in use"), "{error}");
    server.post("k", "v").expect(200);
}

#[test]
fn a_stop_is_handled_during_many_snapshot_requests() {
    let setup = Setup::new();
    let server = setup.start();
    for number in 0..100 {
        server.put(&format!("k{number}"), vec![b'v'; 100_000]).expect(200);
        server.signal("USR1");
    }
    server.stop().expect(0);
    setup.start().get("k99").expect(200).is(vec![b'v'; 100_000]);
}

#[test]
fn a_stop_leaves_a_complete_snapshot_and_an_empty_log() {
    let setup = Setup::new();
    let server = setup.start();
    server.post("k", "v").expect(200);
    server.stop().expect(0);
    let file = setup.store_file();
    let data = std::fs::read(&file).expect("the store exists");
    let store = rmpv::decode::read_value(&mut data.as_slice()).expect("it is MessagePack");
    let has = |name: &str| store.as_map().is_some_and(|map| map.iter().any(|(key, _)| key.as_str() == Some(name)));
    assert!(has("KV") && has("KVSize"), "{store}");
    // It opens without the log, too, because the snapshot is complete.
    std::fs::remove_file(file.with_extension("vkog.log")).expect("the log exists");
    setup.start().get("k").expect(200).is("v");
}
