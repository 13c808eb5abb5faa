//! Guards add writes to the step of their operation, and replace the value to write.
//!
//! Provoked by a plugin whose guards do what the query says, and that notes its calls.

// Creates plugins of this program, without a library.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use vkog_engine::{Conditions, Engine, Form, Listing, Outcome, Reads, Request, RequestContext, Revisions, Transforms};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, After, AfterDelete, AfterPut, Ask, Before, BeforeDelete, BeforePut, Change, CreateError, Delete, Guard,
    GuardDelete, GuardPut, Host, NoSettings, Plugin, Put, Undo, UndoDelete, UndoPut, Verb, Verdict,
};
use vkog_plugin_host::{Cause, FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::{MemoryStore, Store};

/// The notes of a plugin: each call as hook, key, value and asker.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<String>>,
    /// The number of times that it still writes the entry before an added write.
    meddles: AtomicU32,
    host: Mutex<Option<Host>>,
}

impl Notes {
    fn note(&self, hook: &str, request: &vkog_plugin_api::Request<'_>) {
        let (key, value) = (request.key(), String::from_utf8_lossy(request.value()));
        let line = format!("{hook} {key} {value} {}", request.asker().unwrap_or("-"));
        self.calls.lock().expect("no plugin panics").push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("no plugin panics"))
    }

    fn host(&self) -> Host {
        self.host.lock().expect("no plugin panics").expect("the plugin was created")
    }
}

/// The notes of the plugin that is created next.
static NEXT: Mutex<Option<Arc<Notes>>> = Mutex::new(None);

/// Obeys the query, a list with semicolons: `put KEY VALUE`, `absent KEY`, `delete KEY`, `many`, `again`, `old` or `empty` adds
/// writes, and `replace VALUE` replaces the value.
struct Adding(Arc<Notes>);

impl Plugin for Adding {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let notes = NEXT.lock().expect("no plugin panics").clone().ok_or("no notes")?;
        *notes.host.lock().expect("no plugin panics") = Some(host);
        Ok(Self(notes))
    }
}

fn obey<O: Change>(guard: &Guard<'_, O>) -> Verdict {
    for order in guard.query().split(';') {
        match order.split(' ').collect::<Vec<_>>()[..] {
            ["put", key, value] => guard.add(&Ask::put(key, value.as_bytes()))?,
            ["absent", key] => guard.add(&Ask::put(key, b"1").if_absent())?,
            ["delete", key] => guard.add(&Ask::delete(key))?,
            ["get", key] => guard.add(&Ask::get(key))?,
            ["many"] => (0..65).try_for_each(|index| guard.add(&Ask::put(&index.to_string(), b"1")))?,
            // The added write adds one more.
            ["again"] => guard.add(&Ask::put("again", b"1").query("put more 1"))?,
            ["old"] => {
                let old = guard.entry().map_or(&b"none"[..], |entry| entry.value());
                guard.add(&Ask::put(&format!("old/{}", guard.key()), old).query("old"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

impl BeforePut for Adding {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.0.note("before", put);
        let meddles = || self.0.meddles.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        match put.key().strip_prefix("old/").filter(|_| meddles()) {
            Some(key) => self.0.host().put(key, &[put.value(), b"+"].concat()).map(drop),
            None => Ok(()),
        }
    }
}

impl BeforeDelete for Adding {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.0.note("before", delete);
        Ok(())
    }
}

impl GuardPut for Adding {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.0.note("guard", put);
        if let Some(value) = put.query().strip_prefix("replace ") {
            put.replace_value(value.as_bytes())?;
        }
        // The added write of `old` has the same query, and adds nothing.
        if put.key().starts_with("old/") { Ok(()) } else { obey(put) }
    }
}

impl GuardDelete for Adding {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        self.0.note("guard", delete);
        obey(delete)
    }
}

macro_rules! notes {
    ($($hook:ident $method:ident $view:ident $operation:ident $name:literal;)*) => {$(
        impl $hook for Adding {
            fn $method(&self, call: &$view<'_, $operation>) {
                self.0.note($name, call);
            }
        }
    )*};
}

notes! {
    UndoPut undo_put Undo Put "undo";
    UndoDelete undo_delete Undo Delete "undo";
    AfterPut after_put After Put "after";
    AfterDelete after_delete After Delete "after";
}

/// Notes the thread of each removal.
struct Blocking(Arc<Notes>);

impl Plugin for Blocking {
    type Settings = NoSettings;

    const BLOCKS: bool = true;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self(NEXT.lock().expect("no plugin panics").clone().ok_or("no notes")?))
    }
}

impl BeforeDelete for Blocking {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.0.note(&format!("{:?}", thread::current().id()), delete);
        Ok(())
    }
}

/// Notes the values that it sees behind `adding`.
struct Later(Arc<Notes>);

impl Plugin for Later {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self(NEXT.lock().expect("no plugin panics").clone().ok_or("no notes")?))
    }
}

impl GuardPut for Later {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.0.note("later", put);
        Ok(())
    }
}

type TestEngine = Arc<Engine<MemoryStore>>;

