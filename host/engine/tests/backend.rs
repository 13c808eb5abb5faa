//! A shared store whose backend is a plugin, under the whole pipeline: what clients and plugins see of the changes of this host
//! and of others, and when a read waits for a confirmation.
//!
//! Provoked with a backend in memory, through which the test writes as another host, holds confirmations back, and cuts the
//! connection.

// Creates plugins of this program, without a library.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vkog_engine::{
    Batch, Conditions, Engine, Form, Listing, Operation, Outcome, Reads, Request, RequestContext, Transforms,
    open_backend,
};
use vkog_plugin_api::backend::{Change, CommitOutcome, Feed, Status, Write};
use vkog_plugin_api::export::module_with_backend;
use vkog_plugin_api::{
    __backend, __hooks, After, AfterPut, Applied, AppliedChange, Backend, CreateError, Entry, Host, NoSettings, Plugin,
    Put, Verb,
};
use vkog_plugin_host::{Cause, FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::{SharedOptions, SharedStore};

const DEADLINE: Duration = Duration::from_secs(30);

/// The engine behind the store, as the test and the plugin share it.
#[derive(Default)]
struct State {
    feed: Option<Feed>,
    revision: u64,
    /// The revision and the record of each key.
    entries: HashMap<String, (u64, Vec<u8>)>,
    /// Confirmations are held back.
    holds: bool,
    held: Vec<u64>,
    confirmations: u64,
    leads: bool,
}

type Shared = Arc<Mutex<State>>;

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of the backend that is created next, because a plugin receives only its settings; and what the other plugin records.
static NEXT: Mutex<Option<(Shared, Lines)>> = Mutex::new(None);

type Lines = Arc<Mutex<Vec<String>>>;

struct Memory(Shared);

impl Plugin for Memory {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        let next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Self(next.as_ref().map(|(shared, _)| Arc::clone(shared)).ok_or("no state")?))
    }
}

impl State {
    /// Applies changes. Returns the revision.
    fn apply(&mut self, own: bool, changes: &[Change<'_>]) -> u64 {
        self.revision += 10;
        for change in changes {
            match change.record() {
                Some(record) => _ = self.entries.insert(change.key().to_owned(), (self.revision, record.to_vec())),
                None => _ = self.entries.remove(change.key()),
            }
        }
        if let Some(feed) = self.feed {
            feed.apply(self.revision, own, changes);
        }
        self.revision
    }

    /// Writes as another host: the record of another key, or a removal.
    fn elsewhere(&mut self, key: &str, like: Option<&str>) {
        let record = like.map(|like| self.entries[like].1.clone());
        match &record {
            Some(record) => self.apply(false, &[Change::put(key, record)]),
            None => self.apply(false, &[Change::delete(key, true)]),
        };
    }
}

impl Backend for Memory {
    const SCHEME: &'static str = "memory";

    fn open(&self, _: &str, _: &str, feed: Feed) -> Result<(), CreateError> {
        feed.loaded(0);
        feed.connected(Ok(()));
        lock(&self.0).feed = Some(feed);
        Ok(())
    }

    fn commit(&self, write: &Write<'_>) {
        assert!(write.changes()[0].key() != "panic", "as the key asks");
        let mut state = lock(&self.0);
        let Some(feed) = state.feed else { return };
        let current = |key: &str| state.entries.get(key).map_or(0, |(revision, _)| *revision);
        if write.conditions().iter().any(|condition| current(condition.key()) != condition.revision()) {
            return feed.outcome(write.id(), CommitOutcome::Conflict { revision: state.revision });
        }
        let revision = state.apply(true, write.changes());
        feed.outcome(write.id(), CommitOutcome::Committed { revision });
    }

    fn confirm(&self, id: u64) {
        let mut state = lock(&self.0);
        state.confirmations += 1;
        if state.holds {
            return state.held.push(id);
        }
        let (feed, revision) = (state.feed, state.revision);
        drop(state);
        if let Some(feed) = feed {
            feed.confirmed(id, Ok(revision));
        }
    }

