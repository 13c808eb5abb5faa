//! `before_request` runs once for each HTTP request for entries, may refuse it, and sees its token. Operations have the
//! origin, the media type and the state that their hooks set, on the way through a server.
//!
//! Provoked with a plugin that does what the headers of a request say, once on the threads of the HTTP engine and once on the
//! blocking pool.

use std::time::Instant;

use serde_json::Value;
use vkog_tests::{DEADLINE, Reply, Server, Setup, administered, artefacts, conflict, put_in_place};

use super::ENGINE;

const PLUGINS: [&str; 2] = ["requests", "requests-blocking"];

fn setup(plugin: &str) -> Setup {
    Setup::on(ENGINE).load(artefacts().library(plugin)).args(["--fsync", "never"])
}

const TOKENS: &str = "[[access.tokens]]\nname = \"reader\"\ntoken = \"read\"\nright = \"read\"\n\
                      [[access.tokens]]\nname = \"writer\"\ntoken = \"write\"\nright = \"write\"\nprefix = \"t/a\"\n\
                      [[access.tokens]]\nname = \"operator\"\ntoken = \"operate\"\nright = \"admin\"\n";

#[track_caller]
fn send(server: &Server, method: &str, path: &str, token: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = server.path(method, path).header("Authorization", format!("Bearer {token}"));
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    if path == "/batch" {
        request = request.header("Content-Type", "application/json");
    }
    if body.is_empty() { request.send() } else { request.body(body).send() }
}

/// Returns what the plugin has logged that begins so, after a request of the test.
fn logged(server: &Server, word: &str) -> Vec<String> {
    let marker = format!("/k/marker-{}", server.log().len());
    let request = server.path("GET", &marker).header("Authorization", "Bearer operate").send();
    assert!(request.status == 404 || request.status == 200, "{request}");
    server.logs(&["operation", &marker[3..]]);
    let message = |line: &str| -> Option<String> {
        let line: Value = serde_json::from_str(line).ok()?;
        let message = line["message"].as_str()?.to_owned();
        let is_wanted = message.starts_with(word) && message.contains(" by ") && !message.contains("marker-");
        is_wanted.then_some(message)
    };
    server.log().lines().filter_map(message).collect()
}

