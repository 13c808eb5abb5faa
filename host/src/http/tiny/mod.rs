//! The tiny_http engine: synchronous. A worker thread takes a request from its head to its response, and blocks where it has
//! to: for the body, for the request's turn on its connection, for the client to read. If the response has to wait for the
//! disk, the thread that completes it sends it.
//!
//! The [supervisor] works around what tiny_http lacks; docs/reference/http.md lists the limits that remain.

mod body;
mod sockets;
mod stall_breaker;
mod stream;
mod supervisor;
mod wire;
mod workers;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use tiny_http::Server;
use vkog_runtime::{ThreadPool, set_sched_batch};

use self::body::BodyReader;
use self::sockets::Closing;
use self::stall_breaker::StallBreaker;
use self::workers::{WORKERS_MAX, WorkerPool};
use super::{Body, BodyBuffer, BodyFault, BodyLength, Listener, ProbeOne, Responder, Response, Service, Share};

/// tiny_http has read a body of up to this length, in bytes, before it returns the request.
const BUFFERED_BODY_MAX: u64 = 1024;
/// A client times out after it has sent nothing of a request, or read nothing of a response, for this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running server on tiny_http.
pub struct TinyServer {
    close: Box<dyn Fn() + Send + Sync>,
    probe: ProbeOne,
    /// Disconnected when the last request has its response.
    drained: Receiver<Infallible>,
}

/// The state that all workers share.
struct Shared<S: Service> {
    service: Arc<S>,
    listener: Listener,
    /// The port of the listening socket; 0 for a Unix socket.
    port: u16,
    /// The pools, the newest last: each tiny_http server has one.
    pools: Mutex<Vec<Arc<WorkerPool>>>,
    stall_breaker: StallBreaker,
    closing: Closing,
    /// Sends long responses that another thread than the worker completes.
    senders: ThreadPool,
    /// The threads of the streams that have a slot, and since when each has been writing, if it is.
    streams: Mutex<HashMap<ThreadId, Option<Instant>>>,
    stopping: AtomicBool,
    /// Every request in flight holds a clone.
    in_flight: Mutex<Option<Sender<Infallible>>>,
}

impl TinyServer {
    /// Serves on a listening socket until [`close`](Self::close). From then on Linux schedules the calling thread as
    /// `SCHED_BATCH`.
    ///
    /// # Errors
    ///
    /// The socket is one for TLS, or the system refuses to listen or to start a thread.
    pub fn start<S: Service>(listener: Listener, service: Arc<S>) -> io::Result<Self> {
        let port = match &listener {
            Listener::Tcp(listener) => listener.local_addr()?.port(),
            Listener::Tls(_) => return Err(io::Error::new(io::ErrorKind::Unsupported, "tiny_http speaks no TLS")),
            #[cfg(unix)]
            Listener::Unix(_) => 0,
        };
        sockets::prepare(&listener, TIMEOUT)?;
        // All threads of the engine and of tiny_http inherit this. A request passes from the client's thread to its
        // connection's and to a worker's, and each would preempt the one before for a few microseconds of work.
        set_sched_batch();
        let (in_flight, drained) = bounded(0);
        let shared = Arc::new(Shared {
            service,
            listener,
            port,
            pools: Mutex::default(),
            stall_breaker: StallBreaker::new(),
            closing: Closing::new(port),
            senders: ThreadPool::bounded("http-send", WORKERS_MAX),
            streams: Mutex::default(),
            stopping: AtomicBool::new(false),
            in_flight: Mutex::new(Some(in_flight)),
        });
        shared.listen()?;
        let supervised = Arc::clone(&shared);
        thread::Builder::new().name("http-supervise".to_owned()).spawn(move || supervised.supervise())?;
        let probed = Arc::clone(&shared);
        let probe: ProbeOne = Arc::new(move |timeout| probed.responds(timeout));
        Ok(Self { close: Box::new(move || shared.stop()), probe, drained })
    }

    /// Returns a function that returns whether a worker is free, or becomes free within a timeout.
    pub fn probe(&self) -> ProbeOne {
        Arc::clone(&self.probe)
    }

