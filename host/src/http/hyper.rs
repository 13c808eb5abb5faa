//! The hyper engine: asynchronous, a loop on a thread for each core, each with its share of the connections.
//!
//! A connection is with one loop at a time. What a request asks for is done on the loop's thread; where its answer comes later,
//! from another thread, the loop is woken once for all answers that have gathered.

mod fragments;
mod framing;
mod payload;
mod places;
mod watched;

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;

use self::fragments::Waiting;
use self::framing::Framing;
use self::payload::Payload;
use self::places::{Counted, Follower, Place, Places, Route, core_of_client};
use self::watched::{LINGER, Watched};
use super::{
    Body, BodyFault, BodyLength, Bound, Connections, Head, Headers, Intake, Method, Reply, Responder, Service, Share,
    Tls,
};
use crate::threads::{Home, cores};

/// A client has this long to send a request's head, and to go on with a body that it sends or an answer that it reads:
/// so many rounds. hyper's own timer would be set anew for each request, which costs a call of the system.
const ROUND: Duration = Duration::from_secs(10);
const ROUNDS_MAX: u32 = 3;
/// A client has this long to agree on a secret with the server.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest head, in bytes. Its fields are at most 100, which is hyper's own limit.
const HEAD_MAX: usize = 64 << 10;
/// The most bytes that are read at once: a larger read would hold up the other connections of the event loop.
const BUFFER_MAX: usize = 64 << 10;
/// A body that nobody wants is read to its end up to this length, in bytes, if it comes at once: so that the connection
/// can be kept.
const SWALLOWED_BODY_MAX: u64 = 64 << 10;
const AT_ONCE: Duration = Duration::from_millis(100);

/// Connections at the most, whatever the system allows.
const CONNECTIONS_MAX: usize = 1 << 15;
/// Descriptors that are left for the store and the plugins.
#[cfg(unix)]
const SPARE_DESCRIPTORS: usize = 64;
/// How many connections over the limit are told so at a time; further ones are just closed.
const REFUSALS_MAX: usize = 32;

/// A running engine.
pub struct Hyper {
    stopping: watch::Sender<bool>,
    loops: Vec<Loop>,
    /// Disconnected when the last connection is closed.
    drained: Receiver<Infallible>,
}

/// A loop and its thread.
struct Loop {
    home: Arc<Home>,
    handle: Handle,
    thread: thread::JoinHandle<()>,
}

/// What all loops share.
struct Engine<S: Service> {
    service: Arc<S>,
    tls: Option<Arc<Tls>>,
    connections: Arc<Connections>,
    builder: http1::Builder,
    stopping: watch::Receiver<bool>,
    connections_max: usize,
    places: Arc<Places>,
}

/// A listening socket of either kind.
enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// A connection of either kind, of no loop yet.
enum Stream {
    Tcp(std::net::TcpStream, SocketAddr),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

impl Hyper {
    /// Serves on a listening socket until [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// The socket cannot be listened on, or there is no thread for it.
    pub fn start<S: Service>(
        listener: Bound,
        tls: Option<Arc<Tls>>,
        connections: Arc<Connections>,
        service: Arc<S>,
    ) -> io::Result<Self> {
        let (stopping, stopped) = watch::channel(false);
        let mut builder = http1::Builder::new();
        // A client may end its side when it has sent all, as `nc` does, and is answered.
        builder.header_read_timeout(None).max_header_size(HEAD_MAX).max_buf_size(BUFFER_MAX).half_close(true);
        let connections_max = connections_max();
        let loops = (0..cores()).map(|_| Loop::start()).collect::<io::Result<Vec<_>>>()?;
        let places = loops.iter().map(|each| Place::new(each.handle.clone())).collect();
        let places = Arc::new(Places::new(places));
        let (under_way, drained) = bounded(0);
        let first = places.at(0).handle.clone();
        let engine = Engine { service, tls, connections, builder, stopping: stopped, connections_max, places };
        let _entered = first.enter();
        let listener = match listener {
            Bound::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            #[cfg(unix)]
            Bound::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Listener::Unix(UnixListener::from_std(listener)?)
            }
        };
        first.spawn(Arc::new(engine).accept(listener, under_way));
        Ok(Self { stopping, loops, drained })
    }

