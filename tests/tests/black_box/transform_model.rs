//! A store whose values are compressed and encrypted is the same as a map, for every sequence of operations.
//!
//! Provoked with random operations that are compared with a map, across reloads that rotate the key, change the level and the
//! order, and across kills and restarts with the other HTTP engine.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use vkog_tests::{Reply, Server, Setup, administered, amount, artefacts, only_ours};

/// The number of keys. Few, so that most operations find an entry.
const KEYS: u64 = 40;
/// The number of operations between two reloads, and between two restarts.
const RELOAD_EVERY: usize = 500;
const RESTART_EVERY: usize = 1900;

/// The same random numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn key(&mut self) -> String {
        format!("{}/{}", ["a", "b"][self.below(2) as usize], self.below(KEYS / 2))
    }

    /// A text, of which every third is long enough to be compressed.
    fn value(&mut self) -> String {
        let length = [20, 200, 3000][self.below(3) as usize];
        let word = format!("{:x} ", self.below(1 << 30));
        word.repeat(1 + self.below(length) as usize / word.len())
    }
}

type Model = BTreeMap<String, (String, u64)>;

fn configure(setup: &Setup, round: u64) {
    // The new key is the first, and those of all rounds before follow.
    let line = |number: u64| format!("k{number} {}\n", format!("{number:02x}").repeat(32));
    let keys = format!("keys-{round}");
    let path = setup.folder().join(&keys);
    fs::write(&path, (0..=round).rev().map(line).collect::<String>()).expect("it can be written");
    only_ours(&path);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    let order = ["", "order = [\"encrypt\"]\n", "order = [\"compress\"]\n"][round as usize % 3];
    let level = 1 + round % 5;
    setup.write_config(&administered(&format!(
        "[plugins]\n{order}[plugins.compress]\nlevel = {level}\nminimum_size = 64\n[plugins.encrypt]\nkey_file = \"{keys}\"\n"
    )));
}

fn batch(server: &Server, operations: &[Value]) -> Reply {
    let request = server.path("POST", "/batch").header("Content-Type", "application/json");
    request.body(json!(operations).to_string()).send()
}

/// Runs one random operation, and compares its reply with the model.
fn operation(server: &Server, model: &mut Model, random: &mut Random) {
    let key = random.key();
    let found = model.get(&key).cloned();
    match random.below(10) {
        0..3 => {
            let value = random.value();
            let method = if random.below(2) == 0 { "PUT" } else { "POST" };
            let revision = server.key(method, &key).body(&value).send().expect(200).revision();
            model.insert(key, (value, revision));
        }
        3 => {
            let reply = server.delete(&key);
            reply.expect(if model.remove(&key).is_some() { 200 } else { 404 });
        }
        4 => {
            let reply = server.path("PATCH", &format!("/k/{key}")).send();
            match model.get_mut(&key) {
                Some((_, revision)) => *revision = reply.expect(200).revision(),
                None => drop(reply.expect(404)),
            }
        }
        5 => {
            let (value, tag) = (random.value(), found.as_ref().map_or(1, |(_, revision)| *revision));
            let put = server.key("PUT", &key).header("If-Match", format!("\"{tag}\"")).body(&value).send();
            match found {
                Some(_) => drop(model.insert(key, (value, put.expect(200).revision()))),
                None => drop(put.expect(412)),
            }
        }
        6 => {
            let reply = server.key("GET", &key).header("Range", "bytes=1-5").send();
            match found {
                Some((value, _)) => drop(reply.expect(206).is(&value[1..6])),
                None => drop(reply.expect(404)),
            }
        }
        7 => several(server, model, random),
        8 if random.below(10) == 0 => listing(server, model),
        _ => {
            let reply = server.get(&key);
            match found {
                Some((value, revision)) => assert_eq!(reply.expect(200).is(value).revision(), revision),
                None => drop(reply.expect(404)),
            }
        }
    }
}

/// Runs a batch of writes and reads.
fn several(server: &Server, model: &mut Model, random: &mut Random) {
    let mut operations = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..1 + random.below(6) {
        let key = random.key();
        if random.below(2) == 0 {
            let value = random.value();
            operations.push(json!({ "op": "put", "key": key, "value": value }));
            expected.push(Value::Null);
            model.insert(key, (value, 0));
        } else {
            operations.push(json!({ "op": "get", "key": key }));
            expected.push(model.get(&key).map_or(json!(404), |(value, _)| json!(value)));
        }
    }
    let reply = batch(server, &operations).expect(200);
    let results: Vec<Value> = serde_json::from_slice(&reply.body).expect("it is JSON");
    for ((operation, result), expected) in operations.iter().zip(&results).zip(&expected) {
        match expected {
            Value::Null => {
                let key = operation["key"].as_str().expect("a key");
                model.get_mut(key).expect("it was written").1 = result["revision"].as_u64().expect("a revision");
            }
            Value::Number(status) => assert_eq!(&result["status"], &json!(status), "{reply}"),
            value => assert_eq!(&result["value"], value, "{reply}"),
        }
    }
}

/// Compares all keys, sizes and revisions with the model.
fn listing(server: &Server, model: &Model) {
    let reply = server.path("GET", "/keys").send().expect(200);
    let listed: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let listed = listed["keys"].as_array().expect("a list").iter();
    let listed: Vec<_> = listed.map(|entry| json!([entry["key"], entry["size"], entry["revision"]])).collect();
    let expected: Vec<_> = model.iter().map(|(key, (value, revision))| json!([key, value.len(), revision])).collect();
    assert_eq!(listed, expected);
}

#[test]
fn a_compressed_and_encrypted_store_is_the_same_as_a_map() {
    let plugins = artefacts();
    let setup = Setup::new().load(plugins.library("vkog-compress")).load(plugins.library("vkog-encrypt"));
    let setup = setup.args(["--fsync", "never"]).config("");
    let (mut model, mut random, mut round) = (Model::new(), Random(18), 0);
    configure(&setup, round);
    let config = fs::read_to_string(setup.folder().join("vkog.toml")).expect("it was written");
    let mut server = setup.clone().config(config).start();
    for step in 1..=amount(10_000, 100_000) {
        if step % RELOAD_EVERY == 0 {
            round += 1;
            configure(&setup, round);
            server.reload().expect(200);
            listing(&server, &model);
        }
        if step % RESTART_EVERY == 0 {
            // Killed: what was acknowledged is in the log.
            drop(server);
            let config = fs::read_to_string(setup.folder().join("vkog.toml")).expect("it was written");
            let engine = ["tiny", "hyper"][step / RESTART_EVERY % 2];
            server = setup.clone().config(config).env("VKOG_HTTP", engine).start();
            listing(&server, &model);
        }
        operation(&server, &mut model, &mut random);
    }
    for (key, (value, _)) in &model {
        server.get(key).expect(200).is(value);
    }
    server.stop().expect(0);
}
