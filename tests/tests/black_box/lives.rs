//! Copies of a store, files of different ages, and recreated stores are distinguished, and missing parts are reported.
//!
//! Provoked with servers that are killed, with logs that are removed, truncated or taken from another copy, and with
//! restored older files.

use std::fs;
use std::path::PathBuf;

use vkog_tests::{Exit, Setup, workspace};

fn log(setup: &Setup) -> PathBuf {
    setup.folder().join("store.vkog.log")
}

/// Creates a store with a snapshot of one entry and a log with another one, as a killed server leaves it.
fn killed() -> Setup {
    let setup = Setup::new();
    let server = setup.start();
    server.put("snapshot", "v").expect(200);
    server.stop().expect(0);
    let server = setup.start();
    server.put("log", "v").expect(200);
    drop(server);
    setup
}

#[track_caller]
fn check(setup: &Setup, status: i32, words: &[&str]) -> Exit {
    let exit = setup.run(["check", "store.vkog"]).expect(status);
    assert!(words.iter().all(|word| exit.stdout.contains(word)), "{words:?} in {exit}");
    exit
}

#[test]
fn a_log_that_is_lost_after_a_kill_is_reported_by_check_and_at_the_start() {
    for (left, words) in
        [(None, "store.vkog.log is missing"), (Some(0), "truncated"), (Some(41), "truncated"), (Some(60), "truncated")]
    {
        let setup = killed();
        check(&setup, 0, &["intact; 2 entries"]);
        match left {
            None => fs::remove_file(log(&setup)).expect("there is a log"),
            Some(len) => {
                let file = fs::File::options().write(true).open(log(&setup)).expect("there is a log");
                file.set_len(len).expect("it can be cut off");
            }
        }
        check(&setup, 3, &["log missing; 1 entry", words, "changes after its last snapshot are lost"]);
        let repaired = setup.run(["repair", "store.vkog"]).expect(3);
        for word in ["log missing; nothing was changed", words, "changes after its last snapshot are lost"] {
            assert!(repaired.stdout.contains(word), "{word} in {repaired}");
        }
        let server = setup.start();
        server.logs(&["WARN", words, "changes after its last snapshot are lost"]);
        server.get("snapshot").expect(200);
        server.put("new", "v").expect(200);
        drop(server);
        // A server that has continued without it has a complete store again.
        check(&setup, 0, &["intact; 2 entries"]);
        setup.start().get("new").expect(200);
    }
}

#[test]
fn a_store_that_was_stopped_cleanly_needs_no_log() {
    let setup = killed();
    setup.start().stop().expect(0);
    for round in 0..2 {
        fs::remove_file(log(&setup)).expect("there is a log");
        check(&setup, 0, &["intact; 2 entries"]);
        let server = setup.start();
        server.get("log").expect(200);
        server.logs_no(&["WARN"]);
        // The second time, nothing was written in between.
        if round == 0 {
            server.put("log", "w").expect(200);
        }
        server.stop().expect(0);
    }
    fs::write(setup.folder().join("in"), r#"{"key":"imported","value":"v"}"#).expect("it can be written");
    setup.run(["import", "-f", "store.vkog", "in"]).expect(0);
    fs::remove_file(log(&setup)).expect("there is a log");
    check(&setup, 0, &["intact; 3 entries"]);
}

#[test]
fn a_server_that_is_killed_before_its_first_write_leaves_a_whole_store() {
    let setup = killed();
    setup.start().stop().expect(0);
    drop(setup.start());
    check(&setup, 0, &["intact; 2 entries"]);
    let server = setup.start();
    server.logs_no(&["WARN"]);
    server.signal("USR1");
    server.logs(&["wrote "]);
    drop(server);
    check(&setup, 0, &["intact; 2 entries"]);
}

#[test]
fn the_log_of_another_copy_of_the_store_is_refused() {
    let setup = killed();
    let copy = Setup::new();
    for ending in ["", ".log"] {
        let name = format!("store.vkog{ending}");
        fs::copy(setup.folder().join(&name), copy.folder().join(&name)).expect("it can be copied");
    }
    // Both copies continue, and reach the same generation again.
    for (setup, value) in [(&setup, "one"), (&copy, "other")] {
        let server = setup.start();
        server.put("k", value).expect(200);
        server.stop().expect(0);
        let server = setup.start();
        server.put("l", value).expect(200);
        drop(server);
    }
    fs::copy(log(&copy), log(&setup)).expect("it can be copied");
    let before = fs::read(setup.store_file()).expect("it exists");
    let exit = setup.fail().expect(1);
    let told = exit.stderr.lines().find(|line| line.starts_with("vkog: ")).unwrap_or_default();
    assert!(told.contains("another copy") && told.contains("vkog repair"), "{exit}");
    assert_eq!(fs::read(setup.store_file()).expect("it exists"), before, "the start changed the store");
    let exit = setup.run(["check", "store.vkog"]).expect(1);
    assert!(exit.one_error().contains("another copy"), "{exit}");
    // The message names the way out.
    setup.run(["repair", "store.vkog"]).expect(0);
    let server = setup.start();
    server.get("k").expect(200).is("one");
    server.get("l").expect(404);
}

#[test]
fn files_of_older_formats_are_read_and_rewritten() {
    let setup = Setup::new();
    for ending in ["", ".log"] {
        let from = workspace().join(format!("tests/data/format-1.vkog{ending}"));
        fs::copy(from, setup.folder().join(format!("store.vkog{ending}"))).expect("it can be copied");
    }
    check(&setup, 0, &["intact; 3 entries", "snapshot 1,"]);
    let server = setup.start();
    server.logs_no(&["WARN"]);
    for (key, revision) in [("a", 1), ("b", 2), ("c", 3)] {
        let reply = server.get(key).expect(200).is(format!("value of {key}"));
        assert_eq!(reply.revision(), revision, "{reply}");
    }
    assert!(server.put("d", "v").expect(200).revision() > 1_700_000_000_000_000);
    server.stop().expect(0);
    check(&setup, 0, &["intact; 4 entries", "snapshot 2,"]);
    let server = setup.start();
    assert_eq!(server.get("c").expect(200).revision(), 3);
}

#[test]
fn a_restored_store_reuses_no_revision() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "before").expect(200);
    server.stop().expect(0);
    let copy = fs::read(setup.store_file()).expect("there is a store");
    let server = setup.start();
    let tag = server.put("k", "lost").expect(200).header("ETag").expect("a tag").to_owned();
    let server_log = log(&setup);
    server.stop().expect(0);

    fs::write(setup.store_file(), copy).expect("it can be put back");
    fs::remove_file(server_log).expect("there is a log");
    let server = setup.start();
    server.put("k", "after").expect(200);
    server.key("GET", "k").header("If-None-Match", tag.as_str()).send().expect(200).is("after");
    server.key("PUT", "k").header("If-Match", tag.as_str()).body("overwritten").send().expect(412);
}

