//! Connections stay open, get their responses in order, and do not delay each other.
//!
//! Provoked with many open connections, with pipelined requests, and with clients that speak HTTP/1.0 or request that
//! the connection is closed.

use std::time::Duration;

use vkog_tests::{Setup, Wire, bytes, conflict, on_windows, pattern};

use super::ENGINE;

#[test]
fn every_connection_of_a_large_burst_is_served() {
    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    for _ in 0..4 {
        let mut wires: Vec<Wire> = (0..64).map(|_| server.wire().patience(Duration::from_secs(5))).collect();
        for wire in &mut wires {
            wire.send("GET /k/absent HTTP/1.1\r\nHost: localhost\r\n\r\n");
        }
        for wire in &mut wires {
            wire.reply().expect(404);
        }
    }
}

#[test]
fn idle_connections_do_not_delay_others() {
    let server = Setup::on(ENGINE).start();
    let mut idle = server.wires(100);
    server.put("k", "v").expect(200);
    for wire in &mut idle {
        wire.request("GET", "/k/k", b"").expect(200).is("v");
    }
}

#[test]
fn a_partial_request_head_does_not_delay_others() {
    let server = Setup::on(ENGINE).start();
    let mut halves = server.wires(32);
    for half in &mut halves {
        half.send("PUT /k/k HTTP/1.1\r\nHost: loc");
    }
    server.put("k", "v").expect(200);
    for half in &mut halves {
        half.send("alhost\r\nContent-Length: 4\r\n\r\nhalf").reply().expect(200);
    }
    server.get("k").expect(200).is("half");
}

#[test]
fn pipelined_requests_get_their_responses_in_order() {
    const ROUNDS: usize = 10;
    const AHEAD: usize = 20;

    let server = Setup::on(ENGINE).load(bytes()).load(conflict()).start();
    for round in 0..ROUNDS {
        let mut wire = server.wire().patience(Duration::from_secs(10));
        let mut requests = Vec::new();
        for number in 0..AHEAD {
            // Bodies below and above the size of a packet.
            let value = pattern(1 + number * 300);
            let head = format!(
                "POST /k/{round}-{number} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                value.len()
            );
            requests.extend(head.into_bytes());
            requests.extend(value);
        }
        wire.send(requests);
        for _ in 0..AHEAD {
            wire.reply().expect(200);
        }
        for number in 0..AHEAD {
            wire.send(format!("GET /k/{round}-{number} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        }
        for number in 0..AHEAD {
            wire.reply().expect(200).is(pattern(1 + number * 300));
        }
    }
}

#[test]
fn a_client_with_connection_close_or_http_1_0_has_it_closed() {
    let server = Setup::on(ENGINE).start();
    server.put("k", "v").expect(200);
    for request in ["GET /k/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "GET /k/k HTTP/1.0\r\n\r\n"] {
        let mut wire = server.wire();
        wire.send(request).reply().expect(200).is("v");
        let rest = wire.rest().expect("the server ends the connection");
        assert!(rest.is_empty(), "{} follows", rest.escape_ascii());
    }
}

#[test]
fn a_client_that_half_closes_after_its_request_gets_the_response() {
    let server = Setup::on(ENGINE).start();
    for round in 0..20 {
        let mut wire = server.wire();
        wire.send("PUT /k/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv").finish().reply().expect(200);
        let mut wire = server.wire();
        wire.send("GET /k/k HTTP/1.1\r\nHost: localhost\r\n\r\n").finish().reply().expect(200).is("v");
        assert!(wire.rest().is_ok_and(|rest| rest.is_empty()), "round {round}");
    }
}

#[test]
fn an_http_1_0_response_without_a_length_says_that_it_ends_the_connection() {
    // Outside Linux, tiny_http keeps the connection open if the client requests it.
    let engines = ["tiny", "hyper"].into_iter().filter(|engine| !on_windows() || *engine == "hyper");
    for engine in engines {
        let server = Setup::new().args(["--http", engine]).start();
        server.put("k", vec![b'v'; 300_000]).expect(200);
        let batch = r#"[{"op":"get","key":"k"}]"#;
        let post = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{batch}", batch.len());
        for (request, status) in [
            (format!("POST /batch HTTP/1.0\r\nConnection: keep-alive\r\n{post}"), 200),
            ("HEAD /watch HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".to_owned(), 200),
            ("PUT /k/k HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
        ] {
            // tiny_http closes every idle connection, but later.
            let mut wire = server.wire().patience(Duration::from_secs(10));
            wire.send(&request);
            let response = wire.rest().expect("the server ends the connection");
            let response = String::from_utf8_lossy(&response);
            let (head, body) = response.split_once("\r\n\r\n").expect("a head ends with an empty line");
            let fields: Vec<_> = head.lines().filter(|line| line.to_lowercase().starts_with("connection:")).collect();
            assert!(head.starts_with("HTTP/1.") && head.contains(&format!(" {status} ")), "{engine}: {head}");
            assert!(fields.len() == 1 && fields[0].to_lowercase().ends_with(": close"), "{engine}: {head}");
            assert!(!request.starts_with("POST") || body.len() > 300_000 && body.ends_with("]\n"), "{engine}: {head}");
        }
    }
}
