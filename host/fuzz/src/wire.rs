//! Bytes that a client sends on a connection to the hyper engine.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

use vkog::http::{Listener, HttpServer};

use crate::server;

/// Longer than every timeout of the server, in a program that a fuzzer slows down.
const DEADLINE: Duration = Duration::from_secs(10);

static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    // It serves until the process ends.
    let api = server::start();
    let engine = HttpServer::hyper(vec![Listener::Tcp(listener)], None, api.connections(), api);
    std::mem::forget(engine.expect("it serves"));
    address
});

/// Sends it, hears all answers, and asks whether the server still lives.
pub fn check(data: &[u8]) {
    let heard = talk(data);
    let text = String::from_utf8_lossy(&heard);
    // Over HTTP/2, the first frame is SETTINGS.
    let is_http2 = data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") && heard.get(3) == Some(&4);
    assert!(heard.is_empty() || text.starts_with("HTTP/1.") || is_http2, "{text}");
    assert!(!text.contains("HTTP/1.1 500"), "{text}");
    let alive = talk(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(alive.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&alive));
}

fn talk(data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(*ADDRESS).expect("it accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time can be set");
    // It may have answered and closed before it has heard all.
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert!(error.kind() == std::io::ErrorKind::ConnectionReset, "no end: {error}");
    }
    heard
}
