//! `vkog check`, `repair`, `export` and `import` on a store that is not in use; both_engines/backup.rs has a store in use. A command that refuses changes nothing.
//!
//! Provoked with stores that a server wrote, with flipped bits and truncated parts, and with a store of the Go program.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rmpv::Value;
use serde_json::json;
use sha2::{Digest, Sha256};
use vkog_tests::{Exit, Setup, pattern, workspace};

/// The lines of an export by their keys, each without its revision, and the revisions.
fn export(setup: &Setup, store: &str) -> (BTreeMap<String, serde_json::Value>, BTreeMap<String, u64>) {
    let exit = setup.run(["export", "-f", store]).expect(0);
    let mut lines = BTreeMap::new();
    let mut revisions = BTreeMap::new();
    for line in exit.stdout.lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let fields = line.as_object_mut().expect("an object a line");
        let key = fields["key"].as_str().expect("a key").to_owned();
        let revision = fields.remove("revision").and_then(|it| it.as_u64()).expect("a revision");
        assert!(revisions.insert(key.clone(), revision).is_none(), "{key:?} comes twice");
        lines.insert(key, line);
    }
    (lines, revisions)
}

/// Returns every file of a folder except lock files.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("the folder can be read").map(|entry| entry.expect("an entry").path());
    entries
        .filter(|path| path.is_file() && path.extension().is_none_or(|extension| extension != "lock"))
        .map(|path| {
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read(&path).expect("a file"))
        })
        .collect()
}

/// Flips a bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("the file can be read");
    bytes[at] ^= 4;
    fs::write(path, bytes).expect("the file can be written");
}

/// Returns the only position of some bytes in a file.
#[track_caller]
fn find(path: &Path, wanted: &[u8]) -> usize {
    let bytes = fs::read(path).expect("the file can be read");
    let mut places = bytes.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted);
    let (at, _) = places.next().unwrap_or_else(|| panic!("no {} in {}", wanted.escape_ascii(), path.display()));
    assert!(places.next().is_none(), "{} comes twice in {}", wanted.escape_ascii(), path.display());
    at
}

/// Asserts that a command fails, says all of the words in one line, and changes nothing.
#[track_caller]
fn refused(setup: &Setup, arguments: &[&str], words: &[&str]) {
    let before = files(setup.folder());
    let exit = setup.run(arguments.iter().copied());
    assert!([1, 3, 4].map(Some).contains(&exit.status.code()), "{exit}");
    let line = exit.one_error();
    assert!(words.iter().all(|word| line.contains(word)) && line.contains("; "), "{words:?} in {exit}");
    assert_eq!(exit.stdout, "", "standard output of {exit}");
    assert!(files(setup.folder()) == before, "something was changed by {exit}");
}

/// Asserts that standard output contains all of the words.
#[track_caller]
fn says(exit: Exit, words: &[&str]) -> Exit {
    assert!(words.iter().all(|word| exit.stdout.contains(word)), "{words:?} in {exit}");
    exit
}

/// A value of 1,000 bytes that starts with its key, so that it can be found in a file.
fn value(key: &str) -> String {
    format!("{key}\n{}", "0123456789".repeat(100))
}

/// A store with a snapshot of 1,500 entries in several chunks, and a log of 20 entries more.
fn large() -> Setup {
    let setup = Setup::new();
    let line = |number| {
        let key = format!("snapshot-{number:04}");
        json!({ "key": key, "value": value(&key) }).to_string() + "\n"
    };
    let lines: String = (0..1500).map(line).collect();
    fs::write(setup.folder().join("entries"), lines).expect("it can be written");
    setup.run(["import", "-f", "store.vkog", "entries"]).expect(0);
    let server = setup.start();
    for number in 0..20 {
        let key = format!("log-{number:02}");
        server.put(&key, value(&key)).expect(200);
    }
    // Killed, so that its last writes stay in the log.
    drop(server);
    setup
}

fn go_small() -> Setup {
    let setup = Setup::new();
    fs::copy(workspace().join("tests/data/go-small.vkog"), setup.store_file()).expect("the store can be copied");
    setup
}

