//! Distributes the connections over the event loops. A connection from this machine follows its client: where one event loop
//! has all connections of a client's thread, both come to run on the same core, and neither has to be woken from another
//! core, which costs more than the rest of a request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// Maximum number of connections by which an event loop may exceed another one because their clients run on its core.
const AHEAD_MAX: usize = 64;
/// A connection compares its client's core with its own once in this number of reads.
const CHECK_EVERY: u32 = 64;
/// A connection migrates after this number of mismatches in a row.
const MISMATCHES_MAX: u32 = 2;
/// No event loop, and no core.
const NONE: usize = usize::MAX;

/// A handle to an event loop.
pub(super) struct LoopHandle {
    pub(super) handle: Handle,
    connections: Arc<AtomicUsize>,
    /// The core on which the loop ran when a connection last checked.
    core: AtomicUsize,
}

/// All event loops of the server.
pub(super) struct EventLoops(Vec<LoopHandle>);

/// Counts one until it is dropped.
pub(super) struct CountGuard(Arc<AtomicUsize>);

impl CountGuard {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl LoopHandle {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, connections: Arc::default(), core: AtomicUsize::new(NONE) }
    }

    /// Counts one more connection of this loop.
    pub(super) fn count(&self) -> CountGuard {
        CountGuard::new(&self.connections)
    }
}

impl EventLoops {
    pub(super) fn new(event_loops: Vec<LoopHandle>) -> Self {
        Self(event_loops)
    }

    /// Returns the loop with this index.
    pub(super) fn at(&self, at: usize) -> &LoopHandle {
        &self.0[at]
    }

    /// Chooses the loop for a new connection, by the core of its client if that is known.
    pub(super) fn choose(&self, core: Option<usize>) -> usize {
        choose(&self.counts(), core)
    }

    fn counts(&self) -> SmallVec<[usize; 16]> {
        self.0.iter().map(|each| each.connections.load(Relaxed)).collect()
    }

    /// Chooses another loop for a connection of loop `at`, which runs on core `here`, where its client runs on another core.
    fn follow(&self, at: usize, here: usize, core: usize) -> Option<usize> {
        self.0[at].core.store(here, Relaxed);
        let cores: SmallVec<[usize; 16]> = self.0.iter().map(|each| each.core.load(Relaxed)).collect();
        follow(&self.counts(), &cores, at, core)
    }
}

/// The loop with the fewest connections, or the one for the client's core while that is not too far ahead.
fn choose(counts: &[usize], core: Option<usize>) -> usize {
    let fewest = fewest(counts);
    let near = core.map(|core| core % counts.len());
    near.filter(|near| counts[*near] < counts[fewest] + AHEAD_MAX).unwrap_or(fewest)
}

/// The loop that runs on the client's core, while it is not too far ahead. If no loop runs there, one with fewer connections.
fn follow(counts: &[usize], cores: &[usize], at: usize, core: usize) -> Option<usize> {
    let near = (0..cores.len()).find(|other| cores[*other] == core);
    match near {
        Some(near) => (counts[near] < counts[at] + AHEAD_MAX).then_some(near),
        None => Some(fewest(counts)).filter(|fewest| counts[*fewest] + 1 < counts[at]),
    }
}

fn fewest(counts: &[usize]) -> usize {
    (0..counts.len()).min_by_key(|at| counts[*at]).unwrap_or_default()
}

/// The core of a client on this machine.
pub(super) fn client_core(stream: &std::net::TcpStream, client: SocketAddr) -> Option<usize> {
    if is_local(client) { incoming_core(stream) } else { None }
}

fn is_local(client: SocketAddr) -> bool {
    client.ip().to_canonical().is_loopback()
}

/// The core that received the last packet of a connection: on the loopback interface, the client's core.
#[cfg(target_os = "linux")]
fn incoming_core(stream: impl std::os::fd::AsFd) -> Option<usize> {
    rustix::net::sockopt::socket_incoming_cpu(stream).ok().map(|core| core as usize)
}

#[cfg(not(target_os = "linux"))]
fn incoming_core<S>(_: S) -> Option<usize> {
    None
}

#[cfg(target_os = "linux")]
fn current_core() -> usize {
    rustix::thread::sched_getcpu()
}

#[cfg(not(target_os = "linux"))]
fn current_core() -> usize {
    NONE
}

/// The request of a connection to be moved to another event loop.
pub(super) struct Migration(AtomicUsize);

impl Migration {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(NONE)))
    }

    /// Takes the index of the loop to move to, if one was requested.
    pub(super) fn take(&self) -> Option<usize> {
        match self.0.load(Relaxed) {
            NONE => None,
            to => {
                self.0.store(NONE, Relaxed);
                Some(to)
            }
        }
    }
}

