//! Requests, signals and the stop are as they are without a log where nothing reads standard error: where its reader has left,
//! where it stands still, and where it is a full disk. Lost lines are counted, and reported when standard error can be written
//! again. No text of a client forges a line.
//!
//! Provoked with a pipe of the test as standard error, which is closed, or not read during 10,000 requests,
//! and with `/dev/full`.

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

/// The number of lines that were dropped so far.
#[track_caller]
fn dropped(server: &Server) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let value = text.lines().find_map(|line| line.strip_prefix("vkog_log_lines_dropped_total "));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number of dropped lines in {text}"))
}

/// All that a server would log: requests that succeed and that fail, a plugin that panics, a snapshot, reloads.
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
fn a_log_reader_that_left_changes_nothing_but_the_count_of_dropped_lines() {
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
fn a_log_on_a_full_disk_changes_nothing_but_the_count_of_dropped_lines() {
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
fn a_log_reader_that_stands_still_holds_up_no_request_and_no_stop() {
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
fn a_log_reader_that_returns_finds_how_many_lines_were_dropped() {
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
                if event["message"].as_str().is_some_and(|said| said.starts_with("log lines were dropped")) {
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
fn a_log_reader_that_was_gone_from_the_start_does_not_keep_the_server_from_starting_or_failing() {
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
fn a_line_feed_in_a_request_forges_no_line_of_the_log() {
    const CONFIG: &str = "[[access.tokens]]\nname = \"reader\"\ntoken = \"reader\"\nright = \"read\"\n";
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine, "--log-format", "text", "--log-requests"]).config(CONFIG);
        let server = setup.start();
        for forged in ["\n2001-01-01T00:00:00Z:forged", "\r2001\u{1b}[2J", "%0AERROR%0Dforged%1B"] {
            for token in ["reader", "unknown"] {
                let mut wire = server.wire();
                let fields = format!("Host: localhost\r\nAuthorization: Bearer {token}\r\nX-Request-Id: a\r\n");
                wire.send(format!("DELETE /k/a{forged} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n"));
                // Whatever the engine makes of it: an answer, or the end of the connection.
                let _ = wire.rest();
            }
        }
        let log = server.stop().expect(0).stderr;
        assert!(log.contains("refused Delete /k/a"), "{log}");
        for line in log.lines() {
            assert!(
                line.starts_with("20") && !line.starts_with("2001") && !line.contains('\u{1b}'),
                "{line:?} in {log}"
            );
        }
    }
}

#[test]
fn a_line_feed_in_what_a_plugin_logs_or_panics_with_forges_no_line_of_the_log() {
    let setup = Setup::new()
        .args(["--log-format", "text"])
        .load(artefacts().library("drill"))
        .config("[plugins.drill]\nlabel = \"one\\nERROR forged\\u001b[2J\"\ntick_ms = 1\n");
    let server = setup.start();
    server.logs(&["one\\nERROR forged\\u{1b}[2J ticked"]);
    server.stop().expect(0);
}
