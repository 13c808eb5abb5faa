//! With a certificate the hyper engine speaks TLS and nothing else, another certificate takes its place at a reload, and
//! what cannot be used is told in one line.
//!
//! Provoked with certificates that are made for it, with clients that speak no TLS or do not speak at all, and with files
//! that are missing, no PEM, or not each other's.

#![cfg(unix)]

use rustls::version::{TLS12, TLS13};
use vkog_tests::{Certificate, Server, Setup, Wire, pattern};

const GET: &str = "GET /k/k HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";

fn server(certificate: &Certificate) -> Server {
    let server = Setup::new().certificate(certificate).start();
    server.put("k", "v").expect(200);
    server
}

#[test]
fn a_server_with_a_certificate_speaks_https_on_loopback_too() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    server.logs(&["serving https://127.0.0.1:", "with hyper"]);
    let large = pattern(3 << 20);
    server.put("large", &large).expect(200);
    server.get("large").expect(200).is(&large);
    server.key("GET", "large").header("Range", "bytes=-70000").send().expect(206).is(&large[large.len() - 70_000..]);
    for version in [&TLS12, &TLS13] {
        let seen = certificate.ask(server.address(), version, GET).expect("the server has this certificate");
        assert_eq!(seen.alpn.as_deref(), Some(&b"http/1.1"[..]), "{version:?}");
        assert!(seen.text.starts_with("HTTP/1.1 200") && seen.text.ends_with("\r\n\r\nv"), "{}", seen.text);
    }
    // A connection of the client is open, and idle.
    server.stop().expect(0);
}

#[test]
fn an_address_with_http_and_a_unix_socket_speak_no_tls_beside_one_that_does() {
    use std::io::{Read as _, Write as _};

    let (setup, certificate) = (Setup::new(), Certificate::new());
    certificate.write(setup.folder());
    let mut command = setup.vkog();
    command.args(["serve", "--no-plugins", "-f", "s.vkog", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]);
    command.args(["--listen", "https://127.0.0.1:0", "--listen", "http://127.0.0.1:0", "--listen", "unix:s.sock"]);
    command.args(["--listen", "127.0.0.1:0"]);
    let running = vkog_tests::Running::start(&mut command);
    assert!(running.stdout.wait_for(|text| text.ends_with('\n')), "{}", running.stderr.text());
    let text = running.stdout.text();
    let addresses: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("listening on ")).collect();
    let [first, plain, "unix:s.sock", last] = addresses[..] else { panic!("{text}") };
    for address in [first, last] {
        let address = address.strip_prefix("https://").expect("it speaks TLS");
        let seen = certificate.ask(address, &TLS13, GET).expect("the server has this certificate");
        assert!(seen.text.starts_with("HTTP/1.1 404"), "{}", seen.text);
    }
    let ask = |mut stream: Box<dyn Stream>| {
        stream.write_all(GET.as_bytes()).expect("it reads");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("it answers and closes");
        assert!(reply.starts_with("HTTP/1.1 404"), "{reply}");
    };
    let plain = plain.strip_prefix("http://").expect("it speaks no TLS");
    ask(Box::new(std::net::TcpStream::connect(plain).expect("it listens")));
    ask(Box::new(std::os::unix::net::UnixStream::connect(setup.folder().join("s.sock")).expect("it listens")));
}

trait Stream: std::io::Read + std::io::Write {}
impl<S: std::io::Read + std::io::Write> Stream for S {}

