//! The tiny_http engine: synchronous, a few workers and a thread for each connection.
//!
//! Workers are as many as cores; nothing that may have to wait for a client runs on one of them. tiny_http reads a body of
//! at most 1,024 bytes before it hands the request over; longer ones are read, and refusals of them answered, on a
//! thread of their own.

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Cursor, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use httpdate::HttpDate;
use parking_lot::Mutex;
use tiny_http::{Listener, Server};

use super::newcomers::Newcomers;
use super::turns::{Turn, Turns};
use super::{Body, BodyFault, Bound, Head, Headers, Method, Reply, Responder, SILENCE, Service, Stream};
use crate::threads::{Threads, schedule_as_batch};

/// What tiny_http has read before it hands a request over, in bytes.
const BUFFERED_BODY_MAX: u64 = 1024;
/// tiny_http swallows a body that nobody read, in a buffer as long as the body says it is; beyond this length, in bytes,
/// the request is answered and its connection abandoned instead.
const SWALLOWED_BODY_MAX: u64 = 1 << 30;

/// Streams at the most. Each has a thread of its own.
const STREAMS_MAX: usize = 64;
/// A stream that has been writing for longer loses its place to one that needs it: its client does not read.
const WRITE_PATIENCE: Duration = Duration::from_secs(1);

/// A body of at most this length, in bytes, is sent in one piece with its head.
const ONE_PIECE_MAX: usize = 16 * 1024;

/// How long nudges wait, so that many come to few.
const NUDGE_EVERY: Duration = Duration::from_millis(2);

/// How often a worker looks for a request before it goes to sleep.
const LOOKS: usize = 16;

/// A running engine.
pub struct Tiny {
    stop: Arc<dyn Fn() + Send + Sync>,
    workers: Arc<Mutex<Vec<thread::JoinHandle<()>>>>,
    /// Disconnected when the last request is answered.
    drained: Receiver<Infallible>,
}

/// What the workers share.
struct Engine<S: Service> {
    service: Arc<S>,
    listener: Bound,
    queues: Mutex<Vec<Arc<Queue>>>,
    workers: Arc<Mutex<Vec<thread::JoinHandle<()>>>>,
    threads: Threads,
    turns: Turns<tiny_http::Request>,
    newcomers: Newcomers,
    /// The threads of the streams that have a place, each with since when it writes, while it does.
    streams: Mutex<HashMap<ThreadId, Option<Instant>>>,
    stopping: AtomicBool,
    /// Every request under way holds a clone.
    under_way: Mutex<Option<Sender<Infallible>>>,
}

/// The requests of a server.
struct Queue {
    server: Server,
    /// Held from taking a request to knowing whose turn it is: two requests of a connection keep their order.
    taking: Mutex<()>,
}

impl Bound {
    fn another(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => listener.try_clone()?.into(),
            #[cfg(unix)]
            Self::Unix(listener) => listener.try_clone()?.into(),
        })
    }

    /// Connects and hangs up.
    fn nudge(&self) {
        let connected = match self {
            Self::Tcp(listener) => listener.local_addr().and_then(|mut address| {
                if address.ip().is_unspecified() {
                    address.set_ip(if address.is_ipv4() {
                        Ipv4Addr::LOCALHOST.into()
                    } else {
                        Ipv6Addr::LOCALHOST.into()
                    });
                }
                TcpStream::connect_timeout(&address, Duration::from_millis(100)).map(drop)
            }),
            #[cfg(unix)]
            Self::Unix(listener) => listener.local_addr().and_then(|address| {
                address.as_pathname().map_or(Ok(()), |path| std::os::unix::net::UnixStream::connect(path).map(drop))
            }),
        };
        if let Err(error) = connected {
            tracing::debug!("no nudge: {error}");
        }
    }
}

