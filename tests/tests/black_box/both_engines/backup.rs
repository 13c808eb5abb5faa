//! A backup of a running server is exactly the state at its revision, and a restored store gives no ETag twice.
//!
//! Provoked with writers that never pause, whose changes a watch records; with clients that do not read, connections that are
//! cut, and ETags of the life that a restore ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::Value;
use vkog_tests::{
    DEADLINE, Exit, Reply, Running, Server, Setup, TOKEN, administered, amount, artefacts, bytes, conflict, exclusive,
    ttl, with_background,
};

use super::ENGINE;

fn setup() -> Setup {
    Setup::on(ENGINE).config(administered("")).args(["--fsync", "never"])
}

/// Runs `vkog backup` against a server.
fn backup<'a>(setup: &Setup, server: &Server, arguments: impl IntoIterator<Item = &'a str>) -> Exit {
    let url = format!("http://{}", server.address());
    let own = ["backup", "--url", &url, "--token", TOKEN].map(str::to_owned);
    setup.run(own.into_iter().chain(arguments.into_iter().map(str::to_owned)))
}

fn restore<'a>(setup: &Setup, backups: impl IntoIterator<Item = &'a str>, store: &'a str) -> Exit {
    setup.run(["restore", "--file", store].into_iter().chain(backups))
}

/// The entries of a store: revision and value of each key.
fn entries(setup: &Setup, store: &str) -> BTreeMap<String, (u64, String)> {
    let exit = setup.run(["export", "--file", store]).expect(0);
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        (text("key"), (line["revision"].as_u64().expect("a revision"), text("value")))
    };
    exit.stdout.lines().map(entry).collect()
}

/// The start line of a backup.
fn start(setup: &Setup, backup: &str) -> Value {
    let text = std::fs::read_to_string(setup.folder().join(backup)).expect("the backup can be read");
    let start: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("it is JSON");
    start["start"].clone()
}

fn export(server: &Server, query: &str) -> Reply {
    server.path("GET", &format!("/export{query}")).header("Authorization", format!("Bearer {TOKEN}")).send()
}

/// The value of a metric, by its name with labels.
fn metric(server: &Server, name: &str) -> u64 {
    let reply = server.path("GET", "/metrics").header("Authorization", format!("Bearer {TOKEN}")).send().expect(200);
    let text = reply.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// The numbers of exports that were completed, have failed, and were interrupted by the client.
fn ended(server: &Server) -> [u64; 3] {
    ["completed", "failed", "interrupted"]
        .map(|outcome| metric(server, &format!("vkog_exports_total{{outcome=\"{outcome}\"}}")))
}

/// A change that a watch has received: the revision, the key, and the value if it was not removed.
type Recorded = (u64, String, Option<String>);

/// The state after all changes up to a revision.
fn state_at(history: &[Recorded], revision: u64) -> BTreeMap<String, (u64, String)> {
    let mut state = BTreeMap::new();
    for (at, key, value) in history.iter().take_while(|(at, ..)| *at <= revision) {
        match value {
            Some(value) => state.insert(key.clone(), (*at, value.clone())),
            None => state.remove(key),
        };
    }
    state
}

/// Ends the writers, also when the test fails.
struct EndWriters<'a>(&'a AtomicBool);

