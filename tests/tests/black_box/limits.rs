//! The hyper engine limits what a client may cost, and responds to what exceeds a limit.
//!
//! Provoked with heads that are too large, more connections than file descriptors, another protocol, declared bodies
//! that are not sent, and a stop in the middle of a request. tiny_http has none of these limits, so the tests always
//! start hyper.

#![cfg(unix)]

use std::time::Duration;

use vkog_tests::{ENGINES, Server, Setup, Wire};

fn server() -> Server {
    let server = Setup::new().args(["--http", "hyper"]).start();
    server.put("k", "v").expect(200);
    server
}

#[test]
fn a_head_of_over_64_kib_or_100_fields_is_431_and_ends_the_connection() {
    let server = server();
    let within = format!("GET /k/k HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(60 << 10));
    server.wire().send(within).reply().expect(200);
    let long = format!("GET /k/k HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(70 << 10));
    let many = format!("GET /k/k HTTP/1.1\r\n{}\r\n", "X-Many: 1\r\n".repeat(101));
    for head in [long, many] {
        let mut wire = server.wire();
        // The server may end the connection before all is sent.
        let _ = wire.try_send(head.as_bytes());
        if let Ok(reply) = wire.try_reply() {
            reply.expect(431);
        }
        wire.rest().expect("the server ends the connection");
        server.get("k").expect(200).is("v");
    }
    let many = format!("GET /k/k HTTP/1.1\r\n{}\r\n", "X-Many: 1\r\n".repeat(101));
    server.wire().send(many).reply().expect(431);
}

#[test]
fn a_connection_over_the_limit_is_503_until_another_one_ends() {
    let server = Setup::new().args(["--http", "hyper"]).descriptors(120).start();
    let mut wires: Vec<Wire> = (0..80).map(|_| server.wire().patience(Duration::from_secs(5))).collect();
    // The limit of file descriptors minus 64.
    let served = 120 - 64;
    for (number, wire) in wires.iter_mut().enumerate() {
        let reply = wire.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").reply();
        if number < served {
            reply.expect(200);
        } else {
            reply.expect(503).begins("Too many connections");
            assert!(wire.rest().expect("the server ends the connection").is_empty());
        }
    }
    // The served connections continue.
    let first = wires.remove(0).send("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").reply();
    first.expect(200);
    drop(wires);
    let served = |_| server.wire().send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").reply().status == 200;
    assert!((0..1000).any(served), "no client is served after all connections have ended");
}

#[test]
fn the_connections_of_all_addresses_share_one_limit() {
    let setup = Setup::new().descriptors(120);
    let mut command = setup.vkog();
    command.args(["serve", "--no-plugins", "--http", "hyper", "-f", "s.vkog", "--listen", "127.0.0.1:0,127.0.0.1:0"]);
    let running = vkog_tests::Running::start(&mut command);
    assert!(running.stdout.wait_for(|text| text.ends_with('\n')), "{}", running.stderr.text());
    let text = running.stdout.text();
    let addresses: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("listening on http://")).collect();
    assert_eq!(addresses.len(), 2, "{text}");
    let mut open = Vec::new();
    let mut status = |address: &str| {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(vkog_tests::DEADLINE)).expect("it is no zero");
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut line = [0; 12];
        stream.read_exact(&mut line).expect("it answers");
        open.push(stream);
        String::from_utf8_lossy(&line).into_owned()
    };
    // The limit of file descriptors minus 64.
    for number in 0..120 - 64 {
        assert_eq!(status(addresses[number % 2]), "HTTP/1.1 200", "connection {number}");
    }
    for address in addresses {
        assert_eq!(status(address), "HTTP/1.1 503", "{address}");
    }
}

#[test]
fn a_request_of_http_1_that_declares_http_2_is_refused_and_leaves_nothing_behind() {
    let server = server();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", server.id())).map_or(0, Iterator::count);
    let before = threads();
    for request in ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", "GET /k/k HTTP/2.0\r\nHost: localhost\r\n\r\n"] {
        for _ in 0..20 {
            let mut wire = server.wire();
            wire.send(request);
            let rest = wire.rest().expect("the server ends the connection");
            let text = String::from_utf8_lossy(&rest).into_owned();
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 5"), "{text}");
        }
    }
    assert_eq!(threads(), before, "threads");
    server.get("k").expect(200).is("v");
}

#[cfg(target_os = "linux")]
#[test]
fn declared_bodies_that_never_arrive_cost_no_memory() {
    let server = server();
    let before = server.proc_status("VmHWM");
    let mut wires: Vec<Wire> = (0..64).map(|_| server.wire()).collect();
    for wire in &mut wires {
        wire.send("PUT /k/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\nv");
    }
    server.get("k").expect(200).is("v");
    let grown = server.proc_status("VmHWM") - before;
    assert!(grown < 32 << 10, "the server's memory grew by {grown} KiB");
}

#[test]
fn a_stop_closes_idle_connections_and_finishes_requests_in_flight() {
    let server = server();
    let mut idle = server.wires(3);
    let mut half = server.wires(1).remove(0);
    half.send("PUT /k/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n");
    // So the server has received the head.
    half.reply().expect(100);
    server.signal("TERM");
    for wire in &mut idle {
        assert!(wire.rest().expect("the server ends the connection").is_empty());
    }
    half.send([b'x'; 5000]).reply().expect(200);
    assert!(half.rest().expect("the server ends the connection").is_empty());
    // Without a second signal, which would end the process before the store is closed.
    server.wait().expect(0);
}

#[test]
fn hyper_is_the_default_and_tiny_http_on_a_public_address_is_warned_about() {
    for (listen, engine, logged) in [
        ("127.0.0.1:0", "auto", "with hyper"),
        ("127.0.0.1:0", "tiny", "with tiny_http"),
        ("0.0.0.0:0", "auto", "with hyper"),
        ("127.0.0.1:0", "hyper", "with hyper"),
        ("0.0.0.0:0", "tiny", "use --http hyper"),
    ] {
        let setup = Setup::new();
        let server = setup.start_with(["--no-plugins", "--open", "--listen", listen, "--http", engine]);
        server.put("k", "v").expect(200);
        server.logs(&[logged]);
        server.stop().expect(0);
    }
}

#[test]
fn a_unix_socket_is_served_by_either_engine() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    for engine in ENGINES {
        let setup = Setup::new();
        let socket = setup.folder().join("socket");
        let listen = format!("unix:{}", socket.display());
        let mut command = setup.vkog();
        let running = vkog_tests::Running::start(command.args(["--no-plugins", "--listen", &listen, "--http", engine]));
        assert!(running.stdout.wait_for(|text| text.contains(&listen)), "{engine} does not listen");
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        stream
            .write_all(b"PUT /k/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv")
            .expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it answers and closes");
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nOk"), "{engine}: {reply}");
        running.signal("TERM");
        running.wait().expect(0);
        assert!(!socket.exists(), "{engine} left its socket");
    }
}
