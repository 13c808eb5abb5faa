//! A client that is killed while it writes a file leaves nothing beside it.
//!
//! Provoked with a server that sends a part of a response and then nothing, and with signals as soon as the client has created
//! its file. Where the filesystem has no files without a name, strace makes it refuse them.

#![cfg(target_os = "linux")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Instant;

use vkog_tests::{DEADLINE, Exit, Running, Setup};

/// Whether a process has a file open that has no name, or a temporary one, in a folder.
fn has_unfinished(process: u32, folder: &str) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let mut targets = descriptors.flatten().filter_map(|descriptor| descriptor.path().read_link().ok());
    targets.any(|target| target.starts_with(folder))
}

/// Runs a command of the client against a server that sends a part of a response, and ends it by a signal.
#[track_caller]
fn interrupted(setup: &Setup, arguments: &[&str], strace: bool, signal: &str) -> Exit {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let vkog = setup.vkog();
    // A shell starts what it runs in the background with SIGINT ignored, and so would the client be.
    let mut command = Command::new("env");
    command.arg("--default-signal");
    if strace {
        command.args(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=?open,openat", "-P", "."]);
        command.args(["-e", "inject=?open,openat:error=EOPNOTSUPP", "--"]);
    }
    let mut command = setup.prepared(command);
    command.arg(vkog.get_program());
    let running = Running::start(command.args(arguments).args(["--url", &url]));
    let (mut stream, _) = listener.accept().expect("the client connects");
    let _ = stream.read(&mut [0; 4096]);
    let start = r#"{"start":{"format":1,"store":"1f","revision":9,"timeline":"2e"}}"#;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nVkog-Revision: 9\r\n\r\n";
    stream.write_all(format!("{head}{start}\n").as_bytes()).expect("the client reads");
    let id = if strace { child_of(running.id()) } else { running.id() };
    let folder = setup.folder().canonicalize().expect("a folder").display().to_string();
    let begun = Instant::now();
    while !has_unfinished(id, &folder) {
        assert!(begun.elapsed() < DEADLINE, "the client creates no file: {}", running.stderr.text());
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-s", signal, &id.to_string()]).status().expect("kill runs");
    assert!(sent.success());
    running.wait()
}

/// The process that another one has started.
fn child_of(process: u32) -> u32 {
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).expect("it runs");
    children.split_whitespace().next().and_then(|id| id.parse().ok()).expect("a child")
}

fn names(setup: &Setup) -> Vec<String> {
    let folder = std::fs::read_dir(setup.folder()).expect("a folder");
    folder.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_killed_client_leaves_no_file() {
    let setup = Setup::new();
    for arguments in [&["backup", "file"][..], &["get", "k", "-o", "file"]] {
        for (signal, number) in [("KILL", 9), ("TERM", 15), ("INT", 2)] {
            let exit = interrupted(&setup, arguments, false, signal);
            assert_eq!(exit.status.signal(), Some(number), "{exit}");
            assert_eq!(names(&setup), [] as [String; 0], "{arguments:?} by {signal}");
        }
    }
}

#[test]
fn a_client_that_is_stopped_leaves_no_file_where_each_file_has_a_name() {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no strace");
        return;
    }
    let setup = Setup::new();
    for signal in ["TERM", "INT", "HUP"] {
        interrupted(&setup, &["backup", "file"], true, signal).expect(1);
        assert_eq!(names(&setup), [] as [String; 0], "{signal}");
    }
}
