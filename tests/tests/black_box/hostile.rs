//! Clients that try to exhaust a server cost it little, and another client gets all its responses meanwhile.
//!
//! Provoked with connections that send a byte a second, uploads that stop halfway, impossible lengths, a header line
//! without an end, another protocol, and a hundred thousand pipelined requests. Each runs on the engines that survive
//! it; docs/reference/http.md lists the limits of tiny_http. Also: file descriptors that run out, silent connections
//! among others, and large values over many connections.

#![cfg(target_os = "linux")]

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use vkog_tests::{
    DEADLINE, ENGINES, Server, Setup, Wire, amount, connect_raw, exclusive, frame, get_frame, put_frame,
    raise_descriptors, read_frame, with_background,
};

const HYPER: [&str; 1] = ["hyper"];

/// Attacks a server, and asserts that another client is served meanwhile, that the server lives, and that its memory has
/// not grown by more than so much at any time.
fn attack(engines: &[&str], mib_max: u64, attack: impl Fn(&Server)) {
    let _alone = exclusive();
    raise_descriptors();
    for engine in engines {
        let server = Setup::new().args(["--http", engine]).start();
        server.put("k", "value").expect(200);
        let before = server.proc_status("VmRSS");
        let client = server.client();
        let began = Instant::now();
        with_background([|| drop(client.get("k").expect(200).is("value"))], || attack(&server));
        let grown = server.proc_status("VmHWM").saturating_sub(before) >> 10;
        eprintln!("{engine}: {grown} MiB more, {:?}", began.elapsed());
        assert!(grown <= mib_max, "{engine}: {grown} MiB more than before");
        server.put("k", "after").expect(200);
        server.client().get("k").expect(200).is("after");
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("an open connection has a timeout");
    stream.set_write_timeout(Some(DEADLINE)).expect("an open connection has a timeout");
    stream
}

/// Returns the status of the response on a connection, if any.
fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut text = [0; 12];
    stream.read_exact(&mut text).ok()?;
    str::from_utf8(&text[9..]).ok()?.parse().ok()
}

#[test]
fn five_thousand_slow_connections_do_not_delay_other_clients() {
    attack(&HYPER, 200, |server| {
        let mut slow: Vec<TcpStream> = (0..5000).map(|_| connect(server)).collect();
        let head = b"GET /k/k HTTP/1.1\r\n";
        for byte in head.chunks(1).take(5) {
            let round = Instant::now();
            slow.iter_mut().for_each(|stream| stream.write_all(byte).expect("no client has timed out yet"));
            thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
        }
        // Afterwards they are served as others.
        for stream in slow.iter_mut().take(10) {
            stream.write_all(&head[5..]).expect("no client has timed out yet");
            stream.write_all(b"Host: localhost\r\n\r\n").expect("no client has timed out yet");
            assert_eq!(status(stream), Some(200));
        }
    });
}

#[test]
fn a_thousand_stalled_uploads_do_not_delay_other_clients() {
    attack(&ENGINES, 100, |server| {
        let half = |_| {
            let mut stream = connect(server);
            let head = "PUT /k/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n";
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&[b'x'; 2000])).expect("it is read");
            stream
        };
        let halves: Vec<TcpStream> = (0..1000).map(half).collect();
        server.client().get("half").expect(404);
        drop(halves);
        server.client().get("half").expect(404);
    });
}

