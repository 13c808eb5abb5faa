//! Clients see the limits of etcd, and a watch begins when its server has started: both differ from a store in files.

use std::fs;

use serde_json::{Value, json};
use vkog_tests::Setup;

use crate::cluster::Cluster;

#[test]
fn a_batch_of_126_keys_is_422_and_a_value_of_2_mib_is_413() {
    let Some(cluster) = Cluster::start(1, 1, |setup| setup) else { return };
    let host = cluster.host(0);
    let batch = |keys: usize| {
        let operations: Vec<_> =
            (0..keys).map(|key| json!({ "op": "post", "key": key.to_string(), "value": "v" })).collect();
        let body = Value::from(operations).to_string();
        host.path("POST", "/batch").header("Content-Type", "application/json").body(body).send()
    };
    batch(126).expect(422).says(
        "the batch names 126 keys, 125 are accepted; send several, or raise --max-txn-ops of etcd and max_txn_ops of [plugins.etcd]",
    );
    host.path("GET", "/keys?count").send().expect(200).says("0");
    let lines: String =
        (0..126).map(|key| json!({ "op": "post", "key": key.to_string(), "value": "v" }).to_string() + "\n").collect();
    let setup = Setup::new();
    fs::write(setup.folder().join("lines"), lines).expect("the folder is ours");
    let url = format!("http://{}", host.address());
    setup.run(["batch", "lines", "--url", &url]).expect(4);
    host.path("GET", "/keys?count").send().expect(200).says("0");
    setup.run(["batch", "lines", "--lines", "125", "--url", &url]).expect(0);
    host.path("GET", "/keys?count").send().expect(200).says("126");
    (0..126).for_each(|key| _ = host.delete(&key.to_string()).expect(200));
    batch(125).expect(200);
    host.post("large", vec![0; 2 << 20]).refused(413, "Refused: the write needs ");
    host.get("large").expect(404);
    host.post("large", vec![0; 3 << 18]).expect(200);
}

#[test]
fn a_watch_begins_when_the_server_has_started() {
    let Some(mut cluster) = Cluster::start(1, 1, |setup| setup) else { return };
    let revision = cluster.host(0).post("k", "v").expect(200).revision();
    cluster.kill(0);
    cluster.start_host(0);
    for since in [0, revision - 1] {
        cluster.host(0).path("GET", &format!("/watch?since={since}")).send().expect(410);
    }
    assert_eq!(cluster.host(0).get("k").expect(200).revision(), revision);
}
