//! The first refusal wins, has the plugin's name and headers, and leaves the store unchanged, to the byte.
//!
//! Provoked with a plugin that refuses in the hook that its settings name, for each hook that may refuse.

use vkog_tests::{Setup, artefacts, bytes, conflict};

use super::ENGINE;

#[test]
fn each_hook_that_may_refuse_refuses_and_the_file_stays_as_it_was() {
    for phase in ["before", "guard"] {
        for verb in ["get", "post", "put", "delete"] {
            let hook = format!("{phase}_{verb}");
            let setup = Setup::on(ENGINE)
                .load(bytes())
                .load(conflict())
                .load(artefacts().library("fault-refuses"))
                .config(format!("[plugins.fault-refuses]\nwhere = \"{hook}\"\nstatus = 451\n"));
            let seeding = Setup::on(ENGINE).store(setup.store_file()).start();
            let sown = seeding.post("seed", "sown").expect(200).revision();
            seeding.stop().expect(0);
            let server = setup.start();
            let reply = match verb {
                "get" => server.get("seed"),
                "post" => server.post("new", "value"),
                "put" => server.put("seed", "changed"),
                _ => server.delete("seed"),
            };
            let reply = reply.refused(451, "refused on purpose\n");
            reply.has("Vkog-Plugin", "fault-refuses").has("X-Purpose", &hook);
            server.stop().expect(0);
            let after = Setup::on(ENGINE).store(setup.store_file()).start();
            let read = after.get("seed").expect(200).is("sown");
            assert_eq!(read.revision(), sown, "the revision of {read}");
            after.get("new").expect(404);
        }
    }
}

#[test]
fn head_is_refused_as_get_is() {
    let config = "[plugins.fault-refuses]\nwhere = \"before_get\"\nstatus = 401\n";
    let server = Setup::on(ENGINE).load(artefacts().library("fault-refuses")).config(config).start();
    server.post("k", "v").expect(200);
    let head = server.key("HEAD", "k").send().expect(401).has("Vkog-Plugin", "fault-refuses");
    assert!(head.body.is_empty(), "a body in {head}");
}

#[test]
fn the_first_refusal_in_the_chain_wins() {
    // conflict and bytes would both refuse, and conflict is called first.
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["-s", "10", "--max-value", "1MiB"]).start();
    server.post("k", "v").expect(200);
    server.post("k", [b'x'; 100]).refused(409, "Key already exists").has("Vkog-Plugin", "conflict");
    server.put("absent", [b'x'; 100]).refused(404, "Key does not exist").has("Vkog-Plugin", "conflict");
    server.put("k", [b'x'; 100]).refused(413, "Max size exceeded").has("Vkog-Plugin", "bytes");
}

#[test]
fn a_refusal_of_a_before_hook_prevents_all_guards() {
    let config = "[plugins.fault-refuses]\nwhere = \"before_post\"\n";
    let setup = Setup::on(ENGINE).load(conflict()).load(artefacts().library("fault-refuses")).config(config);
    let seeding = Setup::on(ENGINE).store(setup.store_file()).start();
    seeding.post("k", "v").expect(200);
    seeding.stop().expect(0);
    setup.start().post("k", "v").refused(403, "refused on purpose").has("Vkog-Plugin", "fault-refuses");
}