#[test]
fn a_declared_length_of_ten_gib_is_refused_before_the_body() {
    attack(&ENGINES, 20, |server| {
        for _ in 0..20 {
            for length in ["10737418240", "18446744073709551615", "99999999999999999999999"] {
                let mut stream = connect(server);
                let head = format!("PUT /k/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&[b'x'; 1000])).expect("it is read");
                let status = status(&mut stream);
                assert!(matches!(status, Some(413 | 400 | 431)), "{length}: {status:?}");
            }
        }
    });
}

#[test]
fn a_header_line_of_200_mb_ends_its_connection() {
    attack(&HYPER, 20, |server| {
        let mut stream = connect(server);
        stream.write_all(b"GET /k/k HTTP/1.1\r\nHost: localhost\r\nX-Long: ").expect("it is read");
        let piece = [b'x'; 100_000];
        let sent = (0..2000).find(|_| stream.write_all(&piece).is_err());
        assert!(sent.is_some_and(|pieces| pieces < 1000), "the server read all of it");
    });
}

#[test]
fn silent_connections_of_http_2() {
    attack(&HYPER, 60, |server| {
        let mut silent: Vec<TcpStream> =
            (0..1000).map(|_| connect_raw(server.address()).expect("the server listens")).collect();
        for stream in silent.iter_mut().take(10) {
            stream.write_all(&get_frame(1, "/k/k")).expect("no connection has timed out yet");
            while read_frame(stream).expect("the server responds").stream != 1 {}
        }
    });
}

/// Sends the same frames again and again, also while nothing is read. Returns how many bytes the server took before it ended
/// the connection or stopped to read, which it has to.
fn flood(server: &Server, reads: bool, mut frames: impl FnMut(u32) -> Vec<u8>) -> usize {
    let mut stream = connect_raw(server.address()).expect("the server listens");
    stream.set_write_timeout(Some(Duration::from_secs(2))).expect("an open connection has a timeout");
    if reads {
        let mut reader = stream.try_clone().expect("an open connection has a second handle");
        thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    }
    let mut sent = 0;
    for round in 0..1_000_000 {
        let frames = frames(round);
        if stream.write_all(&frames).is_err() {
            return sent;
        }
        sent += frames.len();
    }
    panic!("the server took {sent} bytes");
}

#[test]
fn streams_of_http_2_that_are_reset_at_once() {
    attack(&HYPER, 30, |server| {
        let reset = |stream| frame(3, 0, stream, &[0, 0, 0, 8]);
        // In packets of a hundred, so that the server finds them reset.
        let sent = flood(server, true, |round| {
            let stream = |number| 2 * (100 * round + number) + 1;
            (0..100).flat_map(|number| [get_frame(stream(number), "/k/k"), reset(stream(number))].concat()).collect()
        });
        assert!(sent < 50 << 20, "the server took {sent} bytes");
    });
}

#[test]
fn heads_of_http_2_that_do_not_end() {
    attack(&HYPER, 20, |server| {
        let sent = flood(server, true, |round| match round {
            0 => frame(1, 1, 1, &get_frame(1, "/k/k")[9..]),
            // A field without indexing.
            _ => frame(9, 0, 1, &[&[0, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100)),
        });
        assert!(sent < 10 << 20, "the server took {sent} bytes");
    });
}

#[test]
fn empty_frames_of_http_2() {
    attack(&HYPER, 20, |server| {
        for kind in [0, 9] {
            let sent = flood(server, true, |round| match round {
                0 if kind == 0 => put_frame(1, "/k/k"),
                0 => frame(1, 1, 1, b""),
                _ => frame(kind, 0, 1, b"").repeat(100),
            });
            assert!(sent < 10 << 20, "the server took {sent} bytes");
        }
    });
}

#[test]
fn pings_and_settings_of_a_client_that_reads_nothing() {
    attack(&HYPER, 20, |server| {
        for flooding in [frame(6, 0, 0, &[0; 8]), frame(4, 0, 0, &[0, 4, 0, 0, 255, 255])] {
            flood(server, false, |_| flooding.repeat(100));
        }
    });
}

#[test]
fn a_hundred_thousand_pipelined_requests_do_not_delay_other_clients() {
    const COUNT: usize = 100_000;
    attack(&ENGINES, 150, |server| {
        let mut stream = connect(server);
        let mut reader = BufReader::new(stream.try_clone().expect("an open connection has a second handle"));
        let ahead = thread::spawn(move || {
            let requests = "GET /k/k HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
            (0..COUNT / 1000).try_for_each(|_| stream.write_all(requests.as_bytes()))
        });
        let mut answers = 0;
        let (mut text, mut piece) = (Vec::new(), [0; 1 << 16]);
        while answers < COUNT {
            let read = reader.read(&mut piece).expect("the server answers");
            assert!(read > 0, "{answers} answers, and the connection ends");
            text.extend_from_slice(&piece[..read]);
            let end = b"\r\n\r\nvalue";
            while let Some(at) = text.windows(end.len()).position(|window| window == end) {
                assert!(text.starts_with(b"HTTP/1.1 200"), "{}", text.escape_ascii());
                text.drain(..at + end.len());
                answers += 1;
            }
        }
        ahead.join().expect("it does not panic").expect("all was read");
    });
}

#[test]
fn a_pipelining_client_that_reads_nothing_is_throttled() {
    attack(&HYPER, 30, |server| {
        let mut stream = connect(server);
        stream.set_write_timeout(Some(Duration::from_secs(2))).expect("an open connection has a timeout");
        let requests = "GET /k/k HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10_000);
        // 37 MB of requests and 150 MB of responses.
        let blocked = (0..100).find(|_| stream.write_all(requests.as_bytes()).is_err());
        assert!(blocked.is_some(), "the server has taken all of it");
    });
}

#[test]
fn clients_are_served_after_file_descriptors_ran_out() {
    let _alone = exclusive();
    for engine in ENGINES {
        // No client waits for long: tiny_http ends to accept when it finds no descriptor, and has to be started again.
        let server = Setup::new().descriptors(256).args(["--http", engine]).start();
        server.put("k", "v").expect(200);
        for round in 0..3 {
            let held: Vec<TcpStream> = (0..300).map(|_| connect(&server)).collect();
            for mut stream in &held {
                // Connections over the limit may be closed.
                let _ = stream.write_all(b"GET /k/k HTTP/1.1\r\nHost: localhost\r\n");
            }
            thread::sleep(Duration::from_millis(300));
            drop(held);
            for client in 0..5 {
                let mut wire = server.wire();
                wire.send("GET /k/k HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let reply = wire.try_reply();
                assert!(reply.is_ok_and(|reply| reply.status == 200), "{engine}: client {client} of round {round}");
            }
        }
        server.stop().expect(0);
    }
}

#[test]
fn requests_among_many_silent_connections_are_served() {
    let _alone = exclusive();
    raise_descriptors();
    for engine in ENGINES {
        let server = Setup::new().args(["--http", engine]).start();
        server.put("k", "v").expect(200);
        for (silent, requests) in [(4, 2), (8, 6), (30, 6), (200, 6), (4, 1), (200, 1)] {
            let mut quiet: Vec<TcpStream> = Vec::new();
            let mut wires: Vec<Wire> = Vec::new();
            for number in 0..silent + requests {
                if number % (silent / requests + 1) == 0 && wires.len() < requests {
                    let mut wire = server.wire();
                    wire.send("GET /k/k HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    wires.push(wire);
                } else {
                    quiet.push(connect(&server));
                }
            }
            for wire in &mut wires {
                let reply = wire.try_reply();
                assert!(reply.is_ok_and(|reply| reply.status == 200), "{engine}: {requests} among {silent}");
            }
        }
        server.stop().expect(0);
    }
}

#[test]
fn large_values_over_many_connections_leave_few_threads_and_little_memory() {
    const CONNECTIONS: usize = 16;
    let _alone = exclusive();
    let count = amount(480, 3000);
    let value = vec![b'x'; 1 << 20];
    for engine in ENGINES {
        for fsync in ["never", "100ms", "always"] {
            let server = Setup::new().args(["--http", engine, "--fsync", fsync]).start();
            thread::scope(|scope| {
                for connection in 0..CONNECTIONS {
                    let (server, value) = (&server, &value);
                    scope.spawn(move || {
                        let client = server.client();
                        for _ in 0..count / CONNECTIONS {
                            client.put(&format!("key-{connection}"), value).expect(200);
                        }
                    });
                }
            });
            let threads = server.proc_status("Threads");
            let memory = server.proc_status("VmRSS") >> 10;
            assert!(threads <= 100 && memory <= 400, "{engine}, {fsync}: {threads} threads, {memory} MiB");
        }
    }
}
