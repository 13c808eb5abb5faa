//! The state that a plugin keeps for an operation passes from hook to hook, belongs to that operation alone, and is dropped once,
//! before the outcome is reported, however the operation ends.
//!
//! Provoked by a plugin that takes and keeps a state in every hook, refuses or panics where the query says so, and counts its
//! states and their drops.

// Creates a plugin of this program, without a library.
#![allow(unsafe_code)]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use vkog_engine::{
    Batch, Conditions, Engine, Form, Listing, Operation, Outcome, Reads, Request, RequestContext, Transforms,
};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, After, AfterDelete, AfterGet, AfterPost, AfterPut, Before, BeforeDelete, BeforeGet, BeforePost, BeforePut,
    Counter, CreateError, Delete, Get, Guard, GuardDelete, GuardGet, GuardPost, GuardPut, Host, MakeRoom, NoSettings,
    Plugin, Post, Put, Refusal, Undo, UndoDelete, UndoGet, UndoPost, UndoPut, Verb, Verdict,
};
use vkog_plugin_host::{CallStates, Cause, FailurePolicy, HostContext, Member, NoOrigin, OnFailure, Registry};
use vkog_store::{DEFAULT_CONTENT_TYPE, MemoryStore};

/// The state: the hook that has set it.
struct Kept {
    hook: &'static str,
    dropped: Counter,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.dropped.add(1);
    }
}

/// The notes of the plugin that is created next. Locked while it is created.
static NEXT: Mutex<Option<Arc<Notes>>> = Mutex::new(None);

#[derive(Default)]
struct Notes {
    /// Each call, with the origin of its operation, and the hook that has set the state.
    calls: Mutex<Vec<String>>,
    host: Mutex<Option<Host>>,
}

struct Keeper {
    notes: Arc<Notes>,
    made: Counter,
    dropped: Counter,
    rooms: AtomicU32,
}

impl Plugin for Keeper {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let notes = NEXT.lock().expect("no test panics here").take().ok_or("no notes")?;
        *notes.host.lock().expect("no plugin panics") = Some(host);
        let counter = |name| host.counter(name, "Counted.");
        Ok(Self { notes, made: counter("made"), dropped: counter("dropped"), rooms: AtomicU32::new(0) })
    }
}

impl Keeper {
    fn pass(&self, hook: &'static str, call: &vkog_plugin_api::Request<'_>) -> Verdict {
        let kept = call.take_state::<Kept>();
        let from = kept.as_ref().map_or("-", |kept| kept.hook);
        self.notes.calls.lock().expect("no plugin panics").push(format!("{:?} {hook}<{from}", call.origin()));
        drop(kept);
        // A state that replaces another one, which is dropped then.
        for _ in 0..2 {
            self.made.add(1);
            call.set_state(Kept { hook, dropped: self.dropped });
        }
        // One of another type is not taken, and dropped all the same.
        if call.query() == "other" {
            assert!(call.take_state::<u8>().is_none());
        }
        let stop = |word: &str| call.query().strip_prefix(word) == Some(hook);
        assert!(!stop("panic="), "on purpose");
        if stop("refuse=") || hook == "guard_put" && call.value() == b"full" {
            return Err(Refusal::new(413, "on purpose"));
        }
        Ok(())
    }
}

macro_rules! keep {
    ($($operation:ident: $before:ident $before_hook:ident, $guard:ident $guard_hook:ident, $undo:ident $undo_hook:ident,
       $after:ident $after_hook:ident;)*) => {$(
        impl $before for Keeper {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                self.pass(stringify!($before_hook), call)
            }
        }
        impl $guard for Keeper {
            fn $guard_hook(&self, call: &mut Guard<'_, $operation>) -> Verdict {
                self.pass(stringify!($guard_hook), call)
            }
        }
        impl $undo for Keeper {
            fn $undo_hook(&self, call: &Undo<'_, $operation>) {
                let _ = self.pass(stringify!($undo_hook), call);
            }
        }
        impl $after for Keeper {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                let _ = self.pass(stringify!($after_hook), call);
            }
        }
    )*};
}