/// Runs check and export, which find the entry `k`.
fn check_and_export(setup: &Setup, store: &Path) {
    let store = store.display().to_string();
    says(setup.run(["check", &store]).expect(0), &["intact; 1 entry"]);
    says(setup.run(["export", "-f", &store]).expect(0), &["\"key\":\"k\""]);
}

#[cfg(target_os = "linux")]
#[test]
fn check_and_export_write_nothing_on_read_only_media() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    let setup = Setup::new();
    let folder = setup.folder().join("media");
    fs::create_dir(&folder).expect("a folder can be made");
    let mount = |arguments: &[&str]| {
        Command::new("mount").args(arguments).arg(&folder).output().is_ok_and(|output| output.status.success())
    };
    let is_mounted = mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"]);
    let store = folder.join("s.vkog");
    // Killed, so that its last write stays in the log.
    setup.clone().store(&store).start().put("k", "v").expect(200);
    fs::remove_file(folder.join("s.vkog.lock")).expect("it is ours");
    for path in fs::read_dir(&folder).expect("a folder").flatten().map(|file| file.path()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).expect("it is ours");
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o500)).expect("it is ours");
    let times = || fs::metadata(&folder).map(|it| (it.mtime_nsec(), it.ctime_nsec())).expect("a folder");
    let before = (files(&folder), times());
    check_and_export(&setup, &store);
    assert!((files(&folder), times()) == before, "something was changed");
    if is_mounted && mount(&["-o", "remount,ro"]) {
        check_and_export(&setup, &store);
    } else {
        eprintln!("skipped: this user may not mount");
    }
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap_or_default();
    let _ = Command::new("umount").arg("--lazy").arg(&folder).status();
}

#[test]
fn an_import_restores_an_export_with_new_revisions() {
    let setup = Setup::new();
    let server = setup.start();
    let typed = |key: &str, content_type: &str, value: &[u8]| {
        server.key("PUT", key).header("Content-Type", content_type).body(value).send().expect(200);
    };
    let every_byte: Vec<u8> = (0..=255).collect();
    typed("text", "text/plain; charset=utf-8", "a \"text\"\nof two lines, ☃\0".as_bytes());
    typed("image", "image/png", &every_byte);
    server.put("ünïcödé/🔑 \"\\", "v").expect(200);
    server.put("binary", &every_byte).expect(200);
    server.put("gone", "v").expect(200);
    server.delete("gone").expect(200);
    server.stop().expect(0);

    let (lines, revisions) = export(&setup, "store.vkog");
    assert_eq!(lines.len(), 4);
    assert_eq!(
        lines["text"],
        json!({
            "key": "text", "value": "a \"text\"\nof two lines, ☃\0", "content_type": "text/plain; charset=utf-8"
        })
    );
    assert_eq!(lines["image"]["content_type"], "image/png");
    assert!(lines["binary"]["value_base64"].is_string() && lines["binary"].get("value").is_none());
    assert!(lines["binary"].get("content_type").is_none(), "the default media type is left out");

    let exit = setup.run(["export", "-f", "store.vkog", "out.jsonl"]).expect(0);
    says(exit, &["4 entries", "out.jsonl"]);
    says(setup.run(["import", "-f", "copy.vkog", "out.jsonl"]).expect(0), &["4 keys", "4 of them new", "4 entries"]);
    let (copied, copied_revisions) = export(&setup, "copy.vkog");
    assert_eq!(copied, lines);
    // Into a store that has the keys: each is overwritten with a greater revision.
    says(setup.run(["import", "-f", "store.vkog", "out.jsonl"]).expect(0), &["4 keys", "0 of them new", "4 entries"]);
    let (again, later) = export(&setup, "store.vkog");
    assert_eq!(again, lines);
    let greatest = revisions.values().max().expect("there are some");
    assert!(later.values().all(|revision| revision > greatest), "{later:?} after {revisions:?}");

    let server = setup.clone().store(setup.folder().join("copy.vkog")).start();
    server.get("image").expect(200).is(&every_byte).has("Content-Type", "image/png");
    server.get("text").expect(200).has("Content-Type", "text/plain; charset=utf-8");
    server.get("ünïcödé/🔑 \"\\").expect(200).is("v");
    let greatest = copied_revisions.values().max().expect("there are some");
    assert!(server.put("new", "v").expect(200).revision() > *greatest, "a revision is given once");
}

