//! Clients of three hosts see one store, while hosts and members of etcd are killed and stopped, links are cut, and etcd is
//! compacted: no read is stale, no acknowledged write is lost, and no refused write has an effect.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use vkog_tests::{DEADLINE, Random, Setup, amount, exclusive};

use crate::client::{Client, Reply};
use crate::cluster::{Cluster, link_of};
use crate::history::{Answer, Counts, End, History, Op, Value};

const CLIENTS: usize = 16;
const HOSTS: usize = 3;
const MEMBERS: usize = 3;
/// How long a client waits before it tries another operation after one that no host has accepted.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// The number of operations in each history.
const HISTORY: usize = 20_000;
/// The number of objects that clients use at the same time, and the number of operations on each.
const OBJECTS: (usize, usize) = (16, 24);

/// The state that the clients share.
struct Run {
    /// The number of the history, which is part of its keys.
    number: usize,
    addresses: RwLock<Vec<Option<String>>>,
    history: History,
    /// The `ETag` with which a value was read or written.
    tags: Mutex<HashMap<Value, String>>,
    begun: AtomicUsize,
    threads: AtomicUsize,
    values: AtomicU64,
}

impl Run {
    fn new(number: usize, cluster: &Cluster) -> Self {
        let run = Self {
            number,
            addresses: RwLock::default(),
            history: History::default(),
            tags: Mutex::default(),
            begun: AtomicUsize::new(0),
            threads: AtomicUsize::new(CLIENTS),
            values: AtomicU64::new(0),
        };
        run.look(cluster);
        run
    }

    fn key(&self, object: usize, key: usize) -> String {
        format!("{}/{object}/{key}", self.number)
    }

    /// Notes where the hosts listen.
    fn look(&self, cluster: &Cluster) {
        *self.addresses.write().expect("nothing panics while it is locked") =
            (0..cluster.hosts()).map(|host| cluster.address(host)).collect();
    }

