//! A server listens on all addresses that it is given, says which, and refuses to start where it cannot.
//!
//! Provoked with addresses of all kinds together, with ports and paths that others have, and with sockets that are passed as
//! a service manager passes them.

#![cfg(unix)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use vkog_tests::{Exit, Running, Setup};

use super::ENGINE;

/// A server, and the addresses that it announces.
struct Listening {
    process: Running,
    addresses: Vec<String>,
}

/// The command of a server without an address yet.
fn command(setup: &Setup) -> Command {
    let mut command = setup.vkog();
    command.args(["serve", "--no-plugins", "--http", ENGINE, "-f", "s.vkog"]);
    command
}

impl Listening {
    #[track_caller]
    fn start(setup: &Setup, arguments: &[&str]) -> Self {
        Self::of(Running::start(command(setup).args(arguments)))
    }

    #[track_caller]
    fn of(process: Running) -> Self {
        assert!(process.stdout.wait_for(|text| text.ends_with('\n')), "{}", process.stderr.text());
        let text = process.stdout.text();
        let addresses = text.lines().map(|line| line.strip_prefix("listening on ").expect("an address").to_owned());
        Self { addresses: addresses.collect(), process }
    }

    /// Sends a request to one of its addresses, and returns the reply.
    #[track_caller]
    fn ask(&self, setup: &Setup, at: usize, method: &str, body: &str) -> String {
        self.ask_as(setup, at, "localhost", method, body)
    }

    #[track_caller]
    fn ask_as(&self, setup: &Setup, at: usize, host: &str, method: &str, body: &str) -> String {
        let address = &self.addresses[at];
        let length = body.len();
        let request = format!(
            "{method} /k/k HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let exchange = |mut stream: Box<dyn Stream>| {
            stream.write_all(request.as_bytes()).expect("it reads");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("it answers and closes");
            reply
        };
        match (address.strip_prefix("unix:@"), address.strip_prefix("unix:")) {
            (Some(name), _) => exchange(Box::new(by_name(name).expect("it listens"))),
            (None, Some(path)) => {
                exchange(Box::new(UnixStream::connect(setup.folder().join(path)).expect("it listens")))
            }
            (None, None) => {
                let address = address.strip_prefix("http://").expect("no TLS").replace("0.0.0.0", "127.0.0.1");
                exchange(Box::new(TcpStream::connect(address).expect("it listens")))
            }
        }
    }

