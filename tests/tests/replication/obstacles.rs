//! Obstacles in etcd that no restart of a host removes: a full database, records of other programs, no etcd at the start. Hosts say what
//! is wrong and what to do, serve what they can, and heal when the obstacle is gone.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vkog_tests::{Etcd, Reply, Running, Server, Setup, conflict, etcd_plugin, free_port, wait_until};

const FULL: &str = "the database of etcd is full; compact and defragment it or raise its quota, then disarm its alarm";

fn setup(etcd: &Etcd) -> Setup {
    Setup::new().load(etcd_plugin()).shared_store(etcd.store("vkog"))
}

fn ready(server: &Server) -> Reply {
    server.path("GET", "/readyz").send()
}

#[test]
fn a_full_database_rejects_writes_alone_until_it_has_space() {
    let Some(etcd) = Etcd::start_with(1, &["--quota-backend-bytes", "16777216"]) else { return };
    let setup = setup(&etcd);
    let (writer, reader) = (setup.start(), setup.start());
    writer.put("small", "value").expect(200);
    let large = vec![b'x'; 1_000_000];
    let refused = (0..100).map(|_| writer.put("large", &large)).find(|reply| reply.status != 200).expect("it fills");
    refused.refused(507, &format!("Refused: {FULL}"));
    // Also a host that has not written, and one that starts.
    let newcomer = setup.start();
    for server in [&writer, &reader, &newcomer] {
        wait_until("the host knows it", || ready(server).status == 503);
        ready(server).refused(503, &format!("Not ready: {FULL}"));
        server.get("small").expect(200).is("value");
        server.path("GET", "/keys?count").send().expect(200).says("2");
        server.path("GET", "/metrics").send().expect(200).says("\nvkog_writable 0\n");
    }
    reader.delete("small").refused(507, &format!("Refused: {FULL}"));
    etcd.compact();
    etcd.etcdctl(&["alarm", "disarm"]);
    // There are no writes meanwhile: a load balancer sends nothing to a host that is not ready.
    for server in [&writer, &reader, &newcomer] {
        server.wait_until_ready();
        server.put("small", "value").expect(200);
    }
}

#[test]
fn a_record_of_another_program_blocks_its_key_alone_and_names_the_way_out() {
    let Some(etcd) = Etcd::start(1) else { return };
    etcd.etcdctl(&["put", "vkog/k/early", "text"]);
    let server = setup(&etcd).load(conflict()).start();
    server.post("entry", "value").expect(200);
    let mut watch = server.watch("", "");
    etcd.etcdctl(&["put", "vkog/k/entry", "text"]);
    let events = watch.events(1);
    assert_eq!((events[0].name.as_str(), events[0].key()), ("delete", "entry"), "{events:?}");
    for key in ["early", "entry"] {
        let fact =
            format!("\"vkog/k/{key}\" in etcd has a record that no VKOG server of this version wrote; delete it");
        server.logs(&["unusable key: ", &fact.replace('"', "\\\"")]);
        let message = format!("Unusable key: {fact}");
        server.get(key).refused(500, &message);
        server.key("HEAD", key).send().expect(500);
        server.key("GET", key).header("Vkog-Consistency", "local").send().refused(500, &message);
        server.post(key, "value").refused(500, &message);
        server.put(key, "value").refused(500, &message);
        server.key("PATCH", key).send().refused(500, &message);
        server.delete(key).refused(500, &message);
        for operations in [
            json!([{ "op": "get", "key": "other" }, { "op": "get", "key": key }]),
            json!([{ "op": "post", "key": "other", "value": "1" }, { "op": "get", "key": key }]),
        ] {
            let batch = server.path("POST", "/batch").header("Content-Type", "application/json");
            batch.body(operations.to_string()).send().expect(500).says("Unusable key: ").says(&format!("vkog/k/{key}"));
        }
    }
    ready(&server).expect(200);
    server.get("other").expect(404);
    server.post("other", "value").expect(200);
    let listed: Value = serde_json::from_str(&server.path("GET", "/keys").send().expect(200).text()).expect("JSON");
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1), "{listed}");
    for key in ["early", "entry"] {
        etcd.etcdctl(&["del", &format!("vkog/k/{key}")]);
        server.get(key).expect(404);
        server.post(key, "value").expect(200);
    }
    server.stop().expect(0);
}

/// Starts a server that finds no store, and waits until it says why. Returns it with its address.
#[track_caller]
fn waiting(setup: &Setup, store: &str, reason: &str) -> (Running, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let mut command: Command = setup.vkog();
    command.args(["--store", store, "--listen", &address, "--plugin-dir"]).arg(setup.plugin_folder());
    let process = Running::start(&mut command);
    let what = format!("waiting for {store}: {reason}");
    assert!(process.stderr.wait_for(|log| log.contains(&what)), "no {what:?} in:\n{}", process.stderr.text());
    let health = setup.run(["health", "--url", &format!("http://{address}")]).expect(4);
    assert!(health.stdout.contains(&format!("not ready: {what}")), "{health}");
    (process, address)
}

#[test]
fn a_host_that_waits_for_etcd_at_its_start_says_why() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let setup = setup(&etcd);
    let absent = format!("127.0.0.1:{}", free_port());
    waiting(
        &setup,
        &format!("etcd://{absent}/vkog"),
        &format!("no connection to http://{absent}: Connection refused (os error 111)"),
    );
    etcd.kill(1);
    etcd.kill(2);
    let alone = etcd.addresses()[0].clone();
    let (process, address) =
        waiting(&setup, &format!("etcd://{alone}/vkog"), &format!("http://{alone} did not answer"));
    etcd.run(1);
    assert!(process.stdout.wait_for(|text| text.contains("listening on")), "{}", process.stderr.text());
    setup.run(["health", "--url", &format!("http://{address}")]).expect(0);
    drop(process);
    for command in [&["user", "add", "root:secret"][..], &["user", "grant-role", "root", "root"], &["auth", "enable"]] {
        etcd.etcdctl(command);
    }
    let reason =
        "etcd refuses this server: etcdserver: user name is empty; correct user and password_file of [plugins.etcd]";
    waiting(&setup, &etcd.store("vkog"), reason);
}

#[test]
fn an_import_continues_after_an_outage_of_etcd() {
    const ENTRIES: usize = 20_000;
    let Some(etcd) = Etcd::start(1) else { return };
    let setup = setup(&etcd);
    let lines: String = (0..ENTRIES).map(|number| format!("{{\"key\":\"key{number}\",\"value\":\"v\"}}\n")).collect();
    fs::write(setup.folder().join("entries"), lines).expect("the folder is ours");
    let mut import: Command = setup.vkog();
    import.args(["import", "entries", "--store", &etcd.store("vkog"), "--plugin-dir"]).arg(setup.plugin_folder());
    let import = Running::start(&mut import);
    let imported = || etcd.etcdctl(&["get", "vkog/k/", "--prefix", "--limit=1", "-w", "fields"]);
    wait_until("some entries are imported", || !imported().contains("\"Count\" : 0"));
    etcd.signal(0, "STOP");
    // More than one timeout of the store, after which writes fail.
    std::thread::sleep(Duration::from_secs(5));
    etcd.signal(0, "CONT");
    let exit = import.wait().expect(0);
    assert!(exit.stdout.contains(&format!("imported {ENTRIES} entries")), "{exit}");
    assert!(imported().contains(&format!("\"Count\" : {ENTRIES}")), "{}", imported());
}
