//! With `--tls-client-ca`, the names in a client's certificate have the permissions of `[[access.tokens]]`. A connection
//! without a valid certificate is refused, and a reload applies other authorities, lists and names.
//!
//! Provoked with authorities and certificates that the test creates.

#![cfg(unix)]

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use rcgen::{CertificateParams, DnType, SanType, date_time_ymd};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, StreamOwned};
use vkog_tests::{Authority, Certificate, ClientCertificate, HTTP2_START, Server, Setup, frame, get_frame};

const ACCESS: &str = r#"
[[access.tokens]]
name = "reader"
certificate = "reader.example"
right = "read"

[[access.tokens]]
name = "writer"
certificate = "spiffe://example/writer"
right = "write"
prefix = "a/"

[[access.tokens]]
name = "operator"
certificate = "operator@example.com"
right = "admin"

[[access.tokens]]
name = "importer"
certificate = "importer"
right = "write"

[[access.tokens]]
name = "script"
token = "s3cret"
right = "read"
"#;

/// A server that trusts an authority of client certificates.
struct Secured {
    certificate: Certificate,
    authority: Authority,
    setup: Setup,
    server: Server,
}

impl Secured {
    fn start(arguments: &[&str]) -> Self {
        let (certificate, authority) = (Certificate::new(), Authority::new());
        let setup = Setup::new().certificate(&certificate).config(ACCESS);
        std::fs::write(setup.folder().join("clients.pem"), &authority.pem).expect("it can be written");
        let setup = setup.args(["--tls-client-ca", "clients.pem"]).args(arguments.iter().copied());
        let server = setup.start();
        Self { certificate, authority, setup, server }
    }

    fn connect(&self, client: Option<&ClientCertificate>) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        self.certificate.connect_as(client, self.server.address(), &TLS13, &["http/1.1"])
    }

    /// Sends a request that ends the connection, and returns the response.
    fn ask(&self, client: Option<&ClientCertificate>, line: &str, fields: &str) -> io::Result<String> {
        let mut stream = self.connect(client)?;
        stream.write_all(request(line, fields, "close").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    #[track_caller]
    fn status(&self, client: Option<&ClientCertificate>, line: &str, fields: &str) -> u16 {
        let reply =
            self.ask(client, line, fields).unwrap_or_else(|error| panic!("{line}: {error}\n{}", self.server.log()));
        status_of(&reply)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.setup.folder().join(name), text).expect("it can be written");
    }
}

fn request(line: &str, fields: &str, connection: &str) -> String {
    let body = if line.starts_with("PUT") { "v" } else { "" };
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    )
}

#[track_caller]
fn status_of(reply: &str) -> u16 {
    let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("no status in {reply:?}"))
}

fn with_san(name: SanType) -> impl FnOnce(&mut CertificateParams) {
    move |parameters| parameters.subject_alt_names.push(name)
}