impl Drop for EndWriters<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes to a few keys until the flag is set, by one connection.
fn write_until(server: &Server, writer: usize, stop: &AtomicBool) {
    let mut wire = server.wire();
    for round in 0_usize.. {
        let key = format!("/k/{}", (writer * 7 + round * 13) % 50);
        if round % 4 == 3 {
            let _ = wire.request("DELETE", &key, b"");
        } else {
            wire.request("PUT", &key, format!("{writer}-{round}").as_bytes()).expect(200);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn every_backup_under_16_writers_is_the_state_at_its_revision() {
    let _alone = exclusive();
    let setup = setup();
    let server = setup.start();
    let (stop, rounds) = (AtomicBool::new(false), amount(2, 50));
    let mut watching = server.watch("values", "");
    let history = thread::scope(|scope| {
        let stop = &stop;
        let writers = EndWriters(stop);
        for writer in 0..16 {
            let server = &server;
            scope.spawn(move || write_until(server, writer, stop));
        }
        let recorder = scope.spawn(move || {
            let mut history: Vec<Recorded> = Vec::new();
            while let Some(event) = watching.event() {
                if event.key() == "last" {
                    return history;
                }
                let value = event.data["value"].as_str().filter(|_| event.name == "put").map(str::to_owned);
                history.push((event.id.expect("a revision"), event.key().to_owned(), value));
            }
            panic!("the watch ended");
        });
        for round in 0..rounds {
            backup(&setup, &server, [&*format!("full-{round}")]).expect(0);
            let since = format!("full-{round}");
            backup(&setup, &server, ["--since", &since, &format!("changes-{round}")]).expect(0);
        }
        drop(writers);
        server.put("last", "1").expect(200);
        recorder.join().expect("it records")
    });
    let mut changed = 0;
    for round in 0..rounds {
        let (full, changes) = (format!("full-{round}"), format!("changes-{round}"));
        let [before, after] = [&full, &changes].map(|backup| start(&setup, backup)["revision"].as_u64());
        let [before, after] = [before, after].map(|revision| revision.expect("a revision"));
        restore(&setup, [&*full], &format!("full-{round}.vkog")).expect(0);
        assert_eq!(entries(&setup, &format!("full-{round}.vkog")), state_at(&history, before), "round {round}");
        restore(&setup, [&*full, &changes], &format!("changes-{round}.vkog")).expect(0);
        assert_eq!(entries(&setup, &format!("changes-{round}.vkog")), state_at(&history, after), "round {round}");
        changed += usize::from(before < after);
    }
    assert!(changed > 0, "no write happened between the backups");
}

#[test]
fn a_stale_etag_of_a_life_that_a_restore_ended_matches_nothing() {
    for way in ["restore", "import"] {
        let setup = setup();
        let server = setup.start();
        server.put("k", "backed up").expect(200);
        backup(&setup, &server, ["backup"]).expect(0);
        // The newer life, whose ETags the client remembers.
        let stale: Vec<String> = (0..5)
            .map(|n| server.put("k", n.to_string()).expect(200).header("ETag").expect("a tag").to_owned())
            .collect();
        server.stop().expect(0);
        if way == "restore" {
            restore(&setup, ["--force", "backup"], "store.vkog").expect(0);
        } else {
            std::fs::remove_file(setup.store_file()).expect("it can be removed");
            std::fs::remove_file(setup.folder().join("store.vkog.log")).expect("it can be removed");
            setup.run(["import", "--file", "store.vkog", "backup"]).expect(0);
        }
        let server = setup.start();
        let check = |server: &Server, value: &str| {
            for tag in &stale {
                server.key("PUT", "k").header("If-Match", tag).body("lost update").send().expect(412);
                server.key("DELETE", "k").header("If-Match", tag).send().expect(412);
                server.key("GET", "k").header("If-None-Match", tag).send().expect(200).is(value);
            }
        };
        check(&server, "backed up");
        for n in 0..10 {
            let tag = server.put("k", format!("new {n}")).expect(200).header("ETag").expect("a tag").to_owned();
            assert!(!stale.contains(&tag), "{way}: {tag} names two values");
        }
        check(&server, "new 9");
    }
}

#[test]
fn an_incremental_backup_needs_the_history() {
    let setup = setup().args(["--watch-history", "2KiB"]);
    let server = setup.start();
    server.put("a", "1").expect(200);
    backup(&setup, &server, ["full"]).expect(0);
    server.delete("a").expect(200);
    server.put("b", "2").expect(200);
    backup(&setup, &server, ["--since", "full", "changes"]).expect(0);
    backup(&setup, &server, ["--since", "changes", "nothing"]).expect(0);
    let since = start(&setup, "changes")["revision"].as_u64().expect("a revision");
    export(&server, &format!("?since={}", since + 1)).refused(410, "Too far ahead");
    for number in 0..100 {
        server.put(&format!("key {number}"), "v").expect(200);
    }
    export(&server, &format!("?since={since}")).refused(410, "Too far back");
    let exit = backup(&setup, &server, ["--since", "changes", "too-late"]).expect(4);
    assert!(exit.one_error().contains("make a full one") && !setup.folder().join("too-late").exists(), "{exit}");
    restore(&setup, ["full", "changes", "nothing"], "restored.vkog").expect(0);
    let found = entries(&setup, "restored.vkog");
    assert!(found.len() == 1 && found["b"].1 == "2", "{found:?}");

    backup(&setup, &server, ["full-2"]).expect(0);
    for (backups, words) in [
        (&["changes"][..], "restore a full backup first"),
        (&["full", "nothing"], "give the backups in between"),
        (&["full", "full-2"], "it is a full backup"),
        (&["full", "vkog.toml"], "it is not a backup"),
    ] {
        let exit = restore(&setup, backups.iter().copied(), "other.vkog").expect(1);
        assert!(exit.one_error().contains(words), "{exit}");
        assert!(!setup.folder().join("other.vkog").exists() && !setup.folder().join("other.vkog.lock").exists());
    }
    let exit = setup.run(["check", "full"]).expect(1);
    assert!(exit.one_error().contains("it is a backup, not a store; verify it with `vkog restore"), "{exit}");
    let other = Setup::on(ENGINE).config(administered(""));
    let stranger = other.start();
    let full = setup.folder().join("full").display().to_string();
    // Its revisions begin after those of the first server.
    backup(&other, &stranger, ["--since", &full, "changes"]).expect(4);
}

#[test]
fn a_restore_replaces_a_store_only_with_force_and_keeps_its_files() {
    let setup = setup();
    let server = setup.start();
    server.put("a", "1").expect(200);
    backup(&setup, &server, ["full"]).expect(0);
    let exit = backup(&setup, &server, ["full"]).expect(4);
    assert!(exit.one_error().contains("the file exists"), "{exit}");
    server.put("a", "2").expect(200);
    let exit = backup(&setup, &server, ["./full", "--since", "full", "--overwrite"]).expect(1);
    assert!(exit.one_error().contains("cannot write ./full: it is the backup of --since"), "{exit}");
    assert_eq!(start(&setup, "full")["since"], Value::Null, "the full backup is replaced by changes after it");
    backup(&setup, &server, ["full", "--overwrite"]).expect(0);
    let exit = restore(&setup, ["--force", "full"], "store.vkog").expect(4);
    assert!(exit.one_error().contains("in use"), "{exit}");
    server.put("a", "3").expect(200);
    server.stop().expect(0);
    let exit = restore(&setup, ["full"], "store.vkog").expect(4);
    assert!(exit.one_error().contains("--force"), "{exit}");
    restore(&setup, ["full", "--force"], "store.vkog").expect(0);
    assert_eq!(entries(&setup, "store.vkog")["a"].1, "2");
    assert_eq!(entries(&setup, "store.vkog.replaced")["a"].1, "3");
    setup.start().get("a").expect(200).is("2");
}

#[cfg(unix)]
#[test]
fn the_client_replaces_only_files_and_follows_links() {
    use std::os::unix::fs::{FileTypeExt as _, symlink};
    let setup = setup();
    let server = setup.start();
    let at = |name: &str| setup.folder().join(name);
    server.key("PUT", "a").header("Authorization", format!("Bearer {TOKEN}")).body("1").send().expect(200);
    assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().expect("mkfifo runs").success());
    std::fs::create_dir(at("folder")).expect("it can be made");
    std::fs::write(at("file"), "old").expect("it can be written");
    for (link, target) in [("to-fifo", "fifo"), ("to-file", "file"), ("to-nothing", "nothing")] {
        symlink(target, at(link)).expect("a link can be made");
    }
    for name in ["fifo", "to-fifo", "folder"] {
        let exit = backup(&setup, &server, [name, "--overwrite"]).expect(1);
        let fact = format!("cannot write {name}: it is not a regular file; choose another file");
        assert!(exit.one_error().ends_with(&fact), "{exit}");
    }
    assert!(at("fifo").metadata().expect("it stays").file_type().is_fifo());
    let exit = backup(&setup, &server, ["to-nothing", "--overwrite"]).expect(1);
    assert!(exit.one_error().contains("cannot write to-nothing"), "{exit}");
    backup(&setup, &server, ["to-file", "--overwrite"]).expect(0);
    assert_eq!(start(&setup, "file")["since"], Value::Null);
    let url = format!("http://{}", server.address());
    let get = |file| setup.run(["get", "a", "--url", &url, "--token", TOKEN, "-o", file]);
    get("to-file").expect(0);
    assert_eq!(std::fs::read_to_string(at("file")).expect("it can be read"), "1");
    get("to-nothing").expect(1);
    for link in ["to-fifo", "to-file", "to-nothing"] {
        assert!(at(link).is_symlink(), "{link}");
    }
}

#[test]
fn a_backup_that_was_cut_off_is_no_backup() {
    let setup = setup();
    let server = setup.start();
    (0..100).for_each(|number| drop(server.put(&format!("key {number}"), "value").expect(200)));
    server.path("HEAD", "/export").header("Authorization", format!("Bearer {TOKEN}")).send().expect(200);
    assert_eq!((ended(&server), metric(&server, "vkog_export_bytes_total")), ([0; 3], 0), "HEAD exports nothing");
    let whole = export(&server, "").expect(200).body;
    assert_eq!((ended(&server), metric(&server, "vkog_export_bytes_total")), ([1, 0, 0], whole.len() as u64));
    assert!(whole.ends_with(b"}}\n"), "{}", whole.escape_ascii());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    for end in [0, 10, whole.len() / 2, whole.len() - 1] {
        for (output, fact) in [("-", "discard the output"), ("cut-off", "nothing was written")] {
            let exit = thread::scope(|scope| {
                let part = &whole[..end];
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().expect("the client connects");
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head);
                    // Without a length, as a proxy to an HTTP/1.0 client sends it: nothing but its end marks the cut.
                    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").expect("the client reads");
                    stream.write_all(part).expect("the client reads");
                });
                setup.run(["backup", "--url", &url, output])
            });
            let exit = exit.expect(1);
            assert!(exit.one_error().contains(fact), "{exit}");
        }
        std::fs::write(setup.folder().join("cut-off"), &whole[..end]).expect("it can be written");
        let exit = restore(&setup, ["cut-off"], "cut-off.vkog").expect(1);
        assert!(exit.one_error().contains("nothing was changed"), "{exit}");
        let exit = setup.run(["import", "--file", "cut-off.vkog", "cut-off"]);
        assert!(end < 20 || exit.stderr.contains("it is cut off"), "{exit}");
        assert!(!setup.folder().join("cut-off.vkog").exists());
        std::fs::remove_file(setup.folder().join("cut-off")).expect("it was just written");
    }
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".vkog-"));
    let folder = std::fs::read_dir(setup.folder()).expect("a folder");
    assert!(!folder.flatten().any(|file| hidden(&file.path())), "a temporary file is left");
}

