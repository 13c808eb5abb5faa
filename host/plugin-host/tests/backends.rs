//! A plugin as a backend: what it reports reaches the feed until it is closed, its failures become outcomes, and its functions are
//! counted. Provoked with a backend that does what the URL, the key of a write or the number of a question says.

#![allow(unsafe_code)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vkog_plugin_api::abi::PluginModuleRef;
use vkog_plugin_api::backend::{Change, CommitOutcome, Condition, Feed, Loaded, Member as StoreMember, Status, Write};
use vkog_plugin_api::export::module_with_backend;
use vkog_plugin_api::{
    Applied, AppliedChange, CreateError, Gauge, GuardGet, Host, NoSettings, Plugin, Start, Stored, Verdict,
};
use vkog_plugin_host::{
    Backend, BackendError, BackendFeed, Each, EntryView, FailurePolicy, HostContext, Member, Registry, SharedScan,
};

/// A backend whose feed the tests use. Its state is in statics, because a plugin receives only its settings: one for each number.
struct Scripted<const N: usize>;

/// The feeds of the backends that have opened.
static FEEDS: Mutex<Vec<(usize, Feed)>> = Mutex::new(Vec::new());

/// Returns the feed of the backend with this number.
fn feed_of(number: usize) -> Feed {
    let feeds = FEEDS.lock().unwrap_or_else(PoisonError::into_inner);
    feeds.iter().find(|(other, _)| *other == number).map(|(_, feed)| *feed).expect("the backend has opened")
}

impl<const N: usize> Plugin for Scripted<N> {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

impl<const N: usize> vkog_plugin_api::Backend for Scripted<N> {
    const SCHEME: &'static str = "scripted";

    fn open(&self, url: &str, about: &str, feed: Feed) -> Result<(), CreateError> {
        assert!(!url.ends_with("panic"), "told\nto");
        if url.ends_with("fail") {
            return Err("no such\nhost".into());
        }
        FEEDS.lock().unwrap_or_else(PoisonError::into_inner).push((N, feed));
        feed.connected(Err(about));
        Ok(())
    }

    fn commit(&self, write: &Write<'_>) {
        let feed = feed_of(N);
        let key = write.changes()[0].key();
        if key == "early" {
            feed.outcome(write.id(), CommitOutcome::Committed { revision: 5 });
        }
        assert!(!key.ends_with("panic") && key != "early", "secret");
        let condition = write.conditions()[0];
        feed.outcome(
            write.id(),
            match key {
                "conflict" => CommitOutcome::Conflict { revision: condition.revision() },
                "refused" => CommitOutcome::Refused { status: 507, message: "full".to_owned() },
                "unknown" => CommitOutcome::Unknown { message: format!("{write:?}") },
                _ => CommitOutcome::Committed { revision: condition.revision() + 1 },
            },
        );
    }

    fn confirm(&self, id: u64) {
        assert!(id != 13, "secret");
        feed_of(N).confirmed(id, if id == 0 { Err("no\nanswer") } else { Ok(id * 10) });
    }

    fn status(&self) -> Status {
        let mut status = Status::default();
        (status.connected, status.leads, status.size, status.quota) = (N != 3, N == 1, 7, 9);
        (status.engine, status.engine_version, status.id) = ("script".into(), "1.2".into(), "me".into());
        (status.full, status.entry_prefix) = ("full".into(), "vkog/k/".into());
        status.members = vec![StoreMember::new("me", "{}"), StoreMember::new("other", "{\"a\":1}")];
        assert!(N != 2, "secret");
        status
    }

    fn announce(&self, about: &str) {
        feed_of(N).connected(Err(about));
    }

    fn close(&self) {
        feed_of(N).connected(Err("closing"));
    }
}

/// Sends the reports that a feed gets, as text.
struct Recorder(Mutex<Sender<String>>);

impl Recorder {
    fn record(&self, line: String) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).send(line);
    }
}

