//! The memory that clients can occupy is limited: requests beyond the budget are refused, and large responses are never
//! in memory as a whole.
//!
//! Provoked with uploads that stop one byte before their end, responses that JSON makes six times longer than the
//! value, pages of keys without a reader, and an address-space limit under which a single mistake ends the process.

#![cfg(target_os = "linux")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use vkog_tests::{DEADLINE, Server, Setup, Wire, exclusive, pattern, with_background};

/// The engines with a memory budget.
const ENGINES: [&str; 1] = ["hyper"];

fn server(engine: &str, arguments: &[&str]) -> Server {
    let server = Setup::new().args(["--http", engine]).args(arguments.iter().copied()).start();
    server.put("k", "v").expect(200);
    server
}

/// An upload that never ends.
struct Upload {
    stream: TcpStream,
    left: usize,
}

/// The state of an upload.
#[derive(Debug, PartialEq, Eq)]
enum Went {
    /// All bytes except the last are sent.
    Short,
    /// The server has responded.
    Answered(String),
}

impl Upload {
    fn begin(server: &Server, key: &str, length: usize) -> Self {
        let mut stream = TcpStream::connect(server.address()).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("an open connection has a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("an open connection has a timeout");
        let head = format!("PUT /k/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("the server reads");
        Self { stream, left: length - 1 }
    }

    /// Sends all bytes except the last, or stops at a response.
    fn send(&mut self) -> Went {
        let piece = vec![b'x'; 256 << 10];
        while self.left > 0 {
            let count = self.left.min(piece.len());
            self.stream.write_all(&piece[..count]).expect("the server reads on after its answer");
            self.left -= count;
            if let Some(answer) = self.answer() {
                return Went::Answered(answer);
            }
        }
        Went::Short
    }

    /// Returns the head of the response, if it has arrived.
    fn answer(&mut self) -> Option<String> {
        self.stream.set_nonblocking(true).expect("a socket has this mode");
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).expect("a socket has this mode");
        match peeked {
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            _ => {
                let mut bytes = [0; 4096];
                let count = self.stream.read(&mut bytes).expect("it has come");
                Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
            }
        }
    }
}

/// Sends a batch in JSON, with further header lines.
fn batch(wire: &mut Wire, fields: &str, body: &[u8]) {
    let length = body.len();
    let head = format!(
        "POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{fields}\r\n"
    );
    wire.send([head.as_bytes(), body].concat());
}

#[test]
fn a_hundred_unfinished_uploads_and_large_responses_fit_into_a_gigabyte() {
    const LENGTH: usize = 90_000_000;
    let _alone = exclusive();
    for engine in ENGINES {
        let setup = Setup::new();
        let line = format!(
            "ulimit -v 1171875 && exec vkog --no-plugins --listen 127.0.0.1:0 --file store.vkog --http {engine} --max-value 128MiB"
        );
        let server = setup.start_by(&mut setup.shell(&line));
        server.put("k", "v").expect(200);
        server.put("big", vec![b'b'; LENGTH]).expect(200);
        let client = server.client();
        with_background([|| drop(client.get("k").expect(200).is("v"))], || {
            let mut uploads: Vec<Upload> = (0..100).map(|_| Upload::begin(&server, "half", 128 << 20)).collect();
            let went: Vec<Went> = uploads.iter_mut().map(Upload::send).collect();
            let refused = went.iter().filter(|went| matches!(went, Went::Answered(_))).count();
            assert!((90..100).contains(&refused), "{engine}: {refused} of 100 uploads were refused");
            for went in &went {
                let Went::Answered(answer) = went else { continue };
                assert!(answer.starts_with("HTTP/1.1 503 "), "{engine}: {answer}");
                assert!(answer.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{engine}: {answer}");
            }
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        let mut wire = server.wire();
                        batch(&mut wire, "", br#"[{"op":"get","key":"big"}]"#);
                        let reply = wire.reply();
                        if reply.status != 503 {
                            let count = reply.expect(200).body.iter().filter(|byte| **byte == b'b').count();
                            assert!(count >= LENGTH, "{engine}: {count} bytes of the value");
                        }
                    });
                }
            });
        });
        // A refused client can retry.
        server.put("again", pattern(10 << 20)).expect(200);
        server.get("half").expect(404);
        server.get("again").expect(200).is(pattern(10 << 20));
    }
}