#[test]
fn a_backup_on_standard_output_is_restored_from_standard_input() {
    let setup = setup();
    let server = setup.start();
    for number in 0..1000 {
        server.put(&format!("key {number}"), "value").expect(200);
    }
    backup(&setup, &server, ["file"]).expect(0);
    let piped = backup(&setup, &server, ["-"]).expect(0).stdout;
    assert!(piped == std::fs::read_to_string(setup.folder().join("file")).expect("it was written"), "{piped}");
    assert!(!setup.folder().join("-").exists(), "a file with this name");
    for backups in [&["-"][..], &["file", "-"]] {
        let input = File::open(setup.folder().join("file")).expect("it was written");
        let mut command = setup.vkog();
        command.args(["restore", "--force", "--file", "restored.vkog"]).args(backups);
        let exit = Running::start_with_stdin(&mut command, input.into()).wait();
        match backups {
            ["-"] => drop(exit.expect(0)),
            _ => assert!(exit.expect(1).one_error().starts_with("vkog: cannot restore standard input: it is a full")),
        }
        assert_eq!(entries(&setup, "restored.vkog").len(), 1000);
    }
    let url = format!("http://{}", server.address());
    let exit = setup.run(["get", "--url", &url, "--token", TOKEN, "key 1", "-o", "-"]).expect(0);
    assert_eq!(exit.stdout, "value");
}