impl BackendFeed for Recorder {
    fn load(&self, page: &[Loaded<'_>]) {
        let shown = page.iter().map(|it| format!("{}={:?}@{}", it.key(), it.record(), it.revision()));
        self.record(format!("load {}", shown.collect::<Vec<_>>().join(" ")));
    }

    fn loaded(&self, revision: u64) {
        self.record(format!("loaded {revision}"));
    }

    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]) {
        let shown = changes.iter().map(|it| format!("{}={:?} {}", it.key(), it.record(), it.expired()));
        self.record(format!("apply {revision} {own} {}", shown.collect::<Vec<_>>().join(", ")));
    }

    fn outcome(&self, id: u64, outcome: CommitOutcome) {
        self.record(format!("outcome {id} {outcome:?}"));
    }

    fn confirmed(&self, id: u64, revision: Result<u64, String>) {
        self.record(format!("confirmed {id} {revision:?}"));
    }

    fn connected(&self, state: Result<(), String>) {
        self.record(format!("connected {state:?}"));
    }
}

fn created(module: PluginModuleRef, context: &Arc<HostContext>) -> Arc<Member> {
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", context, FailurePolicy::default()) };
    Arc::new(member.expect("it needs no settings"))
}

fn member<const N: usize>() -> Arc<Member> {
    let (hooks, backend) = (vkog_plugin_api::__hooks!(Scripted<N>), vkog_plugin_api::__backend!(Scripted<N>));
    let module = module_with_backend::<Scripted<N>>("scripted", "0.0.0", true, &hooks, &[], backend);
    created(module, &Arc::new(HostContext::new(0, || 0)))
}

fn recorder() -> (Arc<Recorder>, Receiver<String>) {
    let (send, lines) = channel();
    (Arc::new(Recorder(Mutex::new(send))), lines)
}

fn open<const N: usize>() -> (Arc<Member>, Backend, Receiver<String>) {
    let (member, (feed, lines)) = (member::<N>(), recorder());
    let backend = Backend::open(&member, "scripted://", "about", feed).expect("it opens");
    assert_eq!(lines.recv().as_deref(), Ok("connected Err(\"about\")"));
    (member, backend, lines)
}

fn commit(backend: &Backend, id: u64, key: &str) {
    backend.commit(&Write::new(id, &[Condition::new(key, 8)], &[Change::put(key, b"x")]));
}

#[test]
fn reports_of_a_backend_reach_the_feed_until_it_is_closed() {
    let (_, backend, lines) = open::<0>();
    let feed = feed_of(0);
    feed.load(&[Loaded::new("a", &[1, 2], 3), Loaded::new("b", &[], 4)]);
    feed.loaded(4);
    feed.apply(5, true, &[Change::put("a", &[9]), Change::delete("b", true), Change::delete("c", false)]);
    feed.apply(6, false, &[]);
    feed.connected(Ok(()));
    backend.announce("two\nlines");
    backend.close();
    feed.loaded(7);
    backend.close();
    let got: Vec<_> = lines.try_iter().collect();
    assert_eq!(
        got,
        [
            "load a=[1, 2]@3 b=[]@4",
            "loaded 4",
            "apply 5 true a=Some([9]) false, b=None true, c=None false",
            "apply 6 false ",
            "connected Ok(())",
            "connected Err(\"two\\\\nlines\")",
            "connected Err(\"closing\")",
        ]
    );
}

#[test]
fn each_outcome_and_each_answer_crosses_the_boundary() {
    let (_, backend, lines) = open::<4>();
    for (id, key) in [(1, "good"), (2, "conflict"), (3, "refused"), (4, "unknown")] {
        commit(&backend, id, key);
    }
    backend.confirm(0);
    backend.confirm(6);
    let got: Vec<_> = lines.try_iter().collect();
    let write = "Write { id: 4, conditions: [Condition { key: \\\"unknown\\\", revision: 8 }], changes: [Change { key: \
                 \\\"unknown\\\", record: Some(1), expired: false }] }";
    assert_eq!(
        got,
        [
            "outcome 1 Committed { revision: 9 }".to_owned(),
            "outcome 2 Conflict { revision: 8 }".to_owned(),
            "outcome 3 Refused { status: 507, message: \"full\" }".to_owned(),
            format!("outcome 4 Unknown {{ message: \"{write}\" }}"),
            "confirmed 0 Err(\"no\\\\nanswer\")".to_owned(),
            "confirmed 6 Ok(60)".to_owned(),
        ]
    );
}