    /// Accepts no further requests.
    pub fn close(&self) {
        (self.close)();
    }

    /// Waits for the requests in flight. Returns whether all were answered before the timeout.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.drained.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
    }
}

impl<S: Service> Shared<S> {
    /// Starts a tiny_http server on the listening socket, with its first workers.
    fn listen(self: &Arc<Self>) -> io::Result<()> {
        let listener = self.listener.duplicate()?;
        let accepting = sockets::Accepting::of(&listener);
        let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
        #[cfg(unix)]
        if let Listener::Unix(_) = self.listener {
            // A server that is dropped removes the file of its socket, which may belong to another process by then.
            std::mem::forget(Arc::clone(&server));
        }
        let pool = Arc::new(WorkerPool::new(server, accepting));
        self.start_workers(&pool)?;
        self.pools.lock().push(pool);
        Ok(())
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.pools.lock().iter().for_each(|pool| pool.wake_all());
        self.in_flight.lock().take();
    }

    fn responds(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let pools = self.pools.lock().clone();
        pools.iter().all(|pool| pool.responds(deadline))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Serves a request from its head to its response.
    fn serve(self: &Arc<Self>, pool: &Arc<WorkerPool>, request: tiny_http::Request) {
        let client = request.remote_addr().copied();
        self.stall_breaker.note(client.as_ref());
        // None once the server stops: no further request begins.
        let Some(in_flight) = self.in_flight.lock().clone() else {
            return self.refuse(pool, request, Response::new(503, &b"Stopping\n"[..]));
        };
        let Some((request, admitted, body, share)) = self.receive(pool, request) else { return };
        let shape = wire::Shape::of(&request);
        let mut out = request.into_writer();
        // tiny_http lets a response through after the responses to earlier requests of the connection. Those requests have
        // completed by then, so this one runs after them (RFC 9112, section 9.3.2).
        if let Err(error) = out.flush() {
            return tracing::debug!("a client left: {error}");
        }
        if client.is_some_and(|client| self.closing.includes(client)) {
            // This may be part of the body of an earlier request, which was refused for its framing.
            return;
        }
        let writer = ResponseWriter { shape, out, client, in_flight, _share: share };
        let (shared, pool, worker) = (Arc::clone(self), Arc::clone(pool), thread::current().id());
        let respond = move |response| shared.respond(&pool, worker, writer, response);
        self.service.serve(admitted, body, Responder::new(respond));
    }

    /// Sends the response to a request. The thread that has a short one sends it. A long one, whose client may take long to
    /// read it, is sent by the request's worker or, if it comes from another thread, by a thread of the pool for that.
    fn respond(self: &Arc<Self>, pool: &Arc<WorkerPool>, worker: ThreadId, writer: ResponseWriter, response: Response) {
        if response.body.is_short() {
            return writer.send(self, response);
        }
        let (shared, pool) = (Arc::clone(self), Arc::clone(pool));
        let send = move || shared.blocking(&pool, || writer.send(&shared, response));
        if thread::current().id() == worker { send() } else { self.senders.run(send) }
    }

    /// Has the service admit a request, and reads its body. Returns `None` after a refusal has been sent.
    fn receive(self: &Arc<Self>, pool: &Arc<WorkerPool>, mut request: tiny_http::Request) -> Option<Received<S>> {
        let refuse = |request, response| {
            self.refuse(pool, request, response);
            None
        };
        let head = match wire::head(&request) {
            Ok(head) => head,
            Err(response) => return refuse(request, response),
        };
        let (length, expects) = (head.body_len(), head.headers.get("expect").is_some());
        let admitted = self.service.admit(head);
        let length = match length {
            Ok(length) => length,
            Err(fault) => {
                let refused = |admitted| self.service.refuse_body(admitted, fault);
                return refuse(request, admitted.map_or_else(|response| response, refused));
            }
        };
        let is_short = matches!(length, BodyLength::Known(..=BUFFERED_BODY_MAX));
        let is_buffered = is_short && !expects && (length == BodyLength::Known(0) || !body::is_unframed(&request));
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(response)
                if is_buffered
                    || !expects && self.blocking(pool, || sockets::drain(&mut request, length, self.port)) =>
            {
                self.send_refusal(pool, request, &response);
                return None;
            }
            Err(response) => return refuse(request, response),
        };
        let buffer = BodyBuffer::new(length, self.service.body_max(&admitted), self.service.budget());
        // The client has begun to send the body, unless it still waits for `100 Continue`.
        let is_sent = !expects || buffer.is_ok();
        let body = buffer.and_then(|buffer| match is_buffered {
            true => read_body(&mut request, length, buffer, self.port),
            false => self.blocking(pool, || read_body(&mut request, length, buffer, self.port)),
        });
        match body {
            Ok((body, share)) => Some((request, admitted, body, share)),
            Err(fault) => {
                let response = self.service.refuse_body(admitted, fault);
                if matches!(fault, BodyFault::TooLarge { .. } | BodyFault::NoMemory) && is_sent {
                    self.blocking(pool, || sockets::drain(&mut request, length, self.port));
                }
                refuse(request, response)
            }
        }
    }

