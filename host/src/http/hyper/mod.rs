//! The hyper engine: asynchronous, with one event loop on one thread for each core.
//!
//! A connection belongs to one event loop at a time. Requests run on the thread of that loop. Responses that come later from
//! another thread are collected, and wake the loop once.

mod body;
mod connection;
mod convert;
mod event_loops;
mod futures;
mod http2;
mod idle;
mod reject;
mod scanner;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use hyper::server::conn::http1;
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls;
use tokio_rustls::server::TlsStream;

use self::convert::Peer;
use self::event_loops::{CountGuard, EventLoops, LoopHandle, MigratingStream, Migration, client_core};
use self::idle::LINGER;
use super::tls::{HTTP_2, names};
use super::{Budget, ConnectionCounts, Listener, ProbeOne, RequestHead, Responder, Response, Service, Share, Tls};
use vkog_runtime::{Mailbox, cores};

/// Timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum length of a request head, in bytes. hyper itself limits the number of header fields to 100.
const HEAD_MAX: usize = 64 << 10;
/// Maximum number of bytes of one read: a larger read would delay the other connections of the event loop.
const READ_MAX: usize = 64 << 10;

/// Maximum number of connections, even if the system allows more.
const CONNECTIONS_MAX: usize = 1 << 15;
/// Number of file descriptors reserved for the store and the plugins.
#[cfg(unix)]
const RESERVED_DESCRIPTORS: usize = 64;
/// Maximum number of connections over the limit that receive a 503 at the same time; further ones are closed.
const REJECTIONS_MAX: usize = 32;

/// A running server on hyper.
pub struct HyperServer {
    stopping: watch::Sender<bool>,
    event_loops: Vec<EventLoop>,
    /// Disconnected when the last connection is closed.
    drained: Receiver<Infallible>,
}

/// An event loop and its thread.
struct EventLoop {
    mailbox: Arc<Mailbox>,
    handle: Handle,
    thread: thread::JoinHandle<()>,
}

/// The state that all event loops share.
struct Shared<S: Service> {
    service: Arc<S>,
    tls: Option<Arc<Tls>>,
    connections: Arc<ConnectionCounts>,
    builder: http1::Builder,
    stopping: watch::Receiver<bool>,
    connections_max: usize,
    /// One for each request over HTTP/2: as many as connections, since each may hold as much memory as one.
    streams: Arc<Semaphore>,
    /// The memory of long heads of HTTP/2: apart from that of bodies, for which heads leave room.
    heads: &'static Budget,
    event_loops: Arc<EventLoops>,
}

/// A listening socket that is registered with an event loop.
enum AsyncListener {
    Tcp(TcpListener),
    Tls(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// An accepted socket that is not yet registered with an event loop.
enum Socket {
    Tcp(std::net::TcpStream, SocketAddr),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

impl HyperServer {
    /// Serves on listening sockets until [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// The system refuses to listen or to start a thread.
    pub fn start<S: Service>(
        listeners: Vec<Listener>,
        tls: Option<Arc<Tls>>,
        connections: Arc<ConnectionCounts>,
        service: Arc<S>,
    ) -> io::Result<Self> {
        Self::start_with_limit(listeners, tls, connections, service, connections_max())
    }

    /// Like [`start`](Self::start), with a maximum number of connections.
    fn start_with_limit<S: Service>(
        listeners: Vec<Listener>,
        tls: Option<Arc<Tls>>,
        connections: Arc<ConnectionCounts>,
        service: Arc<S>,
        connections_max: usize,
    ) -> io::Result<Self> {
        let (stopping, stopped) = watch::channel(false);
        let mut builder = http1::Builder::new();
        // hyper would set its read timer anew for each request, at the cost of a system call: see `Connection::timed_out`.
        builder.header_read_timeout(None).max_header_size(HEAD_MAX).max_buf_size(READ_MAX);
        // A client that shuts down its sending side after the request, as `nc` does, still gets its response.
        builder.half_close(true);
        let event_loops = (0..cores()).map(|_| EventLoop::start()).collect::<io::Result<Vec<_>>>()?;
        let handles = event_loops.iter().map(|each| LoopHandle::new(each.handle.clone())).collect();
        let handles = Arc::new(EventLoops::new(handles));
        let first = handles.at(0).handle.clone();
        let (in_flight, drained) = bounded(0);
        let heads = Budget::new(service.budget().limit() / 8);
        let shared = Shared {
            service,
            tls,
            connections,
            builder,
            stopping: stopped,
            connections_max,
            streams: Arc::new(Semaphore::new(connections_max)),
            heads,
            event_loops: handles,
        };
        let _entered = first.enter();
        let (shared, rejections) = (Arc::new(shared), Arc::<AtomicUsize>::default());
        for listener in listeners {
            let listener = AsyncListener::new(listener)?;
            first.spawn(Arc::clone(&shared).accept(listener, Arc::clone(&rejections), in_flight.clone()));
        }
        Ok(Self { stopping, event_loops, drained })
    }

    /// Returns a function that sends each event loop a job, and returns whether all have run it within a timeout.
    pub fn probe(&self) -> ProbeOne {
        let mailboxes: Vec<_> = self.event_loops.iter().map(|each| Arc::clone(&each.mailbox)).collect();
        Arc::new(move |timeout| {
            let (send, responses) = bounded(mailboxes.len());
            for mailbox in &mailboxes {
                let send = send.clone();
                // Jobs would run on another thread while the loop blocks.
                let _ = mailbox.send_steps(Box::new(move || {
                    let _ = send.send(());
                    Poll::Ready(())
                }));
            }
            let deadline = Instant::now() + timeout;
            mailboxes.iter().all(|_| responses.recv_deadline(deadline).is_ok())
        })
    }

    /// Accepts no further requests and waits for those in flight. Returns whether all were answered before the timeout.
    pub fn stop(self, timeout: Duration) -> bool {
        self.stopping.send_replace(true);
        let drained = self.drained.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected);
        for EventLoop { mailbox, thread, .. } in self.event_loops {
            mailbox.close();
            // A thread that is still busy may never return.
            if drained {
                let _ = thread.join();
            }
        }
        drained
    }
}

/// The maximum number of connections: the file-descriptor limit, which is raised as far as the system permits, minus the
/// reserve.
fn connections_max() -> usize {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = (2 * CONNECTIONS_MAX) as u64;
        let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
        let mut limit = current.unwrap_or(u64::MAX);
        if limit < raised {
            match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
                Ok(()) => limit = raised,
                Err(error) => tracing::warn!("cannot raise the limit of {limit} file descriptors: {error}"),
            }
        }
        usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(RESERVED_DESCRIPTORS).clamp(1, CONNECTIONS_MAX)
    }
    #[cfg(not(unix))]
    {
        CONNECTIONS_MAX
    }
}

