//! `vkog health` finds the server as the server finds its address, and its exit status says whether the server is ready.
//!
//! Provoked with servers that are ready, that hang in their start, that are silent, and that do not exist.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use vkog_tests::{Certificate, Exit, Setup};
#[cfg(unix)]
use vkog_tests::{Running, artefacts};

/// Runs the check, which prints one line.
#[track_caller]
fn check(setup: &Setup, arguments: &[&str], status: i32, words: &str) -> Exit {
    let exit = setup.run([&["health"], arguments].concat()).expect(status);
    assert!(exit.stdout.lines().count() == 1 && exit.stderr.is_empty(), "{exit}");
    assert!(exit.stdout.contains(words), "{words} in {exit}");
    exit
}

#[test]
fn a_ready_server_is_status_0_with_and_without_tls() {
    let setup = Setup::new();
    let server = setup.start();
    let url = format!("http://{}", server.address());
    check(&setup, &["--url", &url], 0, &format!("{url}: ready"));
    let by_variable = setup.clone().env("VKOG_URL", &*url);
    check(&by_variable, &[], 0, "ready");
    let certificate = Certificate::new();
    let setup = Setup::new().certificate(&certificate);
    let server = setup.start();
    let url = format!("https://{}", server.address());
    check(&setup, &["--url", &url, "--cacert", "cert.pem"], 0, "ready");
    check(&setup, &["--url", &url], 6, "unreachable");
}

#[test]
fn without_a_url_the_address_is_that_of_the_servers_configuration() {
    let certificate = Certificate::new();
    let setup = Setup::new().certificate(&certificate);
    let server = setup.start();
    let (_, port) = server.address().rsplit_once(':').expect("a port");
    setup.write_config(&format!("listen = \":{port}\"\ntls-cert = \"cert.pem\"\ntls-key = \"key.pem\"\n"));
    check(&setup, &["--config", "vkog.toml"], 0, &format!("https://127.0.0.1:{port}: ready"));
    let variables = setup.clone().env("VKOG_LISTEN", format!("0.0.0.0:{port}")).env("VKOG_CONFIG", "vkog.toml");
    check(&variables, &[], 0, &format!("https://127.0.0.1:{port}: ready"));
}

#[test]
fn an_empty_variable_is_not_set() {
    let setup = Setup::new();
    let server = setup.start();
    let variables = setup.clone().env("VKOG_LISTEN", server.address()).env("VKOG_MAX_SIZE", "").env("VKOG_URL", "");
    check(&variables, &[], 0, "ready");
}

#[test]
fn another_service_with_status_200_is_status_1() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let service = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client connects");
        let mut request = BufReader::new(stream.try_clone().expect("it can be cloned")).lines();
        while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        // A body without an end.
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nOkay, this is a page").expect("it reads");
        drop(request.next());
    });
    check(&Setup::new(), &["--url", &url], 1, "unexpected response; check --url");
    service.join().expect("it ends");
}

#[cfg(unix)]
#[test]
fn a_server_at_a_unix_socket_is_checked() {
    let setup = Setup::new();
    let setup = setup.env("VKOG_LISTEN", "unix:s.sock");
    let mut command = setup.vkog();
    let server = Running::start(command.args(["--no-plugins", "-f", "s.vkog"]));
    assert!(server.stdout.wait_for(|text| text.contains("unix:s.sock\n")), "{}", server.stderr.text());
    check(&setup, &[], 0, "unix:s.sock: ready");
    server.signal("TERM");
    server.wait().expect(0);
    check(&setup, &[], 6, "unix:s.sock: unreachable");
}

#[cfg(unix)]
#[test]
fn a_server_that_is_live_but_not_ready_is_status_4() {
    let setup = Setup::new().load(artefacts().library("hangs"));
    setup.write_config("listen = \"unix:s.sock\"\n[plugins.hangs]\nwhere = \"start\"\n");
    let mut command = setup.vkog();
    command.args(["--config", "vkog.toml", "-f", "s.vkog", "--plugin-dir"]).arg(setup.plugin_folder());
    let server = Running::start(&mut command);
    assert!(server.stderr.wait_for(|log| log.contains("start hangs")), "{}", server.stderr.text());
    let reason = "unix:s.sock: not ready: starting plugins, 0 entries loaded";
    check(&setup, &["--config", "vkog.toml"], 4, reason);
    server.signal("TERM");
    server.wait().expect(0);
}

#[test]
fn a_server_that_is_silent_or_absent_is_status_6() {
    let setup = Setup::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", silent.local_addr().expect("it is bound"));
    check(&setup, &["--url", &url, "--timeout", "100ms"], 6, "unreachable: no response within 100ms");
    drop(silent);
    check(&setup, &["--url", &url], 6, "unreachable: ");
}

#[test]
fn another_service_is_status_1_and_a_wrong_option_status_2() {
    let setup = Setup::new();
    let server = setup.start();
    let url = format!("http://{}/k", server.address());
    check(&setup, &["--url", &url], 1, "unexpected status 404; check --url");
    for wrong in [&["--timeout", "0s"][..], &["--url", "nowhere"], &["--cacert", "cert.pem"]] {
        let exit = setup.run([&["health"], wrong].concat()).expect(2);
        assert!(exit.stdout.is_empty() && exit.stderr.lines().count() == 1, "{exit}");
    }
    setup.run(["health", "--url", "https://127.0.0.1:1", "--cacert", "missing.pem"]).expect(3);
    let exit = setup.run(["health", "--config", "missing.toml"]).expect(3);
    assert!(exit.stderr.contains("missing.toml"), "{exit}");
}
