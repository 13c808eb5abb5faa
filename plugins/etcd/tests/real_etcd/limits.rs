//! etcd's limits: operations, bytes, and the size of the database.

use vkog_etcd::Settings;
use vkog_plugin_api::backend::CommitOutcome;
use vkog_tests::{Etcd, wait_until};

use crate::recorder::Host;

fn refused(host: &Host, id: u64) -> (u16, String) {
    match host.outcome(id) {
        CommitOutcome::Refused { status, message } => (status, message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn batch(host: &Host, count: usize, prefix: &str) -> u64 {
    let keys: Vec<String> = (0..count).map(|index| format!("{prefix}{index}")).collect();
    let changes: Vec<_> = keys.iter().map(|key| (key.as_str(), 0, Some(&b"x"[..]))).collect();
    host.send(&changes)
}

#[test]
fn a_batch_of_125_keys_is_committed_and_one_of_126_is_refused() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    host.committed(batch(&host, 125, "a"));
    let (status, message) = refused(&host, batch(&host, 126, "b"));
    let expected = "the batch names 126 keys, 125 are accepted; send several, or raise --max-txn-ops of etcd and max_txn_ops of \
                    [plugins.etcd]";
    assert_eq!((status, message.as_str()), (422, expected));
    assert_eq!(host.entries().len(), 125);
}

#[test]
fn a_record_up_to_the_limit_is_committed_and_a_larger_one_is_refused() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let mut record = vec![b'x'; 1_572_864];
    let (status, message) = refused(&host, host.send(&[("a", 0, Some(&record))]));
    assert_eq!(status, 413, "{message}");
    let settings = "raise --max-request-bytes of etcd and max_request_bytes of [plugins.etcd]";
    assert!(message.contains(settings), "{message}");
    // The message says how much is too much.
    let numbers: Vec<usize> =
        message.split(' ').filter_map(|word| word.trim_matches([',', ';']).parse().ok()).collect();
    record.truncate(record.len() - (numbers[0] - numbers[1]));
    host.put("a", 0, &record);
    record.push(b'x');
    assert_eq!(refused(&host, host.send(&[("b", 0, Some(&record))])).0, 413);
    assert_eq!(host.entries()["a"].0.len(), record.len() - 1);
}

#[test]
fn large_records_are_loaded_and_watched() {
    let Some(etcd) = Etcd::start(1) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    // More than one response may have.
    let record = vec![b'x'; 1_500_000];
    let ids: Vec<u64> = (0..50).map(|index| host.send(&[(&format!("k{index}"), 0, Some(&record))])).collect();
    for id in ids {
        host.committed(id);
    }
    let later = Host::open(&etcd.store("vkog"), &Settings::default());
    assert_eq!(host.entries().len(), 50);
    host.agrees_with(&later);
}

#[test]
fn groups_that_etcd_refuses_are_sent_write_by_write() {
    let arguments = ["--max-txn-ops=20", "--max-request-bytes=20000"];
    let Some(etcd) = Etcd::start_with(1, &arguments) else { return };
    // The settings are those of an etcd with larger limits.
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let record = vec![b'x'; 2000];
    let ids: Vec<u64> = (0..200).map(|index| host.send(&[(&format!("k{index}"), 0, Some(&record))])).collect();
    let (few, many) = (batch(&host, 10, "few"), batch(&host, 50, "many"));
    let large = host.send(&[("large", 0, Some(&[b'x'; 50_000][..]))]);
    for id in ids {
        host.committed(id);
    }
    host.committed(few);
    // What etcd accepts is not known.
    let expected = "the batch names 50 keys, more than etcd accepts; send several, or raise --max-txn-ops of etcd: it is lower than \
                    max_txn_ops of [plugins.etcd]";
    assert_eq!(refused(&host, many), (422, expected.to_owned()));
    let (status, message) = refused(&host, large);
    let expected = "bytes, more than etcd accepts; raise --max-request-bytes of etcd: it is lower than max_request_bytes of \
                    [plugins.etcd]";
    assert!(status == 413 && message.ends_with(expected), "{status}: {message}");
    assert_eq!(host.entries().len(), 210);
}

#[test]
fn a_full_database_refuses_writes_until_it_has_space_again() {
    let quota = 16 << 20;
    let Some(etcd) = Etcd::start_with(1, &[&format!("--quota-backend-bytes={quota}")]) else { return };
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let record = vec![b'x'; 1_000_000];
    let mut revision = 0;
    let (status, message) = loop {
        let id = host.send(&[("k", revision, Some(&record))]);
        match host.outcome(id) {
            CommitOutcome::Committed { revision: new } => revision = new,
            other => {
                break refused(&host, {
                    drop(other);
                    id
                });
            }
        }
    };
    assert_eq!((status, message), (507, host.store.status().full));
    // Reads continue. A host can still be opened, but it cannot write.
    let (found, last) = host.entries()["k"].clone();
    assert!(found == record && last == revision, "{last} is not {revision}");
    assert!(host.store.status().connected);
    let other = Host::open(&etcd.store("vkog"), &Settings::default());
    wait_until("a host that has not written knows that it cannot", || !other.store.status().full.is_empty());
    assert_eq!(refused(&other, other.send(&[("a", 0, Some(b"x"))])).0, 507);
    etcd.compact();
    assert!(!host.store.status().full.is_empty());
    etcd.etcdctl(&["alarm", "disarm"]);
    wait_until("the hosts know that there is space", || {
        [&host, &other].iter().all(|host| host.store.status().full.is_empty())
    });
    wait_until("writes succeed again", || {
        let outcomes = [&host, &other].map(|host| host.outcome(host.send(&[("none", 7, None)])));
        outcomes.iter().all(|outcome| matches!(outcome, CommitOutcome::Conflict { .. }))
    });
    host.put("k", revision, b"small");
}
