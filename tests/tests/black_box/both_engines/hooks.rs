//! Every hook is called when docs/reference/hooks.md says, in that order, and sees the documented data.
//!
//! Provoked with two plugins that log each call, one at each end of the chain, and that replace, hide and add details
//! when the query of a request says so. The responses are compared with what the hooks saw.

use serde_json::{Value, json};
use vkog_tests::{Server, Setup, artefacts, conflict, guard_runs};

use super::ENGINE;

fn setup() -> Setup {
    Setup::on(ENGINE).load(artefacts().library("witness-last")).load(artefacts().library("witness-first"))
}

/// Returns what the two plugins have logged about requests: the plugin and the line.
fn told(server: &Server) -> Vec<(String, Value)> {
    // A read of a separate key is logged last, so all earlier lines are in the log by then.
    let marker = format!("marker-{}", server.log().len());
    server.get(&marker).expect(404);
    server.logs(&["witness-last", &marker]);
    let told = |line: &str| -> Option<(String, Value)> {
        let line: Value = serde_json::from_str(line).ok()?;
        let told: Value = serde_json::from_str(line["message"].as_str()?.strip_prefix("witness ")?).ok()?;
        let about_a_request = told["key"].as_str().is_some_and(|key| !key.starts_with("marker-"));
        about_a_request.then_some((line["plugin"].as_str()?.to_owned(), told))
    };
    server.log().lines().filter_map(told).collect()
}

/// Returns the calls in order, such as `first before_get`.
fn order(told: &[(String, Value)]) -> Vec<String> {
    let line = |(plugin, told): &(String, Value)| {
        format!("{} {}", plugin.trim_start_matches("witness-"), told["hook"].as_str().unwrap_or_default())
    };
    told.iter().map(line).collect()
}

#[test]
fn before_and_guard_hooks_run_in_stage_order_and_after_hooks_in_reverse() {
    let server = setup().load(conflict()).start();
    let mut before = 0;
    for verb in ["post", "put", "get", "delete"] {
        let request = server.key(&verb.to_uppercase(), "k");
        let request = if verb == "post" || verb == "put" { request.body(verb) } else { request };
        request.send().expect(200);
        let calls = told(&server).split_off(before);
        let expected = ["first before", "last before", "first guard", "last guard", "last after", "first after"];
        assert_eq!(order(&calls), expected.map(|call| format!("{call}_{verb}")), "{}", server.log());
        before += calls.len();
    }
}

#[test]
fn guards_before_a_refusal_are_undone_the_last_first_and_no_after_hook_is_called() {
    let refuses = artefacts().library("fault-refuses");
    // The order puts both witnesses before the plugin that refuses, so that both have something to undo.
    let plugin_order = "[plugins]\norder = [\"witness-first\", \"witness-last\"]\n";
    for verb in ["get", "post", "put", "delete"] {
        let config = format!("{plugin_order}[plugins.fault-refuses]\nwhere = \"guard_{verb}\"\nvalue = \"\"\n");
        let setup = setup().load(conflict()).load(&refuses).config(config);
        let seeding = Setup::on(ENGINE).store(setup.store_file()).start();
        seeding.post("k", "v").expect(200);
        seeding.stop().expect(0);
        let server = setup.start();
        let request = server.key(&verb.to_uppercase(), if verb == "post" { "new" } else { "k" });
        let request = if verb == "post" || verb == "put" { request.body("!") } else { request };
        request.send().expect(403);
        let calls = told(&server);
        let runs = if verb == "get" { 1 } else { guard_runs() as usize };
        let guards = ["first guard", "last guard", "last undo", "first undo"];
        let expected = [&["first before", "last before"][..], &guards.repeat(runs)].concat();
        let expected: Vec<_> = expected.iter().map(|call| format!("{call}_{verb}")).collect();
        assert_eq!(order(&calls), expected, "{}", server.log());
        // Each undo hook sees the same entries as its guard.
        for run in calls[2..].chunks(guards.len()) {
            assert_eq!(run[0].1["entries"], run[3].1["entries"]);
            assert_eq!(run[1].1["entries"], run[2].1["entries"]);
        }
    }
}

#[test]
fn only_before_hooks_run_for_a_get_or_delete_of_an_absent_key() {
    let server = setup().start();
    server.get("k").expect(404);
    server.delete("k").expect(404);
    let calls = told(&server);
    let expected = ["first before_get", "last before_get", "first before_delete", "last before_delete"];
    assert_eq!(order(&calls), expected, "{}", server.log());
}

#[test]
fn a_hook_sees_the_whole_request() {
    let server = setup().start();
    let before = server.revision();
    let sent = server.path("POST", "/k/a%2Fb%20c?one=1&two=%20");
    let sent = sent.header("X-Witness", "seen").header("x-witness", "twice").header("Content-Type", "text/plain");
    let posted = sent.body("value").send().expect(200).revision();
    for (_, told) in told(&server) {
        let shown = ["method", "key", "value", "content_type", "query", "header", "headers"];
        let expected = json!(["POST", "a/b c", "value", "text/plain", "one=1&two=%20", "seen", 2]);
        assert_eq!(shown.map(|name| &told[name]).map(Clone::clone).to_vec(), *expected.as_array().expect("it is one"));
        let arrived = told["arrived"].as_u64().expect("a revision");
        assert!((before..posted).contains(&arrived), "{before} <= {arrived} < {posted}");
        let client = told["client"].as_str().unwrap_or_default();
        assert!(client.starts_with("127.0.0.1:"), "the client in {told}");
    }
}