    /// Refuses a request whose body was read. The connection stays open.
    fn send_refusal(self: &Arc<Self>, pool: &Arc<WorkerPool>, request: tiny_http::Request, response: &Response) {
        let shape = wire::Shape::of(&request);
        let mut out = request.into_writer();
        self.blocking(pool, || wire::send(&shape, &mut *out, response));
    }

    /// Refuses a request of which more may arrive, and closes its connection.
    fn refuse(self: &Arc<Self>, pool: &Arc<WorkerPool>, request: tiny_http::Request, response: Response) {
        self.blocking(pool, || {
            let shutdown = request.remote_addr().and_then(|&client| self.closing.begin(client));
            if wire::holds_a_body(&request) {
                wire::send_last(request, response);
                drop(shutdown);
            } else {
                let shape = wire::Shape::last(&request);
                let mut out = request.into_writer();
                wire::send(&shape, &mut *out, &response);
                // In this order: tiny_http itself responds to what may follow and is no request.
                drop(shutdown);
                drop(out);
            }
        });
    }
}

/// Where a response goes, and what is held until it has been sent.
struct ResponseWriter {
    shape: wire::Shape,
    out: Box<dyn Write + Send>,
    client: Option<SocketAddr>,
    in_flight: Sender<Infallible>,
    _share: Share,
}

impl ResponseWriter {
    fn send<S: Service>(mut self, shared: &Shared<S>, response: Response) {
        match response.body {
            Body::Stream(stream) => {
                let head = Response { body: Body::Whole(Bytes::new()), ..response };
                shared.stream(self.shape, self.out, self.client, &head, stream, self.in_flight);
            }
            Body::Whole(_) => wire::send(&self.shape, &mut *self.out, &response),
        }
    }
}

impl Body {
    /// Whether the body is sent in one write with the head. That hardly ever blocks; where it does, the supervisor notices.
    fn is_short(&self) -> bool {
        matches!(self, Self::Whole(body) if body.len() <= wire::ONE_WRITE_MAX)
    }
}

/// A request, the service's view of its head, its body, and the body's share of the memory budget.
type Received<S> = (tiny_http::Request, <S as Service>::Admitted, Vec<u8>, Share);

/// Reads a body to its end.
fn read_body(
    request: &mut tiny_http::Request,
    length: BodyLength,
    mut buffer: BodyBuffer,
    port: u16,
) -> Result<(Vec<u8>, Share), BodyFault> {
    let began = Instant::now();
    let mut body = BodyReader::new(request, length);
    let mut piece = [0; 16 << 10];
    while !buffer.is_full() {
        match body.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => buffer.push(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(BodyFault::BadChunk),
            // The client left or timed out.
            Err(_) => return Err(buffer.cut_off()),
        }
        buffer.check_rate(began.elapsed())?;
    }
    // tiny_http ends a chunked body that was cut off as if it were complete.
    if !buffer.is_full() && request.body_length().is_none() && !sockets::is_open(request, port) {
        return Err(buffer.cut_off());
    }
    buffer.finish()
}
