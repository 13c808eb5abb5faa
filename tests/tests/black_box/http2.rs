//! HTTP/2 on the hyper engine: what a request over HTTP/1 gets, one over HTTP/2 gets too, within the same limits. The table of
//! `/k/<key>` runs over HTTP/2 as `h2::table`; the timeouts are tested in the engine, with a paused clock.
//!
//! Provoked with a client library, with curl, and with frames that no library sends.

#![cfg(unix)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use h2::Reason;
use ureq::http::{Request, Response};
use vkog_tests::{
    Certificate, HTTP2_START, Http2, Running, Server, Setup, artefacts, connect_raw, frame, get_frame, next_piece,
    pattern, put_frame, read_frame,
};

/// The kinds of frames.
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// The codes of resets.
const PROTOCOL_ERROR: u8 = 1;
const REFUSED_STREAM: u8 = 7;

fn server() -> Server {
    let server = Setup::new().args(["--max-value", "100000"]).start();
    server.put("k", "v").expect(200);
    server
}

fn connect(server: &Server) -> Http2 {
    Http2::connect(server.address()).unwrap_or_else(|error| panic!("{error}\n{}", server.log()))
}

/// A request with this body.
fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Request<Vec<u8>> {
    let mut request = Request::builder().method(method).uri(format!("http://localhost{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(body.to_vec()).expect("it is a request")
}

fn head(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<()> {
    request(method, path, fields, b"").map(drop)
}

#[track_caller]
fn text(response: &Response<Vec<u8>>) -> String {
    String::from_utf8_lossy(response.body()).into_owned()
}

/// The next frame of this stream, after those of others.
fn next_frame_of(wire: &mut TcpStream, stream: u32) -> vkog_tests::Frame {
    loop {
        let frame = read_frame(wire).expect("the connection is open");
        assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        if frame.stream == stream {
            return frame;
        }
    }
}

#[test]
fn one_connection_serves_requests_side_by_side() {
    let server = server();
    let connection = connect(&server);
    // The first waits for its body, and holds up none of the others.
    let mut waiting = connection.open(head("PUT", "/k/late", &[]), true).expect("it is open");
    let exchanges: Vec<_> = (0..99)
        .map(|number| {
            let mut exchange = connection.open(head("PUT", &format!("/k/{number}"), &[]), true).expect("it is open");
            exchange.body.send_data(format!("value {number}").into(), true).expect("it is open");
            exchange
        })
        .collect();
    for exchange in exchanges {
        assert_eq!(exchange.response().expect("the server responds").status(), 200);
    }
    waiting.body.send_data("late".into(), true).expect("it is open");
    assert_eq!(waiting.response().expect("the server responds").status(), 200);
    server.get("98").expect(200).is("value 98");
    server.get("late").expect(200).is("late");
}

#[test]
fn a_response_over_http_2_has_the_fields_of_http_1() {
    let server = server();
    let connection = connect(&server);
    for (method, fields, status, body) in [
        ("GET", &[("x-request-id", "mine")][..], 200, "v"),
        ("HEAD", &[("x-request-id", "mine")], 200, ""),
        ("GET", &[("x-request-id", "mine"), ("if-none-match", "*")], 304, ""),
        ("GET", &[("x-request-id", "mine"), ("range", "bytes=0-0")], 206, "v"),
        ("GET", &[("x-request-id", "mine"), ("range", "bytes=7-")], 416, ""),
        ("OPTIONS", &[("x-request-id", "mine")], 204, ""),
    ] {
        let response = connection.request(request(method, "/k/k", fields, b"")).expect("the server responds");
        assert_eq!(response.status(), status, "{method} {fields:?}: {response:?}");
        assert!(status == 416 || text(&response) == body, "{method} {fields:?}: {}", text(&response));
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("it is text"));
        let mut request = server.key(method, "k");
        for (name, value) in fields {
            request = request.header(name, *value);
        }
        let reply = request.send().expect(status);
        for name in ["server", "etag", "content-type", "content-length", "content-range", "x-request-id", "allow"] {
            assert_eq!(header(name), reply.header(name), "{name} of {method} {fields:?}");
        }
        assert!(header("date").is_some(), "{response:?}");
    }
}

#[test]
fn the_authority_counts_as_host() {
    let server = server();
    let connection = connect(&server);
    let status = |authority: &str, fields: &[(&str, &str)]| {
        let mut request = request("GET", "/k/k", fields, b"");
        *request.uri_mut() = format!("http://{authority}/k/k").parse().expect("it is a URL");
        connection.request(request).expect("the server responds").status().as_u16()
    };
    assert_eq!(status("localhost", &[]), 200);
    assert_eq!(status("LOCALHOST:1", &[("host", "localhost:1")]), 200);
    assert_eq!(status("localhost", &[("host", "localhost:1")]), 400);
    assert_eq!(status("localhost", &[("host", "evil.example")]), 400);
    assert_eq!(status("evil.example", &[]), 421);
    assert_eq!(status("evil.example", &[("host", "evil.example")]), 421);
    assert_eq!(status("a@localhost", &[]), 400);
    assert_eq!(status("localhost", &[("origin", "http://evil.example")]), 403);
    assert_eq!(status("localhost", &[("origin", "http://localhost")]), 200);
    let mut foreign = request("GET", "/k/k", &[], b"");
    *foreign.uri_mut() = "ftp://localhost/k/k".parse().expect("it is a URL");
    let response = connection.request(foreign).expect("the server responds");
    assert_eq!((response.status().as_u16(), text(&response).contains("http or https")), (400, true));
    // Neither of the two.
    let mut wire = connect_raw(server.address()).expect("the server listens");
    wire.write_all(&frame(HEADERS, 5, 1, b"\x82\x86\x04\x04/k/k")).expect("it is open");
    // The status is the first field: `:status 400` has an index.
    assert_eq!(next_frame_of(&mut wire, 1).payload[0], 0x8c);
}

#[test]
fn what_http_2_forbids_ends_its_stream_alone() {
    let server = server();
    let mut wire = connect_raw(server.address()).expect("the server listens");
    let literal = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).expect("it is short");
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let get = &get_frame(1, "/k/k")[9..];
    let bad: Vec<Vec<u8>> = vec![
        [get, &literal("connection", "close")].concat(),
        [get, &literal("transfer-encoding", "chunked")].concat(),
        [get, &literal("upgrade", "h2c")].concat(),
        [get, &literal("content-length", "5")].concat(),
        // No scheme; no path; a path without a slash.
        b"\x82\x84\x01\x09localhost".to_vec(),
        b"\x82\x86\x01\x09localhost".to_vec(),
        b"\x82\x86\x04\x03k/k\x01\x09localhost".to_vec(),
    ];
    for (number, payload) in (0..).zip(bad) {
        let stream = 2 * number + 1;
        wire.write_all(&frame(HEADERS, 5, stream, &payload)).expect("it is open");
        let reset = next_frame_of(&mut wire, stream);
        assert_eq!(
            (reset.kind, &reset.payload[..]),
            (RESET, &[0, 0, 0, PROTOCOL_ERROR][..]),
            "{}",
            payload.escape_ascii()
        );
    }
    wire.write_all(&get_frame(101, "/k/k")).expect("it is open");
    assert_eq!(next_frame_of(&mut wire, 101).kind, HEADERS);
    // h2 does not even decode these.
    for (name, value) in [("X-Upper", "case"), (":unknown", "field")] {
        let mut wire = connect_raw(server.address()).expect("the server listens");
        wire.write_all(&frame(HEADERS, 5, 1, &[get, &literal(name, value)].concat())).expect("it is open");
        let frames = std::iter::repeat_with(|| read_frame(&mut wire).expect("the connection is open"));
        let goaway = frames.into_iter().find(|frame| frame.kind == GOAWAY).expect("they do not end");
        assert_eq!(goaway.payload[7], PROTOCOL_ERROR, "{name}");
    }
}

#[test]
fn heads_beyond_the_limits_are_431() {
    let server = server();
    let connection = connect(&server);
    let status = |fields: &[(&str, &str)]| {
        connection.request(request("GET", "/k/k", fields, b"")).expect("the server responds").status().as_u16()
    };
    assert_eq!(status(&[("x-long", &"x".repeat(60 << 10))]), 200);
    assert_eq!(status(&[("x-long", &"x".repeat(64 << 10))]), 431);
    assert_eq!(status(&[("x-many", "x"); 100]), 200);
    assert_eq!(status(&[("x-many", "x"); 101]), 431);
    assert_eq!(status(&[]), 200);
    // h2 itself rejects the longest.
    has_rejected(&server, 1);
}

/// Checks the number of requests that the engine has rejected before they were routed.
#[track_caller]
fn has_rejected(server: &Server, count: u32) {
    let reply = server.path("GET", "/metrics").send().expect(200);
    assert!(reply.text().contains(&format!("\nvkog_requests_rejected_total {count}\n")), "{reply}");
}

#[test]
fn long_heads_of_waiting_requests_have_a_limit_of_memory() {
    let server = Setup::new().args(["--max-value", "100000", "--memory-budget", "16MiB"]).start();
    let connection = connect(&server);
    // The client sends the value once, and then refers to it.
    let long = "x".repeat(3500);
    let mut fields = vec![("x-long", &*long); 16];
    fields.push(("expect", "100-continue"));
    let mut waiting = Vec::new();
    let refused = (0..90).find_map(|_| {
        let mut exchange = connection.open(head("PUT", "/k/a", &fields), true).expect("it is open");
        if !exchange.proceeds() {
            return Some(exchange.response().expect_err("it is refused"));
        }
        waiting.push(exchange);
        None
    });
    assert_eq!(refused.and_then(|error| error.reason()), Some(Reason::REFUSED_STREAM), "of {}", waiting.len());
    has_rejected(&server, 1);
    // Requests with short heads go on.
    assert_eq!(connection.request(request("PUT", "/k/a", &[], b"v")).expect("it responds").status(), 200);
    let mut first = waiting.swap_remove(0);
    first.body.send_data("w".into(), true).expect("it is open");
    assert_eq!(first.response().expect("the server responds").status(), 200);
}

#[test]
fn a_body_over_the_limit_is_413_and_the_connection_stays_open() {
    let server = server();
    let connection = connect(&server);
    let large = pattern(3 << 20);
    for declared in [false, true] {
        for expects in [false, true] {
            let length = large.len().to_string();
            let mut fields = Vec::new();
            if declared {
                fields.push(("content-length", length.as_str()));
            }
            if expects {
                fields.push(("expect", "100-continue"));
            }
            let mut exchange = connection.open(head("PUT", "/k/large", &fields), true).expect("it is open");
            if expects {
                // Without a declared length the server has to read the body.
                assert_eq!(exchange.proceeds(), !declared);
            }
            if !(expects && declared) {
                exchange.body.send_data(large.clone().into(), true).expect("it is open");
            }
            let response = exchange.response().expect("the server responds");
            assert_eq!(response.status(), 413, "declared: {declared}, expects: {expects}");
            assert!(text(&response).starts_with("Value too large"), "{}", text(&response));
        }
    }
    let response = connection.request(request("GET", "/k/k", &[], b"")).expect("it is open");
    assert_eq!(text(&response), "v");
    server.get("large").expect(404);
}

#[test]
fn a_body_is_whole_or_not_written() {
    let server = server();
    let connection = connect(&server);
    for fields in [&[][..], &[("content-length", "6")], &[("expect", "100-continue")]] {
        let mut exchange = connection.open(head("PUT", "/k/pieces", fields), true).expect("it is open");
        for piece in ["one", "", "two"] {
            exchange.body.send_data(piece.into(), false).expect("it is open");
        }
        exchange.body.send_data("".into(), true).expect("it is open");
        assert_eq!(exchange.response().expect("the server responds").status(), 200);
        server.get("pieces").expect(200).is("onetwo");
        server.delete("pieces").expect(200);
    }
    // Shorter and longer than declared, and cancelled.
    for (length, ends) in [("7", true), ("5", true), ("7", false)] {
        let fields = [("content-length", length)];
        let mut exchange = connection.open(head("PUT", "/k/cut", &fields), true).expect("it is open");
        exchange.body.send_data("onetwo".into(), ends).expect("it is open");
        if !ends {
            exchange.body.send_reset(Reason::CANCEL);
        }
        assert!(exchange.response().is_err(), "{length}, ends: {ends}");
    }
    let response = connection.request(request("GET", "/k/cut", &[], b"")).expect("it is open");
    assert_eq!(response.status(), 404);
}

#[test]
fn a_large_value_passes_a_small_window() {
    let server = Setup::new().start();
    let large = pattern(5 << 20);
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000).initial_connection_window_size(70_000);
    let connection = Http2::connect_by(server.address(), &builder).expect("the server listens");
    assert_eq!(connection.request(request("PUT", "/k/large", &[], &large)).expect("it responds").status(), 200);
    // Several at a time share the window of the connection.
    let exchanges: Vec<_> =
        (0..4).map(|_| connection.open(head("GET", "/k/large", &[]), false).expect("it is open")).collect();
    for exchange in exchanges {
        assert!(exchange.response().expect("the server responds").body() == &large, "another value");
    }
}

