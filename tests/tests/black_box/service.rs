//! A service manager is notified when the server is ready, reloads and stops, of the progress of a long start or stop, and by a
//! watchdog while the HTTP engine responds.
//!
//! Provoked with a socket of the test instead of systemd's, and with plugins that hang.

#![cfg(unix)]

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use vkog_tests::{DEADLINE, ENGINES, Running, Setup, artefacts, bytes};

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn of(setup: Setup) -> (Self, Setup) {
        let path = setup.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be made");
        socket.set_read_timeout(Some(DEADLINE)).expect("it is no zero");
        (Self(socket), setup.env("NOTIFY_SOCKET", path))
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut datagram = [0; 400];
        let len = self.0.recv(&mut datagram).expect("a notification arrives");
        String::from_utf8_lossy(&datagram[..len]).into_owned()
    }

    /// Returns the next notification that is not one of progress.
    #[track_caller]
    fn event(&self) -> String {
        loop {
            let next = self.next();
            if !next.starts_with("STATUS=") {
                return next;
            }
        }
    }

    /// Waits for a notification with these words.
    #[track_caller]
    fn until(&self, words: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let next = self.next();
            if words.iter().all(|word| next.contains(word)) {
                return;
            }
            assert!(Instant::now() < deadline, "no {words:?}, but {next:?}");
        }
    }
}

#[test]
fn systemd_is_notified_when_the_server_is_ready_reloads_and_stops() {
    let (manager, setup) = Manager::of(Setup::new().load(bytes()));
    let server = setup.start();
    let ready = format!("READY=1\nSTATUS=serving http://{} with hyper\n", server.address());
    assert_eq!(manager.event(), ready);
    server.post("k", "v").expect(200);
    server.signal("HUP");
    let reloading = manager.event();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(since.is_some_and(|since| since.trim_end().parse::<u64>().is_ok()), "{reloading:?}");
    assert_eq!(manager.event(), ready);
    server.stop().expect(0);
    assert_eq!(manager.event(), "STOPPING=1\n");
}

/// Starts a server whose plugin hangs in this function.
fn hanging(place: &str) -> Setup {
    let setup = Setup::new().load(artefacts().library("hangs"));
    setup.config(format!("[plugins.hangs]\nwhere = {place:?}\n"))
}

#[test]
fn systemd_learns_what_a_start_waits_for_and_lets_it_wait() {
    let setup = Setup::new().load(artefacts().library("vkog-faults")).shared_store("faults://entries");
    let (manager, setup) = Manager::of(setup.config("[plugins.faults]\ngate = \"gate\"\n"));
    let starting = std::thread::spawn({
        let setup = setup.clone();
        move || setup.start()
    });
    for _ in 0..2 {
        let status = "STATUS=starting: waiting for faults://entries: the gate is closed";
        manager.until(&[status, "EXTEND_TIMEOUT_USEC="]);
    }
    std::fs::write(setup.folder().join("gate"), "").expect("the folder is ours");
    starting.join().expect("it starts").stop().expect(0);
}

#[test]
fn a_start_extends_its_timeout_only_when_it_makes_progress() {
    let (manager, setup) = Manager::of(hanging("start"));
    setup.write_config("[plugins.hangs]\nwhere = \"start\"\n");
    let mut command = setup.vkog();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config", "vkog.toml", "--file"]).arg(setup.store_file());
    command.arg("--plugin-dir").arg(setup.plugin_folder());
    let starting = Running::start(&mut command);
    let status = "STATUS=starting: starting plugins, 0 entries loaded\n";
    let extended = format!("{status}EXTEND_TIMEOUT_USEC=60000000\n");
    let deadline = Instant::now() + DEADLINE;
    while manager.next() != extended {
        assert!(Instant::now() < deadline, "no extension: {}", starting.stderr.text());
    }
    // Nothing changes from now on.
    assert_eq!((manager.next(), manager.next()), (status.to_owned(), status.to_owned()));
    starting.signal("TERM");
    starting.wait().expect(0);
    assert_eq!(manager.event(), "STOPPING=1\n");
}

#[test]
fn a_stop_that_takes_long_extends_its_timeout() {
    let (manager, setup) = Manager::of(hanging("drop"));
    let server = setup.start();
    assert!(manager.event().starts_with("READY=1\n"));
    server.signal("TERM");
    assert_eq!(manager.event(), "STOPPING=1\n");
    assert_eq!(manager.next(), "STATUS=stopping: completing requests\nEXTEND_TIMEOUT_USEC=60000000\n");
    server.wait().expect(0);
}

#[test]
fn the_watchdog_is_notified_only_while_the_http_engine_responds() {
    for engine in ENGINES {
        let (manager, setup) = Manager::of(hanging("before_put"));
        let setup = setup.args(["--http", engine]).env("WATCHDOG_USEC", "200000");
        let server = setup.start();
        manager.until(&["READY=1"]);
        manager.until(&["WATCHDOG=1"]);
        let mut wire = server.wire();
        wire.send("PUT /k/hang HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nv");
        server.logs(&["before_put hangs"]);
        if engine == "hyper" {
            // One event loop hangs, and its other connections with it.
            server.logs(&["the HTTP engine has not responded for 100ms"]);
            // Those before the hang are read, and no further one arrives.
            manager.0.set_read_timeout(Some(Duration::from_secs(1))).expect("it is no zero");
            while manager.0.recv(&mut [0; 400]).is_ok() {}
        } else {
            // Another worker takes the place of the one that hangs.
            for _ in 0..3 {
                manager.until(&["WATCHDOG=1"]);
            }
        }
        server.signal("TERM");
        server.logs(&["stopping"]);
        server.signal("TERM");
        server.wait().expect(1);
    }
}
