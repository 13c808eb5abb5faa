//! Requests, signals and the stop work without a reader of standard error: if the reader has closed the pipe, if it
//! stalls, and if the log is a file on a full disk. Dropped log lines are counted, and the count is logged when writing
//! succeeds again. No text of a client forges a line.
//!
//! Provoked with a pipe of the test as standard error, which is closed, or not read until 10,000 requests have their
//! responses, and with `/dev/full`.

#![cfg(unix)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, PipeReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use vkog_tests::{DEADLINE, ENGINES, Running, Server, Setup, administered, artefacts, with_background};

fn setup(engine: &str) -> Setup {
    Setup::new()
        .args(["--http", engine, "--log-requests", "--fsync", "never"])
        .load(artefacts().library("fault-panics"))
        .config(administered("[plugins.fault-panics]\non_failure = \"keep\"\n"))
}

/// A server whose standard error only the test reads.
fn piped(setup: &Setup) -> (Server, PipeReader) {
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    (setup.start_with_stderr(writer.into()), reader)
}

/// Returns the number of dropped lines.
#[track_caller]
fn dropped(server: &Server) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix("vkog_log_lines_dropped_total "));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number of dropped lines in {text}"))
}

/// Causes every kind of log line: successful and failed requests, a panic of a plugin, a snapshot, reloads.
fn everything(setup: &Setup, server: &Server, rounds: usize) {
    std::thread::scope(|scope| {
        for (client, mut wire) in server.wires(4).into_iter().enumerate() {
            let path = format!("/k/{client}");
            scope.spawn(move || {
                for _ in 0..rounds {
                    wire.request("PUT", &path, b"value").expect(200);
                    wire.request("GET", &path, b"").expect(200).is("value");
                    wire.request("GET", "/k/absent", b"").expect(404);
                    wire.request("POST", "/plugins/reload", b"").expect(401);
                    wire.request("PUT", "/k/k?panic=before_put", b"value").expect(500);
                }
            });
        }
    });
    server.path("GET", "/livez").send().expect(200);
    let snapshot = || std::fs::metadata(setup.store_file()).and_then(|file| file.modified()).ok();
    let before = snapshot();
    server.signal("USR1");
    let deadline = Instant::now() + DEADLINE;
    while snapshot() == before {
        assert!(Instant::now() < deadline, "no snapshot was written");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    server.reload().expect(200);
    server.signal("HUP");
    server.path("GET", "/readyz").send().expect(200);
}

#[test]
fn a_closed_log_pipe_only_increases_the_count_of_dropped_lines() {
    for engine in ENGINES {
        let setup = setup(engine);
        let (server, reader) = piped(&setup);
        drop(reader);
        everything(&setup, &server, 100);
        assert!(dropped(&server) >= 2000, "{}", dropped(&server));
        server.put("last", "kept").expect(200);
        server.stop().expect(0);
        setup.start().get("last").expect(200).is("kept");
    }
}

#[test]
fn a_log_on_a_full_disk_only_increases_the_count_of_dropped_lines() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        return println!("skipped: this system has no /dev/full");
    };
    for engine in ENGINES {
        let setup = setup(engine);
        let server = setup.start_with_stderr(full.try_clone().expect("it can be opened twice").into());
        everything(&setup, &server, 100);
        assert!(dropped(&server) >= 2000, "{}", dropped(&server));
        server.stop().expect(0);
    }
}

#[test]
fn a_stalled_log_reader_delays_no_request_and_no_stop() {
    for engine in ENGINES {
        let setup = setup(engine);
        let (server, _reader) = piped(&setup);
        // 10,000 requests.
        everything(&setup, &server, 500);
        assert!(dropped(&server) > 0, "the queue is limited");
        server.put("last", "kept").expect(200);
        server.stop().expect(0);
        setup.start().get("last").expect(200).is("kept");
    }
}

#[test]
fn a_log_reader_that_resumes_reads_the_count_of_dropped_lines() {
    let setup = setup("hyper");
    let (server, reader) = piped(&setup);
    everything(&setup, &server, 500);
    let lost = dropped(&server);
    let mut reported = 0;
    with_background(
        [|| {
            server.get("absent").expect(404);
        }],
        || {
            for line in BufReader::new(&reader).lines() {
                let line = line.expect("it is text");
                let event: serde_json::Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if event["message"].as_str().is_some_and(|said| said.starts_with("dropped log lines")) {
                    reported += event["lines"].as_u64().expect("a number");
                }
                if reported >= lost {
                    return;
                }
            }
        },
    );
    assert!(reported >= lost, "{reported} of {lost}");
    drop(reader);
    server.stop().expect(0);
}

#[test]
fn a_closed_standard_error_prevents_neither_a_start_nor_a_failed_start() {
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let setup = setup("hyper");
    setup.start_with_stderr(writer.try_clone().expect("a pipe has many writers").into()).stop().expect(0);
    std::fs::write(setup.store_file(), b"no store").expect("it can be written");
    let mut command = setup.vkog();
    command.args(["serve", "--no-plugins", "--listen", "127.0.0.1:0", "--file"]).arg(setup.store_file());
    Running::start_with_stderr(&mut command, Stdio::from(writer)).wait().expect(1);
}

#[test]
fn a_line_feed_in_a_request_forges_no_log_line() {
    const CONFIG: &str = "[[access.tokens]]\nname = \"reader\"\ntoken = \"reader\"\nright = \"read\"\n";
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine, "--log-format", "text", "--log-requests"]).config(CONFIG);
        let server = setup.start();
        for forged in ["\n2001-01-01T00:00:00Z:forged", "\r2001\u{1b}[2J", "%0AERROR%0Dforged%1B"] {
            for token in ["reader", "unknown"] {
                let mut wire = server.wire();
                let fields = format!("Host: localhost\r\nAuthorization: Bearer {token}\r\nX-Request-Id: a\r\n");
                wire.send(format!("DELETE /k/a{forged} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n"));
                // The engine may respond or close the connection.
                let _ = wire.rest();
            }
        }
        let log = server.stop().expect(0).stderr;
        assert!(log.contains("refused DELETE /k/a"), "{log}");
        for line in log.lines() {
            assert!(
                line.starts_with("20") && !line.starts_with("2001") && !line.contains('\u{1b}'),
                "{line:?} in {log}"
            );
        }
    }
}

#[test]
fn a_line_feed_in_a_log_line_or_panic_of_a_plugin_forges_no_log_line() {
    let setup = Setup::new()
        .args(["--log-format", "text"])
        .load(artefacts().library("drill"))
        .config("[plugins.drill]\nlabel = \"one\\nERROR forged\\u001b[2J\"\ntick_ms = 1\n");
    let server = setup.start();
    server.logs(&["one\\nERROR forged\\u{1b}[2J ticked"]);
    server.stop().expect(0);
}
