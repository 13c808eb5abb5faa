//! A chunked body is treated as any other: its size is limited while it arrives, and it cannot hide a request.
//!
//! Provoked byte by byte: a table of chunked bodies, each sent whole and in pieces, further requests after them, bodies
//! that exceed `--max-value`, and clients that send everything before they read.

use std::thread;
use std::time::Duration;

use vkog_tests::{ENGINES, Server, Setup, on_windows, pattern};

fn servers(arguments: &[&str]) -> impl Iterator<Item = (&'static str, Server)> {
    // Outside Linux tiny_http cannot tell a whole chunked body from one that was cut off.
    let engines = ENGINES.into_iter().filter(|engine| !on_windows() || *engine == "hyper");
    engines.map(move |engine| {
        let server = Setup::new().args(["--http", engine]).args(arguments.iter().copied()).start();
        server.put("seed", "sown").expect(200);
        (engine, server)
    })
}

fn head(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{fields}\r\n")
}

/// Encodes a body in chunks of this length.
fn chunked(body: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(length) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

#[test]
fn a_chunked_body_is_stored_however_it_is_cut() {
    for (engine, server) in servers(&[]) {
        for (body, value) in [
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", "hello"),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
            ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
            ("0005\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5;name=value\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5;name=\"quoted\"\r\nhello\r\n0;last\r\n\r\n", "hello"),
            ("5\r\nhello\r\n0\r\nTrailer: x\r\nContent-Type: text/html\r\n\r\n", "hello"),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
            ("5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n"),
        ] {
            let (head, body) = (head("PUT", "/k/new", ""), body.as_bytes());
            // tiny_http's decoder knows no trailers.
            if engine == "tiny" && value == "hello" && body.ends_with(b"html\r\n\r\n") {
                server.wire().send([head.as_bytes(), body].concat()).reply().expect(400);
                continue;
            }
            let mut wire = server.wire();
            wire.send([head.as_bytes(), body].concat()).reply().expect(200);
            server.get("new").expect(200).is(value).has("Content-Type", "application/octet-stream");
            for at in 0..body.len() {
                wire.send(head.as_bytes()).send(&body[..at]).send(&body[at..]).reply().expect(200);
                server.get("new").expect(200).is(value);
            }
            eprintln!("{engine}: {value:?}");
        }
        // The connection stays open, and a pipelined request is served.
        let two = head("PUT", "/k/a", "") + "1\r\na\r\n0\r\n\r\nGET /k/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut wire = server.wire();
        wire.send(two).reply().expect(200);
        wire.reply().expect(200).is("a");
        // An empty chunked body counts as empty.
        wire.send(head("PUT", "/k/a", "")).send("0\r\n\r\n").reply().expect(400).begins("No content provided");
        server.get("a").expect(200).is("a");
        // The name of the coding is case-insensitive.
        wire.send("PUT /k/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n")
            .reply()
            .expect(200);
        server.get("a").expect(200).is("b");
    }
}

#[test]
fn malformed_chunks_are_400_write_nothing_and_end_the_connection() {
    for (engine, server) in servers(&[]) {
        for body in [
            "x\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5 5\r\nhello\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "5\rhello\r\n0\r\n\r\n",
        ] {
            let mut wire = server.wire();
            wire.send(head("PUT", "/k/new", "")).send(body);
            wire.send("GET /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n");
            wire.reply().expect(400);
            wire.finish();
            let rest = wire.rest().expect("the server ends the connection");
            assert!(rest.is_empty(), "{engine}: {} follows {body:?}", rest.escape_ascii());
            server.get("new").expect(404);
        }
        // A body that ends early is cut off.
        for body in ["", "5", "5\r\n", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n"] {
            let mut wire = server.wire();
            wire.send(head("PUT", "/k/new", "")).send(body).finish();
            if let Ok(reply) = wire.try_reply() {
                reply.expect(400);
            }
            server.get("new").expect(404);
        }
    }
}

#[test]
fn a_chunked_body_with_a_length_is_400_and_hides_no_request() {
    for (engine, server) in servers(&[]) {
        let smuggled = "DELETE /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let length = format!("Content-Length: {}\r\n", smuggled.len());
        for fields in
            [format!("Transfer-Encoding: chunked\r\n{length}"), format!("{length}Transfer-Encoding: chunked\r\n")]
        {
            for body in ["0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"] {
                let mut wire = server.wire();
                wire.send(format!("PUT /k/new HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}{smuggled}"));
                wire.reply().expect(400);
                wire.finish();
                let rest = wire.rest().expect("the server ends the connection");
                assert!(rest.is_empty(), "{engine}: {} follows {fields:?}", rest.escape_ascii());
                server.get("seed").expect(200).is("sown");
                server.get("new").expect(404);
            }
        }
    }
}

#[test]
fn a_chunked_body_is_413_once_it_exceeds_the_limit() {
    for (_, server) in servers(&["--max-value", "100000"]) {
        let value = pattern(100_000);
        let mut wire = server.wire();
        for length in [1000, 4096, 100_000] {
            wire.send(head("PUT", "/k/new", "")).send(chunked(&value, length)).reply().expect(200);
            server.get("new").expect(200).is(&value);
        }
        wire.send(head("PUT", "/k/new", "")).send(chunked(&pattern(100_001), 4096));
        wire.reply().expect(413).says("100000").has("Connection", "close");
        // A chunk that is too large is refused before it arrives.
        let mut wire = server.wire();
        wire.send(head("PUT", "/k/new", "")).send("fffffff\r\n").send(pattern(100_001)).reply().expect(413);
        server.get("new").expect(200).is(&value);
    }
}

#[test]
fn a_client_that_sends_everything_before_it_reads_gets_the_413() {
    let cases = [("", ""), ("Expect: 100-continue\r\n", ""), ("", "pause"), ("Expect: 100-continue\r\n", "pause")];
    for (engine, server) in servers(&["--max-value", "1MiB"]) {
        thread::scope(|scope| {
            for (number, (expects, pause)) in cases.iter().cycle().enumerate().take(8) {
                let server = &server;
                scope.spawn(move || {
                    let body = vec![b'x'; 16 << 20];
                    let mut wire = server.wire();
                    let (fields, body) = match number < 4 {
                        true => ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&body, 64 << 10)),
                        false if !expects.is_empty() => return,
                        false => (format!("Content-Length: {}\r\n", body.len()), body),
                    };
                    wire.send(format!("PUT /k/new HTTP/1.1\r\nHost: localhost\r\n{expects}{fields}\r\n"));
                    if !expects.is_empty() {
                        wire.reply().expect(100);
                    }
                    let (first, rest) = body.split_at(body.len() / 2);
                    wire.send(first);
                    if !pause.is_empty() {
                        // As a client does that gets no processor for a while.
                        thread::sleep(Duration::from_millis(500));
                    }
                    let reply = wire.send(rest).reply();
                    assert_eq!(reply.status, 413, "{engine}: {reply}");
                    reply.begins("Value too large");
                });
            }
        });
        server.get("new").expect(404);
    }
}

