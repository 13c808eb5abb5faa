//! Every store behaves the same: one table of cases runs over the local store, which commits to a log on a disk, and
//! over the in-memory store; and over a shared store on a simulated backend, except the cases in which a step has one revision
//! for each change, or is decided once.

#[expect(dead_code, reason = "here the backend only passes on what it gets")]
#[path = "simulated_backend/engine.rs"]
mod engine;
#[path = "simulated_disk/random.rs"]
mod random;
#[expect(dead_code, reason = "nothing is compared with it here")]
#[path = "simulated_backend/truth.rs"]
mod truth;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{TryRecvError, bounded};
use parking_lot::Mutex;
use vkog_runtime::Mailbox;
use vkog_store::{
    Change, Changes, Decide, Decision, Entry, Event, Fsync, LocalDisk, LocalStore, MemoryStore, NewEntry, Options,
    SharedOptions, SharedStore, Store, Unwatchable, Update, Watch,
};

use engine::{Connection, Engine, Link};
use random::Random;

/// The timeout of every step.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs a case over a shared store.
macro_rules! shared_cases {
    ($($name:ident)*) => {
        mod shared {
            $(#[test]
            fn $name() {
                super::with_shared(|store| super::$name(store));
            })*
        }
    };
}

shared_cases! {
    a_write_is_read_back_with_its_revision
    an_absent_key_reads_as_absent
    an_update_that_only_reads_gets_no_revision
    several_entries_are_read_in_one_step
    a_range_has_its_keys_in_byte_order
    keys_are_counted_and_iterated_by_prefix
    a_sample_has_different_entries_and_each_entry_gets_its_turn
    totals_count_keys_and_values
    a_watch_of_unknown_revisions_is_refused
    ended_watches_return_nothing_more
}

/// Calls a function with a shared store, whose backend passes everything on.
fn with_shared(run: impl FnOnce(&SharedStore)) {
    let engine = Arc::<Engine>::default();
    engine.with(|engine| engine.step = 1);
    let mut link = None;
    let opened = SharedStore::open(SharedOptions::default(), |feed| {
        let link = link.insert(Arc::new(Link::new(&engine, feed)));
        Ok::<_, Infallible>(Arc::new(Connection(Arc::clone(link))) as _)
    });
    let (Ok(store), Some(link)) = (opened, link) else { panic!("it was opened") };
    link.connect();
    thread::scope(|scope| {
        let (stop, stopped) = bounded::<()>(0);
        scope.spawn(move || {
            let mut random = Random::new(1);
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                link.execute(&mut random, 0, 0);
                link.respond(&mut random);
                link.pass(&mut random);
                thread::yield_now();
            }
        });
        assert!(store.wait_until_loaded(DEADLINE));
        // Also if it panics, because its caller drops it.
        let _stop = stop;
        run(&store);
    });
}

/// Runs a case over each store.
macro_rules! cases {
    ($($name:ident)*) => {
        mod local {
            $(#[test]
            fn $name() {
                for fsync in [super::Fsync::Always, super::Fsync::Never] {
                    let (_folder, store) = super::local(fsync);
                    super::$name(&store);
                }
            })*
        }
        mod memory {
            $(#[test]
            fn $name() {
                super::$name(&super::MemoryStore::default());
            })*
        }
    };
}

cases! {
    a_write_is_read_back_with_its_revision
    an_absent_key_reads_as_absent
    a_rejected_update_changes_nothing_and_undoes_its_decisions
    the_decisions_of_an_update_see_those_before_them
    revisions_follow_each_other_also_through_removals_and_updates_of_several_entries
    an_update_that_only_reads_gets_no_revision
    several_entries_are_read_in_one_step
    a_range_has_its_keys_in_byte_order
    keys_are_counted_and_iterated_by_prefix
    a_sample_has_different_entries_and_each_entry_gets_its_turn
    totals_count_keys_and_values
    a_watch_has_each_change_once_and_in_order
    a_watch_of_unknown_revisions_is_refused
    ended_watches_return_nothing_more
}

fn local(fsync: Fsync) -> (tempfile::TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let options = Options { fsync, first_revision: || 1, ..Options::default() };
    let store = LocalStore::open(LocalDisk, &folder.path().join("store"), options, &|_, _, _| {}).expect("it is new");
    (folder, store)
}

fn entry(key: &str, value: &str) -> Entry {
    Entry::new(key, &NewEntry { value: value.as_bytes(), content_type: "text/plain", details: Vec::new() })
}