#[test]
fn the_names_in_a_certificate_have_the_permissions_of_the_configuration() {
    let secured = Secured::start(&[]);
    let text = |text: &str| text.try_into().expect("ASCII");
    let sign = |name| secured.authority.sign(1, with_san(name));
    let reader = sign(SanType::DnsName(text("reader.example")));
    let writer = sign(SanType::URI(text("spiffe://example/writer")));
    let operator = sign(SanType::Rfc822Name(text("operator@example.com")));
    let importer = secured.authority.named("importer");
    let several = secured.authority.sign(1, |parameters| {
        parameters.distinguished_name.push(DnType::CommonName, "somebody");
        parameters.subject_alt_names.push(SanType::DnsName(text("other.example")));
        parameters.subject_alt_names.push(SanType::DnsName(text("reader.example")));
    });
    let stranger = secured.authority.named("reader.example.org");
    let requests = ["PUT /k/a/k", "PUT /k/k", "GET /k/a/k", "GET /keys", "POST /plugins/reload"];
    for (name, client, expected) in [
        ("operator", &operator, [200, 200, 200, 200, 200]),
        ("reader", &reader, [403, 403, 200, 200, 403]),
        ("writer", &writer, [200, 403, 200, 403, 403]),
        ("importer", &importer, [200, 200, 200, 200, 403]),
        ("several names", &several, [403, 403, 200, 200, 403]),
        ("stranger", &stranger, [403, 403, 403, 403, 403]),
    ] {
        let found = requests.map(|line| secured.status(Some(client), line, ""));
        assert_eq!(found, expected, "{name}\n{}", secured.server.log());
    }
    let reply = secured.ask(Some(&stranger), "GET /keys", "").expect("the server responds");
    let fact = "the certificate is for \"reader.example.org\", and [[access.tokens]] names none of it";
    assert!(reply.contains(&format!("Not allowed: {fact}")), "{reply}");
    let reply = secured.ask(Some(&reader), "PUT /k/k", "").expect("the server responds");
    assert!(reply.contains("the token \"reader\" does not have this right: it may read"), "{reply}");
    secured.server.logs(&["refused GET /keys", "reader.example.org"]);
    // These need neither.
    assert_eq!(secured.status(Some(&stranger), "GET /livez", ""), 200);
}

#[test]
fn a_client_without_a_valid_certificate_is_refused_in_the_handshake() {
    let secured = Secured::start(&[]);
    let other = Authority::new().named("importer");
    let expired = secured.authority.sign(1, |parameters| {
        parameters.distinguished_name.push(DnType::CommonName, "importer");
        parameters.not_after = date_time_ymd(2024, 1, 1);
    });
    for (client, alert, logged) in [
        (None, "CertificateRequired", "the client has sent no certificate"),
        (Some(&other), "UnknownCA", "UnknownIssuer"),
        (Some(&expired), "CertificateExpired", "expired"),
    ] {
        let error = secured.ask(client, "GET /livez", "").expect_err("the server refuses it").to_string();
        assert!(error.contains(alert), "{alert}: {error}");
        secured.server.logs(&["refused a TLS connection", logged]);
    }
    let version = &TLS12;
    let mut old = secured.certificate.connect_as(None, secured.server.address(), version, &[]).expect("it listens");
    assert!(old.write_all(request("GET /livez", "", "close").as_bytes()).is_err(), "TLS 1.2 without a certificate");
    // The client of the program says what to do.
    let url = format!("https://{}", secured.server.address());
    let get = |arguments: &[&str]| {
        let common = ["get", "k", "--url", &url, "--cacert", "cert.pem"];
        secured.setup.run(common.iter().chain(arguments).copied())
    };
    let error = get(&[]).stderr;
    assert!(error.contains("show a client certificate with --cert FILE --key FILE"), "{error}");
    other.write(secured.setup.folder());
    let error = get(&["--cert", "client.pem", "--key", "client-key.pem"]).stderr;
    assert!(error.contains("that an authority of the server has signed"), "{error}");
    let error = get(&["--cert", "client-key.pem", "--key", "client-key.pem"]).stderr;
    assert!(error.contains("no certificate in client-key.pem"), "{error}");
    let error = get(&["--cert", "client.pem", "--key", "client.pem"]).stderr;
    assert!(error.contains("no private key in client.pem"), "{error}");
    secured.write("other-key.pem", &Authority::new().named("importer").key);
    let exit = get(&["--cert", "client.pem", "--key", "other-key.pem"]).expect(1);
    let fact = "cannot use client.pem with other-key.pem: the key is another certificate's; give its own";
    assert!(exit.one_error().ends_with(fact), "{exit}");
    secured.authority.named("importer").write(secured.setup.folder());
    let put =
        ["put", "k", "v", "--url", &url, "--cacert", "cert.pem", "--cert", "client.pem", "--key", "client-key.pem"];
    secured.setup.run(put).expect(0);
    assert_eq!(get(&["--cert", "client.pem", "--key", "client-key.pem"]).expect(0).stdout, "v");
}