#[test]
fn large_writes_under_an_address_space_limit_are_durable_or_refused() {
    let _alone = exclusive();
    let setup = Setup::new();
    let line = "ulimit -v 1228800 && exec vkog --no-plugins --listen 127.0.0.1:0 --file store.vkog --fsync never";
    let server = setup.start_by(&mut setup.shell(line));
    let mut stored = None;
    for round in 0..8 {
        let reply = server.put("k", vec![b'a' + round; 133_000_000]);
        match reply.status {
            503 => drop(reply.has("Retry-After", "1")),
            _ => stored = Some((round, reply.expect(200).status)),
        }
    }
    let (round, _) = stored.expect("the first write has room");
    let value = server.get("k").expect(200).body;
    assert!(
        value.len() == 133_000_000 && value.iter().all(|byte| *byte == b'a' + round),
        "the last acknowledged value"
    );
}

#[test]
fn a_body_beyond_the_budget_is_503_until_others_end() {
    for engine in ENGINES {
        let server = server(engine, &["--max-value", "16MiB", "--memory-budget", "16MiB"]);
        let mut first = Upload::begin(&server, "half", 16 << 20);
        assert_eq!(first.send(), Went::Short, "{engine}");
        // It may not have arrived yet.
        let mut refused = server.put("large", pattern(1 << 20));
        for _ in 0..1000 {
            if refused.status == 503 {
                break;
            }
            refused = server.put("large", pattern(1 << 20));
        }
        refused.expect(503).has("Retry-After", "1").says("memory");
        for length in [1, 4 << 10, 60 << 10] {
            server.put("small", pattern(length)).expect(200);
        }
        first.stream.write_all(b"x").expect("the server reads");
        let mut reply = [0; 12];
        first.stream.read_exact(&mut reply).expect("the server answers");
        assert_eq!(&reply, b"HTTP/1.1 200", "{engine}");
        server.put("large", pattern(1 << 20)).expect(200);
        server.get("large").expect(200).is(pattern(1 << 20));
        // An aborted upload returns its share, too.
        let mut second = Upload::begin(&server, "half", 16 << 20);
        assert_eq!(second.send(), Went::Short, "{engine}");
        drop(second);
        assert!((0..1000).any(|_| server.put("large", "x".repeat(1 << 20)).status == 200), "{engine}");
    }
}

