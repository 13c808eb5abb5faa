//! Single properties of a shared store that the simulation does not show, or not by name.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_store::{
    Backend, BackendChange, BackendStatus, BackendWrite, Change, Changes, CommitOutcome, Decide, Decision, Entry, Feed,
    Loaded, NewEntry, Reads, SharedOptions, SharedStore, Store, StoreError, Update,
};

use crate::engine::Engine;
use crate::hosts::Host;
use crate::random::Random;

/// The timeout of every step.
const DEADLINE: Duration = Duration::from_secs(30);

fn entry(key: &str, value: &str) -> Entry {
    Entry::new(key, &NewEntry { value: value.as_bytes(), content_type: "text/plain", details: Vec::new() })
}

/// Calls a function until the hosts have nothing left to do.
fn settle(hosts: &[&Host]) {
    let mut random = Random::new(1);
    for _ in 0..100 {
        for host in hosts {
            host.link.execute(&mut random, 0, 0);
            host.link.respond(&mut random);
            host.link.pass(&mut random);
            host.poll();
        }
    }
}

/// Begins to put a value. The outcome is recorded.
fn put(host: &Host, keys: &[&str], value: &str, outcomes: &Arc<Mutex<Vec<String>>>) {
    let (outcomes, name) = (Arc::clone(outcomes), value.to_owned());
    let (mut values, named) = (keys.iter().map(|key| entry(key, value)).collect::<Vec<_>>(), keys.len());
    let decide = move |before: &[Change], _: Option<&Entry>| -> Decision<Infallible> {
        assert!(before.len() < named);
        Decision::Write(values.remove(0))
    };
    host.run(|store| {
        store.update_all(keys, decide, move |update| {
            let outcome = match update {
                Update::Committed(_) => "committed".to_owned(),
                Update::ReadOnly(error) | Update::RolledBack { error, .. } => error.to_string(),
                Update::Rejected(never) => match never {},
            };
            outcomes.lock().push(format!("{name} {outcome}"));
        });
    });
}

#[test]
fn writes_of_one_key_are_decided_in_the_order_of_their_calls() {
    let engine = Arc::<Engine>::default();
    let host = Host::new(&engine, SharedOptions::default());
    settle(&[&host]);
    let outcomes = Arc::default();
    for value in ["1", "2", "3", "4", "5"] {
        put(&host, &["k"], value, &outcomes);
    }
    // A batch waits for all of its keys, and holds up the later writes of each.
    put(&host, &["m", "k"], "6", &outcomes);
    put(&host, &["m"], "7", &outcomes);
    put(&host, &["other"], "8", &outcomes);
    settle(&[&host]);
    let order =
        |outcomes: &[String]| outcomes.iter().map(|it| it[..1].to_owned()).filter(|it| it != "8").collect::<String>();
    assert_eq!(order(&outcomes.lock()), "1234567");
    assert!(outcomes.lock()[0].starts_with('8') || outcomes.lock()[1].starts_with('8'), "another key waits for none");
    assert!(outcomes.lock().iter().all(|outcome| outcome.ends_with(" committed")), "{outcomes:?}");
}

#[test]
fn writes_that_wait_for_a_key_are_refused_when_the_connection_is_lost() {
    let engine = Arc::<Engine>::default();
    let host = Host::new(&engine, SharedOptions::default());
    settle(&[&host]);
    let outcomes = Arc::default();
    for value in ["1", "2", "3"] {
        put(&host, &["k"], value, &outcomes);
    }
    host.link.disconnect();
    put(&host, &["k"], "4", &outcomes);
    host.poll();
    let refused = |value| {
        format!(
            "{value} the shared store cannot be reached: a simulated loss of the connection; try again when it can be reached"
        )
    };
    // The first one was sent: its outcome is open.
    assert_eq!(*outcomes.lock(), [refused(4), refused(2), refused(3)]);
    host.link.connect();
    host.link.find_out(&mut Random::new(1));
    host.poll();
    assert_eq!(outcomes.lock().len(), 4);
    put(&host, &["k"], "5", &outcomes);
    settle(&[&host]);
    assert_eq!(outcomes.lock().last().map(String::as_str), Some("5 committed"));
}

