//! Measurements, which run with `--ignored` only: `cargo test --release -p vkog-etcd -- --ignored --nocapture speed::`.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use vkog_etcd::{EtcdStore, Settings, Sink};
use vkog_plugin_api::backend::{Change, CommitOutcome, Condition, Loaded, Write};

use crate::cluster::Cluster;

const DURATION: Duration = Duration::from_secs(4);
const RECORD: [u8; 128] = [b'x'; 128];

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// Calls etcd directly with a number of clients. Returns the calls in a second.
fn direct(cluster: &Cluster, path: &'static str, clients: usize) -> f64 {
    let runtime: Runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.endpoint(0))).expect("a URL");
    runtime.block_on(async {
        let channel: Channel = endpoint.connect_lazy();
        let began = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|number| {
                let channel = channel.clone();
                tokio::spawn(async move {
                    // A range reads only the key of it.
                    let request = Put { key: format!("other/{number}").into_bytes(), value: RECORD.to_vec() };
                    let request = if path.ends_with("Range") { Put { value: Vec::new(), ..request } } else { request };
                    let mut calls = 0_u32;
                    while began.elapsed() < DURATION {
                        let mut grpc = tonic::client::Grpc::new(channel.clone());
                        grpc.ready().await.expect("it connects");
                        let codec = tonic_prost::ProstCodec::<Put, Ignored>::default();
                        let path = http::uri::PathAndQuery::from_static(path);
                        grpc.unary(tonic::Request::new(request.clone()), path, codec).await.expect("etcd answers");
                        calls += 1;
                    }
                    calls
                })
            })
            .collect();
        let mut calls = 0.0;
        for task in tasks {
            calls += f64::from(task.await.expect("no client fails"));
        }
        calls / began.elapsed().as_secs_f64()
    })
}

/// A host that passes outcomes to one thread, as an event loop gets them.
struct Loop(Mutex<Sender<(u64, Option<u64>)>>);

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
    fn send(&self, id: u64, revision: Option<u64>) {
        let _ = self.0.lock().expect("nothing panics with it").send((id, revision));
    }
}

impl Sink for Loop {
    fn load(&self, _: &[Loaded<'_>]) {}
    fn loaded(&self, _: u64) {}
    fn apply(&self, _: u64, _: bool, _: &[Change<'_>]) {}
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
fn through_the_plugin(cluster: &Cluster, settings: &Settings, clients: usize, writes: bool) -> f64 {
    let (sender, receiver) = channel();
    let store = EtcdStore::open(settings, &cluster.url(), "{}", Arc::new(Loop(Mutex::new(sender)))).expect("it opens");
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
    count / began.elapsed().as_secs_f64()
}

#[test]
#[ignore = "a measurement"]
fn group_commit_is_compared_with_single_puts() {
    for members in [1, 3] {
        let Some(cluster) = Cluster::start(members, &[]) else { return };
        for clients in [16, 64, 256] {
            let single = direct(&cluster, "/etcdserverpb.KV/Put", clients);
            let read = direct(&cluster, "/etcdserverpb.KV/Range", clients);
            for groups_in_flight in [1, 2, 4, 8] {
                let settings = Settings { groups_in_flight, ..Settings::default() };
                let grouped = through_the_plugin(&cluster, &settings, clients, true);
                println!(
                    "{members} members, {clients} clients, {groups_in_flight} groups in flight: {grouped:.0} writes/s, \
                     {:.1} × {single:.0} single puts/s",
                    grouped / single
                );
            }
            let confirmed = through_the_plugin(&cluster, &Settings::default(), clients, false);
            println!("{confirmed:.0} confirmations/s, {:.1} × {read:.0} linearizable ranges/s", confirmed / read);
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn a_million_entries_are_loaded() {
    const ENTRIES: usize = 1_000_000;
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let (sender, receiver) = channel();
    let settings = Settings::default();
    let store = EtcdStore::open(&settings, &cluster.url(), "{}", Arc::new(Loop(Mutex::new(sender)))).expect("it opens");
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
        let store = EtcdStore::open(&settings, &cluster.url(), "{}", Arc::new(Count(Mutex::new((0, sender)))));
        let store = store.expect("it opens");
        let count = receiver.recv().expect("it loads");
        println!("{count} entries loaded in {:.1} s", began.elapsed().as_secs_f64());
        drop(store);
    }
}
