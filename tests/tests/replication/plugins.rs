//! Plugins over several hosts: one winner of a race to create, one expiry of each entry, a limit that holds.

use std::collections::BTreeSet;
use std::thread;

use vkog_tests::{Random, amount, bytes, ttl};

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
}

#[test]
fn each_entry_expires_once_also_when_the_leader_is_killed() {
    let Some(mut cluster) = Cluster::start(1, HOSTS, |setup| setup.load(ttl())) else { return };
    let count = amount(300, 10_000);
    let (http, mut random) = (Client::new(), Random::new(1));
    let watched = 1;
    let mut watch = cluster.host(watched).watch("prefix=t/", "");
    for entry in 0..count {
        let url = format!("http://{}/k/t/{entry}", cluster.host(random.below(HOSTS)).address());
        let lives = (1 + entry % 4).to_string();
        assert_eq!(status(http.send("POST", &url, &[("Vkog-TTL", &lives)], Some("value"))), 200);
    }
    // One of these leads, perhaps.
    for host in [0, 2] {
        cluster.kill(host);
        cluster.run(host);
    }
    let events = watch.events(2 * count);
    let expired: Vec<_> = events.iter().filter(|event| event.name == "delete").collect();
    assert!(expired.iter().all(|event| event.data["reason"] == "expired"), "{expired:?}");
    assert_eq!((expired.len(), expired.iter().map(|event| event.key()).collect::<BTreeSet<_>>().len()), (count, count));
}

/// A metric of a host.
fn metric(cluster: &Cluster, host: usize, name: &str) -> u64 {
    let text = cluster.host(host).path("GET", "/metrics").send().expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}")) as u64
}

#[test]
fn the_limit_of_bytes_holds_over_all_hosts() {
    const LIMIT: u64 = 200_000;
    const WRITERS: u64 = 16;
    const VALUE: u64 = 1_000;
    let config = format!("[plugins.bytes]\nmax_size = {LIMIT}\n");
    let Some(cluster) = Cluster::start(1, HOSTS, |setup| setup.load(bytes()).config(&config)) else { return };
    let value = "x".repeat(VALUE as usize);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (cluster, value) = (&cluster, &value);
            scope.spawn(move || {
                let (http, mut random) = (Client::new(), Random::new(writer));
                for turn in 0..amount(60, 2_000) {
                    let host = cluster.host(random.below(HOSTS));
                    let url = format!("http://{}/k/b/{writer}/{}", host.address(), turn % 40);
                    let (method, body) =
                        if random.below(4) > 0 { ("POST", Some(value.as_str())) } else { ("DELETE", None) };
                    let got = status(http.send(method, &url, &[], body));
                    assert!([200, 404, 409, 413, 507].contains(&got), "{method} got {got}");
                }
            });
        }
    });
    let total = metric(&cluster, 0, "vkog_entry_bytes");
    // Each host may have let writes pass before it knew of those of the others.
    assert!(total <= LIMIT + WRITERS * (VALUE + 100), "{total} is more than the writes in flight too much");
    assert!(total > LIMIT / 2, "{total}: it was nearly full");
    for host in 0..HOSTS {
        // The refusal of what cannot fit says what is free.
        let reply = cluster.host(host).post("b/large", "x".repeat(LIMIT as usize + 1)).expect(413);
        reply.says(&format!(", {} of {LIMIT} are free", LIMIT.saturating_sub(total)));
    }
}
