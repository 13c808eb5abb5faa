//! The pipeline passes requests to plugins, obeys their verdicts, and calls them on the right thread.
//!
//! Provoked by a plugin that notes each of its calls, and whose verdicts depend on the key.

// Creates a plugin of this program, without a library.
#![allow(unsafe_code)]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use vkog_engine::{
    Batch, BatchFailure, Conditions, Engine, ExtraHeaders, Form, InvalidRequest, Listing, Operation, Outcome, Reads,
    Request, RequestContext, Transforms, WatchEnd, Watcher,
};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, Answer, Ask, Before, BeforeGet, CreateError, Get, Guard, GuardGet, GuardPut, Host, MakeRoom, NoSettings,
    Plugin, Put, Refusal, Undo, UndoPut, Verb, Verdict,
};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, Origin, Registry, Source};
use vkog_store::{DEFAULT_CONTENT_TYPE, MemoryStore, Store, StoreError};

/// The notes of a plugin, and its host.
#[derive(Default)]
struct Notes {
    calls: Mutex<Vec<(&'static str, ThreadId)>>,
    /// Of each put: its headers, client, asker and media type.
    origins: Mutex<Vec<String>>,
    host: Mutex<Option<Host>>,
}

impl Notes {
    fn note(&self, hook: &'static str) {
        self.calls.lock().expect("no plugin panics").push((hook, thread::current().id()));
    }

    /// How often a hook was called.
    fn count(&self, hook: &str) -> usize {
        self.calls.lock().expect("no plugin panics").iter().filter(|(called, _)| *called == hook).count()
    }

    /// Whether the last call was on this thread.
    fn was_called_here(&self) -> bool {
        let last = *self.calls.lock().expect("no plugin panics").last().expect("a call");
        last.1 == thread::current().id()
    }

    fn host(&self) -> Host {
        self.host.lock().expect("no plugin panics").expect("the plugin was created")
    }
}

/// The notes of the plugin that is created next: plugins get nothing but their settings. Locked while it is created.
static NEXT: Mutex<Option<Arc<Notes>>> = Mutex::new(None);

/// Refuses gets of keys such as `refused-403` with that status, and puts of the values `full` and `taken`. Hides the key
/// `hidden`. Always makes room.
struct Noting<const BLOCKS: bool>(Arc<Notes>);

impl<const BLOCKS: bool> Plugin for Noting<BLOCKS> {
    type Settings = NoSettings;

    const BLOCKS: bool = BLOCKS;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let notes = NEXT.lock().expect("no plugin panics").take().ok_or("no notes")?;
        *notes.host.lock().expect("no plugin panics") = Some(host);
        Ok(Self(notes))
    }
}

fn refused(status: u16) -> Verdict {
    Err(Refusal::new(status, "refused"))
}

impl<const BLOCKS: bool> BeforeGet for Noting<BLOCKS> {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        if get.key() == "hidden" {
            get.hide();
        }
        Ok(())
    }
}

impl<const BLOCKS: bool> GuardGet for Noting<BLOCKS> {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        self.0.note("guard_get");
        get.key().strip_prefix("refused-").map_or(Ok(()), |status| refused(status.parse().unwrap_or(500)))
    }
}

impl<const BLOCKS: bool> GuardPut for Noting<BLOCKS> {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.0.note("guard_put");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<_> = put.headers().map(|(name, value)| format!("{name}={}", text(value))).collect();
        let named = ["x-a", "x-b", "content-type"].map(|name| put.header(name).map_or("-".to_owned(), text));
        let (client, asker, content_type) = (put.client(), put.asker(), put.content_type());
        let origin = format!("{} {} {client:?} {asker:?} {content_type}", headers.join(","), named.join(" "));
        self.0.origins.lock().expect("no plugin panics").push(origin);
        match put.value() {
            b"full" => refused(413),
            b"taken" => refused(409),
            _ => Ok(()),
        }
    }
}

impl<const BLOCKS: bool> UndoPut for Noting<BLOCKS> {
    fn undo_put(&self, _: &Undo<'_, Put>) {
        self.0.note("undo_put");
    }
}

impl<const BLOCKS: bool> MakeRoom for Noting<BLOCKS> {
    fn make_room(&self) -> bool {
        self.0.note("make_room");
        // An engine that never stops trying is noticed.
        assert!(self.0.count("make_room") < 1000);
        true
    }
}

