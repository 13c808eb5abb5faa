//! Caches between server and client never serve an old value, or a value to a client without its token, and proxies pass events
//! on at once.
//!
//! Provoked with the header fields of every kind of response.

use vkog_tests::{Reply, Setup, TOKEN, administered, description};

use super::ENGINE;

#[track_caller]
fn caching(reply: &Reply) -> &str {
    reply.header("Cache-Control").unwrap_or_else(|| panic!("no Cache-Control in {reply}"))
}

#[test]
fn values_are_revalidated_by_every_cache_and_not_transformed() {
    let server = Setup::on(ENGINE).start();
    let written = server.put("k", "value").expect(200);
    assert_eq!(written.header("Cache-Control"), None, "no cache stores it: {written}");
    let tag = format!("\"{}\"", written.revision());
    for (method, header, status) in [
        ("GET", ("X-None", ""), 200),
        ("HEAD", ("X-None", ""), 200),
        ("GET", ("Range", "bytes=0-1"), 206),
        ("GET", ("If-None-Match", tag.as_str()), 304),
    ] {
        let reply = server.key(method, "k").header(header.0, header.1).send().expect(status);
        assert_eq!(caching(&reply), "no-cache, no-transform", "{reply}");
    }
}

#[test]
fn values_behind_tokens_are_private() {
    let setup = Setup::on(ENGINE).config("[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"write\"\n");
    let server = setup.start();
    let mut wire = server.wire();
    let mut ask = |method: &str, fields: &str, body: &str| {
        let head = format!("{method} /k/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
        wire.send(format!("{head}Authorization: Bearer s3cret\r\n{fields}\r\n{body}")).reply()
    };
    let tag = ask("PUT", "", "value").expect(200).revision();
    for (fields, status) in [("", 200), ("Range: bytes=0-1\r\n", 206), (&*format!("If-None-Match: \"{tag}\"\r\n"), 304)]
    {
        let reply = ask("GET", fields, "").expect(status);
        assert_eq!(caching(&reply), "private, no-cache, no-transform", "{reply}");
    }
}

#[test]
fn everything_but_values_and_documents_is_not_stored() {
    let server = Setup::on(ENGINE).config(administered("")).args(["--fsync", "never"]).start();
    server.put("k", "value").expect(200);
    for path in ["/livez", "/readyz", "/metrics", "/plugins", "/keys", "/keys?count"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(caching(&server.path(method, path).send().expect(200)), "no-store", "{method} {path}");
        }
    }
    let batch = server.path("POST", "/batch").header("Content-Type", "application/json");
    assert_eq!(caching(&batch.body(r#"[{"op":"get","key":"k"}]"#).send().expect(200)), "no-store");
    assert_eq!(caching(&server.path("POST", "/watch/tickets").body("").send().expect(200)), "no-store");
    let reload = server.path("POST", "/plugins/reload").header("Authorization", format!("Bearer {TOKEN}"));
    assert_eq!(caching(&reload.body("").send().expect(200)), "no-store");
    for (method, path, status) in [
        ("GET", "/k/absent", 404),
        ("GET", "/nothing", 404),
        ("GET", "/k/%zz", 400),
        ("GET", "/batch", 405),
        ("GET", "/watch?since=999999999", 410),
        ("OPTIONS", "/k/k", 204),
        ("POST", "/plugins/reload", 401),
    ] {
        assert_eq!(caching(&server.path(method, path).send().expect(status)), "no-store", "{method} {path}");
    }
    let export = server.path("GET", "/export").header("Authorization", format!("Bearer {TOKEN}"));
    assert_eq!(caching(&export.send().expect(200)), "no-store, no-transform");
    let range = server.key("GET", "k").header("Range", "bytes=10-").send().expect(416);
    assert_eq!(caching(&range), "no-store");
    for path in ["/", "/openapi.json"] {
        assert_eq!(caching(&server.path("GET", path).send().expect(200)), "no-cache", "{path}");
    }
    // A path that is new has to be here, too.
    assert_eq!(description()["paths"].as_object().expect("paths").len(), 13);
}

#[test]
fn errors_vary_by_the_header_that_chooses_their_format() {
    let server = Setup::on(ENGINE).start();
    for accept in ["text/plain", "application/json"] {
        let reply = server.key("GET", "absent").header("Accept", accept).send().expect(404);
        assert_eq!(reply.header("Vary"), Some("Accept"), "{reply}");
    }
    server.put("k", "value").expect(200);
    assert_eq!(server.get("k").expect(200).header("Vary"), None, "a value has one format");
}

#[test]
fn a_watch_passes_proxies_at_once() {
    let server = Setup::on(ENGINE).start();
    let watching = server.watch("", "");
    assert_eq!(watching.head.header("X-Accel-Buffering"), Some("no"), "{}", watching.head);
    assert_eq!(watching.head.header("Cache-Control"), Some("no-store, no-transform"), "{}", watching.head);
    // nginx speaks HTTP/1.0 to the server unless it is configured otherwise.
    let mut wire = server.wire();
    wire.send("GET /watch HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let head = wire.try_head().expect("a head comes at once");
    assert_eq!((head.status, head.header("Transfer-Encoding")), (200, None), "{head}");
    assert_eq!(wire.body_line(), "retry: 1000\n");
    server.put("k", "value").expect(200);
    while wire.body_line() != "event: put\n" {}
}