#[test]
fn a_guard_sees_the_current_entry_and_an_after_hook_both_entries() {
    let server = setup().start();
    let posted = server.key("POST", "k").header("Content-Type", "text/plain").body("one").send().expect(200).revision();
    let put = server.key("PUT", "k").header("Content-Type", "text/html").body("two").send().expect(200).revision();
    server.get("k").expect(200);
    server.delete("k").expect(200);
    let calls = told(&server);
    let (one, two) = (json!(["one", "text/plain", posted, ""]), json!(["two", "text/html", put, ""]));
    let expected = [
        ("guard_post", json!(null)),
        ("after_post", json!([null, one, posted])),
        ("guard_put", one.clone()),
        ("after_put", json!([one, two, put])),
        ("guard_get", two.clone()),
        ("guard_delete", two.clone()),
    ];
    for (hook, entries) in expected {
        let shown: Vec<_> =
            calls.iter().filter(|(_, told)| told["hook"] == hook).map(|(_, told)| &told["entries"]).collect();
        assert_eq!(shown, [&entries, &entries], "{hook}\n{}", server.log());
    }
    for (_, told) in calls.iter().filter(|(_, told)| told["hook"] == "after_delete") {
        assert_eq!((&told["entries"][0], &told["entries"][1]), (&two, &Value::Null), "{told}");
    }
}

#[test]
fn later_plugins_see_a_replaced_value_and_the_store_writes_it() {
    let server = setup().start();
    server.path("POST", "/k/k?replace-witness-first").body("v").send().expect(200);
    server.get("k").expect(200).is("<v>");
    server.path("PUT", "/k/k?replace").body("v").send().expect(200);
    server.get("k").expect(200).is("<<v>>");
    let calls = told(&server);
    let seen = |plugin: &str, hook: &str| {
        let found = calls.iter().find(|(who, told)| who == plugin && told["hook"] == hook);
        found.unwrap_or_else(|| panic!("no {hook} of {plugin}")).1["value"].clone()
    };
    assert_eq!((seen("witness-first", "before_post"), seen("witness-last", "before_post")), (json!("v"), json!("<v>")));
    assert_eq!((seen("witness-first", "guard_post"), seen("witness-last", "after_post")), (json!("<v>"), json!("<v>")));
    assert_eq!(
        (seen("witness-first", "after_put"), seen("witness-last", "guard_put")),
        (json!("<<v>>"), json!("<<v>>"))
    );
}

#[test]
fn a_hidden_entry_counts_as_absent_for_that_read() {
    let server = setup().start();
    server.put("k", "v").expect(200);
    for query in ["hide-before", "hide-before-witness-last", "hide-guard", "hide-guard-witness-last"] {
        server.path("GET", &format!("/k/k?{query}")).send().refused(404, "Not Found");
        server.path("HEAD", &format!("/k/k?{query}")).send().expect(404);
    }
    server.get("k").expect(200).is("v");
}

#[test]
fn details_belong_to_one_plugin_and_survive_a_restart() {
    let setup = setup();
    let server = setup.start();
    server.path("POST", "/k/both?details").body("v").send().expect(200);
    server.path("POST", "/k/one?details-witness-last").body("v").send().expect(200);
    server.path("POST", "/k/gone?details").body("v").send().expect(200);
    server.put("gone", "v").expect(200);
    server.stop().expect(0);

    let server = setup.start();
    for (key, first, last) in [
        ("both", "witness-first of both", "witness-last of both"),
        ("one", "", "witness-last of one"),
        // Details belong to one write: an entry that is written again has none until they are set again.
        ("gone", "", ""),
    ] {
        let before = told(&server).len();
        server.get(key).expect(200).is("v");
        let calls = told(&server).split_off(before);
        for (plugin, told) in calls.iter().filter(|(_, told)| told["hook"] == "guard_get") {
            let expected = if plugin == "witness-first" { first } else { last };
            assert_eq!(told["entries"][3], expected, "the details of {key} for {plugin}");
        }
    }
}

#[test]
fn a_start_hook_sees_all_stored_entries() {
    let setup = setup();
    let server = setup.start();
    let a = server.key("POST", "a").header("Content-Type", "text/plain").body("1").send().expect(200).revision();
    let b = server.path("POST", "/k/b?details-witness-last").body("2").send().expect(200).revision();
    server.stop().expect(0);
    let server = setup.start();
    server.logs(&["witness-first", "\\\"hook\\\":\\\"start\\\""]);
    server.logs(&["witness-last", "\\\"hook\\\":\\\"start\\\""]);
    let lines: Vec<Value> = server.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for (plugin, details) in [("witness-first", ""), ("witness-last", "witness-last of b")] {
        let started = lines.iter().filter(|line| line["plugin"] == plugin).find_map(|line| {
            let told: Value = serde_json::from_str(line["message"].as_str()?.strip_prefix("witness ")?).ok()?;
            (told["hook"] == "start").then(|| told["entries"].clone())
        });
        let octets = "application/octet-stream";
        assert_eq!(
            started,
            Some(json!([["a", ["1", "text/plain", a, ""]], ["b", ["2", octets, b, details]]])),
            "{plugin}"
        );
    }
}
