//! Counts the allocations of a GET and of a PUT of a present key through two plugins that have all hooks. Provoked by
//! many requests, one at a time, on a counting allocator. The counts are the same on every machine. If one grows, fix
//! it, or change the number here with its reason.

#![allow(unsafe_code)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use vkog::any_store::Engine;
use vkog::api::{Api, Authorizer};
use vkog::config;
use vkog::http::{Headers, HttpServer, Listener, Method, RequestHead, Responder, Service};
use vkog_plugin_api::*;
use vkog_plugin_host::{FailurePolicy, HostContext, Member, Registry, system_clock};
use vkog_store::{Fsync, LocalDisk, LocalStore, Options};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const REQUESTS: usize = 1000;
const KEY: &str = "a/key/longer/than/what/fits/anywhere/but/on/the/heap";
const VALUE: &[u8] = &[b'v'; 64];

struct Idle;

impl Plugin for Idle {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Idle)
    }
}

macro_rules! idle {
    ($($hook:ident $method:ident $argument:ty => $result:ty { $body:expr })+) => {
        $(impl $hook for Idle {
            fn $method(&self, _: $argument) -> $result {
                $body
            }
        })+
    };
}

idle! {
    BeforeGet before_get &mut Before<'_, Get> => Verdict { Ok(()) }
    BeforePut before_put &mut Before<'_, Put> => Verdict { Ok(()) }
    GuardGet guard_get &mut Guard<'_, Get> => Verdict { Ok(()) }
    GuardPut guard_put &mut Guard<'_, Put> => Verdict { Ok(()) }
    AfterGet after_get &After<'_, Get> => () { () }
    AfterPut after_put &After<'_, Put> => () { () }
    UndoPut undo_put &Undo<'_, Put> => () { () }
}

fn api(file: &std::path::Path) -> Api {
    let port = Arc::new(HostContext::new(0, system_clock));
    let member = |name| {
        let module = export::module::<Idle>(name, "0.0.0", true, &__hooks!(Idle), &[]);
        // SAFETY: the module is of this program.
        let member = unsafe { Member::create(module, "{}", &port, FailurePolicy::default()) };
        Arc::new(member.expect("it does nothing"))
    };
    let members = vec![member("one"), member("two")];
    // The committer of the others would count for the request that it happens to run beside.
    let options = Options { fsync: Fsync::Never, ..Options::default() };
    let store = LocalStore::open(LocalDisk, file, options, &|_, _, _| {}).expect("a new store opens");
    let engine = Engine::new(store.into(), Registry::linked(members, Vec::new(), port)).expect("they start");
    let auth = config::Auth { open: true, ..config::Auth::default() };
    Api::new(engine, 1 << 20, Arc::new(Authorizer::new(auth)), Arc::new(|| Ok(Vec::new())))
}

/// Returns the mean number of allocations and reallocations of a request.
fn per_request(mut request: impl FnMut()) -> f64 {
    // Warms up: one-time allocations happen now, and the first calls of hooks are all timed.
    (0..REQUESTS).for_each(|_| request());
    let region = Region::new(HEAP);
    (0..REQUESTS).for_each(|_| request());
    let change = region.change();
    (change.allocations + change.reallocations) as f64 / REQUESTS as f64
}

/// From the head to the response, on this thread. The input of the HTTP engine is prepared beforehand.
fn without_engine(api: &Api, method: Method) -> f64 {
    static STATUS: AtomicU16 = AtomicU16::new(0);
    let mut made = Vec::new();
    for _ in 0..2 * REQUESTS {
        let mut headers = Headers::default();
        headers.push("host", b"127.0.0.1:3110");
        headers.push("content-length", b"64");
        let body = if method == Method::Put { VALUE.to_vec() } else { Vec::new() };
        made.push((Arc::new(RequestHead::new(method, format!("/k/{KEY}"), headers, None)), body));
    }
    per_request(|| {
        let (head, body) = made.pop().expect("enough are made");
        let admitted = api.admit(head).unwrap_or_else(|reply| panic!("{}", reply.status));
        // It captures nothing, so it does not allocate.
        api.serve(admitted, body, Responder::new(|reply| STATUS.store(reply.status, SeqCst)));
        assert_eq!(STATUS.swap(0, SeqCst), 200);
    })
}

/// From the first byte of a request to the last byte of its response, by a client that does not allocate.
fn with_hyper(client: &mut TcpStream, method: &str, body: &[u8]) -> f64 {
    let head = format!("{method} /k/{KEY} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let request = [head.as_bytes(), body].concat();
    let ends = if method == "PUT" { b"\r\n\r\nOk".as_slice() } else { VALUE };
    let mut answer = [0; 1024];
    per_request(|| {
        client.write_all(&request).expect("the server reads");
        let mut length = 0;
        while !answer[..length].ends_with(ends) {
            let read = client.read(&mut answer[length..]).expect("the server answers in time");
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer[..length]));
            length += read;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    })
}

#[test]
fn a_get_allocates_at_most_twice_and_a_put_at_most_four_times() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let api = Arc::new(api(&folder.path().join("store")));
    // A GET needs an entry.
    let put = without_engine(&api, Method::Put);
    let get = without_engine(&api, Method::Get);

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let connections = api.connections();
    let engine =
        HttpServer::hyper(vec![Listener::Tcp(listener)], None, connections, Arc::clone(&api)).expect("it starts");
    let mut client = TcpStream::connect(address).expect("it listens");
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("it is no zero");
    let whole_put = with_hyper(&mut client, "PUT", VALUE);
    let whole_get = with_hyper(&mut client, "GET", &[]);
    drop(client);
    assert!(engine.stop(Duration::from_secs(60)), "the only connection is closed");

    let counted =
        [("GET", get, 2.0), ("PUT", put, 4.0), ("GET with hyper", whole_get, 9.0), ("PUT with hyper", whole_put, 14.0)];
    for (what, count, _) in counted {
        println!("{what}: {count} allocations");
    }
    for (what, count, written_down) in counted {
        assert!(count <= 1.1 * written_down, "{what}: {count} allocations; {written_down} are written down");
    }
}