    /// Takes no further request, waits for those under way, and says whether all of them were answered in time.
    pub fn stop(self, patience: Duration) -> bool {
        self.stopping.send_replace(true);
        let drained = self.drained.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected);
        for Loop { home, thread, .. } in self.loops {
            home.end();
            // One that is still busy may be so for ever.
            if drained {
                let _ = thread.join();
            }
        }
        drained
    }
}

/// How many connections there may be: as many as the system has descriptors for, which it is asked for as many as it gives.
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
                Err(error) => tracing::warn!("no more than {limit} descriptors: {error}"),
            }
        }
        usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(SPARE_DESCRIPTORS).clamp(1, CONNECTIONS_MAX)
    }
    #[cfg(not(unix))]
    {
        CONNECTIONS_MAX
    }
}

impl Loop {
    fn start() -> io::Result<Self> {
        let runtime: Runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let home = Arc::<Home>::default();
        let (handle, ours) = (runtime.handle().clone(), Arc::clone(&home));
        let thread = thread::Builder::new().name("http".to_owned()).spawn(move || {
            ours.settle();
            runtime.block_on(std::future::poll_fn(|context| ours.poll(context)));
        })?;
        Ok(Self { home, handle, thread })
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, client) = listener.accept().await?;
                // It fails where the client has left already, as the next read will tell.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream.into_std()?, client)
            }
            #[cfg(unix)]
            Self::Unix(listener) => Stream::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

impl<S: Service> Engine<S> {
    /// Accepts connections until the engine stops.
    async fn accept(self: Arc<Self>, listener: Listener, under_way: Sender<Infallible>) {
        let mut stopping = self.stopping.clone();
        let refused = Arc::<AtomicUsize>::default();
        loop {
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                () = stopped(&mut stopping) => return,
            };
            let stream = match stream {
                Ok(stream) => stream,
                // The client left before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Mostly a lack of descriptors, which is over when a connection ends.
                    tracing::warn!("cannot accept connections: {error}; trying again");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if self.places.connections() >= self.connections_max {
                self.connections.refused.fetch_add(1, Ordering::Relaxed);
                if refused.load(Ordering::Relaxed) < REFUSALS_MAX {
                    self.places.at(0).handle.spawn(refuse(stream, Counted::new(&refused)));
                }
                continue;
            }
            self.connections.accepted.fetch_add(1, Ordering::Relaxed);
            let core = match &stream {
                Stream::Tcp(stream, client) => core_of_client(stream, *client),
                #[cfg(unix)]
                Stream::Unix(_) => None,
            };
            let at = self.places.choose(core);
            let route = Route::new();
            let talk = Box::pin(Arc::clone(&self).open(stream, at, Arc::clone(&route)));
            self.settle(at, talk, route, under_way.clone());
        }
    }

