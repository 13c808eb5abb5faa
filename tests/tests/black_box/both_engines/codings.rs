//! A value that was sent with a content coding, such as gzip, is returned with it, byte for byte.
//!
//! Provoked with each way to write and to read a value, across restarts, and beside a plugin that stores its own details.

use serde_json::{Value, json};
use vkog_tests::{Reply, Server, Setup, encode, pattern, ttl};

use super::ENGINE;

fn put(server: &Server, key: &str, coding: &str, value: &[u8]) {
    server.key("PUT", key).header("Content-Encoding", coding).body(value).send().expect(200);
}

/// The client library would decode the value, so this reads bytes.
#[track_caller]
fn get(server: &Server, method: &str, key: &str, fields: &str) -> Reply {
    let head = format!("{method} /k/{} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n", encode(key));
    server.wire().send(head).reply()
}

#[test]
fn a_value_is_returned_with_the_coding_it_was_sent_with() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let large = pattern(100_000);
    for (key, coding, value) in
        [("small", "gzip", &b"\x1f\x8b"[..]), ("large", "br", &large), ("two", "deflate, gzip", b"x")]
    {
        put(&server, key, coding, value);
        for (method, fields, status) in [("GET", "", 200), ("HEAD", "", 200), ("GET", "Range: bytes=0-0\r\n", 206)] {
            let reply = get(&server, method, key, fields).expect(status).has("Content-Encoding", coding);
            // Also to a client that names no coding, or another one.
            assert!(status == 206 || method == "HEAD" || reply.body == value, "{reply}");
        }
    }
    get(&server, "GET", "small", "Accept-Encoding: identity\r\n").expect(200).has("Content-Encoding", "gzip");
    // From the log, and then from a snapshot.
    drop(server);
    for _ in 0..2 {
        let server = setup.start();
        get(&server, "GET", "small", "").expect(200).has("Content-Encoding", "gzip").is(b"\x1f\x8b");
        get(&server, "GET", "large", "").expect(200).has("Content-Encoding", "br").is(&large);
        server.stop().expect(0);
    }
    // A write without a coding removes it.
    let server = setup.start();
    server.put("small", "plain").expect(200);
    put(&server, "two", "identity", b"plain");
    for key in ["small", "two"] {
        assert_eq!(get(&server, "GET", key, "").expect(200).is("plain").header("Content-Encoding"), None);
    }
}

#[test]
fn a_coding_passes_batches_watches_and_exports() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let mut watching = server.watch("values", "");
    let operations = json!([
        { "op": "put", "key": "a", "value": "x", "headers": { "Content-Encoding": "gzip" } },
        { "op": "put", "key": "b", "value": "x" },
    ]);
    let batch = |operations: Value| {
        let request = server.path("POST", "/batch").header("Content-Type", "application/json");
        request.body(operations.to_string()).send().expect(200)
    };
    batch(operations);
    get(&server, "GET", "a", "").expect(200).has("Content-Encoding", "gzip");
    assert_eq!(get(&server, "GET", "b", "").expect(200).header("Content-Encoding"), None);
    let reply = batch(json!([{ "op": "get", "key": "a" }, { "op": "get", "key": "b" }]));
    let done: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    assert_eq!(
        (&done[0]["headers"], &done[1].get("headers")),
        (&json!({ "Content-Encoding": "gzip" }), &None),
        "{reply}"
    );
    let events = watching.events(2);
    assert_eq!((&events[0].data["content_encoding"], events[1].data.get("content_encoding")), (&json!("gzip"), None));
    server.stop().expect(0);
    setup.run(["export", "-f", "store.vkog", "lines"]).expect(0);
    setup.run(["import", "-f", "copy.vkog", "lines"]).expect(0);
    let copy = setup.folder().join("copy.vkog");
    let copy = setup.store(copy).start();
    get(&copy, "GET", "a", "").expect(200).has("Content-Encoding", "gzip");
}

#[test]
fn an_error_does_not_have_the_coding_of_the_value() {
    let server = Setup::on(ENGINE).start();
    put(&server, "a", "gzip", b"x");
    let reply = get(&server, "GET", "a", "Range: bytes=9-\r\n").refused(416, "Range not satisfiable");
    assert_eq!(reply.header("Content-Encoding"), None, "{reply}");
}

#[test]
fn an_operation_of_a_batch_with_two_codings_is_refused() {
    let server = Setup::on(ENGINE).start();
    let operations = json!([
        { "op": "put", "key": "a", "value": "x", "headers": { "Content-Encoding": "gzip", "content-encoding": "br" } },
    ]);
    let request = server.path("POST", "/batch").header("Content-Type", "application/json");
    let reply = request.body(operations.to_string()).send().expect(400);
    assert!(reply.text().contains("Content-Encoding must be one list of codings"), "{reply}");
    server.get("a").expect(404);
}

#[test]
fn a_coding_and_the_details_of_a_plugin_do_not_disturb_each_other() {
    let server = Setup::on(ENGINE).load(ttl()).start();
    let request = server.key("PUT", "a").header("Content-Encoding", "gzip").header("Vkog-TTL", "1h");
    request.body("x").send().expect(200);
    let reply = get(&server, "GET", "a", "").expect(200).has("Content-Encoding", "gzip");
    assert!(reply.header("Vkog-TTL").is_some(), "{reply}");
    // The time to live remains, unlike the coding.
    server.put("a", "y").expect(200);
    let reply = get(&server, "GET", "a", "").expect(200);
    assert_eq!((reply.header("Content-Encoding"), reply.header("Vkog-TTL").is_some()), (None, true), "{reply}");
}
