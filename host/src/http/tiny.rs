//! The tiny_http engine: synchronous. A worker thread takes a request from its head to its response, and waits where it has
//! to: for the body, for the request's turn on its connection, for the client to read. Where the response has to wait for the
//! disk, the thread that has it then sends it.
//!
//! As many workers as cores do not wait, as long as there are fewer than [`WORKERS_MAX`]; workers that are not needed end.
//! [`supervise`](Engine::supervise) does what tiny_http leaves undone; what nothing can do is listed in docs/reference/http.md.

mod newcomers;
mod sockets;
mod stream;
mod wire;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use tiny_http::{Listener, Server};

use self::newcomers::Newcomers;
use self::sockets::Closing;
use super::{Body, BodyFault, BodyLength, Bound, Intake, Reply, Responder, Service, Share};
use vkog_runtime::threads::{Threads, schedule_as_batch};

/// What tiny_http has read before it hands a request over, in bytes.
const BUFFERED_BODY_MAX: u64 = 1024;

/// The most workers of a server.
const WORKERS_MAX: usize = 4096;
/// How often a worker looks for a request before it sleeps.
const LOOKS: usize = 16;
/// How often the supervisor counts how many workers are needed.
const COUNTED_EVERY: Duration = Duration::from_secs(2);

/// How long a client may send nothing of a request, and read nothing of a response.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often the supervisor looks whether connections are accepted.
const SUPERVISED_EVERY: Duration = Duration::from_millis(100);
/// How often it connects, so that neither a connection that waits behind a silent one nor [`TIMEOUT`] ends the accepting.
const NUDGED_EVERY: Duration = Duration::from_millis(500);
/// How long nudges wait, so that many become few.
const NUDGE_DELAY: Duration = Duration::from_millis(2);

/// A running engine.
pub struct Tiny {
    stop: Box<dyn FnOnce() + Send + Sync>,
    /// Disconnected when the last request is answered.
    drained: Receiver<Infallible>,
}

/// What the workers share.
struct Engine<S: Service> {
    service: Arc<S>,
    listener: Bound,
    /// The newest last.
    queues: Mutex<Vec<Arc<Queue>>>,
    newcomers: Newcomers,
    closing: Closing,
    /// For replies that come later and are long.
    threads: Threads,
    /// The threads of the streams that have a slot, each with since when it writes, while it does.
    streams: Mutex<HashMap<ThreadId, Option<Instant>>>,
    stopping: AtomicBool,
    /// Every request in flight holds a clone.
    in_flight: Mutex<Option<Sender<Infallible>>>,
}