keep! {
    Get: BeforeGet before_get, GuardGet guard_get, UndoGet undo_get, AfterGet after_get;
    Post: BeforePost before_post, GuardPost guard_post, UndoPost undo_post, AfterPost after_post;
    Put: BeforePut before_put, GuardPut guard_put, UndoPut undo_put, AfterPut after_put;
    Delete: BeforeDelete before_delete, GuardDelete guard_delete, UndoDelete undo_delete, AfterDelete after_delete;
}

impl MakeRoom for Keeper {
    fn make_room(&self) -> bool {
        self.rooms.fetch_add(1, SeqCst) < 2
    }
}

/// An engine with the plugin.
struct Test {
    engine: Arc<Engine<MemoryStore>>,
    store: MemoryStore,
    notes: Arc<Notes>,
}

const VERBS: [Verb; 4] = [Verb::Get, Verb::Post, Verb::Put, Verb::Delete];

impl Test {
    fn new() -> Self {
        static CREATING: Mutex<()> = Mutex::new(());
        let _alone = CREATING.lock().expect("no other test panicked here");
        let notes = Arc::new(Notes::default());
        *NEXT.lock().expect("no test panics here") = Some(Arc::clone(&notes));
        let context = Arc::new(HostContext::new(0, || 0));
        let module = module::<Keeper>("keeper", "0.0.0", true, &__hooks!(Keeper), &[]);
        let policy = FailurePolicy { on_failure: OnFailure::Keep, ..FailurePolicy::default() };
        // SAFETY: the module is part of this program.
        let member = unsafe { Member::create(module, "{}", &context, policy) }.expect("it has notes");
        let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
        let store = MemoryStore::default();
        let engine = Engine::single_threaded(store.clone(), registry).expect("the plugin starts");
        Self { engine, store, notes }
    }

    fn counter(&self, name: &str) -> i64 {
        let metrics = self.engine.plugins().context().metrics("keeper");
        metrics.iter().find(|(own, _)| own == name).map_or(0, |(_, metric)| metric.value())
    }

    /// Fails if a state of an operation that has ended is not dropped, or was dropped twice.
    #[track_caller]
    fn check(&self, what: &str) {
        assert_eq!(self.counter("dropped"), self.counter("made"), "{what}: {:?}", self.notes.calls.lock());
    }

    /// Returns the calls since the last time.
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.calls.lock().expect("no plugin panics"))
    }

    fn request(&self, verb: Verb, key: &str, value: &str, query: &str) -> Request {
        Request {
            verb,
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
            query: query.to_owned(),
            conditions: Conditions::default(),
            arrived: self.engine.revision(),
            depth: 0,
            cause: Cause::Request,
            origin: Arc::new(NoOrigin),
            states: CallStates::default(),
            guarded: Default::default(),
            form: Form::Sent,
            reads: Reads::Linearizable,
            transforms: Transforms::default(),
        }
    }

    /// Runs an operation, checks the drops when its outcome is reported, and returns its status.
    #[track_caller]
    fn run(&self, verb: Verb, key: &str, value: &str, query: &str) -> u16 {
        let (send, done) = channel();
        let engine = Arc::clone(&self.engine);
        self.engine.run(self.request(verb, key, value, query), move |outcome, _| {
            let metrics = engine.plugins().context().metrics("keeper");
            let value = |name: &str| metrics.iter().find(|(own, _)| own == name).map_or(0, |(_, own)| own.value());
            let status = outcome.failure().map_or(200, |(status, _)| status);
            let _ = send.send((status, value("made"), value("dropped")));
        });
        let (status, made, dropped) = done.recv().expect("an outcome");
        assert_eq!(dropped, made, "{verb:?} {query} {status}");
        status
    }

    /// Runs a batch, and returns its status.
    #[track_caller]
    fn batch(&self, operations: &[(Verb, &str, &'static str)], query: &str) -> u16 {
        let operation = |(verb, key, value): &(Verb, &str, &'static str)| Operation {
            verb: *verb,
            key: (*key).to_owned(),
            value: value.as_bytes().into(),
            content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
            conditions: Conditions::default(),
            headers: Vec::new(),
            hidden: false,
            touches: *verb == Verb::Put && value.is_empty(),
            states: CallStates::default(),
            guarded: Default::default(),
            transforms: Transforms::default(),
        };
        let batch = Batch {
            operations: operations.iter().map(operation).collect(),
            query: query.to_owned(),
            arrived: self.engine.revision(),
            values_max: 20,
            reads: Reads::Linearizable,
            origin: Arc::new(NoOrigin),
        };
        let (send, done) = channel();
        self.engine.run_batch(batch, move |outcome| {
            let status = |outcome: &Outcome| outcome.failure().map_or(200, |(status, _)| status);
            let _ = send.send(outcome.map_or_else(|failure| status(&failure.outcome), |_| 200));
        });
        let status = done.recv().expect("an outcome");
        self.check(&format!("{operations:?} {query}"));
        status
    }
}

/// The value of an operation.
fn value(verb: Verb) -> &'static str {
    if matches!(verb, Verb::Post | Verb::Put) { "value" } else { "" }
}

