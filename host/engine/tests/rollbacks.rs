//! A get, and a batch that only reads, whose guards have passed and whose entry is then rolled back: the guards are rolled back
//! before the entry is read again, so that exactly one undo or after follows each guard.
//!
//! Provoked by a store that reports a number of reads as rolled back, and by a plugin that counts its calls.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::channel;

use vkog_engine::{Batch, Conditions, Engine, Form, Operation, Outcome, Request, Transforms};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, After, AfterGet, Counter, CreateError, Get, Guard, GuardGet, GuardPut, Host, NoSettings, Plugin, Put,
    Undo, UndoGet, UndoPut, Verb, Verdict,
};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::{
    Change, Changes, Decide, Decision, Entry, MemoryStore, NewEntry, Reads, RolledBack, Store, StoreError, Unwatchable,
    Update, Watch,
};

/// Reports reads as rolled back.
struct Unsure {
    store: MemoryStore,
    /// The number of reads that are still to be reported so.
    rollbacks: AtomicU32,
}

impl Store for Unsure {
    type Ticket = ();

    fn revision(&self) -> u64 {
        self.store.revision()
    }

    fn totals(&self) -> (u64, u64) {
        self.store.totals()
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        self.store.closed()
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        self.store.full()
    }

    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, ()) {
        self.store.read(key, look)
    }

    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, ()) {
        self.store.read_all(keys, look)
    }

    fn is_durable(&self, (): ()) -> bool {
        false
    }

    fn when_durable(&self, (): (), then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        let rolled_back = self.rollbacks.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        then(if rolled_back { Err(RolledBack) } else { Ok(()) });
    }

    #[inline]
    fn is_current(&self, _: Reads) -> bool {
        true
    }

    #[inline]
    fn when_current(&self, _: Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static) {
        then(Ok(()));
    }

    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        self.store.update_all(keys, Twice(decide), finish);
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.store.with_prefix(prefix)
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        self.store.range(from, end, count)
    }

    fn sample(&self, count: usize) -> Vec<Entry> {
        self.store.sample(count)
    }

    fn count(&self, prefix: &str) -> u64 {
        self.store.count(prefix)
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        self.store.watch(prefix, since)
    }

    fn end_watches(&self) {
        self.store.end_watches();
    }

    fn observe(&self, _: impl Fn(&Change, &str) + Send + Sync + 'static) {}
}

/// Decides to write, undoes that, and decides again, as a store does that another server was faster than.
struct Twice<D>(D);

impl<D: Decide> Decide for Twice<D> {
    type Rejection = D::Rejection;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<D::Rejection> {
        if let Decision::Write(entry) = self.0.decide(before, current) {
            self.0.undo(&[Change { before: current.cloned(), after: Some(entry), revision: 0, expired: false }]);
        }
        self.0.decide(before, current)
    }

    fn undo(&mut self, decided: &[Change]) {
        self.0.undo(decided);
    }
}

/// Counts its calls.
struct Counting {
    guards: Counter,
    undos: Counter,
    afters: Counter,
}

impl Plugin for Counting {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let counter = |name| host.counter(name, "Calls.");
        Ok(Self { guards: counter("guards"), undos: counter("undos"), afters: counter("afters") })
    }
}

impl GuardGet for Counting {
    fn guard_get(&self, _: &mut Guard<'_, Get>) -> Verdict {
        self.guards.add(1);
        Ok(())
    }
}

impl UndoGet for Counting {
    fn undo_get(&self, _: &Undo<'_, Get>) {
        self.undos.add(1);
    }
}

impl GuardPut for Counting {
    fn guard_put(&self, _: &mut Guard<'_, Put>) -> Verdict {
        self.guards.add(1);
        Ok(())
    }
}

impl UndoPut for Counting {
    fn undo_put(&self, _: &Undo<'_, Put>) {
        self.undos.add(1);
    }
}

impl AfterGet for Counting {
    fn after_get(&self, _: &After<'_, Get>) {
        self.afters.add(1);
    }
}

/// An engine whose store holds these keys, and reports the first reads as rolled back.
fn engine(keys: &[&str], rollbacks: u32) -> Arc<Engine<Unsure>> {
    let store = MemoryStore::default();
    for key in keys {
        let entry = Entry::new(key, &NewEntry { value: b"value", content_type: "text/plain", details: Vec::new() });
        let decide = move |_: &[Change], _: Option<&Entry>| Decision::<()>::Write(entry.clone());
        store.update(key, decide, |update| assert!(matches!(update, Update::Committed(_))));
    }
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Counting>("counting", "0.0.0", true, &__hooks!(Counting), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("no settings");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    let store = Unsure { store, rollbacks: AtomicU32::new(rollbacks) };
    Engine::single_threaded(store, registry).expect("the plugin starts")
}

/// Runs an operation on `key`, and returns its outcome.
fn run(engine: &Arc<Engine<Unsure>>, verb: Verb, value: &[u8]) -> Outcome {
    let request = Request {
        verb,
        key: "key".to_owned(),
        value: value.to_vec(),
        content_type: if value.is_empty() { "" } else { "text/plain" }.into(),
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
    let (send, done) = channel();
    engine.run(request, move |outcome, _| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

/// How often the guard, the undo and the after were called.
fn calls(engine: &Engine<Unsure>) -> [i64; 3] {
    let metrics = engine.plugins().context().metrics("counting");
    let value = |name: &str| metrics.iter().find(|(own, _)| own == name).map_or(0, |(_, metric)| metric.value());
    ["guards", "undos", "afters"].map(value)
}

#[test]
fn a_get_undoes_its_guards_before_it_reads_again_what_was_rolled_back() {
    let engine = engine(&["key"], 2);
    assert!(matches!(run(&engine, Verb::Get, b""), Outcome::Found(entry) if entry.value() == b"value"));
    assert_eq!(calls(&engine), [3, 2, 1], "guards, undos, afters");
}

#[test]
fn a_batch_of_gets_undoes_its_guards_before_it_reads_again_what_was_rolled_back() {
    let engine = engine(&["a", "b"], 2);
    let get = |key: &str| Operation {
        verb: Verb::Get,
        key: key.to_owned(),
        value: Vec::new().into(),
        content_type: "".into(),
        conditions: Conditions::default(),
        headers: Vec::new(),
        hidden: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
        touches: false,
    };
    // A get that finds nothing has no guard, and so no undo.
    let operations = vec![get("a"), get("absent"), get("b")];
    let batch = Batch {
        operations,
        query: String::new(),
        arrived: engine.revision(),
        values_max: 1000,
        reads: Reads::Linearizable,
        origin: Arc::new(NoOrigin),
    };
    let (send, done) = channel();
    engine.run_batch(batch, move |outcome| _ = send.send(outcome));
    let done = done.recv().expect("an outcome").ok().expect("nothing refuses");
    let found: Vec<bool> = done.iter().map(|(outcome, _)| matches!(outcome, Outcome::Found(_))).collect();
    assert_eq!(found, [true, false, true]);
    assert_eq!(calls(&engine), [6, 4, 2], "guards, undos, afters");
}

#[test]
fn a_write_that_the_store_decides_again_undoes_its_guards_first() {
    let engine = engine(&[], 0);
    assert!(matches!(run(&engine, Verb::Put, b"value"), Outcome::Written(1)));
    assert_eq!(calls(&engine), [2, 1, 0], "guards, undos, afters");
}
