//! A byte range is exact, and a range that is malformed or not supported returns the whole value.
//!
//! Provoked with a table of `Range` headers, on both engines.

use vkog_tests::{ENGINES, Server, Setup, pattern};

const LEN: usize = 100_000;

fn on_each_engine(check: impl Fn(&Server)) {
    for engine in ENGINES {
        eprintln!("{engine}");
        let server = Setup::new().args(["--http", engine]).start();
        server.put("k", pattern(LEN)).expect(200);
        check(&server);
    }
}

#[test]
fn a_range_is_206_with_only_its_bytes() {
    on_each_engine(|server| {
        let end = LEN - 1;
        for (range, first, last) in [
            ("bytes=0-0", 0, 0),
            ("bytes=0-", 0, end),
            ("bytes=10-19", 10, 19),
            ("bytes=0-99999", 0, end),
            ("bytes=99999-", end, end),
            ("bytes=99990-4000000000", 99_990, end),
            ("bytes=5-99999999999999999999999", 5, end),
            ("bytes=-1", end, end),
            ("bytes=-100", LEN - 100, end),
            ("bytes=-100000", 0, end),
            ("bytes=-99999999999999999999999", 0, end),
            ("BYTES= 70000-80000 ", 70_000, 80_000),
        ] {
            let reply = server.key("GET", "k").header("Range", range).send().expect(206);
            let reply = reply.has("Content-Range", &format!("bytes {first}-{last}/{LEN}"));
            let reply = reply.has("Accept-Ranges", "bytes").has("Content-Type", "application/octet-stream");
            assert!(reply.revision() > 0 && reply.header("X-Content-Type-Options") == Some("nosniff"), "{reply}");
            reply.is(&pattern(LEN)[first..=last]);
        }
    });
}

#[test]
fn a_range_beyond_the_end_is_416_with_the_length() {
    on_each_engine(|server| {
        for range in ["bytes=100000-", "bytes=100000-100001", "bytes=99999999999999999999999-", "bytes=-0"] {
            let reply = server.key("GET", "k").header("Range", range).send();
            reply.refused(416, "Range not satisfiable").has("Content-Range", "bytes */100000");
        }
        // The entry must exist first.
        server.key("GET", "absent").header("Range", "bytes=-0").send().refused(404, "Not Found");
    });
}

#[test]
fn several_or_malformed_ranges_return_the_whole_value() {
    on_each_engine(|server| {
        let bad = [
            "bytes=0-1,5-6",
            "bytes=0-1,",
            "bytes=5-4",
            "bytes=",
            "bytes=-",
            "bytes=+1-2",
            "bytes=1 - 2",
            "bytes=0x1-2",
            "bytes=--1",
            "bytes 0-1",
            "bytes",
            "items=0-1",
            "",
        ];
        for range in bad {
            let reply = server.key("GET", "k").header("Range", range).send().expect(200);
            assert_eq!(reply.header("Content-Range"), None, "{reply}");
            reply.has("Accept-Ranges", "bytes").is(pattern(LEN));
        }
        let twice = server.key("GET", "k").header("Range", "bytes=0-1").header("Range", "bytes=0-1").send();
        twice.expect(200).is(pattern(LEN));
    });
}

#[test]
fn a_range_of_another_revision_is_the_whole_value() {
    on_each_engine(|server| {
        let tag = format!("\"{}\"", server.get("k").revision());
        let asked =
            |name: &str, tag: &str| server.key("GET", "k").header("Range", "bytes=0-1").header(name, tag).send();
        asked("If-Range", &tag).expect(206).is(&pattern(LEN)[..2]);
        for other in ["\"1234567\"", &format!("W/{tag}"), "Tue, 24 Nov 2026 08:00:00 GMT", "*", ""] {
            asked("If-Range", other).expect(200).is(pattern(LEN));
        }
        // Preconditions take precedence.
        asked("If-None-Match", &tag).expect(304);
        asked("If-Match", "\"1234567\"").expect(412);
    });
}

#[test]
fn head_and_writes_have_no_ranges() {
    on_each_engine(|server| {
        let mut wire = server.wire();
        let head = wire.send("HEAD /k/k HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\n\r\n").reply().expect(200);
        head.has("Accept-Ranges", "bytes").has("Content-Length", "100000");
        server.key("PUT", "k").header("Range", "bytes=0-1").body("new").send().expect(200);
        server.get("k").expect(200).is("new");
        server.key("DELETE", "k").header("Range", "bytes=7-").send().expect(200);
    });
}