impl EventLoop {
    fn start() -> io::Result<Self> {
        let runtime: Runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let mailbox = Arc::<Mailbox>::default();
        let (handle, ours) = (runtime.handle().clone(), Arc::clone(&mailbox));
        let thread = thread::Builder::new().name("http".to_owned()).spawn(move || {
            ours.attach();
            runtime.block_on(std::future::poll_fn(|context| ours.poll(context)));
        })?;
        Ok(Self { mailbox, handle, thread })
    }
}

impl AsyncListener {
    /// Registers a listening socket with the event loop of this thread's context.
    fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Listener::Tls(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tls(TcpListener::from_std(listener)?)
            }
            #[cfg(unix)]
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
        })
    }

    async fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(listener) | Self::Tls(listener) => {
                let (stream, client) = listener.accept().await?;
                // This fails if the client has left already; the next read reports that.
                let _ = stream.set_nodelay(true);
                Socket::Tcp(stream.into_std()?, client)
            }
            #[cfg(unix)]
            Self::Unix(listener) => Socket::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

impl<S: Service> Shared<S> {
    /// Admits a request. A panic becomes a 500.
    fn admit(&self, head: Arc<RequestHead>) -> Result<S::Admitted, Response> {
        let admitted = catch_unwind(AssertUnwindSafe(|| self.service.admit(head)));
        admitted.unwrap_or_else(|_| Err(Response::internal_error()))
    }

    /// Runs a request. `deliver` gets the response, possibly later and on another thread. The body's share of the memory budget
    /// is held until then.
    fn run(
        &self,
        admitted: S::Admitted,
        body: Vec<u8>,
        share: Option<Share>,
        deliver: impl FnOnce(Response) + Send + 'static,
    ) {
        let responder = Responder::new(move |response| {
            drop(share);
            deliver(response);
        });
        // After a panic the dropped responder delivers a 500.
        let _ = catch_unwind(AssertUnwindSafe(|| self.service.serve(admitted, body, responder)));
    }