/// The requests that the hook sees: method, path, body.
const REQUESTS: [(&str, &str, &str); 15] = [
    ("PUT", "/k/t/a?q=%20", "v"),
    ("POST", "/k/t/b", "v"),
    ("GET", "/k/t%2Fa", ""),
    ("HEAD", "/k/t/a", ""),
    ("PATCH", "/k/t/a", ""),
    ("DELETE", "/k/t/b", ""),
    ("GET", "/keys?prefix=t", ""),
    ("GET", "/keys?count", ""),
    ("DELETE", "/keys?prefix=t/b&dry_run", ""),
    ("DELETE", "/keys?prefix=t/b", ""),
    ("POST", "/batch", r#"[{"op":"get","key":"t/a"},{"op":"put","key":"t/c","value":"1"}]"#),
    ("HEAD", "/watch?prefix=t", ""),
    ("POST", "/watch/tickets?prefix=t", ""),
    ("HEAD", "/export", ""),
    ("GET", "/export?since=0", ""),
];

#[test]
fn before_request_runs_once_for_each_request_for_entries() {
    for plugin in PLUGINS {
        let server = setup(plugin).config(TOKENS).start();
        for (method, path, body) in REQUESTS {
            let reply = send(&server, method, path, "operate", &[], body);
            assert!(matches!(reply.status, 200 | 410), "{reply}");
        }
        // Paths and methods that do not exist, and those that are not for entries.
        for (method, path, status) in [
            ("GET", "/nothing", 404),
            ("PUT", "/keys", 405),
            ("OPTIONS", "/k/t/a", 204),
            ("GET", "/metrics", 200),
            ("GET", "/plugins", 200),
            ("GET", "/livez", 200),
            ("GET", "/readyz", 200),
            ("GET", "/openapi.json", 200),
            ("GET", "/", 200),
            ("POST", "/plugins/reload", 200),
        ] {
            send(&server, method, path, "operate", &[], "").expect(status);
        }
        // Clients that are not known.
        for (method, path, body) in REQUESTS {
            send(&server, method, path, "unknown", &[], body).expect(401);
        }
        let expected = REQUESTS.map(|(method, path, _)| {
            let path = if path.contains('?') { path.to_owned() } else { format!("{path}?") };
            format!("request {method} {path} by operator of Some(127.0.0.1)")
        });
        assert_eq!(logged(&server, "request"), expected, "{plugin}");
        let listed = send(&server, "GET", "/plugins", "operate", &[], "").expect(200);
        let listed: Value = serde_json::from_slice(&listed.body).expect("it is JSON");
        let hooks = listed["plugins"][0]["hooks"].as_array().expect("a list");
        let hook = hooks.iter().find(|hook| hook["hook"] == "before_request");
        // With the one of the marker.
        assert_eq!(hook.map(|hook| &hook["calls"]), Some(&Value::from(REQUESTS.len() + 1)), "{listed}");
        let metrics = send(&server, "GET", "/metrics", "operate", &[], "").expect(200).text();
        let line = metrics.lines().find(|line| line.contains("hook=\"before_request\"") && line.contains("calls"));
        assert!(line.is_some_and(|line| line.ends_with(" 16")), "{line:?}");
    }
}

#[test]
fn before_request_refuses_a_request_before_anything_happens() {
    for plugin in PLUGINS {
        let server = setup(plugin).config(TOKENS).start();
        for (method, path, body) in REQUESTS {
            let reply = send(&server, method, path, "operate", &[("X-Refuse", "429")], body).expect(429);
            let reply = reply.has("Retry-After", "7").has("Vkog-Plugin", plugin);
            if method != "HEAD" {
                reply.refused(429, "refused on purpose");
            }
        }
        assert_eq!(logged(&server, "operation"), Vec::<String>::new());
        assert!(send(&server, "GET", "/keys", "operate", &[], "").expect(200).text().contains("\"keys\": []"));
        // The refusal comes before the permission, and the permission before the hooks of the operation.
        send(&server, "PUT", "/k/k", "read", &[("X-Refuse", "429")], "v").expect(429);
        send(&server, "PUT", "/k/k", "read", &[], "v").expect(403);
        send(&server, "POST", "/batch", "read", &[], r#"[{"op":"put","key":"k","value":"1"}]"#).expect(403);
        send(&server, "GET", "/k/k", "write", &[], "").expect(403);
        assert_eq!(logged(&server, "operation"), Vec::<String>::new());
    }
}

#[test]
fn a_panic_in_before_request_refuses_the_request_and_leads_to_quarantine() {
    for plugin in PLUGINS {
        for on_failure in ["refuse", "skip"] {
            let config = administered(&format!("[plugins.{plugin}]\non_failure = {on_failure:?}\n"));
            let server = setup(plugin).config(config).start();
            for _ in 0..5 {
                let panics = server.path("PUT", "/k/k").header("X-Panic", "yes").body("v").send();
                panics.refused(500, &format!("plugin \"{plugin}\" failed in before_request; nothing was changed"));
            }
            server.logs(&["is in quarantine"]);
            let status = if on_failure == "refuse" { 503 } else { 200 };
            for (method, path, body) in [("PUT", "/k/k", "v"), ("GET", "/keys", ""), ("POST", "/batch", "[]")] {
                let request =
                    server.path(method, path).header("X-Panic", "yes").header("Content-Type", "application/json");
                let reply = if body.is_empty() { request.send() } else { request.body(body).send() };
                assert_eq!(reply.status, status, "{reply}");
            }
            // A reload of the same library ends the quarantine.
            server.reload().expect(200);
            server.put("k", "v").expect(200);
            server.path("PUT", "/k/k").header("X-Panic", "yes").body("v").send().expect(500);
        }
    }
}

#[test]
fn before_request_begins_and_ends_with_a_reload() {
    for plugin in PLUGINS {
        let server = Setup::on(ENGINE).load(conflict()).config(administered("")).args(["--fsync", "never"]).start();
        let refused = || server.path("GET", "/keys").header("X-Refuse", "429").send().status;
        assert_eq!(refused(), 200);
        let library = artefacts().library(plugin);
        let folder = server.library_of("conflict").parent().expect("a library is in a folder").to_owned();
        let place = folder.join(library.file_name().expect("a library has a name"));
        put_in_place(&library, &place);
        server.reload().expect(200);
        assert_eq!(refused(), 429, "{plugin}");
        std::fs::remove_file(&place).expect("the library can be removed");
        server.reload().expect(200);
        assert_eq!(refused(), 200, "{plugin}");
        server.stop().expect(0);
    }
}

#[test]
fn a_hook_of_a_request_may_call_the_store() {
    for plugin in PLUGINS {
        let server = setup(plugin).start();
        server.path("GET", "/keys?count").header("X-Ask", "stored").send().expect(200).says("1");
        server.get("stored").expect(200).is("1");
        assert_eq!(logged(&server, "operation Plugin"), ["operation Plugin PUT stored by - of None"]);
    }
}

#[test]
fn an_operation_has_the_origin_the_token_and_the_address_of_its_request() {
    for plugin in PLUGINS {
        let server = setup(plugin).config(TOKENS).start();
        let since = send(&server, "PUT", "/k/a", "operate", &[], "v").revision();
        send(&server, "PATCH", "/k/a", "operate", &[], "").expect(200);
        send(&server, "GET", "/keys", "read", &[], "").expect(200);
        send(&server, "GET", "/keys?count", "read", &[], "").expect(200);
        send(&server, "POST", "/batch", "read", &[], r#"[{"op":"get","key":"a"}]"#).expect(200);
        let ticket = send(&server, "POST", "/watch/tickets", "read", &[], "").expect(200);
        let ticket: Value = serde_json::from_slice(&ticket.body).expect("it is JSON");
        let ticket = ticket["ticket"].as_str().expect("a ticket");
        let mut watching = server.watch(&format!("since={since}&ticket={ticket}"), "");
        assert_eq!(watching.events(1)[0].key(), "a");
        drop(watching);
        send(&server, "DELETE", "/keys?prefix=a", "operate", &[], "").expect(200);
        let expected = [
            "Request PUT a by operator",
            "Touch GET a by operator",
            "Touch PUT a by operator",
            "List GET a by reader",
            "Count GET a by reader",
            "Batch GET a by reader",
            "Watch GET a by reader",
            "DeletePrefix GET a by operator",
            "DeletePrefix DELETE a by operator",
        ];
        let expected = expected.map(|line| format!("operation {line} of Some(127.0.0.1)"));
        let mut operations = logged(&server, "operation");
        // The watch may still see the deletion.
        operations.truncate(expected.len());
        assert_eq!(operations, expected);
        assert!(logged(&server, &format!("request GET /watch?since={since} by reader")).len() == 1, "{}", server.log());
    }
}

#[test]
fn a_replaced_media_type_is_stored_and_a_malformed_one_refuses_the_write() {
    let server = setup("requests").start();
    let put = |kind: &str| server.key("PUT", "k").header("X-Type", kind).header("Content-Type", "a/b").body("v").send();
    put("text/html; charset=utf-8").expect(200);
    server.get("k").expect(200).has("Content-Type", "text/html; charset=utf-8");
    let batch = |kind: &str| {
        let operations = format!(r#"[{{"op":"put","key":"k","value":"1","headers":{{"X-Type":{kind:?}}}}}]"#);
        server.path("POST", "/batch").header("Content-Type", "application/json").body(operations).send()
    };
    batch("text/css").expect(200);
    server.get("k").expect(200).has("Content-Type", "text/css").is("1");
    for malformed in ["html", "text/", "/html", "te xt/html", "text/html/x"] {
        let expected = "plugin \"requests\" set the media type";
        put(malformed).has("Vkog-Plugin", "requests").refused(500, expected);
        batch(malformed).has("Vkog-Plugin", "requests").expect(500).says("set the media type");
    }
    server.get("k").expect(200).has("Content-Type", "text/css").is("1");
}

#[test]
fn the_state_of_an_operation_ends_with_it() {
    for plugin in PLUGINS {
        let server = setup(plugin).start();
        for method in ["PUT", "GET", "PATCH", "DELETE"] {
            let request = server.key(method, "k");
            let reply = if method == "PUT" { request.body("v").send() } else { request.send() };
            reply.expect(200).has("X-Hooks", "3").has("X-Key", "k");
        }
        server.put("k", "v").expect(200);
        server.key("PUT", "k").header("X-Lock", "yes").body("v").send().expect(423);
        let batch = r#"[{"op":"put","key":"a","value":"1"},{"op":"get","key":"k"},{"op":"delete","key":"absent"}]"#;
        server.path("POST", "/batch").header("Content-Type", "application/json").body(batch).send().expect(404);
        server.path("GET", "/keys").send().expect(200);
        // Clients that are gone before the response.
        for _ in 0..20 {
            let mut wire = server.wire();
            wire.send("PUT /k/gone HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv");
        }
        let total = |name: &str| -> u64 {
            let metrics = server.path("GET", "/metrics").send().expect(200).text();
            let line = metrics.lines().find(|line| line.contains(name) && !line.starts_with('#'));
            let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {metrics}"))
        };
        let is_even = || {
            let (dropped, made) = (total("states_dropped_total"), total("states_made_total"));
            dropped == made && made >= 30
        };
        let begun = Instant::now();
        while !is_even() {
            assert!(begun.elapsed() < DEADLINE, "a state is not dropped\n{}", server.log());
        }
        server.stop().expect(0);
    }
}
