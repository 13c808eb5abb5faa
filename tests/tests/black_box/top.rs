//! `vkog top` shows a server live, leaves the terminal as it was, and continues after a restart of the server.
//!
//! Provoked in a pseudoterminal, whose output goes through a terminal emulator.

#![cfg(unix)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use vkog_tests::{DEADLINE, Running, Server, Setup, bytes, workspace};

/// A program in a terminal.
struct Terminal {
    /// The end of the person who looks and types.
    master: File,
    /// The program's end.
    path: PathBuf,
    before: Termios,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    child: Child,
}

impl Terminal {
    #[track_caller]
    fn run(command: &mut Command, rows: u16, columns: u16) -> Self {
        let in_cells = |count| NonZero::new(count).expect("it is not 0");
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudoterminal can be made");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("it is ours");
        let name = ptsname(&master, Vec::new()).expect("it has a name").into_string().expect("it is ASCII");
        let path = PathBuf::from(name);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("it has a size");
        let end = Self::open(&path);
        let before = tcgetattr(&end).expect("it is a terminal");
        let copy = || end.try_clone().expect("it can be duplicated");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let child = command.spawn().expect("it starts");
        let master = File::from(master);
        let (send, output) = channel();
        let mut reader = master.try_clone().expect("it can be duplicated");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = reader.read(&mut buffer) {
                if length == 0 || send.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, path, before, output, screen: vt100::Parser::new(in_cells(rows), in_cells(columns), 0), child }
    }

    fn open(path: &PathBuf) -> File {
        OpenOptions::new().read(true).write(true).open(path).expect("it can be opened")
    }

    /// Waits until the screen has all of these words.
    #[track_caller]
    fn shows(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = self.screen.screen().contents();
            if words.iter().all(|word| text.contains(word)) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => panic!("no {words:?} on the screen:\n{text}"),
            }
        }
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("the terminal is open");
    }

    /// Waits for the end of the program, and asserts that the terminal is as before.
    #[track_caller]
    fn ends(mut self, code: i32) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::park_timeout(Duration::from_millis(1));
        };
        assert_eq!(status.code(), Some(code));
        let after = tcgetattr(Self::open(&self.path)).expect("it is a terminal");
        assert_eq!(after.local_modes, self.before.local_modes, "the modes of the terminal");
        assert_eq!(after.output_modes, self.before.output_modes, "the modes of the terminal");
        // What was written before the end arrives without a wait.
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
            self.screen.process(&bytes);
        }
        let screen = self.screen.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor(), "the terminal shows the other screen");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn top(setup: &Setup, url: &str) -> Command {
    let mut command = setup.vkog();
    command.args(["top", "--interval", "50ms", "--url", url]).env("TERM", "xterm-256color");
    command
}

/// Starts a server that has had some requests.
fn used(setup: &Setup) -> (Server, String) {
    let server = setup.start();
    for key in 0..20 {
        server.put(&format!("key-{key}"), "value").expect(200);
        server.get(&format!("key-{key}")).expect(200);
    }
    let url = format!("http://{}", server.address());
    (server, url)
}

#[test]
fn top_shows_operations_plugins_and_memory_until_a_key_quits() {
    let setup = Setup::new().load(bytes());
    let (server, url) = used(&setup);
    for key in [&b"q"[..], b"\x03"] {
        let mut terminal = Terminal::run(&mut top(&setup, &url), 24, 100);
        let text = terminal.shows(&["OPERATION", "PUT", "GET", "PLUGIN", "bytes", "20 entries", "memory", "q quits"]);
        assert!(text.starts_with(&format!("vkog top   {url}   up")), "{text}");
        assert!(terminal.screen.screen().alternate_screen());
        terminal.types(key);
        terminal.ends(0);
    }
    drop(server);
}