/// A recorded decision of an update.
enum Step {
    Write(&'static str),
    Remove,
    Read,
    ReadAbsent,
    Reject,
}

/// Decides as scripted, and records what it saw and what it must undo.
struct Scripted {
    keys: Vec<String>,
    steps: Vec<Step>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Decide for Scripted {
    type Rejection = &'static str;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<&'static str> {
        let key = &self.keys[before.len()];
        self.log.lock().push(format!("{key}={}", value_of(current)));
        match &self.steps[before.len()] {
            Step::Write(value) => Decision::Write(entry(key, value)),
            Step::Remove => Decision::Remove,
            Step::Read => Decision::Read,
            Step::ReadAbsent => Decision::ReadAbsent,
            Step::Reject => Decision::Reject("rejected"),
        }
    }

    fn undo(&mut self, decided: &[Change]) {
        self.log.lock().push(format!("undo {}", decided.len()));
    }
}

fn value_of(entry: Option<&Entry>) -> String {
    entry.map_or("none".to_owned(), |entry| String::from_utf8_lossy(entry.value()).into_owned())
}

/// Updates entries and waits for the outcome. Also returns what the decisions saw and undid.
fn update(store: &impl Store, steps: Vec<(&str, Step)>) -> (Result<Changes, &'static str>, Vec<String>) {
    let (keys, steps): (Vec<&str>, Vec<Step>) = steps.into_iter().unzip();
    let log = Arc::new(Mutex::new(Vec::new()));
    let scripted = Scripted { keys: keys.iter().map(|key| (*key).to_owned()).collect(), steps, log: Arc::clone(&log) };
    let (send, outcome) = bounded(1);
    store.update_all(&keys, scripted, move |update| {
        let _ = send.send(match update {
            Update::Committed(changes) => Ok(changes),
            Update::Rejected(reason) => Err(reason),
            Update::ReadOnly(error) | Update::RolledBack { error, .. } => panic!("{error}"),
        });
    });
    let outcome = outcome.recv_timeout(DEADLINE).expect("every update has an outcome");
    let log = log.lock().clone();
    (outcome, log)
}

/// Updates entries, which must succeed. Returns the revisions.
fn commit(store: &impl Store, steps: Vec<(&str, Step)>) -> Vec<u64> {
    let (outcome, _) = update(store, steps);
    outcome.expect("it is committed").iter().map(|change| change.revision).collect()
}

fn put(store: &impl Store, key: &str, value: &'static str) -> u64 {
    commit(store, vec![(key, Step::Write(value))])[0]
}

/// Returns what a client reads, once it is durable.
fn get(store: &impl Store, key: &str) -> Option<(u64, String)> {
    let (found, ticket) = store.read(key, |entry| entry.map(|entry| (entry.revision(), value_of(Some(entry)))));
    let (send, durable) = bounded(1);
    store.when_durable(ticket, move |result| {
        let _ = send.send(result);
    });
    durable.recv_timeout(DEADLINE).expect("every read has an outcome").expect("nothing is rolled back");
    assert!(store.is_durable(ticket));
    found
}

fn a_write_is_read_back_with_its_revision(store: &impl Store) {
    let first = put(store, "key", "first");
    assert_eq!(get(store, "key"), Some((first, "first".to_owned())));
    let second = put(store, "key", "second");
    assert_eq!(get(store, "key"), Some((second, "second".to_owned())));
    assert_eq!((second, store.revision()), (first + 1, second));
    assert!(store.closed().is_none() && store.full().is_none());
}

fn an_absent_key_reads_as_absent(store: &impl Store) {
    assert_eq!(get(store, "key"), None);
    put(store, "key", "value");
    commit(store, vec![("key", Step::Remove)]);
    assert_eq!(get(store, "key"), None);
}

fn a_rejected_update_changes_nothing_and_undoes_its_decisions(store: &impl Store) {
    let revision = put(store, "a", "before");
    let steps = vec![("a", Step::Write("after")), ("b", Step::Write("new")), ("c", Step::Reject)];
    let (outcome, log) = update(store, steps);
    assert_eq!(outcome.err(), Some("rejected"));
    assert_eq!(log, ["a=before", "b=none", "c=none", "undo 2"]);
    assert_eq!(get(store, "a"), Some((revision, "before".to_owned())));
    assert_eq!((get(store, "b"), store.revision()), (None, revision));
}

fn the_decisions_of_an_update_see_those_before_them(store: &impl Store) {
    let steps = vec![
        ("a", Step::Write("one")),
        ("b", Step::Write("other")),
        ("a", Step::Read),
        ("a", Step::Remove),
        ("a", Step::ReadAbsent),
        ("a", Step::Write("two")),
    ];
    let (outcome, log) = update(store, steps);
    assert_eq!(log, ["a=none", "b=none", "a=one", "a=one", "a=none", "a=none"]);
    let changes = outcome.expect("it is committed");
    let first = changes[0].revision;
    let revisions: Vec<_> = changes.iter().map(|change| change.revision.saturating_sub(first)).collect();
    assert_eq!(revisions, [0, 1, 0, 2, 0, 3]);
    assert_eq!(changes.iter().map(Change::is_read).collect::<Vec<_>>(), [false, false, true, false, true, false]);
    assert_eq!(get(store, "a"), Some((first + 3, "two".to_owned())));
    assert_eq!(get(store, "b"), Some((first + 1, "other".to_owned())));
}

fn revisions_follow_each_other_also_through_removals_and_updates_of_several_entries(store: &impl Store) {
    let first = put(store, "a", "1");
    assert_eq!(commit(store, vec![("a", Step::Remove)]), [first + 1]);
    assert_eq!(
        commit(store, vec![("b", Step::Write("2")), ("c", Step::Write("3")), ("b", Step::Remove)]),
        [first + 2, first + 3, first + 4]
    );
    assert_eq!(put(store, "d", "4"), first + 5);
}

fn an_update_that_only_reads_gets_no_revision(store: &impl Store) {
    let revision = put(store, "a", "value");
    let (outcome, _) = update(store, vec![("a", Step::Read), ("a", Step::ReadAbsent), ("b", Step::Read)]);
    let changes = outcome.expect("it is committed");
    let shown: Vec<_> = changes.iter().map(|change| value_of(change.before.as_ref())).collect();
    assert_eq!(shown, ["value", "none", "none"]);
    assert!(changes.iter().all(Change::is_read));
    assert_eq!(store.revision(), revision);
}

fn several_entries_are_read_in_one_step(store: &impl Store) {
    put(store, "a", "1");
    put(store, "b", "2");
    let (found, ticket) = store.read_all(&["b", "absent", "a", "b"], |entries| {
        entries.iter().map(|entry| value_of(*entry)).collect::<Vec<_>>()
    });
    assert_eq!(found, ["2", "none", "1", "2"]);
    assert!(store.is_durable(ticket));
}

#[test]
fn updates_that_name_their_keys_in_opposite_orders_do_not_wait_for_each_other() {
    const ROUNDS: usize = 1000;

    let (_folder, store) = local(Fsync::Never);
    let (store, (send, ended)) = (Arc::new(store), bounded(2));
    let keys: Vec<String> = (0..300).map(|key| key.to_string()).collect();
    for keys in [keys.clone(), keys.into_iter().rev().collect()] {
        let (store, send) = (Arc::clone(&store), send.clone());
        // Not joined, so that a hanging thread fails the test instead of stopping it.
        thread::spawn(move || {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            for _ in 0..ROUNDS {
                store.update_all(&keys, |_: &[Change], _: Option<&Entry>| Decision::Reject(()), |_| {});
                store.read_all(&keys, |_| {});
            }
            let _ = send.send(());
        });
    }
    for _ in 0..2 {
        ended.recv_timeout(DEADLINE).expect("the two wait for each other");
    }
}

#[test]
fn a_thread_with_a_mailbox_runs_its_own_completions() {
    let (_folder, store) = local(Fsync::Always);
    let mailbox = Arc::<Mailbox>::default();
    mailbox.attach();
    let (send, ran) = bounded(2);
    let decide = |_: &[Change], _: Option<&Entry>| Decision::<()>::Write(entry("key", "value"));
    let sent = send.clone();
    store.update("key", decide, move |_| {
        let _ = sent.send(thread::current().id());
    });
    let ((), ticket) = store.read("key", |_| {});
    store.when_durable(ticket, move |_| {
        let _ = send.send(thread::current().id());
    });
    let deadline = Instant::now() + DEADLINE;
    for _ in 0..2 {
        let thread = loop {
            let _ = mailbox.poll(&Context::from_waker(Waker::noop()));
            if let Ok(thread) = ran.try_recv() {
                break thread;
            }
            assert!(Instant::now() < deadline, "both are completed");
            thread::yield_now();
        };
        assert_eq!(thread, thread::current().id());
    }
}

fn a_range_has_its_keys_in_byte_order(store: &impl Store) {
    assert!(store.range(b"b", Some(b"b"), 1).is_empty() && store.range(b"c", Some(b"b"), 1).is_empty());
    for key in ["b", "a", "k", "k\0", "k\u{1}", "kk", "l", "é"] {
        put(store, key, "value");
    }
    let keys = |from: &str, end: Option<&str>, count: usize| -> Vec<String> {
        let entries = store.range(from.as_bytes(), end.map(str::as_bytes), count);
        entries.iter().map(|entry| entry.key().to_owned()).collect()
    };
    assert_eq!(keys("", None, 100), ["a", "b", "k", "k\0", "k\u{1}", "kk", "l", "é"]);
    assert_eq!(keys("", None, 3), ["a", "b", "k"]);
    assert_eq!(keys("k", Some("l"), 100), ["k", "k\0", "k\u{1}", "kk"]);
    assert_eq!(keys("b", Some("b"), 100), [] as [&str; 0]);
    // A cached range includes inserted keys and excludes removed ones.
    put(store, "c", "value");
    commit(store, vec![("k", Step::Remove)]);
    assert_eq!(keys("b", None, 3), ["b", "c", "k\0"]);
}

fn keys_are_counted_and_iterated_by_prefix(store: &impl Store) {
    for key in ["a/1", "a/2", "b/1"] {
        put(store, key, "value");
    }
    assert_eq!([store.count(""), store.count("a/"), store.count("c")], [3, 2, 0]);
    let mut found: Vec<_> = store.with_prefix("a/").map(|entry| entry.key().to_owned()).collect();
    found.sort_unstable();
    assert_eq!(found, ["a/1", "a/2"]);
}

fn a_sample_has_different_entries_and_each_entry_gets_its_turn(store: &impl Store) {
    assert_eq!(store.sample(3).len(), 0);
    let keys: Vec<String> = (0..200).map(|index| format!("key-{index}")).collect();
    keys.iter().for_each(|key| _ = put(store, key, "value"));
    let sample = |count| {
        let mut found: Vec<_> = store.sample(count).iter().map(|entry| entry.key().to_owned()).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    assert_eq!([sample(0).len(), sample(7).len(), sample(200).len(), sample(1000).len()], [0, 7, 200, 200]);
    let deadline = Instant::now() + DEADLINE;
    let mut unseen = keys.len();
    let mut seen = std::collections::BTreeSet::new();
    while unseen > 0 {
        assert!(Instant::now() < deadline, "{unseen} entries are never chosen");
        seen.extend(sample(1));
        unseen = keys.len() - seen.len();
    }
}

fn totals_count_keys_and_values(store: &impl Store) {
    assert_eq!(store.totals(), (0, 0));
    put(store, "key", "value");
    put(store, "other", "v");
    put(store, "key", "longer value");
    assert_eq!(store.totals(), (2, 3 + 12 + 5 + 1));
    commit(store, vec![("key", Step::Remove)]);
    assert_eq!(store.totals(), (1, 6));
}

/// Returns the available events: key, revision, whether it is a removal.
fn events(watch: &mut Watch) -> Vec<(String, u64, bool)> {
    let about = |event: &Event| (event.entry().key().to_owned(), event.revision(), event.is_removal());
    match watch.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(events)) => events.iter().map(about).collect(),
        Poll::Ready(Err(unwatchable)) => panic!("{unwatchable:?}"),
        Poll::Pending => Vec::new(),
    }
}

fn a_watch_has_each_change_once_and_in_order(store: &impl Store) {
    let first = put(store, "a/1", "value");
    let mut now = store.watch("a/".to_owned(), None).expect("it is open");
    commit(store, vec![("a/2", Step::Write("new")), ("b", Step::Write("other")), ("a/1", Step::Remove)]);
    let two = [("a/2".to_owned(), first + 1, false), ("a/1".to_owned(), first + 3, true)];
    assert_eq!(events(&mut now), two);
    assert_eq!(events(&mut now), []);
    let mut since = store.watch("a/".to_owned(), Some(first)).expect("the feed goes back to it");
    assert_eq!(events(&mut since), two);
}

fn a_watch_of_unknown_revisions_is_refused(store: &impl Store) {
    let revision = put(store, "key", "value");
    assert_eq!(store.watch(String::new(), Some(revision + 1)).err(), Some(Unwatchable::Ahead(revision)));
    assert!(store.watch(String::new(), Some(revision)).is_ok());
}

fn ended_watches_return_nothing_more(store: &impl Store) {
    let mut watch = store.watch(String::new(), None).expect("it is open");
    store.end_watches();
    put(store, "key", "value");
    let polled = watch.poll(&Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Ok(events)) if events.is_empty()));
}
