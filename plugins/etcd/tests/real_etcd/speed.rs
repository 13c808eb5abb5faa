//! Measurements, which run with `--ignored` only: `cargo test --release -p vkog-etcd -- --ignored --nocapture speed::`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vkog_etcd::{EtcdStore, Settings, Sink};
use vkog_plugin_api::backend::{Change, CommitOutcome, Condition, Loaded, Write};
use vkog_tests::Etcd;

use crate::direct::{self, Call};

const DURATION: Duration = Duration::from_secs(3);
const RECORD: [u8; 128] = [b'x'; 128];

/// A host that passes outcomes to one thread, as an event loop gets them.
struct Loop {
    sender: Mutex<Sender<(u64, Option<u64>)>>,
    /// The number of groups that it has applied.
    groups: AtomicU32,
}

/// A host that counts the entries that it loads, and sends their number.
struct Count(Mutex<(usize, Sender<usize>)>);

impl Sink for Count {
    fn load(&self, page: &[Loaded<'_>]) {
        self.0.lock().expect("nothing panics with it").0 += page.len();
    }
    fn loaded(&self, _: u64) {
        let counted = self.0.lock().expect("nothing panics with it");
        let _ = counted.1.send(counted.0);
    }
    fn apply(&self, _: u64, _: bool, _: &[Change<'_>]) {}
    fn outcome(&self, _: u64, _: CommitOutcome) {}
    fn confirmed(&self, _: u64, _: Result<u64, &str>) {}
    fn connected(&self, _: Result<(), &str>) {}
    fn log(&self, text: &str) {
        println!("log: {text}");
    }
}

impl Loop {
    fn new(sender: Sender<(u64, Option<u64>)>) -> Self {
        Self { sender: Mutex::new(sender), groups: AtomicU32::new(0) }
    }

    fn send(&self, id: u64, revision: Option<u64>) {
        let _ = self.sender.lock().expect("nothing panics with it").send((id, revision));
    }
}

impl Sink for Loop {
    fn load(&self, _: &[Loaded<'_>]) {}
    fn loaded(&self, _: u64) {}
    fn apply(&self, _: u64, _: bool, _: &[Change<'_>]) {
        self.groups.fetch_add(1, Ordering::Relaxed);
    }
    fn outcome(&self, id: u64, outcome: CommitOutcome) {
        match outcome {
            CommitOutcome::Committed { revision } => self.send(id, Some(revision)),
            // The store is closed.
            CommitOutcome::Dropped { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    fn confirmed(&self, id: u64, revision: Result<u64, &str>) {
        // An error: the store is closed.
        if revision.is_ok() {
            self.send(id, None);
        }
    }
    fn connected(&self, _: Result<(), &str>) {}
    fn log(&self, text: &str) {
        println!("log: {text}");
    }
}

/// Writes, or confirms, with a number of clients. Returns how many in a second.
fn through_the_plugin(etcd: &Etcd, settings: &Settings, clients: usize, writes: bool) -> f64 {
    let (sender, receiver) = channel();
    let sink = Arc::new(Loop::new(sender));
    let store =
        EtcdStore::open(settings, &etcd.store("vkog"), "{}", Arc::clone(&sink) as Arc<dyn Sink>).expect("it opens");
    let prefix = format!("{clients}/{}", settings.groups_in_flight);
    let send = |client: usize, revision: u64| {
        let id = u64::try_from(client).expect("small");
        if writes {
            let key = format!("{prefix}/{client}");
            store.commit(&Write::new(id, &[Condition::new(&key, revision)], &[Change::put(&key, &RECORD)]));
        } else {
            store.confirm(id);
        }
    };
    (0..clients).for_each(|client| send(client, 0));
    receiver.recv().expect("the first");
    let (began, mut count) = (Instant::now(), 0.0);
    while began.elapsed() < DURATION {
        let (id, revision) = receiver.recv().expect("the store is open");
        send(usize::try_from(id).expect("small"), revision.unwrap_or(0));
        count += 1.0;
    }
    if writes {
        println!("{:.1} writes in each group", count / f64::from(sink.groups.load(Ordering::Relaxed)));
    }
    count / began.elapsed().as_secs_f64()
}

/// Returns the CPU time of processes so far, in seconds.
fn cpu(processes: &[u32]) -> f64 {
    let ticks = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
        // The fields follow the name of the program, in which a space may be.
        let fields: Vec<&str> = stat.rsplit(')').next().expect("its fields").split_whitespace().collect();
        fields[11..=12].iter().map(|ticks| ticks.parse::<f64>().expect("a number")).sum::<f64>()
    };
    processes.iter().map(ticks).sum::<f64>() / 100.0
}

/// Measures a rate. Returns it, and the CPU time of the members for each request, in microseconds.
fn with_cpu(etcd: &Etcd, measure: impl FnOnce() -> f64) -> (f64, f64) {
    let members = etcd.process_ids();
    let before = cpu(&members);
    let rate = measure();
    (rate, (cpu(&members) - before) / (rate * DURATION.as_secs_f64()) * 1e6)
}

#[test]
#[ignore = "a measurement"]
fn group_commit_is_compared_with_single_puts() {
    let put = Call::Put { value_len: RECORD.len() };
    for members in [1, 3] {
        let Some(etcd) = Etcd::start(members) else { return };
        for clients in [16, 64, 256] {
            let call = |call: Call| {
                let rate = direct::drive(&etcd.addresses()[0], call, clients, DURATION);
                println!("{clients} clients of etcd: p50 {:.2} ms", rate.percentile(50));
                rate.per_second
            };
            let (single, single_cpu) = with_cpu(&etcd, || call(put));
            let read = call(Call::Range);
            for groups_in_flight in [1, 2, 4, 8] {
                let settings = Settings { groups_in_flight, ..Settings::default() };
                let (grouped, cpu) = with_cpu(&etcd, || through_the_plugin(&etcd, &settings, clients, true));
                println!(
                    "{members} members, {clients} clients, {groups_in_flight} groups in flight: {grouped:.0} writes/s, \
                     {:.1} × {single:.0} single puts/s; CPU of etcd {cpu:.1} and {single_cpu:.1} µs, 1 : {:.1}",
                    grouped / single,
                    single_cpu / cpu
                );
            }
            let confirmed = through_the_plugin(&etcd, &Settings::default(), clients, false);
            println!("{confirmed:.0} confirmations/s, {:.1} × {read:.0} linearizable ranges/s", confirmed / read);
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn a_million_entries_are_loaded() {
    const ENTRIES: usize = 1_000_000;
    let Some(etcd) = Etcd::start(1) else { return };
    let (sender, receiver) = channel();
    let settings = Settings::default();
    let store = EtcdStore::open(&settings, &etcd.store("vkog"), "{}", Arc::new(Loop::new(sender))).expect("it opens");
    let began = Instant::now();
    for index in 0..ENTRIES {
        if index >= 1000 {
            receiver.recv().expect("the store is open");
        }
        let key = format!("key{index:09}");
        let id = u64::try_from(index).expect("small");
        store.commit(&Write::new(id, &[Condition::new(&key, 0)], &[Change::put(&key, &RECORD)]));
    }
    println!("{ENTRIES} entries written in {:.1} s", began.elapsed().as_secs_f64());
    drop(store);
    for _ in 0..2 {
        let (sender, receiver) = channel();
        let began = Instant::now();
        let store = EtcdStore::open(&settings, &etcd.store("vkog"), "{}", Arc::new(Count(Mutex::new((0, sender)))));
        let store = store.expect("it opens");
        let count = receiver.recv().expect("it loads");
        println!("{count} entries loaded in {:.1} s", began.elapsed().as_secs_f64());
        drop(store);
    }
}