#[test]
fn further_streams_than_permitted_are_refused() {
    let server = server();
    let mut wire = connect_raw(server.address()).expect("the server listens");
    let settings = read_frame(&mut wire).expect("the server speaks HTTP/2");
    // SETTINGS_MAX_CONCURRENT_STREAMS.
    assert!(
        settings.kind == SETTINGS && settings.payload.windows(6).any(|one| one == [0, 3, 0, 0, 0, 100]),
        "{settings:?}"
    );
    // So that the server knows that the client knows.
    wire.write_all(&frame(SETTINGS, 1, 0, b"")).expect("it is open");
    for number in 0..110 {
        wire.write_all(&put_frame(2 * number + 1, &format!("/k/{number}"))).expect("it is open");
    }
    for number in 100..110 {
        let reset = next_frame_of(&mut wire, 2 * number + 1);
        assert_eq!((reset.kind, &reset.payload[..]), (RESET, &[0, 0, 0, REFUSED_STREAM][..]));
    }
    wire.write_all(&frame(0, 1, 1, b"value")).expect("it is open");
    assert_eq!(next_frame_of(&mut wire, 1).kind, HEADERS);
    server.get("0").expect(200).is("value");
}

#[test]
fn a_stop_completes_what_is_in_flight_and_ends_idle_connections() {
    let server = server();
    let connection = connect(&server);
    assert_eq!(connection.request(request("GET", "/k/k", &[], b"")).expect("it responds").status(), 200);
    // A client that reads nothing from now on does not hold up the stop.
    let mut deaf = connect_raw(server.address()).expect("the server listens");
    deaf.write_all(&get_frame(1, "/watch")).expect("it is open");
    next_frame_of(&mut deaf, 1);
    let mut busy =
        connect(&server).open(head("PUT", "/k/half", &[("expect", "100-continue")]), true).expect("it is open");
    assert!(busy.proceeds(), "the body is not wanted");
    server.signal("TERM");
    while connection.is_open() {
        std::thread::yield_now();
    }
    busy.body.send_data("whole".into(), true).expect("it is open");
    assert_eq!(busy.response().expect("the server responds").status(), 200);
    server.wait().expect(0);
}

