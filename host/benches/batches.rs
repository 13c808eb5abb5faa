//! The cost of a batch of 64 PUTs without a network, in both formats: to parse it, and to run it; beside a copy of its bytes and
//! a hash of each of its keys in a `HashMap`, which is the least that has to be done.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::channel;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use serde_json::json;
use vkog::any_store::Engine;
use vkog::api::{Api, Authorizer};
use vkog::config;
use vkog::http::{Headers, Method, RequestHead, Responder, Service};
use vkog_plugin_host::{HostContext, Registry, system_clock};
use vkog_store::{Fsync, LocalDisk, LocalStore, Options};

fn main() {
    divan::main();
}

const OPERATIONS: usize = 64;
const FORMATS: [&str; 2] = ["application/msgpack", "application/json"];

fn key(number: usize) -> String {
    format!("key:{number:012}")
}

/// A batch in a format. One with an empty key at its end is read to the end and refused before anything is done.
fn body(format: &str, is_refused: bool) -> Vec<u8> {
    let put = |key: String| json!({"op": "put", "key": key, "value": "v".repeat(64)});
    let refused = is_refused.then(|| put(String::new()));
    let batch: Vec<_> = (0..OPERATIONS).map(|number| put(key(number))).chain(refused).collect();
    match format {
        "application/json" => serde_json::to_vec(&batch).expect("it is JSON"),
        _ => rmp_serde::to_vec_named(&batch).expect("it is MessagePack"),
    }
}

fn status(api: &Api, format: &str, body: Vec<u8>) -> u16 {
    let mut headers = Headers::default();
    headers.push("content-type", format.as_bytes());
    let head = Arc::new(RequestHead::new(Method::Post, "/batch".to_owned(), headers, None));
    let admitted = api.admit(head).unwrap_or_else(|reply| panic!("{}", reply.status));
    let (tell, told) = channel();
    api.serve(admitted, body, Responder::new(move |reply| _ = tell.send(reply.status)));
    told.recv().expect("there is a response")
}

/// Each batch goes through the interface of a store without plugins, and gets this status.
fn through_api(bencher: Bencher<'_, '_>, format: &str, body: &[u8], expected: u16) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let port = Arc::new(HostContext::new(0, system_clock));
    // No automatic snapshot.
    let options = Options { fsync: Fsync::Never, log_min: u64::MAX, ..Options::default() };
    let store = LocalStore::open(LocalDisk, &folder.path().join("store"), options, &|_, _, _| {}).expect("it is new");
    let engine = Engine::new(store.into(), Registry::linked(Vec::new(), Vec::new(), port)).expect("no plugin refuses");
    let auth = config::Auth { open: true, ..config::Auth::default() };
    let api = Api::new(engine, 1 << 20, Arc::new(Authorizer::new(auth)), Arc::new(|| Ok(Vec::new())));
    bencher
        .counter(ItemsCount::new(OPERATIONS))
        .with_inputs(|| body.to_vec())
        .bench_local_values(|body| assert_eq!(status(&api, format, body), expected));
}

#[divan::bench(args = FORMATS, sample_size = 100)]
fn read(bencher: Bencher<'_, '_>, format: &str) {
    through_api(bencher, format, &body(format, true), 400);
}

#[divan::bench(args = FORMATS, sample_size = 100)]
fn done(bencher: Bencher<'_, '_>, format: &str) {
    through_api(bencher, format, &body(format, false), 200);
}

#[divan::bench(args = FORMATS, sample_size = 100)]
fn least(bencher: Bencher<'_, '_>, format: &str) {
    let body = body(format, false);
    let mut map: HashMap<String, usize> = (0..OPERATIONS).map(|number| (key(number), number)).collect();
    let keys: Vec<String> = (0..OPERATIONS).map(key).collect();
    bencher.counter(ItemsCount::new(OPERATIONS)).bench_local(|| {
        for key in &keys {
            map.entry(key.clone()).and_modify(|count| *count += 1);
        }
        black_box(&body).clone()
    });
}
