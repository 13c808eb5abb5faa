//! Clients of three hosts see one store, while hosts and members of etcd are killed and stopped, links are cut, and etcd is
//! compacted: no read is stale, no acknowledged write is lost, and no refused write has an effect.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Duration;

use serde_json::{Value as Json, json};
use vkog_tests::{Random, amount, exclusive};

use crate::client::{Client, Reply};
use crate::cluster::Cluster;
use crate::history::{Answer, End, History, Op, Value};

const CLIENTS: usize = 16;
const HOSTS: usize = 3;
/// The number of objects that clients use at the same time, and the number of operations on each.
const OBJECTS: (usize, usize) = (16, 24);

/// The state that the clients share.
struct Run {
    addresses: RwLock<Vec<Option<String>>>,
    history: History,
    /// The `ETag` with which a value was read or written.
    tags: Mutex<HashMap<Value, String>>,
    begun: AtomicUsize,
    threads: AtomicUsize,
    ended: AtomicBool,
}

fn key(object: usize, key: usize) -> String {
    format!("object/{object}/{key}")
}

impl Run {
    fn new(cluster: &Cluster) -> Self {
        let run = Self {
            addresses: RwLock::default(),
            history: History::default(),
            tags: Mutex::default(),
            begun: AtomicUsize::new(0),
            threads: AtomicUsize::new(CLIENTS),
            ended: AtomicBool::new(false),
        };
        run.look(cluster);
        run
    }

    /// Notes where the hosts listen.
    fn look(&self, cluster: &Cluster) {
        *self.addresses.write().expect("nothing panics while it is locked") =
            (0..cluster.hosts()).map(|host| cluster.address(host)).collect();
    }

    /// Runs operations on random hosts until there were enough.
    fn work(&self, client: usize, count: usize) {
        let (http, mut random, mut thread) = (Client::new(), Random::new(client as u64), client);
        loop {
            let at = self.begun.fetch_add(1, SeqCst);
            if at >= count {
                return;
            }
            let (width, length) = OBJECTS;
            let object = at / (width * length) * width + random.below(width);
            let op = self.choose(at as Value, object, &http, &mut random);
            let host = random.below(HOSTS);
            let known = self.history.record(object, thread, op.clone(), || self.send(&http, host, object, &op));
            if !known {
                thread = self.threads.fetch_add(1, SeqCst);
            }
        }
    }

    fn choose(&self, value: Value, object: usize, http: &Client, random: &mut Random) -> Op {
        let at = random.below(2);
        match random.below(16) {
            0..=4 => Op::Read(at),
            5..=7 => Op::Create(at, value),
            8 => Op::Update(at, value),
            9 => Op::Delete(at),
            10..=11 => Op::ReadBoth,
            12..=13 => Op::UpdateBoth([value, value]),
            // What is there is looked up first, by an operation that is not part of the history.
            _ => match self.send(http, random.below(HOSTS), object, &Op::Read(at)) {
                End::Returned(Answer::Saw(Some(seen))) => Op::CompareAndSet(at, seen, value),
                _ => Op::Read(at),
            },
        }
    }

    /// Sends an operation to a host.
    fn send(&self, http: &Client, host: usize, object: usize, op: &Op) -> End {
        let address = self.addresses.read().expect("nothing panics while it is locked")[host].clone();
        let Some(address) = address else {
            thread::sleep(Duration::from_millis(1));
            return End::Nothing;
        };
        let url = |at: usize| format!("http://{address}/k/{}", key(object, at));
        let batch = |operations: Json| {
            http.send(
                "POST",
                &format!("http://{address}/batch"),
                &[("Content-Type", "application/json")],
                Some(&operations.to_string()),
            )
        };
        let text = |value: &Value| value.to_string();
        let sent = match op {
            Op::Read(at) => http.send("GET", &url(*at), &[], None),
            Op::Create(at, value) => http.send("POST", &url(*at), &[], Some(&text(value))),
            Op::Update(at, value) => http.send("PUT", &url(*at), &[], Some(&text(value))),
            Op::Delete(at) => http.send("DELETE", &url(*at), &[], None),
            Op::CompareAndSet(at, expected, value) => {
                let tag = self.tags.lock().expect("nothing panics while it is locked")[expected].clone();
                http.send("PUT", &url(*at), &[("If-Match", &tag)], Some(&text(value)))
            }
            Op::ReadBoth => batch((0..2).map(|at| json!({ "op": "get", "key": key(object, at) })).collect()),
            Op::UpdateBoth(values) => {
                let write =
                    |(at, value): (usize, &Value)| json!({ "op": "put", "key": key(object, at), "value": text(value) });
                batch(values.iter().enumerate().map(write).collect())
            }
        };
        self.understand(op, sent)
    }

