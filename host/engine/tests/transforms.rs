//! Values are turned back on the thread of the caller, and on the blocking pool where that takes long or may block.
//!
//! Provoked with a plugin that notes the threads on which it turns values back, and with small and large values.

// Creates a plugin of this program, without a library.
#![allow(unsafe_code)]

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use vkog_engine::{
    Batch, BatchOutcome, Conditions, Engine, ExtraHeaders, Form, Operation, Outcome, Reads, Request, Transforms,
};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, Before, BeforePut, CreateError, Host, NoSettings, Plugin, Put, Read, ReadGet, Verb, Verdict,
};
use vkog_plugin_host::{Cause, FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::{DEFAULT_CONTENT_TYPE, MemoryStore};

/// The threads on which values of this kind of plugin were turned back, by key.
static THREADS: Mutex<Vec<(String, ThreadId)>> = Mutex::new(Vec::new());

/// Stores values reversed. The value of the key `grows` is longer as it was sent.
struct Reverse<const BLOCKS: bool>;

impl<const BLOCKS: bool> Plugin for Reverse<BLOCKS> {
    type Settings = NoSettings;

    const BLOCKS: bool = BLOCKS;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

fn reversed(value: &[u8]) -> Vec<u8> {
    value.iter().rev().copied().collect()
}

impl<const BLOCKS: bool> BeforePut for Reverse<BLOCKS> {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        put.replace_value(&reversed(put.value()));
        Ok(())
    }
}

impl<const BLOCKS: bool> ReadGet for Reverse<BLOCKS> {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        let call = (read.key().to_owned(), thread::current().id());
        THREADS.lock().expect("no plugin panics").push(call);
        let times = if read.key() == "grows" { LARGE / 2 } else { 1 };
        read.replace_value(&reversed(read.value()).repeat(times));
        Ok(())
    }
}

/// The length of a value that is not turned back on an event loop.
const LARGE: usize = 100_000;

fn engine<const BLOCKS: bool>() -> Arc<Engine<MemoryStore>> {
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Reverse<BLOCKS>>("reverse", "0.0.0", true, &__hooks!(Reverse<BLOCKS>), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("no settings");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    Engine::new(MemoryStore::default(), registry).expect("it starts")
}

fn run(engine: &Arc<Engine<MemoryStore>>, verb: Verb, key: &str, value: &[u8]) -> Outcome {
    let request = Request {
        verb,
        key: key.to_owned(),
        value: value.to_vec(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: Cause::Request,
        origin: Arc::new(NoOrigin),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    };
    let (send, done) = channel();
    engine.run(request, move |outcome, _: ExtraHeaders| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

fn batch(engine: &Arc<Engine<MemoryStore>>, operations: &[(Verb, &str, &'static str)]) -> BatchOutcome {
    let operation = |&(verb, key, value): &(Verb, &str, &'static str)| Operation {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().into(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        conditions: Conditions::default(),
        headers: Vec::new(),
        hidden: false,
        touches: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    };
    let batch = Batch {
        operations: operations.iter().map(operation).collect(),
        query: String::new(),
        arrived: engine.revision(),
        values_max: 2 * LARGE,
        reads: Reads::Linearizable,
        origin: Arc::new(NoOrigin),
    };
    let (send, done) = channel();
    engine.run_batch(batch, move |outcome| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

/// Returns whether the last value of this key was turned back on this thread.
fn was_read_here(key: &str) -> bool {
    let threads = THREADS.lock().expect("no plugin panics");
    let (_, thread) = threads.iter().rfind(|(read, _)| read == key).expect("it was turned back");
    *thread == thread::current().id()
}

fn value(outcome: &Outcome) -> &[u8] {
    match outcome {
        Outcome::Found(entry) => entry.value(),
        other => panic!("{:?}", other.failure()),
    }
}

#[test]
fn large_values_are_turned_back_on_the_blocking_pool() {
    let engine = engine::<false>();
    let large: Vec<u8> = (0..LARGE).map(|index| index as u8).collect();
    run(&engine, Verb::Put, "small", b"abc");
    run(&engine, Verb::Put, "large", &large);
    assert_eq!(value(&run(&engine, Verb::Get, "small", b"")), b"abc");
    assert!(was_read_here("small"));
    assert_eq!(value(&run(&engine, Verb::Get, "large", b"")), large);
    assert!(!was_read_here("large"));
    for write in [None, Some((Verb::Put, "other", "1"))] {
        let gets = [(Verb::Get, "small", ""), (Verb::Get, "large", "")];
        for (count, is_here) in [(1, true), (2, false)] {
            let operations: Vec<_> = write.into_iter().chain(gets[..count].iter().copied()).collect();
            let Ok(done) = batch(&engine, &operations) else { panic!("the batch succeeds") };
            assert_eq!(value(&done[write.iter().count()].0), b"abc");
            assert_eq!(was_read_here("small"), is_here, "{operations:?}");
        }
    }
}

#[test]
fn a_blocking_plugin_turns_all_values_back_on_the_blocking_pool() {
    let engine = engine::<true>();
    run(&engine, Verb::Put, "blocking", b"abc");
    assert_eq!(value(&run(&engine, Verb::Get, "blocking", b"")), b"abc");
    assert!(!was_read_here("blocking"));
}

#[test]
fn a_batch_whose_values_grow_over_the_limit_is_refused() {
    let engine = engine::<false>();
    run(&engine, Verb::Put, "grows", b"abc");
    let gets = [(Verb::Get, "grows", ""), (Verb::Get, "grows", "")];
    let put = [(Verb::Put, "written", "1")];
    assert!(batch(&engine, &gets[..1]).is_ok() && batch(&engine, &[&gets[..1], &put].concat()).is_ok());
    run(&engine, Verb::Delete, "written", b"");
    for operations in [&gets[..], &[&gets[..], &put].concat()] {
        let Err(failure) = batch(&engine, operations) else { panic!("3 times the limit") };
        let status = failure.outcome.failure().map(|(status, _)| status);
        assert_eq!((failure.at, status), (Some((1, "grows".to_owned())), Some(413)));
    }
    assert!(matches!(run(&engine, Verb::Get, "written", b""), Outcome::Absent));
}