#[test]
fn an_optional_certificate_replaces_a_token_and_a_token_takes_precedence() {
    let secured = Secured::start(&["--tls-client-auth", "optional"]);
    let importer = secured.authority.named("importer");
    let token = "Authorization: Bearer s3cret\r\n";
    for (client, fields, expected) in [
        (Some(&importer), "", [200, 200]),
        (None, "", [401, 401]),
        (None, token, [403, 200]),
        (Some(&importer), token, [403, 200]),
        (Some(&importer), "Authorization: Bearer unknown\r\n", [401, 401]),
    ] {
        let found = ["PUT /k/k", "GET /k/k"].map(|line| secured.status(client, line, fields));
        assert_eq!(found, expected, "{fields:?} with a certificate: {}", client.is_some());
    }
    let reply = secured.ask(None, "GET /k/k", "").expect("the server responds");
    assert!(
        reply.contains("Send a token in the header Authorization: Bearer TOKEN, or a client certificate"),
        "{reply}"
    );
    let other = Authority::new().named("importer");
    assert!(secured.ask(Some(&other), "GET /k/k", "").is_err(), "a certificate that is not valid counts as none");
}

#[test]
fn a_web_page_of_another_site_cannot_use_the_certificate_of_a_browser() {
    let secured = Secured::start(&[]);
    let importer = secured.authority.named("importer");
    for (fields, expected) in [
        ("Origin: https://other.example\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Origin: https://127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n", 200),
    ] {
        assert_eq!(secured.status(Some(&importer), "PUT /k/k", fields), expected, "{fields}");
    }
}

