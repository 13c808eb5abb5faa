//! The server returns what it received: keys, values, media types, and a revision that grows with every write.
//!
//! Provoked with keys and values that a careless server would change: encoded slashes, dots, every byte, every class of
//! length.

use vkog_tests::{Setup, bytes, conflict, pattern};

use super::ENGINE;

#[test]
fn a_value_of_any_size_is_returned_byte_for_byte() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    for size in [1, 31, 32, 255, 256, 1023, 1024, 1025, 32_768, 65_535, 65_536, 1_000_003] {
        let (key, value) = (format!("size-{size}"), pattern(size));
        server.post(&key, &value).expect(200);
        server.get(&key).expect(200).is(&value).has("Content-Length", &size.to_string());
    }
}

#[test]
fn a_key_is_decoded_once_and_keeps_its_slashes_and_dots() {
    let server = Setup::on(ENGINE).start();
    let same = [
        ("/k/a%2Fb", "/k/a/b"),
        ("/k/a%2fb", "/k/a%2Fb"),
        ("/k/%61", "/k/a"),
        ("/k/question?x=1", "/k/question"),
        ("/k/%E2%98%83", "/k/%e2%98%83"),
    ];
    for (written, read) in same {
        server.path("PUT", written).body(written).send().expect(200);
        server.path("GET", read).send().expect(200).is(written);
    }
    let all = [
        "/k/a+b",
        "/k/a%20b",
        "/k/a%2525",
        "/k/a%25",
        "/k/x/../y",
        "/k/y",
        "/k/x//y",
        "/k/x/y",
        "/k/.",
        "/k/..",
        "/k//",
    ];
    for path in all {
        server.path("PUT", path).body(path).send().expect(200);
    }
    for path in all {
        server.path("GET", path).send().expect(200).is(path);
    }
    server.get("a+b").expect(200).is("/k/a+b");
    server.get("a%25").expect(200).is("/k/a%2525");
    server.get("ünïcödé 🔑").refused(404, "Not Found");
}

#[test]
fn a_key_may_have_1024_bytes_and_not_one_more() {
    let server = Setup::on(ENGINE).start();
    let longest = "k".repeat(1024);
    server.put(&longest, "v").expect(200);
    server.get(&longest).expect(200).is("v");
    server.put(&format!("{longest}k"), "v").expect(414);
    // The length of the decoded key counts.
    let snowmen = "☃".repeat(341);
    server.put(&snowmen, "v").expect(200);
    server.get(&snowmen).expect(200).is("v");
    server.put(&"☃".repeat(342), "v").expect(414);
}

#[test]
fn the_media_type_of_a_write_is_returned() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    server.key("POST", "page").header("Content-Type", "text/html; charset=utf-8").body("<p>").send().expect(200);
    server
        .get("page")
        .expect(200)
        .has("Content-Type", "text/html; charset=utf-8")
        .has("X-Content-Type-Options", "nosniff");
    server.key("PUT", "page").header("Content-Type", "image/png").body("png").send().expect(200);
    server.get("page").expect(200).has("Content-Type", "image/png");
    server.wire().request("POST", "/k/untyped", b"v").expect(200);
    server.get("untyped").expect(200).has("Content-Type", "application/octet-stream");
}

#[test]
fn head_is_get_without_the_body() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    for size in [1, 5000] {
        let key = format!("size-{size}");
        server.key("POST", &key).header("Content-Type", "text/plain").body(pattern(size)).send().expect(200);
        let (get, head) = (server.get(&key).expect(200), server.key("HEAD", &key).send().expect(200));
        assert!(head.body.is_empty(), "a body in {head}");
        for name in ["Content-Length", "Content-Type", "ETag", "X-Content-Type-Options"] {
            assert!(get.header(name).is_some() && get.header(name) == head.header(name), "{name} of {get} and {head}");
        }
    }
    let head = server.key("HEAD", "absent").send().expect(404);
    assert!(head.body.is_empty(), "a body in {head}");
    // No bytes of a body remain on the connection, either.
    let mut wire = server.wire();
    for _ in 0..3 {
        wire.request("HEAD", "/k/size-5000", b"").expect(200);
        wire.request("HEAD", "/k/absent", b"").expect(404);
        wire.request("GET", "/k/size-1", b"").expect(200).is(pattern(1));
    }
}

#[test]
fn options_returns_the_methods() {
    let server = Setup::on(ENGINE).start();
    let reply = server.key("OPTIONS", "k").send();
    assert!(reply.status == 200 || reply.status == 204, "the status of {reply}");
    let allow = reply.header("Allow").unwrap_or_else(|| panic!("no Allow in {reply}"));
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
        assert!(allow.split(',').any(|allowed| allowed.trim() == method), "no {method} in Allow of {reply}");
    }
}

#[test]
fn every_write_gets_a_greater_revision_that_a_read_returns() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    let mut last = 0;
    for round in 0..5 {
        let (a, b) = (format!("a-{round}"), format!("b-{round}"));
        for reply in [server.post(&a, "1"), server.post(&b, "1"), server.put(&a, "2"), server.put(&a, "2")] {
            let revision = reply.expect(200).revision();
            assert!(revision > last, "revision {revision} after {last}");
            last = revision;
        }
        assert_eq!(server.get(&a).expect(200).revision(), last);
        assert!(server.get(&b).expect(200).revision() < last);
        server.delete(&a).expect(200);
    }
}

#[test]
fn an_error_is_a_problem_document_if_the_client_accepts_json() {
    let server = Setup::on(ENGINE).load(conflict()).start();
    let reply = server.key("PUT", "k").header("Accept", "application/json").body("v").send();
    let reply = reply.expect(404).has("Content-Type", "application/problem+json").has("Vkog-Plugin", "conflict");
    let problem: serde_json::Value =
        serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("no JSON, {error}: {reply}"));
    assert_eq!(problem["status"], 404, "the status in {reply}");
    assert_eq!(problem["plugin"], "conflict", "the plugin in {reply}");
    assert!(problem.to_string().contains("Key does not exist"), "the fact in {reply}");
    let reply = server.key("GET", "k").header("Accept", "application/json").send();
    reply.expect(404).has("Content-Type", "application/problem+json").says("Not Found");
    for (accept, content_type) in [
        ("text/plain;q=0.5, Application/JSON", "application/problem+json"),
        ("application/json;q=0.5, */*", "text/plain; charset=utf-8"),
        ("application/json;q=0", "text/plain; charset=utf-8"),
    ] {
        let _ = server.key("GET", "k").header("Accept", accept).send().expect(404).has("Content-Type", content_type);
    }
}
