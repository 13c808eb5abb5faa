//! A server responds to probes while it loads, and to everything else with 503. A start that fails or is stopped leaves no
//! socket behind.
//!
//! Provoked with a plugin that hangs while it is created or started, which holds the start at that step.

#![cfg(unix)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;

use ureq::http::Request;
use vkog_tests::{Certificate, Http2, Running, Setup, artefacts};

use super::ENGINE;

/// A server that hangs in a step of its start.
struct Starting {
    process: Running,
    setup: Setup,
    /// The first TCP address.
    address: String,
}

fn hanging(place: &str) -> Setup {
    let setup = Setup::on(ENGINE).load(artefacts().library("hangs"));
    setup.write_config(&format!("[plugins.hangs]\nwhere = {place:?}\n"));
    setup
}

fn command(setup: &Setup, listen: &str) -> Command {
    let mut command = setup.vkog();
    command.args(["serve", "--config", "vkog.toml", "--listen", listen, "--file"]).arg(setup.store_file());
    command.arg("--plugin-dir").arg(setup.plugin_folder());
    command
}

impl Starting {
    #[track_caller]
    fn start(setup: &Setup, place: &str, command: &mut Command) -> Self {
        let process = Running::start(command);
        let hangs = format!("{place} hangs");
        let listens = |log: &str| log.contains(&hangs) && log.contains("listening on ");
        assert!(process.stderr.wait_for(listens), "{}", process.stderr.text());
        let log = process.stderr.text();
        let (_, rest) = log.split_once("listening on ").expect("it listens before it loads");
        let address = rest.split(['"', ';', ',']).next().unwrap_or_default();
        let address = address.rsplit('/').next().unwrap_or_default().to_owned();
        Self { process, setup: setup.clone(), address }
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        exchange(TcpStream::connect(&self.address).expect("it listens"), method, path, headers)
    }
}

#[track_caller]
fn exchange(mut stream: impl Read + Write, method: &str, path: &str, headers: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n{headers}\r\nv"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("it responds and closes");
    reply
}

#[test]
fn a_server_that_loads_is_alive_and_not_ready_and_refuses_all_else() {
    for (place, phase) in [("create", "loading plugins"), ("start", "starting plugins, 0 entries loaded")] {
        let setup = hanging(place);
        let starting = Starting::start(&setup, place, &mut command(&setup, "127.0.0.1:0,unix:s.sock"));
        let alive = starting.ask("GET", "/livez", "");
        assert!(alive.starts_with("HTTP/1.1 200") && alive.ends_with("\r\n\r\nOk"), "{alive}");
        let ready = starting.ask("GET", "/readyz", "");
        let body = format!("\r\n\r\nNot ready: {phase}\n");
        assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with(&body), "{ready}");
        let problem = starting.ask("GET", "/readyz", "Accept: application/json\r\n");
        let title = format!("\"title\":\"Not ready: {phase}\"");
        assert!(problem.contains("application/problem+json") && problem.contains(&title), "{problem}");
        for (method, path) in
            [("GET", "/k/a"), ("PUT", "/k/a"), ("GET", "/"), ("GET", "/metrics"), ("POST", "/batch"), ("OPTIONS", "*")]
        {
            let refused = starting.ask(method, path, "");
            assert!(refused.starts_with("HTTP/1.1 503"), "{method} {path}: {refused}");
            assert!(refused.to_lowercase().contains("\r\nretry-after: 1\r\n"), "{method} {path}: {refused}");
            assert!(refused.contains(&format!("The server is starting: {phase}; try again")), "{refused}");
        }
        let socket = UnixStream::connect(starting.setup.folder().join("s.sock")).expect("it listens");
        assert!(exchange(socket, "GET", "/readyz", "").contains(phase));
        assert_eq!(starting.process.stdout.text(), "", "it is not ready");
        starting.process.signal("TERM");
        starting.process.wait().expect(0);
        assert!(!setup.folder().join("s.sock").exists(), "the socket is left");
    }
}

#[test]
fn a_server_that_loads_responds_over_tls_and_http_2() {
    if ENGINE != "hyper" {
        return;
    }
    let setup = hanging("start");
    let starting = Starting::start(&setup, "start", &mut command(&setup, "127.0.0.1:0"));
    let http2 = Http2::connect(&starting.address).expect("it speaks HTTP/2");
    let ask = |path: &str, body: &str| {
        let request = Request::put(format!("http://localhost{path}")).body(body.as_bytes().to_vec());
        http2.request(request.expect("a valid request")).expect("a response").status().as_u16()
    };
    assert_eq!((ask("/readyz", ""), ask("/k/a", "value")), (503, 503));
    drop((http2, starting));
    let certificate = Certificate::new();
    certificate.write(setup.folder());
    let mut secure = command(&setup, "127.0.0.1:0");
    secure.args(["--tls-cert", "cert.pem", "--tls-key", "key.pem"]);
    let starting = Starting::start(&setup, "start", &mut secure);
    let request = "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let seen = certificate.ask(&starting.address, &rustls::version::TLS13, &["http/1.1"], request).expect("TLS");
    assert!(seen.text.starts_with("HTTP/1.1 503") && seen.text.contains("starting plugins"), "{}", seen.text);
}

#[test]
fn an_address_in_use_is_found_before_the_store_or_a_plugin_is_loaded() {
    let setup = hanging("create");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound").to_string();
    let exit = Running::start(&mut command(&setup, &address)).wait().expect(1);
    assert!(exit.stderr.contains("cannot listen on") && !exit.stderr.contains("hangs"), "{exit}");
    assert!(!setup.store_file().with_extension("vkog.log").exists(), "{exit}");
}

#[test]
fn a_start_that_fails_after_it_listens_reports_the_error_and_removes_its_socket() {
    let setup = hanging("");
    std::fs::write(setup.store_file(), "no store").expect("it can be written");
    let exit = Running::start(&mut command(&setup, "127.0.0.1:0,unix:s.sock")).wait().expect(1);
    let last = exit.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("vkog: cannot read ") && exit.stdout.is_empty(), "{exit}");
    assert!(!setup.folder().join("s.sock").exists(), "the socket is left: {exit}");
}

#[test]
fn a_passed_socket_responds_while_the_server_loads() {
    let setup = hanging("start");
    let passed = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = passed.local_addr().expect("it is bound").to_string();
    let serve = command(&setup, "unix:s.sock");
    let mut shell = setup.prepared(Command::new("sh"));
    shell.args(["-c", "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""]);
    shell.arg(serve.get_program()).args(serve.get_args());
    let process = Running::start_with_stdin(&mut shell, std::os::fd::OwnedFd::from(passed).into());
    assert!(process.stderr.wait_for(|log| log.contains("start hangs")), "{}", process.stderr.text());
    let ready = exchange(TcpStream::connect(address).expect("it listens"), "GET", "/readyz", "");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("starting plugins"), "{ready}");
    process.signal("TERM");
    process.wait().expect(0);
}