/// A client that sends these headers.
struct Client(&'static [(&'static str, &'static str)]);

impl Origin for Client {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.0.get(index).map(|(name, value)| (*name, value.as_bytes()))
    }

    fn client(&self) -> &str {
        "10.0.0.1:1"
    }
}

fn registry<const BLOCKS: bool>() -> (Registry, Arc<Notes>) {
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().expect("no other test panicked here");
    let notes = Arc::new(Notes::default());
    *NEXT.lock().expect("no plugin panics") = Some(Arc::clone(&notes));
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Noting<BLOCKS>>("noting", "0.0.0", true, &__hooks!(Noting<BLOCKS>), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("it has notes");
    (Registry::linked(vec![Arc::new(member)], Vec::new(), context), notes)
}

/// An engine with the plugin, all of whose hooks run on the thread of the caller.
fn engine() -> (Arc<Engine<MemoryStore>>, Arc<Notes>) {
    let (registry, notes) = registry::<false>();
    (Engine::single_threaded(MemoryStore::default(), registry).expect("the plugin starts"), notes)
}

/// An engine with the plugin that has threads for hooks that block.
fn with_threads() -> (Arc<Engine<MemoryStore>>, Arc<Notes>) {
    let (registry, notes) = registry::<false>();
    (Engine::new(MemoryStore::default(), registry).expect("the plugin starts"), notes)
}

/// An engine without plugins that holds these keys.
fn holding(keys: &[&str]) -> Arc<Engine<MemoryStore>> {
    let registry = Registry::linked(Vec::new(), Vec::new(), Arc::new(HostContext::new(0, || 0)));
    let engine = Engine::single_threaded(MemoryStore::default(), registry).expect("no plugin can fail");
    for key in keys {
        put(&engine, key, "1");
    }
    engine
}

fn run(engine: &Arc<Engine<MemoryStore>>, verb: Verb, key: &str, value: &str) -> Outcome {
    let request = Request {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: vkog_plugin_host::Cause::Request,
        states: Default::default(),
        origin: Arc::new(Client(&[])),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        guarded: Default::default(),
    };
    let (send, done) = channel();
    engine.run(request, move |outcome, _: ExtraHeaders| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

#[track_caller]
fn put(engine: &Arc<Engine<MemoryStore>>, key: &str, value: &str) -> u64 {
    match run(engine, Verb::Put, key, value) {
        Outcome::Written(revision) => revision,
        other => panic!("{:?}", other.failure()),
    }
}

fn operation(verb: Verb, key: &str, value: &'static str) -> Operation {
    Operation {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().into(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        conditions: Conditions::default(),
        headers: Vec::new(),
        hidden: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
        touches: false,
    }
}

/// Runs a batch of a client that sends three headers. Values may have 10 bytes in all.
fn batch(engine: &Arc<Engine<MemoryStore>>, operations: Vec<Operation>) -> Result<usize, BatchFailure> {
    let batch = Batch {
        operations,
        query: String::new(),
        arrived: engine.revision(),
        values_max: 10,
        reads: Reads::Linearizable,
        origin: Arc::new(Client(&[("Content-Type", "text/html"), ("X-A", "batch"), ("X-B", "batch")])),
    };
    let (send, done) = channel();
    engine.run_batch(batch, move |outcome| _ = send.send(outcome));
    done.recv().expect("an outcome").map(|done| done.len())
}

/// The index and the status of the operation that failed.
fn failed(outcome: Result<usize, BatchFailure>) -> (Option<usize>, u16) {
    let failure = outcome.expect_err("the batch fails");
    (failure.at.map(|(index, _)| index), failure.outcome.failure().expect("it fails").0)
}

fn client() -> RequestContext {
    RequestContext { origin: Arc::new(Client(&[])), query: String::new(), reads: Reads::Linearizable }
}

/// The keys and prefixes of a page, and its end.
fn page(
    engine: &Arc<Engine<MemoryStore>>,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    delimiter: Option<&str>,
) -> (String, Option<String>) {
    let (after, delimiter) = (after.map(str::to_owned), delimiter.map(str::to_owned));
    let listing = Listing { prefix: prefix.to_owned(), after, limit, delimiter, form: Form::Sent };
    let page = engine.list(&listing, &client()).expect("nothing refuses");
    let keys = page.entries.iter().map(|listed| listed.entry.key().to_owned());
    (keys.chain(page.prefixes.into_iter().map(|prefix| format!("[{prefix}]"))).collect::<Vec<_>>().join(" "), page.next)
}

#[test]
fn a_listing_is_paged_by_its_start_limit_and_delimiter() {
    let engine = holding(&["a", "b/1", "b/2", "b0", "c", "d/1", "e"]);
    for (prefix, after, limit, delimiter, keys, next) in [
        ("", None, 9, None, "a b/1 b/2 b0 c d/1 e", None),
        ("", None, 7, None, "a b/1 b/2 b0 c d/1 e", None),
        ("", None, 6, None, "a b/1 b/2 b0 c d/1", Some("d/1")),
        ("", None, 1, None, "a", Some("a")),
        ("", Some("a"), 2, None, "b/1 b/2", Some("b/2")),
        ("", Some("b"), 1, None, "b/1", Some("b/1")),
        ("b", None, 2, None, "b/1 b/2", Some("b/2")),
        ("b/", Some("a"), 9, None, "b/1 b/2", None),
        ("", None, 9, Some("/"), "a b0 c e [b/] [d/]", None),
        ("", None, 5, Some("/"), "a b0 c [b/] [d/]", Some("d/")),
        ("", None, 2, Some("/"), "a [b/]", Some("b/")),
        ("", Some("b/"), 9, Some("/"), "b0 c e [d/]", None),
        ("", Some("b/1"), 9, Some("/"), "b0 c e [b/] [d/]", None),
        ("b", Some("b/"), 9, Some("/"), "b0", None),
    ] {
        let expected = (keys.to_owned(), next.map(str::to_owned));
        assert_eq!(
            page(&engine, prefix, after, limit, delimiter),
            expected,
            "{prefix} {after:?} {limit} {delimiter:?}"
        );
    }
}

#[test]
fn a_listing_with_a_delimiter_goes_on_after_as_many_entries_as_are_read_at_a_time() {
    for count in [15, 16, 17, 32, 33] {
        let keys: Vec<String> = (0..count).map(|index| format!("{index:02}")).collect();
        let engine = holding(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(page(&engine, "", None, 100, Some("/")), (keys.join(" "), None));
    }
}

#[test]
fn a_listing_leaves_out_keys_that_are_refused_and_fails_for_a_client_that_is() {
    let (engine, _) = engine();
    let listing = || Listing { prefix: String::new(), after: None, limit: 2, delimiter: None, form: Form::Sent };
    for key in ["a", "refused-403", "refused-404", "refused-410", "z"] {
        put(&engine, key, "1");
    }
    let listed = engine.list(&listing(), &client()).expect("those refusals are about the key");
    assert_eq!(listed.entries.iter().map(|listed| listed.entry.key()).collect::<Vec<_>>(), ["a", "z"]);
    assert_eq!(listed.next, None);
    assert_eq!(engine.count("", &client()).ok(), Some(2));
    put(&engine, "refused-401", "1");
    assert_eq!(engine.list(&listing(), &client()).err().map(|refusal| refusal.status), Some(401));
    assert_eq!(engine.count("", &client()).err().map(|refusal| refusal.status), Some(401));
}

#[test]
fn a_deletion_of_a_page_counts_its_keys_and_fails_with_the_store() {
    let engine = holding(&["a/1", "a/2", "a/3", "b"]);
    let delete = |after: Option<&str>, limit| {
        let listing = Listing {
            prefix: "a/".to_owned(),
            after: after.map(str::to_owned),
            limit,
            delimiter: None,
            form: Form::Sent,
        };
        engine.delete_page(&listing, &client())
    };
    engine.store().fail_updates(1);
    let failed = delete(None, 1).map(|page| page.deleted).expect_err("the store fails");
    assert_eq!(failed.failure().map(|(status, _)| status), Some(503));
    let page = |after, limit| delete(after, limit).map(|page| (page.deleted, page.refused.len(), page.next)).ok();
    assert_eq!(page(None, 2), Some((2, 0, Some("a/2".to_owned()))));
    assert_eq!(page(Some("a/2"), 2), Some((1, 0, None)));
    assert_eq!(page(None, 2), Some((0, 0, None)));
    assert_eq!(engine.count("", &client()).ok(), Some(1));
}

#[test]
fn a_get_of_an_entry_that_is_hidden_before_its_guards_finds_nothing() {
    let (engine, notes) = engine();
    put(&engine, "hidden", "1");
    assert!(matches!(run(&engine, Verb::Get, "hidden", ""), Outcome::Absent));
    assert_eq!(notes.count("guard_get"), 0);
}

/// The next change of a watch, as its key and whether it is a removal; none if there is none yet.
fn next(watcher: &mut Watcher<MemoryStore>) -> Option<(String, bool)> {
    match watcher.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(event)) => Some((event.entry().key().to_owned(), event.is_removal())),
        Poll::Ready(Err(_)) => panic!("the watch ended"),
        Poll::Pending => None,
    }
}

#[test]
fn a_watch_shows_changes_that_a_get_may_see_and_removals_unless_they_are_forbidden() {
    let (engine, _) = engine();
    let mut watch = engine.watch(String::new(), None, client()).expect("it starts now");
    let written: Vec<u64> = ["a", "refused-404", "b"].map(|key| put(&engine, key, "1")).into_iter().collect();
    assert_eq!(next(&mut watch), Some(("a".to_owned(), false)));
    assert_eq!(watch.revision(), written[2] - 1, "the change between was left out");
    assert_eq!(next(&mut watch), Some(("b".to_owned(), false)));
    assert_eq!((watch.revision(), next(&mut watch)), (written[2], None));
    for key in ["refused-403", "refused-410"] {
        put(&engine, key, "1");
    }
    for key in ["refused-403", "refused-404", "refused-410"] {
        assert!(matches!(run(&engine, Verb::Delete, key, ""), Outcome::Removed(_)));
    }
    assert_eq!(next(&mut watch), Some(("refused-404".to_owned(), true)));
    assert_eq!(next(&mut watch), Some(("refused-410".to_owned(), true)));
    assert_eq!((watch.revision(), next(&mut watch)), (engine.revision(), None));
    put(&engine, "refused-401", "1");
    let end = watch.poll(&Context::from_waker(Waker::noop()));
    assert!(matches!(end, Poll::Ready(Err(WatchEnd::Refused(refusal))) if refusal.status == 401));
    let mut watch = engine.watch(String::new(), None, client()).expect("it starts now");
    engine.store().end_watches();
    let end = watch.poll(&Context::from_waker(Waker::noop()));
    assert!(matches!(end, Poll::Ready(Err(WatchEnd::Stopped))));
}

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the next change of a watch, or for its end.
fn wait_for_next(watcher: &mut Watcher<MemoryStore>) -> Result<String, WatchEnd> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match watcher.poll(&Context::from_waker(&waker)) {
            Poll::Ready(next) => return next.map(|event| event.entry().key().to_owned()),
            Poll::Pending => thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
        }
        assert!(Instant::now() < deadline, "no change arrives");
    }
}

#[test]
fn a_watch_calls_hooks_that_block_on_another_thread_in_the_order_of_the_changes() {
    let (registry, notes) = registry::<true>();
    let engine = Engine::new(MemoryStore::default(), registry).expect("the plugin starts");
    let mut watch = engine.watch(String::new(), None, client()).expect("it starts now");
    for key in ["a", "refused-404", "b", "refused-401", "c"] {
        put(&engine, key, "1");
    }
    assert_eq!(wait_for_next(&mut watch).ok().as_deref(), Some("a"));
    assert_eq!(wait_for_next(&mut watch).ok().as_deref(), Some("b"));
    let end = wait_for_next(&mut watch);
    assert!(matches!(end, Err(WatchEnd::Refused(refusal)) if refusal.status == 401));
    let calls = notes.calls.lock().expect("no plugin panics");
    let threads: Vec<ThreadId> = calls.iter().filter(|(hook, _)| *hook == "guard_get").map(|(_, id)| *id).collect();
    assert_eq!((threads.len(), threads.contains(&thread::current().id())), (4, false));

    let mut watch = engine.watch(String::new(), None, client()).expect("it starts now");
    engine.store().end_watches();
    assert!(matches!(wait_for_next(&mut watch), Err(WatchEnd::Stopped)));

    let (engine, notes) = with_threads();
    let mut watch = engine.watch(String::new(), None, client()).expect("it starts now");
    put(&engine, "a", "1");
    assert_eq!(next(&mut watch), Some(("a".to_owned(), false)));
    assert!(notes.was_called_here(), "hooks that do not block cost no change of threads");
}

#[test]
fn an_operation_of_a_batch_has_its_own_headers_and_those_of_the_batch_that_are_not_about_it() {
    let (engine, notes) = engine();
    let own = Operation { headers: vec![("x-a".into(), "own".to_owned())], ..operation(Verb::Put, "k", "1") };
    let done = batch(&engine, vec![own, operation(Verb::Put, "k", "2")]);
    assert_eq!(done.ok(), Some(2));
    let client = "\"10.0.0.1:1\" None application/octet-stream";
    let expected =
        [format!("x-a=own,X-B=batch own batch - {client}"), format!("X-A=batch,X-B=batch batch batch - {client}")];
    assert_eq!(*notes.origins.lock().expect("no plugin panics"), expected);
}

#[test]
fn an_operation_of_a_batch_is_checked_like_a_request() {
    assert_eq!(operation(Verb::Put, "k", "1").check(), Ok(()));
    assert_eq!(operation(Verb::Put, "", "1").check(), Err(InvalidRequest::EmptyKey));
}

#[test]
fn a_batch_reads_and_writes_as_many_bytes_of_values_as_it_may() {
    let engine = holding(&[]);
    put(&engine, "a", "12345");
    put(&engine, "b", "12345");
    let (a, b) = (|| operation(Verb::Get, "a", ""), || operation(Verb::Get, "b", ""));
    assert_eq!(batch(&engine, vec![a(), b()]).ok(), Some(2));
    assert_eq!(failed(batch(&engine, vec![a(), b(), a()])), (Some(2), 413));
    assert_eq!(batch(&engine, vec![operation(Verb::Put, "c", "12345"), a()]).ok(), Some(2));
    assert_eq!(failed(batch(&engine, vec![operation(Verb::Put, "c", "1"), a(), b()])), (Some(2), 413));
}

#[test]
fn a_write_and_a_batch_are_decided_257_times_at_most_for_lack_of_room() {
    let (engine, notes) = with_threads();
    assert!(matches!(run(&engine, Verb::Put, "k", "full"), Outcome::Refused(refusal) if refusal.status == 413));
    assert_eq!((notes.count("guard_put"), notes.count("make_room")), (257, 256));
    notes.calls.lock().expect("no plugin panics").clear();
    assert!(matches!(run(&engine, Verb::Put, "k", "taken"), Outcome::Refused(refusal) if refusal.status == 409));
    assert_eq!((notes.count("guard_put"), notes.count("make_room")), (1, 0), "room is not what it lacks");

    let (engine, notes) = with_threads();
    assert_eq!(failed(batch(&engine, vec![operation(Verb::Put, "k", "full")])), (Some(0), 413));
    assert_eq!((notes.count("guard_put"), notes.count("make_room")), (257, 256));
    notes.calls.lock().expect("no plugin panics").clear();
    assert_eq!(failed(batch(&engine, vec![operation(Verb::Put, "k", "taken")])), (Some(0), 409));
    assert_eq!((notes.count("guard_put"), notes.count("make_room")), (1, 0), "room is not what it lacks");
}

#[test]
fn room_that_is_made_again_and_again_on_one_thread_takes_no_stack() {
    let small = thread::Builder::new().stack_size(192 << 10);
    let test = small.spawn(|| {
        let (engine, notes) = engine();
        assert!(matches!(run(&engine, Verb::Put, "k", "full"), Outcome::Refused(refusal) if refusal.status == 413));
        assert_eq!(failed(batch(&engine, vec![operation(Verb::Put, "k", "full")])), (Some(0), 413));
        assert_eq!((notes.count("guard_put"), notes.count("make_room")), (2 * 257, 2 * 256));
        assert!(notes.was_called_here());
        // The thread of a plugin that waits for its own request.
        let (_engine, notes) = with_threads();
        notes.host().put("k", b"full").expect_err("there is no room");
        assert_eq!((notes.count("guard_put"), notes.count("make_room")), (257, 256));
        assert!(notes.was_called_here());
    });
    test.expect("a thread can be started").join().expect("it passes");
}

#[test]
fn a_failure_of_the_store_is_507_if_space_is_lacking_and_says_what_is_known() {
    let failure = |error| Outcome::StoreFailed(Arc::new(error)).failure().expect("it failed");
    let source = || Arc::new(std::io::Error::other("broken"));
    let path = || PathBuf::from("f");
    let (status, text) = failure(StoreError::Full { path: path() });
    assert_eq!((status, text.starts_with("Rolled back: ")), (507, true), "{text}");
    let (status, text) = failure(StoreError::Failed { path: path(), source: source(), then: None });
    assert_eq!((status, text.starts_with("Rolled back: ")), (503, true), "{text}");
    let (status, text) = failure(StoreError::Unknown { path: path(), source: source(), then: source() });
    assert_eq!((status, text.starts_with("Outcome unknown: ")), (503, true), "{text}");
    let reason = || "no connection".to_owned();
    for (error, status, begin) in [
        (StoreError::Disconnected { reason: reason() }, 503, "Unavailable: "),
        (StoreError::ConflictsTooOften { attempts: 9 }, 503, "Unavailable: "),
        (StoreError::Dropped { reason: reason() }, 503, "Unavailable: "),
        (StoreError::Refused { status: 413, message: reason() }, 413, "Refused: "),
        (StoreError::Refused { status: 507, message: reason() }, 507, "Refused: "),
        (StoreError::Unresolved { reason: reason() }, 504, "Outcome unknown: "),
    ] {
        let (found, text) = failure(error);
        assert_eq!((found, text.starts_with(begin)), (status, true), "{text}");
    }
}

#[test]
fn a_request_of_a_plugin_carries_its_headers_and_media_type_and_names_the_plugin() {
    let (engine, notes) = engine();
    let host = notes.host();
    let asks = [Ask::put("a", b"1").content_type("text/html").header("X-A", "own"), Ask::put("b", b"1")];
    let answers = host.ask_each(&asks);
    assert!(matches!(answers[..], [Ok(Answer::Done(1)), Ok(Answer::Done(2))]), "{answers:?}");
    let expected =
        ["X-A=own own - - \"\" Some(\"noting\") text/html", " - - - \"\" Some(\"noting\") application/octet-stream"];
    assert_eq!(*notes.origins.lock().expect("no plugin panics"), expected);
    assert_eq!(host.get("a").expect("it passes").expect("it exists").content_type, "text/html");
    assert!(matches!(&host.ask_each(&[Ask::get(""), Ask::get("b")])[..], [Err(_), Ok(Answer::Found(_))]));
    assert_eq!(engine.revision(), 2);
}

#[test]
fn a_plugin_visits_entries_until_it_breaks_off() {
    let (engine, notes) = engine();
    for key in ["a", "b", "c"] {
        put(&engine, key, "1");
    }
    let visited = |max: usize| {
        let mut count = 0;
        let visit = |_: &str, _: vkog_plugin_api::Entry<'_>| {
            count += 1;
            if count < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        notes.host().for_each("", visit).expect("it may be listed");
        count
    };
    assert_eq!((visited(2), visited(9)), (2, 3));
}

#[test]
fn hooks_that_block_run_on_a_thread_of_their_own_except_for_a_request_of_a_plugin() {
    let (registry, notes) = registry::<true>();
    assert!(registry.chain().members()[0].blocks());
    let engine = Engine::new(MemoryStore::default(), registry).expect("the plugin starts");
    put(&engine, "k", "1");
    assert!(!notes.was_called_here());
    assert_eq!(batch(&engine, vec![operation(Verb::Put, "k", "1")]).ok(), Some(1));
    assert!(!notes.was_called_here());
    notes.host().put("k", b"1").expect("it passes");
    assert!(notes.was_called_here());
    notes.host().put("k", b"full").expect_err("there is no room");
    assert!(notes.was_called_here());

    let (engine, notes) = with_threads();
    put(&engine, "k", "1");
    assert!(notes.was_called_here());
    assert!(matches!(run(&engine, Verb::Put, "k", "full"), Outcome::Refused(_)));
    // Making room blocks, whatever the other hooks do.
    let calls = notes.calls.lock().expect("no plugin panics");
    let made_room = calls.iter().find(|(hook, _)| *hook == "make_room").expect("it was called");
    assert_ne!(made_room.1, thread::current().id());
}

#[test]
fn a_reload_of_a_folder_that_cannot_be_read_fails() {
    let engine = holding(&["a"]);
    let folder = Some(PathBuf::from("no such folder"));
    let source = Source { folder, settings: Default::default(), order: Vec::new() };
    assert!(engine.reload(&source).is_err());
    assert_eq!(engine.revision(), 1);
}
