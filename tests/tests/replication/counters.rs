//! Routes that update entries over several hosts: no increment is lost, and none is rejected because of another host.

use std::collections::BTreeMap;
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