#[test]
fn a_client_that_does_not_read_its_export_holds_up_nobody() {
    let setup = setup();
    let server = setup.start();
    let value = "v".repeat(1 << 20);
    (0..16).for_each(|number| drop(server.put(&format!("key {number}"), &value).expect(200)));
    let mut wire = server.wire();
    wire.send(format!("GET /export HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"));
    let head = wire.try_head().expect("it begins").expect(200);
    assert!(head.header("Vkog-Revision").is_some(), "{head}");
    export(&server, "").refused(503, "Another export is in progress").has("Retry-After", "1");
    assert_eq!((metric(&server, "vkog_exports_running"), ended(&server)), (1, [0; 3]));
    let exit = backup(&setup, &server, ["second"]).expect(6);
    assert!(exit.one_error().contains("Another export"), "{exit}");
    (0..20).for_each(|number| drop(server.put(&format!("other {number}"), "v").expect(200)));
    server.get("other 19").expect(200);
    drop(wire);
    let begun = Instant::now();
    while export(&server, "").status != 200 {
        assert!(begun.elapsed() < DEADLINE, "the export of a client that has gone never ends\n{}", server.log());
    }
    assert_eq!((metric(&server, "vkog_exports_running"), ended(&server)), (0, [1, 0, 1]));
}

