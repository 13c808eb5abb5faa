//! The routes of plugins: which request calls which, what the client gets, and who may call them.
//!
//! Provoked with a plugin that has a route for each permission and for each kind of response.

use serde_json::Value;
use vkog_tests::{Setup, TOKEN, artefacts, pattern};

use super::ENGINE;

fn setup() -> Setup {
    Setup::on(ENGINE).load(artefacts().library("serves"))
}

#[test]
fn a_route_gets_the_request_and_the_client_its_response() {
    let server = setup().start();
    let reply = server.path("GET", "/x/serves/hello/w%C3%B6r%2Fld?q=1").send().expect(200).is("hello wör/ld\n");
    let reply = reply.has("X-Method", "GET").has("X-Query", "q=1").has("Content-Type", "text/plain");
    // The plugin's own length is dropped.
    reply
        .has("X-Content-Type-Options", "nosniff")
        .has("Content-Security-Policy", "sandbox")
        .has("Cache-Control", "no-store");
    server.logs(&["serves", "Content-Length", "dropped"]);
    server.path("HEAD", "/x/serves/hello/a").send().expect(200).is("").has("X-Method", "HEAD");
    let body = pattern(100_000);
    let sent = server.path("POST", "/x/serves/length").header("Content-Type", "image/png").body(&body).send();
    sent.expect(200).is("100000 of \"image/png\"");
    server.path("POST", "/x/serves/length").send().expect(200).is("0 of \"\"");
    server.path("GET", "/x/serves/stream/40").send().expect(200).is(vec![b'x'; 40 * (64 << 10)]);
}

#[test]
fn a_path_without_a_route_is_404_and_another_method_405() {
    let server = setup().start();
    for path in ["/x/serves", "/x/serves/", "/x/serves/nothing", "/x/other/hello/a", "/x/", "/x/serves/hello/a/b"] {
        server.path("GET", path).send().refused(404, "No plugin serves this path");
    }
    for (method, path, allow) in [
        ("POST", "/x/serves/hello/a", "GET, HEAD, OPTIONS"),
        ("GET", "/x/serves/length", "POST, OPTIONS"),
        ("DELETE", "/x/serves/k/a", "GET, HEAD, PUT, OPTIONS"),
    ] {
        server.path(method, path).send().refused(405, "Method not allowed").has("Allow", allow);
        server.path("OPTIONS", path).send().expect(204).has("Allow", allow);
    }
    for path in ["/x/serves/hello/%zz", "/x/serves/hello/%ff", "/x/serves/k/a%"] {
        server.path("GET", path).send().expect(400).says("percent-encoded");
    }
}

#[test]
fn a_plugin_may_refuse_panic_or_respond_with_any_status() {
    let server = setup().start();
    let behave = |how: &str| server.path("POST", &format!("/x/serves/behave/{how}")).send();
    behave("nothing").expect(204).is("");
    behave("twice").expect(200).is("one");
    behave("refuse").refused(418, "refused on purpose").has("X-Purpose", "tea").has("Vkog-Plugin", "serves");
    behave("panic").refused(500, "plugin \"serves\" failed in serve").has("Vkog-Plugin", "serves");
    server.logs(&["serves", "on purpose"]);
    for (status, sent) in [(200, 200), (299, 299), (404, 404), (599, 599), (99, 500), (600, 500), (199, 500)] {
        server.path("GET", &format!("/x/serves/status/{status}")).send().expect(sent).is("a body");
    }
    for status in [204, 304] {
        server.path("GET", &format!("/x/serves/status/{status}")).send().expect(status).is("");
    }
    // Each panic counts, and the fifth puts the plugin into quarantine.
    for _ in 0..4 {
        behave("panic").expect(500);
    }
    behave("nothing").expect(503).says("quarantine").has("Vkog-Plugin", "serves");
    server.put("k", "v").expect(200);
}

#[test]
fn a_route_updates_an_entry_and_responds() {
    let server = setup().start();
    let append = |body: &[u8]| server.path("POST", "/x/serves/append/w%20r/ld").body(body).send().expect(201);
    append(b"ab").is("2").has("X-Key", "w r/ld").has("Content-Security-Policy", "sandbox");
    append(b"cd").is("4");
    server.get("w r/ld").expect(200).is("abcd").has("Content-Type", "text/plain");
    // Longer than what an event loop copies.
    append(&pattern(100_000)).is("100004");
    append(b"e").is("100005");
    server.get("w r/ld").expect(200).is([b"abcd", &*pattern(100_000), b"e"].concat());
    server.path("POST", "/x/serves/append/%ff").body("a").send().expect(400).says("percent-encoded");
    let long = format!("/x/serves/append/{}", "k".repeat(1025));
    server.path("POST", &long).body("a").send().refused(414, "Key too long");
}

