//! An incremental backup continues only the state with which it begins. It continues neither the state of a copy that diverged, nor
//! a state from before a crash.
//!
//! Provoked with two servers on copies of a store, of which one assigns the revisions of the other; with restarts and kills.

use std::path::Path;

use serde_json::json;
use vkog_tests::{Exit, Server, Setup, TOKEN, administered};

fn setup() -> Setup {
    Setup::new().config(administered("")).args(["--fsync", "never"])
}

/// Runs `vkog backup`. `since` is the path of an earlier backup.
fn backup(setup: &Setup, server: &Server, since: Option<&str>, name: &str) -> Exit {
    let url = format!("http://{}", server.address());
    let since = since.into_iter().flat_map(|since| ["--since", since]);
    setup.run(["backup", "--url", &url, "--token", TOKEN, name].into_iter().chain(since))
}

fn restore(setup: &Setup, backups: &[&str]) -> Exit {
    setup.run(["restore", "--force", "--file", "restored.vkog"].iter().chain(backups))
}

#[track_caller]
fn restored(setup: &Setup, key: &str, value: &str) {
    let exit = setup.run(["export", "--file", "restored.vkog"]).expect(0);
    assert!(exit.stdout.contains(&format!(r#"{{"key":"{key}","value":"{value}","#)), "{exit}");
}

/// Writes to a server until it has assigned a revision.
fn write_up_to(server: &Server, revision: u64) {
    let put = json!({"op": "put", "key": "filler", "value": "v"});
    let batch = vec![put; 1024];
    let batch = json!(batch).to_string();
    while server.put("filler", "v").expect(200).revision() <= revision {
        server.path("POST", "/batch").header("Content-Type", "application/json").body(&batch).send().expect(200);
    }
}

fn path_in<'a>(folder: &Path, name: &str, text: &'a mut String) -> &'a str {
    *text = folder.join(name).display().to_string();
    text
}

#[test]
fn a_backup_of_a_copy_that_diverged_does_not_continue_a_backup() {
    let (one, other) = (setup(), setup());
    let server = one.start();
    server.put("k", "of both").expect(200);
    server.stop().expect(0);
    std::fs::copy(one.store_file(), other.store_file()).expect("it can be copied");
    // The copy starts first and writes more, so that it assigns the revisions of the original.
    let copy = other.start();
    let original = one.start();
    let revision = original.put("k", "of the original").expect(200).revision();
    let mut full = String::new();
    let full = path_in(one.folder(), "full", &mut full);
    backup(&one, &original, None, full).expect(0);
    copy.put("other", "of the copy").expect(200);
    write_up_to(&copy, revision);

    let exit = backup(&other, &copy, Some(full), "changes").expect(4);
    let fact = "the server continues another copy of the store, or was restarted after a crash; make a full backup";
    assert!(exit.one_error().ends_with(fact), "{exit}");
    assert!(!other.folder().join("changes").exists());
    let path = format!("/export?since={revision}");
    let changes = copy.path("GET", &path).header("Authorization", format!("Bearer {TOKEN}")).send().expect(200);
    std::fs::write(other.folder().join("changes"), changes.body).expect("it can be written");
    let exit = restore(&other, &[full, "changes"]).expect(1);
    assert!(exit.one_error().contains("cannot restore changes: it continues another state"), "{exit}");
    assert!(!other.folder().join("restored.vkog").exists());

    // The original continues.
    original.put("k", "newer").expect(200);
    backup(&one, &original, Some("full"), "changes").expect(0);
    restore(&one, &["full", "changes"]).expect(0);
    restored(&one, "k", "newer");
}

#[test]
fn incremental_backups_continue_after_a_clean_restart() {
    let setup = setup();
    let server = setup.start();
    server.put("k", "1").expect(200);
    backup(&setup, &server, None, "full").expect(0);
    server.stop().expect(0);
    let server = setup.start();
    backup(&setup, &server, Some("full"), "nothing").expect(0);
    server.put("k", "2").expect(200);
    backup(&setup, &server, Some("full"), "since-full").expect(0);
    server.stop().expect(0);
    // An opening that changes nothing.
    setup.start().stop().expect(0);
    let server = setup.start();
    backup(&setup, &server, Some("since-full"), "nothing-again").expect(0);
    server.put("k", "3").expect(200);
    backup(&setup, &server, Some("nothing-again"), "last").expect(0);
    for (backups, value) in [
        (&["full", "nothing"][..], "1"),
        (&["full", "nothing", "since-full"], "2"),
        (&["full", "since-full", "nothing-again", "last"], "3"),
        (&["full", "since-full", "last"], "3"),
    ] {
        restore(&setup, backups).expect(0);
        restored(&setup, "k", value);
    }
}

#[test]
fn a_backup_after_a_crash_is_a_full_one() {
    let setup = setup();
    let server = setup.start();
    server.put("k", "1").expect(200);
    backup(&setup, &server, None, "full").expect(0);
    // Killed, with a log that another copy may have, too.
    drop(server);
    let server = setup.start();
    let exit = backup(&setup, &server, Some("full"), "changes").expect(4);
    assert!(exit.one_error().ends_with("make a full backup"), "{exit}");
    backup(&setup, &server, None, "full-2").expect(0);
    server.put("k", "2").expect(200);
    backup(&setup, &server, Some("full-2"), "changes").expect(0);
    restore(&setup, &["full-2", "changes"]).expect(0);
    restored(&setup, "k", "2");
    let exit = restore(&setup, &["full", "changes"]).expect(1);
    assert!(exit.one_error().contains("it continues another state"), "{exit}");
}