    /// Has a connection served at a loop, and at another one from when that is the better place for it.
    fn settle(
        self: &Arc<Self>,
        at: usize,
        mut talk: Pin<Box<dyn Future<Output = ()> + Send>>,
        route: Arc<Route>,
        under_way: Sender<Infallible>,
    ) {
        let (engine, place) = (Arc::clone(self), self.places.at(at));
        let counted = place.count();
        place.handle.spawn(async move {
            let next = std::future::poll_fn(|context| match talk.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => route.take().map_or(Poll::Pending, |to| Poll::Ready(Some(to))),
            });
            let next = next.await;
            drop(counted);
            match next {
                Some(to) => engine.settle(to, talk, route, under_way),
                None => {
                    engine.connections.ended.fetch_add(1, Ordering::Relaxed);
                    drop(under_way);
                }
            }
        });
    }

    async fn open(self: Arc<Self>, stream: Stream, at: usize, route: Arc<Route>) {
        match stream {
            Stream::Tcp(stream, client) => {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    match self.tls.clone() {
                        None => {
                            let stream = Follower::new(stream, client, Arc::clone(&self.places), route, at);
                            self.talk(stream, Some(client)).await;
                        }
                        // In a box of its own, because it is large, and those without TLS have no use for the room.
                        Some(tls) => Box::pin(self.talk_in_secret(stream, client, tls)).await,
                    }
                }
            }
            #[cfg(unix)]
            Stream::Unix(stream) => {
                if let Ok(stream) = UnixStream::from_std(stream) {
                    self.talk(stream, None).await;
                }
            }
        }
    }

    async fn talk_in_secret(self: Arc<Self>, stream: TcpStream, client: SocketAddr, tls: Arc<Tls>) {
        let mut stopping = self.stopping.clone();
        let secret = tokio::select! {
            secret = timeout(HANDSHAKE, secret(stream, &tls)) => secret,
            () = stopped(&mut stopping) => return,
        };
        match secret {
            Ok(Ok(Some(stream))) => self.talk(stream, Some(client)).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!("no TLS with {client}: {error}"),
            Err(_) => tracing::debug!("no TLS with {client} in {HANDSHAKE:?}"),
        }
    }

    /// Serves a connection to its end.
    async fn talk<I>(self: Arc<Self>, stream: I, client: Option<SocketAddr>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut stopping = self.stopping.clone();
        let builder = self.builder.clone();
        let connection = Arc::new(Connection::new(self, client));
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&connection)));
        let answering = Arc::clone(&connection);
        let service = service_fn(move |request| answering.answer(request));
        let mut talk = pin!(builder.serve_connection(io, service));
        let watched = Arc::clone(&connection);
        let interrupted = Seldom::new(async move {
            tokio::select! {
                () = watched.overdue() => Interrupted::Overdue,
                () = stopped(&mut stopping) => Interrupted::Stopping,
            }
        });
        let result = tokio::select! {
            biased;
            result = &mut talk => result,
            interrupted = interrupted => {
                if let Interrupted::Overdue = interrupted {
                    return;
                }
                talk.as_mut().graceful_shutdown();
                // A stream has ended by itself, and who does not read what is left of it is not waited for.
                let patience = if connection.streams.load(Ordering::Relaxed) { LINGER } else { Duration::MAX };
                tokio::select! {
                    result = talk => result,
                    () = connection.overdue() => return,
                    () = sleep(patience) => return,
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!("a connection ended: {error}");
        }
    }
}

/// Why a connection does not just go on.
enum Interrupted {
    /// The client has kept the server waiting for too long.
    Overdue,
    Stopping,
}

/// Waits until the engine stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// A future that is polled when it asks for it, and not whenever something else of its task goes on.
struct Seldom<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    asks: Arc<Asks>,
    /// That of the task, which is another one at another loop.
    waker: Waker,
}

struct Asks {
    now: AtomicBool,
    waker: Mutex<Waker>,
}

impl<T> Seldom<T> {
    fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        let waker = Waker::noop().clone();
        let asks = Asks { now: AtomicBool::new(true), waker: Mutex::new(waker.clone()) };
        Self { future: Box::pin(future), asks: Arc::new(asks), waker }
    }
}

impl<T> Future for Seldom<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if !self.waker.will_wake(context.waker()) {
            self.waker.clone_from(context.waker());
            self.asks.waker.lock().clone_from(context.waker());
        } else if !self.asks.now.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.asks.now.swap(false, Ordering::Acquire);
        let waker = Waker::from(Arc::clone(&self.asks));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Wake for Asks {
    fn wake(self: Arc<Self>) {
        self.now.store(true, Ordering::Release);
        let waker = self.waker.lock().clone();
        waker.wake();
    }
}

/// Agrees on a secret with a client. One that speaks HTTP without TLS is told so.
async fn secret(stream: TcpStream, tls: &Tls) -> io::Result<Option<TlsStream<TcpStream>>> {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nServer: vkog\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\nContent-Length: 35\r\n\r\nThis port speaks TLS; use https://\n";
    let mut first = [0];
    stream.peek(&mut first).await?;
    // TLS begins with no letter, and every method with one.
    if first[0].is_ascii_alphabetic() {
        tell(stream, ANSWER).await?;
        return Ok(None);
    }
    tls.acceptor().accept(stream).await.map(Some)
}

/// Tells a client that there are too many. One that expects TLS just finds its connection closed.
async fn refuse(stream: Stream, _counted: Counted) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 503 Service Unavailable\r\nServer: vkog\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\nContent-Length: 21\r\n\r\nToo many connections\n";
    let told = async {
        match stream {
            Stream::Tcp(stream, _) => tell(TcpStream::from_std(stream)?, ANSWER).await,
            #[cfg(unix)]
            Stream::Unix(stream) => tell(UnixStream::from_std(stream)?, ANSWER).await,
        }
    };
    // The client may have left, or stay for ever.
    let _ = timeout(LINGER, told).await;
}