#[test]
fn a_watch_shares_its_connection_until_its_token_is_revoked() {
    let tokens = |names: &[&str]| {
        let token =
            |name: &&str| format!("[[access.tokens]]\nname = \"{name}\"\ntoken = \"{name}\"\nright = \"write\"\n");
        names.iter().map(token).collect::<String>()
    };
    let setup = Setup::new().config(tokens(&["watcher", "writer"]));
    let server = setup.start();
    let connection = connect(&server);
    let as_writer = [("authorization", "Bearer writer")];
    assert_eq!(connection.request(request("GET", "/watch", &[], b"")).expect("it responds").status(), 401);
    let watch =
        connection.open(head("GET", "/watch", &[("authorization", "Bearer watcher")]), false).expect("it is open");
    let (response, _stream) = watch.head().expect("the server responds");
    assert_eq!(response.status(), 200);
    let mut events = response.into_body();
    let mut seen = String::new();
    let mut read_until = |text: &str| {
        while !seen.contains(text) {
            let piece = next_piece(&mut events).expect("it is open").unwrap_or_else(|| panic!("no {text} in {seen}"));
            seen.push_str(str::from_utf8(&piece).expect("events are UTF-8"));
        }
    };
    read_until("id: ");
    for number in 0..200 {
        let put = request("PUT", &format!("/k/{number}"), &as_writer, b"v");
        assert_eq!(connection.request(put).expect("it responds").status(), 200);
        read_until(&format!("\"key\":\"{number}\""));
    }
    setup.write_config(&tokens(&["writer"]));
    server.signal("HUP");
    read_until("event: end");
    let rest = std::iter::from_fn(|| next_piece(&mut events).expect("it is open"));
    assert!(rest.flatten().next().is_none(), "the watch continues");
    let response = connection.request(request("GET", "/k/1", &as_writer, b"")).expect("it responds");
    assert_eq!(text(&response), "v");
}