impl Tiny {
    /// Serves on a listening socket until [`stop`](Self::stop). The thread that calls this is scheduled as batch from then on.
    ///
    /// # Errors
    ///
    /// The socket cannot be listened on.
    pub fn start<S: Service>(listener: Bound, service: Arc<S>) -> io::Result<Self> {
        match &listener {
            // Accepted connections inherit it. tiny_http writes an answer of over 1 KiB in two pieces, and without this
            // the second waits for the client's delayed acknowledgement of the first: 44 ms.
            Bound::Tcp(listener) => socket2::SockRef::from(listener).set_tcp_nodelay(true)?,
            #[cfg(unix)]
            Bound::Unix(_) => {}
        }
        // All threads of the engine and of tiny_http are started from here. A request goes from the client's thread to its
        // connection's and to a worker's: each of them would interrupt the one before, for a few microseconds of work.
        schedule_as_batch();
        let (under_way, drained) = bounded(0);
        let workers = Arc::new(Mutex::new(Vec::new()));
        let engine = Arc::new(Engine {
            service,
            listener,
            queues: Mutex::default(),
            workers: Arc::clone(&workers),
            threads: Threads::new("http-wait"),
            turns: Turns::new(),
            newcomers: Newcomers::new(),
            streams: Mutex::default(),
            stopping: AtomicBool::new(false),
            under_way: Mutex::new(Some(under_way)),
        });
        engine.listen()?;
        let (weak, nudges) = (Arc::downgrade(&engine), engine.newcomers.nudges.clone());
        thread::Builder::new().name("http-nudge".to_owned()).spawn(move || {
            while nudges.recv().is_ok() {
                thread::sleep(NUDGE_EVERY);
                let Some(engine) = weak.upgrade() else { return };
                for _ in 0..1 + nudges.try_iter().count() {
                    engine.listener.nudge();
                }
            }
        })?;
        let stop = Arc::new(move || engine.stop());
        Ok(Self { stop, workers, drained })
    }