#[test]
fn a_body_over_the_maximum_is_413() {
    let server = setup().args(["--max-value", "1000"]).start();
    server.path("POST", "/x/serves/length").body(pattern(1000)).send().expect(200);
    server.path("POST", "/x/serves/length").body(pattern(1001)).send().refused(413, "Body too large");
}

#[test]
fn requests_of_other_sites_are_rejected_where_no_token_is_needed() {
    let server = setup().start();
    for path in ["/x/serves/hello/a", "/x/serves/k/a"] {
        server.path("GET", path).header("Origin", "http://other.example").send().expect(403).says("another site");
    }
}

/// An administrator, and a reader and a writer of the keys below `a/`.
const TOKENS: &str = "[[access.tokens]]\nname = \"operator\"\ntoken = \"s3cret\"\nright = \"admin\"\n\
                      [[access.tokens]]\nname = \"reader\"\ntoken = \"r\"\nright = \"read\"\nprefix = \"a/\"\n\
                      [[access.tokens]]\nname = \"writer\"\ntoken = \"w\"\nright = \"write\"\nprefix = \"a/\"\n";

#[test]
fn the_store_calls_of_a_route_have_the_permissions_of_the_client() {
    let server = setup().config(TOKENS).start();
    let ask = |token: &str, method: &str, path: &str| {
        let request = server.path(method, path).header("Authorization", format!("Bearer {token}"));
        if method == "PUT" { request.body("v").send() } else { request.send() }
    };
    for key in ["a/1", "b/1"] {
        ask(TOKEN, "PUT", &format!("/x/serves/k/{key}")).expect(204);
    }
    ask("r", "GET", "/x/serves/k/a/1").expect(200).is("v");
    ask("r", "GET", "/x/serves/k/b/1").expect(403).says("may read keys that begin with");
    ask("r", "PUT", "/x/serves/k/a/1").expect(403);
    ask("w", "PUT", "/x/serves/k/a/2").expect(204);
    ask("w", "PUT", "/x/serves/k/b/2").expect(403).has("Vkog-Plugin", "serves");
    ask("r", "GET", "/x/serves/keys").expect(200).is("a/1\na/2\n");
    ask(TOKEN, "GET", "/x/serves/keys").expect(200).is("a/1\na/2\nb/1\n");
    // An update shows the plugin the value, so it needs both permissions, also on a route that needs none itself.
    let append = |token: &str, key: &str| {
        let request = server.path("POST", &format!("/x/serves/append/{key}"));
        request.header("Authorization", format!("Bearer {token}")).body("w").send()
    };
    append("w", "a/1").expect(201).is("2");
    append("w", "b/1").expect(403).says("may write keys that begin with");
    append("r", "a/1").expect(403);
    server.path("POST", "/x/serves/append/a/1").body("w").send().expect(401);
    ask("r", "GET", "/x/serves/admin").expect(403);
    ask(TOKEN, "GET", "/x/serves/admin").expect(200);
    server.path("GET", "/x/serves/hello/all").send().expect(200);
}

#[test]
fn plugins_and_the_openapi_document_list_the_routes() {
    let server = setup().start();
    let routes = server.plugin("serves")["routes"].clone();
    let expected = serde_json::json!({
        "method": "GET", "path": "/k/{*key}", "permission": "read", "summary": "Return a value.",
    });
    assert!(routes.as_array().is_some_and(|routes| routes.len() == 10 && routes.contains(&expected)), "{routes}");
    let document = server.path("GET", "/openapi.json").send().expect(200);
    let document: Value = serde_json::from_slice(&document.body).expect("it is JSON");
    let item = &document["paths"]["/x/serves/k/{key}"];
    assert_eq!(item["put"]["summary"], "Set a value.");
    assert_eq!(item["parameters"][0]["name"], "key");
    let methods = ["get", "head", "put", "options", "post", "delete"].map(|method| item[method].is_object());
    assert_eq!(methods, [true, true, true, true, false, false]);
    assert!(document["paths"]["/k/{key}"]["get"].is_object(), "the server's own paths remain");
    let metrics = server.path("GET", "/metrics").send().expect(200).text();
    assert!(metrics.contains(r#"vkog_plugin_calls_total{plugin="serves",hook="serve"} 0"#), "{metrics}");
}
