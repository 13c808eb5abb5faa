//! Writes, their outcomes, and the changes that every host gets, on a cluster that works. Groups are provoked by sending many
//! writes at once.

use std::collections::{BTreeMap, BTreeSet};

use vkog_etcd::Settings;
use vkog_plugin_api::backend::CommitOutcome;
use vkog_tests::Etcd;

use crate::recorder::Host;

#[test]
fn outcomes_in_a_group_are_individual() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let old: Vec<u64> = (0..100).map(|index| host.send(&[(&format!("old{index}"), 0, Some(b"old"))])).collect();
    let old: Vec<u64> = old.into_iter().map(|id| host.committed(id)).collect();
    let keys: Vec<String> = (0..300)
        .map(|index| if index % 3 == 0 { format!("old{}", index / 3) } else { format!("new{index}") })
        .collect();
    let ids: Vec<u64> = keys.iter().map(|key| host.send(&[(key, 0, Some(b"new"))])).collect();
    let mut groups = BTreeMap::<u64, [usize; 2]>::new();
    for (key, id) in keys.iter().zip(ids) {
        let (revision, is_conflict) = match host.outcome(id) {
            CommitOutcome::Conflict { revision } if key.starts_with("old") => (revision, 1),
            CommitOutcome::Committed { revision } if key.starts_with("new") => (revision, 0),
            other => panic!("{key}: {other:?}"),
        };
        groups.entry(revision).or_default()[is_conflict] += 1;
    }
    assert!(groups.values().any(|[committed, conflicts]| *committed > 9 && *conflicts > 4), "no group: {groups:?}");
    let entries = host.entries();
    assert_eq!(entries.len(), 300);
    for (index, revision) in old.into_iter().enumerate() {
        assert_eq!(entries[&format!("old{index}")], (b"old".to_vec(), revision));
    }
}

#[test]
fn two_writes_of_one_key_are_never_in_one_group() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    // The writes between them make sure that both wait at the same time.
    for round in 0..20 {
        let key = format!("twice{round}");
        let others: Vec<u64> =
            (0..20).map(|index| host.send(&[(&format!("{round}/{index}"), 0, Some(b"x"))])).collect();
        let ids = [host.send(&[(&key, 0, Some(b"one"))]), host.send(&[(&key, 0, Some(b"two"))])];
        let outcomes = ids.map(|id| host.outcome(id));
        let committed = outcomes.iter().filter(|outcome| matches!(outcome, CommitOutcome::Committed { .. })).count();
        let conflicts = outcomes.iter().filter(|outcome| matches!(outcome, CommitOutcome::Conflict { .. })).count();
        assert_eq!((committed, conflicts), (1, 1), "{outcomes:?}");
        for id in others {
            host.committed(id);
        }
    }
}

#[test]
fn a_write_of_several_keys_is_atomic() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let a = host.put("a", 0, b"1");
    let conflict = host.send(&[("a", a, Some(b"2")), ("b", 7, Some(b"2"))]);
    assert!(matches!(host.outcome(conflict), CommitOutcome::Conflict { .. }));
    assert_eq!(host.entries(), BTreeMap::from([("a".to_owned(), (b"1".to_vec(), a))]));
    let both = host.committed(host.send(&[("a", a, None), ("b", 0, Some(b"2"))]));
    assert_eq!(host.entries(), BTreeMap::from([("b".to_owned(), (b"2".to_vec(), both))]));
    let last = host.recorder.lock().applied.last().cloned().expect("it was applied");
    assert_eq!((last.revision, last.own, last.changes.len()), (both, true, 2));
}

#[test]
fn two_hosts_get_the_changes_of_both_in_one_order() {
    let Some(etcd) = Etcd::start(3) else { return };
    let hosts = [0, 1].map(|_| Host::open(&etcd.store("vkog"), &Settings::default()));
    let ids: Vec<Vec<u64>> = hosts
        .iter()
        .enumerate()
        .map(|(number, host)| {
            (0..400).map(|index| host.send(&[(&format!("{number}/{index}"), 0, Some(b"x"))])).collect()
        })
        .collect();
    let committed: Vec<BTreeSet<u64>> =
        hosts.iter().zip(ids).map(|(host, ids)| ids.into_iter().map(|id| host.committed(id)).collect()).collect();
    let entries = hosts.each_ref().map(Host::entries);
    assert_eq!(entries[0].len(), 800);
    assert_eq!(entries[0], entries[1]);
    let applied = hosts.each_ref().map(|host| host.recorder.lock().applied.clone());
    assert_eq!(applied[0].len(), applied[1].len());
    for (left, right) in applied[0].iter().zip(&applied[1]) {
        assert_eq!((left.revision, &left.changes), (right.revision, &right.changes));
        assert_eq!(
            (left.own, right.own),
            (committed[0].contains(&left.revision), committed[1].contains(&left.revision))
        );
    }
}

#[test]
fn a_host_that_opens_later_loads_all_entries() {
    let Some(etcd) = Etcd::start(1) else { return };
    let first = Host::open(&etcd.store("vkog"), &Settings::default());
    // More than one page.
    let record = vec![b'x'; 3000];
    let ids: Vec<u64> = (0..5000).map(|index| first.send(&[(&format!("k{index}"), 0, Some(&record))])).collect();
    for id in ids {
        first.committed(id);
    }
    let second = Host::open(&etcd.store("vkog"), &Settings::default());
    second.agrees_with(&first);
    let revision = second.put("later", 0, b"y");
    first.wait_for(revision);
    second.agrees_with(&first);
    assert_eq!(second.recorder.lock().loads, 1);
}

#[test]
fn an_expired_entry_is_removed_as_expired_on_every_host() {
    let Some(etcd) = Etcd::start(1) else { return };
    let hosts = [0, 1].map(|_| Host::open(&etcd.store("vkog"), &Settings::default()));
    let [a, b] = ["a", "b"].map(|key| hosts[0].put(key, 0, b"x"));
    let expired = hosts[0].committed(hosts[0].send_expired(&[("a", a, None)], true));
    let deleted = hosts[0].committed(hosts[0].send(&[("b", b, None)]));
    for host in &hosts {
        host.wait_for(deleted);
        for (revision, key, is_expired) in [(expired, "a", true), (deleted, "b", false)] {
            let applied = host.recorder.lock().applied.iter().find(|applied| applied.revision == revision).cloned();
            assert_eq!(applied.expect("it was applied").changes, [(key.to_owned(), None, is_expired)]);
        }
    }
}

#[test]
fn a_confirmation_is_no_older_than_a_write_of_another_host() {
    let Some(etcd) = Etcd::start(3) else { return };
    let hosts = [0, 1].map(|_| Host::open(&etcd.store("vkog"), &Settings::default()));
    let mut revision = 0;
    for round in 0..100_u8 {
        revision = hosts[0].put("k", revision, &[round]);
        assert!(hosts[1].confirm() >= revision);
        assert_eq!(hosts[1].recorder.lock().entries["k"], (vec![round], revision));
    }
}

#[test]
fn a_confirmation_is_no_older_than_a_write_although_somebody_deletes_last() {
    let Some(etcd) = Etcd::start(1) else { return };
    let hosts = [0, 1].map(|_| Host::open(&etcd.store("vkog"), &Settings::default()));
    let first = hosts[0].put("k", 0, b"1");
    hosts[1].wait_for(first);
    etcd.etcdctl(&["del", "vkog/last"]);
    let deleted = hosts[1].confirm();
    assert!(deleted > first, "{deleted}");
    let second = hosts[0].put("k", first, b"2");
    assert!(hosts[1].confirm() >= second);
}