#[test]
fn a_client_that_speaks_no_tls_or_nothing_at_all_does_no_harm() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut silent: Vec<Wire> = (0..50).map(|_| server.wire()).collect();
    // The beginning of a handshake record, of a type that there is, and no more.
    for wire in &mut silent[..25] {
        wire.send(b"\x16\x03\x01\x02\x00\x01");
    }
    let mut plain = server.wire();
    plain.send(GET).reply().refused(400, "This port speaks TLS; use https://");
    assert!(plain.rest().expect("the server ends the connection").is_empty());
    for garbage in
        [&b"\x00\x00\x00\x00\x00\x00\x00\x00"[..], b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01\x00\x02", &[0xff; 70_000]]
    {
        let mut wire = server.wire();
        // The server may end the connection before all is sent.
        let _ = wire.try_send(garbage);
        wire.finish().rest().expect("the server ends the connection");
    }
    assert!(Certificate::new().ask(server.address(), &TLS13, GET).is_err(), "a certificate that nobody has is trusted");
    server.get("k").expect(200).is("v");
    for mut wire in silent {
        wire.rest().expect("the server gives up a client that does not speak");
    }
    server.get("k").expect(200).is("v");
    server.stop().expect(0);
}

#[test]
fn what_cannot_be_used_is_one_line_and_status_1() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let setup = Setup::new();
    certificate.write(setup.folder());
    let write = |name: &str, text: &str| std::fs::write(setup.folder().join(name), text).expect("it can be written");
    write("other.pem", &other.key);
    write("empty.pem", "");
    write("locked.pem", &certificate.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    write("cut.pem", &certificate.pem[..certificate.pem.len() / 2]);
    write("no-der.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (arguments, words) in [
        (&["--tls-cert", "none.pem", "--tls-key", "key.pem"][..], &["none.pem", "os error 2"][..]),
        (&["--tls-cert", "cert.pem", "--tls-key", "none.pem"], &["none.pem", "os error 2"]),
        (&["--tls-cert", "empty.pem", "--tls-key", "key.pem"], &["empty.pem", "no certificate"]),
        (&["--tls-cert", "key.pem", "--tls-key", "key.pem"], &["key.pem", "no certificate"]),
        (&["--tls-cert", "cut.pem", "--tls-key", "key.pem"], &["cut.pem", "give a certificate"]),
        (&["--tls-cert", "no-der.pem", "--tls-key", "key.pem"], &["no-der.pem", "key.pem", "invalid peer certificate"]),
        (&["--tls-cert", "cert.pem", "--tls-key", "cert.pem"], &["cert.pem", "no private key"]),
        (&["--tls-cert", "cert.pem", "--tls-key", "locked.pem"], &["locked.pem", "without a password"]),
        (&["--tls-cert", "cert.pem", "--tls-key", "other.pem"], &["cert.pem", "other.pem", "another certificate's"]),
        (&["--tls-cert", "cert.pem"], &["--tls-cert", "--tls-key", "give both"]),
        (&["--tls-key", "key.pem"], &["--tls-key", "--tls-cert", "give both"]),
        (&["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--http", "tiny"], &["--tls-cert", "--http hyper"]),
    ] {
        let exit = setup.clone().args(arguments.iter().copied()).fail().expect(1);
        let error = exit.stderr.lines().find(|line| line.starts_with("vkog: ")).unwrap_or_default();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {exit}");
        assert!(!exit.stderr.contains("PRIVATE"), "a key in {exit}");
        assert_eq!(exit.stdout, "", "{exit}");
    }
}

#[test]
fn a_reload_takes_in_a_renewed_certificate_and_keeps_the_old_one_for_one_that_is_broken() {
    let (first, second) = (Certificate::new(), Certificate::new());
    let setup = Setup::new().certificate(&first);
    let server = setup.start();
    server.put("k", "v").expect(200);
    let shown = |certificate: &Certificate| certificate.ask(server.address(), &TLS13, GET).is_ok();
    assert!(shown(&first) && !shown(&second));
    // The certificate is renewed, and its key is not yet.
    std::fs::write(setup.folder().join("cert.pem"), &second.pem).expect("it can be written");
    server.signal("HUP");
    server.logs(&["nothing was reloaded", "cert.pem", "key.pem", "another certificate's"]);
    assert!(shown(&first) && !shown(&second));
    second.write(setup.folder());
    server.signal("HUP");
    server.logs(&["reloaded the certificate"]);
    assert!(!shown(&first) && shown(&second));
    // Connections from before go on.
    server.get("k").expect(200).is("v");
    server.stop().expect(0);
}
