//! Routes that update an entry: conflicts with other writes, and the threads on which hooks run.
//!
//! Provoked with a plugin that writes the entry between the read and the write of the update, and with large values.

// Creates a plugin of this program, without a library.
#![allow(unsafe_code)]

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use vkog_engine::{Engine, Outcome};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, Before, BeforePut, CreateError, Host, NoSettings, Plugin, Put, ServeUpdate, UpdateRequest, Verdict,
};
use vkog_plugin_host::{Chain, EntryView, FailurePolicy, HostContext, Member, NewValue, Registry};
use vkog_store::{MemoryStore, Store};

/// Writes an entry again before each of its updates while it holds fewer than this many letters.
static INTERFERES_BELOW: Mutex<usize> = Mutex::new(0);

struct Interfering<const BLOCKS: bool>(Host);

impl<const BLOCKS: bool> Plugin for Interfering<BLOCKS> {
    type Settings = NoSettings;
    const BLOCKS: bool = BLOCKS;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self(host))
    }
}

impl<const BLOCKS: bool> ServeUpdate for Interfering<BLOCKS> {
    const ROUTES: &'static [vkog_plugin_api::Route] = &[];

    fn serve_update(&self, _: &UpdateRequest<'_>) -> Result<Vec<u8>, vkog_plugin_api::Refusal> {
        unreachable!("the tests pass other functions")
    }
}

impl<const BLOCKS: bool> BeforePut for Interfering<BLOCKS> {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        let limit = *INTERFERES_BELOW.lock().expect("no test panics with it");
        let is_interference = put.value().ends_with(b"!");
        if put.key() == "interfered" && !is_interference && put.value().len() <= limit {
            let value = [put.value(), b"!"].concat();
            self.0.put(put.key(), &value).map(drop)?;
        }
        Ok(())
    }
}

fn engine<const BLOCKS: bool>() -> Arc<Engine<MemoryStore>> {
    let context = Arc::new(HostContext::new(0, || 0));
    let hooks = __hooks!(Interfering<BLOCKS>);
    let module = module::<Interfering<BLOCKS>>("interfering", "0.0.0", true, &hooks, &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("no settings");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    Engine::new(MemoryStore::new(64 << 20, 1), registry).expect("the plugin starts")
}

/// Appends letters to an entry. Returns the threads on which the function was called, and the outcome.
fn append(engine: &Arc<Engine<MemoryStore>>, key: &str, letters: usize) -> (Vec<ThreadId>, Result<(), Outcome>) {
    let (send, done) = channel();
    let threads = Arc::new(Mutex::new(Vec::new()));
    let chain = engine.plugins().chain();
    let (member, called) = (Arc::clone(&chain.members()[0]), Arc::clone(&threads));
    let value_of = move |_: &Arc<Chain>, entry: Option<EntryView<'_>>| {
        called.lock().expect("nothing panics").push(thread::current().id());
        let value = [entry.map_or(&b""[..], |entry| entry.value), &vec![b'x'; letters]].concat();
        Ok((NewValue { value, content_type: String::new() }, ()))
    };
    engine.update_entry(chain, &member, key.to_owned(), value_of, move |outcome| _ = send.send(outcome));
    let outcome = done.recv().expect("an outcome");
    let threads = threads.lock().expect("nothing panics").clone();
    (threads, outcome)
}

fn len(engine: &Engine<MemoryStore>, key: &str) -> usize {
    engine.store().read(key, |entry| entry.map_or(0, |entry| entry.value().len())).0
}

#[test]
fn an_update_is_repeated_after_each_conflict_and_refused_after_64() {
    let engine = engine::<false>();
    // Each attempt appends a letter, and so does the write before it that comes between.
    *INTERFERES_BELOW.lock().expect("no test panics with it") = 10;
    let (calls, outcome) = append(&engine, "interfered", 1);
    assert!(outcome.is_ok());
    assert_eq!((calls.len(), len(&engine, "interfered")), (6, 11));
    *INTERFERES_BELOW.lock().expect("no test panics with it") = 1 << 20;
    let (calls, outcome) = append(&engine, "interfered", 1);
    let refused = outcome.expect_err("it conflicts again and again").failure();
    let (status, message) = refused.expect("a failure");
    assert_eq!((status, calls.len()), (409, 65));
    assert!(message.starts_with("Entry changed again and again"), "{message}");
    assert!(append(&engine, "other", 1).1.is_ok());
}

#[test]
fn an_update_runs_on_the_pool_if_hooks_may_block_or_the_entry_is_large() {
    let here = thread::current().id();
    let engine_short = engine::<false>();
    assert_eq!(append(&engine_short, "k", 65 << 10).0, [here]);
    let (threads, outcome) = append(&engine_short, "k", 1);
    assert!(outcome.is_ok() && threads.len() == 1 && threads[0] != here, "{threads:?}");
    assert_eq!(append(&engine_short, "other", 1).0, [here]);
    let (threads, outcome) = append(&engine::<true>(), "k", 1);
    assert!(outcome.is_ok() && threads.len() == 1 && threads[0] != here, "{threads:?}");
}