#[test]
fn a_unix_socket_speaks_http_2() {
    let setup = Setup::new();
    let socket = setup.folder().join("socket");
    let listen = format!("unix:{}", socket.display());
    let running = Running::start(setup.vkog().args(["--no-plugins", "--listen", &listen]));
    assert!(running.stdout.wait_for(|text| text.contains(&listen)), "it does not listen");
    let mut stream = UnixStream::connect(&socket).expect("it listens");
    // The client ends the connection by GOAWAY.
    let put = [&put_frame(1, "/k/k")[..], &frame(0, 1, 1, b"value")].concat();
    let sent = [HTTP2_START, &put, &get_frame(3, "/k/k"), &frame(GOAWAY, 0, 0, &[0; 8])].concat();
    stream.write_all(&sent).expect("it reads");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("it answers and closes");
    assert!(got.windows(2).any(|text| text == b"Ok"), "{}", got.escape_ascii());
}

#[test]
fn pings_are_answered_between_requests() {
    let server = server();
    let mut wire = connect_raw(server.address()).expect("the server listens");
    wire.write_all(&frame(PING, 0, 0, b"whatever")).expect("it is open");
    loop {
        let frame = read_frame(&mut wire).expect("it is open");
        if frame.kind == PING {
            assert_eq!((frame.flags, &frame.payload[..]), (1, &b"whatever"[..]));
            return;
        }
    }
}

