//! A TCP proxy in front of a member, which can lose what the member answers, or cut everything.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vkog_tests::Etcd;

/// The treatment of bytes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass,
    /// Requests arrive, responses do not.
    LoseResponses,
    /// Nothing arrives.
    LoseAll,
}

/// A proxy.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    mode: AtomicU8,
    stopped: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Starts a proxy in front of the first member.
    pub(crate) fn start(etcd: &Etcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let endpoint = listener.local_addr().expect("it listens").to_string();
        let shared = Arc::new(Shared {
            target: etcd.addresses()[0].clone(),
            mode: AtomicU8::new(Mode::Pass as u8),
            stopped: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stopped.load(Ordering::Acquire) {
                    return;
                }
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(&accepting.target)) {
                    accepting.connect(client, server);
                }
            }
        });
        Self { endpoint, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("etcd://{}/vkog", self.endpoint)
    }

    /// Changes what happens. Connections that lost something are cut when bytes pass again.
    pub(crate) fn set(&self, mode: Mode) {
        let mut open = self.shared.open.lock().expect("no thread panics with it");
        self.shared.mode.store(mode as u8, Ordering::Release);
        if mode == Mode::Pass {
            open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        }
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let copy = |stream: &TcpStream| stream.try_clone().expect("it can be cloned");
        self.open.lock().expect("no thread panics with it").extend([copy(&client), copy(&server)]);
        for (from, to, is_response) in [(copy(&client), copy(&server), false), (server, client, true)] {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.forward(from, to, is_response));
        }
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream, is_response: bool) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mode = self.mode.load(Ordering::Acquire);
            let lost = mode == Mode::LoseAll as u8 || (is_response && mode == Mode::LoseResponses as u8);
            if !lost && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.set(Mode::Pass);
        let _ = TcpStream::connect(&self.endpoint);
    }
}
