//! Measurements, which only run when they are asked for: `cargo test --release -p vkog-etcd -- --ignored --nocapture speed::`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use vkog_etcd::Settings;

use crate::cluster::Cluster;
use crate::recorder::Host;

const CLIENTS: usize = 64;
const DURATION: Duration = Duration::from_secs(5);
const RECORD: [u8; 128] = [b'x'; 128];

#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// Runs a function on each client again and again. Returns how often it ran in a second.
fn rate(client: impl Fn(usize) -> Box<dyn FnMut() + Send>) -> f64 {
    let (stopped, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let threads: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (stopped, count, mut run) = (Arc::clone(&stopped), Arc::clone(&count), client(number));
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    run();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    thread::sleep(DURATION);
    stopped.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("no client fails"));
    count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64()
}

/// Calls etcd directly, as a client of its own.
fn direct<Q: prost::Message + Clone + 'static>(
    cluster: &Cluster,
    path: &'static str,
    request: impl Fn(usize) -> Q,
) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.endpoint(0))).expect("a URL");
    let channel: Channel = {
        let _context = runtime.enter();
        endpoint.connect_lazy()
    };
    rate(|number| {
        let (handle, channel, request) = (runtime.handle().clone(), channel.clone(), request(number));
        Box::new(move || {
            let (channel, request) = (channel.clone(), request.clone());
            handle.block_on(async move {
                let mut grpc = tonic::client::Grpc::new(channel);
                grpc.ready().await.expect("it connects");
                let codec = tonic_prost::ProstCodec::<Q, Ignored>::default();
                let path = http::uri::PathAndQuery::from_static(path);
                grpc.unary(tonic::Request::new(request), path, codec).await.expect("etcd answers");
            });
        })
    })
}

#[test]
#[ignore = "a measurement"]
fn group_commit_is_compared_with_single_puts() {
    for members in [1, 3] {
        let Some(cluster) = Cluster::start(members, &[]) else { return };
        let key = |number: usize| format!("other/{number}").into_bytes();
        let single =
            direct(&cluster, "/etcdserverpb.KV/Put", |number| Put { key: key(number), value: RECORD.to_vec() });
        let read = direct(&cluster, "/etcdserverpb.KV/Range", |number| Range { key: key(number) });
        for groups_in_flight in [1, 2, 4, 8] {
            let host = Arc::new(Host::open(&cluster.url(), &Settings { groups_in_flight, ..Settings::default() }));
            let prefix = groups_in_flight;
            let grouped = rate(|number| {
                let (host, mut revision) = (Arc::clone(&host), 0);
                Box::new(move || revision = host.put(&format!("{prefix}/{number}"), revision, &RECORD))
            });
            let confirmed = rate(|_| {
                let host = Arc::clone(&host);
                Box::new(move || drop(host.confirm()))
            });
            println!(
                "{members} members, {groups_in_flight} groups in flight: {grouped:.0} writes/s, {:.1} × {single:.0} single \
                 puts/s; {confirmed:.0} confirmations/s, {:.1} × {read:.0} linearizable ranges/s",
                grouped / single,
                confirmed / read
            );
        }
    }
}
