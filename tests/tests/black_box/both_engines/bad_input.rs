//! Bad input gets the documented status, costs bounded memory, writes nothing, and the server continues.
//!
//! Provoked byte by byte: broken encodings, malformed and wrong lengths, bodies that end early or are far too long.

use vkog_tests::{Server, Setup, Wire, bytes, conflict, on_windows};

use super::ENGINE;

/// A server with one entry.
fn server() -> Server {
    server_with(&[])
}

fn server_with(arguments: &[&str]) -> Server {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).args(arguments).start();
    server.post("seed", "sown").expect(200);
    server
}

/// Asserts that the server continues: it reads and writes on a new connection.
#[track_caller]
fn lives(server: &Server) {
    let client = server.client();
    client.get("seed").expect(200).is("sown");
    client.post("life", "sign").expect(200);
    client.delete("life").expect(200);
}

/// Sends a request with these header lines and this body on a new connection.
fn send(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> Wire {
    let mut wire = server.wire();
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    wire.send(bytes);
    wire
}

#[test]
fn a_broken_percent_encoding_is_400() {
    let server = server();
    for path in ["/k/%", "/k/%2", "/k/%zz", "/k/a%", "/k/a%2", "/k/%%41", "/k/%2%30", "/k/%+1"] {
        for method in ["GET", "DELETE"] {
            server.path(method, path).send().expect(400);
        }
        for method in ["POST", "PUT"] {
            server.path(method, path).body("v").send().expect(400);
        }
    }
    lives(&server);
}

#[test]
fn a_key_that_is_not_utf_8_is_400() {
    let server = server();
    for path in ["/k/%FF", "/k/a%C3", "/k/%C3%28", "/k/%ED%A0%80", "/k/%C0%80"] {
        server.path("GET", path).send().expect(400);
        server.path("POST", path).body("v").send().expect(400);
    }
    // Unencoded, it is not a valid request; the connection may also close.
    let mut wire = server.wire();
    wire.send(b"GET /k/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n");
    if let Ok(reply) = wire.try_reply() {
        reply.expect(400);
    }
    lives(&server);
}

#[test]
fn an_empty_key_is_400_and_a_2_kib_key_is_414() {
    let server = server();
    server.path("GET", "/k/").send().refused(400, "Key cannot be empty");
    let long = "k".repeat(2048);
    server.get(&long).expect(414);
    server.post(&long, "v").expect(414);
    server.put(&long, "v").expect(414);
    server.delete(&long).expect(414);
    lives(&server);
}

#[test]
fn an_empty_body_is_400_with_or_without_a_length() {
    let server = server();
    for method in ["POST", "PUT"] {
        send(&server, method, "/k/seed", "Content-Length: 0\r\n", b"").reply().refused(400, "No content provided");
        send(&server, method, "/k/seed", "", b"").reply().refused(400, "No content provided");
    }
    lives(&server);
}

#[test]
fn a_body_that_is_cut_off_writes_nothing() {
    let server = server();
    for (came, declared) in [(1, 2), (10, 100), (900, 1000), (10, 2000), (1999, 2000), (100_000, 1_000_000)] {
        for method in ["POST", "PUT"] {
            let key = if method == "POST" { "new" } else { "seed" };
            let headers = format!("Content-Length: {declared}\r\n");
            let mut wire = send(&server, method, &format!("/k/{key}"), &headers, &vec![b'x'; came]);
            wire.finish();
            // The end of the connection shows that the server has finished with it.
            if let Ok(reply) = wire.try_reply() {
                reply.expect(400);
            }
            wire.rest().expect("the server ends a connection that the client has ended");
            server.get("seed").expect(200).is("sown");
            server.get("new").expect(404);
        }
    }
    lives(&server);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_body_writes_nothing() {
    let server = server();
    for came in [10, 1500] {
        drop(send(&server, "POST", "/k/new", "Content-Length: 2000\r\n", &vec![b'x'; came]));
        drop(send(&server, "PUT", "/k/seed", "Content-Length: 2000\r\n", &vec![b'x'; came]));
    }
    lives(&server);
    server.get("new").expect(404);
}

#[test]
fn clients_that_stall_in_a_body_do_not_delay_others() {
    let server = server();
    let stalled: Vec<_> = (0..32)
        .map(|number| {
            let key = format!("/k/stalled-{number}");
            send(&server, "POST", &key, "Content-Length: 2000\r\n", &[b'x'; 1500])
        })
        .collect();
    lives(&server);
    for (number, mut wire) in stalled.into_iter().enumerate() {
        wire.send([b'y'; 500]).reply().expect(200);
        server.get(&format!("stalled-{number}")).expect(200);
    }
}

#[test]
fn only_the_transfer_encoding_chunked_is_accepted() {
    let server = server();
    for (headers, status) in [
        ("Transfer-Encoding: gzip\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    ] {
        for (method, path) in [("POST", "/k/new"), ("PUT", "/k/seed")] {
            let mut wire = send(&server, method, path, headers, b"5\r\nhello\r\n0\r\n\r\n");
            wire.reply().expect(status);
            // The following bytes could be a body or a request: it is ambiguous.
            wire.finish();
            wire.rest().expect("the server ends the connection");
        }
    }
    lives(&server);
    server.get("new").expect(404);
}

#[test]
fn an_absolute_target_of_another_scheme_than_http_is_400() {
    let server = server();
    for (scheme, status) in [("ftp", 400), ("file", 400), ("http", 200), ("https", 200), ("HTTP", 200)] {
        let mut wire = server.wire();
        wire.send(format!("GET {scheme}://localhost/k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .reply()
            .expect(status);
    }
}

#[test]
fn a_malformed_length_is_400_and_writes_nothing() {
    let server = server();
    let bad = ["-1", "-5", "+5", "five", "5 5", "5,6", "0x5", "5.0", ""];
    let bad = bad.map(|length| format!("Content-Length: {length}\r\n"));
    let two = [
        "Content-Length: 5\r\nContent-Length: 6\r\n".to_owned(),
        "Content-Length: 5\r\ncontent-length: 4\r\n".to_owned(),
    ];
    for headers in bad.iter().chain(&two) {
        send(&server, "POST", "/k/new", headers, b"hello").reply().expect(400);
        send(&server, "PUT", "/k/seed", headers, b"hello").reply().expect(400);
    }
    lives(&server);
    server.get("new").expect(404);
}

#[test]
fn bytes_after_a_malformed_length_are_not_run_as_a_request() {
    let server = server();
    let smuggled = b"DELETE /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let headers = [
        format!("Content-Length: 0\r\nContent-Length: {}\r\n", smuggled.len()),
        "Content-Length: -1\r\n".to_owned(),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", smuggled.len()),
    ];
    for headers in &headers {
        let mut wire = send(&server, "POST", "/k/new", headers, smuggled);
        let reply = wire.reply();
        reply.expect(400);
        wire.finish();
        wire.rest().expect("the server ends a connection that the client has ended");
        server.get("seed").expect(200).is("sown");
    }
}

#[test]
fn a_body_over_the_largest_value_is_413_without_being_read() {
    let server = server_with(&["--max-value", "1KiB"]);
    server.put("seed", [b'x'; 1024]).expect(200);
    server.put("seed", "sown").expect(200);
    server.put("seed", [b'x'; 1025]).expect(413);
    // Nothing of the body is ever sent.
    for declared in ["1025", "200000000"] {
        too_large(&server, declared);
    }
    server.get("new").expect(404);
}

#[test]
fn a_body_larger_than_any_memory_is_413_and_the_server_continues() {
    let server = server();
    for declared in ["2000000000", "100000000000", "9223372036854775808"] {
        too_large(&server, declared);
    }
    // hyper rejects numbers that do not fit into 64 bits in its own way.
    for declared in ["18446744073709551615", "99999999999999999999999"] {
        let reply = send(&server, "PUT", "/k/seed", &format!("Content-Length: {declared}\r\n"), b"").reply();
        assert!([413, 400, 431].contains(&reply.status), "the status of {reply}");
        lives(&server);
    }
    server.get("new").expect(404);
}

/// Declares a body, sends none of it, and expects the refusal.
fn too_large(server: &Server, declared: &str) {
    let headers = format!("Content-Length: {declared}\r\n");
    send(server, "PUT", "/k/seed", &headers, b"").reply().expect(413);
    // A client with `Expect: 100-continue` does not get a 100.
    let headers = format!("Content-Length: {declared}\r\nExpect: 100-continue\r\n");
    send(server, "POST", "/k/new", &headers, b"").reply().expect(413);
    lives(server);
}

#[test]
fn a_client_that_expects_100_continue_gets_it_before_an_acceptable_body() {
    let server = server();
    for size in [5, 5000] {
        let headers = format!("Content-Length: {size}\r\nExpect: 100-continue\r\n");
        let mut wire = send(&server, "PUT", "/k/seed", &headers, b"");
        wire.reply().expect(100);
        wire.send(vec![b'x'; size]).reply().expect(200);
        server.get("seed").expect(200).is(vec![b'x'; size]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_body_of_200_mb_against_128_mib_is_413_and_costs_no_memory() {
    const MIB: u64 = 1 << 20;
    let peak = |server: &Server| server.proc_status("VmHWM") << 10;
    let server = server();
    let before = peak(&server);
    for _ in 0..5 {
        let mut wire = send(&server, "PUT", "/k/seed", "Content-Length: 200000000\r\n", b"");
        // The client sends everything without reading; the server may end the connection meanwhile.
        let megabyte = vec![b'x'; 1_000_000];
        let sent = (0..200).all(|_| wire.try_send(&megabyte).is_ok());
        if let Ok(reply) = wire.try_reply() {
            reply.expect(413);
        } else {
            assert!(!sent, "no reply to a client that could send everything\n{}", server.log());
        }
        wire.finish();
        wire.rest().expect("the server ends a connection that the client has ended");
    }
    // A client that reads before it continues to send always gets the response.
    send(&server, "PUT", "/k/seed", "Content-Length: 200000000\r\n", &[b'x'; 4096]).reply().expect(413);
    // A gigabyte was sent, in bodies over the limit: the server has held nothing like one of them.
    let grown = peak(&server) - before;
    assert!(grown < 128 * MIB, "the server's memory grew by {} MiB", grown / MIB);
    lives(&server);
}

#[test]
fn bytes_that_are_not_http_end_only_their_connection() {
    let server = server();
    let garbage: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /k/seed\r\n\r\n",
        b"GET /k/seed HTTP/9.9\r\n\r\n",
        b"GET /k/seed HTTP/1.1\r\nno colon here\r\n\r\n",
    ];
    for bytes in garbage {
        let mut wire = server.wire();
        // The server may end the connection before all is sent.
        if wire.try_send(bytes).is_ok() {
            wire.finish();
            let rest = wire.rest().expect("the server ends a connection that the client has ended");
            let text = String::from_utf8_lossy(&rest).into_owned();
            assert!(!text.contains(" 200 "), "{} was served: {text}", bytes.escape_ascii());
        }
        lives(&server);
    }
}

#[test]
fn a_connection_continues_after_a_refusal_that_leaves_it_in_order() {
    let server = server();
    let mut wire = server.wire();
    for _ in 0..3 {
        wire.request("GET", "/k/%zz", b"").expect(400);
        wire.request("POST", "/k/seed", &[b'x'; 3000]).expect(409);
        wire.request("PUT", "/k/", &[b'x'; 3000]).expect(400);
        wire.request("BREW", "/k/seed", &[b'x'; 3000]).expect(405);
        wire.request("POST", "/other", &[b'x'; 3000]).expect(404);
        wire.request("PUT", "/k/seed", b"").expect(400);
        wire.request("GET", "/k/seed", b"").expect(200).is("sown");
    }
}

#[test]
fn a_pipelined_request_with_two_lengths_is_rejected_and_hides_no_request() {
    let smuggled = "DELETE /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", smuggled.len());
    let firsts = [
        "GET /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        format!("PUT /k/first HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{smuggled}"),
        "PUT /k/first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nv\r\n0\r\n\r\n".to_owned(),
    ];
    // tiny_http passes pipelined requests to several workers, so a refusal may overtake the request before it.
    let server = server_with(&["--http", "hyper"]);
    server.post("first", "v").expect(200);
    for first in &firsts {
        for fields in [format!("{length}{length}"), format!("Transfer-Encoding: chunked\r\n{length}")] {
            let second = format!("PUT /k/new HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n0\r\n\r\n{smuggled}");
            let mut wire = server.wire();
            // In one piece, so that the server reads both requests at once.
            wire.send(format!("{first}{second}"));
            wire.reply().expect(200);
            wire.reply().expect(400);
            wire.finish();
            let rest = wire.rest().expect("the server ends the connection");
            assert!(rest.is_empty(), "{} follows {second:?}", rest.escape_ascii());
            server.get("seed").expect(200).is("sown");
            server.get("new").expect(404);
        }
    }
}

#[test]
fn a_pipelined_request_with_a_fragment_is_rejected_behind_every_kind_of_body() {
    let hidden = "DELETE /k/seed#x HTTP/1.1\r\n\r\n";
    let (length, head) = (hidden.len(), "PUT /k/first HTTP/1.1\r\nHost: localhost\r\n");
    for engine in ["tiny", "hyper"] {
        let server = server_with(&["--http", engine]);
        server.post("first", "v").expect(200);
        for first in [
            format!("{head}Content-Length: {length}\r\n\r\n{hidden}"),
            format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"),
        ] {
            if engine == "tiny" && on_windows() && first.contains("chunked") {
                continue;
            }
            let mut wire = server.wire();
            wire.send(format!("{first}DELETE /k/seed#x HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            wire.reply().expect(200);
            wire.reply().refused(400, "Target has a fragment");
            wire.request("GET", "/k/seed", b"").expect(200).is("sown");
        }
    }
}