    /// Takes no further request, waits for those under way, and says whether all of them were answered in time.
    pub fn stop(self, patience: Duration) -> bool {
        (self.stop)();
        let workers = std::mem::take(&mut *self.workers.lock());
        for worker in workers {
            let _ = worker.join();
        }
        drop(self.stop);
        self.drained.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

impl<S: Service> Engine<S> {
    /// Starts a server on the socket, and workers for it.
    fn listen(self: &Arc<Self>) -> io::Result<()> {
        let server = Server::from_listener(self.listener.another()?, None).map_err(io::Error::other)?;
        let queue = Arc::new(Queue { server, taking: Mutex::new(()) });
        #[cfg(unix)]
        if matches!(self.listener, Bound::Unix(_)) {
            // A server that is dropped removes the file at its socket's path, which may be another process's by then.
            std::mem::forget(Arc::clone(&queue));
        }
        self.queues.lock().push(Arc::clone(&queue));
        let workers = thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..workers {
            let (engine, queue) = (Arc::clone(self), Arc::clone(&queue));
            let worker = thread::Builder::new().name("http".to_owned()).spawn(move || engine.work(&queue))?;
            self.workers.lock().push(worker);
        }
        Ok(())
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // One call wakes one worker.
        let workers = self.workers.lock().len();
        for queue in &*self.queues.lock() {
            (0..workers).for_each(|_| queue.server.unblock());
        }
        self.under_way.lock().take();
    }

    fn work(self: &Arc<Self>, queue: &Queue) {
        loop {
            let taking = queue.taking.lock();
            let turn = self.next(&queue.server).map(|request| self.turn_of(request));
            drop(taking);
            match turn {
                Ok(turn) => {
                    // The request is lost to a panic, its client gets 500 from the responder; the worker goes on.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.take(turn)));
                }
                Err(_) if self.stopping.load(Ordering::SeqCst) => return,
                Err(error) => self.listen_again(&error),
            }
        }
    }

    /// The next request. Under load there is one in a moment: to look again after letting others run costs less than to
    /// be put to sleep and woken up.
    fn next(&self, server: &Server) -> io::Result<tiny_http::Request> {
        for _ in 0..LOOKS {
            match server.try_recv() {
                Ok(Some(request)) => return Ok(request),
                Err(error) => return Err(error),
                // What wakes a worker at a stop looks like nothing here.
                Ok(None) if self.stopping.load(Ordering::SeqCst) => return Err(io::ErrorKind::Interrupted.into()),
                Ok(None) => thread::yield_now(),
            }
        }
        server.recv()
    }

    /// An error to accept a connection ends tiny_http's own loop for good, though it is often over in a moment (too many
    /// open files). The old server goes on to serve the connections it has.
    fn listen_again(self: &Arc<Self>, error: &io::Error) {
        tracing::warn!("cannot accept connections: {error}; trying again");
        thread::sleep(Duration::from_millis(100));
        if let Err(error) = self.listen() {
            tracing::error!("cannot listen again: {error}; no further connection is accepted");
        }
    }

    fn turn_of(&self, request: tiny_http::Request) -> Turn<tiny_http::Request> {
        match request.remote_addr().copied() {
            Some(client) => self.turns.come(client, request),
            // A Unix socket's clients have no address; what they send ahead is done in any order.
            None => Turn::Now(request),
        }
    }

    fn take(self: &Arc<Self>, turn: Turn<tiny_http::Request>) {
        match turn {
            Turn::Now(request) => {
                self.newcomers.note(request.remote_addr());
                self.begin(request);
            }
            Turn::Later => {}
            Turn::Never(request) => distrusted(request),
        }
    }

    /// A request whose turn it is.
    fn begin(self: &Arc<Self>, request: tiny_http::Request) {
        // None once the engine stops: nothing new is begun.
        let Some(under_way) = self.under_way.lock().clone() else {
            return send_early(request, Reply::new(503, &b"Stopping\n"[..]), Rest::Unknown);
        };
        let head = head(&request);
        let length = head.body_len();
        let buffered =
            matches!(length, Ok(length) if length <= BUFFERED_BODY_MAX) && head.headers.get("expect").is_none();
        let turn = TurnTaken { engine: Arc::clone(self), client: head.client, under_way: Some(under_way) };
        let handle = move || turn.engine.clone().handle(request, head, length, turn);
        if buffered { handle() } else { self.threads.run(handle) }
    }

    fn handle(
        self: Arc<Self>,
        mut request: tiny_http::Request,
        head: Arc<Head>,
        length: Result<u64, BodyFault>,
        turn: TurnTaken<S>,
    ) {
        let admitted = self.service.admit(head);
        let declared = match length {
            Ok(declared) => declared,
            Err(fault) => {
                let reply = admitted.map_or_else(|reply| reply, |admitted| self.service.refuse_body(admitted, fault));
                // First its own answer: those that wait for their turn are answered after it.
                send_early(request, reply, Rest::Unknown);
                return turn.distrust();
            }
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(reply) if declared == 0 => return send(request, reply),
            Err(reply) => return send_early(request, reply, Rest::Unread(declared)),
        };
        match read_body(&mut request, declared, self.service.body_max(&admitted)) {
            Err(fault) => {
                let reply = self.service.refuse_body(admitted, fault);
                let unread = match fault {
                    BodyFault::CutOff { came, declared } => declared - came,
                    _ => declared,
                };
                send_early(request, reply, Rest::Unread(unread));
            }
            Ok(body) => {
                let responder = Responder::new(move |reply| {
                    if let Body::Stream(stream) = reply.body {
                        let engine = Arc::clone(&turn.engine);
                        let reply = Reply { body: Body::Whole(Bytes::new()), ..reply };
                        engine.threads.run(move || turn.stream(request, reply, stream));
                    } else if turn.client.is_some() {
                        send(request, reply);
                        drop(turn);
                    } else {
                        // Perhaps not before its turn: it may have to wait for one that this thread would answer next.
                        let engine = Arc::clone(&turn.engine);
                        engine.threads.run(move || {
                            send(request, reply);
                            drop(turn);
                        });
                    }
                });
                self.service.serve(admitted, body, responder);
            }
        }
    }
}

/// A connection's turn. When it is dropped the next request of the connection has it.
struct TurnTaken<S: Service> {
    engine: Arc<Engine<S>>,
    client: Option<SocketAddr>,
    under_way: Option<Sender<Infallible>>,
}

impl<S: Service> TurnTaken<S> {
    /// Sends a stream to its end. While it writes no stop waits for it: a write cannot be ended here, however long the client
    /// takes to read.
    fn stream(mut self, request: tiny_http::Request, reply: Reply, mut stream: Box<dyn Stream>) {
        let Some(place) = Place::among(&self.engine) else {
            let fact = format!("Too many streams at once: {STREAMS_MAX} are the most of this engine; try again\n");
            let reply = Reply::new(503, fact.into_bytes())
                .with_header("Content-Type", "text/plain; charset=utf-8")
                .with_header("Retry-After", "1");
            return send(request, reply);
        };
        let is_chunked = *request.http_version() > (1, 0);
        let is_head = *request.method() == tiny_http::Method::Head;
        // For HTTP/1.0 each answer ends with its connection.
        let framing: (&str, &[u8]) =
            if is_chunked { ("Transfer-Encoding", b"chunked") } else { ("Connection", b"close") };
        let mut next = Some(head_of(&reply, request.http_version(), Some(framing)));
        let mut out = request.into_writer();
        let parked = Arc::new(Parked(thread::current())).into();
        let mut context = Context::from_waker(&parked);
        while let Some(bytes) = next {
            place.writes_since(Some(Instant::now()));
            self.under_way = None;
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                return;
            }
            if is_head {
                return;
            }
            self.under_way.clone_from(&self.engine.under_way.lock());
            if !place.writes_since(None) || self.under_way.is_none() {
                break;
            }
            next = next_piece(&mut *stream, &mut context).map(|piece| if is_chunked { chunk(&piece) } else { piece });
        }
        if is_chunked {
            let _ = out.write_all(&chunk(b"")).and_then(|()| out.flush());
        }
    }

    /// Takes no further request of this connection.
    fn distrust(&self) {
        if let Some(client) = self.client {
            self.engine.turns.distrust(client).into_iter().for_each(distrusted);
        }
    }
}

impl<S: Service> Drop for TurnTaken<S> {
    fn drop(&mut self) {
        let Some(next) = self.client.and_then(|client| self.engine.turns.answered(client)) else { return };
        let engine = Arc::clone(&self.engine);
        // On another thread: of many requests sent ahead each would be begun deeper in the stack of the one before.
        self.engine.threads.run(move || engine.begin(next));
    }
}

/// The place of this thread's stream.
struct Place<'a, S: Service>(&'a Engine<S>);