    fn status(&self) -> Status {
        let mut status = Status::default();
        (status.connected, status.leads) = (true, lock(&self.0).leads);
        status
    }

    fn announce(&self, _: &str) {}

    fn close(&self) {}
}

/// Records the changes of this host and of others.
struct Recording(Lines);

impl Plugin for Recording {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        let next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Self(next.as_ref().map(|(_, lines)| Arc::clone(lines)).ok_or("no lines")?))
    }
}

fn shown(entry: Option<Entry<'_>>) -> String {
    entry.map_or("-".to_owned(), |it| format!("{}@{}", String::from_utf8_lossy(it.value()), it.revision()))
}

impl AfterPut for Recording {
    fn after_put(&self, put: &After<'_, Put>) {
        let line = format!("after {} {} {}", put.key(), shown(put.entry_before()), shown(put.entry_after()));
        self.0.lock().expect("no test fails").push(line);
    }
}

impl Applied for Recording {
    fn applied(&self, change: &AppliedChange<'_>) {
        let (before, after) = (shown(change.entry_before()), shown(change.entry_after()));
        let line = format!("applied {} {before} {after} {} {}", change.key(), change.revision(), change.expired());
        self.0.lock().expect("no test fails").push(line);
    }
}

/// An engine on a shared store, the state behind it, and what the plugin records.
struct Server {
    engine: Arc<Engine<SharedStore>>,
    shared: Shared,
    lines: Lines,
}

impl Server {
    fn start() -> Self {
        static CREATING: Mutex<()> = Mutex::new(());
        let _alone = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
        let (shared, lines) = (Shared::default(), Lines::default());
        *NEXT.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&shared), Arc::clone(&lines)));
        let context = Arc::new(HostContext::new(0, || 0));
        let create = |module| {
            // SAFETY: the module is part of this program.
            let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) };
            Arc::new(member.expect("no settings"))
        };
        let hooks = (__hooks!(Memory), __hooks!(Recording));
        let memory = create(module_with_backend::<Memory>("memory", "0.0.0", true, &hooks.0, &[], __backend!(Memory)));
        let recording = create(module_with_backend::<Recording>("recording", "0.0.0", true, &hooks.1, &[], None));
        let registry = Registry::linked(vec![Arc::clone(&memory), recording], Vec::new(), context.clone());
        let store = open_backend(&memory, "memory:", "{}", SharedOptions::default()).expect("it opens");
        assert!(store.wait_until_loaded(DEADLINE));
        let engine = Engine::new(store, registry).expect("the plugins start");
        Self { engine, shared, lines }
    }

    fn request(&self, verb: Verb, key: &str, value: &str, reads: Reads) -> Request {
        Request {
            verb,
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            content_type: if value.is_empty() { "" } else { "text/plain" }.into(),
            query: String::new(),
            conditions: Conditions::default(),
            arrived: self.engine.revision(),
            depth: 0,
            origin: Arc::new(NoOrigin),
            cause: Cause::Request,
            form: Form::Sent,
            reads,
            transforms: Transforms::default(),
            states: Default::default(),
            guarded: Default::default(),
        }
    }

    /// Begins a request. Its outcome comes as text.
    fn begin(&self, verb: Verb, key: &str, value: &str, reads: Reads) -> Receiver<String> {
        let (send, done) = channel();
        self.engine.run(self.request(verb, key, value, reads), move |outcome, _| _ = send.send(text(&outcome)));
        done
    }

    fn put(&self, key: &str, value: &str) -> String {
        self.begin(Verb::Put, key, value, Reads::Linearizable).recv_timeout(DEADLINE).expect("it ends")
    }

    fn get(&self, key: &str, reads: Reads) -> String {
        self.begin(Verb::Get, key, "", reads).recv_timeout(DEADLINE).expect("it ends")
    }

    /// Begins a batch of gets. The outcome comes as text.
    fn begin_batch(&self, keys: &[&str], reads: Reads) -> Receiver<String> {
        let get = |key: &&str| Operation {
            verb: Verb::Get,
            key: (*key).to_owned(),
            touches: false,
            value: Default::default(),
            content_type: "".into(),
            conditions: Conditions::default(),
            headers: Vec::new(),
            hidden: false,
            transforms: Transforms::default(),
            states: Default::default(),
            guarded: Default::default(),
        };
        let batch = Batch {
            operations: keys.iter().map(get).collect(),
            query: String::new(),
            arrived: 0,
            values_max: 1000,
            reads,
            origin: Arc::new(NoOrigin),
        };
        let (send, done) = channel();
        self.engine.run_batch(batch, move |outcome| {
            _ = send.send(match outcome {
                Ok(all) => all.iter().map(|(outcome, _)| text(outcome)).collect::<Vec<_>>().join(" "),
                Err(failure) => text(&failure.outcome),
            });
        });
        done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    fn hold(&self) {
        self.state().holds = true;
    }

    /// Answers the confirmations that were held back.
    fn release(&self) {
        let mut state = self.state();
        state.holds = false;
        let (held, revision, feed) = (std::mem::take(&mut state.held), state.revision, state.feed);
        drop(state);
        held.into_iter().for_each(|id| feed.expect("it is open").confirmed(id, Ok(revision)));
    }

    fn connect(&self, state: Result<(), &str>) {
        let feed = self.state().feed;
        feed.expect("it is open").connected(state);
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no test fails").clone()
    }
}

fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Found(entry) => format!("{}@{}", String::from_utf8_lossy(entry.value()), entry.revision()),
        Outcome::Written(revision) => format!("written@{revision}"),
        Outcome::Removed(revision) => format!("removed@{revision}"),
        other => other.failure().map(|(status, text)| format!("{status} {text}")).unwrap_or_default(),
    }
}

#[test]
fn writes_pass_the_backend_and_have_its_revisions() {
    let server = Server::start();
    assert_eq!(server.put("a", "1"), "written@10");
    assert_eq!(server.put("a", "2"), "written@20");
    assert_eq!(server.get("a", Reads::Linearizable), "2@20");
    let delete = server.begin(Verb::Delete, "a", "", Reads::Linearizable).recv_timeout(DEADLINE);
    assert_eq!(delete.as_deref(), Ok("removed@30"));
    assert!(!server.state().entries.contains_key("a"));
    assert_eq!(server.get("a", Reads::Linearizable), "404 Not Found");
    assert_eq!(server.lines(), ["after a - 1@10", "after a 1@10 2@20"]);
}

#[test]
fn plugins_learn_the_changes_of_other_hosts_with_their_entries() {
    let server = Server::start();
    server.put("a", "1");
    server.state().elsewhere("b", Some("a"));
    server.put("b", "2");
    server.state().elsewhere("b", Some("a"));
    server.state().elsewhere("b", None);
    assert_eq!(
        server.lines(),
        [
            "after a - 1@10",
            "applied b - 1@20 20 false",
            "after b 1@20 2@30",
            "applied b 2@30 1@40 40 false",
            "applied b 1@40 - 50 true"
        ]
    );
}

