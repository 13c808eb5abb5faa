//! A message that is not HTTP as RFC 9112 defines it gets an error, or its connection is closed. No part of it runs as
//! a request, and nothing of it remains.
//!
//! Provoked byte by byte, on both engines with the same bounds. tiny_http does not pass the cases marked as [`HYPER`]
//! to the host; docs/reference/http.md lists them.

#![cfg(target_os = "linux")]

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use vkog_tests::{DEADLINE, ENGINES, Server, Setup, Wire, amount, exclusive};

const HYPER: [&str; 1] = ["hyper"];

/// The request that another one tries to smuggle.
const SMUGGLED: &str = "DELETE /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn server(engine: &str) -> Server {
    let server = Setup::new().args(["--http", engine]).start();
    server.put("seed", "sown").expect(200);
    server
}

/// Sends bytes on a new connection, and returns the status of each response until the connection ends.
#[track_caller]
fn statuses(server: &Server, bytes: &[u8]) -> Vec<u16> {
    let mut wire = server.wire();
    // The server may have closed the connection.
    let _ = wire.try_send(bytes);
    wire.finish();
    let text = wire.rest().expect("the server ends a connection that the client has ended");
    let text = String::from_utf8_lossy(&text);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

/// Returns the number of threads and of open files of a server.
fn held(server: &Server) -> (usize, usize) {
    let count = |what| std::fs::read_dir(format!("/proc/{}/{what}", server.id())).expect("it runs").count();
    (count("task"), count("fd"))
}

#[test]
fn ambiguous_framing_is_refused_and_nothing_after_it_is_executed() {
    let length = SMUGGLED.len();
    let cases: &[(&[&str], &str, String)] = &[
        (
            &ENGINES,
            "a bare line feed hides the length",
            format!("PUT /k/a HTTP/1.1\r\nHost: localhost\r\nX: a\nContent-Length: {length}\r\n\r\n"),
        ),
        (
            &ENGINES,
            "a length beyond 64 bits",
            "PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551616\r\n\r\n".into(),
        ),
        (
            &ENGINES,
            "a length far beyond 64 bits",
            "PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n".into(),
        ),
        (&ENGINES, "a negative length", "PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n".into()),
        (
            &ENGINES,
            "two lengths",
            format!("PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n"),
        ),
        (&ENGINES, "a carriage return in a value", "PUT /k/a HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n".into()),
        (&ENGINES, "a NUL in a value", "PUT /k/a HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n".into()),
        (
            &HYPER,
            "a line that is folded",
            format!("PUT /k/a HTTP/1.1\r\nHost: localhost\r\nX: a\r\n Content-Length: {length}\r\n\r\n"),
        ),
        (
            &HYPER,
            "a vertical tab before the length",
            format!("PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: \x0b{length}\r\n\r\n"),
        ),
        (&HYPER, "something after the version", "GET /livez HTTP/1.1 x\r\nHost: localhost\r\n\r\n".into()),
    ];
    for (engines, what, head) in cases {
        for engine in *engines {
            let server = server(engine);
            for _ in 0..5 {
                let answers = statuses(&server, format!("{head}{SMUGGLED}").as_bytes());
                assert!(answers.len() <= 1, "{engine}: {what}: {answers:?}");
                // A reader may take a bare line feed for the end of a line (RFC 9112, section 2.2), as hyper does.
                let is_read = *engine == "hyper" && what.contains("bare line feed");
                assert!(
                    is_read || answers.iter().all(|status| (400..500).contains(status)),
                    "{engine}: {what}: {answers:?}"
                );
            }
            let seed = server.get("seed");
            assert_eq!(seed.status, 200, "{engine}: {what} hid a request");
        }
    }
}

#[test]
fn bytes_that_are_not_ascii_get_a_response_or_a_close_and_leave_nothing() {
    for engine in ENGINES {
        let server = server(engine);
        for bytes in [
            b"GET /k/seed HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\r\n\r\n".as_slice(),
            b"GET /k/seed HTTP/1.1\r\nHost: localhost\r\nX-\xc3\xa9: a\r\n\r\n",
            b"GET /k/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"G\xc3\x89T /k/seed HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ] {
            let answers = statuses(&server, bytes);
            assert!(answers.len() <= 1, "{engine}: {answers:?}");
        }
        server.get("seed").expect(200).is("sown");
    }
}

#[test]
fn other_protocols_get_a_response_or_a_close_and_leave_nothing() {
    for engine in HYPER {
        let server = server(engine);
        let before = held(&server);
        for _ in 0..50 {
            for bytes in [
                b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n".as_slice(),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                b"\0\0\0\0\r\n\r\n",
            ] {
                let mut stream = TcpStream::connect(server.address()).expect("the server listens");
                stream.set_read_timeout(Some(DEADLINE)).expect("an open connection has a timeout");
                std::io::Write::write_all(&mut stream, bytes).expect("it is read");
                let mut rest = Vec::new();
                // A reset also ends the connection.
                let _ = stream.read_to_end(&mut rest);
                assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{engine}: {}", rest.escape_ascii());
            }
        }
        let deadline = std::time::Instant::now() + DEADLINE;
        while held(&server).1 > before.1 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(held(&server).1 <= before.1, "{engine}: {:?} before, {:?} after", before, held(&server));
    }
}

#[test]
fn an_http_1_0_connection_stays_open_if_the_client_requests_it() {
    for engine in ENGINES {
        let server = server(engine);
        let mut wire = server.wire();
        for _ in 0..4 {
            let reply = wire.send("GET /k/seed HTTP/1.0\r\nHost: localhost\r\nConnection: Keep-Alive\r\n\r\n").reply();
            assert!(
                reply.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")),
                "{engine}: {reply}"
            );
            reply.expect(200).is("sown");
        }
        wire.send("GET /k/seed HTTP/1.0\r\nHost: localhost\r\n\r\n").reply().expect(200).is("sown");
        assert!(wire.rest().expect("the server ends the connection").is_empty(), "{engine}");
    }
}

#[test]
fn clients_at_reused_addresses_are_served_after_bad_framing() {
    let _alone = exclusive();
    let (bad, innocent) = (amount(600, 10_000), amount(300, 3_000));
    for engine in ENGINES {
        let server = server(engine);
        let mut ports = Vec::new();
        for _ in 0..bad {
            // A reset frees the port of the client at once.
            let (mut wire, port) = from_port(&server, 0).expect("there is a port");
            ports.push(port);
            let _ = wire.try_send(b"PUT /k/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\nabc");
            if let Ok(reply) = wire.try_reply() {
                assert_eq!(reply.status, 400, "{engine}: {reply}");
            }
        }
        // Another program may use some of them by now.
        let reused: Vec<Wire> = ports
            .into_iter()
            .rev()
            .filter_map(|port| from_port(&server, port))
            .map(|(wire, _)| wire)
            .take(innocent)
            .collect();
        assert!(reused.len() > innocent / 2, "{engine}: only {} ports could be used again", reused.len());
        for mut wire in reused {
            wire.request("GET", "/k/seed", b"").expect(200);
        }
    }
}

/// A connection from a port, unless that is in use, which is reset when it is closed; and the port.
fn from_port(server: &Server, port: u16) -> Option<(Wire, u16)> {
    let address: SocketAddr = server.address().parse().expect("it is an address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
    socket.set_reuse_address(true).expect("it is a socket");
    // Its port is free when it is closed.
    socket.set_linger(Some(Duration::ZERO)).expect("it is a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).ok()?;
    socket.connect(&address.into()).ok()?;
    let stream = TcpStream::from(socket);
    let port = stream.local_addr().expect("it is connected").port();
    Some((server.wire_over(stream), port))
}
