//! Which loop a connection is at. One from this machine follows its client: where all connections of a client's thread are
//! at one loop, both come to run on the same core, and neither has to be woken from another one, which costs more than the
//! rest of a request.

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

/// So many connections more than another's a loop may have because their clients run on its core.
const AHEAD_MAX: usize = 64;
/// A connection looks for its client once in so many reads.
const LOOK_EVERY: u32 = 64;
/// It moves when it has found its client elsewhere so many times in a row.
const STRAYS_MAX: u32 = 2;
const NOWHERE: usize = usize::MAX;

/// A loop, as seen by those that bring it connections.
pub(super) struct Place {
    pub(super) handle: Handle,
    connections: Arc<AtomicUsize>,
    /// The core on which it ran last, as far as anybody has looked.
    core: AtomicUsize,
}

/// All loops.
pub(super) struct Places(Vec<Place>);

/// Counts a connection as long as it lives.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Place {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, connections: Arc::default(), core: AtomicUsize::new(NOWHERE) }
    }

    /// One connection more.
    pub(super) fn count(&self) -> Counted {
        Counted::new(&self.connections)
    }
}

impl Places {
    pub(super) fn new(places: Vec<Place>) -> Self {
        Self(places)
    }

    pub(super) fn at(&self, at: usize) -> &Place {
        &self.0[at]
    }

    /// How many connections all loops have.
    pub(super) fn connections(&self) -> usize {
        self.counts().iter().sum()
    }

    /// Which loop a new connection goes to, whose client is on this core, if anybody knows.
    pub(super) fn choose(&self, core: Option<usize>) -> usize {
        first(&self.counts(), core)
    }

    fn counts(&self) -> SmallVec<[usize; 16]> {
        self.0.iter().map(|place| place.connections.load(Relaxed)).collect()
    }

    /// Where a connection goes that is at this loop, on this core, and whose client is on another one.
    fn follow(&self, at: usize, here: usize, core: usize) -> Option<usize> {
        self.0[at].core.store(here, Relaxed);
        let cores: SmallVec<[usize; 16]> = self.0.iter().map(|place| place.core.load(Relaxed)).collect();
        next(&self.counts(), &cores, at, core)
    }
}

/// The loop with the fewest connections, or the one for the client's core while that is not far ahead.
fn first(counts: &[usize], core: Option<usize>) -> usize {
    let fewest = fewest(counts);
    let near = core.map(|core| core % counts.len());
    near.filter(|near| counts[*near] < counts[fewest] + AHEAD_MAX).unwrap_or(fewest)
}

/// The loop that runs on the client's core, while that is not far ahead; or one that has fewer, if none does.
fn next(counts: &[usize], cores: &[usize], at: usize, core: usize) -> Option<usize> {
    let near = (0..cores.len()).find(|other| cores[*other] == core);
    match near {
        Some(near) => (counts[near] < counts[at] + AHEAD_MAX).then_some(near),
        None => Some(fewest(counts)).filter(|fewest| counts[*fewest] + 1 < counts[at]),
    }
}

fn fewest(counts: &[usize]) -> usize {
    (0..counts.len()).min_by_key(|at| counts[*at]).unwrap_or_default()
}

/// The core that a client runs on, if it runs on this machine.
pub(super) fn core_of_client(stream: &std::net::TcpStream, client: SocketAddr) -> Option<usize> {
    if is_near(client) { core_of(stream) } else { None }
}

fn is_near(client: SocketAddr) -> bool {
    client.ip().to_canonical().is_loopback()
}

/// The core on which the last packet of a connection was taken in: on the loopback interface, that of the client.
#[cfg(target_os = "linux")]
fn core_of(stream: impl std::os::fd::AsFd) -> Option<usize> {
    rustix::net::sockopt::socket_incoming_cpu(stream).ok().map(|core| core as usize)
}

#[cfg(not(target_os = "linux"))]
fn core_of<S>(_: S) -> Option<usize> {
    None
}

#[cfg(target_os = "linux")]
fn core_here() -> usize {
    rustix::thread::sched_getcpu()
}

#[cfg(not(target_os = "linux"))]
fn core_here() -> usize {
    NOWHERE
}

/// Where a connection is to go on, if not where it is.
pub(super) struct Route(AtomicUsize);

impl Route {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(NOWHERE)))
    }

    /// The loop to go to, once.
    pub(super) fn take(&self) -> Option<usize> {
        match self.0.load(Relaxed) {
            NOWHERE => None,
            to => {
                self.0.store(NOWHERE, Relaxed);
                Some(to)
            }
        }
    }
}

