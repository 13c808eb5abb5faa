//! A file of the Go program that has entries which no request can write, or that was cut off: the server does not start with it,
//! `vkog check` says why, `vkog repair` makes a store of the rest, and nothing is lost silently.
//!
//! Provoked with files that are made byte by byte.

use std::fs;

use vkog_tests::{Exit, Setup, workspace};

/// A file as the Go program writes it, with these keys and values.
fn go_file(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
    let text = |bytes: &[u8]| {
        let mut text = vec![0xda];
        text.extend((bytes.len() as u16).to_be_bytes());
        text.extend(bytes);
        text
    };
    let mut file = b"\x82\xa2KV\xde".to_vec();
    file.extend((entries.len() as u16).to_be_bytes());
    for (key, value) in entries {
        file.extend(text(key));
        file.extend(text(value));
    }
    file.extend(b"\xa6KVSize\x05");
    file
}

fn written(entries: &[(&[u8], &[u8])]) -> Setup {
    let setup = Setup::new();
    fs::write(setup.store_file(), go_file(entries)).expect("it can be written");
    setup
}

#[track_caller]
fn failed(exit: Exit, words: &[&str]) -> Exit {
    let exit = exit.expect(1);
    let line = exit.one_error();
    assert!(words.iter().all(|word| line.contains(word)), "{words:?} in {exit}");
    exit
}

#[track_caller]
fn says(exit: Exit, words: &[&str]) -> Exit {
    assert!(words.iter().all(|word| exit.stdout.contains(word)), "{words:?} in {exit}");
    exit
}