#[test]
fn a_signal_ends_top_and_restores_the_terminal() {
    let setup = Setup::new();
    let (_server, url) = used(&setup);
    let mut terminal = Terminal::run(&mut top(&setup, &url), 24, 80);
    terminal.shows(&["OPERATION"]);
    let id = terminal.child.id().to_string();
    let killed = Command::new("sh").args(["-c", "kill -s TERM \"$0\"", &id]).status();
    assert!(killed.expect("sh runs").success());
    terminal.ends(0);
}

#[test]
fn top_continues_after_a_restart_of_the_server() {
    let setup = Setup::new();
    let serve = || {
        let mut command = setup.vkog();
        let server = Running::start(command.args(["--no-plugins", "-f", "s.vkog", "--listen", "unix:s.sock"]));
        assert!(server.stdout.wait_for(|text| text.contains('\n')), "{}", server.stderr.text());
        server
    };
    let mut terminal = Terminal::run(&mut top(&setup, "unix:s.sock"), 24, 80);
    terminal.shows(&["unix:s.sock   unreachable: "]);
    for _ in 0..2 {
        let server = serve();
        terminal.shows(&["unix:s.sock   up", "OPERATION", "GET"]);
        server.signal("TERM");
        server.wait().expect(0);
        let text = terminal.shows(&["unix:s.sock   unreachable: "]);
        assert!(!text.contains("OPERATION"), "{text}");
    }
    terminal.types(b"q");
    terminal.ends(0);
}

#[test]
fn top_fits_into_a_small_terminal_of_any_locale() {
    let setup = Setup::new().load(bytes());
    let (_server, url) = used(&setup);
    for (rows, columns, words) in [(1, 10, "..."), (3, 20, "vkog top"), (6, 2, "vk")] {
        let mut command = top(&setup, &url);
        let mut terminal = Terminal::run(command.env("LC_ALL", "C").env("TERM", "dumb"), rows, columns);
        terminal.shows(&[words]);
        terminal.types(b"q");
        terminal.ends(0);
    }
}

#[test]
fn one_frame_needs_no_terminal_and_a_live_view_does() {
    let setup = Setup::new().load(bytes());
    let (server, url) = used(&setup);
    for option in ["--once", "--batch"] {
        let exit = Running::start(top(&setup, &url).arg(option)).wait().expect(0);
        let is_plain = |char: char| char == '\n' || char == ' ' || char.is_ascii_graphic();
        assert!(exit.stdout.chars().all(is_plain) && exit.stdout.contains("OPERATION"), "{exit}");
    }
    let exit = Running::start(&mut top(&setup, &url)).wait().expect(1);
    assert!(exit.stderr.contains("standard output is not a terminal; use --once"), "{exit}");
    server.stop().expect(0);
    let exit = Running::start(top(&setup, &url).arg("--once")).wait();
    assert!(exit.stderr.contains("cannot read statistics: no server listens at"), "{exit}");
}

#[test]
fn the_capture_in_the_documents_is_what_top_shows() {
    const UNITS: [&str; 8] = ["ns", "us", "ms", "s", "B", "KiB", "MiB", "-"];
    let page = std::fs::read_to_string(workspace().join("docs/how-to/monitoring.md")).expect("it can be read");
    let (_, rest) = page.split_once("```text\nvkog top ").expect("it has a capture");
    let (capture, _) = rest.split_once("```").expect("the capture ends");
    let setup = Setup::new().load(bytes());
    let (_server, url) = used(&setup);
    let mut terminal = Terminal::run(&mut top(&setup, &url), 24, 100);
    let shown = terminal.shows(&["bytes", "q quits"]);
    // Numbers and their units differ.
    let words = |text: &str| -> Vec<String> {
        let line = |line: &str| {
            let is_kept = |word: &&str| !word.contains(|char: char| char.is_ascii_digit()) && !UNITS.contains(word);
            line.split_whitespace().filter(is_kept).collect::<Vec<_>>().join(" ")
        };
        text.trim_end().lines().map(line).collect()
    };
    assert_eq!(words(&format!("vkog top {capture}")), words(&shown), "{shown}");
}