#[test]
fn a_response_that_json_makes_six_times_longer_is_streamed() {
    const LENGTH: usize = 20 << 20;
    for engine in ENGINES {
        let server = server(engine, &["--max-value", "32MiB"]);
        server.put("control", vec![1; LENGTH]).expect(200);
        let before = server.proc_status("VmHWM");
        let mut wires = [server.wire(), server.wire(), server.wire(), server.wire()];
        for wire in &mut wires {
            batch(wire, "", br#"[{"op":"get","key":"control"}]"#);
            wire.try_head().expect("the server answers").expect(200);
        }
        for wire in &mut wires {
            let mut length = 0;
            loop {
                match wire.chunk().expect("another chunk").len() {
                    0 => break,
                    more => length += more,
                }
            }
            assert!(length > 6 * LENGTH, "{engine}: {length} bytes");
        }
        let grown = server.proc_status("VmHWM").saturating_sub(before);
        assert!(grown < 20 << 10, "{engine}: {grown} KiB more for answers of {} MiB each", (6 * LENGTH) >> 20);
    }
}

#[test]
fn a_large_batch_response_equals_a_get_in_both_formats() {
    for engine in ENGINES {
        let server = server(engine, &[]);
        let text = "one line\n\"\u{e9}\u{1f600}\"\t".repeat(20_000);
        server.put("text", text.as_bytes()).expect(200);
        server.put("bytes", pattern(500_000)).expect(200);
        let operations = json!([
            {"op": "get", "key": "text"}, {"op": "get", "key": "absent"}, {"op": "get", "key": "bytes"},
            {"op": "put", "key": "new", "value": "v"},
        ]);
        let mut wire = server.wire();
        batch(&mut wire, "", operations.to_string().as_bytes());
        let answer: Value = serde_json::from_slice(&wire.reply().expect(200).body).expect("it is JSON");
        assert!(answer[0]["value"] == text.as_str(), "{engine}: the text differs");
        assert_eq!((&answer[1], &answer[3]["status"]), (&json!({"status": 404}), &json!(200)));
        let encoded = answer[2]["base64"].as_str().expect("bytes are base64");
        assert!(BASE64.decode(encoded).expect("it is base64") == pattern(500_000), "{engine}: the bytes differ");
        // The connection stays open.
        batch(&mut wire, "Accept: application/msgpack\r\n", operations.to_string().as_bytes());
        let reply = wire.reply().expect(200);
        let answer = rmpv::decode::read_value(&mut &reply.body[..]).expect("it is MessagePack");
        let value = |index: usize| answer[index]["value"].as_slice().map(<[u8]>::to_vec).unwrap_or_default();
        assert!(value(0) == text.as_bytes() && value(2) == pattern(500_000), "{engine}: the values differ");
    }
}

#[test]
fn unread_key_pages_count_against_the_budget() {
    for engine in ENGINES {
        let server = server(engine, &["--max-value", "1MiB", "--memory-budget", "16MiB"]);
        let control = "\u{1}".repeat(1000);
        let put = |number: usize| json!({"op": "put", "key": format!("{control}{number}"), "value": "v"});
        let operations: Vec<Value> = (0..1000).map(put).collect();
        server
            .path("POST", "/batch")
            .header("Content-Type", "application/json")
            .body(serde_json::to_vec(&operations).expect("it is JSON"))
            .send()
            .expect(200);
        // A page is 6 MB of JSON. What is on its way is in the buffers of the system, and the rest with the server.
        let mut wires: Vec<Wire> = Vec::new();
        let statuses: Vec<String> = (0..4)
            .map(|_| {
                let mut wire = server.wire();
                let line = wire.send("GET /keys HTTP/1.1\r\nHost: localhost\r\n\r\n").begin_reply();
                wires.push(wire);
                line
            })
            .collect();
        let of = |status: &str| statuses.iter().filter(|line| line.contains(status)).count();
        assert_eq!((of(" 200 "), of(" 503 ")), (2, 2), "{engine}: {statuses:?}");
        server.path("GET", "/keys?limit=5").send().expect(200);
        drop(wires);
        assert!((0..1000).any(|_| server.path("GET", "/keys").send().status == 200), "{engine}");
    }
}

#[test]
fn concurrent_large_uploads_are_stored_whole_or_refused() {
    let _alone = exclusive();
    for engine in ENGINES {
        let server = server(engine, &["--max-value", "16MiB", "--memory-budget", "64MiB"]);
        let client = server.client();
        with_background([|| drop(client.get("k").expect(200).is("v"))], || {
            std::thread::scope(|scope| {
                for number in 0..16 {
                    let client = server.client();
                    scope.spawn(move || {
                        let (key, value) = (format!("large-{number}"), pattern((8 << 20) + number));
                        let status = client.put(&key, &value[..]).status;
                        match status {
                            200 => drop(client.get(&key).expect(200).is(&value)),
                            503 => drop(client.get(&key).expect(404)),
                            _ => panic!("{engine}: {status}"),
                        }
                    });
                }
            });
        });
    }
}