#[test]
fn entries_that_no_request_can_write_are_named_left_out_and_kept_beside_the_store() {
    let long = "k".repeat(1025);
    let setup = written(&[
        (b"good", b"1"),
        (b"", b"no key"),
        (long.as_bytes(), b"long key"),
        (b"\xff\xfe", b"no text"),
        (b"empty", b""),
        (b"better", b"\xff2"),
    ]);
    let before = fs::read(setup.store_file()).expect("it can be read");
    failed(setup.fail(), &["store.vkog", "4 entries that no request can write", "the key is empty", "vkog repair"]);
    let exit = failed(setup.run(["check", "store.vkog"]), &["4 entries", "at byte 18", "vkog repair store.vkog"]);
    let reasons = ["byte 18: the key is empty", "the key has 1025 bytes", r#"the key is not UTF-8: "\xff\xfe""#];
    says(exit, &[&reasons[..], &["the value is empty: \"empty\""]].concat());
    failed(setup.run(["export", "-f", "store.vkog"]), &["4 entries"]);
    assert_eq!(fs::read(setup.store_file()).expect("it can be read"), before, "the file was changed");

    let exit = says(setup.run(["repair", "store.vkog"]).expect(0), &["2 entries, nothing lost", "store.vkog.damaged"]);
    let way_out = ["4 entries left out", "store.vkog.left-out.json", "correct the keys and values there"];
    says(exit, &[&reasons[..], &way_out].concat());
    assert_eq!(fs::read(setup.folder().join("store.vkog.damaged")).expect("it can be read"), before);
    says(setup.run(["check", "store.vkog"]).expect(0), &["intact; 2 entries"]);
    // The operator corrects the keys and values, and adds the entries.
    let side = setup.folder().join("store.vkog.left-out.json");
    let lines = fs::read_to_string(&side).expect("it was written");
    failed(setup.run(["import", "-f", "store.vkog", "store.vkog.left-out.json"]), &["line 1: the key is empty"]);
    let corrected = lines
        .replace(r#""key":"""#, r#""key":"was-empty""#)
        .replace(&long, "was-long")
        .replace(r#""key_base64":"//4=""#, r#""key":"was-bytes""#)
        .replace(r#""value":"""#, r#""value":"was empty""#);
    fs::write(&side, corrected).expect("it can be written");
    says(setup.run(["import", "-f", "store.vkog", "store.vkog.left-out.json"]).expect(0), &["4 keys, 4 of them new"]);
    let server = setup.start();
    for (key, value) in [
        ("good", &b"1"[..]),
        ("better", b"\xff2"),
        ("was-empty", b"no key"),
        ("was-long", b"long key"),
        ("was-bytes", b"no text"),
        ("empty", b"was empty"),
    ] {
        server.get(key).expect(200).is(value);
        server.delete(key).expect(200);
    }
}

#[test]
fn a_second_repair_overwrites_no_file_with_entries_that_were_left_out() {
    let setup = written(&[(b"good", b"1"), (b"", b"2")]);
    let first = setup.folder().join("store.vkog.left-out.json");
    fs::write(&first, "mine").expect("it can be written");
    says(setup.run(["repair", "store.vkog"]).expect(0), &["1 entry left out", "store.vkog.left-out.2.json"]);
    assert_eq!(fs::read_to_string(first).expect("it exists"), "mine");
    let second = fs::read_to_string(setup.folder().join("store.vkog.left-out.2.json")).expect("it was written");
    assert_eq!(second, "{\"key\":\"\",\"value\":\"2\"}\n");
}

#[test]
fn a_file_that_was_cut_off_is_said_to_be_and_what_it_lost_is_told() {
    let whole = go_file(&[(b"a", b"first"), (b"b", b"second"), (b"c", b"third")]);
    let setup = Setup::new();
    let cut = |len: usize| fs::write(setup.store_file(), &whole[..len]).expect("it can be written");
    for len in 8..whole.len() - 9 {
        cut(len);
        let way_out = if len < 19 { "there is nothing to repair" } else { "vkog repair" };
        failed(setup.run(["check", "store.vkog"]), &[&format!("it is truncated at byte {len};"), way_out]);
        failed(setup.run(["import", "-f", "new.vkog", "store.vkog"]), &["ends within an entry"]);
    }
    // Between the first entry and the second: two are missing, and nothing remains of them.
    cut(19);
    let words = ["1 entry, its end is lost", "lost 2 entries that followed byte 19"];
    says(setup.run(["repair", "store.vkog"]).expect(0), &words);
    setup.start().get("a").expect(200).is("first");
    // Within the first entry: nothing is left, and nothing is done.
    let setup = Setup::new();
    fs::write(setup.store_file(), &whole[..12]).expect("it can be written");
    failed(setup.run(["repair", "store.vkog"]), &["nothing was changed", "restore a copy"]);
}

#[test]
fn entries_of_a_truncated_file_are_left_out_even_if_no_other_is_readable() {
    let whole = go_file(&[(b"", b"no key"), (b"good", b"1")]);
    let setup = Setup::new();
    fs::write(setup.store_file(), &whole[..25]).expect("it can be written");
    failed(setup.run(["check", "store.vkog"]), &["it is truncated at byte 25;", "vkog repair"]);
    let words = ["0 entries", "1 entry left out", "store.vkog.left-out.json", "store.vkog.damaged"];
    says(setup.run(["repair", "store.vkog"]).expect(0), &words);
    let side = fs::read_to_string(setup.folder().join("store.vkog.left-out.json")).expect("it was written");
    assert_eq!(side, "{\"key\":\"\",\"value\":\"no key\"}\n");
    assert_eq!(fs::read(setup.folder().join("store.vkog.damaged")).expect("it can be read"), &whole[..25]);
}

#[test]
fn a_snapshot_of_20_bytes_is_no_store_of_which_nothing_is_lost() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "v").expect(200);
    server.stop().expect(0);
    let snapshot = fs::read(setup.store_file()).expect("it can be read");
    let log = setup.folder().join("store.vkog.log");
    fs::remove_file(&log).expect("there is a log");
    fs::write(setup.store_file(), &snapshot[..20]).expect("it can be written");
    failed(setup.run(["check", "store.vkog"]), &["ends within its head", "there is nothing to repair"]);
    failed(setup.run(["repair", "store.vkog"]), &["nothing was changed", "restore a copy"]);
    assert_eq!(fs::read(setup.store_file()).expect("it can be read"), &snapshot[..20]);
    // A log gives what it has, and the rest is said to be lost.
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "v").expect(200);
    // Killed: what it wrote stays in the log.
    drop(server);
    fs::write(setup.store_file(), &snapshot[..20]).expect("it can be written");
    failed(setup.run(["check", "store.vkog"]), &["ends within its head", "vkog repair"]);
    let exit = says(setup.run(["repair", "store.vkog"]).expect(0), &["its end is lost", "lost what followed byte 20"]);
    says(exit, &["1 intact record"]);
    setup.start().get("k").expect(200).is("v");
}

#[test]
fn an_empty_value_is_refused_by_every_way_in() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "").expect(400);
    let batch = server.path("POST", "/batch").header("Content-Type", "application/json");
    batch.body(r#"[{"op":"put","key":"k","value":""}]"#).send().expect(400);
    server.stop().expect(0);
    fs::write(setup.folder().join("in"), "{\"key\":\"k\",\"value\":\"\"}\n").expect("it can be written");
    failed(setup.run(["import", "-f", "store.vkog", "in"]), &["line 1: the value is empty"]);
    fs::write(setup.folder().join("in"), go_file(&[(b"k", b"")])).expect("it can be written");
    failed(setup.run(["import", "-f", "store.vkog", "in"]), &["byte 7: the value is empty"]);
}

#[test]
fn a_whole_file_of_the_go_program_is_served_as_it_is() {
    let setup = Setup::new();
    fs::copy(workspace().join("tests/data/go-small.vkog"), setup.store_file()).expect("it can be copied");
    says(setup.run(["check", "store.vkog"]).expect(0), &["intact; 515 entries"]);
    says(setup.run(["repair", "store.vkog"]).expect(0), &["intact; nothing was changed"]);
}