/// The requests of a tiny_http server, and the workers that serve them.
struct Queue {
    server: Arc<Server>,
    /// What tells whether the thread that accepts connections still runs.
    accepting: sockets::Accepting,
    /// Set by the error with which tiny_http ends to accept.
    failed: AtomicBool,
    /// How many requests were taken.
    taken: AtomicU64,
    /// How many the supervisor has seen.
    seen: AtomicU64,
    workers: AtomicUsize,
    /// How many workers have no request.
    idle: AtomicUsize,
    waiting: AtomicUsize,
    /// The most that waited at a time since it was last looked at.
    waiting_peak: AtomicUsize,
    /// How many requests there had been when one was last noticed, and when that was.
    quiet: Mutex<(u64, Instant)>,
    /// How many workers there should be; further ones end.
    wanted: AtomicUsize,
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
            tracing::debug!("cannot connect to the server itself: {error}");
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
        sockets::prepare(&listener, TIMEOUT)?;
        // All threads of the engine and of tiny_http are started from here. A request goes from the client's thread to its
        // connection's and to a worker's: each of them would interrupt the one before, for a few microseconds of work.
        schedule_as_batch();
        let (in_flight, drained) = bounded(0);
        let engine = Arc::new(Engine {
            service,
            listener,
            queues: Mutex::default(),
            newcomers: Newcomers::new(),
            closing: Closing::default(),
            threads: Threads::at_most("http-send", WORKERS_MAX),
            streams: Mutex::default(),
            stopping: AtomicBool::new(false),
            in_flight: Mutex::new(Some(in_flight)),
        });
        engine.listen()?;
        let supervised = Arc::clone(&engine);
        thread::Builder::new().name("http-supervise".to_owned()).spawn(move || supervised.supervise())?;
        Ok(Self { stop: Box::new(move || engine.stop()), drained })
    }

    /// Takes no further request, waits for those in flight, and returns whether all of them were answered in time.
    pub fn stop(self, patience: Duration) -> bool {
        (self.stop)();
        self.drained.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

impl<S: Service> Engine<S> {
    /// Starts a server on the socket, with its first workers.
    fn listen(self: &Arc<Self>) -> io::Result<()> {
        let listener = self.listener.another()?;
        let accepting = sockets::Accepting::of(&listener);
        let server = Arc::new(Server::from_listener(listener, None).map_err(io::Error::other)?);
        #[cfg(unix)]
        if let Bound::Unix(_) = self.listener {
            // A server that is dropped removes the file of its socket, which may be another process's by then.
            std::mem::forget(Arc::clone(&server));
        }
        let queue = Arc::new(Queue {
            server,
            accepting,
            failed: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            workers: AtomicUsize::new(cores()),
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            waiting_peak: AtomicUsize::new(0),
            quiet: Mutex::new((0, Instant::now())),
            wanted: AtomicUsize::new(cores()),
        });
        for _ in 0..cores() {
            self.start_worker(&queue)?;
        }
        self.queues.lock().push(queue);
        Ok(())
    }

    /// Starts a worker that has been counted.
    fn start_worker(self: &Arc<Self>, queue: &Arc<Queue>) -> io::Result<()> {
        let (engine, workers) = (Arc::clone(self), Arc::clone(queue));
        let started = thread::Builder::new().name("http".to_owned()).spawn(move || engine.work(&workers));
        if started.is_err() {
            queue.workers.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for queue in &*self.queues.lock() {
            // One call wakes one worker.
            (0..queue.workers.load(Ordering::Relaxed)).for_each(|_| queue.server.unblock());
        }
        self.in_flight.lock().take();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Serves requests until the engine stops, or until there are too many workers.
    fn work(self: &Arc<Self>, queue: &Arc<Queue>) {
        while !self.is_stopping() && !queue.dismiss() {
            match queue.next() {
                Ok(request) => {
                    queue.taken.fetch_add(1, Ordering::Relaxed);
                    // A panic ends the request alone; its client gets 500 from the responder.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.serve(queue, request)));
                }
                // What wakes a worker at a stop, or to end, looks like an error that is no error of the system.
                Err(error) if error.raw_os_error().is_none() => {}
                Err(error) => {
                    tracing::warn!("cannot accept connections: {error}; trying again");
                    queue.failed.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Does something that may have to wait, and sees to it that another worker takes the requests that come meanwhile.
    fn waiting<T>(self: &Arc<Self>, queue: &Arc<Queue>, wait: impl FnOnce() -> T) -> T {
        let counted = Counted::new(&queue.waiting);
        let waiting = counted.before + 1;
        if waiting > queue.waiting_peak.load(Ordering::Relaxed) {
            queue.waiting_peak.fetch_max(waiting, Ordering::Relaxed);
        }
        let workers = queue.workers.load(Ordering::SeqCst);
        if workers < waiting + cores() {
            self.add_worker(queue, workers);
        }
        wait()
    }

    /// Starts another worker, unless one was started since there were so many, or there are too many.
    fn add_worker(self: &Arc<Self>, queue: &Arc<Queue>, workers: usize) {
        if workers < WORKERS_MAX
            && queue.workers.compare_exchange(workers, workers + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            && let Err(error) = self.start_worker(queue)
        {
            tracing::warn!("cannot start a worker: {error}; requests wait for another one");
        }
    }

    /// Serves a request from its head to its response.
    fn serve(self: &Arc<Self>, queue: &Arc<Queue>, request: tiny_http::Request) {
        let client = request.remote_addr().copied();
        self.newcomers.note(client.as_ref());
        // None once the engine stops: nothing new is begun.
        let Some(in_flight) = self.in_flight.lock().clone() else {
            return self.refuse(queue, request, Reply::new(503, &b"Stopping\n"[..]));
        };
        let Some((request, admitted, body, share)) = self.receive(queue, request) else { return };
        let shape = wire::Shape::of(&request);
        let mut out = request.into_writer();
        // tiny_http lets a response through when those before it on the connection are sent: so their requests have been
        // done by then, and this one is done after them (RFC 9112, section 9.3.2).
        if let Err(error) = out.flush() {
            return tracing::debug!("a client left: {error}");
        }
        if client.is_some_and(|client| self.closing.includes(client)) {
            // It may be a part of the body of one of those, which was refused for its framing.
            return;
        }
        let response = Response { shape, out, in_flight, _share: share };
        let (engine, queue, worker) = (Arc::clone(self), Arc::clone(queue), thread::current().id());
        self.service.serve(admitted, body, Responder::new(move |reply| engine.answer(&queue, worker, response, reply)));
    }

    /// Sends the reply to a request: on its worker where it comes at once; where it comes later, which many do together, on the
    /// thread that has it, unless the client may take long to read it.
    fn answer(self: &Arc<Self>, queue: &Arc<Queue>, worker: ThreadId, response: Response, reply: Reply) {
        if thread::current().id() == worker {
            return self.deliver(queue, response, reply);
        }
        if reply.body.is_short() {
            return response.send(self, reply);
        }
        let (engine, queue) = (Arc::clone(self), Arc::clone(queue));
        self.threads.run(move || engine.deliver(&queue, response, reply));
    }

    /// Sends a reply whose client may take long to read it.
    fn deliver(self: &Arc<Self>, queue: &Arc<Queue>, response: Response, reply: Reply) {
        if reply.body.is_short() {
            response.send(self, reply);
        } else {
            self.waiting(queue, || response.send(self, reply));
        }
    }

    /// Has a request admitted, and reads its body. None where it was refused, and its client answered.
    fn receive(self: &Arc<Self>, queue: &Arc<Queue>, mut request: tiny_http::Request) -> Option<Received<S>> {
        let refuse = |request, reply| {
            self.refuse(queue, request, reply);
            None
        };
        let head = match wire::head(&request) {
            Ok(head) => head,
            Err(reply) => return refuse(request, reply),
        };
        let (length, expects) = (head.body_len(), head.headers.get("expect").is_some());
        let admitted = self.service.admit(head);
        let length = match length {
            Ok(length) => length,
            Err(fault) => {
                let reply = admitted.map_or_else(|reply| reply, |admitted| self.service.refuse_body(admitted, fault));
                return refuse(request, reply);
            }
        };
        let is_buffered = matches!(length, BodyLength::Known(..=BUFFERED_BODY_MAX)) && !expects;
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(reply) if is_buffered || !expects && self.waiting(queue, || sockets::drain(&mut request, length)) => {
                self.respond(queue, request, &reply);
                return None;
            }
            Err(reply) => return refuse(request, reply),
        };
        let intake = Intake::new(length, self.service.body_max(&admitted), self.service.budget());
        let body = intake.and_then(|intake| match is_buffered {
            true => read_body(&mut request, intake),
            false => self.waiting(queue, || read_body(&mut request, intake)),
        });
        match body {
            Ok((body, share)) => Some((request, admitted, body, share)),
            Err(fault) => {
                let reply = self.service.refuse_body(admitted, fault);
                if matches!(fault, BodyFault::TooLarge { .. } | BodyFault::NoMemory) && !expects {
                    self.waiting(queue, || sockets::drain(&mut request, length));
                }
                refuse(request, reply)
            }
        }
    }

    /// Sends the reply to a request whose body was read.
    fn respond(self: &Arc<Self>, queue: &Arc<Queue>, request: tiny_http::Request, reply: &Reply) {
        let shape = wire::Shape::of(&request);
        let mut out = request.into_writer();
        self.waiting(queue, || wire::send(&shape, &mut *out, reply));
    }

    /// Sends the reply to a request of which more may come, and closes its connection.
    fn refuse(self: &Arc<Self>, queue: &Arc<Queue>, request: tiny_http::Request, reply: Reply) {
        self.waiting(queue, || {
            let closes = request.remote_addr().and_then(|&client| self.closing.begin(client));
            if wire::holds_a_body(&request) {
                wire::send_last(request, reply);
                drop(closes);
            } else {
                let shape = wire::Shape::last(&request);
                let mut out = request.into_writer();
                wire::send(&shape, &mut *out, &reply);
                // In this order: tiny_http answers by itself what may follow and is no request.
                drop(closes);
                drop(out);
            }
        });
    }

    /// Until the engine stops: has connections accepted again when that has ended, closes what is to be closed, and
    /// connects to the server itself where that helps others.
    fn supervise(self: &Arc<Self>) {
        let (mut nudged, mut counted) = (Instant::now(), Instant::now());
        while !self.is_stopping() {
            let mut nudges = usize::from(self.newcomers.nudges.recv_timeout(SUPERVISED_EVERY).is_ok());
            if nudges > 0 {
                thread::sleep(NUDGE_DELAY);
                nudges += self.newcomers.nudges.try_iter().count();
            } else if nudged.elapsed() >= NUDGED_EVERY {
                nudges = 1;
            }
            if nudges > 0 {
                nudged = Instant::now();
                (0..nudges).for_each(|_| self.listener.nudge());
            }
            self.closing.end_overdue();
            if counted.elapsed() >= COUNTED_EVERY {
                counted = Instant::now();
                self.queues.lock().retain(|queue| queue.count());
            }
            let queues = self.queues.lock().clone();
            // All workers have a request, and none has taken one since this was last looked at: a client does not read, or has sent
            // requests ahead of one that takes long.
            for queue in queues.iter().filter(|queue| queue.is_stuck()) {
                self.add_worker(queue, queue.workers.load(Ordering::SeqCst));
            }
            let ended = self.queues.lock().last().is_none_or(|newest| !newest.accepts());
            // tiny_http ends to accept connections at the first error for good, though that is mostly over in a moment: too
            // many open files. The old server serves the connections that it has.
            if ended && sockets::has_room() {
                match self.listen() {
                    Ok(()) => tracing::info!("accepting connections again"),
                    Err(error) => tracing::warn!("cannot accept connections: {error}; trying again"),
                }
            }
        }
    }
}

/// How many threads can run at a time. To ask the system costs it many calls.
fn cores() -> usize {
    static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(2, usize::from));
    *CORES
}

impl Queue {
    /// The next request. Under load there is one in a moment: to look again after letting others run costs less than to
    /// sleep and be woken up.
    fn next(&self) -> io::Result<tiny_http::Request> {
        let idle = Counted::new(&self.idle);
        // Those that are one too many to run at a time sleep at once.
        if idle.before < cores() {
            for _ in 0..LOOKS {
                match self.server.try_recv()? {
                    Some(request) => return Ok(request),
                    None => thread::yield_now(),
                }
            }
        }
        self.server.recv()
    }

    /// Takes this worker off the count if there are too many.
    fn dismiss(&self) -> bool {
        let workers = self.workers.load(Ordering::Relaxed);
        let needed = self.waiting.load(Ordering::Relaxed) + cores();
        let wanted = self.wanted.load(Ordering::Relaxed);
        (wanted == 0 || workers > wanted.max(needed))
            && self.workers.compare_exchange(workers, workers - 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Settles how many workers are needed, by how many have waited lately. Returns whether any are: no more connection of
    /// this server can be open when it accepts none and has had no request for twice as long as a client may be silent.
    fn count(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let peak = self.waiting_peak.swap(waiting, Ordering::Relaxed).max(waiting);
        let taken = self.taken.load(Ordering::Relaxed);
        let mut quiet = self.quiet.lock();
        if taken != quiet.0 || peak > 0 {
            *quiet = (taken, Instant::now());
        }
        let is_needed = self.accepts() || quiet.1.elapsed() < 2 * TIMEOUT;
        let wanted = if is_needed { peak + cores() } else { 0 };
        self.wanted.store(wanted, Ordering::Relaxed);
        // Those that sleep look whether they are needed.
        let surplus = self.workers.load(Ordering::Relaxed).saturating_sub(wanted);
        (0..surplus).for_each(|_| self.server.unblock());
        is_needed
    }

    /// Whether no worker is idle and none has taken a request since this was last called.
    fn is_stuck(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        self.seen.swap(taken, Ordering::Relaxed) == taken && self.idle.load(Ordering::SeqCst) == 0
    }

    fn accepts(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && self.accepting.lasts()
    }
}

/// Counts until it is dropped.
struct Counted<'a> {
    count: &'a AtomicUsize,
    /// What the count was before.
    before: usize,
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where the response to a request goes, and what is held until it is sent.
struct Response {
    shape: wire::Shape,
    out: Box<dyn Write + Send>,
    in_flight: Sender<Infallible>,
    _share: Share,
}

impl Response {
    fn send<S: Service>(mut self, engine: &Engine<S>, reply: Reply) {
        match reply.body {
            Body::Stream(stream) => {
                let head = Reply { body: Body::Whole(Bytes::new()), ..reply };
                engine.stream(&self.shape, self.out, &head, stream, self.in_flight);
            }
            Body::Whole(_) => wire::send(&self.shape, &mut *self.out, &reply),
        }
    }
}

impl Body {
    /// Whether it is sent in one piece. A short one hardly ever waits for its client; where it does, the supervisor notices.
    fn is_short(&self) -> bool {
        matches!(self, Self::Whole(body) if body.len() <= wire::ONE_PIECE_MAX)
    }
}

/// A request, what the service makes of its head, its body, and the body's share of the memory budget.
type Received<S> = (tiny_http::Request, <S as Service>::Admitted, Vec<u8>, Share);

/// Reads a body to its end.
fn read_body(request: &mut tiny_http::Request, mut intake: Intake) -> Result<(Vec<u8>, Share), BodyFault> {
    let began = Instant::now();
    let mut piece = [0; 16 << 10];
    while !intake.is_full() {
        match request.as_reader().read(&mut piece) {
            Ok(0) => break,
            Ok(length) => intake.push(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(BodyFault::BadChunk),
            // The client left, or has sent nothing for too long.
            Err(_) => return Err(intake.cut_off()),
        }
        intake.check_rate(began.elapsed())?;
    }
    // tiny_http ends a chunked body that was cut off as if it were whole.
    if !intake.is_full() && request.body_length().is_none() && !sockets::is_open(request) {
        return Err(intake.cut_off());
    }
    intake.finish()
}