    /// Runs operations on random hosts until there were enough.
    fn work(&self, client: usize, count: usize) {
        let (http, mut random, mut thread) =
            (Client::new(), Random::new((self.number * CLIENTS + client) as u64), client);
        loop {
            let at = self.begun.fetch_add(1, SeqCst);
            if at >= count {
                return;
            }
            let (width, length) = OBJECTS;
            let object = at / (width * length) * width + random.below(width);
            let tried = Instant::now();
            let known = loop {
                assert!(tried.elapsed() < DEADLINE, "no host accepts an operation");
                // A refused write has another value than the next attempt, and no read may return it.
                let value = self.values.fetch_add(1, SeqCst);
                let op = self.choose(value, object, &http, &mut random);
                let host = random.below(HOSTS);
                match self.history.record(object, thread, op.clone(), || self.send(&http, host, object, &op)) {
                    Some(known) => break known,
                    None => thread::sleep(RETRY_PAUSE),
                }
            };
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
        let Some(address) = address else { return End::Nothing };
        let url = |at: usize| format!("http://{address}/k/{}", self.key(object, at));
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
            Op::ReadBoth => batch((0..2).map(|at| json!({ "op": "get", "key": self.key(object, at) })).collect()),
            Op::UpdateBoth(values) => {
                let write = |(at, value): (usize, &Value)| json!({ "op": "put", "key": self.key(object, at), "value": text(value) });
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

/// A failure that lasts for a moment.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillHost,
    StopHost,
    /// Cuts a host off from all members.
    CutHost,
    /// The same, and etcd forgets its history meanwhile.
    CutHostAndCompact,
    /// Cuts all hosts off from a member, which the other members still reach.
    CutMemberFromHosts,
    /// Cuts a member off from the other members. Hosts still reach it.
    CutMember,
    CutLeader,
    KillMember,
    KillLeader,
    StopMember,
    StopLeader,
    /// Compacts and defragments etcd.
    Compact,
}

impl Fault {
    const ALL: [Self; 12] = [
        Self::KillHost,
        Self::StopHost,
        Self::CutHost,
        Self::CutHostAndCompact,
        Self::CutMemberFromHosts,
        Self::CutMember,
        Self::CutLeader,
        Self::KillMember,
        Self::KillLeader,
        Self::StopMember,
        Self::StopLeader,
        Self::Compact,
    ];

    /// Whether it needs a network that can be cut anywhere, and not only proxies between hosts and members.
    fn needs_network(self) -> bool {
        matches!(self, Self::CutMemberFromHosts | Self::CutMember | Self::CutLeader)
    }

    /// Breaks something of the cluster for a moment, and heals it.
    fn happen(self, cluster: &mut Cluster, run: &Run, random: &mut Random) {
        let (host, member) = (random.below(HOSTS), random.below(MEMBERS));
        let member = match self {
            Self::CutLeader | Self::KillLeader | Self::StopLeader => cluster.etcd.leader().unwrap_or(member),
            _ => member,
        };
        // Sometimes until the leases of the hosts have expired.
        let moment = Duration::from_millis(if random.below(6) == 0 { 4000 } else { 100 + random.below(1500) as u64 });
        let pause = || thread::sleep(moment);
        let cut_from_hosts = |cluster: &Cluster, cut: bool| {
            let network = cluster.etcd.network().expect("this fault needs it");
            (0..HOSTS).for_each(|host| network.cut(member, link_of(host), cut));
        };
        let cut_from_members = |cluster: &Cluster, cut: bool| {
            cluster.etcd.network().expect("this fault needs it").cut_peers(member, cut);
        };
        match self {
            Self::KillHost => {
                cluster.kill(host);
                run.look(cluster);
                cluster.start_host(host);
                run.look(cluster);
            }
            Self::StopHost => {
                cluster.signal(host, "STOP");
                pause();
                cluster.signal(host, "CONT");
            }
            Self::CutHost | Self::CutHostAndCompact => {
                cluster.cut(host, true);
                pause();
                if self == Self::CutHostAndCompact {
                    cluster.etcd.compact();
                }
                cluster.cut(host, false);
            }
            Self::CutMemberFromHosts => {
                cut_from_hosts(cluster, true);
                pause();
                cut_from_hosts(cluster, false);
            }
            Self::CutMember | Self::CutLeader => {
                cut_from_members(cluster, true);
                pause();
                cut_from_members(cluster, false);
            }
            Self::KillMember | Self::KillLeader => {
                cluster.etcd.kill(member);
                pause();
                cluster.etcd.run(member);
            }
            Self::StopMember | Self::StopLeader => {
                cluster.etcd.signal(member, "STOP");
                pause();
                cluster.etcd.signal(member, "CONT");
            }
            Self::Compact => cluster.etcd.compact(),
        }
        cluster.etcd.wait_for_leader();
    }
}

/// Records and checks one history. Counts the faults.
fn history(number: usize, count: usize, cluster: &mut Cluster, faults: &mut BTreeMap<Fault, usize>) -> Counts {
    let run = Run::new(number, cluster);
    let between_faults = amount(200, 400);
    thread::scope(|scope| {
        let work = |client: usize| {
            let run = &run;
            move || run.work(client, count)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(work(client))).collect();
        let is_over = || clients.iter().all(|client| client.is_finished());
        let mut random = Random::new((number * HISTORY + count) as u64);
        while !is_over() {
            let fault = Fault::ALL[random.below(Fault::ALL.len())];
            if fault.needs_network() && cluster.etcd.network().is_none() {
                continue;
            }
            fault.happen(cluster, &run, &mut random);
            *faults.entry(fault).or_default() += 1;
            let next = run.begun.load(SeqCst) + between_faults;
            while run.begun.load(SeqCst) < next && !is_over() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    });
    // The entries in the end belong to the history.
    (0..HOSTS).for_each(|host| cluster.host(host).wait_until_ready());
    let http = Client::new();
    for object in 0..count.div_ceil(OBJECTS.0 * OBJECTS.1) * OBJECTS.0 {
        for host in 0..HOSTS {
            let thread = run.threads.fetch_add(1, SeqCst);
            run.history.record(object, thread, Op::ReadBoth, || run.send(&http, host, object, &Op::ReadBoth));
        }
    }
    run.history.check().unwrap_or_else(|violation| {
        let logs = (0..HOSTS).map(|host| format!("--- host {host}\n{}", cluster.host(host).log()));
        panic!("history {number}: {violation}\n{}", logs.collect::<String>())
    })
}

#[test]
fn no_client_sees_anything_but_one_store_while_hosts_and_members_fail() {
    // The leases expire while a host is cut off for long.
    let set_up = |setup: Setup| setup.config("[plugins.etcd]\nlease_ttl = 3\n");
    Cluster::run(MEMBERS, HOSTS, set_up, |mut cluster| {
        let _alone = exclusive();
        let (count, begun) = (amount(4_000, 200_000), Instant::now());
        let (mut counts, mut faults) = (Counts::default(), BTreeMap::new());
        for number in 0..count.div_ceil(HISTORY) {
            counts.add(&history(number, count.min(HISTORY), &mut cluster, &mut faults));
            println!(
                "{} operations in {} s, without a violation: {:?}, of these {} with an unknown outcome; beside them {} without \
                 effect; faults: {faults:?}",
                counts.operations(),
                begun.elapsed().as_secs(),
                counts.by_kind,
                counts.unknown,
                counts.without_effect,
            );
        }
        assert!(counts.unknown < counts.operations() / 10, "most operations got a response");
    });
}