#[test]
fn an_export_fails_visibly_when_writers_replace_too_much_before_it_is_read() {
    let setup = setup().args(["--watch-history", "1MiB"]);
    let server = setup.start();
    let value = "v".repeat(1 << 18);
    let put_all = || (0..64).for_each(|number| drop(server.put(&format!("key {number}"), &value).expect(200)));
    put_all();
    let mut wire = server.wire();
    wire.send(format!("GET /export HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"));
    wire.try_head().expect("it begins").expect(200);
    put_all();
    let text = String::from_utf8(wire.rest().expect("it ends")).expect("lines of JSON");
    let last = text.lines().last().expect("lines");
    assert!(last.starts_with("{\"failed\":") && last.contains("watch-history"), "{last}");
    assert_eq!(ended(&server), [0, 1, 0]);
}

#[test]
fn media_types_codings_and_details_of_plugins_survive_a_restore() {
    let setup = setup().load(bytes()).load(conflict()).load(ttl());
    let server = setup.start();
    let text = [("Content-Type", "text/plain"), ("Content-Encoding", "gzip")];
    let request = text.iter().fold(server.key("POST", "text"), |request, (name, value)| request.header(name, *value));
    request.body([0x1f, 0x8b, 0xff]).send().expect(200);
    server.key("POST", "long").header("Vkog-TTL", "1h").body("v").send().expect(200);
    server.key("POST", "short").header("Vkog-TTL", "2s").body("v").send().expect(200);
    let tag = server.get("text").header("ETag").expect("a tag").to_owned();
    backup(&setup, &server, ["full"]).expect(0);
    server.stop().expect(0);
    restore(&setup, ["--force", "full"], "store.vkog").expect(0);
    let server = setup.start();
    let reply = server.key("GET", "text").header("Accept-Encoding", "gzip").send().expect(200).is([0x1f, 0x8b, 0xff]);
    // The same revision names the same value.
    reply.has("Content-Type", "text/plain").has("Content-Encoding", "gzip").has("ETag", &tag);
    server.post("text", "again").refused(409, "Key already exists");
    let reply = server.get("long").expect(200);
    let left: u64 = reply.header("Vkog-TTL").and_then(|left| left.parse().ok()).expect("seconds are left");
    assert!((3000..=3600).contains(&left), "{reply}");
    let begun = Instant::now();
    while server.get("short").status != 404 {
        assert!(begun.elapsed() < DEADLINE, "it does not expire\n{}", server.log());
    }
}

