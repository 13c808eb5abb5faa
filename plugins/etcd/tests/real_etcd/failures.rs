//! The fate of writes in flight when members are killed or stopped, when responses are lost, and when leases end.
//!
//! Each key has one writer, which states the revision that its last outcome implies. So a false outcome shows: as a conflict
//! of the next write, or as an entry that differs at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use vkog_etcd::Settings;
use vkog_plugin_api::backend::CommitOutcome;
use vkog_tests::{Etcd, wait_until};

use crate::proxy::{Mode, Proxy};
use crate::recorder::{Host, Recorder, Reported};

const WRITERS: usize = 24;

/// Threads that write without pause, each its own key.
struct Writers {
    stopped: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Written>>,
}

/// The state of a key as its writer knows it.
struct Written {
    key: String,
    /// Of the last committed write.
    record: Vec<u8>,
    revision: u64,
    committed: usize,
    dropped: usize,
}

impl Writers {
    fn start(host: &Arc<Host>) -> Self {
        let (stopped, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..WRITERS)
            .map(|number| {
                let (host, stopped, committed) = (Arc::clone(host), Arc::clone(&stopped), Arc::clone(&committed));
                thread::spawn(move || write(&host, format!("key{number}"), &stopped, &committed))
            })
            .collect();
        Self { stopped, committed, threads }
    }

    fn committed(&self) -> usize {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until this many more writes are committed.
    #[track_caller]
    fn wait_for(&self, more: usize) {
        let before = self.committed();
        wait_until("writes are committed", || self.committed() >= before + more);
    }

    /// Stops, and checks the outcomes against the data.
    #[track_caller]
    fn check(self, host: &Host, etcd: &Etcd) -> Vec<Written> {
        self.stopped.store(true, Ordering::Relaxed);
        let written: Vec<Written> =
            self.threads.into_iter().map(|thread| thread.join().expect("no outcome is false")).collect();
        let entries = host.entries();
        for Written { key, record, revision, committed, .. } in &written {
            assert_eq!(entries.get(key), Some(&(record.clone(), *revision)), "{key}");
            let version = format!("\"version\":{committed},");
            let found = etcd.etcdctl(&["get", &format!("vkog/k/{key}"), "--write-out=json"]);
            assert!(found.contains(&version), "{key} was not written {committed} times: {found}");
        }
        written
    }
}

fn write(host: &Host, key: String, stopped: &AtomicBool, total: &AtomicUsize) -> Written {
    let mut written = Written { key, record: Vec::new(), revision: 0, committed: 0, dropped: 0 };
    for number in 0_u64.. {
        if stopped.load(Ordering::Relaxed) && written.committed > 0 {
            break;
        }
        let record = number.to_be_bytes().to_vec();
        match host.outcome(host.send(&[(&written.key, written.revision, Some(&record))])) {
            CommitOutcome::Committed { revision } => {
                assert!(revision > written.revision);
                (written.record, written.revision) = (record, revision);
                written.committed += 1;
                total.fetch_add(1, Ordering::Relaxed);
            }
            CommitOutcome::Dropped { .. } => {
                written.dropped += 1;
                thread::sleep(std::time::Duration::from_millis(5));
            }
            other => panic!("{}: the write {number} is {other:?} after revision {}", written.key, written.revision),
        }
    }
    written
}

#[test]
fn outcomes_are_true_when_the_leader_is_killed() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let host = Arc::new(Host::open(&etcd.store("vkog"), &Settings::default()));
    let writers = Writers::start(&host);
    for _ in 0..3 {
        writers.wait_for(200);
        let leader = etcd.wait_for_leader();
        etcd.kill(leader);
        writers.wait_for(200);
        etcd.run(leader);
    }
    writers.check(&host, &etcd);
}

#[test]
fn outcomes_are_true_when_the_leader_stands_still() {
    let Some(etcd) = Etcd::start(3) else { return };
    let host = Arc::new(Host::open(&etcd.store("vkog"), &Settings::default()));
    let writers = Writers::start(&host);
    for _ in 0..3 {
        writers.wait_for(200);
        let leader = etcd.wait_for_leader();
        etcd.signal(leader, "STOP");
        writers.wait_for(200);
        etcd.signal(leader, "CONT");
    }
    writers.check(&host, &etcd);
}