#[test]
fn an_update_whose_decision_panics_leaves_its_keys_to_the_next() {
    let engine = Arc::<Engine>::default();
    let host = Host::new(&engine, SharedOptions::default());
    settle(&[&host]);
    let panics = |_: &[Change], _: Option<&Entry>| -> Decision<Infallible> { panic!("a simulated defect") };
    let update = || host.run(|store| store.update_all(&["k"], panics, |_: Update<Infallible, Changes>| {}));
    catch_unwind(AssertUnwindSafe(update)).expect_err("the decision panics");
    let outcomes = Arc::default();
    put(&host, &["k"], "1", &outcomes);
    settle(&[&host]);
    assert_eq!(*outcomes.lock(), ["1 committed"]);
}

/// Passes everything on until the flag is set.
fn pump(host: &Host, stop: &AtomicBool) {
    let mut random = Random::new(1);
    while !stop.load(SeqCst) {
        host.link.execute(&mut random, 0, 0);
        host.link.respond(&mut random);
        host.link.pass(&mut random);
        thread::yield_now();
    }
}

#[test]
fn readers_see_all_changes_of_a_step_or_none() {
    const STEPS: usize = 300;
    let engine = Arc::<Engine>::default();
    let hosts = [(); 2].map(|()| Host::new(&engine, SharedOptions::default()));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        hosts.iter().for_each(|host| _ = scope.spawn(|| pump(host, &stop)));
        let reader = scope.spawn(|| {
            // The first load fills the map entry by entry.
            assert!(hosts[1].store.wait_until_loaded(DEADLINE));
            let mut different = 0;
            while !stop.load(SeqCst) {
                let number = |entry: &Option<&Entry>| entry.map_or(0, Entry::revision);
                let (seen, ()) =
                    hosts[1].store.read_all(&["a", "b"], |entries| [number(&entries[0]), number(&entries[1])]);
                different += u32::from(seen[0] != seen[1]);
            }
            different
        });
        let store = &hosts[0].store;
        assert!(store.wait_until_loaded(DEADLINE));
        for _ in 0..STEPS {
            let (send, outcome) = bounded(1);
            let increment = Increment(vec!["a".to_owned(), "b".to_owned()]);
            store.update_all(&["a", "b"], increment, move |update: Update<Infallible, Changes>| {
                let _ = send.send(matches!(update, Update::Committed(_)));
            });
            assert_eq!(outcome.recv_timeout(DEADLINE), Ok(true));
        }
        stop.store(true, SeqCst);
        assert_eq!(reader.join().expect("it passes"), 0, "reads of one part of a step");
    });
}

/// Adds one to the number under each key.
struct Increment(Vec<String>);

impl Decide for Increment {
    type Rejection = Infallible;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<Infallible> {
        let number =
            current.and_then(|entry| str::from_utf8(entry.value()).ok()?.parse::<u64>().ok()).unwrap_or_default();
        Decision::Write(entry(&self.0[before.len()], &(number + 1).to_string()))
    }

    fn undo(&mut self, _: &[Change]) {}
}

