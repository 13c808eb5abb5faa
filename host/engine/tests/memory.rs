//! A large value for whose copies there is no memory is refused, whether a client or a plugin writes it.
//!
//! Provoked by a limit on the address space of this process, so this is the only test in it.

#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::sync::mpsc::channel;

use rustix::process::{Resource, Rlimit, setrlimit};
use vkog_engine::{Conditions, Engine, Form, Outcome, Reads, Request, Transforms};
use vkog_plugin_host::{CallScope, HostContext, NoOrigin, PluginRequest, PluginResponse, Registry, StoreAccess, Verb};
use vkog_store::MemoryStore;

/// Two of them fit into the memory that is left beside the first, three do not.
const VALUE_BYTES: usize = 80 << 20;
const LEFT_BYTES: u64 = 230 << 20;

#[test]
fn a_large_value_is_refused_without_memory_for_its_copies() {
    let context = Arc::new(HostContext::new(0, || 0));
    let registry = Registry::linked(Vec::new(), Vec::new(), context);
    let engine = Engine::single_threaded(MemoryStore::default(), registry).expect("there is no plugin to start");
    let value = vec![b'v'; VALUE_BYTES];
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux has this file");
    let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
    let limit = Some(pages * rustix::param::page_size() as u64 + LEFT_BYTES);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).expect("a process may limit itself");

    let request = PluginRequest {
        verb: Verb::Put,
        key: "k",
        value: &value,
        content_type: "",
        query: "",
        headers: Vec::new(),
        if_revision: None,
        if_absent: false,
        upserts: false,
        keeps_coding: false,
        scope: CallScope { plugin: "writer", depth: 1, chain: None },
    };
    let access: Arc<dyn StoreAccess> = Arc::<Engine<MemoryStore>>::clone(&engine);
    access.request(&request, &mut |response| {
        assert!(matches!(response, PluginResponse::Refused(refusal) if refusal.status == 503));
    });

    let request = Request {
        verb: Verb::Put,
        key: "k".to_owned(),
        value,
        content_type: "text/plain".into(),
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: vkog_plugin_host::Cause::Request,
        states: Default::default(),
        origin: Arc::new(NoOrigin),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        guarded: Default::default(),
    };
    let (send, outcome) = channel();
    engine.run(request, move |outcome, _| send.send(outcome).expect("the test waits for it"));
    let refused = outcome.recv().expect("the request ends");
    assert!(matches!(refused, Outcome::Refused(refusal) if refusal.status == 503));
}
