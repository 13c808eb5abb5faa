//! A panic of a plugin is contained: in `before` and `guard` it rejects the request with 500 and the plugin's name, in
//! `after` and `undo` it is logged. The store does not change, and the next request succeeds.
//!
//! Provoked with a plugin that panics in the hook that its settings name. It runs after the bytes plugin, whose
//! reservation must be released, and before a plugin that refuses, so that an undo hook can panic.

use vkog_tests::{Client, Reply, Server, Setup, artefacts, bytes, conflict, guard_runs};

use super::ENGINE;

const VERBS: [&str; 4] = ["get", "post", "put", "delete"];

fn setup(place: &str) -> Setup {
    let plugins = artefacts();
    Setup::on(ENGINE)
        .load(bytes())
        .load(conflict())
        .load(plugins.library("fault-panics"))
        .args(["--max-size", "1000", "--max-value", "1MiB"])
        .config(format!("[plugins.fault-panics]\nwhere = \"{place}\"\n"))
}

/// A server whose store already holds `seed`, so that no hook has run for it.
fn seeded(setup: &Setup) -> Server {
    let seeding = Setup::on(ENGINE).store(setup.store_file()).start();
    seeding.post("seed", "sown").expect(200);
    seeding.stop().expect(0);
    setup.start()
}

/// A request with this verb that would succeed. A POST has a new key.
fn ask(client: &Client, verb: &str) -> Reply {
    match verb {
        "get" => client.get("seed"),
        "post" => client.post("new", "value"),
        "put" => client.put("seed", "changed"),
        _ => client.delete("seed"),
    }
}

/// Asserts that neither the store nor the count of bytes has changed. Does not use the verb that panics.
fn unchanged(server: &Server, verb: &str) {
    if verb != "get" {
        server.get("seed").expect(200).is("sown");
        server.get("new").expect(404);
    }
    let big = [b'x'; 1000];
    let needed = if verb == "put" { server.post("big", big) } else { server.put("seed", big) };
    let free = 1000 - "seedsown".len();
    needed.refused(413, "Max size exceeded").says(&format!(", {free} of 1000 are free"));
}

#[test]
fn a_plugin_that_panics_in_before_or_guard_refuses_with_500_and_the_server_lives() {
    for phase in ["before", "guard"] {
        for verb in VERBS {
            let hook = format!("{phase}_{verb}");
            let setup = setup(&hook);
            let server = seeded(&setup);
            let reply = ask(&server, verb).expect(500).has("Vkog-Plugin", "fault-panics");
            reply.says("fault-panics").says(&hook);
            server.logs(&["fault-panics", &hook, "on purpose"]);
            unchanged(&server, verb);
            // Other verbs continue to succeed, and the one that panics continues to be refused.
            ask(&server, verb).expect(500);
            if verb == "get" {
                server.put("seed", "changed").expect(200);
            } else {
                server.get("seed").expect(200).is("sown");
            }
            server.stop().expect(0);
            // The file has the same entries as the memory.
            let after = Setup::on(ENGINE).store(setup.store_file()).start();
            after.get("seed").expect(200).is(if verb == "get" { "changed" } else { "sown" });
            after.get("new").expect(404);
        }
    }
}

#[test]
fn a_panic_in_an_after_hook_changes_no_response_and_is_logged() {
    for verb in VERBS {
        let hook = format!("after_{verb}");
        let server = seeded(&setup(&hook));
        let reply = ask(&server, verb).expect(200);
        assert_eq!(reply.header("Vkog-Plugin"), None, "a plugin's name in {reply}");
        server.logs(&["fault-panics", &hook, "on purpose"]);
        match verb {
            "post" => _ = server.get("new").expect(200).is("value"),
            "put" => _ = server.get("seed").expect(200).is("changed"),
            "delete" => _ = server.get("seed").expect(404),
            _ => _ = server.get("seed").expect(200).is("sown"),
        }
        server.stop().expect(0);
    }
}

#[test]
fn a_panic_in_an_undo_hook_is_logged_and_the_other_undo_hooks_run() {
    for verb in VERBS {
        let hook = format!("undo_{verb}");
        let setup = setup(&hook).load(artefacts().library("fault-refuses")).config(format!(
            "[plugins.fault-panics]\nwhere = \"{hook}\"\n[plugins.fault-refuses]\nwhere = \"guard_{verb}\"\n"
        ));
        let server = seeded(&setup);
        ask(&server, verb)
            .refused(403, "refused on purpose")
            .has("Vkog-Plugin", "fault-refuses")
            .has("X-Purpose", &format!("guard_{verb}"));
        server.logs(&["fault-panics", &hook, "on purpose"]);
        // bytes guards before both: its reservation is given back although the undo before its own panicked.
        unchanged(&server, verb);
        server.stop().expect(0);
    }
}

#[test]
fn a_plugin_that_panics_in_drop_is_logged_and_the_stop_is_clean() {
    let setup = setup("drop");
    let server = seeded(&setup);
    server.post("new", "value").expect(200);
    let exit = server.stop().expect(0);
    let told = exit.stderr.lines().any(|line| line.contains("fault-panics") && line.contains("on purpose"));
    assert!(told, "no line that names the plugin in {exit}");
    Setup::on(ENGINE).store(setup.store_file()).start().get("new").expect(200).is("value");
}

#[test]
fn a_panic_in_create_or_start_stops_the_start_and_changes_nothing() {
    for (place, code) in [("create", "[create-panicked]"), ("start", "[start-panicked]")] {
        let setup = setup(place);
        let seeding = Setup::on(ENGINE).store(setup.store_file()).start();
        seeding.post("seed", "sown").expect(200);
        seeding.stop().expect(0);
        let before = std::fs::read(setup.store_file()).expect("the store exists");
        let exit = setup.fail().expect(1);
        let told = |line: &str| {
            line.starts_with("vkog: cannot load ")
                && ["fault-panics", "on purpose"].iter().all(|word| line.contains(word))
                && line.ends_with(code)
        };
        assert_eq!(exit.stderr.lines().filter(|line| told(line)).count(), 1, "one line with {code} in {exit}");
        assert_eq!(exit.stdout, "", "standard output of {exit}");
        assert_eq!(std::fs::read(setup.store_file()).expect("the store exists"), before);
    }
}

#[test]
fn concurrent_panics_leave_the_server_and_the_count_intact() {
    let server = seeded(&setup("guard_put"));
    std::thread::scope(|scope| {
        // Five panics would be a quarantine.
        for mut wire in server.wires(4 / guard_runs() as usize) {
            scope.spawn(move || {
                wire.request("PUT", "/k/seed", b"changed").expect(500).has("Vkog-Plugin", "fault-panics");
                for _ in 0..25 {
                    wire.request("GET", "/k/seed", b"").expect(200).is("sown");
                }
            });
        }
    });
    unchanged(&server, "put");
}

#[test]
fn a_refusal_with_an_invalid_status_is_500_and_names_the_plugin() {
    for status in [200, 302, 600] {
        let config = format!("[plugins.fault-refuses]\nwhere = \"guard_put\"\nstatus = {status}\n");
        let server = seeded(&Setup::on(ENGINE).load(artefacts().library("fault-refuses")).config(config));
        server.put("seed", "changed").expect(500).has("Vkog-Plugin", "fault-refuses");
        server.logs(&["fault-refuses", &status.to_string()]);
        server.get("seed").expect(200).is("sown");
    }
}
