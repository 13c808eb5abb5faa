//! Finds the sockets of the connections, which tiny_http does not expose: Linux lists them among the open files of the
//! process.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use socket2::SockRef;

use super::body::{BodyReader, is_unframed};
use super::wire;
use crate::http::{BodyLength, Listener};

/// How long a connection lingers after its client has sent nothing more, and at most. A client may send its whole request
/// before it reads the last response, and never gets it if the connection ends with bytes unread.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: Duration = Duration::from_secs(30);
/// The pause after which tiny_http is left to read the rest of an unwanted body, so that the client gets its response.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How much is read of a lingering connection at once.
const DISCARD_MAX: usize = 1 << 20;
/// Maximum number of lingering connections.
const LINGERING_MAX: usize = 64;
/// How long a closed connection is remembered. By then none of its requests is queued.
const CLOSED_FOR: Duration = LINGER_MAX.saturating_add(Duration::from_secs(10));

/// Sets the options that connections inherit from the listening socket.
pub(super) fn prepare(listener: &Listener, timeout: Duration) -> io::Result<()> {
    let socket = match listener {
        Listener::Tcp(listener) | Listener::Tls(listener) => {
            let socket = SockRef::from(listener);
            // tiny_http writes a response of over 1 KiB in two pieces, and without this the second waits for the client's
            // delayed acknowledgement of the first: 44 ms.
            socket.set_tcp_nodelay(true)?;
            socket
        }
        #[cfg(unix)]
        Listener::Unix(listener) => SockRef::from(listener),
    };
    // They also apply to the listening socket; the supervisor connects to it more often than that.
    if cfg!(target_os = "linux") {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Whether several more files can be opened: a connection needs two.
pub(super) fn has_room() -> bool {
    let files: Vec<_> = (0..8).map(|_| File::open(if cfg!(windows) { "NUL" } else { "/dev/null" })).collect();
    files.iter().all(Result::is_ok)
}

/// Reads an unwanted body while it arrives without a long pause. Many clients read no response before they have sent the whole
/// request. Returns whether the end of the body was reached, so that the connection can stay open.
pub(super) fn drain(request: &mut tiny_http::Request, length: BodyLength, port: u16) -> bool {
    let Some((stream, _)) = request.remote_addr().and_then(|&client| find(client, port)) else { return false };
    // Where tiny_http does not know the end of the body, it takes the rest for another request. It then gives up the
    // connection, which is reset by the next bytes that arrive, and the client may never see its response.
    let is_unframed = is_unframed(request);
    let pause = if wire::holds_a_body(request) && !is_unframed { PAUSE_MAX } else { LINGER };
    let (began, mut received, mut piece) = (Instant::now(), 0, [0; 16 << 10]);
    if is_unframed && length == BodyLength::Chunked {
        // A part of a chunk may have been read, so the decoder could not find the start of the next one.
        let mut is_over = false;
        while began.elapsed() < LINGER_MAX && is_sending(&stream, if is_over { PAUSE_MAX } else { LINGER }) {
            match request.as_reader().read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
                Ok(length) => is_over = piece[..length].ends_with(b"0\r\n\r\n"),
            }
        }
        return false;
    }
    let mut body = BodyReader::new(request, length);
    while length != BodyLength::Known(received) && began.elapsed() < LINGER_MAX && is_sending(&stream, pause) {
        match body.read(&mut piece) {
            Ok(0) => return length == BodyLength::Chunked && is_open(request, port),
            Ok(length) => received += length as u64,
            Err(_) => return false,
        }
    }
    length == BodyLength::Known(received)
}

/// Whether a client sends within this time.
fn is_sending(stream: &TcpStream, pause: Duration) -> bool {
    let began = Instant::now();
    loop {
        match peek(stream) {
            Some(length) => return length > 0,
            None if began.elapsed() > pause => return false,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Whether a request's client still has its side of the connection open, as far as is known.
pub(super) fn is_open(request: &tiny_http::Request, port: u16) -> bool {
    let Some((stream, socket)) = request.remote_addr().and_then(|&client| find(client, port)) else { return false };
    // tiny_http itself may have shut down the reading side, after the body of a last request.
    peek(&stream) != Some(0) || is_established(socket)
}

/// Whether a socket's connection is established, by Linux's table (proc_pid_net(5): the fourth column is the state, 01 for an
/// established connection, and the tenth the inode of the socket).
fn is_established(socket: u64) -> bool {
    let socket = socket.to_string();
    let tables =
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let mut rows = tables.iter().flat_map(|table| table.lines()).map(|row| row.split_whitespace());
    rows.any(|mut row| row.nth(3) == Some("01") && row.nth(5) == Some(socket.as_str()))
}

/// How many bytes can be read, at most one: `None` where nothing has arrived yet, 0 at the end.
fn peek(stream: &TcpStream) -> Option<usize> {
    receive(stream, &mut [0; 1], true)
}

/// Reads what has arrived, and leaves it where it is if `peek` says so: `None` where nothing has arrived yet, 0 at the end.
fn receive(stream: &TcpStream, into: &mut [u8], peek: bool) -> Option<usize> {
    #[cfg(unix)]
    {
        use rustix::net::{RecvFlags, recv};
        let peek = if peek { RecvFlags::PEEK } else { RecvFlags::empty() };
        match recv(stream, into, peek | RecvFlags::DONTWAIT) {
            Ok((_, length)) => Some(length),
            Err(rustix::io::Errno::AGAIN) => None,
            Err(_) => Some(0),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (stream, into, peek);
        Some(0)
    }
}

/// The listening socket of a tiny_http server. The server's accepting thread closes it when it ends.
pub(super) struct Accepting {
    #[cfg(target_os = "linux")]
    file: Option<(String, u64)>,
}

impl Accepting {
    pub(super) fn of(listener: &tiny_http::Listener) -> Self {
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let number = match listener {
                tiny_http::Listener::Tcp(listener) => listener.as_raw_fd(),
                tiny_http::Listener::Unix(listener) => listener.as_raw_fd(),
            };
            let path = format!("/proc/self/fd/{number}");
            let inode = inode(&path);
            Self { file: inode.map(|inode| (path, inode)) }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = listener;
            Self {}
        }
    }

    /// Whether the accepting thread still runs, as far as is known.
    pub(super) fn lasts(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            // Without /proc it is not known.
            self.file.as_ref().is_none_or(|(path, ours)| inode(path) == Some(*ours))
        }
        #[cfg(not(target_os = "linux"))]
        true
    }
}

/// The inode of an open file's socket.
#[cfg(target_os = "linux")]
fn inode(path: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

/// The connections that are being closed.
pub(super) struct Closing {
    /// The port of the listening socket.
    port: u16,
    /// Whether any of them may still have queued requests.
    any: AtomicBool,
    closed: Mutex<HashMap<SocketAddr, (u64, Instant)>>,
    lingering: Mutex<Vec<Lingering>>,
}

/// A connection whose last response has been sent, or is being sent.
struct Lingering {
    stream: TcpStream,
    began: Instant,
    received: Instant,
}

impl Lingering {
    /// Discards a part of what the client has sent since. Returns whether the connection lingers on.
    fn discard(&mut self, piece: &mut [u8]) -> bool {
        if receive(&self.stream, piece, false).is_some_and(|length| length > 0) {
            self.received = Instant::now();
        }
        self.received.elapsed() < LINGER && self.began.elapsed() < LINGER_MAX
    }
}

/// Shuts down the sending side of a connection when it is dropped.
pub(super) struct ShutdownGuard(TcpStream);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        // This fails if the client has closed the connection.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Closing {
    /// Connections to the listening socket at a port.
    pub(super) fn new(port: u16) -> Self {
        Self { port, any: AtomicBool::new(false), closed: Mutex::default(), lingering: Mutex::default() }
    }

    /// Whether a client's connection is being closed. A later client may have the same address.
    pub(super) fn includes(&self, client: SocketAddr) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut closed = self.closed.lock();
        let Some(&(socket, _)) = closed.get(&client) else { return false };
        let is_the_same = find(client, self.port).is_none_or(|(_, now)| now == socket);
        if !is_the_same {
            closed.remove(&client);
        }
        is_the_same
    }

    /// Begins to close a connection: it ends when its client has sent nothing for [`LINGER`], or after [`LINGER_MAX`]. Returns
    /// `None` where the socket is not found.
    pub(super) fn begin(&self, client: SocketAddr) -> Option<ShutdownGuard> {
        let (stream, socket) = find(client, self.port)?;
        let lingers = stream.try_clone().ok()?;
        self.closed.lock().insert(client, (socket, Instant::now()));
        self.any.store(true, Ordering::Release);
        let mut lingering = self.lingering.lock();
        if lingering.len() == LINGERING_MAX {
            end(&lingering.remove(0).stream);
        }
        let now = Instant::now();
        lingering.push(Lingering { stream: lingers, began: now, received: now });
        Some(ShutdownGuard(stream))
    }

    /// Reads what the clients of lingering connections still send, and closes those that have lingered long enough.
    pub(super) fn tend(&self) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut piece = vec![0; DISCARD_MAX];
        self.lingering.lock().retain_mut(|connection| {
            let lingers = connection.discard(&mut piece);
            if !lingers {
                end(&connection.stream);
            }
            lingers
        });
        let mut closed = self.closed.lock();
        closed.retain(|_, (_, since)| since.elapsed() < CLOSED_FOR);
        self.any.store(!closed.is_empty(), Ordering::Release);
    }
}

fn end(stream: &TcpStream) {
    // This fails if the client has closed the connection.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Finds a client's socket among those of the listening socket at `port`: a client may have connections from the same port to
/// several. Returns a new handle to it, and its inode.
#[cfg(target_os = "linux")]
fn find(client: SocketAddr, port: u16) -> Option<(TcpStream, u64)> {
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::MetadataExt;

    std::fs::read_dir("/proc/self/fd").ok()?.filter_map(Result::ok).find_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        if !std::fs::read_link(entry.path()).ok()?.to_string_lossy().starts_with("socket:") {
            return None;
        }
        // SAFETY: the borrowed descriptor lives only for the call that duplicates it. If the file was closed meanwhile, the
        // call fails or duplicates another file of this process, whose peer is checked below like any other.
        let handle = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().ok()?;
        let socket = SockRef::from(&handle);
        let is_the_clients = socket.peer_addr().ok()?.as_socket() == Some(client)
            && socket.local_addr().ok()?.as_socket()?.port() == port;
        let file = File::from(handle);
        let socket = file.metadata().ok()?.ino();
        is_the_clients.then(|| (TcpStream::from(std::os::fd::OwnedFd::from(file)), socket))
    })
}

#[cfg(not(target_os = "linux"))]
fn find(_: SocketAddr, _: u16) -> Option<(TcpStream, u64)> {
    None
}