#[test]
fn threads_that_share_keys_crosswise_neither_wait_for_each_other_nor_lose_an_update() {
    const THREADS: usize = 6;
    const UPDATES: usize = 100;
    const KEYS: [&str; 4] = ["a", "b", "c", "d"];
    let engine = Arc::<Engine>::default();
    let hosts: Vec<Host> = (0..3).map(|_| Host::new(&engine, SharedOptions::default())).collect();
    let stop = AtomicBool::new(false);
    let expected: HashMap<&str, AtomicU64> = KEYS.map(|key| (key, AtomicU64::new(0))).into();
    thread::scope(|scope| {
        hosts.iter().for_each(|host| _ = scope.spawn(|| pump(host, &stop)));
        let clients: Vec<_> = (0..THREADS)
            .map(|client| {
                let (store, expected) = (&hosts[client % 3].store, &expected);
                scope.spawn(move || {
                    assert!(store.wait_until_loaded(DEADLINE));
                    let mut random = Random::new(client as u64);
                    for _ in 0..UPDATES {
                        let keys: Vec<&str> = (0..1 + random.below(3)).map(|_| KEYS[random.below(4)]).collect();
                        let (send, outcome) = bounded(1);
                        let increment = Increment(keys.iter().map(|key| (*key).to_owned()).collect());
                        store.update_all(&keys, increment, move |update: Update<Infallible, Changes>| {
                            let _ = send.send(matches!(update, Update::Committed(_)));
                        });
                        if outcome.recv_timeout(DEADLINE).expect("every update has an outcome") {
                            keys.iter().for_each(|key| _ = expected[key].fetch_add(1, SeqCst));
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().expect("it passes"));
        for host in &hosts {
            let (send, current) = bounded(1);
            host.store.when_current(Reads::Linearizable, move |result| send.send(result.is_ok()).unwrap_or_default());
            assert_eq!(current.recv_timeout(DEADLINE), Ok(true));
            for key in KEYS {
                let value = |entry: Option<&Entry>| {
                    entry.map_or(0, |entry| String::from_utf8_lossy(entry.value()).parse().unwrap_or(0))
                };
                assert_eq!(host.store.read(key, value).0, expected[key].load(SeqCst), "{key}");
            }
        }
        stop.store(true, SeqCst);
    });
}

/// A backend that answers every write at once, in the same way.
struct Constant {
    feed: Feed,
    outcome: Mutex<CommitOutcome>,
    writes: AtomicU64,
    confirming: Mutex<()>,
}

impl Backend for Constant {
    fn commit(&self, write: BackendWrite<'_>) {
        self.writes.fetch_add(1, SeqCst);
        let outcome = self.outcome.lock().clone();
        self.feed.outcome(write.id, outcome);
    }

    fn confirm(&self, id: u64) {
        // Fails instead of waiting, if the feed calls the backend.
        let _alone = self.confirming.try_lock_for(DEADLINE).expect("the feed does not call the backend");
        self.feed.confirmed(id, Ok(1));
    }

    fn status(&self) -> BackendStatus {
        let full = match &*self.outcome.lock() {
            CommitOutcome::Refused { status: 507, message } => Some(message.clone()),
            _ => None,
        };
        BackendStatus { leads: true, full, ..BackendStatus::default() }
    }

    fn announce(&self, _: &str) {}

    fn close(&self) {}
}

fn constant(options: SharedOptions, outcome: CommitOutcome) -> (SharedStore, Arc<Constant>) {
    let mut backend = None;
    let opened = SharedStore::open(options, |feed| {
        feed.connected(Ok(()));
        feed.loaded(1);
        let (outcome, writes, confirming) = (Mutex::new(outcome), AtomicU64::new(0), Mutex::new(()));
        let constant = Constant { feed, outcome, writes, confirming };
        Ok::<_, Infallible>(Arc::clone(backend.insert(Arc::new(constant))) as _)
    });
    let Ok(store) = opened;
    (store, backend.expect("it was opened"))
}

/// Adds one to a number, and waits for the outcome.
fn increment(store: &SharedStore) -> Result<(), Arc<StoreError>> {
    let (send, outcome) = bounded(1);
    store.update_all(&["k"], Increment(vec!["k".to_owned()]), move |update| {
        let _ = send.send(match update {
            Update::Committed(_) => Ok(()),
            Update::ReadOnly(error) | Update::RolledBack { error, .. } => Err(error),
            Update::Rejected(never) => match never {},
        });
    });
    outcome.recv_timeout(DEADLINE).expect("every update has an outcome")
}

#[test]
fn a_write_that_always_conflicts_fails_in_the_end() {
    let (store, backend) = constant(SharedOptions::default(), CommitOutcome::Conflict { revision: 1 });
    let error = increment(&store).expect_err("it conflicts");
    let attempts = backend.writes.load(SeqCst);
    assert!(
        matches!(*error, StoreError::ConflictsTooOften { attempts: told } if u64::from(told) == attempts),
        "{error}"
    );
    assert!(attempts >= 10 && error.is_certain());
}

#[test]
fn a_store_is_full_as_long_as_its_backend_says_so() {
    let refused = CommitOutcome::Refused { status: 507, message: "there is no space".to_owned() };
    let (store, backend) = constant(SharedOptions::default(), refused);
    let error = increment(&store).expect_err("it is refused");
    let full = store.full().expect("it is full");
    assert!(error.is_full() && full.is_full() && store.closed().is_none(), "{error}");
    assert_eq!(full.to_string(), "there is no space");
    // No write has to be tried.
    *backend.outcome.lock() = CommitOutcome::Committed { revision: 1 };
    assert!(store.full().is_none());
    increment(&store).expect("it is committed");
}

#[test]
fn a_record_that_no_host_wrote_makes_its_key_alone_unusable() {
    let (store, backend) = constant(SharedOptions::default(), CommitOutcome::Committed { revision: 1 });
    let change = |revision, record: Option<&[u8]>| {
        backend.feed.apply(revision, false, &[BackendChange { key: "k", record, expired: false }]);
    };
    change(2, Some(b"text"));
    let error = increment(&store).expect_err("its key is unusable");
    assert!(matches!(*error, StoreError::Foreign { .. }) && !error.is_temporary(), "{error}");
    assert!(error.to_string().starts_with("\"k\" in the shared store has a record"), "{error}");
    assert!(store.unusable("k").is_some() && store.unusable("other").is_none() && store.closed().is_none());
    assert_eq!(backend.writes.load(SeqCst), 0);
    change(3, None);
    assert!(store.unusable("k").is_none());
    increment(&store).expect("it is committed");
    // A load replaces what is known.
    backend.feed.load(&[Loaded { key: "other", record: b"text", revision: 4 }]);
    backend.feed.loaded(4);
    assert!(store.unusable("k").is_none() && store.unusable("other").is_some());
}

#[test]
fn reads_that_overlap_call_the_backend_outside_of_its_own_reports() {
    const THREADS: usize = 8;
    const READS: usize = 200;
    let (store, _) = constant(SharedOptions::default(), CommitOutcome::Conflict { revision: 1 });
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..READS {
                    let (send, current) = bounded(1);
                    store
                        .when_current(Reads::Linearizable, move |result| send.send(result.is_ok()).unwrap_or_default());
                    assert_eq!(current.recv_timeout(DEADLINE), Ok(true));
                }
            });
        }
    });
}