/// Sends an answer, and reads on until the client has it.
async fn tell<I: AsyncRead + AsyncWrite + Unpin>(mut stream: I, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// A connection.
struct Connection<S: Service> {
    engine: Arc<Engine<S>>,
    client: Option<SocketAddr>,
    /// Grows with every head, every piece of a body and every piece of an answer.
    progress: AtomicU32,
    /// Whether a request is under way that has come whole: the client waits, and not the other way round.
    serves: AtomicBool,
    /// Whether the answer is a stream that does not end by itself.
    streams: AtomicBool,
    /// Whether the client may still be sending when the last answer is sent.
    lingers: AtomicBool,
    /// Whether a body is being read.
    reads_body: AtomicBool,
    /// Whether the request lines with a fragment have to be looked at.
    has_fragments: AtomicBool,
    fragments: Mutex<Waiting>,
    /// Where the answer to the request under way is put: there is one at a time.
    slot: Slot,
    /// The framing of the head that is being received.
    framing: Mutex<Framing>,
}

impl<S: Service> Connection<S> {
    fn new(engine: Arc<Engine<S>>, client: Option<SocketAddr>) -> Self {
        let [serves, streams, lingers, reads_body, has_fragments] = [const { AtomicBool::new(false) }; 5];
        let (progress, fragments, slot, framing) =
            (AtomicU32::new(0), Mutex::default(), Slot::default(), Mutex::default());
        Self { engine, client, progress, serves, streams, lingers, reads_body, has_fragments, fragments, slot, framing }
    }

    fn progresses(&self) {
        // Only the connection's own task counts.
        self.progress.store(self.progress.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Waits until the client has kept the server waiting for too long.
    async fn overdue(&self) {
        let (mut rounds, mut seen) = (0, 0);
        while rounds < ROUNDS_MAX {
            sleep(ROUND).await;
            let progress = self.progress.load(Ordering::Relaxed);
            let moves = progress != seen || self.serves.load(Ordering::Relaxed);
            rounds = if moves { 0 } else { rounds + 1 };
            seen = progress;
        }
    }

    fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answering {
        self.progresses();
        let (parts, body) = request.into_parts();
        let service = &self.engine.service;
        let head = head(&parts, self.whole_target(&parts), self.client);
        let length = match head.body_len() {
            Ok(length) => self.framing.lock().end().map(|()| length),
            fault => fault,
        };
        let expects = head.headers.get("expect").is_some();
        let admitted = guarded(|| service.admit(head));
        let length = match length {
            Ok(length) => length,
            Err(fault) => {
                let reply = admitted.map_or_else(|reply| reply, |admitted| service.refuse_body(admitted, fault));
                return Answering::with(self.last(reply));
            }
        };
        if length == BodyLength::Known(0) {
            self.framing.lock().begin();
            return match admitted {
                Ok(admitted) => self.serve(admitted, Vec::new(), None),
                Err(reply) => Answering::with(self.response(reply)),
            };
        }
        let refused = match admitted {
            Err(reply) => reply,
            Ok(admitted) => match Intake::new(length, service.body_max(&admitted), service.budget()) {
                Ok(intake) => {
                    let connection = Arc::clone(self);
                    return Answering::later(async move {
                        match connection.receive(body, intake).await {
                            Ok((bytes, share)) => connection.serve(admitted, bytes, Some(share)).finished().await,
                            Err(fault) => connection.last(connection.engine.service.refuse_body(admitted, fault)),
                        }
                    });
                }
                Err(fault) => service.refuse_body(admitted, fault),
            },
        };
        self.refuse(refused, length, body, expects)
    }

    /// Answers a request whose body nobody wants. One that is short and comes at once is read to its end, so that the
    /// connection can be kept.
    fn refuse(self: &Arc<Self>, reply: Reply, length: BodyLength, body: Incoming, expects: bool) -> Answering {
        if expects || matches!(length, BodyLength::Known(length) if length > SWALLOWED_BODY_MAX) {
            return Answering::with(self.last(reply));
        }
        let connection = Arc::clone(self);
        Answering::later(async move {
            let swallowed = timeout(AT_ONCE, connection.swallow(body)).await;
            if swallowed == Ok(true) { connection.response(reply) } else { connection.last(reply) }
        })
    }

    /// The target with its fragment, if hyper dropped one.
    fn whole_target(&self, parts: &hyper::http::request::Parts) -> Option<String> {
        if !self.has_fragments.load(Ordering::Relaxed) {
            return None;
        }
        let mut fragments = self.fragments.lock();
        let target = fragments.take(parts.method.as_str(), parts.uri.path_and_query()?.as_str());
        self.has_fragments.store(!fragments.is_empty(), Ordering::Relaxed);
        target
    }

    /// Runs the request. The response comes into the slot, now or later. The share of its body in the memory budget is
    /// returned with it.
    fn serve(self: &Arc<Self>, admitted: S::Admitted, body: Vec<u8>, share: Option<Share>) -> Answering {
        let waiting = Arc::clone(self);
        let responder = Responder::new(move |reply| {
            drop(share);
            waiting.slot.fill(reply);
        });
        // A panic leaves no answer but the responder's own.
        let _ = catch_unwind(AssertUnwindSafe(|| self.engine.service.serve(admitted, body, responder)));
        match self.slot.take() {
            Some(reply) => Answering::with(self.response(reply)),
            None => {
                let connection = Arc::clone(self);
                Answering::later(async move { connection.answered().await })
            }
        }
    }

    /// The answer, when it has come.
    async fn answered(&self) -> Response<Payload> {
        self.serves.store(true, Ordering::Relaxed);
        let reply = std::future::poll_fn(|context| self.slot.poll(context)).await;
        self.serves.store(false, Ordering::Relaxed);
        self.response(reply)
    }

    fn response(&self, reply: Reply) -> Response<Payload> {
        let is_endless = matches!(&reply.body, Body::Stream(stream) if !stream.ends());
        self.streams.store(is_endless, Ordering::Relaxed);
        // Two more are added here.
        let mut headers = HeaderMap::with_capacity(reply.headers.len() + 2);
        headers.insert(header::SERVER, HeaderValue::from_static("vkog"));
        if let Some(Ok(tag)) = reply.tag().as_deref().map(HeaderValue::from_bytes) {
            headers.insert(header::ETAG, tag);
        }
        for (name, value) in reply.headers {
            // A field that may not be sent is left out.
            if let (Some(name), Some(value)) = (field_name(&name), field_value(value)) {
                headers.append(name, value);
            }
        }
        let mut response = Response::new(Payload::new(reply.body));
        *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = headers;
        response
    }

    /// Receives a body to its end.
    async fn receive(&self, mut body: Incoming, mut intake: Intake) -> Result<(Vec<u8>, Share), BodyFault> {
        let began = Instant::now();
        let _reads = Raised::new(&self.reads_body);
        while !intake.is_full() {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let piece = match frame {
                // Trailers mean nothing here.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) if is_bad_chunk(&error) => return Err(BodyFault::BadChunk),
                Some(Err(_)) => return Err(intake.cut_off()),
                None => break,
            };
            self.progresses();
            intake.push(&piece)?;
            if !intake.is_full() {
                intake.check_rate(began.elapsed())?;
            }
        }
        self.framing.lock().begin();
        intake.finish()
    }

    /// Reads a short body to its end, and says whether it has got there.
    async fn swallow(&self, mut body: Incoming) -> bool {
        let mut left = SWALLOWED_BODY_MAX;
        let _reads = Raised::new(&self.reads_body);
        loop {
            let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            let Some(frame) = frame else {
                self.framing.lock().begin();
                return true;
            };
            let Some(rest) = frame.ok().and_then(|frame| {
                let len = frame.data_ref().map_or(0, Bytes::len);
                left.checked_sub(len as u64)
            }) else {
                return false;
            };
            self.progresses();
            left = rest;
        }
    }

    /// The answer that ends the connection.
    fn last(&self, reply: Reply) -> Response<Payload> {
        self.lingers.store(true, Ordering::Relaxed);
        let mut response = self.response(reply);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Whether a body ended because of malformed chunks, and not because the client ended the connection.
fn is_bad_chunk(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

/// A flag that is lowered again, also where a future is dropped.
struct Raised<'a>(&'a AtomicBool);

impl<'a> Raised<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A panic comes to 500.
fn guarded<T>(admit: impl FnOnce() -> Result<T, Reply>) -> Result<T, Reply> {
    catch_unwind(AssertUnwindSafe(admit)).unwrap_or_else(|_| Err(Reply::internal_error()))
}

fn head(parts: &hyper::http::request::Parts, target: Option<String>, client: Option<SocketAddr>) -> Arc<Head> {
    let method = match parts.method {
        hyper::Method::GET => Method::Get,
        hyper::Method::HEAD => Method::Head,
        hyper::Method::POST => Method::Post,
        hyper::Method::PUT => Method::Put,
        hyper::Method::DELETE => Method::Delete,
        hyper::Method::OPTIONS => Method::Options,
        _ => Method::Other,
    };
    let length = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let mut headers = Headers::with_capacity(length, parts.headers.len());
    for (name, value) in &parts.headers {
        headers.push(name.as_str(), value.as_bytes());
    }
    let target = target.unwrap_or_else(|| parts.uri.path_and_query().map_or("", |target| target.as_str()).to_owned());
    let version = if parts.version == hyper::Version::HTTP_10 { (1, 0) } else { (1, 1) };
    Arc::new(Head::new(method, target, headers, client).with_version(version))
}

fn field_name(name: &str) -> Option<HeaderName> {
    // Those of nearly every answer need not be parsed.
    match name {
        "Content-Type" => Some(header::CONTENT_TYPE),
        "Accept-Ranges" => Some(header::ACCEPT_RANGES),
        "X-Content-Type-Options" => Some(header::X_CONTENT_TYPE_OPTIONS),
        "Content-Security-Policy" => Some(header::CONTENT_SECURITY_POLICY),
        _ => HeaderName::from_bytes(name.as_bytes()).ok(),
    }
}

fn field_value(value: Cow<'static, str>) -> Option<HeaderValue> {
    match value {
        Cow::Borrowed(value) => Some(HeaderValue::from_static(value)),
        Cow::Owned(value) => HeaderValue::try_from(value).ok(),
    }
}

/// Where an answer is put, from any thread.
#[derive(Default)]
struct Slot(Mutex<Awaited>);

#[derive(Default)]
struct Awaited {
    reply: Option<Reply>,
    /// The connection, if it waits.
    waker: Option<Waker>,
}

impl Slot {
    fn fill(&self, reply: Reply) {
        let mut awaited = self.0.lock();
        awaited.reply = Some(reply);
        let waker = awaited.waker.take();
        drop(awaited);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take(&self) -> Option<Reply> {
        self.0.lock().reply.take()
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Reply> {
        let mut awaited = self.0.lock();
        if let Some(reply) = awaited.reply.take() {
            return Poll::Ready(reply);
        }
        if !awaited.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            awaited.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

/// A response: mostly there is nothing to wait for, and then nothing is made for it.
enum Answering {
    Now(Option<Response<Payload>>),
    Later(Pin<Box<dyn Future<Output = Response<Payload>> + Send>>),
}

impl Answering {
    fn with(response: Response<Payload>) -> Self {
        Self::Now(Some(response))
    }

    /// The response when it is there.
    async fn finished(self) -> Response<Payload> {
        match self {
            Self::Now(Some(response)) => response,
            Self::Later(response) => response.await,
            // Taken already, which only polling does.
            Self::Now(None) => std::future::pending().await,
        }
    }

    fn later(response: impl Future<Output = Response<Payload>> + Send + 'static) -> Self {
        Self::Later(Box::pin(response))
    }
}

impl Future for Answering {
    type Output = Result<Response<Payload>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // Nobody asks again for what has come.
            Self::Now(response) => response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            Self::Later(response) => response.as_mut().poll(context).map(Ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{ReadBuf, duplex};

    use super::*;
    use crate::http::Budget;

    /// Answers each body with its length, and each fault with a status of its own.
    struct Echo;

    impl Service for Echo {
        type Admitted = ();

        fn admit(&self, _: Arc<Head>) -> Result<(), Reply> {
            Ok(())
        }

        fn budget(&self) -> &'static Budget {
            Budget::new(1 << 20)
        }

        fn body_max(&self, (): &()) -> u64 {
            1 << 20
        }

        fn refuse_body(&self, (): (), fault: BodyFault) -> Reply {
            Reply::new(if fault == BodyFault::TooSlow { 408 } else { 400 }, &b""[..])
        }

        fn serve(&self, (): (), body: Vec<u8>, responder: Responder) {
            responder.reply(Reply::new(200, body.len().to_string().into_bytes()));
        }
    }

    /// An engine, which serves as long as the first lives.
    fn engine() -> (watch::Sender<bool>, Arc<Engine<Echo>>) {
        let (stop, stopping) = watch::channel(false);
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None).half_close(true);
        let engine = Engine {
            service: Arc::new(Echo),
            tls: None,
            connections: Arc::default(),
            builder,
            stopping,
            connections_max: 1,
            places: Arc::new(Places::new(Vec::new())),
        };
        (stop, Arc::new(engine))
    }

    /// Whether a connection is given up within a minute in which this happens every second.
    async fn is_given_up(each_second: impl Fn(&Connection<Echo>)) -> bool {
        let (_stop, engine) = engine();
        let connection = Arc::new(Connection::new(engine, None));
        let seconds = async {
            for _ in 0..60 {
                sleep(Duration::from_secs(1)).await;
                each_second(&connection);
            }
        };
        tokio::select! {
            () = connection.overdue() => true,
            () = seconds => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_the_server_waiting_is_given_up_and_one_that_waits_itself_is_not() {
        assert!(is_given_up(|_| {}).await);
        assert!(!is_given_up(Connection::progresses).await);
        assert!(!is_given_up(|connection| connection.serves.store(true, Ordering::Relaxed)).await);
    }

    /// The first line of the answer to a body of 100 KiB of which so many bytes come every nine seconds.
    async fn answer_to(framing: &str, bytes: usize) -> String {
        let (_stop, engine) = engine();
        let (client, server) = duplex(1 << 20);
        tokio::spawn(engine.talk(server, None));
        let (mut answers, mut client) = tokio::io::split(client);
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n");
        let trickle = async {
            let _ = client.write_all(head.as_bytes()).await;
            for _ in 0..(100 << 10) / bytes {
                let piece = vec![b'x'; bytes];
                let _ = match framing.contains("chunked") {
                    true => client.write_all(format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes)).as_bytes()).await,
                    false => client.write_all(&piece).await,
                };
                sleep(Duration::from_secs(9)).await;
            }
            if framing.contains("chunked") {
                let _ = client.write_all(b"0\r\n\r\n").await;
            }
            std::future::pending::<()>().await;
        };
        let mut line = [0; 12];
        tokio::select! {
            () = trickle => {}
            read = answers.read_exact(&mut line) => assert!(read.is_ok(), "no answer"),
        }
        String::from_utf8_lossy(&line).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_408_and_a_slow_one_is_read() {
        for framing in ["Content-Length: 102400\r\n", "Transfer-Encoding: chunked\r\n"] {
            assert_eq!(answer_to(framing, 1).await, "HTTP/1.1 408", "{framing}");
            assert_eq!(answer_to(framing, 8 << 10).await, "HTTP/1.1 408", "{framing}");
            assert_eq!(answer_to(framing, 10 << 10).await, "HTTP/1.1 200", "{framing}");
        }
    }

    /// A client that always has more to send, and takes all that it is sent.
    struct Endless;

    impl AsyncRead for Endless {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            into.put_slice(&vec![b'x'; into.remaining()]);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Endless {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_connection_with_more_to_move_lets_others_have_their_turn() {
        let (_stop, engine) = engine();
        let connection = Arc::new(Connection::new(engine, None));
        let mut watched = Watched::new(Endless, connection);
        let mut context = Context::from_waker(Waker::noop());
        let mut buffer = vec![0; BUFFER_MAX];
        let data = vec![b'x'; 100 << 20];
        for writes in [false, true] {
            for _ in 0..3 {
                let mut moved = 0;
                loop {
                    let polled = if writes {
                        Pin::new(&mut watched).poll_write(&mut context, &data)
                    } else {
                        let mut buffer = ReadBuf::new(&mut buffer);
                        let read = Pin::new(&mut watched).poll_read(&mut context, &mut buffer);
                        read.map_ok(|()| buffer.filled().len())
                    };
                    match polled {
                        Poll::Ready(count) => moved += count.expect("it never fails"),
                        Poll::Pending => break,
                    }
                }
                assert!((1..=256 << 10).contains(&moved), "{moved} bytes in one turn");
            }
        }
    }
}
