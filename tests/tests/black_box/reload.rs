//! Hot reload: while requests are in flight plugins are replaced, no request fails, requests after the response run new
//! code, and after a failed reload the old plugin continues.
//!
//! Provoked with two versions of a plugin that report their version, which replace each other while clients write and
//! read; with libraries that are broken, refuse or panic; and with the bytes plugin, whose count must stay exact.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use vkog_tests::{
    Server, Setup, TOKEN, administered, amount, artefacts, as_library, bytes, conflict, on_windows, pattern,
    put_in_place, with_background,
};

fn old() -> PathBuf {
    artefacts().library("versioned")
}

fn new() -> PathBuf {
    artefacts().library("vkog-versioned")
}

fn setup() -> Setup {
    Setup::new().load_as(old(), as_library("libversioned")).config(administered(""))
}

/// Returns the version of the plugin that responds.
#[track_caller]
fn version(server: &Server) -> String {
    let reply = server.get("k").expect(200);
    reply.header("X-Version").unwrap_or_else(|| panic!("no version in {reply}")).to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn reloads_under_load_fail_no_request_and_run_new_code_at_once() {
    const WARM: usize = 10;

    let reloads = amount(40, 100);
    let server = setup().args(["--fsync", "never"]).start();
    server.post("k", "v").expect(200);
    let place = server.library_of("versioned");
    let libraries = [old(), new()];
    // Even while the version is certain, odd while it changes; half of it is the version.
    let turn = AtomicUsize::new(0);
    let clients = server.wires(4).into_iter().enumerate().map(|(client, mut wire)| {
        let (turn, own) = (&turn, format!("/k/own-{client}"));
        move || {
            wire.request("PUT", &own, b"v").expect(200);
            let before = turn.load(SeqCst);
            let read = wire.request("GET", "/k/k", b"").expect(200);
            if before % 2 == 0 && turn.load(SeqCst) == before {
                let version = ["old", "new"][before / 2 % 2];
                assert_eq!(read.header("X-Version"), Some(version), "after reload {}", before / 2);
            }
        }
    });
    let mut warm = 0;
    with_background(clients, || {
        for reload in 1..=reloads {
            turn.fetch_add(1, SeqCst);
            put_in_place(&libraries[reload % 2], &place);
            assert_eq!(server.reloaded("versioned"), "reloaded", "reload {reload}");
            turn.fetch_add(1, SeqCst);
            assert_eq!(version(&server), ["old", "new"][reload % 2], "after reload {reload}");
            if reload == WARM {
                warm = server.proc_status("VmRSS") << 10;
            }
        }
    });
    let grown = (server.proc_status("VmRSS") << 10).saturating_sub(warm) / (reloads - WARM) as u64;
    let library = std::fs::metadata(&place).expect("the library exists").len();
    println!("{grown} bytes of memory for each reload of a library of {library}");
    assert!(grown <= 2 * library, "{grown} bytes of memory for each reload of a library of {library}");
    server.stop().expect(0);
}

#[test]
fn a_replaced_plugin_is_destroyed_before_the_reload_responds() {
    let server = setup().start();
    server.post("k", "v").expect(200);
    put_in_place(&new(), &server.library_of("versioned"));
    assert_eq!(server.reloaded("versioned"), "reloaded");
    server.logs(&["versioned", "old is dropped"]);
    server.logs_no(&["new is dropped"]);
    let log = server.stop().expect(0).stderr;
    assert_eq!(log.matches("is dropped").count(), 2, "each once in {log}");
}

#[test]
fn a_failed_reload_keeps_the_old_library_and_reports_the_load_code() {
    let plugins = artefacts();
    let (refuses, panics) = (plugins.library("fault-refuses"), plugins.library("fault-panics"));
    let setup = setup();
    let server = setup.start();
    server.post("k", "v").expect(200);
    let place = server.library_of("versioned");
    let cut_off = setup.folder().join("cut-off");
    let whole = std::fs::read(new()).expect("a library can be read");
    std::fs::write(&cut_off, &whole[..whole.len() / 2]).expect("half of it can be written");
    for (library, config, code) in [
        (cut_off.as_path(), "", "cut-off"),
        (refuses.as_path(), "[plugins.fault-refuses]\nwhere = \"create\"\n", "create-failed"),
        (refuses.as_path(), "[plugins.fault-refuses]\nwhere = \"start\"\n", "start-failed"),
        (refuses.as_path(), "[plugins.fault-refuses]\nwhen = \"now\"\n", "bad-settings"),
        (panics.as_path(), "[plugins.fault-panics]\nwhere = \"create\"\n", "create-panicked"),
        (panics.as_path(), "[plugins.fault-panics]\nwhere = \"start\"\n", "start-panicked"),
    ] {
        setup.write_config(&administered(config));
        put_in_place(library, &place);
        assert_eq!(server.reloaded(&as_library("libversioned")), code);
        assert_eq!(version(&server), "old", "after {code}");
        server.logs(&["cannot load", code, "the loaded version continues"]);
        server.path("GET", "/readyz").send().expect(200);
    }
    server.logs_no(&["is dropped"]);
    put_in_place(&new(), &place);
    assert_eq!(server.reloaded("versioned"), "reloaded");
    assert_eq!(version(&server), "new");
}

#[test]
fn bytes_counts_exactly_across_reloads_during_writes() {
    const LIMIT: usize = 64 * 1024;
    const CLIENTS: usize = 6;

    let limit = LIMIT.to_string();
    // A put sleeps between its arrival and its guard, so that many are in flight.
    let setup = Setup::new().load(bytes()).load(conflict()).load(artefacts().library("drill"));
    let setup = setup.config(administered("[plugins.drill]\nsleep_ms = 2\n"));
    let server = setup.args(["--max-size", &limit, "--max-value", "1MiB", "--fsync", "never"]).start();
    let place = server.library_of("bytes");
    let clients = server.wires(CLIENTS).into_iter().enumerate().map(|(client, mut wire)| {
        let mut round = client;
        move || {
            round += 7;
            let path = format!("/k/{}", round % 10);
            let reply = match round % 4 {
                0 => wire.request("POST", &path, &pattern(1 + round * 37 % 9000)),
                1 | 2 => wire.request("PUT", &path, &pattern(1 + round * 53 % 9000)),
                _ => wire.request("DELETE", &path, b""),
            };
            assert!([200, 404, 409, 413].contains(&reply.status), "{reply}");
        }
    });
    with_background(clients, || {
        let mut library = std::fs::read(bytes()).expect("a library can be read");
        let changed = changed(&place);
        for _ in 0..15 {
            // With appended bytes it is another library for the host and the same for the linker.
            library.push(0);
            std::fs::write(&changed, &library).expect("a library can be written");
            put_in_place(&changed, &place);
            assert_eq!(server.reloaded("bytes"), "reloaded");
        }
    });
    let held: usize = (0..10)
        .map(|key| server.get(&key.to_string()))
        .filter(|reply| reply.status == 200)
        .map(|reply| 1 + reply.body.len())
        .sum();
    let free = LIMIT - held;
    println!("{held} of {LIMIT} bytes are held");
    server.post("z", pattern(free)).refused(413, "Max size exceeded").says(&format!(", {free} of {LIMIT} are free"));
    server.post("z", pattern(free - 1)).expect(200);
    server.post("y", "").expect(400);
    server.post("y", "v").refused(413, "Max size exceeded").says(", 0 of ");
}

/// Returns the path for preparing a changed library: beside the plugin folder.
fn changed(place: &Path) -> PathBuf {
    place.parent().and_then(Path::parent).expect("the plugin folder is in a folder").join("changed")
}

#[test]
fn a_client_that_does_not_read_its_response_delays_no_reload() {
    let server =
        Setup::new().load(bytes()).load(conflict()).config(administered("")).args(["--fsync", "never"]).start();
    server.post("big", pattern(32 << 20)).expect(200);
    let mut lazy = server.wires(1).remove(0);
    lazy.send("GET /k/big HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // The response has started and cannot end.
    lazy.begin_reply();
    let began = Instant::now();
    std::fs::remove_file(server.library_of("conflict")).expect("a library can be removed");
    put_in_place(&new(), &server.library_of("bytes").with_file_name(as_library("libversioned")));
    let mut library = std::fs::read(bytes()).expect("a library can be read");
    library.push(0);
    let changed = changed(&server.library_of("bytes"));
    std::fs::write(&changed, &library).expect("a library can be written");
    put_in_place(&changed, &server.library_of("bytes"));
    assert_eq!(server.reloaded("bytes"), "reloaded");
    assert!(began.elapsed() < Duration::from_secs(5), "the reload took {:?}", began.elapsed());
    server.post("k", "v").expect(200);
}

#[test]
fn a_reload_keeps_a_required_plugin_whose_library_is_gone() {
    let demand = "[plugins.conflict]\nrequired = true\n";
    let server = Setup::new().load(conflict()).config(administered(demand)).start();
    let place = server.library_of("conflict");
    let moved = place.with_file_name(as_library("libmoved"));
    std::fs::rename(&place, &moved).expect("a library can be renamed");
    assert_eq!(server.reloaded(&as_library("libmoved")), "loaded");
    std::fs::remove_file(&moved).expect("a library can be removed");
    assert_eq!(server.reloaded("conflict"), "required");
    server.put("k", "v").expect(404).has("Vkog-Plugin", "conflict");
    server.logs(&["ERROR", "[plugins.conflict] requires it", "the loaded version continues"]);
}

#[test]
fn a_reload_keeps_a_required_plugin_whose_library_contains_another_one() {
    let hash = {
        use sha2::{Digest, Sha256};
        let library = std::fs::read(conflict()).expect("a library can be read");
        Sha256::digest(library).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let (required, pin) = ("required = true".to_owned(), format!("sha256 = \"{hash}\""));
    for (demand, file, code) in [
        (&required, "libvkog_conflict", "required"),
        // The file name does not stand for the plugin.
        (&required, "libx", "required"),
        (&pin, "libx", "required"),
        (&pin, "libvkog_conflict", "wrong-sha256"),
    ] {
        let setup = Setup::new().load_as(conflict(), as_library(file));
        let server = setup.config(administered(&format!("[plugins.conflict]\n{demand}\n"))).start();
        put_in_place(&bytes(), &server.library_of("conflict"));
        assert_eq!(server.reloaded(&as_library(file)), code, "{demand} {file}");
        server.put("k", "v").expect(404).has("Vkog-Plugin", "conflict");
        assert_eq!(server.plugins().len(), 1, "bytes is not loaded");
        if code == "required" {
            server.logs(&["ERROR", "[plugins.conflict] requires", "this library now contains the plugin"]);
        }
        put_in_place(&conflict(), &server.library_of("conflict"));
        assert_eq!(server.reloaded("conflict"), "kept");
    }
    // Without a demand, the other plugin replaces it.
    let setup = Setup::new().load_as(conflict(), as_library("libx")).config(administered(""));
    let server = setup.start();
    put_in_place(&bytes(), &server.library_of("conflict"));
    assert_eq!(server.reloaded("bytes"), "reloaded");
    server.put("k", "v").expect(200);
}

#[test]
fn a_hook_that_outlasts_a_reload_fails_it_and_the_old_counting_plugin_continues() {
    let setup = Setup::new().load(bytes()).load(artefacts().library("waits")).config(administered(""));
    let server = setup.args(["--max-size", "100"]).start();
    server.post("k", "v").expect(200);
    let mut waiting = server.wire();
    waiting.send("GET /k/before HTTP/1.1\r\nHost: localhost\r\n\r\n");
    server.logs(&["before_get waits"]);
    let mut library = std::fs::read(bytes()).expect("a library can be read");
    library.push(0);
    let place = server.library_of("bytes");
    std::fs::write(changed(&place), &library).expect("a library can be written");
    put_in_place(&changed(&place), &place);
    // It counts what the store holds, so it is started only while no request is in flight. The hook waits for longer than a
    // reload waits for that.
    assert_eq!(server.reloaded("bytes"), "start-failed");
    server.logs(&["did not end within 10s"]);
    // The old plugin continues to count: this entry is included below.
    server.post("open", "v").expect(200);
    // The hook has returned by now, because the entry lets it or because it has waited for long enough.
    waiting.reply();
    server.post("large", "v".repeat(94)).refused(413, "Max size exceeded").says("needs 99 bytes, 93 of 100 are free");
    assert_eq!(server.reloaded("bytes"), "reloaded");
    server.post("large", "v".repeat(94)).refused(413, "Max size exceeded").says("needs 99 bytes, 93 of 100 are free");
}

#[test]
fn a_signal_reloads_as_the_request_does() {
    let server = setup().start();
    server.post("k", "v").expect(200);
    put_in_place(&new(), &server.library_of("versioned"));
    assert_eq!(version(&server), "old");
    server.signal("HUP");
    server.logs(&["reloaded versioned"]);
    server.logs(&["old is dropped"]);
    assert_eq!(version(&server), "new");
}

#[test]
fn a_reload_requires_an_admin_token() {
    let server = setup().start();
    for wrong in [
        None,
        Some(""),
        Some(TOKEN),
        Some("Bearer"),
        Some("Bearer wrong"),
        Some("Basic s3cret"),
        Some("Bearer s3cret2"),
    ] {
        let words = if wrong.is_none() { "Send a token" } else { "Unknown token; send one of [[access.tokens]]" };
        server.reload_as(wrong).refused(401, words).has("WWW-Authenticate", "Bearer realm=\"vkog\"");
    }
    server.reload_as(Some("bearer s3cret")).expect(200).says("kept");
    server.path("GET", "/plugins/reload").send().refused(405, "Method not allowed").has("Allow", "POST, OPTIONS");
    assert!(!server.log().contains(TOKEN), "the token is in the log:\n{}", server.log());
    let server = Setup::new().load(old()).start();
    server.reload().refused(403, "Administration is off").says("[[access.tokens]]");
    server.reload_as(None).refused(401, "Administration is off").has("WWW-Authenticate", "Bearer realm=\"vkog\"");
}

#[test]
fn a_reload_loads_removes_and_follows_moved_libraries() {
    let setup = setup();
    let server = setup.start();
    server.post("k", "v").expect(200);
    server.post("k", "v").expect(200);
    let folder = server.library_of("versioned").parent().expect("it is in a folder").to_owned();
    let place = folder.join(as_library("libconflict"));
    put_in_place(&conflict(), &place);
    assert_eq!(server.reloaded("conflict"), "loaded");
    server.post("k", "v").expect(409);
    // A plugin with another file name is the same plugin.
    let moved = folder.join(as_library("libmoved"));
    std::fs::rename(&place, &moved).expect("a library can be renamed");
    assert_eq!(server.reloaded(&as_library("libmoved")), "loaded");
    server.post("k", "v").expect(409);
    assert_eq!(server.library_of("conflict"), moved);
    // A second plugin with the same name is refused, and the first continues.
    put_in_place(&conflict(), &place);
    assert_eq!(server.reloaded(&as_library("libconflict")), "duplicate-name");
    server.post("k", "v").expect(409);
    std::fs::remove_file(&place).expect("a library can be removed");
    assert_eq!(server.reloaded(&as_library("libmoved")), "kept");
    std::fs::remove_file(&moved).expect("a library can be removed");
    assert_eq!(server.reloaded("conflict"), "removed");
    server.post("k", "v").expect(200);
    // A plugin that replaces another one is reported by its own name.
    let place = server.library_of("versioned");
    put_in_place(&conflict(), &place);
    assert_eq!(server.reloaded("conflict"), "reloaded");
    server.post("k", "v").expect(409);
    put_in_place(&old(), &place);
    assert_eq!(server.reloaded("versioned"), "reloaded");
    let names: Vec<_> = server.plugins().iter().map(|plugin| plugin["name"].to_string()).collect();
    assert_eq!(names, ["\"versioned\""]);
    // A library without a plugin is skipped, unless it replaces one.
    let helper = artefacts().library("fault-no-plugin");
    put_in_place(&helper, &folder.join(as_library("libhelper")));
    assert_eq!(server.reloaded("versioned"), "kept");
    server.logs(&["skipped", "libhelper"]);
    put_in_place(&helper, &place);
    assert_eq!(server.reloaded("versioned"), "no-plugin");
}

#[test]
fn new_settings_reach_the_plugin_or_a_new_instance() {
    let setup = setup().load(artefacts().library("drill"));
    let server = setup.start();
    server.post("k", "v").expect(200);
    let read = |name: &str| server.get("k").expect(200).header(name).map(str::to_owned);
    let configured = |config: &str| setup.write_config(&administered(config));

    // With the hook, the instance stays.
    configured("[plugins.drill]\nlabel = \"first\"\n");
    assert_eq!(server.reloaded("drill"), "reconfigured");
    assert_eq!(read("X-Label").as_deref(), Some("first"));
    assert_eq!(server.plugin("drill")["settings"]["label"], "first");
    assert_eq!(server.reloaded("drill"), "kept");
    // Settings that it rejects or cannot read change nothing.
    for wrong in ["label = \"wrong\"", "lable = \"second\"", "label = 2"] {
        configured(&format!("[plugins.drill]\n{wrong}\n"));
        assert_eq!(server.reloaded("drill"), "bad-settings", "{wrong}");
        assert_eq!(read("X-Label").as_deref(), Some("first"), "{wrong}");
        assert_eq!(server.plugin("drill")["settings"]["label"], "first", "{wrong}");
    }
    server.logs_no(&["is dropped"]);
    // A change of the host's own keys needs a new instance.
    configured("[plugins.drill]\nlabel = \"second\"\nbudget = \"1s\"\n");
    assert_eq!(server.reloaded("drill"), "reloaded");
    server.logs(&["first is dropped"]);
    assert_eq!(read("X-Label").as_deref(), Some("second"));

    // Without the hook, every change does.
    configured("[plugins.versioned]\nsaid = \"first\"\n[plugins.drill]\nlabel = \"second\"\nbudget = \"1s\"\n");
    assert_eq!(server.reloaded("versioned"), "reloaded");
    server.logs(&["old is dropped"]);
    assert_eq!(read("X-Said").as_deref(), Some("first"));
    configured("[plugins.versioned]\nsaid = 1\n[plugins.drill]\nlabel = \"second\"\nbudget = \"1s\"\n");
    assert_eq!(server.reloaded("versioned"), "bad-settings");
    assert_eq!(read("X-Said").as_deref(), Some("first"));
}

#[test]
fn an_invalid_configuration_reloads_nothing() {
    let setup = setup();
    let server = setup.start();
    server.post("k", "v").expect(200);
    put_in_place(&new(), &server.library_of("versioned"));
    setup.write_config("[plugins\n");
    server.reload().refused(409, "Nothing was reloaded: cannot use ");
    assert_eq!(version(&server), "old");
    if !on_windows() {
        server.signal("HUP");
        server.logs(&["nothing was reloaded"]);
        assert_eq!(version(&server), "old");
    }
}