fn members(others: bool) -> (Registry, Arc<Notes>) {
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().expect("no other test panicked here");
    let notes = Arc::new(Notes::default());
    *NEXT.lock().expect("no plugin panics") = Some(Arc::clone(&notes));
    let context = Arc::new(HostContext::new(0, || 0));
    let create = |module| {
        // SAFETY: the module is part of this program.
        Arc::new(unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("it has notes"))
    };
    let mut members = vec![create(module::<Adding>("adding", "0.0.0", true, &__hooks!(Adding), &[]))];
    if others {
        members.push(create(module::<Later>("later", "0.0.0", true, &__hooks!(Later), &[])));
        members.push(create(module::<Blocking>("blocking", "0.0.0", true, &__hooks!(Blocking), &[])));
    }
    (Registry::linked(members, Vec::new(), context), notes)
}

fn engine() -> (TestEngine, Arc<Notes>) {
    let (registry, notes) = members(false);
    (Engine::single_threaded(MemoryStore::default(), registry).expect("the plugin starts"), notes)
}

fn request(engine: &TestEngine, verb: Verb, key: &str, value: &str, query: &str) -> Request {
    Request {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        content_type: if value.is_empty() { "" } else { "text/plain" }.into(),
        query: query.to_owned(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        origin: Arc::new(NoOrigin),
        cause: Cause::Request,
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    }
}

fn run(engine: &TestEngine, request: Request) -> Outcome {
    let (send, done) = channel();
    engine.run(request, move |outcome, _| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

/// The outcome of a request as a text: the revision, or status and message.
fn send(engine: &TestEngine, verb: Verb, key: &str, value: &str, query: &str) -> String {
    text(&run(engine, request(engine, verb, key, value, query)))
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Written(revision) | Outcome::Removed(revision) => revision.to_string(),
        other => other.failure().map_or_else(|| "found".to_owned(), |(status, text)| format!("{status} {text}")),
    }
}

/// The content of the store: keys and values.
fn held(engine: &TestEngine) -> Vec<String> {
    let entries = engine.store().range(b"", None, 100).into_iter();
    entries.map(|entry| format!("{}={}", entry.key(), String::from_utf8_lossy(entry.value()))).collect()
}

#[test]
fn an_added_write_passes_the_chain_as_a_request_of_its_plugin() {
    let (engine, notes) = engine();
    assert_eq!(send(&engine, Verb::Put, "k", "v", "put a 1;delete b"), "1");
    assert_eq!(held(&engine), ["a=1", "k=v"]);
    let expected = [
        "before k v -",
        // The first run learns what is added. Its keys are not locked, so it is undone.
        "guard k v -",
        "undo k v -",
        "before a 1 adding",
        "before b  adding",
        "guard k v -",
        "guard a 1 adding",
        // There is nothing to delete.
        "after k v -",
        "after a 1 adding",
    ];
    assert_eq!(notes.take(), expected);
    assert_eq!(send(&engine, Verb::Delete, "k", "", "delete a"), "3");
    assert_eq!((held(&engine), engine.revision()), (Vec::new(), 4));
}

#[test]
fn watchers_see_the_operation_and_then_its_added_writes_with_consecutive_revisions() {
    let (engine, _) = engine();
    let client = RequestContext { origin: Arc::new(NoOrigin), query: String::new(), reads: Reads::Linearizable };
    let Ok(mut watcher) = engine.watch(String::new(), None, client) else { panic!("a watch from now on") };
    send(&engine, Verb::Put, "k", "v", "put b 1;put a 1;delete absent;delete b");
    let mut seen = Vec::new();
    while let Poll::Ready(Ok(event)) = watcher.poll(&Context::from_waker(Waker::noop())) {
        seen.push((event.revision(), event.entry().key().to_owned(), event.is_removal()));
    }
    let expected = [(1, "k", false), (2, "b", false), (3, "a", false), (4, "b", true)];
    assert_eq!(seen, expected.map(|(revision, key, removal)| (revision, key.to_owned(), removal)));
}

#[test]
fn a_plugin_that_adds_what_it_must_not_refuses_the_operation_with_500() {
    let (engine, notes) = engine();
    for (query, fact) in [
        ("put k 1", "added a write of the key that is being written"),
        ("get a", "added a get to a write"),
        ("many", "added more writes to an operation than 64"),
        ("again", "added a write to one that a plugin has added"),
        ("put  1", "added an invalid write: Key cannot be empty"),
    ] {
        let expected = format!("500 plugin \"adding\" {fact}");
        assert_eq!(send(&engine, Verb::Put, "k", "v", query), expected);
        let calls = notes.take();
        let count = |hook: &str| calls.iter().filter(|call| call.starts_with(hook)).count();
        assert_eq!((count("guard"), count("after")), (count("undo"), 0), "{calls:?}");
    }
    assert_eq!((held(&engine), engine.revision()), (Vec::new(), 0));
}

#[test]
fn preconditions_of_the_client_and_of_added_writes_hold_in_the_same_step() {
    let (engine, notes) = engine();
    assert_eq!(send(&engine, Verb::Put, "k", "v", "absent lock"), "1");
    let failed = "409 the precondition of a write that plugin \"adding\" adds failed";
    assert_eq!(send(&engine, Verb::Put, "k", "w", "absent lock"), failed);
    assert_eq!(held(&engine), ["k=v", "lock=1"]);
    notes.take();
    for (revision, expected) in [(2, "412 "), (1, "3")] {
        let conditions = Conditions { if_match: Some(Revisions::These(vec![revision])), if_none_match: None };
        let request = Request { conditions, ..request(&engine, Verb::Put, "k", "x", "delete lock") };
        let outcome = text(&run(&engine, request));
        assert!(outcome.starts_with(expected), "{outcome}");
    }
    assert_eq!(held(&engine), ["k=x"]);
    assert_eq!(notes.take()[..2], ["before k x -", "before k x -"], "a failed precondition calls no guard");
}

#[test]
fn a_step_is_planned_again_while_other_clients_change_what_the_guard_sees() {
    let (engine, notes) = engine();
    send(&engine, Verb::Put, "k", "a", "");
    // Before the first three plans are decided, another write of the entry comes between.
    notes.meddles.store(3, SeqCst);
    assert_eq!(send(&engine, Verb::Put, "k", "last", "old"), "5");
    assert_eq!(held(&engine), ["k=last", "old/k=a+++"]);
    notes.meddles.store(u32::MAX, SeqCst);
    send(&engine, Verb::Put, "k", "a", "");
    let refused = send(&engine, Verb::Put, "k", "never", "old");
    assert_eq!(refused.split(':').next(), Some("503 Entries changed again and again while plugins added writes"));
    notes.take();
    notes.meddles.store(0, SeqCst);
    let before = engine.revision();
    engine.store().fail_updates(1);
    assert!(send(&engine, Verb::Put, "k", "rolled back", "put a 1").starts_with("503 "));
    assert_eq!(notes.take()[5..], ["guard a 1 adding", "undo a 1 adding", "undo k rolled back -"]);
    assert_eq!(engine.revision(), before);
}

#[test]
fn touches_deletions_by_prefix_and_store_calls_add_writes_as_well() {
    let (engine, notes) = engine();
    send(&engine, Verb::Put, "p/1", "1", "");
    let (done, outcome) = channel();
    engine.touch(request(&engine, Verb::Put, "p/1", "", "old"), move |outcome, _| _ = done.send(text(&outcome)));
    assert_eq!((outcome.recv().as_deref(), held(&engine)), (Ok("2"), vec!["old/p/1=1".into(), "p/1=1".into()]));

    let listing = Listing { prefix: "p/".to_owned(), after: None, limit: 10, delimiter: None, form: Form::Sent };
    let client =
        RequestContext { origin: Arc::new(NoOrigin), query: "put log deleted".to_owned(), reads: Reads::Linearizable };
    let deleted = engine.delete_page(&listing, &client).ok().expect("nothing refuses");
    assert_eq!((deleted.deleted, held(&engine)), (1, vec!["log=deleted".to_owned(), "old/p/1=1".to_owned()]));

    let host = notes.host();
    host.update(&Ask::put("log", b"").query("old"), |_| Ok(b"updated".to_vec())).expect("nothing refuses");
    host.batch(&[Ask::put("a", b"1").query("put b 2;put c 3"), Ask::delete("c").query("delete old/log")])
        .expect_err("an added write comes after all operations, so there is no c to delete");
    host.batch(&[Ask::put("a", b"1").query("put b 2;put c 3"), Ask::delete("old/log").query("delete c")])
        .expect("nothing refuses");
    assert_eq!(held(&engine), ["a=1", "b=2", "log=updated", "old/p/1=1"]);
}

#[test]
fn a_replaced_value_is_stored_and_later_guards_see_it() {
    let (registry, notes) = members(true);
    let engine = Engine::single_threaded(MemoryStore::default(), registry).expect("the plugins start");
    for value in ["v".to_owned(), "long".repeat(2000)] {
        send(&engine, Verb::Put, "k", &value, "replace other");
        assert_eq!(held(&engine), ["k=other"]);
        let calls = [format!("before k {value} -"), format!("guard k {value} -")];
        let calls = calls.into_iter().chain(["later k other -".to_owned(), format!("after k {value} -")]);
        assert_eq!(notes.take(), calls.collect::<Vec<_>>());
    }
}

#[test]
fn before_hooks_of_added_writes_that_may_block_run_on_the_blocking_pool() {
    let (registry, notes) = members(true);
    let engine = Engine::new(MemoryStore::default(), registry).expect("the plugins start");
    let (send, done) = channel();
    // The put itself does not block, so it runs on this thread.
    let here = thread::current().id();
    engine.run(request(&engine, Verb::Put, "k", "v", "delete k2"), move |outcome, _| _ = send.send(text(&outcome)));
    assert_eq!(done.recv().as_deref(), Ok("1"));
    let calls = notes.take();
    let removal = calls.iter().find(|call| call.starts_with("ThreadId")).expect("a removal");
    assert!(removal.ends_with(" k2  adding") && !removal.starts_with(&format!("{here:?}")), "{removal}");
}