    /// Accepts connections until the server stops.
    async fn accept(
        self: Arc<Self>,
        listener: AsyncListener,
        rejections: Arc<AtomicUsize>,
        in_flight: Sender<Infallible>,
    ) {
        let mut stopping = self.stopping.clone();
        let tls = match listener {
            AsyncListener::Tls(_) => self.tls.clone(),
            _ => None,
        };
        loop {
            let socket = tokio::select! {
                socket = listener.accept() => socket,
                () = stopped(&mut stopping) => return,
            };
            let socket = match socket {
                Ok(socket) => socket,
                // The client left before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Usually a lack of file descriptors, which ends when a connection ends.
                    tracing::warn!("cannot accept connections: {error}; trying again");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if self.connections.open() >= self.connections_max as u64 {
                self.connections.refused.fetch_add(1, Ordering::Relaxed);
                if rejections.load(Ordering::Relaxed) < REJECTIONS_MAX {
                    let rejection = reject::too_many_connections(socket, CountGuard::new(&rejections));
                    self.event_loops.at(0).handle.spawn(rejection);
                }
                continue;
            }
            self.connections.accepted.fetch_add(1, Ordering::Relaxed);
            let core = match &socket {
                Socket::Tcp(stream, client) => client_core(stream, *client),
                #[cfg(unix)]
                Socket::Unix(_) => None,
            };
            let at = self.event_loops.choose(core);
            let migration = Migration::new();
            let connection = Box::pin(Arc::clone(&self).serve_socket(socket, tls.clone(), at, Arc::clone(&migration)));
            self.spawn_connection(at, connection, migration, in_flight.clone());
        }
    }

    /// Runs a connection on an event loop, and moves it to another one when the connection requests it.
    fn spawn_connection(
        self: &Arc<Self>,
        at: usize,
        mut connection: Pin<Box<dyn Future<Output = ()> + Send>>,
        migration: Arc<Migration>,
        in_flight: Sender<Infallible>,
    ) {
        let (shared, event_loop) = (Arc::clone(self), self.event_loops.at(at));
        let counted = event_loop.count();
        event_loop.handle.spawn(async move {
            let next = std::future::poll_fn(|context| match connection.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => migration.take().map_or(Poll::Pending, |to| Poll::Ready(Some(to))),
            });
            let next = next.await;
            drop(counted);
            match next {
                Some(to) => shared.spawn_connection(to, connection, migration, in_flight),
                None => {
                    shared.connections.ended.fetch_add(1, Ordering::Relaxed);
                    drop(in_flight);
                }
            }
        });
    }

    /// Serves an accepted socket until its connection ends.
    async fn serve_socket(
        self: Arc<Self>,
        socket: Socket,
        tls: Option<Arc<Tls>>,
        at: usize,
        migration: Arc<Migration>,
    ) {
        match socket {
            Socket::Tcp(stream, client) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    match tls {
                        None => {
                            let event_loops = Arc::clone(&self.event_loops);
                            let stream = MigratingStream::new(stream, client, event_loops, migration, at);
                            connection::serve(self, stream, client.into()).await;
                        }
                        // Boxed: it is large, and connections without TLS do not need the memory.
                        Some(tls) => Box::pin(self.serve_tls(stream, client, tls)).await,
                    }
                }
            }
            #[cfg(unix)]
            Socket::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    connection::serve(self, stream, Peer::default()).await;
                }
            }
        }
    }

    /// Serves a socket over TLS until its connection ends.
    async fn serve_tls(self: Arc<Self>, stream: TcpStream, client: SocketAddr, tls: Arc<Tls>) {
        let mut stopping = self.stopping.clone();
        let handshake = tokio::select! {
            handshake = timeout(HANDSHAKE_TIMEOUT, tls_handshake(stream, client, &tls)) => handshake,
            () = stopped(&mut stopping) => return,
        };
        match handshake {
            Ok(Ok(Some(stream))) => {
                let session = stream.get_ref().1;
                let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(names);
                let peer = Peer { certificate, ..client.into() };
                if session.alpn_protocol() == Some(HTTP_2) {
                    http2::serve(self, stream, Bytes::new(), peer).await;
                } else {
                    connection::serve(self, stream, peer).await;
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!("TLS handshake with {client} failed: {error}"),
            Err(_) => tracing::debug!("TLS handshake with {client} timed out after {HANDSHAKE_TIMEOUT:?}"),
        }
    }
}

/// Returns what is wrong with the client's certificate, if the handshake failed for that.
fn unacceptable_certificate(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::NoCertificatesPresented => Some("the client has sent no certificate".to_owned()),
        rustls::Error::InvalidCertificate(error) => Some(format!("the client's certificate is not valid: {error}")),
        _ => None,
    }
}

/// Waits until the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Completes a TLS handshake. Returns `None` after a client that speaks plain HTTP has got a 400, or one without a valid
/// certificate an alert.
async fn tls_handshake(stream: TcpStream, client: SocketAddr, tls: &Tls) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    // Every HTTP method begins with a letter, and no TLS record does.
    if first[0].is_ascii_alphabetic() {
        reject::plain_http(stream).await?;
        return Ok(None);
    }
    match tls.acceptor().accept(stream).into_fallible().await {
        Ok(stream) => Ok(Some(stream)),
        Err((error, stream)) => {
            let Some(reason) = unacceptable_certificate(&error) else { return Err(error) };
            tracing::warn!(client = %client, "refused a TLS connection: {reason}");
            // With TLS 1.3 the client may have sent its request already.
            let _ = timeout(LINGER, reject::drain(stream)).await;
            Ok(None)
        }
    }
}