#[test]
fn check_and_export_read_a_prefix_of_the_history_beside_a_server() {
    let _alone = exclusive();
    let setup = setup();
    let server = setup.start();
    let mut watching = server.watch("values", "");
    let (stop, mut found) = (AtomicBool::new(false), Vec::new());
    let history = thread::scope(|scope| {
        let (server, stop) = (&server, &stop);
        let writers = EndWriters(stop);
        (0..4).for_each(|writer| drop(scope.spawn(move || write_until(server, writer, stop))));
        let recorder = scope.spawn(move || {
            let mut history: Vec<Recorded> = Vec::new();
            while let Some(event) = watching.event().filter(|event| event.key() != "last") {
                let value = event.data["value"].as_str().filter(|_| event.name == "put").map(str::to_owned);
                history.push((event.id.expect("a revision"), event.key().to_owned(), value));
            }
            history
        });
        with_background([|| server.signal("USR1")], || {
            for _ in 0..amount(5, 100) {
                let acknowledged = server.put("marker", "1").expect(200).revision();
                found.push((acknowledged, entries(&setup, "store.vkog")));
                setup.run(["check", "store.vkog"]).expect(0);
            }
        });
        drop(writers);
        server.put("last", "1").expect(200);
        recorder.join().expect("it records")
    });
    for (acknowledged, found) in found {
        let last = found.values().map(|(revision, _)| *revision).max().expect("entries");
        assert!(found["marker"].0 >= acknowledged, "a write is missing that was acknowledged before");
        // The changes after that may be in the state as well, if they are removals, or puts of keys that were removed again.
        let end = history.iter().position(|(at, ..)| *at > last).unwrap_or(history.len());
        let later = history[end..].iter().take(1000).map(|(at, ..)| *at);
        let is_prefix = [last].into_iter().chain(later).any(|at| found == state_at(&history, at));
        assert!(is_prefix, "not the state at any revision from {last} on");
    }
    let folder = std::fs::read_dir(setup.folder()).expect("a folder");
    let names: Vec<_> = folder.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|name| name.starts_with("store.vkog") || name == "vkog.toml"), "{names:?}");
}

