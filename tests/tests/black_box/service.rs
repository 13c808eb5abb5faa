//! A service manager is notified when the server is ready, reloads and stops.
//!
//! Provoked with a socket of the test instead of systemd's.

#![cfg(unix)]

use std::os::unix::net::UnixDatagram;

use vkog_tests::{DEADLINE, Setup, bytes};

#[test]
fn systemd_is_notified_when_the_server_is_ready_reloads_and_stops() {
    let setup = Setup::new().load(bytes());
    let path = setup.folder().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket can be made");
    socket.set_read_timeout(Some(DEADLINE)).expect("it is no zero");
    let told = || {
        let mut datagram = [0; 200];
        let len = socket.recv(&mut datagram).expect("a notification arrives");
        String::from_utf8_lossy(&datagram[..len]).into_owned()
    };
    let server = setup.env("NOTIFY_SOCKET", path).start();
    assert_eq!(told(), "READY=1\n");
    server.post("k", "v").expect(200);
    server.signal("HUP");
    let reloading = told();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(since.is_some_and(|since| since.trim_end().parse::<u64>().is_ok()), "{reloading:?}");
    assert_eq!(told(), "READY=1\n");
    server.stop().expect(0);
    assert_eq!(told(), "STOPPING=1\n");
}