#[test]
fn a_panic_drops_the_write_and_answers_the_question_and_is_counted() {
    let (member, backend, lines) = open::<1>();
    commit(&backend, 1, "panic");
    commit(&backend, 2, "good");
    commit(&backend, 3, "early");
    backend.confirm(13);
    let got: Vec<_> = lines.try_iter().collect();
    let failed = |function| format!("plugin \\\"scripted\\\" failed in {function}").replace('\\', "");
    assert_eq!(
        got,
        [
            format!("outcome 1 Dropped {{ message: {:?} }}", failed("commit")),
            "outcome 2 Committed { revision: 9 }".to_owned(),
            "outcome 3 Committed { revision: 5 }".to_owned(),
            format!("outcome 3 Dropped {{ message: {:?} }}", failed("commit")),
            format!("confirmed 13 Err({:?})", failed("confirm")),
        ]
    );
    let status = backend.status();
    assert_eq!((status.connected, status.leads, status.size, status.quota), (true, true, 7, 9));
    assert_eq!([&*status.engine, &*status.engine_version, &*status.id], ["script", "1.2", "me"]);
    assert_eq!([&*status.full, &*status.entry_prefix], ["full", "vkog/k/"]);
    assert_eq!(status.members, [StoreMember::new("me", "{}"), StoreMember::new("other", "{\"a\":1}")]);
    assert!(!member.is_quarantined(), "the store cannot do without it");
    let registry = Registry::linked(vec![member], Vec::new(), Arc::new(HostContext::new(0, || 0)));
    let chain = registry.chain();
    let stats = || chain.stats(&chain.members()[0]).map(|(name, calls, stats)| (name, calls, stats.panics()));
    let counted =
        [("open", 1, 0), ("commit", 3, 2), ("confirm", 1, 1), ("status", 1, 0), ("announce", 0, 0), ("close", 0, 0)];
    assert_eq!(stats().collect::<Vec<_>>(), counted);
    backend.close();
    assert_eq!(stats().count(), 0, "it is no backend any more");
}

#[test]
fn a_status_that_panics_is_that_of_a_disconnected_backend() {
    let (_, backend, _lines) = open::<2>();
    assert_eq!(backend.status(), Status::default());
    let (_, backend, _lines) = open::<3>();
    assert!(!backend.status().connected && !backend.status().leads && backend.status().id == "me");
}

#[test]
fn a_backend_that_cannot_open_the_store_says_why() {
    let fails = |member: &Arc<Member>, url: &str| {
        let error = Backend::open(member, url, "{}", recorder().0).err().expect("it does not open");
        (error.code(), error.to_string())
    };
    let failed = fails(&member::<5>(), "scripted://fail");
    assert_eq!(failed, ("open-failed", "plugin \"scripted\" cannot open the store: no such\\nhost".to_owned()));
    let panicked = fails(&member::<6>(), "scripted://panic");
    assert_eq!(panicked, ("open-panicked", "plugin \"scripted\" cannot open the store: told\\nto".to_owned()));
    let (member, _backend, _lines) = open::<7>();
    assert_eq!(fails(&member, "scripted://").0, "backend-in-use");
    let counting = counting(&Arc::new(HostContext::new(0, || 0)));
    assert_eq!(fails(&counting, "scripted://").0, "no-backend");
    assert!(matches!(
        Backend::open(&counting, "scripted://", "{}", recorder().0),
        Err(BackendError::NoBackend { plugin }) if plugin == "counting"
    ));
}

/// Counts entries at the start, and the changes of other hosts.
struct Counting {
    entries: Gauge,
}

impl Plugin for Counting {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self { entries: host.gauge("entries", "Entries.") })
    }
}

impl Start for Counting {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut entries = 0;
        stored.for_each(|_, _| entries += 1);
        self.entries.add(entries);
        Ok(())
    }
}

