//! A watcher may continue at any host with the id of its last event: no change is missing, and none comes twice.

use std::collections::BTreeMap;
use std::thread;

use vkog_tests::{Event, Random, amount};

use crate::client::{Client, Reply};
use crate::cluster::Cluster;

const HOSTS: usize = 3;
const WRITERS: usize = 8;
const WATCHERS: usize = 4;
const KEYS: usize = 100;

#[test]
fn a_watcher_that_moves_between_hosts_sees_each_change_once() {
    let Some(cluster) = Cluster::start(3, HOSTS, |setup| setup) else { return };
    let (changes, moves) = (amount(4_000, 100_000), amount(20, 100));
    // All hosts were ready before, so it is in the history of each.
    let written = cluster.host(0).post("first", "value").expect(200);
    let first = written.header("ETag").and_then(|tag| tag.trim_matches('"').parse().ok()).expect("it has a revision");
    // The writers, each with keys of its own, know what they have written.
    let write = |writer: usize| {
        let (http, mut random) = (Client::new(), Random::new(writer as u64));
        let mut written = BTreeMap::<String, Vec<u64>>::new();
        for _ in 0..changes / WRITERS {
            let key = format!("w/{writer}/{}", random.below(KEYS));
            let url = format!("http://{}/k/{key}", cluster.host(random.below(HOSTS)).address());
            let last = written.entry(key).or_default();
            let method = if last.is_empty() { "POST" } else { "PUT" };
            match http.send(method, &url, &[], Some("value")) {
                Reply::Answered(200, Some(tag), _) => {
                    last.push(tag.trim_matches('"').parse().expect("an ETag is a revision"));
                }
                other => panic!("{method} {url}: {other:?}"),
            }
        }
        written
    };
    // A watcher moves between hosts meanwhile.
    let watch = |watcher: usize| {
        let mut seen = BTreeMap::<String, Vec<u64>>::new();
        let (mut since, mut left, mut random) = (first, changes / WRITERS * WRITERS, Random::new(watcher as u64));
        for turn in 0..=moves {
            let share = if turn == moves { left } else { random.below(2 * changes / moves).min(left) };
            let mut watch =
                cluster.host(random.below(HOSTS)).watch("prefix=w/", &format!("Last-Event-ID: {since}\r\n"));
            let mut events = watch.events(share);
            // All changes of a revision come together, and only the last of them has its id.
            let revision = |event: &Event| event.data["revision"].as_u64();
            while events.last().is_some_and(|last| last.id != revision(last)) {
                events.extend(watch.event());
            }
            left -= events.len();
            since = events.last().and_then(|last| last.id).unwrap_or(since);
            for event in events {
                let revision = revision(&event).expect("a change has a revision");
                seen.entry(event.key().to_owned()).or_default().push(revision);
            }
        }
        seen
    };
    let (written, seen) = thread::scope(|scope| {
        let (write, watch) = (&write, &watch);
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        let watchers: Vec<_> = (0..WATCHERS).map(|watcher| scope.spawn(move || watch(watcher))).collect();
        let written: BTreeMap<String, Vec<u64>> =
            writers.into_iter().flat_map(|writer| writer.join().expect("it does not panic")).collect();
        let seen: Vec<_> = watchers.into_iter().map(|watcher| watcher.join().expect("it does not panic")).collect();
        (written, seen)
    });
    for seen in seen {
        assert_eq!(seen, written);
    }
    println!("{WATCHERS} watchers, each of which moved {moves} times, saw each of {changes} changes once");
}