#[test]
fn a_state_passes_from_hook_to_hook_of_its_operation() {
    let test = Test::new();
    for verb in [Verb::Post, Verb::Put, Verb::Get, Verb::Delete] {
        assert_eq!(test.run(verb, "key", value(verb), ""), 200);
        let name = verb.method().to_ascii_lowercase();
        let expected = [
            format!("Request before_{name}<-"),
            format!("Request guard_{name}<before_{name}"),
            format!("Request after_{name}<guard_{name}"),
        ];
        assert_eq!(test.calls(), expected);
    }
    assert_eq!(test.counter("made"), 4 * 3 * 2);
}

#[test]
fn a_state_of_an_operation_that_is_refused_or_panics_anywhere_is_dropped_once() {
    let test = Test::new();
    for verb in VERBS {
        for phase in ["before", "guard", "after", "undo"] {
            for act in ["refuse", "panic"] {
                test.run(Verb::Put, "key", "1", "");
                let query = format!("{act}={phase}_{}", verb.method().to_ascii_lowercase());
                let status = test.run(verb, "key", value(verb), &query);
                let expected = match (act, phase) {
                    (_, "after" | "undo") => 200,
                    ("panic", _) => 500,
                    _ => 413,
                };
                assert_eq!(status, expected, "{query}");
            }
        }
        test.run(verb, "key", value(verb), "other");
    }
    for verb in [Verb::Get, Verb::Delete] {
        assert_eq!(test.run(verb, "absent", "", ""), 404);
    }
}

#[test]
fn a_state_of_a_write_that_the_store_rolls_back_reaches_the_undo_and_is_dropped_once() {
    let test = Test::new();
    for verb in [Verb::Post, Verb::Put, Verb::Delete] {
        test.run(Verb::Put, "key", "1", "");
        for query in ["", "panic=undo_post", "panic=undo_put", "panic=undo_delete"] {
            test.store.fail_updates(1);
            test.calls();
            assert_eq!(test.run(verb, "key", value(verb), query), 503);
            let name = verb.method().to_ascii_lowercase();
            let expected = [
                format!("Request before_{name}<-"),
                format!("Request guard_{name}<before_{name}"),
                format!("Request undo_{name}<guard_{name}"),
            ];
            assert_eq!(test.calls(), expected);
        }
    }
}

#[test]
fn a_guard_that_runs_again_after_room_was_made_finds_the_state_of_its_last_run() {
    let test = Test::new();
    assert_eq!(test.run(Verb::Put, "key", "full", ""), 413);
    let guard = "Request guard_put<guard_put".to_owned();
    let first = ["Request before_put<-".to_owned(), "Request guard_put<before_put".to_owned()];
    assert_eq!(test.calls(), [&first[..], &[guard.clone(), guard]].concat());
    assert_eq!(test.batch(&[(Verb::Put, "a", "1"), (Verb::Put, "key", "full")], ""), 413);
}