/// A stream that requests its migration when its client runs on the core of another event loop, and continues there.
pub(super) struct MigratingStream {
    /// `None` after the registration with another event loop failed.
    stream: Option<TcpStream>,
    event_loops: Arc<EventLoops>,
    migration: Arc<Migration>,
    /// The index of the event loop.
    at: usize,
    /// Whether the stream has moved, and still has to be registered with the reactor of its new loop.
    has_moved: bool,
    /// The number of reads; `None` where the client is on another machine.
    reads: Option<u32>,
    mismatches: u32,
}

impl MigratingStream {
    /// A stream of the event loop `at`.
    pub(super) fn new(
        stream: TcpStream,
        client: SocketAddr,
        event_loops: Arc<EventLoops>,
        migration: Arc<Migration>,
        at: usize,
    ) -> Self {
        let reads = is_local(client).then_some(0);
        Self { stream: Some(stream), event_loops, migration, at, has_moved: false, reads, mismatches: 0 }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Registers the stream with the reactor of its new event loop.
    fn reregister(&mut self) -> io::Result<()> {
        self.has_moved = false;
        let stream = self.stream.take().map(|stream| stream.into_std().and_then(TcpStream::from_std)).transpose()?;
        self.stream = stream;
        Ok(())
    }

    /// Compares the client's core with that of the event loop.
    fn check_core(&mut self) {
        let Some(core) = self.stream.as_ref().and_then(incoming_core) else { return };
        let here = current_core();
        if core == here {
            self.mismatches = 0;
            return;
        }
        self.mismatches += 1;
        if self.mismatches < MISMATCHES_MAX {
            return;
        }
        self.mismatches = 0;
        if let Some(to) = self.event_loops.follow(self.at, here, core) {
            self.at = to;
            self.has_moved = true;
            self.migration.0.store(to, Relaxed);
        }
    }
}

impl AsyncRead for MigratingStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_moved && self.migration.0.load(Relaxed) == NONE {
            self.reregister()?;
        }
        let read = self.stream()?.poll_read(context, into);
        if read.is_ready()
            && let Some(reads) = &mut self.reads
        {
            *reads = reads.wrapping_add(1);
            if reads.is_multiple_of(CHECK_EVERY) {
                self.check_core();
            }
        }
        read
    }
}

impl AsyncWrite for MigratingStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn event_loop() -> Runtime {
        Builder::new_current_thread().enable_all().build().expect("an event loop can be made")
    }

    #[test]
    fn a_connection_that_migrates_continues_on_the_other_event_loop() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let mut client = std::net::TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (stream, address) = listener.accept().expect("a client has come");
        stream.set_nonblocking(true).expect("it is a socket");
        let (first, second) = (event_loop(), event_loop());
        let mut moving = first.block_on(async {
            let stream = TcpStream::from_std(stream).expect("it is not blocking");
            MigratingStream::new(stream, address, Arc::new(EventLoops::new(Vec::new())), Migration::new(), 0)
        });
        let mut got = [0; 3];
        client.write_all(b"one").expect("it is open");
        first.block_on(moving.read_exact(&mut got)).expect("it came");
        moving.has_moved = true;
        // The first loop's registration ends with that loop.
        let writer = std::thread::spawn(move || {
            client.write_all(b"two").expect("it is open");
            let mut answer = [0; 5];
            client.read_exact(&mut answer).expect("a response");
            answer
        });
        second.block_on(moving.read_exact(&mut got)).expect("it came");
        drop(first);
        second.block_on(moving.write_all(b"three")).expect("it is open");
        assert_eq!((&got, &writer.join().expect("no panic")), (b"two", b"three"));
    }

    #[test]
    fn a_connection_starts_on_its_clients_core_unless_that_loop_is_far_ahead() {
        assert_eq!(choose(&[3, 1, 2], None), 1);
        assert_eq!([0, 1, 5].map(|core| choose(&[3, 1, 2], Some(core))), [0, 1, 2]);
        assert_eq!(choose(&[AHEAD_MAX, 1], Some(0)), 0);
        assert_eq!(choose(&[AHEAD_MAX + 1, 1], Some(0)), 1);
    }

    #[test]
    fn a_connection_follows_its_client_or_spreads() {
        // To the loop on the client's core, even if it has more connections.
        assert_eq!(follow(&[3, 9], &[0, 1], 0, 1), Some(1));
        assert_eq!(follow(&[3, 3 + AHEAD_MAX], &[0, 1], 0, 1), None);
        // No loop runs on that core: to one with fewer connections, until they are even.
        assert_eq!(follow(&[3, 1], &[0, NONE], 0, 1), Some(1));
        assert_eq!(follow(&[2, 1], &[0, NONE], 0, 1), None);
        assert_eq!(follow(&[1, 9], &[0, 2], 0, 1), None);
    }
}