/// Runs curl with HTTP/2, and returns what it prints; nothing where curl is missing or cannot speak HTTP/2.
fn curl(arguments: &[&str]) -> Option<String> {
    let version = Command::new("curl").arg("--version").output().ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("HTTP2") {
        return None;
    }
    let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn curl_speaks_http_2_with_and_without_tls() {
    for has_tls in [false, true] {
        let setup = Setup::new().args(["--max-value", "5000000"]);
        let setup = if has_tls { setup.certificate(&Certificate::new()) } else { setup };
        let server = setup.start();
        let value = pattern(4_000_000);
        let file = setup.folder().join("value");
        std::fs::write(&file, [&value[..], &value[..]].concat()).expect("it can be written");
        let large = file.display().to_string();
        let certificate = setup.folder().join("cert.pem").display().to_string();
        let url = format!("{}://{}/k/k", if has_tls { "https" } else { "http" }, server.address());
        let http2 =
            if has_tls { ["--http2", "--cacert", &certificate] } else { ["--http2-prior-knowledge", "-m", "60"] };
        let ask = |arguments: &[&str]| curl(&[&http2[..], &["-w", "%{http_version} %{http_code}"], arguments].concat());
        let Some(refused) = ask(&["-T", &large, &url]) else {
            return eprintln!("skipped: curl with HTTP/2 is not installed (apt-get install curl)");
        };
        assert!(refused.starts_with("Value too large") && refused.ends_with("2 413"), "{refused}");
        std::fs::write(&file, &value).expect("it can be written");
        assert_eq!(ask(&["-T", &large, &url]).as_deref(), Some("Ok2 200"));
        assert_eq!(ask(&["-T", &large, "-H", "Expect: 100-continue", &url]).as_deref(), Some("Ok2 200"));
        assert_eq!(ask(&["-o", &large, &url]).as_deref(), Some("2 200"));
        assert!(std::fs::read(&file).expect("curl wrote it") == value, "another value");
    }
}

#[test]
fn a_stream_of_a_route_that_fails_is_reset() {
    let server = Setup::new().load(artefacts().library("serves")).start();
    let failed = connect(&server).request(request("POST", "/x/serves/behave/break", &[], b""));
    let reason = failed.expect_err("it does not look complete").reason();
    assert_eq!(reason, Some(Reason::INTERNAL_ERROR));
    let whole = connect(&server).request(request("GET", "/x/serves/stream/3", &[], b"")).expect("it is complete");
    assert_eq!(whole.body().len(), 3 * (64 << 10));
}