#[test]
fn an_import_or_a_new_store_reuses_no_revision_of_a_removed_store() {
    let setup = Setup::new();
    let server = setup.start();
    let first = server.put("k", "v").expect(200).revision();
    server.stop().expect(0);
    setup.run(["export", "-f", "store.vkog", "out"]).expect(0);
    for ending in ["", ".log"] {
        fs::remove_file(setup.folder().join(format!("store.vkog{ending}"))).expect("it exists");
    }
    setup.run(["import", "-f", "store.vkog", "out"]).expect(0);
    let server = setup.start();
    let imported = server.get("k").expect(200).revision();
    let next = server.put("k", "w").expect(200).revision();
    assert!(first < imported && imported < next, "{first}, {imported}, {next}");
    // As large as JSON readers can represent exactly.
    assert!(next < 1 << 53);
}

#[test]
fn entries_of_the_go_program_keep_their_revisions_as_long_as_their_file() {
    let setup = Setup::new();
    fs::copy(workspace().join("tests/data/go-small.vkog"), setup.store_file()).expect("it can be copied");
    let server = setup.start();
    let revision = server.get("plain").expect(200).revision();
    assert!(revision > 1_700_000_000_000_000, "{revision}");
    let written = server.put("new", "v").expect(200).revision();
    server.delete("sp ace").expect(200);
    drop(server);
    let server = setup.start();
    assert_eq!(server.get("plain").expect(200).revision(), revision);
    // Later revisions are still greater.
    assert_eq!(server.get("new").expect(200).is("v").revision(), written);
    server.get("sp ace").expect(404);
    assert!(server.put("plain", "w").expect(200).revision() > written);
}

#[test]
fn a_watcher_with_a_revision_of_an_earlier_opening_is_refused() {
    let setup = Setup::new();
    let server = setup.start();
    let first = server.put("k", "v").expect(200).revision();
    server.stop().expect(0);
    let copy = fs::read(setup.store_file()).expect("there is a store");
    let server = setup.start();
    let lost = server.put("k", "lost").expect(200).revision();
    server.stop().expect(0);
    fs::write(setup.store_file(), copy).expect("it can be put back");
    fs::remove_file(log(&setup)).expect("there is a log");
    let server = setup.start();
    let refused = |since: u64| {
        let refused = server.try_watch(&format!("since={since}"), "");
        assert_eq!(refused.err().map(|reply| reply.status), Some(410), "a watch since {since}");
    };
    refused(lost);
    server.put("k", "w").expect(200);
    refused(lost);
    // A watcher whose revision exists in this opening resumes.
    let event = server.watch(&format!("since={first}"), "").event().expect("there is one");
    assert_eq!(event.key(), "k");
}

#[test]
fn a_value_limit_that_the_files_cannot_hold_is_refused() {
    let setup = Setup::new();
    let exit = setup.run(["serve", "--no-plugins", "--listen", "127.0.0.1:0", "--max-value", "5GiB"]).expect(1);
    assert!(exit.one_error().contains("--max-value") && exit.one_error().contains("4227858423"), "{exit}");
    setup.clone().args(["--max-value", "4227858423"]).start();
    // A default that depends on another limit is capped.
    setup.args(["--max-size", "5GiB"]).start();
}