#[test]
fn each_operation_of_a_batch_has_a_state_of_its_own() {
    let test = Test::new();
    let writes = [(Verb::Post, "a", "1"), (Verb::Put, "b", "2"), (Verb::Get, "a", ""), (Verb::Delete, "b", "")];
    assert_eq!(test.batch(&writes, ""), 200);
    let calls = test.calls();
    assert_eq!(calls[..4].iter().filter(|call| call.ends_with("<-")).count(), 4, "{calls:?}");
    assert!(calls.contains(&"Batch after_delete<guard_delete".to_owned()), "{calls:?}");
    assert_eq!(test.batch(&[(Verb::Get, "a", ""), (Verb::Get, "b", ""), (Verb::Get, "a", "")], ""), 200);
    assert!(test.calls().contains(&"Batch after_get<guard_get".to_owned()));
    for query in ["refuse=before_put", "panic=before_put", "refuse=guard_put", "panic=guard_get", "panic=after_put"] {
        let status = test.batch(&writes, query);
        assert_eq!(
            status,
            if query.contains("after") {
                200
            } else if query.contains("panic") {
                500
            } else {
                413
            }
        );
        test.calls();
    }
    // The second value is too long beside the first, and the third operation finds nothing.
    assert_eq!(test.batch(&[(Verb::Put, "a", "1234567890"), (Verb::Put, "b", "12345678901")], ""), 413);
    assert_eq!(test.batch(&[(Verb::Put, "a", "1"), (Verb::Delete, "absent", "")], ""), 404);
    test.store.fail_updates(1);
    assert_eq!(test.batch(&writes, ""), 503);
}

#[test]
fn listed_watched_touched_and_deleted_keys_have_states_of_their_own() {
    let test = Test::new();
    let client = RequestContext { origin: Arc::new(NoOrigin), query: String::new(), reads: Reads::Linearizable };
    let Ok(mut watch) = test.engine.watch(String::new(), None, client.clone()) else { panic!("it starts now") };
    for key in ["a", "b", "c"] {
        test.run(Verb::Put, key, "1", "");
    }
    test.calls();
    // The calls for this number of keys.
    let expected = |origin: &str, verb: &str, keys: usize| -> Vec<String> {
        let hooks = ["before_{}<-", "guard_{}<before_{}", "after_{}<guard_{}"];
        (0..keys).flat_map(|_| hooks.map(|hook| format!("{origin} {}", hook.replace("{}", verb)))).collect()
    };
    let listing = Listing { prefix: String::new(), after: None, limit: 10, delimiter: None, form: Form::Sent };
    assert_eq!(test.engine.list(&listing, &client).ok().map(|page| page.entries.len()), Some(3));
    assert_eq!(test.calls(), expected("List", "get", 3));
    assert_eq!(test.engine.count("", &client).ok(), Some(3));
    assert_eq!(test.calls(), expected("Count", "get", 3));
    test.check("a listing and a count");

    while watch.poll(&Context::from_waker(Waker::noop())).is_ready() {}
    assert_eq!(test.calls(), expected("Watch", "get", 3));
    test.check("a watch");

    let (send, done) = channel();
    test.engine.touch(test.request(Verb::Put, "a", "", ""), move |outcome, _| {
        let _ = send.send(matches!(outcome, Outcome::Written(_)));
    });
    assert_eq!(done.recv(), Ok(true));
    assert_eq!(test.calls(), [expected("Touch", "get", 1), expected("Touch", "put", 1)].concat());
    test.check("a touch");
    assert_eq!(test.batch(&[(Verb::Put, "a", "")], ""), 200);
    assert_eq!(test.calls(), [expected("Touch", "get", 1), expected("Touch", "put", 1)].concat());

    assert_eq!(test.engine.delete_page(&listing, &client).ok().map(|page| page.deleted), Some(3));
    let calls = test.calls();
    assert_eq!(calls[..9], expected("DeletePrefix", "get", 3));
    assert_eq!(calls[9..], expected("DeletePrefix", "delete", 3));
    test.check("a deletion by prefix");
}

#[test]
fn requests_of_plugins_have_states_of_their_own() {
    let test = Test::new();
    let host = test.notes.host.lock().expect("no plugin panics").expect("it was created");
    assert!(host.put("a", b"1").is_ok() && host.delete("absent") == Ok(false));
    let calls = test.calls();
    assert_eq!(calls[..3], ["Plugin before_put<-", "Plugin guard_put<before_put", "Plugin after_put<guard_put"]);
    assert_eq!(calls[3..], ["Plugin before_delete<-"]);
    let listed = host.for_each("", |_, _| ControlFlow::Continue(()));
    assert!(listed.is_ok());
    assert_eq!(test.calls().first().map(String::as_str), Some("Plugin before_get<-"));
    test.check("requests of plugins");
}