#[test]
fn a_local_read_is_refused_when_the_backend_has_given_no_sign_of_life() {
    let outcome = CommitOutcome::Conflict { revision: 1 };
    let current = |lag_max| {
        let (store, _) = constant(SharedOptions { lag_max, ..SharedOptions::default() }, outcome.clone());
        let (send, current) = bounded(2);
        for reads in [Reads::Local, Reads::Linearizable] {
            let send = send.clone();
            store.when_current(reads, move |result| send.send((reads, result)).unwrap_or_default());
        }
        let is_current = store.is_current(Reads::Local);
        let result = |reads| move |(other, result): (Reads, Result<(), _>)| (other == reads).then_some(result);
        let results: Vec<_> = (0..2).map(|_| current.recv_timeout(DEADLINE).expect("it is called")).collect();
        let of = |reads| results.iter().cloned().find_map(result(reads)).expect("each is called");
        (is_current, of(Reads::Local), of(Reads::Linearizable))
    };
    let (is_current, local, linearizable) = current(Duration::ZERO);
    let error = local.expect_err("it is too old");
    assert!(matches!(*error, StoreError::Stale { .. }) && !is_current, "{error}");
    linearizable.expect("the backend answers");
    let (is_current, local, linearizable) = current(DEADLINE);
    assert!(is_current && local.is_ok() && linearizable.is_ok());
}

#[test]
fn a_store_that_is_loading_is_closed() {
    let engine = Arc::<Engine>::default();
    let host = Host::new(&engine, SharedOptions::default());
    assert!(!host.store.wait_until_loaded(Duration::ZERO) && host.store.closed().is_some());
    assert!(!host.store.is_current(Reads::Local), "there is nothing to read yet");
    settle(&[&host]);
    assert!(host.store.wait_until_loaded(Duration::ZERO) && host.store.closed().is_none());
    assert!(host.store.is_current(Reads::Local) && !host.store.is_current(Reads::Linearizable));
}