    fn stop(self) -> Exit {
        self.process.signal("TERM");
        self.process.wait().expect(0)
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

fn by_name(name: &str) -> std::io::Result<UnixStream> {
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        UnixStream::connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
    }
    #[cfg(not(target_os = "linux"))]
    Err(std::io::Error::other(name.to_owned()))
}

/// A port that no other test gets: below those that the system chooses, and from a range of the test's own. Whether it
/// is free is seen by connecting: a listener that was opened to find out may stay open in a process that was just
/// forked.
fn free_port(range: u16) -> u16 {
    let first = 10_000 + (std::process::id() % 18_000) as u16 + 1_000 * range;
    let free = |port: &u16| ["127.0.0.1", "::1"].iter().all(|host| TcpStream::connect((*host, *port)).is_err());
    let offset = if ENGINE == "tiny" { 500 } else { 0 };
    (first + offset..first + offset + 500).find(free).expect("one of 500 ports is free")
}

fn has_ipv6() -> bool {
    let found = TcpListener::bind("[::1]:0").is_ok();
    if !found {
        println!("skipped in part: this machine has no IPv6");
    }
    found
}

#[track_caller]
fn refused(setup: &Setup, arguments: &[&str], words: &[&str]) -> Exit {
    let exit = Running::start(command(setup).args(arguments)).wait();
    let told = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect::<Vec<_>>();
    assert!(told.len() == 1 && words.iter().all(|word| told[0].contains(word)), "{words:?} in {exit}");
    assert_eq!(exit.stdout, "", "standard output of {exit}");
    assert!(!setup.folder().join("s.vkog.log").exists(), "a store was made: {exit}");
    exit
}

#[test]
fn several_addresses_serve_one_store_and_are_announced_in_their_order() {
    let setup = Setup::new();
    let server =
        Listening::start(&setup, &["--listen", "127.0.0.1:0", "--listen", "unix:s.sock", "--listen", "127.0.0.2:0"]);
    let schemes: Vec<&str> = server.addresses.iter().map(|address| &address[..8]).collect();
    assert_eq!((server.addresses.len(), schemes), (3, vec!["http://1", "unix:s.s", "http://1"]));
    assert!(server.addresses[2].starts_with("http://127.0.0.2:"), "{:?}", server.addresses);
    for at in 0..3 {
        let value = format!("value {at}");
        assert!(server.ask(&setup, at, "PUT", &value).starts_with("HTTP/1.1 200"), "{at}");
        for other in 0..3 {
            assert!(server.ask(&setup, other, "GET", "").ends_with(&value), "{at} and {other}");
        }
    }
    // A browser may be sent to an address, but not to a socket.
    assert!(server.ask_as(&setup, 0, "vkog.example", "GET", "").starts_with("HTTP/1.1 421"));
    assert!(server.ask_as(&setup, 1, "vkog.example", "GET", "").starts_with("HTTP/1.1 200"));
    let all = server.addresses.join(", ");
    let exit = server.stop();
    assert!(exit.stderr.contains(&format!("serving {all} with")), "{all} in {exit}");
    assert!(!setup.folder().join("s.sock").exists(), "the socket is left");
}

#[test]
fn a_list_of_addresses_comes_from_a_flag_a_variable_or_the_file() {
    let setup = Setup::new();
    let wanted = ["http://127.0.0.1:", "unix:s.sock"];
    let check = |server: Listening| {
        assert!(server.addresses.iter().zip(wanted).all(|(address, wanted)| address.starts_with(wanted)));
        assert_eq!(server.addresses.len(), 2, "{:?}", server.addresses);
        server.stop();
    };
    check(Listening::start(&setup, &["--listen", "127.0.0.1:0,unix:s.sock"]));
    let mut variable = command(&setup);
    check(Listening::of(Running::start(variable.env("VKOG_LISTEN", "127.0.0.1:0,unix:s.sock"))));
    setup.write_config("listen = [\"127.0.0.1:0\", \"unix:s.sock\"]\nsocket-mode = \"0600\"\n");
    check(Listening::start(&setup, &["--config", "vkog.toml"]));
    // A flag takes the place of the whole list.
    let server = Listening::start(&setup, &["--config", "vkog.toml", "--listen", "unix:other.sock"]);
    assert_eq!(server.addresses, ["unix:other.sock"]);
    server.stop();
    let setup = Setup::new();
    for (text, words) in [
        ("listen = []\n", "empty list"),
        ("listen = [\"127.0.0.1:0\", \"nowhere\"]\n", "\"nowhere\": not an address"),
        ("listen = 3110\n", "a list of them"),
    ] {
        setup.write_config(text);
        refused(&setup, &["--config", "vkog.toml"], &["vkog.toml", words]);
    }
}

#[test]
fn localhost_is_served_by_ipv4_and_by_ipv6() {
    if !has_ipv6() {
        return;
    }
    let setup = Setup::new();
    let server = Listening::start(&setup, &["--listen", "localhost:0"]);
    let port = server.addresses[0].rsplit(':').next().expect("a port");
    assert_eq!(server.addresses, [format!("http://127.0.0.1:{port}"), format!("http://[::1]:{port}")]);
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    assert!(server.ask(&setup, 1, "GET", "").ends_with("\r\n\r\nv"));
}

#[test]
fn localhost_is_refused_if_another_process_has_the_port_in_one_family() {
    if !has_ipv6() {
        return;
    }
    for host in ["127.0.0.1", "::1"] {
        let taken = TcpListener::bind((host, free_port(0))).expect("it is free");
        let address = taken.local_addr().expect("it listens");
        for name in ["localhost", "*"] {
            let listen = format!("{name}:{}", address.port());
            let words = [&*listen, "in use", "stop the process"];
            let exit = refused(&Setup::new(), &["--open", "--listen", &listen], &words);
            assert!(name == "*" || exit.stderr.contains(&format!("{listen} ({address})")), "{exit}");
        }
    }
}

#[test]
fn a_port_alone_is_all_interfaces_and_needs_a_token_or_open() {
    let setup = Setup::new();
    for listen in [":0", "*:0", "[::]:0", "0.0.0.0:0", "127.0.0.1:0,:0"] {
        refused(&setup, &["--listen", listen], &["[[access.tokens]]", "--open"]);
    }
    for listen in [":0", "*:0"] {
        let server = Listening::start(&setup, &["--open", "--listen", listen]);
        let port = server.addresses[0].rsplit(':').next().expect("a port");
        assert_eq!(server.addresses[0], format!("http://0.0.0.0:{port}"));
        assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
        if has_ipv6() {
            assert_eq!(server.addresses[1..], [format!("http://[::]:{port}")]);
            assert!(server.ask(&setup, 1, "GET", "").ends_with("\r\n\r\nv"));
        }
        server.stop();
    }
}

#[test]
fn an_address_that_is_given_twice_is_served_once() {
    let setup = Setup::new();
    let port = free_port(1);
    let (one, all) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    for (listen, expected) in [
        (vec![&*one, &*one], vec![format!("http://{one}")]),
        // All interfaces include it, whichever comes first.
        (vec![&*one, &*all], vec![format!("http://{all}")]),
        (vec![&*all, &*one], vec![format!("http://{all}")]),
        (vec!["unix:s.sock", "unix:./s.sock"], vec!["unix:s.sock".to_owned()]),
    ] {
        let listen = listen.join(",");
        let server = Listening::start(&setup, &["--open", "--listen", &listen]);
        assert_eq!(server.addresses, expected, "{listen}");
        server.ask(&setup, 0, "GET", "");
        server.stop();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_abstract_socket_is_served_and_asked_by_its_name() {
    let setup = Setup::new();
    let name = format!("vkog-test-{ENGINE}-{}", std::process::id());
    let listen = format!("unix:@{name}");
    let server = Listening::start(&setup, &["--listen", &format!("{listen},{listen}")]);
    assert_eq!(server.addresses, std::slice::from_ref(&listen));
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    assert_eq!(setup.run(["get", "k", "--url", &listen]).expect(0).stdout, "v");
    refused(&Setup::new(), &["--listen", &listen], &[&listen, "in use", "stop the process"]);
    server.stop();
    assert!(by_name(&name).is_err(), "the name is still there");
}

#[test]
fn the_socket_mode_is_that_of_the_file_whatever_the_umask_is() {
    let setup = Setup::new();
    let mode = || {
        let file = setup.folder().join("s.sock").metadata().expect("there is a socket");
        file.permissions().mode() & 0o777
    };
    for (text, expected) in [("0660", 0o660), ("600", 0o600), ("0777", 0o777)] {
        let mut shell = setup.shell(&format!(
            "umask 027; exec vkog serve --no-plugins --http {ENGINE} -f s.vkog --listen unix:s.sock --socket-mode {text}"
        ));
        let server = Listening::of(Running::start(&mut shell));
        assert_eq!(mode(), expected, "{text}");
        assert!(server.ask(&setup, 0, "OPTIONS", "").starts_with("HTTP/1.1 204"));
        server.stop();
    }
    let setup = Setup::new();
    refused(&setup, &["--listen", "127.0.0.1:0", "--socket-mode", "0660"], &["--socket-mode", "unix:PATH"]);
    let exit = setup.run(["--listen", "unix:s", "--socket-mode", "rw"]).expect(2);
    assert!(exit.one_error().contains("0660"), "{exit}");
}

#[test]
fn an_address_that_cannot_be_used_is_named_with_a_way_out() {
    let setup = Setup::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = listener.local_addr().expect("it listens").to_string();
    for (listen, words) in [
        (&*taken, &[&*taken, "in use", "stop the process"][..]),
        ("192.0.2.1:0", &["192.0.2.1:0", "address of this machine"]),
        ("vkog.invalid:0", &["vkog.invalid:0", "has no address"]),
        #[cfg(target_os = "linux")]
        ("fe80::1:0", &["fe80::1:0", "[fe80::1%eth0]:3110"]),
        ("unix:none/s.sock", &["unix:none/s.sock", "create its folder"]),
    ] {
        // The first address is given back.
        refused(&setup, &["--listen", "unix:s.sock", "--listen", listen], words);
        assert!(!setup.folder().join("s.sock").exists(), "the socket is left after {listen}");
    }
    let long = format!("unix:{}", "s".repeat(200));
    refused(&setup, &["--listen", &long], &["shorter path"]);
    refused(&setup, &["--listen", "https://127.0.0.1:0"], &["--listen", "--tls-cert"]);
}

#[cfg(target_os = "linux")]
#[test]
fn an_ipv6_address_may_name_its_interface() {
    let all = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let link = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|line| line[3] == "20");
    let Some(link) = link else { return println!("skipped: no interface has a link-local address") };
    let groups: Vec<&str> = (0..8).map(|at| &link[0][4 * at..4 * at + 4]).collect();
    let listen = format!("[{}%{}]:0", groups.join(":"), link[5]);
    let setup = Setup::new();
    let server = Listening::start(&setup, &["--open", "--listen", &listen]);
    let index = u32::from_str_radix(link[1], 16).expect("an index");
    assert!(server.addresses[0].contains(&format!("%{index}]:")), "{:?}", server.addresses);
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
}

/// The command of a server that gets its standard input as a passed socket.
fn activated(setup: &Setup, variables: &str, arguments: &str) -> Command {
    setup.shell(&format!(
        "exec 3<&0 0</dev/null; {variables} exec vkog serve --no-plugins --http {ENGINE} -f s.vkog {arguments}"
    ))
}

const PASSED: &str = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web";

#[test]
fn a_passed_socket_takes_the_place_of_the_default_address() {
    let setup = Setup::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = format!("http://{}", listener.local_addr().expect("it listens"));
    // A client that comes before the server does.
    let mut early = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    early.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("it reads");
    let pass = || Stdio::from(OwnedFd::from(listener.try_clone().expect("a socket can be duplicated")));
    let server = Listening::of(Running::start_with_stdin(&mut activated(&setup, PASSED, ""), pass()));
    assert_eq!(server.addresses, std::slice::from_ref(&address));
    let mut reply = String::new();
    early.read_to_string(&mut reply).expect("it answers and closes");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    server.stop();
    // With an address of its own, the server has both; its own may be the same.
    let listen = format!("--listen unix:s.sock --listen {}", address.trim_start_matches("http://"));
    let server = Listening::of(Running::start_with_stdin(&mut activated(&setup, PASSED, &listen), pass()));
    assert_eq!(server.addresses, [address, "unix:s.sock".to_owned()]);
    assert!(server.ask(&setup, 1, "GET", "").ends_with("\r\n\r\nv"));
    server.stop();
}

#[test]
fn a_passed_socket_may_be_non_blocking() {
    let setup = Setup::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is open");
    let server = Listening::of(Running::start_with_stdin(
        &mut activated(&setup, PASSED, ""),
        Stdio::from(OwnedFd::from(listener)),
    ));
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    let exit = server.stop();
    assert!(!exit.stderr.contains("cannot accept"), "{exit}");
}

#[test]
fn the_file_of_a_passed_socket_stays() {
    let setup = Setup::new();
    let path = setup.folder().join("passed.sock");
    let listener = UnixListener::bind(&path).expect("a socket can be made");
    let pass = Stdio::from(OwnedFd::from(listener));
    let listen = "--listen unix:passed.sock";
    let server = Listening::of(Running::start_with_stdin(&mut activated(&setup, PASSED, listen), pass));
    assert_eq!(server.addresses, [format!("unix:{}", path.display())]);
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    server.stop();
    assert!(path.exists(), "the service manager's socket was removed");
}

#[test]
fn a_passed_descriptor_of_a_wrong_kind_is_named() {
    let setup = Setup::new();
    let stream = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let connected = TcpStream::connect(stream.local_addr().expect("it listens")).expect("it listens");
    let datagram = UnixDatagram::unbound().expect("a socket can be made");
    let file = std::fs::File::create(setup.folder().join("file")).expect("a file can be made");
    let kinds: [(OwnedFd, &str); 3] = [
        (connected.into(), "does not listen"),
        (datagram.into(), "not a stream socket"),
        (file.into(), "not a socket"),
    ];
    for (descriptor, words) in kinds {
        let exit = Running::start_with_stdin(&mut activated(&setup, PASSED, ""), Stdio::from(descriptor)).wait();
        let exit = exit.expect(1);
        for word in ["file descriptor 3 (web)", words, "ListenStream="] {
            assert!(exit.stderr.contains(word), "{word} in {exit}");
        }
    }
    for (variables, words) in [
        ("LISTEN_PID=$$ LISTEN_FDS=many", "LISTEN_FDS"),
        ("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a:b", "LISTEN_FDNAMES"),
        ("LISTEN_PID=$$ LISTEN_FDS=40", "LISTEN_FDS"),
    ] {
        let exit = Running::start(&mut activated(&setup, variables, "")).wait().expect(1);
        assert!(exit.stderr.contains(words), "{words} in {exit}");
    }
    // They are for another process.
    let mut command = activated(&setup, "LISTEN_PID=1 LISTEN_FDS=1", "--listen unix:s.sock");
    Listening::of(Running::start(&mut command)).stop();
}

#[test]
fn a_server_that_systemd_activates_serves_all_its_sockets() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        return println!("skipped: there is no systemd-socket-activate");
    }
    let setup = Setup::new();
    let at = |name: &str| setup.folder().join(name);
    let mut manager = setup.prepared(Command::new("systemd-socket-activate"));
    manager.args(["--fdname=one:two", "-l"]).arg(at("one.sock")).arg("-l").arg(at("two.sock"));
    manager.arg(vkog_tests::artefacts().vkog());
    manager.args(["serve", "--no-plugins", "--http", ENGINE, "-f", "s.vkog"]);
    let manager = Running::start(&mut manager);
    assert!(manager.stderr.wait_for(|text| text.contains("two.sock")), "{}", manager.stderr.text());
    // The first client starts the server, and waits until the store is loaded.
    let mut first = UnixStream::connect(at("two.sock")).expect("it listens");
    first.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut reply = String::new();
    first.read_to_string(&mut reply).expect("it answers and closes");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let server = Listening::of(manager);
    let expected = ["one.sock", "two.sock"].map(|name| format!("unix:{}", at(name).display()));
    assert_eq!(server.addresses, expected);
    assert!(server.ask(&setup, 0, "PUT", "v").starts_with("HTTP/1.1 200"));
    assert!(server.ask(&setup, 1, "GET", "").ends_with("\r\n\r\nv"));
    server.stop();
}