#[test]
fn a_certificate_is_valid_for_every_request_of_an_http_2_connection_and_for_tickets() {
    let secured = Secured::start(&["--tls-client-auth", "optional"]);
    let importer = secured.authority.named("importer");
    assert_eq!(secured.status(Some(&importer), "PUT /k/k", ""), 200);
    let address = secured.server.address();
    let mut stream = secured.certificate.connect_as(Some(&importer), address, &TLS13, &["h2"]).expect("it listens");
    let gets = [get_frame(1, "/k/k"), get_frame(3, "/k/k"), frame(7, 0, 0, &[0; 8])].concat();
    stream.write_all(&[HTTP2_START, &gets].concat()).expect("it reads");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("it ends the connection");
    let reply = String::from_utf8_lossy(&reply);
    for number in ['\u{1}', '\u{3}'] {
        assert!(reply.contains(&format!("\0\0\x01\0\x01\0\0\0{number}v")), "{}", reply.escape_debug());
    }
    // A ticket stands for the certificate on a connection without one.
    let reply = secured.ask(Some(&importer), "POST /watch/tickets", "").expect("the server responds");
    let ticket = reply.split("\"ticket\": \"").nth(1).and_then(|rest| rest.split('"').next());
    let ticket = ticket.unwrap_or_else(|| panic!("no ticket in {reply}"));
    let mut stream = secured.connect(None).expect("it listens");
    stream.write_all(request(&format!("GET /watch?ticket={ticket}"), "", "close").as_bytes()).expect("it reads");
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("it answers");
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[test]
fn a_reload_applies_other_names_authorities_and_revocations() {
    let secured = Secured::start(&[]);
    let importer = secured.authority.sign(7, |parameters| {
        parameters.distinguished_name.push(DnType::CommonName, "importer");
    });
    let other = secured.authority.sign(8, |parameters| {
        parameters.distinguished_name.push(DnType::CommonName, "importer");
    });
    let asks =
        |client: &ClientCertificate| secured.ask(Some(client), "GET /keys", "").ok().map(|reply| status_of(&reply));
    let mut open = secured.connect(Some(&importer)).expect("it listens");
    let mut ask = || {
        open.write_all(request("GET /k/none", "", "keep-alive").as_bytes()).expect("it reads");
        let mut reply = vec![0; 4096];
        let read = open.read(&mut reply).expect("it answers");
        status_of(&String::from_utf8_lossy(&reply[..read]))
    };
    assert_eq!((ask(), asks(&importer)), (404, Some(200)));
    // A revoked certificate; another one of the same name stays valid.
    secured.write("revoked.pem", &secured.authority.revoke(&[7]));
    secured.setup.write_config(&format!("tls-client-crl = \"revoked.pem\"\n{ACCESS}"));
    secured.server.signal("HUP");
    secured.server.logs(&["reloaded the certificate"]);
    assert_eq!((asks(&importer), asks(&other)), (None, Some(200)));
    secured.server.logs(&["refused a TLS connection", "Revoked"]);
    // Older connections continue, as long as their names have the permission.
    assert_eq!(ask(), 404);
    secured.setup.write_config(&ACCESS.replace("\"importer\"\nright", "\"exporter\"\nright"));
    secured.server.signal("HUP");
    secured.server.logs(&["reloaded access tokens"]);
    assert_eq!((ask(), asks(&other)), (403, Some(403)));
    // An authority that cannot be used changes nothing.
    secured.write("clients.pem", "nothing");
    secured.setup.write_config(ACCESS);
    secured.server.signal("HUP");
    secured.server.logs(&["nothing was reloaded", "clients.pem", "no certificate"]);
    assert_eq!(asks(&other), Some(403));
    // Another authority.
    let authority = Authority::new();
    secured.write("clients.pem", &authority.pem);
    secured.server.signal("HUP");
    assert!(secured.server.logged(|log| log.matches("reloaded the certificate").count() == 3));
    assert_eq!((asks(&other), asks(&authority.named("importer"))), (None, Some(200)));
}

#[test]
fn unusable_options_of_client_certificates_are_one_line_and_a_status() {
    let (certificate, authority) = (Certificate::new(), Authority::new());
    let setup = Setup::new();
    certificate.write(setup.folder());
    let write = |name: &str, text: &str| std::fs::write(setup.folder().join(name), text).expect("it can be written");
    write("clients.pem", &authority.pem);
    write("empty.pem", "");
    let tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let ca = ["--tls-client-ca", "clients.pem"];
    for (arguments, words) in [
        (&ca[..], &["--tls-client-ca", "--tls-cert and --tls-key"][..]),
        (&[&tls[..], &["--tls-client-ca", "empty.pem"]].concat(), &["empty.pem", "no certificate"]),
        (
            &[&tls[..], &ca, &["--tls-client-crl", "empty.pem"]].concat(),
            &["empty.pem", "no certificate revocation list"],
        ),
        (&[&tls[..], &["--tls-client-crl", "empty.pem"]].concat(), &["--tls-client-crl", "--tls-client-ca is missing"]),
        (
            &[&tls[..], &["--tls-client-auth", "optional"]].concat(),
            &["--tls-client-auth", "--tls-client-ca is missing"],
        ),
        (&[&tls[..], &ca, &["--http", "tiny"]].concat(), &["--tls-cert", "--http hyper"]),
    ] {
        let exit = setup.clone().args(arguments.iter().copied()).fail().expect(1);
        let error = exit.stderr.lines().find(|line| line.starts_with("vkog: ")).unwrap_or_default();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {exit}");
    }
    let exit = setup.clone().args(tls).args(["--tls-client-ca", "none.pem"]).fail().expect(3);
    assert!(exit.stderr.contains("none.pem") && exit.stderr.contains("os error 2"), "{exit}");
    let exit = setup.clone().config(ACCESS).args(tls).fail().expect(1);
    assert!(exit.stderr.contains("cannot use certificate in [[access.tokens]]: --tls-client-ca is missing"), "{exit}");
}