#[test]
fn a_client_that_expects_100_continue_gets_it_or_a_refusal_at_once() {
    for (_, server) in servers(&[]) {
        let mut wire = server.wire();
        wire.send(head("PUT", "/k/new", "Expect: 100-continue\r\n")).reply().expect(100);
        wire.send("5\r\nhello\r\n0\r\n\r\n").reply().expect(200);
        server.get("new").expect(200).is("hello");
        let mut wire = server.wire();
        wire.send(head("PUT", "/nowhere", "Expect: 100-continue\r\n")).reply().expect(404);
        let mut wire = server.wire();
        wire.send("PUT /k/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
            .reply()
            .expect(100);
        wire.send("HELLO").reply().expect(200);
        server.get("new").expect(200).is("HELLO");
    }
}

#[test]
fn the_last_request_of_a_connection_may_come_in_chunks() {
    for (engine, server) in servers(&[]) {
        for _ in 0..30 {
            let mut wire = server.wire();
            wire.send(head("PUT", "/k/new", "Connection: close\r\n")).send("5\r\nhello\r\n").send("0\r\n\r\n");
            let reply = wire.reply();
            assert_eq!(reply.status, 200, "{engine}: {reply}");
        }
        server.get("new").expect(200).is("hello");
    }
}

#[test]
fn a_batch_may_come_in_chunks() {
    for (_, server) in servers(&[]) {
        let batch = br#"[{"op":"put","key":"a","value":"1"},{"op":"get","key":"seed"}]"#;
        let mut wire = server.wire();
        wire.send(head("POST", "/batch", "Content-Type: application/json\r\n")).send(chunked(batch, 7));
        wire.reply().expect(200).says("sown");
        server.get("a").expect(200).is("1");
    }
}

#[test]
fn an_unread_chunked_body_leaves_the_connection_usable_or_closed() {
    for (_, server) in servers(&[]) {
        let mut wire = server.wire();
        wire.send(head("PUT", "/nowhere", "")).send(chunked(&pattern(5000), 512));
        let reply = wire.reply().expect(404);
        if reply.header("Connection").is_none() {
            wire.send("GET /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n").reply().expect(200).is("sown");
        }
        let mut wire = server.wire();
        wire.send(head("GET", "/k/seed", "")).send("5\r\nhello\r\n0\r\n\r\n").reply().expect(200).is("sown");
    }
}

/// The fields by which a client, such as Java's, offers to speak HTTP/2.
const OFFER: &str = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n";

#[test]
fn a_body_beside_an_offer_to_upgrade_is_a_body() {
    for (engine, server) in servers(&[]) {
        let get = "GET /k/new HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for length in [1, 2000, 40_000] {
            let value = pattern(length);
            let declared = format!("PUT /k/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{OFFER}\r\n");
            for (head, body) in [(declared, value.clone()), (head("PUT", "/k/new", OFFER), chunked(&value, 999))] {
                eprintln!("{engine}: {head}");
                let mut wire = server.wire();
                let reply = wire.send([head.as_bytes(), &body, get.as_bytes()].concat()).reply().expect(200);
                // tiny_http ends the connection after such a request.
                match engine {
                    "tiny" => drop(reply.has("Connection", "close")),
                    _ => drop(wire.reply().expect(200).is(&value)),
                }
                server.get("new").expect(200).is(&value);
                server.delete("new").expect(200);
            }
        }
        // The body of a refused request is no request.
        let hidden = "DELETE /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let declared = format!("PUT /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", hidden.len());
        for request in [format!("{declared}{OFFER}\r\n{hidden}"), head("PUT", "/nowhere", OFFER) + "3f\r\n" + hidden] {
            let mut wire = server.wire();
            wire.send(request).reply().expect(404);
            wire.finish().rest().expect("the server ends the connection");
            server.get("seed").expect(200).is("sown");
        }
    }
}

#[test]
fn a_client_that_offers_to_upgrade_gets_the_413() {
    for (engine, server) in servers(&["--max-value", "1MiB"]) {
        let body = vec![b'x'; 4 << 20];
        for round in 0..20 {
            let declared = format!("PUT /k/new HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
            for (head, body) in [
                (format!("{declared}{OFFER}\r\n"), body.clone()),
                (head("PUT", "/k/new", OFFER), chunked(&body, 64 << 10)),
            ] {
                let reply = server.wire().send(head).send(body).reply();
                assert_eq!(reply.status, 413, "{engine}, round {round}: {reply}");
            }
        }
    }
}
