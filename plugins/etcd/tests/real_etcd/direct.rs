//! The load of a simple etcd client: as many single requests in flight as it has clients, over one connection. It is what
//! groups of writes and confirmations are compared with, like `benchmark put` and `benchmark range` of etcd itself.

use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tonic::transport::{Channel, Endpoint};

/// The number of keys.
const KEYS: usize = 10_000;

/// The request: a put of a value, or a linearizable range of one key.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Put { value_len: usize },
    Range,
}

/// The measured rate and latencies of a client of etcd.
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    /// The latency of each request, in ascending order.
    latencies: Vec<Duration>,
}

impl Rate {
    /// Returns the latency that a part of the requests does not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let latency = self.latencies.get(self.latencies.len() * percent / 100);
        latency.map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// The value of a put; the end of a range, which has none.
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Ignored {}

/// Sends requests to a member, `HOST:PORT`, for a time.
pub(crate) fn drive(member: &str, call: Call, clients: usize, duration: Duration) -> Rate {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("it starts");
    let endpoint = Endpoint::from_shared(format!("http://{member}")).expect("a URL").tcp_nodelay(true);
    runtime.block_on(async {
        let channel = endpoint.connect().await.expect("etcd listens");
        let began = Instant::now();
        let tasks: Vec<_> =
            (0..clients).map(|client| tokio::spawn(run(channel.clone(), call, client, began + duration))).collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await.expect("no client fails"));
        }
        let per_second = f64::from(u32::try_from(latencies.len()).expect("few")) / began.elapsed().as_secs_f64();
        latencies.sort_unstable();
        Rate { per_second, latencies }
    })
}

/// Sends one request after the other. Returns their latencies.
async fn run(channel: Channel, call: Call, client: usize, until: Instant) -> Vec<Duration> {
    let (path, value) = match call {
        Call::Put { value_len } => ("/etcdserverpb.KV/Put", vec![b'x'; value_len]),
        Call::Range => ("/etcdserverpb.KV/Range", Vec::new()),
    };
    let mut latencies = Vec::new();
    let mut grpc = tonic::client::Grpc::new(channel);
    let mut sent = Instant::now();
    while sent < until {
        let number = (client * 7919 + latencies.len() * 104_729) % KEYS;
        let request = Request { key: format!("direct/key:{number:012}").into_bytes(), value: value.clone() };
        grpc.ready().await.expect("it is connected");
        let codec = tonic_prost::ProstCodec::<Request, Ignored>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        grpc.unary(tonic::Request::new(request), path, codec).await.expect("etcd answers");
        let now = Instant::now();
        latencies.push(now - sent);
        sent = now;
    }
    latencies
}