impl<'a, S: Service> Place<'a, S> {
    /// A place, unless there are too many that read.
    fn among(engine: &'a Engine<S>) -> Option<Self> {
        let mut streams = engine.streams.lock();
        if streams.len() == STREAMS_MAX {
            let is_stuck = |since: &Option<Instant>| since.is_some_and(|since| since.elapsed() > WRITE_PATIENCE);
            let stuck = streams.iter().find_map(|(&thread, since)| is_stuck(since).then_some(thread))?;
            streams.remove(&stuck);
        }
        streams.insert(thread::current().id(), None);
        Some(Self(engine))
    }

    /// Notes since when the stream writes, if it does. Says whether it has its place still.
    fn writes_since(&self, since: Option<Instant>) -> bool {
        self.0.streams.lock().get_mut(&thread::current().id()).map(|place| *place = since).is_some()
    }
}

impl<S: Service> Drop for Place<'_, S> {
    fn drop(&mut self) {
        self.0.streams.lock().remove(&thread::current().id());
    }
}

/// Wakes a thread that is parked.
struct Parked(thread::Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the next piece of a stream, or for the end of its silence.
fn next_piece(stream: &mut dyn Stream, context: &mut Context<'_>) -> Option<Vec<u8>> {
    let until = Instant::now() + SILENCE;
    loop {
        if let Poll::Ready(piece) = stream.poll(context) {
            return piece;
        }
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return stream.silent(),
            left => thread::park_timeout(left),
        }
    }
}

/// tiny_http would keep what it sends in chunks until it has enough.
fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