/// A setup with encrypted values, in which the client with the usual token sees only the keys behind `ann/`.
fn tenants() -> Setup {
    let plugins = artefacts();
    let config = "[[access.tokens]]\nname = \"ann\"\ntoken = \"s3cret\"\nright = \"admin\"\n\
        [[access.tokens]]\nname = \"whole\"\ntoken = \"whole\"\nright = \"admin\"\n\
        [plugins.tenant]\nothers = \"whole\"\ntokens = { ann = \"ann/\" }\n\
        [plugins.encrypt]\nkey_file = \"keys\"\n";
    let libraries = ["vkog-tenant", "vkog-encrypt"].map(|package| plugins.library(package));
    let setup = libraries.iter().fold(Setup::on(ENGINE), Setup::load).config(config);
    let keys = setup.folder().join("keys");
    std::fs::write(&keys, format!("a {}\n", "1a".repeat(32))).expect("it can be written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
    setup
}

fn with<'a>(token: &str, server: &'a Server, method: &'a str, key: &str) -> vkog_tests::Request<'a> {
    server.key(method, key).header("Authorization", format!("Bearer {token}"))
}

/// Writes entries of the client with a key prefix, and one of others.
fn write_as_tenants(server: &Server) {
    with(TOKEN, server, "PUT", "a").body("the value").send().expect(200);
    with(TOKEN, server, "PUT", "gone").body("1").send().expect(200);
    with("whole", server, "PUT", "b").body("of others").send().expect(200);
}

fn keys(setup: &Setup, store: &str) -> Vec<String> {
    entries(setup, store).into_keys().collect()
}

#[test]
fn a_backup_of_a_client_with_a_key_prefix_is_restored_behind_that_prefix() {
    let setup = tenants();
    let server = setup.start();
    write_as_tenants(&server);
    backup(&setup, &server, ["full"]).expect(0);
    server.stop().expect(0);

    restore(&setup, ["full"], "restored.vkog").expect(0);
    let plugins = setup.plugin_folder();
    let arguments = ["--listen", "127.0.0.1:0", "--config", "vkog.toml", "--file", "restored.vkog", "--plugin-dir"];
    let server = setup.start_with(arguments.map(OsString::from).into_iter().chain([plugins.into_os_string()]));
    with(TOKEN, &server, "GET", "a").send().expect(200).is("the value");
    with("whole", &server, "GET", "ann/a").send().expect(200).is("the value");
    with("whole", &server, "GET", "b").send().expect(404);
    server.stop().expect(0);
    setup.run(["import", "--file", "imported.vkog", "full"]).expect(0);
    assert_eq!(keys(&setup, "imported.vkog"), ["ann/a", "ann/gone"]);
    for (prefix, expected) in [("", ["a", "gone"]), ("bob/", ["bob/a", "bob/gone"])] {
        setup.run(["restore", "--file", "other.vkog", "--force", "--key-prefix", prefix, "full"]).expect(0);
        assert_eq!(keys(&setup, "other.vkog"), expected);
    }
}

#[test]
fn changes_of_a_client_with_a_key_prefix_are_restored_behind_that_prefix() {
    let setup = tenants();
    let server = setup.start();
    write_as_tenants(&server);
    backup(&setup, &server, ["full"]).expect(0);
    with(TOKEN, &server, "PUT", "later").body("2").send().expect(200);
    with(TOKEN, &server, "DELETE", "gone").send().expect(200);
    backup(&setup, &server, ["--since", "full", "more"]).expect(0);
    let url = format!("http://{}", server.address());
    let of_others = ["backup", "--url", &url, "--token", "whole", "--since", "full", "others"];
    let exit = setup.run(of_others).expect(4);
    assert!(exit.one_error().contains("a client with another key prefix"), "{exit}");
    server.stop().expect(0);

    restore(&setup, ["full", "more"], "restored.vkog").expect(0);
    let server = setup.clone().store("restored.vkog").start();
    with(TOKEN, &server, "GET", "a").send().expect(200).is("the value");
    with(TOKEN, &server, "GET", "later").send().expect(200).is("2");
    with(TOKEN, &server, "GET", "gone").send().expect(404);
    with("whole", &server, "GET", "b").send().expect(404);
    server.stop().expect(0);
    for (prefix, expected) in [("", ["a", "later"]), ("bob/", ["bob/a", "bob/later"])] {
        let arguments = ["restore", "--file", "other.vkog", "--force", "--key-prefix", prefix, "full", "more"];
        setup.run(arguments).expect(0);
        assert_eq!(keys(&setup, "other.vkog"), expected);
    }
}
