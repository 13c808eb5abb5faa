//! Pages in a browser cannot read or write a store that needs no token, cannot read a token, and what HTTP says of a request
//! is not guessed at.
//!
//! Provoked byte by byte on both engines, with the header fields that browsers and reverse proxies send; and with a real
//! Chromium, where it is installed, in chromium.rs.

use vkog_tests::{Reply, Server, Setup, Wire, description};

const ENGINES: [&str; 2] = ["tiny", "hyper"];

/// Sends a request with these header lines, and checks that `/openapi.json` lists the status of the reply.
#[track_caller]
fn ask(wire: &mut Wire, method: &str, target: &str, headers: &str, body: &str) -> Reply {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let json = if target == "/batch" { "Content-Type: application/json\r\n" } else { "" };
    let reply = wire.send(format!("{method} {target} HTTP/1.1\r\n{headers}{json}{length}\r\n{body}")).reply();
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = if path.starts_with("/k/") { "/k/{key}" } else { path };
    let responses = &description()["paths"][path][method.to_lowercase()]["responses"];
    assert!(responses.get(reply.status.to_string()).is_some(), "not a status of /openapi.json: {reply}");
    reply
}

/// A server with an entry.
fn serving(setup: &Setup) -> Server {
    let server = setup.start();
    server.put("a", "old").expect(200);
    server
}

#[test]
fn a_condition_that_is_no_list_of_entity_tags_is_400() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let mut wire = server.wire();
        let revision = server.get("a").expect(200).revision();
        for name in ["If-Match", "If-None-Match"] {
            for value in [
                "1",
                "abc",
                "",
                "\"1",
                "1\"",
                "\"*",
                "\"1\" \"2\"",
                "\"1\", 2",
                "*, \"1\"",
                "*, *",
                "**",
                "w/\"1\"",
                "W/1",
                "W/",
                "W/ \"1\"",
                ",",
                "\"1\"x",
                "'1'",
                "\"1\", *",
                "\"",
                "\"\"\"",
            ] {
                for (method, body) in [("GET", ""), ("HEAD", ""), ("PUT", "new"), ("POST", "new"), ("DELETE", "")] {
                    let headers = format!("Host: localhost\r\n{name}: {value}\r\n");
                    let reply = ask(&mut wire, method, "/k/a", &headers, body);
                    assert_eq!(reply.status, 400, "{engine}: {headers}{reply}");
                    assert!(method == "HEAD" || reply.text().contains(name), "{engine}: {headers}{reply}");
                }
            }
            let twice = format!("Host: localhost\r\n{name}: \"9999\"\r\n{name}: 1\r\n");
            ask(&mut wire, "DELETE", "/k/a", &twice, "").expect(400);
            for condition in ["\"1\"", "[\"1\"]", "\"\"", "\"*, 1\"", "1.5", "-1", "true"] {
                let field = name.to_lowercase().replace('-', "_");
                let batch = format!(r#"[{{"op":"put","key":"a","value":"new","{field}":{condition}}}]"#);
                ask(&mut wire, "POST", "/batch", "Host: localhost\r\n", &batch).expect(400);
            }
        }
        let reply = server.get("a").expect(200).is("old");
        assert_eq!(reply.revision(), revision);
    }
}

#[test]
fn a_part_of_a_value_or_an_encoded_value_is_not_stored_as_the_whole() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let mut wire = server.wire();
        for method in ["PUT", "POST"] {
            for range in ["bytes 0-2/10", "bytes */10", "", "lines 1-2/3"] {
                let headers = format!("Host: localhost\r\nContent-Range: {range}\r\n");
                ask(&mut wire, method, "/k/a", &headers, "new").refused(400, "").says("Content-Range");
            }
            for coding in ["gzip", "br", "identity, gzip", "aws-chunked", "x"] {
                let headers = format!("Host: localhost\r\nContent-Encoding: {coding}\r\n");
                let reply = ask(&mut wire, method, "/k/a", &headers, "new").refused(415, "").says("Content-Encoding");
                assert_eq!(reply.header("Accept-Encoding"), Some("identity"), "{reply}");
            }
        }
        let batch = r#"[{"op":"put","key":"a","value":"new"}]"#;
        ask(&mut wire, "POST", "/batch", "Host: localhost\r\nContent-Encoding: gzip\r\n", batch).expect(415);
        ask(&mut wire, "POST", "/batch", "Host: localhost\r\nContent-Range: bytes 0-1/2\r\n", batch).expect(400);
        for field in ["Content-Encoding", "content-range"] {
            let batch = format!(r#"[{{"op":"put","key":"a","value":"new","headers":{{"{field}":"gzip"}}}}]"#);
            ask(&mut wire, "POST", "/batch", "Host: localhost\r\n", &batch).expect(400);
        }
        server.get("a").expect(200).is("old");
        for coding in ["identity", "Identity", ""] {
            let headers = format!("Host: localhost\r\nContent-Encoding: {coding}\r\n");
            ask(&mut wire, "PUT", "/k/a", &headers, "new").expect(200);
        }
    }
}

#[test]
fn what_clients_store_is_sent_so_that_a_browser_runs_none_of_it() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let html = "<script>fetch('/k/a', {method: 'DELETE'})</script>";
        server.key("PUT", "page").header("Content-Type", "text/html").body(html).send().expect(200);
        let safe = |reply: Reply| {
            let policy = reply.header("Content-Security-Policy");
            assert_eq!((policy, reply.header("X-Content-Type-Options")), (Some("sandbox"), Some("nosniff")), "{reply}");
            reply
        };
        safe(server.get("page")).expect(200).is(html).has("Content-Type", "text/html");
        safe(server.key("HEAD", "page").send()).expect(200);
        safe(server.key("GET", "page").header("Range", "bytes=0-7").send()).expect(206).is("<script>");
        safe(server.key("GET", "page").header("Range", "bytes=999-").send()).expect(416);
        safe(server.get("<script>")).expect(404);
        safe(server.path("GET", "/keys?prefix=page").send()).expect(200);
        safe(server.path("GET", "/keys?a=%3Cscript%3E").send()).expect(400);
        safe(server.path("GET", "/plugins").send()).expect(200);
        safe(server.path("GET", "/watch?since=999999999").send()).expect(410);
        safe(server.path("GET", "/%3Cscript%3E").send()).expect(404);
        let batch = server.path("POST", "/batch").header("Content-Type", "application/json");
        safe(batch.body(r#"[{"op":"get","key":"page"}]"#).send()).expect(200);
        safe(server.wire().send("HEAD /watch HTTP/1.1\r\nHost: localhost\r\n\r\n").reply()).expect(200);
    }
}

#[test]
fn the_page_keeps_the_token_where_no_other_page_can_read_it() {
    let page = Setup::new().start().path("GET", "/").send().expect(200).text();
    for storage in ["sessionStorage", "localStorage", "indexedDB", "document.cookie", "caches", "window.name"] {
        assert!(!page.contains(storage), "the page uses {storage}");
    }
}
