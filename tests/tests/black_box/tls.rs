//! With a certificate the hyper engine speaks only TLS, a reload applies another certificate, and an unusable
//! certificate is one error line.
//!
//! Provoked with certificates that the test creates, with clients that speak no TLS or send nothing, and with files
//! that are missing, not PEM, or do not belong together.

#![cfg(unix)]

use rustls::version::{TLS12, TLS13};
use vkog_tests::{Certificate, HTTP2_START, Server, Setup, Wire, frame, get_frame, pattern};

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
        let seen =
            certificate.ask(server.address(), version, &["http/1.1"], GET).expect("the server has this certificate");
        assert_eq!(seen.alpn.as_deref(), Some(&b"http/1.1"[..]), "{version:?}");
        assert!(seen.text.starts_with("HTTP/1.1 200") && seen.text.ends_with("\r\n\r\nv"), "{}", seen.text);
    }
    // A connection of the client is open, and idle.
    server.stop().expect(0);
}

#[test]
fn alpn_selects_http_2_first_then_any_version_of_http_1() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    // A GET over HTTP/2, and GOAWAY.
    let http2 = [HTTP2_START, &get_frame(1, "/k/k"), &frame(7, 0, 0, &[0; 8])].concat();
    for (offered, chosen) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["h2"], Some("h2")),
        (&["http/1.0", "http/1.1"], Some("http/1.1")),
        (&["http/1.0"], Some("http/1.0")),
        (&[], None),
    ] {
        for version in [&TLS12, &TLS13] {
            let request = if chosen == Some("h2") { &http2 } else { GET.as_bytes() };
            let seen = certificate.ask(server.address(), version, offered, request);
            let seen = seen.unwrap_or_else(|error| panic!("{offered:?}: {error}\n{}", server.log()));
            assert_eq!(seen.alpn.as_deref(), chosen.map(str::as_bytes), "{offered:?}");
            if chosen == Some("h2") {
                // The value in a DATA frame that ends its stream.
                assert!(seen.text.contains("\0\0\x01\0\x01\0\0\0\x01v"), "{offered:?}: {}", seen.text.escape_debug());
            } else {
                assert!(seen.text.starts_with("HTTP/1.1 200") && seen.text.ends_with("\r\n\r\nv"), "{}", seen.text);
            }
        }
    }
    assert!(certificate.ask(server.address(), &TLS13, &["spdy/3"], GET).is_err(), "SPDY is accepted");
    server.get("k").expect(200).is("v");
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
        let seen = certificate.ask(address, &TLS13, &["http/1.1"], GET).expect("the server has this certificate");
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
fn a_client_without_tls_or_without_data_does_not_disturb_others() {
    let certificate = Certificate::new();
    let server = server(&certificate);
    let mut silent: Vec<Wire> = (0..50).map(|_| server.wire()).collect();
    // Only the start of a handshake record, with a valid type.
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
    assert!(
        Certificate::new().ask(server.address(), &TLS13, &["http/1.1"], GET).is_err(),
        "a foreign certificate is trusted"
    );
    server.get("k").expect(200).is("v");
    for mut wire in silent {
        wire.rest().expect("the server times out after a silent client");
    }
    server.get("k").expect(200).is("v");
    server.stop().expect(0);
}

#[test]
fn an_unusable_certificate_is_one_line_and_a_missing_one_has_its_status() {
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
        let status = if arguments.contains(&"none.pem") { 3 } else { 1 };
        let exit = setup.clone().args(arguments.iter().copied()).fail().expect(status);
        let error = exit.stderr.lines().find(|line| line.starts_with("vkog: ")).unwrap_or_default();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {exit}");
        assert!(!exit.stderr.contains("PRIVATE"), "a key in {exit}");
        assert_eq!(exit.stdout, "", "{exit}");
    }
}

#[test]
fn a_reload_applies_a_renewed_certificate_and_ignores_a_broken_one() {
    let (first, second) = (Certificate::new(), Certificate::new());
    let setup = Setup::new().certificate(&first);
    let server = setup.start();
    server.put("k", "v").expect(200);
    let shown = |certificate: &Certificate| certificate.ask(server.address(), &TLS13, &["http/1.1"], GET).is_ok();
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
    // Older connections continue.
    server.get("k").expect(200).is("v");
    server.stop().expect(0);
}
