//! Updates of busy entries: no increment by routes over several hosts is lost, and none is rejected because of another host. A PATCH
//! beside many writers has a certain outcome.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use vkog_tests::{amount, artefacts};

use crate::client::{Client, Reply};
use crate::cluster::Cluster;

const HOSTS: usize = 3;

#[test]
fn increments_through_three_hosts_add_up_and_none_is_rejected() {
    const CLIENTS: usize = 24;
    let load = |setup: vkog_tests::Setup| setup.load(artefacts().library("vkog-counter"));
    let Some(cluster) = Cluster::start(1, HOSTS, load) else { return };
    // The hosts have conflict, with which a PUT creates nothing.
    let created = cluster.host(0).post("hits", "0").expect(200).revision();
    assert!(created > 0);
    let each = amount(125, 1_000);
    let increment = |client: usize| {
        let (http, host) = (Client::new(), cluster.host(client % HOSTS));
        let url = format!("http://{}/x/counter/hits", host.address());
        let mut statuses = BTreeMap::<String, usize>::new();
        for _ in 0..each {
            let status = match http.send("POST", &url, &[], None) {
                Reply::Answered(200, ..) => "200".to_owned(),
                Reply::Answered(status, _, body) => format!("{status} {}", String::from_utf8_lossy(&body)),
                other => format!("{other:?}"),
            };
            *statuses.entry(status).or_default() += 1;
        }
        statuses
    };
    let statuses: Vec<_> = thread::scope(|scope| {
        let increment = &increment;
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || increment(client))).collect();
        clients.into_iter().map(|client| client.join().expect("it does not panic")).collect()
    });
    let all = BTreeMap::from([("200".to_owned(), each)]);
    assert!(statuses.iter().all(|of_client| *of_client == all), "{statuses:?}");
    for host in 0..HOSTS {
        cluster.host(host).get("hits").expect(200).is((CLIENTS * each).to_string());
    }
}

#[test]
fn a_patch_of_a_busy_entry_has_a_certain_outcome_before_its_deadline() {
    let load = |setup: vkog_tests::Setup| setup.env("VKOG_STORE_TIMEOUT", "4s");
    let Some(cluster) = Cluster::start(1, 1, load) else { return };
    let host = cluster.host(0);
    host.post("busy", "0").expect(200);
    let is_over = AtomicBool::new(false);
    let write = || {
        let (http, url) = (Client::new(), format!("http://{}/k/busy", host.address()));
        while !is_over.load(SeqCst) {
            http.send("PUT", &url, &[], Some("value"));
        }
    };
    let reply = thread::scope(|scope| {
        (0..4).for_each(|_| _ = scope.spawn(write));
        let reply = host.key("PATCH", "busy").send();
        is_over.store(true, SeqCst);
        reply
    });
    assert!([200, 409].contains(&reply.status), "{} {}", reply.status, reply.text());
}