impl Applied for Counting {
    fn applied(&self, change: &AppliedChange<'_>) {
        self.entries.add(i64::from(change.entry_after().is_some()) - i64::from(change.entry_before().is_some()));
    }
}

impl GuardGet for Counting {
    fn guard_get(&self, _: &mut vkog_plugin_api::Guard<'_, vkog_plugin_api::Get>) -> Verdict {
        Ok(())
    }
}

fn counting(context: &Arc<HostContext>) -> Arc<Member> {
    let hooks = vkog_plugin_api::__hooks!(Counting);
    created(module_with_backend::<Counting>("counting", "0.0.0", true, &hooks, &[], None), context)
}

/// A store: applies changes, and reports them to the registry.
struct Store {
    keys: Mutex<Vec<String>>,
    registry: Registry,
    applied: Mutex<Sender<()>>,
}

struct StoreFeed(Arc<Store>);

impl BackendFeed for StoreFeed {
    fn load(&self, _: &[Loaded<'_>]) {}
    fn loaded(&self, _: u64) {}
    fn apply(&self, revision: u64, _: bool, changes: &[Change<'_>]) {
        for change in changes {
            self.0.keys.lock().expect("no test fails").push(change.key().to_owned());
            let after = EntryView { value: b"", content_type: "a/b", details: b"", revision };
            self.0.registry.applied(&vkog_plugin_host::AppliedChange {
                key: change.key(),
                before: None,
                after: Some(after),
                revision,
                expired: false,
            });
        }
        let _ = self.0.applied.lock().expect("no test fails").send(());
    }
    fn outcome(&self, _: u64, _: CommitOutcome) {}
    fn confirmed(&self, _: u64, _: Result<u64, String>) {}
    fn connected(&self, _: Result<(), String>) {}
}

#[test]
fn a_change_that_arrives_while_a_plugin_counts_the_entries_is_counted_once() {
    let context = Arc::new(HostContext::new(0, || 0));
    let (applied, was_applied) = channel();
    let registry = Registry::linked(vec![counting(&context)], Vec::new(), Arc::clone(&context));
    let store = Arc::new(Store { keys: Mutex::default(), registry, applied: Mutex::new(applied) });
    let hooks = vkog_plugin_api::__hooks!(Scripted<8>);
    let backend = vkog_plugin_api::__backend!(Scripted<8>);
    let module = module_with_backend::<Scripted<8>>("scripted", "0.0.0", true, &hooks, &[], backend);
    let member = created(module, &context);
    let _backend =
        Backend::open(&member, "scripted://", "{}", Arc::new(StoreFeed(Arc::clone(&store)))).expect("it opens");
    let feed = feed_of(8);
    // Before the start: the start counts it.
    feed.apply(1, false, &[Change::put("a", b"")]);
    was_applied.recv().expect("it was applied");
    let (scanned, was_applied) = (Arc::clone(&store), Mutex::new(was_applied));
    let scan: SharedScan = Arc::new(move |each: &mut Each<'_>| {
        let apply = std::thread::spawn(move || feed.apply(2, false, &[Change::put("b", b"")]));
        // It waits for this plugin. Without that it would be applied at once.
        let waited = was_applied.lock().expect("no test fails").recv_timeout(Duration::from_millis(100));
        assert!(waited.is_err(), "a change was applied while a plugin counts");
        for key in scanned.keys.lock().expect("no test fails").iter() {
            each(key, EntryView { value: b"", content_type: "a/b", details: b"", revision: 1 });
        }
        drop(apply);
    });
    store.registry.start(&scan).expect("it starts");
    feed.apply(3, false, &[Change::put("c", b"")]);
    // The other thread may still wait for its turn.
    let counted = || {
        let metrics = context.metrics("counting");
        metrics.iter().find(|(name, _)| name == "entries").map_or(0, |(_, metric)| metric.value())
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while store.keys.lock().expect("no test fails").len() < 3 || counted() != 3 {
        assert!(std::time::Instant::now() < deadline, "{} are counted", counted());
        std::thread::yield_now();
    }
}