#[test]
fn outcomes_are_true_when_responses_are_lost() {
    let Some(etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Arc::new(Host::open(&proxy.url(), &Settings::default()));
    let direct = Host::open(&etcd.store("vkog"), &Settings::default());
    let writers = Writers::start(&host);
    for _ in 0..3 {
        writers.wait_for(200);
        let before = direct.confirm();
        proxy.set(Mode::LoseResponses);
        // No response about it arrives.
        wait_until("a group takes effect", || direct.confirm() > before);
        proxy.set(Mode::Pass);
    }
    writers.wait_for(200);
    writers.check(&host, &etcd);
}

#[test]
fn a_write_that_took_effect_without_a_response_is_committed() {
    let Some(etcd) = Etcd::start(1) else { return };
    // After a conflict, each write of a group is a nested transaction.
    for nested in [false, true] {
        println!("nested: {nested}");
        let proxy = Proxy::start(&etcd);
        let host = Host::open(&proxy.url(), &Settings::default());
        let direct = Host::open(&etcd.store("vkog"), &Settings::default());
        let [new, old, changed] = ["new", "old", "changed"].map(|name| format!("{name}/{nested}"));
        let first = host.put(&old, 0, b"1");
        host.put(&changed, 0, b"1");
        if nested {
            let conflict = host.send(&[(&changed, 0, Some(b"2"))]);
            assert!(matches!(host.outcome(conflict), CommitOutcome::Conflict { .. }));
        }
        proxy.set(Mode::LoseResponses);
        let committed = host.send(&[(&new, 0, Some(b"2")), (&old, first, None)]);
        let conflict = host.send(&[(&changed, 0, Some(b"2"))]);
        direct.recorder.wait("the write takes effect", |reported| reported.entries.contains_key(&new).then_some(()));
        // Others replace it, and etcd forgets it, before its host learns of it.
        let revision = direct.entries()[&new].1;
        let replaced = direct.put(&new, revision, b"3");
        direct.put(&new, replaced, b"4");
        etcd.compact();
        host.wait_for_disconnection();
        assert!(!host.recorder.lock().outcomes.contains_key(&committed));
        proxy.set(Mode::Pass);
        assert_eq!(host.committed(committed), revision);
        match host.outcome(conflict) {
            CommitOutcome::Conflict { .. } => {}
            // Its group had no effect and left no traces.
            CommitOutcome::Dropped { .. } if !nested => {}
            other => panic!("expected a conflict, got {other:?}"),
        }
        host.wait_for_connection();
        host.agrees_with(&direct);
        let entries = host.entries();
        assert!(entries.contains_key(&changed) && entries.contains_key(&new) && !entries.contains_key(&old));
    }
}

#[test]
fn a_write_whose_traces_are_lost_is_unknown() {
    let Some(etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Host::open(&proxy.url(), &Settings::default());
    let direct = Host::open(&etcd.store("vkog"), &Settings::default());
    host.put("old", 0, b"1");
    let traces = format!("vkog/done/{}", host.store.status().id);
    let lease = etcd.lease(&["--prefix", &traces]);
    proxy.set(Mode::LoseResponses);
    let id = host.send(&[("new", 0, Some(b"2"))]);
    direct.recorder.wait("the write takes effect", |reported| reported.entries.contains_key("new").then_some(()));
    etcd.etcdctl(&["lease", "revoke", &lease]);
    host.wait_for_disconnection();
    proxy.set(Mode::Pass);
    assert!(matches!(host.outcome(id), CommitOutcome::Unknown { .. }));
    // The host has the change all the same.
    assert!(host.recorder.lock().entries.contains_key("new"));
    host.wait_for_connection();
    host.put("later", 0, b"1");
}

#[test]
fn a_write_that_never_arrived_is_sent_again_or_dropped() {
    let Some(etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Host::open(&proxy.url(), &Settings::default());
    // It waits for the fence.
    host.put("zero", 0, b"1");
    proxy.set(Mode::LoseAll);
    let first = host.send(&[("first", 0, Some(b"1"))]);
    host.wait_for_disconnection();
    let second = host.send(&[("second", 0, Some(b"1"))]);
    assert!(matches!(host.outcome(second), CommitOutcome::Dropped { .. }));
    assert!(!host.recorder.lock().outcomes.contains_key(&first), "it is not certain yet");
    proxy.set(Mode::Pass);
    let outcome = host.outcome(first);
    host.wait_for_connection();
    match outcome {
        CommitOutcome::Dropped { .. } => assert_eq!(host.entries().len(), 1),
        CommitOutcome::Committed { .. } => assert_eq!(host.entries().len(), 2),
        other => panic!("{other:?}"),
    }
    host.put("third", 0, b"1");
}

#[test]
fn changes_that_etcd_has_compacted_are_loaded_again() {
    let Some(etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Host::open(&proxy.url(), &Settings::default());
    let direct = Host::open(&etcd.store("vkog"), &Settings::default());
    let stays = direct.put("stays", 0, b"1");
    let gone = direct.put("gone", 0, b"1");
    host.wait_for(gone);
    proxy.set(Mode::LoseAll);
    direct.committed(direct.send(&[("stays", stays, Some(b"2")), ("gone", gone, None)]));
    direct.put("new", 0, b"1");
    etcd.compact();
    host.wait_for_disconnection();
    proxy.set(Mode::Pass);
    host.recorder.wait("all is loaded again", |reported| (reported.loads == 2).then_some(()));
    host.wait_for_connection();
    host.agrees_with(&direct);
    let revision = direct.put("later", 0, b"1");
    host.wait_for(revision);
    host.agrees_with(&direct);
}

#[test]
fn changes_of_one_revision_arrive_together_after_a_gap() {
    let Some(etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Host::open(&proxy.url(), &Settings::default());
    let direct = Host::open(&etcd.store("vkog"), &Settings::default());
    proxy.set(Mode::LoseAll);
    // etcd sends them in fragments of two MiB.
    let record = vec![b'x'; 450_000];
    for round in 0..10 {
        let keys: Vec<String> = (0..3).map(|index| format!("{round}/{index}")).collect();
        let changes: Vec<_> = keys.iter().map(|key| (key.as_str(), 0, Some(&record[..]))).collect();
        direct.committed(direct.send(&changes));
    }
    host.wait_for_disconnection();
    proxy.set(Mode::Pass);
    host.wait_for_connection();
    host.agrees_with(&direct);
    let reported = host.recorder.lock();
    let revisions: Vec<_> = reported.applied.iter().map(|applied| (applied.revision, applied.changes.len())).collect();
    assert_eq!((reported.loads, revisions.len()), (1, 10), "{revisions:?}");
    assert!(reported.applied.iter().all(|applied| applied.changes.len() == 3));
}

#[test]
fn a_load_that_is_interrupted_begins_again() {
    let Some(etcd) = Etcd::start(1) else { return };
    let direct = Host::open(&etcd.store("vkog"), &Settings::default());
    let ids: Vec<u64> = (0..3000).map(|index| direct.send(&[(&format!("k{index}"), 0, Some(b"x"))])).collect();
    for id in ids {
        direct.committed(id);
    }
    let proxy = Proxy::start(&etcd);
    let recorder = Arc::new(Recorder::default());
    recorder.lock().is_busy = true;
    let host = Host::begin_with(Arc::clone(&recorder), &proxy.url(), &Settings::default());
    recorder.wait("the first page arrives", |reported| (!reported.loading.is_empty()).then_some(()));
    proxy.set(Mode::LoseAll);
    host.wait_for_disconnection();
    recorder.report(|reported| reported.is_busy = false);
    proxy.set(Mode::Pass);
    recorder.wait("all is loaded", |reported| (reported.loads == 1).then_some(()));
    host.wait_for_connection();
    host.agrees_with(&direct);
}

#[test]
fn a_lost_lease_is_replaced_and_writes_continue() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Arc::new(Host::open(&etcd.store("vkog"), &Settings::default()));
    let writers = Writers::start(&host);
    writers.wait_for(1);
    let id = host.store.status().id;
    for _ in 0..3 {
        writers.wait_for(200);
        let lease = etcd.lease(&[&format!("vkog/hosts/{id}")]);
        etcd.etcdctl(&["lease", "revoke", &lease]);
        writers.wait_for(200);
    }
    wait_until("it leads again", || host.store.status().leads);
    assert_eq!(host.store.status().id, id);
    writers.check(&host, &etcd);
}

#[test]
fn a_cluster_without_a_leader_is_reported_as_such() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let last = format!("http://{}", etcd.addresses()[2]);
    etcd.kill(0);
    etcd.kill(1);
    let expected =
        format!("etcd cannot answer: {last} has no leader; check that most members of etcd run and reach each other");
    host.recorder.wait("the reason is reported", |reported| {
        let reason = reported.connection.clone()?.err()?;
        (reason == expected).then_some(())
    });
    etcd.run(0);
    host.wait_for_connection();
    host.put("a", 0, b"x");
}

#[test]
fn a_store_does_not_use_a_cluster_that_has_lost_its_data() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let revision = host.put("a", 0, b"x");
    etcd.kill(0);
    etcd.lose_data(0);
    etcd.run(0);
    let reason = "etcd has lost data or was restored from a backup; stop all servers of the store, make sure that etcd has its data, and \
                  start them";
    let lost = |reported: &mut Reported| reported.connection.clone()?.err()?.contains(reason).then_some(());
    host.recorder.wait("the host is not connected any more", lost);
    match host.outcome(host.send(&[("a", revision, Some(b"y"))])) {
        CommitOutcome::Dropped { message } => assert!(message.contains(reason), "{message}"),
        other => panic!("{other:?}"),
    }
    let restarted = Host::open(&etcd.store("vkog"), &Settings::default());
    restarted.put("a", 0, b"z");
}

#[test]
fn a_store_does_not_continue_with_another_history() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let proxy = Proxy::start(&etcd);
    let host = Host::open(&proxy.url(), &Settings::default());
    let revision = host.put("a", 0, b"x");
    proxy.set(Mode::LoseAll);
    host.wait_for_disconnection();
    etcd.kill(0);
    etcd.lose_data(0);
    etcd.run(0);
    let restarted = Host::open(&etcd.store("vkog"), &Settings::default());
    restarted.wait_for_connection();
    let mut other = 0;
    while other <= revision + 10 {
        other = restarted.put("b", other, b"y");
    }
    proxy.set(Mode::Pass);
    let reason = "etcd has lost data or was restored from a backup";
    let lost = |reported: &mut Reported| reported.connection.clone()?.err()?.contains(reason).then_some(());
    host.recorder.wait("the host knows", lost);
    assert!(!host.recorder.lock().entries.contains_key("b"));
    match host.outcome(host.send(&[("a", revision, Some(b"y"))])) {
        CommitOutcome::Dropped { message } => assert!(message.contains(reason), "{message}"),
        other => panic!("{other:?}"),
    }
}