#[test]
fn an_export_includes_details() {
    let setup = Setup::new();
    let line = r#"{"key":"k","value":"v","revision":9,"details_base64":"gaN0dGzEAQE="}"#;
    fs::write(setup.folder().join("in"), line).expect("it can be written");
    setup.run(["import", "-f", "store.vkog", "in"]).expect(0);
    let (lines, revisions) = export(&setup, "store.vkog");
    assert_eq!(lines["k"]["details_base64"], "gaN0dGzEAQE=");
    // The store assigns the revisions.
    assert_ne!(revisions["k"], 9);
}

#[test]
fn the_messagepack_export_is_what_the_go_program_writes() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("text", "plain").expect(200);
    server.put("binary", [0xff, 0xfe]).expect(200);
    server.stop().expect(0);
    setup.run(["export", "-f", "store.vkog", "--format", "msgpack", "out.msgpack"]).expect(0);
    let data = fs::read(setup.folder().join("out.msgpack")).expect("the export exists");
    let mut rest = data.as_slice();
    let map = rmpv::decode::read_value(&mut rest).expect("it is MessagePack");
    let kv = Value::Map(vec![("binary".into(), Value::Binary(vec![0xff, 0xfe])), ("text".into(), "plain".into())]);
    assert_eq!(map, Value::Map(vec![("KV".into(), kv), ("KVSize".into(), 17.into())]));
    assert!(rest.is_empty());
    says(setup.run(["import", "-f", "copy.vkog", "out.msgpack"]).expect(0), &["2 keys"]);
    assert_eq!(export(&setup, "copy.vkog").0, export(&setup, "store.vkog").0);
    says(setup.run(["check", "copy.vkog"]).expect(0), &["intact", "2 entries of 17 bytes"]);
}

#[test]
fn an_export_can_be_piped() {
    let setup = go_small();
    setup.run(["export", "-f", "store.vkog", "out.jsonl"]).expect(0);
    let input = fs::File::open(setup.folder().join("out.jsonl")).expect("the export exists");
    let output = setup.vkog().args(["import"]).env("VKOG_FILE", "copy.vkog").stdin(input).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(export(&setup, "copy.vkog").0, export(&setup, "store.vkog").0);
}

#[test]
fn a_store_of_the_go_program_is_checked_exported_and_imported() {
    let setup = go_small();
    let before = files(setup.folder());
    let exit = setup.run(["check", "store.vkog"]).expect(0);
    let exit = says(exit, &["intact", "515 entries of 187503 bytes", "Go program"]);
    assert_eq!(exit.stdout.lines().count(), 1, "lines of {exit}");
    says(setup.run(["repair", "store.vkog"]).expect(0), &["intact", "nothing was changed"]);
    for format in ["json", "msgpack"] {
        setup.run(["export", "-f", "store.vkog", "--format", format, format]).expect(0);
        setup.run(["import", "-f", &format!("copy-{format}.vkog"), format]).expect(0);
        assert_eq!(export(&setup, &format!("copy-{format}.vkog")).0, export(&setup, "store.vkog").0, "{format}");
    }
    assert_eq!(files(setup.folder())["store.vkog"], before["store.vkog"]);
    assert!(!setup.folder().join("store.vkog.log").exists(), "nothing was opened to be written");

    let sums = fs::read(workspace().join("tests/data/go-small.sha256.json")).expect("the sums are there");
    let sums: BTreeMap<String, String> = serde_json::from_slice(&sums).expect("the sums are JSON");
    let server = setup.clone().store(setup.folder().join("copy-json.vkog")).start();
    for (key, sum) in sums {
        let value = server.get(&key).expect(200).body;
        let found: String = Sha256::digest(&value).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, sum, "the value of {key:?}");
    }
}