#[test]
fn each_linearizable_read_waits_for_a_confirmation_and_sees_what_came_before_it() {
    type Read = fn(&Server) -> String;
    fn context() -> RequestContext {
        RequestContext { origin: Arc::new(NoOrigin), query: String::new(), reads: Reads::Linearizable }
    }
    fn listing() -> Listing {
        Listing { prefix: "a".to_owned(), after: None, limit: 10, delimiter: None, form: Form::Sent }
    }
    let get: Read = |server| server.get("a1", Reads::Linearizable);
    let batch: Read =
        |server| server.begin_batch(&["a1", "b"], Reads::Linearizable).recv_timeout(DEADLINE).expect("it ends");
    let count: Read = |server| format!("{:?}", server.engine.count("a", &context()).map_err(|it| it.message));
    let list: Read = |server| match server.engine.list(&listing(), &context()) {
        Ok(page) => page.entries.iter().map(|listed| listed.entry.key()).collect::<Vec<_>>().join(" "),
        Err(refusal) => refusal.message,
    };
    let delete: Read = |server| match server.engine.delete_page(&listing(), &context()) {
        Ok(page) => format!("{} deleted", page.deleted),
        Err(outcome) => text(&outcome),
    };
    let expected = ["2@20", "2@20 2@10", "Ok(1)", "a1", "1 deleted"];
    for (read, expected) in [get, batch, count, list, delete].into_iter().zip(expected) {
        let server = Server::start();
        server.put("b", "2");
        server.hold();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| read(&server));
            let deadline = Instant::now() + DEADLINE;
            while server.state().held.is_empty() {
                assert!(
                    Instant::now() < deadline && !reading.is_finished(),
                    "it waits for no confirmation: {expected}"
                );
                std::thread::yield_now();
            }
            server.state().elsewhere("a1", Some("b"));
            assert!(!reading.is_finished());
            server.release();
            assert_eq!(reading.join().expect("no panic"), expected);
        });
    }
}

#[test]
fn local_reads_need_no_confirmation() {
    let server = Server::start();
    server.put("a", "1");
    let before = server.state().confirmations;
    assert_eq!(server.get("a", Reads::Local), "1@10");
    assert_eq!(server.begin_batch(&["a"], Reads::Local).recv_timeout(DEADLINE).as_deref(), Ok("1@10"));
    let context = RequestContext { origin: Arc::new(NoOrigin), query: String::new(), reads: Reads::Local };
    assert_eq!(server.engine.count("", &context).ok(), Some(1));
    assert_eq!(server.state().confirmations, before);
    server.get("a", Reads::Linearizable);
    assert_eq!(server.state().confirmations, before + 1);
}

#[test]
fn without_a_connection_reads_and_writes_fail_at_once_and_then_work_again() {
    let server = Server::start();
    server.put("a", "1");
    server.connect(Err("it is gone"));
    let failed = [server.get("a", Reads::Linearizable), server.put("a", "2")];
    assert!(failed.iter().all(|it| it.starts_with("503 ") && it.contains("it is gone")), "{failed:?}");
    let batch = server.begin_batch(&["a"], Reads::Linearizable).recv_timeout(DEADLINE).expect("it ends");
    assert!(batch.starts_with("503 "), "{batch}");
    let refusal = server.engine.wait_until_current(Reads::Linearizable).expect_err("there is no connection");
    assert_eq!((refusal.status, refusal.headers), (503, vec![("Retry-After".to_owned(), "1".to_owned())]));
    server.connect(Ok(()));
    assert_eq!(server.get("a", Reads::Linearizable), "1@10");
    assert_eq!(server.put("a", "2"), "written@20");
    assert_eq!(server.lines(), ["after a - 1@10", "after a 1@10 2@20"]);
}

#[test]
fn a_write_in_which_the_backend_panics_has_no_effect() {
    let server = Server::start();
    let failed = server.put("panic", "1");
    assert!(failed.starts_with("503 ") && failed.contains("plugin \"memory\" failed in commit"), "{failed}");
    assert_eq!(server.get("panic", Reads::Linearizable), "404 Not Found");
    assert_eq!(server.put("a", "1"), "written@10");
    assert_eq!(server.lines(), ["after a - 1@10"]);
}

#[test]
fn plugins_ask_the_backend_whether_their_host_leads() {
    let server = Server::start();
    let leads = || vkog_plugin_host::StoreAccess::leads(&*server.engine);
    assert!(!leads());
    server.state().leads = true;
    assert!(leads());
}