/// A connection that says when it would be better off at another loop, and goes on there.
pub(super) struct Follower {
    /// None after it failed to go on.
    stream: Option<TcpStream>,
    places: Arc<Places>,
    route: Arc<Route>,
    at: usize,
    /// It has come to another loop, whose reactor does not know it yet.
    arrives: bool,
    /// None where the client is on another machine.
    reads: Option<u32>,
    strays: u32,
}

impl Follower {
    /// One that is at this loop.
    pub(super) fn new(
        stream: TcpStream,
        client: SocketAddr,
        places: Arc<Places>,
        route: Arc<Route>,
        at: usize,
    ) -> Self {
        let reads = is_near(client).then_some(0);
        Self { stream: Some(stream), places, route, at, arrives: false, reads, strays: 0 }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Tells the reactor of the loop that this is at.
    fn arrive(&mut self) -> io::Result<()> {
        self.arrives = false;
        let stream = self.stream.take().map(|stream| stream.into_std().and_then(TcpStream::from_std)).transpose()?;
        self.stream = stream;
        Ok(())
    }

    fn look(&mut self) {
        let Some(core) = self.stream.as_ref().and_then(core_of) else { return };
        let here = core_here();
        if core == here {
            self.strays = 0;
            return;
        }
        self.strays += 1;
        if self.strays < STRAYS_MAX {
            return;
        }
        self.strays = 0;
        if let Some(to) = self.places.follow(self.at, here, core) {
            self.at = to;
            self.arrives = true;
            self.route.0.store(to, Relaxed);
        }
    }
}

impl AsyncRead for Follower {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.arrives && self.route.0.load(Relaxed) == NOWHERE {
            self.arrive()?;
        }
        let read = self.stream()?.poll_read(context, into);
        if read.is_ready()
            && let Some(reads) = &mut self.reads
        {
            *reads = reads.wrapping_add(1);
            if reads.is_multiple_of(LOOK_EVERY) {
                self.look();
            }
        }
        read
    }
}

impl AsyncWrite for Follower {
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

    fn a_loop() -> Runtime {
        Builder::new_current_thread().enable_all().build().expect("a loop can be made")
    }

    #[test]
    fn a_connection_that_goes_to_another_loop_goes_on_there_and_is_woken_there() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let mut client = std::net::TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (stream, address) = listener.accept().expect("a client has come");
        stream.set_nonblocking(true).expect("it is a socket");
        let (first, second) = (a_loop(), a_loop());
        let mut follower = first.block_on(async {
            let stream = TcpStream::from_std(stream).expect("it is not blocking");
            Follower::new(stream, address, Arc::new(Places::new(Vec::new())), Route::new(), 0)
        });
        let mut got = [0; 3];
        client.write_all(b"one").expect("it is open");
        first.block_on(follower.read_exact(&mut got)).expect("it came");
        follower.arrives = true;
        // What the first loop knows of the connection ends with it.
        let writer = std::thread::spawn(move || {
            client.write_all(b"two").expect("it is open");
            let mut answer = [0; 5];
            client.read_exact(&mut answer).expect("it is answered");
            answer
        });
        second.block_on(follower.read_exact(&mut got)).expect("it came");
        drop(first);
        second.block_on(follower.write_all(b"three")).expect("it is open");
        assert_eq!((&got, &writer.join().expect("no panic")), (b"two", b"three"));
    }

    #[test]
    fn a_connection_goes_to_the_loop_for_its_clients_core_while_that_is_not_far_ahead() {
        assert_eq!(first(&[3, 1, 2], None), 1);
        assert_eq!([0, 1, 5].map(|core| first(&[3, 1, 2], Some(core))), [0, 1, 2]);
        assert_eq!(first(&[AHEAD_MAX, 1], Some(0)), 0);
        assert_eq!(first(&[AHEAD_MAX + 1, 1], Some(0)), 1);
    }

    #[test]
    fn a_connection_follows_its_client_and_otherwise_only_spreads() {
        // To the loop that runs there, even if that has more.
        assert_eq!(next(&[3, 9], &[0, 1], 0, 1), Some(1));
        assert_eq!(next(&[3, 3 + AHEAD_MAX], &[0, 1], 0, 1), None);
        // No loop is there: to one that has fewer, until they have as many.
        assert_eq!(next(&[3, 1], &[0, NOWHERE], 0, 1), Some(1));
        assert_eq!(next(&[2, 1], &[0, NOWHERE], 0, 1), None);
        assert_eq!(next(&[1, 9], &[0, 2], 0, 1), None);
    }
}
