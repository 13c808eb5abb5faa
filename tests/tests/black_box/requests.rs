//! A request has an id that its client, its response and the log share, and the log contains no secrets.
//!
//! Provoked with ids that the client sends and with generated ones, with each request logged or only failures, on both
//! engines.

use serde_json::Value;
use vkog_tests::{ENGINES, Server, Setup, artefacts};

/// Returns the log line of the request with this id.
fn logged(server: &Server, message: &str, id: &str) -> Value {
    server.logs(&[message, id]);
    let log = server.log();
    let of =
        |line: &Value| line["request"] == id && line["message"].as_str().is_some_and(|text| text.contains(message));
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(of).unwrap_or_else(|| panic!("no {message:?} of {id} in\n{log}"))
}

#[test]
fn log_requests_writes_a_line_with_the_id_and_without_the_query() {
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine, "--log-requests"]).start();
        let put = server.path("PUT", "/k/a%2Fb?token=s3cret").header("Authorization", "Bearer s3cret");
        let put = put.header("X-Request-Id", "client-1").body("value").send().expect(200);
        let put = put.has("X-Request-Id", "client-1");
        let line = logged(&server, "request completed", "client-1");
        assert_eq!((&line["method"], &line["path"], &line["status"]), (&"PUT".into(), &"/k/a%2Fb".into(), &200.into()));
        assert!(line["bytes"] == 2 && line["duration_us"].is_u64(), "{line} of {put}");
        assert!(line["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1:")), "{line}");
        for bad in ["", "two words", "quote\"", &"x".repeat(129)] {
            let reply = server.key("GET", "absent").header("X-Request-Id", bad).send().expect(404);
            let id = reply.header("X-Request-Id").unwrap_or_else(|| panic!("no name in {reply}"));
            assert!(id != bad && logged(&server, "request completed", id)["status"] == 404, "{reply}");
        }
        server.logs_no(&["s3cret"]);
        server.stop().expect(0);
    }
}

#[test]
fn by_default_only_failed_requests_are_logged_with_their_ids() {
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine]).load(artefacts().library("fault-panics")).start();
        let read = server.get("k").expect(404);
        assert_eq!(read.header("X-Request-Id"), None, "{read}");
        server.key("GET", "k").header("X-Request-Id", "mine").send().expect(404).has("X-Request-Id", "mine");
        let failed = server.path("PUT", "/k/k?panic=before_put").body("v").send();
        let failed = failed.expect(500).has("Vkog-Plugin", "fault-panics");
        let id = failed.header("X-Request-Id").unwrap_or_else(|| panic!("no name in {failed}"));
        let line = logged(&server, "request failed", id);
        assert_eq!((&line["plugin"], &line["status"]), (&"fault-panics".into(), &500.into()));
        server.logs_no(&["request completed"]);
        server.logs_no(&["mine"]);
        server.stop().expect(0);
    }
}

#[test]
fn a_refused_token_is_logged_by_its_name_and_not_by_its_secret() {
    let config = "[[access.tokens]]\nname = \"reader\"\ntoken = \"s3cret\"\nright = \"read\"\n";
    let server = Setup::new().config(config).start();
    let unknown = server.path("PUT", "/k/k?token=s3cret").header("Authorization", "Bearer wr0ng").body("v").send();
    let unknown = unknown.expect(401);
    let id = unknown.header("X-Request-Id").unwrap_or_else(|| panic!("no name in {unknown}"));
    assert_eq!(logged(&server, "request failed", id)["status"], 401);
    let reader = server.path("PUT", "/k/k?token=s3cret").header("Authorization", "Bearer s3cret").body("v").send();
    let reader = reader.expect(403);
    let id = reader.header("X-Request-Id").unwrap_or_else(|| panic!("no name in {reader}"));
    logged(&server, "reader", id);
    server.logs_no(&["s3cret"]);
    server.logs_no(&["wr0ng"]);
}