/// The head of an answer, with what says where its body ends.
fn head_of(reply: &Reply, version: &tiny_http::HTTPVersion, framing: Option<(&str, &[u8])>) -> Vec<u8> {
    let reason = tiny_http::StatusCode(reply.status).default_reason_phrase();
    let date = HttpDate::from(SystemTime::now());
    let tag = reply.tag();
    let tag = tag.iter().map(|tag| ("ETag", tag.as_slice()));
    let fields = reply.headers.iter().map(|(name, value)| (&**name, value.as_bytes()));
    let mut head = Vec::with_capacity(1024);
    // A vector takes whatever is written.
    let _ = write!(head, "HTTP/{version} {} {reason}\r\nDate: {date}\r\nServer: vkog\r\n", reply.status);
    for (name, value) in tag.chain(fields).chain(framing) {
        // A field that may not be sent is left out.
        if !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Answers what may be a part of a body and no request.
fn distrusted(request: tiny_http::Request) {
    send_early(
        request,
        Reply::new(400, &b"Connection closed: an earlier request described its body badly\n"[..]),
        Rest::Unknown,
    );
}

fn head(request: &tiny_http::Request) -> Arc<Head> {
    let method = match request.method() {
        tiny_http::Method::Get => Method::Get,
        tiny_http::Method::Head => Method::Head,
        tiny_http::Method::Post => Method::Post,
        tiny_http::Method::Put => Method::Put,
        tiny_http::Method::Delete => Method::Delete,
        tiny_http::Method::Options => Method::Options,
        _ => Method::Other,
    };
    let mut headers = Headers::default();
    for header in request.headers() {
        headers.push(header.field.as_str().as_str(), header.value.as_str().trim().as_bytes());
    }
    Arc::new(Head::new(method, request.url().to_owned(), headers, request.remote_addr().copied()))
}

/// Reads a body of exactly this length. Memory grows with what arrives, not with what was declared.
fn read_body(request: &mut tiny_http::Request, declared: u64, max: u64) -> Result<Vec<u8>, BodyFault> {
    if declared > max {
        return Err(BodyFault::TooLarge { declared });
    }
    let mut body = Vec::with_capacity(declared.min(64 * 1024) as usize);
    // A failure to read is a client that left; tiny_http ends a body that was cut off as if it were whole.
    let _ = request.as_reader().take(declared).read_to_end(&mut body);
    let came = body.len() as u64;
    if came < declared { Err(BodyFault::CutOff { came, declared }) } else { Ok(body) }
}

/// Sends the reply to a request that was read to its end. tiny_http's own way there keeps each field in two pieces of memory.
fn send(request: tiny_http::Request, reply: Reply) {
    let is_bodiless = matches!(reply.status, 204 | 304);
    let body = reply.body.as_ref();
    let mut length = itoa::Buffer::new();
    let length = ("Content-Length", length.format(body.len()).as_bytes());
    let mut bytes = head_of(&reply, request.http_version(), (!is_bodiless).then_some(length));
    let body = if is_bodiless || *request.method() == tiny_http::Method::Head { &[] } else { body };
    let mut out = request.into_writer();
    let sent = if body.len() <= ONE_PIECE_MAX {
        bytes.extend_from_slice(body);
        out.write_all(&bytes)
    } else {
        out.write_all(&bytes).and_then(|()| out.write_all(body))
    };
    if let Err(error) = sent.and_then(|()| out.flush()) {
        tracing::debug!("an answer was not sent: {error}");
    }
}

/// What of a request's body may still come.
enum Rest {
    /// So many bytes.
    Unread(u64),
    /// Nobody can say.
    Unknown,
}

/// Sends the reply to a request of which more may come. tiny_http swallows that once it is answered.
fn send_early(request: tiny_http::Request, reply: Reply, rest: Rest) {
    let field = |name: &str, value: &[u8]| tiny_http::Header::from_bytes(name.as_bytes(), value).ok();
    let length = reply.body.as_ref().len();
    // tiny_http has its own mind about Connection and, in an answer that ends a connection, about Content-Length. It
    // does not look into a field's value.
    let server = match rest {
        Rest::Unread(..=SWALLOWED_BODY_MAX) => Cow::Borrowed("vkog"),
        Rest::Unknown => "vkog\r\nConnection: close".into(),
        Rest::Unread(_) => format!("vkog\r\nConnection: close\r\nContent-Length: {length}").into(),
    };
    let mut headers = Vec::with_capacity(reply.headers.len() + 2);
    headers.extend(field("Server", server.as_bytes()));
    headers.extend(reply.tag().and_then(|tag| field("ETag", &tag)));
    headers.extend(reply.headers.iter().filter_map(|(name, value)| field(name, value.as_bytes())));
    let status = tiny_http::StatusCode(reply.status);
    if matches!(rest, Rest::Unread(unread) if unread > SWALLOWED_BODY_MAX) {
        let response = tiny_http::Response::new(status, headers, io::empty(), Some(length), None);
        let mut stream = request.upgrade("none", response);
        // The client may have left.
        let _ = stream.write_all(reply.body.as_ref()).and_then(|()| stream.flush());
        // Dropping the reader would ask for memory of this length, and end the process where there is not so much. What
        // is forgotten here is a thread and two descriptors, as long as the process runs.
        std::mem::forget(stream);
        return;
    }
    let response = tiny_http::Response::new(status, headers, Cursor::new(reply.body), Some(length), None)
        .with_chunked_threshold(usize::MAX);
    if let Err(error) = request.respond(response) {
        tracing::debug!("an answer was not sent: {error}");
    }
}