    /// Interprets a response.
    fn understand(&self, op: &Op, sent: Reply) -> End {
        let (status, tag, body) = match sent {
            Reply::NotSent => return End::Nothing,
            Reply::Unknown => return if op.is_read() { End::Nothing } else { End::Unknown },
            Reply::Answered(status, tag, body) => (status, tag, body),
        };
        let value = |body: &[u8]| String::from_utf8_lossy(body).parse::<Value>().expect("a value is a number");
        match (op, status) {
            (_, 503) => End::Nothing,
            (_, 504) => {
                if op.is_read() {
                    End::Nothing
                } else {
                    End::Unknown
                }
            }
            (Op::Read(_), 404) => End::Returned(Answer::Saw(None)),
            (Op::Read(_), 200) => {
                let seen = value(&body);
                let tag = tag.expect("an entry has an ETag");
                self.tags.lock().expect("nothing panics while it is locked").insert(seen, tag);
                End::Returned(Answer::Saw(Some(seen)))
            }
            (Op::ReadBoth, 200) => {
                let body: Json = serde_json::from_slice(&body).expect("a batch returns JSON");
                End::Returned(Answer::SawBoth(
                    [0, 1].map(|at| body[at]["value"].as_str().map(|text| value(text.as_bytes()))),
                ))
            }
            (_, 200) => End::Returned(Answer::Done),
            (Op::Create(..), 409)
            | (Op::Update(..) | Op::UpdateBoth(_) | Op::Delete(_), 404)
            | (Op::CompareAndSet(..), 404 | 412) => End::Returned(Answer::Refused),
            _ => panic!("{op:?} got {status}: {}", String::from_utf8_lossy(&body)),
        }
    }
}

/// Breaks something of the cluster for a moment, and heals it.
fn fail(cluster: &mut Cluster, run: &Run, random: &mut Random) {
    let (host, member) = (random.below(HOSTS), random.below(cluster.etcd.members()));
    let moment = Duration::from_millis(100 + random.below(1500) as u64);
    match random.below(8) {
        0 => {
            cluster.kill(host);
            run.look(cluster);
            cluster.run(host);
            run.look(cluster);
        }
        1 => {
            cluster.signal(host, "STOP");
            thread::sleep(moment);
            cluster.signal(host, "CONT");
        }
        2 => {
            cluster.etcd.kill(member);
            thread::sleep(moment);
            cluster.etcd.run(member);
        }
        3 => {
            let leader = cluster.etcd.leader().unwrap_or(member);
            cluster.etcd.kill(leader);
            thread::sleep(moment);
            cluster.etcd.run(leader);
        }
        4 | 5 => {
            let member = cluster.etcd.leader().unwrap_or(member);
            cluster.etcd.signal(member, "STOP");
            thread::sleep(moment);
            cluster.etcd.signal(member, "CONT");
        }
        6 => {
            cluster.cut(host, true);
            thread::sleep(moment);
            cluster.cut(host, false);
        }
        _ => cluster.etcd.compact(),
    }
    cluster.etcd.wait_for_leader();
}

#[test]
fn no_client_sees_anything_but_one_store_while_hosts_and_members_fail() {
    let Some(mut cluster) = Cluster::start(3, HOSTS, |setup| setup) else { return };
    let _alone = exclusive();
    let run = Run::new(&cluster);
    let count = amount(4_000, 200_000);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let run = &run;
                    move || run.work(client, count)
                })
            })
            .collect();
        let mut random = Random::new(count as u64);
        while clients.iter().any(|client| !client.is_finished()) {
            fail(&mut cluster, &run, &mut random);
            thread::sleep(Duration::from_millis(200));
        }
        run.ended.store(true, SeqCst);
    });
    // What is there in the end belongs to the history.
    let http = Client::new();
    for object in 0..count.div_ceil(OBJECTS.0 * OBJECTS.1) * OBJECTS.0 {
        for host in 0..HOSTS {
            let thread = run.threads.fetch_add(1, SeqCst);
            run.history.record(object, thread, Op::ReadBoth, || run.send(&http, host, object, &Op::ReadBoth));
        }
    }
    let (operations, unknown) = run.history.check();
    println!("{operations} operations, {unknown} with an unknown outcome");
    assert!(operations > count / 2, "most operations got a response");
}
