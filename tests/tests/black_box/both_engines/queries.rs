//! Queries are form data, as client libraries send it; paths are not. Parameters that clients and proxies add are ignored.
//!
//! Provoked with keys that contain spaces and plus signs, and with the parameters of known client libraries.

use serde_json::Value;
use vkog_tests::{Server, Setup};

use super::ENGINE;

fn keys(server: &Server, query: &str) -> Vec<String> {
    let reply = server.path("GET", &format!("/keys?{query}")).send().expect(200);
    let page: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"));
    let keys = page["keys"].as_array().unwrap_or_else(|| panic!("no keys in {reply}")).iter();
    keys.map(|key| key["key"].as_str().expect("a key is text").to_owned()).collect()
}

#[test]
fn a_plus_sign_is_a_space_in_a_query_and_itself_in_a_path() {
    let server = Setup::on(ENGINE).start();
    for path in ["/k/a%20b", "/k/a+b", "/k/a%2Bc"] {
        server.path("PUT", path).body("v").send().expect(200);
    }
    server.path("GET", "/k/a%2Bb").send().expect(200);
    assert_eq!(keys(&server, ""), ["a b", "a+b", "a+c"]);
    assert_eq!(keys(&server, "prefix=a+b"), ["a b"]);
    assert_eq!(keys(&server, "prefix=a%20b"), ["a b"]);
    assert_eq!(keys(&server, "prefix=a%2Bb"), ["a+b"]);
    assert_eq!(keys(&server, "after=a+b"), ["a+b", "a+c"]);
    assert_eq!(keys(&server, "pre%66ix=a%2B"), ["a+b", "a+c"]);
    let mut watching = server.watch("prefix=a+b", "");
    server.path("PUT", "/k/a+b").body("v").send().expect(200);
    server.path("PUT", "/k/a%20b").body("v").send().expect(200);
    assert_eq!(watching.events(1)[0].key(), "a b");
}

#[test]
fn unknown_parameters_are_ignored() {
    let server = Setup::on(ENGINE).start();
    let before = server.revision();
    server.put("k", "v").expect(200);
    assert_eq!(keys(&server, "_=1&utm_source=a&Prefix=b"), ["k"]);
    server.path("GET", "/keys?count&_=1").send().expect(200).says("\"count\": 1");
    let mut watching = server.watch(&format!("since={before}&_=1&x=%zz"), "");
    assert_eq!(watching.events(1)[0].key(), "k");
    // Those that the server knows are still checked.
    server.path("GET", "/keys?_=1&limit=0").send().refused(400, "limit is");
}

#[test]
fn the_last_event_id_may_stand_in_the_query() {
    let server = Setup::on(ENGINE).start();
    let before = server.revision();
    let written = ["1", "2", "3"].map(|key| server.put(key, "v").expect(200).revision());
    let first = |query: &str, fields: &str| server.watch(query, fields).events(1)[0].key().to_owned();
    assert_eq!(first(&format!("lastEventId={}", written[0]), ""), "2");
    assert_eq!(first(&format!("since={before}&lastEventId={}", written[1]), ""), "3");
    // A client that reconnects sends the header beside the query of its first request.
    assert_eq!(first(&format!("lastEventId={}", written[0]), &format!("Last-Event-ID: {}\r\n", written[1])), "3");
    assert_eq!(first(&format!("since={before}&lastEventId="), ""), "1");
    server.path("GET", "/watch?lastEventId=x").send().refused(400, "lastEventId is \"x\"");
    // What another one takes precedence over is still read.
    for wrong in ["since", "lastEventId"] {
        let watch = server.path("GET", &format!("/watch?{wrong}=x")).header("Last-Event-ID", written[0].to_string());
        watch.send().refused(400, &format!("{wrong} is \"x\""));
    }
    server.path("GET", &format!("/watch?since=x&lastEventId={}", written[0])).send().refused(400, "since is \"x\"");
}

#[test]
fn options_of_an_asterisk_or_a_path_returns_methods() {
    let server = Setup::on(ENGINE).start();
    let all = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    for target in ["*", "/k/x"] {
        let mut wire = server.wire();
        wire.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        wire.reply().expect(204).has("Allow", all);
    }
    let mut wire = server.wire();
    wire.send("GET * HTTP/1.1\r\nHost: localhost\r\n\r\n").reply().expect(404);
}
