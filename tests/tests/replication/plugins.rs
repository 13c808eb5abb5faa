//! Plugins over several hosts: one winner of a race to create, one expiry of each entry, a limit that holds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;

use vkog_tests::{Event, Random, Setup, Watching, amount, bytes, ttl, with_background};

use crate::client::{Client, Reply};
use crate::cluster::Cluster;

const HOSTS: usize = 3;

fn status(sent: Reply) -> u16 {
    match sent {
        Reply::Answered(status, ..) => status,
        other => panic!("no response: {other:?}"),
    }
}

#[test]
fn one_of_many_racing_creates_wins() {
    const RACERS: usize = 64;
    let Some(cluster) = Cluster::start(1, HOSTS, |setup| setup) else { return };
    for round in 0..amount(20, 200) {
        let post = |racer: usize| {
            let url = format!("http://{}/k/race/{round}", cluster.host(racer % HOSTS).address());
            status(Client::new().send("POST", &url, &[], Some(&racer.to_string())))
        };
        let statuses: Vec<u16> = thread::scope(|scope| {
            let post = &post;
            let racers: Vec<_> = (0..RACERS).map(|racer| scope.spawn(move || post(racer))).collect();
            racers.into_iter().map(|racer| racer.join().expect("it does not panic")).collect()
        });
        let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
        assert_eq!((count(200), count(409)), (1, RACERS - 1), "round {round}: {statuses:?}");
    }
    println!("{} rounds of {RACERS} racing creates, each with one winner", amount(20, 200));
}

/// A metric of a host.
fn metric(cluster: &Cluster, host: usize, name: &str) -> u64 {
    let text = cluster.host(host).path("GET", "/metrics").send().expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}")) as u64
}

/// Reads events until this number of entries were written.
fn read_puts(watch: &mut Watching, count: usize, seen: &mut Vec<Event>) {
    let puts = |seen: &[Event]| seen.iter().filter(|event| event.name == "put").count();
    let mut open = count - puts(seen);
    while open > 0 {
        seen.extend(watch.events(open));
        open = count - puts(seen);
    }
    // All changes of a revision come together, and only the last of them has its id.
    while seen.last().is_some_and(|last| last.id != last.data["revision"].as_u64()) {
        seen.extend(watch.event());
    }
}

#[test]
fn each_entry_expires_once_also_when_the_leader_is_killed() {
    // The next leader is elected when the lease of the one that was killed has expired.
    let set_up = |setup: Setup| setup.load(ttl()).config("[plugins.etcd]\nlease_ttl = 3\n");
    let Some(mut cluster) = Cluster::start(1, HOSTS, set_up) else { return };
    let (count, kills) = (amount(300, 10_000), amount(3, 20));
    let (http, mut random) = (Client::new(), Random::new(1));
    let mut watched = 1;
    let mut watch = cluster.host(watched).watch("prefix=t/", "");
    let (mut events, mut killed_hosts, mut killed_leaders) = (Vec::new(), 0, 0);
    for entry in 0..count {
        let url = format!("http://{}/k/t/{entry}", cluster.host(random.below(HOSTS)).address());
        let lives = (1 + entry % 4).to_string();
        assert_eq!(status(http.send("POST", &url, &[("Vkog-TTL", &lives)], Some("value"))), 200);
        if entry % (count / kills) == 0 {
            let leader = (0..HOSTS).find(|host| metric(&cluster, *host, "vkog_store_leader") == 1);
            killed_hosts += 1;
            killed_leaders += usize::from(leader.is_some());
            let killed = leader.unwrap_or_else(|| random.below(HOSTS));
            if killed == watched {
                read_puts(&mut watch, entry + 1, &mut events);
                watched = (watched + 1) % HOSTS;
                let last = events.last().and_then(|last| last.id).expect("an entry was written");
                watch = cluster.host(watched).watch("prefix=t/", &format!("Last-Event-ID: {last}\r\n"));
            }
            cluster.kill(killed);
            cluster.start_host(killed);
        }
    }
    events.extend(watch.events(2 * count - events.len()));
    let expired: Vec<_> = events.iter().filter(|event| event.name == "delete").collect();
    assert!(expired.iter().all(|event| event.data["reason"] == "expired"), "{expired:?}");
    assert_eq!((expired.len(), expired.iter().map(|event| event.key()).collect::<BTreeSet<_>>().len()), (count, count));
    assert!(killed_leaders > 0, "a leader was killed");
    println!(
        "{count} entries expired once each, while {killed_hosts} hosts were killed, {killed_leaders} of them as leaders"
    );
}

#[test]
fn the_limit_of_bytes_holds_over_all_hosts() {
    const LIMIT: u64 = 200_000;
    const WRITERS: u64 = 16;
    const VALUE: u64 = 1_000;
    let config = format!("[plugins.bytes]\nmax_size = {LIMIT}\n");
    let Some(cluster) = Cluster::start(1, HOSTS, |setup| setup.load(bytes()).config(&config)) else { return };
    // Each host may let writes pass before it knows of those of the others.
    let allowed = LIMIT + WRITERS * (VALUE + 100);
    let highest = AtomicU64::new(0);
    let watch_size = || {
        let total = (0..HOSTS).map(|host| metric(&cluster, host, "vkog_entry_bytes")).max().unwrap_or_default();
        highest.fetch_max(total, SeqCst);
        assert!(total <= allowed, "{total} is more than the writes in flight too much");
    };
    let (value, full) = ("x".repeat(VALUE as usize), AtomicU64::new(0));
    let write = |writer: u64| {
        let (http, mut random) = (Client::new(), Random::new(writer));
        for turn in 0..amount(60, 2_000) {
            let host = cluster.host(random.below(HOSTS));
            let url = format!("http://{}/k/b/{writer}/{}", host.address(), turn % 40);
            let (method, body) = if random.below(4) > 0 { ("POST", Some(value.as_str())) } else { ("DELETE", None) };
            let got = status(http.send(method, &url, &[], body));
            full.fetch_add(u64::from([413, 507].contains(&got)), SeqCst);
            assert!([200, 404, 409, 413, 507].contains(&got), "{method} got {got}");
        }
    };
    with_background([watch_size], || {
        thread::scope(|scope| {
            let write = &write;
            let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
            writers.into_iter().for_each(|writer| writer.join().expect("it does not panic"));
        });
    });
    let total = metric(&cluster, 0, "vkog_entry_bytes");
    let (highest, full) = (highest.into_inner(), full.into_inner());
    println!(
        "limit {LIMIT}, allowed {allowed}: at most {highest}, in the end {total}; {full} writes were refused for lack of space"
    );
    assert!(total <= allowed, "{total} is more than the writes in flight too much");
    assert!(total > LIMIT / 2, "{total}: it was nearly full");
    for host in 0..HOSTS {
        // The refusal of what cannot fit says what is free.
        let reply = cluster.host(host).post("b/large", "x".repeat(LIMIT as usize + 1)).expect(413);
        reply.says(&format!(", {} of {LIMIT} are free", LIMIT.saturating_sub(total)));
    }
}