#[test]
fn a_store_in_use_is_refused_with_the_process_id() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "v").expect(200);
    fs::write(setup.folder().join("in"), r#"{"key":"a","value":"1"}"#).expect("it can be written");
    let pid = format!("process {}", server.own_id());
    for arguments in [&["repair", "store.vkog"][..], &["import", "-f", "store.vkog", "in"]] {
        refused(&setup, arguments, &["store.vkog", &pid]);
    }
    server.get("a").expect(404);
}

#[test]
fn a_wrong_line_is_reported_by_its_number_and_nothing_is_imported() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("a", "before").expect(200);
    server.stop().expect(0);
    let good = r#"{"key":"a","value":"after"}"#;
    for (bad, fact) in [
        ("{\"key\":\"b\"", "EOF"),
        (r#"{"key":"b"}"#, "value"),
        (r#"{"key":"","value":"1"}"#, "empty"),
        (&format!(r#"{{"key":"{}","value":"1"}}"#, "k".repeat(1025)), "1025 bytes"),
    ] {
        fs::write(setup.folder().join("in"), format!("{good}\n{good}\n{bad}\n{good}\n")).expect("it can be written");
        refused(&setup, &["import", "-f", "store.vkog", "in"], &["in: line 3: ", fact]);
        refused(&setup, &["import", "-f", "new.vkog", "in"], &["in: line 3: ", fact]);
    }
    fs::write(setup.folder().join("in"), b"\x82\xa2KV\x81\xa1a\xa11").expect("it can be written");
    refused(&setup, &["import", "-f", "store.vkog", "in"], &["in: byte 9: "]);
    refused(&setup, &["import", "-f", "store.vkog", "store.vkog"], &["vkog export"]);
    setup.start().get("a").expect(200).is("before");
}

#[test]
fn an_export_never_overwrites_a_file() {
    let setup = go_small();
    fs::copy(setup.store_file(), setup.folder().join("other.vkog")).expect("it can be copied");
    refused(&setup, &["export", "-f", "store.vkog", "other.vkog"], &["other.vkog", "the file exists"]);
    refused(&setup, &["export", "-f", "store.vkog", "store.vkog"], &["store.vkog", "the file exists"]);
}

#[test]
fn a_missing_file_or_one_that_is_not_a_store_is_refused() {
    let setup = Setup::new();
    for command in ["check", "repair"] {
        refused(&setup, &[command, "absent.vkog"], &["absent.vkog", "does not exist"]);
    }
    refused(&setup, &["export"], &["local.vkog", "does not exist"]);
    assert!(!setup.folder().join("absent.vkog.lock").exists(), "no file is created for a missing store");
    let photo = setup.folder().join("photo.png");
    fs::write(photo, pattern(5000)).expect("it can be written");
    for command in ["check", "repair"] {
        refused(&setup, &[command, "photo.png"], &["photo.png"]);
    }
    setup.run(["check"]).expect(2);
}

#[test]
fn a_torn_tail_is_reported_as_normal() {
    let setup = large();
    let log = setup.folder().join("store.vkog.log");
    let bytes = fs::read(&log).expect("there is a log");
    // After the records there is preallocated space.
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("there are records");
    fs::write(&log, &bytes[..end - 100]).expect("it can be cut");
    let before = files(setup.folder());
    let exit = says(setup.run(["check", "store.vkog"]).expect(0), &["intact; 1519 entries", "19 records", "crash"]);
    assert_eq!(exit.stdout.lines().count(), 2, "lines of {exit}");
    says(setup.run(["repair", "store.vkog"]).expect(0), &["intact"]);
    assert!(files(setup.folder()) == before, "something was changed");
    assert_eq!(export(&setup, "store.vkog").0.len(), 1519);
    assert!(files(setup.folder()) == before, "something was changed");
}

#[test]
fn a_flipped_bit_of_a_snapshot_costs_one_chunk_and_is_reported() {
    let setup = large();
    let file = setup.store_file();
    let len = fs::metadata(&file).expect("the store exists").len();
    assert!(len > 1 << 20, "{len} bytes");
    let (lines, revisions) = export(&setup, "store.vkog");
    let at = find(&file, b"snapshot-0700\n");
    flip(&file, at);
    let damaged = fs::read(&file).expect("it can be read");
    refused(&setup, &["check", "store.vkog"], &["store.vkog: the chunk", "at byte ", "vkog repair store.vkog"]);
    refused(&setup, &["export", "-f", "store.vkog"], &["store.vkog", "at byte "]);
    fs::write(setup.folder().join("in"), r#"{"key":"a","value":"1"}"#).expect("it can be written");
    refused(&setup, &["import", "-f", "store.vkog", "in"], &["store.vkog", "at byte "]);

    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    let exit =
        says(exit, &["intact chunks", "20 intact records", "lost ", "store.vkog.damaged", "store.vkog.log.damaged"]);
    let (left, left_revisions) = export(&setup, "store.vkog");
    let lost = lines.len() - left.len();
    assert!((1..400).contains(&lost), "{lost} entries are lost of {}", lines.len());
    assert!(exit.stdout.contains(&format!("with {lost} entries")), "{lost} entries lost, says {exit}");
    assert!(!left.contains_key("snapshot-0700"));
    assert!(left.iter().all(|(key, line)| lines[key] == *line), "an entry is not as it was");
    assert!(left_revisions.iter().all(|(key, revision)| revisions[key] == *revision), "a revision is not as it was");
    assert!((0..20).all(|number| left.contains_key(&format!("log-{number:02}"))));
    assert_eq!(fs::read(setup.folder().join("store.vkog.damaged")).expect("it was durable"), damaged);
    says(setup.run(["check", "store.vkog"]).expect(0), &["intact"]);

    let server = setup.start();
    server.get("log-19").expect(200).is(value("log-19"));
    let greatest = revisions.values().max().expect("there are some");
    assert!(server.put("new", "v").expect(200).revision() > *greatest, "a revision is given once");
    server.stop().expect(0);

    // Again: the files saved by the first repair remain.
    flip(&file, find(&file, b"log-19\n"));
    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    says(exit, &["store.vkog.damaged.2", "store.vkog.log.damaged.2"]);
    assert_eq!(fs::read(setup.folder().join("store.vkog.damaged")).expect("it was durable"), damaged);
}

#[test]
fn a_damaged_head_costs_no_entry() {
    let setup = large();
    let (lines, _) = export(&setup, "store.vkog");
    flip(&setup.store_file(), 30);
    refused(&setup, &["check", "store.vkog"], &["store.vkog", "head"]);
    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    says(exit, &["1500 entries", "nothing lost", "is damaged"]);
    assert_eq!(export(&setup, "store.vkog").0, lines);
    setup.start().get("snapshot-0000").expect(200).is(value("snapshot-0000"));
}

#[test]
fn a_truncated_snapshot_yields_its_readable_part() {
    let setup = large();
    let (lines, _) = export(&setup, "store.vkog");
    let bytes = fs::read(setup.store_file()).expect("it can be read");
    fs::write(setup.store_file(), &bytes[..bytes.len() / 2]).expect("it can be cut");
    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    says(exit, &["without a valid checksum", "20 intact records"]);
    let (left, _) = export(&setup, "store.vkog");
    assert!((600..900).contains(&left.len()), "{} entries are left", left.len());
    assert!(left.iter().all(|(key, line)| lines[key] == *line), "an entry is not as it was");
    setup.start().get("log-00").expect(200);
}

#[test]
fn a_log_damaged_in_the_middle_loses_only_the_damaged_record() {
    let setup = large();
    let log = setup.folder().join("store.vkog.log");
    let (mut lines, revisions) = export(&setup, "store.vkog");
    flip(&log, find(&log, b"log-10\n"));
    refused(&setup, &["check", "store.vkog"], &["store.vkog.log: ", "damaged record", "at byte ", "vkog repair"]);
    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    says(exit, &["store.vkog.log: 19 intact records", "lost ", "store.vkog.log.damaged", "1519 entries"]);
    lines.remove("log-10");
    let (left, left_revisions) = export(&setup, "store.vkog");
    assert_eq!(left, lines);
    assert!(left_revisions.iter().all(|(key, revision)| revisions[key] == *revision), "a revision is not as it was");
    let server = setup.start();
    server.get("log-10").expect(404);
    server.get("log-11").expect(200).is(value("log-11"));
}

#[test]
fn a_removal_after_the_damage_is_applied() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("first", value("first")).expect(200);
    server.put("removed", value("removed")).expect(200);
    server.put("damaged", value("damaged")).expect(200);
    server.delete("removed").expect(200);
    server.put("last", value("last")).expect(200);
    server.put("first", "new").expect(200);
    server.put("last", value("last")).expect(200);
    drop(server);
    let log = setup.folder().join("store.vkog.log");
    flip(&log, find(&log, b"damaged\n"));
    says(setup.run(["repair", "store.vkog"]).expect(0), &["6 intact records", "repaired; 2 entries"]);
    let server = setup.start();
    server.get("first").expect(200).is("new");
    server.get("last").expect(200).is(value("last"));
    server.get("removed").expect(404);
}

#[test]
fn a_snapshot_of_an_older_copy_is_merged_with_the_log() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("old", "1").expect(200);
    server.stop().expect(0);
    let copy = fs::read(setup.store_file()).expect("it can be read");
    for (key, ends) in [("between", true), ("new", false)] {
        let server = setup.start();
        server.put(key, "1").expect(200);
        if ends {
            server.stop().expect(0);
        }
    }
    fs::write(setup.store_file(), copy).expect("it can be written");
    refused(&setup, &["check", "store.vkog"], &["store.vkog.log", "generation", "vkog repair"]);
    let exit = setup.run(["repair", "store.vkog"]).expect(0);
    says(exit, &["the changes between them are missing", "repaired; 2 entries"]);
    let server = setup.start();
    server.get("old").expect(200);
    server.get("new").expect(200);
    server.get("between").expect(404);
}

#[test]
fn a_log_of_another_store_is_set_aside() {
    let (setup, other) = (Setup::new(), Setup::new());
    for (setup, key) in [(&setup, "mine"), (&other, "theirs")] {
        let server = setup.start();
        server.put(key, "1").expect(200);
        server.stop().expect(0);
    }
    let server = other.start();
    server.put("later", "1").expect(200);
    drop(server);
    let theirs = fs::read(other.folder().join("store.vkog.log")).expect("it can be read");
    fs::write(setup.folder().join("store.vkog.log"), &theirs).expect("it can be written");
    refused(&setup, &["check", "store.vkog"], &["store.vkog.log", "another store"]);
    says(setup.run(["repair", "store.vkog"]).expect(0), &["another store", "repaired; 1 entry"]);
    assert_eq!(fs::read(setup.folder().join("store.vkog.log.damaged")).expect("it was durable"), theirs);
    let server = setup.start();
    server.get("mine").expect(200);
    server.get("later").expect(404);
}

#[test]
fn a_truncated_store_of_the_go_program_yields_its_readable_part() {
    let setup = go_small();
    let (lines, _) = export(&setup, "store.vkog");
    let bytes = fs::read(setup.store_file()).expect("it can be read");
    fs::write(setup.store_file(), &bytes[..100_000]).expect("it can be cut");
    refused(&setup, &["check", "store.vkog"], &["store.vkog", "at byte "]);
    says(setup.run(["repair", "store.vkog"]).expect(0), &["no checksums", "lost ", "store.vkog.damaged"]);
    let (left, _) = export(&setup, "store.vkog");
    assert!(left.len() > 100, "{} entries are left", left.len());
    assert!(left.iter().all(|(key, line)| lines[key] == *line), "an entry is not as it was");
}
