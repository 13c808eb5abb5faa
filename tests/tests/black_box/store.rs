//! The store file: a file of the Go program opens unchanged, and a clean stop writes one MessagePack map that any
//! MessagePack library reads.
//!
//! Provoked with a store of 515 keys that the Go program wrote, whose values have known SHA-256 hashes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rmpv::Value;
use sha2::{Digest, Sha256};
use vkog_tests::{Setup, bytes, conflict, pattern, workspace};

const GO_SMALL_BYTES: u64 = 187_503;

/// A copy of the Go program's store, and the SHA-256 of each of its values.
fn go_small() -> (Setup, BTreeMap<String, String>) {
    let data = workspace().join("tests/data");
    let setup = Setup::new();
    std::fs::copy(data.join("go-small.vkog"), setup.store_file()).expect("the store can be copied");
    let sums = std::fs::read(data.join("go-small.sha256.json")).expect("the sums are beside the store");
    (setup, serde_json::from_slice(&sums).expect("the sums are JSON"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a store file as a map.
fn read(file: &Path) -> BTreeMap<String, Value> {
    let data = std::fs::read(file).expect("the store exists");
    let mut rest = data.as_slice();
    let value = rmpv::decode::read_value(&mut rest).expect("the store is MessagePack");
    assert!(rest.is_empty(), "{} bytes follow the map", rest.len());
    map(value)
}

fn map(value: Value) -> BTreeMap<String, Value> {
    let Value::Map(pairs) = value else { panic!("not a map: {value}") };
    let text = |key: Value| key.as_str().unwrap_or_else(|| panic!("a key that is no text: {key}")).to_owned();
    let count = pairs.len();
    let map: BTreeMap<_, _> = pairs.into_iter().map(|(key, value)| (text(key), value)).collect();
    assert_eq!(map.len(), count, "a key comes twice");
    map
}

#[test]
fn a_store_of_the_go_program_opens_and_every_value_is_right() {
    let (setup, sums) = go_small();
    assert_eq!(sums.len(), 515);
    let setup = setup.load(bytes()).load(conflict());
    let server = setup.start();
    for (key, sum) in &sums {
        // Keys too long for a request are checked in the file.
        if key.len() <= 1024 {
            assert_eq!(sha256(&server.get(key).expect(200).body), *sum, "the value of {key:?}");
        }
    }
    // The plugin's count equals that of the Go program.
    let limit = 128 << 20;
    server
        .put("plain", vec![b'x'; limit])
        .refused(413, "Max size exceeded")
        .says(&format!(", {} of {limit} are free", limit as u64 - GO_SMALL_BYTES));
    // Without a change, the file is not rewritten.
    server.stop().expect(0);
    let again = setup.start();
    for (key, sum) in sums.iter().filter(|(key, _)| key.len() <= 1024) {
        assert_eq!(sha256(&again.get(key).expect(200).body), *sum, "the value of {key:?}");
    }
}

#[test]
fn a_clean_stop_writes_one_map_with_text_as_str_and_bytes_as_bin() {
    let (setup, mut sums) = go_small();
    let setup = setup.load(bytes()).load(conflict());
    let server = setup.start();
    let text = "text, ünïcödé 🔑";
    server.post("new text", text).expect(200);
    server.post("new bytes", pattern(100_000)).expect(200);
    server.put("plain", "changed").expect(200);
    server.delete("sp ace").expect(200);
    server.stop().expect(0);
    sums.remove("sp ace");
    sums.insert("new text".to_owned(), sha256(text.as_bytes()));
    sums.insert("new bytes".to_owned(), sha256(&pattern(100_000)));
    sums.insert("plain".to_owned(), sha256(b"changed"));

    let mut file = read(&setup.store_file());
    let entries = map(file.remove("KV").expect("the map has KV"));
    let mut size = 0;
    let mut found = BTreeMap::new();
    for (key, value) in entries {
        let bytes = match &value {
            Value::String(text) if text.is_str() => text.as_bytes(),
            Value::Binary(bytes) if std::str::from_utf8(bytes).is_err() => bytes,
            _ => panic!("the value of {key:?} has the wrong type: {value}"),
        };
        size += (key.len() + bytes.len()) as u64;
        found.insert(key, sha256(bytes));
    }
    assert_eq!(found, sums);
    assert_eq!(file["KVSize"].as_u64(), Some(size), "KVSize");
}

#[test]
fn pythons_msgpack_reads_the_file() {
    const SCRIPT: &str = "
import hashlib, json, sys, msgpack
data = open(sys.argv[1], 'rb').read()
store = msgpack.unpackb(data, raw=False, strict_map_key=True)
values = {}
for key, value in store['KV'].items():
    data = value.encode() if isinstance(value, str) else value
    values[key] = [type(value).__name__, hashlib.sha256(data).hexdigest()]
print(json.dumps({'size': store['KVSize'], 'values': values}))
";
    let importable = Command::new("python3").args(["-c", "import msgpack"]).output();
    if !importable.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: python3 with the package msgpack is not here");
        return;
    }
    let (setup, mut sums) = go_small();
    let server = setup.start();
    server.post("new text", "text").expect(200);
    server.post("new bytes", pattern(1000)).expect(200);
    server.stop().expect(0);
    sums.insert("new text".to_owned(), sha256(b"text"));
    sums.insert("new bytes".to_owned(), sha256(&pattern(1000)));
    let entries = map(read(&setup.store_file()).remove("KV").expect("the map has KV"));
    let output = Command::new("python3").args(["-c", SCRIPT]).arg(setup.store_file()).output().expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    let values = read["values"].as_object().expect("values is a map");
    assert_eq!(values.len(), sums.len());
    for (key, sum) in sums {
        let kind = if matches!(entries[&key], Value::String(_)) { "str" } else { "bytes" };
        assert_eq!(values[&key], serde_json::json!([kind, sum]), "{key:?}");
    }
    assert_eq!((values["new text"][0].as_str(), values["new bytes"][0].as_str()), (Some("str"), Some("bytes")));
    assert_eq!(read["size"].as_u64(), Some(GO_SMALL_BYTES + 12 + 9 + 1000));
}

#[test]
fn an_acknowledged_write_survives_a_clean_stop() {
    let setup = Setup::new().load(bytes()).load(conflict());
    let server = setup.start();
    for number in 0..100 {
        server.post(&format!("k/{number}"), pattern(number + 1)).expect(200);
    }
    server.key("PUT", "k/0").header("Content-Type", "text/plain").body("typed").send().expect(200);
    server.delete("k/1").expect(200);
    let revision = server.get("k/0").expect(200).revision();
    server.stop().expect(0);

    let server = setup.start();
    let typed = server.get("k/0").expect(200).is("typed").has("Content-Type", "text/plain");
    assert_eq!(typed.revision(), revision, "the revision of {typed}");
    server.get("k/1").expect(404);
    for number in 2..100 {
        server.get(&format!("k/{number}")).expect(200).is(pattern(number + 1));
    }
}

#[test]
fn a_revision_never_repeats_even_after_a_restart() {
    let setup = Setup::new();
    let mut last = 0;
    for _ in 0..3 {
        let server = setup.start();
        let mut watching = server.watch("", "");
        let revision = server.put("k", "v").expect(200).revision();
        assert!(revision > last, "revision {revision} after {last}");
        // The greatest revision belongs to a removal, so no stored entry has it.
        server.delete("k").expect(200);
        last = watching.events(2)[1].id.expect("a removal has a revision");
        assert!(last > revision, "the removal has revision {last} after {revision}");
        drop(watching);
        server.stop().expect(0);
    }
}

#[test]
fn a_file_that_is_not_a_store_stops_the_start_and_does_not_change() {
    let go = std::fs::read(go_small().0.store_file()).expect("it was just copied");
    let no_stores: [(&str, Vec<u8>); 5] = [
        ("text", b"this is no store\n".to_vec()),
        ("cut off", go[..go.len() / 2].to_vec()),
        ("cut off at the end", go[..go.len() - 1].to_vec()),
        ("a MessagePack list", vec![0x93, 1, 2, 3]),
        ("nothing", Vec::new()),
    ];
    for (what, data) in no_stores {
        let setup = Setup::new();
        std::fs::write(setup.store_file(), &data).expect("a file can be written");
        let exit = setup.fail().expect(1);
        let told = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect::<Vec<_>>();
        assert!(told.len() == 1 && told[0].contains("store.vkog"), "{what}: one line that names the file in {exit}");
        assert_eq!(exit.stdout, "", "{what}: standard output of {exit}");
        assert_eq!(std::fs::read(setup.store_file()).expect("it is still there"), data, "{what} was changed");
    }
}

#[test]
fn a_missing_store_is_empty_and_is_created() {
    let setup = Setup::new();
    let server = setup.start();
    server.get("k").expect(404);
    server.put("k", "v").expect(200);
    server.stop().expect(0);
    let entries = map(read(&setup.store_file()).remove("KV").expect("the map has KV"));
    assert_eq!(entries, BTreeMap::from([("k".to_owned(), Value::from("v"))]));
    // No temporary file remains beside it.
    let left: Vec<_> = std::fs::read_dir(setup.folder())
        .expect("the folder exists")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.iter().all(|name| name.to_string_lossy().starts_with("store.vkog")), "{left:?}");
}
